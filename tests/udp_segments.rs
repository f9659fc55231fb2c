//! Datagrams that the kernel joins and cuts apart (UDP_SEGMENT, UDP_GRO): seen one by one all the
//! same, and sent one by one where it cannot.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;
mod datagrams;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::mpsc::channel;

use common::{eventually, pattern, within};
use datagrams::{Running, recv, start};
use ruduo::{Address, UdpClient, UdpServer};

/// By a plain socket, so that nothing of ours is taken for a want of the machine.
fn machine_can() -> bool {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
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

fn send_all(running: &Running) {
    let send = |socket: &ruduo::UdpSocket<'_>| {
        for (i, size) in sizes().into_iter().enumerate() {
            socket.send(&pattern(size + i)[i..]);
        }
    };
    running.udp.socket().post(send).unwrap();
}

fn sender(to: std::net::SocketAddr, batch: usize) -> Running {
    start(move |event_loop| {
        UdpClient::connect(event_loop, to)
            .gso(true)
            .batch(batch)
            .on_datagram(|_, _| {})
            .on_error(|_, error| panic!("{error}"))
            .start()
    })
}

#[test]
fn joined_datagrams_come_one_by_one() {
    each_poller!().run(|| {
        if !machine_can() {
            return;
        }
        for batch in [1, 32] {
            for gro in [false, true] {
                let (send, receive) = channel();
                let receiver = start(move |event_loop| {
                    UdpServer::bind(event_loop, "127.0.0.1:0")
                        .gro(gro)
                        .batch(batch)
                        .on_datagram(move |socket, datagram| {
                            let turn = socket.event_loop().metrics().turns;
                            let got = (datagram.bytes().to_vec(), datagram.size());
                            send.send((got, datagram.is_truncated(), turn)).unwrap();
                        })
                        .start()
                });
                let sender = sender(receiver.addr(), batch);
                send_all(&sender);
                let mut turns = BTreeSet::new();
                for (i, size) in sizes().into_iter().enumerate() {
                    let ((bytes, real), truncated, turn) = within(&receive);
                    assert!(bytes == pattern(size + i)[i..], "{i}: {}", bytes.len());
                    assert_eq!((real, truncated), (size, false));
                    turns.insert(turn);
                }
                if batch == 1 && gro {
                    // Each event brings one message, and so there were fewer of those.
                    assert!(turns.len() < 20, "{} messages", turns.len());
                }
                if batch == 1 && !gro {
                    assert_eq!(turns.len(), sizes().len());
                }
                let all = sizes().len() as u64;
                eventually("it is counted", || {
                    (sender.metrics().sent, receiver.metrics().received) == (all, all)
                });
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
        let (send, receive) = channel();
        let receiver = start(move |event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .gro(true)
                .receive_size(10)
                .on_datagram(move |_, datagram| {
                    let got = (datagram.bytes().len(), datagram.size(), datagram.is_truncated());
                    send.send(got).unwrap();
                })
                .start()
        });
        let sender = sender(receiver.addr(), 32);
        send_all(&sender);
        for size in sizes() {
            assert_eq!(within(&receive), (size.min(10), size, size > 10));
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
    let (send, receive) = channel();
    let receiver = start(move |event_loop| {
        UdpServer::bind(event_loop, "127.0.0.1:0")
            .gro(true)
            .batch(1)
            .on_datagram(move |socket, datagram| {
                let turn = socket.event_loop().metrics().turns;
                send.send((datagram.bytes().to_vec(), turn)).unwrap();
            })
            .start()
    });
    let (tell, told) = channel();
    let to = receiver.addr();
    let sender = start(move |event_loop| {
        let udp = if connected {
            UdpClient::connect(event_loop, to)
        } else {
            UdpServer::bind(event_loop, "127.0.0.1:0")
        };
        udp.gso(true)
            .batch(1)
            .on_datagram(|_, _| {})
            .on_error(move |_, _| tell.send(()).unwrap())
            .start()
    });
    let to = (!connected).then(|| Address::from(to));
    let send = move |socket: &ruduo::UdpSocket<'_>| {
        for (i, size) in sizes().into_iter().enumerate() {
            let all = pattern(size + i);
            match &to {
                Some(to) => socket.send_to(&all[i..], to),
                None => socket.send(&all[i..]),
            }
        }
    };
    sender.udp.socket().post(send).unwrap();
    let mut turns = BTreeSet::new();
    for (i, size) in sizes().into_iter().enumerate() {
        let (bytes, turn) = within(&receive);
        assert!(bytes == pattern(size + i)[i..], "{i}");
        turns.insert(turn);
    }
    eventually("it is counted", || sender.metrics().sent == sizes().len() as u64);
    assert_eq!(sender.metrics().send_errors, 0);
    (turns.len(), told.try_iter().count())
}

fn refusing(alone: common::Alone, inject: &str, body: impl FnOnce()) {
    let quiet = ["strace", "-qq", "-f", "-o", "/dev/null"];
    let command = [&quiet[..], &["-e", "trace=sendmsg", "-e", inject]].concat();
    alone.under(&command).run(|| {
        if machine_can() {
            body();
        }
    });
}

#[test]
fn a_way_out_that_cuts_nothing_gets_them_one_by_one() {
    refusing(alone!(), "inject=sendmsg:error=EIO:when=1", || {
        assert_eq!(messages_after_a_refusal(true), (sizes().len(), 0));
    });
}

#[test]
fn a_way_out_for_smaller_segments_gets_the_larger_ones_one_by_one() {
    for errno in ["EMSGSIZE", "EINVAL"] {
        refusing(alone!(), &format!("inject=sendmsg:error={errno}:when=1"), || {
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
        refusing(alone!(), &format!("inject=sendmsg:error={errno}:when=1"), || {
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
        let (send, receive) = channel();
        let receiver = start(move |event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .gro(true)
                .batch(1)
                .on_datagram(move |socket, _| {
                    send.send(socket.event_loop().metrics().turns).unwrap();
                })
                .start()
        });
        let (tell, told) = channel();
        let sender = start(move |event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .gso(true)
                .on_datagram(|_, _| {})
                .on_error(move |_, error| tell.send(error.to_string()).unwrap())
                .start()
        });
        let to: Address = receiver.addr().into();
        let all = move |socket: &ruduo::UdpSocket<'_>| {
            let nowhere: Address = "127.0.0.1:0".parse().unwrap();
            (0..2).for_each(|_| socket.send_to("x", &nowhere));
            (0..30).for_each(|_| socket.send_to([7; 100], &to));
        };
        sender.udp.socket().post(all).unwrap();
        let turns: BTreeSet<u64> = (0..30).map(|_| within(&receive)).collect();
        assert!(turns.len() < 10, "{} messages", turns.len());
        for _ in 0..2 {
            assert!(within(&told).contains("127.0.0.1:0"));
        }
        eventually("it is counted", || sender.metrics().send_errors == 2);
    });
}
