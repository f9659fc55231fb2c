//! The rules of a connection's state, one by one. Random histories are in `model`.

mod model;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::*;
use crate::SendError;
use crate::connection::output::{FileRange, MAX_OFFER, Next, Outgoing};
use crate::lender::{Lender, SMALL};
use crate::limits::{Deadlines, Limits};
use crate::tcp_options::TcpOptions;

const LIMITS: Limits = Limits {
    read_size: 8192,
    input: 1 << 20,
    high_water: 20_000,
    low_water: 5_000,
    output: 150_000,
    deadlines: Deadlines {
        idle: Duration::MAX,
        first_byte: Duration::MAX,
        write_stall: Duration::MAX,
        linger: Duration::MAX,
    },
    tcp: TcpOptions { keepalive: None, user_timeout: None },
};

fn lender() -> Lender {
    Lender::new(LIMITS.read_size)
}

/// Part of an endless stream that repeats itself only after a prime number of bytes.
fn bytes(from: usize, len: usize) -> &'static [u8] {
    const PERIOD: usize = 65_521;
    const LONGEST: usize = 1 << 20;
    static STREAM: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let byte = |n: usize| ((n % PERIOD) ^ ((n % PERIOD) >> 7)).wrapping_mul(167) as u8;
        (0..PERIOD + LONGEST).map(byte).collect()
    });
    &STREAM[from % PERIOD..][..len]
}

fn error(kind: io::ErrorKind) -> io::Error {
    kind.into()
}

/// A file with a bit before and behind the bytes that are to be sent.
fn range(content: &[u8]) -> FileRange {
    static NAMES: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let name = NAMES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("ruduo-state-{}-{name}", std::process::id()));
    std::fs::write(&path, [b"before", content, b"behind"].concat()).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    FileRange { file, offset: 6, len: content.len() as u64 }
}

/// What the state would hand to one system call.
fn offered(state: &State) -> Vec<u8> {
    state.with_output(|output| match output.next() {
        Next::Slices(slices, count) => slices[..count].iter().flat_map(|s| s.to_vec()).collect(),
        Next::File(range) => {
            let mut bytes = vec![0; range.len as usize];
            range.file.read_exact_at(&mut bytes, range.offset).unwrap();
            bytes
        }
    })
}

/// Memory held for output.
fn output_memory(state: &State) -> usize {
    state.with_output(|output| output.weight_with(&Outgoing::Bytes(&[])))
}

/// Memory held for input and output.
fn memory(state: &State) -> usize {
    let input = state.input.take();
    let capacity = input.capacity();
    state.input.set(input);
    capacity + output_memory(state)
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Bytes,
    Buffer,
    Shared,
    File,
}

fn queue(
    state: &State,
    kind: Kind,
    content: &[u8],
    limits: &Limits,
    lender: &Lender,
) -> Result<(), SendError> {
    let mut buffer = Buffer::from(content);
    let outgoing = match kind {
        Kind::Bytes => Outgoing::Bytes(content),
        Kind::Buffer => Outgoing::Buffer(&mut buffer),
        Kind::Shared => Outgoing::Shared(Arc::from(content)),
        Kind::File => Outgoing::File(range(content)),
    };
    let outcome = match outgoing {
        Outgoing::Buffer(buffer) => {
            match state.queue_first(buffer, limits.output.min(MAX_OFFER), false) {
                true => Ok(()),
                false => state.queue(Outgoing::Buffer(buffer), limits, lender),
            }
        }
        outgoing => state.queue(outgoing, limits, lender),
    };
    assert!(outcome.is_err() || !matches!(kind, Kind::Buffer) || buffer.is_empty(), "moved");
    outcome
}

fn send(state: &State, n: usize, lender: &Lender) {
    queue(state, Kind::Bytes, bytes(0, n), &LIMITS, lender).unwrap();
}

// Reading.

#[test]
fn half_close_is_told_once() {
    let state = State::default();
    assert!(!state.take_half_close());
    state.peer_eof();
    assert!(!state.wants_read(), "there is nothing to receive after the end");
    assert!(state.take_half_close());
    assert!(!state.take_half_close());
    state.peer_eof();
    assert!(!state.take_half_close(), "the end comes only once");
}

#[test]
fn half_close_waits_for_input_that_is_held() {
    let state = State::default();
    state.pause();
    state.keep_input(Buffer::from("rest"), &LIMITS, 0);
    state.peer_eof();
    assert!(!state.take_half_close());
    state.resume();
    assert!(state.is_deliverable(&LIMITS, 0) && !state.take_half_close());

    let input = state.begin_delivery(&LIMITS, 0).unwrap();
    assert_eq!(input.readable(), b"rest");
    state.keep_input(input, &LIMITS, 0);
    assert!(state.take_half_close(), "the handler had its chance, and wants more than there is");
}

#[test]
fn an_unfinished_message_is_not_delivered_again_by_itself() {
    let state = State::default();
    state.keep_input(Buffer::from("half a mess"), &LIMITS, 0);
    assert!(!state.is_deliverable(&LIMITS, 0));
    assert!(state.wants_read());
}

#[test]
fn whatever_was_left_comes_again_on_resume() {
    let state = State::default();
    state.keep_input(Buffer::from("not now"), &LIMITS, 0);
    state.pause();
    assert!(!state.is_deliverable(&LIMITS, 0));
    state.resume();
    assert!(state.is_deliverable(&LIMITS, 0));
}

/// Its delivery is due at the end of the turn; the event before that brings the end of the stream,
/// or nothing.
#[test]
fn held_input_is_not_forgotten_by_a_read_without_bytes() {
    let state = State::default();
    state.pause();
    state.keep_input(Buffer::from("rest"), &LIMITS, 0);
    state.resume();
    assert!(state.wants_read() && state.begin_read().is_none(), "what is held comes first");
    assert!(!state.is_untouched());
    state.peer_eof();
    assert!(state.is_deliverable(&LIMITS, 0) && !state.take_half_close());
}

#[test]
fn every_pause_wants_its_own_resume() {
    let state = State::default();
    state.pause();
    state.pause();
    state.resume();
    assert!(!state.wants_read() && !state.wants_input(&LIMITS, 0) && !state.is_quiet());
    state.resume();
    assert!(state.wants_read() && state.wants_input(&LIMITS, 0));
    assert!(!state.is_quiet(), "what to wait for has to be looked at");
    state.watched(true);
    assert!(state.is_quiet());
    state.resume();
    state.pause();
    assert!(!state.wants_read(), "a resume too many does not outlast the next pause");
}

// Writing.

#[test]
fn a_short_write_waits_for_room_and_a_full_one_does_not() {
    let (state, lender) = (State::default(), lender());
    send(&state, 100, &lender);
    assert!(state.can_flush() && !state.is_blocked());
    assert!(!state.wrote(99, 100, &lender));
    assert!(state.is_blocked() && !state.can_flush());
    send(&state, 10, &lender);
    assert!(!state.can_flush(), "more to send is not more room");

    state.unblock();
    assert!(state.can_flush());
    assert!(state.wrote(11, 11, &lender), "nothing is left");
    assert!(!state.is_blocked() && !state.can_flush());
    assert_eq!(state.bytes_sent(), 110);
}

#[test]
fn all_of_one_piece_leaves_the_short_way() {
    let state = State::default();
    let mut answer = Buffer::from(bytes(0, 100));
    let queue = |buffer: &mut Buffer| state.queue_first(buffer, LIMITS.output, false);
    assert!(!queue(&mut Buffer::new()), "nothing is not output");
    assert!(queue(&mut answer) && !answer.has_storage());
    assert!(!queue(&mut Buffer::from("more")), "it is not the first");
    assert!(state.has_only_output());

    let single = state.take_single().unwrap();
    assert!(state.take_single().is_none());
    assert_eq!(single.readable(), bytes(0, 100));
    state.all_sent(100);
    assert_eq!((state.bytes_sent(), state.pending_output(), memory(&state)), (100, 0, 0));
    assert!(state.is_quiet() && state.is_untouched());
}

#[test]
fn with_handles_the_short_way_is_only_for_who_has_asked_them() {
    let (state, lender) = (State::default(), lender());
    state.share();
    assert!(state.is_quiet() && state.is_untouched());
    let mut answer = Buffer::from(bytes(0, 100));
    assert!(!state.queue_first(&mut answer, LIMITS.output, false));
    assert!(state.queue_first(&mut answer, LIMITS.output, true) && state.has_only_output());
    lender.give_back(state.take_single().unwrap());
    state.all_sent(100);
    assert!(state.is_quiet() && !state.queue_first(&mut Buffer::from("more"), 100, false));
}

#[test]
fn the_marks_are_crossed_above_high_and_at_low_and_told_once_each() {
    let (state, lender) = (State::default(), lender());
    send(&state, LIMITS.high_water, &lender);
    assert_eq!(state.crossed(&LIMITS), None);
    assert!(state.wants_read() && state.wants_input(&LIMITS, 0));
    send(&state, 1, &lender);
    assert!(!state.wants_input(&LIMITS, 0), "a handler is to stop before the crossing is told");
    assert_eq!(state.crossed(&LIMITS), None, "the kernel has not been asked");
    state.would_block(&lender);
    assert_eq!(state.crossed(&LIMITS), Some(Crossed::High));
    assert_eq!(state.crossed(&LIMITS), None);
    assert!(!state.wants_read() && !state.wants_input(&LIMITS, 0));

    let to_low = LIMITS.high_water + 1 - LIMITS.low_water;
    state.wrote(to_low - 1, LIMITS.high_water + 1, &lender);
    assert_eq!(state.crossed(&LIMITS), None);
    assert!(!state.wants_read() && !state.wants_input(&LIMITS, 0));
    state.wrote(1, LIMITS.low_water + 1, &lender);
    assert_eq!(state.crossed(&LIMITS), Some(Crossed::Low));
    assert_eq!(state.crossed(&LIMITS), None);
    assert!(state.wants_read() && state.wants_input(&LIMITS, 0));
}

#[test]
fn input_left_over_comes_again_at_the_low_mark() {
    let (state, lender) = (State::default(), lender());
    state.keep_input(Buffer::from("next"), &LIMITS, 0);
    send(&state, LIMITS.high_water + 1, &lender);
    state.would_block(&lender);
    assert_eq!(state.crossed(&LIMITS), Some(Crossed::High));
    assert!(!state.is_deliverable(&LIMITS, 0));
    state.wrote(LIMITS.high_water + 1, LIMITS.high_water + 1, &lender);
    assert_eq!(state.crossed(&LIMITS), Some(Crossed::Low));
    assert!(state.is_deliverable(&LIMITS, 0));
}

#[test]
fn what_is_refused_changes_nothing() {
    let (state, lender) = (State::default(), lender());
    send(&state, 10, &lender);
    for kind in [Kind::Bytes, Kind::Buffer, Kind::Shared] {
        let too_much = bytes(0, LIMITS.output);
        let outcome = queue(&state, kind, too_much, &LIMITS, &lender);
        assert_eq!(outcome, Err(SendError::Full), "{kind:?}");
    }
    // A file is not in memory.
    queue(&state, Kind::File, bytes(0, LIMITS.output), &LIMITS, &lender).unwrap();
    assert_eq!(state.pending_output(), 10 + LIMITS.output);
    assert_eq!(offered(&state), bytes(0, 10));

    state.shutdown();
    for kind in [Kind::Bytes, Kind::Buffer, Kind::Shared, Kind::File] {
        assert_eq!(queue(&state, kind, b"x", &LIMITS, &lender), Err(SendError::Closed));
    }
    assert_eq!(state.pending_output(), 10 + LIMITS.output);
}

#[test]
fn memory_goes_back_to_the_lender() {
    let (state, lender) = (State::default(), lender());
    // Known by its address. What comes back last is lent first.
    let mut marked = lender.lend();
    let address = marked.storage_mut().as_ptr();
    lender.give_back(marked);
    let is_back = || {
        let mut buffer = lender.lend();
        let is_back = buffer.storage_mut().as_ptr() == address;
        lender.give_back(buffer);
        is_back
    };

    send(&state, 10, &lender);
    assert!(!is_back());
    state.wrote(10, 10, &lender);
    assert!(is_back() && memory(&state) == 0, "after the last byte");

    send(&state, 10, &lender);
    state.would_block(&lender);
    assert!(is_back() && memory(&state) < 100, "a few bytes that wait have storage of their size");
    state.wrote(10, 10, &lender);

    for fail in [State::write_failed, State::read_failed] {
        let state = State::default();
        send(&state, 10, &lender);
        queue(&state, Kind::Shared, bytes(0, SMALL), &LIMITS, &lender).unwrap();
        fail(&state, error(io::ErrorKind::TimedOut), &lender);
        assert!(is_back() && memory(&state) == 0, "after a failure");
    }

    let mut input = lender.lend();
    input.append(bytes(0, SMALL));
    state.keep_input(input, &LIMITS, 0);
    assert!(!is_back());
    state.end(CloseReason::Closed);
    state.finish(&lender);
    assert!(is_back() && memory(&state) == 0, "at the end, from the input");

    let state = State::default();
    send(&state, 10, &lender);
    assert!(!is_back());
    state.end(CloseReason::Closed);
    state.finish(&lender);
    assert!(is_back() && memory(&state) == 0, "at the end, from the output");
}

// Ending.

#[test]
fn fin_follows_the_last_byte() {
    let (state, lender) = (State::default(), lender());
    send(&state, 10, &lender);
    state.shutdown();
    assert!(!state.is_fin_due() && state.lingers());
    state.wrote(9, 10, &lender);
    assert!(!state.is_fin_due());
    state.wrote(1, 1, &lender);
    assert!(state.is_fin_due() && state.wants_read() && !state.is_over());
    state.fin_sent();
    assert!(!state.is_fin_due() && state.lingers());

    state.peer_eof();
    assert!(!state.is_over(), "the handler has not been told");
    assert!(state.take_half_close());
    assert!(state.is_over() && !state.lingers());
    assert!(matches!(state.finish(&lender), CloseReason::ShutDown));
}

#[test]
fn a_peer_that_finishes_first_gets_the_rest_and_then_the_close() {
    let (state, lender) = (State::default(), lender());
    send(&state, 10, &lender);
    state.peer_eof();
    assert!(state.take_half_close() && !state.is_over());
    state.shutdown();
    assert!(!state.is_over() && !state.is_fin_due() && state.lingers());
    state.wrote(10, 10, &lender);
    assert!(state.is_over() && !state.is_fin_due(), "closing sends the FIN");
    assert!(matches!(state.finish(&lender), CloseReason::PeerClosed));
}

#[test]
fn after_close_nothing_more_is_told() {
    let lender = lender();
    let state = State::default();
    send(&state, 1, &lender);
    state.wrote(1, 1, &lender);
    send(&state, LIMITS.high_water + 1, &lender);
    state.peer_eof();
    state.end(CloseReason::Closed);
    assert!(!state.can_flush() && !state.take_half_close());
    assert!(!state.wants_read() && !state.wants_input(&LIMITS, 0));
    assert_eq!(queue(&state, Kind::Bytes, b"x", &LIMITS, &lender), Err(SendError::Closed));
    assert_eq!(state.crossed(&LIMITS), None);
}

#[test]
fn after_a_write_error_reading_goes_on() {
    let (state, lender) = (State::default(), lender());
    send(&state, LIMITS.high_water + 1, &lender);
    state.would_block(&lender);
    state.crossed(&LIMITS);
    state.write_failed(error(io::ErrorKind::BrokenPipe), &lender);
    assert_eq!((state.pending_output(), state.is_blocked()), (0, false));
    assert_eq!(state.crossed(&LIMITS), Some(Crossed::Low));
    assert!(state.wants_read() && !state.is_over() && state.lingers());
    let outcome = queue(&state, Kind::Bytes, b"x", &LIMITS, &lender);
    assert_eq!(outcome, Err(SendError::Closed));
    state.peer_eof();
    assert!(state.take_half_close() && state.is_over());
}

#[test]
fn after_a_read_error_held_input_is_still_delivered() {
    let (state, lender) = (State::default(), lender());
    state.pause();
    state.keep_input(Buffer::from("rest"), &LIMITS, 0);
    state.read_failed(error(io::ErrorKind::TimedOut), &lender);
    assert!(!state.is_over() && state.lingers() && state.is_read_over());
    state.resume();
    assert!(state.is_deliverable(&LIMITS, 0));
    let input = state.begin_delivery(&LIMITS, 0).unwrap();
    state.keep_input(input, &LIMITS, 0);
    assert!(state.is_over() && !state.take_half_close(), "an error is no half-close");
}

#[test]
fn the_first_reason_stays() {
    let lender = lender();
    let write = |state: &State| state.write_failed(error(io::ErrorKind::BrokenPipe), &lender);
    let read = |state: &State| state.read_failed(error(io::ErrorKind::TimedOut), &lender);
    let close = |state: &State| state.end(CloseReason::Closed);
    let assert_first = |acts: [&dyn Fn(&State); 3], expected: fn(&CloseReason) -> bool| {
        let state = State::default();
        acts.iter().for_each(|act| act(&state));
        assert!(state.is_over() && state.is_ended());
        assert!(expected(state.finish(&lender)));
    };
    assert_first([&write, &read, &close], |reason| matches!(reason, CloseReason::WriteFailed(_)));
    assert_first([&read, &write, &close], |reason| matches!(reason, CloseReason::ReadFailed(_)));
    assert_first([&close, &read, &write], |reason| matches!(reason, CloseReason::Closed));
}

#[test]
fn a_peer_gone_while_reading_is_paused_has_a_deadline() {
    let state = State::default();
    state.pause();
    assert!(!state.lingers());
    state.hung_up();
    assert!(state.lingers() && !state.is_over() && !state.is_quiet());
    state.resume();
    assert!(state.wants_read(), "to learn the rest and the reason");
}
