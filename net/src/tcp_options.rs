//! What the kernel is told to do about TCP peers that are gone without a word.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use ruduo_reactor::sys::keepalive::keep_alive;

use crate::Address;

/// How the kernel asks a peer that says nothing whether it is still there (SO_KEEPALIVE). If it is
/// not, the connection closes with [`ReadFailed`](crate::CloseReason::ReadFailed), `TimedOut`.
/// OpenBSD does not let a socket set this; there starting the server fails with `Unsupported`.
///
/// That finds machines and networks that are gone. A program that hangs is not: its kernel answers.
///
/// ```
/// use ruduo_net::Keepalive;
/// use std::time::Duration;
///
/// let patient = Keepalive { after: Duration::from_secs(600), ..Keepalive::default() };
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// After how long a silence it is asked; 60 s by default. This and `every` are whole seconds,
    /// rounded up, from 1 to 32,767.
    pub after: Duration,
    /// How long it has for an answer before it is asked again; 10 s by default.
    pub every: Duration,
    /// After how many questions without an answer it is gone; 6 by default, at most 127.
    pub times: u32,
}

impl Default for Keepalive {
    fn default() -> Keepalive {
        Keepalive { after: Duration::from_secs(60), every: Duration::from_secs(10), times: 6 }
    }
}

/// Options of TCP sockets, off unless set.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TcpOptions {
    pub(crate) keepalive: Option<Keepalive>,
    pub(crate) user_timeout: Option<Duration>,
}

impl TcpOptions {
    /// Sets them on a socket. One that listens hands them on to all that it accepts (on Linux all
    /// of them, like TCP_NODELAY), so there is no system call for each connection.
    pub(crate) fn set_on(&self, socket: BorrowedFd<'_>, address: &Address) -> io::Result<()> {
        let any = self.keepalive.is_some() || self.user_timeout.is_some();
        if any && !matches!(address, Address::Ip(_)) {
            let why = format!("keepalive and user timeout are TCP's, and {address} is not");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        if let Some(keepalive) = self.keepalive {
            set_keepalive(socket, keepalive).map_err(|e| {
                io::Error::new(e.kind(), format!("setting the socket option {keepalive:?}: {e}"))
            })?;
        }
        if let Some(timeout) = self.user_timeout {
            set_user_timeout(socket, timeout).map_err(|e| {
                io::Error::new(e.kind(), format!("setting a TCP user timeout of {timeout:?}: {e}"))
            })?;
        }
        Ok(())
    }
}

fn set_keepalive(socket: BorrowedFd<'_>, keepalive: Keepalive) -> io::Result<()> {
    let Keepalive { after, every, times } = keepalive;
    let seconds = |time: Duration| u32::try_from(time.as_millis().div_ceil(1000));
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let (after, every) = (seconds(after).map_err(too_long)?, seconds(every).map_err(too_long)?);
    keep_alive(socket, after, every, times)
}

#[cfg(target_os = "linux")]
fn set_user_timeout(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};

    let ms = u32::try_from(timeout.as_millis())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // 0 would mean the system's default.
    Ok(setsockopt(&socket, sockopt::TcpUserTimeout, &ms.max(1))?)
}

#[cfg(not(target_os = "linux"))]
fn set_user_timeout(_: BorrowedFd<'_>, _: Duration) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "TCP_USER_TIMEOUT is Linux's"))
}
