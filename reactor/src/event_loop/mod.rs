//! The event loop: one per thread, owner of all that happens there.
//!
//! This file is the loop as its users see it. [`builder`] makes it, [`sources`] is what it watches,
//! [`turn`] is what it does when it runs, with its [`tasks`] for a part, and [`ending`] is its end.

mod builder;
mod ending;
mod sources;
mod tasks;
mod turn;

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bitflags::bitflags;
use nix::sys::signal::Signal;

pub use self::builder::EventLoopBuilder;
use crate::channel::{Channels, Source};
use crate::handle::{LoopHandle, PostError};
use crate::isolation::PanicPolicy;
use crate::metrics::{self, Counts, LoopMetrics};
use crate::poller::{NotifierKind, Poller, PollerKind};
use crate::signals::{self, SignalId, Signals};
use crate::stopwatch::Stopwatch;
use crate::sys;
use crate::sys::task::{SendTask, Task};
use crate::timer::{Timer, TimerId, TimerQueue, nanos};
use crate::token::Token;

thread_local! {
    static HAS_LOOP: Cell<bool> = const { Cell::new(false) };
}

/// The token of a loop's own notifier; no registration gets it.
const WAKER: Token = Token(u64::MAX);

/// Memory that one burst has needed is given back if it is more than this many elements.
const KEEP_CAPACITY: usize = 1024;

/// Waits for events and calls what is to be done about them, one thing at a time.
///
/// A thread has at most one loop, and a loop never leaves its thread. Everything called by a loop
/// gets `&EventLoop` and may use all of it; nothing is ever called from inside another callback.
/// Other threads reach a loop by its [`LoopHandle`].
///
/// A child made by fork(2) shares the kernel's side of its parent's loop, so there all that would
/// use it is an error. The child can only drop it, which leaves the parent's alone, and then make
/// one of its own.
///
/// ```
/// use ruduo_reactor::EventLoop;
/// use std::time::Duration;
///
/// let event_loop = EventLoop::new()?;
/// event_loop.run_after(Duration::from_millis(1), |event_loop| {
///     println!("a millisecond later");
///     event_loop.quit();
/// });
/// event_loop.run()?;
/// # std::io::Result::Ok(())
/// ```
pub struct EventLoop {
    poller: Poller,
    handle: LoopHandle,
    channels: Channels,
    timers: TimerQueue,
    /// Tasks in the order they were posted or deferred, from whichever thread.
    tasks: RefCell<VecDeque<Task>>,
    /// An empty list, which the inbox exchanges for its full one.
    incoming: RefCell<Vec<SendTask>>,
    /// Channels whose sources want to be called at the end of the turn.
    at_turn_end: RefCell<Vec<Token>>,
    /// User values that are out of use. Their `Drop` is user code, so it runs when nothing is
    /// borrowed, at the end of the turn.
    graveyard: RefCell<Vec<Dead>>,
    signals: Signals,
    /// One value a type, for libraries on top; see [`EventLoop::local`].
    locals: RefCell<Vec<(TypeId, Rc<dyn Any>)>>,
    agenda: Cell<Agenda>,
    phase: Cell<Phase>,
    origin: Instant,
    /// The time of this turn, once somebody has asked for it.
    now: Cell<Option<Instant>>,
    counts: Counts,
    /// Present if slow callbacks are to be found.
    stopwatch: Option<Stopwatch>,
    /// How it was made; the loops of a pool are made alike.
    settings: EventLoopBuilder,
    /// Neither `Send` nor `Sync`.
    _thread: PhantomData<*const ()>,
}

/// A value that only waits to be dropped.
#[expect(dead_code, reason = "held for their Drop")]
enum Dead {
    Source(Rc<dyn Source>),
    Timer(Timer),
    Task(Task),
    Signal(signals::Callback),
    Local(Rc<dyn Any>),
}

bitflags! {
    /// What a turn has to do besides waiting and calling what events are for. Whoever gives the loop
    /// more to do puts it down here; while nothing is, a turn looks for nothing.
    #[derive(Clone, Copy)]
    struct Agenda: u8 {
        /// There may be a task, a signal, the end of a turn, a value to drop: do not wait.
        const WORK = 1;
        /// There may be timers: wait no longer than they allow.
        const TIMERS = 2;
        /// Look for events again and again before waiting: a setting, so this stays.
        const BUSY_POLL = 4;
        /// Have no further turn.
        const QUIT = 8;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Made, not yet run.
    New,
    Running,
    /// What is left is being told of the end, and dropped.
    Ending,
    Ended,
}

impl EventLoop {
    /// A loop with the [preferred](crate::PollerKind::preferred) poller, for the calling thread.
    ///
    /// # Errors
    /// `AlreadyExists` if the thread has a live loop; `InvalidInput` if the environment variable
    /// `RUDUO_POLLER` names no poller; the kernel's, for want of descriptors or memory.
    pub fn new() -> io::Result<EventLoop> {
        EventLoop::builder().build()
    }

    /// A loop with other settings.
    pub fn builder() -> EventLoopBuilder {
        EventLoopBuilder::default()
    }

    /// Whether the calling thread has a live loop, running or not. Blocking there would stop it.
    #[must_use]
    pub fn exists_on_this_thread() -> bool {
        HAS_LOOP.get()
    }

    /// The way in for other threads.
    #[must_use]
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }

    pub(crate) fn is(&self, handle: &LoopHandle) -> bool {
        self.handle == *handle
    }

    /// Makes [`EventLoop::run`] return. Called before `run`, it makes that return at once; it is
    /// never lost.
    ///
    /// Quitting is prompt, not graceful: the current phase of the turn finishes, tasks posted so
    /// far run, later ones are refused, and every source still registered is told (connections
    /// get their close callback) and dropped.
    pub fn quit(&self) {
        self.plan(Agenda::QUIT);
    }

    /// Runs `task` on this loop after all that was posted or deferred before it: still in this
    /// turn if the turn's tasks have not begun, in the next otherwise. Like
    /// [`LoopHandle::post`] for values that are not `Send`.
    ///
    /// While the loop ends there is no next turn: then the task is dropped, and a line at debug
    /// level says so.
    pub fn defer(&self, task: impl FnOnce(&EventLoop) + 'static) {
        let task = Task::new(task);
        if self.is_over() {
            log::debug!("a task deferred to a loop that has ended is dropped");
            return self.bury(Dead::Task(task));
        }
        // What other threads posted earlier runs earlier.
        self.collect_incoming();
        self.tasks.borrow_mut().push_back(task);
        self.plan(Agenda::WORK);
    }

    /// Calls `f` at `deadline`, never earlier. A deadline in the past is due at once: that is when
    /// timers run next, and never inside the callback that asks for it.
    pub fn run_at(&self, deadline: Instant, f: impl FnOnce(&EventLoop) + 'static) -> TimerId {
        let deadline = nanos(deadline.saturating_duration_since(self.origin));
        self.add_timer(deadline, Timer::Once(Task::new(f)))
    }

    /// Calls `f` once `delay` is over, counted from this call; never earlier. `Duration::ZERO`
    /// means when timers run next, before all others that are due by then, and never inside the
    /// callback that asks for it. Delays of centuries are fine.
    ///
    /// The clock is monotonic: setting the time of day changes nothing. Timers are kept in ticks
    /// of 65.5 µs, rounded up; those of one tick run in the order of their deadlines.
    ///
    /// The clock is read for each call. A program that arms a timer for every request, and to which
    /// it does not matter how long the callback has been running, gets them at half the price by
    /// `run_at(event_loop.now() + delay, f)`, which counts from the [time of the turn](EventLoop::now).
    pub fn run_after(&self, delay: Duration, f: impl FnOnce(&EventLoop) + 'static) -> TimerId {
        // No clock is read for "at once": the loop's beginning is past enough.
        let deadline = if delay.is_zero() { 0 } else { self.clock().saturating_add(nanos(delay)) };
        self.add_timer(deadline, Timer::Once(Task::new(f)))
    }

    /// Calls `f` every `period`, first one period from now. It keeps its phase: a callback that
    /// comes late does not move the next ones, and ticks that were missed are skipped. A period
    /// below 65.5 µs, zero too, means once in that time.
    ///
    /// ```
    /// use ruduo_reactor::EventLoop;
    /// use std::time::Duration;
    ///
    /// let event_loop = EventLoop::new()?;
    /// let mut ticks = 0;
    /// let tick = event_loop.run_every(Duration::from_millis(1), move |event_loop| {
    ///     ticks += 1;
    ///     if ticks == 3 {
    ///         event_loop.quit();
    ///     }
    /// });
    /// event_loop.run()?;
    /// assert!(!event_loop.cancel(tick), "it has ended with its loop");
    /// # std::io::Result::Ok(())
    /// ```
    pub fn run_every(&self, period: Duration, f: impl FnMut(&EventLoop) + 'static) -> TimerId {
        let period = nanos(period).max(1);
        let deadline = self.clock().saturating_add(period);
        self.add_timer(deadline, Timer::Every { period, callback: Some(Box::new(f)) })
    }

    fn add_timer(&self, deadline: u64, timer: Timer) -> TimerId {
        let id = self.timers.add(deadline, timer);
        self.plan(Agenda::TIMERS);
        if self.is_over() {
            self.cancel(id);
        }
        id
    }

    /// Disarms a timer; also one that is due in the batch being run, and the one that is running.
    /// Returns whether it was still armed; cancelling twice is harmless. What it holds is dropped at
    /// the end of the turn, not inside this call.
    pub fn cancel(&self, id: TimerId) -> bool {
        let Some(timer) = self.timers.cancel(id) else { return false };
        if let Some(timer) = timer {
            self.bury(Dead::Timer(timer));
        }
        true
    }

    /// Calls `f` on the loop when the process gets `signal`. The signal's previous action comes
    /// back by [`EventLoop::remove_signal`] or when the loop ends.
    ///
    /// Several functions can be set for one signal, on one loop of the process. Signals that come
    /// in quick succession may be seen as one, as the kernel itself does.
    ///
    /// ```
    /// use ruduo_reactor::{EventLoop, Signal};
    ///
    /// let event_loop = EventLoop::new()?;
    /// event_loop.on_signal(Signal::SIGHUP, |event_loop, signal| {
    ///     println!("{signal}: reading the configuration again");
    ///     event_loop.quit();
    /// })?;
    /// event_loop.defer(|_| nix::sys::signal::raise(Signal::SIGHUP).unwrap_or_default());
    /// event_loop.run()?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// `AlreadyExists` if another loop of the process handles this signal, `InvalidInput` for
    /// signals that can't be caught (KILL, STOP).
    pub fn on_signal(
        &self,
        signal: Signal,
        f: impl FnMut(&EventLoop, Signal) + 'static,
    ) -> io::Result<SignalId> {
        self.check_alive()?;
        let make_pipe = || self.poller.notifier_of(WAKER, Some(NotifierKind::Pipe));
        self.signals.add(signal, Box::new(f), &self.handle.shared().waker, make_pipe)
    }

    /// Ends what [`EventLoop::on_signal`] began. Returns whether it was still in force.
    pub fn remove_signal(&self, id: SignalId) -> bool {
        let Some(handler) = self.signals.remove(id) else { return false };
        if let Some(handler) = handler {
            self.bury(Dead::Signal(handler));
        }
        true
    }

    /// The loop's own value of type `T`, made when it is first asked for and dropped with the
    /// loop: state that all users of a library on this loop share.
    ///
    /// ```
    /// use ruduo_reactor::EventLoop;
    /// use std::cell::Cell;
    ///
    /// #[derive(Default)]
    /// struct Visitors(Cell<u32>);
    ///
    /// let event_loop = EventLoop::new()?;
    /// for _ in 0..2 {
    ///     event_loop.defer(|event_loop| event_loop.local::<Visitors>().0.update(|n| n + 1));
    /// }
    /// event_loop.defer(EventLoop::quit);
    /// let visitors = event_loop.local::<Visitors>();
    /// event_loop.run()?;
    /// assert_eq!(visitors.0.get(), 2);
    /// # std::io::Result::Ok(())
    /// ```
    pub fn local<T: Default + 'static>(&self) -> Rc<T> {
        let find = || {
            let locals = self.locals.borrow();
            locals.iter().find(|(id, _)| *id == TypeId::of::<T>()).map(|(_, value)| value.clone())
        };
        let value = find().unwrap_or_else(|| {
            let value: Rc<dyn Any> = Rc::new(T::default());
            self.locals.borrow_mut().push((TypeId::of::<T>(), value.clone()));
            value
        });
        value.downcast().unwrap_or_else(|_| unreachable!("found by its type"))
    }

    /// The time of this turn, for which the clock is read at most once: when somebody first asks.
    /// Good enough for time stamps, and for deadlines that may be as early as the turn's callbacks
    /// have taken since then. Before the loop runs, and after that, it is the time now.
    #[must_use]
    pub fn now(&self) -> Instant {
        if self.phase.get() != Phase::Running {
            return Instant::now();
        }
        self.now.get().unwrap_or_else(|| {
            let now = Instant::now();
            self.now.set(Some(now));
            now
        })
    }

    /// The kernel interface it waits with.
    #[must_use]
    pub fn poller_kind(&self) -> PollerKind {
        self.poller.kind()
    }

    /// What it has done so far. Reading it changes nothing; on another thread, post a task that
    /// does.
    #[must_use]
    pub fn metrics(&self) -> LoopMetrics {
        let Counts { turns, events, tasks, timers, panics } = &self.counts;
        LoopMetrics {
            turns: turns.get(),
            events: events.get(),
            tasks: tasks.get(),
            timers: timers.get(),
            panics: panics.get(),
            slow_callbacks: self.stopwatch.as_ref().map_or(0, Stopwatch::slow_callbacks),
            lag: self.stopwatch.as_ref().map_or(Duration::ZERO, Stopwatch::longest),
        }
    }

    pub(crate) fn stopwatch(&self) -> Option<&Stopwatch> {
        self.stopwatch.as_ref()
    }

    pub(crate) fn count_panic(&self) {
        metrics::add(&self.counts.panics, 1);
    }

    pub(crate) fn panic_policy(&self) -> PanicPolicy {
        self.settings.panic_policy
    }

    pub(crate) fn settings(&self) -> &EventLoopBuilder {
        &self.settings
    }

    /// Nanoseconds since the loop was made, by the clock.
    fn clock(&self) -> u64 {
        nanos(self.origin.elapsed())
    }

    fn plan(&self, item: Agenda) {
        self.agenda.update(|agenda| agenda | item);
    }

    fn strike(&self, item: Agenda) {
        self.agenda.update(|agenda| agenda - item);
    }

    /// Inline, for else each value would be copied on its way to the grave.
    #[inline(always)]
    fn bury(&self, dead: Dead) {
        self.graveyard.borrow_mut().push(dead);
        self.plan(Agenda::WORK);
        if self.phase.get() == Phase::Ended {
            // No callback runs any more, and nobody else would drop it.
            self.drop_dead();
        }
    }

    /// Whether nothing new is taken any more.
    #[inline]
    fn is_over(&self) -> bool {
        matches!(self.phase.get(), Phase::Ending | Phase::Ended)
    }

    #[inline]
    fn check_alive(&self) -> io::Result<()> {
        if self.handle.shared().is_forked() {
            return Err(PostError::Forked.into());
        }
        if self.is_over() {
            return Err(PostError::Ended.into());
        }
        Ok(())
    }
}

impl Drop for EventLoop {
    /// A loop that never ran ends here, with all that its end brings.
    fn drop(&mut self) {
        sys::current::enter(self, || self.end());
        HAS_LOOP.set(false);
    }
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop")
            .field("poller", &self.poller)
            .field("metrics", &self.metrics())
            .finish_non_exhaustive()
    }
}
