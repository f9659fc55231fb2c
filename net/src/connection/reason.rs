//! Why a connection ended.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::DecodeError;

/// Why a connection ended; given to [`Handler::on_close`](crate::Handler::on_close).
///
/// The first thing that went wrong decides: a reset noticed while writing stays the reason,
/// whatever later reads return.
#[derive(Debug)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed first, all it sent was delivered and all output was handed to the kernel.
    PeerClosed,
    /// We shut down first, and the peer then closed. All bytes went both ways.
    ShutDown,
    /// The peer closed in the middle of a message: the handler waited for more of it and has not
    /// consumed what is there. (A handler that consumes its messages piece by piece notices this
    /// itself, in [`on_half_close`](crate::Handler::on_half_close).)
    Unfinished {
        /// How many bytes were left.
        left: usize,
    },
    /// The program refused what the peer sent
    /// ([`Connection::reject`](crate::Connection::reject)), or a codec did. Output is sent
    /// nevertheless, as by `shutdown`; if that fails, this remains the reason. The offset counts
    /// from the first byte of the stream.
    Rejected(DecodeError),
    /// The program called `close`. Output not yet sent was dropped.
    Closed,
    /// The program called `reset`.
    Reset,
    /// Receiving failed: the peer reset the connection, the network timed out, ...
    ReadFailed(io::Error),
    /// Sending failed. What the peer had sent before was still delivered.
    WriteFailed(io::Error),
    /// The handler left more input unconsumed than the limit (bytes) allows.
    InputFull {
        /// The input limit, in bytes.
        limit: usize,
    },
    /// More output was queued than the limit (bytes) allows: the peer reads too slowly.
    OutputFull {
        /// The output limit, in bytes.
        limit: usize,
    },
    /// The peer said nothing ([`Server::idle_timeout`](crate::Server::idle_timeout)).
    Idle {
        /// The deadline that passed.
        after: Duration,
    },
    /// The peer has never said anything
    /// ([`Server::first_byte_timeout`](crate::Server::first_byte_timeout)).
    NoFirstByte {
        /// The deadline that passed.
        after: Duration,
    },
    /// Output waited, and the peer did not take it
    /// ([`Server::write_stall_timeout`](crate::Server::write_stall_timeout)).
    WriteStalled {
        /// The deadline that passed.
        after: Duration,
    },
    /// After our end of the stream the peer did not come to its own
    /// ([`Server::linger`](crate::Server::linger)).
    LingerExpired {
        /// The deadline that passed.
        after: Duration,
    },
    /// Its server or client was stopped, and the deadline passed.
    Stopped,
    /// The event loop ended.
    LoopEnded,
    /// A callback of this connection panicked.
    Panicked,
}

impl CloseReason {
    /// Whether no byte was lost: all that the peer sent was given to the handler, and all that the
    /// handler sent was handed to the kernel before the end of the stream.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        matches!(self, CloseReason::PeerClosed | CloseReason::ShutDown)
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseReason::PeerClosed => f.write_str("closed by the peer"),
            CloseReason::ShutDown => f.write_str("shut down"),
            CloseReason::Unfinished { left } => {
                write!(
                    f,
                    "closed by the peer in the middle of a message, of which it sent {left} bytes"
                )
            }
            CloseReason::Rejected(e) => write!(f, "input refused: {e}"),
            CloseReason::Closed => f.write_str("closed by the program"),
            CloseReason::Reset => f.write_str("reset by the program"),
            CloseReason::ReadFailed(e) => write!(f, "receiving failed: {e}"),
            CloseReason::WriteFailed(e) => write!(f, "sending failed: {e}"),
            CloseReason::InputFull { limit } => {
                write!(f, "more than {limit} bytes of input left unconsumed")
            }
            CloseReason::OutputFull { limit } => {
                write!(f, "more than {limit} bytes of output waiting for the peer")
            }
            CloseReason::Idle { after } => write!(f, "the peer said nothing for {after:?}"),
            CloseReason::NoFirstByte { after } => {
                write!(f, "the peer said nothing within {after:?} of connecting")
            }
            CloseReason::WriteStalled { after } => {
                write!(f, "the peer took nothing of the output for {after:?}")
            }
            CloseReason::LingerExpired { after } => {
                write!(f, "the peer did not finish within {after:?} of our end")
            }
            CloseReason::Stopped => f.write_str("cut at the stop's deadline"),
            CloseReason::LoopEnded => f.write_str("the event loop ended"),
            CloseReason::Panicked => f.write_str("a callback panicked"),
        }
    }
}
