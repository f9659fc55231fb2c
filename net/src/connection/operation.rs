//! What can be asked of a connection: carried out at once, or on its way to the connection's loop as
//! a task.

use std::sync::Arc;

use super::output::{FileRange, Outgoing, saturating};
use crate::Buffer;

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
