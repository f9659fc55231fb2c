//! Datagrams that the kernel joins and cuts apart (UDP_SEGMENT, UDP_GRO): seen one by one all the
//! same, and sent one by one where it cannot.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;
mod datagrams;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, channel};

use common::{Alone, eventually, pattern, within};
use datagrams::{Running, failing, recv, start};
use ruduo::{Address, UdpClient, UdpServer, UdpSocket};

/// By a plain socket, so that nothing of ours is taken for a want of the machine.
fn machine_can() -> bool {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let can = [libc::UDP_SEGMENT, libc::UDP_GRO].into_iter().all(|option| {
        let off: libc::c_int = 0;
        // SAFETY: the value is valid for reading its length.
        let outcome = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_UDP,
                option,
                (&raw const off).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        outcome == 0
    });
    if !can {
        eprintln!("SKIPPED: this kernel neither joins nor cuts datagrams");
    }
    can
}

/// Twenty of 1,000 bytes, one of 500, and others of all kinds: no more than a kernel keeps for a
/// socket that does not read yet.
fn sizes() -> Vec<usize> {
    let mut sizes = vec![1000; 20];
    sizes.extend([500, 700, 700, 0, 0, 1, 10_000, 10_000, 9]);
    sizes.extend([3; 70]);
    sizes
}

/// All of these sizes, each with its own bytes.
fn send_all(running: &Running, to: Option<Address>) {
    let send = move |socket: &UdpSocket<'_>| {
        for (i, size) in sizes().into_iter().enumerate() {
            let all = pattern(size + i);
            match &to {
                Some(to) => socket.send_to(&all[i..], to),
                None => socket.send(&all[i..]),
            }
        }
    };
    running.udp.socket().post(send).unwrap();
}

/// A socket that has the kernel cut: connected, or one that many could be sent to. What it is told of
/// as an error is told here.
fn sender(to: Option<SocketAddr>, batch: usize) -> (Running, Receiver<String>) {
    let (send, receive) = channel();
    let running = start(move |event_loop| {
        let udp = match to {
            Some(to) => UdpClient::connect(event_loop, to),
            None => UdpServer::bind(event_loop, "127.0.0.1:0"),
        };
        udp.gso(true)
            .batch(batch)
            .on_datagram(|_, _| {})
            .on_error(move |_, error| send.send(error.to_string()).unwrap())
            .start()
    });
    (running, receive)
}

/// A datagram as it has come, and in which turn of the loop.
struct Arrived {
    bytes: Vec<u8>,
    size: usize,
    truncated: bool,
    turn: u64,
}

fn receiver(gro: bool, batch: usize, room: usize) -> (Running, Receiver<Arrived>) {
    let (send, receive) = channel();
    let running = start(move |event_loop| {
        UdpServer::bind(event_loop, "127.0.0.1:0")
            .gro(gro)
            .batch(batch)
            .receive_size(room)
            .on_datagram(move |socket, datagram| {
                let turn = socket.event_loop().metrics().turns;
                let (bytes, size) = (datagram.bytes().to_vec(), datagram.size());
                let truncated = datagram.is_truncated();
                send.send(Arrived { bytes, size, truncated, turn }).unwrap();
            })
            .start()
    });
    (running, receive)
}

const ANY: usize = 65_535;

/// Receives what `send_all` has sent. Returns in how many turns it came: with a batch of one, so many
/// messages.
#[track_caller]
fn receive_all(receive: &Receiver<Arrived>) -> usize {
    let mut turns = BTreeSet::new();
    for (i, size) in sizes().into_iter().enumerate() {
        let arrived = within(receive);
        assert!(arrived.bytes == pattern(size + i)[i..], "{i}: {}", arrived.bytes.len());
        assert_eq!((arrived.size, arrived.truncated), (size, false));
        turns.insert(arrived.turn);
    }
    turns.len()
}

#[test]
fn joined_datagrams_come_one_by_one() {
    each_poller!().run(|| {
        if !machine_can() {
            return;
        }
        for batch in [1, 32] {
            for gro in [false, true] {
                let (receiver, arrived) = receiver(gro, batch, ANY);
                let (sender, errors) = sender(Some(receiver.addr()), batch);
                send_all(&sender, None);
                let turns = receive_all(&arrived);
                match (batch, gro) {
                    // Each event brings one message, and so there were fewer of those.
                    (1, true) => assert!(turns < 20, "{turns} messages"),
                    (1, false) => assert_eq!(turns, sizes().len()),
                    _ => {}
                }
                let all = sizes().len() as u64;
                eventually("it is counted", || {
                    (sender.metrics().sent, receiver.metrics().received) == (all, all)
                });
                assert_eq!(errors.try_iter().count(), 0);
            }
        }
    });
}

#[test]
fn each_of_those_that_came_together_is_cut_to_the_room_for_one() {
    each_poller!().run(|| {
        if !machine_can() {
            return;
        }
        let (receiver, arrived) = receiver(true, 32, 10);
        let (sender, _) = sender(Some(receiver.addr()), 32);
        send_all(&sender, None);
        for size in sizes() {
            let Arrived { bytes, size: real, truncated, .. } = within(&arrived);
            assert_eq!((bytes.len(), real, truncated), (size.min(10), size, size > 10));
        }
    });
}

#[test]
fn answers_to_several_peers_find_each_its_own() {
    each_poller!().run(|| {
        let running = start(|event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .gro(true)
                .gso(true)
                .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                .start()
        });
        let peers = [running.peer(), running.peer()];
        let release = datagrams::hold(running.event_loop());
        for i in 0..60_u8 {
            peers[usize::from(i / 20 % 2)].send(&[i; 50]).unwrap();
        }
        drop(release);
        for i in 0..60 {
            assert_eq!(recv(&peers[usize::from(i / 20 % 2)]), [i; 50]);
        }
    });
}

/// The kernel refuses the first message that it is to cut, of a socket that is connected or of one
/// that many could be sent to. Returns how many it got in the end, and how many errors the sender was
/// told of.
fn messages_after_a_refusal(connected: bool) -> (usize, usize) {
    let (receiver, arrived) = receiver(true, 1, ANY);
    let to = receiver.addr();
    let (sender, errors) = sender(connected.then_some(to), 1);
    send_all(&sender, (!connected).then(|| to.into()));
    let messages = receive_all(&arrived);
    eventually("it is counted", || sender.metrics().sent == sizes().len() as u64);
    assert_eq!(sender.metrics().send_errors, 0);
    (messages, errors.try_iter().count())
}

fn refusing(alone: Alone, how: &str, body: impl FnOnce()) {
    failing(alone, "sendmsg", how).run(|| {
        if machine_can() {
            body();
        }
    });
}

#[test]
fn a_way_out_that_cuts_nothing_gets_them_one_by_one() {
    refusing(alone!(), "error=EIO:when=1", || {
        assert_eq!(messages_after_a_refusal(true), (sizes().len(), 0));
    });
}

#[test]
fn a_way_out_for_smaller_segments_gets_the_larger_ones_one_by_one() {
    for errno in ["EMSGSIZE", "EINVAL"] {
        refusing(alone!(), &format!("error={errno}:when=1"), || {
            let (messages, errors) = messages_after_a_refusal(true);
            assert_eq!(errors, 0);
            // Twenty of 1,000 bytes, not joined any more; those of 700 and of 3 still are.
            assert!((22..40).contains(&messages), "{messages}");
        });
    }
}

#[test]
fn what_the_network_answers_an_earlier_one_ends_no_cutting() {
    // To a socket that is not connected it is no answer to an earlier one, but is over as soon.
    for (errno, connected, told) in
        [("ECONNREFUSED", true, 1), ("EHOSTUNREACH", true, 1), ("EHOSTUNREACH", false, 0)]
    {
        refusing(alone!(), &format!("error={errno}:when=1"), || {
            let (messages, errors) = messages_after_a_refusal(connected);
            assert!(messages < 20 && errors == told, "{messages}, {errors}");
        });
    }
}

/// Nobody has port 0, which is no reason to send to others one by one.
#[test]
fn an_address_that_is_refused_ends_no_cutting() {
    each_poller!().run(|| {
        if !machine_can() {
            return;
        }
        let (receiver, arrived) = receiver(true, 1, ANY);
        let (sender, errors) = sender(None, 32);
        let to: Address = receiver.addr().into();
        let all = move |socket: &UdpSocket<'_>| {
            let nowhere: Address = "127.0.0.1:0".parse().unwrap();
            (0..2).for_each(|_| socket.send_to("x", &nowhere));
            (0..30).for_each(|_| socket.send_to([7; 100], &to));
        };
        sender.udp.socket().post(all).unwrap();
        let turns: BTreeSet<u64> = (0..30).map(|_| within(&arrived).turn).collect();
        assert!(turns.len() < 10, "{} messages", turns.len());
        for _ in 0..2 {
            assert!(within(&errors).contains("127.0.0.1:0"));
        }
        eventually("it is counted", || sender.metrics().send_errors == 2);
    });
}

/// A kernel that does not know these options would send as one datagram what it was to cut. So what it
/// is handed is one datagram each: if it does not take the first, that one is told of.
#[test]
fn a_kernel_that_knows_neither_gets_them_one_by_one() {
    let unknown = ["-e", "trace=setsockopt,sendmsg", "-e", "inject=setsockopt:error=ENOPROTOOPT"];
    let refused = ["-e", "inject=sendmsg:error=EIO:when=1"];
    let strace = ["strace", "-qq", "-f", "-o", "/dev/null"];
    alone!().under(&[&strace[..], &unknown, &refused].concat()).run(|| {
        let (receiver, arrived) = receiver(true, 1, ANY);
        let (sender, errors) = sender(Some(receiver.addr()), 1);
        let send = |socket: &UdpSocket<'_>| (0..10).for_each(|i| socket.send([i; 100]));
        sender.udp.socket().post(send).unwrap();
        assert!(within(&errors).contains("os error 5"));
        let turns: BTreeSet<u64> = (1..10)
            .map(|i| {
                let Arrived { bytes, turn, .. } = within(&arrived);
                assert_eq!(bytes, [i; 100]);
                turn
            })
            .collect();
        assert_eq!(turns.len(), 9);
        eventually("it is counted", || sender.metrics().sent == 9);
    });
}
