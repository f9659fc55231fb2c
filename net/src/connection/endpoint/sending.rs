//! From the output to the socket: one system call, with as much as may be offered at once.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use super::Endpoint;
use crate::connection::CloseReason;
use crate::connection::output::{self, MAX_OFFER, Next, Output};
use crate::context::Context;
use crate::handler::Handler;
use crate::metrics;
use crate::transport::Transport;

impl<T: Transport, H: Handler> Endpoint<T, H> {
    /// Steps 1 and 4: one system call with all that is queued, or as much of it as fits. If nothing
    /// is left, the handler is to be told so.
    pub(super) fn flush(&self) {
        let state = &self.core.state;
        let single = state.has_single_output();
        state.flushed(if single { self.flush_single() } else { self.flush_several() });
    }

    /// The same for output that is one piece. True if nothing is left.
    #[inline(always)]
    pub(super) fn flush_single(&self) -> bool {
        let state = &self.core.state;
        let Some(single) = state.take_single() else { return false };
        let bytes = single.readable();
        let offered = bytes.len();
        let moved = self.transport.send(self.core.socket(), bytes);
        if moved.is(offered) {
            let Context { lender, counters, .. } = &*self.core.context;
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
            Err(e) if e.kind() == ErrorKind::WouldBlock => state.would_block(lender),
            // There may be room. What could not be asked is asked again at the end of the turn.
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // The file is too short. That is our fault, and the peer waits for a rest that does not
            // exist.
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
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
}
