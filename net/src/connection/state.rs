//! Everything a connection knows, as plain data: no system calls, no callbacks.
//!
//! The [endpoint](super::endpoint) reports what happened (bytes came, the peer's end of stream, an
//! error, bytes were taken by the kernel) and asks what is to be done next. So all the rules about
//! order, back pressure and closing stand here and can be tested without a socket.
//!
//! Reading and writing end independently:
//!
//! ```text
//!              reading                                    writing
//!   open ──EOF──▶ EOF ──told──▶ EOF_TOLD        open ──shutdown──▶ FINISHING ──FIN──▶ FIN_SENT
//!     └──────error──────▶ READ_FAILED             └─────────────error────────▶ WRITE_FAILED
//! ```
//!
//! It is over when both are at their end, when reading failed, or at once for a reason of our own
//! (close, a limit, a deadline).
//!
//! Whatever is unusual about a connection is a bit of [`Status`]. One that is just open has none,
//! and most questions that each message asks are answered by a single test for that.
//!
//! It is made of cells, each of which is read or exchanged in one go, and so is never found borrowed:
//! between any two steps the program may come in, by a callback, and change it.

use std::cell::{Cell, OnceCell};
use std::io;

use bitflags::bitflags;

use super::output::{Frozen, Outgoing, Output};
use super::reason::CloseReason;
use crate::Buffer;
use crate::lender::Lender;
use crate::limits::Limits;

bitflags! {
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Status: u32 {
        /// The peer's end of stream has come; the handler is told when it has had all input.
        const EOF = 1;
        /// The handler knows of the end of stream.
        const EOF_TOLD = 1 << 1;
        const READ_FAILED = 1 << 2;
        /// The handler has shut down; what it sent before still leaves.
        const FINISHING = 1 << 3;
        const FIN_SENT = 1 << 4;
        const WRITE_FAILED = 1 << 5;
        /// It ends now, whatever the two sides are doing.
        const AT_ONCE = 1 << 6;
        /// The peer's end of stream came before our shutdown.
        const PEER_WAS_FIRST = 1 << 7;
        /// The program has paused reading more often than resumed it.
        const PAUSED = 1 << 8;
        /// Output went above the high-water mark and has not come down to the low one.
        const ABOVE_HIGH = 1 << 9;
        /// The handler stopped in the middle of its input because it may not go on.
        const HELD = 1 << 10;
        /// The kernel's buffer is full; it will tell when there is room.
        const BLOCKED = 1 << 11;
        /// The peer is gone but reading is paused.
        const HUNG_UP = 1 << 12;
        /// The poller was told to wait for something else than input.
        const REWATCHED = 1 << 13;
        /// The program wants nothing more of the peer: what still comes is thrown away, also while
        /// reading is paused.
        const DEAF = 1 << 14;
        /// Its end is a reset: on purpose, or because the peer must not take what it got for
        /// everything.
        const RESETS = 1 << 15;
        /// After what the program has refused, its callback may still answer; then comes the end.
        const TO_FINISH = 1 << 16;
        /// Output waits to be handed to the kernel.
        const PENDING = 1 << 17;
        /// It does not lie in one piece that can be offered at once.
        const SEVERAL = 1 << 18;
        /// The handler has left some of its input.
        const LEFT = 1 << 19;
        /// The loop is inside one of this connection's events, and will look at the rest after it.
        const IN_EVENT = 1 << 20;

        const READ_OVER = Self::EOF_TOLD.bits() | Self::READ_FAILED.bits();
        const WRITE_OVER = Self::FIN_SENT.bits() | Self::WRITE_FAILED.bits();
        /// Nothing is received.
        const NO_READ = Self::EOF.bits() | Self::READ_OVER.bits() | Self::AT_ONCE.bits()
            | Self::PAUSED.bits() | Self::ABOVE_HIGH.bits();
        /// Nothing that is received goes to the handler: first what is held back has to.
        const NO_DELIVERY = Self::NO_READ.bits() | Self::HELD.bits() | Self::DEAF.bits();
        /// Nothing more can be queued.
        const NO_SEND = Self::FINISHING.bits() | Self::WRITE_OVER.bits() | Self::AT_ONCE.bits();
    }
}

/// Why something cannot be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Closed,
    Full,
}

/// A mark that the output's length has crossed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crossed {
    High,
    Low,
}

/// What has to come next, if it is for the peer to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Await {
    /// Input, of a connection that has had none. (Who counts the bytes knows.)
    FirstByte,
    /// Input.
    Input,
    /// That it takes the output that waits.
    Taking,
    /// Its end of the stream.
    End,
}

/// The state of one connection.
#[derive(Default)]
pub(crate) struct State {
    status: Cell<Status>,
    /// How many more times the program has paused reading than resumed it.
    pauses: Cell<u32>,
    /// What the handler has not consumed. Right-sized or empty: a lent buffer goes back.
    input: Cell<Buffer>,
    /// The two parts of an [`Output`]: mostly it is one buffer, which leaves at once.
    frozen: Cell<Option<Box<Frozen>>>,
    tail: Cell<Buffer>,
    sent: Cell<u64>,
    /// What went wrong first.
    failure: OnceCell<Box<CloseReason>>,
}

impl State {
    /// Whether any of these is set.
    #[inline(always)]
    fn is(&self, status: Status) -> bool {
        self.status.get().intersects(status)
    }

    #[inline]
    fn insert(&self, status: Status) {
        self.status.set(self.status.get() | status);
    }

    #[inline]
    fn remove(&self, status: Status) {
        self.status.set(self.status.get() - status);
    }

    /// Just open: nothing to send, tell or wait for but input, and no end in sight.
    #[inline(always)]
    pub(crate) fn is_quiet(&self) -> bool {
        (self.status.get() - (Status::LEFT | Status::IN_EVENT)).is_empty()
    }

    /// An event begins: what the program does until it ends is looked at then.
    #[inline(always)]
    pub(crate) fn enter_event(&self) {
        self.insert(Status::IN_EVENT);
    }

    #[inline(always)]
    pub(crate) fn leave_event(&self) {
        self.remove(Status::IN_EVENT);
    }

    #[inline(always)]
    pub(crate) fn is_in_event(&self) -> bool {
        self.is(Status::IN_EVENT)
    }
}

/// What happens to the peer's bytes.
impl State {
    /// Whether it is just open, in an event, and the handler has left nothing to which new bytes are
    /// added.
    #[inline(always)]
    pub(crate) fn is_untouched(&self) -> bool {
        self.status.get() == Status::IN_EVENT
    }

    /// Before a receive: what the handler has left. `None` if nothing is to be received now: what
    /// is held back is delivered before anything more is received, also an end of stream.
    pub(crate) fn begin_read(&self) -> Option<Buffer> {
        (!self.is(Status::NO_DELIVERY)).then(|| self.take_input())
    }

    /// Whether what the peer sends is thrown away.
    pub(crate) fn is_deaf(&self) -> bool {
        self.is(Status::DEAF)
    }

    /// Whether to receive only in order to come to the end of the stream.
    pub(crate) fn wants_to_discard(&self) -> bool {
        self.is_deaf() && self.wants_read()
    }

    fn take_input(&self) -> Buffer {
        self.remove(Status::HELD | Status::LEFT);
        self.input.take()
    }

    /// Before input that was held back is delivered again. `None` if it is not the time.
    pub(crate) fn begin_delivery(&self, limits: &Limits, posted: usize) -> Option<Buffer> {
        self.is_deliverable(limits, posted).then(|| self.take_input())
    }

    /// Takes back what the handler has left of its input. If it left nothing there is nothing to
    /// take back.
    pub(crate) fn keep_input(&self, input: Buffer, limits: &Limits, posted: usize) {
        if self.is(Status::DEAF) || input.is_empty() {
            return;
        }
        self.input.set(input);
        self.insert(Status::LEFT);
        if !self.wants_input(limits, posted) {
            self.hold_rest();
        }
    }

    /// How many bytes the handler has left; none while it has them at hand.
    pub(crate) fn input_left(&self) -> usize {
        let input = self.input.take();
        let left = input.len();
        self.input.set(input);
        left
    }

    /// The stream has ended. What is unconsumed stays with us.
    pub(crate) fn peer_eof(&self) {
        if !self.is(Status::WRITE_OVER | Status::FINISHING) {
            self.insert(Status::PEER_WAS_FIRST);
        }
        self.insert(Status::EOF);
    }

    /// Whether the peer's end of stream has come.
    #[inline]
    pub(crate) fn is_eof(&self) -> bool {
        self.is(Status::EOF)
    }

    /// True once, when the handler is to be told of the peer's end of stream. One that wanted
    /// nothing more is not told: it might take what it has for everything.
    #[inline(never)]
    pub(crate) fn take_half_close(&self) -> bool {
        let due = self.is_eof() && !self.is(Status::HELD | Status::READ_OVER | Status::AT_ONCE);
        if due {
            self.insert(Status::EOF_TOLD);
        }
        due && !self.is(Status::DEAF)
    }

    /// Whether to receive. What is thrown away is received in spite of any pause: no memory is to be
    /// saved, nobody is going to resume, and the peer's end must be seen.
    #[inline]
    pub(crate) fn wants_read(&self) -> bool {
        let mut stop = Status::NO_READ;
        stop.set(Status::PAUSED | Status::ABOVE_HIGH, !self.is(Status::DEAF));
        !self.is(stop)
    }

    /// Whether the handler should go on with the input it has: not if the program paused reading,
    /// if the answers so far are more than the peer takes, or if this is the end. `posted` bytes
    /// of output are on their way here from handles.
    pub(crate) fn wants_input(&self, limits: &Limits, posted: usize) -> bool {
        let stop = Status::PAUSED | Status::ABOVE_HIGH | Status::AT_ONCE | Status::DEAF;
        !self.is(stop) && self.pending_output().saturating_add(posted) <= limits.high_water
    }

    /// Whether input that was held back can be delivered now.
    pub(crate) fn is_deliverable(&self, limits: &Limits, posted: usize) -> bool {
        self.is(Status::HELD) && self.wants_input(limits, posted)
    }

    pub(crate) fn pause(&self) {
        self.pauses.set(self.pauses.get() + 1);
        self.insert(Status::PAUSED);
    }

    /// Whether it is the program that keeps the peer waiting. Not if the peer is gone, and not if
    /// what it sends is thrown away.
    pub(crate) fn is_paused(&self) -> bool {
        self.is(Status::PAUSED) && !self.is(Status::HUNG_UP | Status::DEAF)
    }

    /// Ends one pause. Without one, does nothing.
    pub(crate) fn resume(&self) {
        self.pauses.set(self.pauses.get().saturating_sub(1));
        if self.pauses.get() == 0 && self.is(Status::PAUSED) {
            self.remove(Status::PAUSED);
            self.hold_rest();
        }
    }

    /// What is left is to be delivered again, without new bytes.
    fn hold_rest(&self) {
        if self.is(Status::LEFT) {
            self.insert(Status::HELD);
        }
    }

    /// The kernel says that the peer is gone, while reading is paused.
    pub(crate) fn hung_up(&self) {
        self.insert(Status::HUNG_UP);
    }

    /// The handler has had everything there will ever be.
    pub(crate) fn is_read_over(&self) -> bool {
        self.is(Status::READ_OVER)
    }
}

/// What happens to our bytes.
impl State {
    /// Queues something to send. What is refused is dropped.
    pub(crate) fn queue(
        &self,
        outgoing: Outgoing<'_>,
        limits: &Limits,
        lender: &Lender,
    ) -> Result<(), Refusal> {
        let refusal = if self.is(Status::NO_SEND) {
            Some(Refusal::Closed)
        } else {
            let weight = self.with_output(|output| output.weight_with(&outgoing));
            (weight > limits.output).then_some(Refusal::Full)
        };
        if let Some(refusal) = refusal {
            outgoing.discard();
            return Err(refusal);
        }
        self.with_output(|output| output.push(outgoing, lender));
        Ok(())
    }

    /// The short way for a buffer of at most so much memory, in an event in which nothing is unusual.
    /// False if it is not open.
    #[inline(always)]
    pub(crate) fn queue_first(&self, buffer: &mut Buffer, most: usize) -> bool {
        let open = self.is_untouched() && !buffer.is_empty() && buffer.capacity() <= most;
        if open {
            self.put_single(std::mem::take(buffer));
            self.status.set(Status::IN_EVENT | Status::PENDING);
        }
        open
    }

    /// Looks at the output, or changes it, and keeps the status true.
    pub(crate) fn with_output<R>(&self, f: impl FnOnce(&mut Output) -> R) -> R {
        let mut output = Output { frozen: self.frozen.take(), tail: self.tail.take() };
        let result = f(&mut output);
        let mut status = self.status.get();
        status.set(Status::PENDING, !output.is_empty());
        status.set(Status::SEVERAL, !output.is_single());
        self.status.set(status);
        self.frozen.set(output.frozen);
        self.put_single(output.tail);
        result
    }

    /// Takes the output out, which is in one piece, for a flush. `all_sent` or `put_single` follows.
    #[inline(always)]
    pub(crate) fn take_single(&self) -> Buffer {
        self.tail.take()
    }

    /// Puts output in its place, which is empty.
    #[inline(always)]
    pub(crate) fn put_single(&self, single: Buffer) {
        // Spares a call: there is nothing to drop, which the compiler does not see.
        std::mem::forget(self.tail.replace(single));
    }

    /// Whether anything more can be queued.
    pub(crate) fn takes_output(&self) -> bool {
        !self.is(Status::NO_SEND)
    }

    pub(crate) fn pending_output(&self) -> usize {
        self.with_output(|output| output.len())
    }

    /// Whether a flush has something to do.
    #[inline]
    pub(crate) fn can_flush(&self) -> bool {
        let stop = Status::BLOCKED | Status::AT_ONCE;
        (self.status.get() & (Status::PENDING | stop)) == Status::PENDING
    }

    /// Whether one piece of output is all there is: what a message and its answer leave behind.
    #[inline(always)]
    pub(crate) fn has_only_output(&self) -> bool {
        self.status.get() == Status::IN_EVENT | Status::PENDING
    }

    /// Whether it lies in one piece.
    pub(crate) fn has_single_output(&self) -> bool {
        !self.is(Status::SEVERAL)
    }

    /// The kernel took all `n` bytes of the output that was taken out.
    #[inline(always)]
    pub(crate) fn all_sent(&self, n: usize) {
        self.sent.set(self.sent.get() + n as u64);
        self.status.set(self.status.get() - Status::PENDING);
    }

    /// The kernel took `n` of the bytes offered. True if that was all there is.
    pub(crate) fn wrote(&self, n: usize, offered: usize, lender: &Lender) -> bool {
        self.sent.set(self.sent.get() + n as u64);
        self.with_output(|output| output.advance(n, lender));
        if n < offered {
            self.would_block(lender);
        }
        !self.is(Status::PENDING)
    }

    /// There is room again.
    pub(crate) fn unblock(&self) {
        self.remove(Status::BLOCKED);
    }

    /// The kernel's buffer is full.
    pub(crate) fn would_block(&self, lender: &Lender) {
        self.insert(Status::BLOCKED);
        self.with_output(|output| output.trim(lender));
    }

    /// Whether to wait for room in the kernel's buffer.
    #[inline]
    pub(crate) fn is_blocked(&self) -> bool {
        self.is(Status::BLOCKED)
    }

    /// Whether output went above the high-water mark and has not come down to the low one.
    pub(crate) fn is_above_high(&self) -> bool {
        self.is(Status::ABOVE_HIGH)
    }

    /// Whether the output's length has crossed a mark: the high one only if the kernel takes no
    /// more, for until it was asked nobody knows that the peer is slow. Coming down to the low one
    /// also means that input left over may be delivered again.
    pub(crate) fn crossed(&self, limits: &Limits) -> Option<Crossed> {
        if self.is_ended() {
            return None;
        }
        let (len, above) = (self.pending_output(), self.is(Status::ABOVE_HIGH));
        if !above && len > limits.high_water && self.is_blocked() {
            self.insert(Status::ABOVE_HIGH);
            return Some(Crossed::High);
        }
        if above && len <= limits.low_water {
            self.remove(Status::ABOVE_HIGH);
            self.hold_rest();
            return Some(Crossed::Low);
        }
        None
    }
}

/// How it ends.
impl State {
    /// No more output; what is queued still leaves.
    pub(crate) fn shutdown(&self) {
        self.insert(Status::FINISHING);
    }

    /// Nothing more is delivered, neither what is left nor what still comes.
    pub(crate) fn ignore_input(&self, lender: &Lender) {
        self.remove(Status::HELD);
        self.insert(Status::DEAF);
        lender.give_back(self.take_input());
    }

    /// The program refuses what the peer sent. The connection is to finish after the callback.
    pub(crate) fn reject(&self, reason: CloseReason, lender: &Lender) {
        self.ignore_input(lender);
        self.insert(Status::TO_FINISH);
        self.store(reason);
    }

    /// True once after a refusal: now the connection is to finish.
    pub(crate) fn take_refusal(&self) -> bool {
        let due = self.is(Status::TO_FINISH);
        self.remove(Status::TO_FINISH);
        due
    }

    /// Whether to send FIN now. If the peer has finished too, closing does that.
    pub(crate) fn is_fin_due(&self) -> bool {
        self.is(Status::FINISHING)
            && !self.is(Status::WRITE_OVER | Status::PENDING)
            && !self.is_over()
    }

    pub(crate) fn fin_sent(&self) {
        self.insert(Status::FIN_SENT);
    }

    /// Receiving failed: nothing comes and nothing leaves any more.
    pub(crate) fn read_failed(&self, error: io::Error, lender: &Lender) {
        self.insert(Status::READ_FAILED | Status::WRITE_FAILED);
        self.drop_output(lender);
        self.store(CloseReason::ReadFailed(error));
    }

    /// Sending failed: what the peer sent before that can still be read.
    pub(crate) fn write_failed(&self, error: io::Error, lender: &Lender) {
        self.insert(Status::WRITE_FAILED | Status::RESETS);
        self.drop_output(lender);
        self.store(CloseReason::WriteFailed(error));
    }

    /// Ends now, for a reason of our own. Output not yet sent is dropped, and then the peer must not
    /// take what it has for everything, unless the program has chosen that.
    pub(crate) fn end(&self, reason: CloseReason) {
        self.insert(Status::AT_ONCE);
        let cut = self.is(Status::PENDING) && !matches!(reason, CloseReason::Closed);
        if cut || matches!(reason, CloseReason::Reset | CloseReason::WriteFailed(_)) {
            self.insert(Status::RESETS);
        }
        self.store(reason);
    }

    /// Whether to reset when closing. The reason does not tell: something else may have gone wrong
    /// before.
    pub(crate) fn resets(&self) -> bool {
        self.is(Status::RESETS)
    }

    /// Whether it has ended, or will right after this callback.
    #[inline]
    pub(crate) fn is_ended(&self) -> bool {
        self.is(Status::AT_ONCE)
    }

    fn store(&self, reason: CloseReason) {
        self.failure.get_or_init(|| Box::new(reason));
    }

    fn drop_output(&self, lender: &Lender) {
        self.with_output(|output| output.clear(lender));
        self.remove(Status::BLOCKED);
    }

    /// Whether to tear the connection down.
    pub(crate) fn is_over(&self) -> bool {
        let status = self.status.get();
        let written = status.intersects(Status::WRITE_OVER)
            || (status.contains(Status::FINISHING) && !status.contains(Status::PENDING));
        status.contains(Status::AT_ONCE)
            // What is held back is delivered first.
            || (status.contains(Status::READ_FAILED) && !status.contains(Status::HELD))
            || (status.contains(Status::EOF_TOLD) && written)
    }

    /// Whether only the peer keeps this connection from its end, once it has taken the output.
    fn lingers(&self) -> bool {
        let ending = Status::FINISHING | Status::WRITE_OVER | Status::HUNG_UP | Status::DEAF;
        self.is(ending) && !self.is_over()
    }

    /// What the peer is to do next, so that there must be a deadline for it. `None` if it is for the
    /// program to go on: it has paused reading, or the peer has said all it will.
    pub(crate) fn awaited(&self) -> Option<Await> {
        if self.is_over() {
            None
        } else if self.is_blocked() {
            Some(Await::Taking)
        } else if self.is_paused() {
            None
        } else if self.lingers() {
            Some(Await::End)
        } else {
            (!self.is_eof()).then_some(Await::Input)
        }
    }

    /// Notes what the poller is told to wait for.
    pub(crate) fn watched(&self, only_for_input: bool) {
        let mut status = self.status.get();
        status.set(Status::REWATCHED, !only_for_input);
        self.status.set(status);
    }

    /// What went wrong first, so far.
    pub(crate) fn failure(&self) -> Option<&CloseReason> {
        self.failure.get().map(|failure| &**failure)
    }

    /// Gives all memory back, and tells the reason.
    pub(crate) fn finish(&self, lender: &Lender) -> &CloseReason {
        let input = self.take_input();
        let left = input.len();
        lender.give_back(input);
        self.drop_output(lender);
        self.insert(Status::AT_ONCE);
        self.failure.get_or_init(|| {
            Box::new(match left {
                _ if !self.is(Status::PEER_WAS_FIRST) => CloseReason::ShutDown,
                0 => CloseReason::PeerClosed,
                left => CloseReason::Unfinished { left },
            })
        })
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        self.sent.get()
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
