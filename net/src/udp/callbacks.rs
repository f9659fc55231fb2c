//! What a program does with datagrams: a typed handler for each socket, or closures.

use std::sync::Arc;

use super::datagram::{Datagram, DatagramError};
use super::socket::UdpSocket;
use crate::callbacks::Unset;

/// What happens at one datagram socket. One is made for each loop that serves, by
/// [`UdpBuilder::serve`](crate::UdpBuilder::serve), and lives there: it needs neither `Send` nor
/// locks.
///
/// All methods are called on the socket's loop and never nested. A panic in one of them is caught,
/// logged and counted; it costs the datagram it happened with, and the handler stays.
pub trait UdpHandler: 'static {
    /// The socket's loop begins to serve it: once, before all else.
    fn on_start(&mut self, socket: &UdpSocket<'_>) {
        let _ = socket;
    }

    /// A datagram has come.
    fn on_datagram(&mut self, socket: &UdpSocket<'_>, datagram: &Datagram<'_>);

    /// A datagram could not be sent, or receiving brought an error. The socket goes on. By default
    /// a line in the log, at debug level.
    fn on_error(&mut self, socket: &UdpSocket<'_>, error: &DatagramError) {
        log::debug!("{}: {error}", socket.local_addr());
    }

    /// Datagrams had to wait, for the kernel took no more, and now all have left.
    fn on_drained(&mut self, socket: &UdpSocket<'_>) {
        let _ = socket;
    }

    /// The socket has ended: once, last. What is sent now is dropped. (Not called if it has ended with
    /// its loop before `on_start`.)
    fn on_close(&mut self, socket: &UdpSocket<'_>) {
        let _ = socket;
    }
}

/// A description with closures, but none for datagrams.
#[derive(Debug)]
pub struct NoDatagram;

type OnEvent = Box<dyn Fn(&UdpSocket<'_>) + Send + Sync>;
type OnError = Box<dyn Fn(&UdpSocket<'_>, &DatagramError) + Send + Sync>;

/// The closures of datagram sockets; `F` is the one for datagrams. Programs need not name this.
#[expect(missing_debug_implementations, reason = "closures have nothing to show")]
pub struct UdpCallbacks<F> {
    pub(super) datagram: F,
    pub(super) rest: Rest,
}

/// What has a default if it is not set: that of [`UdpHandler`].
#[derive(Default)]
pub(super) struct Rest {
    pub(super) start: Option<OnEvent>,
    pub(super) error: Option<OnError>,
    pub(super) drained: Option<OnEvent>,
    pub(super) close: Option<OnEvent>,
}

/// What can be turned into closures: none yet, or some.
pub trait SomeUdpCallbacks {
    /// The closure for datagrams, or [`NoDatagram`].
    type Datagram;
    /// Adds what is not set yet.
    fn into_callbacks(self) -> UdpCallbacks<Self::Datagram>;
}

impl SomeUdpCallbacks for Unset {
    type Datagram = NoDatagram;
    fn into_callbacks(self) -> UdpCallbacks<NoDatagram> {
        UdpCallbacks { datagram: NoDatagram, rest: Rest::default() }
    }
}

impl<F> SomeUdpCallbacks for UdpCallbacks<F> {
    type Datagram = F;
    fn into_callbacks(self) -> UdpCallbacks<F> {
        self
    }
}

/// Closures with which one can start.
#[diagnostic::on_unimplemented(
    message = "this cannot start: it has no callback for datagrams",
    label = "call `.on_datagram(|socket, datagram| ..)` before `start`, or `serve` instead of it"
)]
pub trait CanStartUdp {
    /// The handler that calls them.
    type Handler: UdpHandler + Clone + Send + Sync;
    /// Makes the handler.
    fn into_handler(self) -> Self::Handler;
}

impl<F> CanStartUdp for UdpCallbacks<F>
where
    F: Fn(&UdpSocket<'_>, &Datagram<'_>) + Send + Sync + 'static,
{
    type Handler = UdpCallbackHandler<F>;
    fn into_handler(self) -> UdpCallbackHandler<F> {
        UdpCallbackHandler(Arc::new(self))
    }
}

/// Calls the closures for one socket.
#[expect(missing_debug_implementations, reason = "closures have nothing to show")]
pub struct UdpCallbackHandler<F>(Arc<UdpCallbacks<F>>);

impl<F> Clone for UdpCallbackHandler<F> {
    fn clone(&self) -> UdpCallbackHandler<F> {
        UdpCallbackHandler(self.0.clone())
    }
}

impl<F> UdpHandler for UdpCallbackHandler<F>
where
    F: Fn(&UdpSocket<'_>, &Datagram<'_>) + Send + Sync + 'static,
{
    fn on_start(&mut self, socket: &UdpSocket<'_>) {
        if let Some(f) = &self.0.rest.start {
            f(socket);
        }
    }

    #[inline(always)]
    fn on_datagram(&mut self, socket: &UdpSocket<'_>, datagram: &Datagram<'_>) {
        (self.0.datagram)(socket, datagram);
    }

    fn on_error(&mut self, socket: &UdpSocket<'_>, error: &DatagramError) {
        match &self.0.rest.error {
            Some(f) => f(socket, error),
            None => log::debug!("{}: {error}", socket.local_addr()),
        }
    }

    fn on_drained(&mut self, socket: &UdpSocket<'_>) {
        if let Some(f) = &self.0.rest.drained {
            f(socket);
        }
    }

    fn on_close(&mut self, socket: &UdpSocket<'_>) {
        if let Some(f) = &self.0.rest.close {
            f(socket);
        }
    }
}
