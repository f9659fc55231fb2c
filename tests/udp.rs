//! Datagrams over IP: what comes, what is answered, and what goes wrong without an end.

#![allow(clippy::unwrap_used)]

mod common;
mod datagrams;

use std::cell::Cell;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use common::{DEADLINE, eventually, pattern, runs_to_its_end, within};
use datagrams::{Running, assert_echoes, echo, hold, peer, recv, start, timers_until, turns_in};
use ruduo::{
    Address, Datagram, EventLoop, LoopPool, LoopThread, SendError, TcpServer, UdpClient, UdpHandle,
    UdpHandler, UdpServer, UdpSocket, UdpSocketHandle,
};

#[test]
fn datagrams_come_back_to_who_has_sent_them() {
    each_poller!().run(|| {
        let running = echo();
        let peers: Vec<_> = (0..10).map(|_| running.peer()).collect();
        for (i, peer) in peers.iter().enumerate() {
            peer.send(&[i as u8; 100]).unwrap();
        }
        for (i, peer) in peers.iter().enumerate() {
            assert_eq!(recv(peer), [i as u8; 100]);
        }
        let largest = pattern(65_507);
        peers[0].send(&largest).unwrap();
        assert!(recv(&peers[0]) == largest);
        running.stop();
        let metrics = running.metrics();
        assert_eq!((metrics.received, metrics.received_bytes), (11, 66_507), "{metrics}");
        assert_eq!((metrics.sent, metrics.sent_bytes), (11, 66_507), "{metrics}");
        assert_eq!((metrics.open, metrics.truncated, metrics.send_errors), (0, 0, 0), "{metrics}");
        let line = metrics.to_string();
        assert!(line.starts_with("open=0 received=11 received_bytes=66507 truncated=0"), "{line}");
    });
}

#[test]
fn b14_a_datagram_of_no_bytes_is_one_and_is_answered() {
    each_poller!().run(|| {
        for batch in [1, 32] {
            let running = start(move |event_loop| {
                UdpServer::bind(event_loop, "127.0.0.1:0")
                    .batch(batch)
                    .on_datagram(|socket, datagram| {
                        assert_eq!((datagram.size(), datagram.is_truncated()), (0, false));
                        socket.answer(datagram, datagram.bytes());
                        socket.answer(datagram, "that was nothing");
                    })
                    .start()
            });
            let peer = running.peer();
            for _ in 0..3 {
                peer.send(b"").unwrap();
                assert_eq!(recv(&peer), b"");
                assert_eq!(recv(&peer), b"that was nothing");
            }
            running.stop();
            let metrics = running.metrics();
            assert_eq!((metrics.received, metrics.received_bytes), (3, 0), "{metrics}");
            assert_eq!((metrics.sent, metrics.receive_errors), (6, 0), "{metrics}");
        }
    });
}

#[test]
fn b63_what_does_not_fit_is_cut_off_and_its_real_size_told() {
    each_poller!().run(|| {
        for batch in [1, 32] {
            let (send, receive) = channel();
            let running = start(move |event_loop| {
                UdpServer::bind(event_loop, "127.0.0.1:0")
                    .batch(batch)
                    .receive_size(10)
                    .on_datagram(move |socket, datagram| {
                        let bytes = datagram.bytes().to_vec();
                        send.send((bytes, datagram.size(), datagram.is_truncated())).unwrap();
                        socket.answer(datagram, datagram.bytes());
                    })
                    .start()
            });
            let peer = running.peer();
            for size in [9, 10, 11, 5000, 3] {
                let sent = pattern(size);
                peer.send(&sent).unwrap();
                let (bytes, real, truncated) = within(&receive);
                assert_eq!(bytes, sent[..size.min(10)]);
                assert_eq!((real, truncated), (size, size > 10));
                assert_eq!(recv(&peer), sent[..size.min(10)]);
            }
            assert_eq!(running.metrics().truncated, 2);
        }
    });
}

/// A port that nobody has, at an address that nobody else uses.
fn nobody() -> Address {
    peer("127.77.0.1:0").local_addr().unwrap().into()
}

#[test]
fn b63_refused_datagrams_are_values_and_the_socket_goes_on() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let target = nobody();
        let expected = target.clone();
        let running = start(move |event_loop| {
            UdpClient::connect(event_loop, &target)
                .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                .on_error(move |_, error| {
                    send.send((error.kind(), error.peer().cloned(), error.to_string())).unwrap();
                })
                .start()
        });
        for _ in 0..3 {
            running.udp.socket().send("is anybody there?").unwrap();
            let (kind, peer, text) = within(&receive);
            assert_eq!((kind, peer.as_ref()), (ErrorKind::ConnectionRefused, Some(&expected)));
            assert!(text.contains(&expected.to_string()), "{text}");
        }
        // It is told once and does not make the loop spin.
        assert!(turns_in(running.event_loop(), Duration::from_millis(50)) < 20);

        // Somebody comes.
        let late = peer(&expected.to_string());
        running.udp.socket().send("and now?").unwrap();
        assert_eq!(recv(&late), b"and now?");
        late.connect(running.addr()).unwrap();
        assert_echoes(&late);
        // What is sent is counted when it has been, and the peer may be faster.
        eventually("all is counted", || running.metrics().sent == 5);
        assert_eq!(running.metrics().receive_errors, 3);
        assert_eq!(running.metrics().open, 1);
    });
}

/// Each was the answer to a datagram, and so none of them is a reason to wait: a socket that
/// receives errors only has a timer that ends its pause.
#[test]
fn b63_many_refusals_keep_nobody_waiting() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let target = nobody();
        let running = start(move |event_loop| {
            UdpClient::connect(event_loop, &target)
                .on_datagram(|_, _| {})
                .on_error(move |_, _| send.send(()).unwrap())
                .start()
        });
        for _ in 0..50 {
            running.udp.socket().send("is anybody there?").unwrap();
            within(&receive);
        }
        assert_eq!(timers_until(running.event_loop(), Duration::from_millis(200)), (0, 1));
    });
}

/// The second call hears that the first datagram has found nobody, and has not sent its own.
#[test]
fn b63_what_stands_behind_a_refused_datagram_leaves_all_the_same() {
    each_poller!().run(|| {
        for batch in [1, 32] {
            let (send, receive) = channel();
            let target = nobody();
            let running = start(move |event_loop| {
                UdpClient::connect(event_loop, &target)
                    .batch(batch)
                    .on_datagram(|_, _| {})
                    .on_error(move |_, error| send.send(error.kind()).unwrap())
                    .start()
            });
            let five = |socket: &UdpSocket<'_>| (0..5).for_each(|_| socket.send("hello?"));
            running.udp.socket().post(five).unwrap();
            assert_eq!(within(&receive), ErrorKind::ConnectionRefused);
            running.stop();
            let metrics = running.metrics();
            assert_eq!((metrics.sent, metrics.send_errors), (5, 0), "{metrics}");
        }
    });
}

#[test]
fn b63_what_is_too_long_is_an_error_value_and_the_rest_leaves() {
    each_poller!().run(|| {
        for (batch, gso) in [(1, false), (32, false), (1, true), (32, true)] {
            let (send, receive) = channel();
            let running = start(move |event_loop| {
                UdpServer::bind(event_loop, "127.0.0.1:0")
                    .batch(batch)
                    .gso(gso)
                    .on_datagram(|socket, datagram| {
                        socket.answer(datagram, "before");
                        socket.answer(datagram, pattern(65_508));
                        socket.answer(datagram, "behind");
                    })
                    .on_error(move |_, error| {
                        let errno = error.error().raw_os_error();
                        send.send((errno, error.peer().cloned(), error.is_of_sending())).unwrap();
                    })
                    .start()
            });
            let peer = running.peer();
            peer.send(b"go").unwrap();
            assert_eq!(recv(&peer), b"before");
            assert_eq!(recv(&peer), b"behind");
            let (errno, to, of_sending) = within(&receive);
            assert_eq!((errno, of_sending), (Some(libc::EMSGSIZE), true));
            assert_eq!(to, Some(peer.local_addr().unwrap().into()));
            running.stop();
            let metrics = running.metrics();
            assert_eq!((metrics.sent, metrics.send_errors), (2, 1), "{metrics}");
        }
    });
}

#[test]
fn b63_a_missing_interface_is_a_clear_error_of_starting() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let group = std::net::Ipv4Addr::new(224, 0, 0, 50);
        let error = UdpServer::bind(&event_loop, "0.0.0.0:0")
            .join(group, "nowhere0")
            .on_datagram(|_, _| {})
            .start()
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let text = error.to_string();
        assert!(text.contains("224.0.0.50") && text.contains("no interface nowhere0"), "{text}");
        let error = UdpServer::bind(&event_loop, "127.0.0.1:0")
            .join([127, 0, 0, 1], "lo")
            .on_datagram(|_, _| {})
            .start()
            .unwrap_err();
        assert!(error.to_string().contains("127.0.0.1 is no multicast group"), "{error}");
    });
}

#[test]
fn a_batch_is_received_answered_and_sent_whole() {
    each_poller!().run(|| {
        for batch in [1, 2, 32] {
            let running = start(move |event_loop| {
                UdpServer::bind(event_loop, "127.0.0.1:0")
                    .batch(batch)
                    .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                    .start()
            });
            let peer = running.peer();
            let release = hold(running.event_loop());
            for i in 0..100_u8 {
                peer.send(&[i; 3]).unwrap();
            }
            drop(release);
            for i in 0..100 {
                assert_eq!(recv(&peer), [i; 3]);
            }
        }
    });
}

/// The room of a loop is for all its sockets, but each has a size of its own.
#[test]
fn sockets_of_one_loop_have_room_of_different_sizes() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let running = start(move |event_loop| {
            let small = UdpServer::bind(event_loop, "127.0.0.1:0")
                .receive_size(10)
                .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                .start()?;
            send.send(small).unwrap();
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .batch(8)
                .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                .start()
        });
        let small = peer("127.0.0.1:0");
        small.connect(within(&receive).local_addr()).unwrap();
        let large = running.peer();
        for _ in 0..3 {
            small.send(&pattern(1000)).unwrap();
            assert_eq!(recv(&small), pattern(10));
            large.send(&pattern(1000)).unwrap();
            assert_eq!(recv(&large), pattern(1000));
        }
    });
}

/// Of a batch that has been received, too.
#[test]
fn nothing_is_delivered_to_a_socket_that_has_closed_itself() {
    each_poller!().run(|| {
        let running = start(|event_loop| {
            let count = AtomicU32::new(0);
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .on_datagram(move |socket, _| {
                    // The fourth batch brings the ones from the eighth to the fifteenth.
                    if count.fetch_add(1, Ordering::Relaxed) == 10 {
                        socket.close();
                    }
                })
                .start()
        });
        let peer = running.peer();
        let release = hold(running.event_loop());
        (0..30).for_each(|_| assert_eq!(peer.send(b"x").unwrap(), 1));
        drop(release);
        running.wait();
        assert_eq!(running.metrics().received, 11);
    });
}

/// How often the loop has its turn while a flood is worked off.
#[test]
fn b15_a_flood_of_datagrams_takes_turns_with_the_rest() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let running = start(move |event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .batch(8)
                .on_datagram(move |socket, _| {
                    send.send(socket.event_loop().metrics().turns).unwrap();
                })
                .start()
        });
        let peer = running.peer();
        let release = hold(running.event_loop());
        for _ in 0..80 {
            peer.send(b"x").unwrap();
        }
        drop(release);
        let turns: Vec<u64> = (0..80).map(|_| within(&receive)).collect();
        // They come together, after the first few.
        assert!(turns.chunk_by(|a, b| a == b).count() <= 20, "{turns:?}");
        for turn in &turns {
            let in_this = turns.iter().filter(|t| *t == turn).count();
            assert!(in_this <= 8, "{in_this} datagrams in one turn: {turns:?}");
        }
    });
}

#[test]
fn times_of_arrival_are_told_if_they_are_asked_for() {
    each_poller!().run(|| {
        for batch in [1, 32] {
            for timestamps in [false, true] {
                let (send, receive) = channel();
                let running = start(move |event_loop| {
                    UdpServer::bind(event_loop, "127.0.0.1:0")
                        .batch(batch)
                        .timestamps(timestamps)
                        .on_datagram(move |_, datagram| {
                            send.send(datagram.received_at()).unwrap();
                        })
                        .start()
                });
                let before = SystemTime::now();
                running.peer().send(b"x").unwrap();
                let time = within(&receive);
                assert_eq!(time.is_some(), timestamps);
                if let Some(time) = time {
                    // The clock of the system may be set; nobody does it by an hour here.
                    let hour = Duration::from_secs(3600);
                    assert!(time > before - hour && time < before + hour, "{time:?}");
                }
            }
        }
    });
}

#[test]
fn handles_send_from_any_thread_and_in_order() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let running = start(move |event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .on_datagram(move |socket, datagram| {
                    send.send((socket.handle(), datagram.peer())).unwrap();
                })
                .start()
        });
        let peer = running.peer();
        peer.send(b"hello").unwrap();
        let (handle, address): (UdpSocketHandle, Address) = within(&receive);
        for i in 0..50_u8 {
            handle.send_to([i], &address).unwrap();
        }
        for i in 0..50 {
            assert_eq!(recv(&peer), [i]);
        }
        // On the loop's own thread, what another has posted before comes first.
        let release = hold(running.event_loop());
        let (here, there) = (handle.clone(), address.clone());
        running.event_loop().post(move |_| here.send_to("second", &there).unwrap()).unwrap();
        handle.send_to("first", &address).unwrap();
        drop(release);
        assert_eq!(recv(&peer), b"first");
        assert_eq!(recv(&peer), b"second");

        // Otherwise it is done at once, before what comes later in the same callback.
        let there = address.clone();
        let send = move |socket: &UdpSocket<'_>| {
            socket.handle().send_to("third", &there).unwrap();
            socket.send_to("fourth", &there);
        };
        handle.post(send).unwrap();
        assert_eq!(recv(&peer), b"third");
        assert_eq!(recv(&peer), b"fourth");

        let (send, receive) = channel();
        handle.post(move |socket| send.send(socket.local_addr().clone()).unwrap()).unwrap();
        assert_eq!(within(&receive), Address::Ip(running.addr()));
        handle.post(|socket| socket.close()).unwrap();
        running.udp.wait().unwrap();
        assert_eq!(handle.send_to("late", &address), Err(SendError::Closed));
        assert!(handle.is_closed());
    });
}

#[test]
fn a_handle_that_sends_more_than_the_queue_may_hold_is_told() {
    each_poller!().run(|| {
        let running = start(|event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .queue_limit(10_000)
                .on_datagram(|_, _| {})
                .start()
        });
        let release = hold(running.event_loop());
        let (handle, to) = (running.udp.socket().clone(), nobody());
        let outcomes: Vec<_> = (0..20).map(|_| handle.send_to([0; 1000], &to)).collect();
        let taken = outcomes.iter().take_while(|outcome| outcome.is_ok()).count();
        assert!((5..10).contains(&taken), "{outcomes:?}");
        assert!(outcomes[taken..].iter().all(|outcome| *outcome == Err(SendError::Full)));
        drop(release);
        eventually("all has left", || running.metrics().sent == taken as u64);
        // What is on its way has a price beside its bytes, which keeps nobody from sending at all.
        let running = start(|event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .queue_limit(100)
                .on_datagram(|_, _| {})
                .start()
        });
        let peer = peer("127.0.0.1:0");
        let to = peer.local_addr().unwrap().into();
        running.udp.socket().send_to("and on", &to).unwrap();
        assert_eq!(recv(&peer), b"and on");
    });
}

#[test]
fn a_connected_socket_hears_its_peer_alone_and_names_nobody_else() {
    each_poller!().run(|| {
        let (near, far) = (peer("127.0.0.1:0"), peer("127.0.0.1:0"));
        let target = near.local_addr().unwrap();
        let other: Address = far.local_addr().unwrap().into();
        let (send, receive) = channel();
        let running = start(move |event_loop| {
            UdpClient::connect(event_loop, target)
                .on_start(move |socket| {
                    assert_eq!(socket.peer_addr(), Some(&Address::Ip(target)));
                    socket.send("hello");
                    socket.send_to("not to you", &other);
                })
                .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                .on_error(move |_, error| send.send(error.to_string()).unwrap())
                .start()
        });
        assert_eq!(recv(&near), b"hello");
        assert!(within(&receive).contains("connected"));
        assert_eq!(running.metrics().send_errors, 1);
        near.connect(running.addr()).unwrap();
        far.connect(running.addr()).unwrap();
        far.send(b"I am not your peer").unwrap();
        assert_echoes(&near);
        assert_eq!(running.metrics().received, 1);
    });
}

#[test]
fn without_permission_to_broadcast_it_is_an_error_that_names_the_cure() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let running = start(move |event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .on_datagram(|_, _| {})
                .on_error(move |_, error| send.send((error.kind(), error.to_string())).unwrap())
                .start()
        });
        let broadcast = "127.255.255.255:9".parse().unwrap();
        running.udp.socket().send_to("to all", &broadcast).unwrap();
        let (kind, text) = within(&receive);
        assert_eq!(kind, ErrorKind::PermissionDenied);
        assert!(text.contains("127.255.255.255:9") && text.contains("broadcast"), "{text}");
    });
}

#[test]
fn broadcast_reaches_who_listens_to_all() {
    each_poller!().run(|| {
        let receiver = echo_at("0.0.0.0:0");
        let sender = start(|event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .broadcast(true)
                .on_datagram(|_, _| {})
                .start()
        });
        let to: Address = format!("127.255.255.255:{}", receiver.addr().port()).parse().unwrap();
        sender.udp.socket().send_to("to all", &to).unwrap();
        eventually("it has come", || receiver.metrics().received == 1);
        eventually("and its answer", || sender.metrics().received == 1);
    });
}

fn echo_at(address: &'static str) -> Running {
    start(move |event_loop| {
        UdpServer::bind(event_loop, address)
            .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
            .start()
    })
}

#[test]
fn a_socket_of_ipv6_serves_both_unless_told_not_to() {
    each_poller!().run(|| {
        if std::net::UdpSocket::bind("[::1]:0").is_err() {
            return eprintln!("SKIPPED: this machine has no IPv6");
        }
        let running = echo_at("[::]:0");
        let port = running.addr().port();
        for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
            let peer = peer(if address.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" });
            peer.connect(&address).unwrap();
            assert_echoes(&peer);
        }
        // An address of IPv4 is understood, as a destination.
        let v4 = peer("127.0.0.1:0");
        let to: Address = v4.local_addr().unwrap().into();
        running.udp.socket().send_to("hello", &to).unwrap();
        assert_eq!(recv(&v4), b"hello");

        let only = start(|event_loop| {
            UdpServer::bind(event_loop, "[::]:0")
                .ipv6_only(true)
                .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                .start()
        });
        let v4 = peer("127.0.0.1:0");
        v4.connect(("127.0.0.1", only.addr().port())).unwrap();
        v4.send(b"hello").unwrap();
        assert_eq!(v4.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        let v6 = peer("[::1]:0");
        v6.connect(("::1", only.addr().port())).unwrap();
        assert_echoes(&v6);
    });
}

#[derive(Default)]
struct Counter(u64);

impl UdpHandler for Counter {
    fn on_datagram(&mut self, socket: &UdpSocket<'_>, datagram: &Datagram<'_>) {
        self.0 += 1;
        let thread = std::thread::current();
        socket.answer(datagram, format!("{} {}", thread.name().unwrap_or_default(), self.0));
    }
}

#[test]
fn several_loops_share_a_port() {
    each_poller!().run(|| {
        let running = start(|event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .threads(3)
                .name("udp")
                .serve(|_| Counter::default())
        });
        assert_eq!(running.udp.sockets().len(), 3);
        // The kernel chooses by the addresses; of so many each gets some.
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let peer = running.peer();
            peer.send(b"x").unwrap();
            let answer = String::from_utf8(recv(&peer)).unwrap();
            names.insert(answer.split_once(' ').unwrap().0.to_owned());
        }
        assert_eq!(Vec::from_iter(names), ["udp-0", "udp-1", "udp-2"]);
        running.stop();
        assert_eq!(running.metrics().received, 200);
    });
}

#[test]
fn a_port_is_shared_with_others_who_share_it_too() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let bind = |address: &Address, shared: bool| {
            let bind = UdpServer::bind(&event_loop, address).reuse_port(shared);
            bind.on_datagram(|_, _| {}).start()
        };
        let any = "127.0.0.1:0".parse().unwrap();
        for shared in [true, false] {
            let first = bind(&any, shared).unwrap();
            let again = |shared| bind(first.local_addr(), shared).map_err(|e| e.kind());
            assert_eq!(again(false).unwrap_err(), ErrorKind::AddrInUse);
            if shared {
                assert_eq!(again(true).unwrap().local_addr(), first.local_addr());
            } else {
                assert_eq!(again(true).unwrap_err(), ErrorKind::AddrInUse);
            }
        }
    });
}

/// More than one event may take, each in a call of its own.
#[test]
fn what_one_callback_sends_leaves_however_much_it_is_and_takes_turns() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let running = start(|event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .batch(1)
                .on_datagram(move |socket, datagram| {
                    (0..200_u8).for_each(|i| socket.answer(datagram, [i]));
                    let send = send.clone();
                    let look = move |socket: &UdpSocket<'_>| send.send(socket.queued()).unwrap();
                    socket.handle().post(look).unwrap();
                })
                .start()
        });
        let peer = running.peer();
        peer.send(b"go").unwrap();
        (0..200).for_each(|i| assert_eq!(recv(&peer), [i]));
        // The tasks of the same turn have not waited for all of them.
        assert!(within(&receive) > 0);
    });
}

#[test]
fn a_pool_can_be_shared_and_lives_on() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let running = start(move |event_loop| {
            let pool = LoopPool::builder(event_loop).threads(2).start()?;
            let udp = UdpServer::bind(event_loop, "127.0.0.1:0")
                .pool(&pool)
                .serve(|_| Counter::default())?;
            send.send(pool).unwrap();
            Ok(udp)
        });
        let pool = within(&receive);
        // Its sockets are put on the loops by and by.
        for _ in 0..20 {
            let peer = running.peer();
            peer.send(b"x").unwrap();
            recv(&peer);
        }
        running.stop();
        let (send, receive) = channel();
        pool.loops()[0].post(move |_| send.send(()).unwrap()).unwrap();
        within(&receive);
    });
}

#[test]
fn sockets_on_a_shared_pool_end_with_the_loop_that_they_were_started_on() {
    each_poller!().run(|| {
        let others = EventLoop::new().unwrap();
        let pool = LoopPool::builder(&others).threads(2).start().unwrap();
        let (send, told) = channel();
        let base = LoopThread::spawn("base", EventLoop::builder(), {
            let pool = pool.clone();
            move |event_loop| {
                let make = move |_: &EventLoop| Told(send.clone());
                UdpServer::bind(event_loop, "127.0.0.1:0").pool(&pool).serve(make)?;
                Ok(())
            }
        });
        assert_eq!(["start", "start"], [(); 2].map(|()| within(&told)));
        base.unwrap().join().unwrap();
        assert_eq!(["close", "close"], [(); 2].map(|()| within(&told)));
        let (send, receive) = channel();
        pool.loops()[0].post(move |_| send.send(()).unwrap()).unwrap();
        within(&receive);
    });
}

/// Says what is called, and when.
struct Told(Sender<&'static str>);

impl UdpHandler for Told {
    fn on_start(&mut self, _: &UdpSocket<'_>) {
        self.0.send("start").unwrap();
    }
    fn on_datagram(&mut self, _: &UdpSocket<'_>, _: &Datagram<'_>) {}
    fn on_close(&mut self, _: &UdpSocket<'_>) {
        self.0.send("close").unwrap();
    }
}

/// All of it is posted before the loop has served the socket for the first time.
#[test]
fn whatever_comes_first_the_handler_has_started() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let pool = LoopPool::builder(&event_loop).threads(1).start().unwrap();
        let release = hold(&pool.loops()[0]);
        let (send, told) = channel();
        let told_too = send.clone();
        let udp = UdpServer::bind(&event_loop, "127.0.0.1:0")
            .pool(&pool)
            .serve(move |_| Told(send.clone()))
            .unwrap();
        udp.socket().post(move |_| told_too.send("call").unwrap()).unwrap();
        udp.stop(DEADLINE);
        drop(release);
        assert_eq!(["start", "call", "close"], [(); 3].map(|()| within(&told)));
    });
}

#[test]
fn what_a_loop_sends_by_a_handle_before_it_has_the_socket_is_not_lost() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let pool = LoopPool::builder(&event_loop).threads(1).start().unwrap();
        let peer = peer("127.0.0.1:0");
        let to: Address = peer.local_addr().unwrap().into();
        let (hand_over, handed_over) = channel::<UdpSocketHandle>();
        let send = move |_: &EventLoop| within(&handed_over).send_to("hello", &to).unwrap();
        pool.loops()[0].post(send).unwrap();
        let udp = UdpServer::bind(&event_loop, "127.0.0.1:0")
            .pool(&pool)
            .on_datagram(|_, _| {})
            .start()
            .unwrap();
        hand_over.send(udp.socket().clone()).unwrap();
        assert_eq!(recv(&peer), b"hello");
    });
}

#[test]
fn a_deadline_for_stopping_goes_with_the_socket() {
    each_poller!().run(|| {
        let running = echo();
        let (send, receive) = channel();
        let task = move |event_loop: &EventLoop| {
            for _ in 0..20 {
                let bind = UdpServer::bind(event_loop, "127.0.0.1:0");
                let udp = bind.on_datagram(|_, _| {}).start().unwrap();
                udp.stop(Duration::from_millis(30));
                udp.stop(Duration::from_millis(20));
                udp.stop(Duration::from_millis(25));
            }
            event_loop.run_after(Duration::from_millis(50), move |event_loop| {
                send.send(event_loop.metrics().timers).unwrap();
            });
        };
        running.event_loop().post(task).unwrap();
        assert_eq!(within(&receive), 1, "timers, with the one that tells");
    });
}

#[test]
fn stopping_lets_leave_what_is_queued_and_ends() {
    each_poller!().run(|| {
        for threads in [0, 2] {
            let running = start(move |event_loop| {
                UdpServer::bind(event_loop, "127.0.0.1:0")
                    .threads(threads)
                    .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                    .start()
            });
            let peer = running.peer();
            assert_echoes(&peer);
            let to: Address = peer.local_addr().unwrap().into();
            running.udp.socket().send_to("goodbye", &to).unwrap();
            running.stop();
            assert_eq!(recv(&peer), b"goodbye");
            assert!(running.udp.is_ended());
            assert_eq!(running.metrics().open, 0);
            // The port is free again.
            drop(std::net::UdpSocket::bind(running.addr()).unwrap());
            running.udp.stop(Duration::ZERO);
        }
    });
}

#[test]
fn the_end_of_the_loop_is_the_end_of_its_sockets() {
    each_poller!().run(|| {
        for threads in [0, 2] {
            let (send, receive) = channel();
            let running = start(move |event_loop| {
                UdpServer::bind(event_loop, "127.0.0.1:0")
                    .threads(threads)
                    .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                    .on_close(move |_| send.send(()).unwrap())
                    .start()
            });
            running.assert_echoes();
            let Running { udp, thread } = running;
            thread.join().unwrap();
            for _ in 0..threads.max(1) {
                within(&receive);
            }
            udp.wait().unwrap();
            assert_eq!(udp.metrics().open, 0);
        }
    });
}

/// Ends its socket in one of its callbacks, and tells of all.
struct Ends {
    within: &'static str,
    how: fn(&UdpSocket<'_>, &UdpHandle),
    all: Arc<OnceLock<UdpHandle>>,
    told: Sender<&'static str>,
}

impl Ends {
    fn called(&self, which: &'static str, socket: &UdpSocket<'_>) {
        self.told.send(which).unwrap();
        if which == self.within {
            (self.how)(socket, self.all.wait());
        }
    }
}

impl UdpHandler for Ends {
    fn on_start(&mut self, socket: &UdpSocket<'_>) {
        self.called("start", socket);
    }
    fn on_datagram(&mut self, socket: &UdpSocket<'_>, datagram: &Datagram<'_>) {
        self.called("datagram", socket);
        socket.answer(datagram, vec![0; 65_508]);
    }
    fn on_error(&mut self, socket: &UdpSocket<'_>, _: &ruduo::DatagramError) {
        self.called("error", socket);
    }
    fn on_close(&mut self, socket: &UdpSocket<'_>) {
        self.called("close", socket);
    }
}

#[test]
fn a_socket_may_end_in_each_callback_and_is_told_so_once() {
    each_poller!().run(|| {
        let ways: [fn(&UdpSocket<'_>, &UdpHandle); 3] = [
            |socket, _| socket.close(),
            |_, all| all.stop(Duration::ZERO),
            |socket, _| {
                // It may have ended.
                let _ = socket.handle().post(|socket| socket.close());
            },
        ];
        for (i, how) in ways.into_iter().enumerate() {
            for within in ["start", "datagram", "error", "close"] {
                let (send, told) = channel();
                let all = Arc::<OnceLock<UdpHandle>>::default();
                let known = all.clone();
                let running = start(move |event_loop| {
                    UdpServer::bind(event_loop, "127.0.0.1:0").serve(move |_| Ends {
                        within,
                        how,
                        all: known.clone(),
                        told: send.clone(),
                    })
                });
                all.set(running.udp.clone()).unwrap();
                let release = hold(running.event_loop());
                for _ in 0..3 {
                    // Nobody is there any more, perhaps.
                    let _ = running.peer().send(b"x");
                }
                drop(release);
                if within == "close" {
                    running.udp.stop(Duration::ZERO);
                }
                running.udp.wait().unwrap();
                drop(running);
                let told: Vec<_> = told.iter().collect();
                assert_eq!(told[0], "start");
                assert_eq!(told.last(), Some(&"close"), "{told:?}");
                assert_eq!(told.iter().filter(|which| **which == "close").count(), 1);
                if i == 0 && within != "close" {
                    assert_eq!(told[told.len() - 2], within, "{told:?}");
                }
                drop(all);
            }
        }
    });
}

#[test]
fn waiting_on_a_loop_is_an_error() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let udp =
            UdpServer::bind(&event_loop, "127.0.0.1:0").on_datagram(|_, _| {}).start().unwrap();
        assert!(udp.wait().unwrap_err().to_string().contains("stand still"));
        drop(event_loop);
        udp.wait().unwrap();
    });
}

#[test]
fn signals_stop_datagrams_and_connections_of_a_loop_together() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let udp =
            UdpServer::bind(&event_loop, "127.0.0.1:0").on_datagram(|_, _| {}).start().unwrap();
        let tcp = TcpServer::bind(&event_loop, "127.0.0.1:0")
            .unwrap()
            .on_message(|conn, input| conn.send_buffer(input))
            .start()
            .unwrap();
        udp.stop_on_signals(&event_loop, DEADLINE).unwrap();
        tcp.stop_on_signals(&event_loop, DEADLINE).unwrap();
        event_loop.defer(|_| nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap());
        event_loop.run().unwrap();
        assert!(udp.is_ended() && tcp.is_ended());
    });
}

#[test]
fn datagrams_that_have_ended_before_a_signal_do_not_hold_up_the_rest() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let udp =
            UdpServer::bind(&event_loop, "127.0.0.1:0").on_datagram(|_, _| {}).start().unwrap();
        udp.stop_on_signals(&event_loop, DEADLINE).unwrap();
        udp.socket().post(|socket| socket.close()).unwrap();
        // One signal, for another one ends everything at once.
        let (ended, told) = (udp.clone(), Cell::new(false));
        event_loop.run_every(Duration::from_millis(1), move |_| {
            if ended.is_ended() && !told.replace(true) {
                nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
            }
        });
        runs_to_its_end(&event_loop);
    });
}

/// Sends more when it is over, and what a socket cannot send when it hears of that.
struct Persists(Sender<String>);

impl UdpHandler for Persists {
    fn on_start(&mut self, socket: &UdpSocket<'_>) {
        socket.send_to("1", &nobody());
    }
    fn on_datagram(&mut self, _: &UdpSocket<'_>, _: &Datagram<'_>) {}
    fn on_error(&mut self, socket: &UdpSocket<'_>, error: &ruduo::DatagramError) {
        self.0.send(error.to_string()).unwrap();
        socket.send_to("again", &nobody());
    }
    fn on_close(&mut self, socket: &UdpSocket<'_>) {
        socket.send("too late");
        socket.send("too late");
    }
}

#[test]
fn what_is_sent_in_vain_is_told_again_and_again_and_counted() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let target = nobody();
        let running = start(move |event_loop| {
            UdpClient::connect(event_loop, target).serve(move |_| Persists(send.clone()))
        });
        for _ in 0..10 {
            assert!(within(&receive).contains("connected"));
        }
        // Each of them in a turn of its own, so others have theirs.
        running.udp.stop(Duration::ZERO);
        running.wait();
        let metrics = running.metrics();
        assert_eq!((metrics.discarded, metrics.sent), (2, 0), "{metrics}");
        assert!(metrics.send_errors >= 10, "{metrics}");
    });
}

#[test]
fn a_panic_costs_its_datagram_and_nothing_else() {
    each_poller!().expect_log("panicked: on purpose").run(|| {
        let running = start(|event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .on_datagram(|socket, datagram| {
                    socket.answer(datagram, datagram.bytes());
                    if datagram.bytes() == b"panic" {
                        panic!("on purpose");
                    }
                })
                .start()
        });
        let peer = running.peer();
        let release = hold(running.event_loop());
        for bytes in [&b"before"[..], b"panic", b"between", b"panic", b"behind"] {
            peer.send(bytes).unwrap();
        }
        drop(release);
        for bytes in [&b"before"[..], b"panic", b"between", b"panic", b"behind"] {
            assert_eq!(recv(&peer), bytes);
        }
        let (send, receive) = channel();
        running
            .event_loop()
            .post(move |event_loop| send.send(event_loop.metrics().panics).unwrap())
            .unwrap();
        assert_eq!(within(&receive), 2);
    });
}

/// Panics everywhere but for datagrams.
struct Panics(Sender<&'static str>);

impl UdpHandler for Panics {
    fn on_start(&mut self, _: &UdpSocket<'_>) {
        self.0.send("start").unwrap();
        panic!("on purpose");
    }
    fn on_datagram(&mut self, socket: &UdpSocket<'_>, datagram: &Datagram<'_>) {
        socket.answer(datagram, datagram.bytes());
    }
    fn on_error(&mut self, _: &UdpSocket<'_>, _: &ruduo::DatagramError) {
        self.0.send("error").unwrap();
        panic!("on purpose");
    }
    fn on_close(&mut self, _: &UdpSocket<'_>) {
        self.0.send("close").unwrap();
        panic!("on purpose");
    }
}

impl Drop for Panics {
    fn drop(&mut self) {
        let _ = self.0.send("drop");
        panic!("on purpose");
    }
}

#[test]
fn panics_of_other_callbacks_do_not_end_the_socket_either() {
    each_poller!().expect_log("on purpose").run(|| {
        let (send, receive) = channel();
        let running = start(move |event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0").serve(move |_| Panics(send.clone()))
        });
        assert_eq!(within(&receive), "start");
        running.assert_echoes();
        let broadcast = "127.255.255.255:9".parse().unwrap();
        running.udp.socket().send_to("not allowed", &broadcast).unwrap();
        assert_eq!(within(&receive), "error");
        running.udp.socket().post(|_| panic!("on purpose")).unwrap();
        running.assert_echoes();
        running.stop();
        assert_eq!(within(&receive), "close");
        assert_eq!(within(&receive), "drop");
    });
}

#[test]
fn what_cannot_be_opened_is_an_error_with_the_address() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let taken = peer("127.0.0.1:0");
        let address = taken.local_addr().unwrap();
        let start = |address: &str| {
            UdpServer::bind(&event_loop, address).on_datagram(|_, _| {}).start().unwrap_err()
        };
        let error = start(&address.to_string());
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        assert!(start("nonsense").to_string().contains("nonsense"));
        let error = UdpClient::connect(&event_loop, "127.0.0.1:9")
            .threads(2)
            .on_datagram(|_, _| {})
            .start()
            .unwrap_err();
        assert!(error.to_string().contains("one loop"), "{error}");
        let error = UdpClient::connect(&event_loop, "127.0.0.1:9")
            .bind_local("[::1]:0")
            .on_datagram(|_, _| {})
            .start()
            .unwrap_err();
        assert!(error.to_string().contains("another kind"), "{error}");
        let bind = || UdpServer::bind(&event_loop, "127.0.0.1:0").on_datagram(|_, _| {});
        for builder in [bind().batch(0), bind().batch(2000), bind().receive_size(usize::MAX)] {
            assert_eq!(builder.start().unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        // As little as there is, and as much.
        bind().batch(1024).receive_size(0).start().unwrap();
    });
}
