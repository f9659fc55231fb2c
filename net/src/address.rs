//! What to listen on or to connect to: addresses, or a name that stands for some.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use ruduo_reactor::sys::address::{Address, UnixAddress};

/// One address, several, or the name of a host with a port: what can be bound and connected to.
///
/// Made from texts and addresses by `into`, so functions that take one can be given
/// `"127.0.0.1:2007"`, `"[::1]:2007"`, `"localhost:2007"`, `("localhost", 2007)`,
/// `"unix:/run/x.sock"`, `"unix:@name"`, an [`Address`], a [`SocketAddr`] or a list of either.
///
/// ```
/// use ruduo_net::{Address, Addresses};
///
/// let addresses = Addresses::from("127.0.0.1:2007").resolve()?;
/// assert_eq!(addresses, ["127.0.0.1:2007".parse::<Address>().unwrap()]);
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addresses {
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Known(Vec<Address>),
    /// "host:port", or something that is no address at all, which resolving it tells.
    Text(String),
    Host(String, u16),
}

impl Addresses {
    /// The addresses, in the order in which to try them; at least one. If it is a name, this asks
    /// the system's resolver, which may block for many seconds.
    ///
    /// # Errors
    /// What the resolver says, with the name; `InvalidInput` for a text that is neither an address
    /// nor "host:port", and if there is none.
    pub fn resolve(&self) -> io::Result<Vec<Address>> {
        let context = |e: io::Error| match e.kind() {
            // The resolver was not even asked.
            io::ErrorKind::InvalidInput => io::Error::new(
                e.kind(),
                format!(
                    "{self} is neither an address, such as 127.0.0.1:2007, [::1]:2007, \
                     unix:/run/x.sock or unix:@name, nor host:port"
                ),
            ),
            kind => io::Error::new(kind, format!("resolving {self}: {e}")),
        };
        let found: Vec<Address> = match &self.kind {
            Kind::Known(addresses) => addresses.clone(),
            Kind::Text(text) => text.to_socket_addrs().map_err(context)?.map(Address::Ip).collect(),
            Kind::Host(host, port) => {
                (&host[..], *port).to_socket_addrs().map_err(context)?.map(Address::Ip).collect()
            }
        };
        if found.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("resolving {self}: there is no address"),
            ));
        }
        Ok(found)
    }

    /// The addresses, if no name has to be resolved first.
    #[must_use]
    pub fn known(&self) -> Option<&[Address]> {
        match &self.kind {
            Kind::Known(addresses) => Some(addresses),
            _ => None,
        }
    }

    /// Opens something at the first address with which that works. If it does with none, the error
    /// is the first one's; it says `what` was tried.
    pub(crate) fn open<T>(
        &self,
        what: &str,
        open: impl Fn(&Address) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut first_error = None;
        for address in self.resolve()? {
            match open(&address) {
                Ok(opened) => return Ok(opened),
                Err(e) => {
                    let e = io::Error::new(e.kind(), format!("{what} {address}: {e}"));
                    first_error.get_or_insert(e);
                }
            }
        }
        Err(first_error.unwrap_or_else(|| unreachable!("there is at least one address")))
    }
}

/// As it was written.
impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Known(addresses) => match &addresses[..] {
                [] => f.write_str("an empty list of addresses"),
                [first, rest @ ..] => {
                    first.fmt(f)?;
                    rest.iter().try_for_each(|address| write!(f, ", {address}"))
                }
            },
            Kind::Text(text) => write!(f, "{text:?}"),
            Kind::Host(host, port) => write!(f, "\"{host}:{port}\""),
        }
    }
}

impl From<&str> for Addresses {
    fn from(text: &str) -> Addresses {
        let kind = match text.parse::<Address>() {
            Ok(address) => Kind::Known(vec![address]),
            Err(_) => Kind::Text(text.to_owned()),
        };
        Addresses { kind }
    }
}

impl From<(&str, u16)> for Addresses {
    fn from((host, port): (&str, u16)) -> Addresses {
        match host.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::from((ip, port)).into(),
            Err(_) => Addresses { kind: Kind::Host(host.to_owned(), port) },
        }
    }
}

impl<A: Into<Address> + Clone> From<&[A]> for Addresses {
    fn from(addresses: &[A]) -> Addresses {
        Addresses { kind: Kind::Known(addresses.iter().cloned().map(Into::into).collect()) }
    }
}

/// Conversions that are one of those above.
macro_rules! from {
    ($($type:ty, $value:ident => $address:expr;)*) => {
        $(impl From<$type> for Addresses {
            fn from($value: $type) -> Addresses {
                $address.into()
            }
        })*
    };
}

from! {
    Address, address => &[address][..];
    &Address, address => &[address.clone()][..];
    SocketAddr, address => &[address][..];
    &SocketAddr, address => &[*address][..];
    UnixAddress, address => &[address][..];
    &Path, path => UnixAddress::Path(path.to_owned());
    PathBuf, path => UnixAddress::Path(path);
    &PathBuf, path => path.as_path();
    String, text => &text[..];
    &String, text => &text[..];
    (String, u16), host => (&host.0[..], host.1);
    (IpAddr, u16), host => SocketAddr::from(host);
    (Ipv4Addr, u16), host => SocketAddr::from(host);
    (Ipv6Addr, u16), host => SocketAddr::from(host);
    Vec<Address>, addresses => &addresses[..];
    Vec<SocketAddr>, addresses => &addresses[..];
}

impl<A: Into<Address> + Clone, const N: usize> From<[A; N]> for Addresses {
    fn from(addresses: [A; N]) -> Addresses {
        addresses[..].into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_address_is_known_and_what_is_a_name_is_not() {
        for text in ["127.0.0.1:1", "[::1]:1", "unix:/x", "unix:@x"] {
            assert_eq!(Addresses::from(text).known().unwrap()[0].to_string(), text);
        }
        assert_eq!(Addresses::from(("::1", 1)), Addresses::from("[::1]:1"));
        assert_eq!(Addresses::from("localhost:1").known(), None);
        assert_eq!(Addresses::from(("localhost", 1)).known(), None);
    }

    #[test]
    fn a_name_that_nobody_has_is_in_the_error() {
        for bad in ["nonsense", "nobody.invalid:1", "127.0.0.1:port"] {
            let error = Addresses::from(bad).resolve().unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
        let error = Addresses::from(Vec::<Address>::new()).resolve().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
