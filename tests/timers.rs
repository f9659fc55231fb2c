//! Timers of a loop.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bare_loop::{A_WHILE, FEW_TURNS, Record, pair, run};
use common::{DEADLINE, within};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use ruduo::{Channel, Event, EventLoop, Interest, LoopThread, PollerKind, TimerId};

const MS: Duration = Duration::from_millis(1);

/// Keeps the loop's thread busy, as a slow callback would.
fn block_until(moment: Instant) {
    while Instant::now() < moment {
        thread::park_timeout(moment.saturating_duration_since(Instant::now()));
    }
}

#[test]
fn a_timer_fires_once_and_a_periodic_one_until_it_is_cancelled() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let note = |what: &'static str| {
            let seen = seen.clone();
            move |_: &EventLoop| seen.push(what)
        };
        let once = event_loop.run_after(MS, note("once"));
        let at = event_loop.run_at(Instant::now() + MS, note("at"));
        let never = event_loop.run_after(2 * MS, note("never"));
        assert!(event_loop.cancel(never));
        assert!(!event_loop.cancel(never), "cancelling twice is harmless");

        let periodic = event_loop.run_every(5 * MS, note("every"));
        let calls = seen.clone();
        event_loop.run_every(5 * MS, move |event_loop| {
            if calls.len() < 6 {
                return;
            }
            assert!(!event_loop.cancel(once) && !event_loop.cancel(at), "they have fired");
            // Both are due in each batch; whether the other one has fired in this one, it does
            // not in the next.
            if event_loop.cancel(periodic) {
                calls.push("cancelled");
                event_loop.run_after(50 * MS, EventLoop::quit);
            }
        });
        run(&event_loop);
        let seen = seen.take();
        let cancelled = seen.iter().position(|what| *what == "cancelled").unwrap();
        assert_eq!(cancelled, seen.len() - 1, "{seen:?}");
        for (what, times) in [("once", 1), ("at", 1), ("never", 0), ("every", cancelled - 2)] {
            assert_eq!(seen.iter().filter(|seen| **seen == what).count(), times, "{what}");
        }
    });
}

#[test]
fn timers_of_a_loop_on_another_thread() {
    each_poller!().run(|| {
        let thread = LoopThread::spawn("test-loop", EventLoop::builder(), |_| Ok(())).unwrap();
        let (fired, firings) = mpsc::channel();
        let start = Instant::now();
        let arm = move |event_loop: &EventLoop| {
            event_loop.run_after(20 * MS, move |_| fired.send(thread::current().id()).unwrap());
        };
        thread.handle().post(arm).unwrap();
        let on = within(&firings);
        assert!(start.elapsed() >= 20 * MS);
        assert_ne!(on, thread::current().id());
        thread.join().unwrap();
    });
}

#[test]
fn each_turn_has_a_time_of_its_own() {
    each_poller!().run(|| {
        const DELAY: Duration = Duration::from_millis(1);
        let event_loop = EventLoop::new().unwrap();
        event_loop.defer(|event_loop| {
            let first = event_loop.now();
            event_loop.run_after(DELAY, move |event_loop| {
                assert!(event_loop.now() >= first + DELAY);
                event_loop.quit();
            });
        });
        run(&event_loop);
    });
}

/// A loop that runs no more has no turn whose time it could tell.
#[test]
fn after_the_end_of_a_loop_it_is_the_time_now() {
    alone!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        event_loop.defer(|event_loop| {
            let _ = event_loop.now();
            event_loop.quit();
        });
        run(&event_loop);
        let end = Instant::now();
        assert!(event_loop.now() >= end);
    });
}

#[test]
fn timers_fire_in_the_order_of_their_deadlines() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let start = Instant::now();
        // Out of order, on several levels of the wheel, and each moment three times.
        let delays = [7_000, 300, 90_000, 0, 4_100, 4_000, 60, 33_000, 1_000, 130];
        for round in 0..3 {
            for micros in delays {
                let seen = seen.clone();
                let deadline = start + Duration::from_micros(micros);
                event_loop.run_at(deadline, move |_| {
                    assert!(Instant::now() >= deadline);
                    seen.push((micros, round));
                });
            }
        }
        event_loop.run_at(start + 100 * MS, EventLoop::quit);
        run(&event_loop);
        let mut expected: Vec<_> = delays
            .into_iter()
            .flat_map(|micros| (0..3).map(move |round| (micros, round)))
            .collect();
        expected.sort_unstable();
        assert_eq!(seen.take(), expected);
    });
}

#[test]
fn a_deadline_in_the_past_is_due_at_once_but_never_inside_the_caller() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let long_ago =
            Instant::now().checked_sub(Duration::from_secs(3_600)).unwrap_or_else(Instant::now);
        let outer = seen.clone();
        event_loop.run_at(long_ago, move |event_loop| {
            for i in 0..2 {
                let seen = outer.clone();
                let fire = move |event_loop: &EventLoop| {
                    seen.push(("inner", event_loop.metrics().turns));
                    event_loop.quit();
                };
                if i == 0 {
                    event_loop.run_at(long_ago, fire);
                } else {
                    event_loop.run_after(Duration::ZERO, fire);
                }
            }
            outer.push(("outer", event_loop.metrics().turns));
        });
        run(&event_loop);
        assert_eq!(seen.take(), [("outer", 1), ("inner", 2), ("inner", 2)]);
    });
}

#[test]
fn b47_a_timer_cancels_itself() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let arm = |periodic: bool| {
            let (id, calls) = (Rc::new(Cell::new(None::<TimerId>)), seen.clone());
            let mine = Rc::clone(&id);
            let fire = move |event_loop: &EventLoop| {
                let mine = mine.get().unwrap();
                let was_armed = event_loop.cancel(mine);
                calls.push((periodic, was_armed, event_loop.cancel(mine)));
            };
            let timer = match periodic {
                true => event_loop.run_every(MS, fire),
                false => event_loop.run_after(MS, fire),
            };
            id.set(Some(timer));
        };
        arm(false);
        arm(true);
        event_loop.run_after(50 * MS, EventLoop::quit);
        run(&event_loop);
        let mut seen = seen.take();
        seen.sort_unstable();
        // A timer that fires once is no longer armed when it does.
        assert_eq!(seen, [(false, false, false), (true, true, false)]);
    });
}

#[test]
fn b48_a_timer_cancelled_in_the_same_batch_does_not_fire() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let start = Instant::now();
        for (periodic, delay) in [(false, 0), (false, 20), (true, 1), (true, 20)] {
            let victim: Rc<Cell<Option<TimerId>>> = Rc::default();
            let (id, calls) = (Rc::clone(&victim), seen.clone());
            // Of two timers for one moment the one armed first is called first.
            event_loop.run_at(start + delay * MS, move |event_loop| {
                let victim = id.get().unwrap();
                calls.push((event_loop.cancel(victim), event_loop.cancel(victim)));
            });
            let calls = seen.clone();
            let fire = move |_: &EventLoop| calls.push((false, true));
            victim.set(Some(match periodic {
                true => event_loop.run_every(delay * MS, fire),
                false => event_loop.run_at(start + delay * MS, fire),
            }));
        }
        event_loop.run_at(start + 50 * MS, EventLoop::quit);
        block_until(start + 50 * MS);
        run(&event_loop);
        assert_eq!(seen.take(), [(true, false); 4]);
        assert_eq!(event_loop.metrics().turns, 1, "all were due together");
    });
}

/// Timers that are due again at once, armed by themselves or periodic.
#[test]
fn b49_a_timer_that_re_arms_itself_starves_nothing() {
    fn again(event_loop: &EventLoop) {
        event_loop.run_after(Duration::ZERO, again);
    }
    fn always_in_the_past(event_loop: &EventLoop) {
        event_loop.run_at(Instant::now(), always_in_the_past);
    }
    each_poller!().run(|| {
        let setups: [fn(&EventLoop); 3] = [again, always_in_the_past, |event_loop| {
            event_loop.run_every(Duration::ZERO, |_| {});
        }];
        for setup in setups {
            let (mut near, far) = UnixStream::pair().unwrap();
            near.set_read_timeout(Some(DEADLINE)).unwrap();
            far.set_nonblocking(true).unwrap();
            let echo = |_: &EventLoop, mut far: &UnixStream, _: Event| {
                let mut byte = [0];
                if far.read(&mut byte).unwrap() == 1 {
                    far.write_all(&byte).unwrap();
                }
            };
            let init = move |event_loop: &EventLoop| {
                setup(event_loop);
                event_loop.register(Channel::new(far, Interest::READ, echo))?;
                Ok(())
            };
            let thread = LoopThread::spawn("test-loop", EventLoop::builder(), init).unwrap();
            for byte in 0..50 {
                near.write_all(&[byte]).unwrap();
                let mut back = [0];
                near.read_exact(&mut back).unwrap();
                assert_eq!(back, [byte]);
            }
            let (done, is_done) = mpsc::channel();
            thread.handle().post(move |_| done.send(()).unwrap()).unwrap();
            within(&is_done);
            thread.join().unwrap();
        }
    });
}

/// Each of these alone decides how long the wait may last, until another thread ends it.
fn b51_far_timers() {
    let days = |n: u64| Duration::from_secs(n * 86_400);
    // 2^32 ms is where an int of milliseconds comes round to "at once".
    let round = Duration::from_millis(1 << 32);
    // Nanoseconds of 64 bits come round here.
    let age = Duration::from_nanos(u64::MAX) + Duration::from_millis(1);
    for far in [days(25), days(40), round, days(300), days(200_000), age, Duration::MAX] {
        let event_loop = EventLoop::new().unwrap();
        let calls = Record::new();
        let (after, every) = (calls.clone(), calls.clone());
        event_loop.run_after(far, move |_| after.push("after"));
        event_loop.run_every(far, move |_| every.push("every"));
        if let Some(moment) = Instant::now().checked_add(far) {
            let at = calls.clone();
            event_loop.run_at(moment, move |_| at.push("at"));
        }
        let handle = event_loop.handle();
        let quitter = thread::spawn(move || {
            thread::park_timeout(A_WHILE);
            handle.quit();
        });
        event_loop.run().unwrap();
        quitter.join().unwrap();
        assert_eq!(calls.take(), [""; 0], "{far:?}");
        assert!(
            event_loop.metrics().turns < FEW_TURNS,
            "{far:?}: {} turns",
            event_loop.metrics().turns
        );
    }
}

#[test]
fn b51_the_longest_delays_are_never_early() {
    each_poller!().run(b51_far_timers);
}

/// What a kernel before 5.11 does, or a container that forbids what it does not know.
const WITHOUT_PWAIT2: [&str; 7] =
    ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=epoll_pwait2:error=ENOSYS"];

#[test]
fn b51_the_longest_delays_are_never_early_without_epoll_pwait2() {
    alone!().on_poller(PollerKind::Epoll).under(&WITHOUT_PWAIT2).run(b51_far_timers);
}

/// A hundred timers one after the other. A turn for each, not the several or hundreds of a loop
/// that rounds its timeout down and waits again until the time has come.
fn b52_short_delays() {
    let event_loop = EventLoop::new().unwrap();
    let delays = [1, 40, 65, 66, 100, 131, 999, 1_000, 1_001, 3_456].map(Duration::from_micros);
    let fired = Rc::new(Cell::new(0));
    fn arm(event_loop: &EventLoop, delays: [Duration; 10], fired: Rc<Cell<usize>>) {
        if fired.get() == 100 {
            return event_loop.quit();
        }
        let (start, delay) = (Instant::now(), delays[fired.get() % 10]);
        event_loop.run_after(delay, move |event_loop| {
            let elapsed = start.elapsed();
            assert!(elapsed >= delay, "{delay:?} were over after {elapsed:?}");
            fired.set(fired.get() + 1);
            arm(event_loop, delays, fired);
        });
    }
    arm(&event_loop, delays, fired);
    run(&event_loop);
    assert!(event_loop.metrics().turns < 120, "{} turns", event_loop.metrics().turns);
}

#[test]
fn b52_timers_are_never_early_and_do_not_spin() {
    each_poller!().run(b52_short_delays);
}

#[test]
fn b52_timers_are_never_early_and_do_not_spin_without_epoll_pwait2() {
    alone!().on_poller(PollerKind::Epoll).under(&WITHOUT_PWAIT2).run(b52_short_delays);
}

#[test]
fn b52_a_100_us_period_takes_one_turn_a_call() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (calls, start) = (Cell::new(0), Instant::now());
        event_loop.run_every(Duration::from_micros(100), move |event_loop| {
            calls.set(calls.get() + 1);
            assert!(start.elapsed() >= calls.get() * Duration::from_micros(100));
            if calls.get() == 500 {
                event_loop.quit();
            }
        });
        run(&event_loop);
        assert!(
            event_loop.metrics().turns < 500 + FEW_TURNS,
            "{} turns",
            event_loop.metrics().turns
        );
    });
}

/// Each call blocks the loop for two and a half periods. The ticks it missed are skipped; the next
/// one comes at its old time, half a period later and not a whole one.
#[test]
fn a_periodic_timer_keeps_its_phase_and_skips_what_it_missed() {
    each_poller!().run(|| {
        const PERIOD: Duration = Duration::from_millis(40);
        let periods = |time: Duration| (time.as_nanos() / PERIOD.as_nanos()) as u32;
        let event_loop = EventLoop::new().unwrap();
        let calls = Record::new();
        let note = calls.clone();
        let before = Instant::now();
        event_loop.run_every(PERIOD, move |event_loop| {
            let began = Instant::now();
            block_until(before + PERIOD * (periods(began - before) + 2) + PERIOD / 2);
            note.push((began, Instant::now()));
            if note.len() == 15 {
                event_loop.quit();
            }
        });
        let armed = Instant::now();
        run(&event_loop);
        let calls = calls.take();
        assert!(calls[0].0 - before >= PERIOD);
        for pair in calls.windows(2) {
            let ((_, end), (next, _)) = (pair[0], pair[1]);
            assert!(next >= before + PERIOD * (periods(end - armed) + 1), "a tick was made up for");
        }
        let pauses = calls.windows(2).map(|pair| pair[1].0 - pair[0].1);
        // A busy machine makes some of them longer, but not all.
        let shortest = pauses.min().unwrap();
        assert!(shortest < PERIOD * 9 / 10, "never less than {shortest:?} after a call");
    });
}

/// What is too much for a second is so for ten: it misses 2,000 ticks.
#[test]
fn b53_a_process_that_was_stopped_makes_up_for_no_ticks() {
    each_poller!().run(|| {
        const PERIOD: Duration = Duration::from_micros(500);
        let event_loop = EventLoop::new().unwrap();
        let calls = Record::new();
        let note = calls.clone();
        let (called, has_been_called) = mpsc::channel();
        event_loop.run_every(PERIOD, move |_| {
            note.push(Instant::now());
            _ = called.send(());
        });
        let handle = event_loop.handle();
        let stopper = thread::spawn(move || {
            (0..3).for_each(|_| within(&has_been_called));
            let stop_me = format!("kill -STOP {0}; sleep 1; kill -CONT {0}", std::process::id());
            let outcome = Command::new("sh").args(["-c", &stop_me]).status();
            let quit_later =
                |event_loop: &EventLoop| _ = event_loop.run_after(50 * MS, EventLoop::quit);
            handle.post(quit_later).unwrap();
            outcome
        });
        run(&event_loop);
        assert!(stopper.join().unwrap().unwrap().success());

        let calls = calls.take();
        let longest = calls.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        assert!(longest >= Duration::from_millis(900), "it was not stopped: {longest:?}");
        // In no stretch of time are there more calls than ticks, and one that was late before it.
        for (i, first) in calls.iter().enumerate() {
            for (n, later) in (1..).zip(&calls[i + 1..]) {
                assert!(n <= (*later - *first).as_nanos() / PERIOD.as_nanos() + 1);
            }
        }
    });
}

extern "C" fn do_nothing(_: libc::c_int) {}

/// Each signal, of a kind that restarts no system call, ends the wait early. They come much more
/// often than the timers.
fn b55_signals_while_timers_are_pending() {
    fn arm(event_loop: &EventLoop, delay: Duration, fired: Record<Duration>) {
        let start = Instant::now();
        event_loop.run_after(delay, move |event_loop| {
            let elapsed = start.elapsed();
            assert!(elapsed >= delay, "{delay:?} were over after {elapsed:?}");
            fired.push(delay);
            let turns = event_loop.metrics().turns;
            if delay == 30 * MS && fired.len() > 10 && turns > 4 * fired.len() as u64 {
                return event_loop.quit();
            }
            arm(event_loop, delay, fired);
        });
    }
    let handler = SigHandler::Handler(do_nothing);
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();

    let event_loop = EventLoop::new().unwrap();
    let fired = Record::new();
    for delay in [10 * MS, 30 * MS] {
        arm(&event_loop, delay, fired.clone());
    }
    // SAFETY: it has no preconditions.
    let this = unsafe { libc::pthread_self() };
    let (stop, stopped) = mpsc::channel::<()>();
    let start = Instant::now();
    let signaller = thread::spawn(move || {
        while start.elapsed() < DEADLINE && stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            // SAFETY: the thread it names joins this one before it ends.
            assert_eq!(unsafe { libc::pthread_kill(this, libc::SIGUSR1) }, 0);
            thread::park_timeout(Duration::from_micros(200));
        }
    });
    run(&event_loop);
    drop(stop);
    signaller.join().unwrap();
}

#[test]
fn b55_signals_make_timers_neither_early_nor_lost() {
    each_poller!().run(b55_signals_while_timers_are_pending);
}

#[test]
fn b55_signals_make_timers_neither_early_nor_lost_without_epoll_pwait2() {
    alone!()
        .on_poller(PollerKind::Epoll)
        .under(&WITHOUT_PWAIT2)
        .run(b55_signals_while_timers_are_pending);
}

#[test]
fn a_timer_due_with_an_event_fires_after_it_and_before_tasks() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let note = |what: &'static str| {
            let seen = seen.clone();
            move |_: &EventLoop| seen.push(what)
        };
        let task = note("task");
        event_loop.defer(move |event_loop| {
            task(event_loop);
            event_loop.quit();
        });
        event_loop.run_after(Duration::ZERO, note("timer"));
        let (mut near, far) = pair();
        near.write_all(b"x").unwrap();
        let event = note("event");
        let handler = move |event_loop: &EventLoop, _: &_, _: Event| event(event_loop);
        event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap();
        run(&event_loop);
        assert_eq!(seen.take(), ["event", "timer", "task"]);
    });
}
