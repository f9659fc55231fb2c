//! What a loop watches: the channels of descriptors, and notifiers.

use std::any::Any;
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use super::{Agenda, Dead, EventLoop};
use crate::channel::{Channel, Registration, Source};
use crate::poller::{Event, Interest, Mode, Notifier};
use crate::token::Token;

impl EventLoop {
    /// Starts watching a channel's descriptor.
    ///
    /// # Errors
    /// Those of [`Poller::add`](crate::Poller::add); the channel is then dropped. It is an error,
    /// too, if the loop has ended or belongs to the parent of this forked process.
    pub fn register(&self, channel: Channel) -> io::Result<Token> {
        match self.watch(&channel) {
            Ok(token) => {
                self.channels.insert(token, channel);
                Ok(token)
            }
            Err(e) => {
                self.bury(Dead::Source(channel.source));
                Err(e)
            }
        }
    }

    /// Has the poller watch a channel, by the token that it will get.
    fn watch(&self, channel: &Channel) -> io::Result<Token> {
        self.check_alive()?;
        let fd = channel.source.as_fd();
        let token = self.channels.next_token();
        self.poller
            .add(fd, token, channel.interest, channel.mode)
            .map_err(|e| io::Error::new(e.kind(), format!("watching a descriptor: {e}")))?;
        Ok(token)
    }

    /// Changes what a channel waits for, and re-arms it if it is one-shot. Costs a system call
    /// only if something changes.
    ///
    /// With [`Interest::NONE`] the channel still learns of an error or hang-up, once: a peer that
    /// goes away while nobody reads is noticed, but does not make the loop spin. (If the kernel refuses
    /// the change for want of memory, it learns of that when it waits for something again.)
    ///
    /// # Errors
    /// `NotFound` if the token's channel is gone; the kernel's limits.
    pub fn set_interest(&self, token: Token, interest: Interest) -> io::Result<()> {
        let (source, registration) = self.channels.get(token).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "setting the interest of a removed channel")
        })?;
        let Registration { mode, watched, .. } = registration;
        let unchanged = interest == registration.interest && mode != Mode::OneShot;
        // With no interest in it, a channel that hung up need not be watched again.
        if unchanged && (watched || interest.is_empty()) {
            return Ok(());
        }
        self.check_alive()?;
        let result = if watched {
            self.poller.modify(source.as_fd(), token, interest, mode)
        } else {
            self.poller.add(source.as_fd(), token, interest, mode)
        };
        let watched = match result {
            Ok(()) => true,
            // To hear nothing needs no memory of the kernel. It would also be told of errors and
            // hang-ups; but that can wait until it is to hear something again.
            Err(e) if watched && interest.is_empty() => {
                log::debug!("setting no interest: {e}; not watching the descriptor at all");
                self.unwatch(&*source);
                false
            }
            Err(e) => return Err(io::Error::new(e.kind(), format!("setting an interest: {e}"))),
        };
        self.channels.set(token, Registration { interest, mode, watched });
        Ok(())
    }

    /// Ends a registration: no event for it will be delivered any more, also none of the batch
    /// in progress. The source is dropped, and so closed, at the end of the turn. Returns whether
    /// there was such a registration.
    pub fn deregister(&self, token: Token) -> bool {
        let Some((source, registration)) = self.channels.remove(token) else { return false };
        if registration.watched {
            self.unwatch(&*source);
        }
        self.bury(Dead::Source(source));
        true
    }

    /// The source of a registration that is in force, for who knows its type. `None` if that has
    /// ended, also by an event earlier in the same batch. Whoever keeps a source keeps its descriptor
    /// open, also when its registration has ended.
    ///
    /// ```
    /// use ruduo_reactor::{Channel, Event, EventLoop, Interest, Source};
    /// use std::cell::Cell;
    /// use std::os::fd::{AsFd, BorrowedFd};
    /// use std::os::unix::net::UnixStream;
    /// use std::rc::Rc;
    ///
    /// struct Door { stream: UnixStream, is_open: Cell<bool> }
    ///
    /// impl Source for Door {
    ///     fn as_fd(&self) -> BorrowedFd<'_> {
    ///         self.stream.as_fd()
    ///     }
    ///     fn on_event(self: Rc<Self>, _: &EventLoop, _: Event) {}
    /// }
    ///
    /// let event_loop = EventLoop::new()?;
    /// let (stream, _far) = UnixStream::pair()?;
    /// let door = Rc::new(Door { stream, is_open: Cell::new(false) });
    /// let token = event_loop.register(Channel::from_source(door, Interest::READ))?;
    /// event_loop.defer(move |event_loop| {
    ///     if let Some(Ok(door)) = event_loop.source(token).map(Rc::downcast::<Door>) {
    ///         door.is_open.set(true);
    ///     }
    ///     event_loop.quit();
    /// });
    /// event_loop.run()?;
    /// # std::io::Result::Ok(())
    /// ```
    #[must_use]
    pub fn source(&self, token: Token) -> Option<Rc<dyn Any>> {
        self.channels.get(token).map(|(source, _)| -> Rc<dyn Any> { source })
    }

    /// The sources of all registrations that are in force, in no order. They come without their
    /// methods, which are for the loop to call.
    #[must_use]
    pub fn sources(&self) -> Vec<Rc<dyn Any>> {
        self.channels.sources()
    }

    /// An event of the program's own, beside those of descriptors: calls `f` on the loop, in the
    /// phase of I/O events, whenever some thread has used the notifier. It costs a descriptor.
    /// [`EventLoop::deregister`] ends it, by [`Notifier::token`]; dropping it does not.
    ///
    /// Unlike the task of a [`LoopHandle::post`](crate::LoopHandle::post), `f` is made once, need
    /// not be `Send`, and may be called once for several notifications, which [coalesce](Notifier).
    ///
    /// ```
    /// use ruduo_reactor::EventLoop;
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use std::sync::Arc;
    ///
    /// let event_loop = EventLoop::new()?;
    /// let ready = Arc::new(AtomicU32::new(0));
    /// let seen = Arc::clone(&ready);
    /// let notifier = event_loop.notifier(move |event_loop| {
    ///     if seen.load(Ordering::Acquire) == 3 {
    ///         event_loop.quit();
    ///     }
    /// })?;
    /// std::thread::spawn(move || {
    ///     for _ in 0..3 {
    ///         ready.fetch_add(1, Ordering::Release);
    ///         notifier.notify().expect("a working kernel");
    ///     }
    /// });
    /// event_loop.run()?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// The kernel's, for want of descriptors or memory. An error also if the loop has ended or
    /// belongs to the parent of this forked process.
    pub fn notifier(&self, f: impl FnMut(&EventLoop) + 'static) -> io::Result<Notifier> {
        self.check_alive()?;
        let token = self.channels.next_token();
        let notifier = self
            .poller
            .notifier_of(token, self.settings.notifiers)
            .map_err(|e| io::Error::new(e.kind(), format!("making a notifier: {e}")))?;
        let mode = notifier.mode();
        let source = Notified { notifier: notifier.clone(), callback: RefCell::new(f) };
        let channel = Channel::from_source(Rc::new(source), Interest::READ).mode(mode);
        self.channels.insert(token, channel);
        Ok(notifier)
    }

    #[inline(always)]
    pub(super) fn unwatch(&self, source: &dyn Source) {
        if self.handle.shared().is_forked() {
            // The poller is shared with the parent, which would lose its registration.
            return;
        }
        if let Err(e) = self.poller.delete(source.as_fd()) {
            // Somebody closed the descriptor behind our back, which has ended the registration.
            log::debug!("deregistering a descriptor: {e}");
        }
    }

    /// Has [`Source::on_turn_end`] called at the end of this turn. A call that is made during that
    /// phase means the end of the next turn, which then does not wait.
    pub fn at_turn_end(&self, token: Token) {
        self.at_turn_end.borrow_mut().push(token);
        self.plan(Agenda::WORK);
    }
}

/// What a loop calls when one of its notifiers was used.
struct Notified<F> {
    notifier: Notifier,
    callback: RefCell<F>,
}

impl<F: FnMut(&EventLoop) + 'static> Source for Notified<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifier.as_fd()
    }

    fn on_event(self: Rc<Self>, event_loop: &EventLoop, _event: Event) {
        self.notifier.acknowledge();
        // Only the loop calls this, and never nested.
        (self.callback.borrow_mut())(event_loop);
    }

    fn name(&self) -> String {
        "a notifier".to_owned()
    }
}
