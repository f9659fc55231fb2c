//! Panics in the program's code: what they end, and what goes on.

#![allow(clippy::unwrap_used)]

mod actor;
mod common;

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use actor::{At, Role, play};
use common::{Running, eventually, logs, read_n, read_to_end, serve, serve_on, within};
use nix::sys::resource::{Resource, setrlimit};
use ruduo::{
    Buffer, CloseReason, Connection, EventLoop, Handler, LoopHandle, LoopPool, PanicPolicy, Server,
    ServerHandle, Signal, TcpServer, handler_fn,
};

fn assert_echoes(mut stream: &TcpStream) {
    stream.write_all(b"hello").unwrap();
    assert_eq!(read_n(stream, 5), b"hello");
}

fn panics(event_loop: &LoopHandle) -> u64 {
    let (send, receive) = mpsc::channel();
    event_loop.post(move |event_loop| send.send(event_loop.metrics().panics).unwrap()).unwrap();
    within(&receive)
}

/// A panic in one callback ends its connection and nothing else.
fn assert_contained(at: At) {
    for threads in [0, 2] {
        let mut play = play(threads, at, |_, _| panic!("on purpose"));
        let too_late = at == At::Close;
        let reason = if too_late { "closed by the peer" } else { "a callback panicked" };
        assert_eq!(play.end_of(Role::Actor), reason);
        // What had been sent before may arrive, and input not received makes the end a reset.
        let _ = read_to_end(&play.actor);
        eventually("the connection is gone", || play.running.server.metrics().open == 1);
        assert_echoes(&play.other);
        if threads == 0 {
            assert_eq!(panics(play.running.event_loop()), 1);
        }
        play.running.server.stop(Duration::ZERO);
        play.end();
    }
}

macro_rules! contained {
    ($($name:ident: $at:ident;)*) => {$(
        #[test]
        fn $name() {
            alone!().expect_log("panicked: on purpose").run(|| assert_contained(At::$at));
        }
    )*};
}

contained! {
    b45_a_panic_in_on_connect_ends_that_connection_only: Connect;
    b45_a_panic_in_on_message_ends_that_connection_only: Message;
    b45_a_panic_in_on_write_complete_ends_that_connection_only: WriteComplete;
    b45_a_panic_in_on_high_water_ends_that_connection_only: HighWater;
    b45_a_panic_in_on_low_water_ends_that_connection_only: LowWater;
    b45_a_panic_in_on_half_close_ends_that_connection_only: HalfClose;
    b45_a_panic_in_on_timer_ends_that_connection_only: Timer;
    b45_a_panic_in_on_stopping_ends_that_connection_only: Stopping;
    b45_a_panic_in_a_posted_call_ends_that_connection_only: Post;
    b45_a_panic_in_on_close_ends_nothing_more: Close;
}

/// What goes wrong in a session of the first connection; the later ones echo.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    Close,
    Drop,
    /// A panic whose payload panics when it is dropped.
    Payload,
}

struct Session {
    flaw: Flaw,
    ends: mpsc::Sender<String>,
}

struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("on purpose");
    }
}

impl Handler for Session {
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        if self.flaw == Flaw::Payload {
            std::panic::panic_any(Bomb);
        }
        conn.send_buffer(input);
    }
    fn on_close(&mut self, _: &Connection, reason: &CloseReason) {
        self.ends.send(reason.to_string()).unwrap();
        assert!(self.flaw != Flaw::Close, "on purpose");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        assert!(self.flaw != Flaw::Drop, "on purpose");
    }
}

/// An echo whose factory panics when it is dropped.
fn serve_with_a_bomb(server: Server<'_>) -> io::Result<ServerHandle> {
    server.serve_per_loop(|_| {
        let bomb = Bomb;
        move |_| {
            let _ = &bomb;
            handler_fn(|conn, input| conn.send_buffer(input))
        }
    })
}

fn serve_flawed(
    flaw_of: impl Fn(u32) -> Flaw + Send + Sync + 'static,
) -> (Running, mpsc::Receiver<String>) {
    let (send, receive) = mpsc::channel();
    let running = serve(move |event_loop| {
        let flaw_of = Arc::new(flaw_of);
        TcpServer::bind(event_loop, "127.0.0.1:0")?.serve_per_loop(move |_| {
            let (mut count, ends, flaw_of) = (0, send.clone(), flaw_of.clone());
            move |_| {
                count += 1;
                Session { flaw: flaw_of(count), ends: ends.clone() }
            }
        })
    });
    (running, receive)
}

#[test]
fn b45_a_panic_in_the_factory_ends_that_connection_only() {
    alone!().expect_log("panicked: on purpose").run(|| {
        let (running, ends) = serve_flawed(|number| {
            assert!(number != 2, "on purpose");
            Flaw::None
        });
        let first = running.connect();
        assert_echoes(&first);
        assert_eq!(read_to_end(&running.connect()).unwrap(), b"");
        assert_echoes(&running.connect());
        assert_echoes(&first);
        assert_eq!(panics(running.event_loop()), 1);
        // Of the one whose handler was never made, nobody can be told.
        drop(first);
        assert_eq!(within(&ends), "closed by the peer");
        assert_eq!(within(&ends), "closed by the peer");
        eventually("all are closed", || running.server.metrics().open == 0);
        assert!(ends.try_recv().is_err());
    });
}

#[test]
fn b45_a_panic_while_a_handler_is_dropped_ends_nothing_more() {
    alone!().expect_log("panicked: on purpose").run(|| {
        let flaw_of = |number| if number == 1 { Flaw::Drop } else { Flaw::None };
        let (running, ends) = serve_flawed(flaw_of);
        let (first, second) = (running.connect(), running.connect());
        assert_echoes(&first);
        first.shutdown(Shutdown::Write).unwrap();
        // The end of the stream: the socket is closed although the handler beside it panics.
        assert_eq!(read_to_end(&first).unwrap(), b"");
        assert_eq!(within(&ends), "closed by the peer");
        assert_echoes(&second);
        assert_echoes(&running.connect());
        assert_eq!(panics(running.event_loop()), 1);
        assert_eq!(within(&ends), "closed by the peer");
        running.server.stop(Duration::ZERO);
        running.server.wait().unwrap();
    });
}

#[test]
fn b45_a_panic_whose_payload_panics_ends_that_connection_only() {
    alone!().expect_log("panicked: (a value that is not text)").run(|| {
        let flaw_of = |number| if number == 1 { Flaw::Payload } else { Flaw::None };
        let (running, ends) = serve_flawed(flaw_of);
        let (first, second) = (running.connect(), running.connect());
        (&first).write_all(b"hello").unwrap();
        assert_eq!(within(&ends), "a callback panicked");
        assert_echoes(&second);
        assert_eq!(panics(running.event_loop()), 1);
        running.server.stop(Duration::ZERO);
        running.server.wait().unwrap();
    });
}

#[test]
fn b45_panics_in_every_on_close_keep_no_server_from_stopping() {
    alone!().expect_log("panicked: on purpose").run(|| {
        let (running, ends) = serve_flawed(|_| Flaw::Close);
        let peers: Vec<_> = (0..5).map(|_| running.connect()).collect();
        peers.iter().for_each(assert_echoes);
        running.server.stop(Duration::ZERO);
        running.server.wait().unwrap();
        assert_eq!(ends.try_iter().count(), 5);
        assert_eq!(panics(running.event_loop()), 5);
    });
}

#[test]
fn b45_panics_in_every_on_close_keep_no_loop_from_ending() {
    alone!().expect_log("panicked: on purpose").run(|| {
        let (running, ends) = serve_flawed(|_| Flaw::Close);
        let peers: Vec<_> = (0..5).map(|_| running.connect()).collect();
        peers.iter().for_each(assert_echoes);
        running.thread.join().unwrap();
        let ends: Vec<_> = ends.try_iter().collect();
        assert_eq!(ends, ["the event loop ended"; 5]);
        assert!(running.server.is_ended());
    });
}

#[test]
fn b45_panics_while_factories_are_dropped_keep_no_server_from_stopping() {
    alone!().expect_log("panicked: on purpose").run(|| {
        for threads in [0, 2] {
            let running = serve(move |event_loop| {
                serve_with_a_bomb(TcpServer::bind(event_loop, "127.0.0.1:0")?.threads(threads))
            });
            let peer = running.connect();
            assert_echoes(&peer);
            running.server.stop(Duration::ZERO);
            eventually("the server has ended", || running.server.is_ended());
            let on_the_base = if threads == 0 { 1 } else { 0 };
            assert_eq!(panics(running.event_loop()), on_the_base);
        }
    });
}

#[test]
fn b45_panics_while_factories_are_dropped_keep_no_loop_from_ending() {
    alone!().expect_log("panicked: on purpose").run(|| {
        let running = serve(|event_loop| {
            serve_with_a_bomb(TcpServer::bind(event_loop, "127.0.0.1:0")?)?;
            serve_with_a_bomb(TcpServer::bind(event_loop, "127.0.0.1:0")?)
        });
        assert_echoes(&running.connect());
        running.thread.join().unwrap();
        assert!(running.server.is_ended());
    });
}

/// The factory of the second thread cannot be made.
fn serve_with_a_flawed_factory(server: Server<'_>) -> io::Result<ServerHandle> {
    server.serve_per_loop(|_loop| {
        assert!(thread::current().name() != Some("ruduo-1"), "on purpose");
        |_| handler_fn(|conn, input| conn.send_buffer(input))
    })
}

#[test]
fn b45_a_panic_while_a_thread_of_the_servers_own_begins_is_an_error_of_start() {
    alone!().expect_log("panicked: on purpose").run(|| {
        let event_loop = EventLoop::new().unwrap();
        let server = TcpServer::bind(&event_loop, "127.0.0.1:0").unwrap().threads(3);
        let error = serve_with_a_flawed_factory(server).unwrap_err().to_string();
        assert!(error.contains("ruduo-1") && error.contains("panicked"), "{error}");
    });
}

#[test]
fn b45_a_loop_whose_own_factory_could_not_be_made_takes_no_connections() {
    let alone = alone!().expect_log("panicked: on purpose").expect_log("does not serve");
    alone.run(|| {
        let (send, receive) = mpsc::channel();
        // A loop of a pool that others use may be busy, so it is not waited for.
        let running = serve(move |event_loop| {
            let pool = LoopPool::builder(event_loop).threads(2).start()?;
            send.send(pool.loops()[1].clone()).unwrap();
            serve_with_a_flawed_factory(TcpServer::bind(event_loop, "127.0.0.1:0")?.pool(&pool))
        });
        let without_factory = within(&receive);
        for lost in 1..=3 {
            assert_echoes(&running.connect());
            assert_eq!(read_to_end(&running.connect()).unwrap(), b"");
            eventually("it is counted", || running.server.metrics().lost == lost);
            eventually("it is no load", || without_factory.load() == 0);
        }
        // One line will do.
        let lines = logs().into_iter().filter(|line| line.contains("closing connections to"));
        assert_eq!(lines.count(), 1);
        running.server.stop(Duration::ZERO);
        running.server.wait().unwrap();
    });
}

// The other policy.

/// Tells the process that is to abort how many threads its server has.
const THREADS: &str = "RUDUO_TEST_THREADS";

fn assert_aborts(name: &str, threads: usize) {
    if let Ok(threads) = std::env::var(THREADS) {
        panic_by_abort_policy(threads.parse().unwrap());
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(THREADS, threads.to_string())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(Signal::SIGABRT as i32), "{text}");
    assert!(text.contains("panicked: on purpose"), "{text}");
}

fn panic_by_abort_policy(threads: usize) -> ! {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
    let builder = EventLoop::builder().panic_policy(PanicPolicy::Abort);
    let running = serve_on(builder, move |event_loop| {
        let server = TcpServer::bind(event_loop, "127.0.0.1:0")?.threads(threads);
        server.on_message(|_, _| panic!("on purpose")).start()
    });
    let peer = running.connect();
    (&peer).write_all(b"hello").unwrap();
    let end = read_to_end(&peer);
    panic!("the process lives on: {end:?}");
}

#[test]
fn b45_by_the_abort_policy_a_panic_ends_the_process() {
    let name = test_name!();
    alone!().run(|| assert_aborts(name, 0));
}

#[test]
fn b45_threads_of_a_server_have_the_policy_of_its_loop() {
    let name = test_name!();
    alone!().run(|| assert_aborts(name, 2));
}
