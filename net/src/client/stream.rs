//! A stream that is connected already, on a loop.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use ruduo_reactor::EventLoop;
use ruduo_reactor::sys::socket;

use crate::callbacks::{CanStart, Unset, on_methods};
use crate::connection::endpoint::Endpoint;
use crate::context::Context;
use crate::limits::{Limits, connection_settings};
use crate::place::Resident;
use crate::transport::Plain;
use crate::{Address, Connection, ConnectionHandle, Handler};

/// A stream that is connected already, as it is given to a loop: from
/// [`TcpClient::from_stream`](crate::TcpClient::from_stream). What is done with it is said as for a
/// [`Client`](crate::Client), by closures or by a [`Handler`], and so are its bounds.
///
/// ```no_run
/// use ruduo_net::TcpClient;
/// use ruduo_reactor::EventLoop;
/// use std::net::TcpStream;
/// use std::time::Duration;
///
/// let event_loop = EventLoop::new()?;
/// let stream = TcpStream::connect("127.0.0.1:2007")?;
/// let server = TcpClient::from_stream(&event_loop, stream)?
///     .idle_timeout(Duration::from_secs(10))
///     .on_message(|conn, input| {
///         println!("{} bytes came back", input.len());
///         input.clear();
///         conn.event_loop().quit();
///     })
///     .start()?;
/// server.send("hello")?;
/// event_loop.run()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "it does nothing before `start` or `serve`"]
pub struct Connected<'l, C = Unset> {
    event_loop: &'l EventLoop,
    socket: OwnedFd,
    peer: Address,
    limits: Limits,
    nodelay: bool,
    callbacks: C,
}

impl<'l> Connected<'l> {
    pub(super) fn new(event_loop: &'l EventLoop, stream: TcpStream) -> io::Result<Connected<'l>> {
        let peer = stream.peer_addr().map_err(taking_over)?.into();
        socket::take_over(stream.as_fd()).map_err(taking_over)?;
        Ok(Connected {
            event_loop,
            socket: stream.into(),
            peer,
            limits: Limits::default(),
            nodelay: true,
            callbacks: Unset,
        })
    }
}

connection_settings!(Connected);
on_methods!(Connected);

impl<'l, C> Connected<'l, C> {
    /// Whether it gets TCP_NODELAY; as [`Client::nodelay`](crate::Client::nodelay), on by default.
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.nodelay = nodelay;
        self
    }

    fn limits(&mut self) -> &mut Limits {
        &mut self.limits
    }

    fn map_callbacks<D>(self, f: impl FnOnce(C) -> D) -> Connected<'l, D> {
        let Connected { event_loop, socket, peer, limits, nodelay, callbacks } = self;
        Connected { event_loop, socket, peer, limits, nodelay, callbacks: f(callbacks) }
    }

    fn begin<H: Handler>(
        self,
        make_handler: impl FnOnce(C, &Connection<'_>) -> H + 'static,
    ) -> io::Result<ConnectionHandle>
    where
        C: 'static,
    {
        let Connected { event_loop, socket, peer, limits, nodelay, callbacks } = self;
        limits.check().map_err(taking_over)?;
        setsockopt(&socket, sockopt::TcpNoDelay, &nodelay).map_err(|e| taking_over(e.into()))?;
        limits.tcp.set_on(socket.as_fd(), &peer).map_err(taking_over)?;
        let context = Rc::new(Context::new::<Endpoint<Plain, H>>(
            event_loop,
            limits,
            Arc::default(),
            |_, _| {},
        ));
        let endpoint = Endpoint::new(&context, socket, peer, Plain);
        endpoint.open(event_loop)?;
        let handle = Connection::new(event_loop, endpoint.core()).handle();
        event_loop.defer(move |event_loop| {
            endpoint.begin(event_loop, |conn| make_handler(callbacks, conn));
        });
        Ok(handle)
    }
}

/// # Starting
impl<C: CanStart + 'static> Connected<'_, C> {
    /// Gives it to the loop, for the closures: as a task of the loop, for this may be called inside
    /// a callback. The handle reaches the connection until it ends; dropping that changes nothing.
    ///
    /// # Errors
    /// Settings that contradict each other, or that the kernel does not take; or if the loop can't
    /// watch it: it has ended, or the kernel's limits are reached.
    pub fn start(self) -> io::Result<ConnectionHandle> {
        self.begin(|callbacks, _| callbacks.into_handler())
    }
}

/// # Starting, with state
impl Connected<'_> {
    /// As `start`, with the handler that `make_handler` makes. Neither needs to be `Send`.
    ///
    /// # Errors
    /// As `start`.
    pub fn serve<H: Handler>(
        self,
        make_handler: impl FnOnce(&Connection<'_>) -> H + 'static,
    ) -> io::Result<ConnectionHandle> {
        self.begin(|Unset, conn| make_handler(conn))
    }
}

fn taking_over(e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("taking over a stream: {e}"))
}

impl<C> fmt::Debug for Connected<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connected").field("peer", &self.peer).finish_non_exhaustive()
    }
}
