//! The task phase of a turn: signals, and what was deferred or posted.
//!
//! ```text
//!   other threads ──post──▶ inbox ──┐ collect_incoming
//!   this thread   ──defer───────────┴──▶ tasks ──▶ run_some: so many, for so long
//! ```
//!
//! A phase runs the tasks that were there when it began, and no more of them than a turn has time
//! for. So neither a task that posts itself again nor a flood of them keeps the events waiting.

use std::time::{Duration, Instant};

use super::{Agenda, Dead, EventLoop, KEEP_CAPACITY};
use crate::metrics;
use crate::sys::task::SendTask;

/// A turn runs at most this many tasks, for at most this long. The rest comes first in the next.
const MAX_TASKS: usize = 10_000;
const MAX_TASK_TIME: Duration = Duration::from_millis(5);

impl EventLoop {
    /// Whether the task phase has something to do.
    #[inline(always)]
    pub(super) fn has_tasks(&self) -> bool {
        self.handle.shared().inbox.is_pending()
            || !self.tasks.borrow().is_empty()
            || self.signals.may_have_arrived()
    }

    /// Signals, then tasks: those that are there now, within bounds of number and time.
    #[inline(never)]
    pub(super) fn run_tasks(&self) {
        self.call_signal_handlers();
        self.collect_incoming();
        let waiting = self.tasks.borrow().len();
        self.run_some(waiting);
        self.forget_burst(waiting);
    }

    fn call_signal_handlers(&self) {
        let arrived = self.signals.take_arrived();
        let call = |id| {
            if let Some((signal, mut handler)) = self.signals.start(id) {
                handler(self, signal);
                self.lap(|| format!("the handler of {signal}"));
                if let Err(removed) = self.signals.finish(id, handler) {
                    self.bury(Dead::Signal(removed));
                }
            }
        };
        self.each("a signal handler", arrived.iter().copied(), call, |culprit| {
            self.remove_signal(culprit);
        });
    }

    /// Moves what other threads have posted behind the tasks that are here already.
    pub(super) fn collect_incoming(&self) {
        let inbox = &self.handle.shared().inbox;
        // In a forked child the lock may be held by a thread that exists only in the parent.
        if !inbox.is_pending() || self.handle.shared().is_forked() {
            return;
        }
        let mut incoming = self.incoming.borrow_mut();
        if inbox.take(&mut incoming) {
            self.plan(Agenda::QUIT);
        }
        self.tasks.borrow_mut().extend(incoming.drain(..).map(SendTask::into_task));
        self.plan(Agenda::WORK);
    }

    /// Runs the first `count` tasks, or as many of them as one turn may run and has time for, but
    /// at least one. Returns how many that were.
    pub(super) fn run_some(&self, count: usize) -> usize {
        let count = count.min(MAX_TASKS);
        // A single task needs no clock.
        let mut clock = (count > 1).then(TaskClock::start);
        let mut done = 0;
        self.repeat("a task", || {
            let goes_on = done == 0 || clock.as_mut().is_some_and(TaskClock::has_time);
            if done == count || !goes_on {
                return false;
            }
            done += 1;
            let task = self.tasks.borrow_mut().pop_front();
            let Some(task) = task else { return false };
            task.run(self);
            self.lap(|| "a task".to_owned());
            true
        });
        metrics::add(&self.counts.tasks, done);
        done
    }

    /// Gives the memory of a burst of tasks back when the burst is over: when few tasks were
    /// `waiting` in this turn, or none is left. Before that, the next turn would only ask for it
    /// again.
    fn forget_burst(&self, waiting: usize) {
        let mut tasks = self.tasks.borrow_mut();
        // All tasks come through this queue, so the other two have never held more at once.
        if tasks.capacity() <= KEEP_CAPACITY {
            return;
        }
        let inbox = &self.handle.shared().inbox;
        let few = waiting < tasks.capacity() / 4;
        if few || (tasks.is_empty() && !inbox.is_pending()) {
            tasks.shrink_to(KEEP_CAPACITY);
            self.incoming.borrow_mut().shrink_to(KEEP_CAPACITY);
            inbox.shrink_to(KEEP_CAPACITY);
        }
    }
}

/// Tells when the tasks of a turn have had their time. Reading the clock costs as much as a small
/// task, so it is read after 1, 2, 4, ... 64 tasks as long as they are quick.
struct TaskClock {
    start: Instant,
    last: Instant,
    stride: u32,
    until_look: u32,
}

impl TaskClock {
    fn start() -> TaskClock {
        let now = Instant::now();
        TaskClock { start: now, last: now, stride: 1, until_look: 1 }
    }

    /// To be asked after each task.
    fn has_time(&mut self) -> bool {
        self.until_look -= 1;
        if self.until_look > 0 {
            return true;
        }
        let now = Instant::now();
        let quick = now - self.last < MAX_TASK_TIME / 16;
        self.stride = if quick { (self.stride * 2).min(64) } else { 1 };
        self.until_look = self.stride;
        self.last = now;
        now - self.start < MAX_TASK_TIME
    }
}
