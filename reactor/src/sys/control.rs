//! What goes with a datagram beside its bytes, cmsg(3): when it came and to which of our addresses,
//! how large the pieces are that the kernel joined or is to cut, and from where it is to leave.

use std::fmt;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

/// Room for all of it, as the kernel writes and reads it. Linux has most to tell, of an IPv4 datagram
/// on a socket of IPv6: twice where it came to (32 and 40 bytes), a time (32) and a size (24).
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control([u8; 160]);

pub(super) const NO_CONTROL: Control = Control([0; 160]);

/// An address of ours from which something is to leave, as the kernel is told it: nothing, an IPv4
/// address, or an IPv6 address and the number of its interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    bytes: [u8; V6],
    len: u8,
}

const V4: usize = 4;
const V6: usize = 20;

impl Source {
    fn v4(ip: Ipv4Addr) -> Source {
        if !is_a_hosts(ip.into()) {
            return Source::default();
        }
        let mut bytes = [0; V6];
        bytes[..V4].copy_from_slice(&ip.octets());
        Source { bytes, len: V4 as u8 }
    }

    fn v6(ip: Ipv6Addr, interface: u32) -> Source {
        if !is_a_hosts(ip.into()) {
            return Source::default();
        }
        // Elsewhere the routes say it, as they do without us.
        let interface = if ip.is_unicast_link_local() { interface } else { 0 };
        let mut bytes = [0; V6];
        bytes[..16].copy_from_slice(&ip.octets());
        bytes[16..].copy_from_slice(&interface.to_ne_bytes());
        Source { bytes, len: V6 as u8 }
    }

    /// The bytes of it: empty for none.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Not so a group or a broadcast.
fn is_a_hosts(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    }
}

impl Control {
    pub(super) const LEN: usize = mem::size_of::<Control>();

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.0.as_mut_ptr().cast()
    }

    /// Has a message leave from an address of ours: a [`Source`]'s bytes, anything else is none.
    pub(super) fn attach_source(&mut self, header: &mut libc::msghdr, source: &[u8]) {
        if let Ok(ip) = source.try_into() {
            let ip = libc::in_addr { s_addr: u32::from_ne_bytes(ip) };
            self.push(header, libc::IPPROTO_IP, SEND_FROM, send_from(ip));
        } else if let Some((ip, interface)) = source.split_first_chunk()
            && let Ok(interface) = interface.try_into()
        {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: *ip },
                ipi6_ifindex: u32::from_ne_bytes(interface),
            };
            self.push(header, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
    }

    /// Has a message cut into datagrams of that size.
    #[cfg(target_os = "linux")]
    pub(super) fn attach_segment(&mut self, header: &mut libc::msghdr, size: usize) {
        self.push(header, libc::SOL_UDP, libc::UDP_SEGMENT, size as u16);
    }

    /// Nobody joins pieces here; if somebody does they are one datagram.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn attach_segment(&mut self, _: &mut libc::msghdr, _: usize) {}

    /// Adds one thing behind those that there are, as far as there is room. The header, which says
    /// how many those are, is pointed here later.
    fn push<T: Copy>(
        &mut self,
        header: &mut libc::msghdr,
        level: libc::c_int,
        kind: libc::c_int,
        value: T,
    ) {
        let used: usize = header.msg_controllen as _;
        let len = mem::size_of::<T>() as libc::c_uint;
        // SAFETY: it only computes.
        let space = unsafe { libc::CMSG_SPACE(len) } as usize;
        let Some(room) = self.0.get_mut(used..used + space) else { return };
        header.msg_controllen = (used + space) as _;
        // SAFETY: all-zero is a valid cmsghdr: it is integers.
        let mut about: libc::cmsghdr = unsafe { mem::zeroed() };
        about.cmsg_level = level;
        about.cmsg_type = kind;
        // SAFETY: it only computes.
        about.cmsg_len = unsafe { libc::CMSG_LEN(len) } as _;
        let place = room.as_mut_ptr().cast::<libc::cmsghdr>();
        // SAFETY: the room holds a header and the value; it is aligned, for it begins where room for
        // headers does, a multiple of their alignment behind the beginning of ours.
        unsafe { place.write(about) };
        // SAFETY: it only computes; the header is in that room.
        let data = unsafe { libc::CMSG_DATA(place) };
        // SAFETY: behind the header there is room for the value, perhaps unaligned.
        unsafe { data.cast::<T>().write_unaligned(value) };
    }
}

/// How an address to send from is told over IPv4.
#[cfg(any(target_os = "linux", target_vendor = "apple"))]
const SEND_FROM: libc::c_int = libc::IP_PKTINFO;
/// There the option to be told where something came to is the one to say from where it leaves.
#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
const SEND_FROM: libc::c_int = libc::IP_RECVDSTADDR;

#[cfg(any(target_os = "linux", target_vendor = "apple"))]
fn send_from(ip: libc::in_addr) -> libc::in_pktinfo {
    let nothing = libc::in_addr { s_addr: 0 };
    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: ip, ipi_addr: nothing }
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn send_from(ip: libc::in_addr) -> libc::in_addr {
    ip
}

/// What the kernel has told beside a datagram. It is read when somebody asks for it.
#[derive(Clone, Copy)]
pub struct Beside<'a>(Option<&'a libc::msghdr>);

impl<'a> Beside<'a> {
    /// # Safety
    /// The header's control data is what the kernel has written to room that is valid, and does not
    /// change, for as long as the header is borrowed.
    pub(super) unsafe fn new(header: &'a libc::msghdr) -> Beside<'a> {
        Beside((header.msg_controllen > 0).then_some(header))
    }

    /// When the kernel got it, if that was asked for.
    #[must_use]
    pub fn time(self) -> Option<SystemTime> {
        self.each().find_map(|(level, kind, control)| match (level, kind) {
            #[cfg(target_os = "linux")]
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                let stamp: libc::timespec = data(control);
                since_epoch(stamp.tv_sec as _, stamp.tv_nsec as u32)
            }
            #[cfg(not(target_os = "linux"))]
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMP) => {
                let stamp: libc::timeval = data(control);
                since_epoch(stamp.tv_sec as _, stamp.tv_usec as u32 * 1000)
            }
            _ => None,
        })
    }

    /// If it is several datagrams, the size of each; the last one may be smaller.
    #[cfg(target_os = "linux")]
    #[must_use]
    pub fn segment(self) -> Option<usize> {
        self.each().find_map(|(level, kind, control)| {
            let size: libc::c_int = match (level, kind) {
                (libc::SOL_UDP, libc::UDP_GRO) => data(control),
                _ => return None,
            };
            usize::try_from(size).ok().filter(|size| *size > 0)
        })
    }

    /// Only Linux joins datagrams.
    #[cfg(not(target_os = "linux"))]
    #[must_use]
    pub fn segment(self) -> Option<usize> {
        None
    }

    /// To which address it was sent, and from which of ours it is to be answered, if that was asked
    /// for.
    #[must_use]
    pub fn sent_to(self) -> Option<(IpAddr, Source)> {
        let mut told: Option<(IpAddr, Source)> = None;
        for (level, kind, control) in self.each() {
            match (level, kind) {
                #[cfg(any(target_os = "linux", target_vendor = "apple"))]
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = data(control);
                    let to = ipv4(info.ipi_addr);
                    // For a group or a broadcast Linux knows what of ours that came to.
                    let linux = cfg!(target_os = "linux");
                    let ours = if linux { ipv4(info.ipi_spec_dst) } else { to };
                    told = Some((to.into(), Source::v4(ours)));
                }
                #[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
                (libc::IPPROTO_IP, libc::IP_RECVDSTADDR) => {
                    let to = ipv4(data(control));
                    told = Some((to.into(), Source::v4(to)));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = data(control);
                    let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    // Of an address of IPv4 the other one tells more, if there is one.
                    if told.is_none() || ip.to_ipv4_mapped().is_none() {
                        let source = Source::v6(ip, info.ipi6_ifindex);
                        told = Some((IpAddr::V6(ip).to_canonical(), source));
                    }
                }
                _ => {}
            }
        }
        told
    }

    /// Level and type of each thing, and where it stands.
    fn each(self) -> impl Iterator<Item = (libc::c_int, libc::c_int, *const libc::cmsghdr)> {
        let first = self.0.map_or(std::ptr::null_mut(), |header| {
            // SAFETY: the header's control data is valid, as `new` was promised.
            unsafe { libc::CMSG_FIRSTHDR(header) }
        });
        let there = |next: *mut libc::cmsghdr| (!next.is_null()).then_some(next.cast_const());
        let all = std::iter::successors(there(first), move |control| {
            // SAFETY: `control` is one of this header's.
            there(unsafe { libc::CMSG_NXTHDR(self.0?, *control) })
        });
        all.map(|control| {
            // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole header, in aligned room
            // that lasts as long as the message's header is borrowed.
            let about = unsafe { &*control };
            (about.cmsg_level, about.cmsg_type, control)
        })
    }
}

impl fmt::Debug for Beside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = f.debug_struct("Beside");
        told.field("time", &self.time()).field("sent_to", &self.sent_to()).finish()
    }
}

/// What a control header is followed by, which the caller knows by its type.
fn data<T: Copy>(control: *const libc::cmsghdr) -> T {
    // SAFETY: the header is in room of ours.
    let start = unsafe { libc::CMSG_DATA(control) };
    // SAFETY: the kernel has written a value of this type behind the header, perhaps unaligned.
    unsafe { start.cast::<T>().read_unaligned() }
}

fn ipv4(address: libc::in_addr) -> Ipv4Addr {
    Ipv4Addr::from(address.s_addr.to_ne_bytes())
}

fn since_epoch(seconds: i64, nanos: u32) -> Option<SystemTime> {
    let seconds = u64::try_from(seconds).ok()?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    const GROUP: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 255);
    const OURS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

    fn v4(control: &mut Control, header: &mut libc::msghdr) {
        let raw = |ip: Ipv4Addr| libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
        let info =
            libc::in_pktinfo { ipi_ifindex: 7, ipi_spec_dst: raw(OURS), ipi_addr: raw(GROUP) };
        control.push(header, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
    }

    fn v6(control: &mut Control, header: &mut libc::msghdr, ip: Ipv6Addr) {
        let ipi6_addr = libc::in6_addr { s6_addr: ip.octets() };
        let info = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 7 };
        control.push(header, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
    }

    /// What is read of what the kernel may have told.
    fn told(tell: impl FnOnce(&mut Control, &mut libc::msghdr)) -> Option<(IpAddr, Source)> {
        let mut control = NO_CONTROL;
        // SAFETY: all-zero is a valid msghdr.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        tell(&mut control, &mut header);
        header.msg_control = control.as_mut_ptr();
        // SAFETY: the header points at control data that outlives it, and says how long it is.
        unsafe { Beside::new(&header) }.sent_to()
    }

    #[test]
    fn of_two_that_tell_the_same_the_one_that_knows_our_address_counts() {
        let expected = Some((IpAddr::from(GROUP), Source::v4(OURS)));
        let mapped = GROUP.to_ipv6_mapped();
        assert_eq!(told(v4), expected);
        for v4_first in [false, true] {
            let both = |control: &mut Control, header: &mut libc::msghdr| {
                if v4_first {
                    v4(control, header);
                }
                v6(control, header, mapped);
                if !v4_first {
                    v4(control, header);
                }
            };
            assert_eq!(told(both), expected);
        }
        let alone = told(|control, header| v6(control, header, mapped));
        assert_eq!(alone.unwrap().0, IpAddr::from(GROUP));
        assert_eq!(told(|_, _| {}), None);
    }

    /// Others leave by the routes.
    #[test]
    fn only_an_address_of_an_interface_is_answered_there() {
        for (ip, interface) in [("fe80::1", 7_u32), ("fd77::1", 0)] {
            let ip: Ipv6Addr = ip.parse().unwrap();
            let (to, source) = told(|control, header| v6(control, header, ip)).unwrap();
            assert_eq!(to, IpAddr::from(ip));
            assert_eq!(source.as_bytes(), [&ip.octets()[..], &interface.to_ne_bytes()].concat());
        }
        let group = told(|control, header| v6(control, header, "ff02::1".parse().unwrap()));
        assert!(group.unwrap().1.as_bytes().is_empty());
    }
}
