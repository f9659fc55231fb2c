//! Servers: how one is described.
//!
//! This file is the description. [`listening`] is where one begins, on TCP or a Unix socket,
//! [`serving`] is the server at work on its loops. By its [`entrance`] connections come in, if
//! [`admission`] lets them. [`handle`] reaches it from outside, and by [`hand_over`] its listener
//! outlives it.

mod admission;
mod entrance;
mod hand_over;
mod handle;
mod listening;
mod serving;

use std::fmt;
use std::io;
use std::sync::Arc;

use ruduo_reactor::{EventLoop, LoopPool, Placement};

use self::admission::Bounds;
pub use self::handle::ServerHandle;
pub use self::listening::{TcpListenerBuilder, TcpServer, UnixListenerBuilder, UnixServer};
use crate::callbacks::{CanStart, Unset, on_methods};
use crate::limits::{Limits, connection_settings};
use crate::listener::Listener;
use crate::loops::Loops;
use crate::{Connection, Handler};

/// A server, as it is being described.
///
/// [`TcpServer::bind`] and [`UnixServer::bind`] make one that listens. Say what it does in one of
/// two ways: closures without state of their own, then [`start`](Server::start); or a [`Handler`]
/// made for each connection, by [`serve`](Server::serve). Both give the server to the loop and
/// return a [`ServerHandle`], which may be dropped.
///
/// ```no_run
/// use ruduo_net::TcpServer;
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// TcpServer::bind(&event_loop, "127.0.0.1:2007")?
///     .threads(4)
///     .on_message(|conn, input| conn.send_buffer(input))
///     .start()?;
/// event_loop.run()?;
/// # std::io::Result::Ok(())
/// ```
///
/// A server that does nothing with its messages cannot be started:
///
/// ```compile_fail,E0277
/// use ruduo_net::TcpServer;
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// TcpServer::bind(&event_loop, "127.0.0.1:0")?
///     .on_connect(|conn| conn.send("hello\n"))
///     .start()?;
/// # std::io::Result::Ok(())
/// ```
///
/// Nor can one have both closures and handlers:
///
/// ```compile_fail,E0599
/// use ruduo_net::{TcpServer, handler_fn};
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// TcpServer::bind(&event_loop, "127.0.0.1:0")?
///     .on_message(|conn, input| conn.send_buffer(input))
///     .serve(|_conn| handler_fn(|conn, input| conn.send_buffer(input)))?;
/// # std::io::Result::Ok(())
/// ```
#[must_use = "a server does nothing before `start` or `serve`"]
pub struct Server<'l, C = Unset> {
    event_loop: &'l EventLoop,
    listener: Listener,
    settings: Settings,
    callbacks: C,
}

/// All but the behaviour.
#[derive(Clone, Default)]
struct Settings {
    loops: Loops,
    bounds: Bounds,
    limits: Limits,
}

impl Settings {
    /// Refuses those that contradict each other.
    fn check(&self) -> io::Result<()> {
        self.loops.check()?;
        self.limits.check()?;
        self.bounds.check()
    }
}

impl<'l, C> Server<'l, C> {
    /// The loop it was bound on, for timers and tasks that go with it.
    #[must_use]
    pub fn event_loop(&self) -> &'l EventLoop {
        self.event_loop
    }
}

/// # Settings
impl<C> Server<'_, C> {
    /// How many threads, each with a loop, serve the connections. With 0, the default, the loop
    /// the server was bound on does everything; otherwise it only accepts. The threads end with
    /// the server. More than [`LoopPool::MAX_THREADS`] are an error at the start.
    pub fn threads(mut self, threads: usize) -> Self {
        self.settings.loops.threads = threads;
        self
    }

    /// Serves the connections on a pool that others may use too. Threads of its own, their name and
    /// placement cannot be had as well.
    pub fn pool(mut self, pool: &LoopPool) -> Self {
        self.settings.loops.pool = Some(pool.clone());
        self
    }

    /// What own threads are called: this and a number; "ruduo" by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.loops.name = Some(name.into());
        self
    }

    /// How connections are placed on own threads; round robin by default. By hash, what counts is the
    /// peer's address without its port, or its name on a Unix socket; those without a name are spread.
    pub fn placement(mut self, placement: Placement) -> Self {
        self.settings.loops.placement = Some(placement);
        self
    }

    /// How many connections may be open at once. Those beyond are closed as soon as accepted,
    /// and counted ([`RefusedCounts`](crate::RefusedCounts)). No limit by default; one that
    /// RLIMIT_NOFILE does not allow is worth a line in the log at start.
    pub fn max_connections(mut self, max_connections: usize) -> Self {
        self.settings.bounds.total = max_connections;
        self
    }

    /// How many connections one peer may have open at once, by its address; an IPv6 peer is a
    /// network of 64 bits, for from such a one a host may choose its addresses. Peers on Unix sockets
    /// have none and are not counted. No limit by default. It costs a short lock when a connection
    /// begins and one when it ends.
    pub fn max_connections_per_peer(mut self, max_connections: usize) -> Self {
        self.settings.bounds.per_peer = max_connections;
        self
    }

    /// What those are told who are refused by these two; nothing by default. At most 1,024 bytes, in
    /// one piece, and then comes the end of the stream.
    ///
    /// What a peer has sent meanwhile must not turn the end into a reset, which may destroy the
    /// message. So each that is refused keeps a descriptor until it goes, for a second at most. No
    /// more than 64 do on one loop, and those beyond are closed without a word. (A want of
    /// descriptors refuses without one, too.)
    pub fn refuse_with(mut self, message: impl Into<Arc<[u8]>>) -> Self {
        self.settings.bounds.message = Some(message.into());
        self
    }
}

connection_settings!(Server);
on_methods!(Server);

impl<'l, C> Server<'l, C> {
    fn limits(&mut self) -> &mut Limits {
        &mut self.settings.limits
    }

    fn map_callbacks<D>(self, f: impl FnOnce(C) -> D) -> Server<'l, D> {
        let Server { event_loop, listener, settings, callbacks } = self;
        Server { event_loop, listener, settings, callbacks: f(callbacks) }
    }
}

/// # Starting
impl<C: CanStart> Server<'_, C> {
    /// Starts accepting connections for the closures.
    ///
    /// # Errors
    /// Settings that contradict each other; what kept the threads from starting or the listener
    /// from being watched; a loop of the [`pool`](Server::pool) that has ended; a panic of `per_loop`
    /// on a thread of the server's own. Nothing is left running then.
    pub fn start(self) -> io::Result<ServerHandle> {
        let Server { event_loop, listener, settings, callbacks } = self;
        let handler = callbacks.into_handler();
        serving::start(event_loop, listener, settings, move |_| {
            let handler = handler.clone();
            move |_: &Connection<'_>| handler.clone()
        })
    }
}

/// # Starting, with state
impl Server<'_> {
    /// Starts accepting connections, with a handler made for each by `factory`, on the
    /// connection's own loop. The factory may already use the connection, as
    /// [`Handler::on_connect`] may, which comes next.
    ///
    /// ```no_run
    /// # use ruduo_net::{Buffer, Connection, Handler, TcpServer};
    /// # use ruduo_reactor::EventLoop;
    /// struct Session { lines: u64 }
    /// impl Handler for Session {
    ///     fn on_message(&mut self, conn: &Connection, input: &mut Buffer) { /* ... */ }
    /// }
    /// let event_loop = EventLoop::new()?;
    /// TcpServer::bind(&event_loop, "127.0.0.1:0")?.serve(|_conn| Session { lines: 0 })?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// As [`start`](Server::start).
    pub fn serve<F, H>(self, factory: F) -> io::Result<ServerHandle>
    where
        F: Fn(&Connection<'_>) -> H + Send + Sync + 'static,
        H: Handler,
    {
        let factory = Arc::new(factory);
        self.serve_per_loop(move |_| {
            let factory = factory.clone();
            move |conn: &Connection<'_>| factory(conn)
        })
    }

    /// Starts accepting connections, with state that those of one loop share: `per_loop` is called
    /// once on each loop and returns that loop's factory of handlers. Neither the factory nor what
    /// it holds needs to be `Send`. On threads of the server's own it runs before this returns, so it
    /// must not wait for the calling thread.
    ///
    /// ```no_run
    /// # use ruduo_net::{Buffer, Connection, Handler, TcpServer};
    /// # use ruduo_reactor::EventLoop;
    /// use std::{cell::Cell, rc::Rc};
    ///
    /// struct Session { messages_on_this_loop: Rc<Cell<u64>> }
    /// impl Handler for Session {
    ///     fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
    ///         self.messages_on_this_loop.update(|n| n + 1);
    ///         conn.send_buffer(input);
    ///     }
    /// }
    /// let event_loop = EventLoop::new()?;
    /// TcpServer::bind(&event_loop, "127.0.0.1:0")?.threads(4).serve_per_loop(|_event_loop| {
    ///     let messages = Rc::new(Cell::new(0));
    ///     move |_conn| Session { messages_on_this_loop: messages.clone() }
    /// })?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// As [`start`](Server::start).
    pub fn serve_per_loop<P, F, H>(self, per_loop: P) -> io::Result<ServerHandle>
    where
        P: Fn(&EventLoop) -> F + Send + Sync + 'static,
        F: FnMut(&Connection<'_>) -> H + 'static,
        H: Handler,
    {
        let Server { event_loop, listener, settings, callbacks: Unset } = self;
        serving::start(event_loop, listener, settings, per_loop)
    }
}

impl<C> fmt::Debug for Server<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}
