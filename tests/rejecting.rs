//! Input that makes no sense: where it stands, what still arrives, and what is thrown away.

#![allow(clippy::unwrap_used)]

mod common;
mod kernel;
mod recorder;
mod sessions;

use std::fs::File;
use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use common::{eventually, pattern, proc, read_n, read_to_end, reset, serve, within};
use recorder::{Told, brief, recorded_open, recorded_paused};
use ruduo::{Buffer, Connection, DecodeError, FrameCodec, LineCodec, SendError, Server, TcpServer};
use sessions::{Sessions, act, cuts};

const MIB: usize = 1 << 20;

fn rejected(offset: usize, reason: &str) -> String {
    format!("Rejected(DecodeError {{ offset: {offset}, reason: {reason:?} }})")
}

/// Refuses nothing in particular.
fn reject(conn: &Connection<'_>) {
    conn.reject(&mut Buffer::new(), DecodeError::new(0, "so"));
}

fn is_reset(outcome: io::Result<Vec<u8>>) -> bool {
    outcome.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset)
}

/// A line of `/proc/self/status`, in bytes.
fn memory(name: &str) -> usize {
    let status = proc::read("self/status");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_matches([':', '\t', ' ']).trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

// Codecs.

#[test]
fn a_line_that_is_too_long_is_refused_after_the_answers_to_those_before() {
    alone!().run(|| {
        let sessions = Sessions::with(patient, || {
            let mut lines = LineCodec::lf_or_crlf().max_len(5);
            act(move |conn, input, tell| {
                while let Some(line) = lines.decode(conn, input) {
                    tell.message(line);
                    conn.send(line);
                }
            })
        });
        for pieces in cuts(b"one\r\n\nthree\nlonger\nfive\n") {
            let talk = sessions.talk(&pieces);
            assert_eq!(talk.messages, ["one", "", "three"], "{pieces:?}");
            assert_eq!(talk.reason, rejected(12, "a line of more than 5 bytes"), "{pieces:?}");
            assert_eq!(talk.answers, b"onethree");
        }
    });
}

#[test]
fn a_frame_that_is_too_long_is_refused_after_the_answers_to_those_before() {
    const FRAMES: FrameCodec = FrameCodec::u16().counts_itself().max_len(5);
    alone!().run(|| {
        let sessions = Sessions::with(patient, || {
            act(|conn, input, tell| {
                while let Some(frame) = FRAMES.decode(conn, input) {
                    tell.message(frame);
                    conn.send(frame);
                }
            })
        });
        for (stream, why) in [
            (&b"\0\x05one\0\x02\0\x08longer\0\x02"[..], "a frame of 6 bytes, where 5 are allowed"),
            (b"\0\x05one\0\x02\0\x01", "a length of 1, which does not count its own 2 bytes"),
        ] {
            for pieces in cuts(stream) {
                let talk = sessions.talk(&pieces);
                assert_eq!(talk.messages, ["one", ""], "{pieces:?}");
                assert_eq!(talk.reason, rejected(7, why), "{pieces:?}");
                assert_eq!(talk.answers, b"one");
            }
        }
    });
}

/// The peer waits for its end, and sends neither more nor a FIN. A buffer for what it announces
/// would be seen in the process's size.
#[test]
fn b65_a_huge_length_is_refused_at_once_and_nothing_is_allocated_for_it() {
    alone!().run(|| {
        for (frames, header, len) in [
            (FrameCodec::u32(), &[0xff; 4][..], u64::from(u32::MAX)),
            (FrameCodec::u32().little_endian(), &[0xff; 4], u64::from(u32::MAX)),
            (FrameCodec::u64(), &[0xff; 8], u64::MAX),
            (FrameCodec::u64().little_endian(), &[0xff; 8], u64::MAX),
            (FrameCodec::u64(), b"\0\0\0\x10\0\0\0\0", 1 << 36),
        ] {
            let sessions = Sessions::with(patient, move || {
                act(move |conn, input, _| assert_eq!(frames.decode(conn, input), None))
            });
            let mut peer = sessions.connect();
            let before = memory("VmPeak");
            peer.write_all(header).unwrap();
            assert_eq!(read_to_end(&peer).unwrap(), b"");
            drop(peer);
            let why = format!("a frame of {len} bytes, where 65528 are allowed");
            assert_eq!(sessions.until_closed().1, rejected(0, &why));
            assert!(memory("VmPeak") < before + 256 * MIB);
        }
    });
}

// What a program refuses.

/// No deadline comes to the help of a connection that does not end.
fn patient(server: Server<'_>) -> Server<'_> {
    server.linger(Duration::MAX)
}

/// Tells what comes before the first `!`, which it refuses in a way that a test chooses.
fn refusing(refuse: fn(&Connection<'_>, &mut Buffer, DecodeError)) -> Sessions {
    Sessions::with(patient, move || {
        act(move |conn, input, tell| {
            let bang = input.readable().iter().position(|&byte| byte == b'!');
            let good = bang.unwrap_or(input.len());
            tell.message(&input.readable()[..good]);
            match bang {
                Some(at) => refuse(conn, input, DecodeError::new(at, "a bang")),
                None => input.clear(),
            }
        })
    })
}

#[test]
fn the_offset_is_counted_from_the_first_byte_of_the_stream() {
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| conn.reject(input, error));
        for pieces in cuts(b"some bytes, a bang! and more") {
            let talk = sessions.talk(&pieces);
            assert_eq!(talk.messages.concat(), "some bytes, a bang", "{pieces:?}");
            assert_eq!(talk.reason, rejected(18, "a bang"), "{pieces:?}");
        }
    });
}

/// A parser that reads from a buffer of its own: what is at hand is refused with it.
#[test]
fn input_that_is_not_what_was_refused_is_dropped_too() {
    alone!().run(|| {
        let sessions = refusing(|conn, _, error| conn.reject(&mut Buffer::new(), error));
        let talk = sessions.talk(&[b"a", b"!b", b"c"]);
        assert_eq!(talk.messages, ["a", ""]);
        assert!(talk.reason.starts_with("Rejected"), "{}", talk.reason);
    });
}

#[test]
fn what_the_callback_sends_before_and_after_it_arrives() {
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| {
            conn.send("please, ");
            assert_eq!(conn.rejection(), None);
            conn.reject(input, error.clone());
            assert!(!conn.wants_input() && input.is_empty());
            assert_eq!(conn.rejection(), Some(error));
            conn.send("no ");
            conn.try_send("bangs").unwrap();
        });
        let talk = sessions.talk(&[b"!", b"!"]);
        assert_eq!(talk.answers, b"please, no bangs");
        assert_eq!((talk.messages.len(), talk.reason), (1, rejected(0, "a bang")));
        assert_eq!(sessions.running.server.metrics().discarded, 0);
    });
}

#[test]
fn answers_gathered_behind_the_loop_arrive_and_so_does_the_reason() {
    alone!().run(|| {
        let sessions = Sessions::new(|| {
            let mut lines = LineCodec::lf().max_len(5);
            act(move |conn, input, tell| {
                let mut answers = Buffer::new();
                while let Some(line) = lines.decode(conn, input) {
                    tell.message(line);
                    answers.append(line);
                }
                conn.send_buffer(&mut answers);
                if let Some(error) = conn.rejection() {
                    conn.send(format!("500 {error}\n"));
                }
            })
        });
        for pieces in cuts(b"one\ntwo\nlonger\nfive\n") {
            let talk = sessions.talk(&pieces);
            assert_eq!(talk.messages, ["one", "two"], "{pieces:?}");
            assert_eq!(talk.answers, b"onetwo500 at byte 8: a line of more than 5 bytes\n");
        }
    });
}

#[test]
fn the_first_of_two_refusals_is_the_reason() {
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| {
            conn.reject(input, error);
            reject(conn);
        });
        assert_eq!(sessions.talk(&[b"a", b"b!c"]).reason, rejected(2, "a bang"));
    });
}

/// Closing drops what is pending, but what the program found wrong first stays the reason.
#[test]
fn closing_after_a_refusal_ends_it_at_once_and_the_refusal_stays_the_reason() {
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| {
            conn.send("never sent");
            conn.reject(input, error);
            conn.close();
        });
        let mut peer = sessions.connect();
        peer.write_all(b"!").unwrap();
        assert_eq!(sessions.until_closed().1, rejected(0, "a bang"));
        assert_eq!(read_to_end(&peer).unwrap(), b"");
    });
}

#[test]
fn a_refusal_after_closing_changes_nothing() {
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| {
            conn.close();
            conn.reject(input, error);
        });
        let mut peer = sessions.connect();
        peer.write_all(b"!").unwrap();
        assert_eq!(sessions.until_closed().1, "Closed");
    });
}

#[test]
fn b34_a_reset_after_a_refusal_is_one() {
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| {
            conn.reject(input, error);
            conn.reset();
        });
        let mut peer = sessions.connect();
        peer.write_all(b"!").unwrap();
        assert_eq!(sessions.until_closed().1, rejected(0, "a bang"));
        assert!(is_reset(read_to_end(&peer)));
    });
}

/// The peer must not take what it got for everything.
#[test]
fn a_file_that_is_too_short_is_not_finished_cleanly_because_of_a_refusal() {
    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| {
            let file = File::open(FILE).unwrap();
            let len = file.metadata().unwrap().len();
            conn.send_file(file, 0, len + 10);
            conn.reject(input, error);
        });
        let mut peer = sessions.connect();
        peer.write_all(b"!").unwrap();
        assert_eq!(sessions.until_closed().1, rejected(0, "a bang"));
        assert!(is_reset(read_to_end(&peer)));
    });
}

// What the peer still sends.

/// However much is pending, 100 MiB behind what was refused are thrown away, and the peer gets all
/// answers and a clean end.
fn assert_gets_its_answers(sessions: &Sessions, answers: usize) {
    const MORE: usize = 100;
    let mut peer = sessions.connect();
    peer.write_all(b"!").unwrap();
    assert_eq!(sessions.message(), "");
    let piece = vec![b'!'; MIB];
    let before = memory("VmRSS");
    for _ in 0..MORE {
        peer.write_all(&piece).unwrap();
    }
    let all = (MORE * MIB) as u64 + 1;
    eventually("everything is received", || sessions.running.server.metrics().received == all);
    let grown = memory("VmRSS").saturating_sub(before);
    assert!(grown < answers + 16 * MIB, "{grown} bytes more");
    assert!(read_to_end(&peer).unwrap() == pattern(answers));
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(sessions.until_closed(), (vec![], rejected(0, "a bang")));
}

#[test]
fn b33_what_the_peer_still_sends_is_thrown_away_and_it_gets_its_answers() {
    const ANSWERS: usize = 200_000;
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| {
            conn.send_buffer(&mut Buffer::from(pattern(ANSWERS)));
            conn.reject(input, error);
        });
        assert_gets_its_answers(&sessions, ANSWERS);
    });
}

/// Nothing that the peer sends can make the output grow any more.
#[test]
fn b33_back_pressure_ends_with_a_refusal() {
    // More than the kernel takes.
    const ANSWERS: usize = 50 * MIB;
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| {
            conn.send_buffer(&mut Buffer::from(pattern(ANSWERS)));
            conn.reject(input, error);
        });
        assert_gets_its_answers(&sessions, ANSWERS);
    });
}

/// Nobody is going to resume for a message that never comes.
#[test]
fn b33_a_pause_ends_with_a_refusal() {
    const ANSWERS: usize = 200_000;
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| {
            conn.pause_reading();
            conn.send_buffer(&mut Buffer::from(pattern(ANSWERS)));
            conn.reject(input, error);
            conn.pause_reading();
        });
        assert_gets_its_answers(&sessions, ANSWERS);
    });
}

#[test]
fn b39_a_peer_that_never_closes_after_a_refusal_is_cut_and_the_reason_stays() {
    const LINGER: Duration = Duration::from_millis(300);
    alone!().run(|| {
        for pauses in [false, true] {
            let sessions = Sessions::with(
                |server| server.linger(LINGER),
                move || {
                    act(move |conn, _, _| {
                        if pauses {
                            conn.pause_reading();
                        }
                        reject(conn);
                    })
                },
            );
            let mut peer = sessions.connect();
            let start = Instant::now();
            peer.write_all(b"x").unwrap();
            assert_eq!(read_to_end(&peer).unwrap(), b"");
            let more = peer.try_clone().unwrap();
            // It goes on sending, which does not help it.
            let typist = thread::spawn(move || while (&more).write_all(b"more").is_ok() {});
            assert_eq!(sessions.until_closed(), (vec![], rejected(1, "so")));
            assert!(start.elapsed() >= LINGER, "{:?}", start.elapsed());
            typist.join().unwrap();
        }
    });
}

#[test]
fn b11_a_reset_by_the_peer_after_a_refusal_does_not_change_the_reason() {
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| {
            conn.send("no");
            conn.reject(input, error);
        });
        let mut peer = sessions.connect();
        peer.write_all(b"!").unwrap();
        assert_eq!(read_n(&peer, 2), b"no");
        reset(peer);
        assert_eq!(sessions.until_closed().1, rejected(0, "a bang"));
    });
}

// Outside of `on_message`.

#[test]
fn a_posted_call_can_refuse_and_nothing_is_delivered_after_it() {
    alone!().run(|| {
        let (this, mut peer) = recorded_open(patient);
        peer.write_all(b"hello").unwrap();
        assert_eq!(within(&this.told), Told::Message(b"hello".to_vec()));
        this.call(|conn| {
            conn.send("n");
            reject(conn);
            conn.send("o");
        });
        assert_eq!(read_to_end(&peer).unwrap(), b"no");
        this.call(|conn| assert_eq!(conn.try_send("too late"), Err(SendError::Closed)));
        peer.write_all(b"more").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        // The handler still learns what becomes of its output, but nothing of the peer.
        assert_eq!(within(&this.told), Told::WriteComplete);
        assert_eq!(this.closed(), rejected(5, "so"));
    });
}

/// Calls of a program that has no input at hand: it passes an empty buffer, and what the handler has
/// left is what it refuses.
#[test]
fn what_is_left_is_refused_from_outside_and_does_not_come_again() {
    alone!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            patient(TcpServer::bind(event_loop, "127.0.0.1:0")?)
                .on_message(|conn, input| {
                    assert_eq!(input.readable(), b"hello", "delivered again");
                    input.consume(2);
                    conn.pause_reading();
                    conn.set_timer(1, Duration::ZERO);
                })
                .on_timer(|conn, _| {
                    reject(conn);
                    conn.resume_reading();
                })
                .on_close(move |_, reason| tell.send(brief(reason)).unwrap())
                .start()
        });
        let mut peer = server.connect();
        peer.write_all(b"hello").unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        peer.write_all(b"more").unwrap();
        drop(peer);
        assert_eq!(within(&told), rejected(2, "so"));
    });
}

#[test]
fn a_refusal_in_on_half_close_sends_what_was_sent_before_it() {
    alone!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            patient(TcpServer::bind(event_loop, "127.0.0.1:0")?)
                .on_message(|_, input| input.consume(2))
                .on_half_close(|conn| {
                    conn.send("half a message");
                    reject(conn);
                })
                .on_close(move |_, reason| tell.send(brief(reason)).unwrap())
                .start()
        });
        let mut peer = server.connect();
        peer.write_all(b"hello").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"half a message");
        assert_eq!(within(&told), rejected(2, "so"));
    });
}

#[test]
fn a_connection_that_is_refused_when_it_is_made_delivers_nothing() {
    alone!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            patient(TcpServer::bind(event_loop, "127.0.0.1:0")?)
                .on_connect(reject)
                .on_message(|_, _| panic!("delivered"))
                .on_close(move |_, reason| tell.send(brief(reason)).unwrap())
                .start()
        });
        let mut peer = server.connect();
        peer.write_all(b"hello").unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        peer.write_all(b"hello").unwrap();
        drop(peer);
        assert_eq!(within(&told), rejected(0, "so"));
    });
}

/// The kernel has told of the peer's end while reading was paused, and tells no more.
#[test]
fn b17_a_refusal_while_paused_notices_a_peer_that_is_gone() {
    alone!().run(|| {
        for resets in [true, false] {
            let (this, mut peer) = recorded_paused(patient);
            peer.write_all(b"hello").unwrap();
            if resets {
                reset(peer);
                kernel::wait_for_reset(this.ends);
            } else {
                drop(peer);
                kernel::wait_for_fin(this.ends);
            }
            this.let_turn();
            this.call(reject);
            assert_eq!(this.closed(), rejected(0, "so"));
        }
    });
}

/// What other threads have sent before has its place before the end.
#[test]
fn b29_what_was_posted_before_the_end_of_the_refusing_callback_arrives() {
    fn post(conn: &Connection<'_>, text: &'static str) {
        let conn = conn.handle();
        thread::spawn(move || conn.send(text).unwrap()).join().unwrap();
    }
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| {
            post(conn, "1");
            conn.send("2");
            post(conn, "3");
            conn.reject(input, error);
            assert!(!conn.wants_input());
            post(conn, "4");
            conn.send("5");
        });
        for _ in 0..20 {
            let talk = sessions.talk(&[b"!", b"!"]);
            assert_eq!(talk.answers, b"12345");
            assert_eq!((talk.messages.len(), talk.reason), (1, rejected(0, "a bang")));
        }
    });
}

/// What a posted call refuses is refused at the place of the call.
#[test]
fn b29_what_is_posted_behind_a_call_that_refuses_does_not_arrive() {
    alone!().run(|| {
        let (this, peer) = recorded_open(|server| server);
        let (handler, conn) = (this.handler.clone(), this.conn.clone());
        // Both are posted before the loop gets to either.
        this.call(move |_| {
            let posts = thread::spawn(move || {
                handler
                    .post(|_, conn| {
                        conn.send("refused");
                        reject(conn);
                    })
                    .unwrap();
                conn.send(" late").unwrap();
            });
            posts.join().unwrap();
        });
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"refused");
    });
}

#[test]
fn a_stop_does_not_change_the_reason() {
    alone!().run(|| {
        let sessions = refusing(|conn, input, error| conn.reject(input, error));
        let mut peer = sessions.connect();
        peer.write_all(b"!").unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        sessions.running.server.stop(Duration::ZERO);
        sessions.running.server.wait().unwrap();
        assert_eq!(sessions.until_closed().1, rejected(0, "a bang"));
    });
}
