//! Reaching a client from anywhere.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ruduo_reactor::{EventLoop, LoopHandle};

use super::connecting;
use crate::ConnectionHandle;
use crate::by_id::next_id;
use crate::end::{self, Continuation, End};
use crate::signals::{self, Stops};

/// Reaches a client from any thread. Cheap to clone; dropping it changes nothing.
#[derive(Clone)]
pub struct ClientHandle {
    pub(super) shared: Arc<Shared>,
}

/// What a client and its handles have in common.
pub(super) struct Shared {
    pub(super) id: u64,
    event_loop: LoopHandle,
    /// Told to stop: from now on nothing new begins, and nobody is told of what fails.
    pub(super) stopping: AtomicBool,
    pub(super) attempts: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) connections: AtomicU64,
    connection: Mutex<Option<ConnectionHandle>>,
    pub(super) end: End,
}

impl Shared {
    pub(super) fn new(event_loop: LoopHandle) -> Shared {
        Shared {
            id: next_id(),
            event_loop,
            stopping: AtomicBool::new(false),
            attempts: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            connection: Mutex::default(),
            end: End::default(),
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    pub(super) fn connection(&self) -> Option<ConnectionHandle> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_connection(&self, connection: Option<ConnectionHandle>) {
        // What was there is dropped outside of the lock.
        let _before = {
            let mut now = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *now, connection)
        };
    }
}

impl ClientHandle {
    /// The connection, while there is one.
    #[must_use]
    pub fn connection(&self) -> Option<ConnectionHandle> {
        self.shared.connection()
    }

    /// Stops the client, in whatever state it is. Attempts are given up, and nobody is told of
    /// them any more. A connection ends gracefully: its handler is told
    /// ([`Handler::on_stopping`](crate::Handler::on_stopping)), and it is cut if it is still open
    /// after `deadline` ([`CloseReason::Stopped`](crate::CloseReason)). Of several calls the
    /// earliest deadline counts.
    ///
    /// Never blocks; from any thread and any callback. The event loop goes on.
    pub fn stop(&self, deadline: Duration) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let (id, deadline) = (self.shared.id, end::deadline(deadline));
        // A loop that has ended has ended its clients.
        let _ = self.shared.event_loop.post(move |event_loop| {
            connecting::stop(event_loop, id, deadline);
        });
    }

    /// Blocks until the client has ended: stopped, or given up, or its connection closed without a
    /// policy to make it anew; or its loop ended.
    ///
    /// # Errors
    /// On a thread that has an event loop, which would wait for itself.
    pub fn wait(&self) -> io::Result<()> {
        self.shared.end.wait("a client")
    }

    /// Whether the client has ended.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.shared.end.has_come()
    }

    /// Attempts to connect that have begun.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.shared.attempts.load(Ordering::Relaxed)
    }

    /// Attempts that have failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.shared.failures.load(Ordering::Relaxed)
    }

    /// Connections that were made.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

/// Signals.
impl ClientHandle {
    /// On SIGINT or SIGTERM: stops this client gracefully, with `deadline`, and when it has ended
    /// makes its loop quit, so that [`EventLoop::run`] returns: as
    /// [`ServerHandle::stop_on_signals`](crate::ServerHandle::stop_on_signals), and together with
    /// it. (A client that ends without a signal does not make the loop quit.)
    ///
    /// # Errors
    /// If `event_loop` is not the one this client was started on, or another loop of the process
    /// handles these signals.
    pub fn stop_on_signals(&self, event_loop: &EventLoop, deadline: Duration) -> io::Result<()> {
        signals::stop_on_signals(event_loop, Rc::new(self.clone()), deadline)
    }
}

impl Stops for ClientHandle {
    fn base(&self) -> &LoopHandle {
        &self.shared.event_loop
    }

    fn begin_stop(&self, deadline: Duration) {
        self.stop(deadline);
    }

    fn has_ended(&self) -> bool {
        self.is_ended()
    }

    fn when_done(&self, event_loop: &EventLoop, f: Continuation) {
        connecting::when_done(event_loop, self.shared.id, f);
    }
}

impl fmt::Debug for ClientHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientHandle")
            .field("connection", &self.connection().map(|connection| connection.id()))
            .field("is_ended", &self.is_ended())
            .finish_non_exhaustive()
    }
}
