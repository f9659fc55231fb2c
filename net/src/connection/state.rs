//! Everything a connection knows, as plain data: no system calls, no callbacks.
//!
//! The [endpoint](super::endpoint) reports what happened (bytes came, the peer's end of stream, an
//! error, bytes were taken by the kernel) and asks what is to be done next. So all the rules about
//! order, back pressure and closing stand here and can be tested without a socket.
//!
//! ```text
//!              reading                                 writing
//!   Open ──EOF──▶ Eof ──told──▶ Told        Open ──shutdown──▶ Finishing ──FIN──▶ Finished
//!     └──────error──────▶ Failed              └────────────error──────────▶ Failed
//! ```
//!
//! It is over when both sides are at their end, when reading failed, or at once for a reason of
//! our own (close, a limit, a deadline).

use std::io;

use super::output::{Next, Outgoing, Output};
use super::reason::CloseReason;
use crate::Buffer;
use crate::lender::Lender;
use crate::limits::Limits;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    Open,
    /// The peer's end of stream came; the handler is told when it has had all input.
    Eof,
    /// The handler knows.
    Told,
    Failed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Writing {
    #[default]
    Open,
    /// The handler has shut down; what it sent before still leaves.
    Finishing,
    /// FIN is sent.
    Finished,
    Failed,
}

/// Why something cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Closed,
    Full,
}

/// A mark that the output's length has crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crossed {
    High,
    Low,
}

/// The state of one connection.
#[derive(Default)]
pub(crate) struct State {
    /// What the handler has not consumed. Right-sized or empty: a lent buffer goes back.
    input: Buffer,
    output: Output,
    /// What went wrong first.
    failure: Option<Box<CloseReason>>,
    received: u64,
    sent: u64,
    /// How many more times the program has paused reading than resumed it.
    pauses: u32,
    reading: Reading,
    writing: Writing,
    /// It ends now, whatever the two sides are doing.
    at_once: bool,
    /// The peer's end of stream came before our shutdown.
    peer_was_first: bool,
    /// Output went above the high-water mark and has not come down to the low one.
    above_high: bool,
    /// The handler stopped in the middle of its input because it may not go on.
    held: bool,
    /// The kernel's buffer is full; it will tell when there is room.
    blocked: bool,
    /// Output has just run empty and the handler has not been told.
    drained: bool,
    /// The peer is gone but the handler has paused reading.
    hung_up: bool,
}

/// What happens to the peer's bytes.
impl State {
    pub(crate) fn take_input(&mut self) -> Buffer {
        std::mem::take(&mut self.input)
    }

    /// Counts `n` bytes that are about to be given to the handler.
    #[inline]
    pub(crate) fn received(&mut self, n: usize) {
        self.received += n as u64;
        self.held = false;
    }

    /// Takes the rest of the input back from the handler.
    #[inline]
    pub(crate) fn keep_input(&mut self, input: Buffer, limits: &Limits) {
        self.held = !input.is_empty() && !self.wants_input(limits);
        self.input = input;
    }

    /// The stream has ended. What is unconsumed stays with us.
    pub(crate) fn peer_eof(&mut self) {
        if self.reading == Reading::Open {
            self.reading = Reading::Eof;
            self.peer_was_first = self.writing == Writing::Open;
        }
    }

    /// True once, when the handler is to be told of the peer's end of stream.
    pub(crate) fn take_half_close(&mut self) -> bool {
        let due = self.reading == Reading::Eof && !self.held && !self.at_once;
        if due {
            self.reading = Reading::Told;
        }
        due
    }

    /// Whether to receive.
    #[inline]
    pub(crate) fn wants_read(&self) -> bool {
        self.reading == Reading::Open && self.pauses == 0 && !self.above_high && !self.at_once
    }

    /// Whether the handler should go on with the input it has: not if the program paused reading,
    /// if the answers so far are more than the peer takes, or if this is the end.
    #[inline]
    pub(crate) fn wants_input(&self, limits: &Limits) -> bool {
        self.pauses == 0
            && !self.above_high
            && self.output.len() <= limits.high_water
            && !self.at_once
    }

    /// Whether input that was held back can be delivered now.
    pub(crate) fn is_deliverable(&self, limits: &Limits) -> bool {
        self.held && self.wants_input(limits)
    }

    pub(crate) fn pause(&mut self) {
        self.pauses += 1;
    }

    /// Ends one pause. Without one, does nothing.
    pub(crate) fn resume(&mut self) {
        self.pauses = self.pauses.saturating_sub(1);
        self.hold_rest();
    }

    /// What is left is to be delivered again, without new bytes.
    fn hold_rest(&mut self) {
        self.held |= !self.input.is_empty();
    }

    /// The kernel says that the peer is gone, while reading is paused.
    pub(crate) fn hung_up(&mut self) {
        self.hung_up = true;
    }

    /// The handler has had everything there will ever be.
    pub(crate) fn is_read_over(&self) -> bool {
        matches!(self.reading, Reading::Told | Reading::Failed)
    }
}

/// What happens to our bytes.
impl State {
    /// Queues something to send.
    #[inline]
    pub(crate) fn queue(
        &mut self,
        outgoing: Outgoing<'_>,
        limits: &Limits,
        lender: &Lender,
    ) -> Result<(), Refusal> {
        if self.writing != Writing::Open || self.at_once {
            return Err(Refusal::Closed);
        }
        if self.output.weight_with(&outgoing) > limits.output {
            return Err(Refusal::Full);
        }
        self.output.push(outgoing, lender);
        Ok(())
    }

    pub(crate) fn pending_output(&self) -> usize {
        self.output.len()
    }

    /// Whether a flush has something to do.
    #[inline]
    pub(crate) fn can_flush(&self) -> bool {
        !self.output.is_empty() && !self.blocked && !self.at_once
    }

    /// What to hand to the kernel.
    #[inline]
    pub(crate) fn next_output(&self) -> Next<'_> {
        self.output.next()
    }

    /// The kernel took `n` of the bytes offered.
    #[inline]
    pub(crate) fn wrote(&mut self, n: usize, offered: usize, lender: &Lender) {
        self.sent += n as u64;
        self.output.advance(n, lender);
        self.blocked = n < offered;
        self.drained = self.output.is_empty();
        if self.blocked {
            self.output.trim(lender);
        }
    }

    /// The kernel's buffer was full.
    pub(crate) fn would_block(&mut self, lender: &Lender) {
        self.blocked = true;
        self.output.trim(lender);
    }

    /// Whether to wait for room in the kernel's buffer.
    #[inline]
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Whether the output's length has crossed a mark. Coming down to the low one also means
    /// that input left over may be delivered again.
    #[inline]
    pub(crate) fn crossed(&mut self, limits: &Limits) -> Option<Crossed> {
        let len = self.output.len();
        if !self.above_high && len > limits.high_water {
            self.above_high = true;
            return Some(Crossed::High);
        }
        if self.above_high && len <= limits.low_water {
            self.above_high = false;
            self.hold_rest();
            return Some(Crossed::Low);
        }
        None
    }

    /// True once after the last byte was handed to the kernel.
    #[inline]
    pub(crate) fn take_drained(&mut self) -> bool {
        std::mem::take(&mut self.drained)
    }
}

/// How it ends.
impl State {
    /// No more output; what is queued still leaves.
    pub(crate) fn shutdown(&mut self) {
        if self.writing == Writing::Open {
            self.writing = Writing::Finishing;
        }
    }

    /// Whether to send FIN now. If the peer has finished too, closing does that.
    pub(crate) fn is_fin_due(&self) -> bool {
        self.writing == Writing::Finishing && self.output.is_empty() && !self.is_over()
    }

    pub(crate) fn fin_sent(&mut self) {
        self.writing = Writing::Finished;
    }

    pub(crate) fn is_fin_sent(&self) -> bool {
        self.writing == Writing::Finished
    }

    /// Receiving failed: nothing comes and nothing leaves any more.
    pub(crate) fn read_failed(&mut self, error: io::Error, lender: &Lender) {
        self.reading = Reading::Failed;
        self.writing = Writing::Failed;
        self.drop_output(lender);
        self.store(CloseReason::ReadFailed(error));
    }

    /// Sending failed: what the peer sent before that can still be read.
    pub(crate) fn write_failed(&mut self, error: io::Error, lender: &Lender) {
        self.writing = Writing::Failed;
        self.drop_output(lender);
        self.store(CloseReason::WriteFailed(error));
    }

    /// Ends now, for a reason of our own. Output not yet sent is dropped.
    pub(crate) fn end(&mut self, reason: CloseReason) {
        self.at_once = true;
        self.store(reason);
    }

    /// Whether it has ended, or will right after this callback.
    pub(crate) fn is_ended(&self) -> bool {
        self.at_once
    }

    fn store(&mut self, reason: CloseReason) {
        self.failure.get_or_insert_with(|| Box::new(reason));
    }

    fn drop_output(&mut self, lender: &Lender) {
        self.output.clear(lender);
        self.blocked = false;
        self.drained = false;
    }

    /// Whether to tear the connection down.
    pub(crate) fn is_over(&self) -> bool {
        if self.at_once {
            return true;
        }
        let written = match self.writing {
            Writing::Open => false,
            Writing::Finishing => self.output.is_empty(),
            Writing::Finished | Writing::Failed => true,
        };
        match self.reading {
            Reading::Open | Reading::Eof => false,
            Reading::Told => written,
            Reading::Failed => !self.held,
        }
    }

    /// Whether only the peer keeps this connection from its end, so that a deadline must.
    pub(crate) fn lingers(&self) -> bool {
        match self.writing {
            Writing::Open => self.hung_up,
            Writing::Finishing | Writing::Finished | Writing::Failed => !self.is_over(),
        }
    }

    /// Nothing but open: no end in sight, nothing to deliver, send or tell.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        self.reading == Reading::Open
            && self.writing == Writing::Open
            && self.output.is_empty()
            && !(self.at_once | self.above_high | self.held | self.drained | self.hung_up)
            && self.pauses == 0
    }

    /// Takes the reason, and gives all memory back.
    pub(crate) fn finish(&mut self, lender: &Lender) -> CloseReason {
        lender.give_back(std::mem::take(&mut self.input));
        self.drop_output(lender);
        self.at_once = true;
        match self.failure.take() {
            Some(failure) => *failure,
            None if self.peer_was_first => CloseReason::PeerClosed,
            None => CloseReason::ShutDown,
        }
    }

    pub(crate) fn bytes_received(&self) -> u64 {
        self.received
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        self.sent
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
