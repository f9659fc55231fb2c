//! Making the sockets: what is set before they are bound, and after.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use nix::sys::socket::{setsockopt, sockopt};
use ruduo_reactor::sys::datagram_options::{self, Family, Interface};
use ruduo_reactor::sys::socket;

use crate::socket_file::SocketFile;
use crate::{Address, Addresses};

/// What is wished for, as it was said.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) local: Option<Addresses>,
    pub(super) target: Option<Addresses>,
    pub(super) reuse_port: bool,
    pub(super) reuse_address: bool,
    pub(super) ipv6_only: bool,
    pub(super) mode: Option<u32>,
    pub(super) broadcast: bool,
    pub(super) ttl: Option<u8>,
    pub(super) multicast_ttl: Option<u8>,
    pub(super) multicast_loop: Option<bool>,
    pub(super) multicast_interface: Option<Interface>,
    pub(super) groups: Vec<(IpAddr, Interface)>,
    pub(super) timestamps: bool,
    pub(super) gro: bool,
    pub(super) gso: bool,
    pub(super) kernel_receives: Option<usize>,
    pub(super) kernel_sends: Option<usize>,
}

/// A socket that is where it should be. The file of a Unix socket goes with it.
#[derive(Debug)]
pub(super) struct Bound {
    // Closed first: a file without a socket refuses, which a newcomer takes for stale.
    // Shared for the moment only in which somebody asks the kernel what it has dropped.
    fd: Arc<OwnedFd>,
    #[expect(dead_code, reason = "held for its Drop")]
    file: Option<SocketFile>,
    pub(super) local: Address,
    /// Who it is connected to.
    pub(super) peer: Option<Address>,
    /// Whether it serves all addresses of this machine, and hears to which each datagram was sent.
    pub(super) tells_where_to: bool,
    /// Whether the kernel joins what it receives, and cuts what is sent.
    pub(super) gro: bool,
    pub(super) gso: bool,
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Bound {
    /// Whose options it has; `None` for a Unix socket.
    pub(super) fn family(&self) -> Option<Family> {
        family(&self.local)
    }

    /// For who does not keep it open.
    pub(super) fn fd(&self) -> Weak<OwnedFd> {
        Arc::downgrade(&self.fd)
    }

    pub(super) fn join(&self, group: IpAddr, interface: &Interface) -> io::Result<()> {
        datagram_options::join(self.as_fd(), group, interface)
            .map_err(|e| about_group("joining", group, interface, &e))
    }

    pub(super) fn leave(&self, group: IpAddr, interface: &Interface) -> io::Result<()> {
        datagram_options::leave(self.as_fd(), group, interface)
            .map_err(|e| about_group("leaving", group, interface, &e))
    }
}

fn about_group(what: &str, group: IpAddr, interface: &Interface, e: &io::Error) -> io::Error {
    let no_route = e.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32);
    let cure = match interface {
        Interface::Any if no_route => " (no route leads to it: name an interface)",
        _ if no_route => " (there is no such interface, or it knows no multicast)",
        _ => "",
    };
    io::Error::new(e.kind(), format!("{what} {group}, interface {interface}: {e}{cure}"))
}

fn family(address: &Address) -> Option<Family> {
    match address {
        Address::Ip(SocketAddr::V4(_)) => Some(Family::V4),
        Address::Ip(SocketAddr::V6(_)) => Some(Family::V6),
        Address::Unix(_) => None,
    }
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.into())
}

impl Options {
    /// As many sockets as there are loops, all on one port if there are several.
    pub(super) fn open(&self, loops: usize) -> io::Result<Vec<Bound>> {
        let mut all = vec![self.open_first(loops)?];
        let local = all[0].local.clone();
        while all.len() < loops {
            let sibling = self.at(Some(&local), None, loops).map_err(|e| {
                let why = format!("binding to {local} once more, for another loop: {e}");
                io::Error::new(e.kind(), why)
            })?;
            all.push(sibling);
        }
        // A datagram to a group would come once to each socket that has joined it, and be answered
        // as often.
        for (group, interface) in &self.groups {
            all[0].join(*group, interface)?;
        }
        Ok(all)
    }

    /// The first address that will do.
    fn open_first(&self, loops: usize) -> io::Result<Bound> {
        let (what, addresses) = match (&self.target, &self.local) {
            (Some(target), _) => ("connecting a datagram socket to", target),
            (None, Some(local)) => ("binding a datagram socket to", local),
            (None, None) => return Err(invalid("a datagram socket without any address")),
        };
        if self.target.is_some() && loops > 1 {
            return Err(invalid(format!(
                "{what} {addresses}: a socket that is connected is on one loop, without threads"
            )));
        }
        addresses.open(what, |address| match self.target {
            Some(_) => self.connected(address),
            None => self.at(Some(address), None, loops),
        })
    }

    fn connected(&self, target: &Address) -> io::Result<Bound> {
        let local = self.local.as_ref().map(Addresses::resolve).transpose()?;
        // Of the family that can reach the target.
        let reaches = |local: &&Address| match (local, target) {
            (Address::Ip(local), Address::Ip(target)) => local.is_ipv4() == target.is_ipv4(),
            (Address::Unix(_), Address::Unix(_)) => true,
            _ => false,
        };
        match &local {
            None => self.at(None, Some(target), 1),
            Some(all) => match all.iter().find(reaches) {
                Some(local) => self.at(Some(local), Some(target), 1),
                None => Err(invalid(format!("{} is an address of another kind", all[0]))),
            },
        }
    }

    fn at(
        &self,
        local: Option<&Address>,
        target: Option<&Address>,
        loops: usize,
    ) -> io::Result<Bound> {
        let Some(address) = local.or(target) else {
            return Err(invalid("a datagram socket without any address"));
        };
        let fd = socket::datagram(address)?;
        let family = family(address);
        match family {
            Some(family) => self.prepare(&fd, family, loops)?,
            None if loops > 1 => {
                return Err(invalid("a Unix socket is on one loop, without threads"));
            }
            None => self.refuse_what_is_of_the_internet()?,
        }
        if let Some(size) = self.kernel_receives {
            setsockopt(&fd, sockopt::RcvBuf, &size)?;
        }
        if let Some(size) = self.kernel_sends {
            setsockopt(&fd, sockopt::SndBuf, &size)?;
        }
        let file = match local {
            Some(Address::Unix(_)) => self.bind_name(&fd, address)?,
            Some(local) => {
                socket::bind(fd.as_fd(), local)?;
                None
            }
            None => None,
        };
        if let Some(target) = target {
            socket::connect(fd.as_fd(), target)?;
        }
        let local = socket::local_address(fd.as_fd())?;
        let gro = self.gro && wished("UDP_GRO", datagram_options::set_gro(fd.as_fd()));
        let gso = self.gso && datagram_options::knows_gso(fd.as_fd());
        // Elsewhere there is but one address that an answer can leave from.
        let tells_where_to = match family {
            Some(family) if local.ip().is_some_and(|ip| ip.is_unspecified()) => {
                let outcome = datagram_options::set_tells_where_to(fd.as_fd(), family);
                wished("knowing where datagrams are sent to", outcome)
            }
            _ => false,
        };
        let fd = Arc::new(fd);
        Ok(Bound { fd, file, local, peer: target.cloned(), tells_where_to, gro, gso })
    }

    fn bind_name(&self, fd: &OwnedFd, address: &Address) -> io::Result<Option<SocketFile>> {
        let Some(path) = address.path() else {
            socket::bind(fd.as_fd(), address)?;
            return Ok(None);
        };
        let mut file = SocketFile::bind(fd.as_fd(), path, address)?;
        if let Some(mode) = self.mode {
            file.set_mode(mode)?;
        }
        file.settle();
        Ok(Some(file))
    }

    fn prepare(&self, fd: &OwnedFd, family: Family, loops: usize) -> io::Result<()> {
        if self.reuse_address {
            setsockopt(fd, sockopt::ReuseAddr, &true)?;
        }
        if self.reuse_port || loops > 1 {
            share_port(fd)?;
        }
        if family == Family::V6 {
            // The system's default differs from one to the next.
            setsockopt(fd, sockopt::Ipv6V6Only, &self.ipv6_only)?;
        }
        if self.broadcast {
            setsockopt(fd, sockopt::Broadcast, &true)?;
        }
        let fd = fd.as_fd();
        datagram_options::set_own_groups_only(fd, family);
        if let Some(ttl) = self.ttl {
            datagram_options::set_ttl(fd, family, ttl)?;
        }
        if let Some(ttl) = self.multicast_ttl {
            datagram_options::set_multicast_ttl(fd, family, ttl)?;
        }
        if let Some(on) = self.multicast_loop {
            datagram_options::set_multicast_loop(fd, family, on)?;
        }
        if let Some(interface) = &self.multicast_interface {
            datagram_options::set_multicast_interface(fd, family, interface).map_err(|e| {
                let why = format!("sending to groups by interface {interface}: {e}");
                io::Error::new(e.kind(), why)
            })?;
        }
        if self.timestamps {
            datagram_options::set_timestamps(fd)?;
        }
        Ok(())
    }

    fn refuse_what_is_of_the_internet(&self) -> io::Result<()> {
        let said = self.ipv6_only
            || self.broadcast
            || self.ttl.is_some()
            || self.multicast_ttl.is_some()
            || self.multicast_loop.is_some()
            || self.multicast_interface.is_some()
            || !self.groups.is_empty();
        if said {
            return Err(invalid("broadcast, multicast and TTL are not for Unix sockets"));
        }
        Ok(())
    }
}

/// Where the system spreads what comes among several sockets of a port.
fn share_port(fd: &OwnedFd) -> io::Result<()> {
    #[cfg(target_os = "freebsd")]
    setsockopt(fd, sockopt::ReusePortLb, &true)?;
    #[cfg(not(target_os = "freebsd"))]
    setsockopt(fd, sockopt::ReusePort, &true)?;
    Ok(())
}

/// What is nice to have.
fn wished(what: impl Display, outcome: io::Result<()>) -> bool {
    if let Err(e) = &outcome {
        log::debug!("without {what}: {e}");
    }
    outcome.is_ok()
}

/// What a socket of IPv6 takes for an address of IPv4.
pub(super) fn mapped(family: Option<Family>, address: &Address) -> Option<Address> {
    match (family, address) {
        (Some(Family::V6), Address::Ip(SocketAddr::V4(v4))) => {
            let ip: Ipv6Addr = Ipv4Addr::to_ipv6_mapped(v4.ip());
            Some(Address::Ip((ip, v4.port()).into()))
        }
        _ => None,
    }
}
