//! Options of datagram sockets: groups, broadcast, times of arrival, what the kernel joins and cuts,
//! and what it has dropped.
//!
//! The same wish is one option for IPv4 and another for IPv6, and which of them a socket takes is
//! said by its own address, not by the wish.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::str::FromStr;

use nix::net::if_::if_nametoindex;

use super::check;

/// An interface of this machine, for multicast.
///
/// ```
/// use ruduo_reactor::sys::datagram_options::Interface;
/// use std::net::Ipv4Addr;
///
/// assert_eq!(Interface::from("eth0"), Interface::Name("eth0".to_owned()));
/// assert_eq!(Interface::from("2"), Interface::Index(2));
/// assert_eq!(Interface::from("127.0.0.1"), Interface::Address(Ipv4Addr::LOCALHOST));
/// assert_eq!(Interface::default().to_string(), "the system's choice");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Interface {
    /// The one that the system's routes lead to.
    #[default]
    Any,
    /// The one with this address; for IPv4 groups only.
    Address(Ipv4Addr),
    /// By number.
    Index(u32),
    /// By name, which is looked up when it is used.
    Name(String),
}

impl Interface {
    /// Its number; 0 for whichever the system chooses.
    fn index(&self) -> io::Result<u32> {
        match self {
            Interface::Any => Ok(0),
            Interface::Index(index) => Ok(*index),
            Interface::Name(name) => if_nametoindex(&name[..]).map_err(|_| {
                io::Error::new(io::ErrorKind::NotFound, format!("there is no interface {name}"))
            }),
            Interface::Address(address) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{address} names no interface for IPv6, which goes by its name or number"),
            )),
        }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Interface::Any => f.write_str("the system's choice"),
            Interface::Address(address) => address.fmt(f),
            Interface::Index(index) => write!(f, "number {index}"),
            Interface::Name(name) => f.write_str(name),
        }
    }
}

impl From<&str> for Interface {
    fn from(text: &str) -> Interface {
        match (text.parse(), text.parse()) {
            (Ok(address), _) => Interface::Address(address),
            (_, Ok(index)) => Interface::Index(index),
            _ => Interface::Name(text.to_owned()),
        }
    }
}

impl FromStr for Interface {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Interface, Infallible> {
        Ok(text.into())
    }
}

impl From<Ipv4Addr> for Interface {
    fn from(address: Ipv4Addr) -> Interface {
        Interface::Address(address)
    }
}

impl From<u32> for Interface {
    fn from(index: u32) -> Interface {
        Interface::Index(index)
    }
}

/// Whose options a socket has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6, also if it serves IPv4 too.
    V6,
}

/// Joins a group on an interface.
///
/// # Errors
/// `NotFound` if there is no such interface, `InvalidInput` for an address that is no group's; those
/// of setsockopt(2).
pub fn join(socket: BorrowedFd<'_>, group: IpAddr, interface: &Interface) -> io::Result<()> {
    check_group(group)?;
    match group {
        IpAddr::V4(group) => set_membership_v4(socket, libc::IP_ADD_MEMBERSHIP, group, interface),
        IpAddr::V6(group) => set_membership_v6(socket, JOIN_V6, group, interface),
    }
}

/// Leaves a group again, on the same interface.
///
/// # Errors
/// As [`join`]; `AddrNotAvailable` if it was not joined.
pub fn leave(socket: BorrowedFd<'_>, group: IpAddr, interface: &Interface) -> io::Result<()> {
    check_group(group)?;
    match group {
        IpAddr::V4(group) => set_membership_v4(socket, libc::IP_DROP_MEMBERSHIP, group, interface),
        IpAddr::V6(group) => set_membership_v6(socket, LEAVE_V6, group, interface),
    }
}

fn check_group(group: IpAddr) -> io::Result<()> {
    if group.is_multicast() {
        return Ok(());
    }
    let why = format!("{group} is no multicast group: those are 224.0.0.0/4 and ff00::/8");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

#[cfg(any(target_os = "linux", target_os = "android"))]
const JOIN_V6: libc::c_int = libc::IPV6_ADD_MEMBERSHIP;
#[cfg(any(target_os = "linux", target_os = "android"))]
const LEAVE_V6: libc::c_int = libc::IPV6_DROP_MEMBERSHIP;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const JOIN_V6: libc::c_int = libc::IPV6_JOIN_GROUP;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const LEAVE_V6: libc::c_int = libc::IPV6_LEAVE_GROUP;

fn set_membership_v4(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    group: Ipv4Addr,
    interface: &Interface,
) -> io::Result<()> {
    let (imr_multiaddr, imr_interface) = match interface {
        Interface::Address(address) => (raw(group), raw(*address)),
        Interface::Any => (raw(group), raw(Ipv4Addr::UNSPECIFIED)),
        by_number => return set_membership_by_number(socket, option, group, by_number),
    };
    set(socket, libc::IPPROTO_IP, option, libc::ip_mreq { imr_multiaddr, imr_interface })
}

#[cfg(not(target_os = "netbsd"))]
fn set_membership_by_number(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    group: Ipv4Addr,
    interface: &Interface,
) -> io::Result<()> {
    let membership = libc::ip_mreqn {
        imr_multiaddr: raw(group),
        imr_address: raw(Ipv4Addr::UNSPECIFIED),
        imr_ifindex: interface.index()? as _,
    };
    set(socket, libc::IPPROTO_IP, option, membership)
}

#[cfg(target_os = "netbsd")]
fn set_membership_by_number(
    _: BorrowedFd<'_>,
    _: libc::c_int,
    _: Ipv4Addr,
    interface: &Interface,
) -> io::Result<()> {
    interface.index()?;
    Err(by_address_only())
}

fn set_membership_v6(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    group: Ipv6Addr,
    interface: &Interface,
) -> io::Result<()> {
    let membership = libc::ipv6_mreq {
        ipv6mr_multiaddr: libc::in6_addr { s6_addr: group.octets() },
        ipv6mr_interface: interface.index()? as _,
    };
    set(socket, libc::IPPROTO_IPV6, option, membership)
}

/// On which interface what is sent to groups leaves.
///
/// # Errors
/// `NotFound` if there is no such interface; those of setsockopt(2).
pub fn set_multicast_interface(
    socket: BorrowedFd<'_>,
    family: Family,
    interface: &Interface,
) -> io::Result<()> {
    match (family, interface) {
        (Family::V6, _) => {
            let index = interface.index()? as libc::c_int;
            for_v4_too(|v4| set_multicast_interface(socket, v4, interface));
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, index)
        }
        (Family::V4, Interface::Address(address)) => {
            set(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, raw(*address))
        }
        (Family::V4, by_number) => set_multicast_interface_by_number(socket, by_number),
    }
}

#[cfg(not(any(target_os = "netbsd", target_os = "openbsd")))]
fn set_multicast_interface_by_number(
    socket: BorrowedFd<'_>,
    interface: &Interface,
) -> io::Result<()> {
    let interface = libc::ip_mreqn {
        imr_multiaddr: raw(Ipv4Addr::UNSPECIFIED),
        imr_address: raw(Ipv4Addr::UNSPECIFIED),
        imr_ifindex: interface.index()? as _,
    };
    set(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, interface)
}

#[cfg(any(target_os = "netbsd", target_os = "openbsd"))]
fn set_multicast_interface_by_number(_: BorrowedFd<'_>, interface: &Interface) -> io::Result<()> {
    interface.index()?;
    Err(by_address_only())
}

#[cfg(any(target_os = "netbsd", target_os = "openbsd"))]
fn by_address_only() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "this system knows an interface for IPv4 multicast by its address only",
    )
}

/// Whether what is sent to groups is received on this machine too.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_multicast_loop(socket: BorrowedFd<'_>, family: Family, on: bool) -> io::Result<()> {
    match family {
        Family::V4 => set(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, u8::from(on)),
        Family::V6 => {
            for_v4_too(|v4| set_multicast_loop(socket, v4, on));
            let on = libc::c_int::from(on);
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, on)
        }
    }
}

/// Over how many routers what is sent to groups may go, and 1 for none.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_multicast_ttl(socket: BorrowedFd<'_>, family: Family, ttl: u8) -> io::Result<()> {
    match family {
        Family::V4 => set(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, ttl),
        Family::V6 => {
            for_v4_too(|v4| set_multicast_ttl(socket, v4, ttl));
            let hops = libc::c_int::from(ttl);
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, hops)
        }
    }
}

/// The same for what is sent to single hosts.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_ttl(socket: BorrowedFd<'_>, family: Family, ttl: u8) -> io::Result<()> {
    let hops = libc::c_int::from(ttl);
    match family {
        Family::V4 => set(socket, libc::IPPROTO_IP, libc::IP_TTL, hops),
        Family::V6 => {
            for_v4_too(|v4| set_ttl(socket, v4, ttl));
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, hops)
        }
    }
}

/// On Linux a socket of IPv6 has the options of IPv4 as well, for what it sends over that. Elsewhere
/// there are none to be set.
fn for_v4_too(set: impl FnOnce(Family) -> io::Result<()>) {
    if cfg!(target_os = "linux") {
        // It is about peers that there may be none of.
        let _ = set(Family::V4);
    }
}

/// Only what is sent to groups that this very socket has joined comes to it. (Linux delivers by
/// default what any socket of the machine has joined.) Nothing where that is so anyway.
pub fn set_own_groups_only(socket: BorrowedFd<'_>, family: Family) {
    #[cfg(target_os = "linux")]
    {
        // Kernels too old for it go on as they did.
        let _ = set(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0 as libc::c_int);
        if family == Family::V6 {
            let _ = set(socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL, 0 as libc::c_int);
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, family);
}

/// Has the kernel tell when each datagram has come: in nanoseconds on Linux, microseconds elsewhere.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_timestamps(socket: BorrowedFd<'_>) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    const OPTION: libc::c_int = libc::SO_TIMESTAMPNS;
    #[cfg(not(target_os = "linux"))]
    const OPTION: libc::c_int = libc::SO_TIMESTAMP;
    set(socket, libc::SOL_SOCKET, OPTION, 1 as libc::c_int)
}

/// Has the kernel tell to which address each datagram was sent, so that it can be answered from
/// there.
///
/// # Errors
/// Those of setsockopt(2).
pub fn set_tells_where_to(socket: BorrowedFd<'_>, family: Family) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    const OF_V4: libc::c_int = libc::IP_PKTINFO;
    #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
    const OF_V4: libc::c_int = libc::IP_RECVDSTADDR;
    let v4 = || set(socket, libc::IPPROTO_IP, OF_V4, 1 as libc::c_int);
    match family {
        Family::V4 => v4(),
        Family::V6 => {
            for_v4_too(|_| v4());
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1 as libc::c_int)
        }
    }
}

/// Has the kernel join datagrams of one peer and size that come together.
///
/// # Errors
/// Those of setsockopt(2); `Unsupported` where there is no such thing.
pub fn set_gro(socket: BorrowedFd<'_>) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    return set(socket, libc::SOL_UDP, libc::UDP_GRO, 1 as libc::c_int);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = socket;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Whether the kernel can cut what is sent into datagrams (`UDP_SEGMENT`). If so it still may not
/// on every way out.
#[must_use]
pub fn knows_gso(socket: BorrowedFd<'_>) -> bool {
    #[cfg(target_os = "linux")]
    return set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0 as libc::c_int).is_ok();
    #[cfg(not(target_os = "linux"))]
    {
        let _ = socket;
        false
    }
}

/// How many datagrams for this socket the kernel has dropped, above all for want of room in its receive
/// buffer; after the last number of 32 bits comes 0. `None` where the system does not tell: Linux does,
/// from 4.12 on.
#[must_use]
pub fn dropped(socket: BorrowedFd<'_>) -> Option<u32> {
    #[cfg(target_os = "linux")]
    {
        const DROPS: usize = libc::SK_MEMINFO_DROPS as usize;
        let mut figures = [0_u32; DROPS + 1];
        let mut len = mem::size_of_val(&figures) as libc::socklen_t;
        let start = figures.as_mut_ptr().cast();
        let (fd, level) = (socket.as_raw_fd(), libc::SOL_SOCKET);
        // SAFETY: both pointers are valid for writing, and the length says how much room there is.
        check(unsafe { libc::getsockopt(fd, level, libc::SO_MEMINFO, start, &raw mut len) })
            .ok()?;
        (len as usize == mem::size_of_val(&figures)).then_some(figures[DROPS])
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = socket;
        None
    }
}

fn raw(address: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) }
}

/// setsockopt(2) with a value that has no pointers in it.
fn set<T: Copy>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: T,
) -> io::Result<()> {
    let (start, len) = ((&raw const value).cast(), mem::size_of::<T>() as libc::socklen_t);
    // SAFETY: the pointer is valid for reading the length that goes with it.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, start, len) })?;
    Ok(())
}
