//! What a loop owns for each registered descriptor.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use slab::Slab;

use crate::EventLoop;
use crate::poller::{Event, Interest, Mode};
use crate::token::Token;

/// A descriptor and what is to happen when it is ready.
///
/// Give it to [`EventLoop::register`], which returns the [`Token`] to change or end the
/// registration with.
///
/// ```
/// use ruduo_reactor::{Channel, EventLoop, Interest};
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// let event_loop = EventLoop::new()?;
/// let (mut near, far) = UnixStream::pair()?;
/// event_loop.register(Channel::new(far, Interest::READ, |event_loop, mut far, event| {
///     let mut bytes = [0; 16];
///     let n = far.read(&mut bytes).unwrap_or(0);
///     println!("got {:?}", &bytes[..n]);
///     event_loop.deregister(event.token);
///     event_loop.quit();
/// }))?;
/// near.write_all(b"hello")?;
/// event_loop.run()?;
/// # std::io::Result::Ok(())
/// ```
pub struct Channel {
    pub(crate) source: Rc<dyn Source>,
    pub(crate) interest: Interest,
    pub(crate) mode: Mode,
}

/// A descriptor that handles its own events: what a [`Channel`] holds. Who knows its type and its
/// token finds it by [`EventLoop::source`].
///
/// All methods are called on the loop's thread, never nested, and with nothing of the loop
/// borrowed, so they may use it freely. A panic in one of them is caught.
pub trait Source: Any {
    /// The descriptor. The same one for as long as the source is registered.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// The descriptor is ready. The loop holds `self` meanwhile, so it outlives a deregistration in
    /// here.
    fn on_event(self: Rc<Self>, event_loop: &EventLoop, event: Event);

    /// The end of a turn for which [`EventLoop::at_turn_end`] was called.
    fn on_turn_end(&self, event_loop: &EventLoop, token: Token) {
        let _ = (event_loop, token);
    }

    /// One of the other methods panicked. By default the registration ends.
    fn on_panic(&self, event_loop: &EventLoop, token: Token) {
        event_loop.deregister(token);
    }

    /// What log lines call it.
    fn name(&self) -> String {
        "a channel".to_owned()
    }

    /// The loop ends while the source is registered; it is deregistered right after.
    fn on_loop_end(&self, event_loop: &EventLoop, token: Token) {
        let _ = (event_loop, token);
    }
}

impl Channel {
    /// A level-triggered channel: `handler` is called with the loop, the source and the event.
    pub fn new<S, F>(source: S, interest: Interest, handler: F) -> Channel
    where
        S: AsFd + 'static,
        F: FnMut(&EventLoop, &S, Event) + 'static,
    {
        let handler = RefCell::new(handler);
        Channel::from_source(Rc::new(WithHandler { source, handler }), interest)
    }

    /// A level-triggered channel whose source handles its own events.
    pub fn from_source(source: Rc<dyn Source>, interest: Interest) -> Channel {
        Channel { source, interest, mode: Mode::Level }
    }

    /// The same channel in another mode.
    #[must_use]
    pub fn mode(self, mode: Mode) -> Channel {
        Channel { mode, ..self }
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("fd", &self.source.as_fd())
            .field("interest", &self.interest)
            .field("mode", &self.mode)
            .finish()
    }
}

struct WithHandler<S, F> {
    source: S,
    handler: RefCell<F>,
}

impl<S, F> Source for WithHandler<S, F>
where
    S: AsFd + 'static,
    F: FnMut(&EventLoop, &S, Event) + 'static,
{
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    fn on_event(self: Rc<Self>, event_loop: &EventLoop, event: Event) {
        // Only the loop calls this, and never nested.
        (self.handler.borrow_mut())(event_loop, &self.source, event);
    }
}

/// The channels of a loop, found by token.
#[derive(Default)]
pub(crate) struct Channels {
    /// `borrow_mut` is cheaper than `borrow`, which counts its borrowers; so whoever is called often
    /// uses that.
    slab: RefCell<Slab<Entry>>,
    /// That of the last token.
    generation: Cell<u32>,
    /// The most there were at once, since the end of the last burst.
    peak: Cell<usize>,
}

/// This many channels at once are a burst. Its memory goes back when a quarter of them is left.
const BURST: usize = 1024;

struct Entry {
    source: Rc<dyn Source>,
    token: Token,
    registration: Registration,
}

/// How a channel stands with the poller.
#[derive(Clone, Copy)]
pub(crate) struct Registration {
    pub(crate) interest: Interest,
    pub(crate) mode: Mode,
    /// Whether the poller watches it.
    pub(crate) watched: bool,
}

impl Channels {
    /// Enters a channel that the poller watches by this token, which is the next one.
    pub(crate) fn insert(&self, token: Token, channel: Channel) {
        self.generation.set(token.generation());
        let Channel { source, interest, mode } = channel;
        let registration = Registration { interest, mode, watched: true };
        let mut slab = self.slab.borrow_mut();
        slab.insert(Entry { source, token, registration });
        self.peak.set(self.peak.get().max(slab.len()));
    }

    /// The token that the next channel gets.
    pub(crate) fn next_token(&self) -> Token {
        Token::new(self.generation.get().wrapping_add(1), self.slab.borrow_mut().vacant_key())
    }

    /// Takes a channel out. The caller drops it when nothing is borrowed.
    pub(crate) fn remove(&self, token: Token) -> Option<(Rc<dyn Source>, Registration)> {
        let mut slab = self.slab.borrow_mut();
        slab.get(token.index()).filter(|entry| entry.token == token)?;
        let entry = slab.remove(token.index());
        Some((entry.source, entry.registration))
    }

    /// Whether a burst is over: true once after each.
    pub(crate) fn is_burst_over(&self) -> bool {
        if self.peak.get() < BURST {
            return false;
        }
        let mut slab = self.slab.borrow_mut();
        let over = slab.len() <= self.peak.get() / 4;
        if over {
            self.peak.set(slab.len());
            slab.shrink_to_fit();
        }
        over
    }

    /// The source, kept alive by the caller's `Rc` whatever its handler does.
    pub(crate) fn get(&self, token: Token) -> Option<(Rc<dyn Source>, Registration)> {
        let slab = self.slab.borrow_mut();
        let entry = slab.get(token.index())?;
        (entry.token == token).then(|| (Rc::clone(&entry.source), entry.registration))
    }

    /// The source, if the event is all that it waits for and nothing more: the common case.
    #[inline(always)]
    pub(crate) fn get_waiting(&self, event: Event) -> Option<Rc<dyn Source>> {
        let slab = self.slab.borrow_mut();
        let entry = slab.get(event.token.index())?;
        let found =
            entry.token == event.token && entry.registration.interest.asked() == event.ready;
        found.then(|| Rc::clone(&entry.source))
    }

    pub(crate) fn set(&self, token: Token, registration: Registration) {
        if let Some(entry) = self.slab.borrow_mut().get_mut(token.index())
            && entry.token == token
        {
            entry.registration = registration;
        }
    }

    pub(crate) fn sources(&self) -> Vec<Rc<dyn Any>> {
        let slab = self.slab.borrow();
        slab.iter().map(|(_, entry)| -> Rc<dyn Any> { Rc::clone(&entry.source) as _ }).collect()
    }

    pub(crate) fn tokens(&self) -> Vec<Token> {
        self.slab.borrow().iter().map(|(_, entry)| entry.token).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::OwnedFd;

    fn channel() -> Channel {
        let (fd, _): (OwnedFd, OwnedFd) = nix::unistd::pipe().unwrap();
        Channel::new(fd, Interest::READ, |_, _, _| {})
    }

    fn insert(channels: &Channels, channel: Channel) -> Token {
        let token = channels.next_token();
        channels.insert(token, channel);
        token
    }

    #[test]
    fn a_burst_is_over_once_when_a_quarter_of_it_is_left() {
        let channels = Channels::default();
        let (few, many) = (BURST / 8, BURST);
        let source: Rc<dyn Source> = channel().source;
        let insert_all = |n| -> Vec<Token> {
            let one = || Channel::from_source(source.clone(), Interest::READ);
            (0..n).map(|_| insert(&channels, one())).collect()
        };
        let remove = |tokens: Vec<Token>| tokens.into_iter().for_each(|t| drop(channels.remove(t)));
        remove(insert_all(few));
        assert!(!channels.is_burst_over(), "so few are no burst");

        let mut tokens = insert_all(many);
        remove(tokens.split_off(many / 4 + 1));
        assert!(!channels.is_burst_over(), "more than a quarter is left");
        remove(tokens.split_off(many / 4));
        assert!(channels.is_burst_over() && !channels.is_burst_over());
        assert!(channels.slab.borrow().capacity() < many / 2);
        assert!(tokens.iter().all(|token| channels.get(*token).is_some()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever is inserted and removed in whatever order: a token finds its own channel
        /// while that lives, and nothing ever after, although places are used again.
        #[test]
        fn a_token_finds_its_own_channel_or_nothing(
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..80),
        ) {
            let channels = Channels::default();
            let mut alive: Vec<(Token, Rc<dyn Source>)> = Vec::new();
            let mut dead = Vec::new();
            for (inserts, which) in steps {
                if inserts || alive.is_empty() {
                    let channel = channel();
                    let source = channel.source.clone();
                    alive.push((insert(&channels, channel), source));
                } else {
                    let (token, _) = alive.swap_remove(which.index(alive.len()));
                    prop_assert!(channels.remove(token).is_some());
                    dead.push(token);
                }
                for (token, source) in &alive {
                    let (found, _) = channels.get(*token).unwrap();
                    prop_assert!(Rc::ptr_eq(&found, source));
                }
                for token in &dead {
                    prop_assert!(channels.get(*token).is_none());
                    prop_assert!(channels.remove(*token).is_none());
                }
                prop_assert_eq!(channels.tokens().len(), alive.len());
            }
        }
    }
}
