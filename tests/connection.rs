//! Connections: what they receive, and how they end.

#![allow(clippy::unwrap_used)]

mod common;
mod kernel;
mod recorder;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use common::{Alone, DEADLINE, pattern, read_to_end, reset, serve, within};
use recorder::{Told, hold, recorded, recorded_open, recorded_paused, turns};
use ruduo::{Buffer, CloseReason, Connection, Handler, TcpServer};

/// A loop at rest makes a few turns in this time, for what the test itself posts; one that spins
/// makes tens of thousands.
const WINDOW: Duration = Duration::from_millis(300);
const FEW_TURNS: u64 = 20;

#[test]
fn knows_both_addresses() {
    each_poller!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_connect(move |conn| {
                    tell.send((conn.local_addr().unwrap(), conn.peer_addr())).unwrap();
                })
                .on_message(|_, _| {})
                .start()
        });
        let peer = server.connect();
        let (local, remote) = within(&told);
        assert_eq!(local, server.addr());
        assert_eq!(remote, peer.local_addr().unwrap());
    });
}

// The peer's end.

#[test]
fn b11_reset_after_data_is_delivered_first() {
    each_poller!().run(|| {
        let (this, mut peer) = recorded(|server| server.read_size(4096));
        let data = pattern(40_000);
        let held = this.hold();
        peer.write_all(&data).unwrap();
        kernel::wait_for_bytes(this.ends, data.len());
        reset(peer);
        kernel::wait_for_reset(this.ends);
        drop(held);

        let (received, reason) = this.messages_until_closed();
        assert!(received == data, "{} bytes of {}", received.len(), data.len());
        assert_eq!(reason, "ReadFailed(ECONNRESET)");
    });
}

#[test]
fn b11_reset_alone_is_one_close_with_the_error() {
    each_poller!().run(|| {
        let (this, peer) = recorded(|server| server);
        reset(peer);
        assert_eq!(this.closed(), "ReadFailed(ECONNRESET)");
    });
}

/// The end of the peer's stream, once, and the other direction goes on.
#[test]
fn b14_a_receive_of_no_bytes_is_the_end_of_the_stream() {
    each_poller!().run(|| {
        let (this, peer) = recorded_open(|server| server.linger(DEADLINE));
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(within(&this.told), Told::HalfClose);
        assert!(this.turns_in(WINDOW) < FEW_TURNS);
        this.call(|conn| {
            conn.send("goodbye");
            conn.shutdown();
        });
        assert_eq!(read_to_end(&peer).unwrap(), b"goodbye");
        assert_eq!(within(&this.told), Told::WriteComplete);
        assert_eq!(this.closed(), "PeerClosed");
    });
}

#[test]
fn b12_fin_with_data_is_seen_after_all_data() {
    each_poller!().run(|| {
        let (this, mut peer) = recorded(|server| server.read_size(4096));
        let data = pattern(40_000);
        let held = this.hold();
        peer.write_all(&data).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        kernel::wait_for_fin(this.ends);
        drop(held);

        let (received, then) = this.messages();
        assert!(received == data, "{} bytes of {}", received.len(), data.len());
        assert_eq!(then, Told::HalfClose);
        assert_eq!(this.closed(), "PeerClosed");
        assert_eq!(read_to_end(&peer).unwrap(), b"");
    });
}

#[test]
fn b12_a_last_small_message_with_the_fin_is_not_lost() {
    each_poller!().run(|| {
        let (this, mut peer) = recorded(|server| server);
        let held = this.hold();
        peer.write_all(b"bye").unwrap();
        drop(peer);
        kernel::wait_for_fin(this.ends);
        drop(held);
        assert_eq!(this.messages(), (b"bye".to_vec(), Told::HalfClose));
        assert_eq!(this.closed(), "PeerClosed");
    });
}

/// Though the end of our stream has yet to leave, behind what the peer does not read.
#[test]
fn who_shuts_down_before_the_peer_has_finished_was_first() {
    const A_LOT: usize = 50 << 20;
    each_poller!().run(|| {
        // The peer's end is noticed while output waits.
        let (this, peer) = recorded_open(|server| server.water_marks(1 << 20, 60 << 20));
        this.call(|conn| {
            conn.send_shared(vec![b'x'; A_LOT].into());
            conn.shutdown();
        });
        this.let_turn();
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(within(&this.told), Told::HalfClose);
        assert_eq!(read_to_end(&peer).unwrap().len(), A_LOT);
        assert_eq!(within(&this.told), Told::WriteComplete);
        assert_eq!(this.closed(), "ShutDown");
    });
}

// Reading paused.

#[test]
fn pauses_are_counted() {
    each_poller!().run(|| {
        let (this, mut peer) = recorded(|server| server);
        for _ in 0..3 {
            this.conn.pause_reading().unwrap();
        }
        this.let_turn();
        peer.write_all(b"hello").unwrap();
        for _ in 0..2 {
            this.conn.resume_reading().unwrap();
        }
        kernel::wait_for_bytes(this.ends, 5);
        this.let_turn();
        assert_eq!(kernel::end(this.ends).unwrap().unread, 5, "one pause is left");
        assert!(this.told.try_recv().is_err());
        this.conn.resume_reading().unwrap();
        assert_eq!(within(&this.told), Told::Message(b"hello".to_vec()));
    });
}

#[test]
fn b16_fin_while_paused_does_not_spin_and_is_seen_on_resume() {
    each_poller!().run(|| {
        let (this, mut peer) = recorded_paused(|server| server);
        peer.write_all(b"last words").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        kernel::wait_for_fin(this.ends);
        assert!(this.turns_in(WINDOW) < FEW_TURNS);
        assert!(this.told.try_recv().is_err(), "told of something while paused");

        this.conn.resume_reading().unwrap();
        assert_eq!(this.messages(), (b"last words".to_vec(), Told::HalfClose));
        assert_eq!(this.closed(), "PeerClosed");
    });
}

/// Both directions have ended: the kernel then reports a hang-up, asked or not.
#[test]
fn b16_fin_while_paused_after_our_own_does_not_spin() {
    each_poller!().run(|| {
        let (this, mut peer) = recorded_paused(|server| server.linger(DEADLINE));
        this.conn.shutdown().unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        peer.write_all(b"last words").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        assert!(this.turns_in(WINDOW) < FEW_TURNS);
        assert!(this.told.try_recv().is_err(), "told of something while paused");

        this.conn.resume_reading().unwrap();
        assert_eq!(this.messages(), (b"last words".to_vec(), Told::HalfClose));
        assert_eq!(this.closed(), "ShutDown");
    });
}

#[test]
fn b17_reset_while_paused_does_not_spin_and_closes_at_the_linger_deadline() {
    const LINGER: Duration = Duration::from_millis(600);
    each_poller!().run(|| {
        let (this, peer) = recorded_paused(|server| server.linger(LINGER));
        let start = Instant::now();
        reset(peer);
        kernel::wait_for_reset(this.ends);
        assert!(this.turns_in(WINDOW) < FEW_TURNS);
        assert_eq!(this.closed(), "LingerExpired { after: 600ms }");
        assert!(start.elapsed() >= LINGER, "too early");
    });
}

#[test]
fn b17_reset_while_paused_is_seen_on_resume_with_the_data_before_it() {
    each_poller!().run(|| {
        let (this, mut peer) = recorded_paused(|server| server.linger(DEADLINE));
        peer.write_all(b"last words").unwrap();
        kernel::wait_for_bytes(this.ends, 10);
        reset(peer);
        kernel::wait_for_reset(this.ends);
        assert!(this.turns_in(WINDOW) < FEW_TURNS);

        this.conn.resume_reading().unwrap();
        let (bytes, reason) = this.messages_until_closed();
        assert_eq!(
            (bytes.as_slice(), reason.as_str()),
            (&b"last words"[..], "ReadFailed(ECONNRESET)")
        );
    });
}

/// The handler knows of the peer's FIN and waits for something else before it answers.
#[test]
fn b17_reset_after_half_close_closes_at_once() {
    each_poller!().run(|| {
        let (this, peer) = recorded_open(|server| server.linger(DEADLINE));
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(within(&this.told), Told::HalfClose);
        assert!(this.turns_in(WINDOW) < FEW_TURNS);
        reset(peer);
        assert_eq!(this.closed(), "ReadFailed(EPIPE)");
    });
}

// Errors of receiving. The injected faults count receive calls on each thread, so the peer, on its
// own thread, uses read and write.

fn without_recv(peer: TcpStream) -> File {
    File::from(OwnedFd::from(peer))
}

/// The second receive call of the loop's thread fails.
fn failing_read(alone: Alone, errno: &'static str) {
    let inject = format!("inject=recvfrom:error={errno}:when=2");
    alone.under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject]).run(|| {
        let (this, peer) = recorded(|server| server);
        let mut peer = without_recv(peer);
        peer.write_all(b"first").unwrap();
        assert_eq!(within(&this.told), Told::Message(b"first".to_vec()));
        peer.write_all(b"second").unwrap();
        assert_eq!(this.closed(), format!("ReadFailed({errno})"));
    });
}

#[test]
fn b18_timeout_while_reading_closes_with_the_reason() {
    failing_read(each_poller!(), "ETIMEDOUT");
}

#[test]
fn b18_connection_aborted_while_reading_closes_with_the_reason() {
    failing_read(each_poller!(), "ECONNABORTED");
}

#[test]
fn b18_host_unreachable_while_reading_closes_with_the_reason() {
    failing_read(each_poller!(), "EHOSTUNREACH");
}

/// So says shutdown(2) when the peer has reset the connection. Why it ends, receiving will say.
#[test]
fn a_connection_that_is_gone_when_our_fin_is_due_ends_with_what_receiving_says() {
    let inject = "inject=shutdown:error=ENOTCONN";
    each_poller!().under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject]).run(|| {
        let (this, peer) = recorded(|server| server);
        this.conn.shutdown().unwrap();
        // The turn of the FIN, and one more.
        (0..2).for_each(|_| _ = turns(this.server.event_loop()));
        reset(peer);
        assert_eq!(this.closed(), "ReadFailed(ECONNRESET)");
    });
}

/// The first receive calls say that there is nothing, against what the poller said.
#[test]
fn b19_spurious_readiness_is_nothing() {
    let inject = "inject=recvfrom:error=EAGAIN:when=1..3";
    each_poller!().under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject]).run(|| {
        let (this, peer) = recorded(|server| server);
        let mut peer = without_recv(peer);
        peer.write_all(b"hello").unwrap();
        assert_eq!(within(&this.told), Told::Message(b"hello".to_vec()));
        this.conn.send("still here").unwrap();
        assert_eq!(within(&this.told), Told::WriteComplete);
        let mut answer = [0; 10];
        peer.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"still here");
        drop(peer);
        assert_eq!(within(&this.told), Told::HalfClose);
        assert_eq!(this.closed(), "PeerClosed");
    });
}

#[test]
fn b19_interrupted_receive_calls_are_repeated() {
    let inject = "inject=recvfrom:error=EINTR:when=1..3";
    each_poller!().under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject]).run(|| {
        let (this, peer) = recorded(|server| server);
        without_recv(peer).write_all(b"hello").unwrap();
        assert_eq!(this.messages(), (b"hello".to_vec(), Told::HalfClose));
        assert_eq!(this.closed(), "PeerClosed");
    });
}

// Bounds.

/// One receive a turn is the budget: a peer that has sent a lot takes turns with the others.
#[test]
fn b15_a_firehose_takes_turns_with_the_others() {
    each_poller!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .read_size(4096)
                .on_message(move |conn, input| {
                    let is_firehose = input.readable()[0] == b'x';
                    tell.send((is_firehose, input.len(), conn.event_loop().metrics().turns))
                        .unwrap();
                    input.clear();
                })
                .start()
        });
        let (mut firehose, mut other) = (server.connect(), server.connect());
        // Both have been accepted.
        for peer in [&mut firehose, &mut other] {
            peer.write_all(b"x").unwrap();
            within(&told);
        }
        let held = hold(server.event_loop());
        firehose.write_all(&[b'x'; 40_000]).unwrap();
        kernel::wait_for_bytes((server.addr(), firehose.local_addr().unwrap()), 40_000);
        other.write_all(b"o").unwrap();
        kernel::wait_for_bytes((server.addr(), other.local_addr().unwrap()), 1);
        drop(held);

        let (mut received, mut of_firehose, mut of_other) = (0, Vec::new(), Vec::new());
        while received < 40_001 {
            let (is_firehose, len, turn) = within(&told);
            received += len;
            if is_firehose { of_firehose.push(turn) } else { of_other.push(turn) }
        }
        assert!(of_firehose.is_sorted_by(|a, b| a < b), "twice in a turn: {of_firehose:?}");
        assert_eq!(of_other, of_firehose[..1], "both were ready in this turn");
    });
}

#[test]
fn b20_input_never_consumed_is_capped() {
    const LIMIT: usize = 256 * 1024;
    each_poller!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .input_limit(LIMIT)
                .on_message(|_, input| {
                    assert!(input.capacity() <= LIMIT + Buffer::CHEAP_PREPEND);
                })
                .on_close(move |conn, reason| {
                    tell.send((conn.bytes_received(), recorder::brief(reason))).unwrap();
                })
                .start()
        });
        let mut peer = server.connect();
        let outcome = (0..).try_for_each(|_| peer.write_all(&pattern(64 * 1024)));
        assert_ne!(outcome.unwrap_err().kind(), ErrorKind::WouldBlock, "nobody cut the connection");
        let (received, reason) = within(&told);
        assert_eq!(reason, format!("InputFull {{ limit: {LIMIT} }}"));
        assert_eq!(received, LIMIT as u64);
    });
}

/// A message of the limit's very size is not too much, if the handler takes its time with it: it
/// gets it back on resume before anything else is read.
#[test]
fn b20_input_at_the_limit_is_delivered_again_before_more_is_read() {
    const LIMIT: usize = 16 * 1024;
    struct Slow {
        told: Sender<Told>,
        asked: bool,
    }
    impl Handler for Slow {
        fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer) {
            if !self.asked {
                self.asked = true;
                conn.pause_reading();
                let conn_later = conn.handle();
                conn.event_loop().defer(move |_| conn_later.send("wait").unwrap());
                return;
            }
            self.told.send(Told::Message(std::mem::take(input).into_vec())).unwrap();
        }
        /// At the end of a turn, as it was not sent inside an event.
        fn on_write_complete(&mut self, conn: &Connection<'_>) {
            conn.resume_reading();
        }
        fn on_close(&mut self, _: &Connection<'_>, reason: &CloseReason) {
            self.told.send(Told::Closed(recorder::brief(reason))).unwrap();
        }
    }
    each_poller!().run(|| {
        let (told, events) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .read_size(LIMIT)
                .input_limit(LIMIT)
                .serve(move |_| Slow { told: told.clone(), asked: false })
        });
        let mut peer = server.connect();
        let data = pattern(LIMIT + 100);
        let held = hold(server.event_loop());
        peer.write_all(&data).unwrap();
        kernel::wait_for_bytes((server.addr(), peer.local_addr().unwrap()), data.len());
        drop(held);
        let mut seen = Vec::new();
        while seen.len() < data.len() {
            match within(&events) {
                Told::Message(more) => seen.extend(more),
                other => panic!("told of {other:?} after {} bytes", seen.len()),
            }
        }
        assert!(seen == data);
    });
}
