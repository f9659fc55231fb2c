//! Connections that pass on what others receive: who is too fast for the other side waits, and ends
//! are passed on as they are.

#![allow(clippy::unwrap_used)]

mod common;
mod recorder;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use common::{Running, eventually, open_fds, pattern, read_to_end, reset, serve, within};
use recorder::{Told, brief, recorded};
use ruduo::{
    Buffer, CloseReason, Connection, ConnectionHandle, EventLoop, Handler, LoopHandle, LoopThread,
    Relay, Server, TcpClient, TcpServer,
};

const HIGH: usize = 1 << 20;

/// A side of a relay that looks often how much waits in it.
struct Side {
    /// `None` until the other side is there.
    relay: Option<Relay>,
    most_pending: Arc<AtomicUsize>,
    tell: Sender<String>,
}

impl Side {
    fn look(&self, conn: &Connection<'_>) {
        self.most_pending.fetch_max(conn.pending_output(), Ordering::Relaxed);
        conn.set_timer(0, Duration::from_micros(200));
    }
}

impl Handler for Side {
    fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer) {
        self.relay.as_mut().unwrap().on_message(conn, input);
    }
    fn on_high_water(&mut self, conn: &Connection<'_>, _: usize) {
        self.look(conn);
    }
    fn on_timer(&mut self, conn: &Connection<'_>, _: u64) {
        self.look(conn);
    }
    fn on_half_close(&mut self, conn: &Connection<'_>) {
        self.relay.as_mut().unwrap().on_half_close(conn);
    }
    fn on_stopping(&mut self, conn: &Connection<'_>) {
        self.relay.as_mut().unwrap().on_stopping(conn);
    }
    fn on_close(&mut self, conn: &Connection<'_>, reason: &CloseReason) {
        self.relay.as_mut().unwrap().on_close(conn, reason);
        // A test that has seen enough does not listen any more.
        let _ = self.tell.send(brief(reason));
    }
}

/// A relay with one connection through it.
struct Relayed {
    /// Its two ends.
    client: TcpStream,
    target: TcpStream,
    most_pending: Arc<AtomicUsize>,
    /// The sides' close reasons.
    closed: Receiver<String>,
    server: Running,
    /// The other loop, if there is one.
    other_loop: Option<LoopThread>,
}

impl Relayed {
    /// Both sides are on one loop, or each has its own.
    fn new(on_two_loops: bool) -> Relayed {
        Relayed::with(on_two_loops, |server| server)
    }

    fn with(on_two_loops: bool, settings: fn(Server<'_>) -> Server<'_>) -> Relayed {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let other_loop =
            on_two_loops.then(|| LoopThread::spawn("other", EventLoop::builder(), |_| Ok(())));
        let other_loop = other_loop.map(Result::unwrap);
        let most_pending = Arc::new(AtomicUsize::new(0));
        let (tell, closed) = channel();
        let (tell_joined, joined) = channel();
        let back_loop: Option<LoopHandle> = other_loop.as_ref().map(|l| l.handle().clone());
        let most = most_pending.clone();
        let server = serve(move |event_loop| {
            let back_loop = back_loop.unwrap_or_else(|| event_loop.handle());
            let server = TcpServer::bind(event_loop, "127.0.0.1:0")?;
            settings(server.linger(Duration::MAX)).serve(move |front| {
                front.pause_reading();
                let (front, front_side) = (front.handle(), front.handle_for::<Side>());
                let stream = TcpStream::connect(target).unwrap();
                let side = Side { relay: None, most_pending: most.clone(), tell: tell.clone() };
                let (most_pending, tell) = (most.clone(), tell.clone());
                let tell_joined = tell_joined.clone();
                let begin = move |event_loop: &EventLoop| {
                    let client = TcpClient::from_stream(event_loop, stream).unwrap();
                    let made = client.serve(move |back| {
                        back.set_linger(Duration::MAX);
                        let back_handle = back.handle();
                        let join = move |side: &mut Side, front: &Connection<'_>| {
                            side.relay = Some(Relay::new(front, &back_handle));
                            front.resume_reading();
                            tell_joined.send(()).unwrap();
                        };
                        front_side.post(join).unwrap();
                        Side { relay: Some(Relay::new(back, &front)), most_pending, tell }
                    });
                    made.unwrap();
                };
                back_loop.post(begin).unwrap();
                side
            })
        });
        let client = server.connect();
        let (target, _) = listener.accept().unwrap();
        target.set_read_timeout(Some(common::DEADLINE)).unwrap();
        within(&joined);
        Relayed { client, target, most_pending, closed, server, other_loop }
    }

    fn assert_both_close(&self, expected: &str) {
        for _ in 0..2 {
            let reason = within(&self.closed);
            assert!(expected.contains(&reason), "{reason}");
        }
    }
}

fn write(mut stream: &TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).unwrap();
}

fn on_one_loop_and_on_two(test: impl Fn(bool)) {
    [false, true].into_iter().for_each(test);
}

/// A server waits for what is part of it, but not longer than for its own connections.
#[test]
fn what_is_part_of_a_server_is_cut_at_the_deadline_of_its_stop() {
    alone!().run(|| {
        on_one_loop_and_on_two(|on_two| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let target = listener.local_addr().unwrap();
            let (tell, told) = channel();
            let running = serve(move |event_loop| {
                TcpServer::bind(event_loop, "127.0.0.1:0")?
                    .threads(usize::from(on_two))
                    .on_connect(move |conn| {
                        let tell = tell.clone();
                        TcpClient::connect(conn.event_loop(), target)
                            .part_of(conn)
                            .on_connect(|back| back.send(vec![0; 40 << 20]))
                            .on_message(|_, _| {})
                            .on_close(move |_, reason| tell.send(reason.to_string()).unwrap())
                            .start()
                            .unwrap();
                    })
                    .on_message(|_, _| {})
                    .start()
            });
            let client = running.connect();
            let (target, _) = listener.accept().unwrap();
            drop(client);
            let server = &running.server;
            eventually("only its part is left", || {
                (server.metrics().accepted, server.metrics().open) == (1, 0)
            });
            server.stop(Duration::from_millis(50));
            assert_eq!(within(&told), "cut at the stop's deadline");
            assert_eq!(server.wait().unwrap().to_string(), "0 connections drained, 1 cut");
            drop(target);
        });
    });
}

/// Nobody would stop it any more.
#[test]
fn nothing_becomes_part_of_a_server_that_has_been_cut() {
    alone!().run(|| {
        on_one_loop_and_on_two(|on_two| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let target = listener.local_addr().unwrap();
            let (tell, told) = channel();
            let running = serve(move |event_loop| {
                TcpServer::bind(event_loop, "127.0.0.1:0")?
                    .threads(usize::from(on_two))
                    .on_message(|_, _| {})
                    .on_close(move |conn, _| {
                        let again = TcpClient::connect(conn.event_loop(), target).part_of(conn);
                        let outcome = again.on_message(|_, _| {}).start();
                        tell.send(outcome.map(drop).map_err(|e| e.to_string())).unwrap();
                    })
                    .start()
            });
            let _peer = running.connect();
            eventually("it is there", || running.server.metrics().open == 1);
            running.server.stop(Duration::ZERO);
            let error = within(&told).unwrap_err();
            assert!(error.contains("has been cut"), "{error}");
            running.server.wait().unwrap();
        });
    });
}

/// A server waits for what is part of it, and there is none here that could.
#[test]
fn nothing_is_part_of_a_client() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let (tell, told) = channel();
        let address = server.addr();
        let begin = move |event_loop: &EventLoop| {
            let client = TcpClient::connect(event_loop, address).on_connect(move |conn| {
                let other = TcpClient::connect(conn.event_loop(), address).part_of(conn);
                tell.send(other.on_message(|_, _| {}).start().unwrap_err()).unwrap();
            });
            client.on_message(|_, _| {}).start().unwrap();
        };
        server.event_loop().post(begin).unwrap();
        assert_eq!(within(&told).kind(), ErrorKind::InvalidInput);
    });
}

/// Both send at once, and each finishes for itself.
#[test]
fn b13_both_directions_are_passed_on_to_the_last_byte_and_end_for_themselves() {
    const LEN: usize = 8 << 20;
    alone!().run(|| {
        on_one_loop_and_on_two(|two| {
            let relayed = Relayed::new(two);
            let bytes = pattern(LEN);
            thread::scope(|scope| {
                for mut stream in [&relayed.client, &relayed.target] {
                    let bytes = &bytes;
                    scope.spawn(move || {
                        stream.write_all(bytes).unwrap();
                        stream.shutdown(Shutdown::Write).unwrap();
                    });
                    scope.spawn(move || assert!(read_to_end(stream).unwrap() == *bytes));
                }
            });
            relayed.assert_both_close("PeerClosed ShutDown");
        });
    });
}

/// A request, its end, a long answer: the direction that has ended says nothing about the other.
#[test]
fn b13_a_half_close_is_passed_on_and_the_answer_comes_back() {
    alone!().run(|| {
        on_one_loop_and_on_two(|two| {
            let Relayed { client, target, closed, .. } = &Relayed::new(two);
            write(client, b"request");
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(target).unwrap(), b"request");
            let answer = pattern(5 << 20);
            thread::scope(|scope| {
                let reader = scope.spawn(|| read_to_end(client).unwrap());
                write(target, &answer);
                target.shutdown(Shutdown::Write).unwrap();
                assert!(reader.join().unwrap() == answer);
            });
            let reasons = [within(closed), within(closed)];
            assert!(reasons.iter().all(|r| r == "PeerClosed" || r == "ShutDown"), "{reasons:?}");
        });
    });
}

/// The target reads nothing for a while: what has been received waits, and it is not more than
/// twice the mark. Then everything arrives.
#[test]
fn b26_between_a_fast_and_a_slow_peer_little_waits() {
    const LEN: usize = 64 << 20;
    alone!().run(|| {
        on_one_loop_and_on_two(|two| {
            let Relayed { client, target, most_pending, server, .. } = &Relayed::new(two);
            let sent = AtomicUsize::new(0);
            thread::scope(|scope| {
                scope.spawn(|| {
                    let piece = vec![b'x'; 1 << 16];
                    for _ in 0..LEN / piece.len() {
                        write(client, &piece);
                        sent.fetch_add(piece.len(), Ordering::Relaxed);
                    }
                    client.shutdown(Shutdown::Write).unwrap();
                });
                // Until nothing moves any more.
                let moved = || server.server.metrics().received;
                eventually("the relay has to wait", || {
                    let before = moved();
                    thread::sleep(Duration::from_millis(50));
                    most_pending.load(Ordering::Relaxed) > HIGH && moved() == before
                });
                assert!(sent.load(Ordering::Relaxed) < LEN, "the kernel took everything");
                let mut buffer = vec![0; 1 << 20];
                let mut received = 0;
                loop {
                    match (&mut &*target).read(&mut buffer).unwrap() {
                        0 => break,
                        n => received += n,
                    }
                }
                assert_eq!(received, LEN);
            });
            let most = most_pending.load(Ordering::Relaxed);
            assert!((HIGH..2 * HIGH).contains(&most), "{most} bytes waited");
        });
    });
}

/// The other loop does nothing for a while, so nobody there can say that it is too much.
#[test]
fn b26_little_is_on_its_way_to_a_loop_that_is_busy() {
    const LEN: usize = 64 << 20;
    alone!().run(|| {
        let relayed = Relayed::new(true);
        let (go_on, wait) = channel::<()>();
        let busy = move |_: &EventLoop| wait.recv().unwrap();
        relayed.other_loop.as_ref().unwrap().handle().post(busy).unwrap();
        let Relayed { client, target, most_pending, server, .. } = &relayed;
        thread::scope(|scope| {
            scope.spawn(move || {
                write(client, vec![b'x'; LEN]);
                client.shutdown(Shutdown::Write).unwrap();
            });
            let moved = || server.server.metrics().received as usize;
            eventually("it waits", || {
                let before = moved();
                thread::sleep(Duration::from_millis(50));
                before > 0 && moved() == before
            });
            assert!(moved() < HIGH, "{} bytes are on their way", moved());
            go_on.send(()).unwrap();
            assert_eq!(read_to_end(target).unwrap().len(), LEN);
        });
        assert!(most_pending.load(Ordering::Relaxed) < 2 * HIGH);
    });
}

#[test]
fn b11_a_reset_is_passed_on() {
    alone!().run(|| {
        for (two, from_client) in [(false, true), (false, false), (true, true), (true, false)] {
            let Relayed { client, target, closed, server: _server, other_loop: _other, .. } =
                Relayed::new(two);
            write(&client, b"hello");
            assert_eq!(common::read_n(&target, 5), b"hello");
            let (resets, learns) = if from_client { (client, target) } else { (target, client) };
            reset(resets);
            assert_eq!(read_to_end(&learns).unwrap_err().kind(), ErrorKind::ConnectionReset);
            let reasons = [within(&closed), within(&closed)];
            assert!(reasons.contains(&"ReadFailed(ECONNRESET)".to_owned()), "{reasons:?}");
            assert!(reasons.contains(&"Reset".to_owned()), "{reasons:?}");
        }
    });
}

/// Its end was a good one, but there is more for it.
#[test]
fn b11_what_cannot_be_passed_on_any_more_is_a_reset() {
    alone!().run(|| {
        let (over, over_peer) = recorded(|server| server);
        drop(over_peer);
        while within(&over.told) != Told::Closed("PeerClosed".to_owned()) {}
        let other = over.conn.clone();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.serve(move |conn| Relay::new(conn, &other))
        });
        let peer = server.connect();
        write(&peer, "more");
        assert_eq!(read_to_end(&peer).unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

/// A peer that takes nothing ends as stalled, and the other one learns that not all has arrived.
#[test]
fn b26_a_side_that_is_cut_resets_the_other() {
    const TIME: Duration = Duration::from_millis(300);
    alone!().run(|| {
        let relayed = Relayed::with(false, |server| server.write_stall_timeout(TIME));
        let Relayed { target, closed, .. } = &relayed;
        // Until the connection is reset.
        let piece = vec![b'x'; 1 << 20];
        let outcome = (0..1000).try_for_each(|_| (&mut &*target).write_all(&piece));
        assert!(outcome.is_err(), "nobody stopped it");
        let reasons = [within(closed), within(closed)];
        assert!(reasons.contains(&format!("WriteStalled {{ after: {TIME:?} }}")), "{reasons:?}");
        assert!(reasons.contains(&"Reset".to_owned()), "{reasons:?}");
    });
}

/// Neither peer takes for whole what was cut, although nothing waited at the moment.
#[test]
fn both_sides_of_a_relay_that_is_cut_are_reset() {
    alone!().run(|| {
        on_one_loop_and_on_two(|on_two| {
            let Relayed { client, target, server, .. } = &Relayed::new(on_two);
            write(client, b"the beginning");
            assert_eq!(common::read_n(target, 13), b"the beginning");
            server.server.stop(Duration::ZERO);
            for peer in [client, target] {
                assert_eq!(read_to_end(peer).unwrap_err().kind(), ErrorKind::ConnectionReset);
            }
        });
    });
}

/// A stop is not a good place to end a stream of somebody else's.
#[test]
fn a_server_that_stops_lets_a_relay_go_on_until_the_deadline() {
    alone!().run(|| {
        let Relayed { client, target, closed, server, .. } = &Relayed::new(false);
        write(client, b"before");
        assert_eq!(common::read_n(target, 6), b"before");
        server.server.stop(common::DEADLINE);
        eventually("it does not listen any more", || TcpListener::bind(server.addr()).is_ok());
        write(client, b"after");
        assert_eq!(common::read_n(target, 5), b"after");
        write(target, b"bye");
        client.shutdown(Shutdown::Write).unwrap();
        target.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(client).unwrap(), b"bye");
        assert_eq!([within(closed), within(closed)].len(), 2);
        server.server.wait().unwrap();
    });
}

// Pauses alone.

/// A source and a sink, each a connection of a server of its own.
fn above_its_mark() -> (recorder::Recorded, TcpStream, recorder::Recorded, TcpStream) {
    let (source, source_peer) = recorded(|server| server);
    let (sink, sink_peer) = recorded(|server| server);
    sink.conn.send_shared(vec![b'x'; 50 << 20].into()).unwrap();
    let Told::HighWater(_) = within(&sink.told) else { panic!("no high water") };
    (source, source_peer, sink, sink_peer)
}

#[track_caller]
fn assert_is_paused(source: &recorder::Recorded, peer: &TcpStream) {
    // What was posted to its loop before is in force.
    source.let_turn();
    write(peer, "more");
    source.let_turn();
    assert_eq!(source.told.try_recv().ok(), None, "it is not paused");
}

#[track_caller]
fn assert_goes_on(source: &recorder::Recorded) {
    assert_eq!(within(&source.told), Told::Message(b"more".to_vec()));
}

#[test]
fn b26_who_joins_later_is_paused_too_and_goes_on_when_the_mark_is_low() {
    alone!().run(|| {
        let (source, source_peer, sink, sink_peer) = above_its_mark();
        source.conn.pause_while_above(&sink.conn);
        source.let_turn();
        assert_is_paused(&source, &source_peer);
        common::read_n(&sink_peer, 50 << 20);
        assert_goes_on(&source);
    });
}

#[test]
fn b26_two_reasons_to_pause_do_not_undo_each_other() {
    alone!().run(|| {
        // Ours ends first.
        let (source, source_peer, sink, sink_peer) = above_its_mark();
        source.conn.pause_while_above(&sink.conn);
        source.conn.pause_reading().unwrap();
        source.conn.resume_reading().unwrap();
        assert_is_paused(&source, &source_peer);
        common::read_n(&sink_peer, 50 << 20);
        assert_goes_on(&source);

        // The sink's ends first.
        let (source, source_peer, sink, sink_peer) = above_its_mark();
        source.conn.pause_while_above(&sink.conn);
        source.conn.pause_reading().unwrap();
        common::read_n(&sink_peer, 50 << 20);
        assert_eq!(within(&sink.told), Told::LowWater);
        sink.let_turn();
        assert_is_paused(&source, &source_peer);
        source.conn.resume_reading().unwrap();
        assert_goes_on(&source);

        // Two sinks.
        let (source, source_peer, first, first_peer) = above_its_mark();
        let (_, _, second, second_peer) = above_its_mark();
        source.conn.pause_while_above(&first.conn);
        source.conn.pause_while_above(&second.conn);
        common::read_n(&first_peer, 50 << 20);
        assert_eq!(within(&first.told), Told::LowWater);
        first.let_turn();
        assert_is_paused(&source, &source_peer);
        common::read_n(&second_peer, 50 << 20);
        assert_goes_on(&source);
    });
}

#[test]
fn b26_the_end_of_a_sink_that_is_above_its_mark_lets_its_sources_go_on() {
    alone!().run(|| {
        let (source, source_peer, sink, _sink_peer) = above_its_mark();
        source.conn.pause_while_above(&sink.conn);
        source.let_turn();
        assert_is_paused(&source, &source_peer);
        sink.conn.close().unwrap();
        assert_goes_on(&source);
        // And who joins now is not kept waiting by one that is over.
        while within(&sink.told) != Told::Closed("Closed".to_owned()) {}
        source.conn.pause_while_above(&sink.conn);
        write(&source_peer, "more");
        assert_goes_on(&source);
    });
}

#[test]
fn a_source_that_is_over_is_no_trouble() {
    alone!().run(|| {
        let (source, source_peer, sink, sink_peer) = above_its_mark();
        source.conn.pause_while_above(&sink.conn);
        drop(source_peer);
        source.conn.close().unwrap();
        while !matches!(within(&source.told), Told::Closed(_)) {}
        common::read_n(&sink_peer, 50 << 20);
        assert_eq!(within(&sink.told), Told::LowWater);
    });
}

/// However long it takes to arrive.
#[test]
fn b26_little_that_is_on_its_way_pauses_nobody() {
    alone!().run(|| {
        let ((source, source_peer), (sink, sink_peer)) = (recorded(|s| s), recorded(|s| s));
        source.conn.pause_while_above(&sink.conn);
        let held = sink.hold();
        for _ in 0..3 {
            let sink = sink.conn.clone();
            source.call(move |_| sink.send("little").unwrap());
            source.let_turn();
            write(&source_peer, "more");
            assert_goes_on(&source);
        }
        drop(held);
        assert_eq!(common::read_n(&sink_peer, 18), b"littlelittlelittle");
    });
}

/// A sink that is above its mark, and has had no handle before `at_the_mark` or its end gives one
/// away. And its peer, which keeps it open.
fn sink_without_handles(
    at_the_mark: impl Fn(&Connection<'_>, &Sender<ConnectionHandle>) + Send + Sync + 'static,
) -> (Running, TcpStream, ConnectionHandle) {
    let (tell, told) = channel();
    let tell_end = tell.clone();
    let server = serve(move |event_loop| {
        TcpServer::bind(event_loop, "127.0.0.1:0")?
            .on_connect(|conn| conn.send_shared(vec![b'x'; 50 << 20].into()))
            .on_high_water(move |conn, _| at_the_mark(conn, &tell))
            .on_message(|_, _| {})
            // At the end of a test nobody listens.
            .on_close(move |conn, _| _ = tell_end.send(conn.handle()))
            .start()
    });
    let peer = server.connect();
    let sink = within(&told);
    (server, peer, sink)
}

#[test]
fn b26_who_joins_by_the_first_handle_is_paused_if_the_mark_was_crossed_before() {
    alone!().run(|| {
        let at_the_mark =
            |conn: &Connection<'_>, tell: &Sender<_>| tell.send(conn.handle()).unwrap();
        let (_server, sink_peer, sink) = sink_without_handles(at_the_mark);
        let (source, source_peer) = recorded(|server| server);
        source.conn.pause_while_above(&sink);
        assert_is_paused(&source, &source_peer);
        common::read_n(&sink_peer, 50 << 20);
        assert_goes_on(&source);
    });
}

/// The mark will never be told to be low again.
#[test]
fn b26_who_joins_a_sink_that_has_ended_above_its_mark_is_not_paused() {
    alone!().run(|| {
        let (_server, _sink_peer, sink) = sink_without_handles(|conn, _| conn.close());
        let (source, source_peer) = recorded(|server| server);
        source.conn.pause_while_above(&sink);
        source.let_turn();
        write(&source_peer, "more");
        assert_goes_on(&source);
    });
}

/// By a sink that outlives many of them: each would keep the means to wake its loop.
#[test]
fn sources_that_are_over_are_forgotten() {
    alone!().run(|| {
        let (sink, _sink_peer) = recorded(|server| server);
        let before = open_fds().len();
        for _ in 0..20 {
            let (source, _source_peer) = recorded(|server| server);
            source.conn.pause_while_above(&sink.conn);
        }
        assert!(open_fds().len() < before + 5, "{:?}", open_fds());
    });
}
