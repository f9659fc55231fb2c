//! Calling functions later.
//!
//! The queue holds functions; [`wheel`] knows which are due. The loop asks
//! [`TimerQueue::next_expiry`] how long it may wait, so no timer costs a system call of its own,
//! and after the wait runs what is due.

mod wheel;

use std::cell::RefCell;
use std::mem;
use std::time::Duration;

use crate::EventLoop;
use crate::sys::task::Task;
pub use wheel::TimerId;
use wheel::{KEPT_CAPACITY, Wheel};

type Callback = Box<dyn FnMut(&EventLoop)>;

/// What a timer calls.
pub(crate) enum Timer {
    Once(Task),
    Every {
        /// Nanoseconds, at least one.
        period: u64,
        /// `None` in the wheel while it runs, for no cell may be borrowed while user code does.
        callback: Option<Callback>,
    },
}

impl Default for Timer {
    /// Nothing to call.
    fn default() -> Timer {
        Timer::Every { period: 1, callback: None }
    }
}

impl Timer {
    /// Whether dropping it runs code, a user's perhaps.
    pub(crate) fn needs_drop(&self) -> bool {
        match self {
            Timer::Once(task) => task.needs_drop(),
            Timer::Every { callback, .. } => callback.is_some(),
        }
    }
}

/// The timers of a loop. Times are nanoseconds since the loop was made.
pub(crate) struct TimerQueue {
    wheel: RefCell<Wheel<Timer>>,
    /// Timers due in this turn; kept from turn to turn for its memory.
    due: RefCell<Vec<TimerId>>,
}

impl TimerQueue {
    pub(crate) fn new() -> TimerQueue {
        TimerQueue { wheel: RefCell::new(Wheel::new()), due: RefCell::default() }
    }

    pub(crate) fn add(&self, deadline: u64, timer: Timer) -> TimerId {
        self.wheel.borrow_mut().insert(deadline, timer)
    }

    /// Disarms a timer, and returns what it would have called, if dropping that runs code: the caller
    /// does so when nothing is borrowed. Others are not even moved. `None` if it is gone already.
    pub(crate) fn cancel(&self, id: TimerId) -> Option<Option<Timer>> {
        let mut wheel = self.wheel.borrow_mut();
        wheel.remove_by(id, |timer| timer.needs_drop().then(|| mem::take(timer)))
    }

    /// When the next timer is due.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.wheel.borrow().next_expiry()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.wheel.borrow().is_empty()
    }

    /// Begins a batch: all timers due at `now`, in the order of their deadlines. Run each with
    /// [`TimerQueue::start`] and hand the list back with [`TimerQueue::end_batch`].
    pub(crate) fn begin_batch(&self, now: u64) -> Vec<TimerId> {
        let mut due = self.due.take();
        self.wheel.borrow_mut().advance(now, &mut due);
        due
    }

    pub(crate) fn end_batch(&self, mut due: Vec<TimerId>) {
        due.clear();
        due.shrink_to(KEPT_CAPACITY);
        self.due.replace(due);
    }

    /// Takes out what a due timer calls; `None` if it was cancelled earlier in the batch. A
    /// one-shot timer is gone with that, a periodic one remains and can be cancelled.
    pub(crate) fn start(&self, id: TimerId) -> Option<Timer> {
        let mut wheel = self.wheel.borrow_mut();
        match wheel.get_mut(id)? {
            Timer::Once(_) => wheel.remove(id),
            Timer::Every { period, callback } => {
                Some(Timer::Every { period: *period, callback: callback.take() })
            }
        }
    }

    /// Arms a periodic timer again after its callback; gives it back if the callback cancelled
    /// it. It keeps its phase: ticks that were missed are skipped, not made up for.
    pub(crate) fn finish(&self, id: TimerId, timer: Timer, now: u64) -> Result<(), Timer> {
        let mut wheel = self.wheel.borrow_mut();
        let (Timer::Every { period, .. }, Some(deadline)) = (&timer, wheel.deadline(id)) else {
            return Err(timer);
        };
        let missed = now.saturating_sub(deadline) / period;
        let next = deadline.saturating_add(period.saturating_mul(missed + 1));
        if let Some(slot) = wheel.get_mut(id) {
            *slot = timer;
        }
        wheel.rearm(id, next);
        Ok(())
    }

    /// Removes everything, to be dropped by the caller when nothing is borrowed.
    pub(crate) fn clear(&self) -> impl Iterator<Item = Timer> + use<> {
        self.wheel.replace(Wheel::new()).into_values()
    }
}

/// Nanoseconds, up to the 584 years that fit.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
