//! Servers and clients whose behaviour is a few closures without state of their own: the
//! types in which those are kept. Programs need not name them.

use std::sync::Arc;

pub use crate::udp::callbacks::{
    CanStartUdp, NoDatagram, SomeUdpCallbacks, UdpCallbackHandler, UdpCallbacks,
};
use crate::{Buffer, CloseReason, Connection, Handler};

/// The callbacks of a server or client that has neither closures nor a handler yet.
#[derive(Debug)]
pub struct Unset;

/// Stands for the message closure of one that has only others.
#[derive(Debug)]
pub struct NoMessage;

type OnEvent = Box<dyn Fn(&Connection<'_>) + Send + Sync>;
type OnHighWater = Box<dyn Fn(&Connection<'_>, usize) + Send + Sync>;
type OnTimer = Box<dyn Fn(&Connection<'_>, u64) + Send + Sync>;
type OnClose = Box<dyn Fn(&Connection<'_>, &CloseReason) + Send + Sync>;

/// The closures of a server or client; `M` is the one for messages.
#[expect(missing_debug_implementations, reason = "closures have nothing to show")]
pub struct Callbacks<M> {
    pub(crate) message: M,
    pub(crate) rest: Rest,
}

impl<M> Callbacks<M> {
    pub(crate) fn with_message<N>(self, message: N) -> Callbacks<N> {
        Callbacks { message, rest: self.rest }
    }
}

/// The closures that may be left out; then the default of [`Handler`] holds.
#[derive(Default)]
pub(crate) struct Rest {
    pub(crate) connect: Option<OnEvent>,
    pub(crate) write_complete: Option<OnEvent>,
    pub(crate) high_water: Option<OnHighWater>,
    pub(crate) low_water: Option<OnEvent>,
    pub(crate) half_close: Option<OnEvent>,
    pub(crate) timer: Option<OnTimer>,
    pub(crate) stopping: Option<OnEvent>,
    pub(crate) close: Option<OnClose>,
}

/// What can be turned into closures: none yet, or some.
pub trait SomeCallbacks {
    /// The closure for messages, or [`NoMessage`].
    type Message;
    /// The closures; none of them is set if there were none yet.
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

/// Closures with which one can start.
#[diagnostic::on_unimplemented(
    message = "this cannot start: it has no callback for messages",
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

/// Calls the closures for one connection.
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

/// The methods by which a builder takes closures. The builder has a method `map_callbacks`.
macro_rules! on_methods {
    ($builder:ident) => {
        /// # Behaviour by closures
        ///
        /// They are shared by all connections and threads. The callbacks are those of
        /// [`Handler`](crate::Handler).
        impl<'l, C: $crate::callbacks::SomeCallbacks> $builder<'l, C> {
            /// See [`Handler::on_message`](crate::Handler::on_message).
            pub fn on_message<F>(self, f: F) -> $builder<'l, $crate::callbacks::Callbacks<F>>
            where
                F: Fn(&$crate::Connection<'_>, &mut $crate::Buffer) + Send + Sync + 'static,
            {
                self.map_callbacks(|callbacks| callbacks.into_callbacks().with_message(f))
            }

            $crate::callbacks::on_method!($builder, on_connect, connect);
            $crate::callbacks::on_method!($builder, on_write_complete, write_complete);
            $crate::callbacks::on_method!($builder, on_high_water, high_water, usize);
            $crate::callbacks::on_method!($builder, on_low_water, low_water);
            $crate::callbacks::on_method!($builder, on_half_close, half_close);
            $crate::callbacks::on_method!($builder, on_timer, timer, u64);
            $crate::callbacks::on_method!($builder, on_stopping, stopping);
            $crate::callbacks::on_method!($builder, on_close, close, &$crate::CloseReason);
        }
    };
}

/// One of them.
macro_rules! on_method {
    ($builder:ident, $name:ident, $field:ident $(, $argument:ty)*) => {
        #[doc = concat!(
            "See [`Handler::", stringify!($name), "`](crate::Handler::", stringify!($name), ")."
        )]
        pub fn $name(
            self,
            f: impl Fn(&$crate::Connection<'_>, $($argument),*) + Send + Sync + 'static,
        ) -> $builder<'l, $crate::callbacks::Callbacks<C::Message>> {
            self.map_callbacks(|callbacks| {
                let mut callbacks = callbacks.into_callbacks();
                callbacks.rest.$field = Some(Box::new(f));
                callbacks
            })
        }
    };
}

pub(crate) use {on_method, on_methods};
