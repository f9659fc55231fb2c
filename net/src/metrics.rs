//! What a server counts.
//!
//! Each loop has [`Counters`] of its own for what its connections do, to which only that loop adds:
//! no read-modify-write, and any thread can read them. What acceptors count is rarer, and shared.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::CloseReason;

/// What a server has done so far, on all its loops: from
/// [`ServerHandle::metrics`](crate::ServerHandle::metrics). Prints as one line, `open=3
/// accepted=12 ...`, as log collectors read it; reasons that nobody was closed for are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerMetrics {
    /// Connections open now, those on their way to a loop included.
    pub open: usize,
    /// Connections accepted, refused ones not included.
    pub accepted: u64,
    /// Connections closed as soon as accepted, by reason.
    pub refused: RefusedCounts,
    /// Connections closed because no loop could take them.
    pub lost: u64,
    /// Connections that have ended, by reason.
    pub closed: ClosedCounts,
    /// Bytes received.
    pub received: u64,
    /// Bytes handed to the kernel.
    pub sent: u64,
    /// Bytes that the program sent to connections it had shut down or closed before, or beyond
    /// the output limit; they were dropped.
    pub discarded: u64,
    /// Times that reading from a connection paused because too much output waited.
    pub paused_by_output: u64,
    /// Times that the program paused reading from a connection.
    pub paused_by_program: u64,
    /// Times that accepting paused, for want of descriptors or memory, or because it failed in a
    /// way that may repeat itself.
    pub accept_pauses: u64,
}

/// Why connections were refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RefusedCounts {
    /// As many as [`max_connections`](crate::Server::max_connections) were open.
    pub max_connections: u64,
    /// As many of that peer as
    /// [`max_connections_per_peer`](crate::Server::max_connections_per_peer) were open.
    pub max_connections_per_peer: u64,
    /// No descriptors were left.
    pub descriptors: u64,
}

impl RefusedCounts {
    /// For whatever reason.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.max_connections + self.max_connections_per_peer + self.descriptors
    }
}

impl fmt::Display for ServerMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "open={} accepted={}", self.open, self.accepted)?;
        write!(f, " refused_max_connections={}", self.refused.max_connections)?;
        let per_peer = self.refused.max_connections_per_peer;
        write!(f, " refused_max_connections_per_peer={per_peer}")?;
        write!(f, " refused_descriptors={} lost={}", self.refused.descriptors, self.lost)?;
        write!(f, " closed={}{}", self.closed.total(), self.closed)?;
        write!(f, " received={} sent={}", self.received, self.sent)?;
        write!(f, " discarded={} paused_by_output={}", self.discarded, self.paused_by_output)?;
        write!(f, " paused_by_program={}", self.paused_by_program)?;
        write!(f, " accept_pauses={}", self.accept_pauses)
    }
}

/// How a server ended: from [`ServerHandle::wait`](crate::ServerHandle::wait). The connections of
/// clients that are [part of it](crate::Client::part_of) count, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StopReport {
    /// Connections that ended after the server had been told to stop, without losing a byte
    /// ([`CloseReason::is_clean`]).
    pub drained: u64,
    /// Those that ended then in any other way: cut at the stop's deadline, or at one of their own;
    /// reset by the peer; closed at once by the program; or with their loop.
    pub cut: u64,
}

impl fmt::Display for StopReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StopReport { drained, cut } = self;
        let connections = if *drained == 1 { "connection" } else { "connections" };
        write!(f, "{drained} {connections} drained, {cut} cut")
    }
}

/// What the connections of one server have done on one loop.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) received: AtomicU64,
    pub(crate) sent: AtomicU64,
    /// Sent by the program to connections it had shut or closed before.
    pub(crate) discarded: AtomicU64,
    pub(crate) paused_by_output: AtomicU64,
    pub(crate) paused_by_program: AtomicU64,
    closed: ClosedCounters,
    /// Of those that ended after the server had been told to stop, or with their loop.
    pub(crate) drained: AtomicU64,
    pub(crate) cut: AtomicU64,
}

/// Adds to a counter that no other thread writes to.
#[inline]
pub(crate) fn add(counter: &AtomicU64, n: usize) {
    counter.store(read(counter) + n as u64, Ordering::Relaxed);
}

pub(crate) fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    pub(crate) fn closed(&self, reason: &CloseReason, stopping: bool) {
        add(self.closed.of(reason), 1);
        self.ended(reason, stopping);
    }

    /// Counts one among those that a stop has ended, if it has.
    pub(crate) fn ended(&self, reason: &CloseReason, stopping: bool) {
        if stopping || matches!(reason, CloseReason::LoopEnded) {
            add(if reason.is_clean() { &self.drained } else { &self.cut }, 1);
        }
    }

    /// Adds what this loop has counted.
    pub(crate) fn add_to(&self, sum: &mut ServerMetrics) {
        sum.received += read(&self.received);
        sum.sent += read(&self.sent);
        sum.discarded += read(&self.discarded);
        sum.paused_by_output += read(&self.paused_by_output);
        sum.paused_by_program += read(&self.paused_by_program);
        self.closed.add_to(&mut sum.closed);
    }
}

/// One count for each reason.
macro_rules! closed {
    ($($count:ident: $reason:ident;)*) => {
        /// How many connections ended for which [`CloseReason`].
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ClosedCounts {
            $(
                #[doc = concat!("[`CloseReason::", stringify!($reason), "`]")]
                pub $count: u64,
            )*
        }

        impl ClosedCounts {
            /// For whatever reason.
            #[must_use]
            pub fn total(&self) -> u64 {
                0 $(+ self.$count)*
            }
        }

        /// Those that are not 0.
        impl fmt::Display for ClosedCounts {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(
                    if self.$count > 0 {
                        write!(f, concat!(" closed_", stringify!($count), "={}"), self.$count)?;
                    }
                )*
                Ok(())
            }
        }

        #[derive(Debug, Default)]
        struct ClosedCounters {
            $($count: AtomicU64,)*
        }

        impl ClosedCounters {
            fn of(&self, reason: &CloseReason) -> &AtomicU64 {
                match reason {
                    $(CloseReason::$reason { .. } => &self.$count,)*
                }
            }

            fn add_to(&self, sum: &mut ClosedCounts) {
                $(sum.$count += read(&self.$count);)*
            }
        }
    };
}

closed! {
    by_peer: PeerClosed;
    shut_down: ShutDown;
    unfinished: Unfinished;
    rejected: Rejected;
    by_program: Closed;
    reset: Reset;
    read_failed: ReadFailed;
    write_failed: WriteFailed;
    input_full: InputFull;
    output_full: OutputFull;
    idle: Idle;
    no_first_byte: NoFirstByte;
    write_stalled: WriteStalled;
    linger_expired: LingerExpired;
    stopped: Stopped;
    loop_ended: LoopEnded;
    panicked: Panicked;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who collects these lines finds each figure under its own name.
    #[test]
    fn a_line_has_each_figure_by_its_name() {
        let mut metrics = ServerMetrics {
            open: 1,
            accepted: 2,
            lost: 6,
            received: 9,
            sent: 10,
            discarded: 11,
            paused_by_output: 12,
            paused_by_program: 13,
            accept_pauses: 14,
            ..ServerMetrics::default()
        };
        metrics.refused =
            RefusedCounts { max_connections: 3, max_connections_per_peer: 4, descriptors: 5 };
        metrics.closed = ClosedCounts { by_peer: 7, panicked: 8, ..ClosedCounts::default() };
        assert_eq!(
            metrics.to_string(),
            "open=1 accepted=2 refused_max_connections=3 refused_max_connections_per_peer=4 \
             refused_descriptors=5 lost=6 closed=15 closed_by_peer=7 closed_panicked=8 received=9 \
             sent=10 discarded=11 paused_by_output=12 paused_by_program=13 accept_pauses=14"
        );
        assert_eq!(metrics.refused.total(), 12);
    }
}
