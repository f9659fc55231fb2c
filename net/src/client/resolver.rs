//! Looking up names without blocking a loop.
//!
//! getaddrinfo(3) blocks, for many seconds if a name server does not answer. So it is called on
//! threads, which are started when there are names to look up, and end when there are none.
//!
//! ```text
//!   resolve ──▶ a question of a name ──▶ the name's turn ──▶ a thread ──▶ all who ask for it
//!                    │
//!                    └── dropped: nobody waits for it any more
//! ```
//!
//! A name that is stuck keeps its thread, for nothing ends a call of getaddrinfo; but one only, however
//! many ask for it and however often: they all get the one answer. And it does not keep its place:
//! [`AT_ONCE`] names are looked up at a time, but who has taken longer than [`SLOW`] does not count any
//! more. So names that are stuck hold up the others for a second, and no longer before there are
//! [`MAX_THREADS`] of them. While names wait, one thread more than those at work sees to it that the
//! next one is looked up when its turn has come.
//!
//! Nobody waits for a thread, for who asks has a timeout of their own; and a name that nobody waits for
//! any more is not looked up.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::failure::ConnectError;
use crate::{Address, Addresses};

/// Names looked up at a time, in the whole process; the rest wait.
const AT_ONCE: usize = 16;

/// Who takes longer does not count among them any more. Most answers come within a tenth of it; who has
/// none asks once more after five seconds, and gives up after ten or thirty (resolv.conf(5)).
const SLOW: Duration = Duration::from_secs(1);

/// Threads in all, with those that are slow.
const MAX_THREADS: usize = 64;

/// What a name stands for.
pub(super) type Answer = Result<Vec<Address>, ConnectError>;

/// What to do with it, on a thread of the resolver.
type Then = Box<dyn FnOnce(Answer) + Send>;

struct Resolver {
    names: BTreeMap<Addresses, Name>,
    /// The names that are not yet looked up, the oldest first.
    turns: BTreeMap<u64, Addresses>,
    /// Since when the others are, by the turn that they had.
    at_work: BTreeMap<u64, Instant>,
    threads: usize,
    /// One of the threads is there for the next turn, or about to be.
    is_awaited: bool,
    /// Numbers questions, and turns by the question that brings them about.
    next: u64,
}

/// What is asked for.
struct Name {
    /// `None` while it is looked up.
    turn: Option<u64>,
    questions: BTreeMap<u64, Then>,
}

static RESOLVER: Mutex<Resolver> = Mutex::new(Resolver {
    names: BTreeMap::new(),
    turns: BTreeMap::new(),
    at_work: BTreeMap::new(),
    threads: 0,
    is_awaited: false,
    next: 0,
});

/// No turn is left to be waited for.
static NO_TURNS: Condvar = Condvar::new();

/// No program's code runs under this lock.
fn lock() -> MutexGuard<'static, Resolver> {
    RESOLVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A question, for as long as the answer is of any use.
pub(super) struct Question {
    name: Addresses,
    number: u64,
}

/// Resolves a name and calls `then`, unless the question is dropped before.
///
/// # Errors
/// If no thread can be started.
pub(super) fn resolve(
    name: Addresses,
    then: impl FnOnce(Answer) + Send + 'static,
) -> io::Result<Question> {
    let mut resolver = lock();
    let number = resolver.next;
    resolver.next += 1;
    if !resolver.names.contains_key(&name) {
        // If there are some, they will come to it.
        if let Err(e) = resolver.see_to_it()
            && resolver.threads == 0
        {
            return Err(io::Error::new(e.kind(), format!("starting a resolver thread: {e}")));
        }
        resolver.turns.insert(number, name.clone());
    }
    let new = || Name { turn: Some(number), questions: BTreeMap::new() };
    let asked = resolver.names.entry(name.clone()).or_insert_with(new);
    asked.questions.insert(number, Box::new(then));
    Ok(Question { name, number })
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut resolver = lock();
        let Some(asked) = resolver.names.get_mut(&self.name) else { return };
        let then = asked.questions.remove(&self.number);
        if let (true, Some(turn)) = (asked.questions.is_empty(), asked.turn) {
            resolver.turns.remove(&turn);
            resolver.names.remove(&self.name);
            resolver.release_if_idle();
        }
        drop(resolver);
        drop(then);
    }
}

impl Resolver {
    /// Starts a thread for the next turn, unless there is one, or as many as there may be.
    fn see_to_it(&mut self) -> io::Result<()> {
        if !self.is_awaited && self.threads < MAX_THREADS {
            thread::Builder::new().name("resolver".into()).spawn(work)?;
            self.threads += 1;
            self.is_awaited = true;
        }
        Ok(())
    }

    /// Lets go who waits for a turn that does not come.
    fn release_if_idle(&self) {
        if self.turns.is_empty() {
            NO_TURNS.notify_all();
        }
    }

    /// How long it takes until one more may be looked up, if none of those at work is done before.
    fn until_next(&self, now: Instant) -> Duration {
        let left = |since: &Instant| SLOW.saturating_sub(now.saturating_duration_since(*since));
        let counted = self.at_work.values().map(left).filter(|left| !left.is_zero());
        let (count, least) =
            counted.fold((0, SLOW), |(count, least), left| (count + 1, least.min(left)));
        if count < AT_ONCE { Duration::ZERO } else { least }
    }
}

/// A thread: it is there for the next turn, and then for as many more as there are.
fn work() {
    let mut turn = next(true);
    while let Some((number, name)) = turn {
        let answer = name.resolve().map_err(|e| ConnectError::NotResolved(e.to_string()));
        let mut resolver = lock();
        resolver.at_work.remove(&number);
        // Who asks from here on begins anew.
        let asked = resolver.names.remove(&name);
        drop(resolver);
        for (_, then) in asked.into_iter().flat_map(|asked| asked.questions) {
            then(answer.clone());
        }
        turn = next(false);
    }
}

/// Takes the next turn; waits for it, if nobody else does. `None` if this thread is not needed.
fn next(mut awaits: bool) -> Option<(u64, Addresses)> {
    let mut resolver = lock();
    let turn = loop {
        if resolver.turns.is_empty() {
            break None;
        }
        let now = Instant::now();
        let wait = resolver.until_next(now);
        if wait.is_zero() {
            let turn = resolver.turns.pop_first();
            if let Some((number, name)) = &turn {
                resolver.at_work.insert(*number, now);
                if let Some(asked) = resolver.names.get_mut(name) {
                    asked.turn = None;
                }
            }
            break turn;
        }
        if !awaits && resolver.is_awaited {
            break None;
        }
        awaits = true;
        resolver.is_awaited = true;
        let outcome = NO_TURNS.wait_timeout(resolver, wait);
        resolver = outcome.unwrap_or_else(PoisonError::into_inner).0;
    };
    if awaits {
        resolver.is_awaited = false;
    }
    match &turn {
        None => resolver.threads -= 1,
        Some(_) if resolver.turns.is_empty() => resolver.release_if_idle(),
        // If it can't be started, those that are there come to the rest.
        Some(_) => _ = resolver.see_to_it(),
    }
    turn
}
