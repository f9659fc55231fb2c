//! What other threads leave for a loop, and when they must wake it.
//!
//! A wakeup is a system call, so it is made only when the loop sleeps, and by only one of the
//! posters. One flag decides, which both sides exchange and never merely write:
//!
//! ```text
//!        poster                                     loop, before it waits
//!   1. put the task in, PENDING = true         1. exchange ASLEEP for true
//!   2. exchange ASLEEP for false               2. PENDING?  then ASLEEP for false, do not wait
//!      it was true: write a wakeup
//! ```
//!
//! All exchanges of one variable have one order, and each sees what was done before the earlier
//! ones. If the loop's comes first, the poster finds true and wakes it; if the poster's comes
//! first, the loop finds PENDING. (With plain writes, both sides would need a fence, which costs as
//! much as the exchange; and of loops, only one that is about to block pays it.) `tests` below lets
//! loom try the interleavings.

#[cfg(not(loom))]
use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

#[cfg(loom)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};
#[cfg(loom)]
use std::sync::PoisonError;

/// A queue from many threads to one loop.
pub(crate) struct Inbox<T> {
    queue: Mutex<Queue<T>>,
    /// The queue holds something new. Written under the lock, read by the loop without it.
    pending: AtomicBool,
    /// The loop sleeps, or is about to: the next poster wakes it.
    asleep: AtomicBool,
}

struct Queue<T> {
    tasks: Vec<T>,
    quit: bool,
    closed: bool,
}

/// Whether the caller has to wake the loop.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    Needed,
    NotNeeded,
}

impl<T> Inbox<T> {
    pub(crate) fn new() -> Inbox<T> {
        Inbox {
            queue: Mutex::new(Queue { tasks: Vec::new(), quit: false, closed: false }),
            pending: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
        }
    }

    /// Leaves a task, or gives it back when the loop takes no more.
    pub(crate) fn push(&self, task: T) -> Result<Wake, T> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(task);
        }
        queue.tasks.push(task);
        Ok(self.announce(queue))
    }

    /// Asks the loop to quit.
    pub(crate) fn push_quit(&self) -> Wake {
        let mut queue = self.lock();
        queue.quit = true;
        self.announce(queue)
    }

    /// There is something new: whether the loop has to be woken for it. Lets go of the lock first.
    fn announce(&self, queue: MutexGuard<'_, Queue<T>>) -> Wake {
        self.pending.store(true, Ordering::Relaxed);
        drop(queue);
        if self.asleep.swap(false, Ordering::AcqRel) { Wake::Needed } else { Wake::NotNeeded }
    }

    /// Loop only: whether something came since the last [`Inbox::take`].
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// Loop only, before a wait that may block: true if it may. From then on posters wake us.
    #[must_use]
    pub(crate) fn fall_asleep(&self) -> bool {
        self.asleep.swap(true, Ordering::AcqRel);
        if self.is_pending() {
            self.wake_up();
            return false;
        }
        true
    }

    /// Loop only, after a wait.
    pub(crate) fn wake_up(&self) {
        self.asleep.swap(false, Ordering::AcqRel);
    }

    /// Loop only: exchanges the queue for the empty `tasks`; true if the loop was asked to quit.
    pub(crate) fn take(&self, tasks: &mut Vec<T>) -> bool {
        let mut queue = self.lock();
        std::mem::swap(&mut queue.tasks, tasks);
        self.pending.store(false, Ordering::Relaxed);
        queue.quit
    }

    /// Loop only, when a burst is over: gives back the memory that is not needed, except room for
    /// `capacity` tasks.
    pub(crate) fn shrink_to(&self, capacity: usize) {
        self.lock().tasks.shrink_to(capacity);
    }

    /// Loop only, at its end: takes what is there and refuses what comes.
    pub(crate) fn close(&self) -> Vec<T> {
        let mut queue = self.lock();
        queue.closed = true;
        std::mem::take(&mut queue.tasks)
    }

    /// No user code runs under this lock, so a poisoned one holds sound data.
    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test --release -p ruduo-reactor --lib inbox`
#[cfg(all(test, loom))]
mod tests {
    use super::*;
    use loom::sync::{Arc, Condvar};
    use loom::thread;

    /// An eventfd: a counter that a wait blocks on. A lost wakeup is a deadlock, which loom
    /// reports.
    #[derive(Default)]
    struct WakeFd {
        count: Mutex<usize>,
        changed: Condvar,
    }

    impl WakeFd {
        fn write(&self) {
            *self.count.lock().unwrap() += 1;
            self.changed.notify_one();
        }

        fn wait_and_read(&self) -> usize {
            let mut count = self.count.lock().unwrap();
            while *count == 0 {
                count = self.changed.wait(count).unwrap();
            }
            std::mem::take(&mut *count)
        }
    }

    fn post(inbox: &Inbox<u32>, fd: &WakeFd, task: u32) {
        if inbox.push(task) == Ok(Wake::Needed) {
            fd.write();
        }
    }

    /// The loop: waits unless something is pending, takes, until it has `expected` tasks.
    fn run(inbox: &Inbox<u32>, fd: &WakeFd, expected: usize) -> (Vec<u32>, usize) {
        let (mut seen, mut wakeups) = (Vec::new(), 0);
        while seen.len() < expected {
            if inbox.fall_asleep() {
                wakeups += fd.wait_and_read();
                inbox.wake_up();
            }
            let mut batch = Vec::new();
            inbox.take(&mut batch);
            seen.append(&mut batch);
        }
        (seen, wakeups)
    }

    /// All interleavings of three threads take minutes; those in which each is interrupted at
    /// most three times take seconds, and one poster alone is tried in full below.
    #[test]
    fn b42_no_wakeup_is_lost() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let shared = Arc::new((Inbox::new(), WakeFd::default()));
            let posters: Vec<_> = [10, 20]
                .into_iter()
                .map(|first| {
                    let shared = shared.clone();
                    thread::spawn(move || post(&shared.0, &shared.1, first))
                })
                .collect();
            let (seen, _) = run(&shared.0, &shared.1, 2);
            for poster in posters {
                poster.join().unwrap();
            }
            assert!(seen == [10, 20] || seen == [20, 10]);
        });
    }

    #[test]
    fn one_poster_is_served_in_order_and_wakes_at_most_once_a_sleep() {
        loom::model(|| {
            let shared = Arc::new((Inbox::new(), WakeFd::default()));
            let poster = {
                let shared = shared.clone();
                thread::spawn(move || {
                    post(&shared.0, &shared.1, 1);
                    post(&shared.0, &shared.1, 2);
                })
            };
            let (seen, wakeups) = run(&shared.0, &shared.1, 2);
            poster.join().unwrap();
            assert_eq!(seen, [1, 2]);
            assert!(wakeups <= 2);
        });
    }

    #[test]
    fn quit_ends_a_sleep() {
        loom::model(|| {
            let shared = Arc::new((Inbox::<u32>::new(), WakeFd::default()));
            let quitter = {
                let shared = shared.clone();
                thread::spawn(move || {
                    if shared.0.push_quit() == Wake::Needed {
                        shared.1.write();
                    }
                })
            };
            let mut none = Vec::new();
            while !shared.0.take(&mut none) {
                if shared.0.fall_asleep() {
                    shared.1.wait_and_read();
                    shared.0.wake_up();
                }
            }
            quitter.join().unwrap();
        });
    }

    #[test]
    fn a_task_posted_while_closing_runs_or_is_refused() {
        loom::model(|| {
            let inbox = Arc::new(Inbox::new());
            let poster = {
                let inbox = inbox.clone();
                thread::spawn(move || inbox.push(1).is_ok())
            };
            let last = inbox.close();
            let accepted = poster.join().unwrap();
            assert_eq!(accepted, last == [1]);
        });
    }
}
