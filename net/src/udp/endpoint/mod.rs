//! A datagram socket at work.
//!
//! One event, in this order:
//!
//! 1. if it is readable, one batch is received, and the handler called for each datagram in it;
//! 2. all that was sent meanwhile, and what waited before, leaves, in as few calls as there are;
//! 3. the handler is told of errors, and when all that had to wait has left;
//! 4. the poller is told what to wait for, if that has changed.
//!
//! One batch an event is the fairness budget: the poller is level-triggered and comes again. When
//! something is sent from elsewhere, steps 2 to 4 run at the end of the turn.
//!
//! Step 1 is in [`receiving`], step 2 in [`sending`].

mod receiving;
mod sending;

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use ruduo_reactor::{Channel, Event, EventLoop, Interest, Ready, Source, Token};

use self::sending::Flushed;
use super::callbacks::UdpHandler;
use super::core::{Core, Resident, Sockets, Stage, WaitsFor};
use super::datagram::DatagramError;
use super::socket::UdpSocket;
use crate::metrics;

/// Calls that send, in one event. What is left goes on at the end of the next turn.
const MAX_CALLS: usize = 64;

/// How long sending pauses when the kernel has no memory for it, of which the poller does not tell
/// the end.
const SEND_PAUSE: Duration = Duration::from_millis(2);

pub(super) struct Endpoint<H> {
    core: Core,
    handler: RefCell<H>,
}

impl<H: UdpHandler> Endpoint<H> {
    /// Puts a socket on the loop. Its handler is called for the first time when no other callback
    /// runs.
    pub(super) fn start(event_loop: &EventLoop, core: Core, handler: H) -> io::Result<()> {
        let endpoint = Rc::new(Endpoint { core, handler: RefCell::new(handler) });
        let token = event_loop.register(Channel::from_source(endpoint.clone(), Interest::NONE))?;
        endpoint.core.attention.token.set(token);
        event_loop.local::<Sockets>().insert(endpoint.core.id, endpoint.clone());
        event_loop.defer(move |event_loop| endpoint.settle(event_loop));
        Ok(())
    }

    /// Whatever comes first, a call from elsewhere perhaps, finds the handler started.
    fn begin(&self, event_loop: &EventLoop) {
        let core = &self.core;
        if core.life.stage.get() != Stage::Ended && !core.life.started.replace(true) {
            self.called(event_loop, "on_start", |handler, socket| handler.on_start(socket));
        }
    }

    /// Calls the handler. A panic is logged and counted, and what it was about is over.
    fn called(&self, event_loop: &EventLoop, what: &str, f: impl FnOnce(&mut H, &UdpSocket<'_>)) {
        let core = &self.core;
        let call = || f(&mut self.handler.borrow_mut(), &UdpSocket::new(event_loop, core));
        let _ = event_loop.isolate(format_args!("{what} of {core}"), call);
    }

    fn tell(&self, event_loop: &EventLoop, error: DatagramError) {
        self.called(event_loop, "on_error", |handler, socket| handler.on_error(socket, &error));
    }

    /// Steps 2 to 4.
    fn settle(&self, event_loop: &EventLoop) {
        let core = &self.core;
        core.attention.in_event.set(true);
        self.begin(event_loop);
        let mut calls = 0;
        // What callbacks send in here leaves in here, within bounds.
        while !core.is_over() && calls < MAX_CALLS {
            let flushed = self.flush(&mut calls);
            self.tell_of_errors(event_loop);
            match flushed {
                Flushed::Failed(error) => self.tell(event_loop, error),
                Flushed::More => {}
                Flushed::Done if self.tell_if_drained(event_loop) => {}
                Flushed::Done => break,
            }
        }
        if core.sending.waits_for.get() == WaitsFor::Timer {
            self.set_timer(event_loop, SEND_PAUSE);
        }
        self.watch_the_limit();
        core.attention.in_event.set(false);
        let is_done = core.life.stage.get() == Stage::Stopping && core.queue.borrow().is_empty();
        if core.is_over() || is_done {
            return self.end(event_loop);
        }
        let is_more = calls >= MAX_CALLS && !core.queue.borrow().is_empty();
        if is_more || !core.errors.borrow().is_empty() {
            core.touch(event_loop);
        }
        self.update_interest(event_loop);
    }

    fn tell_of_errors(&self, event_loop: &EventLoop) {
        let errors = self.core.errors.take();
        for error in errors {
            self.tell(event_loop, error);
        }
    }

    /// Whether the program was told, and may have sent more.
    fn tell_if_drained(&self, event_loop: &EventLoop) -> bool {
        let core = &self.core;
        let drained = core.queue.borrow().is_empty() && core.sending.has_waited.replace(false);
        if drained {
            self.called(event_loop, "on_drained", |handler, socket| handler.on_drained(socket));
        }
        drained
    }

    fn set_timer(&self, event_loop: &EventLoop, after: Duration) {
        let (core, id) = (&self.core, self.core.id);
        if core.timer.get().is_none() {
            let timer = event_loop.run_after(after, move |event_loop| {
                if let Some(resident) = event_loop.local::<Sockets>().get(id) {
                    resident.wake(event_loop);
                }
            });
            core.timer.set(Some(timer));
        }
    }

    fn update_interest(&self, event_loop: &EventLoop) {
        let core = &self.core;
        let mut interest = Interest::NONE;
        if self.receives() {
            interest |= Interest::READ;
        }
        if core.sending.waits_for.get() == WaitsFor::Room {
            interest |= Interest::WRITE;
        }
        if interest == core.attention.interest.replace(interest) {
            return;
        }
        if let Err(e) = event_loop.set_interest(core.attention.token.get(), interest) {
            log::error!("{core} ends: {e}");
            self.end(event_loop);
        }
    }

    fn end(&self, event_loop: &EventLoop) {
        let core = &self.core;
        if core.life.stage.replace(Stage::Ended) == Stage::Ended {
            return;
        }
        core.posted.close();
        core.counters.close();
        let deadline = core.life.deadline.take().map(|(_, timer)| timer);
        for timer in core.timer.take().into_iter().chain(deadline) {
            event_loop.cancel(timer);
        }
        let mut queue = core.queue.borrow_mut();
        metrics::add(&core.counters.discarded, queue.len());
        queue.pop(usize::MAX);
        drop(queue);
        if core.life.started.get() {
            self.called(event_loop, "on_close", |handler, socket| handler.on_close(socket));
        }
        event_loop.deregister(core.attention.token.get());
        // The loop holds the source until nothing is borrowed.
        drop(event_loop.local::<Sockets>().remove(core.id));
    }
}

impl<H: UdpHandler> Source for Endpoint<H> {
    fn name(&self) -> String {
        self.core.to_string()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.bound.as_fd()
    }

    fn on_event(self: Rc<Self>, event_loop: &EventLoop, event: Event) {
        let core = &self.core;
        core.attention.in_event.set(true);
        if event.ready.contains(Ready::WRITE) && core.sending.waits_for.get() == WaitsFor::Room {
            core.sending.waits_for.set(WaitsFor::Nothing);
        }
        let unasked = event.ready.intersects(Ready::ERROR | Ready::HANGUP);
        if self.receives() {
            if unasked || event.ready.contains(Ready::READ) {
                self.receive(event_loop);
            }
        } else if unasked {
            self.take_error(event_loop);
        }
        self.settle(event_loop);
    }

    fn on_turn_end(&self, event_loop: &EventLoop, _: Token) {
        self.core.unschedule();
        if self.core.life.stage.get() != Stage::Ended {
            self.settle(event_loop);
        }
    }

    /// Not for a panic of the program's, which is caught where it is called.
    fn on_panic(&self, event_loop: &EventLoop, _: Token) {
        self.end(event_loop);
    }

    fn on_loop_end(&self, event_loop: &EventLoop, _: Token) {
        self.end(event_loop);
    }
}

impl<H: UdpHandler> Resident for Endpoint<H> {
    fn core(&self) -> &Core {
        &self.core
    }

    fn call(&self, event_loop: &EventLoop, f: Box<dyn FnOnce(&UdpSocket<'_>) + Send>) {
        let core = &self.core;
        self.begin(event_loop);
        let what = format_args!("a call posted to {core}");
        let _ = event_loop.isolate(what, || f(&UdpSocket::new(event_loop, core)));
    }

    fn wake(&self, event_loop: &EventLoop) {
        let core = &self.core;
        core.timer.set(None);
        core.receiving.resting.set(false);
        if core.sending.waits_for.get() == WaitsFor::Timer {
            core.sending.waits_for.set(WaitsFor::Nothing);
        }
        self.settle(event_loop);
    }
}
