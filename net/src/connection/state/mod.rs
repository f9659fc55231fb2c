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
//! Whatever is unusual about a connection is a bit of [`Status`]. A connection that is just open
//! has none of them, and a single test for that answers most of the questions that each message
//! asks.
//!
//! This file is what there is to know; what follows from it is in [`receiving`], [`sending`] and
//! [`ending`].
//!
//! The state is made of cells, each of which is read or exchanged in one go. So it is never found
//! borrowed, although between any two steps a callback of the program may change it.

mod ending;
mod receiving;
mod sending;
#[cfg(test)]
mod tests;

use std::cell::{Cell, OnceCell};

use bitflags::bitflags;

use super::output::Frozen;
use super::reason::CloseReason;
use crate::Buffer;

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
        /// The peer is gone, and because reading is paused we have not read how.
        const HUNG_UP = 1 << 12;
        /// The poller was told to wait for something other than input, or a pause has ended: it is to
        /// be told anew, and so are the deadlines.
        const REWATCHED = 1 << 13;
        /// The program wants nothing more of the peer: what still comes is thrown away, also while
        /// reading is paused.
        const DEAF = 1 << 14;
        /// It ends with a reset: on purpose, or so that the peer does not take what it has got for
        /// all there was.
        const RESETS = 1 << 15;
        /// The program has rejected its input. The callback may still send an answer; after it the
        /// connection finishes.
        const TO_FINISH = 1 << 16;
        /// Output waits to be handed to the kernel.
        const PENDING = 1 << 17;
        /// That output is not one piece that can be offered at once.
        const SEVERAL = 1 << 18;
        /// The handler has left some of its input.
        const LEFT = 1 << 19;
        /// The kernel has taken the last of the output, and the handler has yet to hear of that.
        const DRAINED = 1 << 20;
        /// There are handles, so something that they have posted may be on its way here.
        const SHARED = 1 << 21;

        const READ_OVER = Self::EOF_TOLD.bits() | Self::READ_FAILED.bits();
        const WRITE_OVER = Self::FIN_SENT.bits() | Self::WRITE_FAILED.bits();
        /// With any of these, nothing is received.
        const NO_READ = Self::EOF.bits() | Self::READ_OVER.bits() | Self::AT_ONCE.bits()
            | Self::PAUSED.bits() | Self::ABOVE_HIGH.bits();
        /// With any of these, nothing new goes to the handler. (What is held back has to go first.)
        const NO_DELIVERY = Self::NO_READ.bits() | Self::HELD.bits() | Self::DEAF.bits();
        /// With any of these, nothing more can be queued.
        const NO_SEND = Self::FINISHING.bits() | Self::WRITE_OVER.bits() | Self::AT_ONCE.bits();
    }
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
    /// The very first input. (The state does not count bytes; [`Core`](super::core::Core), which
    /// does, tells this from `Input`.)
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
    /// What the handler has not consumed: a buffer of its size, or none, for lent buffers go back.
    input: Cell<Buffer>,
    /// The two parts of an [`Output`](super::output::Output): mostly it is one buffer, which leaves at
    /// once.
    frozen: Cell<Option<Box<Frozen>>>,
    tail: Cell<Buffer>,
    sent: Cell<u64>,
    /// What went wrong first.
    failure: OnceCell<CloseReason>,
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
        (self.status.get() - (Status::LEFT | Status::SHARED)).is_empty()
    }
}
