//! How a connection ends: what may still be said, what is waited for, and which reason it gets.

use std::io;

use super::{Await, State, Status};
use crate::connection::reason::CloseReason;
use crate::lender::Lender;

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

    /// The program rejects what the peer sent. The connection is to finish after the callback.
    pub(crate) fn reject(&self, reason: CloseReason, lender: &Lender) {
        self.ignore_input(lender);
        self.insert(Status::TO_FINISH);
        self.store(reason);
    }

    /// True once after [`State::reject`]: now the connection is to finish.
    pub(crate) fn take_rejection(&self) -> bool {
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

    /// Ends now, for a reason of our own. If that drops output, the connection is reset, so that
    /// the peer does not take what it has got for everything; unless it was the program that closed
    /// it.
    pub(crate) fn end(&self, reason: CloseReason) {
        self.insert(Status::AT_ONCE);
        let cut = self.is(Status::PENDING) && !matches!(reason, CloseReason::Closed);
        if cut || matches!(reason, CloseReason::Reset | CloseReason::WriteFailed(_)) {
            self.insert(Status::RESETS);
        }
        self.store(reason);
    }

    /// Whether to reset when closing. The reason does not tell, for it is the first thing that went
    /// wrong, and not the last.
    pub(crate) fn resets(&self) -> bool {
        self.is(Status::RESETS)
    }

    /// Whether it has ended, or will right after this callback.
    #[inline]
    pub(crate) fn is_ended(&self) -> bool {
        self.is(Status::AT_ONCE)
    }

    fn store(&self, reason: CloseReason) {
        self.failure.get_or_init(|| reason);
    }

    #[inline]
    fn drop_output(&self, lender: &Lender) {
        if self.is(Status::PENDING) {
            self.drop_pending(lender);
        }
    }

    #[inline(never)]
    fn drop_pending(&self, lender: &Lender) {
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

    /// Whether only the peer keeps this connection from its end, once it has taken all output.
    pub(super) fn lingers(&self) -> bool {
        let ending = Status::FINISHING | Status::WRITE_OVER | Status::HUNG_UP;
        self.is(ending) && !self.is_over()
    }

    /// What the peer is to do next; there has to be a deadline for that. `None` if it is the
    /// program's turn: it has paused reading, or the peer has said all that it will.
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
        self.failure.get()
    }

    /// Gives all memory back, and tells the reason.
    pub(crate) fn finish(&self, lender: &Lender) -> &CloseReason {
        let mut left = 0;
        if self.is(Status::LEFT) {
            let input = self.take_input();
            left = input.len();
            lender.give_back(input);
        }
        self.drop_output(lender);
        self.insert(Status::AT_ONCE);
        self.failure.get_or_init(|| match left {
            _ if !self.is(Status::PEER_WAS_FIRST) => CloseReason::ShutDown,
            0 => CloseReason::PeerClosed,
            left => CloseReason::Unfinished { left },
        })
    }

    pub(crate) fn bytes_sent(&self) -> u64 {
        self.sent.get()
    }
}
