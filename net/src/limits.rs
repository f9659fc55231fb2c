//! How much a connection may hold, and how long its peer may keep it waiting.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::tcp_options::TcpOptions;

/// The bounds of each connection. Sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Room for one receive. One receive an event is also what keeps a connection from starving
    /// the others.
    pub(crate) read_size: usize,
    /// Input the handler has not consumed.
    pub(crate) input: usize,
    /// Output above which reading pauses, and below which it resumes.
    pub(crate) high_water: usize,
    pub(crate) low_water: usize,
    /// Memory held by output.
    pub(crate) output: usize,
    pub(crate) deadlines: Deadlines,
    /// For the socket, or for the one that it is accepted from.
    pub(crate) tcp: TcpOptions,
}

/// How long a peer may do nothing of what is awaited of it; `MAX` is for ever.
#[derive(Clone, Copy)]
pub(crate) struct Deadlines {
    /// Say something.
    pub(crate) idle: Duration,
    /// Say something for the first time; instead of `idle`, if it is set.
    pub(crate) first_byte: Duration,
    /// Take output.
    pub(crate) write_stall: Duration,
    /// Finish, after our side has.
    pub(crate) linger: Duration,
}

/// The most that one receive may bring. Each loop has a buffer of that size from the beginning on, and
/// no kernel fills a larger one in one call.
const MAX_READ_SIZE: usize = 1024 * 1024 * 1024;

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            read_size: 64 * 1024,
            input: 1024 * 1024,
            high_water: 1024 * 1024,
            low_water: 256 * 1024,
            output: 64 * 1024 * 1024,
            deadlines: Deadlines::default(),
            tcp: TcpOptions::default(),
        }
    }
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        Deadlines {
            idle: Duration::MAX,
            first_byte: Duration::MAX,
            write_stall: Duration::from_secs(60),
            linger: Duration::from_secs(5),
        }
    }
}

impl fmt::Debug for Deadlines {
    /// As the log tells them: "never" for `MAX`, which as a number is only long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Deadlines { idle, first_byte, write_stall, linger } = *self;
        let mut shown = f.debug_struct("Deadlines");
        for (name, time) in [
            ("idle", idle),
            ("first_byte", first_byte),
            ("write_stall", write_stall),
            ("linger", linger),
        ] {
            if time == Duration::MAX {
                shown.field(name, &format_args!("never"));
            } else {
                shown.field(name, &time);
            }
        }
        shown.finish()
    }
}

impl Limits {
    /// Refuses settings that contradict each other.
    pub(crate) fn check(&self) -> io::Result<()> {
        let bad = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        let Limits { read_size, input, high_water, low_water, output, deadlines, .. } = *self;
        if read_size == 0 {
            return bad("a read size of 0 bytes reads nothing".into());
        }
        if read_size > MAX_READ_SIZE {
            return bad(format!(
                "a read size of {read_size} bytes, where {MAX_READ_SIZE} are the most"
            ));
        }
        if input < read_size {
            return bad(format!(
                "the input limit ({input} bytes) is below the read size ({read_size})"
            ));
        }
        if low_water >= high_water {
            return bad(format!(
                "the low-water mark ({low_water} bytes) must be below the high one ({high_water})"
            ));
        }
        if high_water >= output {
            return bad(format!(
                "the high-water mark ({high_water} bytes) must be below the output limit ({output})"
            ));
        }
        if output / 2 < read_size + crate::Buffer::CHEAP_PREPEND {
            return bad(format!(
                "the output limit ({output} bytes) must be at least twice the read size \
                 ({read_size}): an echoed buffer counts with its whole storage"
            ));
        }
        let Deadlines { idle, first_byte, write_stall, .. } = deadlines;
        if [idle, first_byte, write_stall].contains(&Duration::ZERO) {
            return bad("a timeout of zero leaves the peer no time (Duration::MAX is none)".into());
        }
        Ok(())
    }
}

/// The methods that set the bounds of connections: the same ones for all builders that make any.
/// Such a builder has a method `limits`.
macro_rules! connection_settings {
    ($builder:ident) => {
        /// # The bounds of each connection
        impl<C> $builder<'_, C> {
            /// How many bytes one receive can bring; 64 KiB by default, 1 GiB at most. Each loop has a
            /// few buffers of this size, shared by all connections.
            pub fn read_size(mut self, bytes: usize) -> Self {
                self.limits().read_size = bytes;
                self
            }

            /// How many bytes of input a handler may leave unconsumed; 1 MiB by default. A
            /// connection that reaches it is closed ([`InputFull`](crate::CloseReason::InputFull)).
            pub fn input_limit(mut self, bytes: usize) -> Self {
                self.limits().input = bytes;
                self
            }

            /// When more than `high` bytes wait for the peer, reading from it pauses until only
            /// `low` are left: a peer that does not read its answers gets to ask no more. By
            /// default these are 256 KiB and 1 MiB.
            pub fn water_marks(mut self, low: usize, high: usize) -> Self {
                self.limits().low_water = low;
                self.limits().high_water = high;
                self
            }

            /// How many bytes of memory output may hold; 64 MiB by default. Sending more closes the
            /// connection ([`OutputFull`](crate::CloseReason::OutputFull)).
            pub fn output_limit(mut self, bytes: usize) -> Self {
                self.limits().output = bytes;
                self
            }

            /// How long a peer may say nothing while it is its turn: a connection on which no byte
            /// has come for so long is closed ([`Idle`](crate::CloseReason::Idle)). Never, by
            /// default.
            ///
            /// What we send does not count, so that a ping of ours does not hide a dead peer; a
            /// program that takes long for an answer sets the time anew
            /// ([`set_idle_timeout`](crate::Connection::set_idle_timeout)). The time stands still
            /// while it is not the peer's turn: while we pause reading, after its end of the
            /// stream, and while output waits (then
            /// [`write_stall_timeout`](Self::write_stall_timeout) counts, and after our own end
            /// [`linger`](Self::linger)), and begins anew after that.
            ///
            /// This and the other deadlines are never early, and late by at most an eighth of their
            /// time or 10 ms, whichever is longer, if the loop is not late itself. They cost
            /// nothing for each message; where one is set, a timer looks at the connection twelve
            /// times within it.
            pub fn idle_timeout(mut self, timeout: std::time::Duration) -> Self {
                self.limits().deadlines.idle = timeout;
                self
            }

            /// How long a new peer may take to say its first byte
            /// ([`NoFirstByte`](crate::CloseReason::NoFirstByte)); until then it counts instead of
            /// [`idle_timeout`](Self::idle_timeout), by whose rules. By default there is none.
            pub fn first_byte_timeout(mut self, timeout: std::time::Duration) -> Self {
                self.limits().deadlines.first_byte = timeout;
                self
            }

            /// How long a peer may take nothing of the output that waits for it, before and after
            /// `shutdown` ([`WriteStalled`](crate::CloseReason::WriteStalled)). 60 s by default;
            /// `Duration::MAX` is no limit.
            ///
            /// What it takes is what it acknowledges, as the kernel tells (on Linux; elsewhere, and
            /// on Unix sockets, what makes room in the kernel's buffer), and at least 4 KiB, if
            /// there is so much, have to be taken within the time: a peer that takes it byte by
            /// byte takes nothing.
            pub fn write_stall_timeout(mut self, timeout: std::time::Duration) -> Self {
                self.limits().deadlines.write_stall = timeout;
                self
            }

            /// How long a peer may do nothing after our end of the stream
            /// ([`LingerExpired`](crate::CloseReason::LingerExpired)): neither take what the kernel
            /// still has for it (counted as by [`write_stall_timeout`](Self::write_stall_timeout)),
            /// nor say anything, if anybody wants to hear it (not after `finish` or `reject`), nor
            /// end. It also bounds how long a peer may take to end when we cannot send any more, and how
            /// long what a peer sent before it went away is kept while reading is paused. 5 s by
            /// default.
            pub fn linger(mut self, linger: std::time::Duration) -> Self {
                self.limits().deadlines.linger = linger;
                self
            }

            /// Has the kernel find out whether a peer that says nothing is still there; off by
            /// default. TCP only.
            pub fn keepalive(mut self, keepalive: $crate::Keepalive) -> Self {
                self.limits().tcp.keepalive = Some(keepalive);
                self
            }

            /// How long what was sent may remain unacknowledged before the kernel gives the
            /// connection up (TCP_USER_TIMEOUT; milliseconds, at least one), which is an error
            /// `TimedOut`: for networks that are gone, where otherwise the kernel tries for a
            /// quarter of an hour. (A peer whose program does not read acknowledges nevertheless,
            /// but not when its window is closed: then this is a second
            /// [`write_stall_timeout`](Self::write_stall_timeout).) With
            /// [`keepalive`](Self::keepalive), it decides instead of the number of questions. The
            /// system's by default. TCP on Linux only.
            pub fn user_timeout(mut self, timeout: std::time::Duration) -> Self {
                self.limits().tcp.user_timeout = Some(timeout);
                self
            }
        }
    };
}

pub(crate) use connection_settings;
