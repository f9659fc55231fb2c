//! A server at work.
//!
//! ```text
//!   base loop                                 each serving loop (or the base loop itself)
//!   Acceptor ──▶ Base: limits, placement ──▶  LoopServer: factory, context ──▶ connections
//!                  ▲                                        │
//!                  └──── "my last connection is closed" ◀───┘   (while stopping)
//! ```
//!
//! What crosses threads is a socket with a [`Ticket`], which counts the connection as open on its
//! way, and gives the count back if it never arrives.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use ruduo_reactor::{EventLoop, LoopHandle, LoopPool, Token};

use super::Settings;
use super::handle::{ServerHandle, Shared};
use crate::acceptor::{Acceptance, Acceptor};
use crate::connection::CloseReason;
use crate::connection::endpoint::Endpoint;
use crate::context::Context;
use crate::limits::Limits;
use crate::listener::Listener;
use crate::metrics::Counters;
use crate::transport::Plain;
use crate::{Address, Connection, Handler};

/// The servers of one loop; its `local` value.
#[derive(Default)]
struct Servers {
    /// Those that were started on this loop.
    bases: RefCell<HashMap<u64, Rc<Base>>>,
    /// Those with connections on this loop.
    serving: RefCell<HashMap<u64, Rc<dyn Serve>>>,
}

impl Servers {
    fn base(&self, id: u64) -> Option<Rc<Base>> {
        self.bases.borrow().get(&id).cloned()
    }

    fn serving(&self, id: u64) -> Option<Rc<dyn Serve>> {
        self.serving.borrow().get(&id).cloned()
    }
}

/// Gives a server to its loops.
pub(super) fn start<P, F, H>(
    event_loop: &EventLoop,
    listener: Listener,
    mut settings: Settings,
    per_loop: P,
) -> io::Result<ServerHandle>
where
    P: Fn(&EventLoop) -> F + Send + Sync + 'static,
    F: FnMut(&Connection<'_>) -> H + 'static,
    H: Handler,
{
    let Settings { max_connections, limits, .. } = settings;
    limits
        .check()
        .and_then(|()| limits.tcp.set_on(listener.as_fd(), listener.address()))
        .map_err(|e| io::Error::new(e.kind(), format!("starting a server: {e}")))?;
    let local_addr = listener.address().clone();
    let pool = settings.start_pool(event_loop)?;
    let counters: Vec<Arc<Counters>> = pool.loops().iter().map(|_| Arc::default()).collect();
    let shared = Arc::new(Shared::new(local_addr.clone(), event_loop.handle(), counters.clone()));

    let (per_loop, base) = (Arc::new(per_loop), event_loop.handle());
    for (handle, counters) in pool.loops().iter().zip(counters) {
        let (shared, per_loop) = (shared.clone(), per_loop.clone());
        let install = move |event_loop: &EventLoop| {
            let id = shared.id;
            let factory = per_loop(event_loop);
            let server = LoopServer::new(event_loop, shared, limits, counters, factory);
            event_loop.local::<Servers>().serving.borrow_mut().insert(id, Rc::new(server));
        };
        if *handle == base {
            install(event_loop);
        } else {
            // Connections are posted later, so they find the server installed.
            handle.post(install)?;
        }
    }

    let base = Rc::new(Base {
        shared: shared.clone(),
        loops: pool.loops().to_vec(),
        pool: RefCell::new(Some(pool)),
        max_connections,
        acceptor: Cell::new(None),
        stopping: Cell::new(false),
        reports_due: Cell::new(0),
        when_done: RefCell::default(),
    });
    let acceptor = Acceptor::start(event_loop, listener, base.clone())
        .map_err(|e| io::Error::new(e.kind(), format!("accepting on {local_addr}: {e}")))?;
    base.acceptor.set(Some(acceptor));
    event_loop.local::<Servers>().bases.borrow_mut().insert(shared.id, base);
    log::debug!("serving {local_addr} on {} loops", shared.counters.len());
    Ok(ServerHandle { shared })
}

/// On the base loop: stops the server `id`, if it still runs.
pub(super) fn stop(event_loop: &EventLoop, id: u64, deadline: Instant) {
    if let Some(base) = event_loop.local::<Servers>().base(id) {
        base.stop(event_loop, deadline);
    }
}

/// On the base loop: calls `f` when the server `id` has ended; at once if it has already.
pub(super) fn when_done(event_loop: &EventLoop, id: u64, f: impl FnOnce(&EventLoop) + 'static) {
    match event_loop.local::<Servers>().base(id) {
        Some(base) => base.when_done.borrow_mut().push(Box::new(f)),
        None => f(event_loop),
    }
}

/// A connection that is counted as open but has not arrived at its loop.
struct Ticket {
    shared: Arc<Shared>,
    event_loop: LoopHandle,
    arrived: bool,
}

impl Ticket {
    fn new(shared: &Arc<Shared>, event_loop: &LoopHandle) -> Ticket {
        shared.open.fetch_add(1, Ordering::Relaxed);
        event_loop.add_load();
        Ticket { shared: shared.clone(), event_loop: event_loop.clone(), arrived: false }
    }

    /// From now on the connection's end is what counts it as closed.
    fn keep(mut self) {
        self.arrived = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.arrived {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            closed(&self.shared, &self.event_loop);
        }
    }
}

fn closed(shared: &Shared, event_loop: &LoopHandle) {
    shared.open.fetch_sub(1, Ordering::Relaxed);
    event_loop.remove_load();
}

/// A server's part on the loop it was started on.
struct Base {
    shared: Arc<Shared>,
    loops: Vec<LoopHandle>,
    /// Given up when the server ends; with it, threads of its own.
    pool: RefCell<Option<LoopPool>>,
    max_connections: usize,
    acceptor: Cell<Option<Token>>,
    stopping: Cell<bool>,
    /// How many loops have yet to say that their last connection is closed.
    reports_due: Cell<usize>,
    when_done: RefCell<Vec<Continuation>>,
}

type Continuation = Box<dyn FnOnce(&EventLoop)>;

impl Acceptance for Base {
    fn accepted(&self, event_loop: &EventLoop, socket: OwnedFd, peer: Address) {
        let shared = &self.shared;
        if shared.open.load(Ordering::Relaxed) >= self.max_connections {
            shared.refused.max_connections.fetch_add(1, Ordering::Relaxed);
            log::debug!("refusing {peer}: {} connections are open", self.max_connections);
            return;
        }
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        let pool = self.pool.borrow();
        let Some(chosen) = pool.as_ref().and_then(|pool| pool.place(key(&peer))) else {
            if shared.lost.fetch_add(1, Ordering::Relaxed) == 0 {
                log::error!("closing connections to {}: all loops have ended", shared.local_addr);
            }
            return;
        };
        let ticket = Ticket::new(shared, chosen);
        if *chosen == shared.base {
            drop(pool);
            adopt(event_loop, ticket, socket, peer);
        } else {
            // A refused task is dropped, and with it the socket and the ticket.
            let _ = chosen.post(move |event_loop| adopt(event_loop, ticket, socket, peer));
        }
    }

    fn refused(&self) {
        self.shared.refused.descriptors.fetch_add(1, Ordering::Relaxed);
    }

    fn paused(&self) {
        self.shared.accept_pauses.fetch_add(1, Ordering::Relaxed);
    }
}

/// By which [`Placement::Hash`](ruduo_reactor::Placement) sends a peer to the same loop again.
/// The port is not part of it: the connections of one host go together.
fn key(peer: &Address) -> u64 {
    let mut hasher = DefaultHasher::new();
    match peer {
        Address::Ip(address) => address.ip().hash(&mut hasher),
        Address::Unix(name) => name.hash(&mut hasher),
    }
    hasher.finish()
}

/// On the chosen loop: makes the connection.
fn adopt(event_loop: &EventLoop, ticket: Ticket, socket: OwnedFd, peer: Address) {
    if let Some(server) = event_loop.local::<Servers>().serving(ticket.shared.id) {
        server.adopt(event_loop, ticket, socket, peer);
    } else {
        if ticket.shared.lost.load(Ordering::Relaxed) == 0 {
            log::error!(
                "closing connections to {}: a loop of the server does not serve, because \
                         making its factory panicked",
                ticket.shared.local_addr
            );
        }
        log::debug!("closing the connection of {peer}");
    }
}

/// However a server ends, also with its loop: nobody waits for it for ever.
impl Drop for Base {
    fn drop(&mut self) {
        self.give_up_pool();
        // A shared pool lives on. Unless the loops have reported, they still serve.
        let (id, first) = (self.shared.id, !self.stopping.get());
        for handle in &self.loops {
            let _ = handle.post(move |event_loop| {
                if let Some(server) = event_loop.local::<Servers>().serving(id) {
                    server.stop(event_loop, Instant::now(), first);
                }
            });
        }
        self.shared.set_ended();
    }
}

impl Base {
    fn stop(self: &Rc<Base>, event_loop: &EventLoop, deadline: Instant) {
        let first = !self.stopping.replace(true);
        if first {
            log::debug!("stopping the server on {}", self.shared.local_addr);
            if let Some(acceptor) = self.acceptor.take() {
                event_loop.deregister(acceptor);
            }
            self.reports_due.set(self.loops.len());
        }
        for handle in &self.loops {
            let (id, base) = (self.shared.id, self.shared.base.clone());
            let stop_there =
                move |event_loop: &EventLoop| match event_loop.local::<Servers>().serving(id) {
                    Some(server) => server.stop(event_loop, deadline, first),
                    None if first => report(&base, id),
                    None => {}
                };
            if handle.post(stop_there).is_err() && first {
                // That loop has ended, and closed its connections.
                report(&self.shared.base, self.shared.id);
            }
        }
    }

    fn reported(&self, event_loop: &EventLoop) {
        self.reports_due.set(self.reports_due.get() - 1);
        if self.reports_due.get() > 0 {
            return;
        }
        event_loop.local::<Servers>().bases.borrow_mut().remove(&self.shared.id);
        self.give_up_pool();
        self.shared.set_ended();
        log::debug!("the server on {} has ended", self.shared.local_addr);
        for f in self.when_done.take() {
            event_loop.defer(f);
        }
    }

    /// Own threads have nothing left to do, so waiting for them is short.
    fn give_up_pool(&self) {
        drop(self.pool.take());
    }
}

/// Tells the base loop that one loop has no connection of the server left.
fn report(base: &LoopHandle, id: u64) {
    // If the base loop has ended, so has the server.
    let _ = base.post(move |event_loop| {
        if let Some(base) = event_loop.local::<Servers>().base(id) {
            base.reported(event_loop);
        }
    });
}

/// A server's part on a loop that serves its connections, whatever its handlers are.
trait Serve {
    fn adopt(&self, event_loop: &EventLoop, ticket: Ticket, socket: OwnedFd, peer: Address);
    /// Tells the handlers, if this is the `first` time, and cuts at the deadline what is left.
    fn stop(&self, event_loop: &EventLoop, deadline: Instant, first: bool);
    /// Cuts what is left now.
    fn cut(&self, event_loop: &EventLoop);
}

struct LoopServer<F> {
    shared: Arc<Shared>,
    context: Rc<Context>,
    factory: Rc<RefCell<F>>,
}

impl<F> LoopServer<F> {
    fn new(
        event_loop: &EventLoop,
        shared: Arc<Shared>,
        limits: Limits,
        counters: Arc<Counters>,
        factory: F,
    ) -> LoopServer<F> {
        let on_closed = {
            let (shared, handle) = (shared.clone(), event_loop.handle());
            move |_: &EventLoop| closed(&shared, &handle)
        };
        let context = Rc::new(Context::new(event_loop, limits, counters, on_closed));
        LoopServer { shared, context, factory: Rc::new(RefCell::new(factory)) }
    }
}

impl<F, H> Serve for LoopServer<F>
where
    F: FnMut(&Connection<'_>) -> H + 'static,
    H: Handler,
{
    fn adopt(&self, event_loop: &EventLoop, ticket: Ticket, socket: OwnedFd, peer: Address) {
        let make_handler = |conn: &Connection<'_>| (self.factory.borrow_mut())(conn);
        match Endpoint::open(event_loop, &self.context, (socket, peer), Plain) {
            Ok(endpoint) => {
                ticket.keep();
                endpoint.begin(event_loop, make_handler);
            }
            Err(e) => log::error!("closing {e}"),
        }
    }

    fn stop(&self, event_loop: &EventLoop, deadline: Instant, first: bool) {
        let (context, id) = (&self.context, self.shared.id);
        event_loop.run_at(deadline, move |event_loop| {
            if let Some(server) = event_loop.local::<Servers>().serving(id) {
                server.cut(event_loop);
            }
        });
        if !first {
            return;
        }
        for resident in context.registry.select(|core| core.belongs_to(context)) {
            resident.on_stopping(event_loop);
        }
        let base = self.shared.base.clone();
        context.when_empty(event_loop, move |event_loop| {
            let servers = event_loop.local::<Servers>();
            let server = servers.serving.borrow_mut().remove(&id);
            // Its factory is the user's; the loop drops it when nothing is borrowed.
            event_loop.defer(move |_| drop(server));
            report(&base, id);
        });
    }

    fn cut(&self, event_loop: &EventLoop) {
        let context = &self.context;
        for resident in context.registry.select(|core| core.belongs_to(context)) {
            resident.core().end(event_loop, CloseReason::Stopped);
        }
    }
}
