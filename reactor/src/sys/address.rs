//! Where a socket is: an Internet address and port, or the name of a Unix socket.
//!
//! One type for all of them, for users print it, parse it and compare it, and what binds, connects
//! and accepts does not care which it is. The kernel's form is `sockaddr`, a structure per family
//! behind one pointer; `encode` and `decode` are the only ones that look inside.

use std::error::Error;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::mem::{self, MaybeUninit, offset_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The address of a socket.
///
/// It prints as what it can be parsed from:
///
/// ```
/// use ruduo_reactor::sys::address::Address;
///
/// for text in ["127.0.0.1:2007", "[::1]:2007", "unix:/run/x.sock", "unix:@name"] {
///     let address: Address = text.parse()?;
///     assert_eq!(address.to_string(), text);
/// }
/// # Ok::<(), ruduo_reactor::sys::address::ParseAddressError>(())
/// ```
///
/// Names of hosts are no addresses; they stand for some, and finding them takes time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// IPv4 or IPv6, and a port.
    Ip(SocketAddr),
    /// A Unix socket of this machine.
    Unix(UnixAddress),
}

/// The address of a Unix socket, unix(7).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UnixAddress {
    /// A file: `unix:/run/x.sock`. Who may connect is said by its permissions.
    Path(PathBuf),
    /// A name that is no file and goes with the last socket that has it: `unix:@name`. Linux only;
    /// everybody on the machine (in the network namespace) may connect.
    Abstract(Vec<u8>),
    /// None, as clients mostly have: `unix:`. Nobody can connect to it.
    Unnamed,
}

/// Why a text is no [`Address`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseAddressError {
    text: String,
}

impl Address {
    /// The Internet address, if it is one.
    #[must_use]
    pub fn as_ip(&self) -> Option<SocketAddr> {
        match self {
            Address::Ip(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }

    /// The host, if it is an Internet address.
    #[must_use]
    pub fn ip(&self) -> Option<IpAddr> {
        self.as_ip().map(|address| address.ip())
    }

    /// The port, if it is an Internet address.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.as_ip().map(|address| address.port())
    }

    /// The file of a Unix socket, if it has one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Address::Unix(UnixAddress::Path(path)) => Some(path),
            _ => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(address) => address.fmt(f),
            Address::Unix(address) => address.fmt(f),
        }
    }
}

/// What is not text, or has control characters in it, is printed with escapes: whoever connects
/// chooses a name, but not what stands in the next line of our log.
impl fmt::Display for UnixAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, name) = match self {
            UnixAddress::Path(path) => match path.as_os_str().as_bytes() {
                // Or else it would read as an abstract one.
                name @ [b'@', ..] => ("unix:./", name),
                name => ("unix:", name),
            },
            UnixAddress::Abstract(name) => ("unix:@", &name[..]),
            UnixAddress::Unnamed => return f.write_str("unix:"),
        };
        f.write_str(prefix)?;
        match std::str::from_utf8(name) {
            Ok(text) if !text.contains(char::is_control) => f.write_str(text),
            _ => name.escape_ascii().fmt(f),
        }
    }
}

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Address, ParseAddressError> {
        match text.strip_prefix("unix:") {
            Some(name) => Ok(Address::Unix(match name.strip_prefix('@') {
                Some(name) => UnixAddress::Abstract(name.as_bytes().to_vec()),
                None if name.is_empty() => UnixAddress::Unnamed,
                None => UnixAddress::Path(name.into()),
            })),
            None => text
                .parse()
                .map(Address::Ip)
                .map_err(|_| ParseAddressError { text: text.to_owned() }),
        }
    }
}

impl fmt::Display for ParseAddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no address; one looks like 127.0.0.1:2007, [::1]:2007, unix:/run/x.sock or \
             unix:@name",
            self.text
        )
    }
}

impl Error for ParseAddressError {}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Ip(address)
    }
}

impl From<UnixAddress> for Address {
    fn from(address: UnixAddress) -> Address {
        Address::Unix(address)
    }
}

impl PartialEq<SocketAddr> for Address {
    fn eq(&self, other: &SocketAddr) -> bool {
        self.as_ip().as_ref() == Some(other)
    }
}

/// For the standard library's functions, which know Internet addresses only.
impl ToSocketAddrs for Address {
    type Iter = std::option::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        match self {
            Address::Ip(address) => Ok(Some(*address).into_iter()),
            Address::Unix(_) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{self} is not an Internet address"),
            )),
        }
    }
}

/// Where the name of a Unix socket begins: behind the family.
const NAME: usize = offset_of!(libc::sockaddr_un, sun_path);

/// How long it may be.
const NAME_MAX: usize = mem::size_of::<libc::sockaddr_un>() - NAME;

/// An address as the kernel has it.
pub(super) struct RawAddress {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl RawAddress {
    /// Room for the kernel to write one.
    pub(super) fn empty() -> RawAddress {
        // SAFETY: all-zero is a valid sockaddr_storage: no family, no contents.
        let storage = unsafe { MaybeUninit::<libc::sockaddr_storage>::zeroed().assume_init() };
        RawAddress { storage, len: mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    /// Lets the kernel write another one over it.
    pub(super) fn make_room(&mut self) {
        self.len = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    }

    pub(super) fn family(&self) -> libc::c_int {
        libc::c_int::from(self.storage.ss_family)
    }

    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    pub(super) fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// As many bytes of it as its length says.
    pub(super) fn as_bytes(&self) -> &[u8] {
        let len = (self.len as usize).min(mem::size_of::<libc::sockaddr_storage>());
        // SAFETY: so many bytes of the storage are initialised: it was all zero once, and borrowed
        // with `self`.
        unsafe { std::slice::from_raw_parts((&raw const self.storage).cast(), len) }
    }

    /// The reverse. Bytes beyond those that any address has are left out.
    pub(super) fn from_bytes(bytes: &[u8]) -> RawAddress {
        let mut raw = RawAddress::empty();
        let len = bytes.len().min(mem::size_of::<libc::sockaddr_storage>());
        let to = (&raw mut raw.storage).cast();
        // SAFETY: the storage has room for so many bytes, any of which are valid in it, and is not
        // part of what they are copied from.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, len) };
        raw.len = len as libc::socklen_t;
        raw
    }

    /// What calls that return an address are given: where to write, and how much.
    pub(super) fn as_mut_ptrs(&mut self) -> (*mut libc::sockaddr, *mut libc::socklen_t) {
        ((&raw mut self.storage).cast(), &raw mut self.len)
    }

    /// # Errors
    /// `InvalidInput` for a name of a Unix socket that is too long or has a NUL in it, and for
    /// none; `Unsupported` for an abstract one where the system has none.
    pub(super) fn encode(address: &Address) -> io::Result<RawAddress> {
        match address {
            Address::Ip(SocketAddr::V4(v4)) => Ok(RawAddress::from_v4(v4)),
            Address::Ip(SocketAddr::V6(v6)) => Ok(RawAddress::from_v6(v6)),
            Address::Unix(UnixAddress::Path(path)) => {
                RawAddress::from_path(path.as_os_str().as_bytes())
            }
            Address::Unix(UnixAddress::Abstract(name)) => RawAddress::from_abstract(name),
            Address::Unix(UnixAddress::Unnamed) => Err(invalid("\"unix:\" lacks a name".into())),
        }
    }

    /// Fills in the structure of one family.
    fn with<S>(family: libc::c_int, fill: impl FnOnce(&mut S)) -> RawAddress {
        const { assert!(mem::size_of::<S>() <= mem::size_of::<libc::sockaddr_storage>()) };
        const { assert!(mem::align_of::<S>() <= mem::align_of::<libc::sockaddr_storage>()) };
        let mut raw = RawAddress::empty();
        raw.len = mem::size_of::<S>() as libc::socklen_t;
        raw.storage.ss_family = family as libc::sa_family_t;
        // SAFETY: a sockaddr_storage is large enough and aligned for the structure of any family,
        // as asserted, and all-zero but for the family is a valid one of each.
        fill(unsafe { &mut *(&raw mut raw.storage).cast::<S>() });
        #[cfg(any(
            target_vendor = "apple",
            target_os = "freebsd",
            target_os = "dragonfly",
            target_os = "netbsd",
            target_os = "openbsd"
        ))]
        {
            raw.storage.ss_len = raw.len as u8;
        }
        raw
    }

    fn from_v4(v4: &SocketAddrV4) -> RawAddress {
        RawAddress::with(libc::AF_INET, |raw: &mut libc::sockaddr_in| {
            raw.sin_port = v4.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
        })
    }

    fn from_v6(v6: &SocketAddrV6) -> RawAddress {
        RawAddress::with(libc::AF_INET6, |raw: &mut libc::sockaddr_in6| {
            raw.sin6_port = v6.port().to_be();
            raw.sin6_flowinfo = v6.flowinfo();
            raw.sin6_addr.s6_addr = v6.ip().octets();
            raw.sin6_scope_id = v6.scope_id();
        })
    }

    fn from_path(path: &[u8]) -> io::Result<RawAddress> {
        if path.is_empty() || path.contains(&0) {
            return Err(invalid("a path of a socket is not empty and has no NUL in it".into()));
        }
        // The NUL at its end needs room too: not on Linux, but for who reads it as a C string.
        RawAddress::from_name(path, NAME_MAX - 1, path.len() + 1)
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn from_abstract(name: &[u8]) -> io::Result<RawAddress> {
        if name.is_empty() {
            // The kernel would choose a name, which nobody knows.
            return Err(invalid("\"unix:@\" lacks a name".into()));
        }
        let mut with_nul = vec![0];
        with_nul.extend_from_slice(name);
        // Its length is what ends it; NULs are part of the name.
        RawAddress::from_name(&with_nul, NAME_MAX, with_nul.len())
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn from_abstract(_: &[u8]) -> io::Result<RawAddress> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this system has no abstract names for Unix sockets; use a path",
        ))
    }

    fn from_name(name: &[u8], max: usize, counted: usize) -> io::Result<RawAddress> {
        if name.len() > max {
            return Err(invalid(format!(
                "a name of a Unix socket has at most {max} bytes, and this one {}",
                name.len()
            )));
        }
        let mut raw = RawAddress::with(libc::AF_UNIX, |raw: &mut libc::sockaddr_un| {
            for (to, from) in raw.sun_path.iter_mut().zip(name) {
                *to = *from as libc::c_char;
            }
        });
        raw.len = (NAME + counted) as libc::socklen_t;
        Ok(raw)
    }

    /// What the kernel wrote. A family without addresses of its own reads as a Unix socket without
    /// name: accept(2) returns nothing at all for some.
    ///
    /// Never inline, for then it would be written to a place of its own and copied.
    #[inline(never)]
    pub(super) fn decode(&self) -> Address {
        match self.family() {
            libc::AF_INET => {
                // SAFETY: the family says that it is a sockaddr_in, which fits and is aligned.
                let v4 = unsafe { &*self.as_ptr().cast::<libc::sockaddr_in>() };
                let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
                Address::Ip(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)).into())
            }
            libc::AF_INET6 => {
                // SAFETY: as above, for sockaddr_in6.
                let v6 = unsafe { &*self.as_ptr().cast::<libc::sockaddr_in6>() };
                let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
                let port = u16::from_be(v6.sin6_port);
                Address::Ip(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id).into())
            }
            _ => Address::Unix(self.decode_name()),
        }
    }

    /// A function of its own, for [`RawAddress::decode`] needs no registers for Internet addresses.
    #[inline(never)]
    fn decode_name(&self) -> UnixAddress {
        let len = (self.len as usize).saturating_sub(NAME).min(NAME_MAX);
        // SAFETY: sockaddr_un fits into the storage and has no invalid contents.
        let unix = unsafe { &*self.as_ptr().cast::<libc::sockaddr_un>() };
        let name: Vec<u8> = unix.sun_path[..len].iter().map(|byte| *byte as u8).collect();
        match name.split_first() {
            Some((0, rest)) if cfg!(any(target_os = "linux", target_os = "android")) => {
                UnixAddress::Abstract(rest.to_vec())
            }
            None | Some((0, _)) => UnixAddress::Unnamed,
            Some(_) => {
                let path = name.split(|byte| *byte == 0).next().unwrap_or_default();
                UnixAddress::Path(OsStr::from_bytes(path).into())
            }
        }
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(text: &str) {
        let address: Address = text.parse().unwrap();
        assert_eq!(address.to_string(), text);
        assert_eq!(RawAddress::encode(&address).unwrap().decode(), address);
    }

    #[test]
    fn addresses_go_to_the_kernel_and_come_back() {
        for text in [
            "127.0.0.1:2007",
            "255.255.255.255:65535",
            "[::1]:2007",
            "[fe80::1%3]:80",
            "[2001:db8::7]:0",
            "unix:/run/x.sock",
            "unix:relative/x",
            #[cfg(target_os = "linux")]
            "unix:@name",
        ] {
            there_and_back(text);
        }
    }

    #[test]
    fn a_path_does_not_print_as_an_abstract_name() {
        let path = Address::Unix(UnixAddress::Path("@x".into()));
        assert_eq!(path.to_string(), "unix:./@x");
        assert_eq!(path.to_string().parse(), Ok(Address::Unix(UnixAddress::Path("./@x".into()))));
    }

    #[test]
    fn names_of_unix_sockets_have_a_longest_one() {
        let path = |len: usize| Address::Unix(UnixAddress::Path("x".repeat(len).into()));
        let longest = RawAddress::encode(&path(NAME_MAX - 1)).unwrap();
        assert_eq!(longest.decode(), path(NAME_MAX - 1));
        let error = RawAddress::encode(&path(NAME_MAX)).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        for nothing in ["unix:", "unix:@"] {
            assert!(RawAddress::encode(&nothing.parse().unwrap()).is_err(), "{nothing}");
        }
    }

    #[test]
    fn what_is_no_address_is_told_what_one_looks_like() {
        for text in ["", "localhost:80", "127.0.0.1", ":80", "127.0.0.1:65536", "::1:80"] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.to_string().contains("127.0.0.1:2007"), "{error}");
        }
    }
}
