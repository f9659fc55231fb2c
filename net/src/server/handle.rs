//! Reaching a server from anywhere.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ruduo_reactor::{EventLoop, LoopHandle};

use super::Settings;
use super::admission::Admission;
use super::serving;
use crate::Address;
use crate::by_id::next_id;
use crate::end::{self, Continuation, End};
use crate::listener::Listener;
use crate::metrics::{Counters, ServerMetrics, StopReport, read};
use crate::signals::{self, Stops};

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
    /// Gone when they do not listen any more.
    pub(super) listeners: Vec<Weak<Listener>>,
    pub(super) base: LoopHandle,
    pub(super) admission: Admission,
    pub(super) accepted: AtomicU64,
    pub(super) refused_descriptors: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) accept_pauses: AtomicU64,
    /// One for each loop.
    pub(super) counters: Vec<Arc<Counters>>,
    pub(super) end: End,
}

impl Shared {
    pub(super) fn new(
        listeners: &[Arc<Listener>],
        base: LoopHandle,
        settings: &Settings,
    ) -> Shared {
        Shared {
            id: next_id(),
            local_addr: listeners[0].address().clone(),
            listeners: listeners.iter().map(Arc::downgrade).collect(),
            base,
            admission: Admission::new(settings.bounds.clone()),
            accepted: AtomicU64::new(0),
            refused_descriptors: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            accept_pauses: AtomicU64::new(0),
            counters: (0..settings.loops.count()).map(|_| Arc::default()).collect(),
            end: End::default(),
        }
    }

    pub(super) fn metrics(&self) -> ServerMetrics {
        let mut metrics = ServerMetrics {
            open: self.admission.open(),
            accepted: read(&self.accepted),
            lost: read(&self.lost),
            accept_pauses: read(&self.accept_pauses),
            ..ServerMetrics::default()
        };
        metrics.refused.max_connections = read(&self.admission.refused_max_connections);
        metrics.refused.max_connections_per_peer = read(&self.admission.refused_max_per_peer);
        metrics.refused.descriptors = read(&self.refused_descriptors);
        for counters in &self.counters {
            counters.add_to(&mut metrics);
        }
        metrics
    }

    /// One who was counted as open will never get to a loop.
    pub(super) fn lose(&self, host: Option<IpAddr>) {
        self.lost.fetch_add(1, Ordering::Relaxed);
        self.admission.leave(host);
    }

    pub(super) fn stop_report(&self) -> StopReport {
        let mut report = StopReport::default();
        for counters in &self.counters {
            report.drained += read(&counters.drained);
            report.cut += read(&counters.cut);
        }
        report
    }
}

impl ServerHandle {
    /// Where the server listens: the real port, also after binding port 0.
    #[must_use]
    pub fn local_addr(&self) -> &Address {
        &self.shared.local_addr
    }

    /// Stops the server gracefully: it listens no more, the handlers are told
    /// ([`Handler::on_stopping`](crate::Handler::on_stopping)), and connections that are still
    /// open after `deadline` are cut ([`CloseReason::Stopped`](crate::CloseReason)). Clients that are
    /// [part of it](crate::Client::part_of) are stopped in the same way, and waited for.
    ///
    /// Never blocks; from any thread and any callback. Stopping again sets one more deadline, of
    /// which the earliest counts: `Duration::ZERO` cuts now. The event loop goes on.
    pub fn stop(&self, deadline: Duration) {
        let (id, deadline) = (self.shared.id, end::deadline(deadline));
        // A loop that has ended has ended its servers.
        let _ = self.shared.base.post(move |event_loop| serving::stop(event_loop, id, deadline));
    }

    /// Blocks until the server has ended: stopped, with all its connections closed and its own
    /// threads gone; or its loop ended. Tells how its connections ended. (On a pool shared with
    /// others, those on its other threads may still be ending with their server's loop.)
    ///
    /// # Errors
    /// On a thread that has an event loop, which would wait for itself.
    pub fn wait(&self) -> io::Result<StopReport> {
        self.shared.end.wait("a server")?;
        Ok(self.shared.stop_report())
    }

    /// Whether the server has ended.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.shared.end.has_come()
    }

    /// What it has done so far. Reading it changes nothing.
    #[must_use]
    pub fn metrics(&self) -> ServerMetrics {
        self.shared.metrics()
    }
}

/// Signals.
impl ServerHandle {
    /// On SIGINT or SIGTERM: stops this server gracefully, with `deadline`, and when it has ended
    /// makes its loop quit, so that [`EventLoop::run`] returns. With several servers on the loop,
    /// call it for each; the loop quits after the last. A second signal makes it quit at once. A
    /// line in the log, at info level, says how many connections were drained and how many cut.
    ///
    /// # Errors
    /// If `event_loop` is not the one this server was started on, or another loop of the process
    /// handles these signals.
    pub fn stop_on_signals(&self, event_loop: &EventLoop, deadline: Duration) -> io::Result<()> {
        signals::stop_on_signals(event_loop, Rc::new(self.clone()), deadline)
    }
}

impl Stops for ServerHandle {
    fn base(&self) -> &LoopHandle {
        &self.shared.base
    }

    fn begin_stop(&self, deadline: Duration) {
        self.stop(deadline);
    }

    fn has_ended(&self) -> bool {
        self.is_ended()
    }

    fn when_done(&self, event_loop: &EventLoop, f: Continuation) {
        serving::when_done(event_loop, self.shared.id, f);
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
