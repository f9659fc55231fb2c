//! Why something was not sent.

use std::error::Error;
use std::fmt;
use std::io;

/// Why something was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SendError {
    /// The connection (or socket) is over, or the program has shut it down.
    Closed,
    /// The output limit does not allow it: the peer reads too slowly.
    Full,
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Closed => "sending on what is over or shut down",
            SendError::Full => "sending more than the output limit allows",
        })
    }
}

impl Error for SendError {}

impl From<SendError> for io::Error {
    fn from(e: SendError) -> io::Error {
        let kind = match e {
            SendError::Closed => io::ErrorKind::NotConnected,
            SendError::Full => io::ErrorKind::WouldBlock,
        };
        io::Error::new(kind, e)
    }
}
