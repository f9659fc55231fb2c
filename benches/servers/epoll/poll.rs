//! epoll, with an error where it returns -1.

use std::io;
use std::os::fd::RawFd;

/// How many events are taken at a time.
pub(crate) const BATCH: usize = 256;

pub(crate) const NO_EVENT: libc::epoll_event = libc::epoll_event { events: 0, u64: 0 };

/// What a loop does while there is nothing to do.
#[derive(Clone, Copy)]
pub(crate) enum Wait {
    /// Leaves the CPU to others until something comes.
    Asleep,
    /// Looks again at once.
    Spinning,
}

pub(crate) struct Epoll(RawFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Epoll> {
        // SAFETY: no pointers are involved.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(Epoll(fd)) }
    }

    pub(crate) fn control(&self, operation: i32, fd: RawFd, interest: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest as u32, u64: fd as u64 };
        // SAFETY: the event outlives the call.
        let r = unsafe { libc::epoll_ctl(self.0, operation, fd, &mut event) };
        if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(crate) fn wait(&self, events: &mut [libc::epoll_event], wait: Wait) -> io::Result<usize> {
        let timeout = match wait {
            Wait::Asleep => -1,
            Wait::Spinning => 0,
        };
        // SAFETY: the array is valid for writing its length.
        let n =
            unsafe { libc::epoll_wait(self.0, events.as_mut_ptr(), events.len() as i32, timeout) };
        if n >= 0 {
            return Ok(n as usize);
        }
        let e = io::Error::last_os_error();
        if e.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(e) }
    }
}
