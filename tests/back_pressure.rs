//! Peers that read slowly: water marks, limits, and input that waits for them.

#![allow(clippy::unwrap_used)]

mod common;
mod kernel;
mod recorder;

use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use common::{DEADLINE, eventually, pattern, read_n, read_to_end, serve, within};
use recorder::{Told, brief, recorded, turns};
use ruduo::{
    Buffer, CloseReason, Connection, EventLoop, Handler, SendError, ServerHandle, TcpServer,
};

/// More than the kernel's buffers of both ends take when the peer does not read.
const A_LOT: usize = 50 << 20;

const MIB: usize = 1 << 20;

// Water marks.

#[test]
fn b26_each_crossing_is_told_once_and_reading_pauses_between() {
    each_poller!().run(|| {
        let (this, mut peer) = recorded(|server| server.water_marks(MIB, 2 * MIB));
        for _ in 0..3 {
            this.conn.send_shared(Arc::from(pattern(A_LOT))).unwrap();
            let Told::HighWater(pending) = within(&this.told) else { panic!("no high water") };
            assert!((2 * MIB + 1..=A_LOT).contains(&pending), "{pending}");

            // More output is no new crossing, and the peer's next request is not received.
            this.conn.send("more").unwrap();
            peer.write_all(b"request").unwrap();
            kernel::wait_for_bytes(this.ends, 7);
            // Nor is it looked at again and again: a loop that spins makes thousands of turns.
            assert!(this.turns_in(Duration::from_millis(100)) < 20, "it spins");
            assert_eq!(kernel::end(this.ends).unwrap().unread, 7);
            assert_eq!(this.told.try_recv().ok(), None);

            read_n(&peer, A_LOT + 4);
            assert_eq!(within(&this.told), Told::LowWater);
            // The rest of the output is one write away, the request one read.
            let next = [within(&this.told), within(&this.told)];
            assert!(next.contains(&Told::Message(b"request".to_vec())), "{next:?}");
            assert!(next.contains(&Told::WriteComplete), "{next:?}");
        }
    });
}

/// As much as the mark allows is not too much.
#[test]
fn b26_output_at_the_mark_is_not_above_it() {
    const HIGH: usize = 2 * MIB;
    each_poller!().run(|| {
        let (this, _peer) = recorded(|server| server.water_marks(MIB, HIGH));
        loop {
            this.call(|conn| conn.send(vec![0; HIGH - conn.pending_output()]));
            this.let_turn();
            let (tell, told) = channel();
            this.call(move |conn| {
                let (pending, at_the_mark) = (conn.pending_output(), conn.wants_input());
                if pending == HIGH {
                    conn.send("x");
                }
                tell.send((pending == HIGH, at_the_mark, conn.wants_input())).unwrap();
            });
            // Some has left: the kernel has yet to be filled.
            let (true, at_the_mark, above_it) = within(&told) else { continue };
            assert!(at_the_mark && !above_it, "{at_the_mark} at the mark, {above_it} above it");
            break;
        }
        // The kernel may have taken all that there was before.
        let mut told = std::iter::repeat_with(|| within(&this.told));
        let first = told.find(|told| *told != Told::WriteComplete);
        assert_eq!(first, Some(Told::HighWater(HIGH + 1)));
    });
}

/// What the kernel takes as soon as it is asked is no back pressure, also if it has to be asked
/// twice because it is in many pieces.
#[test]
fn b26_output_that_leaves_at_once_crosses_nothing() {
    each_poller!().run(|| {
        let (this, peer) = recorded(|server| server.water_marks(0, 10));
        for pieces in [1, 20] {
            this.call(move |conn| {
                (0..pieces).for_each(|_| conn.send_shared(Arc::from(pattern(4096))));
            });
            read_n(&peer, pieces * 4096);
            assert_eq!(within(&this.told), Told::WriteComplete);
        }
    });
}

/// Also if nothing is left to do then but to close.
#[test]
fn output_that_has_drained_is_told_of_before_the_end() {
    each_poller!().run(|| {
        let (this, peer) = recorded(|server| server.water_marks(MIB, A_LOT));
        this.conn.send_shared(Arc::from(pattern(A_LOT))).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(within(&this.told), Told::HalfClose);
        assert_eq!(read_to_end(&peer).unwrap().len(), A_LOT);
        assert_eq!(within(&this.told), Told::WriteComplete);
        assert_eq!(this.closed(), "PeerClosed");
    });
}

/// Takes requests of one byte while it may, and answers each at length.
struct Answering {
    answer: Arc<[u8]>,
    answered: Arc<AtomicU64>,
    most: usize,
}

impl Handler for Answering {
    fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer) {
        while conn.wants_input() && !input.is_empty() {
            input.consume(1);
            conn.send_shared(self.answer.clone());
            self.answered.fetch_add(1, Ordering::Relaxed);
            assert!(conn.pending_output() <= self.most, "the handler was not told to stop");
        }
    }
}

#[test]
fn b26_a_handler_that_stops_gets_what_it_left_when_the_peer_has_read() {
    const REQUESTS: usize = 50;
    const ANSWER: usize = MIB;
    each_poller!().run(|| {
        let answered = Arc::new(AtomicU64::new(0));
        let count = answered.clone();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.water_marks(MIB, 2 * MIB).serve(move |_| {
                let answer = Arc::from(pattern(ANSWER));
                Answering { answer, answered: count.clone(), most: 2 * MIB + ANSWER }
            })
        });
        let mut peer = server.connect();
        peer.write_all(&[b'?'; REQUESTS]).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        eventually("the first answers", || answered.load(Ordering::Relaxed) > 2);
        let total = read_to_end(&peer).unwrap().len();
        assert_eq!(total, REQUESTS * ANSWER);
        assert_eq!(answered.load(Ordering::Relaxed), REQUESTS as u64);
    });
}

/// The peer reads as fast as it can: each time the handler stops, all its output leaves at once,
/// and the requests that it left, together with the peer's FIN, wait for their turns.
#[test]
fn b26_a_pipeline_of_requests_with_a_fin_behind_is_answered_to_the_last() {
    const REQUESTS: usize = 20_000;
    const ANSWER: usize = 100;
    each_poller!().run(|| {
        let answered = Arc::new(AtomicU64::new(0));
        let count = answered.clone();
        let (tell, told) = channel();
        struct Told(Answering, std::sync::mpsc::Sender<String>);
        impl Handler for Told {
            fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer) {
                self.0.on_message(conn, input);
            }
            fn on_close(&mut self, _: &Connection<'_>, reason: &CloseReason) {
                self.1.send(brief(reason)).unwrap();
            }
        }
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.water_marks(0, 1000).serve(move |_| {
                let answer = Arc::from(pattern(ANSWER));
                let answering = Answering { answer, answered: count.clone(), most: 1000 + ANSWER };
                Told(answering, tell.clone())
            })
        });
        let mut peer = server.connect();
        peer.write_all(&[b'?'; REQUESTS]).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        let total = read_to_end(&peer).unwrap().len();
        assert_eq!(total, REQUESTS * ANSWER);
        assert_eq!(answered.load(Ordering::Relaxed), REQUESTS as u64);
        assert_eq!(within(&told), "PeerClosed");
    });
}

#[test]
fn b26_a_program_that_paused_gets_what_it_left_without_new_bytes() {
    each_poller!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(move |conn, input| {
                    // One line at a time; the rest has to wait for a resume.
                    let Some(end) = input.find_eol() else { return };
                    let line = String::from_utf8(input.read_bytes(end + 1).unwrap()).unwrap();
                    conn.pause_reading();
                    assert!(!conn.wants_input());
                    tell.send((line, conn.handle())).unwrap();
                })
                .start()
        });
        let mut peer = server.connect();
        peer.write_all(b"one\ntwo\nthree\n").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        for expected in ["one\n", "two\n", "three\n"] {
            let (line, conn) = within(&told);
            assert_eq!(line, expected);
            turns(server.event_loop());
            turns(server.event_loop());
            assert!(told.try_recv().is_err(), "delivered before the resume");
            conn.resume_reading().unwrap();
        }
        assert_eq!(read_to_end(&peer).unwrap(), b"", "closes after the last line");
    });
}

/// Many messages of a middle size wait: they may not weigh so much more than their bytes that the
/// limit ends the connection before the mark pauses it.
#[test]
fn b26_back_pressure_comes_before_the_limit() {
    const MESSAGE: usize = 5000;
    each_poller!().run(|| {
        let (tell, told) = channel();
        let ended = tell.clone();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .water_marks(64 * 1024, 2 * MIB)
                .output_limit(8 * MIB)
                .on_message(|conn, input| conn.send_buffer(input))
                .on_high_water(move |_, _| tell.send("high water".to_owned()).unwrap())
                .on_close(move |_, reason| ended.send(brief(reason)).unwrap())
                .start()
        });
        let mut peer = server.connect();
        let (mut sent, start) = (0, Instant::now());
        let first = loop {
            // Each is received as a message of its own.
            if server.server.metrics().received == sent as u64 {
                peer.write_all(&pattern(MESSAGE)).unwrap();
                sent += MESSAGE;
            }
            if let Ok(first) = told.recv_timeout(Duration::from_micros(20)) {
                break first;
            }
            assert!(start.elapsed() < DEADLINE, "neither the mark nor the limit");
        };
        assert_eq!(first, "high water");
        peer.shutdown(Shutdown::Write).unwrap();
        let back = read_to_end(&peer).unwrap();
        assert!(back == pattern(MESSAGE).repeat(sent / MESSAGE), "{} of {sent} bytes", back.len());
        assert_eq!(within(&told), "PeerClosed");
    });
}

/// What is on its way from another thread counts as pending. When it is refused in the end, because
/// the connection was shut down before, that is no output that could drain.
#[test]
fn b26_input_that_waited_for_a_send_comes_again_also_if_that_is_dropped() {
    each_poller!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .water_marks(0, 1000)
                .linger(DEADLINE)
                .on_message(move |conn, input| {
                    if conn.try_send("").is_ok() {
                        conn.shutdown();
                        let conn = conn.handle();
                        thread::spawn(move || conn.send([0; 1001]).unwrap()).join().unwrap();
                    }
                    tell.send(conn.wants_input()).unwrap();
                    if conn.wants_input() {
                        input.clear();
                    }
                })
                .start()
        });
        let mut peer = server.connect();
        peer.write_all(b"request").unwrap();
        assert!(!within(&told), "above the mark");
        assert!(within(&told));
    });
}

// Limits.

#[test]
fn b27_output_beyond_the_limit_closes_with_the_reason() {
    const LIMIT: usize = 4 * MIB;
    each_poller!().run(|| {
        let (this, peer) = recorded(|server| server.water_marks(MIB, 2 * MIB).output_limit(LIMIT));
        let (tell, told) = channel();
        this.call(move |conn| {
            let piece = pattern(64 * 1024);
            let sent = (0..100).map(|_| conn.send(&piece)).count();
            tell.send((sent, conn.pending_output())).unwrap();
        });
        let (_, pending) = within(&told);
        assert!((LIMIT / 2..=LIMIT).contains(&pending), "{pending} bytes were accepted");
        assert_eq!(this.closed(), format!("OutputFull {{ limit: {LIMIT} }}"));
        let discarded = this.server.server.metrics().discarded;
        assert_eq!(discarded as usize, 100 * 64 * 1024 - pending, "all the others are counted");
        drop(peer);
    });
}

/// As much as the limit allows is not too much.
#[test]
fn b27_output_at_the_limit_is_not_beyond_it() {
    const LIMIT: usize = 4 * MIB;
    each_poller!().run(|| {
        let (this, peer) = recorded(|server| server.water_marks(MIB, 2 * MIB).output_limit(LIMIT));
        this.conn.send_shared(vec![b'x'; LIMIT].into()).unwrap();
        read_n(&peer, LIMIT);
        this.call(|conn| conn.send_shared(vec![b'x'; LIMIT + 1].into()));
        while within(&this.told) != Told::Closed(format!("OutputFull {{ limit: {LIMIT} }}")) {}
    });
}

/// A header does not hold the storage of a whole buffer until its body has left.
#[test]
fn b27_small_pieces_between_large_ones_count_with_little_storage() {
    const PAIRS: usize = 500;
    each_poller!().run(|| {
        let (this, peer) =
            recorded(|server| server.water_marks(MIB, 2 * MIB).output_limit(8 * MIB));
        this.call(|conn| {
            let body: Arc<[u8]> = pattern(4096).into();
            for _ in 0..PAIRS {
                conn.send("header");
                conn.send_shared(body.clone());
            }
            conn.shutdown();
        });
        assert_eq!(read_to_end(&peer).unwrap().len(), PAIRS * (6 + 4096));
    });
}

/// Also if something always waits.
#[test]
fn b27_what_has_left_does_not_count_any_more() {
    const LIMIT: usize = 8 * MIB;
    const ROUNDS: usize = 40;
    each_poller!().run(|| {
        let (this, peer) = recorded(|server| server.water_marks(MIB, 2 * MIB).output_limit(LIMIT));
        let piece: Arc<[u8]> = pattern(MIB).into();
        let mut sent = 0;
        for _ in 0..ROUNDS {
            let ((tell, told), piece) = (channel(), piece.clone());
            this.call(move |conn| {
                let mut sent = 0;
                while conn.pending_output() + 2 * MIB < LIMIT {
                    conn.send_shared(piece.clone());
                    sent += MIB;
                }
                tell.send(sent).unwrap();
            });
            sent += within(&told);
            read_n(&peer, MIB);
        }
        this.conn.shutdown().unwrap();
        assert_eq!(read_to_end(&peer).unwrap().len(), sent - ROUNDS * MIB);
    });
}

#[test]
fn b27_try_send_says_full_and_changes_nothing() {
    const LIMIT: usize = 4 * MIB;
    each_poller!().run(|| {
        let (this, peer) = recorded(|server| server.water_marks(MIB, 2 * MIB).output_limit(LIMIT));
        let (tell, told) = channel();
        this.call(move |conn| {
            let piece = pattern(64 * 1024);
            let accepted = (0..1000).take_while(|_| conn.try_send(&piece).is_ok()).count();
            assert_eq!(conn.try_send(&piece), Err(SendError::Full));
            assert_eq!(conn.handle().send(&piece), Err(SendError::Full));
            tell.send((accepted * piece.len(), conn.pending_output())).unwrap();
        });
        let (accepted, pending) = within(&told);
        assert_eq!(accepted, pending);
        assert!((LIMIT / 2..=LIMIT).contains(&pending), "{pending} bytes were accepted");
        assert_eq!(this.server.server.metrics().discarded, 0);
        let expected = pattern(64 * 1024).repeat(accepted / (64 * 1024));
        assert!(read_n(&peer, accepted) == expected);
        this.conn.send("still open").unwrap();
        assert_eq!(read_n(&peer, 10), b"still open");
    });
}

/// Limits count memory, and even a few bytes are kept in a buffer of the read size.
#[test]
fn b27_a_limit_too_small_for_buffers_is_refused_and_the_smallest_allowed_works() {
    const READ: usize = 4096;
    fn start(event_loop: &EventLoop, limit: usize) -> std::io::Result<ServerHandle> {
        TcpServer::bind(event_loop, "127.0.0.1:0")?
            .read_size(READ)
            .water_marks(0, 1000)
            .output_limit(limit)
            .on_message(|conn, input| {
                conn.send("first, ");
                conn.send_buffer(input);
            })
            .start()
    }
    each_poller!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            // The boundary itself is the library's affair.
            let mut limits = (READ..3 * READ).map(|limit| start(event_loop, limit));
            let refused = limits.next().unwrap().unwrap_err();
            tell.send((refused.kind(), refused.to_string())).unwrap();
            limits.find_map(Result::ok).ok_or_else(|| ErrorKind::InvalidInput.into())
        });
        let (kind, text) = within(&told);
        assert_eq!(kind, ErrorKind::InvalidInput);
        assert!(text.contains("output limit") && text.contains("read size"), "{text}");
        let mut peer = server.connect();
        peer.write_all(b"second").unwrap();
        assert_eq!(read_n(&peer, 13), b"first, second");
    });
}

// Depth.

/// Each answer is sent when the one before has left. A write-complete callback that were called
/// inside `send` would need some stack for each: a million of them take many seconds, and so many as
/// here would fill the two megabytes of a thread with 14 bytes each, less than any frame takes.
#[test]
fn b46_sending_on_write_complete_needs_no_stack() {
    const TIMES: u64 = 150_000;
    each_poller!().run(|| {
        let times = AtomicU64::new(0);
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, input| conn.send_buffer(input))
                .on_write_complete(move |conn| match times.fetch_add(1, Ordering::Relaxed) {
                    TIMES.. => conn.shutdown(),
                    _ => conn.send("x"),
                })
                .start()
        });
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        assert_eq!(read_to_end(&peer).unwrap().len() as u64, TIMES + 1);
    });
}

/// However fast the peer takes it, what is sent on write-complete leaves in the next turn: others
/// have theirs in between.
#[test]
fn b30_sending_on_write_complete_takes_turns_with_the_others() {
    const TIMES: u32 = 50;
    each_poller!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_connect(|conn| conn.send("x"))
                .on_write_complete(move |conn| {
                    tell.send(conn.event_loop().metrics().turns).unwrap();
                    conn.send("x");
                })
                .on_message(|_, input| input.clear())
                .start()
        });
        let _peer = server.connect();
        let turns: Vec<_> = (0..TIMES).map(|_| within(&told)).collect();
        assert!(turns.is_sorted_by(|a, b| a < b), "twice in a turn: {turns:?}");
    });
}

/// What was accepted before a loop ends is run in pieces, with the end of a turn between: a peer
/// that does not read is noticed when it should be, not when everything has been queued for it.
#[test]
fn b27_the_last_tasks_of_a_loop_are_under_back_pressure_too() {
    const TASKS: usize = 300_000;
    const LEN: usize = 1_000;
    each_poller!().run(|| {
        let (this, _peer) = recorded(|server| server.output_limit(1 << 30));
        let event_loop = this.conn.event_loop().clone();
        let conn = this.conn.clone();
        let last_words: Arc<[u8]> = pattern(LEN).into();
        event_loop
            .post(move |event_loop| {
                event_loop.quit();
                for _ in 0..TASKS {
                    let (conn, last_words) = (conn.clone(), last_words.clone());
                    event_loop.defer(move |_| conn.send_shared(last_words).unwrap());
                }
            })
            .unwrap();
        let pending = loop {
            match within(&this.told) {
                Told::HighWater(pending) => break pending,
                // The kernel took all of the first ones.
                Told::WriteComplete => {}
                other => panic!("{other:?}"),
            }
        };
        // The kernel has to be full first, which takes a few turns.
        assert!(pending < TASKS * LEN / 2, "{pending} bytes before anybody looked");
        assert_eq!(within(&this.told), Told::Closed("LoopEnded".to_owned()));
    });
}
