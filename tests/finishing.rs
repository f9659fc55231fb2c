//! Who has said all there is to say: what still arrives, what is thrown away, and what is free
//! again when the peer sees the end.

#![allow(clippy::unwrap_used)]

mod common;
mod recorder;
mod sessions;

use std::io::Write;
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{DEADLINE, pattern, read_to_end, serve, within};
use recorder::{Told, recorded_open};
use ruduo::{Buffer, Connection, Handler, SendError, Server, TcpServer};
use sessions::{Sessions, act, cuts};

/// A peer that sends much more than it is asked for still gets its answer, and a clean end.
#[test]
fn who_finishes_hears_nothing_more_and_the_answer_arrives() {
    alone!().run(|| {
        let sessions = Sessions::new(|| {
            act(|conn, input, tell| {
                tell.message(&input.readable()[..1]);
                conn.send(pattern(500_000));
                conn.finish();
                assert!(!conn.wants_input() && !conn.takes_output());
                assert_eq!(conn.try_send("more"), Err(SendError::Closed));
            })
        });
        for pieces in cuts(b"go and more") {
            let talk = sessions.talk(&pieces);
            assert_eq!(talk.messages, ["g"], "{pieces:?}");
            assert!(talk.answers == pattern(500_000));
            assert_eq!(talk.reason, "ShutDown");
        }
        let mut peer = sessions.connect();
        peer.write_all(&pattern(20 << 20)).unwrap();
        assert!(read_to_end(&peer).unwrap() == pattern(500_000));
        drop(peer);
        assert_eq!(sessions.until_closed().1, "ShutDown");
    });
}

#[test]
fn what_the_handler_had_left_is_no_unfinished_message_after_it() {
    alone!().run(|| {
        let sessions = Sessions::new(|| {
            act(|conn, input, _| {
                if input.find(b"!").is_some() {
                    conn.finish();
                }
            })
        });
        assert_eq!(sessions.talk(&[b"half", b" of it!"]).reason, "ShutDown");
        assert_eq!(sessions.talk(&[b"half", b" of it"]).reason, "Unfinished { left: 10 }");
    });
}

#[test]
fn a_posted_call_finishes_a_connection_that_has_paused() {
    alone!().run(|| {
        let (this, mut peer) = recorded_open(|server| server.linger(DEADLINE));
        this.call(|conn| {
            conn.pause_reading();
            conn.send("the end");
            conn.finish();
        });
        this.let_turn();
        peer.write_all(&pattern(1 << 20)).unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"the end");
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(within(&this.told), Told::WriteComplete);
        assert_eq!(this.closed(), "ShutDown");
    });
}

#[test]
fn output_is_taken_until_the_end_begins() {
    struct Asks;
    impl Handler for Asks {
        fn on_connect(&mut self, conn: &Connection) {
            assert!(conn.takes_output());
            conn.send("1");
        }
        fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
            input.clear();
            assert!(conn.takes_output());
            conn.send("2");
            conn.shutdown();
            assert!(!conn.takes_output());
        }
        fn on_write_complete(&mut self, conn: &Connection) {
            if conn.takes_output() {
                conn.send("+");
                conn.set_timer(0, Duration::ZERO);
            }
        }
        fn on_timer(&mut self, conn: &Connection, _: u64) {
            conn.shutdown();
        }
    }
    alone!().run(|| {
        let running =
            serve(|event_loop| TcpServer::bind(event_loop, "127.0.0.1:0")?.serve(|_| Asks));
        let answer = read_to_end(&running.connect()).unwrap();
        assert!(answer.starts_with(b"1+"), "{answer:?}");
        assert_eq!(running.server.metrics().discarded, 0);
    });
}

/// Held by a handler.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Handler for Place {
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        conn.send_buffer(input);
        conn.close();
    }
}

#[test]
fn what_a_handler_holds_is_given_back_before_the_peer_sees_the_end() {
    alone!().under(&["strace", "-f", "-qq", "-e", "trace=close", "-o", "/dev/null"]).run(|| {
        let taken = Arc::new(AtomicUsize::new(0));
        let in_server = taken.clone();
        let running = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.threads(2).serve(move |_| {
                in_server.fetch_add(1, Ordering::SeqCst);
                Place(in_server.clone())
            })
        });
        for _ in 0..200 {
            let mut peer = running.connect();
            peer.write_all(b"x").unwrap();
            let _ = read_to_end(&peer);
            assert_eq!(taken.load(Ordering::SeqCst), 0, "the end was seen before");
        }
    });
}

#[test]
fn a_pool_and_threads_of_its_own_are_a_contradiction() {
    alone!().run(|| {
        let event_loop = ruduo::EventLoop::new().unwrap();
        let pool = ruduo::LoopPool::builder(&event_loop).start().unwrap();
        let described = || TcpServer::bind(&event_loop, "127.0.0.1:0").unwrap().pool(&pool);
        let start = |server: Server<'_>| {
            server.on_message(|conn, input| conn.send_buffer(input)).start().map(drop)
        };
        for server in [
            described().threads(2),
            described().name("worker"),
            described().placement(ruduo::Placement::Hash),
        ] {
            let error = start(server).unwrap_err().to_string();
            assert!(error.contains("it was given a pool"), "{error}");
        }
        start(described().threads(0)).unwrap();
    });
}

#[test]
fn before_the_loop_runs_its_time_is_that_of_the_clock() {
    alone!().run(|| {
        let event_loop = ruduo::EventLoop::new().unwrap();
        let (first, clock) = (event_loop.now(), std::time::Instant::now());
        assert!(event_loop.now() >= clock && first <= clock);
        event_loop.defer(|event_loop| {
            assert_eq!(event_loop.now(), event_loop.now());
            event_loop.quit();
        });
        event_loop.run().unwrap();
        assert_eq!(event_loop.metrics().panics, 0);
    });
}
