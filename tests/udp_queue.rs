//! What waits to be sent: the bound, what is done without room, and when sending fails for a while.

// The peers have abstract names.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;
mod datagrams;

use std::cell::RefCell;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use common::{Alone, DEADLINE, eventually, runs_to_its_end, within};
use datagrams::{Running, failing, hold, peer, recv, start, timers_until, turns_in, with_fd_at};
use nix::sys::socket::{getsockopt, sockopt};
use ruduo::{Address, PollerKind, UdpClient, UdpServer, UdpSocketHandle, WhenFull};

/// A peer whose kernel keeps a few datagrams for it, and then no more.
struct Reader {
    socket: UnixDatagram,
    name: String,
}

impl Reader {
    fn new() -> Reader {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ruduo-reader-{}-{n}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Reader { socket, name }
    }

    fn address(&self) -> Address {
        format!("unix:@{}", self.name).parse().unwrap()
    }

    #[track_caller]
    fn recv(&self) -> Vec<u8> {
        let mut bytes = vec![0; 65_536];
        let n = self.socket.recv(&mut bytes).unwrap();
        bytes.truncate(n);
        bytes
    }

    /// What its kernel has for it now.
    fn recv_all(&self) -> Vec<u32> {
        let mut all = Vec::new();
        self.socket.set_nonblocking(true).unwrap();
        let mut bytes = [0; 2000];
        while let Ok(n) = self.socket.recv(&mut bytes) {
            all.push(number(&bytes[..n]));
        }
        self.socket.set_nonblocking(false).unwrap();
        all
    }
}

/// A datagram of 1,000 bytes with a number in it.
fn numbered(n: u32) -> Vec<u8> {
    let mut bytes = vec![0; 1000];
    bytes[..4].copy_from_slice(&n.to_le_bytes());
    bytes
}

fn number(bytes: &[u8]) -> u32 {
    assert_eq!(bytes.len(), 1000);
    u32::from_le_bytes(bytes[..4].try_into().unwrap())
}

fn send_numbered(handle: &UdpSocketHandle, count: u32) {
    let send =
        move |socket: &ruduo::UdpSocket<'_>| (0..count).for_each(|n| socket.send(numbered(n)));
    handle.post(send).unwrap();
}

/// Sends a thousand datagrams at once, of which the queue holds nine, to a peer that reads nothing
/// until all is settled. Returns what the peer got.
fn flood(when_full: WhenFull) -> (Vec<u32>, Running) {
    let reader = Reader::new();
    let target = reader.address();
    let (send, receive) = channel();
    let running = start(move |event_loop| {
        UdpClient::connect(event_loop, &target)
            .queue_limit(10_000)
            .when_full(when_full)
            .on_datagram(|_, _| {})
            .on_drained(move |_| send.send(()).unwrap())
            .start()
    });
    let handle = running.udp.socket();
    // So many that the peer's kernel takes no more.
    let queued = || {
        let (send, receive) = channel();
        handle.post(move |socket| send.send(socket.queued()).unwrap()).unwrap();
        within(&receive)
    };
    eventually("the peer is full", || {
        handle.send(numbered(1_000_000)).unwrap();
        // What is sent leaves at the end of the turn; what is posted then runs in a later one.
        queued();
        queued() > 0
    });
    send_numbered(handle, 1000);
    queued();
    let queued = queued();
    assert!(queued <= if when_full == WhenFull::PauseReading { 20_000 } else { 10_000 });
    let all = RefCell::new(Vec::new());
    eventually("all has left", || {
        let drained = receive.try_recv().is_ok();
        all.borrow_mut().extend(reader.recv_all());
        drained
    });
    let mut all = all.take();
    all.retain(|n| *n < 1_000_000);
    (all, running)
}

#[test]
fn without_room_the_newest_is_dropped() {
    each_poller!().run(|| {
        let (all, running) = flood(WhenFull::DropNewest);
        assert!((5..10).contains(&all.len()), "{all:?}");
        assert_eq!(all, Vec::from_iter(0..all.len() as u32));
        let metrics = running.metrics();
        assert_eq!(metrics.dropped_newest, 1000 - all.len() as u64, "{metrics}");
        assert_eq!((metrics.dropped_oldest, metrics.send_errors), (0, 0), "{metrics}");
    });
}

#[test]
fn without_room_the_oldest_is_dropped() {
    each_poller!().run(|| {
        let (all, running) = flood(WhenFull::DropOldest);
        assert!((5..10).contains(&all.len()), "{all:?}");
        assert_eq!(all, Vec::from_iter(1000 - all.len() as u32..1000));
        let metrics = running.metrics();
        assert!(metrics.dropped_oldest >= 1000 - all.len() as u64, "{metrics}");
        assert_eq!((metrics.dropped_newest, metrics.send_errors), (0, 0), "{metrics}");
    });
}

#[test]
fn pausing_still_has_a_bound() {
    each_poller!().run(|| {
        let (all, running) = flood(WhenFull::PauseReading);
        assert!((12..20).contains(&all.len()), "{all:?}");
        assert_eq!(all, Vec::from_iter(0..all.len() as u32));
        let metrics = running.metrics();
        assert_eq!(metrics.dropped_newest, 1000 - all.len() as u64, "{metrics}");
    });
}

/// The bound is a bound, also for the first in the queue; and nothing waits for it.
#[test]
fn what_is_larger_than_the_queue_is_dropped_and_the_rest_leaves() {
    each_poller!().run(|| {
        for when_full in [WhenFull::DropNewest, WhenFull::DropOldest, WhenFull::PauseReading] {
            for limit in [0, 1, 1000] {
                let running = start(move |event_loop| {
                    UdpServer::bind(event_loop, "127.0.0.1:0")
                        .queue_limit(limit)
                        .when_full(when_full)
                        .on_datagram(|socket, datagram| {
                            socket.answer(datagram, [7; 60_000]);
                            socket.answer(datagram, datagram.bytes());
                        })
                        .start()
                });
                let peer = running.peer();
                for n in 1..=3 {
                    peer.send(b"small").unwrap();
                    if limit == 1000 {
                        assert_eq!(recv(&peer), b"small");
                    }
                    eventually("it goes on", || running.metrics().received == n);
                }
                running.stop();
                let metrics = running.metrics();
                let sent = if limit == 1000 { 3 } else { 0 };
                assert_eq!((metrics.sent, metrics.dropped_newest), (sent, 6 - sent), "{metrics}");
                assert_eq!((metrics.dropped_oldest, metrics.paused_by_output), (0, 0));
            }
        }
    });
}

#[test]
fn a_socket_that_pauses_reading_loses_nothing_of_a_peer_that_reads_late() {
    each_poller!().run(|| {
        let reader = Reader::new();
        let target = reader.address();
        let running = start(move |event_loop| {
            UdpClient::connect(event_loop, &target)
                .bind_local(format!("{target}-answers"))
                .queue_limit(64 * 1024)
                .when_full(WhenFull::PauseReading)
                .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                .start()
        });
        let to = SocketAddr::from_abstract_name(format!("{}-answers", reader.name)).unwrap();
        reader.socket.set_nonblocking(true).unwrap();
        // Until its kernel takes no more either, for the socket receives nothing more.
        let mut sent = 0;
        let mut paused = || {
            while reader.socket.send_to_addr(&numbered(sent), &to).is_ok() {
                sent += 1;
            }
            running.metrics().paused_by_output == 1
        };
        let start = std::time::Instant::now();
        while !paused() {
            assert!(start.elapsed() < DEADLINE, "{}", running.metrics());
            std::thread::yield_now();
        }
        eventually("it stands still", || {
            turns_in(running.event_loop(), Duration::from_millis(20)) < 5
        });
        let before = running.metrics();
        assert!(u64::from(sent) > before.received || sent > 64, "{sent} {before}");
        reader.socket.set_nonblocking(false).unwrap();
        // Some may leave, but not half of the queue: it goes on waiting for that.
        let some = 5;
        (0..some).for_each(|n| assert_eq!(number(&reader.recv()), n));
        eventually("as many have left", || running.metrics().sent >= before.sent + u64::from(some));
        assert!(turns_in(running.event_loop(), Duration::from_millis(20)) < 20);
        assert_eq!(running.metrics().received, before.received);
        for n in some..sent {
            assert_eq!(number(&reader.recv()), n);
        }
        let metrics = running.metrics();
        assert_eq!((metrics.dropped_newest, metrics.dropped_oldest), (0, 0), "{metrics}");
        // And it goes on.
        reader.socket.send_to_addr(&numbered(7), &to).unwrap();
        assert_eq!(number(&reader.recv()), 7);
    });
}

#[test]
fn a_peer_that_takes_no_more_keeps_nobody_else_waiting() {
    each_poller!().run(|| {
        let (slow, quick) = (Reader::new(), Reader::new());
        let name = format!("{}-server", slow.name);
        let address = format!("unix:@{name}");
        let (send, receive) = channel();
        let running = start(move |event_loop| {
            UdpServer::bind(event_loop, address)
                .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                .on_error(move |_, error| {
                    let _ = send.send((error.kind(), error.peer().cloned()));
                })
                .start()
        });
        let to = SocketAddr::from_abstract_name(&name).unwrap();
        // Until an answer is more than its kernel keeps.
        let mut told = None;
        for n in 0..100_000 {
            slow.socket.send_to_addr(&numbered(n), &to).unwrap();
            told = receive.try_recv().ok();
            if told.is_some() {
                break;
            }
        }
        assert_eq!(told, Some((ErrorKind::WouldBlock, Some(slow.address()))));
        assert!(turns_in(running.event_loop(), Duration::from_millis(50)) < 20);
        for n in 0..100 {
            quick.socket.send_to_addr(&numbered(n), &to).unwrap();
            assert_eq!(number(&quick.recv()), n);
        }
        let metrics = running.metrics();
        assert!(metrics.send_errors > 0, "{metrics}");
        assert_eq!((metrics.dropped_newest, metrics.dropped_oldest), (0, 0), "{metrics}");
    });
}

#[test]
fn stopping_waits_for_a_peer_that_reads_late() {
    each_poller!().run(|| {
        let reader = Reader::new();
        let target = reader.address();
        let running = start(move |event_loop| {
            UdpClient::connect(event_loop, &target).on_datagram(|_, _| {}).start()
        });
        send_numbered(running.udp.socket(), 900);
        running.udp.stop(DEADLINE);
        for n in 0..900 {
            assert_eq!(number(&reader.recv()), n);
        }
        running.wait();
        let metrics = running.metrics();
        assert_eq!((metrics.sent, metrics.discarded, metrics.open), (900, 0, 0), "{metrics}");
    });
}

#[test]
fn a_socket_that_stops_receives_nothing_more() {
    each_poller!().run(|| {
        let reader = Reader::new();
        let target = reader.address();
        let running = start(move |event_loop| {
            UdpClient::connect(event_loop, &target)
                .bind_local(format!("{target}-answers"))
                .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                .start()
        });
        send_numbered(running.udp.socket(), 900);
        running.udp.stop(DEADLINE);
        let (send, receive) = channel();
        running.udp.socket().post(move |_| send.send(()).unwrap()).unwrap();
        within(&receive);
        let to = SocketAddr::from_abstract_name(format!("{}-answers", reader.name)).unwrap();
        reader.socket.send_to_addr(b"too late", &to).unwrap();
        for n in 0..900 {
            assert_eq!(number(&reader.recv()), n);
        }
        running.wait();
        assert_eq!(running.metrics().received, 0);
    });
}

#[test]
fn stopping_has_a_deadline_for_what_does_not_leave() {
    each_poller!().run(|| {
        let reader = Reader::new();
        let target = reader.address();
        let running = start(move |event_loop| {
            UdpClient::connect(event_loop, &target).on_datagram(|_, _| {}).start()
        });
        send_numbered(running.udp.socket(), 900);
        running.udp.stop(Duration::from_millis(50));
        running.wait();
        let metrics = running.metrics();
        assert!(metrics.discarded > 0, "{metrics}");
        assert_eq!(metrics.sent + metrics.discarded, 900, "{metrics}");
        assert_eq!(metrics.open, 0);
    });
}

#[test]
fn of_several_deadlines_for_stopping_the_earliest_counts() {
    each_poller!().run(|| {
        let (early, late) = (Duration::from_millis(50), 100 * DEADLINE);
        for deadlines in [[early, late], [late, early]] {
            let reader = Reader::new();
            let target = reader.address();
            let running = start(move |event_loop| {
                UdpClient::connect(event_loop, &target).on_datagram(|_, _| {}).start()
            });
            send_numbered(running.udp.socket(), 900);
            for deadline in deadlines {
                running.udp.stop(deadline);
            }
            running.wait();
        }
    });
}

#[test]
fn a_signal_gives_what_does_not_leave_a_deadline() {
    use nix::sys::signal::{Signal, raise};
    each_poller!().run(|| {
        let reader = Reader::new();
        let event_loop = ruduo::EventLoop::new().unwrap();
        let udp = UdpClient::connect(&event_loop, reader.address())
            .on_start(|socket| {
                (0..900).for_each(|n| socket.send(numbered(n)));
                socket.event_loop().defer(|_| raise(Signal::SIGTERM).unwrap());
            })
            .on_datagram(|_, _| {})
            .start()
            .unwrap();
        udp.stop_on_signals(&event_loop, Duration::from_millis(50)).unwrap();
        runs_to_its_end(&event_loop);
        let metrics = udp.metrics();
        assert!(udp.is_ended() && metrics.discarded > 0, "{metrics}");
        assert_eq!(metrics.sent + metrics.discarded, 900, "{metrics}");
    });
}

#[test]
fn the_kernel_keeps_as_much_as_it_is_told_to() {
    each_poller!().run(|| {
        let running = start(|event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .kernel_receive_buffer(30_000)
                .kernel_send_buffer(20_000)
                .on_datagram(|_, _| {})
                .start()
        });
        with_fd_at(running.addr().port(), |fd| {
            // And as much again for what it needs itself.
            assert_eq!(getsockopt(&fd, sockopt::RcvBuf).unwrap(), 60_000);
            assert_eq!(getsockopt(&fd, sockopt::SndBuf).unwrap(), 40_000);
        });
    });
}

/// The kernel's count, by one who asks while it serves, and afterwards.
#[test]
fn what_the_kernel_has_no_room_for_is_counted() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let running = start(move |event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .kernel_receive_buffer(10_000)
                .on_datagram(move |_, _| send.send(()).unwrap())
                .start()
        });
        assert_eq!(running.metrics().dropped_by_kernel, Some(0));
        let peer = running.peer();
        let release = hold(running.event_loop());
        (0..100).for_each(|n| assert_eq!(peer.send(&numbered(n)).unwrap(), 1000));
        let dropped = running.metrics().dropped_by_kernel.unwrap();
        assert!((50..100).contains(&dropped), "{dropped}");
        drop(release);
        (dropped..100).for_each(|_| within(&receive));
        running.stop();
        let metrics = running.metrics();
        assert_eq!(metrics.received + dropped, 100, "{metrics}");
        assert_eq!(metrics.dropped_by_kernel, Some(dropped), "{metrics}");
        let line = metrics.to_string();
        assert!(line.ends_with(&format!(" dropped_by_kernel={dropped}")), "{line}");
    });
}

/// Whoever asks does not keep it open.
#[test]
fn asking_for_metrics_keeps_no_port() {
    each_poller!().run(|| {
        let running = start(|event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0").threads(2).on_datagram(|_, _| {}).start()
        });
        let asked = running.udp.clone();
        let asks = thread::spawn(move || while asked.metrics().open > 0 {});
        running.stop();
        drop(std::net::UdpSocket::bind(running.addr()).unwrap());
        asks.join().unwrap();
        assert_eq!(running.metrics().dropped_by_kernel, Some(0));
    });
}

/// Answers, at the first of which the kernel says what it is told to.
fn answered_in_spite_of(errno: &str, alone: Alone) {
    let how = format!("error={errno}:when=1..3");
    failing(alone, "sendmmsg,sendmsg", &how).run(|| {
        let (send, drained) = channel();
        let echo = start(move |event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                .on_drained(move |_| send.send(()).unwrap())
                .start()
        });
        let peer = echo.peer();
        let release = hold(echo.event_loop());
        peer.send(b"one").unwrap();
        peer.send(b"two").unwrap();
        drop(release);
        assert_eq!((recv(&peer), recv(&peer)), (b"one".to_vec(), b"two".to_vec()), "{errno}");
        within(&drained);
        eventually("it is counted", || echo.metrics().sent == 2);
        assert_eq!(echo.metrics().send_errors, 0, "{errno}");
        assert!(turns_in(echo.event_loop(), Duration::from_millis(50)) < 20);
    });
}

#[test]
fn without_memory_in_the_kernel_it_tries_again_later() {
    for errno in ["ENOBUFS", "ENOMEM"] {
        answered_in_spite_of(errno, each_poller!());
    }
}

#[test]
fn without_room_in_the_kernel_it_waits_for_some() {
    answered_in_spite_of("EAGAIN", each_poller!());
}

#[test]
fn calls_that_are_interrupted_are_made_again() {
    let calls = "recvmmsg,recvmsg,sendmmsg,sendmsg";
    failing(each_poller!(), calls, "error=EINTR:when=1+2").run(|| {
        for batch in [1, 32] {
            let echo = start(move |event_loop| {
                UdpServer::bind(event_loop, "127.0.0.1:0")
                    .batch(batch)
                    .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                    .start()
            });
            let peer = echo.peer();
            let release = hold(echo.event_loop());
            (0..20).for_each(|i| assert_eq!(peer.send(&[i]).unwrap(), 1));
            drop(release);
            (0..20).for_each(|i| assert_eq!(recv(&peer), [i]));
            echo.stop();
            let metrics = echo.metrics();
            assert_eq!((metrics.receive_errors, metrics.send_errors), (0, 0), "{metrics}");
        }
    });
}

/// A socket that counts errors; what it receives is told.
fn counting_errors(batch: usize) -> (Running, Receiver<Vec<u8>>) {
    let (send, receive) = channel();
    let running = start(move |event_loop| {
        UdpServer::bind(event_loop, "127.0.0.1:0")
            .batch(batch)
            .on_datagram(move |_, datagram| send.send(datagram.bytes().to_vec()).unwrap())
            .on_error(|_, error| assert!(!error.is_of_sending()))
            .start()
    });
    (running, receive)
}

/// Nobody tells when that is over, so it is tried again, now and then.
#[test]
fn receiving_that_fails_again_and_again_pauses_and_goes_on() {
    failing(each_poller!(), "recvmsg", "error=ENOBUFS:when=1..40").run(|| {
        let (running, receive) = counting_errors(1);
        running.peer().send(b"at last").unwrap();
        assert_eq!(within(&receive), b"at last");
        assert_eq!(running.metrics().receive_errors, 40);
        // After sixteen failures each.
        assert_eq!(timers_until(running.event_loop(), Duration::ZERO).0, 2);
    });
}

#[test]
fn receiving_that_fails_now_and_then_does_not_pause() {
    failing(each_poller!(), "recvmsg", "error=ENOBUFS:when=1+2").run(|| {
        let (running, receive) = counting_errors(1);
        let peer = running.peer();
        for i in 0..40 {
            peer.send(&[i]).unwrap();
            assert_eq!(within(&receive), [i]);
        }
        assert!(running.metrics().receive_errors > 30, "{}", running.metrics());
        assert_eq!(timers_until(running.event_loop(), Duration::from_millis(200)), (0, 1));
    });
}

#[test]
fn a_pause_ends_with_its_socket() {
    failing(each_poller!(), "recvmsg", "error=ENOBUFS").run(|| {
        let (running, _receive) = counting_errors(1);
        running.peer().send(b"never").unwrap();
        eventually("it pauses", || running.metrics().receive_errors >= 16);
        running.udp.socket().post(|socket| socket.close()).unwrap();
        // By the same way, so behind that.
        assert_eq!(timers_until(running.event_loop(), Duration::from_millis(300)).1, 1);
    });
}

/// Meanwhile it does not receive; errors are heard all the same, for these two would tell of them for
/// ever.
#[test]
fn a_socket_that_waits_hears_that_nobody_is_there() {
    for kind in [PollerKind::Epoll, PollerKind::Poll] {
        let alone = alone!().on_poller(kind);
        failing(alone, "sendmsg", "error=ENOBUFS:when=2+").run(refused_while_it_waits);
    }
}

fn refused_while_it_waits() {
    let (send, receive) = channel();
    // Nobody has the port any more.
    let nobody = peer("127.77.0.1:0").local_addr().unwrap();
    let running = start(move |event_loop| {
        UdpClient::connect(event_loop, nobody)
            .batch(1)
            .queue_limit(100)
            .when_full(WhenFull::PauseReading)
            .on_start(|socket| {
                socket.send("this leaves");
                socket.send([0; 90]);
            })
            .on_datagram(|_, _| {})
            .on_error(move |_, error| send.send((error.kind(), error.is_of_sending())).unwrap())
            .start()
    });
    assert_eq!(within(&receive), (ErrorKind::ConnectionRefused, false));
    let metrics = running.metrics();
    assert_eq!((metrics.sent, metrics.paused_by_output), (1, 1), "{metrics}");
    // It tries to send, every other millisecond.
    assert!(turns_in(running.event_loop(), Duration::from_millis(50)) < 60);
}

/// What has been tried once is dropped for others, of which the first has not been tried at all.
#[test]
fn what_takes_the_place_of_the_oldest_is_tried_twice_too() {
    failing(each_poller!(), "sendmsg", "error=EHOSTUNREACH:when=1..2").run(|| {
        let near = peer("127.0.0.1:0");
        let target = near.local_addr().unwrap();
        let (send, receive) = channel();
        let running = start(move |event_loop| {
            let first = AtomicBool::new(true);
            UdpClient::connect(event_loop, target)
                .batch(1)
                .queue_limit(150)
                .when_full(WhenFull::DropOldest)
                .on_datagram(|_, _| {})
                .on_error(move |socket, error| {
                    if first.swap(false, Ordering::Relaxed) {
                        socket.send([2; 100]);
                    }
                    send.send(error.kind()).unwrap();
                })
                .start()
        });
        running.udp.socket().send([1; 100]).unwrap();
        assert_eq!(recv(&near), [2; 100]);
        assert_eq!(within(&receive), ErrorKind::HostUnreachable);
        assert_eq!(within(&receive), ErrorKind::HostUnreachable);
        running.stop();
        let metrics = running.metrics();
        assert_eq!((metrics.sent, metrics.send_errors), (1, 0), "{metrics}");
        assert_eq!(metrics.dropped_oldest, 1, "{metrics}");
    });
}

#[test]
fn a_network_that_is_unreachable_is_an_error_value_each_time() {
    failing(each_poller!(), "sendmmsg,sendmsg", "error=EHOSTUNREACH").run(|| {
        let (send, receive) = channel();
        let (near, connected) = (peer("127.0.0.1:0"), peer("127.0.0.1:0"));
        let target = connected.local_addr().unwrap();
        let errors = send.clone();
        let server = start(move |event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .on_datagram(|socket, datagram| socket.answer(datagram, "x"))
                .on_error(move |_, error| errors.send(error.kind()).unwrap())
                .start()
        });
        near.send_to(b"x", server.addr()).unwrap();
        near.send_to(b"x", server.addr()).unwrap();
        assert_eq!(within(&receive), ErrorKind::HostUnreachable);
        assert_eq!(within(&receive), ErrorKind::HostUnreachable);
        // On a connected socket it might be of an earlier one: tried twice, told once.
        let client = start(move |event_loop| {
            UdpClient::connect(event_loop, target)
                .on_datagram(|_, _| {})
                .on_error(move |_, error| send.send(error.kind()).unwrap())
                .start()
        });
        client.udp.socket().send("x").unwrap();
        assert_eq!(within(&receive), ErrorKind::HostUnreachable);
        eventually("it is given up", || client.metrics().send_errors == 1);
        client.stop();
        server.stop();
        assert!(receive.try_recv().is_err());
    });
}
