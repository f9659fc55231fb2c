//! What can be asked of a connection, and the account of what is on its way to one.
//!
//! An operation is carried out at once, or travels to the connection's loop as a task. [`Posted`]
//! knows whether any is still on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use super::output::{FileRange, Outgoing, saturating};
use super::state::State;
use super::throttle::Sources;
use crate::Buffer;
use crate::limits::Limits;

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

/// What all handles of a connection and the connection itself know of posted operations.
#[derive(Debug)]
pub(super) struct Posted {
    operations: AtomicU32,
    /// Memory of payloads on their way.
    weight: AtomicUsize,
    pub(super) limit: usize,
    /// If more weight than this is on its way, those who send it are paused.
    pub(super) mark: usize,
    pub(super) sources: Sources,
    closed: AtomicBool,
}

impl Posted {
    pub(super) fn new(limits: &Limits, state: &State) -> Posted {
        Posted {
            operations: AtomicU32::new(0),
            weight: AtomicUsize::new(0),
            limit: limits.output,
            mark: limits.low_water,
            sources: Sources::new(state.is_above_high()),
            closed: AtomicBool::new(state.is_ended()),
        }
    }

    /// Operations that have been posted and not yet carried out.
    #[inline]
    pub(super) fn outstanding(&self) -> u32 {
        // Whoever has learned of a posted operation, by a lock or a channel, sees it counted.
        self.operations.load(Ordering::Acquire)
    }

    pub(super) fn weight(&self) -> usize {
        self.weight.load(Ordering::Relaxed)
    }

    /// The connection takes no more output.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// Counts an operation as on its way until this is dropped: by the task that carries it out, or
/// with that task if the loop refuses it.
pub(super) struct Outstanding {
    posted: Arc<Posted>,
    weight: usize,
}

impl Outstanding {
    pub(super) fn new(posted: &Arc<Posted>, weight: usize) -> Outstanding {
        posted.operations.fetch_add(1, Ordering::AcqRel);
        posted.weight.fetch_add(weight, Ordering::Relaxed);
        Outstanding { posted: posted.clone(), weight }
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.posted.weight.fetch_sub(self.weight, Ordering::Relaxed);
        self.posted.operations.fetch_sub(1, Ordering::AcqRel);
    }
}
