//! The life of an event loop: one per thread, run once, quit from anywhere, forked.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::io::{self, Write};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::{self, ThreadId};
use std::time::Duration;

use bare_loop::{
    FEW_TURNS, Record, assert_exited_well, exit_child, fork_here, forked, notifier_kinds, pair, run,
};
use common::{DEADLINE, within};
use nix::sys::wait::waitpid;
use nix::unistd::alarm;
use ruduo::{
    Channel, Event, EventLoop, Interest, LoopHandle, LoopPool, LoopThread, Mode, PostError, Signal,
};

#[test]
fn a_thread_has_one_loop_at_a_time() {
    each_poller!().run(|| {
        let refused = || EventLoop::new().unwrap_err().kind() == io::ErrorKind::AlreadyExists;
        assert!(!EventLoop::exists_on_this_thread());
        let first = EventLoop::new().unwrap();
        assert!(EventLoop::exists_on_this_thread());
        assert!(refused());

        let other = thread::spawn(|| EventLoop::new().map(drop).is_ok());
        assert!(other.join().unwrap(), "another thread may have its own");

        // One that has run is still there until it is dropped.
        first.quit();
        run(&first);
        assert!(refused());
        drop(first);
        assert!(!EventLoop::exists_on_this_thread());
        drop(EventLoop::new().unwrap());
    });
}

#[test]
fn b46_run_inside_run_is_an_error() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let refused = Record::new();
        let run_again = |from: &'static str| {
            let refused = refused.clone();
            move |event_loop: &EventLoop| refused.push((from, event_loop.run().is_err()))
        };
        event_loop.run_after(Duration::ZERO, run_again("timer"));
        event_loop.defer(run_again("task"));
        let (mut near, far) = pair();
        near.write_all(b"x").unwrap();
        let again = run_again("handler");
        let handler = move |event_loop: &EventLoop, _: &_, event: Event| {
            again(event_loop);
            event_loop.deregister(event.token);
        };
        event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap();
        event_loop.run_after(Duration::from_millis(1), EventLoop::quit);
        run(&event_loop);
        assert_eq!(refused.take(), [("handler", true), ("timer", true), ("task", true)]);
    });
}

#[test]
fn b46_a_loop_runs_once() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        event_loop.quit();
        run(&event_loop);
        assert!(event_loop.run().is_err());

        // What is left of it takes nothing any more, and says so where it can.
        // It keeps nothing of it, for it will have no end of a turn at which to let go.
        let value = Rc::new(());
        let held = || Rc::clone(&value);
        let (_near, far) = pair();
        let of_handler = held();
        let handler = move |_: &EventLoop, _: &_, _| _ = Rc::strong_count(&of_handler);
        assert!(event_loop.register(Channel::new(far, Interest::READ, handler)).is_err());
        let of_signal = held();
        let handler = move |_: &EventLoop, _| _ = Rc::strong_count(&of_signal);
        assert!(event_loop.on_signal(Signal::SIGUSR1, handler).is_err());
        let of_timer = held();
        let timer = event_loop.run_after(Duration::ZERO, move |_| unreachable!("{of_timer:?}"));
        assert!(!event_loop.cancel(timer));
        let of_task = held();
        event_loop.defer(move |_| unreachable!("{of_task:?}"));
        assert_eq!(Rc::strong_count(&value), 1);
    });
}

#[test]
fn b40_quit_before_run_is_not_lost() {
    each_poller!().run(|| {
        type Quit = fn(&EventLoop);
        // And how many turns are made until then: a task has one that runs it.
        let ways: [(u64, Quit); 4] = [
            (0, |event_loop| event_loop.quit()),
            (0, |event_loop| event_loop.handle().quit()),
            (0, |event_loop| {
                let handle = event_loop.handle();
                thread::spawn(move || handle.quit()).join().unwrap();
            }),
            (1, |event_loop| {
                let handle = event_loop.handle();
                thread::spawn(move || handle.post(EventLoop::quit)).join().unwrap().unwrap();
            }),
        ];
        for (turns, quit) in ways {
            let event_loop = EventLoop::new().unwrap();
            quit(&event_loop);
            run(&event_loop);
            assert_eq!(event_loop.metrics().turns, turns);
            assert!(event_loop.handle().is_ended());
        }
    });
}

#[test]
fn b40_quit_from_another_thread_at_any_moment_ends_the_loop() {
    each_poller!().run(|| {
        for round in 0..3_000 {
            let event_loop = EventLoop::new().unwrap();
            let handle = event_loop.handle();
            let quitter = thread::spawn(move || {
                // Different pauses meet the loop before, at the beginning of and in its wait.
                for _ in 0..(round % 50) * 40 {
                    std::hint::spin_loop();
                }
                handle.quit();
            });
            run(&event_loop);
            quitter.join().unwrap();
        }
    });
}

fn start_and_drop_a_pool_10_000_times() {
    let base = EventLoop::new().unwrap();
    for _ in 0..10_000 {
        drop(LoopPool::builder(&base).threads(1).start().unwrap());
    }
}

#[test]
fn b40_a_pool_is_started_and_dropped_10_000_times() {
    each_poller!().run(start_and_drop_a_pool_10_000_times);
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
#[test]
fn b40_a_pool_is_started_and_dropped_10_000_times_on_one_cpu() {
    each_poller!().run(|| {
        use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
        use nix::unistd::Pid;

        let this = Pid::from_raw(0);
        let mine = sched_getaffinity(this).unwrap();
        let cpu = (0..CpuSet::count()).find(|cpu| mine.is_set(*cpu).unwrap()).unwrap();
        let mut one = CpuSet::new();
        one.set(cpu).unwrap();
        sched_setaffinity(this, &one).unwrap();
        start_and_drop_a_pool_10_000_times();
    });
}

type Tell = Box<dyn FnOnce(&EventLoop) + Send>;

/// Tells when it is dropped.
struct Last {
    event_loop: LoopHandle,
    tell: Option<Tell>,
}

impl Drop for Last {
    fn drop(&mut self) {
        self.event_loop.with_local(self.tell.take().unwrap());
    }
}

/// There is nothing else for which the loop would have to look: no timer, no other task.
#[test]
fn what_an_event_gives_a_loop_to_do_is_done_in_its_turn() {
    each_poller!().run(|| {
        let ways: [fn(&EventLoop, Tell); 4] = [
            |event_loop, tell| event_loop.defer(tell),
            |event_loop, tell| event_loop.handle().post(tell).unwrap(),
            |event_loop, tell| _ = event_loop.run_after(Duration::ZERO, tell),
            |event_loop, tell| {
                let last = Last { event_loop: event_loop.handle(), tell: Some(tell) };
                let handler = move |_: &EventLoop, _: &_, _: Event| _ = &last;
                let channel = Channel::new(pair().0, Interest::WRITE, handler);
                let token = event_loop.register(channel).unwrap();
                assert!(event_loop.deregister(token));
            },
        ];
        let thread = LoopThread::spawn("test-loop", EventLoop::builder(), |_| Ok(())).unwrap();
        for (way, ask) in ways.into_iter().enumerate() {
            let (mut near, far) = pair();
            near.write_all(b"x").unwrap();
            let (turn, turns) = mpsc::channel();
            let handler = move |event_loop: &EventLoop, _: &_, _: Event| {
                let turn = turn.clone();
                let tell = move |event_loop: &EventLoop| {
                    turn.send(event_loop.metrics().turns).unwrap();
                };
                tell.clone()(event_loop);
                ask(event_loop, Box::new(tell));
            };
            let channel = move || Channel::new(far, Interest::READ, handler).mode(Mode::OneShot);
            let register = |event_loop: &EventLoop| _ = event_loop.register(channel()).unwrap();
            thread.handle().post(register).unwrap();
            let (asked, done) = (within(&turns), within(&turns));
            assert_eq!(asked, done, "way {way}");
        }
    });
}

#[test]
fn b40_quit_lets_the_phase_finish_and_runs_the_last_tasks() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (note, seen) = mpsc::channel();
        let record = |what: &'static str| {
            let note = note.clone();
            move |_: &EventLoop| note.send(what).unwrap()
        };
        let peers = [("first", "posted by first"), ("second", "posted by second")].map(|names| {
            let (mut near, far) = pair();
            near.write_all(b"x").unwrap();
            let mut both = Some((record(names.0), record(names.1)));
            let handler = move |event_loop: &EventLoop, _: &_, _: Event| {
                let (note, task) = both.take().unwrap();
                note(event_loop);
                event_loop.quit();
                event_loop.handle().post(task).unwrap();
            };
            event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap();
            near
        });
        event_loop.run_after(Duration::ZERO, record("timer"));
        event_loop.defer(record("task"));
        run(&event_loop);
        let expected = ["first", "second", "task", "posted by first", "posted by second"];
        assert_eq!(seen.try_iter().collect::<Vec<_>>(), expected);
        drop(peers);
    });
}

#[test]
fn b40_tasks_posted_before_quit_run() {
    each_poller!().run(|| {
        // More than a turn runs.
        const TASKS: usize = 25_000;
        let (done, tasks_done) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let thread = LoopThread::spawn("test-loop", EventLoop::builder(), |_| Ok(())).unwrap();
        // All of them, and quit, arrive while the loop is busy.
        thread.handle().post(move |_| _ = may_go_on.recv_timeout(DEADLINE)).unwrap();
        for i in 0..TASKS {
            let done = done.clone();
            thread.handle().post(move |_| done.send(i).unwrap()).unwrap();
        }
        thread.handle().quit();
        drop(go_on);
        thread.join().unwrap();
        assert!(tasks_done.try_iter().eq(0..TASKS));
    });
}

#[test]
fn b40_posts_after_the_end_are_refused_and_dropped_on_the_caller() {
    each_poller!().run(|| {
        struct SaysWhere(mpsc::Sender<ThreadId>);
        impl Drop for SaysWhere {
            fn drop(&mut self) {
                self.0.send(thread::current().id()).unwrap();
            }
        }
        fn assert_refused(handle: &LoopHandle) {
            let (send, dropped) = mpsc::channel();
            let value = SaysWhere(send);
            let refused = handle.post(move |_| drop(value));
            assert_eq!(refused, Err(PostError::Ended));
            assert_eq!(dropped.try_recv(), Ok(thread::current().id()));
        }

        let event_loop = EventLoop::new().unwrap();
        let handle = event_loop.handle();
        let from_last_task = handle.clone();
        event_loop.defer(move |_| assert_refused(&from_last_task));
        event_loop.quit();
        run(&event_loop);
        assert_refused(&handle);
        drop(event_loop);
        thread::spawn(move || assert_refused(&handle)).join().unwrap();
    });
}

#[test]
fn b40_a_task_deferred_by_the_last_ones_is_dropped() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let value = Rc::new(());
        let held = Rc::clone(&value);
        event_loop.defer(|event_loop| {
            event_loop.defer(move |_| unreachable!("it holds {held:?}"));
        });
        event_loop.quit();
        run(&event_loop);
        assert_eq!(Rc::strong_count(&value), 1);
    });
}

#[test]
fn b40_a_loop_that_never_ran_ends_the_same_way() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (handle, seen) = (event_loop.handle(), Record::new());
        let value = Rc::new(());
        for i in 0..3 {
            let seen = seen.clone();
            event_loop.defer(move |_| seen.push(i));
        }
        let (in_timer, in_source) = (Rc::clone(&value), Rc::clone(&value));
        event_loop.run_after(DEADLINE, move |_| drop(in_timer));
        let (_near, far) = pair();
        let handler = move |_: &EventLoop, _: &_, _| _ = Rc::strong_count(&in_source);
        event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap();

        drop(event_loop);
        assert_eq!(seen.take(), [0, 1, 2]);
        assert_eq!(Rc::strong_count(&value), 1);
        assert_eq!(handle.post(|_| {}), Err(PostError::Ended));
        assert!(handle.is_ended());
        handle.quit();
    });
}

#[test]
fn a_handle_outlives_its_loop() {
    each_poller!().run(|| {
        for kind in notifier_kinds() {
            let handle = EventLoop::builder().notifiers(*kind).build().unwrap().handle();
            let event_loop = EventLoop::builder().notifiers(*kind).build().unwrap();
            assert_ne!(handle, event_loop.handle());
            // It reaches neither the dead loop nor the one that has its descriptors' place.
            handle.quit();
            assert_eq!(handle.post(EventLoop::quit), Err(PostError::Ended));
            let turns = bare_loop::turns_in_a_while(&event_loop);
            assert!((1..FEW_TURNS).contains(&turns), "{turns} turns");
        }
    });
}

#[test]
fn a_forked_child_can_not_use_the_loop_and_does_not_disturb_it() {
    each_poller!().run(|| {
        let mut parents = Some(EventLoop::new().unwrap());
        let (mut near, far) = pair();
        let quit = Channel::new(far, Interest::READ, |event_loop, _, _| event_loop.quit());
        let token = parents.as_ref().unwrap().register(quit).unwrap();
        let seen = Record::new();
        let note = seen.clone();
        parents.as_ref().unwrap().defer(move |_| note.push("the parent's task"));

        let child = forked(|| {
            let event_loop = parents.take().unwrap();
            let handle = event_loop.handle();
            assert_eq!(handle.post(|_| {}), Err(PostError::Forked));
            let (_near, far) = pair();
            let channel = Channel::new(far, Interest::READ, |_, _, _| {});
            assert!(event_loop.register(channel).is_err());
            assert!(event_loop.set_interest(token, Interest::NONE).is_err());
            assert!(event_loop.on_signal(Signal::SIGUSR1, |_, _| {}).is_err());
            assert!(event_loop.run().is_err());
            // Neither the parent's registration nor its loop is ended by these.
            handle.quit();
            event_loop.quit();
            event_loop.deregister(token);
            drop(event_loop);
            assert_eq!(seen.len(), 0, "the parent's task is not the child's");

            // The child may have a loop of its own.
            let own = EventLoop::new().unwrap();
            own.handle().post(EventLoop::quit).unwrap();
            run(&own);
        });
        assert_exited_well(child);

        let event_loop = parents.unwrap();
        assert!(!event_loop.handle().is_ended());
        near.write_all(b"x").unwrap();
        run(&event_loop);
        assert_eq!(seen.take(), ["the parent's task"]);
    });
}

/// The child's copy of the loop is in the middle of a turn: it goes no further.
#[test]
fn a_child_forked_in_a_callback_gets_an_error_from_run() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (mut near, far) = pair();
        near.write_all(b"x").unwrap();
        let (seen, child) = (Record::new(), Record::new());
        let (note, forked) = (seen.clone(), child.clone());
        let fork_in_handler = move |event_loop: &EventLoop, _: &_, event: Event| {
            event_loop.deregister(event.token);
            match fork_here() {
                Some(pid) => forked.push(pid),
                // Nothing but the child's.
                None => drop(note.take()),
            }
        };
        event_loop.register(Channel::new(far, Interest::READ, fork_in_handler)).unwrap();
        let record = |what: &'static str| {
            let seen = seen.clone();
            move |_: &EventLoop| seen.push(what)
        };
        event_loop.run_after(Duration::ZERO, record("timer"));
        event_loop.defer(record("task"));
        event_loop.run_after(Duration::from_millis(1), EventLoop::quit);

        let outcome = event_loop.run();
        let Some(child) = child.take().pop() else {
            let went_on = seen.take();
            if !went_on.is_empty() {
                eprintln!("the child called {went_on:?}");
            }
            exit_child(i32::from(outcome.is_ok() || !went_on.is_empty()));
        };
        outcome.unwrap();
        assert_exited_well(waitpid(child, None).unwrap());
        assert_eq!(seen.take(), ["timer", "task"]);
    });
}

/// Nor does it wait for more, when the parent's loop would.
#[test]
fn a_child_forked_in_a_callback_does_not_wait() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (mut near, far) = pair();
        near.write_all(b"x").unwrap();
        let child = Record::new();
        let forked = child.clone();
        let fork_in_handler = move |event_loop: &EventLoop, _: &_, _: Event| match fork_here() {
            Some(pid) => {
                forked.push(pid);
                event_loop.quit();
            }
            // Ends it, if nothing else does.
            None => _ = alarm::set(DEADLINE.as_secs() as u32),
        };
        let channel = Channel::new(far, Interest::READ, fork_in_handler).mode(Mode::OneShot);
        event_loop.register(channel).unwrap();

        let outcome = event_loop.run();
        let Some(child) = child.take().pop() else { exit_child(i32::from(outcome.is_ok())) };
        outcome.unwrap();
        assert_exited_well(waitpid(child, None).unwrap());
    });
}

/// The child has one thread; a lock that another one held at the fork stays locked there for ever.
#[test]
fn a_forked_child_does_not_wait_for_the_threads_it_left_behind() {
    each_poller!().run(|| {
        for _ in 0..200 {
            let event_loop = EventLoop::new().unwrap();
            let handle = event_loop.handle();
            let (started, has_started) = mpsc::channel();
            let (stop, stopped) = mpsc::channel::<()>();
            let poster = thread::spawn(move || {
                started.send(()).unwrap();
                while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                    (0..50).for_each(|_| handle.post(|_| {}).unwrap());
                }
            });
            within(&has_started);
            let child = forked(|| {
                event_loop.defer(|_| {});
                event_loop.handle().quit();
                event_loop.handle().post(|_| {}).unwrap_err();
                event_loop.run().unwrap_err();
            });
            assert_exited_well(child);
            drop(stop);
            poster.join().unwrap();
        }
    });
}
