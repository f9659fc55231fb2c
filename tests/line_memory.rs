//! A line codec remembers how much of a line it has searched. Whatever the handler does in between,
//! that never hides a line.

#![allow(clippy::unwrap_used)]

mod common;
mod recorder;
mod sessions;

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use ruduo::{Buffer, Connection, FrameCodec, LineCodec};
use sessions::{Sessions, Tell, act};

/// What a handler does when a piece of the stream has come, in this order.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Asks for a line while reading is paused.
    pauses: bool,
    /// Consumes so many bytes by itself.
    skips: usize,
    /// Decodes so many frames at most.
    frames: usize,
    /// Decodes so many lines at most.
    lines: usize,
}

const FRAMES: FrameCodec = FrameCodec::u8();

impl Step {
    fn perform(
        self,
        lines: &mut LineCodec,
        conn: &Connection<'_>,
        input: &mut Buffer,
        tell: &Tell,
    ) {
        if self.pauses {
            conn.pause_reading();
            assert_eq!(lines.decode(conn, input), None);
            conn.resume_reading();
        }
        input.consume(self.skips.min(input.len()));
        for _ in 0..self.frames {
            let Some(frame) = FRAMES.decode(conn, input) else { break };
            tell.message(frame);
        }
        for _ in 0..self.lines {
            let Some(line) = lines.decode(conn, input) else { break };
            tell.message(line);
        }
    }

    /// The same on plain bytes, where each search is from the beginning.
    fn perform_plainly(self, kind: &LineCodec, input: &mut Buffer, told: &mut Vec<String>) {
        let mut tell = |message: &[u8]| told.push(String::from_utf8_lossy(message).into_owned());
        input.consume(self.skips.min(input.len()));
        for _ in 0..self.frames {
            let Some(frame) = FRAMES.take(input).unwrap() else { break };
            tell(frame);
        }
        for _ in 0..self.lines {
            let Some(line) = kind.take(input).unwrap() else { break };
            tell(line);
        }
    }
}

type History = (LineCodec, Vec<(Vec<u8>, Step)>);

fn history() -> impl Strategy<Value = History> {
    let seldom = || prop_oneof![4 => Just(0), 1 => 1..8usize];
    let lines = prop_oneof![3 => Just(0), 1 => Just(1), 4 => Just(usize::MAX)];
    let step = (any::<bool>(), seldom(), seldom(), lines)
        .prop_map(|(pauses, skips, frames, lines)| Step { pauses, skips, frames, lines });
    // The length of a short frame is among the bytes.
    let byte = prop_oneof![2 => Just(b'\r'), 2 => Just(b'\n'), 3 => Just(b'a'), 1 => Just(3)];
    let piece = prop::collection::vec(byte, 1..6);
    let kind =
        prop_oneof![Just(LineCodec::lf()), Just(LineCodec::crlf()), Just(LineCodec::lf_or_crlf())];
    (kind, prop::collection::vec((piece, step), 1..12))
}

#[test]
fn what_a_line_codec_remembers_never_hides_a_line() {
    alone!().run(|| {
        let next = Arc::new(Mutex::new((LineCodec::lf(), Vec::new())));
        let script = next.clone();
        let sessions = Sessions::new(move || {
            let (mut lines, steps): (LineCodec, Vec<Step>) = script.lock().unwrap().clone();
            let mut steps = steps.into_iter();
            act(move |conn, input, tell| {
                steps.next().unwrap().perform(&mut lines, conn, input, tell);
            })
        });
        let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
        let outcome = TestRunner::new(config).run(&history(), |(kind, history)| {
            let (mut input, mut messages) = (Buffer::new(), Vec::new());
            for (piece, step) in &history {
                input.append(piece);
                step.perform_plainly(&kind, &mut input, &mut messages);
            }
            let (pieces, steps): (Vec<&[u8]>, Vec<Step>) =
                history.iter().map(|(piece, step)| (&piece[..], *step)).unzip();
            *next.lock().unwrap() = (kind, steps);
            let talk = sessions.talk(&pieces);
            let reason = match input.len() {
                0 => "PeerClosed".to_owned(),
                left => format!("Unfinished {{ left: {left} }}"),
            };
            prop_assert_eq!((talk.messages, talk.reason), (messages, reason));
            Ok(())
        });
        outcome.unwrap();
    });
}

/// The handler decodes from a buffer of its own, in which there is more than was received: the lines
/// have no place in the stream that would tell one from the next.
#[test]
fn what_is_remembered_of_a_line_is_forgotten_with_it() {
    alone!().run(|| {
        let sessions = Sessions::new(|| {
            let (mut lines, mut expanded) = (LineCodec::crlf(), Buffer::new());
            act(move |conn, input, tell| {
                while let Some(byte) = input.read_u8() {
                    let text: &[u8] = if byte == b'1' { b"one line" } else { b"\r\na\r\nb\r\n" };
                    expanded.append(text);
                }
                while let Some(line) = lines.decode(conn, &mut expanded) {
                    tell.message(line);
                }
            })
        });
        let talk = sessions.talk(&[b"1", b"2", b"1", b"2"]);
        assert_eq!(talk.messages, ["one line", "a", "b", "one line", "a", "b"]);
    });
}
