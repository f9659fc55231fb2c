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
//! Steps 3 to 6 are [`Endpoint::settle`]. They also run at the end of a turn in which somebody
//! else has touched the connection, a timer, a task or another connection's callback. So there is
//! one place where output leaves and one where connections end, and it is never inside a callback.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::sys::socket::{getsockopt, sockopt};
use ruduo_reactor::{Channel, Event, EventLoop, Interest, Ready, Source, Token};

use super::core::Core;
use super::output::{self, Next};
use super::reason::CloseReason;
use super::state::Crossed;
use crate::context::{self, Context};
use crate::handler::{self, Handler};
use crate::registry::{HandlerCall, Resident};
use crate::transport::{self, Transport};
use crate::{Buffer, Connection};

/// Less room than this is not worth a receive call, unless the limit allows no more.
const MIN_ROOM: usize = 4096;

/// The most of a file that one event sends.
const FILE_CHUNK: u64 = 1024 * 1024;

pub(crate) struct Endpoint<T, H> {
    core: Core,
    transport: T,
    /// `None` until the factory has made it.
    handler: RefCell<Option<H>>,
}

impl<T: Transport, H: Handler> Endpoint<T, H> {
    /// Puts a connected socket under the loop's care, makes its handler and tells it.
    pub(crate) fn open(
        event_loop: &EventLoop,
        context: &Rc<Context>,
        (socket, peer): (OwnedFd, SocketAddr),
        transport: T,
        make_handler: impl FnOnce(&Connection<'_>) -> H,
    ) -> io::Result<()> {
        let core = Core::new(socket, peer, context.clone());
        let endpoint = Rc::new(Endpoint { core, transport, handler: RefCell::new(None) });
        let token = event_loop.register(Channel::from_source(endpoint.clone(), Interest::READ))?;
        endpoint.core.settle_in(token, context.registry.insert(endpoint.clone()));
        context.opened();

        let conn = Connection::new(event_loop, &endpoint.core);
        match event_loop.isolate("the factory of a handler", || make_handler(&conn)) {
            Ok(handler) => *endpoint.handler.borrow_mut() = Some(handler),
            Err(_) => endpoint.core.end(event_loop, CloseReason::Panicked),
        }
        endpoint.enter(event_loop, "on_connect", |handler, conn| handler.on_connect(conn));
        Ok(())
    }

    /// Calls the handler from outside an event.
    fn enter(&self, event_loop: &EventLoop, what: &str, f: impl FnOnce(&mut H, &Connection<'_>)) {
        let conn = Connection::new(event_loop, &self.core);
        let call = || {
            if let Some(handler) = &mut *self.handler.borrow_mut() {
                f(handler, &conn);
            }
        };
        if event_loop.isolate(what, call).is_err() {
            self.core.end(event_loop, CloseReason::Panicked);
        }
    }

    /// Calls the handler inside an event; the loop catches panics.
    #[inline]
    fn call(&self, f: impl FnOnce(&mut H)) {
        if let Some(handler) = &mut *self.handler.borrow_mut() {
            f(handler);
        }
    }

    /// Step 2: one receive, and what came goes to the handler.
    #[inline]
    fn receive(&self, conn: &Connection<'_>) {
        let Context { limits, lender, counters, .. } = &*self.core.context;
        let mut input = self.core.state.borrow_mut().take_input();
        if input.len() >= limits.input {
            self.core.end(conn.event_loop(), CloseReason::InputFull { limit: limits.input });
            return;
        }
        if input.capacity() < lender.size() {
            let rest = std::mem::replace(&mut input, lender.lend());
            if !rest.is_empty() {
                input.append(rest.readable());
            }
        }
        let allowed = limits.input - input.len();
        if input.writable_len() < MIN_ROOM.min(allowed) {
            input.reserve(input.capacity().min(allowed));
        }
        match self.transport.recv(self.core.socket(), input.storage_mut()) {
            Ok(0) => {
                self.keep_input(input);
                self.core.state.borrow_mut().peer_eof();
            }
            Ok(n) => {
                self.core.state.borrow_mut().received(n);
                context::add(&counters.received, n);
                self.deliver(conn, input);
            }
            Err(e) => {
                self.keep_input(input);
                if e.kind() != io::ErrorKind::WouldBlock {
                    self.core.state.borrow_mut().read_failed(e, lender);
                }
            }
        }
    }

    #[inline]
    fn deliver(&self, conn: &Connection<'_>, mut input: Buffer) {
        self.call(|handler| handler.on_message(conn, &mut input));
        self.keep_input(input);
    }

    /// What the handler left is kept for the next time.
    #[inline]
    fn keep_input(&self, input: Buffer) {
        let Context { limits, lender, .. } = &*self.core.context;
        let rest = lender.trim(input);
        self.core.state.borrow_mut().keep_input(rest, limits);
    }

    /// The peer is gone: both directions have ended, or an error is pending.
    fn hung_up(&self) {
        let Context { lender, .. } = &*self.core.context;
        let mut state = self.core.state.borrow_mut();
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

    /// Steps 1 and 4: one system call with all that is queued, or as much of it as fits.
    #[inline]
    fn flush(&self) {
        let Context { lender, counters, .. } = &*self.core.context;
        let socket = self.core.socket();
        let mut state = self.core.state.borrow_mut();
        let (offered, result) = match state.next_output() {
            Next::Bytes(bytes) => (bytes.len(), self.transport.send(socket, bytes)),
            Next::Slices(slices, count) => {
                let slices = &slices[..count];
                let offered = slices.iter().map(|slice| slice.len()).sum();
                (offered, self.transport.send_slices(socket, slices))
            }
            Next::File(range) => {
                let offered = range.len.min(FILE_CHUNK) as usize;
                let file = std::os::fd::AsFd::as_fd(&range.file);
                let sent = self.transport.send_file(socket, file, range.offset, offered);
                (
                    offered,
                    sent.and_then(|n| match n {
                        0 => Err(output::file_too_short(range)),
                        n => Ok(n),
                    }),
                )
            }
        };
        match result {
            Ok(n) => {
                context::add(&counters.sent, n);
                state.wrote(n, offered, lender);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => state.would_block(lender),
            Err(e) => state.write_failed(e, lender),
        }
    }

    /// Steps 3 to 6.
    #[inline]
    fn settle(&self, conn: &Connection<'_>) {
        let core = &self.core;
        let limits = &core.context.limits;

        let half_close = core.state.borrow_mut().take_half_close();
        if half_close {
            self.call(|handler| handler.on_half_close(conn));
        }

        let can_flush = core.state.borrow().can_flush();
        if can_flush {
            self.flush();
        }

        let (crossed, pending, drained) = {
            let mut state = core.state.borrow_mut();
            (state.crossed(limits), state.pending_output(), state.take_drained())
        };
        match crossed {
            Some(Crossed::High) => self.call(|handler| handler.on_high_water(conn, pending)),
            Some(Crossed::Low) => self.call(|handler| handler.on_low_water(conn)),
            None => {}
        }
        if drained {
            self.call(|handler| handler.on_write_complete(conn));
        }

        if core.interest.get() == Interest::READ && core.state.borrow().is_quiet() {
            return;
        }
        self.conclude(conn);
    }

    /// Step 6, for connections that are not just open.
    fn conclude(&self, conn: &Connection<'_>) {
        let core = &self.core;
        let event_loop = conn.event_loop();
        let limits = &core.context.limits;
        if core.state.borrow().is_fin_due() {
            match self.transport.shutdown(core.socket()) {
                Err(e) if e.kind() != io::ErrorKind::NotConnected => {
                    core.state.borrow_mut().write_failed(e, &core.context.lender);
                }
                // Not connected: the peer has reset the connection; reading will say how.
                _ => core.state.borrow_mut().fin_sent(),
            }
        }
        let state = core.state.borrow();
        if state.is_over() {
            drop(state);
            self.tear_down(conn);
            return;
        }
        let mut interest = Interest::NONE;
        interest.set(Interest::READ, state.wants_read());
        interest.set(Interest::WRITE, state.is_blocked());
        let lingers = state.lingers();
        let more = state.can_flush() || state.is_deliverable(limits);
        drop(state);
        if lingers {
            core.arm_linger(event_loop);
        }
        if more {
            core.schedule(event_loop);
        }
        if interest != core.interest.replace(interest)
            && let Err(e) = event_loop.set_interest(core.token.get(), interest)
        {
            // The kernel is out of memory. Without events the connection would hang for ever.
            core.end(event_loop, CloseReason::ReadFailed(e));
            core.schedule(event_loop);
        }
    }

    /// The end. The socket closes when the loop drops us, at the end of the turn.
    fn tear_down(&self, conn: &Connection<'_>) {
        let core = &self.core;
        let event_loop = conn.event_loop();
        core.cancel_timers(event_loop);
        core.close_handles();
        let reason = core.state.borrow_mut().finish(&core.context.lender);
        if matches!(reason, CloseReason::Reset)
            && let Err(e) = transport::reset_on_close(core.socket())
        {
            log::debug!("connection {} to {}: resetting it: {e}", conn.id(), conn.peer_addr());
        }
        event_loop.deregister(core.token.get());
        // The loop still holds us, so this is not the last reference.
        let _resident = core.context.registry.remove(core.place().slot);
        log::debug!("connection {} to {}: {reason}", conn.id(), conn.peer_addr());
        let on_close = || self.call(|handler| handler.on_close(conn, &reason));
        // Its panic has been logged and counted; there is nothing left to end.
        let _ = event_loop.isolate("on_close", on_close);
        core.context.closed(event_loop);
    }
}

impl<T: Transport, H: Handler> Source for Endpoint<T, H> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.socket()
    }

    fn on_event(&self, event_loop: &EventLoop, event: Event) {
        let gone = Ready::ERROR | Ready::HANGUP;
        let conn = Connection::new(event_loop, &self.core);
        self.core.busy.set(true);
        let (blocked, wants_read) = {
            let state = self.core.state.borrow();
            (state.is_blocked(), state.wants_read())
        };
        if blocked && event.ready.intersects(Ready::WRITE | gone) {
            self.flush();
        }
        if event.ready.intersects(Ready::READ | gone) {
            if wants_read {
                self.receive(&conn);
            } else if event.ready.intersects(gone) {
                self.hung_up();
            }
        }
        self.settle(&conn);
        self.core.busy.set(false);
    }

    fn on_turn_end(&self, event_loop: &EventLoop, _: Token) {
        let conn = Connection::new(event_loop, &self.core);
        self.core.unschedule();
        self.core.busy.set(true);
        let held = {
            let mut state = self.core.state.borrow_mut();
            let deliverable = state.is_deliverable(&self.core.context.limits);
            deliverable.then(|| state.take_input())
        };
        if let Some(input) = held {
            self.core.state.borrow_mut().received(0);
            self.deliver(&conn, input);
        }
        self.settle(&conn);
        self.core.busy.set(false);
    }

    fn on_panic(&self, event_loop: &EventLoop, _: Token) {
        self.core.state.borrow_mut().end(CloseReason::Panicked);
        self.tear_down(&Connection::new(event_loop, &self.core));
    }

    fn on_loop_end(&self, event_loop: &EventLoop, _: Token) {
        self.core.state.borrow_mut().end(CloseReason::LoopEnded);
        self.tear_down(&Connection::new(event_loop, &self.core));
    }
}

impl<T: Transport, H: Handler> Resident for Endpoint<T, H> {
    fn core(&self) -> &Core {
        &self.core
    }

    fn call(&self, event_loop: &EventLoop, f: HandlerCall) {
        self.core.in_posted_call.set(true);
        self.enter(event_loop, "a call to a handler", |handler, conn| {
            f(handler::as_any(handler), conn);
        });
        self.core.in_posted_call.set(false);
    }

    fn on_timer(&self, event_loop: &EventLoop, key: u64) {
        self.enter(event_loop, "on_timer", |handler, conn| handler.on_timer(conn, key));
    }

    fn on_stopping(&self, event_loop: &EventLoop) {
        self.enter(event_loop, "on_stopping", |handler, conn| handler.on_stopping(conn));
    }
}
