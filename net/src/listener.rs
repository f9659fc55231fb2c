//! Making a listening socket.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, getsockname,
    listen, setsockopt, socket, sockopt,
};

use crate::connection::socket_addr;

/// What must be set before a socket listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListenOptions {
    pub(crate) reuse_port: bool,
    pub(crate) ipv6_only: bool,
    pub(crate) nodelay: bool,
    pub(crate) backlog: u16,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions { reuse_port: false, ipv6_only: false, nodelay: true, backlog: 4096 }
    }
}

/// Listens on the first of the addresses that can be bound.
pub(crate) fn listen_on(
    addresses: impl ToSocketAddrs,
    options: ListenOptions,
) -> io::Result<OwnedFd> {
    let addresses = addresses.to_socket_addrs().map_err(|e| {
        io::Error::new(e.kind(), format!("resolving the address to listen on: {e}"))
    })?;
    let nothing = || Err(io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on"));
    let mut outcome = nothing();
    for address in addresses {
        outcome = listen_at(address, options)
            .map_err(|e| io::Error::new(e.kind(), format!("listening on {address}: {e}")));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

fn listen_at(address: SocketAddr, options: ListenOptions) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    // A restarted server must not wait for the TIME_WAIT of its predecessor's connections.
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if options.reuse_port {
        setsockopt(&fd, sockopt::ReusePort, &true)?;
    }
    if address.is_ipv6() {
        // The system's default differs from one to the next.
        setsockopt(&fd, sockopt::Ipv6V6Only, &options.ipv6_only)?;
    }
    prepare(&fd, options)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    let backlog = Backlog::new(i32::from(options.backlog)).unwrap_or(Backlog::MAXCONN);
    listen(&fd, backlog)?;
    Ok(fd)
}

/// Sets what accepted sockets inherit, so that it costs no system call for each of them.
pub(crate) fn prepare(fd: &OwnedFd, options: ListenOptions) -> io::Result<()> {
    Ok(setsockopt(fd, sockopt::TcpNoDelay, &options.nodelay)?)
}

/// The address a socket is bound to: the real port, also after binding port 0.
pub(crate) fn local_addr(fd: &OwnedFd) -> io::Result<SocketAddr> {
    let address = getsockname::<SockaddrStorage>(fd.as_raw_fd())?;
    socket_addr(&address).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "the listener is not an IP socket")
    })
}
