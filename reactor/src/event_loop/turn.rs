//! One turn of the loop: the heart.
//!
//! ```text
//!   wait ──▶ I/O events ──▶ timers due ──▶ tasks ──▶ end of turn ──┐
//!    ▲       kernel's       by deadline    in order   flush, drop   │
//!    └──────────────────────────────────────────────────────────────┘
//! ```
//!
//! The wait lasts until the next timer's deadline, and not at all if tasks are left or a source
//! asked for the end of a turn. Each phase works off what was there when it began; what callbacks
//! add comes later, so none of them can keep the others waiting for ever. The tasks have a file of
//! their own, [`tasks`](super::tasks), and so has the [end](super::ending) of a loop.
//!
//! Most turns have events and nothing else. Whatever gives the loop more to do puts it down in the
//! [`Agenda`], and while that is empty a turn looks for nothing else.
//!
//! No cell of the loop is borrowed while user code runs: a phase takes one thing out, lets go of
//! the cell, and calls. User code hides in `Drop` too, so values are dropped in that manner, at
//! the end of the turn.
//!
//! `inline(always)` is on what every turn does, and `inline(never)` on what only some turns do: so
//! the code of the usual turn is short and in one piece.

use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Agenda, Dead, EventLoop, KEEP_CAPACITY, Phase, WAKER};
use crate::channel::{Registration, Source};
use crate::handle::PostError;
use crate::metrics;
use crate::poller::{Event, Events, Ready};
use crate::stopwatch::Stopwatch;
use crate::sys;
use crate::timer::Timer;
use crate::token::Token;

/// Events taken from the kernel at a time.
const MAX_EVENTS: usize = 1024;

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
            Phase::Ending | Phase::Ended => {
                return misuse("it has ended, and a loop runs once");
            }
            Phase::New => self.phase.set(Phase::Running),
        }
        sys::current::enter(self, || {
            let outcome = self.turn_until_quit();
            self.end();
            // The last tasks may have forked, and this is the child.
            if self.handle.shared().is_forked() { Err(PostError::Forked.into()) } else { outcome }
        })
    }

    fn turn_until_quit(&self) -> io::Result<()> {
        let mut events = Events::with_capacity(MAX_EVENTS);
        // A handle's `quit` comes by the inbox, and may have come before `run`.
        self.collect_incoming();
        while self.wait(&mut events)? {
            self.dispatch(&events);
            let more = self.agenda.get().intersects(Agenda::WORK | Agenda::TIMERS);
            if more || self.handle.shared().inbox.is_pending() {
                self.rest_of_turn()?;
            }
        }
        Ok(())
    }

    /// The phases after the events, as far as the agenda names them. An item is struck off it when
    /// nothing is left of it.
    #[inline(never)]
    fn rest_of_turn(&self) -> io::Result<()> {
        if self.goes_on()? && self.agenda.get().contains(Agenda::TIMERS) {
            self.fire_timers();
        }
        let work = self.agenda.get().contains(Agenda::WORK);
        if work || self.handle.shared().inbox.is_pending() { self.work() } else { Ok(()) }
    }

    /// Tasks, the end of the turn, and what waits to be dropped.
    #[inline(never)]
    fn work(&self) -> io::Result<()> {
        if self.goes_on()? && self.has_tasks() {
            self.run_tasks();
        }
        if self.goes_on()? {
            self.call_turn_ends();
            self.drop_dead();
        }
        if !self.has_tasks() && self.at_turn_end.borrow().is_empty() {
            self.strike(Agenda::WORK);
        }
        Ok(())
    }

    /// Whether to go on, asked between phases. A callback may have told the loop to quit; or it may
    /// have forked, and this is the child, for which that is an error.
    fn goes_on(&self) -> io::Result<bool> {
        self.check_forked()?;
        Ok(!self.agenda.get().contains(Agenda::QUIT))
    }

    #[inline(always)]
    fn check_forked(&self) -> io::Result<()> {
        if self.handle.shared().is_forked() { Err(PostError::Forked.into()) } else { Ok(()) }
    }

    /// Begins a turn, unless this is the end.
    #[inline(always)]
    fn wait(&self, events: &mut Events) -> io::Result<bool> {
        self.check_forked()?;
        match self.agenda.get() {
            agenda if agenda.is_empty() => self.sleep(events, None)?,
            agenda if agenda.contains(Agenda::QUIT) => return Ok(false),
            agenda => self.wait_by(agenda, events)?,
        }
        self.now.set(None);
        metrics::add(&self.counts.turns, 1);
        Ok(true)
    }

    /// Sleeps until there is something to do, for `timeout` at most.
    #[inline(always)]
    fn sleep(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let inbox = &self.handle.shared().inbox;
        let timeout = if inbox.fall_asleep() { timeout } else { Some(Duration::ZERO) };
        let outcome = self.poll(events, timeout);
        inbox.wake_up();
        outcome
    }

    /// Waits no longer than the agenda allows.
    #[inline(never)]
    fn wait_by(&self, agenda: Agenda, events: &mut Events) -> io::Result<()> {
        if agenda.contains(Agenda::BUSY_POLL) && self.poll_busily(events)? {
            return Ok(());
        }
        match self.timeout() {
            Some(Duration::ZERO) => self.poll(events, Some(Duration::ZERO)),
            timeout => self.sleep(events, timeout),
        }
    }

    /// Looks for events again and again, for as long as the settings allow, and returns whether
    /// there is something to do. Nobody has to wake a loop that looks, so other threads save their
    /// system call too.
    #[cold]
    #[inline(never)]
    fn poll_busily(&self, events: &mut Events) -> io::Result<bool> {
        let start = Instant::now();
        let (most, timeout) = (self.settings.busy_poll, self.timeout().unwrap_or(Duration::MAX));
        loop {
            self.poll(events, Some(Duration::ZERO))?;
            if !events.is_empty() || self.handle.shared().inbox.is_pending() {
                return Ok(true);
            }
            let spent = start.elapsed();
            if spent >= most.min(timeout) {
                return Ok(spent >= timeout);
            }
        }
    }

    #[inline(always)]
    fn poll(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        self.poller.wait(events, timeout).map_err(|e| {
            let kind = self.poller_kind();
            io::Error::new(e.kind(), format!("waiting for events by {kind}: {e}"))
        })
    }

    /// How long the wait may last. Timers are the only reason to wake up by time, so a loop
    /// without them sleeps until something happens.
    fn timeout(&self) -> Option<Duration> {
        let agenda = self.agenda.get();
        if agenda.contains(Agenda::WORK) {
            return Some(Duration::ZERO);
        }
        if !agenda.contains(Agenda::TIMERS) {
            return None;
        }
        let expiry = self.timers.next_expiry()?;
        Some(Duration::from_nanos(expiry.saturating_sub(self.clock())))
    }

    /// Calls the channels of a batch of events, in the kernel's order.
    #[inline(always)]
    fn dispatch(&self, events: &Events) {
        match &self.stopwatch {
            None => self.deliver_each(events, |event| self.deliver(event)),
            Some(stopwatch) => self.dispatch_timed(events, stopwatch),
        }
    }

    #[cold]
    #[inline(never)]
    fn dispatch_timed(&self, events: &Events, stopwatch: &Stopwatch) {
        stopwatch.begin();
        self.deliver_each(events, |event| {
            let source = self.channels.get(event.token);
            self.deliver(event);
            stopwatch.lap(|| format!("an event of {}", name(source)));
        });
    }

    #[inline(always)]
    fn deliver_each(&self, events: &Events, deliver: impl Fn(Event)) {
        metrics::add(&self.counts.events, events.len());
        let what = "the handler of an event";
        self.each(what, events.iter(), deliver, |culprit| self.tell_of_panic(culprit.token));
    }

    #[inline(always)]
    fn deliver(&self, event: Event) {
        match self.channels.get_waiting(event) {
            Some(source) => source.on_event(self, event),
            None => self.deliver_unusual(event),
        }
    }

    /// An event that is not exactly what a channel waits for.
    #[cold]
    #[inline(never)]
    fn deliver_unusual(&self, event: Event) {
        if event.token == WAKER {
            return self.woken();
        }
        // Nobody there: it was removed earlier in this batch.
        let Some((source, registration)) = self.channels.get(event.token) else { return };
        let unasked = Ready::ERROR | Ready::HANGUP;
        let wanted = registration.interest.asked() | unasked;
        let ready = event.ready & wanted;
        if ready.is_empty() {
            // Its interest changed earlier in this batch.
            return;
        }
        if registration.interest.is_empty() {
            // Every wait from now on would report this error or hang-up, for which nobody waits.
            self.unwatch(&*source);
            self.channels.set(event.token, Registration { watched: false, ..registration });
        }
        source.on_event(self, Event { ready, ..event });
    }

    fn woken(&self) {
        self.handle.shared().waker.acknowledge();
        self.signals.woken();
        self.plan(Agenda::WORK);
    }

    /// Calls the timers whose deadline has passed.
    #[inline(never)]
    fn fire_timers(&self) {
        if self.timers.is_empty() {
            return self.strike(Agenda::TIMERS);
        }
        // After the I/O callbacks the time of the turn may be old.
        let now = self.clock();
        if self.timers.next_expiry().is_none_or(|expiry| now < expiry) {
            return;
        }
        let due = self.timers.begin_batch(now);
        // Of a hundred thousand, not the first one's time.
        self.lap(|| "sorting the timers that are due".to_owned());
        let fire = |id| {
            match self.timers.start(id) {
                None => {}
                Some(Timer::Once(callback)) => {
                    metrics::add(&self.counts.timers, 1);
                    callback.run(self);
                }
                Some(Timer::Every { period, mut callback }) => {
                    metrics::add(&self.counts.timers, 1);
                    if let Some(callback) = &mut callback {
                        callback(self);
                    }
                    let timer = Timer::Every { period, callback };
                    if let Err(cancelled) = self.timers.finish(id, timer, self.clock()) {
                        self.bury(Dead::Timer(cancelled));
                    }
                }
            }
            self.lap(|| "a timer".to_owned());
        };
        self.each("a timer", due.iter().copied(), fire, |culprit| {
            self.cancel(culprit);
        });
        self.timers.end_batch(due);
    }

    /// Calls the sources that asked for the end of the turn.
    #[inline(always)]
    pub(super) fn call_turn_ends(&self) {
        if !self.at_turn_end.borrow().is_empty() {
            self.call_turn_ends_now();
        }
    }

    #[inline(never)]
    fn call_turn_ends_now(&self) {
        let mut tokens = self.at_turn_end.take();
        let call = |token| {
            if let Some((source, registration)) = self.channels.get(token) {
                source.on_turn_end(self, token);
                self.lap(|| {
                    format!("the end of a turn for {}", name(Some((source, registration))))
                });
            }
        };
        let what = "the handler of an end of turn";
        self.each(what, tokens.iter().copied(), call, |culprit| self.tell_of_panic(culprit));
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
        let what = "the drop of a value";
        self.repeat(what, || {
            let dead = self.graveyard.borrow_mut().pop();
            let found = dead.is_some();
            drop(dead);
            self.lap(|| what.to_owned());
            found
        });
        self.graveyard.borrow_mut().shrink_to(KEEP_CAPACITY);
        if self.channels.is_burst_over() {
            sys::memory::give_back();
        }
    }

    /// Calls `f` for each of `items`. A panic ends only the call that it happens in; `after_panic`
    /// cleans up after it.
    #[inline(always)]
    pub(super) fn each<I: Iterator + Clone>(
        &self,
        what: &str,
        items: I,
        f: impl Fn(I::Item),
        after_panic: impl Fn(I::Item),
    ) {
        let mut rest = items;
        let call_rest = |rest: &mut I| {
            // An item is the first of the rest until its call has returned.
            while let Some(item) = rest.clone().next() {
                f(item);
                rest.next();
            }
        };
        while self.catch(what, || call_rest(&mut rest)).is_err() {
            self.lap(|| what.to_owned());
            if let Some(culprit) = rest.next() {
                after_panic(culprit);
            }
        }
    }

    /// Repeats `step` until it returns false. A panic ends only the step that it happens in.
    pub(super) fn repeat(&self, what: &str, mut step: impl FnMut() -> bool) {
        while self.catch(what, || while step() {}).is_err() {
            self.lap(|| what.to_owned());
        }
    }

    /// After a callback, if slow ones are to be found.
    #[inline(always)]
    pub(super) fn lap(&self, what: impl FnOnce() -> String) {
        if let Some(stopwatch) = self.stopwatch() {
            stopwatch.lap(what);
        }
    }

    pub(super) fn tell_of_panic(&self, token: Token) {
        if let Some((source, _)) = self.channels.get(token)
            && self.isolate("on_panic", || source.on_panic(self, token)).is_err()
        {
            self.deregister(token);
        }
    }
}

/// What a log line calls a source. The source was looked up before it was called, for the call may
/// have ended it.
fn name(source: Option<(Rc<dyn Source>, Registration)>) -> String {
    source.map_or_else(|| "a channel that is gone".to_owned(), |(source, _)| source.name())
}
