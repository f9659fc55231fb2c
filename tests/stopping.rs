//! How a server ends: stopped, gracefully or at its deadline, or with its loop.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use common::program::{Program, binary};
use common::{
    DEADLINE, Running, allow_descriptors, connect, eventually, pattern, read_n, read_to_end, serve,
    take_infos, within,
};
use ruduo::{EventLoop, LoopHandle, LoopPool, LoopThread, Server, ServerHandle, Signal, TcpServer};

/// More than the kernel takes from a peer that does not read.
const LARGE: usize = 50 * 1024 * 1024;

/// A loopback address of this file's own. A port that one of these tests gives up is thus not
/// taken by the connections of tests that run beside it.
const OWN_ADDRESS: &str = "127.0.0.77:0";

const STOPPED: &str = "cut at the stop's deadline";

fn write(mut stream: &TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).unwrap();
}

fn assert_echoes(stream: &TcpStream) {
    write(stream, "hello");
    assert_eq!(read_n(stream, 5), b"hello");
}

fn echo_on(event_loop: &EventLoop, address: SocketAddr) -> io::Result<ServerHandle> {
    TcpServer::bind(event_loop, address)?.on_message(|conn, input| conn.send_buffer(input)).start()
}

/// Which callback came, and on which loop.
type Callback = (String, LoopHandle);

/// An echo that tells of `on_stopping`, which does nothing else, and of `on_close`.
fn serve_stubborn(threads: usize) -> (Running, Receiver<Callback>) {
    serve_stubborn_on(move |server| server.threads(threads))
}

fn serve_stubborn_on(
    loops: impl FnOnce(Server<'_>) -> Server<'_> + Send + 'static,
) -> (Running, Receiver<Callback>) {
    let (stopping, receive) = mpsc::channel();
    let close = stopping.clone();
    let running = serve(move |event_loop| {
        loops(TcpServer::bind(event_loop, OWN_ADDRESS)?)
            .on_message(|conn, input| conn.send_buffer(input))
            .on_stopping(move |conn| {
                stopping.send(("stopping".to_owned(), conn.event_loop().handle())).unwrap();
            })
            .on_close(move |conn, reason| {
                close.send((reason.to_string(), conn.event_loop().handle())).unwrap();
            })
            .start()
    });
    (running, receive)
}

#[track_caller]
fn expect(callbacks: &Receiver<Callback>, expected: &str) -> LoopHandle {
    let (callback, event_loop) = within(callbacks);
    assert_eq!(callback, expected);
    event_loop
}

// Stopping.

#[test]
fn what_is_pending_is_delivered_after_stop() {
    each_poller!().run(|| {
        let (high, above) = mpsc::channel();
        let (close, reasons) = mpsc::channel();
        let running = serve(move |event_loop| {
            TcpServer::bind(event_loop, OWN_ADDRESS)?
                .threads(1)
                .on_message(|conn, input| {
                    input.clear();
                    conn.send(pattern(LARGE));
                })
                .on_high_water(move |_, _| high.send(()).unwrap())
                .on_close(move |_, reason| close.send(reason.to_string()).unwrap())
                .start()
        });
        let peer = running.connect();
        write(&peer, "everything, please");
        within(&above);
        running.server.stop(DEADLINE);
        assert!(read_to_end(&peer).unwrap() == pattern(LARGE));
        assert!(!running.server.is_ended());
        drop(peer);
        assert_eq!(within(&reasons), "shut down");
        running.server.wait().unwrap();
    });
}

#[test]
fn what_is_left_at_the_deadline_is_cut() {
    let patience = Duration::from_millis(300);
    each_poller!().run(|| {
        let (running, callbacks) = serve_stubborn(2);
        let peers = [running.connect(), running.connect()];
        peers.iter().for_each(assert_echoes);
        let start = Instant::now();
        running.server.stop(patience);
        // On each loop, of which one may be behind by more than the other's patience.
        let first = expect(&callbacks, "stopping");
        let (of_first, of_second): (Vec<_>, Vec<_>) =
            (0..3).map(|_| within(&callbacks)).partition(|(_, event_loop)| *event_loop == first);
        assert!(start.elapsed() >= patience, "{:?}", start.elapsed());
        assert!(of_first.iter().map(|(what, _)| what).eq([STOPPED]), "{of_first:?}");
        let expected = ["stopping", STOPPED];
        assert!(of_second.iter().map(|(what, _)| what).eq(expected), "{of_second:?}");
        for peer in &peers {
            assert_eq!(read_to_end(peer).unwrap(), b"");
        }
        running.server.wait().unwrap();
    });
}

#[test]
fn until_the_deadline_old_connections_work_and_new_ones_do_not() {
    each_poller!().run(|| {
        let (running, callbacks) = serve_stubborn(0);
        let peer = running.connect();
        assert_echoes(&peer);
        running.server.stop(Duration::MAX);
        expect(&callbacks, "stopping");
        assert_echoes(&peer);
        let error = TcpStream::connect(running.addr()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(running.server.metrics().open, 1);
        peer.shutdown(Shutdown::Write).unwrap();
        expect(&callbacks, "closed by the peer");
        running.server.wait().unwrap();
    });
}

#[test]
fn of_two_deadlines_the_earlier_counts() {
    each_poller!().run(|| {
        for deadlines in [[Duration::MAX, Duration::ZERO], [Duration::ZERO, Duration::MAX]] {
            let (running, callbacks) = serve_stubborn(1);
            let peer = running.connect();
            assert_echoes(&peer);
            for deadline in deadlines {
                running.server.stop(deadline);
            }
            // The handlers are told once.
            expect(&callbacks, "stopping");
            expect(&callbacks, STOPPED);
            running.server.wait().unwrap();
            // Once more is harmless.
            running.server.stop(Duration::ZERO);
            assert!(callbacks.try_recv().is_err());
        }
    });
}

/// Of its three loops one has a peer, one has none, and one has ended.
#[test]
fn a_server_that_is_stopped_again_still_waits_for_all_its_loops() {
    each_poller!().run(|| {
        let (send, receive) = mpsc::channel();
        let (running, callbacks) = serve_stubborn_on(move |server| {
            let pool = LoopPool::builder(server.event_loop()).threads(3).start().unwrap();
            send.send(pool.clone()).unwrap();
            server.pool(&pool)
        });
        let pool = within(&receive);
        let [busy, idle, ended] = pool.loops() else { unreachable!("there are three") };
        let peer = running.connect();
        assert_echoes(&peer);
        ended.quit();
        eventually("the loop has ended", || ended.is_ended());
        for _ in 0..2 {
            running.server.stop(Duration::MAX);
            // What they have been told, they have told the base by then.
            for event_loop in [running.event_loop(), busy, idle, running.event_loop()] {
                let (tell, told) = mpsc::channel();
                event_loop.post(move |_| tell.send(()).unwrap()).unwrap();
                within(&told);
            }
            assert!(!running.server.is_ended());
        }
        drop(peer);
        running.server.wait().unwrap();
        assert_eq!(expect(&callbacks, "stopping"), *busy);
        expect(&callbacks, "closed by the peer");
        assert!(callbacks.try_recv().is_err());
        pool.join().unwrap();
    });
}

#[test]
fn stop_works_in_a_callback_on_any_loop() {
    each_poller!().run(|| {
        for threads in [0, 2] {
            let (send, receive) = mpsc::channel::<ServerHandle>();
            let receive = std::sync::Mutex::new(receive);
            let running = serve(move |event_loop| {
                TcpServer::bind(event_loop, OWN_ADDRESS)?
                    .threads(threads)
                    .on_message(move |conn, input| {
                        conn.send_buffer(input);
                        within(&receive.lock().unwrap()).stop(DEADLINE);
                    })
                    .start()
            });
            send.send(running.server.clone()).unwrap();
            let peer = running.connect();
            write(&peer, "the last words");
            assert_eq!(read_to_end(&peer).unwrap(), b"the last words");
            drop(peer);
            running.server.wait().unwrap();
        }
    });
}

#[test]
fn wait_returns_when_connections_and_threads_are_gone() {
    each_poller!().run(|| {
        let (running, callbacks) = serve_stubborn(2);
        let peers = [running.connect(), running.connect()];
        peers.iter().for_each(assert_echoes);
        let waiting = {
            let server = running.server.clone();
            thread::spawn(move || server.wait())
        };
        running.server.stop(Duration::MAX);
        let loops = [expect(&callbacks, "stopping"), expect(&callbacks, "stopping")];
        assert!(!running.server.is_ended());
        drop(peers);
        waiting.join().unwrap().unwrap();
        assert!(running.server.is_ended());
        assert_eq!(running.server.metrics().open, 0);
        assert!(loops.iter().all(LoopHandle::is_ended));
        assert_eq!(callbacks.try_iter().count(), 2);
        // Nothing to wait for.
        running.server.wait().unwrap();
    });
}

/// Tells, when it is dropped, whether its server has ended.
struct Observer {
    server: ServerHandle,
    tell: mpsc::Sender<bool>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.tell.send(self.server.is_ended()).unwrap();
    }
}

#[test]
fn a_server_has_not_ended_while_a_thread_of_its_own_has_not() {
    each_poller!().run(|| {
        let (running, callbacks) = serve_stubborn(1);
        let peer = running.connect();
        assert_echoes(&peer);
        running.server.stop(Duration::MAX);
        let (tell, told) = mpsc::channel();
        let observer = Observer { server: running.server.clone(), tell };
        // It goes with the thread's loop.
        let arm = move |event_loop: &EventLoop| {
            event_loop.run_after(Duration::MAX, move |_| drop(observer));
        };
        expect(&callbacks, "stopping").post(arm).unwrap();
        drop(peer);
        assert!(!within(&told), "it had ended before its thread");
        running.server.wait().unwrap();
    });
}

#[test]
fn wait_on_a_thread_with_a_loop_is_an_error() {
    each_poller!().run(|| {
        let (running, _callbacks) = serve_stubborn(1);
        let (send, receive) = mpsc::channel();
        let server = running.server.clone();
        running.event_loop().post(move |_| send.send(server.wait()).unwrap()).unwrap();
        let error = within(&receive).unwrap_err();
        assert!(error.to_string().contains("wait on another thread"), "{error}");

        let _any_loop = EventLoop::new().unwrap();
        running.server.wait().unwrap_err();
        // Nothing to wait for.
        running.server.stop(Duration::ZERO);
        eventually("the server has ended", || running.server.is_ended());
        running.server.wait().unwrap();
    });
}

#[test]
fn the_loop_goes_on_and_serves_the_same_port_again() {
    each_poller!().run(|| {
        let thread = LoopThread::spawn("test-loop", EventLoop::builder(), |_| Ok(())).unwrap();
        let mut address: SocketAddr = OWN_ADDRESS.parse().unwrap();
        for _ in 0..3 {
            let (send, receive) = mpsc::channel();
            let start = move |event_loop: &EventLoop| {
                send.send(echo_on(event_loop, address)).unwrap();
            };
            thread.handle().post(start).unwrap();
            let server = within(&receive).unwrap();
            address = server.local_addr().as_ip().unwrap();
            let peer = connect(address);
            assert_echoes(&peer);
            server.stop(Duration::ZERO);
            assert_eq!(read_to_end(&peer).unwrap(), b"");
            server.wait().unwrap();
        }
        thread.join().unwrap();
    });
}

/// A timer that waits for nothing is kept for as long as the deadline is away.
#[test]
fn a_deadline_ends_with_its_server() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let server = echo_on(&event_loop, OWN_ADDRESS.parse().unwrap()).unwrap();
        for deadline in [20, 10] {
            server.stop(Duration::from_millis(deadline));
        }
        let (tell, told) = mpsc::channel();
        event_loop.run_after(Duration::from_millis(40), move |event_loop| {
            tell.send(event_loop.metrics().timers).unwrap();
            event_loop.quit();
        });
        event_loop.run().unwrap();
        assert!(server.is_ended());
        assert_eq!(within(&told), 1, "timers, of which one is the test's");
    });
}

#[test]
fn a_stop_amid_a_flood_of_connections_ends_them_all() {
    const FLOOD: usize = 2000;
    let test = each_poller!();
    // Both ends of each.
    if !allow_descriptors(2 * FLOOD as u64 + 100) {
        return test.skip("4,100 descriptors are more than are allowed here");
    }
    test.run(|| {
        let (connected, closed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let counts = (connected.clone(), closed.clone());
        let running = serve(move |event_loop| {
            TcpServer::bind(event_loop, OWN_ADDRESS)?
                .threads(2)
                .on_connect(move |_| {
                    counts.0.fetch_add(1, Ordering::Relaxed);
                })
                .on_message(|conn, input| conn.send_buffer(input))
                .on_close(move |_, _| {
                    counts.1.fetch_add(1, Ordering::Relaxed);
                })
                .start()
        });
        let address = running.addr();
        let flood = thread::spawn(move || {
            let connect = |_| TcpStream::connect(address).ok();
            (0..).map_while(connect).take(FLOOD).collect::<Vec<_>>()
        });
        eventually("the flood has begun", || running.server.metrics().accepted >= 20);
        running.server.stop(Duration::ZERO);
        running.server.wait().unwrap();
        // All that were accepted had their callbacks; those that still queued were reset.
        let connected = connected.load(Ordering::Relaxed);
        assert_eq!(connected, closed.load(Ordering::Relaxed));
        assert_eq!(connected, running.server.metrics().accepted);
        assert_eq!((running.server.metrics().open, running.server.metrics().lost), (0, 0));
        for peer in flood.join().unwrap() {
            peer.set_read_timeout(Some(DEADLINE)).unwrap();
            // The kernel forgets a handshake that the end of the listener interrupts, and the peer
            // learns of that only when it writes.
            let _ = (&peer).write(b"x");
            match read_to_end(&peer).map_err(|e| e.kind()) {
                Ok(bytes) => assert_eq!(bytes, b""),
                Err(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {}
                Err(e) => panic!("neither ended nor reset: {e}"),
            }
        }
    });
}

#[test]
fn the_report_tells_who_was_drained_and_who_was_cut() {
    each_poller!().run(|| {
        for threads in [0, 2] {
            let (running, callbacks) = serve_stubborn(threads);
            // One that ends before the stop is neither.
            drop(running.connect());
            expect(&callbacks, "closed by the peer");
            let peers: Vec<_> = (0..5).map(|_| running.connect()).collect();
            peers.iter().for_each(assert_echoes);
            running.server.stop(Duration::MAX);
            for _ in &peers {
                expect(&callbacks, "stopping");
            }
            for peer in &peers[..3] {
                peer.shutdown(Shutdown::Write).unwrap();
                expect(&callbacks, "closed by the peer");
            }
            running.server.stop(Duration::ZERO);
            let report = running.server.wait().unwrap();
            assert_eq!((report.drained, report.cut), (3, 2), "{report}");
            assert_eq!(report.to_string(), "3 connections drained, 2 cut");
        }
    });
}

#[test]
fn who_ends_with_the_loop_was_cut() {
    each_poller!().run(|| {
        for threads in [0, 2] {
            let (running, callbacks) = serve_stubborn(threads);
            let peers = [running.connect(), running.connect()];
            peers.iter().for_each(assert_echoes);
            running.event_loop().quit();
            for _ in &peers {
                expect(&callbacks, "the event loop ended");
            }
            let report = running.server.wait().unwrap();
            assert_eq!((report.drained, report.cut), (0, 2), "{report}");
        }
    });
}

// Ending with the loop.

#[test]
fn a_loop_that_ends_closes_the_connections_and_ends_the_server() {
    each_poller!().run(|| {
        for threads in [0, 2] {
            let (running, callbacks) = serve_stubborn(threads);
            let peers: Vec<_> = (0..4).map(|_| running.connect()).collect();
            peers.iter().for_each(assert_echoes);
            let server = running.server.clone();
            let waiting = thread::spawn(move || server.wait());
            running.event_loop().quit();
            for peer in &peers {
                expect(&callbacks, "the event loop ended");
                assert_eq!(read_to_end(peer).unwrap(), b"");
            }
            waiting.join().unwrap().unwrap();
            assert_eq!(running.server.metrics().open, 0);
            running.server.stop(Duration::ZERO);
        }
    });
}

#[test]
fn a_loop_that_ends_while_its_server_is_stopping_ends_the_server() {
    each_poller!().run(|| {
        for threads in [0, 2] {
            let (running, callbacks) = serve_stubborn(threads);
            let peers = [running.connect(), running.connect()];
            peers.iter().for_each(assert_echoes);
            running.server.stop(Duration::MAX);
            for _ in &peers {
                expect(&callbacks, "stopping");
            }
            running.event_loop().quit();
            for peer in &peers {
                expect(&callbacks, "the event loop ended");
                assert_eq!(read_to_end(peer).unwrap(), b"");
            }
            eventually("the server has ended", || running.server.is_ended());
            running.server.wait().unwrap();
        }
    });
}

#[test]
fn a_loop_thread_that_ends_while_the_server_is_stopping_does_not_keep_it() {
    each_poller!().run(|| {
        let (running, callbacks) = serve_stubborn(2);
        let peers = [running.connect(), running.connect()];
        peers.iter().for_each(assert_echoes);
        running.server.stop(Duration::MAX);
        let loops = [expect(&callbacks, "stopping"), expect(&callbacks, "stopping")];
        for event_loop in loops {
            event_loop.quit();
            expect(&callbacks, "the event loop ended");
        }
        running.server.wait().unwrap();
    });
}

/// Its loops may end before their connections do, and before or after they hear of the stop.
#[test]
fn a_loop_of_a_shared_pool_that_ends_while_the_server_is_stopping_does_not_keep_it() {
    each_poller!().run(|| {
        for quits_first in [false, true] {
            let (send, receive) = mpsc::channel();
            let (connected, connections) = mpsc::channel();
            let (stopping, told_of_stop) = mpsc::channel();
            let running = serve(move |event_loop| {
                let pool = LoopPool::builder(event_loop).threads(2).start()?;
                send.send(pool.clone()).unwrap();
                TcpServer::bind(event_loop, OWN_ADDRESS)?
                    .pool(&pool)
                    .on_connect(move |_| connected.send(()).unwrap())
                    .on_message(|conn, input| conn.send_buffer(input))
                    .on_stopping(move |_| stopping.send(()).unwrap())
                    .start()
            });
            let pool = within(&receive);
            let peers: Vec<_> = (0..4).map(|_| running.connect()).collect();
            peers.iter().for_each(|_| within(&connections));
            // Busy, so that what comes meanwhile comes at once.
            let (release, held) = mpsc::channel::<()>();
            let (busy, is_busy) = mpsc::channel();
            let first = pool.loops()[0].clone();
            first
                .post(move |event_loop| {
                    busy.send(()).unwrap();
                    let _ = held.recv_timeout(DEADLINE);
                    if quits_first {
                        event_loop.quit();
                    }
                })
                .unwrap();
            within(&is_busy);
            running.server.stop(Duration::MAX);
            let (tell, told) = mpsc::channel();
            running.event_loop().post(move |_| tell.send(()).unwrap()).unwrap();
            within(&told);
            if !quits_first {
                first.post(EventLoop::quit).unwrap();
            }
            release.send(()).unwrap();
            eventually("the loop has ended", || first.is_ended());
            // Who ends before its loop has heard of the stop is not counted.
            peers.iter().for_each(|_| within(&told_of_stop));
            // Those of the other one.
            drop(peers);
            let report = running.server.wait().unwrap();
            assert_eq!(report.drained + report.cut, 4, "{report}");
            pool.join().unwrap();
        }
    });
}

#[test]
fn a_loop_that_never_ran_ends_its_server_too() {
    each_poller!().run(|| {
        for threads in [0, 2] {
            let event_loop = EventLoop::new().unwrap();
            let server = TcpServer::bind(&event_loop, OWN_ADDRESS).unwrap().threads(threads);
            let server = server.on_message(|_, _| {}).start().unwrap();
            let peer = connect(server.local_addr());
            assert!(!server.is_ended());
            drop(event_loop);
            server.wait().unwrap();
            assert_eq!(read_to_end(&peer).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn a_server_on_the_threads_of_another_loop_ends_with_its_own() {
    each_poller!().run(|| {
        let (send, receive) = mpsc::channel();
        let host = LoopThread::spawn("host", EventLoop::builder(), move |event_loop| {
            send.send(LoopPool::builder(event_loop).threads(2).start()?).unwrap();
            Ok(())
        })
        .unwrap();
        let pool = within(&receive);
        for stops_before in [false, true] {
            let guest_pool = pool.clone();
            let (guest, callbacks) = serve_stubborn_on(move |server| server.pool(&guest_pool));
            let peers = [guest.connect(), guest.connect()];
            peers.iter().for_each(assert_echoes);
            let mut told = Vec::new();
            if stops_before {
                guest.server.stop(Duration::MAX);
                told.extend([within(&callbacks).0, within(&callbacks).0]);
                assert_eq!(told, ["stopping", "stopping"]);
            }
            guest.thread.join().unwrap();
            guest.server.wait().unwrap();
            for peer in &peers {
                assert_eq!(read_to_end(peer).unwrap(), b"");
            }
            // Each handler is told once that it stops, and once of its end.
            told.extend((told.len()..4).map(|_| within(&callbacks).0));
            told.sort_unstable();
            assert_eq!(told, [STOPPED, STOPPED, "stopping", "stopping"]);
            eventually("all are closed", || guest.server.metrics().open == 0);
            assert!(callbacks.try_recv().is_err());
        }
        pool.join().unwrap();
        host.join().unwrap();
    });
}

/// Of a server that was stopped, however its end came.
#[test]
fn one_line_in_the_log_tells_how_a_stop_has_ended() {
    each_poller!().run(|| {
        for (stops, loop_ends, lines) in [(true, false, 1), (true, true, 1), (false, true, 0)] {
            for threads in [0, 2] {
                let (running, callbacks) = serve_stubborn(threads);
                let peer = running.connect();
                assert_echoes(&peer);
                if stops {
                    running.server.stop(Duration::MAX);
                    expect(&callbacks, "stopping");
                }
                if !loop_ends {
                    drop(peer);
                }
                let Running { server, thread } = running;
                if loop_ends {
                    thread.handle().quit();
                }
                let report = server.wait().unwrap();
                thread.join().unwrap();
                let said = take_infos();
                let ends = said.iter().filter(|line| line.contains("has ended"));
                assert_eq!(ends.count(), lines, "{said:?}");
                let line = format!("the server on {} has ended: {report}", server.local_addr());
                assert!(lines == 0 || said[0].ends_with(&line), "{said:?}");
            }
        }
    });
}

// Ending by signals.

/// Runs an echo that stops on signals, as a program would. Returns when `run` does.
fn run_until_signalled(deadline: Duration, meanwhile: impl FnOnce(SocketAddr) + Send + 'static) {
    let event_loop = EventLoop::new().unwrap();
    let server = echo_on(&event_loop, OWN_ADDRESS.parse().unwrap()).unwrap();
    server.stop_on_signals(&event_loop, deadline).unwrap();
    let address = server.local_addr().as_ip().unwrap();
    let meanwhile = thread::spawn(move || meanwhile(address));
    event_loop.run().unwrap();
    assert!(server.is_ended());
    meanwhile.join().unwrap();
}

fn send_to_myself(signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::this(), signal).unwrap();
}

#[test]
fn a_signal_stops_the_server_and_then_the_loop() {
    each_poller!().run(|| {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            run_until_signalled(DEADLINE, move |address| {
                let peer = connect(address);
                assert_echoes(&peer);
                send_to_myself(signal);
                // The end of the stream is what a graceful stop sends.
                assert_eq!(read_to_end(&peer).unwrap(), b"");
            });
        }
    });
}

#[test]
fn a_second_signal_ends_the_loop_at_once() {
    each_poller!().run(|| {
        run_until_signalled(Duration::MAX, |address| {
            let peer = connect(address);
            assert_echoes(&peer);
            send_to_myself(Signal::SIGTERM);
            assert_eq!(read_to_end(&peer).unwrap(), b"");
            send_to_myself(Signal::SIGTERM);
            // Only then does the server give up the connection, and its end resets it.
            let gone = || (&peer).write(b"x").is_err();
            let start = Instant::now();
            while !gone() {
                assert!(start.elapsed() < DEADLINE, "the connection is still there");
            }
        });
    });
}

/// A program as its operator sees it.
#[test]
fn a_second_signal_ends_a_program_at_once_which_says_who_was_drained() {
    each_poller!().run(|| {
        for threads in ["0", "2"] {
            let mut command = Command::new(binary("echo"));
            command.args(["--listen", "127.0.0.1:0", "--threads", threads]);
            let program = Program::spawn(command.env("RUST_LOG", "debug")).listening(1);
            let (polite, stubborn) = (program.connect(), program.connect());
            assert_echoes(&polite);
            assert_echoes(&stubborn);
            program.signal(Signal::SIGTERM);
            for peer in [&polite, &stubborn] {
                assert_eq!(read_to_end(peer).unwrap(), b"");
            }
            let address = polite.local_addr().unwrap();
            drop(polite);
            let drained = format!("to {address}: shut down");
            eventually("one is drained", || program.log().contains(&drained));
            // Long before the stubborn one's five seconds are over.
            program.signal(Signal::SIGTERM);
            let ended = program.wait();
            assert_eq!(ended.code, Some(0), "{}", ended.log);
            assert!(ended.log.contains("one signal more"), "{}", ended.log);
            let report = "has ended: 1 connection drained, 1 cut";
            assert!(ended.log.contains(report), "{}", ended.log);
        }
    });
}

#[test]
fn stopping_on_signals_belongs_to_the_loop_of_the_server() {
    each_poller!().run(|| {
        let running = serve(|event_loop| echo_on(event_loop, OWN_ADDRESS.parse().unwrap()));
        let other = EventLoop::new().unwrap();
        let error = running.server.stop_on_signals(&other, DEADLINE).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    });
}

/// Half of them would be worse than none: the signal would be taken, and stop nothing.
#[test]
fn stopping_on_signals_takes_all_signals_or_none() {
    each_poller!().run(|| {
        let take = |event_loop: &EventLoop, signal| event_loop.on_signal(signal, |_, _| {});
        for [taken, left] in [[Signal::SIGTERM, Signal::SIGINT], [Signal::SIGINT, Signal::SIGTERM]]
        {
            let other = LoopThread::spawn("other", EventLoop::builder(), move |event_loop| {
                take(event_loop, taken).map(drop)
            })
            .unwrap();
            let event_loop = EventLoop::new().unwrap();
            let server = echo_on(&event_loop, OWN_ADDRESS.parse().unwrap()).unwrap();
            let error = server.stop_on_signals(&event_loop, DEADLINE).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
            // Whoever else wants the one that was free can have it.
            LoopThread::spawn("third", EventLoop::builder(), move |event_loop| {
                take(event_loop, left).map(drop)
            })
            .unwrap()
            .join()
            .unwrap();
            // And it can be tried again.
            other.join().unwrap();
            server.stop_on_signals(&event_loop, DEADLINE).unwrap();
            send_to_myself(left);
            event_loop.run().unwrap();
            assert!(server.is_ended());
        }
    });
}

/// One of them has ended before, and the other has a peer that takes its time.
#[test]
fn a_signal_is_one_for_all_servers_of_the_loop() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let ended = echo_on(&event_loop, OWN_ADDRESS.parse().unwrap()).unwrap();
        let (tell, closes) = mpsc::channel();
        let server = TcpServer::bind(&event_loop, OWN_ADDRESS)
            .unwrap()
            .on_message(|conn, input| conn.send_buffer(input))
            .on_stopping(|conn| {
                conn.send("bye");
                conn.shutdown();
            })
            .on_close(move |_, reason| tell.send(reason.to_string()).unwrap())
            .start()
            .unwrap();
        for server in [&ended, &server] {
            server.stop_on_signals(&event_loop, DEADLINE).unwrap();
        }
        let address = server.local_addr().as_ip().unwrap();
        let (handle, observed) = (event_loop.handle(), ended.clone());
        let peer = thread::spawn(move || {
            let peer = connect(address);
            assert_echoes(&peer);
            observed.stop(DEADLINE);
            eventually("it has ended", || observed.is_ended());
            // Between the signal and the peer's end the loop has turns to do something wrong in.
            send_to_myself(Signal::SIGTERM);
            assert_eq!(read_n(&peer, 3), b"bye");
            let (turn, turned) = mpsc::channel();
            for _ in 0..3 {
                let turn = turn.clone();
                if handle.post(move |_| turn.send(()).unwrap()).is_ok() {
                    within(&turned);
                }
            }
            peer.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&peer).unwrap(), b"");
        });
        event_loop.run().unwrap();
        peer.join().unwrap();
        assert!(server.is_ended());
        assert_eq!(within(&closes), "shut down");
    });
}

/// A program may make many of them, one after the other.
#[test]
fn a_server_that_has_ended_is_not_kept_for_a_signal() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        // Whoever has the server has this.
        let message: Arc<[u8]> = Arc::from(*b"full");
        let first = TcpServer::bind(&event_loop, OWN_ADDRESS)
            .unwrap()
            .refuse_with(message.clone())
            .on_message(|_, _| {})
            .start()
            .unwrap();
        first.stop_on_signals(&event_loop, DEADLINE).unwrap();
        first.stop(Duration::ZERO);
        let (mut first, observed) = (Some(first), message.clone());
        event_loop.run_every(Duration::from_millis(1), move |event_loop| {
            if first.take_if(|first| first.is_ended()).is_some() {
                let second = echo_on(event_loop, OWN_ADDRESS.parse().unwrap()).unwrap();
                second.stop_on_signals(event_loop, DEADLINE).unwrap();
            } else if first.is_none() && Arc::strong_count(&observed) == 2 {
                event_loop.quit();
            }
        });
        event_loop.run_after(DEADLINE, EventLoop::quit);
        let start = Instant::now();
        event_loop.run().unwrap();
        assert!(start.elapsed() < DEADLINE, "it is kept");
    });
}

/// A loop that was busy when it was told has that much less time.
#[test]
fn the_deadline_counts_from_the_call() {
    each_poller!().run(|| {
        let (running, callbacks) = serve_stubborn(0);
        let peer = running.connect();
        assert_echoes(&peer);
        let (busy, is_busy) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        running
            .event_loop()
            .post(move |event_loop| {
                busy.send(()).unwrap();
                within(&released);
                event_loop.run_after(Duration::from_secs(1), move |_| tell.send(()).unwrap());
            })
            .unwrap();
        within(&is_busy);
        let (start, deadline) = (Instant::now(), Duration::from_secs(2));
        running.server.stop(deadline);
        eventually("the deadline passes", || start.elapsed() > deadline);
        release.send(()).unwrap();
        assert_eq!(within(&callbacks).0, "stopping");
        assert_eq!(within(&callbacks).0, STOPPED);
        assert!(told.try_recv().is_err(), "a timer of a second came first");
        within(&told);
    });
}
