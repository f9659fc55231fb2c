//! The account of what is on its way from handles to a connection or a datagram socket. By it all
//! that is asked of one has one order, and memory that is on its way has a bound.
//!
//! ```text
//!   handle ──on the loop's thread, with nothing on its way──▶ at once
//!     └──otherwise──▶ a task with an Outstanding in it ──▶ the loop: that is dropped, then the rest
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

/// What all handles of a connection or a socket, and that itself, know of posted operations; and what
/// else they share.
#[derive(Debug)]
pub(crate) struct Posted<T> {
    operations: AtomicU32,
    /// Memory of operations on their way, in bytes.
    weight: AtomicUsize,
    limit: usize,
    closed: AtomicBool,
    pub(crate) shared: T,
}

impl<T> Posted<T> {
    /// An account with nothing on its way, of something that may be over already.
    pub(crate) fn new(limit: usize, is_closed: bool, shared: T) -> Posted<T> {
        let (operations, weight) = (AtomicU32::new(0), AtomicUsize::new(0));
        Posted { operations, weight, limit, closed: AtomicBool::new(is_closed), shared }
    }

    /// Operations that have been posted and not yet carried out.
    #[inline]
    pub(crate) fn outstanding(&self) -> u32 {
        // Whoever has learned of a posted operation, by a lock or a channel, sees it counted.
        self.operations.load(Ordering::Acquire)
    }

    pub(crate) fn weight(&self) -> usize {
        self.weight.load(Ordering::Relaxed)
    }

    /// Whether more would be on its way, with `weight` added, than is allowed.
    pub(crate) fn has_no_room_for(&self, weight: usize) -> bool {
        self.weight().saturating_add(weight) > self.limit
    }

    /// Nothing more is taken.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// Counts an operation as on its way until this is dropped: by the task that carries it out, or
/// with that task if the loop refuses it.
pub(crate) struct Outstanding<T> {
    posted: Arc<Posted<T>>,
    weight: usize,
}

impl<T> Outstanding<T> {
    pub(crate) fn new(posted: &Arc<Posted<T>>, weight: usize) -> Outstanding<T> {
        posted.operations.fetch_add(1, Ordering::AcqRel);
        posted.weight.fetch_add(weight, Ordering::Relaxed);
        Outstanding { posted: posted.clone(), weight }
    }
}

impl<T> Drop for Outstanding<T> {
    fn drop(&mut self) {
        self.posted.weight.fetch_sub(self.weight, Ordering::Relaxed);
        self.posted.operations.fetch_sub(1, Ordering::AcqRel);
    }
}
