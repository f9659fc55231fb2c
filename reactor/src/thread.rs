//! A thread that runs one loop.

use std::fmt;
use std::io;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use crate::event_loop::{EventLoop, EventLoopBuilder};
use crate::handle::LoopHandle;

/// A thread with an [`EventLoop`] of its own, started and ready.
///
/// Dropping it makes the loop quit and waits for the thread, except on that very thread, where
/// waiting would be for ever: there the loop quits and the thread ends by itself.
///
/// ```
/// use ruduo_reactor::{EventLoop, LoopThread};
///
/// let worker = LoopThread::spawn("worker", EventLoop::builder(), |_event_loop| Ok(()))?;
/// worker.handle().post(|_event_loop| println!("hello from the worker"))?;
/// worker.join()?;
/// # std::io::Result::Ok(())
/// ```
#[must_use = "dropping it ends the loop"]
pub struct LoopThread {
    handle: LoopHandle,
    /// `None` once joined.
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl LoopThread {
    /// Starts a thread called `name` (Linux shows the first 15 bytes), makes a loop there, calls
    /// `init` with it and runs it. Returns when `init` has.
    ///
    /// # Errors
    /// What kept the thread or its loop from being made, or what `init` returned; nothing is left
    /// running then.
    pub fn spawn(
        name: &str,
        builder: EventLoopBuilder,
        init: impl FnOnce(&EventLoop) -> io::Result<()> + Send + 'static,
    ) -> io::Result<LoopThread> {
        let (ready, started) = mpsc::sync_channel(1);
        let body = move || {
            let event_loop = builder.build()?;
            event_loop
                .isolate("the start of a loop thread", || init(&event_loop))
                .unwrap_or_else(|_| Err(io::Error::other("its start panicked")))?;
            // Nobody listens only if the starting thread was unwound; then we end at once.
            if ready.send(event_loop.handle()).is_err() {
                event_loop.quit();
            }
            event_loop.run().inspect_err(|e| log::error!("an event loop failed: {e}"))
        };
        let context =
            |e: io::Error| io::Error::new(e.kind(), format!("starting loop thread {name}: {e}"));
        if name.contains('\0') {
            return Err(context(io::Error::new(io::ErrorKind::InvalidInput, "NUL in its name")));
        }
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body).map_err(context)?;
        match started.recv() {
            Ok(handle) => Ok(LoopThread { handle, thread: Some(thread) }),
            // The thread dropped its sender: it ended before its loop was ready.
            Err(_) => Err(context(
                join(thread)
                    .err()
                    .unwrap_or_else(|| io::Error::other("it ended before its loop was ready")),
            )),
        }
    }

    /// Reaches the loop.
    #[must_use]
    pub fn handle(&self) -> &LoopHandle {
        &self.handle
    }

    /// Whether the thread still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Makes the loop quit, waits for the thread, and reports how it ended.
    ///
    /// # Errors
    /// What [`EventLoop::run`] returned; or that the thread panicked; or that it is the calling
    /// thread itself, which cannot wait for its own end.
    pub fn join(mut self) -> io::Result<()> {
        self.end()
    }

    fn end(&mut self) -> io::Result<()> {
        self.handle.quit();
        match self.thread.take() {
            None => Ok(()),
            Some(_) if self.handle.shared().is_forked() => {
                Err(io::Error::other("the loop thread is one of the parent of this forked process"))
            }
            Some(_) if self.handle.is_loop_thread() => {
                Err(io::Error::other("a loop thread cannot join itself"))
            }
            Some(thread) => join(thread),
        }
    }
}

fn join(thread: JoinHandle<io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the loop thread panicked")))
}

impl Drop for LoopThread {
    fn drop(&mut self) {
        if let Err(e) = self.end() {
            log::debug!("ending a loop thread: {e}");
        }
    }
}

impl fmt::Debug for LoopThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopThread").field("handle", &self.handle).finish_non_exhaustive()
    }
}
