//! Messages in a stream of bytes: where one ends and the next begins.
//!
//! A codec is used from a handler by a loop, so that the handler stays in charge: it may stop,
//! change to another codec in the middle, or call methods of its own.
//!
//! ```
//! # use ruduo_net::{Buffer, Connection, FrameCodec, Handler};
//! # struct Session;
//! # impl Session { fn answer(&mut self, conn: &Connection, frame: &[u8]) {} }
//! # const FRAMES: FrameCodec = FrameCodec::u32();
//! # impl Handler for Session {
//! fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
//!     while let Some(frame) = FRAMES.decode(conn, input) {
//!         self.answer(conn, frame);
//!     }
//! }
//! # }
//! ```
//!
//! A message is a slice of the input itself; nothing is copied. The rules of a handler that takes
//! several messages from one input are kept by [`next_message`], for all codecs.

mod frames;
mod lines;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;
use std::ops::Range;

pub use self::frames::FrameCodec;
pub use self::lines::LineCodec;
use crate::{Buffer, Connection};

/// What is wrong with input, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    offset: u64,
    /// Boxed, for each connection has room for a reason of its end, and few ends are of this kind.
    reason: Box<Cow<'static, str>>,
}

impl DecodeError {
    /// `reason` says what is wrong at the byte with this offset; the bytes before it are in order.
    pub fn new(offset: usize, reason: impl Into<Cow<'static, str>>) -> DecodeError {
        DecodeError { offset: offset as u64, reason: Box::new(reason.into()) }
    }

    /// How many bytes lie before the offending one.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What is wrong.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The same error, seen from `bytes` earlier.
    pub(crate) fn behind(self, bytes: u64) -> DecodeError {
        DecodeError { offset: self.offset.saturating_add(bytes), ..self }
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.offset, self.reason)
    }
}

impl Error for DecodeError {}

/// Why a message cannot be encoded. The peer would understand something else, or refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EncodeError {
    /// It is longer than the codec allows.
    TooLong {
        /// The message's length, in bytes.
        len: usize,
        /// The greatest length, in bytes.
        max: usize,
    },
    /// It would end before its end.
    ContainsEnd {
        /// Where the end of a line stands in it.
        offset: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::TooLong { len, max } => {
                write!(f, "a message of {len} bytes, where {max} are allowed")
            }
            EncodeError::ContainsEnd { offset } => {
                write!(f, "a line that contains the end of a line, at byte {offset}")
            }
        }
    }
}

impl Error for EncodeError {}

impl From<DecodeError> for io::Error {
    fn from(e: DecodeError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, e)
    }
}

impl From<EncodeError> for io::Error {
    fn from(e: EncodeError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidInput, e)
    }
}

/// The longest message unless the program says otherwise, in bytes. With the eight bytes of the
/// longest header it fits into 64 KiB, the smallest input limit that the default read size allows.
const MAX_LEN: usize = 64 * 1024 - 8;

/// A whole message at the beginning of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    /// The bytes that are the message.
    content: Range<usize>,
    /// The bytes to consume.
    whole: usize,
}

impl Found {
    fn take_from(self, input: &mut Buffer) -> Option<&[u8]> {
        input.read_slice(self.whole)?.get(self.content)
    }
}

/// The next message, as found by `find`, unless the handler should not go on: then what is left
/// comes again when it may. Input that makes no sense is refused.
fn next_message<'b>(
    conn: &Connection<'_>,
    input: &'b mut Buffer,
    find: impl FnOnce(&[u8]) -> Result<Option<Found>, DecodeError>,
) -> Option<&'b [u8]> {
    if input.is_empty() || !conn.wants_input() {
        return None;
    }
    match find(input.readable()) {
        Ok(found) => found?.take_from(input),
        Err(error) => {
            conn.reject(input, error);
            None
        }
    }
}

/// A message of the greatest length must fit into the input. Otherwise the first peer that sends
/// one would have its connection closed
/// ([`CloseReason::InputFull`](crate::CloseReason::InputFull)). That is a mistake of the program,
/// and this lets the very first message show it.
#[track_caller]
fn check_fits(conn: &Connection<'_>, longest: usize) {
    let limit = conn.input_limit();
    assert!(
        longest <= limit,
        "a codec whose messages may take {longest} bytes needs a larger input_limit than {limit}"
    );
}
