//! What happens to the peer's bytes: received, delivered, held back, or thrown away.

use super::{State, Status};
use crate::Buffer;
use crate::limits::Limits;

impl State {
    /// Whether it is just open, and the handler has left nothing to which new bytes would have to be
    /// added.
    #[inline(always)]
    pub(crate) fn is_untouched(&self) -> bool {
        (self.status.get() - Status::SHARED).is_empty()
    }

    /// Before a receive: what the handler has left. `None` if nothing is to be received now. What
    /// is held back is delivered before anything more is received, even an end of stream.
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

    pub(super) fn take_input(&self) -> Buffer {
        self.remove(Status::HELD | Status::LEFT);
        self.input.take()
    }

    /// Before a delivery without new bytes: the input that was held back. `None` if there is none,
    /// or if it has to wait.
    pub(crate) fn begin_delivery(&self, limits: &Limits, posted: usize) -> Option<Buffer> {
        self.is_deliverable(limits, posted).then(|| self.take_input())
    }

    /// Takes back what the handler has left of its input, if anything.
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

    /// True once, when the handler is to be told of the peer's end of stream. A handler that wants
    /// nothing more is not told: it might take what it has got for everything.
    #[inline(never)]
    pub(crate) fn take_half_close(&self) -> bool {
        let due = self.is_eof() && !self.is(Status::HELD | Status::READ_OVER | Status::AT_ONCE);
        if due {
            self.insert(Status::EOF_TOLD);
        }
        due && !self.is(Status::DEAF)
    }

    /// Whether to receive. What is going to be thrown away is received in spite of any pause: it
    /// takes no memory, nobody is going to resume, and the peer's end must be seen.
    #[inline]
    pub(crate) fn wants_read(&self) -> bool {
        let mut stop = Status::NO_READ;
        stop.set(Status::PAUSED | Status::ABOVE_HIGH, !self.is(Status::DEAF));
        !self.is(stop)
    }

    /// Whether the handler should go on with the input it has: not if the program has paused
    /// reading, if more answers wait than the high-water mark allows, or if this is the end.
    /// `posted` bytes of output are on their way here from handles.
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

    /// Ends one pause. Without one, does nothing. What to wait for is looked at again even if the
    /// poller never heard of the pause, which was shorter than a turn: a timer in between has found
    /// that nothing is awaited of the peer, and there is no other.
    pub(crate) fn resume(&self) {
        self.pauses.set(self.pauses.get().saturating_sub(1));
        if self.pauses.get() == 0 && self.is(Status::PAUSED) {
            self.remove(Status::PAUSED);
            self.insert(Status::REWATCHED);
            self.hold_rest();
        }
    }

    /// What is left is to be delivered again, without new bytes.
    pub(super) fn hold_rest(&self) {
        if self.is(Status::LEFT) {
            self.insert(Status::HELD);
        }
    }

    /// The kernel says that the peer is gone, while reading is paused.
    pub(crate) fn hung_up(&self) {
        self.insert(Status::HUNG_UP);
    }

    /// Whether nothing will ever be read again: the handler knows of the end of stream, or reading
    /// failed.
    pub(crate) fn is_read_over(&self) -> bool {
        self.is(Status::READ_OVER)
    }
}
