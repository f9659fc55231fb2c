//! A socket at all addresses of the machine: to which of them something came, and from which the
//! answer leaves.

// Elsewhere the loopback interface has one address of each kind.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;
mod datagrams;
mod namespace;

use std::net::{IpAddr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::sync::mpsc::channel;

use common::within;
use datagrams::{Running, assert_echoes, hold, peer, recv, start};
use ruduo::UdpServer;

/// Who is connected to an address hears nobody else: an answer from another one is lost.
#[test]
fn a_socket_at_all_addresses_answers_from_the_one_that_was_asked() {
    each_poller!().run(|| {
        let mut all = vec!["0.0.0.0:0"];
        match UdpSocket::bind("[::1]:0") {
            Ok(_) => all.push("[::]:0"),
            Err(e) => eprintln!("SKIPPED: this machine has no IPv6: {e}"),
        }
        for address in all {
            for (batch, gso) in [(1, false), (32, false), (32, true)] {
                let (send, receive) = channel();
                let running = start(move |event_loop| {
                    UdpServer::bind(event_loop, address)
                        .batch(batch)
                        .gro(gso)
                        .gso(gso)
                        .timestamps(true)
                        .on_datagram(move |socket, datagram| {
                            assert!(datagram.received_at().is_some());
                            send.send(datagram.local_ip()).unwrap();
                            socket.answer(datagram, datagram.bytes());
                        })
                        .start()
                });
                let ask = |ip: IpAddr| {
                    let near = peer(if ip.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" });
                    near.connect((ip, running.addr().port())).unwrap();
                    near
                };
                let asked: Vec<IpAddr> = [1, 2, 77].map(|last| [127, 0, 7, last].into()).to_vec();
                let peers: Vec<_> = asked.iter().map(|ip| ask(*ip)).collect();
                let release = hold(running.event_loop());
                for peer in &peers {
                    (0..5).for_each(|i| assert_eq!(peer.send(&[i; 100]).unwrap(), 100));
                }
                drop(release);
                for (peer, ip) in peers.iter().zip(&asked) {
                    for i in 0..5 {
                        assert_eq!(recv(peer), [i; 100]);
                        assert_eq!(within(&receive), Some(*ip));
                    }
                }
                if address.starts_with('[') {
                    let ip: IpAddr = Ipv6Addr::LOCALHOST.into();
                    assert_echoes(&ask(ip));
                    assert_eq!(within(&receive), Some(ip));
                }
                assert_eq!(running.metrics().send_errors, 0, "{}", running.metrics());
            }
        }
    });
}

/// Those of one size to one peer go together, but not those from several addresses.
#[test]
fn one_peer_is_answered_from_each_address_that_it_asks() {
    each_poller!().run(|| {
        let running = start(|event_loop| {
            UdpServer::bind(event_loop, "0.0.0.0:0")
                .gso(true)
                .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                .start()
        });
        let near = peer("127.0.0.1:0");
        let asked: Vec<_> = (0..60_u8).map(|i| IpAddr::from([127, 0, 7, 1 + i / 2 % 3])).collect();
        let release = hold(running.event_loop());
        for (i, ip) in asked.iter().enumerate() {
            near.send_to(&[i as u8; 100], (*ip, running.addr().port())).unwrap();
        }
        drop(release);
        for (i, ip) in asked.iter().enumerate() {
            let mut bytes = [0; 200];
            let (n, from) = near.recv_from(&mut bytes).unwrap();
            assert_eq!((&bytes[..n], from.ip()), (&[i as u8; 100][..], *ip));
        }
    });
}

fn assert_answers(running: &Running, near: &str, asked: impl Into<std::net::SocketAddr>) {
    let near = peer(near);
    near.connect(asked.into()).unwrap();
    assert_echoes(&near);
    assert_eq!(running.metrics().send_errors, 0, "{}", running.metrics());
}

#[test]
fn so_it_does_with_several_addresses_of_ipv6() {
    namespace::run(each_poller!(), &[namespace::CABLE], || {
        namespace::lay_cable(&["fd77::1/64", "fd77::2/64", "fe80::77/64"]);
        let running = start(|event_loop| {
            UdpServer::bind(event_loop, "[::]:0")
                .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                .start()
        });
        let port = running.addr().port();
        for asked in ["fd77::1", "fd77::2"] {
            let asked: Ipv6Addr = asked.parse().unwrap();
            assert_answers(&running, "[fd77::1]:0", (asked, port));
            assert_answers(&running, "[fd77::2]:0", (asked, port));
        }
        // That address is one of an interface.
        let index = nix::net::if_::if_nametoindex("near").unwrap();
        let asked = SocketAddrV6::new("fe80::77".parse().unwrap(), port, 0, index);
        assert_answers(&running, "[::]:0", asked);
        // Nor does the peer's address say of which.
        assert_answers(&running, "[fd77::1]:0", asked);
    });
}
