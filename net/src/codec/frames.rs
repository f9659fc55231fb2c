//! Messages with their length in front.
//!
//! ```text
//!   | length: 1, 2, 4 or 8 bytes | message: as many bytes as the length says |
//! ```
//!
//! The length is judged before any memory is kept for the message: the connection of a peer that
//! announces 4 GiB closes as soon as the header is there, and for a peer that announces less and
//! sends slowly we hold only what it has sent.

use super::{DecodeError, EncodeError, Found, MAX_LEN, check_fits, next_message};
use crate::{Buffer, Connection};

/// Messages with their length in front.
///
/// ```
/// use ruduo_net::{Buffer, Connection, FrameCodec, Handler};
///
/// const FRAMES: FrameCodec = FrameCodec::u16().max_len(1024);
///
/// /// Greets by name, name by name.
/// struct Greeter;
///
/// impl Handler for Greeter {
///     fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
///         while let Some(name) = FRAMES.decode(conn, input) {
///             let greeting = [b"hello, ", name].concat();
///             if let Ok(mut frame) = FRAMES.encode(greeting) {
///                 conn.send_buffer(&mut frame);
///             }
///         }
///     }
/// }
/// ```
///
/// A value of this type is the description of a format and nothing more, so it can be a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct FrameCodec {
    /// Of the length, in bytes.
    width: usize,
    little_endian: bool,
    counts_itself: bool,
    max_len: usize,
}

/// # Describing a format
impl FrameCodec {
    /// The length is one byte.
    pub const fn u8() -> FrameCodec {
        FrameCodec::with_width(size_of::<u8>())
    }

    /// The length has two bytes, the most significant one first, and counts the message alone.
    pub const fn u16() -> FrameCodec {
        FrameCodec::with_width(size_of::<u16>())
    }

    /// As [`u16`](FrameCodec::u16), with four bytes.
    pub const fn u32() -> FrameCodec {
        FrameCodec::with_width(size_of::<u32>())
    }

    /// As [`u16`](FrameCodec::u16), with eight bytes.
    pub const fn u64() -> FrameCodec {
        FrameCodec::with_width(size_of::<u64>())
    }

    const fn with_width(width: usize) -> FrameCodec {
        FrameCodec { width, little_endian: false, counts_itself: false, max_len: MAX_LEN }
    }

    /// The least significant byte of the length comes first.
    pub const fn little_endian(mut self) -> FrameCodec {
        self.little_endian = true;
        self
    }

    /// The length counts its own bytes too.
    pub const fn counts_itself(mut self) -> FrameCodec {
        self.counts_itself = true;
        self
    }

    /// The most bytes a message may have, its length not included; 65,528 by default. With the
    /// length it must fit into the connection's
    /// [`input_limit`](crate::Server::input_limit).
    pub const fn max_len(mut self, bytes: usize) -> FrameCodec {
        self.max_len = bytes;
        self
    }
}

/// # Using it
impl FrameCodec {
    /// The next message; call it until there is none. `None` if it is not all there, and when the
    /// handler should not go on ([`Connection::wants_input`]): then what is left comes again. A
    /// length that is too great makes it refuse the input ([`Connection::reject`]), and there is
    /// no next message ever.
    ///
    /// # Panics
    /// If a message of the greatest length does not fit into the connection's
    /// [`input_limit`](crate::Server::input_limit). (The panic ends this connection.)
    #[track_caller]
    pub fn decode<'b>(&self, conn: &Connection<'_>, input: &'b mut Buffer) -> Option<&'b [u8]> {
        check_fits(conn, self.max_len.saturating_add(self.width));
        next_message(conn, input, |bytes| self.find(bytes))
    }

    /// The next message in a buffer that belongs to no connection; `None` if it is not all there.
    ///
    /// # Errors
    /// If the length is too great, or less than its own size where it counts itself. Nothing is
    /// consumed then.
    pub fn take<'b>(&self, input: &'b mut Buffer) -> Result<Option<&'b [u8]>, DecodeError> {
        Ok(self.find(input.readable())?.and_then(|found| found.take_from(input)))
    }

    /// Puts the length in front of a message. One in a [`Buffer`] is not copied, for there is
    /// room in front of it.
    ///
    /// ```
    /// # use ruduo_net::{Buffer, FrameCodec};
    /// use std::io::Write;
    ///
    /// let mut message = Buffer::new();
    /// write!(message, "{} items", 3)?;
    /// let frame = FrameCodec::u16().encode(message)?;
    /// assert_eq!(frame.readable(), b"\0\x073 items");
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// [`EncodeError::TooLong`] if the message is longer than the codec allows, or than the length
    /// can tell.
    pub fn encode(&self, message: impl Into<Buffer>) -> Result<Buffer, EncodeError> {
        let mut message = message.into();
        let len = message.len();
        let max = self.max_len.min(self.longest());
        if len > max {
            return Err(EncodeError::TooLong { len, max });
        }
        let value = (len + self.own_share()) as u64;
        let width = self.width;
        if self.little_endian {
            message.prepend(&value.to_le_bytes()[..width]);
        } else {
            message.prepend(&value.to_be_bytes()[size_of::<u64>() - width..]);
        }
        Ok(message)
    }

    fn find(&self, bytes: &[u8]) -> Result<Option<Found>, DecodeError> {
        let Some(header) = bytes.get(..self.width) else { return Ok(None) };
        let value = self.value(header);
        let own_share = self.own_share();
        let Some(len) = value.checked_sub(own_share as u64) else {
            let why =
                format!("a length of {value}, which does not count its own {own_share} bytes");
            return Err(DecodeError::new(0, why));
        };
        let len = match usize::try_from(len) {
            Ok(len) if len <= self.max_len => len,
            _ => {
                let why = format!("a frame of {len} bytes, where {} are allowed", self.max_len);
                return Err(DecodeError::new(0, why));
            }
        };
        // Saturating: a program that allows any length may wait for more than there is memory.
        let whole = self.width.saturating_add(len);
        Ok((bytes.len() >= whole).then_some(Found { content: self.width..whole, whole }))
    }

    fn value(&self, header: &[u8]) -> u64 {
        let mut value = [0; size_of::<u64>()];
        if self.little_endian {
            value[..header.len()].copy_from_slice(header);
            u64::from_le_bytes(value)
        } else {
            value[size_of::<u64>() - header.len()..].copy_from_slice(header);
            u64::from_be_bytes(value)
        }
    }

    /// What the length counts beside the message.
    fn own_share(&self) -> usize {
        if self.counts_itself { self.width } else { 0 }
    }

    /// The longest message whose length can be told.
    fn longest(&self) -> usize {
        let greatest = u64::MAX >> (64 - 8 * self.width);
        usize::try_from(greatest).unwrap_or(usize::MAX) - self.own_share()
    }
}
