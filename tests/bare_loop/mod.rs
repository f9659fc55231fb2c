//! What the tests of the reactor share: loops that run with a deadline, what a bare poller reports,
//! pairs of sockets, forked children.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::cell::{Cell, RefCell};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use ruduo::{EventLoop, Events, NotifierKind, Poller, PollerKind, Ready};

use crate::common::DEADLINE;

/// More turns than any loop with a reason for each needs here, and far fewer than a spinning one
/// makes in [`A_WHILE`].
pub const FEW_TURNS: u64 = 50;

/// Long enough for a loop that spins to show it.
pub const A_WHILE: Duration = Duration::from_millis(200);

/// What callbacks leave for the test to look at.
pub struct Record<T>(Rc<RefCell<Vec<T>>>);

impl<T> Record<T> {
    pub fn new() -> Record<T> {
        Record(Rc::new(RefCell::new(Vec::new())))
    }

    pub fn push(&self, value: T) {
        self.0.borrow_mut().push(value);
    }

    pub fn take(&self) -> Vec<T> {
        self.0.take()
    }

    pub fn len(&self) -> usize {
        self.0.borrow().len()
    }
}

impl<T> Clone for Record<T> {
    fn clone(&self) -> Record<T> {
        Record(Rc::clone(&self.0))
    }
}

/// Says that it was dropped.
pub struct Dropped<T: Copy>(pub Record<T>, pub T);

impl<T: Copy> Drop for Dropped<T> {
    fn drop(&mut self) {
        self.0.push(self.1);
    }
}

/// Runs the loop until something in it quits.
#[track_caller]
pub fn run(event_loop: &EventLoop) {
    let late = Rc::new(Cell::new(false));
    let note = Rc::clone(&late);
    event_loop.run_after(DEADLINE, move |event_loop| {
        note.set(true);
        event_loop.quit();
    });
    event_loop.run().unwrap();
    assert!(!late.get(), "nothing quit the loop within the deadline");
}

/// Runs the loop for a while and returns how many turns it made. The while begins after a few of them,
/// so that on a busy machine, too, all is done that has its reason before.
#[track_caller]
pub fn turns_in_a_while(event_loop: &EventLoop) -> u64 {
    fn begin(event_loop: &EventLoop, turns: u32) {
        match turns {
            0 => _ = event_loop.run_after(A_WHILE, EventLoop::quit),
            _ => event_loop.defer(move |event_loop| begin(event_loop, turns - 1)),
        }
    }
    begin(event_loop, 10);
    run(event_loop);
    event_loop.metrics().turns
}

/// What the notifiers of the poller under test can be made of.
pub fn notifier_kinds() -> &'static [NotifierKind] {
    Poller::new().unwrap().notifier_kinds()
}

/// Whether the poller under test tells edges, and does not only try; see `poller/poll.rs`.
pub fn tells_edges() -> bool {
    Poller::new().unwrap().kind() != PollerKind::Poll
}

/// More events than there are of a condition that lasts for [`A_WHILE`] where edges are not told,
/// and far fewer than of a loop that spins.
pub const REPEATS: usize = 1_000;

/// What is ready within `timeout`, by token.
pub fn ready(poller: &Poller, timeout: Duration) -> Vec<(u64, Ready)> {
    let mut events = Events::with_capacity(128);
    poller.wait(&mut events, Some(timeout)).unwrap();
    let mut list: Vec<_> = events.iter().map(|event| (event.token.0, event.ready)).collect();
    assert_eq!((events.len(), events.is_empty()), (list.len(), list.is_empty()));
    list.sort_by_key(|(token, _)| *token);
    list
}

pub fn ready_now(poller: &Poller) -> Vec<(u64, Ready)> {
    ready(poller, Duration::ZERO)
}

/// Waits until something is ready. A wait may end early and empty.
#[track_caller]
pub fn next(poller: &Poller) -> Vec<(u64, Ready)> {
    let start = Instant::now();
    loop {
        let list = ready(poller, DEADLINE);
        if !list.is_empty() {
            return list;
        }
        assert!(start.elapsed() < DEADLINE, "nothing was ready within the deadline");
    }
}

/// Two connected, non-blocking sockets.
pub fn pair() -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (near, far)
}

/// Runs `body` in a forked child, which ends right after: with status 0, or 1 if it panics.
pub fn forked(body: impl FnOnce()) -> WaitStatus {
    match fork_here() {
        None => {
            let outcome = catch_unwind(AssertUnwindSafe(body));
            exit_child(i32::from(outcome.is_err()))
        }
        Some(child) => waitpid(child, None).unwrap(),
    }
}

/// Forks; `None` is the child, which is killed if it has not ended after the deadline.
pub fn fork_here() -> Option<Pid> {
    // SAFETY: tests fork while no other thread of theirs holds a lock that the child may take.
    match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => Some(child),
        ForkResult::Child => {
            // SAFETY: it has no preconditions.
            unsafe { libc::alarm(DEADLINE.as_secs() as u32) };
            None
        }
    }
}

/// Ends a forked child without running anybody's destructors.
pub fn exit_child(status: i32) -> ! {
    // SAFETY: it has no preconditions.
    unsafe { libc::_exit(status) }
}

#[track_caller]
pub fn assert_exited_well(status: WaitStatus) {
    assert!(matches!(status, WaitStatus::Exited(_, 0)), "the child: {status:?}");
}
