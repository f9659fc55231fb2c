//! One turn of the loop, and the end of it all.
//!
//! ```text
//!   wait ──▶ I/O events ──▶ timers due ──▶ tasks ──▶ end of turn ──┐
//!    ▲       kernel's       by deadline    in order   flush, drop   │
//!    └──────────────────────────────────────────────────────────────┘
//! ```
//!
//! The wait lasts until the next timer's deadline, and not at all if tasks are left or a source
//! asked for the end of a turn. Each phase works off what was there when it began; what callbacks
//! add comes later, so none of them can keep the others waiting for ever.
//!
//! Most turns have events and nothing else. Whatever gives the loop more to do says so in
//! `has_work`, and without that a turn does not look for it.
//!
//! No cell of the loop is borrowed while user code runs: a phase takes one thing out, lets go of
//! the cell, and calls. User code hides in `Drop` too, so values are dropped in that manner, at
//! the end of the turn.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Dead, EventLoop, Phase, WAKER};
use crate::channel::{Registration, Source};
use crate::handle::PostError;
use crate::metrics;
use crate::poller::{Event, Events, Ready};
use crate::stopwatch::Stopwatch;
use crate::sys;
use crate::sys::task::SendTask;
use crate::timer::Timer;

/// Events taken from the kernel at a time.
const MAX_EVENTS: usize = 1024;

/// A turn runs at most this many tasks, for at most this long. The rest comes first in the next.
const MAX_TASKS: usize = 10_000;
const MAX_TASK_TIME: Duration = Duration::from_millis(5);

/// Memory that one burst has needed is given back if it is more than this many elements.
const KEEP_CAPACITY: usize = 1024;

impl EventLoop {
    /// Runs until somebody calls [`quit`](EventLoop::quit).
    ///
    /// A loop runs once. When it returns, every source, timer and task has been dropped, and
    /// handles refuse posts.
    ///
    /// # Errors
    /// When called inside `run`, a second time, or in a forked child; otherwise what waiting
    /// says, which no correct program meets.
    pub fn run(&self) -> io::Result<()> {
        let misuse = |why| Err(io::Error::other(format!("running an event loop: {why}")));
        match self.phase.get() {
            _ if self.handle.shared().is_forked() => return Err(PostError::Forked.into()),
            Phase::Running => return misuse("it is running already, and this is inside it"),
            Phase::Ended => return misuse("it has ended, and a loop runs once"),
            Phase::New => self.phase.set(Phase::Running),
        }
        crate::sys::current::enter(self, || {
            let outcome = self.turn_until_quit();
            self.end();
            // The last tasks may have forked, and this is the child.
            if self.handle.shared().is_forked() { Err(PostError::Forked.into()) } else { outcome }
        })
    }

    fn turn_until_quit(&self) -> io::Result<()> {
        let mut events = Events::with_capacity(MAX_EVENTS);
        // A handle's quit arrives with the tasks; one from before `run` is here already.
        self.collect_incoming();
        while self.goes_on()? {
            self.turn(&mut events)?;
        }
        Ok(())
    }

    fn turn(&self, events: &mut Events) -> io::Result<()> {
        self.wait(events).map_err(|e| {
            let kind = self.poller_kind();
            io::Error::new(e.kind(), format!("waiting for events by {kind}: {e}"))
        })?;
        self.dispatch(events);
        if self.has_work.get() || !self.timers.is_empty() || self.handle.shared().inbox.is_pending()
        {
            self.rest_of_turn()?;
        }
        Ok(())
    }

    /// The phases after the events.
    #[inline(never)]
    fn rest_of_turn(&self) -> io::Result<()> {
        if self.goes_on()? && !self.timers.is_empty() {
            self.fire_timers();
        }
        if self.goes_on()? && self.has_tasks() {
            self.run_tasks();
        }
        if self.goes_on()? {
            self.call_turn_ends();
            self.drop_dead();
        }
        self.has_work.set(self.has_tasks() || !self.at_turn_end.borrow().is_empty());
        Ok(())
    }

    /// After a callback, if slow ones are to be found.
    #[inline(always)]
    fn lap(&self, what: impl FnOnce() -> String) {
        if let Some(stopwatch) = self.stopwatch() {
            stopwatch.lap(what);
        }
    }

    /// Before the wait, and between phases, whether to go on. A callback may have
    /// told the loop to quit, or forked, and this is the child.
    #[inline(always)]
    fn goes_on(&self) -> io::Result<bool> {
        if self.handle.shared().is_forked() {
            return Err(PostError::Forked.into());
        }
        Ok(!self.quit.get())
    }

    fn wait(&self, events: &mut Events) -> io::Result<()> {
        if self.settings.busy_poll.is_zero() || !self.poll_busily(events)? {
            self.block(events)?;
        }
        if let Some(stopwatch) = &self.stopwatch {
            stopwatch.begin();
        }
        self.now.set(None);
        metrics::add(&self.counts.turns, 1);
        metrics::add(&self.counts.events, events.len());
        Ok(())
    }

    /// Sleeps until there is something to do.
    #[inline(always)]
    fn block(&self, events: &mut Events) -> io::Result<()> {
        let inbox = &self.handle.shared().inbox;
        match self.timeout() {
            Some(Duration::ZERO) => self.poller.wait(events, Some(Duration::ZERO)),
            timeout if inbox.fall_asleep() => {
                let outcome = self.poller.wait(events, timeout);
                inbox.wake_up();
                outcome
            }
            _ => self.poller.wait(events, Some(Duration::ZERO)),
        }
    }

    /// Looks again and again, for as long as is allowed, and returns whether there is something to
    /// do. Nobody has to wake a loop that looks, so other threads save their system call too.
    #[cold]
    #[inline(never)]
    fn poll_busily(&self, events: &mut Events) -> io::Result<bool> {
        let start = Instant::now();
        let (most, timeout) = (self.settings.busy_poll, self.timeout().unwrap_or(Duration::MAX));
        loop {
            self.poller.wait(events, Some(Duration::ZERO))?;
            if !events.is_empty() || self.handle.shared().inbox.is_pending() {
                return Ok(true);
            }
            let spent = start.elapsed();
            if spent >= most.min(timeout) {
                return Ok(spent >= timeout);
            }
        }
    }

    /// How long the wait may last. Timers are the only reason to wake up by time, so a loop
    /// without them sleeps until something happens.
    #[inline(always)]
    fn timeout(&self) -> Option<Duration> {
        if self.has_work.get() {
            return Some(Duration::ZERO);
        }
        if self.timers.is_empty() {
            return None;
        }
        let expiry = self.timers.next_expiry()?;
        Some(Duration::from_nanos(expiry.saturating_sub(self.clock())))
    }

    /// The batch of events, in the kernel's order.
    fn dispatch(&self, events: &Events) {
        let next = Cell::new(0);
        let deliver_rest = || {
            match &self.stopwatch {
                None => self.deliver_rest(events, &next),
                Some(stopwatch) => self.deliver_rest_timed(events, &next, stopwatch),
            }
            false
        };
        self.each("the handler of an event", deliver_rest, || {
            if let Some(culprit) = events.iter_from(next.get() - 1).next() {
                self.tell_of_panic(culprit.token);
            }
        });
    }

    /// A function of its own so that nothing but `next` lives in memory.
    #[inline(never)]
    fn deliver_rest(&self, events: &Events, next: &Cell<usize>) {
        for event in events.iter_from(next.get()) {
            next.set(next.get() + 1);
            self.deliver(event);
        }
    }

    #[cold]
    #[inline(never)]
    fn deliver_rest_timed(&self, events: &Events, next: &Cell<usize>, stopwatch: &Stopwatch) {
        for event in events.iter_from(next.get()) {
            next.set(next.get() + 1);
            let source = self.channels.get(event.token);
            self.deliver(event);
            stopwatch.lap(|| format!("an event of {}", name(source)));
        }
    }

    #[inline(always)]
    fn deliver(&self, event: Event) {
        match self.channels.get_waiting(event) {
            Some(source) => source.on_event(self, event),
            None => self.deliver_unasked(event),
        }
    }

    /// An event that is not, or not only, what a channel waits for.
    #[inline(never)]
    fn deliver_unasked(&self, event: Event) {
        if event.token == WAKER {
            return self.woken();
        }
        // Nobody there: it was removed earlier in this batch.
        let Some((source, registration)) = self.channels.get(event.token) else { return };
        let unasked = Ready::ERROR | Ready::HANGUP;
        let wanted = Ready::from_bits_retain(registration.interest.bits()) | unasked;
        let ready = event.ready & wanted;
        if ready.is_empty() {
            // Its interest changed earlier in this batch.
            return;
        }
        if registration.interest.is_empty() {
            // An error or hang-up nobody waits for would be reported by every wait from now on.
            self.unwatch(&*source);
            self.channels.set(event.token, Registration { watched: false, ..registration });
        }
        source.on_event(self, Event { ready, ..event });
    }

    fn woken(&self) {
        self.handle.shared().waker.acknowledge();
        self.signals.woken();
        self.has_work.set(true);
    }

    /// Timers whose deadline is over.
    #[inline(never)]
    fn fire_timers(&self) {
        // After the I/O callbacks the time of the turn may be old.
        let now = self.clock();
        let due = self.timers.begin_batch(now);
        let next = Cell::new(0);
        let fire_next = || {
            let Some(id) = due.get(next.get()).copied() else { return false };
            next.set(next.get() + 1);
            match self.timers.start(id) {
                None | Some(Timer::Running) => {}
                Some(Timer::Once(callback)) => {
                    metrics::add(&self.counts.timers, 1);
                    callback(self);
                }
                Some(Timer::Every { period, mut callback }) => {
                    metrics::add(&self.counts.timers, 1);
                    callback(self);
                    let timer = Timer::Every { period, callback };
                    if let Err(cancelled) = self.timers.finish(id, timer, self.clock()) {
                        self.bury(Dead::Timer(cancelled));
                    }
                }
            }
            self.lap(|| "a timer".to_owned());
            true
        };
        self.each("a timer", fire_next, || {
            if let Some(culprit) = due.get(next.get() - 1) {
                self.cancel(*culprit);
            }
        });
        self.timers.end_batch(due);
    }

    #[inline(always)]
    fn has_tasks(&self) -> bool {
        self.handle.shared().inbox.is_pending()
            || !self.tasks.borrow().is_empty()
            || self.signals.may_have_arrived()
    }

    /// Signals, then tasks: those that are there now, within bounds of number and time.
    #[inline(never)]
    fn run_tasks(&self) {
        self.call_signal_handlers();
        self.collect_incoming();
        let waiting = self.tasks.borrow().len();
        self.run_some(waiting.min(MAX_TASKS));
        self.forget_burst(waiting);
    }

    /// Gives the memory of a burst of tasks back when it is over: few of them were `waiting`, or there
    /// are no more. While it lasts the memory would only be asked for again in the next turn.
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

    /// Those that were accepted before the end. Also now no more of them at a time than in a turn:
    /// what they send leaves in between, and limits are watched.
    fn run_last_tasks(&self) {
        let mut left = self.tasks.borrow().len();
        loop {
            left -= self.run_some(left.min(MAX_TASKS));
            if self.handle.shared().is_forked() {
                return;
            }
            self.call_turn_ends();
            self.drop_dead();
            if left == 0 {
                break;
            }
        }
    }

    /// Runs the first `count` tasks, as many of them as a turn has time for, but one at least.
    /// Returns how many that were.
    fn run_some(&self, count: usize) -> usize {
        // A single task needs no clock.
        let clock = RefCell::new((count > 1).then(TaskClock::start));
        let go_on = || clock.borrow_mut().as_mut().is_some_and(TaskClock::has_time);
        let done = Cell::new(0);
        let run_next = || {
            if done.get() == count || (done.get() > 0 && !go_on()) {
                return false;
            }
            done.set(done.get() + 1);
            let task = self.tasks.borrow_mut().pop_front();
            let Some(task) = task else { return false };
            task.run(self);
            self.lap(|| "a task".to_owned());
            true
        };
        self.each("a task", run_next, || {});
        metrics::add(&self.counts.tasks, done.get());
        done.get()
    }

    fn call_signal_handlers(&self) {
        let arrived = self.signals.take_arrived();
        let next = Cell::new(0);
        let call_next = || {
            let Some(id) = arrived.get(next.get()).copied() else { return false };
            next.set(next.get() + 1);
            if let Some((signal, mut handler)) = self.signals.start(id) {
                handler(self, signal);
                self.lap(|| format!("the handler of {signal}"));
                if let Err(removed) = self.signals.finish(id, handler) {
                    self.bury(Dead::Signal(removed));
                }
            }
            true
        };
        self.each("a signal handler", call_next, || {
            if let Some(culprit) = arrived.get(next.get() - 1) {
                self.remove_signal(*culprit);
            }
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
            self.quit.set(true);
        }
        self.tasks.borrow_mut().extend(incoming.drain(..).map(SendTask::into_task));
        self.has_work.set(true);
    }

    /// Sources that asked to be called at the end of the turn.
    #[inline(always)]
    fn call_turn_ends(&self) {
        if !self.at_turn_end.borrow().is_empty() {
            self.call_turn_ends_now();
        }
    }

    #[inline(never)]
    fn call_turn_ends_now(&self) {
        let mut tokens = self.at_turn_end.take();
        let next = Cell::new(0);
        let call_next = || {
            let Some(token) = tokens.get(next.get()).copied() else { return false };
            next.set(next.get() + 1);
            if let Some((source, registration)) = self.channels.get(token) {
                source.on_turn_end(self, token);
                self.lap(|| {
                    format!("the end of a turn for {}", name(Some((source, registration))))
                });
            }
            true
        };
        self.each("the handler of an end of turn", call_next, || {
            if let Some(culprit) = tokens.get(next.get() - 1) {
                self.tell_of_panic(*culprit);
            }
        });
        // Keep the memory for the next turn, unless this phase has begun a new list.
        tokens.clear();
        tokens.shrink_to(KEEP_CAPACITY);
        let mut list = self.at_turn_end.borrow_mut();
        if list.is_empty() {
            *list = tokens;
        }
    }

    #[inline(always)]
    pub(super) fn drop_dead(&self) {
        if !self.graveyard.borrow().is_empty() {
            self.drop_dead_now();
        }
    }

    #[inline(never)]
    fn drop_dead_now(&self) {
        let drop_next = || {
            let dead = self.graveyard.borrow_mut().pop();
            let found = dead.is_some();
            drop(dead);
            self.lap(|| "the drop of a value".to_owned());
            found
        };
        self.each("the drop of a value", drop_next, || {});
        self.graveyard.borrow_mut().shrink_to(KEEP_CAPACITY);
        if self.channels.is_burst_over() {
            sys::memory::give_back();
        }
    }

    fn tell_of_panic(&self, token: crate::Token) {
        if let Some((source, _)) = self.channels.get(token)
            && self.isolate("on_panic", || source.on_panic(self, token)).is_err()
        {
            self.deregister(token);
        }
    }

    /// Takes steps until one returns false. A panic ends only the step it happens in;
    /// `after_panic` cleans up after it.
    fn each(&self, what: &str, step: impl Fn() -> bool, after_panic: impl Fn()) {
        while self.catch(&what, || while step() {}).is_err() {
            self.lap(|| what.to_owned());
            after_panic();
        }
    }

    /// Lets go of everything: of a loop that has run, and of one that never did.
    pub(super) fn end(&self) {
        if self.phase.get() == Phase::Ended || self.handle.shared().is_forked() {
            return;
        }
        // Also of a loop that never ran, so that the last tasks cannot run it.
        self.phase.set(Phase::Running);
        if let Some(stopwatch) = &self.stopwatch {
            stopwatch.begin();
        }
        // From here on posts are refused; what was accepted runs.
        let last = self.handle.shared().close();
        self.tasks.borrow_mut().extend(last.into_iter().map(SendTask::into_task));
        self.run_last_tasks();
        if self.handle.shared().is_forked() {
            // By one of them. What is left is the parent's.
            return;
        }

        self.phase.set(Phase::Ended);
        for token in self.channels.tokens() {
            if let Some((source, _)) = self.channels.get(token) {
                let end = || source.on_loop_end(self, token);
                if self.isolate("the handler of a loop's end", end).is_err() {
                    self.tell_of_panic(token);
                }
            }
            self.deregister(token);
        }
        self.bury_the_rest();
        self.drop_dead();
    }

    fn bury_the_rest(&self) {
        let tasks = self.tasks.take();
        if !tasks.is_empty() {
            log::debug!("{} tasks deferred by the last ones of a loop are dropped", tasks.len());
        }
        let mut graveyard = self.graveyard.borrow_mut();
        graveyard.extend(tasks.into_iter().map(Dead::Task));
        graveyard.extend(self.timers.clear().map(Dead::Timer));
        graveyard.extend(self.signals.clear().map(Dead::Signal));
        graveyard.extend(self.locals.take().into_iter().map(|(_, value)| Dead::Local(value)));
    }
}

/// What a log line calls a source; it was asked for before the source was called, which may have
/// ended it.
fn name(source: Option<(Rc<dyn Source>, Registration)>) -> String {
    source.map_or_else(|| "a channel that is gone".to_owned(), |(source, _)| source.name())
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
