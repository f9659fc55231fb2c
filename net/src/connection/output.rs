//! What a connection has yet to send.
//!
//! ```text
//!    frozen segments, oldest first          tail, still growing
//!   +----------+ +---------+ +-----------+ +--------------------+
//!   |  buffer  | | shared  | |   file    | | small sends join   |
//!   +----------+ +---------+ +-----------+ +--------------------+
//!    ^ sent next
//! ```
//!
//! Small pieces are copied to the end of the tail. A large one becomes a segment by moving a
//! pointer, and freezes the tail before it. A handler that sends what it has received moves the
//! very buffer the kernel wrote into: an echo copies nothing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;

use ruduo_reactor::sys::socket::MAX_SLICES;

use crate::Buffer;
use crate::lender::{Lender, SMALL};

/// The most that one system call is offered, in bytes. A peer that reads as fast as we write takes
/// all of it, and everybody else on the loop waits meanwhile.
pub(crate) const MAX_OFFER: usize = 1024 * 1024;

/// Something to send.
#[derive(Debug)]
pub(crate) enum Outgoing<'a> {
    /// To be copied.
    Bytes(&'a [u8]),
    /// To be emptied; its storage may move here.
    Buffer(&'a mut Buffer),
    Shared(Arc<[u8]>),
    File(FileRange),
}

/// Bytes of a file that are sent without reading them.
#[derive(Debug)]
pub(crate) struct FileRange {
    pub(crate) file: File,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Outgoing<'_> {
    /// Bytes that the peer will get.
    pub(crate) fn len(&self) -> usize {
        match self {
            Outgoing::Bytes(bytes) => bytes.len(),
            Outgoing::Buffer(buffer) => buffer.len(),
            Outgoing::Shared(bytes) => bytes.len(),
            Outgoing::File(range) => clamp(range.len),
        }
    }

    /// It is not going to be sent: a buffer is left empty as if it had been.
    pub(super) fn discard(self) {
        if let Outgoing::Buffer(buffer) = self {
            buffer.clear();
        }
    }

    /// Bytes of memory that are held until they are sent. A buffer that is mostly empty is copied.
    fn weight(&self) -> usize {
        match self {
            Outgoing::File(_) => 0,
            Outgoing::Buffer(buffer) if buffer.capacity() / 4 * 3 <= buffer.len() => {
                buffer.capacity()
            }
            other => other.len(),
        }
    }
}

enum Segment {
    Buffer(Buffer),
    Shared { bytes: Arc<[u8]>, sent: usize },
    File(Box<FileRange>),
}

impl Segment {
    fn weight(&self) -> usize {
        match self {
            Segment::Buffer(buffer) => buffer.capacity(),
            Segment::Shared { bytes, .. } => bytes.len(),
            Segment::File(_) => 0,
        }
    }

    fn len(&self) -> usize {
        match self {
            Segment::Buffer(buffer) => buffer.len(),
            Segment::Shared { bytes, sent } => bytes.len() - sent,
            Segment::File(range) => clamp(range.len),
        }
    }

    /// Drops the first `n` bytes, fewer than there are.
    fn consume(&mut self, n: usize) {
        match self {
            Segment::Buffer(buffer) => buffer.consume(n),
            Segment::Shared { sent, .. } => *sent += n,
            Segment::File(range) => {
                range.offset += n as u64;
                range.len -= n as u64;
            }
        }
    }

    /// The unsent bytes, of segments that are in memory.
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Segment::Buffer(buffer) => Some(buffer.readable()),
            Segment::Shared { bytes, sent } => Some(&bytes[*sent..]),
            Segment::File(_) => None,
        }
    }
}

/// What to send next: pieces in memory, or part of a file.
#[expect(clippy::large_enum_variant, reason = "lives on the stack for one system call")]
pub(crate) enum Next<'a> {
    Slices([IoSlice<'a>; MAX_SLICES], usize),
    File(&'a FileRange),
}

/// The output of one connection.
#[derive(Default)]
pub(crate) struct Output {
    frozen: VecDeque<Segment>,
    /// Memory held by `frozen`.
    frozen_weight: usize,
    tail: Buffer,
    len: usize,
}

impl Output {
    /// Bytes not yet sent.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Memory held, and what it would be with `more` queued. A small piece may be copied into
    /// room that is there, so this is an upper bound.
    pub(crate) fn weight_with(&self, more: &Outgoing<'_>) -> usize {
        self.frozen_weight + self.tail.capacity() + more.weight()
    }

    /// Queues the contents of a buffer when nothing else waits. The buffer becomes the tail as it
    /// is: an echo copies nothing.
    #[inline(always)]
    pub(crate) fn push_first(&mut self, buffer: &mut Buffer) {
        self.len = buffer.len();
        // The tail is empty and without storage now, which is what the caller's buffer becomes.
        std::mem::swap(&mut self.tail, buffer);
    }

    /// Queues behind everything else. Below `SMALL` bytes copying is cheaper than one more segment.
    pub(crate) fn push(&mut self, outgoing: Outgoing<'_>, lender: &Lender) {
        let len = outgoing.len();
        if len == 0 {
            return;
        }
        match outgoing {
            Outgoing::Buffer(buffer) if self.len == 0 => return self.push_first(buffer),
            // Unless it is mostly empty: behind a slow peer, storage is what counts.
            Outgoing::Buffer(buffer) if len >= SMALL && buffer.capacity() / 4 * 3 <= len => {
                self.freeze_tail(lender);
                self.tail = std::mem::take(buffer);
            }
            Outgoing::Buffer(buffer) => {
                self.copy(buffer.readable(), lender);
                buffer.clear();
            }
            Outgoing::Bytes(bytes) => self.copy(bytes, lender),
            Outgoing::Shared(bytes) if len < SMALL => self.copy(&bytes, lender),
            Outgoing::Shared(bytes) => {
                self.push_segment(Segment::Shared { bytes, sent: 0 }, lender);
            }
            Outgoing::File(range) => self.push_segment(Segment::File(Box::new(range)), lender),
        }
        self.len = self.len.saturating_add(len);
    }

    fn copy(&mut self, bytes: &[u8], lender: &Lender) {
        if self.tail.writable_len() < bytes.len() {
            // Growing would copy what is there; freezing does not.
            self.freeze_tail(lender);
            self.tail = if bytes.len() <= lender.size() {
                lender.lend()
            } else {
                Buffer::with_capacity(bytes.len())
            };
        }
        self.tail.append(bytes);
    }

    fn push_segment(&mut self, segment: Segment, lender: &Lender) {
        self.freeze_tail(lender);
        self.frozen_weight += segment.weight();
        self.frozen.push_back(segment);
    }

    /// A short tail is copied, so that a header before a large body does not hold a large buffer.
    fn freeze_tail(&mut self, lender: &Lender) {
        if !self.tail.is_empty() {
            let segment = Segment::Buffer(lender.trim(std::mem::take(&mut self.tail)));
            self.frozen_weight += segment.weight();
            self.frozen.push_back(segment);
        }
    }

    /// Everything, if it lies in one piece and can be offered at once: the common case, and the
    /// cheap one.
    #[inline]
    pub(crate) fn single(&self) -> Option<&[u8]> {
        (self.frozen.is_empty() && self.len <= MAX_OFFER).then(|| self.tail.readable())
    }

    /// What one system call should send.
    pub(crate) fn next(&self) -> Next<'_> {
        if let Some(Segment::File(range)) = self.frozen.front() {
            return Next::File(range);
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let (mut count, mut left) = (0, MAX_OFFER);
        let in_memory = self.frozen.iter().map_while(Segment::bytes);
        // The tail follows if nothing on disk comes first.
        let all = self.frozen.iter().all(|segment| !matches!(segment, Segment::File(_)));
        let tail = all.then(|| self.tail.readable());
        for bytes in in_memory.chain(tail).take(MAX_SLICES) {
            let offered = &bytes[..bytes.len().min(left)];
            slices[count] = IoSlice::new(offered);
            left -= offered.len();
            count += 1;
            if left == 0 {
                break;
            }
        }
        Next::Slices(slices, count)
    }

    /// Everything has been sent, which was in one piece.
    #[inline(always)]
    pub(crate) fn pop_single(&mut self, lender: &Lender) {
        self.len = 0;
        lender.give_back(std::mem::take(&mut self.tail));
    }

    /// Takes `n` bytes off the front, which have been sent.
    pub(crate) fn advance(&mut self, mut n: usize, lender: &Lender) {
        self.len -= n;
        while let Some(front) = self.frozen.front_mut() {
            let len = front.len();
            if n < len {
                front.consume(n);
                return;
            }
            n -= len;
            self.pop_front(lender);
        }
        self.tail.consume(n);
        if self.len == 0 {
            lender.give_back(std::mem::take(&mut self.tail));
        }
    }

    fn pop_front(&mut self, lender: &Lender) {
        if let Some(segment) = self.frozen.pop_front() {
            self.frozen_weight -= segment.weight();
            if let Segment::Buffer(buffer) = segment {
                lender.give_back(buffer);
            }
        }
        if self.frozen.is_empty() {
            // An idle connection holds no memory.
            self.frozen = VecDeque::new();
        }
    }

    /// Called when the rest has to wait for the peer.
    pub(crate) fn trim(&mut self, lender: &Lender) {
        if !self.tail.is_empty() {
            self.tail = lender.trim(std::mem::take(&mut self.tail));
        }
    }

    /// Drops everything; returns how many bytes that were.
    pub(crate) fn clear(&mut self, lender: &Lender) -> usize {
        while !self.frozen.is_empty() {
            self.pop_front(lender);
        }
        lender.give_back(std::mem::take(&mut self.tail));
        std::mem::take(&mut self.len)
    }
}

fn clamp(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The error of a file that ended before the bytes that were promised.
pub(crate) fn file_too_short(range: &FileRange) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("sending a file: it ends {} bytes before the range to send", range.len),
    )
}
