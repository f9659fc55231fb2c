//! The loops that a server is served by: threads of its own, a pool that others use too, or the
//! loop it was made on.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ruduo_reactor::{EventLoop, LoopHandle, LoopPool, Placement};

#[derive(Clone, Default)]
pub(crate) struct Loops {
    /// Instead of threads of its own; the other fields are about those.
    pub(crate) pool: Option<LoopPool>,
    pub(crate) threads: usize,
    pub(crate) name: Option<String>,
    pub(crate) placement: Option<Placement>,
}

impl Loops {
    /// Refuses settings that contradict each other.
    pub(crate) fn check(&self) -> io::Result<()> {
        let own = self.threads > 0 || self.name.is_some() || self.placement.is_some();
        if own && self.pool.is_some() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "threads, name and placement are those of threads of its own, but it was given a \
                 pool",
            ));
        }
        LoopPool::check_threads(self.threads)
    }

    /// How many loops serve.
    pub(crate) fn count(&self) -> usize {
        self.pool.as_ref().map_or(self.threads.max(1), |pool| pool.loops().len())
    }

    /// Returns the pool, if one was given. Otherwise starts threads of its own, each of which calls
    /// `install` with its place among them before its loop runs; without threads, this loop does
    /// so. What goes wrong there is an error here.
    pub(crate) fn start<I>(&self, event_loop: &EventLoop, install: &Arc<I>) -> io::Result<LoopPool>
    where
        I: Fn(&EventLoop, usize) -> io::Result<()> + Send + Sync + 'static,
    {
        if let Some(pool) = &self.pool {
            return Ok(pool.clone());
        }
        let (install, next) = (install.clone(), AtomicUsize::new(0));
        LoopPool::builder(event_loop)
            .threads(self.threads)
            .name(self.name.as_deref().unwrap_or("ruduo"))
            .placement(self.placement.unwrap_or_default())
            // They start one after the other.
            .on_start(move |event_loop| install(event_loop, next.fetch_add(1, Ordering::Relaxed)))
            .start()
    }
}

/// Installs a server on the loops of a shared pool. They may be busy, even with waiting for this
/// loop, so this does not wait for them: a loop on which it goes wrong logs the error.
pub(crate) fn install_on<I>(
    event_loop: &EventLoop,
    loops: &[LoopHandle],
    install: &Arc<I>,
) -> io::Result<()>
where
    I: Fn(&EventLoop, usize) -> io::Result<()> + Send + Sync + 'static,
{
    for (place, handle) in loops.iter().enumerate() {
        if *handle == event_loop.handle() {
            install(event_loop, place)?;
            continue;
        }
        let install = install.clone();
        // Work is posted later, so it finds the server installed.
        handle
            .post(move |event_loop| {
                if let Err(e) = install(event_loop, place) {
                    log::error!("a loop of a pool does not serve: {e}");
                }
            })
            .map_err(|e| io::Error::other(format!("on a loop of its pool: {e}")))?;
    }
    Ok(())
}
