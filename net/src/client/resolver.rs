//! Looking up names without blocking a loop.
//!
//! getaddrinfo(3) blocks, for many seconds if a name server does not answer. So it is called on
//! threads: as many as there are questions, up to a few, and each ends when nothing is left to ask.
//! One that is stuck keeps its thread, but nobody waits for it: who asked has a timeout of their own,
//! and an answer that comes too late finds nobody.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::{Address, Addresses};

/// Questions answered at a time, in the whole process; the rest wait.
const MAX_THREADS: usize = 4;

/// What to do with the answer, on a thread of the resolver.
type Answer = Box<dyn FnOnce(io::Result<Vec<Address>>) + Send>;

struct Resolver {
    questions: VecDeque<(Addresses, Answer)>,
    threads: usize,
}

static RESOLVER: Mutex<Resolver> = Mutex::new(Resolver { questions: VecDeque::new(), threads: 0 });

/// No foreign code runs under this lock.
fn lock() -> MutexGuard<'static, Resolver> {
    RESOLVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Resolves and then calls `answer`.
///
/// # Errors
/// If no thread can be started.
pub(super) fn resolve(
    addresses: Addresses,
    answer: impl FnOnce(io::Result<Vec<Address>>) + Send + 'static,
) -> io::Result<()> {
    let mut resolver = lock();
    resolver.questions.push_back((addresses, Box::new(answer)));
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
        let Some((addresses, answer)) = resolver.questions.pop_front() else {
            resolver.threads -= 1;
            return;
        };
        drop(resolver);
        answer(addresses.resolve());
    }
}
