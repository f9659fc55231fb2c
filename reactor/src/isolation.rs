//! Keeping one callback's panic from the others.
//!
//! The loop catches panics once for each batch of callbacks and not for each callback: the closure
//! that `catch` guards runs until the batch is done or something panics, and is called again for
//! the rest. So isolation costs nothing when nobody panics.

use std::any::Any;
use std::fmt::Display;
use std::panic::{self, AssertUnwindSafe};

use crate::EventLoop;

/// What a loop does when a callback panics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PanicPolicy {
    /// Logs it at error level, counts it, ends what the callback belonged to (its connection,
    /// task or timer), and goes on.
    #[default]
    Isolate,
    /// Ends the process by `abort`, after the panic message: for those whose supervisor restarts
    /// the process and who prefer that to going on after a bug.
    Abort,
}

/// A callback panicked. It has been logged and counted already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

impl EventLoop {
    /// Runs user code; a panic in it is handled by the loop's [`PanicPolicy`] and comes back as
    /// an error. `what` names the code in the log line, e.g. "a task", and in the one about a
    /// slow callback ([`EventLoopBuilder::slow_callback`](crate::EventLoopBuilder::slow_callback)).
    ///
    /// For libraries that call their users' code from a task or timer and have to end something
    /// of their own, e.g. a connection, if that code panics. What a plain task, timer or source
    /// does is isolated by the loop anyway.
    ///
    /// # Errors
    /// [`Panicked`] if it panicked.
    pub fn isolate<R>(&self, what: impl Display, f: impl FnOnce() -> R) -> Result<R, Panicked> {
        let Some(stopwatch) = self.stopwatch() else { return self.catch(what, f) };
        let inner = stopwatch.begin_inner();
        let outcome = self.catch(&what, f);
        stopwatch.end_inner(inner, || what.to_string());
        outcome
    }

    /// The same for a batch, which tells the stopwatch of each callback itself.
    #[inline(always)]
    pub(crate) fn catch<R>(
        &self,
        what: impl Display,
        f: impl FnOnce() -> R,
    ) -> Result<R, Panicked> {
        // Cells of the loop are never borrowed while user code runs, so none is left half done.
        let outcome = panic::catch_unwind(AssertUnwindSafe(f));
        outcome.map_err(|payload| self.caught(what, payload))
    }

    #[cold]
    fn caught(&self, what: impl Display, payload: Box<dyn Any + Send>) -> Panicked {
        self.count_panic();
        log::error!("{what} panicked: {}", message(&*payload));
        if self.panic_policy() == PanicPolicy::Abort {
            std::process::abort();
        }
        // The payload is a user's value too: its Drop may panic in turn.
        let dropped = panic::catch_unwind(AssertUnwindSafe(|| drop(payload)));
        if let Err(second) = dropped {
            std::mem::forget(second);
        }
        Panicked
    }
}

fn message(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "(a value that is not text)"
    }
}
