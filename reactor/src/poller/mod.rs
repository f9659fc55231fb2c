//! Which of many descriptors are ready: one interface over the kernel's several.
//!
//! A backend is one file that can be read alone. It keeps this contract:
//!
//! 1. Registrations are per descriptor. Adding one twice, or changing one that was never added,
//!    is an error and changes nothing.
//! 2. `wait` reports at most one [`Event`] per descriptor and call: what the kernel tells of
//!    reading and of writing is merged first, so that one batch never calls a channel twice.
//! 3. [`Ready::ERROR`] and [`Ready::HANGUP`] are reported whatever the interest is, also with an
//!    empty one. A level-triggered registration repeats them for ever: see [`Interest::NONE`].
//!    Where only one direction is waited for, a hang-up may be reported as mere readiness in that
//!    direction: the read or write then tells the rest. So may an error that ends nothing (a
//!    datagram's was refused); kqueue does not report that to an empty interest.
//! 4. Level: reported as long as the condition holds. Edge: reported when it begins; the caller
//!    reads or writes until `WouldBlock`. One-shot: reported once, then silent until `modify`. In
//!    every mode `add` and `modify` report what holds already.
//! 5. Spurious readiness is allowed: a `WouldBlock` after an event is no error.
//! 6. `delete` comes before the descriptor is closed. epoll(7) keeps watching a closed descriptor
//!    while a duplicate of it lives, in a forked child for example, and then nobody can remove it.
//! 7. Timeouts are rounded up, and `Duration::MAX` is one like others. `wait` may return early and
//!    without events, after a signal for example, but not because a timeout was rounded down.
//! 8. A notifier made by the poller ends a `wait` in progress, or else the next one, from any
//!    thread; everything else is done by the one thread that waits. A notifier has a descriptor of
//!    its own, by which `delete` knows it. Where the kernel needs none (EVFILT_USER), it is a
//!    duplicate of the poller's.
//! 9. Regular files, directories and block devices, which are always ready, are refused, although
//!    some kernels could report that: a program then meets the error wherever it is first run.

#[cfg(target_os = "linux")]
mod epoll;
mod kind;
#[cfg(kqueue)]
mod kqueue;
mod notifier;
mod poll;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::time::Duration;

use bitflags::bitflags;
use nix::sys::stat::{SFlag, fstat};

pub use self::kind::PollerKind;
pub use self::notifier::{Notifier, NotifierKind};
use crate::token::Token;

bitflags! {
    /// What to wait for on a descriptor.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Interest: u8 {
        /// Data, a connection to accept, or end of file.
        const READ = 1;
        /// Room for output, or the end of a connection attempt.
        const WRITE = 4;
    }

    /// What a descriptor is ready for. The bits are those of poll(2) and epoll(7), which agree.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ready: u8 {
        /// A read will not block: there is data, a connection to accept, or end of file.
        const READ = 1;
        /// A write will not block.
        const WRITE = 4;
        /// An error is pending; reading or writing returns it.
        const ERROR = 8;
        /// Both directions are at their end. There may still be data to read.
        const HANGUP = 16;
    }
}

impl Interest {
    /// Nothing but errors and hang-ups, which the kernel reports unasked.
    ///
    /// With a bare [`Poller`], level-triggered, such a registration makes every `wait` return at
    /// once after the peer is gone (55,000 times in 0.3 s when we measured it), so handle the
    /// event by deleting it. The [`EventLoop`](crate::EventLoop) does that itself.
    pub const NONE: Interest = Interest::empty();

    /// Being ready for all that it asks for.
    #[inline(always)]
    pub(crate) fn asked(self) -> Ready {
        Ready::from_bits_retain(self.bits())
    }
}

/// When a registration reports readiness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// As long as the descriptor is ready. Costs the same as the others and forgives a reader who
    /// stops early.
    #[default]
    Level,
    /// When it becomes ready. The reader must read until `WouldBlock`. With [`PollerKind::Poll`],
    /// whose kernel interface tells no edges, an event may come a millisecond late, and again, a
    /// thousand times a second at most, while the reader leaves it as it is.
    Edge,
    /// Once; then not again until the interest is set anew.
    OneShot,
}

/// One descriptor's readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The token of its registration.
    pub token: Token,
    /// What it is ready for.
    pub ready: Ready,
}

/// A batch of events, filled by [`Poller::wait`] and re-used from one wait to the next.
pub struct Events {
    list: Vec<RawEvent>,
}

/// What a backend fills in: on Linux the very structure that epoll_wait(2) writes, so that its
/// events need not be copied. Other backends and systems fill in the same fields.
#[cfg(target_os = "linux")]
type RawEvent = libc::epoll_event;
#[cfg(not(target_os = "linux"))]
struct RawEvent {
    events: u32,
    u64: u64,
}

impl Events {
    /// Room for `capacity` events (at least one). Descriptors that are ready beyond that are
    /// reported by the next wait.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Events {
        Events { list: Vec::with_capacity(capacity.max(1)) }
    }

    /// The events of the last wait, in the kernel's order.
    pub fn iter(&self) -> impl Iterator<Item = Event> + Clone + '_ {
        self.list.iter().map(|raw| Event {
            token: Token(raw.u64),
            // The bits of `Ready` are those of epoll, which reports no others unasked.
            ready: Ready::from_bits_retain(raw.events as u8),
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether the last wait ended without any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Tells which registered descriptors are ready.
///
/// The [`EventLoop`](crate::EventLoop) is built on it. It works alone too, in the style of mio:
/// tokens and a batch of events, no callbacks. It is used by one thread, which need not be the one
/// that made it; others reach it by a [`Notifier`].
///
/// ```
/// use ruduo_reactor::{Events, Interest, Mode, Poller, Ready, Token};
/// use std::io::{ErrorKind, Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// let (mut near, mut far) = UnixStream::pair()?;
/// far.set_nonblocking(true)?;
/// let poller = Poller::new()?;
/// let mut events = Events::with_capacity(16);
///
/// // Register.
/// poller.add(&far, Token(7), Interest::READ, Mode::Level)?;
/// near.write_all(b"hello")?;
/// poller.wait(&mut events, None)?;
/// for event in events.iter() {
///     assert_eq!(event.token, Token(7));
///     assert!(event.ready.contains(Ready::READ));
///     let mut bytes = [0; 64];
///     match far.read(&mut bytes) {
///         Ok(0) => println!("the peer has finished"),
///         Ok(n) => println!("{n} bytes"),
///         // Told for nothing. That may be, and is no error.
///         Err(e) if e.kind() == ErrorKind::WouldBlock => {}
///         Err(e) => return Err(e),
///     }
/// }
///
/// // Change: another token, another interest, another mode.
/// poller.modify(&far, Token(8), Interest::WRITE, Mode::OneShot)?;
/// poller.wait(&mut events, None)?;
/// assert!(events.iter().all(|event| event.token == Token(8)));
///
/// // Deregister, then close.
/// poller.delete(&far)?;
/// drop(far);
/// # std::io::Result::Ok(())
/// ```
pub struct Poller {
    kind: PollerKind,
    backend: Chosen,
}

/// The backend that a poller was made with.
enum Chosen {
    #[cfg(target_os = "linux")]
    Epoll(epoll::Epoll),
    #[cfg(kqueue)]
    Kqueue(kqueue::Kqueue),
    Poll(poll::Poll),
}

/// What a backend does; the contract stands at the top of this file.
trait Backend {
    fn add(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        interest: Interest,
        mode: Mode,
    ) -> io::Result<()>;
    fn modify(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        interest: Interest,
        mode: Mode,
    ) -> io::Result<()>;
    fn delete(&self, fd: BorrowedFd<'_>) -> io::Result<()>;
    /// Replaces the contents of `events`, up to its capacity. After an error they do not matter.
    fn wait(&self, events: &mut Vec<RawEvent>, timeout: Option<Duration>) -> io::Result<()>;
    /// The kinds of notifiers it can make, the best first.
    fn notifier_kinds(&self) -> &'static [NotifierKind];
    /// A notifier, watched already.
    fn notifier(&self, token: Token, kind: NotifierKind) -> io::Result<Notifier>;
}

impl Poller {
    /// A poller of the [preferred](PollerKind::preferred) kind.
    ///
    /// # Errors
    /// `InvalidInput` if the environment variable `RUDUO_POLLER` names no poller, and as
    /// [`Poller::with_kind`].
    pub fn new() -> io::Result<Poller> {
        let context = |e: io::Error| io::Error::new(e.kind(), format!("making a poller: {e}"));
        Poller::with_kind(PollerKind::preferred().map_err(context)?).map_err(context)
    }

    /// A poller of a chosen kind.
    ///
    /// # Errors
    /// `Unsupported` if the system has none; the kernel's, for want of descriptors or memory.
    pub fn with_kind(kind: PollerKind) -> io::Result<Poller> {
        let backend = match kind {
            #[cfg(target_os = "linux")]
            PollerKind::Epoll => Chosen::Epoll(epoll::Epoll::new()?),
            #[cfg(kqueue)]
            PollerKind::Kqueue => Chosen::Kqueue(kqueue::Kqueue::new()?),
            PollerKind::Poll => Chosen::Poll(poll::Poll::default()),
            #[allow(unreachable_patterns, reason = "Linux with the model of kqueue has them all")]
            _ => return Err(kind.missing()),
        };
        Ok(Poller { kind, backend })
    }

    /// The kernel interface it uses.
    #[must_use]
    pub fn kind(&self) -> PollerKind {
        self.kind
    }

    /// Starts watching `fd`. Events about it will carry `token`.
    ///
    /// # Errors
    /// `AlreadyExists` if it is watched already, `PermissionDenied` for descriptors that are
    /// always ready and can't be watched (regular files), and the kernel's limits
    /// (`max_user_watches`).
    pub fn add(
        &self,
        fd: impl AsFd,
        token: Token,
        interest: Interest,
        mode: Mode,
    ) -> io::Result<()> {
        self.backend().add(fd.as_fd(), token, interest, mode)
    }

    /// Replaces token, interest and mode of a watched descriptor; re-arms a one-shot.
    ///
    /// # Errors
    /// `NotFound` if it is not watched.
    pub fn modify(
        &self,
        fd: impl AsFd,
        token: Token,
        interest: Interest,
        mode: Mode,
    ) -> io::Result<()> {
        self.backend().modify(fd.as_fd(), token, interest, mode)
    }

    /// Stops watching `fd`. Do this before closing it.
    ///
    /// # Errors
    /// `NotFound` if it is not watched.
    pub fn delete(&self, fd: impl AsFd) -> io::Result<()> {
        self.backend().delete(fd.as_fd())
    }

    /// Waits until something is ready, a notifier is used or `timeout` (`None`: for ever) is over,
    /// and replaces the contents of `events`. A wait may end early, with no events: a signal does
    /// that.
    ///
    /// # Errors
    /// What the kernel says; a correct program meets none.
    #[inline(always)]
    pub fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let list = &mut events.list;
        // Not by `backend`: a wait is to be a part of the turn of a loop, and not a call.
        let outcome = match &self.backend {
            #[cfg(target_os = "linux")]
            Chosen::Epoll(epoll) => epoll.wait(list, timeout),
            #[cfg(kqueue)]
            Chosen::Kqueue(kqueue) => kqueue.wait(list, timeout),
            Chosen::Poll(poll) => poll.wait(list, timeout),
        };
        outcome.or_else(|e| {
            list.clear();
            if e.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(e) }
        })
    }

    /// Makes a [`Notifier`], by which any thread can end a wait with an event of this `token`.
    /// [`Poller::delete`] ends it.
    ///
    /// # Errors
    /// The kernel's, for want of descriptors or memory.
    pub fn notifier(&self, token: Token) -> io::Result<Notifier> {
        self.notifier_of(token, None)
    }

    /// Makes a notifier of a chosen kind.
    ///
    /// # Errors
    /// `Unsupported` if it is none of [`Poller::notifier_kinds`]; otherwise as
    /// [`Poller::notifier`].
    pub fn notifier_with_kind(&self, token: Token, kind: NotifierKind) -> io::Result<Notifier> {
        self.notifier_of(token, Some(kind))
    }

    /// What this poller can make notifiers of, the best first.
    #[must_use]
    pub fn notifier_kinds(&self) -> &'static [NotifierKind] {
        self.backend().notifier_kinds()
    }

    pub(crate) fn notifier_of(
        &self,
        token: Token,
        kind: Option<NotifierKind>,
    ) -> io::Result<Notifier> {
        let kinds = self.notifier_kinds();
        let kind = kind.unwrap_or(kinds[0]);
        if !kinds.contains(&kind) {
            let why = format!("no notifier is made of {kind} with {} on this system", self.kind);
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        self.backend().notifier(token, kind)
    }

    fn backend(&self) -> &dyn Backend {
        match &self.backend {
            #[cfg(target_os = "linux")]
            Chosen::Epoll(epoll) => epoll,
            #[cfg(kqueue)]
            Chosen::Kqueue(kqueue) => kqueue,
            Chosen::Poll(poll) => poll,
        }
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// An event as a backend fills it in.
fn raw_event(token: Token, ready: Ready) -> RawEvent {
    RawEvent { events: u32::from(ready.bits()), u64: token.0 }
}

/// Why a descriptor is neither changed nor deleted, for the backends that keep the list themselves.
fn not_watched(fd: RawFd) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("descriptor {fd} is not watched"))
}

/// Why it is not added.
fn is_watched(fd: RawFd) -> io::Error {
    let why = format!("descriptor {fd} is watched already, or was closed while it was");
    io::Error::new(io::ErrorKind::AlreadyExists, why)
}

/// Refuses what rule 9 names, for the backends whose kernel does not: poll(2) and some kqueues call
/// files ready at all times. Returns what kind of thing it is otherwise.
fn refuse_files(fd: BorrowedFd<'_>) -> io::Result<SFlag> {
    let kind = SFlag::from_bits_truncate(fstat(fd)?.st_mode & SFlag::S_IFMT.bits());
    if [SFlag::S_IFREG, SFlag::S_IFDIR, SFlag::S_IFBLK].contains(&kind) {
        let why = "files and block devices are always ready and can't be watched";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(kind)
}
