//! What happens to our bytes: queued, and taken by the kernel, or not; then somebody has to wait.

use super::{Crossed, State, Status};
use crate::connection::output::{Outgoing, Output};
use crate::lender::Lender;
use crate::limits::Limits;
use crate::{Buffer, SendError};

impl State {
    /// Queues something to send. What is refused is dropped.
    pub(crate) fn queue(
        &self,
        outgoing: Outgoing<'_>,
        limits: &Limits,
        lender: &Lender,
    ) -> Result<(), SendError> {
        if self.is(Status::NO_SEND) {
            outgoing.discard();
            return Err(SendError::Closed);
        }
        self.with_output(|output| {
            if output.weight_with(&outgoing) > limits.output {
                outgoing.discard();
                return Err(SendError::Full);
            }
            output.push(outgoing, lender);
            Ok(())
        })
    }

    /// The short way: queues a buffer as it is, if nothing is unusual. False if something is, or if
    /// the buffer takes more memory than `most`. `shared`: for a connection that has handles, of
    /// which the caller knows that nothing is on its way from them; otherwise for one that has none.
    #[inline(always)]
    pub(crate) fn queue_first(&self, buffer: &mut Buffer, most: usize, shared: bool) -> bool {
        let usual = if shared { Status::SHARED } else { Status::empty() };
        let open = self.status.get() == usual && !buffer.is_empty() && buffer.capacity() <= most;
        if open {
            self.put_single(std::mem::take(buffer));
            self.status.set(usual | Status::PENDING);
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
        // As in `put_single`.
        std::mem::forget(self.frozen.replace(output.frozen));
        self.put_single(output.tail);
        result
    }

    /// Takes the output, which is one piece, out for a flush. `all_sent` or `put_single` follows.
    /// `None` if there is nothing to send.
    #[inline(always)]
    pub(crate) fn take_single(&self) -> Option<Buffer> {
        let single = self.tail.take();
        single.has_storage().then_some(single)
    }

    /// Puts one piece of output into its place, which is empty.
    #[inline(always)]
    pub(crate) fn put_single(&self, single: Buffer) {
        // There is nothing to drop, but the compiler does not see that and would call.
        std::mem::forget(self.tail.replace(single));
    }

    /// From now on there are handles.
    pub(crate) fn share(&self) {
        self.insert(Status::SHARED);
    }

    /// Whether anything more can be queued.
    pub(crate) fn takes_output(&self) -> bool {
        !self.is(Status::NO_SEND)
    }

    pub(crate) fn pending_output(&self) -> usize {
        if self.is(Status::PENDING) { self.with_output(|output| output.len()) } else { 0 }
    }

    /// Whether a flush has something to do.
    #[inline]
    pub(crate) fn can_flush(&self) -> bool {
        let stop = Status::BLOCKED | Status::AT_ONCE;
        (self.status.get() & (Status::PENDING | stop)) == Status::PENDING
    }

    /// Whether one piece of output is all that is unusual: the state after a message and its
    /// answer.
    #[inline(always)]
    pub(crate) fn has_only_output(&self) -> bool {
        self.status.get() - Status::SHARED == Status::PENDING
    }

    /// Whether the output is one piece.
    pub(crate) fn has_single_output(&self) -> bool {
        !self.is(Status::SEVERAL)
    }

    /// The kernel took all `n` bytes of the output that was taken out.
    #[inline(always)]
    pub(crate) fn all_sent(&self, n: usize) {
        self.sent.set(self.sent.get() + n as u64);
        self.status.set(self.status.get() - Status::PENDING);
    }

    /// After a flush: whether nothing was left.
    pub(crate) fn flushed(&self, drained: bool) {
        let mut status = self.status.get();
        status.set(Status::DRAINED, drained);
        self.status.set(status);
    }

    /// Whether the handler is to be told that its output has drained.
    pub(crate) fn is_drained(&self) -> bool {
        self.is(Status::DRAINED)
    }

    /// The same, true once.
    pub(crate) fn take_drained(&self) -> bool {
        let due = self.is_drained();
        self.remove(Status::DRAINED);
        due
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

    /// Whether the output's length has crossed a mark. The high one counts only once the kernel
    /// takes no more: before that, nobody knows that the peer is slow. At the low one, input that
    /// was left over may be delivered again.
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
