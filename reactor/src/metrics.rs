//! What a loop counts, and what it tells of that.
//!
//! Plain cells that only the loop touches. Where much happens at once, it is counted once a batch.

use std::cell::Cell;
use std::fmt;
use std::time::Duration;

/// What a loop has done so far: from [`EventLoop::metrics`](crate::EventLoop::metrics). Prints as
/// one line, `turns=12 events=30 ...`, as log collectors read it.
///
/// ```
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// event_loop.defer(|event_loop| event_loop.quit());
/// event_loop.run()?;
/// let metrics = event_loop.metrics();
/// assert_eq!((metrics.turns, metrics.tasks), (1, 1));
/// println!("{metrics}");
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LoopMetrics {
    /// Turns begun.
    pub turns: u64,
    /// Events that the kernel reported, at most one for each descriptor and turn; wakeups by other
    /// threads are among them.
    pub events: u64,
    /// Tasks run, deferred and posted ones.
    pub tasks: u64,
    /// Times that a timer fired.
    pub timers: u64,
    /// Panics caught in callbacks, tasks, timers and drops.
    pub panics: u64,
    /// Callbacks that took longer than
    /// [`slow_callback`](crate::EventLoopBuilder::slow_callback) allows; 0 if that is off.
    pub slow_callbacks: u64,
    /// The longest time for which one callback has lately kept the loop from everything else, in the
    /// last 10 s at least and the last 20 s at most. Zero if slow callbacks are not looked for, see
    /// [`slow_callback`](crate::EventLoopBuilder::slow_callback).
    pub lag: Duration,
}

impl fmt::Display for LoopMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LoopMetrics { turns, events, tasks, timers, panics, slow_callbacks, lag } = self;
        let lag = lag.as_micros();
        write!(f, "turns={turns} events={events} tasks={tasks} timers={timers} panics={panics} ")?;
        write!(f, "slow_callbacks={slow_callbacks} lag_us={lag}")
    }
}

/// What the loop counts itself.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) turns: Cell<u64>,
    pub(crate) events: Cell<u64>,
    pub(crate) tasks: Cell<u64>,
    pub(crate) timers: Cell<u64>,
    pub(crate) panics: Cell<u64>,
}

#[inline(always)]
pub(crate) fn add(count: &Cell<u64>, n: usize) {
    count.set(count.get() + n as u64);
}
