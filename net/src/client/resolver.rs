//! Looking up names without blocking a loop.
//!
//! getaddrinfo(3) blocks, for many seconds if a name server does not answer. So it is called on
//! threads: as many as there are names to look up, up to a few, and each ends when nothing is left.
//!
//! ```text
//!   resolve ──▶ a question of a name ──▶ the name's turn ──▶ a thread ──▶ all who ask for it
//!                    │
//!                    └── dropped: nobody waits for it any more
//! ```
//!
//! A name that is stuck keeps its thread, but one only, however many ask for it and however often:
//! they all get the one answer. Nobody waits for a thread, for who asks has a timeout of their own;
//! and a name that nobody waits for any more is not looked up.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use super::failure::ConnectError;
use crate::{Address, Addresses};

/// Names looked up at a time, in the whole process; the rest wait.
const MAX_THREADS: usize = 4;

/// What a name stands for.
pub(super) type Answer = Result<Vec<Address>, ConnectError>;

/// What to do with it, on a thread of the resolver.
type Then = Box<dyn FnOnce(Answer) + Send>;

struct Resolver {
    names: BTreeMap<Addresses, Name>,
    /// The names that are not yet looked up, the oldest first.
    turns: BTreeMap<u64, Addresses>,
    threads: usize,
    /// Numbers questions, and turns by the question that brings them about.
    next: u64,
}

/// What is asked for.
struct Name {
    /// `None` while it is looked up.
    turn: Option<u64>,
    questions: BTreeMap<u64, Then>,
}

static RESOLVER: Mutex<Resolver> =
    Mutex::new(Resolver { names: BTreeMap::new(), turns: BTreeMap::new(), threads: 0, next: 0 });

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
    let is_known = resolver.names.contains_key(&name);
    if !is_known && resolver.threads < MAX_THREADS {
        match thread::Builder::new().name("resolver".into()).spawn(work) {
            Ok(_) => resolver.threads += 1,
            Err(e) if resolver.threads == 0 => {
                return Err(io::Error::new(e.kind(), format!("starting a resolver thread: {e}")));
            }
            // Those that are there will come to it.
            Err(_) => {}
        }
    }
    if !is_known {
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
        }
        drop(resolver);
        drop(then);
    }
}

fn work() {
    loop {
        let mut resolver = lock();
        let Some((_, name)) = resolver.turns.pop_first() else {
            resolver.threads -= 1;
            return;
        };
        if let Some(asked) = resolver.names.get_mut(&name) {
            asked.turn = None;
        }
        drop(resolver);
        let answer = name.resolve().map_err(|e| ConnectError::NotResolved(e.to_string()));
        // Who asks from here on begins anew.
        let asked = lock().names.remove(&name);
        for (_, then) in asked.into_iter().flat_map(|asked| asked.questions) {
            then(answer.clone());
        }
    }
}
