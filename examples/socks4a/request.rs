//! What a client asks, and what it is answered.
//!
//! ```text
//!   client:   4 │ command │ port (2) │ address (4) │ user, 0 [│ name, 0]     the name if the address
//!   server:   0 │ result  │ port (2) │ address (4)                           is 0.0.0.x, x not 0
//! ```

use std::fmt;
use std::net::Ipv4Addr;

pub(crate) const GRANTED: u8 = 90;
pub(crate) const REJECTED: u8 = 91;

pub(crate) fn reply(result: u8) -> [u8; 8] {
    [0, result, 0, 0, 0, 0, 0, 0]
}

/// Where a client wants to go.
pub(crate) struct Target {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

pub(crate) enum Host {
    Address(Ipv4Addr),
    /// To be looked up. Or an address nevertheless, written as a name: that is never slow.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(address) => address.fmt(f),
            Host::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Names and users are not longer than this.
const MOST: usize = 255;

/// Where a request wants to go, and how long it is. `None` if not all of it is there; an error as soon
/// as it can't be one.
pub(crate) fn parse(input: &[u8]) -> Result<Option<(Target, usize)>, &'static str> {
    match input {
        [] => return Ok(None),
        [4, ..] => {}
        _ => return Err("not SOCKS version 4"),
    }
    match input.get(1) {
        None => return Ok(None),
        Some(1) => {}
        Some(_) => return Err("a command other than CONNECT"),
    }
    let Some((&[_, _, port1, port2, a, b, c, d], rest)) = input.split_first_chunk() else {
        return Ok(None);
    };
    let port = u16::from_be_bytes([port1, port2]);
    if port == 0 {
        return Err("port 0");
    }
    let Some(end) = end_of_text(rest)? else { return Ok(None) };
    let behind_user = &rest[end + 1..];
    let address = Ipv4Addr::new(a, b, c, d);
    let (host, behind) = if [a, b, c] == [0; 3] && d != 0 {
        let Some(end) = end_of_text(behind_user)? else { return Ok(None) };
        let name = std::str::from_utf8(&behind_user[..end]);
        let name = name.map_err(|_| "a name that is not text")?;
        if name.is_empty() || name.contains(|c: char| c.is_ascii_control() || c == ':') {
            return Err("a name that can't be one");
        }
        (Host::Name(name.to_owned()), &behind_user[end + 1..])
    } else {
        (Host::Address(address), behind_user)
    };
    Ok(Some((Target { host, port }, input.len() - behind.len())))
}

/// Where the text that begins here ends, with a 0. `None` if that is not there yet.
fn end_of_text(input: &[u8]) -> Result<Option<usize>, &'static str> {
    match input.iter().take(MOST + 1).position(|byte| *byte == 0) {
        None if input.len() > MOST => Err("a user or name of more than 255 bytes"),
        end => Ok(end),
    }
}
