//! Tasks: how other threads, and the loop's own callbacks, leave work for a loop.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bare_loop::{A_WHILE, FEW_TURNS, Record, notifier_kinds, pair, run};
use common::{DEADLINE, eventually, open_fds, proc, within};
use ruduo::{Channel, Event, EventLoop, EventLoopBuilder, Interest, LoopThread, PollerKind};

fn spawn(builder: EventLoopBuilder) -> LoopThread {
    LoopThread::spawn("test-loop", builder, |_| Ok(())).unwrap()
}

#[test]
fn post_and_defer_share_one_order() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (done, tasks_done) = mpsc::channel();
        for i in (0..300).step_by(3) {
            let (first, second, third) = (done.clone(), done.clone(), done.clone());
            event_loop.handle().post(move |_| first.send(i).unwrap()).unwrap();
            event_loop.defer(move |_| second.send(i + 1).unwrap());
            let handle = event_loop.handle();
            let other = thread::spawn(move || handle.post(move |_| third.send(i + 2).unwrap()));
            other.join().unwrap().unwrap();
        }
        event_loop.defer(EventLoop::quit);
        run(&event_loop);
        assert!(tasks_done.try_iter().eq(0..300));
    });
}

#[test]
fn tasks_of_callbacks_run_in_this_turn_and_tasks_of_tasks_in_the_next() {
    let turns_of_tasks = || {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let note = |what: &'static str| {
            let seen = seen.clone();
            move |event_loop: &EventLoop| seen.push((what, event_loop.metrics().turns))
        };
        let (mut near, far) = pair();
        near.write_all(b"x").unwrap();
        let of_handler = RefCell::new(Some(note("of a handler")));
        let handler = move |event_loop: &EventLoop, _: &UnixStream, event: Event| {
            event_loop.deregister(event.token);
            event_loop.defer(of_handler.take().unwrap());
        };
        event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap();
        let of_timer = note("of a timer");
        event_loop.run_after(Duration::ZERO, move |event_loop| event_loop.defer(of_timer));
        let (of_task, last) = (note("of a task"), note("of that one"));
        event_loop.defer(move |event_loop| {
            event_loop.defer(move |event_loop| {
                of_task(event_loop);
                event_loop.defer(last);
                event_loop.defer(EventLoop::quit);
            });
        });
        run(&event_loop);
        seen.take()
    };
    let expected = [("of a handler", 1), ("of a timer", 1), ("of a task", 2), ("of that one", 3)];
    each_poller!().run(|| {
        // A turn in which there is no time left leaves them for the next.
        assert!((0..5).any(|_| turns_of_tasks() == expected), "{:?}", turns_of_tasks());
    });
}

#[test]
fn many_tasks_or_long_ones_do_not_keep_the_rest_of_the_loop_waiting() {
    each_poller!().run(|| {
        let spin = |time: Duration| {
            let start = Instant::now();
            while start.elapsed() < time {}
        };
        for (tasks, time) in [(25_000, Duration::ZERO), (200, Duration::from_millis(1))] {
            let event_loop = EventLoop::new().unwrap();
            let seen = Record::new();
            let count = seen.clone();
            let before_timer = Record::new();
            let note = before_timer.clone();
            event_loop.defer(move |event_loop| {
                event_loop.run_after(Duration::ZERO, move |_| note.push(count.len()));
            });
            for i in 0..tasks {
                let seen = seen.clone();
                event_loop.defer(move |_| {
                    spin(time);
                    seen.push(i);
                });
            }
            event_loop.defer(EventLoop::quit);
            run(&event_loop);
            assert!(seen.take().into_iter().eq(0..tasks), "all, and in order");
            let before = before_timer.take().pop().unwrap_or(tasks);
            assert!(before < tasks, "{before} of {tasks} before the timer");
        }
    });
}

#[test]
fn b42_no_task_is_lost_and_each_threads_tasks_keep_their_order() {
    const THREADS: usize = 8;
    const TASKS: usize = 20_000;
    #[derive(Default)]
    struct Seen(RefCell<Vec<(usize, usize)>>);

    each_poller!().run(|| {
        let event_loop = spawn(EventLoop::builder());
        thread::scope(|scope| {
            for thread in 0..THREADS {
                let handle = event_loop.handle();
                scope.spawn(move || {
                    for i in 0..TASKS {
                        let task = move |event_loop: &EventLoop| {
                            event_loop.local::<Seen>().0.borrow_mut().push((thread, i));
                        };
                        handle.post(task).unwrap();
                        // Now and then let the loop fall asleep.
                        if i % 1_000 == thread {
                            thread::park_timeout(Duration::from_micros(200));
                        }
                    }
                });
            }
        });
        let (done, all) = mpsc::channel();
        let give = move |event_loop: &EventLoop| {
            done.send(event_loop.local::<Seen>().0.take()).unwrap();
        };
        event_loop.handle().post(give).unwrap();
        let all = within(&all);
        assert_eq!(all.len(), THREADS * TASKS);
        for thread in 0..THREADS {
            let of_thread = all.iter().filter(|(t, _)| *t == thread).map(|(_, i)| *i);
            assert!(of_thread.eq(0..TASKS), "thread {thread}");
        }
        event_loop.join().unwrap();
    });
}

/// Each round trip is a new chance to post just while the loop falls asleep.
#[test]
fn b42_every_post_wakes_whatever_the_waker_is() {
    each_poller!().run(|| {
        for kind in notifier_kinds() {
            let event_loop = spawn(EventLoop::builder().notifiers(*kind));
            thread::scope(|scope| {
                for _ in 0..4 {
                    let handle = event_loop.handle();
                    scope.spawn(move || {
                        let (reply, replies) = mpsc::channel();
                        for i in 0..5_000 {
                            let reply = reply.clone();
                            handle.post(move |_| reply.send(i).unwrap()).unwrap();
                            assert_eq!(within(&replies), i, "{kind:?}");
                        }
                    });
                }
            });
            event_loop.join().unwrap();
        }
    });
}

#[test]
fn b41_a_task_posted_while_the_loop_stops_runs_or_is_refused() {
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    each_poller!().run(|| {
        let (ran, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (mut posted, mut accepted) = (0, 0);
        for _ in 0..200 {
            let event_loop = spawn(EventLoop::builder());
            let posters = [(); 3].map(|()| {
                let handle = event_loop.handle().clone();
                let (ran, dropped) = (Arc::clone(&ran), Arc::clone(&dropped));
                thread::spawn(move || {
                    let mut accepted = 0;
                    loop {
                        let (ran, value) = (Arc::clone(&ran), Counted(Arc::clone(&dropped)));
                        let task = move |_: &EventLoop| {
                            ran.fetch_add(1, Ordering::Relaxed);
                            drop(value);
                        };
                        match handle.post(task) {
                            Ok(()) => accepted += 1,
                            Err(_) => return accepted,
                        }
                    }
                })
            });
            event_loop.join().unwrap();
            for poster in posters {
                let accepted_here: usize = poster.join().unwrap();
                accepted += accepted_here;
                posted += accepted_here + 1;
            }
        }
        assert_eq!(ran.load(Ordering::Relaxed), accepted);
        assert_eq!(dropped.load(Ordering::Relaxed), posted);
    });
}

/// The number by which the system knows this thread.
fn thread_id() -> i32 {
    let stat = proc::read("thread-self/stat");
    stat.split(' ').next().unwrap().parse().unwrap()
}

/// A loop whose waker is an eventfd, with what the kernel knows of it.
struct Watched {
    event_loop: LoopThread,
    thread: i32,
    eventfd: RawFd,
}

impl Watched {
    fn start() -> Watched {
        let eventfds = || -> BTreeSet<String> {
            let all = open_fds().into_iter();
            all.filter(|(_, kind)| kind.contains("[eventfd]")).map(|(fd, _)| fd).collect()
        };
        let before = eventfds();
        let event_loop = spawn(EventLoop::builder());
        let new: Vec<String> = eventfds().difference(&before).cloned().collect();
        let (send, thread) = mpsc::channel();
        event_loop.handle().post(move |_| send.send(thread_id()).unwrap()).unwrap();
        assert_eq!(new.len(), 1);
        Watched { thread: within(&thread), eventfd: new[0].parse().unwrap(), event_loop }
    }

    fn until_asleep(&self) {
        let stat = format!("self/task/{}/stat", self.thread);
        eventually("the loop sleeps", || proc::read(&stat).contains(") S "));
    }

    /// With epoll the loop leaves its eventfd unread: its value is the number of wakeups so far.
    fn wakeups(&self) -> u64 {
        let info = proc::read(&format!("self/fdinfo/{}", self.eventfd));
        let count = info.lines().find_map(|line| line.strip_prefix("eventfd-count:")).unwrap();
        u64::from_str_radix(count.trim(), 16).unwrap()
    }

    fn eventfd(&self) -> BorrowedFd<'_> {
        // SAFETY: it stays open for as long as a handle to the loop lives.
        unsafe { BorrowedFd::borrow_raw(self.eventfd) }
    }

    fn turns(&self) -> u64 {
        let (turns, answer) = mpsc::channel();
        let tell = move |event_loop: &EventLoop| turns.send(event_loop.metrics().turns).unwrap();
        self.event_loop.handle().post(tell).unwrap();
        within(&answer)
    }

    /// Posts a task and waits until it has run.
    fn round_trip(&self) {
        let (done, is_done) = mpsc::channel();
        self.event_loop.handle().post(move |_| done.send(()).unwrap()).unwrap();
        within(&is_done);
    }
}

#[test]
fn one_post_to_a_loop_that_sleeps_is_one_wakeup() {
    alone!().on_poller(PollerKind::Epoll).run(|| {
        let watched = Watched::start();
        watched.until_asleep();
        let before = watched.wakeups();
        for i in 1..=20 {
            watched.round_trip();
            watched.until_asleep();
            assert_eq!(watched.wakeups(), before + i);
        }
    });
}

#[test]
fn posts_in_quick_succession_share_their_wakeups() {
    alone!().on_poller(PollerKind::Epoll).run(|| {
        let watched = Watched::start();
        watched.until_asleep();
        let (before, turns_before) = (watched.wakeups(), watched.turns());
        for _ in 0..20 {
            for _ in 0..1_000 {
                watched.event_loop.handle().post(|_| {}).unwrap();
            }
            watched.until_asleep();
        }
        let turns = watched.turns() - turns_before;
        let wakeups = watched.wakeups() - before;
        assert!(wakeups <= turns + 1, "{wakeups} wakeups in {turns} turns");
    });
}

#[test]
fn a_loop_that_is_awake_needs_no_wakeup() {
    alone!().on_poller(PollerKind::Epoll).run(|| {
        let watched = Watched::start();
        let handle = watched.event_loop.handle();
        let (busy, is_busy) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let block = move |_: &EventLoop| {
            busy.send(()).unwrap();
            _ = may_go_on.recv_timeout(DEADLINE);
        };
        // A timer ends the loop's sleep, and keeps it busy.
        let arm =
            |event_loop: &EventLoop| _ = event_loop.run_after(Duration::from_millis(20), block);
        handle.post(arm).unwrap();
        within(&is_busy);
        let before = watched.wakeups();
        let (done, tasks_done) = mpsc::channel();
        for i in 0..1_000 {
            let done = done.clone();
            handle.post(move |_| done.send(i).unwrap()).unwrap();
        }
        go_on.send(()).unwrap();
        assert!((0..1_000).all(|i| within(&tasks_done) == i));
        assert_eq!(watched.wakeups(), before);
    });
}

#[test]
fn a_wakeup_is_over_when_it_has_been_seen() {
    each_poller!().run(|| {
        for kind in notifier_kinds() {
            let event_loop = EventLoop::builder().notifiers(*kind).build().unwrap();
            let handle = event_loop.handle();
            let poster = thread::spawn(move || {
                for _ in 0..5 {
                    thread::park_timeout(Duration::from_millis(5));
                    handle.post(|_| {}).unwrap();
                }
                let last =
                    |event_loop: &EventLoop| _ = event_loop.run_after(A_WHILE, EventLoop::quit);
                handle.post(last).unwrap();
            });
            run(&event_loop);
            poster.join().unwrap();
            let turns = event_loop.metrics().turns;
            assert!(turns < FEW_TURNS, "{kind:?}: {turns} turns");
        }
    });
}

#[test]
fn b43_a_saturated_eventfd_still_wakes() {
    each_poller!().run(|| {
        let watched = Watched::start();
        for _ in 0..20 {
            watched.until_asleep();
            // Empty already, perhaps.
            _ = nix::unistd::read(watched.eventfd(), &mut [0; 8]);
            // The kernel refuses to count further than this.
            let full = (u64::MAX - 1).to_ne_bytes();
            nix::unistd::write(watched.eventfd(), &full).unwrap();
            watched.until_asleep();
            watched.round_trip();
        }
        watched.until_asleep();
    });
}

/// Tasks that post themselves for ever, by either way, one or more of them than a turn runs.
#[test]
fn b44_tasks_that_post_themselves_starve_nothing() {
    fn post_again(event_loop: &EventLoop) {
        // Refused only at the loop's end.
        _ = event_loop.handle().post(post_again);
    }
    fn defer_again(event_loop: &EventLoop) {
        event_loop.defer(defer_again);
    }
    each_poller!().run(|| {
        for (chains, task) in
            [(1, post_again as fn(&EventLoop)), (1, defer_again), (20_000, defer_again)]
        {
            let (mut near, far) = UnixStream::pair().unwrap();
            near.set_read_timeout(Some(DEADLINE)).unwrap();
            far.set_nonblocking(true).unwrap();
            let (tick, ticks) = mpsc::channel();
            let setup = move |event_loop: &EventLoop| {
                (0..chains).for_each(|_| event_loop.defer(task));
                event_loop.run_every(Duration::from_millis(1), move |_| _ = tick.send(()));
                let echo = |_: &EventLoop, mut far: &UnixStream, _: Event| {
                    let mut byte = [0];
                    if far.read(&mut byte).unwrap() == 1 {
                        far.write_all(&byte).unwrap();
                    }
                };
                event_loop.register(Channel::new(far, Interest::READ, echo))?;
                Ok(())
            };
            let builder = EventLoop::builder();
            let event_loop = LoopThread::spawn("test-loop", builder, setup).unwrap();
            for byte in 0..50 {
                near.write_all(&[byte]).unwrap();
                let mut back = [0];
                near.read_exact(&mut back).unwrap();
                assert_eq!(back, [byte]);
            }
            (0..10).for_each(|_| within(&ticks));
            let (done, is_done) = mpsc::channel();
            event_loop.handle().post(move |_| done.send(()).unwrap()).unwrap();
            within(&is_done);
            event_loop.join().unwrap();
        }
    });
}

#[test]
fn with_local_finds_the_loop_that_runs_on_this_thread() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let handle = event_loop.handle();
        let other_loop = spawn(EventLoop::builder());
        let other = other_loop.handle().clone();
        assert!(handle.with_local(|_| ()).is_none(), "it does not run yet");
        assert!(handle.is_loop_thread() && !other.is_loop_thread());

        let mine = handle.clone();
        event_loop.defer(move |_| {
            let nested = mine.with_local(|event_loop| {
                assert!(other.with_local(|_| ()).is_none(), "another thread's loop");
                // The loop itself, with all it can do.
                mine.with_local(|same| std::ptr::eq(event_loop, same))
            });
            assert_eq!(nested, Some(Some(true)));

            let (mine_there, seen) = (mine.clone(), mpsc::channel());
            let look = move |_: &EventLoop| {
                seen.0.send(mine_there.with_local(|_| ()).is_none()).unwrap();
            };
            other.post(look).unwrap();
            assert!(within(&seen.1), "on another loop's thread");
            mine.with_local(EventLoop::quit).unwrap();
        });
        run(&event_loop);
        assert!(handle.with_local(|_| ()).is_none(), "it does not run any more");
    });
}
