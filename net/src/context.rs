//! What the connections of one server or client on one loop have in common.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use ruduo_reactor::{EventLoop, LoopHandle, Source};

use crate::CloseReason;
use crate::connection::MAX_OFFER;
use crate::end::Continuation;
use crate::lender::Lender;
use crate::limits::Limits;
use crate::metrics::Counters;
use crate::place::{Recognise, Resident, recognise};

/// Each connection has one pointer to it.
pub(crate) struct Context {
    pub(crate) limits: Limits,
    /// A buffer of no more memory than this can be queued, and be offered to the kernel at once.
    pub(crate) single: usize,
    pub(crate) lender: Rc<Lender>,
    /// Its connections have handlers of one type.
    pub(crate) recognise: Recognise,
    pub(crate) counters: Arc<Counters>,
    /// Called each time a connection has closed, with the host that it came from, if any.
    on_closed: Box<OnClosed>,
    open: Cell<usize>,
    stopping: Cell<bool>,
    /// What there was at the deadline of its stop has been cut.
    cut: Cell<bool>,
    /// The clients that are part of a server on this loop; `None` if this is no server's. Each counts
    /// as open.
    parts: Option<RefCell<BTreeSet<u64>>>,
    /// The server that it is part of.
    whole: Option<Rc<Context>>,
    /// Called once, when no connection is left.
    when_empty: RefCell<Option<Continuation>>,
}

type OnClosed = dyn Fn(&EventLoop, Option<IpAddr>);

impl Context {
    /// That of connections which are an `R`.
    pub(crate) fn new<R: Resident + Source>(
        event_loop: &EventLoop,
        limits: Limits,
        counters: Arc<Counters>,
        on_closed: impl Fn(&EventLoop, Option<IpAddr>) + 'static,
    ) -> Context {
        Context {
            limits,
            single: limits.output.min(MAX_OFFER),
            lender: Lender::of(event_loop, limits.read_size),
            recognise: recognise::<R>,
            counters,
            on_closed: Box::new(on_closed),
            open: Cell::new(0),
            stopping: Cell::new(false),
            cut: Cell::new(false),
            parts: None,
            whole: None,
            when_empty: RefCell::default(),
        }
    }

    /// That of a server, which may have parts.
    pub(crate) fn of_server(self) -> Context {
        Context { parts: Some(RefCell::default()), ..self }
    }

    /// That of a client, which may be part of a server.
    pub(crate) fn of_client(self, whole: Option<Rc<Context>>) -> Context {
        Context { whole, ..self }
    }

    /// Refuses a part of what is no server, or of one that would not stop it any more.
    pub(crate) fn check_takes_parts(&self) -> io::Result<()> {
        let why = if self.parts.is_none() {
            "no server has accepted that connection"
        } else if self.cut.get() {
            "that has been cut at the deadline of its stop"
        } else {
            return Ok(());
        };
        let why = format!("it is to be part of a server, but {why}");
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
    }

    /// The clients that are part of the server.
    pub(crate) fn parts(&self) -> Vec<u64> {
        self.parts.iter().flat_map(|parts| parts.borrow().clone()).collect()
    }

    /// Its connections that are open.
    pub(crate) fn connections(self: &Rc<Self>, event_loop: &EventLoop) -> Vec<Rc<dyn Resident>> {
        let residents = event_loop.sources().into_iter().filter_map(self.recognise);
        residents.filter(|resident| resident.core().belongs_to(self)).collect()
    }

    pub(crate) fn opened(&self) {
        self.open.set(self.open.get() + 1);
    }

    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    /// From now on, a connection that ends without losing a byte counts as drained.
    pub(crate) fn begin_stopping(&self) {
        self.stopping.set(true);
    }

    /// From now on, nothing becomes part of it: nobody would stop that.
    pub(crate) fn set_cut(&self) {
        self.cut.set(true);
    }

    pub(crate) fn closed(
        &self,
        event_loop: &EventLoop,
        host: Option<IpAddr>,
        reason: &CloseReason,
    ) {
        self.counters.closed(reason, self.stopping.get());
        if let Some(server) = &self.whole {
            server.counters.ended(reason, server.stopping.get());
        }
        self.open.set(self.open.get() - 1);
        (self.on_closed)(event_loop, host);
        self.check_empty(event_loop);
    }

    /// Calls `f` when no connection is open; at once if none is.
    pub(crate) fn when_empty(&self, event_loop: &EventLoop, f: impl FnOnce(&EventLoop) + 'static) {
        self.when_empty.replace(Some(Box::new(f)));
        self.check_empty(event_loop);
    }

    fn check_empty(&self, event_loop: &EventLoop) {
        if self.open.get() == 0
            && let Some(f) = self.when_empty.take()
        {
            f(event_loop);
        }
    }
}

/// A client that is part of a server, until this is dropped.
pub(crate) struct Part {
    server: Rc<Context>,
    client: u64,
    event_loop: LoopHandle,
}

impl Part {
    pub(crate) fn new(server: &Rc<Context>, client: u64, event_loop: &EventLoop) -> Part {
        if let Some(parts) = &server.parts {
            parts.borrow_mut().insert(client);
        }
        server.opened();
        Part { server: server.clone(), client, event_loop: event_loop.handle() }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let server = &self.server;
        if let Some(parts) = &server.parts {
            parts.borrow_mut().remove(&self.client);
        }
        server.open.set(server.open.get() - 1);
        // Otherwise the loop has ended without ever running, and its servers with it.
        self.event_loop.with_local(|event_loop| server.check_empty(event_loop));
    }
}
