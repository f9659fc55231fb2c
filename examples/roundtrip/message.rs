//! What is said: two times, in microseconds since 1970, the most significant byte first.
//!
//! ```text
//!   | T1: when the client sent it (8 bytes) | T2: when the server received it (8 bytes) |
//! ```
//!
//! A question has 0 for the second; the server fills it in and sends all of it back, so it keeps
//! nothing. The client adds T4, when the answer has come.

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) const LEN: usize = 16;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) sent: i64,
    pub(crate) received: i64,
}

impl Message {
    pub(crate) fn encode(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let (sent, received) = bytes.split_at_mut(size_of::<i64>());
        sent.copy_from_slice(&self.sent.to_be_bytes());
        received.copy_from_slice(&self.received.to_be_bytes());
        bytes
    }

    /// None if it has not the length of one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Message> {
        let (sent, rest) = bytes.split_first_chunk()?;
        let (received, []) = rest.split_first_chunk()? else { return None };
        Some(Message { sent: i64::from_be_bytes(*sent), received: i64::from_be_bytes(*received) })
    }
}

/// The server's part: the answer to what has come at that time.
pub(crate) fn answer(question: &[u8], come: i64) -> Option<[u8; LEN]> {
    let question = Message::decode(question)?;
    Some(Message { received: come, ..question }.encode())
}

pub(crate) fn now() -> i64 {
    microseconds(SystemTime::now())
}

/// In the message's form; before 1970 it is negative.
pub(crate) fn microseconds(time: SystemTime) -> i64 {
    let clamped = |microseconds: u128| i64::try_from(microseconds).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => clamped(since.as_micros()),
        Err(before) => -clamped(before.duration().as_micros()),
    }
}
