//! Clients: how one is described.
//!
//! This file is the description. [`connecting`] is the client at work, [`race`] one attempt of it,
//! [`retry`] says when it tries again, [`failure`] why it could not, [`resolver`] looks names up,
//! and [`handle`] reaches it from outside. [`stream`] is for a stream that is connected already.

pub(crate) mod connecting;
mod failure;
mod handle;
mod race;
mod resolver;
mod retry;
mod stream;

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Duration;

use ruduo_reactor::EventLoop;

pub use self::failure::{ConnectError, ConnectFailure};
pub use self::handle::ClientHandle;
pub use self::retry::Retry;
pub use self::stream::Connected;
use crate::callbacks::{CanStart, Unset, on_methods};
use crate::context::Context;
use crate::limits::{Limits, connection_settings};
use crate::{Address, Addresses, Connection, Handler};

/// Clients on TCP: makes a [`Client`].
///
/// ```no_run
/// use ruduo_net::{Retry, TcpClient};
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// TcpClient::connect(&event_loop, "localhost:2007")
///     .retry(Retry::exponential())
///     .on_connect(|conn| conn.send("hello"))
///     .on_message(|conn, input| {
///         println!("{} bytes came back", input.len());
///         conn.finish();
///     })
///     .on_connect_failed(|_event_loop, failure| eprintln!("{failure}"))
///     .start()?;
/// event_loop.run()?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct TcpClient(());

/// Clients on Unix sockets: makes a [`Client`].
#[derive(Debug)]
pub struct UnixClient(());

impl TcpClient {
    /// A client that connects to `target`: an address, several addresses (the first that answers is
    /// taken), or the name of a host with a port. Nothing is attempted before
    /// [`start`](Client::start) or [`serve`](Client::serve). The same as [`Client::connect`].
    pub fn connect(event_loop: &EventLoop, target: impl Into<Addresses>) -> Client<'_> {
        Client::connect(event_loop, target)
    }

    /// A client on a stream that is connected already: no attempts, otherwise described like one
    /// that [connects](TcpClient::connect).
    ///
    /// # Errors
    /// If it is not connected any more, or can't be made non-blocking.
    pub fn from_stream(event_loop: &EventLoop, stream: TcpStream) -> io::Result<Connected<'_>> {
        Connected::new(event_loop, stream)
    }
}

impl UnixClient {
    /// A client of the Unix socket at `target`: a path, or `"unix:@name"`. The same as
    /// [`Client::connect`].
    pub fn connect(event_loop: &EventLoop, target: impl Into<Addresses>) -> Client<'_> {
        Client::connect(event_loop, target)
    }
}

/// A client, as it is being described: it connects, and what it does with its connection is said as
/// for a server, by closures or by a [`Handler`]. Both give it to the loop and return a
/// [`ClientHandle`], which may be dropped.
///
/// Without a [`retry`](Client::retry) policy there is one attempt and one connection. With one, an
/// attempt that has failed is made again, and a connection that has ended is made anew.
#[must_use = "a client does nothing before `start` or `serve`"]
pub struct Client<'l, C = Unset> {
    event_loop: &'l EventLoop,
    target: Addresses,
    settings: Settings,
    callbacks: C,
}

/// All but the behaviour of the connection.
struct Settings {
    limits: Limits,
    connect_timeout: Duration,
    retry: Retry,
    nodelay: bool,
    local: Option<Address>,
    on_failed: Option<Box<OnFailed>>,
    /// The server that it is part of.
    part_of: Option<Rc<Context>>,
}

type OnFailed = dyn Fn(&EventLoop, &ConnectFailure);

impl<'l> Client<'l> {
    /// A client of whatever the target is, on TCP or a Unix socket: for programs that are told
    /// where to connect.
    ///
    /// Names are looked up on threads of the whole process (getaddrinfo(3) blocks), and one only once,
    /// however many ask for it: 16 at a time, to which those that have taken longer than a second do
    /// not count any more, but no more than 64 in all. An attempt may spend its time with waiting for
    /// that.
    pub fn connect(event_loop: &'l EventLoop, target: impl Into<Addresses>) -> Client<'l> {
        let settings = Settings {
            limits: Limits::default(),
            connect_timeout: Duration::from_secs(10),
            retry: Retry::none(),
            nodelay: true,
            local: None,
            on_failed: None,
            part_of: None,
        };
        Client { event_loop, target: target.into(), settings, callbacks: Unset }
    }
}

/// # Connecting
impl<C> Client<'_, C> {
    /// How long one attempt may take, with looking up the name and all the addresses it stands for;
    /// 10 s by default.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// When to try again; never by default.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.settings.retry = retry;
        self
    }

    /// Whether the connection has TCP_NODELAY. On by default: all that a callback sends leaves in
    /// one piece anyway, and Nagle's algorithm would only hold the piece back.
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.settings.nodelay = nodelay;
        self
    }

    /// From which address of this machine to connect; by default the system chooses. Port 0 stands
    /// for any free port. A path of a Unix socket is made for each connection, in the place of one at
    /// which nobody listens, and goes with the connection. The loop may wait up to 250 ms for
    /// the lock of its folder then, as [servers](crate::UnixListenerBuilder::bind) do.
    pub fn bind_local(mut self, address: impl Into<Address>) -> Self {
        self.settings.local = Some(address.into());
        self
    }

    /// Makes it part of the server that has accepted `conn`, for programs that pass on what they receive
    /// there: the server ends only when its parts have, and when it is stopped they are, with the same
    /// deadline. (Otherwise what still waits for the target when the last connection of the server
    /// has closed is cut, as soon as the server is stopped.)
    ///
    /// `conn` has to be one that a server has accepted, and the deadline of a stop not over, or
    /// [`start`](Client::start) fails.
    pub fn part_of(mut self, conn: &Connection<'_>) -> Self {
        self.settings.part_of = Some(conn.context().clone());
        self
    }

    /// Called once for each attempt that has failed, on the loop and never inside another callback.
    /// If it panics, that is logged and counted, and the client goes on.
    pub fn on_connect_failed(mut self, f: impl Fn(&EventLoop, &ConnectFailure) + 'static) -> Self {
        self.settings.on_failed = Some(Box::new(f));
        self
    }
}

connection_settings!(Client);
on_methods!(Client);

impl<'l, C> Client<'l, C> {
    fn limits(&mut self) -> &mut Limits {
        &mut self.settings.limits
    }

    fn map_callbacks<D>(self, f: impl FnOnce(C) -> D) -> Client<'l, D> {
        let Client { event_loop, target, settings, callbacks } = self;
        Client { event_loop, target, settings, callbacks: f(callbacks) }
    }
}

/// # Starting
impl<C: CanStart> Client<'_, C> {
    /// Begins to connect, as a task of the loop, for the closures.
    ///
    /// # Errors
    /// Settings that contradict each other. What keeps it from connecting is told by
    /// [`on_connect_failed`](Client::on_connect_failed), whatever it is.
    pub fn start(self) -> io::Result<ClientHandle> {
        let Client { event_loop, target, settings, callbacks } = self;
        let handler = callbacks.into_handler();
        connecting::start(event_loop, target, settings, move |_| handler.clone())
    }
}

/// # Starting, with state
impl Client<'_> {
    /// Begins to connect, as a task of the loop, with a handler made by `factory` for each
    /// connection: one, or one after the other. Neither needs to be `Send`.
    ///
    /// # Errors
    /// As [`start`](Client::start).
    pub fn serve<F, H>(self, factory: F) -> io::Result<ClientHandle>
    where
        F: FnMut(&Connection<'_>) -> H + 'static,
        H: Handler,
    {
        let Client { event_loop, target, settings, callbacks: Unset } = self;
        connecting::start(event_loop, target, settings, factory)
    }
}

impl<C> fmt::Debug for Client<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("target", &self.target).finish_non_exhaustive()
    }
}
