//! Random histories of a whole connection, against a plain account of its bytes: what the peer
//! sent, what the handler took, what it sent and what the kernel took.

use proptest::prelude::*;

use super::*;
use crate::DecodeError;

/// What happens to a connection from outside, or what its handler will do next time.
#[derive(Clone, Copy, Debug)]
enum Step {
    PeerSends(usize),
    PeerFinishes,
    PeerResets,
    /// The kernel has room for so many more bytes.
    Room(usize),
    WritesFail,
    /// The loop reports what is ready.
    Event,
    TurnEnd,
    /// A timer, a task or another connection acts.
    Outside(Act),
    /// The handler acts when it has taken its next message.
    InCallback(Act),
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Send(Kind, usize),
    Shutdown,
    Close,
    Reject,
    Pause,
    Resume,
}

/// A handler that takes messages of a fixed size while it may, and answers each.
#[derive(Clone, Copy, Debug)]
struct Program {
    message: usize,
    answer: (Kind, usize),
    /// Or it sends back what it gets.
    echoes: bool,
    /// Shuts down when the peer has finished.
    shuts_down: bool,
}

/// A connection as `endpoint/` drives it, in the same order, with plain data for the socket, the
/// peer and the handler.
struct World {
    program: Program,
    state: State,
    lender: Lender,
    /// The peer's stream: sent, and received by us.
    peer_sent: usize,
    received: usize,
    peer_finished: bool,
    reset: bool,
    room: usize,
    writes_fail: bool,
    /// Our stream: accepted from the handler, and taken by the kernel. Both are `bytes`.
    accepted: usize,
    taken: usize,
    fin: bool,
    /// What the handler knows.
    consumed: usize,
    half_closed: bool,
    above_high: bool,
    pauses: u32,
    next_act: Option<Act>,
    /// What the loop knows.
    wants: (bool, bool),
    scheduled: bool,
    had_event: bool,
    watched: bool,
    /// What went wrong first.
    first: Option<&'static str>,
    /// The program has refused the peer's stream.
    deaf: bool,
    /// Something else than a refusal went wrong: output may be lost.
    broken: bool,
    ended: bool,
}

impl World {
    fn new(program: Program) -> World {
        World {
            program,
            state: State::default(),
            lender: lender(),
            peer_sent: 0,
            received: 0,
            peer_finished: false,
            reset: false,
            room: 0,
            writes_fail: false,
            accepted: 0,
            taken: 0,
            fin: false,
            consumed: 0,
            half_closed: false,
            above_high: false,
            pauses: 0,
            next_act: None,
            wants: (true, false),
            scheduled: false,
            had_event: false,
            watched: true,
            first: None,
            deaf: false,
            broken: false,
            ended: false,
        }
    }

    fn step(&mut self, step: Step) {
        if self.ended {
            return;
        }
        match step {
            Step::PeerSends(n) if !self.peer_finished && !self.reset => self.peer_sent += n,
            Step::PeerSends(_) => {}
            Step::PeerFinishes => self.peer_finished = true,
            Step::PeerResets => self.reset = true,
            Step::Room(n) => self.room += n,
            Step::WritesFail => self.writes_fail = true,
            Step::Event => {
                // One event a turn.
                if self.had_event {
                    self.turn_end();
                }
                self.had_event = true;
                if !self.ended {
                    self.event();
                }
            }
            Step::TurnEnd => self.turn_end(),
            Step::Outside(act) => {
                self.act(act);
                self.scheduled = true;
            }
            Step::InCallback(act) => self.next_act = Some(act),
        }
        self.check();
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Send(kind, n) => {
                let content = bytes(self.accepted, n);
                match queue(&self.state, kind, content, &LIMITS, &self.lender) {
                    Ok(()) => self.accepted += n,
                    Err(SendError::Closed) => {}
                    Err(SendError::Full) => {
                        self.fails_by("full");
                        self.state.end(CloseReason::OutputFull { limit: LIMITS.output });
                    }
                }
            }
            Act::Shutdown => self.state.shutdown(),
            Act::Close => {
                self.fails_by("closed");
                self.state.end(CloseReason::Closed);
            }
            Act::Reject => {
                self.first.get_or_insert("rejected");
                self.deaf = true;
                self.state.reject(CloseReason::Rejected(DecodeError::new(0, "")), &self.lender);
            }
            Act::Pause => {
                self.pauses += 1;
                self.state.pause();
            }
            Act::Resume => {
                self.pauses = self.pauses.saturating_sub(1);
                self.state.resume();
            }
        }
    }

    fn fails_by(&mut self, how: &'static str) {
        self.first.get_or_insert(how);
        self.broken = true;
    }

    // The handler.

    fn on_message(&mut self, input: &mut Buffer) {
        assert!(!self.state.is_over() || self.state.is_read_over(), "called after the end");
        assert!(!self.deaf, "called after it refused what comes");
        while self.state.wants_input(&LIMITS, 0) && input.len() >= self.program.message {
            let n = if self.program.echoes { input.len() } else { self.program.message };
            assert!(input.readable()[..n] == *bytes(self.consumed, n), "input out of order");
            input.consume(n);
            self.consumed += n;
            let (kind, answer) = self.program.answer;
            self.act(Act::Send(kind, if self.program.echoes { n } else { answer }));
            if let Some(act) = self.next_act.take() {
                self.act(act);
            }
            if self.deaf {
                input.clear();
            }
        }
    }

    fn on_half_close(&mut self) {
        assert!(self.peer_finished && !self.half_closed, "not finished, or told before");
        assert!(!self.deaf, "told although it wants to hear nothing");
        assert_eq!(self.received, self.peer_sent, "half-close before the last byte");
        let rest = self.received - self.consumed;
        assert!(rest < self.program.message, "half-close before {rest} bytes of held input");
        self.half_closed = true;
        if self.program.shuts_down {
            self.act(Act::Shutdown);
        }
    }

    // The endpoint; compare `endpoint.rs`.

    fn event(&mut self) {
        let gone = self.reset || (self.peer_finished && self.fin);
        let readable = self.received < self.peer_sent || self.peer_finished || gone;
        let writable = self.room > 0 || self.writes_fail || gone;
        let (read, write) = (readable && self.wants.0, writable && self.wants.1);
        if !self.watched || !(read || write || gone) {
            return;
        }
        self.watched = self.wants != (false, false);
        if self.state.is_blocked() && (write || gone) {
            self.state.unblock();
            self.flush();
        }
        let received = (read || gone) && self.receive();
        if !received && gone && !self.state.wants_read() {
            self.hung_up();
        }
        self.settle();
    }

    fn receive(&mut self) -> bool {
        let into_empty = self.state.is_untouched();
        let n = (self.peer_sent - self.received).min(LIMITS.read_size);
        let Some(mut input) = self.state.begin_read() else {
            assert!(!into_empty);
            return self.discard(n);
        };
        assert!(!into_empty || input.is_empty(), "the short way is for nothing but new bytes");
        assert!(input.readable() == bytes(self.consumed, self.received - self.consumed));
        if n > 0 {
            input.append(bytes(self.received, n));
            self.received += n;
            self.deliver(input);
            return true;
        }
        self.state.keep_input(self.lender.trim(input), &LIMITS, 0);
        self.received_nothing();
        true
    }

    fn discard(&mut self, n: usize) -> bool {
        if !self.state.wants_to_discard() {
            return false;
        }
        self.received += n;
        if n == 0 {
            self.received_nothing();
        }
        true
    }

    fn received_nothing(&mut self) {
        if self.reset {
            self.fails_by("read");
            self.state.read_failed(error(io::ErrorKind::ConnectionReset), &self.lender);
        } else if self.peer_finished {
            self.state.peer_eof();
        }
    }

    fn deliver(&mut self, mut input: Buffer) {
        self.on_message(&mut input);
        if input.is_empty() {
            self.lender.give_back(input);
        } else {
            self.state.keep_input(self.lender.trim(input), &LIMITS, 0);
        }
    }

    fn hung_up(&mut self) {
        if self.state.is_read_over() {
            self.fails_by("read");
            self.state.read_failed(error(io::ErrorKind::ConnectionReset), &self.lender);
        } else {
            self.state.hung_up();
        }
    }

    fn flush(&mut self) {
        let drained = self.send();
        self.state.flushed(drained);
    }

    /// True if nothing is left.
    fn send(&mut self) -> bool {
        let offered = offered(&self.state);
        assert!(!offered.is_empty(), "a system call for nothing");
        if self.writes_fail || self.reset {
            self.fails_by("write");
            self.state.write_failed(error(io::ErrorKind::BrokenPipe), &self.lender);
        } else if self.room == 0 {
            self.state.would_block(&self.lender);
        } else {
            let n = offered.len().min(self.room);
            assert!(offered[..n] == *bytes(self.taken, n), "output out of order");
            assert!(!self.fin, "output after the end of our stream");
            self.taken += n;
            self.room -= n;
            if n == offered.len() && self.state.has_only_output() {
                self.lender.give_back(self.state.take_single().unwrap());
                self.state.all_sent(n);
                return true;
            }
            return self.state.wrote(n, offered.len(), &self.lender);
        }
        false
    }

    fn settle(&mut self) {
        if self.state.is_eof() && self.state.take_half_close() {
            self.on_half_close();
        }
        if self.state.can_flush() {
            self.flush();
        }
        if self.state.take_drained() && !self.state.is_ended() {
            assert_eq!(self.state.pending_output(), 0, "write complete, but something waits");
        }
        if self.wants != (true, false) || !self.state.is_quiet() {
            self.conclude();
        }
    }

    fn conclude(&mut self) {
        let pending = self.state.pending_output();
        match self.state.crossed(&LIMITS) {
            Some(Crossed::High) => {
                assert!(!self.state.is_ended(), "told after close");
                assert!(pending > LIMITS.high_water && !self.above_high);
                self.above_high = true;
            }
            Some(Crossed::Low) => {
                assert!(!self.state.is_ended(), "told after close");
                assert!(pending <= LIMITS.low_water && self.above_high);
                self.above_high = false;
            }
            None => {}
        }
        if self.state.take_rejection() {
            self.state.shutdown();
        }
        if self.state.is_fin_due() {
            assert_eq!(self.taken, self.accepted, "FIN before the last byte");
            self.fin = true;
            self.state.fin_sent();
        }
        if self.state.is_over() {
            self.state.finish(&self.lender);
            self.ended = true;
            return;
        }
        let wants = (self.state.wants_read(), self.state.is_blocked());
        self.watched |= wants != self.wants;
        self.wants = wants;
        self.scheduled |= self.state.can_flush() || self.state.is_deliverable(&LIMITS, 0);
    }

    fn turn_end(&mut self) {
        self.had_event = false;
        if self.ended || !std::mem::take(&mut self.scheduled) {
            return;
        }
        if let Some(input) = self.state.begin_delivery(&LIMITS, 0) {
            self.deliver(input);
        }
        self.settle();
    }

    // The account.

    fn check(&self) {
        assert!(self.taken <= self.accepted && self.consumed <= self.received);
        if self.ended {
            self.check_end(self.state.failure().unwrap());
            return;
        }
        let state = &self.state;
        assert_eq!(state.bytes_sent(), self.taken as u64);
        assert!(!matches!(self.first, Some("write" | "read")) || state.pending_output() == 0);
        assert!(self.first.is_some() || state.pending_output() == self.accepted - self.taken);
        let left = if self.deaf { 0 } else { self.received - self.consumed };
        assert_eq!(state.input_left(), left, "input is with the state");
        if self.above_high || self.pauses > 0 {
            assert!(!state.wants_input(&LIMITS, 0));
            assert!(!state.wants_read() || self.deaf);
        }
        if self.deaf && !state.is_ended() {
            assert!(state.wants_read() || state.is_eof() || state.is_read_over(), "not drained");
        }
        // At rest, when the loop has nothing left to do for it, something must be awaited.
        if !self.scheduled && self.first.is_none() {
            assert!(state.pending_output() <= LIMITS.high_water || !state.wants_read());
            assert!(state.pending_output() == 0 || state.is_blocked(), "output is stuck");
            let rest = state.input_left();
            let waits_for_us = !state.wants_input(&LIMITS, 0);
            assert!(rest < self.program.message || waits_for_us, "{rest} bytes are stuck");
            assert!(!self.fin || self.half_closed || state.lingers(), "no deadline");
        }
        assert!(output_memory(state) <= LIMITS.output);
        if state.pending_output() + state.input_left() == 0 {
            assert_eq!(memory(state), 0, "memory for nothing");
        }
    }

    fn check_end(&self, reason: &CloseReason) {
        assert_eq!(memory(&self.state), 0);
        match (reason, self.first) {
            (CloseReason::PeerClosed | CloseReason::ShutDown, None) => {
                assert!(reason.is_clean() && self.half_closed);
                assert_eq!(self.taken, self.accepted, "lost output");
                assert_eq!(self.received, self.peer_sent, "lost input");
                let left = self.received - self.consumed;
                assert!(left < self.program.message, "held input lost");
                assert!(left == 0 || matches!(reason, CloseReason::ShutDown), "unfinished");
            }
            (CloseReason::Unfinished { left }, None) => {
                assert_eq!((*left, self.taken), (self.received - self.consumed, self.accepted));
                assert!((1..self.program.message).contains(left) && !reason.is_clean());
            }
            (CloseReason::Rejected(_), Some("rejected")) => {
                assert!(self.broken || self.taken == self.accepted, "lost output");
            }
            (CloseReason::Closed, Some("closed"))
            | (CloseReason::OutputFull { .. }, Some("full"))
            | (CloseReason::ReadFailed(_), Some("read"))
            | (CloseReason::WriteFailed(_), Some("write")) => assert!(!reason.is_clean()),
            (reason, first) => panic!("ended by {first:?}, but told {reason:?}"),
        }
    }

    /// Nobody holds anything up any more, and both ends finish.
    fn wind_up(&mut self) {
        self.next_act = None;
        for _ in 0..self.pauses {
            self.step(Step::Outside(Act::Resume));
        }
        self.step(Step::Room(usize::MAX / 2));
        self.step(Step::PeerFinishes);
        self.turn_until_still();
        self.step(Step::Outside(Act::Shutdown));
        self.turn_until_still();
        assert!(self.ended, "it never ends");
    }

    fn turn_until_still(&mut self) {
        let mut still = 0;
        while still < 3 {
            let before = (self.received, self.consumed, self.taken);
            self.step(Step::Event);
            self.step(Step::TurnEnd);
            still =
                if (self.received, self.consumed, self.taken) == before { still + 1 } else { 0 };
        }
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Bytes),
        3 => Just(Kind::Buffer),
        2 => Just(Kind::Shared),
        1 => Just(Kind::File),
    ]
}

/// Sizes around those at which something changes.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 0..100usize, 2 => SMALL - 2..SMALL + 2, 2 => 100..12_000usize]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => (kind(), size()).prop_map(|(kind, size)| Act::Send(kind, size)),
        1 => Just(Act::Shutdown),
        1 => Just(Act::Close),
        1 => Just(Act::Reject),
        4 => Just(Act::Pause),
        5 => Just(Act::Resume),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        60 => size().prop_map(Step::PeerSends),
        2 => Just(Step::PeerFinishes),
        1 => Just(Step::PeerResets),
        50 => prop_oneof![1..100usize, 1..30_000usize].prop_map(Step::Room),
        1 => Just(Step::WritesFail),
        100 => Just(Step::Event),
        60 => Just(Step::TurnEnd),
        40 => act().prop_map(Step::Outside),
        20 => act().prop_map(Step::InCallback),
    ]
}

fn program() -> impl Strategy<Value = Program> {
    let message = prop_oneof![20..100usize, 1000..10_000usize];
    (message, (kind(), size()), any::<bool>(), any::<bool>()).prop_map(
        |(message, answer, echoes, shuts_down)| Program { message, answer, echoes, shuts_down },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..ProptestConfig::with_cases(512) })]

    /// Whatever happens in whatever order, each byte arrives in its place, or the reason says why
    /// not; and when both ends have finished it ends.
    #[test]
    fn no_history_loses_a_byte_silently(
        program in program(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let mut world = World::new(program);
        for step in steps {
            world.step(step);
        }
        world.wind_up();
    }

    /// Segments of all kinds, in any order, taken by the kernel in pieces of any size.
    #[test]
    fn all_kinds_of_output_leave_byte_exact(
        sends in prop::collection::vec((kind(), size()), 1..40),
        takes in prop::collection::vec(prop_oneof![1..10usize, 1..20_000usize], 1..40),
    ) {
        let limits = Limits { output: usize::MAX, ..LIMITS };
        let (mut state, lender) = (State::default(), lender());
        let (mut accepted, mut left) = (0, Vec::new());
        let mut take = |state: &mut State, most: usize| {
            let offered = offered(state);
            assert_eq!(offered.is_empty(), state.pending_output() == 0, "something to offer");
            let n = offered.len().min(most);
            left.extend_from_slice(&offered[..n]);
            state.wrote(n, offered.len(), &lender);
        };
        let mut takes = takes.into_iter().chain([20_000]).cycle();
        for (i, (kind, size)) in sends.into_iter().enumerate() {
            queue(&state, kind, bytes(accepted, size), &limits, &lender).unwrap();
            accepted += size;
            if i % 3 == 2 {
                take(&mut state, takes.next().unwrap_or(1));
            }
        }
        while state.pending_output() > 0 {
            take(&mut state, takes.next().unwrap_or(1));
        }
        prop_assert!(left == bytes(0, accepted));
        prop_assert_eq!(memory(&state), 0);
    }
}
