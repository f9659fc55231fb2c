//! The way into a loop from another thread.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, ThreadId};

use crate::EventLoop;
use crate::inbox::{Inbox, Wake};
use crate::poller::Notifier;
use crate::sys;
use crate::sys::task::SendTask;

/// Reaches an [`EventLoop`] from any thread. Cheap to clone; outlives the loop safely.
///
/// Two handles are equal if they lead to the same loop.
#[derive(Clone)]
pub struct LoopHandle {
    shared: Arc<Shared>,
}

/// What a loop and its handles have in common. The waker is in here, so its descriptor stays
/// open for as long as anybody could write to it: a late wakeup never hits a re-used number.
pub(crate) struct Shared {
    pub(crate) inbox: Inbox<SendTask>,
    pub(crate) waker: Notifier,
    thread: ThreadId,
    fork_generation: u32,
    ended: AtomicBool,
    load: AtomicUsize,
}

/// Why a task was not accepted. The task has been dropped, on the thread that posted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PostError {
    /// The loop has ended, or is about to.
    Ended,
    /// The loop belongs to the parent of this forked process.
    Forked,
}

impl LoopHandle {
    pub(crate) fn new(waker: Notifier) -> LoopHandle {
        let shared = Shared {
            inbox: Inbox::new(),
            waker,
            thread: thread::current().id(),
            fork_generation: sys::fork::generation(),
            ended: AtomicBool::new(false),
            load: AtomicUsize::new(0),
        };
        LoopHandle { shared: Arc::new(shared) }
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Has the loop run `task` on its thread, after everything posted before it. From any thread;
    /// never blocks, and wakes the loop only if it sleeps.
    ///
    /// # Errors
    /// [`PostError`] if the loop takes no more tasks. A task that was accepted does run, even if
    /// the loop is told to quit right after.
    ///
    /// ```
    /// use ruduo_reactor::EventLoop;
    ///
    /// let event_loop = EventLoop::new()?;
    /// let handle = event_loop.handle();
    /// std::thread::spawn(move || handle.post(|event_loop| event_loop.quit()));
    /// event_loop.run()?;
    /// # std::io::Result::Ok(())
    /// ```
    pub fn post(&self, task: impl FnOnce(&EventLoop) + Send + 'static) -> Result<(), PostError> {
        if self.shared.is_forked() {
            return Err(PostError::Forked);
        }
        // The refused task is dropped here, outside the queue's lock.
        let wake =
            self.shared.inbox.push(SendTask::new(task)).map_err(|_refused| PostError::Ended)?;
        self.shared.wake(wake);
        Ok(())
    }

    /// Makes [`EventLoop::run`] return, or not begin. From any thread, at any time; see
    /// [`EventLoop::quit`].
    pub fn quit(&self) {
        if !self.shared.is_forked() {
            self.shared.wake(self.shared.inbox.push_quit());
        }
    }

    /// Whether the calling thread is the one the loop was made on.
    #[must_use]
    pub fn is_loop_thread(&self) -> bool {
        self.shared.thread == thread::current().id()
    }

    /// Whether the loop has ended, or is about to: posts are refused.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.shared.ended.load(Ordering::Relaxed)
    }

    /// Calls `f` with the loop if the calling thread is running it at this moment; otherwise does
    /// nothing and returns `None`. For code that can act at once on the loop's own thread and has
    /// to post from others.
    pub fn with_local<R>(&self, f: impl FnOnce(&EventLoop) -> R) -> Option<R> {
        sys::current::with(|current| {
            let event_loop = current.filter(|current| current.is(self))?;
            Some(f(event_loop))
        })
    }

    /// How many pieces of work (connections) are placed on the loop, as counted by the two methods
    /// below. [`Placement::LeastConnections`](crate::Placement) goes by it.
    #[must_use]
    pub fn load(&self) -> usize {
        self.shared.load.load(Ordering::Relaxed)
    }

    /// Counts a piece of work that has been placed on the loop.
    pub fn add_load(&self) {
        self.shared.load.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts one that has ended.
    pub fn remove_load(&self) {
        self.shared.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// Refuses tasks from now on and returns those that were accepted.
    pub(crate) fn close(&self) -> Vec<SendTask> {
        let accepted = self.inbox.close();
        // Not before: whoever sees it is refused.
        self.ended.store(true, Ordering::Relaxed);
        accepted
    }

    pub(crate) fn is_forked(&self) -> bool {
        self.fork_generation != sys::fork::current_generation()
    }

    fn wake(&self, wake: Wake) {
        if wake == Wake::Needed
            && let Err(e) = self.waker.notify()
        {
            log::error!("waking an event loop failed: {e}");
        }
    }
}

impl PartialEq for LoopHandle {
    fn eq(&self, other: &LoopHandle) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for LoopHandle {}

impl fmt::Debug for LoopHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopHandle").field("thread", &self.shared.thread).finish_non_exhaustive()
    }
}

impl fmt::Display for PostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PostError::Ended => "the event loop has ended and takes no more tasks",
            PostError::Forked => "the event loop belongs to the parent of this forked process",
        })
    }
}

impl Error for PostError {}

impl From<PostError> for io::Error {
    fn from(e: PostError) -> io::Error {
        io::Error::other(e)
    }
}
