//! From the socket to the handler: receives into a lent buffer, delivers, and keeps what is left.

use std::io::{self, ErrorKind};

use nix::libc;
use nix::sys::socket::{getsockopt, sockopt};

use super::Endpoint;
use crate::connection::CloseReason;
use crate::context::Context;
use crate::handler::Handler;
use crate::metrics;
use crate::transport::Transport;
use crate::{Buffer, Connection};

/// Less room than this is not worth a receive call, unless the limit allows no more.
const MIN_ROOM: usize = 4096;

impl<T: Transport, H: Handler> Endpoint<T, H> {
    /// Step 2: one receive, and what came goes to the handler. False if reading is not wanted.
    #[inline(always)]
    pub(super) fn receive(&self, handler: &mut H, conn: &Connection<'_>) -> bool {
        let core = &self.core;
        let mut input = if core.state.is_untouched() {
            core.context.lender.lend()
        } else {
            match self.take_input() {
                Some(input) => input,
                None => return self.discard_input(),
            }
        };
        let bytes = input.storage_mut();
        let moved = self.transport.recv(core.socket(), bytes);
        if let Some(n) = moved.some() {
            core.received.set(core.received.get() + n as u64);
            metrics::add(&core.context.counters.received, n);
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
        // Twice the storage, but not a byte more than the limit allows: all of it will be filled.
        let allowed = limits.input.saturating_sub(input.len()).max(1);
        if input.writable_len() < MIN_ROOM.min(allowed) {
            let larger = Buffer::with_capacity(input.len() + input.capacity().min(allowed));
            let rest = std::mem::replace(&mut input, larger);
            input.append(rest.readable());
        }
        Some(input)
    }

    /// One receive that nobody gets: the program wants no more input, and only the end of the
    /// stream is awaited. False if reading is not wanted at all.
    #[cold]
    #[inline(never)]
    fn discard_input(&self) -> bool {
        let core = &self.core;
        let Context { lender, counters, .. } = &*core.context;
        if !core.state.wants_to_discard() {
            return false;
        }
        let mut input = lender.lend();
        let bytes = input.storage_mut();
        let moved = self.transport.recv(core.socket(), bytes);
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
        if input.is_empty() {
            lender.give_back(input);
        } else {
            state.keep_input(lender.trim(input), limits, self.core.posted_bytes());
        }
        match outcome {
            Ok(_) => state.peer_eof(),
            // The poller tells again if there is something.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {}
            Err(e) => state.read_failed(e, lender),
        }
    }

    /// Gives input to the handler and keeps what it leaves for the next time.
    #[inline(always)]
    pub(super) fn deliver(&self, handler: &mut H, conn: &Connection<'_>, mut input: Buffer) {
        handler.on_message(conn, &mut input);
        if !input.is_empty() {
            self.keep_input(conn, input);
        } else if input.has_storage() {
            // Otherwise it moved to the output.
            self.core.context.lender.give_back(input);
        }
    }

    /// Keeps what the handler has left. A handler that may go on, and yet leaves as much as the
    /// limit allows, never will: then the connection ends.
    #[inline(never)]
    fn keep_input(&self, conn: &Connection<'_>, input: Buffer) {
        let Context { limits, lender, .. } = &*self.core.context;
        let rest = lender.trim(input);
        let full = rest.len() >= limits.input;
        let posted = self.core.posted_bytes();
        self.core.state.keep_input(rest, limits, posted);
        if full && conn.wants_input() {
            conn.end(CloseReason::InputFull { limit: limits.input });
        }
    }

    /// The peer is gone: both directions have ended, or an error is pending.
    pub(super) fn hung_up(&self) {
        let Context { lender, .. } = &*self.core.context;
        let state = &self.core.state;
        if state.is_read_over() {
            // Nothing is left to read that would tell the reason.
            let error = match getsockopt(&self.core.socket(), sockopt::SocketError) {
                Ok(errno) if errno != 0 => io::Error::from_raw_os_error(errno),
                _ => ErrorKind::ConnectionReset.into(),
            };
            state.read_failed(error, lender);
        } else {
            // Data may still lie before the error. The program gets it when it resumes reading,
            // within the linger deadline. The loop has ended its watch, so this does not spin.
            state.hung_up();
        }
    }
}
