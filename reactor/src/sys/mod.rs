//! The kernel, one file per interface: every `unsafe` of the library stands in this folder.
//!
//! What leaves it is safe to call with any arguments: descriptors are borrowed or owned types,
//! memory is a slice or the spare room of a `Vec`. Where `nix` is safe and enough the rest of the
//! crate uses that; what is here is what nix lacks or makes awkward (`epoll_pwait2`, `accept4`
//! with the peer's address, receiving without zero-filling, signal handlers).

pub mod address;
pub(crate) mod control;
pub(crate) mod current;
pub mod datagram;
pub mod datagram_options;
#[cfg(target_os = "linux")]
pub(crate) mod epoll;
pub(crate) mod fork;
pub mod inherit;
pub mod keepalive;
#[cfg(kqueue)]
pub(crate) mod kqueue;
#[cfg(all(kqueue, kqueue_model))]
pub(crate) mod kqueue_model;
pub(crate) mod memory;
pub(crate) mod poll;
pub mod sendfile;
pub(crate) mod signal;
pub mod socket;
pub(crate) mod task;

use std::io;
use std::os::fd::BorrowedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Turns the `-1` of a system call into the error in `errno`.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The same for calls that return a number of bytes.
fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Makes reading and writing fail with `WouldBlock` instead of waiting.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Milliseconds, rounded up and clamped to what epoll_wait and poll can be told (24 days).
#[cfg(any(test, target_os = "linux", target_vendor = "apple"))]
fn ceil_ms(timeout: std::time::Duration) -> libc::c_int {
    let ms = timeout.as_nanos().div_ceil(1_000_000);
    libc::c_int::try_from(ms).unwrap_or(libc::c_int::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn milliseconds_round_up_and_clamp() {
        assert_eq!(ceil_ms(Duration::from_nanos(1)), 1);
        assert_eq!(ceil_ms(Duration::from_millis(7)), 7);
        assert_eq!(ceil_ms(Duration::from_micros(7_001)), 8);
        let day = Duration::from_secs(86_400);
        for long in [day * 25, day * 40, day * 300, Duration::MAX] {
            assert_eq!(ceil_ms(long), libc::c_int::MAX);
        }
    }
}
