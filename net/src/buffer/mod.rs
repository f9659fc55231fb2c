//! The bytes of a connection: what has been received and not yet understood, or what is to be sent
//! and not yet taken by the kernel. The shape is that of muduo's `Buffer`, one vector in three
//! regions:
//!
//! ```text
//! +-------------------+------------------+------------------+
//! | prependable bytes |  readable bytes  |  writable bytes  |
//! +-------------------+------------------+------------------+
//! 0       <=        read      <=    bytes.len()   <=   bytes.capacity()
//! ```
//!
//! Bytes come in at the right, by [`append`](Buffer::append) or by a receive call, and leave at the
//! left by [`consume`](Buffer::consume), which only advances `read`. What lies to the left of
//! `read` is free again: the consumed bytes, and eight more that wait for a header. A length that
//! is known only when the message is complete is prepended there, and the message stays where it
//! is. When everything is consumed, `read` and the vector's length return to 8, and the same
//! storage serves the next message.
//!
//! # How it grows
//!
//! When the writable bytes do not suffice, the room that consumed ones left is used first:
//!
//! ```text
//! before  |.......... prependable .........| readable | writable |
//! after   |. 8 .| readable |              writable               |
//! ```
//!
//! Only if that is not enough, the readable bytes move to a new vector of at least twice the size:
//! doubling is what makes a long series of small appends cost a constant time per byte.
//!
//! The writable region is the spare capacity of the vector. Nobody fills it with zeros before the
//! kernel fills it with data: for a 64 KiB receive that would cost more than the short message that
//! usually arrives.
//!
//! # One pointer wide
//!
//! A [`Buffer`] is one pointer, so handing one over moves eight bytes, whatever it holds. An echo
//! server swaps its input with an empty buffer and queues it for output: the bytes that the kernel
//! wrote on receiving are the bytes that it reads on sending, and nothing between copies them. A
//! connection without data keeps a null pointer and no memory.
//!
//! Left out on purpose: slices that share one storage by reference counts. A message that outlives
//! its buffer is copied out of it, and in return nobody can keep 64 KiB alive by holding on to ten.

mod integers;
mod search;
#[cfg(test)]
mod tests;
mod traits;

use std::mem;

pub(crate) use self::search::find_crlf;

/// A growing queue of bytes: written at the back, consumed at the front, with room to write a
/// header in front of what is already there.
///
/// It has three regions, in this order: the *prependable* bytes, the *readable* bytes, which are
/// its contents, and the *writable* bytes, which wait to be filled. All lengths are in bytes.
///
/// A new buffer owns no memory, and moving any buffer moves one pointer.
///
/// ```
/// use ruduo_net::Buffer;
///
/// let mut message = Buffer::new();
/// message.append(b"hello");
/// message.prepend_u32(message.len() as u32); // known only now, and "hello" stays where it is
///
/// assert_eq!(message.readable(), b"\0\0\0\x05hello");
/// assert_eq!(message.read_u32(), Some(5));
/// assert_eq!(message.readable(), b"hello");
/// ```
#[derive(Default)]
pub struct Buffer {
    inner: Option<Box<Inner>>,
}

/// One allocation and where its readable bytes begin.
///
/// Always, `read <= bytes.len()`. With storage but nothing to read, both are `CHEAP_PREPEND`: an
/// empty buffer is ready for a header, however it became empty. Only `read_slice`, whose caller
/// still looks at the bytes, leaves that to whoever needs the room next.
#[derive(Default)]
struct Inner {
    bytes: Vec<u8>,
    read: usize,
}

const _: () = assert!(size_of::<Buffer>() == size_of::<usize>());

/// # Making one
impl Buffer {
    /// The bytes kept free in front of the readable ones: room for any integer as a header.
    pub const CHEAP_PREPEND: usize = 8;

    /// Makes an empty buffer. It allocates when the first byte comes.
    pub const fn new() -> Buffer {
        Buffer { inner: None }
    }

    /// Makes an empty buffer with `n` writable bytes beside the prepend room. Like [`new`], it
    /// allocates nothing if `n` is 0.
    ///
    /// # Panics
    /// If the capacity would exceed `isize::MAX` bytes.
    ///
    /// [`new`]: Buffer::new
    pub fn with_capacity(n: usize) -> Buffer {
        let mut buffer = Buffer::new();
        buffer.reserve(n);
        buffer
    }
}

/// # Looking at it
impl Buffer {
    /// The contents.
    #[inline]
    pub fn readable(&self) -> &[u8] {
        match &self.inner {
            Some(inner) => &inner.bytes[inner.read..],
            None => &[],
        }
    }

    /// The contents, to be changed in place: unmasked, decrypted.
    #[inline]
    pub fn readable_mut(&mut self) -> &mut [u8] {
        match &mut self.inner {
            Some(inner) => &mut inner.bytes[inner.read..],
            None => &mut [],
        }
    }

    /// The number of readable bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.inner.as_ref().map_or(0, |inner| inner.len())
    }

    /// Whether there is nothing to read.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that can be written before the buffer has to move or to grow.
    #[inline]
    pub fn writable_len(&self) -> usize {
        self.inner.as_ref().map_or(0, |inner| inner.bytes.capacity() - inner.bytes.len())
    }

    /// The bytes that can be put in front of the readable ones without moving those.
    #[inline]
    pub fn prependable_len(&self) -> usize {
        self.inner.as_ref().map_or(0, |inner| inner.read)
    }

    /// The bytes allocated, all three regions together: 0 for a new buffer.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.inner.as_ref().map_or(0, |inner| inner.bytes.capacity())
    }
}

/// # Putting bytes in
impl Buffer {
    /// Writes `data` behind the readable bytes.
    ///
    /// # Panics
    /// If the capacity would exceed `isize::MAX` bytes.
    #[inline]
    pub fn append(&mut self, data: &[u8]) {
        self.reserve(data.len());
        // After `reserve` only an empty slice can meet a buffer without storage.
        if let Some(inner) = &mut self.inner {
            inner.bytes.extend_from_slice(data);
        }
    }

    /// Writes `data` in front of the readable bytes.
    ///
    /// Up to [`prependable_len`](Buffer::prependable_len) bytes go into the room that is there, and
    /// nothing else moves: 8 bytes after a first `append`, and again whenever everything has been
    /// consumed. For a new buffer this is an `append`. A longer slice moves the readable bytes, and
    /// reallocates as `append` does.
    ///
    /// ```
    /// # use ruduo_net::Buffer;
    /// let mut message = Buffer::from("world");
    /// let body = message.readable().as_ptr();
    /// message.prepend(b"hello, ");
    /// assert_eq!(message.readable(), b"hello, world");
    /// assert_eq!(message.readable()[7..].as_ptr(), body); // "world" has not moved
    /// ```
    ///
    /// # Panics
    /// If the capacity would exceed `isize::MAX` bytes.
    pub fn prepend(&mut self, data: &[u8]) {
        match &mut self.inner {
            Some(inner) if data.len() <= inner.read => {
                let end = inner.read;
                inner.read -= data.len();
                inner.bytes[inner.read..end].copy_from_slice(data);
            }
            _ => {
                self.append(data);
                self.readable_mut().rotate_right(data.len());
            }
        }
    }

    /// Makes sure that at least `n` bytes are writable.
    ///
    /// If they are not, the readable bytes move to the front of the storage when that is enough,
    /// else to a new storage of at least twice the size. Either copies the readable bytes and
    /// nothing more. A program that keeps a large buffer nearly full, consuming and appending
    /// little at a time, does well to reserve more than its next piece, or it pays that copy often.
    ///
    /// # Panics
    /// If the capacity would exceed `isize::MAX` bytes.
    #[inline]
    pub fn reserve(&mut self, n: usize) {
        if self.writable_len() < n {
            self.make_room(n);
        }
    }

    /// Whether it has storage: one that has moved elsewhere, or never had a byte, has not.
    #[inline]
    pub(crate) fn has_storage(&self) -> bool {
        self.inner.is_some()
    }

    /// The vector whose spare capacity a receive call fills. It only ever appends: the vector must
    /// not become shorter, for its first `read` bytes belong to the prependable region.
    #[inline]
    pub(crate) fn storage_mut(&mut self) -> &mut Vec<u8> {
        &mut self.inner.get_or_insert_default().bytes
    }
}

/// # Taking bytes out
impl Buffer {
    /// Drops the first `n` readable bytes: they are understood. When none are left, the whole
    /// storage is writable again except for the prepend room.
    ///
    /// # Panics
    /// If fewer than `n` bytes are readable.
    #[inline]
    #[track_caller]
    pub fn consume(&mut self, n: usize) {
        let len = self.len();
        match &mut self.inner {
            Some(inner) if n < len => inner.read += n,
            _ if n == len => self.clear(),
            _ => too_few_readable("consume", n, len),
        }
    }

    /// Consumes the first `n` readable bytes and lends them out, where they are; `None`, and
    /// nothing happens, if there are fewer. When none are left, the room they took is free again as
    /// soon as somebody needs it.
    ///
    /// ```
    /// # use ruduo_net::Buffer;
    /// let mut input = Buffer::from("GET /index");
    /// assert_eq!(input.read_slice(4), Some(&b"GET "[..]));
    /// assert_eq!(input.readable(), b"/index");
    /// assert_eq!(input.read_slice(7), None);
    /// ```
    pub fn read_slice(&mut self, n: usize) -> Option<&[u8]> {
        if n > self.len() {
            return None;
        }
        let Some(inner) = &mut self.inner else { return Some(&[]) };
        let start = inner.read;
        inner.read += n;
        Some(&inner.bytes[start..inner.read])
    }

    /// Drops the last `n` readable bytes: they should not have been written.
    ///
    /// # Panics
    /// If fewer than `n` bytes are readable.
    #[track_caller]
    pub fn unwrite(&mut self, n: usize) {
        let len = self.len();
        match &mut self.inner {
            Some(inner) if n < len => inner.bytes.truncate(inner.bytes.len() - n),
            _ if n == len => self.clear(),
            _ => too_few_readable("unwrite", n, len),
        }
    }

    /// Drops all readable bytes. The storage stays.
    #[inline]
    pub fn clear(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.clear();
        }
    }

    /// Copies the first `n` readable bytes out and consumes them; `None`, and nothing happens, if
    /// there are fewer.
    pub fn read_bytes(&mut self, n: usize) -> Option<Vec<u8>> {
        let bytes = self.readable().get(..n)?.to_vec();
        self.consume(n);
        Some(bytes)
    }

    /// Turns the readable bytes into a vector in the same storage. They move to its front, unless
    /// they are there already.
    pub fn into_vec(self) -> Vec<u8> {
        let Some(inner) = self.inner else { return Vec::new() };
        let Inner { mut bytes, read } = *inner;
        bytes.drain(..read);
        bytes
    }
}

/// # Storage
impl Buffer {
    /// Gives memory back: reallocates to exactly the prepend room, the readable bytes and `reserve`
    /// writable bytes, if that is less than now. An empty buffer with nothing to reserve gives up
    /// all of its storage.
    pub fn shrink(&mut self, reserve: usize) {
        if self.is_empty() && reserve == 0 {
            self.inner = None;
            return;
        }
        let needed = self.capacity_for(reserve);
        if needed < self.capacity() {
            self.move_to_new_storage(needed);
        }
    }

    /// Exchanges contents and storage with `other`. No byte of either moves.
    #[inline]
    pub fn swap(&mut self, other: &mut Buffer) {
        mem::swap(self, other);
    }

    /// The rare part of `reserve`, kept out of the code of its callers.
    #[cold]
    fn make_room(&mut self, n: usize) {
        let needed = self.capacity_for(n);
        match &mut self.inner {
            Some(inner) if needed <= inner.bytes.capacity() => inner.compact(),
            _ => self.move_to_new_storage(needed.max(2 * self.capacity())),
        }
    }

    /// What the prepend room, the readable bytes and `n` writable bytes need. Saturating: a length
    /// taken from a hostile header ends in the vector's "capacity overflow", not in a small number.
    fn capacity_for(&self, n: usize) -> usize {
        (Self::CHEAP_PREPEND + self.len()).saturating_add(n)
    }

    fn move_to_new_storage(&mut self, capacity: usize) {
        let mut bytes = Vec::with_capacity(capacity);
        bytes.extend_from_slice(&[0; Self::CHEAP_PREPEND]);
        bytes.extend_from_slice(self.readable());
        **self.inner.get_or_insert_default() = Inner { bytes, read: Self::CHEAP_PREPEND };
    }
}

impl Inner {
    #[inline]
    fn len(&self) -> usize {
        self.bytes.len() - self.read
    }

    #[inline]
    fn clear(&mut self) {
        if self.bytes.len() < Buffer::CHEAP_PREPEND {
            self.widen_prepend_room();
        }
        self.bytes.truncate(Buffer::CHEAP_PREPEND);
        self.read = Buffer::CHEAP_PREPEND;
    }

    /// For the few vectors that are shorter than the room in front should be: a small one taken
    /// over, or a message unwritten down to its header.
    #[cold]
    fn widen_prepend_room(&mut self) {
        self.bytes.resize(Buffer::CHEAP_PREPEND, 0);
    }

    /// Moves the readable bytes to the left, up to the prepend room. Only for storage that has at
    /// least that room in front.
    fn compact(&mut self) {
        self.bytes.copy_within(self.read.., Buffer::CHEAP_PREPEND);
        self.bytes.truncate(Buffer::CHEAP_PREPEND + self.len());
        self.read = Buffer::CHEAP_PREPEND;
    }
}

#[cold]
#[track_caller]
fn too_few_readable(action: &str, n: usize, len: usize) -> ! {
    panic!("cannot {action} {n} bytes, only {len} are readable")
}
