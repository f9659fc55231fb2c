//! A panic in one callback is that callback's affair: the loop and all others go on.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::panic_any;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bare_loop::{FEW_TURNS, Record, forked, pair, run, turns_in_a_while};
use common::DEADLINE;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::raise;
use nix::sys::wait::WaitStatus;
use ruduo::{Channel, Event, EventLoop, Interest, LoopThread, PanicPolicy, Signal, Source, Token};

/// A value whose drop panics.
struct Mine;

impl Drop for Mine {
    fn drop(&mut self) {
        panic!("a mine in a drop");
    }
}

fn note<T: Copy + 'static>(seen: &Record<T>, what: T) -> impl Fn(&EventLoop) + 'static {
    let seen = seen.clone();
    move |_| seen.push(what)
}

/// A socket with a byte to read, and the peer it must not outlive.
fn readable() -> (UnixStream, UnixStream) {
    let (mut near, far) = pair();
    near.write_all(b"x").unwrap();
    (near, far)
}

#[test]
fn b45_a_panic_in_a_task_ends_that_task() {
    each_poller!().expect_log("a task panicked: boom 1").expect_log("a task panicked: boom 2").run(
        || {
            let event_loop = EventLoop::new().unwrap();
            let seen = Record::new();
            event_loop.defer(|_| panic!("boom 1"));
            event_loop.defer(note(&seen, "deferred"));
            event_loop.handle().post(|_| panic!("boom {}", 2)).unwrap();
            event_loop.handle().post(EventLoop::quit).unwrap();
            event_loop.defer(note(&seen, "last"));
            run(&event_loop);
            assert_eq!(seen.take(), ["deferred", "last"]);
            assert_eq!(event_loop.metrics().panics, 2);
        },
    );
}

#[test]
fn b45_a_panic_in_a_timer_ends_that_timer() {
    each_poller!().expect_log("a timer panicked: once").expect_log("a timer panicked: often").run(
        || {
            let event_loop = EventLoop::new().unwrap();
            let seen = Record::new();
            event_loop.run_after(Duration::ZERO, |_| panic!("once"));
            event_loop.run_after(Duration::ZERO, note(&seen, "same batch"));
            let often = event_loop.run_every(Duration::from_millis(1), |_| panic!("often"));
            let other = note(&seen, "other");
            event_loop.run_every(Duration::from_millis(1), other);
            let note = seen.clone();
            event_loop.run_every(Duration::from_millis(1), move |event_loop| {
                if note.len() > 10 {
                    assert!(!event_loop.cancel(often), "it is gone already");
                    event_loop.quit();
                }
            });
            run(&event_loop);
            let seen = seen.take();
            assert_eq!(seen.iter().filter(|what| **what == "same batch").count(), 1);
            assert_eq!(event_loop.metrics().panics, 2);
        },
    );
}

#[test]
fn b45_a_panic_in_a_handler_ends_that_channel() {
    each_poller!().expect_log("the handler of an event panicked: boom").run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let peers = [0, 1, 2].map(|i| {
            let (near, far) = readable();
            let seen = seen.clone();
            let handler = move |event_loop: &EventLoop, _: &_, event: Event| {
                seen.push((i, event_loop.metrics().turns));
                assert!(i != 1, "boom");
                event_loop.deregister(event.token);
            };
            event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap();
            near
        });
        assert!(turns_in_a_while(&event_loop) < FEW_TURNS);
        assert_eq!(seen.take(), [(0, 1), (1, 1), (2, 1)]);
        assert_eq!(event_loop.metrics().panics, 1);
        drop(peers);
    });
}

#[test]
fn b45_a_channel_whose_handler_panicked_is_closed() {
    each_poller!().expect_log("the handler of an event panicked: boom").run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (near, far) = readable();
        let far = Rc::new(far);
        let boom = |_: &EventLoop, _: &Rc<UnixStream>, _: Event| panic!("boom");
        event_loop.register(Channel::new(Rc::clone(&far), Interest::READ, boom)).unwrap();
        // In a later turn than the panic, however long that one takes to tell of it.
        event_loop.run_after(bare_loop::A_WHILE, |event_loop| {
            event_loop.run_after(Duration::ZERO, move |event_loop| {
                assert_eq!(Rc::strong_count(&far), 1);
                event_loop.quit();
            });
        });
        run(&event_loop);
        drop(near);
    });
}

#[test]
fn b45_a_panic_in_a_signal_handler_ends_that_handler() {
    each_poller!().expect_log("a signal handler panicked: boom").run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let first =
            event_loop.on_signal(Signal::SIGUSR1, |_, signal| panic!("boom {signal}")).unwrap();
        let calls = seen.clone();
        let second = move |event_loop: &EventLoop, _| {
            calls.push("second");
            assert!(!event_loop.remove_signal(first), "it is gone already");
            match calls.len() {
                1 => raise(Signal::SIGUSR1).unwrap(),
                _ => event_loop.quit(),
            }
        };
        event_loop.on_signal(Signal::SIGUSR1, second).unwrap();
        raise(Signal::SIGUSR1).unwrap();
        run(&event_loop);
        assert_eq!(seen.take(), ["second", "second"]);
        assert_eq!(event_loop.metrics().panics, 1);
    });
}

#[test]
fn b45_a_panic_in_a_drop_ends_nothing_else() {
    each_poller!().expect_log("a mine in a drop").run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let in_task = Mine;
        event_loop.defer(move |_| drop(in_task));
        let in_timer = Mine;
        let timer = event_loop.run_after(DEADLINE, move |_| drop(in_timer));
        event_loop.cancel(timer);
        let (near, far) = readable();
        let in_handler = Mine;
        let handler = move |event_loop: &EventLoop, _: &_, event: Event| {
            _ = &in_handler;
            event_loop.deregister(event.token);
        };
        event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap();
        let in_signal = Mine;
        let handler = move |_: &EventLoop, _| _ = &in_signal;
        let signal = event_loop.on_signal(Signal::SIGUSR1, handler).unwrap();
        event_loop.remove_signal(signal);

        // Left to the end.
        let left = Mine;
        event_loop.run_after(DEADLINE, move |_| drop(left));
        // For one moment, so that both fire in one turn.
        let end = Instant::now() + Duration::from_millis(1);
        event_loop.run_at(end, EventLoop::quit);
        event_loop.run_at(end, note(&seen, "went on"));
        run(&event_loop);
        assert_eq!(seen.take(), ["went on"]);
        assert_eq!(event_loop.metrics().panics, 5);
        drop(near);
    });
}

#[test]
fn b45_what_a_panic_carries_may_panic_too() {
    each_poller!().expect_log("a task panicked: (a value that is not text)").run(|| {
        let event_loop = EventLoop::new().unwrap();
        event_loop.defer(|_| panic_any(Mine));
        // And so may what that panic carries.
        struct Chain;
        impl Drop for Chain {
            fn drop(&mut self) {
                panic_any(Mine);
            }
        }
        event_loop.defer(|_| panic_any(Chain));
        event_loop.defer(EventLoop::quit);
        run(&event_loop);
        assert_eq!(event_loop.metrics().panics, 2);
    });
}

/// A source that panics in one of its methods, and is asked what to do then.
struct Trapped {
    socket: UnixStream,
    trap: &'static str,
    seen: Record<&'static str>,
}

impl Trapped {
    fn step_on(&self, method: &'static str) {
        self.seen.push(method);
        assert!(self.trap != method, "boom");
    }
}

impl Source for Trapped {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
    fn on_event(self: Rc<Self>, event_loop: &EventLoop, event: Event) {
        event_loop.set_interest(event.token, Interest::NONE).unwrap();
        event_loop.at_turn_end(event.token);
        self.step_on("event");
    }
    fn on_turn_end(&self, event_loop: &EventLoop, _: Token) {
        event_loop.run_after(Duration::ZERO, EventLoop::quit);
        self.step_on("turn end");
    }
    fn on_panic(&self, event_loop: &EventLoop, token: Token) {
        self.seen.push("panic");
        event_loop.deregister(token);
        event_loop.run_after(Duration::ZERO, EventLoop::quit);
    }
    fn on_loop_end(&self, _: &EventLoop, _: Token) {
        self.step_on("loop end");
    }
}

fn trapped(trap: &'static str) -> Vec<&'static str> {
    let event_loop = EventLoop::new().unwrap();
    let (_near, socket) = readable();
    let seen = Record::new();
    let source = Rc::new(Trapped { socket, trap, seen: seen.clone() });
    let watch = Rc::downgrade(&source);
    event_loop.register(Channel::from_source(source, Interest::READ)).unwrap();
    run(&event_loop);
    assert!(watch.upgrade().is_none());
    assert_eq!(event_loop.metrics().panics, 1);
    seen.take()
}

#[test]
fn b45_a_source_is_told_of_its_panic() {
    each_poller!()
        .expect_log("the handler of an event panicked")
        .expect_log("the handler of an end of turn panicked")
        .expect_log("the handler of a loop's end panicked")
        .run(|| {
            assert_eq!(trapped("event"), ["event", "panic"]);
            assert_eq!(trapped("turn end"), ["event", "turn end", "panic"]);
            assert_eq!(trapped("loop end"), ["event", "turn end", "loop end", "panic"]);
        });
}

#[test]
fn b45_a_source_that_panics_when_told_of_its_panic_is_removed() {
    struct Hopeless(UnixStream);
    impl Source for Hopeless {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
        fn on_event(self: Rc<Self>, event_loop: &EventLoop, _: Event) {
            // In a later turn, however long this one takes to tell of the panic.
            event_loop.run_after(bare_loop::A_WHILE, |event_loop| {
                event_loop.run_after(bare_loop::A_WHILE, EventLoop::quit);
            });
            panic!("boom");
        }
        fn on_panic(&self, _: &EventLoop, _: Token) {
            panic!("boom again");
        }
    }
    each_poller!().expect_log("an event panicked: boom").expect_log("on_panic panicked").run(
        || {
            let event_loop = EventLoop::new().unwrap();
            let (near, far) = readable();
            let channel = Channel::from_source(Rc::new(Hopeless(far)), Interest::READ);
            event_loop.register(channel).unwrap();
            run(&event_loop);
            assert!(event_loop.metrics().turns < FEW_TURNS);
            assert_eq!(event_loop.metrics().panics, 2);
            drop(near);
        },
    );
}

#[test]
fn b45_a_panic_at_the_end_of_the_loop_keeps_nothing_from_its_end() {
    each_poller!().expect_log("a task panicked: last").run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (seen, value) = (Record::new(), Rc::new(()));
        let held = Rc::clone(&value);
        event_loop.run_after(DEADLINE, move |_| drop(held));
        event_loop.defer(|_| panic!("last"));
        event_loop.defer(note(&seen, "after it"));
        event_loop.quit();
        event_loop.run().unwrap();
        assert_eq!(seen.take(), ["after it"]);
        assert_eq!(Rc::strong_count(&value), 1);
    });
}

#[test]
fn b45_a_panic_at_the_start_of_a_loop_thread_is_an_error() {
    each_poller!().expect_log("the start of a loop thread panicked: boom").run(|| {
        let started = LoopThread::spawn("test-loop", EventLoop::builder(), |_| panic!("boom"));
        let error = started.unwrap_err().to_string();
        assert!(error.contains("test-loop") && error.contains("panicked"), "{error}");
    });
}

#[test]
fn b45_the_policy_abort_aborts() {
    let abort = PanicPolicy::Abort;
    each_poller!().run(|| {
        type Setup = fn(&EventLoop);
        let places: [(&str, Setup); 5] = [
            ("task", |event_loop| event_loop.defer(|_| panic!("boom"))),
            ("timer", |event_loop| {
                event_loop.run_after(Duration::ZERO, |_| panic!("boom"));
            }),
            ("handler", |event_loop| {
                let (_, far) = pair();
                let boom = |_: &EventLoop, _: &_, _: Event| panic!("boom");
                event_loop.register(Channel::new(far, Interest::READ, boom)).unwrap();
            }),
            ("signal handler", |event_loop| {
                event_loop.on_signal(Signal::SIGUSR1, |_, _| panic!("boom")).unwrap();
                raise(Signal::SIGUSR1).unwrap();
            }),
            ("drop", |event_loop| {
                let mine = Mine;
                let timer = event_loop.run_after(DEADLINE, move |_| drop(mine));
                event_loop.cancel(timer);
            }),
        ];
        for (place, setup) in places {
            let status = forked(|| {
                setrlimit(Resource::RLIMIT_CORE, 0, 0).unwrap();
                let event_loop = EventLoop::builder().panic_policy(abort).build().unwrap();
                setup(&event_loop);
                event_loop.run_after(bare_loop::A_WHILE, EventLoop::quit);
                run(&event_loop);
            });
            let aborted = matches!(status, WaitStatus::Signaled(_, Signal::SIGABRT, _));
            assert!(aborted, "a panic in a {place}: {status:?}");
        }
    });
}
