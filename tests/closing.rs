//! Closing connections: what still arrives, and what does not.

#![allow(clippy::unwrap_used)]

mod common;
mod scene;

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use common::{pattern, read_to_end, serve};
use ruduo::{ConnectionHandle, SendError, Server, TcpServer};
use scene::{ANSWER, LARGE, Scene, write};

fn is_reset(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionReset
}

// Half-close by the peer.

#[test]
fn b13_what_is_pending_at_the_peers_half_close_arrives() {
    each_poller!().run(|| {
        let scene = Scene::new(ANSWER);
        let (peer, _) = scene.connect_and_await_high_water();
        peer.shutdown(Shutdown::Write).unwrap();
        assert!(read_to_end(&peer).unwrap() == pattern(LARGE));
        scene.assert_closes("closed by the peer");
    });
}

/// Reading is not paused for all that is pending, so the end of the stream is seen before any of it
/// has left.
fn without_back_pressure(server: Server<'_>) -> Server<'_> {
    server.water_marks(1000, LARGE)
}

#[test]
fn b13_a_request_with_the_half_close_right_behind_it_is_answered() {
    each_poller!().run(|| {
        let scene = Scene::with(ANSWER, without_back_pressure);
        let (peer, _) = scene.connect();
        write(&peer, "go");
        peer.shutdown(Shutdown::Write).unwrap();
        assert!(read_to_end(&peer).unwrap() == pattern(LARGE));
        scene.assert_closes("closed by the peer");
    });
}

#[test]
fn b13_servers_made_of_closures_answer_it_too() {
    each_poller!().run(|| {
        let running = serve(|event_loop| {
            let server = without_back_pressure(TcpServer::bind(event_loop, "127.0.0.1:0")?);
            server.on_message(ANSWER).start()
        });
        let peer = running.connect();
        write(&peer, "go");
        peer.shutdown(Shutdown::Write).unwrap();
        assert!(read_to_end(&peer).unwrap() == pattern(LARGE));
    });
}

// Closing with output pending.

#[test]
fn b32_shutdown_sends_what_is_pending_and_then_the_end() {
    each_poller!().run(|| {
        let scene = Scene::new(|conn, input| {
            input.clear();
            conn.send(pattern(LARGE));
            conn.shutdown();
            conn.send("too late");
        });
        let (peer, _) = scene.connect_and_await_high_water();
        assert!(read_to_end(&peer).unwrap() == pattern(LARGE));
        drop(peer);
        scene.assert_closes("shut down");
    });
}

#[test]
fn b32_close_drops_what_is_pending() {
    each_poller!().run(|| {
        let scene = Scene::new(ANSWER);
        let (peer, conn) = scene.connect_and_await_high_water();
        conn.close().unwrap();
        scene.assert_closes("closed by the program");
        let arrived = read_to_end(&peer).unwrap();
        assert!(arrived.len() < LARGE && pattern(LARGE).starts_with(&arrived));
    });
}

#[test]
fn b32_close_drops_also_what_the_same_callback_sent() {
    each_poller!().run(|| {
        let scene = Scene::new(|conn, input| {
            input.clear();
            conn.send("not to be sent");
            conn.close();
        });
        let (peer, _) = scene.connect();
        write(&peer, "go");
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        scene.assert_closes("closed by the program");
    });
}

// Closing with input unread.

const REPLY: usize = 500_000;

/// The peer goes on typing after it was answered and the connection shut down.
fn assert_reply_arrives(scene: &Scene) {
    let (peer, _) = scene.connect();
    write(&peer, "go");
    // Well above the input limit, before the reply is even looked at.
    let mut typed = 4 * 1024 * 1024;
    write(&peer, vec![b'x'; typed]);
    let stop = Arc::new(AtomicBool::new(false));
    let typist = {
        let (peer, stop) = (peer.try_clone().unwrap(), stop.clone());
        thread::spawn(move || {
            let mut typed = 0;
            while !stop.load(Ordering::Relaxed) {
                write(&peer, "xxxx");
                typed += 4;
            }
            typed
        })
    };
    assert!(read_to_end(&peer).unwrap() == pattern(REPLY));
    stop.store(true, Ordering::Relaxed);
    typed += typist.join().unwrap();
    drop(peer);
    scene.assert_closes("shut down");
    assert_eq!(scene.running.server.metrics().received, typed as u64 + 2);
}

#[test]
fn b33_input_after_shutdown_does_not_destroy_the_reply() {
    each_poller!().run(|| {
        let scene = Scene::new(|conn, input| {
            if input.readable().starts_with(b"go") {
                conn.send(pattern(REPLY));
                conn.shutdown();
            }
            input.clear();
        });
        assert_reply_arrives(&scene);
        assert_eq!(scene.running.server.metrics().discarded, 0);
    });
}

#[test]
fn b33_an_echo_that_has_shut_down_discards_its_input_and_the_reply_arrives() {
    each_poller!().run(|| {
        let scene = Scene::new(|conn, input| {
            if input.readable().starts_with(b"go") {
                input.consume(2);
                conn.send(pattern(REPLY));
                conn.shutdown();
            }
            conn.send_buffer(input);
            assert!(input.is_empty());
        });
        assert_reply_arrives(&scene);
        let server = &scene.running.server;
        assert_eq!(server.metrics().discarded, server.metrics().received - 2);
    });
}

// Resets on purpose.

#[test]
fn b34_the_peer_sees_a_reset() {
    each_poller!().run(|| {
        let scene = Scene::new(|conn, _| conn.reset());
        let (peer, _) = scene.connect();
        write(&peer, "go");
        assert!(is_reset(&read_to_end(&peer).unwrap_err()));
        scene.assert_closes("reset by the program");

        // Also one that has sent nothing.
        let (peer, conn) = scene.connect();
        conn.reset().unwrap();
        assert!(is_reset(&read_to_end(&peer).unwrap_err()));
        scene.assert_closes("reset by the program");
    });
}

#[test]
fn b34_a_reset_drops_what_is_pending() {
    each_poller!().run(|| {
        let scene = Scene::new(ANSWER);
        let (peer, conn) = scene.connect_and_await_high_water();
        conn.reset().unwrap();
        scene.assert_closes("reset by the program");
        assert!(is_reset(&read_to_end(&peer).unwrap_err()));
    });
}

// Closing more than once.

#[test]
fn b35_closing_in_several_ways_from_several_threads_is_one_close() {
    type Way = fn(&ConnectionHandle) -> Result<(), SendError>;
    const WAYS: [Way; 4] = [
        |conn| conn.close(),
        |conn| conn.shutdown(),
        |conn| conn.reset(),
        |conn| conn.send("more"),
    ];
    each_poller!().run(|| {
        let scene = Scene::new(|conn, input| conn.send_buffer(input));
        for _ in 0..100 {
            let (peer, conn) = scene.connect();
            let start = Barrier::new(WAYS.len());
            let (start, conn) = (&start, &conn);
            thread::scope(|scope| {
                for first in 0..WAYS.len() {
                    scope.spawn(move || {
                        start.wait();
                        for i in 0..WAYS.len() {
                            // Late ones learn that it is closed.
                            let _ = WAYS[(first + i) % WAYS.len()](conn);
                        }
                    });
                }
            });
            let (reason, _) = scene.close();
            assert!(reason == "closed by the program" || reason == "reset by the program");
            assert!(conn.is_closed());
            conn.close().unwrap_err();
            drop(peer);
        }
    });
}
