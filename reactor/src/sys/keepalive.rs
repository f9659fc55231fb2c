//! How TCP asks a peer that says nothing whether it is still there: three options, one of which has
//! another name on macOS. OpenBSD has none of them for a single socket.

use std::io;
use std::os::fd::BorrowedFd;

/// Turns it on: the first question comes `after` so many seconds of silence, another one `every` so
/// many seconds, and when so many `times` there was no answer the connection fails with `TimedOut`.
///
/// # Errors
/// Those of setsockopt(2): `InvalidInput` for numbers that the system does not take.
#[cfg(not(target_os = "openbsd"))]
pub fn keep_alive(socket: BorrowedFd<'_>, after: u32, every: u32, times: u32) -> io::Result<()> {
    use super::socket::set_option;

    #[cfg(not(target_vendor = "apple"))]
    const AFTER: libc::c_int = libc::TCP_KEEPIDLE;
    #[cfg(target_vendor = "apple")]
    const AFTER: libc::c_int = libc::TCP_KEEPALIVE;

    let options = [(AFTER, after), (libc::TCP_KEEPINTVL, every), (libc::TCP_KEEPCNT, times)];
    for (option, number) in options {
        let number = libc::c_int::try_from(number)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        set_option(socket, libc::IPPROTO_TCP, option, number)?;
    }
    set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)
}

/// On other systems this turns it on.
///
/// # Errors
/// `Unsupported`: there it is a setting of the whole system.
#[cfg(target_os = "openbsd")]
pub fn keep_alive(_: BorrowedFd<'_>, _: u32, _: u32, _: u32) -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "OpenBSD sets these times for all sockets alike: sysctl net.inet.tcp.keepidle and keepintvl, \
         and net.inet.tcp.always_keepalive",
    ))
}
