//! Reaching a server from anywhere.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ruduo_reactor::{EventLoop, LoopHandle};

use super::serving;
use crate::Address;
use crate::metrics::{Counters, ServerMetrics, read};

/// Reaches a running server from any thread. Cheap to clone; dropping it changes nothing.
///
/// ```
/// use ruduo_net::TcpServer;
/// use ruduo_reactor::EventLoop;
/// use std::time::Duration;
///
/// let event_loop = EventLoop::new()?;
/// let server = TcpServer::bind(&event_loop, "127.0.0.1:0")?
///     .on_message(|conn, input| conn.send_buffer(input))
///     .start()?;
///
/// let event_loop_handle = event_loop.handle();
/// std::thread::spawn(move || {
///     println!("{}: {}", server.local_addr(), server.metrics());
///     server.stop(Duration::from_secs(5));
///     server.wait()?;
///     event_loop_handle.quit();
///     std::io::Result::Ok(())
/// });
/// event_loop.run()?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone)]
pub struct ServerHandle {
    pub(super) shared: Arc<Shared>,
}

/// What a server's loops and its handles have in common.
pub(super) struct Shared {
    pub(super) id: u64,
    pub(super) local_addr: Address,
    pub(super) base: LoopHandle,
    pub(super) open: AtomicUsize,
    pub(super) accepted: AtomicU64,
    pub(super) refused: Refusals,
    pub(super) lost: AtomicU64,
    pub(super) accept_pauses: AtomicU64,
    /// One for each loop.
    pub(super) counters: Vec<Arc<Counters>>,
    ended: Mutex<bool>,
    end: Condvar,
}

/// Several acceptors may add to them.
#[derive(Default)]
pub(super) struct Refusals {
    pub(super) max_connections: AtomicU64,
    pub(super) descriptors: AtomicU64,
}

impl Shared {
    pub(super) fn new(
        local_addr: Address,
        base: LoopHandle,
        counters: Vec<Arc<Counters>>,
    ) -> Shared {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Shared {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            local_addr,
            base,
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
            refused: Refusals::default(),
            lost: AtomicU64::new(0),
            accept_pauses: AtomicU64::new(0),
            counters,
            ended: Mutex::new(false),
            end: Condvar::new(),
        }
    }

    /// The server has ended: wakes all who wait for it.
    pub(super) fn set_ended(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.end.notify_all();
    }
}

/// Later than anybody waits for.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

impl ServerHandle {
    /// Where the server listens: the real port, also after binding port 0.
    #[must_use]
    pub fn local_addr(&self) -> &Address {
        &self.shared.local_addr
    }

    /// Stops the server gracefully: it listens no more, the handlers are told
    /// ([`Handler::on_stopping`](crate::Handler::on_stopping)), and connections that are still
    /// open after `deadline` are cut ([`CloseReason::Stopped`](crate::CloseReason)).
    ///
    /// Never blocks; from any thread and any callback. Stopping again sets one more deadline, of
    /// which the earliest counts: `Duration::ZERO` cuts now. The event loop goes on.
    pub fn stop(&self, deadline: Duration) {
        let id = self.shared.id;
        // From now on, and not from when a busy loop hears of it.
        let now = Instant::now();
        let deadline = now.checked_add(deadline).unwrap_or_else(|| now + CENTURY);
        // A loop that has ended has ended its servers.
        let _ = self.shared.base.post(move |event_loop| serving::stop(event_loop, id, deadline));
    }

    /// Blocks until the server has ended: stopped, with all its connections closed and its own
    /// threads gone; or its loop ended.
    ///
    /// # Errors
    /// On a thread that has an event loop, which would wait for itself.
    pub fn wait(&self) -> io::Result<()> {
        if !self.is_ended() && EventLoop::exists_on_this_thread() {
            return Err(io::Error::other(
                "waiting for a server's end on a thread with an event loop: the loop would stand \
                 still; wait on another thread",
            ));
        }
        let mut ended = self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            ended = self.shared.end.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Whether the server has ended.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        *self.shared.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has done so far. Reading it changes nothing.
    #[must_use]
    pub fn metrics(&self) -> ServerMetrics {
        let shared = &*self.shared;
        let mut metrics = ServerMetrics {
            open: shared.open.load(Ordering::Relaxed),
            accepted: read(&shared.accepted),
            lost: read(&shared.lost),
            accept_pauses: read(&shared.accept_pauses),
            ..ServerMetrics::default()
        };
        metrics.refused.max_connections = read(&shared.refused.max_connections);
        metrics.refused.descriptors = read(&shared.refused.descriptors);
        for counters in &shared.counters {
            counters.add_to(&mut metrics);
        }
        metrics
    }
}

impl fmt::Debug for ServerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerHandle")
            .field("local_addr", &self.local_addr())
            .field("open", &self.metrics().open)
            .finish_non_exhaustive()
    }
}
