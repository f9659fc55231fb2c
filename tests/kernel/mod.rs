//! What the kernel knows of a TCP connection: for tests that must not go on before something has
//! arrived at a socket whose owner does not look at it.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::common::{eventually, proc};

/// One end of a connection.
#[derive(Debug)]
pub struct End {
    /// As in `include/net/tcp_states.h`: 1 is established, 8 that the peer has finished.
    pub state: u8,
    /// Bytes that the other end has not acknowledged.
    pub unsent: usize,
    /// Bytes in the receive queue.
    pub unread: usize,
}

const CLOSE_WAIT: u8 = 8;

/// The first of the two ends; `None` if there is none (any more).
pub fn end((local, remote): (SocketAddr, SocketAddr)) -> Option<End> {
    let table = proc::read("net/tcp");
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let ends = (address(fields.next()?), address(fields.next()?));
        let state = u8::from_str_radix(fields.next()?, 16).unwrap();
        let (unsent, unread) = fields.next()?.split_once(':')?;
        let [unsent, unread] = [unsent, unread].map(|n| usize::from_str_radix(n, 16).unwrap());
        (ends == (local, remote)).then_some(End { state, unsent, unread })
    })
}

fn address(text: &str) -> SocketAddr {
    let (ip, port) = text.split_once(':').unwrap();
    // The kernel prints the four bytes as one number of this machine's byte order.
    let ip = Ipv4Addr::from(u32::from_str_radix(ip, 16).unwrap().to_ne_bytes());
    SocketAddrV4::new(ip, u16::from_str_radix(port, 16).unwrap()).into()
}

/// Waits until exactly `n` bytes wait at the first end.
#[track_caller]
pub fn wait_for_bytes(ends: (SocketAddr, SocketAddr), n: usize) {
    eventually("the bytes have arrived", || end(ends).is_some_and(|e| e.unread == n));
}

/// Waits until the end of the stream has arrived at the first end.
#[track_caller]
pub fn wait_for_fin(ends: (SocketAddr, SocketAddr)) {
    eventually("the FIN has arrived", || end(ends).is_some_and(|e| e.state == CLOSE_WAIT));
}

/// Waits until a reset has arrived at the first end.
#[track_caller]
pub fn wait_for_reset(ends: (SocketAddr, SocketAddr)) {
    eventually("the reset has arrived", || end(ends).is_none());
}
