//! Accepting connections that come in floods, are gone already, or that no loop can take.

#![allow(clippy::unwrap_used)]

mod calls;
mod common;

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use common::{Running, eventually, logs, read_n, read_to_end, reset, serve, within};
use ruduo::{Buffer, CloseReason, Connection, EventLoop, Handler, LoopHandle, TcpServer};

fn write(mut stream: &TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).unwrap();
}

/// Keeps a loop from doing anything after `first`, until what it returns is dropped.
fn hold(event_loop: &LoopHandle, first: fn(&EventLoop)) -> Sender<()> {
    let (release, released) = mpsc::channel();
    let (send, held) = mpsc::channel();
    let task = move |event_loop: &EventLoop| {
        first(event_loop);
        send.send(()).unwrap();
        let _ = released.recv();
    };
    event_loop.post(task).unwrap();
    within(&held);
    release
}

/// An echo that does `at_connect` and tells of its callbacks. The word "quit" makes a loop quit.
fn serve_telling(
    threads: usize,
    at_connect: impl Fn(&Connection<'_>) + Send + Sync + 'static,
) -> (Running, Receiver<String>) {
    let (send, receive) = mpsc::channel();
    let (connect, message, close) = (send.clone(), send.clone(), send);
    let running = serve(move |event_loop| {
        TcpServer::bind(event_loop, "127.0.0.1:0")?
            .threads(threads)
            .on_connect(move |conn| {
                connect.send(format!("connect {}", conn.peer_addr())).unwrap();
                at_connect(conn);
            })
            .on_message(move |conn, input| {
                let text = String::from_utf8_lossy(input.readable());
                message.send(format!("message {text}")).unwrap();
                if text == "quit" {
                    conn.event_loop().quit();
                }
                conn.send_buffer(input);
            })
            .on_close(move |_, reason| close.send(format!("close {reason}")).unwrap())
            .start()
    });
    (running, receive)
}

/// Stops the server, after which no callback can come.
fn end(running: Running) {
    running.server.stop(Duration::ZERO);
    running.server.wait().unwrap();
    assert_eq!(running.server.metrics().open, 0);
}

// Peers that are gone when they are accepted.

#[test]
fn b04_a_peer_that_reset_before_accept_is_a_read_error() {
    each_poller!().run(|| {
        let (running, callbacks) = serve_telling(0, |_| {});
        let held = hold(running.event_loop(), |_| {});
        let peer = running.connect();
        let address = peer.local_addr().unwrap();
        reset(peer);
        drop(held);
        assert_eq!(within(&callbacks), format!("connect {address}"));
        let reason = "close receiving failed: Connection reset by peer (os error 104)";
        assert_eq!(within(&callbacks), reason);
        end(running);
        assert_eq!(callbacks.try_iter().count(), 0);
    });
}

#[test]
fn b04_a_peer_that_wrote_and_left_before_accept_is_heard() {
    each_poller!().run(|| {
        let (running, callbacks) = serve_telling(0, |_| {});
        let held = hold(running.event_loop(), |_| {});
        let peer = running.connect();
        write(&peer, "farewell");
        peer.shutdown(Shutdown::Write).unwrap();
        drop(held);
        assert!(within(&callbacks).starts_with("connect"));
        assert_eq!(within(&callbacks), "message farewell");
        assert_eq!(within(&callbacks), "close closed by the peer");
        assert_eq!(read_to_end(&peer).unwrap(), b"farewell");
        end(running);
        assert_eq!(callbacks.try_iter().count(), 0);
    });
}

// Floods.

/// Whether anybody else waits, the poller tells.
#[test]
fn who_comes_alone_is_accepted_by_one_call() {
    const PEERS: usize = 20;
    let body = || {
        let (running, callbacks) = serve_telling(0, |_| {});
        let come = |_| {
            // At least one turn in which nobody comes.
            (0..2).for_each(|_| drop(hold(running.event_loop(), |_| {})));
            let peer = running.connect();
            assert!(within(&callbacks).starts_with("connect"));
            peer
        };
        let peers: Vec<_> = (0..PEERS).map(come).collect();
        drop(peers);
        end(running);
    };
    if let Some(calls) = calls::calls_of(alone!(), "accept,accept4", body) {
        let count = calls.lines().filter(|line| !line.contains("resumed")).count();
        assert_eq!(count, PEERS, "{calls}");
    }
}

#[test]
fn b07_a_flood_of_connections_does_not_keep_timers_waiting() {
    const FLOOD: usize = 300;
    each_poller!().run(|| {
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let (running, callbacks) = serve_telling(0, move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let held = hold(running.event_loop(), |_| {});
        let peers: Vec<_> = (0..FLOOD).map(|_| running.connect()).collect();

        // Each time a timer fires that is always due it notes how many came since the last time.
        let (send, receive) = mpsc::channel();
        let watch = move |event_loop: &EventLoop| {
            let mut before = 0;
            event_loop.run_every(Duration::ZERO, move |_| {
                let now = accepted.load(Ordering::Relaxed);
                if now > before {
                    send.send(now - before).unwrap();
                }
                before = now;
            });
        };
        running.event_loop().post(watch).unwrap();
        drop(held);
        let mut bursts = Vec::new();
        while bursts.iter().sum::<usize>() < FLOOD {
            bursts.push(within(&receive));
        }
        assert!(bursts.iter().all(|burst| *burst <= 100), "{bursts:?}");
        // But no turn for each of them either.
        assert!(bursts.len() < 20, "{bursts:?}");
        drop(peers);
        end(running);
        assert_eq!(callbacks.try_iter().count(), 2 * FLOOD);
    });
}

// Connections that no loop can take.

/// Connects, and has the loop that got the connection quit.
fn kill_one_loop(running: &Running, callbacks: &Receiver<String>) {
    let peer = running.connect();
    assert!(within(callbacks).starts_with("connect"));
    write(&peer, "quit");
    assert_eq!(within(callbacks), "message quit");
    assert_eq!(within(callbacks), "close the event loop ended");
    read_to_end(&peer).unwrap();
}

#[test]
fn b09_loops_that_have_ended_are_passed_over() {
    each_poller!().run(|| {
        let (running, callbacks) = serve_telling(2, |_| {});
        kill_one_loop(&running, &callbacks);
        for _ in 0..6 {
            let peer = running.connect();
            assert!(within(&callbacks).starts_with("connect"));
            write(&peer, "hello");
            assert_eq!(read_n(&peer, 5), b"hello");
            assert_eq!(within(&callbacks), "message hello");
            drop(peer);
            assert_eq!(within(&callbacks), "close closed by the peer");
        }
        assert_eq!((running.server.metrics().accepted, running.server.metrics().lost), (7, 0));
        end(running);
    });
}

#[test]
fn b09_without_any_loop_connections_are_closed_and_counted() {
    each_poller!().expect_log("all loops have ended").run(|| {
        let (running, callbacks) = serve_telling(2, |_| {});
        kill_one_loop(&running, &callbacks);
        kill_one_loop(&running, &callbacks);
        for lost in 1..=3 {
            assert_eq!(read_to_end(&running.connect()).unwrap(), b"");
            assert_eq!(running.server.metrics().lost, lost);
        }
        assert_eq!(running.server.metrics().open, 0);
        let lines = logs().into_iter().filter(|line| line.contains("all loops have ended"));
        assert_eq!(lines.count(), 1, "one will do");
        end(running);
        assert_eq!(callbacks.try_iter().count(), 0);
    });
}

#[test]
fn b09_a_connection_on_its_way_to_a_loop_that_quits_is_opened_and_closed() {
    each_poller!().run(|| {
        let (send, workers) = mpsc::channel();
        let (running, callbacks) = serve_telling(1, move |conn| {
            send.send(conn.event_loop().handle()).unwrap();
        });
        let first = running.connect();
        let worker = within(&workers);
        assert!(within(&callbacks).starts_with("connect"));

        // The worker is to quit, and before it does so a connection is placed on it.
        let held = hold(&worker, EventLoop::quit);
        let second = running.connect();
        eventually("it is accepted", || running.server.metrics().accepted == 2);
        drop(hold(running.event_loop(), |_| {}));
        drop(held);
        let mut last: Vec<_> = (0..3).map(|_| within(&callbacks)).collect();
        last.sort();
        assert_eq!(last[..2], ["close the event loop ended", "close the event loop ended"]);
        assert!(last[2].starts_with("connect"), "{last:?}");
        for peer in [first, second] {
            assert_eq!(read_to_end(&peer).unwrap(), b"");
        }
        assert_eq!(running.server.metrics().lost, 0);
        end(running);
        assert_eq!(callbacks.try_iter().count(), 0);
    });
}

// Ending at once.

#[test]
fn b10_closing_inside_on_connect_is_one_connect_and_one_close() {
    type Act = fn(&Connection<'_>);
    let acts: [(Act, &str); 4] = [
        (|conn| conn.close(), "close closed by the program"),
        (|conn| conn.reset(), "close reset by the program"),
        (|conn| conn.shutdown(), "close shut down"),
        (
            |conn| {
                conn.close();
                conn.shutdown();
                conn.reset();
                conn.close();
            },
            "close closed by the program",
        ),
    ];
    each_poller!().run(|| {
        for threads in [0, 2] {
            for (act, reason) in acts {
                let (running, callbacks) = serve_telling(threads, act);
                for _ in 0..3 {
                    let peer = running.connect();
                    // A reset is tested elsewhere; here it is as good an end as the others.
                    assert_eq!(read_to_end(&peer).unwrap_or_default(), b"");
                    drop(peer);
                    assert!(within(&callbacks).starts_with("connect"));
                    assert_eq!(within(&callbacks), reason);
                }
                assert_eq!(running.server.metrics().accepted, 3);
                end(running);
                assert_eq!(callbacks.try_iter().count(), 0);
            }
        }
    });
}

/// It has a handler by then, which is told of the end and of nothing else.
#[test]
fn b10_closing_inside_the_factory_is_one_close() {
    struct Telling(Sender<&'static str>);
    impl Handler for Telling {
        fn on_connect(&mut self, _: &Connection<'_>) {
            self.0.send("connect").unwrap();
        }
        fn on_message(&mut self, _: &Connection<'_>, _: &mut Buffer) {
            self.0.send("message").unwrap();
        }
        fn on_close(&mut self, _: &Connection<'_>, _: &CloseReason) {
            self.0.send("close").unwrap();
        }
    }
    each_poller!().run(|| {
        for threads in [0, 2] {
            let (send, told) = mpsc::channel();
            let running = serve(move |event_loop| {
                TcpServer::bind(event_loop, "127.0.0.1:0")?.threads(threads).serve(move |conn| {
                    conn.close();
                    Telling(send.clone())
                })
            });
            let held = hold(running.event_loop(), |_| {});
            let peer = running.connect();
            write(&peer, "hello");
            drop(held);
            // Closed with something unread, which resets it, or before that has come.
            let _ = read_to_end(&peer);
            assert_eq!(within(&told), "close");
            end(running);
            assert_eq!(told.try_iter().count(), 0);
        }
    });
}
