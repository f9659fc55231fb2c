//! The connections of one loop, for all that is not an event of their own.
//!
//! A handle on another thread, a timer, a stopping server: they name a connection by slot and id,
//! and find it here if it still lives. Nothing but the loop and this registry owns a connection,
//! so removing it from both ends it.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use ruduo_reactor::EventLoop;
use slab::Slab;

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

/// Where a connection is to be found on its loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) slot: u32,
    pub(crate) id: ConnectionId,
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

/// The connections of one loop; its `local` value.
#[derive(Default)]
pub(crate) struct Registry {
    residents: RefCell<Slab<Rc<dyn Resident>>>,
}

impl Registry {
    pub(crate) fn insert(&self, resident: Rc<dyn Resident>) -> u32 {
        // Slots are numbered like descriptors, of which a process has far fewer than 2^32.
        self.residents.borrow_mut().insert(resident) as u32
    }

    /// The caller drops what it gets when nothing is borrowed.
    pub(crate) fn remove(&self, slot: u32) -> Option<Rc<dyn Resident>> {
        self.residents.borrow_mut().try_remove(slot as usize)
    }

    pub(crate) fn get(&self, place: Place) -> Option<Rc<dyn Resident>> {
        let residents = self.residents.borrow();
        residents.get(place.slot as usize).filter(|r| r.core().place().id == place.id).cloned()
    }

    /// Those for whom `f` holds.
    pub(crate) fn select(&self, f: impl Fn(&Core) -> bool) -> Vec<Rc<dyn Resident>> {
        let residents = self.residents.borrow();
        residents.iter().map(|(_, r)| r).filter(|r| f(r.core())).cloned().collect()
    }
}
