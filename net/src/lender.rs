//! Buffers that connections borrow from their loop.
//!
//! An idle connection holds no memory for bytes: a receive borrows a buffer, and it comes back as
//! soon as it is empty, mostly at the end of the same event. So a few buffers serve thousands of
//! connections, and they are warm in the cache.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use ruduo_reactor::EventLoop;

use crate::Buffer;

/// Buffers kept for the next borrowers, beside the top one.
const MAX_FREE: usize = 15;

/// A rest of fewer bytes than this is copied, rather than kept in the buffer it came in.
pub(crate) const SMALL: usize = 4096;

/// Lends buffers of one size.
pub(crate) struct Lender {
    size: usize,
    /// What a buffer of this size really allocates. By this we know a buffer of ours: from other
    /// people's, and from one that has grown, whose memory a single connection needed once.
    capacity: usize,
    /// The top of the stack of free buffers. Mostly one buffer goes out and comes back for each
    /// message; here it does so without touching the rest.
    top: Cell<Buffer>,
    rest: RefCell<Vec<Buffer>>,
}

/// The lenders of one loop, one for each size; its `local` value.
#[derive(Default)]
struct Lenders(RefCell<Vec<Weak<Lender>>>);

impl Lender {
    /// The loop's lender of buffers of this size. All who want that size share it, and it lives for
    /// as long as any of them does.
    pub(crate) fn of(event_loop: &EventLoop, size: usize) -> Rc<Lender> {
        let lenders = event_loop.local::<Lenders>();
        let mut lenders = lenders.0.borrow_mut();
        lenders.retain(|lender| lender.strong_count() > 0);
        let known = lenders.iter().filter_map(Weak::upgrade).find(|lender| lender.size == size);
        known.unwrap_or_else(|| {
            let new = Rc::new(Lender::new(size));
            lenders.push(Rc::downgrade(&new));
            new
        })
    }

    /// Buffers with room for `size` bytes.
    pub(crate) fn new(size: usize) -> Lender {
        let first = Buffer::with_capacity(size);
        let capacity = first.capacity();
        Lender { size, capacity, top: Cell::new(first), rest: RefCell::default() }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// An empty buffer.
    #[inline(always)]
    pub(crate) fn lend(&self) -> Buffer {
        let top = self.top.take();
        if top.has_storage() { top } else { self.lend_another() }
    }

    #[inline(never)]
    fn lend_another(&self) -> Buffer {
        let another = self.rest.borrow_mut().pop();
        another.unwrap_or_else(|| Buffer::with_capacity(self.size))
    }

    /// Takes a buffer back, or frees it if it is not one of ours or there are enough.
    #[inline(always)]
    pub(crate) fn give_back(&self, mut buffer: Buffer) {
        if buffer.capacity() == self.capacity {
            buffer.clear();
            let second = self.top.replace(buffer);
            if second.has_storage() {
                self.keep(second);
            } else {
                // There is nothing to drop, but the compiler does not see that and would call.
                std::mem::forget(second);
            }
        }
    }

    #[inline(never)]
    fn keep(&self, buffer: Buffer) {
        let mut rest = self.rest.borrow_mut();
        if rest.len() < MAX_FREE {
            rest.push(buffer);
        }
    }

    /// Exchanges a buffer for one that may stay with a connection that waits: an empty buffer for
    /// one without storage, and one with a small rest for one of that size. Ten thousand peers that
    /// each leave one byte unread must not hold ten thousand large buffers.
    pub(crate) fn trim(&self, buffer: Buffer) -> Buffer {
        if buffer.is_empty() {
            self.give_back(buffer);
            return Buffer::new();
        }
        if buffer.len() < SMALL && buffer.capacity() > 2 * SMALL {
            let rest = Buffer::from(buffer.readable());
            self.give_back(buffer);
            return rest;
        }
        buffer
    }
}
