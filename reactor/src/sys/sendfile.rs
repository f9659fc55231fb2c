//! Sending a piece of a file: sendfile(2) on Linux.
//!
//! The calls of this name on FreeBSD, DragonFly and macOS take three other lists of arguments, and
//! OpenBSD and NetBSD have none. On all of those the bytes come through our memory, in steps: that
//! costs more, and is the same to the peer.

use std::io;
use std::os::fd::BorrowedFd;

#[cfg(target_os = "linux")]
pub use self::by_kernel as send_file;
#[cfg(not(target_os = "linux"))]
pub use self::through_memory as send_file;

/// Sends up to `count` bytes of `file` from `offset` on, without bringing them to user space, and
/// returns how many went. `Ok(0)` means that the file is shorter than `offset`.
///
/// sendfile(2) has no `MSG_NOSIGNAL`, so SIGPIPE is held back on this thread during the call and
/// taken away if the call raised it.
///
/// # Errors
/// Those of sendfile(2).
#[cfg(target_os = "linux")]
pub fn by_kernel(
    socket: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    offset: u64,
    count: usize,
) -> io::Result<usize> {
    use std::os::fd::AsRawFd;

    use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

    let mut offset = file_offset(offset)?;
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    let mut mask = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&pipe), Some(&mut mask))?;
    // SAFETY: the offset is valid for reading and writing.
    let sent = super::socket::retry(|| unsafe {
        libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut offset, count)
    });
    let raised = sent.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe);
    if raised && !mask.contains(Signal::SIGPIPE) {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: set and timespec are valid; no information about the signal is asked for.
        unsafe { libc::sigtimedwait(pipe.as_ref(), std::ptr::null_mut(), &raw const now) };
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
    sent
}

/// The most that is read in one step.
#[cfg(any(test, not(target_os = "linux")))]
const STEP: usize = 64 * 1024;

/// Sends up to `count` bytes of `file` from `offset` on, 64 KiB at most, and returns how many went.
/// `Ok(0)` means that the file is shorter than `offset`. What the socket did not take is read again
/// the next time.
///
/// # Errors
/// Those of pread(2) and send(2).
#[cfg(any(test, not(target_os = "linux")))]
pub fn through_memory(
    socket: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    offset: u64,
    count: usize,
) -> io::Result<usize> {
    use nix::errno::Errno;
    use nix::sys::uio::pread;

    let offset = file_offset(offset)?;
    let mut bytes = vec![0; count.min(STEP)];
    let there = loop {
        match pread(file, &mut bytes, offset) {
            Err(Errno::EINTR) => {}
            outcome => break outcome?,
        }
    };
    if there == 0 {
        return Ok(0);
    }
    super::socket::send(socket, &bytes[..there]).into_result()
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "file offset over 2^63"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::{ErrorKind, Read};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    type SendFile = fn(BorrowedFd<'_>, BorrowedFd<'_>, u64, usize) -> io::Result<usize>;

    const WAYS: &[SendFile] = &[
        through_memory,
        #[cfg(target_os = "linux")]
        by_kernel,
    ];

    /// What no socket's buffer holds, with a different byte at each place of a page.
    fn contents() -> Vec<u8> {
        (0..3_000_017_u32).map(|n| (n % 251) as u8).collect()
    }

    fn a_file(contents: &[u8]) -> File {
        let name =
            format!("ruduo-sendfile-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, contents).unwrap();
        let file = File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        file
    }

    #[test]
    fn a_file_arrives_whole_whichever_way_it_goes() {
        let contents = contents();
        let file = a_file(&contents);
        let first = 1_000;
        for send in WAYS {
            let (near, mut far) = UnixStream::pair().unwrap();
            near.set_nonblocking(true).unwrap();
            far.set_nonblocking(true).unwrap();
            let (mut sent, mut received, mut was_full) = (first, Vec::new(), false);
            loop {
                match send(near.as_fd(), file.as_fd(), sent as u64, contents.len()) {
                    Ok(0) => break,
                    Ok(n) => sent += n,
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::WouldBlock);
                        was_full = true;
                        let end = far.read_to_end(&mut received).unwrap_err();
                        assert_eq!(end.kind(), ErrorKind::WouldBlock);
                    }
                }
            }
            assert!(was_full, "the test wants a short buffer");
            assert_eq!(sent, contents.len());
            drop(near);
            far.read_to_end(&mut received).unwrap();
            assert!(received == contents[first..], "{} bytes came", received.len());
        }
    }

    #[test]
    fn no_more_is_sent_than_was_asked_for() {
        let file = a_file(&contents());
        for send in WAYS {
            let (near, mut far) = UnixStream::pair().unwrap();
            assert_eq!(send(near.as_fd(), file.as_fd(), 250, 3).unwrap(), 3);
            drop(near);
            let mut received = Vec::new();
            far.read_to_end(&mut received).unwrap();
            assert_eq!(received, [250, 0, 1]);
        }
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error_and_no_signal() {
        use nix::sys::signal::{SigHandler, Signal, signal};

        let file = a_file(&contents());
        // SAFETY: the default action runs no code of ours.
        let before = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
        for send in WAYS {
            let (near, far) = UnixStream::pair().unwrap();
            super::super::socket::take_over(near.as_fd()).unwrap();
            drop(far);
            let error = send(near.as_fd(), file.as_fd(), 0, 10).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe);
            let error = send(near.as_fd(), file.as_fd(), u64::MAX, 10).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        // SAFETY: what was there before is put back.
        unsafe { signal(Signal::SIGPIPE, before) }.unwrap();
    }
}
