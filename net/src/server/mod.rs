//! TCP servers: how one is described.
//!
//! This file is the description; [`callbacks`] turns closures into a handler, [`serving`] is the
//! server at work on its loops, and [`handle`] reaches it from outside.

mod callbacks;
mod handle;
mod serving;
mod signals;

use std::fmt;
use std::io;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ruduo_reactor::{EventLoop, LoopPool, Placement};

pub use self::callbacks::{CallbackHandler, Callbacks, CanStart, NoMessage, SomeCallbacks, Unset};
pub use self::handle::ServerHandle;
use crate::limits::Limits;
use crate::listener::{self, ListenOptions};
use crate::{Buffer, CloseReason, Connection, Handler};

/// A TCP server, as it is being described.
///
/// [`bind`](TcpServer::bind) makes one that listens. Say what it does in one of two ways: closures
/// without state of their own, then [`start`](TcpServer::start); or a [`Handler`] made for each
/// connection, by [`serve`](TcpServer::serve). Both give the server to the loop and return a
/// [`ServerHandle`], which may be dropped.
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
pub struct TcpServer<'l, C = Unset> {
    event_loop: &'l EventLoop,
    listener: OwnedFd,
    settings: Settings,
    callbacks: C,
}

/// All but the behaviour.
#[derive(Clone)]
struct Settings {
    /// Instead of threads of its own, which the next three are about.
    pool: Option<LoopPool>,
    threads: usize,
    name: Option<String>,
    placement: Option<Placement>,
    max_connections: usize,
    limits: Limits,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            pool: None,
            threads: 0,
            name: None,
            placement: None,
            max_connections: usize::MAX,
            limits: Limits::default(),
        }
    }
}

/// Settings of the listening socket that must come before it is bound; from
/// [`TcpServer::builder`].
#[derive(Clone, Copy, Debug)]
#[must_use = "call bind"]
pub struct ListenerBuilder<'l> {
    event_loop: &'l EventLoop,
    options: ListenOptions,
}

impl<'l> ListenerBuilder<'l> {
    /// Lets several sockets listen on one port, among which the kernel spreads the connections
    /// (SO_REUSEPORT). Off by default.
    pub fn reuse_port(mut self, reuse_port: bool) -> Self {
        self.options.reuse_port = reuse_port;
        self
    }

    /// Makes an IPv6 socket refuse IPv4 peers. Off by default: `[::]` serves both.
    pub fn ipv6_only(mut self, ipv6_only: bool) -> Self {
        self.options.ipv6_only = ipv6_only;
        self
    }

    /// Whether accepted sockets have TCP_NODELAY. On by default: all that a callback sends leaves
    /// in one piece anyway, and Nagle's algorithm would only hold the piece back.
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.options.nodelay = nodelay;
        self
    }

    /// How many connections may wait to be accepted; 4,096 by default. The system caps it
    /// (`net.core.somaxconn`).
    pub fn backlog(mut self, backlog: u16) -> Self {
        self.options.backlog = backlog;
        self
    }

    /// Binds and listens, on the first of the addresses that can be bound. Port 0 is any free one;
    /// [`ServerHandle::local_addr`] tells which.
    ///
    /// # Errors
    /// What resolving the name, or bind(2) and listen(2), say, with the address.
    pub fn bind(self, address: impl ToSocketAddrs) -> io::Result<TcpServer<'l>> {
        let listener = listener::listen_on(address, self.options)?;
        Ok(TcpServer::new(self.event_loop, listener))
    }
}

/// # Listening
impl<'l> TcpServer<'l> {
    /// Binds and listens with the usual settings.
    ///
    /// # Errors
    /// As [`ListenerBuilder::bind`].
    pub fn bind(
        event_loop: &'l EventLoop,
        address: impl ToSocketAddrs,
    ) -> io::Result<TcpServer<'l>> {
        TcpServer::builder(event_loop).bind(address)
    }

    /// For settings that must come before binding.
    pub fn builder(event_loop: &'l EventLoop) -> ListenerBuilder<'l> {
        ListenerBuilder { event_loop, options: ListenOptions::default() }
    }

    /// A server on a socket that listens already, for example one that was inherited.
    ///
    /// # Errors
    /// If it can't be made non-blocking or is not a TCP socket.
    pub fn from_listener(
        event_loop: &'l EventLoop,
        listener: TcpListener,
    ) -> io::Result<TcpServer<'l>> {
        let context =
            |e: io::Error| io::Error::new(e.kind(), format!("taking over a listener: {e}"));
        listener.set_nonblocking(true).map_err(context)?;
        let listener = OwnedFd::from(listener);
        listener::prepare(&listener, ListenOptions::default()).map_err(context)?;
        Ok(TcpServer::new(event_loop, listener))
    }

    fn new(event_loop: &'l EventLoop, listener: OwnedFd) -> TcpServer<'l> {
        TcpServer { event_loop, listener, settings: Settings::default(), callbacks: Unset }
    }
}

impl Settings {
    /// The loops that serve.
    fn start_pool(&mut self, event_loop: &EventLoop) -> io::Result<LoopPool> {
        let own = self.threads > 0 || self.name.is_some() || self.placement.is_some();
        match self.pool.take() {
            Some(_) if own => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "starting a server: threads, name and placement are those of threads of its own, \
                 but it was given a pool",
            )),
            Some(pool) => Ok(pool),
            None => LoopPool::builder(event_loop)
                .threads(self.threads)
                .name(self.name.as_deref().unwrap_or("ruduo"))
                .placement(self.placement.unwrap_or_default())
                .start(),
        }
    }
}

impl<'l, C> TcpServer<'l, C> {
    /// The loop it was bound on, for timers and tasks that go with it.
    #[must_use]
    pub fn event_loop(&self) -> &'l EventLoop {
        self.event_loop
    }
}

/// # Settings
impl<C> TcpServer<'_, C> {
    /// How many threads, each with a loop, serve the connections. With 0, the default, the loop
    /// the server was bound on does everything; otherwise it only accepts. The threads end with
    /// the server.
    pub fn threads(mut self, threads: usize) -> Self {
        self.settings.threads = threads;
        self
    }

    /// Serves the connections on a pool that others may use too. Threads of its own, their name and
    /// placement cannot be had as well.
    pub fn pool(mut self, pool: &LoopPool) -> Self {
        self.settings.pool = Some(pool.clone());
        self
    }

    /// What own threads are called: this and a number; "ruduo" by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// How connections are placed on own threads; round robin by default.
    pub fn placement(mut self, placement: Placement) -> Self {
        self.settings.placement = Some(placement);
        self
    }

    /// How many connections may be open at once. Those beyond are closed as soon as accepted,
    /// and counted ([`ServerHandle::refused`]). No limit by default. (To tell the refused why they
    /// are, count in a handler, as the example `max_connection` does.)
    pub fn max_connections(mut self, max_connections: usize) -> Self {
        self.settings.max_connections = max_connections;
        self
    }

    /// How many bytes one receive can bring; 64 KiB by default. Each loop has a few buffers of
    /// this size, shared by all connections.
    pub fn read_size(mut self, bytes: usize) -> Self {
        self.settings.limits.read_size = bytes;
        self
    }

    /// How many bytes of input a handler may leave unconsumed; 1 MiB by default. A connection
    /// that reaches it is closed ([`CloseReason::InputFull`]).
    pub fn input_limit(mut self, bytes: usize) -> Self {
        self.settings.limits.input = bytes;
        self
    }

    /// When `high` bytes wait for the peer, reading from it pauses until only `low` are left:
    /// who does not read the answers gets to ask no more. 1 MiB and 256 KiB by default.
    pub fn water_marks(mut self, low: usize, high: usize) -> Self {
        self.settings.limits.low_water = low;
        self.settings.limits.high_water = high;
        self
    }

    /// How many bytes of memory output may hold; 64 MiB by default. Sending more closes the
    /// connection ([`CloseReason::OutputFull`]).
    pub fn output_limit(mut self, bytes: usize) -> Self {
        self.settings.limits.output = bytes;
        self
    }

    /// How long (between once and twice as long) a connection that is ending waits without any
    /// progress: of the output that is still
    /// pending, and after our end of the stream, of what the peer still sends. (What is thrown away,
    /// after `finish` or `reject`, is no progress.) 5 s by default.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.settings.limits.linger = linger;
        self
    }
}

/// Defines a method that sets one closure.
macro_rules! on {
    ($(#[$doc:meta])* $name:ident, $field:ident, $($argument:ty),*) => {
        $(#[$doc])*
        pub fn $name(
            self,
            f: impl Fn(&Connection<'_>, $($argument),*) + Send + Sync + 'static,
        ) -> TcpServer<'l, Callbacks<C::Message>> {
            self.map_callbacks(|callbacks| {
                let mut callbacks = callbacks.into_callbacks();
                callbacks.rest.$field = Some(Box::new(f));
                callbacks
            })
        }
    };
}

/// # Behaviour by closures
///
/// They are shared by all connections and threads. The callbacks are those of [`Handler`].
impl<'l, C: SomeCallbacks> TcpServer<'l, C> {
    /// See [`Handler::on_message`].
    pub fn on_message<F>(self, f: F) -> TcpServer<'l, Callbacks<F>>
    where
        F: Fn(&Connection<'_>, &mut Buffer) + Send + Sync + 'static,
    {
        self.map_callbacks(|callbacks| Callbacks {
            message: f,
            rest: callbacks.into_callbacks().rest,
        })
    }

    on!(
        /// See [`Handler::on_connect`].
        on_connect, connect,
    );
    on!(
        /// See [`Handler::on_write_complete`].
        on_write_complete, write_complete,
    );
    on!(
        /// See [`Handler::on_high_water`].
        on_high_water, high_water, usize
    );
    on!(
        /// See [`Handler::on_low_water`].
        on_low_water, low_water,
    );
    on!(
        /// See [`Handler::on_half_close`].
        on_half_close, half_close,
    );
    on!(
        /// See [`Handler::on_timer`].
        on_timer, timer, u64
    );
    on!(
        /// See [`Handler::on_stopping`].
        on_stopping, stopping,
    );
    on!(
        /// See [`Handler::on_close`].
        on_close, close, &CloseReason
    );

    fn map_callbacks<D>(self, f: impl FnOnce(C) -> D) -> TcpServer<'l, D> {
        let TcpServer { event_loop, listener, settings, callbacks } = self;
        TcpServer { event_loop, listener, settings, callbacks: f(callbacks) }
    }
}

/// # Starting
impl<C: CanStart> TcpServer<'_, C> {
    /// Starts accepting connections for the closures.
    ///
    /// # Errors
    /// Settings that contradict each other; what kept the threads from starting or the listener
    /// from being watched.
    pub fn start(self) -> io::Result<ServerHandle> {
        let TcpServer { event_loop, listener, settings, callbacks } = self;
        let handler = callbacks.into_handler();
        serving::start(event_loop, listener, settings, move |_| {
            let handler = handler.clone();
            move |_: &Connection<'_>| handler.clone()
        })
    }
}

/// # Starting, with state
impl TcpServer<'_> {
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
    /// As [`start`](TcpServer::start).
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
    /// it holds needs to be `Send`.
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
    /// As [`start`](TcpServer::start).
    pub fn serve_per_loop<P, F, H>(self, per_loop: P) -> io::Result<ServerHandle>
    where
        P: Fn(&EventLoop) -> F + Send + Sync + 'static,
        F: FnMut(&Connection<'_>) -> H + 'static,
        H: Handler,
    {
        let TcpServer { event_loop, listener, settings, callbacks: Unset } = self;
        serving::start(event_loop, listener, settings, per_loop)
    }
}

impl<C> fmt::Debug for TcpServer<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpServer").field("listener", &self.listener).finish_non_exhaustive()
    }
}
