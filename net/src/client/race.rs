//! One attempt to connect: several addresses, of which the first that answers is taken.
//!
//! They race (RFC 8305, "Happy Eyeballs"): the families take turns, the next address is tried 250
//! ms after the last one or as soon as one fails, the first that answers wins, and the others are
//! closed. This file has what is to be known of one socket and of the order; [`connecting`] runs
//! the race.
//!
//! [`connecting`]: super::connecting

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use ruduo_reactor::sys::socket;
use ruduo_reactor::{TimerId, Token};

use super::Settings;
use super::failure::ConnectError;
use crate::Address;
use crate::socket_file::SocketFile;

/// "Connection Attempt Delay", RFC 8305, section 5.
pub(super) const STAGGER: Duration = Duration::from_millis(250);

/// How long to leave a Unix server alone whose queue of connections is full.
pub(super) const BUSY: Duration = Duration::from_millis(10);

#[derive(Default)]
pub(super) struct Race {
    pub(super) left: VecDeque<Address>,
    pub(super) running: Vec<(Token, Address)>,
    pub(super) tried: Vec<(Address, ConnectError)>,
    pub(super) stagger: Option<TimerId>,
}

impl Race {
    pub(super) fn new(addresses: Vec<Address>) -> Race {
        Race { left: interleave(addresses), ..Race::default() }
    }
}

/// A socket that connects, or has connected.
pub(super) struct Dialled {
    pub(super) fd: OwnedFd,
    /// If it has a path of its own.
    pub(super) file: Option<SocketFile>,
}

/// What has become of one address.
pub(super) enum Outcome {
    Connected(Dialled),
    InProgress(Dialled),
}

/// Begins to connect to one address.
pub(super) fn connect(settings: &Settings, address: &Address) -> io::Result<Outcome> {
    let Settings { limits, nodelay, local, .. } = settings;
    let fd = socket::stream(address)?;
    if matches!(address, Address::Ip(_)) {
        setsockopt(&fd, sockopt::TcpNoDelay, nodelay)?;
    }
    limits.tcp.set_on(fd.as_fd(), address)?;
    let file = match local {
        Some(local) => bind(&fd, local)?,
        None => None,
    };
    let dialled = Dialled { fd, file };
    match socket::connect(dialled.fd.as_fd(), address) {
        Ok(()) => Ok(Outcome::Connected(dialled)),
        Err(e) if e.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {
            Ok(Outcome::InProgress(dialled))
        }
        Err(e) => Err(e),
    }
}

/// Whether a server's queue of connections is full. Over a network the kernel goes on asking until
/// there is room, or a timeout. To a Unix socket it says so at once, and does not tell when there is.
pub(super) fn is_busy(error: &io::Error, address: &Address) -> bool {
    matches!(address, Address::Unix(_)) && error.kind() == io::ErrorKind::WouldBlock
}

/// Gives a socket an address of its own.
fn bind(fd: &OwnedFd, local: &Address) -> io::Result<Option<SocketFile>> {
    if let Some(path) = local.path() {
        let mut file = SocketFile::bind(fd.as_fd(), path, local)?;
        file.settle();
        return Ok(Some(file));
    }
    if matches!(local, Address::Ip(_)) {
        setsockopt(fd, sockopt::ReuseAddr, &true)?;
    }
    socket::bind(fd.as_fd(), local)?;
    Ok(None)
}

/// The other side's answer.
pub(super) fn answer(fd: &OwnedFd) -> io::Result<()> {
    // Asked once: reading SO_ERROR clears it.
    match getsockopt(fd, sockopt::SocketError)? {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Whether both ends of a connection to `address` are this socket.
pub(super) fn is_to_itself(fd: &OwnedFd, address: &Address) -> bool {
    // The peer is asked for: 0.0.0.0 and [::] stand for another address of this machine.
    let (local, peer) = (socket::local_address(fd.as_fd()), socket::peer_address(fd.as_fd()));
    matches!(address, Address::Ip(_))
        && matches!((local, peer), (Ok(local), Ok(peer)) if local == peer)
}

/// The addresses in the order in which to try them: the families take turns, beginning with that of
/// the first (RFC 8305, section 4).
fn interleave(addresses: Vec<Address>) -> VecDeque<Address> {
    let is_v6 = |address: &Address| address.ip().is_some_and(|ip| ip.is_ipv6());
    let first = addresses.first().is_some_and(is_v6);
    let (mut one, mut other): (VecDeque<_>, VecDeque<_>) =
        addresses.into_iter().partition(|address| is_v6(address) == first);
    let mut order = VecDeque::with_capacity(one.len() + other.len());
    while !one.is_empty() || !other.is_empty() {
        order.extend(one.pop_front());
        order.extend(other.pop_front());
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let order = |texts: &[&str]| {
            let addresses = texts.iter().map(|text| text.parse().unwrap()).collect();
            interleave(addresses).iter().map(Address::to_string).collect::<Vec<_>>()
        };
        let mixed = order(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"]);
        assert_eq!(mixed, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        assert_eq!(order(&["1.1.1.1:1", "[::1]:1"]), ["1.1.1.1:1", "[::1]:1"]);
        assert!(order(&[]).is_empty());
    }
}
