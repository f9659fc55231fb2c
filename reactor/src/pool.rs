//! Several loops, and which of them gets the next connection.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::cpus;
use crate::event_loop::{EventLoop, EventLoopBuilder};
use crate::handle::LoopHandle;
use crate::thread::LoopThread;

/// How a [`LoopPool`] chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Placement {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The loop with the least [`load`](LoopHandle::load); round robin among equals.
    LeastConnections,
    /// By a key, e.g. the peer's address: equal keys go to the same loop.
    Hash,
}

/// A base loop and a number of threads with a loop each. With no threads the base loop does
/// everything, so users need not care.
///
/// Clones are the same pool; several servers can share one. Its threads end, and are waited for,
/// when the last clone is dropped.
///
/// ```
/// use ruduo_reactor::{EventLoop, LoopPool};
///
/// let base = EventLoop::new()?;
/// let pool = LoopPool::builder(&base).threads(3).start()?;
/// let first = pool.next_loop();
/// pool.next_loop();
/// pool.next_loop();
/// assert_eq!(pool.next_loop(), first);
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone)]
pub struct LoopPool {
    inner: Arc<Inner>,
}

struct Inner {
    threads: Vec<LoopThread>,
    /// The threads' loops, or the base loop alone.
    loops: Vec<LoopHandle>,
    placement: Placement,
    next: AtomicUsize,
}

/// Settings of a [`LoopPool`].
#[must_use = "call start"]
pub struct LoopPoolBuilder<'l> {
    base: &'l EventLoop,
    threads: usize,
    name: String,
    placement: Placement,
    pin_to_cpus: bool,
    event_loops: EventLoopBuilder,
    on_start: Arc<OnStart>,
}

type OnStart = dyn Fn(&EventLoop) -> io::Result<()> + Send + Sync;

impl LoopPool {
    /// The most threads that a pool may have. More than any machine has processors: a larger number
    /// is a mistake, and is told as one, before there is a thread or memory for any.
    pub const MAX_THREADS: usize = 4096;

    /// A pool around `base`, with no threads unless told otherwise.
    pub fn builder(base: &EventLoop) -> LoopPoolBuilder<'_> {
        LoopPoolBuilder {
            base,
            threads: 0,
            name: "ruduo".to_owned(),
            placement: Placement::default(),
            pin_to_cpus: false,
            event_loops: base.settings().clone(),
            on_start: Arc::new(|_| Ok(())),
        }
    }

    /// Whether a pool may have so many threads: for libraries that make something for each of them
    /// before they start.
    ///
    /// # Errors
    /// `InvalidInput` above [`LoopPool::MAX_THREADS`].
    pub fn check_threads(threads: usize) -> io::Result<()> {
        let most = LoopPool::MAX_THREADS;
        if threads > most {
            let why = format!("a pool of {threads} threads, where {most} are the most");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        Ok(())
    }

    /// The loops work is placed on: those of the threads, or the base loop if there are none.
    #[must_use]
    pub fn loops(&self) -> &[LoopHandle] {
        &self.inner.loops
    }

    /// The next loop in turn.
    #[must_use]
    pub fn next_loop(&self) -> LoopHandle {
        let loops = self.loops();
        loops[self.inner.next.fetch_add(1, Ordering::Relaxed) % loops.len()].clone()
    }

    /// The loop on which to place a piece of work; `key` is looked at by [`Placement::Hash`] alone.
    /// Loops that have ended are passed over; `None` if all have.
    #[must_use]
    pub fn place(&self, key: impl Hash) -> Option<&LoopHandle> {
        let loops = self.loops();
        let start = match self.inner.placement {
            Placement::Hash => {
                let mut hasher = DefaultHasher::new();
                key.hash(&mut hasher);
                (hasher.finish() % loops.len() as u64) as usize
            }
            _ => self.inner.next.fetch_add(1, Ordering::Relaxed),
        };
        let mut alive = (0..loops.len())
            .map(|i| &loops[start.wrapping_add(i) % loops.len()])
            .filter(|handle| !handle.is_ended());
        match self.inner.placement {
            // `min_by_key` returns the first of equals: the next in turn.
            Placement::LeastConnections => alive.min_by_key(|handle| handle.load()),
            _ => alive.next(),
        }
    }

    /// Ends all threads and waits for them.
    ///
    /// # Errors
    /// That other clones of the pool are alive, whose users would lose their loops; or the first
    /// error among the threads, see [`LoopThread::join`].
    pub fn join(self) -> io::Result<()> {
        let inner = Arc::try_unwrap(self.inner)
            .map_err(|_| io::Error::other("joining a pool of loops: it is still shared"))?;
        inner.join()
    }
}

impl Inner {
    fn join(mut self) -> io::Result<()> {
        let threads = std::mem::take(&mut self.threads);
        for thread in &threads {
            thread.handle().quit();
        }
        // Wait for all of them, whatever the first says.
        threads.into_iter().map(LoopThread::join).fold(Ok(()), Result::and)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Tell all before waiting for the first, so that they end side by side.
        for thread in &self.threads {
            thread.handle().quit();
        }
    }
}

impl LoopPoolBuilder<'_> {
    /// How many threads, each with one loop; [`LoopPool::MAX_THREADS`] at most.
    pub fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// What the threads are called: this name and a number.
    pub fn name(self, name: impl Into<String>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// How work is placed.
    pub fn placement(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// Binds each thread to one of the CPUs that the calling thread may use, which take turns. On
    /// Linux, FreeBSD and DragonFly; elsewhere `start` then fails with `Unsupported`.
    pub fn pin_to_cpus(self, pin_to_cpus: bool) -> Self {
        Self { pin_to_cpus, ..self }
    }

    /// How the threads' loops are made; like the base loop if nothing is said.
    pub fn event_loops(self, event_loops: EventLoopBuilder) -> Self {
        Self { event_loops, ..self }
    }

    /// What to call with each loop before it runs, once for each, on its thread; if there are no
    /// threads, once with the base loop.
    pub fn on_start(
        self,
        on_start: impl Fn(&EventLoop) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { on_start: Arc::new(on_start), ..self }
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// What kept one of them from starting; those started before have been ended then.
    /// `InvalidInput` if there are to be more than [`LoopPool::MAX_THREADS`].
    pub fn start(self) -> io::Result<LoopPool> {
        LoopPool::check_threads(self.threads)?;
        let cpus = if self.pin_to_cpus { cpus::usable()? } else { Vec::new() };
        let mut threads = Vec::with_capacity(self.threads);
        for i in 0..self.threads {
            let on_start = self.on_start.clone();
            let cpu = cpus.get(i % cpus.len().max(1)).copied();
            let init = move |event_loop: &EventLoop| {
                cpu.map_or(Ok(()), cpus::pin)?;
                on_start(event_loop)
            };
            let name = format!("{}-{i}", self.name);
            threads.push(LoopThread::spawn(&name, self.event_loops.clone(), init)?);
        }
        let mut loops: Vec<_> = threads.iter().map(|thread| thread.handle().clone()).collect();
        if threads.is_empty() {
            (self.on_start)(self.base)?;
            loops.push(self.base.handle());
        }
        let (placement, next) = (self.placement, AtomicUsize::new(0));
        Ok(LoopPool { inner: Arc::new(Inner { threads, loops, placement, next }) })
    }
}

impl fmt::Debug for LoopPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopPool")
            .field("threads", &self.inner.threads.len())
            .field("placement", &self.inner.placement)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for LoopPoolBuilder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopPoolBuilder")
            .field("threads", &self.threads)
            .field("name", &self.name)
            .field("placement", &self.placement)
            .finish_non_exhaustive()
    }
}
