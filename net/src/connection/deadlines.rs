//! Deadlines: how long a peer may keep its connection waiting.
//!
//! What the peer is to do next is a question to the [state](super::state): say something, take what
//! waits for it, come to its end. Messages do nothing for the deadlines. They count their bytes as
//! they do anyway, and a timer looks at the counts now and then:
//!
//! ```text
//!        the peer's last byte
//!   ──▲────▲──▲──│──────────────────────────────────────────────▶ time
//!   look   look  ┊  look    look    look    look    look    look
//!                   │◀───────────── the deadline ─────────────▶│ cut
//!                   since here there was nothing new
//! ```
//!
//! The time counts from a look, which is never before the last progress, so nobody is cut early; and
//! there are twelve looks in it, so nobody is cut later than a twelfth of it (and what the loop
//! takes to get there). There is at most one such timer a connection, and none unless a deadline can
//! pass: by default that takes output that waits, or a shutdown.

use std::time::{Duration, Instant};

use ruduo_reactor::sys::socket;
use ruduo_reactor::{EventLoop, TimerId};

use super::core::{Core, Timers};
use super::reason::CloseReason;
use super::state::Await;
use crate::Connection;
use crate::limits::Deadlines;

/// Looks are not closer together than this.
const CLOSEST_LOOKS: Duration = Duration::from_millis(5);

/// How many bytes a peer has to take within a deadline, if so many wait: who takes less, byte by
/// byte, takes nothing.
const LEAST_TAKEN: i64 = 4096;

/// The timer of a connection's deadlines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) timer: TimerId,
    /// How far ahead it was armed.
    ahead: Duration,
    /// What was awaited when somebody last asked. Something else may have been before.
    awaited: Option<Await>,
    /// When a look has seen that the time begins; `None` until one has.
    since: Option<(Instant, Progress)>,
    /// The deadline is over. What has come meanwhile, while we may have been busy elsewhere, is
    /// received before the next look, which is the last one.
    is_last: bool,
}

/// How far the peer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Progress {
    received: u64,
    /// Bytes sent less those that the kernel still holds, and whether it holds none.
    taken: i64,
    took_all: bool,
}

impl Progress {
    fn is_beyond(self, earlier: Progress) -> bool {
        self.received != earlier.received
            || self.taken.saturating_sub(earlier.taken) >= LEAST_TAKEN
            || (self.took_all && !earlier.took_all)
    }
}

impl Deadlines {
    fn of(&self, awaited: Await) -> Duration {
        match awaited {
            Await::FirstByte if self.first_byte != Duration::MAX => self.first_byte,
            Await::FirstByte | Await::Input => self.idle,
            Await::Taking => self.write_stall,
            Await::End => self.linger,
        }
    }

    /// How long until the next look, if this is awaited; `None` if for ever. Nobody hears when the
    /// first byte has come, and from then on the idle time counts.
    fn step(&self, awaited: Await) -> Option<Duration> {
        let deadline = match awaited {
            Await::FirstByte => self.first_byte.min(self.idle),
            other => self.of(other),
        };
        let step = (deadline / 12).max(CLOSEST_LOOKS).min(deadline);
        (deadline != Duration::MAX).then_some(step)
    }

    /// Whether a peer may say nothing for as long as it likes.
    #[inline]
    fn leave_time_for_input(&self) -> bool {
        self.idle == Duration::MAX && self.first_byte == Duration::MAX
    }

    fn reason(&self, awaited: Await) -> CloseReason {
        let after = self.of(awaited);
        match awaited {
            Await::FirstByte if self.first_byte != Duration::MAX => {
                CloseReason::NoFirstByte { after }
            }
            Await::FirstByte | Await::Input => CloseReason::Idle { after },
            Await::Taking => CloseReason::WriteStalled { after },
            Await::End => CloseReason::LingerExpired { after },
        }
    }
}

impl Core {
    /// The deadlines that hold for this connection.
    fn deadlines(&self) -> Deadlines {
        let own = self.with_timers(|timers| timers.as_ref().and_then(|timers| timers.deadlines));
        own.unwrap_or(self.context.limits.deadlines)
    }

    /// Changes deadlines of this connection alone. The time begins anew.
    pub(super) fn set_deadlines(&self, event_loop: &EventLoop, f: impl FnOnce(&mut Deadlines)) {
        let mut deadlines = self.deadlines();
        f(&mut deadlines);
        self.with_timers(|timers| {
            let timers = timers.get_or_insert_default();
            timers.deadlines = Some(deadlines);
            if let Some(look) = &mut timers.look {
                look.since = None;
            }
        });
        self.watch_peer(event_loop);
    }

    /// After anything that may have changed what is awaited of the peer: sees to it that there is a
    /// look in time. The time begins at the next look if something else is awaited now.
    #[inline]
    pub(super) fn watch_peer(&self, event_loop: &EventLoop) {
        self.with_timers(|timers| {
            // Mostly there is no look, and none is needed: a peer may say nothing for ever.
            let may_wait = timers.is_none()
                && self.state.is_quiet()
                && self.context.limits.deadlines.leave_time_for_input();
            if !may_wait {
                self.see_to_looks(event_loop, timers);
            }
        });
    }

    #[inline(never)]
    fn see_to_looks(&self, event_loop: &EventLoop, timers: &mut Option<Box<Timers>>) {
        let awaited = self.awaited();
        let own = timers.as_ref().and_then(|timers| timers.deadlines.as_ref());
        let deadlines = own.unwrap_or(&self.context.limits.deadlines);
        let step = awaited.and_then(|awaited| deadlines.step(awaited));
        if let Some(look) = timers.as_mut().and_then(|timers| timers.look.as_mut()) {
            if look.awaited != awaited {
                look.awaited = awaited;
                look.since = None;
            }
            if let Some(ahead) = step.filter(|step| *step < look.ahead) {
                event_loop.cancel(look.timer);
                look.timer = self.look_after(event_loop, ahead);
                look.ahead = ahead;
            }
        } else if let Some(ahead) = step {
            let timer = self.look_after(event_loop, ahead);
            let look = Look { timer, ahead, awaited, since: None, is_last: false };
            timers.get_or_insert_default().look = Some(look);
        }
    }

    fn awaited(&self) -> Option<Await> {
        match self.state.awaited() {
            Some(Await::Input) if self.received.get() == 0 => Some(Await::FirstByte),
            awaited => awaited,
        }
    }

    fn look_after(&self, event_loop: &EventLoop, ahead: Duration) -> TimerId {
        let place = self.place();
        event_loop.run_after(ahead, move |event_loop| {
            if let Some(resident) = place.resident(event_loop) {
                resident.core().look(event_loop);
            }
        })
    }

    /// The timer has come.
    fn look(&self, event_loop: &EventLoop) {
        let look = self.with_timers(|timers| timers.as_mut().and_then(|timers| timers.look.take()));
        let (Some(look), Some(awaited)) = (look, self.awaited()) else {
            return self.forget_unused_timers();
        };
        let deadlines = self.deadlines();
        let Some(step) = deadlines.step(awaited) else { return self.forget_unused_timers() };
        let (now, progress) = (Instant::now(), self.progress(awaited));
        let since = look.since.filter(|(_, earlier)| !progress.is_beyond(*earlier));
        let since = since.unwrap_or((now, progress));
        let left = deadlines.of(awaited).saturating_sub(now - since.0);
        if left.is_zero() && look.is_last {
            return Connection::new(event_loop, self).end(deadlines.reason(awaited));
        }
        let ahead = step.min(left);
        let timer = self.look_after(event_loop, ahead);
        let (awaited, since) = (Some(awaited), Some(since));
        let look = Look { timer, ahead, awaited, since, is_last: left.is_zero() };
        self.with_timers(|timers| timers.get_or_insert_default().look = Some(look));
    }

    /// A connection that once had to wait need not keep the memory for that.
    fn forget_unused_timers(&self) {
        self.with_timers(|timers| timers.take_if(|timers| timers.is_unused()));
    }

    /// How far the peer has come with what is awaited of it.
    fn progress(&self, awaited: Await) -> Progress {
        let state = &self.state;
        let takes = matches!(awaited, Await::Taking | Await::End);
        // The kernel says that there is room for more in large steps only, but it knows better. Where
        // it cannot be asked, the steps have to do.
        let held = if takes { socket::unsent(self.socket()).unwrap_or(0) } else { 0 };
        let listens = awaited != Await::Taking && !state.is_deaf();
        Progress {
            received: if listens { self.received.get() } else { 0 },
            taken: if takes { state.bytes_sent() as i64 - held as i64 } else { 0 },
            took_all: held == 0,
        }
    }
}

impl Timers {
    fn is_unused(&self) -> bool {
        self.of_program.is_empty() && self.deadlines.is_none() && self.look.is_none()
    }
}
