//! Ending another thread's wait.
//!
//! A descriptor that the poller watches and that any thread may write to. Three kinds, one
//! contract: after [`Waker::wake`] returns, the wait in progress ends, or the next one returns at
//! once. Several wakeups before the wait ends may be seen as one.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd;

/// What a [`Waker`] is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WakerKind {
    /// eventfd(2): one descriptor, a counter. The cheapest.
    #[default]
    Eventfd,
    /// socketpair(2) of two Unix stream sockets.
    SocketPair,
    /// pipe(2).
    Pipe,
}

/// Ends the wait of the [`Poller`](crate::Poller) that made it, from any thread.
pub struct Waker {
    kind: Kind,
}

enum Kind {
    Eventfd(EventFd),
    /// Pipe or socket pair, non-blocking at both ends.
    Pair {
        read: OwnedFd,
        write: OwnedFd,
    },
}

impl Waker {
    pub(crate) fn new(kind: WakerKind) -> io::Result<Waker> {
        use nix::fcntl::OFlag;
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

        let kind = match kind {
            WakerKind::Eventfd => {
                let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
                Kind::Eventfd(EventFd::from_value_and_flags(0, flags)?)
            }
            WakerKind::SocketPair => {
                let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
                let (read, write) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
                Kind::Pair { read, write }
            }
            WakerKind::Pipe => {
                let (read, write) = unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
                Kind::Pair { read, write }
            }
        };
        Ok(Waker { kind })
    }

    /// Ends the poller's wait, or its next one. From any thread; never blocks.
    ///
    /// A full pipe is success: the wakeup is already in it.
    ///
    /// # Errors
    /// None that a correct program meets; what the kernel says otherwise.
    pub fn wake(&self) -> io::Result<()> {
        match &self.kind {
            Kind::Eventfd(fd) => match retry(|| fd.write(1)) {
                // Nobody has read for 2^64 - 2 wakeups. The counter must change to make a new
                // edge: empty it, then write again.
                Err(Errno::EAGAIN) => {
                    let _ = retry(|| fd.read());
                    match retry(|| fd.write(1)) {
                        Ok(_) | Err(Errno::EAGAIN) => Ok(()),
                        Err(e) => Err(e.into()),
                    }
                }
                Ok(_) => Ok(()),
                Err(e) => Err(e.into()),
            },
            Kind::Pair { write, .. } => match retry(|| unistd::write(write, &[1])) {
                Ok(_) | Err(Errno::EAGAIN) => Ok(()),
                Err(e) => Err(e.into()),
            },
        }
    }

    /// Takes note of the wakeups so far, so that a level-triggered wait can block again. To be
    /// called by the thread that waits, once for each event of the waker.
    pub fn acknowledge(&self) {
        let Kind::Pair { read, .. } = &self.kind else { return };
        let mut scratch = [0; 256];
        // A short read means empty; anything but data means that there is nothing to drain.
        while retry(|| unistd::read(read, &mut scratch)) == Ok(scratch.len()) {}
    }

    /// Whether the descriptor stays readable until [`Waker::acknowledge`].
    pub(crate) fn needs_drain(&self) -> bool {
        matches!(self.kind, Kind::Pair { .. })
    }

    /// Where a signal handler writes its eight bytes.
    pub(crate) fn write_end(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Eventfd(fd) => fd.as_fd(),
            Kind::Pair { write, .. } => write.as_fd(),
        }
    }
}

/// The end that becomes readable.
impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Eventfd(fd) => fd.as_fd(),
            Kind::Pair { read, .. } => read.as_fd(),
        }
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.needs_drain() { "pipe or socket pair" } else { "eventfd" };
        f.debug_tuple("Waker").field(&kind).finish()
    }
}

fn retry<R>(mut call: impl FnMut() -> nix::Result<R>) -> nix::Result<R> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            outcome => return outcome,
        }
    }
}
