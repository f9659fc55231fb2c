//! Messages that are lines.

use memchr::{memchr, memchr2};

use super::{DecodeError, EncodeError, Found, MAX_LEN, check_fits, next_message};
use crate::buffer::find_crlf;
use crate::{Buffer, Connection};

/// Messages that are lines.
///
/// ```
/// use ruduo_net::{Buffer, Connection, Handler, LineCodec};
///
/// struct Session {
///     lines: LineCodec,
///     count: u64,
/// }
///
/// impl Handler for Session {
///     fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
///         while let Some(line) = self.lines.decode(conn, input) {
///             self.count += 1;
///             conn.send(format!("line {} has {} bytes\n", self.count, line.len()));
///         }
///     }
/// }
///
/// fn new_session(_conn: &Connection) -> Session {
///     Session { lines: LineCodec::lf_or_crlf().max_len(1024), count: 0 }
/// }
/// ```
///
/// Lines are given without their end. What the peer sends after the last end is not a line: if it
/// closes then, the reason is [`CloseReason::Unfinished`](crate::CloseReason::Unfinished).
///
/// Each connection has one of its own. It remembers how much of an unfinished line it has searched
/// already, so that a line which comes byte by byte is not searched from its beginning each time.
#[derive(Debug)]
#[must_use]
pub struct LineCodec {
    end: End,
    max_len: usize,
    searched: Searched,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Lf,
    CrLf,
    LfOrCrLf,
}

impl End {
    fn len(self) -> usize {
        if self == End::Lf { 1 } else { 2 }
    }
}

/// A clone is for another stream: it has not searched anything.
impl Clone for LineCodec {
    fn clone(&self) -> LineCodec {
        LineCodec::ending_with(self.end).max_len(self.max_len)
    }
}

/// The line that begins at this place of the stream has no end in so many bytes. The place tells
/// whether this still holds, whatever else has been done to the input.
#[derive(Clone, Debug, Default)]
struct Searched {
    start: u64,
    len: usize,
}

/// # Describing a format
impl LineCodec {
    /// Lines end with LF; a CR is a byte like others.
    pub const fn lf() -> LineCodec {
        LineCodec::ending_with(End::Lf)
    }

    /// Lines end with CR and LF; either alone is a byte like others. Many protocols ask for that
    /// (for mail, RFC 5321, section 2.3.8): where two programs do not agree on what ends a line, a
    /// request can be hidden from one of them.
    pub const fn crlf() -> LineCodec {
        LineCodec::ending_with(End::CrLf)
    }

    /// Lines end with LF, and a CR before it belongs to the end: for people at a terminal. What
    /// is [encoded](LineCodec::encode) ends with LF.
    pub const fn lf_or_crlf() -> LineCodec {
        LineCodec::ending_with(End::LfOrCrLf)
    }

    const fn ending_with(end: End) -> LineCodec {
        LineCodec { end, max_len: MAX_LEN, searched: Searched { start: 0, len: 0 } }
    }

    /// The most bytes a line may have, its end not included; 65,528 by default. With the end it
    /// must fit into the connection's [`input_limit`](crate::Server::input_limit).
    pub const fn max_len(mut self, bytes: usize) -> LineCodec {
        self.max_len = bytes;
        self
    }
}

/// # Using it
impl LineCodec {
    /// The next line; call it until there is none. `None` if its end has not come, and when the
    /// handler should not go on ([`Connection::wants_input`]): then what is left comes again. A
    /// line that is too long makes it refuse the input ([`Connection::reject`]), and there is no
    /// next line ever.
    ///
    /// # Panics
    /// If a line of the greatest length does not fit into the connection's
    /// [`input_limit`](crate::Server::input_limit). (The panic ends this connection.)
    #[track_caller]
    pub fn decode<'b>(&mut self, conn: &Connection<'_>, input: &'b mut Buffer) -> Option<&'b [u8]> {
        check_fits(conn, self.max_len.saturating_add(self.end.len()));
        let start = conn.bytes_received().saturating_sub(input.len() as u64);
        let searched = if self.searched.start == start { self.searched.len } else { 0 };
        next_message(conn, input, |bytes| {
            let found = self.find(bytes, searched)?;
            let len = if found.is_none() { bytes.len() } else { 0 };
            self.searched = Searched { start, len };
            Ok(found)
        })
    }

    /// The next line in a buffer that belongs to no connection; `None` if its end has not come. An
    /// unfinished line is searched from its beginning each time.
    ///
    /// # Errors
    /// If the line is too long. Nothing is consumed then.
    pub fn take<'b>(&self, input: &'b mut Buffer) -> Result<Option<&'b [u8]>, DecodeError> {
        Ok(self.find(input.readable(), 0)?.and_then(|found| found.take_from(input)))
    }

    /// Puts the end of a line behind one. A line in a [`Buffer`] is not copied, unless it leaves
    /// no room.
    ///
    /// # Errors
    /// [`EncodeError::ContainsEnd`] for what would reach the peer as two lines, or as another one;
    /// [`EncodeError::TooLong`] if it is longer than the codec allows.
    pub fn encode(&self, line: impl Into<Buffer>) -> Result<Buffer, EncodeError> {
        let mut line = line.into();
        let (len, max) = (line.len(), self.max_len);
        if len > max {
            return Err(EncodeError::TooLong { len, max });
        }
        let (contained, end) = match self.end {
            End::Lf => (memchr(b'\n', line.readable()), "\n"),
            End::CrLf => (memchr2(b'\r', b'\n', line.readable()), "\r\n"),
            End::LfOrCrLf => (memchr2(b'\r', b'\n', line.readable()), "\n"),
        };
        if let Some(offset) = contained {
            return Err(EncodeError::ContainsEnd { offset });
        }
        line.append(end.as_bytes());
        Ok(line)
    }

    /// The first `searched` bytes contain no end.
    fn find(&self, bytes: &[u8], searched: usize) -> Result<Option<Found>, DecodeError> {
        // No more is looked at than the longest line and its end.
        let bytes = &bytes[..bytes.len().min(self.max_len.saturating_add(2))];
        // The last byte searched may have been the CR of the end.
        let from = searched.saturating_sub(1).min(bytes.len());
        let found = match self.end {
            End::Lf => memchr(b'\n', &bytes[from..]).map(|at| (from + at, 1)),
            End::CrLf => find_crlf(&bytes[from..]).map(|at| (from + at, 2)),
            End::LfOrCrLf => {
                memchr(b'\n', &bytes[from..]).map(|at| match (from + at).checked_sub(1) {
                    Some(before) if bytes[before] == b'\r' => (before, 2),
                    _ => (from + at, 1),
                })
            }
        };
        match found {
            Some((len, end)) if len <= self.max_len => {
                Ok(Some(Found { content: 0..len, whole: len + end }))
            }
            None if !self.is_too_long(bytes) => Ok(None),
            _ => {
                let why = format!("a line of more than {} bytes", self.max_len);
                Err(DecodeError::new(0, why))
            }
        }
    }

    /// Whether bytes without an end already are more than a line may have. The one byte too much
    /// may be the CR of the end.
    fn is_too_long(&self, bytes: &[u8]) -> bool {
        match bytes.get(self.max_len..) {
            None | Some([]) => false,
            Some([b'\r']) => self.end == End::Lf,
            Some(_) => true,
        }
    }
}
