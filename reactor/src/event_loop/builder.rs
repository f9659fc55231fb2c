//! How a loop is made: what can be chosen, and what it begins with.

use std::cell::{Cell, RefCell};
use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use super::{Agenda, EventLoop, HAS_LOOP, Phase, WAKER};
use crate::channel::Channels;
use crate::handle::LoopHandle;
use crate::isolation::PanicPolicy;
use crate::metrics::Counts;
use crate::poller::{NotifierKind, Poller, PollerKind};
use crate::signals::Signals;
use crate::stopwatch::Stopwatch;
use crate::timer::TimerQueue;

/// How to make an [`EventLoop`]. Can be cloned and sent, so that a pool makes all its loops alike.
#[derive(Clone, Debug)]
#[must_use = "call build"]
pub struct EventLoopBuilder {
    poller: Option<PollerKind>,
    pub(super) notifiers: Option<NotifierKind>,
    pub(super) panic_policy: PanicPolicy,
    slow_callback: Duration,
    pub(super) busy_poll: Duration,
}

impl Default for EventLoopBuilder {
    fn default() -> EventLoopBuilder {
        EventLoopBuilder {
            poller: None,
            notifiers: None,
            panic_policy: PanicPolicy::default(),
            slow_callback: if cfg!(debug_assertions) { SLOW } else { Duration::MAX },
            busy_poll: Duration::ZERO,
        }
    }
}

/// A callback this slow is worth a line, to someone who is developing.
const SLOW: Duration = Duration::from_millis(100);

impl EventLoopBuilder {
    /// Which kernel interface to wait with; [`PollerKind::preferred`] if nothing is said.
    pub fn poller(self, poller: PollerKind) -> EventLoopBuilder {
        EventLoopBuilder { poller: Some(poller), ..self }
    }

    /// What the loop's notifiers are made of: its own, with which other threads wake it, and those
    /// of [`EventLoop::notifier`]. The best that its poller has if nothing is said.
    pub fn notifiers(self, notifiers: NotifierKind) -> EventLoopBuilder {
        EventLoopBuilder { notifiers: Some(notifiers), ..self }
    }

    /// What happens when a callback panics.
    pub fn panic_policy(self, panic_policy: PanicPolicy) -> EventLoopBuilder {
        EventLoopBuilder { panic_policy, ..self }
    }

    /// Finds callbacks that keep the loop from everything else for `threshold` or longer. A line at
    /// warn level, one a second at most, names the callback, its connection and its thread. This
    /// also switches [`LoopMetrics::lag`](crate::LoopMetrics) on. It costs one reading of the clock
    /// (some 30 ns) for each callback; `Duration::MAX` switches it off. The default is off, and
    /// 100 ms in debug builds.
    pub fn slow_callback(self, threshold: Duration) -> EventLoopBuilder {
        EventLoopBuilder { slow_callback: threshold, ..self }
    }

    /// For how long the loop looks again and again for something to do before it goes to sleep.
    /// With `Duration::ZERO`, the default, it goes to sleep at once.
    ///
    /// To be put to sleep and woken costs a thread some microseconds, more in a virtual machine:
    /// about half of a round trip over loopback. A loop that finds the next message while it looks
    /// is spared that, and other threads are spared the wakeup. The price, for each loop, is a CPU
    /// that is busy for up to `time` after each thing that happens. So this is for those who can
    /// give each of their loops a CPU of its own; with fewer CPUs, a loop that looks keeps the
    /// others from doing what it waits for.
    ///
    /// ```
    /// use ruduo_reactor::EventLoop;
    /// use std::time::Duration;
    ///
    /// let event_loop = EventLoop::builder().busy_poll(Duration::from_micros(50)).build()?;
    /// # std::io::Result::Ok(())
    /// ```
    pub fn busy_poll(self, time: Duration) -> EventLoopBuilder {
        EventLoopBuilder { busy_poll: time, ..self }
    }

    /// Makes the loop.
    ///
    /// # Errors
    /// As [`EventLoop::new`]; `Unsupported` if the system lacks what was chosen.
    pub fn build(self) -> io::Result<EventLoop> {
        if HAS_LOOP.get() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "making an event loop: this thread already has one; drop it first or use another \
                 thread (see LoopThread)",
            ));
        }
        let context = |e: io::Error| io::Error::new(e.kind(), format!("making an event loop: {e}"));
        let kind = self.poller.map_or_else(PollerKind::preferred, Ok).map_err(context)?;
        let poller = Poller::with_kind(kind).map_err(context)?;
        let waker = poller.notifier_of(WAKER, self.notifiers).map_err(context)?;
        let mut agenda = Agenda::empty();
        agenda.set(Agenda::BUSY_POLL, !self.busy_poll.is_zero());
        HAS_LOOP.set(true);
        Ok(EventLoop {
            poller,
            handle: LoopHandle::new(waker),
            channels: Channels::default(),
            timers: TimerQueue::new(),
            tasks: RefCell::default(),
            incoming: RefCell::default(),
            at_turn_end: RefCell::default(),
            graveyard: RefCell::default(),
            signals: Signals::default(),
            locals: RefCell::default(),
            agenda: Cell::new(agenda),
            phase: Cell::new(Phase::New),
            origin: Instant::now(),
            now: Cell::new(None),
            counts: Counts::default(),
            stopwatch: Stopwatch::new(self.slow_callback),
            settings: self,
            _thread: PhantomData,
        })
    }
}
