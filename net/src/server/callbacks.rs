//! Servers whose behaviour is a few closures without state of their own.

use std::sync::Arc;

use crate::{Buffer, CloseReason, Connection, Handler};

/// A server that has neither closures nor a handler yet.
#[derive(Debug)]
pub struct Unset;

/// A server with closures, but none for messages.
#[derive(Debug)]
pub struct NoMessage;

type OnEvent = Box<dyn Fn(&Connection<'_>) + Send + Sync>;
type OnHighWater = Box<dyn Fn(&Connection<'_>, usize) + Send + Sync>;
type OnTimer = Box<dyn Fn(&Connection<'_>, u64) + Send + Sync>;
type OnClose = Box<dyn Fn(&Connection<'_>, &CloseReason) + Send + Sync>;

/// The closures of a server; `M` is the one for messages.
#[expect(missing_debug_implementations, reason = "closures have nothing to show")]
pub struct Callbacks<M> {
    pub(super) message: M,
    pub(super) rest: Rest,
}

/// What has a default if it is not set: that of [`Handler`].
#[derive(Default)]
pub(super) struct Rest {
    pub(super) connect: Option<OnEvent>,
    pub(super) write_complete: Option<OnEvent>,
    pub(super) high_water: Option<OnHighWater>,
    pub(super) low_water: Option<OnEvent>,
    pub(super) half_close: Option<OnEvent>,
    pub(super) timer: Option<OnTimer>,
    pub(super) stopping: Option<OnEvent>,
    pub(super) close: Option<OnClose>,
}

/// What can be turned into closures: none yet, or some.
pub trait SomeCallbacks {
    /// The closure for messages, or [`NoMessage`].
    type Message;
    /// Adds what is not set yet.
    fn into_callbacks(self) -> Callbacks<Self::Message>;
}

impl SomeCallbacks for Unset {
    type Message = NoMessage;
    fn into_callbacks(self) -> Callbacks<NoMessage> {
        Callbacks { message: NoMessage, rest: Rest::default() }
    }
}

impl<M> SomeCallbacks for Callbacks<M> {
    type Message = M;
    fn into_callbacks(self) -> Callbacks<M> {
        self
    }
}

/// Closures with which a server can start.
#[diagnostic::on_unimplemented(
    message = "this server cannot start: it has no callback for messages",
    label = "call `.on_message(|conn, input| ..)` before `start`, or `serve` instead of it"
)]
pub trait CanStart {
    /// The handler that calls them.
    type Handler: Handler + Clone + Send + Sync;
    /// Makes the handler.
    fn into_handler(self) -> Self::Handler;
}

impl<M> CanStart for Callbacks<M>
where
    M: Fn(&Connection<'_>, &mut Buffer) + Send + Sync + 'static,
{
    type Handler = CallbackHandler<M>;
    fn into_handler(self) -> CallbackHandler<M> {
        CallbackHandler(Arc::new(self))
    }
}

/// Calls a server's closures for one connection.
#[expect(missing_debug_implementations, reason = "closures have nothing to show")]
pub struct CallbackHandler<M>(Arc<Callbacks<M>>);

impl<M> Clone for CallbackHandler<M> {
    fn clone(&self) -> CallbackHandler<M> {
        CallbackHandler(self.0.clone())
    }
}

impl<M> Handler for CallbackHandler<M>
where
    M: Fn(&Connection<'_>, &mut Buffer) + Send + Sync + 'static,
{
    fn on_connect(&mut self, conn: &Connection<'_>) {
        if let Some(f) = &self.0.rest.connect {
            f(conn);
        }
    }

    #[inline(always)]
    fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer) {
        (self.0.message)(conn, input);
    }

    #[inline]
    fn on_write_complete(&mut self, conn: &Connection<'_>) {
        if let Some(f) = &self.0.rest.write_complete {
            f(conn);
        }
    }

    fn on_high_water(&mut self, conn: &Connection<'_>, pending: usize) {
        if let Some(f) = &self.0.rest.high_water {
            f(conn, pending);
        }
    }

    fn on_low_water(&mut self, conn: &Connection<'_>) {
        if let Some(f) = &self.0.rest.low_water {
            f(conn);
        }
    }

    fn on_half_close(&mut self, conn: &Connection<'_>) {
        match &self.0.rest.half_close {
            Some(f) => f(conn),
            None => conn.shutdown(),
        }
    }

    fn on_timer(&mut self, conn: &Connection<'_>, key: u64) {
        if let Some(f) = &self.0.rest.timer {
            f(conn, key);
        }
    }

    fn on_stopping(&mut self, conn: &Connection<'_>) {
        match &self.0.rest.stopping {
            Some(f) => f(conn),
            None => conn.shutdown(),
        }
    }

    fn on_close(&mut self, conn: &Connection<'_>, reason: &CloseReason) {
        if let Some(f) = &self.0.rest.close {
            f(conn, reason);
        }
    }
}
