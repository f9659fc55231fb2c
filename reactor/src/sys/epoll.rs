//! epoll(7): one descriptor that knows which of many others are ready.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::{ceil_ms, check};

/// What epoll_ctl(2) is asked to do.
#[derive(Clone, Copy)]
pub(crate) enum Op {
    Add,
    Modify,
    Delete,
}

/// An epoll instance.
pub(crate) struct Epoll {
    fd: OwnedFd,
    /// Whether the kernel has `epoll_pwait2` (Linux 5.11); found out by the first timed wait.
    has_pwait2: Cell<bool>,
}

impl Epoll {
    pub(crate) fn new() -> io::Result<Epoll> {
        // SAFETY: epoll_create1 takes no pointers.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Epoll { fd, has_pwait2: Cell::new(true) })
    }

    pub(crate) fn ctl(&self, op: Op, fd: BorrowedFd<'_>, events: u32, data: u64) -> io::Result<()> {
        let op = match op {
            Op::Add => libc::EPOLL_CTL_ADD,
            Op::Modify => libc::EPOLL_CTL_MOD,
            Op::Delete => libc::EPOLL_CTL_DEL,
        };
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: `event` lives across the call and the kernel only reads it.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), op, fd.as_raw_fd(), &raw mut event) })?;
        Ok(())
    }

    /// Waits and replaces the contents of `events`, up to its capacity. `None` waits for ever.
    ///
    /// `epoll_wait` counts milliseconds, so a finite timeout goes through `epoll_pwait2`, which
    /// counts nanoseconds; on a kernel without it the milliseconds are rounded up, for a wait
    /// that ends early would make the caller spin until its deadline.
    #[inline(always)]
    pub(crate) fn wait(
        &self,
        events: &mut Vec<libc::epoll_event>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        let count = match timeout {
            None => self.wait_ms(events, -1)?,
            Some(timeout) => self.wait_timed(events, timeout)?,
        };
        // SAFETY: the kernel initialised the first `count` events, at most the capacity.
        unsafe { events.set_len(count) };
        Ok(())
    }

    /// Kept out of the way of waits without a timer.
    #[inline(never)]
    fn wait_timed(
        &self,
        events: &mut Vec<libc::epoll_event>,
        timeout: Duration,
    ) -> io::Result<usize> {
        if timeout.is_zero() {
            return self.wait_ms(events, 0);
        }
        if self.has_pwait2.get() {
            match self.wait_ns(events, timeout) {
                // Containers with an old seccomp profile answer EPERM for calls they don't know.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                    self.has_pwait2.set(false);
                }
                outcome => return outcome,
            }
        }
        self.wait_ms(events, ceil_ms(timeout))
    }

    fn wait_ms(&self, events: &mut Vec<libc::epoll_event>, ms: libc::c_int) -> io::Result<usize> {
        let room = room(events);
        // SAFETY: the pointer is valid for `room` events, which the kernel may write.
        let n =
            check(unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events.as_mut_ptr(), room, ms) })?;
        Ok(n as usize)
    }

    fn wait_ns(&self, events: &mut Vec<libc::epoll_event>, timeout: Duration) -> io::Result<usize> {
        /// `struct __kernel_timespec`: 64 bits on every architecture, unlike libc's.
        #[repr(C)]
        struct KernelTimespec {
            tv_sec: i64,
            tv_nsec: i64,
        }
        // A wait cut short by this clamp (68 years) costs its caller one turn.
        let timespec = KernelTimespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        let room = room(events);
        // Called by number: glibc has a wrapper only since 2.35.
        // SAFETY: the event pointer is valid for `room` events; the timespec outlives the call;
        // the null signal mask means "leave it", so its size is not looked at.
        let n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                events.as_mut_ptr(),
                room,
                &raw const timespec,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}

/// A capacity that does not fit is cut off: to a smaller one, or one below zero, which the kernel
/// refuses.
fn room(events: &Vec<libc::epoll_event>) -> libc::c_int {
    events.capacity() as libc::c_int
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fallback_waits_at_least_as_long_as_asked() {
        let epoll = Epoll::new().unwrap();
        epoll.has_pwait2.set(false);
        let mut events = Vec::with_capacity(1);
        for wait in [Duration::from_micros(1), Duration::from_micros(1500)] {
            let start = std::time::Instant::now();
            epoll.wait(&mut events, Some(wait)).unwrap();
            assert!(start.elapsed() >= wait);
        }
    }
}
