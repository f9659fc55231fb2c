//! Reaching datagram sockets from anywhere: one of them, or all that were started together.

use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ruduo_reactor::{EventLoop, LoopHandle};

use super::core::Sockets;
use super::metrics::{Counters, UdpMetrics};
use super::serving;
use super::socket::UdpSocket;
use crate::end::{self, Continuation, End};
use crate::posted::{Outstanding, Posted};
use crate::signals::{self, Stops};
use crate::{Address, SendError};

/// Reaches a datagram socket from any thread. Cheap to clone; harmless after the socket's end.
///
/// What one thread sends leaves in order (and arrives in whatever the network makes of it).
///
/// ```
/// use ruduo_net::UdpServer;
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// UdpServer::bind(&event_loop, "127.0.0.1:0")
///     .on_datagram(|socket, datagram| {
///         let (handle, peer) = (socket.handle(), datagram.peer());
///         let question = datagram.bytes().to_vec();
///         std::thread::spawn(move || {
///             // ... something slow, and then:
///             handle.send_to(question.to_ascii_uppercase(), &peer)
///         });
///     })
///     .start()?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone)]
pub struct UdpSocketHandle {
    event_loop: LoopHandle,
    id: u64,
    posted: Arc<Posted<()>>,
}

/// For what a datagram on its way costs beside its bytes.
const TASK: usize = 128;

impl UdpSocketHandle {
    pub(super) fn new(event_loop: LoopHandle, id: u64, posted: Arc<Posted<()>>) -> UdpSocketHandle {
        UdpSocketHandle { event_loop, id, posted }
    }

    /// The loop that serves it.
    #[must_use]
    pub fn event_loop(&self) -> &LoopHandle {
        &self.event_loop
    }

    /// Whether the socket has ended, as far as is known on this thread.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.posted.is_closed()
    }

    /// Sends a datagram to the peer of a connected socket; a copy of `bytes`.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the socket or its loop is known to have ended; [`SendError::Full`]
    /// if what is on its way to the loop exceeds [`queue_limit`](crate::UdpBuilder::queue_limit).
    pub fn send(&self, bytes: impl AsRef<[u8]>) -> Result<(), SendError> {
        self.submit(bytes.as_ref(), None)
    }

    /// Sends a datagram to `peer`; a copy of `bytes`.
    ///
    /// # Errors
    /// As [`send`](UdpSocketHandle::send).
    pub fn send_to(&self, bytes: impl AsRef<[u8]>, peer: &Address) -> Result<(), SendError> {
        self.submit(bytes.as_ref(), Some(peer))
    }

    /// Calls `f` with the socket, on its loop and never inside another callback. Dropped if the
    /// socket ends first.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the socket or its loop is known to have ended.
    pub fn post(&self, f: impl FnOnce(&UdpSocket<'_>) + Send + 'static) -> Result<(), SendError> {
        self.post_weighing(0, f)
    }

    /// On the loop's own thread at once, unless something is on its way, which comes first.
    fn submit(&self, bytes: &[u8], peer: Option<&Address>) -> Result<(), SendError> {
        let send = |socket: &UdpSocket<'_>, bytes: &[u8], peer: Option<&Address>| match peer {
            Some(peer) => socket.send_to(bytes, peer),
            None => socket.send(bytes),
        };
        let at_once = self.event_loop.with_local(|event_loop| {
            if self.posted.outstanding() > 0 {
                return false;
            }
            // A loop of a pool may have been given it a moment ago only.
            let Some(resident) = event_loop.local::<Sockets>().get(self.id) else {
                return false;
            };
            send(&UdpSocket::new(event_loop, resident.core()), bytes, peer);
            true
        });
        if at_once == Some(true) {
            return Ok(());
        }
        let weight = bytes.len() + TASK;
        // One by itself is never too much: whether it is too large, the queue says.
        if self.posted.weight() > 0 && self.posted.has_no_room_for(weight) {
            return Err(SendError::Full);
        }
        let (bytes, peer) = (bytes.to_vec(), peer.cloned());
        self.post_weighing(weight, move |socket| send(socket, &bytes, peer.as_ref()))
    }

    fn post_weighing(
        &self,
        weight: usize,
        f: impl FnOnce(&UdpSocket<'_>) + Send + 'static,
    ) -> Result<(), SendError> {
        if self.is_closed() {
            return Err(SendError::Closed);
        }
        let (id, outstanding) = (self.id, Outstanding::new(&self.posted, weight));
        let task = move |event_loop: &EventLoop| {
            let resident = event_loop.local::<Sockets>().get(id);
            drop(outstanding);
            if let Some(resident) = resident {
                resident.call(event_loop, Box::new(f));
            }
        };
        self.event_loop.post(task).map_err(|_| SendError::Closed)
    }
}

impl fmt::Debug for UdpSocketHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocketHandle")
            .field("is_closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// Reaches the datagram sockets that were started together, one for each loop, from any thread.
/// Cheap to clone; dropping it changes nothing.
#[derive(Clone)]
pub struct UdpHandle {
    pub(super) shared: Arc<Shared>,
    sockets: Arc<[UdpSocketHandle]>,
}

/// What the sockets and their handles have in common.
pub(super) struct Shared {
    pub(super) id: u64,
    local_addr: Address,
    pub(super) base: LoopHandle,
    counters: Vec<Arc<Counters>>,
    pub(super) open: AtomicUsize,
    pub(super) end: End,
}

impl Shared {
    pub(super) fn new(
        id: u64,
        local_addr: Address,
        base: LoopHandle,
        counters: Vec<Arc<Counters>>,
    ) -> Shared {
        let open = AtomicUsize::new(counters.len());
        Shared { id, local_addr, base, counters, open, end: End::default() }
    }

    pub(super) fn local_addr(&self) -> &Address {
        &self.local_addr
    }

    pub(super) fn metrics(&self) -> UdpMetrics {
        let open = self.open.load(Ordering::Relaxed);
        let mut metrics = UdpMetrics { open, ..UdpMetrics::default() };
        for counters in &self.counters {
            counters.add_to(&mut metrics);
        }
        metrics
    }
}

impl UdpHandle {
    pub(super) fn new(shared: Arc<Shared>, sockets: Vec<UdpSocketHandle>) -> UdpHandle {
        UdpHandle { shared, sockets: sockets.into() }
    }

    /// Their address: the real port, also after binding port 0.
    #[must_use]
    pub fn local_addr(&self) -> &Address {
        &self.shared.local_addr
    }

    /// The sockets, one for each loop.
    #[must_use]
    pub fn sockets(&self) -> &[UdpSocketHandle] {
        &self.sockets
    }

    /// The first of them, which without threads is the only one.
    #[must_use]
    pub fn socket(&self) -> &UdpSocketHandle {
        &self.sockets[0]
    }

    /// Stops gracefully: nothing more is received, and what is queued leaves; what has not left
    /// after `deadline` is dropped, and counted ([`UdpMetrics::discarded`]). Then the sockets end.
    ///
    /// Never blocks; from any thread and any callback. Stopping again sets one more deadline, of
    /// which the earliest counts. The event loop goes on.
    pub fn stop(&self, deadline: Duration) {
        let deadline = end::deadline(deadline);
        for socket in &*self.sockets {
            let id = socket.id;
            // A loop that has ended has ended its sockets.
            let _ = socket.event_loop.post(move |event_loop| {
                serving::stop(event_loop, id, deadline);
            });
        }
    }

    /// Blocks until all sockets have ended: stopped, or closed, or with their loops.
    ///
    /// # Errors
    /// On a thread that has an event loop, which would wait for itself.
    pub fn wait(&self) -> io::Result<()> {
        self.shared.end.wait("datagram sockets")
    }

    /// Whether all sockets have ended.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.shared.end.has_come()
    }

    /// What they have done so far. Reading it changes nothing, and asks the kernel once for each
    /// socket.
    #[must_use]
    pub fn metrics(&self) -> UdpMetrics {
        self.shared.metrics()
    }

    /// On SIGINT or SIGTERM: stops, with `deadline`, and when all sockets have ended makes the loop
    /// quit; with other servers on the loop that are to stop so, after the last of them
    /// ([`ServerHandle::stop_on_signals`](crate::ServerHandle::stop_on_signals)). A second signal
    /// makes it quit at once.
    ///
    /// # Errors
    /// If `event_loop` is not the one they were started on, or another loop of the process handles
    /// these signals.
    pub fn stop_on_signals(&self, event_loop: &EventLoop, deadline: Duration) -> io::Result<()> {
        signals::stop_on_signals(event_loop, Rc::new(self.clone()), deadline)
    }
}

impl Stops for UdpHandle {
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

impl fmt::Debug for UdpHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpHandle")
            .field("local_addr", &self.local_addr())
            .field("open", &self.shared.open.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}
