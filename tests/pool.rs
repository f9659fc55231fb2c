//! Threads with a loop each, alone and in pools.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, ThreadId};

use bare_loop::run;
use common::{eventually, open_fds, within};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use ruduo::{
    EventLoop, LoopHandle, LoopPool, LoopThread, Placement, PollerKind, PostError, TcpServer,
    UdpServer,
};

fn spawn() -> LoopThread {
    LoopThread::spawn("test-loop", EventLoop::builder(), |_| Ok(())).unwrap()
}

/// What `f` says on the thread of a loop.
fn ask<T: Send + 'static>(
    event_loop: &LoopHandle,
    f: impl FnOnce(&EventLoop) -> T + Send + 'static,
) -> T {
    let (answer, answers) = mpsc::channel();
    event_loop.post(move |event_loop| answer.send(f(event_loop)).unwrap()).unwrap();
    within(&answers)
}

fn thread_of(event_loop: &LoopHandle) -> ThreadId {
    ask(event_loop, |_| thread::current().id())
}

fn pool(base: &EventLoop, threads: usize) -> LoopPool {
    LoopPool::builder(base).threads(threads).start().unwrap()
}

#[test]
fn a_loop_thread_starts_runs_tasks_and_joins() {
    each_poller!().run(|| {
        let thread = LoopThread::spawn("first", EventLoop::builder(), |event_loop| {
            // Its loop is there, and this is its thread.
            assert!(event_loop.handle().is_loop_thread());
            event_loop.defer(|event_loop| assert_eq!(event_loop.metrics().turns, 1));
            Ok(())
        })
        .unwrap();
        assert!(thread.is_running());
        assert_ne!(thread_of(thread.handle()), thread::current().id());
        thread.join().unwrap();
    });
}

#[test]
fn a_loop_thread_ends_when_it_is_dropped_or_its_loop_quits() {
    each_poller!().run(|| {
        drop(spawn());

        let quits_by_itself = spawn();
        let handle = quits_by_itself.handle().clone();
        handle.post(EventLoop::quit).unwrap();
        eventually("the thread has ended", || !quits_by_itself.is_running());
        assert!(handle.is_ended());
        assert_eq!(handle.post(|_| {}), Err(PostError::Ended));
        quits_by_itself.join().unwrap();
    });
}

#[test]
fn a_loop_thread_that_can_not_start_leaves_nothing() {
    each_poller!().run(|| {
        let init = |_: &EventLoop| Err(io::Error::new(io::ErrorKind::AddrInUse, "no room here"));
        let error = LoopThread::spawn("first", EventLoop::builder(), init).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let text = error.to_string();
        assert!(text.contains("first") && text.contains("no room here"), "{text}");
    });
}

/// Where waiting for the thread would be for ever.
#[test]
fn a_loop_thread_dropped_on_itself_ends_by_itself() {
    each_poller!().run(|| {
        let dropped = spawn();
        let first = dropped.handle().clone();
        first.post(move |_| drop(dropped)).unwrap();
        let joined = spawn();
        let second = joined.handle().clone();
        assert!(ask(&second, move |_| joined.join().is_err()));
        eventually("both have ended", || first.is_ended() && second.is_ended());
    });
}

#[test]
fn a_pool_without_threads_is_its_base_loop() {
    each_poller!().run(|| {
        let base = EventLoop::new().unwrap();
        let starts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&starts);
        let on_start = move |event_loop: &EventLoop| {
            assert!(event_loop.handle().is_loop_thread());
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let pool = LoopPool::builder(&base).on_start(on_start).start().unwrap();
        assert_eq!(starts.load(Ordering::Relaxed), 1);
        assert_eq!(pool.loops(), [base.handle()]);
        for key in 0..3 {
            assert_eq!(pool.next_loop(), base.handle());
            assert_eq!(pool.place(key), Some(&base.handle()));
        }
        let other = pool.clone();
        base.defer(move |base| {
            assert_eq!(other.next_loop(), base.handle());
            base.quit();
        });
        run(&base);
        assert_eq!(pool.place(0), None, "its only loop has ended");
        pool.join().unwrap();
    });
}

#[test]
fn a_pool_of_one_thread() {
    each_poller!().run(|| {
        let base = EventLoop::new().unwrap();
        let pool = pool(&base, 1);
        let worker = pool.next_loop();
        assert_ne!(worker, base.handle());
        assert_ne!(thread_of(&worker), thread::current().id());
        assert_eq!(pool.next_loop(), worker);
        assert_eq!(pool.loops(), [worker]);
    });
}

#[test]
fn a_pool_of_three_threads_takes_turns() {
    each_poller!().run(|| {
        let base = EventLoop::new().unwrap();
        let starts = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&starts);
        let on_start = move |_: &EventLoop| {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        let pool = LoopPool::builder(&base).threads(3).on_start(on_start).start().unwrap();
        assert_eq!(starts.load(Ordering::Relaxed), 3);
        let threads: Vec<_> = pool.loops().iter().map(thread_of).collect();
        let different = |i: usize, j: usize| threads[i] != threads[j];
        assert!(different(0, 1) && different(1, 2) && different(2, 0));
        for i in 0..6 {
            assert_eq!(pool.next_loop(), pool.loops()[i % 3]);
        }
        for i in 0..6 {
            assert_eq!(pool.place(7), Some(&pool.loops()[i % 3]));
        }
        pool.join().unwrap();
    });
}

#[test]
fn placement_by_load_takes_the_least_and_turns_among_equals() {
    each_poller!().run(|| {
        let base = EventLoop::new().unwrap();
        let builder = LoopPool::builder(&base).threads(3);
        let pool = builder.placement(Placement::LeastConnections).start().unwrap();
        let place = || {
            let chosen = pool.place(0).unwrap();
            chosen.add_load();
            chosen
        };
        for round in 1..=4 {
            (0..3).for_each(|_| _ = place());
            assert!(pool.loops().iter().all(|event_loop| event_loop.load() == round));
        }
        // Two pieces of work end on one loop: it gets the next two.
        let relieved = &pool.loops()[1];
        relieved.remove_load();
        relieved.remove_load();
        assert_eq!(place(), relieved);
        assert_eq!(place(), relieved);
        assert_eq!(pool.loops().iter().map(LoopHandle::load).collect::<Vec<_>>(), [4, 4, 4]);
    });
}

#[test]
fn placement_by_hash_depends_on_the_key_alone_and_spreads() {
    each_poller!().run(|| {
        let base = EventLoop::new().unwrap();
        let builder = LoopPool::builder(&base).threads(4);
        let pool = builder.placement(Placement::Hash).start().unwrap();
        let index = |key| {
            let chosen = pool.place(key).unwrap();
            pool.loops().iter().position(|event_loop| event_loop == chosen).unwrap()
        };
        // Keys that differ in low or in high bits only, as addresses do.
        for shift in [0, 8, 24, 40, 56] {
            let first: Vec<_> = (0..250u64).map(|key| index(key << shift)).collect();
            let again: Vec<_> = (0..250u64).map(|key| index(key << shift)).collect();
            assert_eq!(first, again);
            for i in 0..4 {
                let share = first.iter().filter(|chosen| **chosen == i).count();
                assert!(share > 250 / 8, "loop {i} gets {share} of 250 keys << {shift}");
            }
        }
    });
}

#[test]
fn b57_a_loop_that_has_ended_is_passed_over() {
    each_poller!().run(|| {
        for placement in [Placement::RoundRobin, Placement::LeastConnections, Placement::Hash] {
            let base = EventLoop::new().unwrap();
            let pool = LoopPool::builder(&base).threads(3).placement(placement).start().unwrap();
            let end = |i: usize| {
                let handle = pool.loops()[i].clone();
                handle.quit();
                eventually("the loop has ended", || handle.is_ended());
            };
            end(1);
            for key in 0..100 {
                assert_ne!(pool.place(key), Some(&pool.loops()[1]), "{placement:?}");
            }
            end(0);
            for key in 0..100 {
                assert_eq!(pool.place(key), Some(&pool.loops()[2]), "{placement:?}");
            }
            end(2);
            assert_eq!(pool.place(0), None, "{placement:?}");
            pool.join().unwrap();
        }
    });
}

/// Puts something in the place of the loop's epoll instance that can't be waited on. Run on the
/// loop's own thread, where nobody waits on it meanwhile.
fn break_epoll(_: &EventLoop) {
    let mine: Vec<RawFd> = open_fds()
        .into_iter()
        .filter(|(_, kind)| kind.contains("[eventpoll]"))
        .map(|(fd, _)| fd.parse().unwrap())
        .collect();
    // The base loop's is older, so its number is smaller.
    let newest = mine.into_iter().max().unwrap();
    let null = fs::File::open("/dev/null").unwrap();
    // SAFETY: the loop owns the number before and after; only what it names changes.
    unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), newest) };
}

#[test]
fn b57_join_reports_how_a_loop_died() {
    alone!().on_poller(PollerKind::Epoll).expect_log("an event loop failed").run(|| {
        let thread = spawn();
        thread.handle().post(break_epoll).unwrap();
        eventually("the thread has died", || !thread.is_running());
        assert!(thread.handle().is_ended());
        assert_eq!(thread.handle().post(|_| {}), Err(PostError::Ended));
        let error = thread.join().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    });
}

#[test]
fn b57_a_pool_goes_on_without_a_loop_that_died_and_reports_it() {
    alone!().on_poller(PollerKind::Epoll).expect_log("an event loop failed").run(|| {
        let base = EventLoop::new().unwrap();
        let pool = pool(&base, 2);
        // The last one made has the newest descriptors.
        let dead = pool.loops()[1].clone();
        let value = Arc::new(());
        let held = Arc::clone(&value);
        ask(&dead, move |event_loop| {
            event_loop.run_after(common::DEADLINE, move |_| drop(held));
        });
        dead.post(break_epoll).unwrap();
        eventually("the loop has died", || dead.is_ended());
        assert_eq!(pool.place(0), Some(&pool.loops()[0]));
        assert_eq!(pool.place(0), Some(&pool.loops()[0]));
        thread_of(&pool.loops()[0]);
        eventually("what it owned is gone", || Arc::strong_count(&value) == 1);
        assert!(pool.join().is_err());
    });
}

#[test]
fn threads_have_the_pools_name_and_a_number() {
    each_poller!().run(|| {
        let base = EventLoop::new().unwrap();
        let names = |pool: &LoopPool| -> Vec<_> {
            let name = |_: &EventLoop| thread::current().name().map(str::to_owned);
            pool.loops().iter().map(|handle| ask(handle, name).unwrap()).collect()
        };
        assert_eq!(names(&pool(&base, 2)), ["ruduo-0", "ruduo-1"]);
        // Longer than the 15 bytes that the kernel keeps.
        let named = LoopPool::builder(&base).threads(2).name("a-pool-with-a-long-name");
        let expected = ["a-pool-with-a-long-name-0", "a-pool-with-a-long-name-1"];
        assert_eq!(names(&named.start().unwrap()), expected);
    });
}

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
#[test]
fn pinned_threads_have_one_cpu_each_in_turn() {
    each_poller!().run(|| {
        fn cpus() -> Vec<usize> {
            use nix::sched::{CpuSet, sched_getaffinity};

            let set = sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
            (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap()).collect()
        }
        let base = EventLoop::new().unwrap();
        let mine = cpus();
        let threads = mine.len() + 1;
        let pool = LoopPool::builder(&base).threads(threads).pin_to_cpus(true).start().unwrap();
        for (i, handle) in pool.loops().iter().enumerate() {
            assert_eq!(ask(handle, |_| cpus()), [mine[i % mine.len()]]);
        }
        assert_eq!(cpus(), mine, "the thread that starts them is left alone");
    });
}

#[test]
fn a_shared_pool_ends_with_its_last_clone() {
    each_poller!().run(|| {
        let base = EventLoop::new().unwrap();
        let first = pool(&base, 2);
        let (second, third) = (first.clone(), first.clone());
        let worker = first.loops()[0].clone();
        drop(first);
        thread_of(&worker);
        // One of two is not joined, and the threads run on.
        let error = second.join().unwrap_err().to_string();
        assert!(error.contains("shared"), "{error}");
        // Twice, for the first could be its last task.
        thread_of(&worker);
        thread_of(&worker);
        third.join().unwrap();
        assert!(worker.is_ended());
    });
}

#[test]
fn the_last_clone_of_a_pool_may_be_dropped_on_one_of_its_threads() {
    each_poller!().run(|| {
        let base = EventLoop::new().unwrap();
        for threads in [1, 3] {
            let pool = pool(&base, threads);
            let loops = pool.loops().to_vec();
            loops[threads / 2].post(move |_| drop(pool)).unwrap();
            eventually("all loops have ended", || loops.iter().all(LoopHandle::is_ended));
        }
    });
}

/// The soft limit of open descriptors, so that only `free` more can be opened.
fn leave_free(free: rlim_t) {
    let in_use: BTreeSet<rlim_t> = open_fds().keys().map(|fd| fd.parse().unwrap()).collect();
    let gaps = (0..).filter(|fd| !in_use.contains(fd));
    let limit = gaps.take(free as usize).last().map_or(0, |fd| fd + 1);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).unwrap();
}

fn without_limit(old: rlim_t) {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, old, hard).unwrap();
}

/// How many a loop needs: those of its poller, if that has one, and its notifier.
fn descriptors_of_a_loop() -> rlim_t {
    let before = open_fds().len();
    let event_loop = LoopThread::spawn("test-loop", EventLoop::builder(), |_| Ok(())).unwrap();
    let with_it = open_fds().len();
    drop(event_loop);
    (with_it - before) as rlim_t
}

/// Somebody has typed a digit too many: that is an error, before memory is asked for.
#[test]
fn more_threads_than_a_pool_may_have_are_an_error() {
    each_poller!().run(|| {
        let base = EventLoop::new().unwrap();
        let pool = |threads| LoopPool::builder(&base).threads(threads).start().map(drop);
        let server = |threads, acceptor_per_loop| {
            let builder = TcpServer::builder(&base).acceptor_per_loop(acceptor_per_loop);
            let server = builder.bind("127.0.0.1:0")?.threads(threads);
            server.on_message(|_, _| {}).start().map(drop)
        };
        let datagrams = |threads| {
            let server = UdpServer::bind(&base, "127.0.0.1:0").threads(threads);
            server.on_datagram(|_, _| {}).start().map(drop)
        };
        for threads in [LoopPool::MAX_THREADS + 1, usize::MAX] {
            let outcomes =
                [pool(threads), server(threads, false), server(threads, true), datagrams(threads)];
            for error in outcomes.map(Result::unwrap_err) {
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
                assert!(error.to_string().contains(&format!("{threads} threads")), "{error}");
            }
        }
    });
}

#[test]
fn b56_a_loop_without_descriptors_is_an_error() {
    each_poller!().run(|| {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        for free in 0..descriptors_of_a_loop() {
            leave_free(free);
            let alone = EventLoop::new();
            let thread = LoopThread::spawn("test-loop", EventLoop::builder(), |_| Ok(()));
            without_limit(soft);
            for error in [alone.map(drop), thread.map(drop)].map(Result::unwrap_err) {
                let text = error.to_string();
                assert!(text.contains("making an event loop"), "{text}");
                let reason = io::Error::from_raw_os_error(libc::EMFILE).to_string();
                assert!(text.contains(&reason), "{text}");
            }
        }
        assert!(!EventLoop::exists_on_this_thread());
        drop(EventLoop::new().unwrap());
    });
}

#[test]
fn b56_a_pool_that_runs_out_of_descriptors_is_rolled_back() {
    each_poller!().run(|| {
        let base = EventLoop::new().unwrap();
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let before = open_fds();
        for free in 0..4 * descriptors_of_a_loop() {
            leave_free(free);
            let outcome = LoopPool::builder(&base).threads(4).start();
            without_limit(soft);
            assert!(outcome.is_err(), "{free} descriptors are enough for four loops");
            assert_eq!(open_fds(), before, "with {free} descriptors");
        }
        drop(pool(&base, 4));
    });
}

fn b56_the_third_thread_can_not_be_made() {
    let base = EventLoop::new().unwrap();
    let before = open_fds();
    let starts = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&starts);
    let on_start = move |_: &EventLoop| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let outcome = LoopPool::builder(&base).threads(3).on_start(on_start).start();
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("ruduo-2"), "{error}");
    assert_eq!(starts.load(Ordering::Relaxed), 2);
    assert_eq!(open_fds(), before);
}

#[test]
fn b56_a_pool_whose_thread_can_not_be_made_is_rolled_back() {
    const INJECT: &str = "inject=clone3,clone:error=EAGAIN:when=3";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", INJECT];
    each_poller!().under(&strace).run(b56_the_third_thread_can_not_be_made);
}

#[test]
fn b56_a_pool_whose_start_function_fails_is_rolled_back() {
    each_poller!().run(|| {
        let base = EventLoop::new().unwrap();
        let (started, starts) = mpsc::channel();
        let on_start = move |event_loop: &EventLoop| {
            let number = thread::current().name().unwrap().to_owned();
            if number.ends_with('2') {
                return Err(io::Error::other("the third one fails"));
            }
            started.send(event_loop.handle()).unwrap();
            Ok(())
        };
        let outcome = LoopPool::builder(&base).threads(4).on_start(on_start).start();
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("ruduo-2") && error.contains("the third one fails"), "{error}");
        let started: Vec<LoopHandle> = starts.try_iter().collect();
        assert_eq!(started.len(), 2);
        assert!(started.iter().all(LoopHandle::is_ended), "those before have been joined");
    });
}
