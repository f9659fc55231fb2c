//! What loops and servers count.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use common::{eventually, pattern, read_n, read_to_end, reset, serve};
use ruduo::{EventLoop, TcpServer};

fn write(mut stream: &TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).unwrap();
}

#[test]
fn a_loop_counts_what_it_does() {
    each_poller!().expect_log("panicked: on purpose").run(|| {
        let event_loop = EventLoop::new().unwrap();
        let before = event_loop.metrics();
        assert_eq!((before.turns, before.tasks, before.timers, before.events), (0, 0, 0, 0));
        for _ in 0..3 {
            event_loop.defer(|_| {});
        }
        event_loop.defer(|_| panic!("on purpose"));
        event_loop.handle().post(|_| {}).unwrap();
        let cancelled = event_loop.run_after(Duration::ZERO, |_| {});
        event_loop.cancel(cancelled);
        let mut ticks = 0;
        event_loop.run_every(Duration::from_millis(1), move |event_loop| {
            ticks += 1;
            if ticks == 4 {
                event_loop.quit();
            }
        });
        event_loop.run_after(Duration::ZERO, |_| {});
        event_loop.run().unwrap();
        let after = event_loop.metrics();
        assert_eq!((after.tasks, after.timers, after.panics), (5, 5, 1), "{after}");
        assert!(after.turns >= 4, "{after}");
        let line = after.to_string();
        let (turns, events) = (after.turns, after.events);
        let start = format!("turns={turns} events={events} tasks=5 timers=5 panics=1 slow");
        assert!(line.starts_with(&start), "{line}");
    });
}

#[test]
fn a_loop_counts_the_events_of_its_connections() {
    each_poller!().run(|| {
        let (send, receive) = std::sync::mpsc::channel();
        let running = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(move |conn, input| {
                    send.send(conn.event_loop().metrics()).unwrap();
                    conn.send_buffer(input);
                })
                .start()
        });
        let peer = running.connect();
        let mut seen = Vec::new();
        for _ in 0..3 {
            write(&peer, "x");
            assert_eq!(read_n(&peer, 1), b"x");
            seen.push(common::within(&receive));
        }
        // One event brings one message, and nothing else happens.
        for pair in seen.windows(2) {
            let [earlier, later] = pair else { unreachable!("windows of two") };
            assert_eq!(later.events - earlier.events, 1, "{earlier} and then {later}");
            assert_eq!(later.turns - earlier.turns, 1, "{earlier} and then {later}");
        }
    });
}

#[test]
fn a_server_counts_connections_by_how_they_end() {
    each_poller!().run(|| {
        for threads in [0, 2] {
            let running = serve(move |event_loop| {
                TcpServer::bind(event_loop, "127.0.0.1:0")?
                    .threads(threads)
                    .on_message(|conn, input| match input.readable() {
                        b"close" => conn.close(),
                        b"reset" => conn.reset(),
                        b"pause" => {
                            conn.pause_reading();
                            input.clear();
                            conn.send("paused");
                        }
                        _ => conn.send_buffer(input),
                    })
                    .start()
            });
            let closed = || running.server.metrics().closed;

            drop(running.connect());
            eventually("the peer's end is counted", || closed().by_peer == 1);

            let peer = running.connect();
            write(&peer, "close");
            let _ = read_to_end(&peer);
            eventually("close is counted", || closed().by_program == 1);

            let peer = running.connect();
            write(&peer, "reset");
            read_to_end(&peer).unwrap_err();
            eventually("reset is counted", || closed().reset == 1);

            let peer = running.connect();
            write(&peer, "hello");
            read_n(&peer, 5);
            reset(peer);
            eventually("the peer's reset is counted", || closed().read_failed == 1);

            let peer = running.connect();
            write(&peer, "pause");
            assert_eq!(read_n(&peer, 6), b"paused");
            // What is sent is counted when it has been, and the peer may be faster.
            eventually("all is counted", || running.server.metrics().sent == 11);
            let metrics = running.server.metrics();
            assert_eq!((metrics.open, metrics.accepted, metrics.received), (1, 5, 20), "{metrics}");
            assert_eq!((metrics.paused_by_program, metrics.paused_by_output), (1, 0), "{metrics}");

            running.server.stop(Duration::ZERO);
            running.server.wait().unwrap();
            let metrics = running.server.metrics();
            assert_eq!((metrics.closed.stopped, metrics.closed.total()), (1, 5), "{metrics}");
            let line = metrics.to_string();
            assert!(line.starts_with("open=0 accepted=5 refused_max_connections=0"), "{line}");
            assert!(line.contains(" closed=5 closed_by_peer=1 closed_by_program=1 "), "{line}");
            assert!(!line.contains("closed_idle"), "{line}");
        }
    });
}

#[test]
fn a_server_counts_pauses_by_output() {
    each_poller!().run(|| {
        let running = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, input| {
                    input.clear();
                    conn.send(pattern(50 * 1024 * 1024));
                })
                .start()
        });
        let peer = running.connect();
        write(&peer, "go");
        eventually("it pauses", || running.server.metrics().paused_by_output == 1);
        let peer_reads = read_n(&peer, 50 * 1024 * 1024);
        assert!(peer_reads == pattern(50 * 1024 * 1024));
        eventually("all is counted", || running.server.metrics().sent == 50 * 1024 * 1024);
        let metrics = running.server.metrics();
        assert_eq!((metrics.paused_by_output, metrics.paused_by_program), (1, 0), "{metrics}");
    });
}
