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
//! Steps 3 to 6 are `settle`. They also run at the end of a turn in which somebody
//! else has touched the connection, a timer, a task or another connection's callback. So there is
//! one place where output leaves and one where connections end, and it is never inside a callback.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::sys::socket::{getsockopt, sockopt};
use ruduo_reactor::{Channel, Event, EventLoop, Interest, Ready, Source, Token};

use super::core::Core;
use super::output::{self, MAX_OFFER, Next, Output};
use super::reason::CloseReason;
use super::state::Crossed;
use crate::context::Context;
use crate::handler::Handler;
use crate::metrics;
use crate::registry::{HandlerCall, Resident};
use crate::transport::{self, Transport};
use crate::{Address, Buffer, Connection};

/// Less room than this is not worth a receive call, unless the limit allows no more.
const MIN_ROOM: usize = 4096;

pub(crate) struct Endpoint<T, H> {
    /// `None` until the factory has made it. Declared, and so dropped, before the socket: a peer that
    /// sees its connection closed finds all that the handler held given back.
    handler: RefCell<Option<H>>,
    core: Core,
    transport: T,
}

impl<T: Transport, H: Handler> Endpoint<T, H> {
    /// Puts a connected socket under the loop's care. [`Endpoint::begin`] follows, before the end of
    /// the next turn: until then its events are ignored, and the kernel repeats them.
    pub(crate) fn open(
        event_loop: &EventLoop,
        context: &Rc<Context>,
        (socket, peer): (OwnedFd, Address),
        transport: T,
    ) -> io::Result<Rc<Endpoint<T, H>>> {
        let core = Core::new(socket, peer, context.clone());
        let endpoint = Rc::new(Endpoint { handler: RefCell::new(None), core, transport });
        let token = event_loop
            .register(Channel::from_source(endpoint.clone(), Interest::READ))
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", endpoint.core)))?;
        endpoint.core.settle_in(token, context.registry.insert(endpoint.clone()));
        context.opened();
        Ok(endpoint)
    }

    /// Makes its handler and tells it. Not inside any other callback. What has happened meanwhile is
    /// looked at, at the end of the turn.
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
            Err(_) => self.core.end(event_loop, CloseReason::Panicked),
        }
        self.enter(event_loop, "on_connect", |handler, conn| handler.on_connect(conn));
        self.core.watch_peer(event_loop);
        if !self.core.state.is_quiet() {
            self.core.touch(event_loop);
        }
    }

    /// Calls the handler from outside an event. Not when it has closed the connection and only the
    /// end of the turn is awaited.
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
            self.core.end(event_loop, CloseReason::Panicked);
        }
        // At the place of this callback in the order of operations.
        let refused = self.core.state.take_refusal();
        if refused {
            conn.shutdown();
        }
    }

    /// Begins an event: the handler is borrowed once for all its callbacks, which never nest. The
    /// loop catches panics.
    #[inline(always)]
    fn event(
        &self,
        event_loop: &EventLoop,
        steps_1_and_2: impl FnOnce(&mut H, &Connection<'_>) -> bool,
    ) {
        let conn = Connection::new(event_loop, &self.core);
        self.core.state.enter_event();
        let over = match &mut *self.handler.borrow_mut() {
            Some(handler) => {
                let drained = steps_1_and_2(handler, &conn);
                self.settle(handler, &conn, drained)
            }
            // Not begun, or never to begin.
            None => self.core.state.is_over(),
        };
        if over {
            self.tear_down(&conn);
        }
        self.core.state.leave_event();
    }

    /// Step 2: one receive, and what came goes to the handler. False if reading is not wanted.
    #[inline(always)]
    fn receive(&self, handler: &mut H, conn: &Connection<'_>) -> bool {
        let core = &self.core;
        let Context { lender, counters, .. } = &*core.context;
        let mut input = if core.state.is_untouched() {
            lender.lend()
        } else {
            match self.take_input() {
                Some(input) => input,
                None => return self.discard_input(),
            }
        };
        let moved = self.transport.recv(core.socket(), input.storage_mut());
        if let Some(n) = moved.some() {
            core.received.set(core.received.get() + n as u64);
            metrics::add(&counters.received, n);
            self.deliver(handler, conn, input);
        } else {
            self.received_nothing(input, moved.into_result());
        }
        true
    }

    /// The input that the handler has left, with room behind it. `None` if reading is not wanted.
    #[inline(never)]
    fn take_input(&self) -> Option<Buffer> {
        let Context { limits, lender, .. } = &*self.core.context;
        let mut input = self.core.state.begin_read()?;
        if input.capacity() < lender.size() {
            let rest = std::mem::replace(&mut input, lender.lend());
            input.append(rest.readable());
        }
        // Twice the storage, but never more than the limit, to the byte: all of it will be filled.
        let allowed = limits.input.saturating_sub(input.len()).max(1);
        if input.writable_len() < MIN_ROOM.min(allowed) {
            let larger = Buffer::with_capacity(input.len() + input.capacity().min(allowed));
            let rest = std::mem::replace(&mut input, larger);
            input.append(rest.readable());
        }
        Some(input)
    }

    /// One receive for nobody: the program wants nothing more, and waits for the end. False if
    /// reading is not wanted at all.
    #[cold]
    #[inline(never)]
    fn discard_input(&self) -> bool {
        let core = &self.core;
        let Context { lender, counters, .. } = &*core.context;
        if !core.state.wants_to_discard() {
            return false;
        }
        let mut input = lender.lend();
        let moved = self.transport.recv(core.socket(), input.storage_mut());
        if let Some(n) = moved.some() {
            core.received.set(core.received.get() + n as u64);
            metrics::add(&counters.received, n);
            lender.give_back(input);
        } else {
            self.received_nothing(input, moved.into_result());
        }
        true
    }

    /// The end of the stream, an error, or a false alarm.
    #[cold]
    #[inline(never)]
    fn received_nothing(&self, input: Buffer, outcome: io::Result<usize>) {
        let Context { limits, lender, .. } = &*self.core.context;
        let state = &self.core.state;
        state.keep_input(lender.trim(input), limits, self.core.posted_bytes());
        match outcome {
            Ok(_) => state.peer_eof(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => state.read_failed(e, lender),
        }
    }

    /// Gives input to the handler and keeps what it leaves for the next time.
    #[inline(always)]
    fn deliver(&self, handler: &mut H, conn: &Connection<'_>, mut input: Buffer) {
        handler.on_message(conn, &mut input);
        if !input.is_empty() {
            self.keep_input(conn, input);
        } else if input.has_storage() {
            // Otherwise it moved to the output.
            self.core.context.lender.give_back(input);
        }
    }

    /// A handler that could go on and yet leaves as much as the limit allows never will.
    #[inline(never)]
    fn keep_input(&self, conn: &Connection<'_>, input: Buffer) {
        let Context { limits, lender, .. } = &*self.core.context;
        let rest = lender.trim(input);
        let full = rest.len() >= limits.input;
        let posted = self.core.posted_bytes();
        self.core.state.keep_input(rest, limits, posted);
        if full && conn.wants_input() {
            self.core.end(conn.event_loop(), CloseReason::InputFull { limit: limits.input });
        }
    }

    /// Steps 1 and 2 when there is more to an event than data: room to write, an error, a hang-up.
    /// True if the last of the output was sent.
    #[inline(never)]
    fn on_unusual_event(&self, handler: &mut H, conn: &Connection<'_>, ready: Ready) -> bool {
        let gone = Ready::ERROR | Ready::HANGUP;
        let state = &self.core.state;
        let writable = state.is_blocked() && ready.intersects(Ready::WRITE | gone);
        let drained = writable && {
            state.unblock();
            self.flush()
        };
        let received = ready.intersects(Ready::READ | gone) && self.receive(handler, conn);
        // Input that is held back is no reason not to read what comes after it.
        let stays_unread = !received && !self.core.state.wants_read();
        if stays_unread && ready.intersects(gone) {
            self.hung_up();
        }
        drained
    }

    /// The peer is gone: both directions have ended, or an error is pending.
    fn hung_up(&self) {
        let Context { lender, .. } = &*self.core.context;
        let state = &self.core.state;
        if state.is_read_over() {
            // Nothing is left to read that would tell the reason.
            let error = match getsockopt(&self.core.socket(), sockopt::SocketError) {
                Ok(errno) if errno != 0 => io::Error::from_raw_os_error(errno),
                _ => io::ErrorKind::ConnectionReset.into(),
            };
            state.read_failed(error, lender);
        } else {
            // Data may still lie before the error. The program gets it when it resumes reading,
            // within the linger deadline. The loop has ended its watch, so this does not spin.
            state.hung_up();
        }
    }

    /// Steps 1 and 4: one system call with all that is queued, or as much of it as fits. True if
    /// nothing is left.
    fn flush(&self) -> bool {
        if self.core.state.has_single_output() { self.flush_single() } else { self.flush_several() }
    }

    #[inline(always)]
    fn flush_single(&self) -> bool {
        let state = &self.core.state;
        let Context { lender, counters, .. } = &*self.core.context;
        let single = state.take_single();
        let bytes = single.readable();
        let offered = bytes.len();
        let moved = self.transport.send(self.core.socket(), bytes);
        if moved.is(offered) {
            metrics::add(&counters.sent, offered);
            state.all_sent(offered);
            lender.give_back(single);
            return true;
        }
        state.put_single(single);
        self.wrote(offered, moved.into_result())
    }

    #[inline(never)]
    fn flush_several(&self) -> bool {
        let (offered, outcome) = self.core.state.with_output(|output| self.send_several(output));
        self.wrote(offered, outcome)
    }

    #[inline(never)]
    fn wrote(&self, offered: usize, outcome: io::Result<usize>) -> bool {
        let state = &self.core.state;
        let Context { lender, counters, .. } = &*self.core.context;
        match outcome {
            Ok(n) => {
                metrics::add(&counters.sent, n);
                return state.wrote(n, offered, lender);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => state.would_block(lender),
            // Our own fault, not the peer's, who waits for the rest: there is none.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                state.end(CloseReason::WriteFailed(e));
            }
            Err(e) => state.write_failed(e, lender),
        }
        false
    }

    fn send_several(&self, output: &Output) -> (usize, io::Result<usize>) {
        let socket = self.core.socket();
        match output.next() {
            Next::Slices(slices, count) => {
                let slices = &slices[..count];
                let offered = slices.iter().map(|slice| slice.len()).sum();
                (offered, self.transport.send_slices(socket, slices))
            }
            Next::File(range) => {
                let offered = range.len.min(MAX_OFFER as u64) as usize;
                let file = range.file.as_fd();
                let sent = self.transport.send_file(socket, file, range.offset, offered);
                let too_short = matches!(sent, Ok(0));
                (offered, if too_short { Err(output::file_too_short(range)) } else { sent })
            }
        }
    }

    /// Steps 3 to 6. `drained`: step 1 has sent the last of the output. True if the connection is
    /// over.
    #[inline(always)]
    fn settle(&self, handler: &mut H, conn: &Connection<'_>, mut drained: bool) -> bool {
        let state = &self.core.state;
        if state.has_only_output() {
            drained = self.flush_single();
            if drained {
                handler.on_write_complete(conn);
                drained = false;
            }
        } else if !state.is_quiet() {
            drained = self.steps_3_and_4(handler, conn, drained);
        }
        // What is quiet and drained has yet to hear of it.
        (drained || !state.is_quiet()) && self.conclude(handler, conn, drained)
    }

    /// Steps 3 and 4 for connections that are not just open.
    #[inline(never)]
    fn steps_3_and_4(&self, handler: &mut H, conn: &Connection<'_>, drained: bool) -> bool {
        let state = &self.core.state;
        if state.is_eof() && state.take_half_close() {
            handler.on_half_close(conn);
        }
        if state.can_flush() { self.flush() } else { drained }
    }

    /// Steps 5 and 6 for connections that are not just open.
    #[inline(never)]
    fn conclude(&self, handler: &mut H, conn: &Connection<'_>, drained: bool) -> bool {
        let core = &self.core;
        let event_loop = conn.event_loop();
        let limits = &core.context.limits;
        let state = &core.state;
        if let Some(crossed) = state.crossed(limits) {
            core.tell_sources(crossed == Crossed::High);
            match crossed {
                Crossed::High => {
                    metrics::add(&core.context.counters.paused_by_output, 1);
                    handler.on_high_water(conn, state.pending_output());
                }
                Crossed::Low => handler.on_low_water(conn),
            }
        }
        if drained && !state.is_ended() {
            handler.on_write_complete(conn);
        }
        if state.take_refusal() {
            // Behind what other threads have posted.
            conn.shutdown();
        }
        if state.is_fin_due() {
            match self.transport.shutdown(core.socket()) {
                Err(e) if e.kind() != io::ErrorKind::NotConnected => {
                    state.write_failed(e, &core.context.lender);
                }
                // Not connected: the peer has reset the connection; reading will say how.
                _ => state.fin_sent(),
            }
        }
        if state.is_over() {
            return true;
        }
        let mut interest = Interest::NONE;
        interest.set(Interest::READ, state.wants_read());
        interest.set(Interest::WRITE, state.is_blocked());
        state.watched(interest == Interest::READ);
        let more = state.can_flush() || state.is_deliverable(limits, core.posted_bytes());
        core.watch_peer(event_loop);
        if more {
            core.schedule(event_loop);
        }
        if interest != core.interest.replace(interest)
            && let Err(e) = event_loop.set_interest(core.token.get(), interest)
        {
            // The kernel is out of memory. Without events the connection would hang for ever.
            core.state.read_failed(e, &core.context.lender);
            return true;
        }
        false
    }

    /// The end. The socket closes when the loop drops us, at the end of the turn.
    fn tear_down(&self, conn: &Connection<'_>) {
        let core = &self.core;
        let event_loop = conn.event_loop();
        core.cancel_timers(event_loop);
        core.close_handles();
        let reason = core.state.finish(&core.context.lender);
        if core.state.resets()
            && let Err(e) = transport::reset_on_close(core.socket())
        {
            log::debug!("{core}: resetting it: {e}");
        }
        event_loop.deregister(core.token.get());
        // The loop still holds us, so this is not the last reference.
        let _resident = core.context.registry.remove(core.place().slot);
        log::debug!("{core}: {reason}");
        let on_close = || {
            if let Some(handler) = &mut *self.handler.borrow_mut() {
                handler.on_close(conn, reason);
            }
        };
        // Its panic has been logged and counted; there is nothing left to end.
        let _ = event_loop.isolate(format_args!("on_close of {}", self.core), on_close);
        core.context.closed(event_loop, &core.peer(), reason);
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
            false
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
            false
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
