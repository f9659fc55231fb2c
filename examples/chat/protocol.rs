//! What goes over the wire: frames, each with four bytes of length in front.
//!
//! ```text
//!   member to room    the text of a message
//!   room to member    'W' number          welcome: your number in this room
//!                     'M' number text     the member with this number said this
//!                     'A' count           so many of your messages have been heard by everybody
//! ```
//!
//! Numbers have eight bytes, the most significant one first. A text is any bytes.

use std::io;

use ruduo::{Buffer, EncodeError, FrameCodec};

const MAX_TEXT: usize = 4000;

/// What members say.
pub(crate) const TEXTS: FrameCodec = FrameCodec::u32().max_len(MAX_TEXT);

/// What the room says.
pub(crate) const EVENTS: FrameCodec = FrameCodec::u32().max_len(1 + 8 + MAX_TEXT);

/// One thing that the room says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'b> {
    Welcome { number: u64 },
    Message { from: u64, text: &'b [u8] },
    Heard { count: u64 },
}

impl Event<'_> {
    pub(crate) fn encode(&self) -> Result<Buffer, EncodeError> {
        let mut message = Buffer::new();
        let (kind, number, text) = match self {
            Event::Welcome { number } => (b'W', *number, &b""[..]),
            Event::Message { from, text } => (b'M', *from, *text),
            Event::Heard { count } => (b'A', *count, &b""[..]),
        };
        message.append_u8(kind);
        message.append_u64(number);
        message.append(text);
        EVENTS.encode(message)
    }

    pub(crate) fn decode(frame: &[u8]) -> io::Result<Event<'_>> {
        let malformed =
            || io::Error::new(io::ErrorKind::InvalidData, "not an event of a chat room");
        let (kind, rest) = frame.split_first().ok_or_else(malformed)?;
        let (number, text) = rest.split_first_chunk().ok_or_else(malformed)?;
        let number = u64::from_be_bytes(*number);
        match (kind, text) {
            (b'W', []) => Ok(Event::Welcome { number }),
            (b'M', text) => Ok(Event::Message { from: number, text }),
            (b'A', []) => Ok(Event::Heard { count: number }),
            _ => Err(malformed()),
        }
    }
}
