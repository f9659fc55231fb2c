//! Events that a program makes itself.
//!
//! A notifier is a descriptor that the poller watches and that any thread may write to; with
//! kqueue it can be an event that needs none. There are several kinds, with one contract: once
//! [`Notifier::notify`] has been called, the wait in progress ends, or the next one returns at
//! once, with an event of the notifier's token. Other threads wake a loop by its own notifier.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::errno::Errno;
#[cfg(target_os = "linux")]
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd;

use super::Mode;
use crate::sys;
#[cfg(kqueue)]
use crate::sys::kqueue::Queue;
use crate::token::Token;

/// What a [`Notifier`] is made of. Not every system and poller has all of them:
/// [`Poller::notifier_kinds`](crate::Poller::notifier_kinds) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotifierKind {
    /// eventfd(2): one descriptor, a counter. The cheapest on Linux.
    Eventfd,
    /// EVFILT_USER of kqueue(2): an event without a file. The cheapest where there is kqueue.
    UserEvent,
    /// socketpair(2) of two Unix stream sockets.
    SocketPair,
    /// pipe(2).
    Pipe,
}

impl fmt::Display for NotifierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotifierKind::Eventfd => "eventfd",
            NotifierKind::UserEvent => "EVFILT_USER",
            NotifierKind::SocketPair => "socketpair",
            NotifierKind::Pipe => "pipe",
        })
    }
}

/// An event that any thread can make happen in the [`Poller`](crate::Poller) or
/// [`EventLoop`](crate::EventLoop) that made it. Cheap to clone; clones are the same notifier.
///
/// Notifications coalesce: several of them before the event is taken may be seen as one, so an
/// event says "at least once". None is lost: a notification after [`Notifier::acknowledge`] makes
/// an event of its own. It carries no data. What it is about is written to memory before `notify`
/// and read after the event, with a lock or atomics, as always between threads.
///
/// [`EventLoop::notifier`](crate::EventLoop::notifier) makes one with a callback. With a bare
/// poller it is an event among the others:
///
/// ```
/// use ruduo_reactor::{Events, Poller, Token};
/// use std::thread;
///
/// let poller = Poller::new()?;
/// let notifier = poller.notifier(Token(1))?;
/// let remote = notifier.clone();
/// let other = thread::spawn(move || remote.notify());
///
/// let mut events = Events::with_capacity(16);
/// while events.is_empty() {
///     poller.wait(&mut events, None)?;
/// }
/// assert!(events.iter().all(|event| event.token == notifier.token()));
/// notifier.acknowledge();
/// // Ends it, like any registration; before its last clone is dropped.
/// poller.delete(&notifier)?;
/// # other.join().expect("the other thread")?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone)]
pub struct Notifier {
    token: Token,
    inner: Arc<Inner>,
}

struct Inner {
    made_of: MadeOf,
    /// Whether the descriptor stays readable until it is read.
    drained: bool,
}

enum MadeOf {
    #[cfg(target_os = "linux")]
    Eventfd(EventFd),
    /// A duplicate of the poller's kqueue; its number names the event.
    #[cfg(kqueue)]
    UserEvent(Queue),
    /// Pipe or socket pair, non-blocking at both ends.
    Pair { read: OwnedFd, write: OwnedFd },
}

impl Notifier {
    /// A notifier that no poller watches yet. `edges` says that its poller reports each write to a
    /// counter as an edge of its own: then the counter need not be read between notifications,
    /// which saves a system call each time. Pipes are read in any case, for they fill up.
    pub(crate) fn new(token: Token, kind: NotifierKind, edges: bool) -> io::Result<Notifier> {
        let made_of = match kind {
            #[cfg(target_os = "linux")]
            NotifierKind::Eventfd => {
                let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
                let eventfd = EventFd::from_value_and_flags(0, flags).map_err(|e| {
                    let e = io::Error::from(e);
                    io::Error::new(e.kind(), format!("eventfd: {e}"))
                })?;
                MadeOf::Eventfd(eventfd)
            }
            NotifierKind::SocketPair => {
                let (read, write) = UnixStream::pair()?;
                MadeOf::pair(read.into(), write.into())?
            }
            NotifierKind::Pipe => {
                let (read, write) = io::pipe()?;
                MadeOf::pair(read.into(), write.into())?
            }
            other => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("making a notifier: this system has no {other}"),
                ));
            }
        };
        let drained = !edges || matches!(made_of, MadeOf::Pair { .. });
        Ok(Notifier { token, inner: Arc::new(Inner { made_of, drained }) })
    }

    /// A notifier of a kqueue, given as a duplicate.
    #[cfg(kqueue)]
    pub(crate) fn of_kqueue(token: Token, queue: Queue) -> Notifier {
        Notifier {
            token,
            inner: Arc::new(Inner { made_of: MadeOf::UserEvent(queue), drained: false }),
        }
    }

    /// Makes the event happen: ends the poller's wait, or its next one. From any thread; never
    /// blocks. Once the poller or loop has ended it does nothing. A forked child must not use its
    /// parent's notifiers.
    ///
    /// # Errors
    /// What the kernel says; a correct program meets none.
    pub fn notify(&self) -> io::Result<()> {
        match &self.inner.made_of {
            #[cfg(target_os = "linux")]
            MadeOf::Eventfd(fd) => match retry(|| fd.write(1)) {
                // Nobody has read for 2^64 - 2 notifications. The counter must change to make a
                // new edge, so it is emptied and written to again.
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
            #[cfg(kqueue)]
            MadeOf::UserEvent(queue) => queue.trigger(),
            MadeOf::Pair { write, .. } => match retry(|| unistd::write(write, &[1])) {
                // A full pipe is success: the event is in it already.
                Ok(_) | Err(Errno::EAGAIN) => Ok(()),
                Err(e) => Err(e.into()),
            },
        }
    }

    /// Takes note of the notifications so far, so that the poller's wait can block again. The
    /// thread that waits calls this once for each event of the notifier, *before* it looks at what
    /// the notification was about. A loop does it by itself.
    pub fn acknowledge(&self) {
        if !self.inner.drained {
            return;
        }
        match &self.inner.made_of {
            #[cfg(target_os = "linux")]
            MadeOf::Eventfd(fd) => {
                // One read sets the counter to zero; an error means that it is.
                let _ = retry(|| fd.read());
            }
            // The kernel has taken it off its list by reporting it.
            #[cfg(kqueue)]
            MadeOf::UserEvent(_) => {}
            MadeOf::Pair { read, .. } => {
                let mut scratch = [0; 256];
                // A short read has emptied it; so has an error, or an end.
                while retry(|| unistd::read(read, &mut scratch)) == Ok(scratch.len()) {}
            }
        }
    }

    /// The token of its events. [`EventLoop::deregister`](crate::EventLoop::deregister) takes it,
    /// too.
    #[must_use]
    pub fn token(&self) -> Token {
        self.token
    }

    /// How its descriptor is watched.
    pub(crate) fn mode(&self) -> Mode {
        if self.inner.drained { Mode::Level } else { Mode::Edge }
    }

    /// Where a signal handler writes its eight bytes; `None` if there is nothing to write to.
    pub(crate) fn write_end(&self) -> Option<BorrowedFd<'_>> {
        match &self.inner.made_of {
            #[cfg(target_os = "linux")]
            MadeOf::Eventfd(fd) => Some(fd.as_fd()),
            #[cfg(kqueue)]
            MadeOf::UserEvent(_) => None,
            MadeOf::Pair { write, .. } => Some(write.as_fd()),
        }
    }
}

impl MadeOf {
    fn pair(read: OwnedFd, write: OwnedFd) -> io::Result<MadeOf> {
        sys::set_nonblocking(read.as_fd())?;
        sys::set_nonblocking(write.as_fd())?;
        Ok(MadeOf::Pair { read, write })
    }
}

/// The end that becomes readable, by which its poller knows it.
impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.inner.made_of {
            #[cfg(target_os = "linux")]
            MadeOf::Eventfd(fd) => fd.as_fd(),
            #[cfg(kqueue)]
            MadeOf::UserEvent(queue) => queue.as_fd(),
            MadeOf::Pair { read, .. } => read.as_fd(),
        }
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier")
            .field("token", &self.token)
            .field("fd", &self.as_fd())
            .finish_non_exhaustive()
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
