//! Where a connection meets its socket: moves bytes, and calls the handler in a fixed order.
//!
//! One event:
//!
//! ```text
//!   1. if we waited for room to write: one write
//!   2. one read, then on_message          (never "until EAGAIN": that is the fairness budget)
//!   3. on_half_close                      after the last input
//!   4. one write of all that was queued   (ten small sends are one segment)
//!   5. water marks, on_write_complete     what these queue leaves at the end of the turn
//!   6. FIN, or the end; what to wait for next
//! ```
//!
//! Steps 3 to 6 are `settle`. They also run at the end of a turn in which somebody else has touched
//! the connection: a timer, a task, or another connection's callback. So there is one place where
//! output leaves and one where connections end, and it is never inside a callback.
//!
//! `inline(always)` is on the steps of the usual event, a message and its answer, and
//! `inline(never)` on what is rarer: so the code of the former is short and in one piece.
//!
//! This file is the order of the steps. How bytes come in is in [`receiving`], and how they leave
//! in [`sending`].

mod receiving;
mod sending;

use std::cell::RefCell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use ruduo_reactor::{Channel, Event, EventLoop, Interest, Ready, Source, Token};

use super::core::Core;
use super::reason::CloseReason;
use super::state::Crossed;
use crate::context::Context;
use crate::handler::Handler;
use crate::metrics;
use crate::place::{HandlerCall, Resident};
use crate::transport::{self, Transport};
use crate::{Address, Connection};

pub(crate) struct Endpoint<T, H> {
    /// `None` until the factory has made it. It is declared before the socket, and so dropped
    /// before it: when the peer sees the connection closed, all that the handler held has been
    /// given back.
    handler: RefCell<Option<H>>,
    core: Core,
    transport: T,
}

impl<T: Transport, H: Handler> Endpoint<T, H> {
    /// What belongs to a connected socket. [`Endpoint::open`] follows.
    pub(crate) fn new(
        context: &Rc<Context>,
        socket: OwnedFd,
        peer: Address,
        transport: T,
    ) -> Rc<Endpoint<T, H>> {
        let core = Core::new(socket, peer, context.clone());
        Rc::new(Endpoint { handler: RefCell::new(None), core, transport })
    }

    /// Puts it under the loop's care. [`Endpoint::begin`] follows, before the end of the next turn:
    /// until then its events are ignored, and the kernel repeats them.
    pub(crate) fn open(self: &Rc<Self>, event_loop: &EventLoop) -> io::Result<()> {
        let core = &self.core;
        let token = event_loop
            .register(Channel::from_source(self.clone(), Interest::READ))
            .map_err(|e| io::Error::new(e.kind(), format!("{core}: {e}")))?;
        core.token.set(token);
        core.context.opened();
        Ok(())
    }

    /// Makes the handler, and tells it that it is connected. Not inside any other callback. What
    /// has happened since [`Endpoint::open`] is looked at, at the end of the turn.
    pub(crate) fn begin(
        &self,
        event_loop: &EventLoop,
        make_handler: impl FnOnce(&Connection<'_>) -> H,
    ) {
        if self.core.state.is_ended() {
            return;
        }
        let conn = Connection::new(event_loop, &self.core);
        let what = format_args!("the factory of a handler for {}", self.core);
        match event_loop.isolate(what, || make_handler(&conn)) {
            Ok(handler) => *self.handler.borrow_mut() = Some(handler),
            Err(_) => conn.end(CloseReason::Panicked),
        }
        self.enter(event_loop, "on_connect", |handler, conn| handler.on_connect(conn));
        self.core.watch_peer(event_loop);
        if !self.core.state.is_quiet() {
            conn.touch();
        }
    }

    /// Calls the handler from outside an event. Does nothing if the connection has been closed and
    /// only waits for the end of the turn.
    fn enter(&self, event_loop: &EventLoop, what: &str, f: impl FnOnce(&mut H, &Connection<'_>)) {
        if self.core.state.is_ended() {
            return;
        }
        let conn = Connection::new(event_loop, &self.core);
        let call = || {
            if let Some(handler) = &mut *self.handler.borrow_mut() {
                f(handler, &conn);
            }
        };
        if event_loop.isolate(format_args!("{what} of {}", self.core), call).is_err() {
            conn.end(CloseReason::Panicked);
        }
        // Here, for it takes this callback's place in the order of operations.
        let rejected = self.core.state.take_rejection();
        if rejected {
            conn.shutdown();
        }
    }

    /// Begins an event: the handler is borrowed once for all its callbacks, which never nest. The
    /// loop catches panics.
    #[inline(always)]
    fn event(&self, event_loop: &EventLoop, steps_1_and_2: impl FnOnce(&mut H, &Connection<'_>)) {
        let conn = Connection::in_event(event_loop, &self.core);
        let over = match &mut *self.handler.borrow_mut() {
            Some(handler) => {
                steps_1_and_2(handler, &conn);
                self.settle(handler, &conn)
            }
            // Not begun, or never to begin.
            None => self.core.state.is_over(),
        };
        if over {
            self.tear_down(&conn);
        }
    }

    /// Steps 1 and 2 when there is more to an event than data: room to write, an error, a hang-up.
    #[inline(never)]
    fn on_unusual_event(&self, handler: &mut H, conn: &Connection<'_>, ready: Ready) {
        let gone = Ready::ERROR | Ready::HANGUP;
        let state = &self.core.state;
        if state.is_blocked() && ready.intersects(Ready::WRITE | gone) {
            state.unblock();
            self.flush();
        }
        let received = ready.intersects(Ready::READ | gone) && self.receive(handler, conn);
        // Input that is held back is no reason not to read what comes after it.
        let stays_unread = !received && !self.core.state.wants_read();
        if stays_unread && ready.intersects(gone) {
            self.hung_up();
        }
    }

    /// Steps 3 to 6. True if the connection is over.
    #[inline(always)]
    fn settle(&self, handler: &mut H, conn: &Connection<'_>) -> bool {
        let state = &self.core.state;
        if state.has_only_output() {
            if self.flush_single() {
                handler.on_write_complete(conn);
            }
            !state.is_quiet() && self.conclude(handler, conn)
        } else {
            !state.is_quiet() && self.settle_unusual(handler, conn)
        }
    }

    /// The same for connections that are not just open, or have more to send than one piece.
    #[inline(never)]
    fn settle_unusual(&self, handler: &mut H, conn: &Connection<'_>) -> bool {
        let state = &self.core.state;
        if state.is_over() && !state.is_drained() {
            // There is nothing more to tell than that.
            return true;
        }
        if state.is_eof() && state.take_half_close() {
            handler.on_half_close(conn);
        }
        if state.can_flush() {
            self.flush();
        }
        !state.is_quiet() && self.conclude(handler, conn)
    }

    /// Steps 5 and 6 for connections that are not just open.
    #[inline(never)]
    fn conclude(&self, handler: &mut H, conn: &Connection<'_>) -> bool {
        let state = &self.core.state;
        self.tell_of_marks(handler, conn);
        if state.take_drained() && !state.is_ended() {
            handler.on_write_complete(conn);
        }
        if state.take_rejection() {
            // Behind what other threads have posted.
            conn.shutdown();
        }
        if state.is_fin_due() {
            self.send_fin();
        }
        state.is_over() || !self.wait_for_more(conn.event_loop())
    }

    /// If the output has crossed a mark, tells those who fill it.
    fn tell_of_marks(&self, handler: &mut H, conn: &Connection<'_>) {
        let Context { limits, counters, .. } = &*self.core.context;
        let Some(crossed) = self.core.state.crossed(limits) else { return };
        self.core.tell_sources(crossed);
        match crossed {
            Crossed::High => {
                metrics::add(&counters.paused_by_output, 1);
                handler.on_high_water(conn, self.core.state.pending_output());
            }
            Crossed::Low => handler.on_low_water(conn),
        }
    }

    fn send_fin(&self) {
        let core = &self.core;
        match self.transport.shutdown(core.socket()) {
            Err(e) if e.kind() != io::ErrorKind::NotConnected => {
                core.state.write_failed(e, &core.context.lender);
            }
            // Not connected: the peer has reset the connection; reading will say how.
            _ => core.state.fin_sent(),
        }
    }

    /// Tells poller, timer and loop what comes next. False if that cannot be waited for.
    fn wait_for_more(&self, event_loop: &EventLoop) -> bool {
        let core = &self.core;
        let (state, limits) = (&core.state, &core.context.limits);
        let mut interest = Interest::NONE;
        interest.set(Interest::READ, state.wants_read());
        interest.set(Interest::WRITE, state.is_blocked());
        state.watched(interest == Interest::READ);
        core.watch_peer(event_loop);
        if state.can_flush() || state.is_deliverable(limits, core.posted_bytes()) {
            core.schedule(event_loop);
        }
        if interest != core.interest.replace(interest)
            && let Err(e) = event_loop.set_interest(core.token.get(), interest)
        {
            // The kernel is out of memory. Without events the connection would hang for ever.
            state.read_failed(e, &core.context.lender);
            return false;
        }
        true
    }

    /// The end. The socket closes when the loop drops us, at the end of the turn.
    fn tear_down(&self, conn: &Connection<'_>) {
        let core = &self.core;
        let event_loop = conn.event_loop();
        core.cancel_timers(event_loop);
        core.close_handles();
        let reason = core.state.finish(&core.context.lender);
        event_loop.deregister(core.token.get());
        let on_close = || {
            if let Some(handler) = &mut *self.handler.borrow_mut() {
                handler.on_close(conn, reason);
            }
        };
        // Its panic has been logged and counted; there is nothing left to end.
        let _ = event_loop.isolate(format_args!("on_close of {}", self.core), on_close);
        core.context.closed(event_loop, core.host(), reason);
        // Not earlier: the handler may have found that this is no good end.
        if core.state.resets()
            && let Err(e) = transport::reset_on_close(core.socket())
        {
            log::debug!("{core}: resetting it: {e}");
        }
        // Last, for a logger may panic too, and nobody comes back to what is over.
        log::debug!("{core}: {reason}");
    }
}

impl<T: Transport, H: Handler> Source for Endpoint<T, H> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.socket()
    }

    fn name(&self) -> String {
        self.core.to_string()
    }

    fn on_event(self: Rc<Self>, event_loop: &EventLoop, event: Event) {
        self.event(event_loop, |handler, conn| {
            if event.ready != Ready::READ {
                return self.on_unusual_event(handler, conn, event.ready);
            }
            self.receive(handler, conn);
        });
    }

    fn on_turn_end(&self, event_loop: &EventLoop, _: Token) {
        self.core.unschedule();
        self.event(event_loop, |handler, conn| {
            let (limits, posted) = (&self.core.context.limits, self.core.posted_bytes());
            let held = self.core.state.begin_delivery(limits, posted);
            if let Some(input) = held {
                self.deliver(handler, conn, input);
            }
        });
    }

    fn on_panic(&self, event_loop: &EventLoop, _: Token) {
        self.core.state.end(CloseReason::Panicked);
        self.tear_down(&Connection::new(event_loop, &self.core));
    }

    fn on_loop_end(&self, event_loop: &EventLoop, _: Token) {
        self.core.state.end(CloseReason::LoopEnded);
        self.tear_down(&Connection::new(event_loop, &self.core));
    }
}

impl<T: Transport, H: Handler> Resident for Endpoint<T, H> {
    fn core(&self) -> &Core {
        &self.core
    }

    fn call(&self, event_loop: &EventLoop, f: HandlerCall) {
        self.core.set_in_call(true);
        self.enter(event_loop, "a call to a handler", |handler, conn| f(handler, conn));
        self.core.set_in_call(false);
    }

    fn on_timer(&self, event_loop: &EventLoop, key: u64) {
        self.enter(event_loop, "on_timer", |handler, conn| handler.on_timer(conn, key));
    }

    fn on_stopping(&self, event_loop: &EventLoop) {
        self.enter(event_loop, "on_stopping", |handler, conn| handler.on_stopping(conn));
    }
}
