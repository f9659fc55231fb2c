//! What can be asked of a connection, and how it is carried out: at once, or after it has been on
//! its way to the connection's loop as a task.
//!
//! It changes the state and nothing else, so that what a callback does never takes effect inside
//! it, and all that it sends leaves together. Somebody has to look at the state afterwards: the
//! event that the callback belongs to, or else the loop, at the end of the turn.

use std::sync::Arc;

use super::output::{FileRange, Outgoing, saturating};
use super::reason::CloseReason;
use crate::context::Context;
use crate::metrics;
use crate::{Buffer, Connection, SendError};

/// What can be asked of a connection.
pub(super) enum Operation {
    Send(Payload),
    Shutdown,
    Close,
    Reset,
    Pause,
    Resume,
}

impl Operation {
    /// Bytes to be sent.
    pub(super) fn len(&self) -> usize {
        match self {
            Operation::Send(payload) => payload.len(),
            _ => 0,
        }
    }

    /// Memory held until it arrives.
    pub(super) fn weight(&self) -> usize {
        match self {
            Operation::Send(payload) => payload.weight(),
            _ => 0,
        }
    }

    /// Whether it waits for those before it. Only a pause does not: called on the loop, it is in
    /// force at once. (A resume does wait: if it came before the pause that it is to end, it would be
    /// lost.)
    pub(super) fn is_in_order(&self) -> bool {
        !matches!(self, Operation::Pause)
    }
}

/// Bytes on their way to a connection.
pub(super) enum Payload {
    Buffer(Buffer),
    Shared(Arc<[u8]>),
    File(FileRange),
}

impl Payload {
    fn len(&self) -> usize {
        match self {
            Payload::Buffer(buffer) => buffer.len(),
            Payload::Shared(bytes) => bytes.len(),
            Payload::File(range) => saturating(range.len),
        }
    }

    fn weight(&self) -> usize {
        match self {
            Payload::Buffer(buffer) => buffer.capacity(),
            Payload::Shared(bytes) => bytes.len(),
            Payload::File(_) => 0,
        }
    }

    pub(super) fn with_outgoing<R>(self, f: impl FnOnce(Outgoing<'_>) -> R) -> R {
        match self {
            Payload::Buffer(mut buffer) => f(Outgoing::Buffer(&mut buffer)),
            Payload::Shared(bytes) => f(Outgoing::Shared(bytes)),
            Payload::File(range) => f(Outgoing::File(range)),
        }
    }
}

impl From<Outgoing<'_>> for Payload {
    fn from(outgoing: Outgoing<'_>) -> Payload {
        match outgoing {
            Outgoing::Bytes(bytes) => Payload::Buffer(Buffer::from(bytes)),
            Outgoing::Buffer(buffer) => Payload::Buffer(std::mem::take(buffer)),
            Outgoing::Shared(bytes) => Payload::Shared(bytes),
            Outgoing::File(range) => Payload::File(range),
        }
    }
}

/// Carrying it out.
impl Connection<'_> {
    pub(super) fn perform(&self, operation: Operation) {
        let state = &self.core.state;
        match operation {
            Operation::Send(payload) => {
                payload.with_outgoing(|outgoing| self.queue_or_end(outgoing));
            }
            Operation::Shutdown => state.shutdown(),
            Operation::Close => state.end(CloseReason::Closed),
            Operation::Reset => state.end(CloseReason::Reset),
            Operation::Pause => {
                metrics::add(&self.core.context.counters.paused_by_program, 1);
                state.pause();
            }
            Operation::Resume => state.resume(),
        }
        // Also after a send that queued nothing: input may have been held back while it was on its
        // way.
        self.touch();
    }

    /// Queues output.
    pub(super) fn queue(&self, outgoing: Outgoing<'_>) -> Result<(), SendError> {
        let Context { limits, lender, .. } = &*self.core.context;
        self.core.state.queue(outgoing, limits, lender)?;
        self.touch();
        Ok(())
    }

    /// Queues the contents of a buffer by the short way, if it is open: inside an event, and with
    /// nothing else that waits, here or on its way here. Only a connection with handles has to ask
    /// for the latter.
    #[inline(always)]
    pub(super) fn queue_first(&self, buffer: &mut Buffer) -> bool {
        let (state, most) = (&self.core.state, self.core.context.single);
        let of_shared =
            |buffer| !self.core.has_outstanding() && state.queue_first(buffer, most, true);
        self.in_event && (state.queue_first(buffer, most, false) || of_shared(buffer))
    }

    /// Queues output for a caller who gets no error: what cannot be sent is counted, and output
    /// beyond the limit ends the connection.
    pub(super) fn queue_or_end(&self, outgoing: Outgoing<'_>) {
        let len = outgoing.len();
        if let Err(error) = self.queue(outgoing) {
            self.not_sent(error, len);
        }
    }

    /// What the program sent is not going to leave, and it asked for no answer.
    #[cold]
    pub(super) fn not_sent(&self, error: SendError, len: usize) {
        metrics::add(&self.core.context.counters.discarded, len);
        match error {
            SendError::Closed => {
                log::debug!("{}: {len} bytes sent after its end are discarded", self.core);
            }
            SendError::Full => {
                let limit = self.core.context.limits.output;
                self.end(CloseReason::OutputFull { limit });
            }
        }
    }

    /// Ends the connection for a reason of our own, after the current callback.
    pub(crate) fn end(&self, reason: CloseReason) {
        self.core.state.end(reason);
        self.touch();
    }

    /// Sees to it that somebody looks at the state soon.
    #[inline]
    pub(super) fn touch(&self) {
        if !self.in_event {
            self.core.schedule(self.event_loop);
        }
    }
}
