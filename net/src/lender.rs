//! Buffers that connections borrow from their loop.
//!
//! An idle connection holds no memory for bytes: a receive borrows a buffer, and it comes back as
//! soon as it is empty, mostly at the end of the same event. So a few buffers serve thousands of
//! connections, and they are warm in the cache.

use std::cell::RefCell;

use crate::Buffer;

/// Buffers kept for the next borrower.
const MAX_FREE: usize = 16;

/// A rest of fewer bytes is copied rather than kept in the buffer it came in.
pub(crate) const SMALL: usize = 4096;

/// Lends buffers of one size.
pub(crate) struct Lender {
    size: usize,
    free: RefCell<Vec<Buffer>>,
}

impl Lender {
    /// Buffers with room for `size` bytes.
    pub(crate) fn new(size: usize) -> Lender {
        Lender { size, free: RefCell::default() }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// An empty buffer.
    #[inline]
    pub(crate) fn lend(&self) -> Buffer {
        let free = self.free.borrow_mut().pop();
        free.unwrap_or_else(|| Buffer::with_capacity(self.size))
    }

    /// Takes a buffer back, or frees it if it is not one of ours or there are enough.
    #[inline]
    pub(crate) fn give_back(&self, mut buffer: Buffer) {
        let mut free = self.free.borrow_mut();
        // A buffer that grew beyond its size is memory a single connection needed once.
        let ours = (self.size..=2 * self.size).contains(&buffer.capacity());
        if ours && free.len() < MAX_FREE {
            buffer.clear();
            free.push(buffer);
        }
    }

    /// Exchanges a buffer for one that may stay with a connection that waits: none for an empty
    /// one, and for a small rest one of its size. Ten thousand peers that each leave one byte
    /// unread must not hold ten thousand large buffers.
    #[inline]
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
