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
            Outgoing::File(range) => saturating(range.len),
        }
    }

    /// It is not going to be sent: a buffer is left empty as if it had been.
    pub(super) fn discard(self) {
        if let Outgoing::Buffer(buffer) = self {
            buffer.clear();
        }
    }

    /// Bytes of memory that are held until they are sent.
    fn weight(&self) -> usize {
        match self {
            Outgoing::File(_) => 0,
            Outgoing::Buffer(buffer) if is_mostly_full(buffer) => buffer.capacity(),
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
            Segment::File(range) => saturating(range.len),
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

    /// It is of no use any more.
    fn give_back(self, lender: &Lender) {
        if let Segment::Buffer(buffer) = self {
            lender.give_back(buffer);
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

/// The output of one connection: two pointers, for most have none, or a piece that leaves at once.
#[derive(Default)]
pub(crate) struct Output {
    pub(super) frozen: Option<Box<Frozen>>,
    /// Has storage only while there is something in it.
    pub(super) tail: Buffer,
}

/// The segments before the tail. There is at least one.
#[derive(Default)]
pub(crate) struct Frozen {
    segments: VecDeque<Segment>,
    /// Memory held.
    weight: usize,
    /// Bytes not yet sent.
    len: usize,
}

impl Output {
    /// Bytes not yet sent.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        let frozen = self.frozen.as_ref().map_or(0, |frozen| frozen.len);
        frozen.saturating_add(self.tail.len())
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.frozen.is_none() && !self.tail.has_storage()
    }

    /// Memory held, and what it would be with `more` queued. A small piece may be copied into
    /// room that is there, so this is an upper bound.
    pub(crate) fn weight_with(&self, more: &Outgoing<'_>) -> usize {
        let frozen = self.frozen.as_ref().map_or(0, |frozen| frozen.weight);
        frozen + self.tail.capacity() + more.weight()
    }

    /// Queues behind everything else. Below `SMALL` bytes copying is cheaper than one more segment.
    pub(crate) fn push(&mut self, outgoing: Outgoing<'_>, lender: &Lender) {
        let len = outgoing.len();
        if len == 0 {
            return;
        }
        match outgoing {
            // It becomes the tail as it is: an echo copies nothing.
            Outgoing::Buffer(buffer) if self.is_empty() => self.tail = std::mem::take(buffer),
            Outgoing::Buffer(buffer) if len >= SMALL && is_mostly_full(buffer) => {
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
                self.freeze_tail(lender);
                self.freeze(Segment::Shared { bytes, sent: 0 });
            }
            Outgoing::File(range) => {
                self.freeze_tail(lender);
                self.freeze(Segment::File(Box::new(range)));
            }
        }
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

    /// A short tail is copied, so that a header before a large body does not hold a large buffer.
    fn freeze_tail(&mut self, lender: &Lender) {
        if self.tail.has_storage() {
            let tail = lender.trim(std::mem::take(&mut self.tail));
            self.freeze(Segment::Buffer(tail));
        }
    }

    fn freeze(&mut self, segment: Segment) {
        let frozen = self.frozen.get_or_insert_default();
        frozen.weight += segment.weight();
        frozen.len = frozen.len.saturating_add(segment.len());
        frozen.segments.push_back(segment);
    }

    /// Whether all there is lies in one piece that can be offered at once: the common case, and the
    /// cheap one.
    pub(crate) fn is_single(&self) -> bool {
        self.frozen.is_none() && self.tail.len() <= MAX_OFFER
    }

    /// What one system call should send.
    pub(crate) fn next(&self) -> Next<'_> {
        let segments = || self.frozen.iter().flat_map(|frozen| &frozen.segments);
        if let Some(Segment::File(range)) = segments().next() {
            return Next::File(range);
        }
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let (mut count, mut left) = (0, MAX_OFFER);
        let in_memory = segments().map_while(Segment::bytes);
        // The tail follows if nothing on disk comes first.
        let all = segments().all(|segment| !matches!(segment, Segment::File(_)));
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

    /// Takes `n` bytes off the front, which have been sent.
    pub(crate) fn advance(&mut self, mut n: usize, lender: &Lender) {
        if let Some(frozen) = &mut self.frozen {
            n = frozen.advance(n, lender);
            if !frozen.segments.is_empty() {
                return;
            }
            // A connection with a short answer needs no memory for a long one.
            self.frozen = None;
        }
        self.tail.consume(n);
        if self.tail.is_empty() {
            lender.give_back(std::mem::take(&mut self.tail));
        }
    }

    /// Called when the rest has to wait for the peer.
    pub(crate) fn trim(&mut self, lender: &Lender) {
        if self.tail.has_storage() {
            self.tail = lender.trim(std::mem::take(&mut self.tail));
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self, lender: &Lender) {
        if let Some(frozen) = self.frozen.take() {
            frozen.segments.into_iter().for_each(|segment| segment.give_back(lender));
        }
        lender.give_back(std::mem::take(&mut self.tail));
    }
}

impl Frozen {
    /// Takes up to `n` bytes off the front, and returns how many of them were more than there are.
    fn advance(&mut self, mut n: usize, lender: &Lender) -> usize {
        while let Some(front) = self.segments.front_mut() {
            let len = front.len();
            if n < len {
                front.consume(n);
                self.len -= n;
                return 0;
            }
            n -= len;
            self.len -= len;
            self.weight -= front.weight();
            if let Some(front) = self.segments.pop_front() {
                front.give_back(lender);
            }
        }
        n
    }
}

/// Whether a buffer may be queued as it is. A mostly empty one is copied: behind a slow peer,
/// storage is what counts.
fn is_mostly_full(buffer: &Buffer) -> bool {
    buffer.capacity() / 4 * 3 <= buffer.len()
}

/// The length of a file, where the lengths of memory are counted.
pub(super) fn saturating(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The error of a file that ended before the bytes that were promised.
pub(crate) fn file_too_short(range: &FileRange) -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!("sending a file: it ends {} bytes before the range to send", range.len),
    )
}
