//! Looking up names without blocking a loop.
//!
//! getaddrinfo(3) blocks, for many seconds if a name server does not answer. So it is called on
//! threads: as many as there are questions, up to a few, and each ends when nothing is left to ask.
//! One that is stuck keeps its thread, but nobody waits for it: who asked has a timeout of their own,
//! and an answer that comes too late finds nobody. A question that nobody waits for any more is
//! never asked: while names are stuck, those who try again would queue up without end.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::{Address, Addresses};

/// Questions answered at a time, in the whole process; the rest wait.
const MAX_THREADS: usize = 4;

/// What to do with the answer, on a thread of the resolver.
type Answer = Box<dyn FnOnce(io::Result<Vec<Address>>) + Send>;

struct Question {
    addresses: Addresses,
    is_wanted: Box<dyn Fn() -> bool + Send>,
    answer: Answer,
}

struct Resolver {
    questions: VecDeque<Question>,
    threads: usize,
}

static RESOLVER: Mutex<Resolver> = Mutex::new(Resolver { questions: VecDeque::new(), threads: 0 });

impl Resolver {
    /// Drops the oldest questions as long as nobody waits for them any more.
    fn discard(&mut self) {
        while self.questions.front().is_some_and(|question| !(question.is_wanted)()) {
            self.questions.pop_front();
        }
    }
}

/// No program's code runs under this lock.
fn lock() -> MutexGuard<'static, Resolver> {
    RESOLVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resolves and then calls `answer`, if `is_wanted` still holds when its turn comes.
///
/// # Errors
/// If no thread can be started.
pub(super) fn resolve(
    addresses: Addresses,
    is_wanted: impl Fn() -> bool + Send + 'static,
    answer: impl FnOnce(io::Result<Vec<Address>>) + Send + 'static,
) -> io::Result<()> {
    let mut resolver = lock();
    // Who gives up does so in about the order of asking, so this keeps the queue short.
    resolver.discard();
    let (is_wanted, answer) = (Box::new(is_wanted), Box::new(answer));
    resolver.questions.push_back(Question { addresses, is_wanted, answer });
    if resolver.threads < MAX_THREADS {
        if let Err(e) = thread::Builder::new().name("resolver".into()).spawn(work) {
            if resolver.threads == 0 {
                resolver.questions.pop_back();
                return Err(io::Error::new(e.kind(), format!("starting a resolver thread: {e}")));
            }
        } else {
            resolver.threads += 1;
        }
    }
    Ok(())
}

fn work() {
    loop {
        let mut resolver = lock();
        resolver.discard();
        let Some(question) = resolver.questions.pop_front() else {
            resolver.threads -= 1;
            return;
        };
        drop(resolver);
        (question.answer)(question.addresses.resolve());
    }
}
