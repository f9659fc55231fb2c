//! User code hides in `Drop`: values that use the loop while they are dropped, in every place
//! where a loop keeps users' values.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::cell::RefCell;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bare_loop::{Dropped, Record, pair, run};
use common::DEADLINE;
use ruduo::{Channel, Event, EventLoop, Interest, LoopHandle, Signal, Source, TimerId, Token};

#[derive(Default)]
struct Counts {
    made: AtomicUsize,
    dropped: AtomicUsize,
    /// Dropped where the loop could be used.
    inside: AtomicUsize,
}

/// Uses all of the loop when it is dropped, and leaves some of its like there.
struct Meddler {
    event_loop: LoopHandle,
    counts: Arc<Counts>,
    /// A timer and a channel that it removes.
    victims: Option<(TimerId, Token)>,
    generations: u32,
}

impl Meddler {
    fn new(event_loop: &EventLoop, counts: &Arc<Counts>) -> Meddler {
        let victims = victims(event_loop);
        Meddler::make(event_loop.handle(), counts, victims, 2)
    }

    fn make(
        event_loop: LoopHandle,
        counts: &Arc<Counts>,
        victims: Option<(TimerId, Token)>,
        generations: u32,
    ) -> Meddler {
        counts.made.fetch_add(1, Ordering::Relaxed);
        Meddler { event_loop, counts: Arc::clone(counts), victims, generations }
    }

    fn child(&self) -> Option<Meddler> {
        let generations = self.generations.checked_sub(1)?;
        Some(Meddler::make(self.event_loop.clone(), &self.counts, None, generations))
    }

    fn meddle(&self, event_loop: &EventLoop) {
        self.counts.inside.fetch_add(1, Ordering::Relaxed);
        if let Some((timer, token)) = self.victims {
            event_loop.cancel(timer);
            event_loop.deregister(token);
        }
        let (in_task, in_timer, cancelled) = (self.child(), self.child(), self.child());
        event_loop.defer(move |_| drop(in_task));
        event_loop.run_after(Duration::ZERO, move |_| drop(in_timer));
        let timer = event_loop.run_every(DEADLINE, move |_| _ = cancelled.is_some());
        event_loop.cancel(timer);

        let (_near, far) = pair();
        let in_handler = self.child();
        let handler = move |_: &EventLoop, _: &_, _| _ = in_handler.is_some();
        // Refused once the loop has ended.
        if let Ok(token) = event_loop.register(Channel::new(far, Interest::READ, handler)) {
            event_loop.set_interest(token, Interest::WRITE).unwrap();
            event_loop.at_turn_end(token);
            event_loop.deregister(token);
        }
        let in_signal = self.child();
        let handler = move |_: &EventLoop, _| _ = in_signal.is_some();
        if let Ok(signal) = event_loop.on_signal(Signal::SIGUSR2, handler) {
            event_loop.remove_signal(signal);
        }
        event_loop.local::<Local>();
        _ = event_loop.now();
        event_loop.run().unwrap_err();
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        self.event_loop.with_local(|event_loop| self.meddle(event_loop));
        let child = self.child();
        _ = self.event_loop.post(move |_| drop(child));
        self.counts.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// Registered only to be removed by a meddler.
fn victims(event_loop: &EventLoop) -> Option<(TimerId, Token)> {
    let (near, far) = pair();
    let timer = event_loop.run_after(DEADLINE, move |_| drop(near));
    let channel = Channel::new(far, Interest::WRITE, |_, _, _| {});
    Some((timer, event_loop.register(channel).unwrap()))
}

#[derive(Default)]
struct Local(RefCell<Vec<Meddler>>);

/// A source with a meddler inside.
struct Inhabited(UnixStream, #[expect(dead_code)] Meddler);

impl AsFd for Inhabited {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A channel with a meddler in its source and in its handler.
fn inhabited(
    far: UnixStream,
    new: &dyn Fn() -> Meddler,
    mut then: impl FnMut(&EventLoop, Event) + 'static,
) -> Channel {
    let held = new();
    Channel::new(Inhabited(far, new()), Interest::READ, move |event_loop, _, event| {
        _ = held.generations;
        then(event_loop, event);
    })
}

fn in_tasks(event_loop: &EventLoop, new: &dyn Fn() -> Meddler) {
    let (runs, posted, deferred_last) = (new(), new(), new());
    event_loop.defer(move |_| drop(runs));
    event_loop.handle().post(move |_| drop(posted)).unwrap();
    event_loop.run_after(Duration::from_millis(20), |event_loop| {
        event_loop.defer(move |event_loop| {
            event_loop.defer(move |_| drop(deferred_last));
            event_loop.quit();
        });
    });
}

fn in_timers(event_loop: &EventLoop, new: &dyn Fn() -> Meddler) {
    let after = |ms| Duration::from_millis(ms);
    let keep = |value: Meddler| move |_: &EventLoop| _ = value.generations;
    // Fired, left over, cancelled by a later one, and periodic ones likewise.
    event_loop.run_after(after(1), keep(new()));
    event_loop.run_after(DEADLINE, keep(new()));
    event_loop.run_every(after(1), keep(new()));
    let once = event_loop.run_after(DEADLINE, keep(new()));
    let often = event_loop.run_every(after(1), keep(new()));
    event_loop.run_after(after(3), move |event_loop| {
        event_loop.cancel(once);
        event_loop.cancel(often);
    });
    // Cancelled by itself.
    let id = Rc::new(RefCell::new(None));
    let (mine, value) = (Rc::clone(&id), new());
    let timer = event_loop.run_every(after(1), move |event_loop| {
        _ = value.generations;
        assert!(event_loop.cancel(mine.take().unwrap()));
    });
    id.replace(Some(timer));
    // Cancelled by another of the same batch.
    let now = event_loop.now();
    let id = Rc::new(RefCell::new(None));
    let other = Rc::clone(&id);
    event_loop.run_at(now, move |event_loop| {
        event_loop.cancel(other.take().unwrap());
    });
    id.replace(Some(event_loop.run_at(now, keep(new()))));
}

fn in_channels(event_loop: &EventLoop, new: &dyn Fn() -> Meddler, peers: &mut Vec<UnixStream>) {
    let mut far = |ready: bool| {
        let (mut near, far) = pair();
        if ready {
            near.write_all(b"x").unwrap();
        }
        peers.push(near);
        far
    };
    // Registered to the end, removed by another one, by itself, and refused.
    event_loop.register(inhabited(far(false), new, |_, _| {})).unwrap();
    let other = event_loop.register(inhabited(far(true), new, |_, _| {})).unwrap();
    let by_itself = inhabited(far(true), new, move |event_loop, event| {
        event_loop.deregister(event.token);
        event_loop.deregister(other);
    });
    event_loop.register(by_itself).unwrap();
    let (file, held) = (File::open(std::env::current_exe().unwrap()).unwrap(), new());
    let handler = move |_: &EventLoop, _: &File, _: Event| _ = held.generations;
    event_loop.register(Channel::new(file, Interest::READ, handler)).unwrap_err();
}

fn in_signals_and_locals(event_loop: &EventLoop, new: &dyn Fn() -> Meddler) {
    let (stays, goes) = (new(), new());
    let handler = move |_: &EventLoop, _| _ = stays.generations;
    event_loop.on_signal(Signal::SIGUSR1, handler).unwrap();
    let handler = move |_: &EventLoop, _| _ = goes.generations;
    let goes = event_loop.on_signal(Signal::SIGUSR1, handler).unwrap();
    event_loop.remove_signal(goes);
    event_loop.local::<Local>().0.borrow_mut().push(new());
}

fn everywhere(event_loop: &EventLoop, counts: &Arc<Counts>) -> Vec<UnixStream> {
    let new = || Meddler::new(event_loop, counts);
    let mut peers = Vec::new();
    in_tasks(event_loop, &new);
    in_timers(event_loop, &new);
    in_channels(event_loop, &new, &mut peers);
    in_signals_and_locals(event_loop, &new);
    peers
}

#[test]
fn b41_values_that_use_the_loop_when_dropped_may_sit_anywhere() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let counts = Arc::new(Counts::default());
        let peers = everywhere(&event_loop, &counts);
        let placed = counts.made.load(Ordering::Relaxed);
        run(&event_loop);
        assert_eq!(event_loop.metrics().panics, 0);
        let (made, dropped) = (&counts.made, &counts.dropped);
        assert_eq!(dropped.load(Ordering::Relaxed), made.load(Ordering::Relaxed));
        assert!(counts.inside.load(Ordering::Relaxed) >= placed);
        drop(peers);
    });
}

/// A callback may have something of its own borrowed while it removes another, or itself.
#[test]
fn b41_nothing_is_dropped_inside_the_callback_that_removes_it() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let value = |what| Dropped(seen.clone(), what);
        let keep = |held: Dropped<&'static str>| move |_: &EventLoop| _ = &held;
        let later = Duration::from_millis(1);
        let timers = [
            event_loop.run_after(DEADLINE, keep(value("timer"))),
            event_loop.run_every(DEADLINE, keep(value("periodic timer"))),
        ];
        let held = value("signal handler");
        let handler = move |_: &EventLoop, _| _ = &held;
        let signal = event_loop.on_signal(Signal::SIGUSR1, handler).unwrap();
        let notifier = event_loop.notifier(keep(value("notifier"))).unwrap();
        let (near, far) = pair();
        let held = value("channel");
        let handler = move |_: &EventLoop, _: &_, _| _ = &held;
        let channel = Channel::new(far, Interest::READ, handler);
        let channel = event_loop.register(channel).unwrap();
        let held = value("refused channel");
        let refused = File::open(std::env::current_exe().unwrap()).unwrap();
        let handler = move |_: &EventLoop, _: &_, _| _ = &held;
        let refused = Channel::new(refused, Interest::READ, handler);
        let note = seen.clone();
        event_loop.run_after(later, move |event_loop| {
            let removed = timers.map(|timer| event_loop.cancel(timer));
            assert_eq!(removed, [true, true]);
            assert!(event_loop.remove_signal(signal));
            assert!(event_loop.deregister(notifier.token()) && event_loop.deregister(channel));
            assert!(event_loop.register(refused).is_err());
            note.push("the callback returns");
            event_loop.run_after(later, EventLoop::quit);
        });
        run(&event_loop);
        let mut seen = seen.take();
        assert_eq!(seen.remove(0), "the callback returns");
        seen.sort_unstable();
        let all =
            ["channel", "notifier", "periodic timer", "refused channel", "signal handler", "timer"];
        assert_eq!(seen, all);
        drop(near);
    });
}

#[test]
fn b41_also_in_a_loop_that_never_ran() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let counts = Arc::new(Counts::default());
        let peers = everywhere(&event_loop, &counts);
        let placed = counts.made.load(Ordering::Relaxed);
        drop(event_loop);
        let (made, dropped) = (&counts.made, &counts.dropped);
        assert_eq!(dropped.load(Ordering::Relaxed), made.load(Ordering::Relaxed));
        assert!(counts.inside.load(Ordering::Relaxed) >= placed);
        drop(peers);
    });
}

#[test]
fn b41_a_refused_task_may_use_its_handle_when_dropped() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let counts = Arc::new(Counts::default());
        let value = Meddler::new(&event_loop, &counts);
        let handle = event_loop.handle();
        drop(event_loop);
        handle.post(move |_| drop(value)).unwrap_err();
        let (made, dropped) = (&counts.made, &counts.dropped);
        assert_eq!(dropped.load(Ordering::Relaxed), made.load(Ordering::Relaxed));
    });
}

/// A `Drop` that runs inside `cancel` would meet whatever the caller has borrowed.
#[test]
fn what_a_cancelled_timer_holds_is_dropped_after_the_callback() {
    struct Tells(Rc<RefCell<Vec<&'static str>>>);
    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.borrow_mut().push("dropped");
        }
    }
    alone!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (once, often) = (Tells(seen.clone()), Tells(seen.clone()));
        let once = event_loop.run_after(DEADLINE, move |_| drop(once));
        let often = event_loop.run_every(DEADLINE, move |_| _ = &often);
        let told = seen.clone();
        event_loop.defer(move |event_loop| {
            let mut told = told.borrow_mut();
            told.push("cancels");
            assert!(event_loop.cancel(once) && event_loop.cancel(often));
            told.push("has cancelled");
        });
        event_loop.defer(|event_loop| event_loop.defer(EventLoop::quit));
        run(&event_loop);
        assert_eq!(*seen.borrow(), ["cancels", "has cancelled", "dropped", "dropped"]);
    });
}

/// The same when it is the loop's end that calls.
#[test]
fn b41_what_is_removed_while_the_loop_ends_is_dropped_after_the_callback() {
    struct Last {
        socket: UnixStream,
        seen: Record<&'static str>,
        remove: Box<dyn Fn(&EventLoop)>,
    }
    impl Source for Last {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.socket.as_fd()
        }
        fn on_event(self: Rc<Self>, _: &EventLoop, _: Event) {}
        fn on_loop_end(&self, event_loop: &EventLoop, _: Token) {
            self.seen.push("called");
            (self.remove)(event_loop);
            self.seen.push("returns");
        }
    }
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let value = {
            let seen = seen.clone();
            move |what| Dropped(seen.clone(), what)
        };
        let (held, signal_held) = (value("timer"), value("signal handler"));
        let timer = event_loop.run_after(DEADLINE, move |_| drop(held));
        let on_signal = move |_: &EventLoop, _| _ = &signal_held;
        let signal = event_loop.on_signal(Signal::SIGUSR1, on_signal).unwrap();
        let (near, socket) = pair();
        let remove = move |event_loop: &EventLoop| {
            assert!(event_loop.cancel(timer) && event_loop.remove_signal(signal));
            let (deferred, armed) = (value("deferred"), value("armed"));
            event_loop.defer(move |_| drop(deferred));
            event_loop.run_after(DEADLINE, move |_| drop(armed));
            let (held, (_, far)) = (value("channel"), pair());
            let handler = move |_: &EventLoop, _: &_, _: Event| _ = &held;
            event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap_err();
        };
        let last = Last { socket, seen: seen.clone(), remove: Box::new(remove) };
        event_loop.register(Channel::from_source(Rc::new(last), Interest::READ)).unwrap();
        event_loop.quit();
        run(&event_loop);
        let mut seen = seen.take();
        assert_eq!(seen.drain(..2).as_slice(), ["called", "returns"]);
        seen.sort_unstable();
        assert_eq!(seen, ["armed", "channel", "deferred", "signal handler", "timer"]);
        drop(near);
    });
}
