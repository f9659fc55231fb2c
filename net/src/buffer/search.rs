//! Where a message ends: searches over the readable bytes. Every one is linear in the bytes it
//! looks at, whatever the peer sends, and every offset counts from the first readable byte.

use memchr::{memchr, memchr_iter, memmem};

use super::Buffer;

/// # Searching
///
/// Offsets count from the first readable byte, both those given and those returned.
///
/// A message seldom arrives in one piece. To search it from its beginning with each piece takes a
/// time that grows with the square of its length, so the `_from` methods take up a search where the
/// last one ended.
impl Buffer {
    /// The offset of the first `"\r\n"`.
    ///
    /// ```
    /// # use ruduo_net::Buffer;
    /// let mut input = Buffer::from("HELO example.org\r\nQUIT\r\n");
    /// let end = input.find_crlf().expect("a whole line");
    /// assert_eq!(&input.readable()[..end], b"HELO example.org");
    /// input.consume(end + 2);
    /// assert_eq!(input.readable(), b"QUIT\r\n");
    /// ```
    pub fn find_crlf(&self) -> Option<usize> {
        self.find_crlf_from(0)
    }

    /// The offset of the first `"\r\n"` that begins at `start` or later; `None` if `start` is
    /// beyond the end.
    ///
    /// A search is resumed at the *last* byte of the one before it: that may have been the `\r`.
    ///
    /// ```
    /// # use ruduo_net::Buffer;
    /// let mut input = Buffer::from("QUIT\r");
    /// assert_eq!(input.find_crlf(), None);
    /// let resume = input.len() - 1;
    /// input.append(b"\n");
    /// assert_eq!(input.find_crlf_from(resume), Some(4));
    /// ```
    pub fn find_crlf_from(&self, start: usize) -> Option<usize> {
        find_crlf(self.readable().get(start..)?).map(|offset| start + offset)
    }

    /// The offset of the first `'\n'`.
    pub fn find_eol(&self) -> Option<usize> {
        self.find_eol_from(0)
    }

    /// The offset of the first `'\n'` at `start` or later; `None` if `start` is beyond the end.
    pub fn find_eol_from(&self, start: usize) -> Option<usize> {
        let searched = self.readable().get(start..)?;
        memchr(b'\n', searched).map(|offset| start + offset)
    }

    /// The offset of the first `needle`. An empty one is found at 0.
    pub fn find(&self, needle: &[u8]) -> Option<usize> {
        self.find_from(0, needle)
    }

    /// The offset of the first `needle` that begins at `start` or later; `None` if `start` is
    /// beyond the end. A search for `n` bytes is resumed `n - 1` bytes before the end of the one
    /// before.
    pub fn find_from(&self, start: usize, needle: &[u8]) -> Option<usize> {
        memmem::find(self.readable().get(start..)?, needle).map(|offset| start + offset)
    }
}

/// The offset of the first `"\r\n"`.
pub(crate) fn find_crlf(bytes: &[u8]) -> Option<usize> {
    // For the `\n` and not for the pair: with one byte to look back at, there is nothing that a run
    // of `\r` or of `\n` could make us read twice.
    memchr_iter(b'\n', bytes)
        .filter_map(|newline| newline.checked_sub(1))
        .find(|&before| bytes[before] == b'\r')
}
