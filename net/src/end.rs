//! The end of a server, of datagram sockets, of a client: any thread may wait for it.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ruduo_reactor::EventLoop;

/// What is done on a loop after an end.
pub(crate) type Continuation = Box<dyn FnOnce(&EventLoop)>;

#[derive(Default)]
pub(crate) struct End {
    has_come: Mutex<bool>,
    comes: Condvar,
}

impl End {
    /// It has come: wakes all who wait for it.
    pub(crate) fn announce(&self) {
        *self.lock() = true;
        self.comes.notify_all();
    }

    pub(crate) fn has_come(&self) -> bool {
        *self.lock()
    }

    /// Blocks until it has come. `whose` it is, an error says.
    ///
    /// # Errors
    /// If it has not, on a thread that has an event loop, which would wait for itself.
    pub(crate) fn wait(&self, whose: &str) -> io::Result<()> {
        let mut has_come = self.lock();
        if !*has_come && EventLoop::exists_on_this_thread() {
            return Err(io::Error::other(format!(
                "waiting for the end of {whose} on a thread with an event loop: the loop would \
                 stand still; wait on another thread"
            )));
        }
        while !*has_come {
            has_come = self.comes.wait(has_come).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.has_come.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Later than anybody waits for.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// When the time that a stop leaves is over: it counts from now, and not from when a busy loop
/// hears of it.
pub(crate) fn deadline(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or_else(|| now + CENTURY)
}
