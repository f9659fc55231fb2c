//! A loop that looks for a while before it sleeps.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bare_loop::{pair, run};
use common::{DEADLINE, within};
use ruduo::{Channel, EventLoop, Interest};

fn looking_for(time: Duration) -> EventLoop {
    EventLoop::builder().busy_poll(time).build().unwrap()
}

/// How often the calling thread has given up its CPU to wait for something.
#[cfg(target_os = "linux")]
fn sleeps() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

/// How often the thread of a loop sleeps that has nothing but a timer to wait for. (It may have to wait
/// for something else, and on a busy machine the timer may be due before the loop has looked.)
#[cfg(target_os = "linux")]
fn sleeps_until_timer(looking: Duration, timer: Duration) -> u64 {
    use std::cell::Cell;
    use std::rc::Rc;

    let event_loop = looking_for(looking);
    let (before, after) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (first, last) = (before.clone(), after.clone());
    event_loop.defer(move |event_loop| {
        first.set(sleeps());
        event_loop.run_after(timer, move |event_loop| {
            last.set(sleeps());
            event_loop.quit();
        });
    });
    run(&event_loop);
    after.get() - before.get()
}

#[test]
#[cfg(target_os = "linux")]
fn it_looks_for_as_long_as_it_may_and_then_sleeps() {
    use common::eventually;

    each_poller!().run(|| {
        let (short, long) = (Duration::from_millis(1), Duration::from_millis(50));
        eventually("it looks all the time", || sleeps_until_timer(Duration::MAX, long) == 0);
        eventually("it looks and sleeps", || sleeps_until_timer(short, long) > 0);
        eventually("it sleeps", || sleeps_until_timer(Duration::ZERO, long) > 0);
    });
}

#[test]
fn a_timer_is_neither_early_nor_forgotten() {
    each_poller!().run(|| {
        for looking in [Duration::from_millis(2), DEADLINE * 2] {
            let event_loop = looking_for(looking);
            let start = Instant::now();
            for timer in [0, 1, 5, 20].map(Duration::from_millis) {
                event_loop.run_after(timer, move |event_loop| {
                    assert!(start.elapsed() >= timer);
                    if timer == Duration::from_millis(20) {
                        event_loop.quit();
                    }
                });
            }
            run(&event_loop);
            assert!(start.elapsed() < DEADLINE);
        }
    });
}

#[test]
fn what_comes_ends_the_looking() {
    each_poller!().run(|| {
        let event_loop = looking_for(DEADLINE * 2);
        let handle = event_loop.handle();
        let (mut near, far) = pair();
        let (say, said) = mpsc::channel();
        let has_read = say.clone();
        let channel = Channel::new(far, Interest::READ, move |event_loop, _, event| {
            event_loop.deregister(event.token);
            has_read.send("event").unwrap();
        });
        event_loop.register(channel).unwrap();
        let other = thread::spawn(move || {
            let posted = say.clone();
            handle.post(move |_| posted.send("task").unwrap()).unwrap();
            assert_eq!(within(&said), "task");
            near.write_all(b"x").unwrap();
            assert_eq!(within(&said), "event");
            // The loop looks again: a task now, and then the end.
            handle.post(move |_| say.send("task").unwrap()).unwrap();
            assert_eq!(within(&said), "task");
            handle.quit();
        });
        run(&event_loop);
        other.join().unwrap();
    });
}
