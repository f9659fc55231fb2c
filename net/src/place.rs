//! Where connections are found for all that is not an event of their own.
//!
//! A handle on another thread, a timer, a stopping server: they know the token of a connection, by
//! which its loop has it if it still lives. Nothing but the loop owns a connection, so removing it
//! from there ends it.

use std::any::Any;
use std::fmt;
use std::rc::Rc;

use ruduo_reactor::{EventLoop, Source, Token};

use crate::Connection;
use crate::by_id::next_id;
use crate::connection::core::Core;

/// Names a connection for as long as the process runs; never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u64);

impl ConnectionId {
    pub(crate) fn next() -> ConnectionId {
        ConnectionId(next_id())
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A connection, whatever its transport and handler.
pub(crate) trait Resident {
    fn core(&self) -> &Core;
    /// Calls `f` with the handler.
    fn call(&self, event_loop: &EventLoop, f: HandlerCall);
    fn on_timer(&self, event_loop: &EventLoop, key: u64);
    fn on_stopping(&self, event_loop: &EventLoop);
}

pub(crate) type HandlerCall = Box<dyn FnOnce(&mut dyn Any, &Connection<'_>) + Send>;

/// Recognises connections with one type of handler among the sources of a loop.
pub(crate) type Recognise = fn(Rc<dyn Any>) -> Option<Rc<dyn Resident>>;

/// Recognises those that are an `R`.
pub(crate) fn recognise<R: Resident + Source>(source: Rc<dyn Any>) -> Option<Rc<dyn Resident>> {
    Some(source.downcast::<R>().ok()?)
}

/// Where a connection is to be found on its loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) token: Token,
    pub(crate) recognise: Recognise,
}

impl Place {
    /// The connection, if it still lives.
    pub(crate) fn resident(self, event_loop: &EventLoop) -> Option<Rc<dyn Resident>> {
        event_loop.source(self.token).and_then(self.recognise)
    }
}
