//! Messages in real streams: however a stream is cut, the same messages, each once.

#![allow(clippy::unwrap_used)]

mod common;
mod recorder;
mod sessions;

use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use common::{eventually, pattern, read_n, read_to_end, within};
use recorder::turns;
use ruduo::{Buffer, Connection, ConnectionHandle, FrameCodec, LineCodec, Server};
use sessions::{Sessions, act, cuts};

const MIB: usize = 1 << 20;

#[derive(Clone)]
enum Codec {
    Lines(LineCodec),
    Frames(FrameCodec),
}

impl Codec {
    fn decode<'b>(&mut self, conn: &Connection<'_>, input: &'b mut Buffer) -> Option<&'b [u8]> {
        match self {
            Codec::Lines(lines) => lines.decode(conn, input),
            Codec::Frames(frames) => frames.decode(conn, input),
        }
    }
}

/// A server that tells what it decodes.
fn decoding(codec: Codec) -> Sessions {
    Sessions::new(move || {
        let mut codec = codec.clone();
        act(move |conn, input, tell| {
            while let Some(message) = codec.decode(conn, input) {
                tell.message(message);
            }
        })
    })
}

#[track_caller]
fn assert_means(codec: Codec, stream: &[u8], messages: &[&str], reason: &str) {
    let sessions = decoding(codec);
    for pieces in cuts(stream) {
        let talk = sessions.talk(&pieces);
        assert_eq!(
            (&talk.messages[..], &talk.reason[..]),
            (&own(messages)[..], reason),
            "{pieces:?}"
        );
    }
}

fn own(messages: &[&str]) -> Vec<String> {
    messages.iter().map(|&message| message.to_owned()).collect()
}

fn frame(codec: FrameCodec, message: impl Into<Buffer>) -> Vec<u8> {
    codec.encode(message).unwrap().into_vec()
}

// Cuts.

#[test]
fn lines_of_each_kind_are_the_same_however_they_are_cut() {
    alone!().run(|| {
        let stream = b"one\ntwo\r\n\n\r\n\rthree\r\r\n";
        let lf = ["one", "two\r", "", "\r", "\rthree\r\r"];
        assert_means(Codec::Lines(LineCodec::lf()), stream, &lf, "PeerClosed");
        let crlf = ["one\ntwo", "\n", "\rthree\r"];
        assert_means(Codec::Lines(LineCodec::crlf()), stream, &crlf, "PeerClosed");
        let either = ["one", "two", "", "", "\rthree\r"];
        assert_means(Codec::Lines(LineCodec::lf_or_crlf()), stream, &either, "PeerClosed");
    });
}

#[test]
fn frames_of_each_width_and_order_are_the_same_however_they_are_cut() {
    alone!().run(|| {
        for width in [FrameCodec::u8(), FrameCodec::u16(), FrameCodec::u32(), FrameCodec::u64()] {
            for codec in [width, width.little_endian(), width.counts_itself()] {
                let messages = ["one", "", "three"];
                let stream = messages.map(|message| frame(codec, message)).concat();
                assert_means(Codec::Frames(codec), &stream, &messages, "PeerClosed");
            }
        }
    });
}

/// Each place at which a stream can end: behind a message, or in the middle of one.
#[test]
fn a_stream_that_ends_in_the_middle_of_a_message_is_unfinished() {
    alone!().run(|| {
        let frames = FrameCodec::u16();
        let stream = ["one", "", "three"].map(|message| frame(frames, message)).concat();
        for (codec, stream, ends) in [
            (Codec::Lines(LineCodec::lf_or_crlf()), &b"one\r\n\nthree\n"[..], [5, 6, 12]),
            (Codec::Lines(LineCodec::crlf()), b"one\r\n\r\nthree\r\n", [5, 7, 14]),
            (Codec::Frames(frames), &stream, [5, 7, 14]),
        ] {
            let sessions = decoding(codec);
            for len in 1..=stream.len() {
                let complete = ends.iter().filter(|&&end| end <= len).count();
                let left = len - ends[..complete].last().unwrap_or(&0);
                let reason = match left {
                    0 => "PeerClosed".to_owned(),
                    _ => format!("Unfinished {{ left: {left} }}"),
                };
                let talk = sessions.talk(&[&stream[..len]]);
                assert_eq!((talk.messages.len(), talk.reason), (complete, reason), "{len} bytes");
            }
        }
    });
}

/// Who shuts down does not wait for messages any more.
#[test]
fn a_stream_that_ends_after_ours_is_not_unfinished() {
    alone!().run(|| {
        let sessions = Sessions::new(|| {
            let mut lines = LineCodec::lf();
            act(move |conn, input, tell| {
                while let Some(line) = lines.decode(conn, input) {
                    tell.message(line);
                    conn.shutdown();
                }
            })
        });
        let talk = sessions.talk(&[b"line\n", b"half a l"]);
        assert_eq!((talk.messages, &talk.reason[..]), (own(&["line"]), "ShutDown"));
    });
}

// Handlers that stop in the middle of their input.

#[test]
fn decoding_stops_while_the_program_pauses_and_goes_on_with_what_is_left() {
    alone!().run(|| {
        let frames = FrameCodec::u32();
        let framed = ["one", "", "three"].map(|message| frame(frames, message)).concat();
        for (codec, stream) in [
            (Codec::Lines(LineCodec::crlf()), &b"one\r\n\r\nthree\r\nrest"[..]),
            (Codec::Frames(frames), &[&framed[..], b"\0\0\0\x0a"].concat()),
        ] {
            let (handles, handle) = channel();
            let sessions = Sessions::new(move || {
                let (mut codec, handles) = (codec.clone(), handles.clone());
                act(move |conn, input, tell| {
                    while let Some(message) = codec.decode(conn, input) {
                        tell.message(message);
                        conn.pause_reading();
                        handles.send(conn.handle()).unwrap();
                    }
                })
            });
            let mut peer = sessions.connect();
            peer.write_all(stream).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            for expected in ["one", "", "three"] {
                assert_eq!(sessions.message(), expected);
                for _ in 0..3 {
                    turns(sessions.running.event_loop());
                }
                assert!(sessions.is_silent(), "a message while reading was paused");
                within(&handle).resume_reading().unwrap();
            }
            assert_eq!(sessions.until_closed(), (vec![], "Unfinished { left: 4 }".to_owned()));
        }
    });
}

#[test]
fn b26_decoding_stops_while_the_peer_does_not_read_and_goes_on_with_what_is_left() {
    const MESSAGES: usize = 100;
    alone!().run(|| {
        let frames = FrameCodec::u8();
        for codec in [Codec::Lines(LineCodec::lf()), Codec::Frames(frames)] {
            let messages: Vec<_> = (0..MESSAGES).map(|i| i.to_string()).collect();
            let stream: Vec<u8> = messages
                .iter()
                .flat_map(|message| match codec {
                    Codec::Lines(_) => format!("{message}\n").into_bytes(),
                    Codec::Frames(_) => frame(frames, &message[..]),
                })
                .collect();
            let answer: Arc<[u8]> = Arc::from(pattern(MIB));
            let decoded = Arc::new(AtomicUsize::new(0));
            let count = decoded.clone();
            let sessions = Sessions::with(
                |server| server.water_marks(MIB, 2 * MIB),
                move || {
                    let (mut codec, answer, count) = (codec.clone(), answer.clone(), count.clone());
                    act(move |conn, input, tell| {
                        while let Some(message) = codec.decode(conn, input) {
                            assert!(conn.pending_output() <= 2 * MIB, "decoded above the mark");
                            tell.message(message);
                            count.fetch_add(1, Ordering::Relaxed);
                            conn.send_shared(answer.clone());
                        }
                    })
                },
            );
            let mut peer = sessions.connect();
            peer.write_all(&stream).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            // Three answers are above the mark, and the kernel does not take them all.
            eventually("the first answers", || decoded.load(Ordering::Relaxed) >= 3);
            turns(sessions.running.event_loop());
            assert!(decoded.load(Ordering::Relaxed) < MESSAGES, "nobody has read an answer");
            assert_eq!(read_to_end(&peer).unwrap().len(), MESSAGES * MIB);
            assert_eq!(sessions.until_closed(), (messages, "PeerClosed".to_owned()));
        }
    });
}

#[test]
fn a_handler_that_closes_in_the_middle_of_its_messages_gets_no_more_of_them() {
    alone!().run(|| {
        let sessions = Sessions::new(|| {
            let mut lines = LineCodec::lf();
            act(move |conn, input, tell| {
                while let Some(line) = lines.decode(conn, input) {
                    tell.message(line);
                    if line == b"quit" {
                        conn.close();
                    }
                }
            })
        });
        let mut peer = sessions.connect();
        peer.write_all(b"one\nquit\nthree\n").unwrap();
        assert_eq!(sessions.until_closed(), (own(&["one", "quit"]), "Closed".to_owned()));
    });
}

/// What the peer sends until it finishes too is delivered, and nobody hears the answers.
#[test]
fn a_handler_that_shuts_down_in_the_middle_of_its_messages_gets_the_others_too() {
    alone!().run(|| {
        let sessions = Sessions::new(|| {
            let mut lines = LineCodec::lf();
            act(move |conn, input, tell| {
                while let Some(line) = lines.decode(conn, input) {
                    tell.message(line);
                    conn.send(line);
                    if line == b"quit" {
                        conn.shutdown();
                    }
                }
            })
        });
        let talk = sessions.talk(&[b"one\nquit\nthree\nfo", b"ur\n"]);
        assert_eq!(talk.messages, own(&["one", "quit", "three", "four"]));
        assert_eq!((&talk.answers[..], &talk.reason[..]), (&b"onequit"[..], "ShutDown"));
    });
}

// Several formats in one stream.

#[test]
fn codecs_can_be_exchanged_in_the_middle_of_a_stream() {
    const FRAMES: FrameCodec = FrameCodec::u16().little_endian();
    fn frames(messages: &[&str]) -> Vec<u8> {
        messages.iter().flat_map(|&message| frame(FRAMES, message)).collect()
    }
    alone!().run(|| {
        // Frames with ends of lines in them, and lines that could be frames.
        let stream = [
            b"one\r\nframes\r\n",
            &frames(&["a\r\nb", "", "\r\n", "lines"])[..],
            b"\x05two\r\nframes\r\n",
            &frames(&["frames", "lines"]),
            b"three\r\n",
        ];
        let messages = [
            "one", "frames", "a\r\nb", "", "\r\n", "lines", "\x05two", "frames", "frames", "lines",
            "three",
        ];
        for lines in [LineCodec::lf(), LineCodec::crlf(), LineCodec::lf_or_crlf()] {
            let sessions = Sessions::new(move || {
                let mut lines = lines.clone();
                let mut is_framed = false;
                act(move |conn, input, tell| {
                    while let Some(message) = match is_framed {
                        true => FRAMES.decode(conn, input),
                        false => lines.decode(conn, input),
                    } {
                        // One of the three kinds takes the CR for a byte of the line.
                        let message = message.strip_suffix(b"\r").unwrap_or(message);
                        tell.message(message);
                        is_framed = match message {
                            b"frames" => true,
                            b"lines" => false,
                            _ => is_framed,
                        };
                    }
                })
            });
            for pieces in cuts(&stream.concat()) {
                let talk = sessions.talk(&pieces);
                assert_eq!(talk.messages, own(&messages), "{pieces:?}");
                assert_eq!(talk.reason, "PeerClosed");
            }
        }
    });
}

// The input limit.

const LIMIT: usize = 8192;

fn limited(codec: Codec, read_size: usize, longest: Vec<u8>) -> Sessions {
    Sessions::with(
        move |server| server.read_size(read_size).input_limit(LIMIT),
        move || {
            let (mut codec, longest) = (codec.clone(), longest.clone());
            act(move |conn, input, tell| {
                while let Some(message) = codec.decode(conn, input) {
                    tell.message(if message == longest { b"longest" } else { b"another" });
                }
            })
        },
    )
}

#[test]
fn a_message_that_just_fits_into_the_input_is_decoded() {
    alone!().run(|| {
        for read_size in [1000, LIMIT] {
            for (codec, width) in
                [(FrameCodec::u16(), 2), (FrameCodec::u32(), 4), (FrameCodec::u64(), 8)]
            {
                let codec = codec.max_len(LIMIT - width);
                let message = pattern(LIMIT - width);
                let stream = frame(codec, &message[..]).repeat(4);
                let sessions = limited(Codec::Frames(codec), read_size, message);
                assert_longest(&sessions, &stream, width);
            }
            for (codec, end) in [
                (LineCodec::lf(), "\n"),
                (LineCodec::crlf(), "\r\n"),
                (LineCodec::lf_or_crlf(), "\n"),
                (LineCodec::lf_or_crlf(), "\r\n"),
            ] {
                let message = vec![b'x'; LIMIT - 2];
                let stream = [&message, end.as_bytes()].concat().repeat(4);
                let codec = codec.max_len(LIMIT - 2);
                let sessions = limited(Codec::Lines(codec), read_size, message);
                assert_longest(&sessions, &stream, end.len());
            }
        }
    });
}

/// Four messages, however they are cut.
fn assert_longest(sessions: &Sessions, stream: &[u8], header: usize) {
    let len = stream.len() / 4;
    let near = [1, header, header + 1, len - header, len - 1, len, len + 1, len + header];
    let cuts = near.into_iter().flat_map(|at| [at, at + len, at + 2 * len]);
    for at in cuts {
        let talk = sessions.talk(&[&stream[..at], &stream[at..]]);
        assert_eq!(talk.messages, ["longest"; 4], "cut at {at}");
        assert_eq!(talk.reason, "PeerClosed");
    }
}

#[test]
fn b45_a_codec_whose_messages_may_not_fit_panics_at_once_and_costs_that_connection_only() {
    const FRAMES: FrameCodec = FrameCodec::u32().max_len(LIMIT - 3);
    const TOO_SMALL: &str = "needs a larger input_limit than 8192";
    alone!().expect_log(TOO_SMALL).run(|| {
        let sessions = Sessions::with(
            |server| server.read_size(4096).input_limit(LIMIT),
            || {
                let mut lines = LineCodec::crlf().max_len(LIMIT - 1);
                act(move |conn, input, _| match input.readable()[0] {
                    b'f' => assert_eq!(FRAMES.decode(conn, input), None),
                    b'l' => assert_eq!(lines.decode(conn, input), None),
                    _ => conn.send_buffer(input),
                })
            },
        );
        let (tell, place) = channel();
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            report(panic);
            let _ = tell.send(panic.location().unwrap().file().to_owned());
        }));
        let mut other = sessions.connect();
        for wish in [b"f", b"l"] {
            let mut peer = sessions.connect();
            peer.write_all(wish).unwrap();
            assert_eq!(sessions.until_closed().1, "Panicked");
            assert_eq!(within(&place), file!(), "whose mistake it is");
            other.write_all(b"hello").unwrap();
            assert_eq!(read_n(&other, 5), b"hello");
        }
    });
}

// Encoding.

#[test]
fn a_frame_encoded_once_reaches_several_connections() {
    const FRAMES: FrameCodec = FrameCodec::u32().little_endian();
    alone!().run(|| {
        let members = Mutex::new(Vec::<ConnectionHandle>::new());
        let members = Arc::new(members);
        let sessions = Sessions::new(move || {
            let members = members.clone();
            act(move |conn, input, tell| {
                while let Some(message) = FRAMES.decode(conn, input) {
                    let mut members = members.lock().unwrap();
                    if message == b"join" {
                        members.push(conn.handle());
                        tell.message(message);
                    } else {
                        let frame: Arc<[u8]> = frame(FRAMES, message).into();
                        for member in &*members {
                            member.send_shared(frame.clone()).unwrap();
                        }
                    }
                }
            })
        });
        let peers: Vec<_> = (0..3).map(|_| sessions.connect()).collect();
        for peer in &peers {
            sessions.send(peer, &[&frame(FRAMES, "join")]);
            assert_eq!(sessions.message(), "join");
        }
        // Small ones are copied into what is queued, a large one is shared.
        for message in [&b"one"[..], b"", &pattern(60_000), b"two"] {
            let encoded = frame(FRAMES, message);
            sessions.send(&peers[0], &[&encoded]);
            for peer in &peers {
                let mut received = Buffer::from(read_n(peer, encoded.len()));
                assert!(FRAMES.take(&mut received).unwrap() == Some(message));
                assert!(received.is_empty());
            }
        }
    });
}

/// Two formats by default, in the least room that the usual read size allows.
#[test]
fn codecs_with_their_defaults_fit_into_the_smallest_input_limit() {
    const LONGEST: usize = 65_528;
    fn narrow(server: Server<'_>) -> Server<'_> {
        server.input_limit(64 * 1024)
    }
    alone!().run(|| {
        let sessions = Sessions::with(narrow, || {
            let mut lines = LineCodec::crlf();
            act(move |conn, input, tell| {
                while let Some(line) = lines.decode(conn, input) {
                    tell.message(line);
                }
            })
        });
        let line = LineCodec::crlf().encode(vec![b'x'; LONGEST]).unwrap().into_vec();
        assert_eq!(sessions.talk(&[&line, &line]).messages, [(); 2].map(|()| "x".repeat(LONGEST)));

        let sessions = Sessions::with(narrow, || {
            act(|conn, input, tell| {
                while let Some(frame) = FrameCodec::u64().decode(conn, input) {
                    tell.message(frame);
                }
            })
        });
        let frame = frame(FrameCodec::u64(), &[b'x'; LONGEST]);
        assert_eq!(
            sessions.talk(&[&frame, &frame]).messages,
            [(); 2].map(|()| "x".repeat(LONGEST))
        );
    });
}
