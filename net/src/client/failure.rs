//! Why a connection could not be made.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use nix::errno::Errno;

use crate::Address;

/// An attempt to connect has failed: given to
/// [`Client::on_connect_failed`](crate::Client::on_connect_failed).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectFailure {
    /// What was to be connected to, as the program wrote it.
    pub target: String,
    /// Why; of several addresses, the reason of the first.
    pub error: ConnectError,
    /// The addresses that were tried, in this order, each with its own reason.
    pub tried: Vec<(Address, ConnectError)>,
    /// How many attempts in a row have failed now.
    pub attempt: u32,
    /// When it is tried again; never if `None`.
    pub retry_in: Option<Duration>,
}

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there, and the other side says so.
    Refused,
    /// No way leads there: the network or the host cannot be reached.
    Unreachable,
    /// No answer within the connect timeout, or the kernel's own.
    TimedOut,
    /// The connection was one to itself: the kernel had chosen, as our own port, the very port to
    /// connect to, at which nobody listened (a simultaneous open, RFC 9293, 3.5).
    SelfConnected,
    /// No port of our own is left for this address, or the one asked for cannot be had.
    AddressExhausted,
    /// A firewall, or the permissions of a Unix socket's file, forbid it.
    PermissionDenied,
    /// The name could not be resolved; what the resolver said.
    NotResolved(String),
    /// Something else; what the system said.
    Other(io::ErrorKind, String),
}

impl ConnectError {
    pub(super) fn of(error: &io::Error) -> ConnectError {
        match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::ECONNREFUSED => ConnectError::Refused,
            Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::ENETDOWN | Errno::EHOSTDOWN => {
                ConnectError::Unreachable
            }
            Errno::ETIMEDOUT => ConnectError::TimedOut,
            Errno::EADDRNOTAVAIL => ConnectError::AddressExhausted,
            Errno::EACCES | Errno::EPERM => ConnectError::PermissionDenied,
            _ => ConnectError::Other(error.kind(), error.to_string()),
        }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectError::Refused => f.write_str("nobody listens there"),
            ConnectError::Unreachable => f.write_str("it cannot be reached"),
            ConnectError::TimedOut => f.write_str("no answer in time"),
            ConnectError::SelfConnected => f.write_str("it was a connection to itself"),
            ConnectError::AddressExhausted => {
                f.write_str("no local port is left (check 'net.ipv4.ip_local_port_range')")
            }
            ConnectError::PermissionDenied => f.write_str("it is not permitted"),
            ConnectError::NotResolved(why) | ConnectError::Other(_, why) => f.write_str(why),
        }
    }
}

impl Error for ConnectError {}

impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connecting to {}: {}", self.target, self.error)?;
        match self.retry_in {
            Some(delay) => write!(f, "; attempt {} in {delay:.1?}", self.attempt + 1),
            None => Ok(()),
        }
    }
}

impl Error for ConnectFailure {}
