//! A stream that is connected already, on a loop.

use std::cell::OnceCell;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::socket::{setsockopt, sockopt};
use ruduo_reactor::EventLoop;

use crate::connection::endpoint::Endpoint;
use crate::context::Context;
use crate::limits::Limits;
use crate::registry::Resident;
use crate::transport::Plain;
use crate::{Address, Connection, ConnectionHandle, Handler};

/// A stream that is connected already, as it is given to a loop: from
/// [`TcpClient::from_stream`](crate::TcpClient::from_stream). The same [`Connection`] and
/// [`Handler`] as a server's, with the limits that servers have by default.
///
/// ```no_run
/// use ruduo_net::{TcpClient, handler_fn};
/// use ruduo_reactor::EventLoop;
/// use std::net::TcpStream;
///
/// let event_loop = EventLoop::new()?;
/// let stream = TcpStream::connect("127.0.0.1:2007")?;
/// let server = TcpClient::from_stream(&event_loop, stream)?.serve(|_conn| {
///     handler_fn(|conn, input| {
///         println!("{} bytes came back", input.len());
///         input.clear();
///         conn.event_loop().quit();
///     })
/// })?;
/// server.send("hello")?;
/// event_loop.run()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "it does nothing before `serve`"]
pub struct Connected<'l> {
    event_loop: &'l EventLoop,
    socket: OwnedFd,
    peer: Address,
}

/// What these connections of one loop have in common; its `local` value.
#[derive(Default)]
struct Streams {
    context: OnceCell<Rc<Context>>,
}

impl<'l> Connected<'l> {
    /// It gets TCP_NODELAY, for all that a callback sends leaves in one piece anyway.
    pub(super) fn new(event_loop: &'l EventLoop, stream: TcpStream) -> io::Result<Connected<'l>> {
        let context = |e: io::Error| io::Error::new(e.kind(), format!("taking over a stream: {e}"));
        let peer = stream.peer_addr().map_err(context)?.into();
        stream.set_nonblocking(true).map_err(context)?;
        let socket = OwnedFd::from(stream);
        setsockopt(&socket, sockopt::TcpNoDelay, &true).map_err(|e| context(e.into()))?;
        Ok(Connected { event_loop, socket, peer })
    }

    /// Gives it to the loop, with the handler that `make_handler` makes: as a task of the loop, for
    /// this may be called inside a callback. The handle reaches the connection until it ends;
    /// dropping that changes nothing.
    ///
    /// # Errors
    /// If the loop can't watch it: it has ended, or the kernel's limits are reached.
    pub fn serve<H: Handler>(
        self,
        make_handler: impl FnOnce(&Connection<'_>) -> H + 'static,
    ) -> io::Result<ConnectionHandle> {
        let Connected { event_loop, socket, peer } = self;
        let streams = event_loop.local::<Streams>();
        let context = streams.context.get_or_init(|| {
            Rc::new(Context::new(event_loop, Limits::default(), Arc::default(), |_, _| {}))
        });
        let endpoint = Endpoint::open(event_loop, context, (socket, peer), Plain)?;
        let handle = Connection::new(event_loop, endpoint.core()).handle();
        event_loop.defer(move |event_loop| endpoint.begin(event_loop, make_handler));
        Ok(handle)
    }
}
