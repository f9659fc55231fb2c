//! A server at work.
//!
//! ```text
//!   base loop                                 each serving loop (or the base loop itself)
//!   Acceptor ──▶ Entrance: limits, place ──▶  LoopServer: factory, context ──▶ connections
//!   Base ◀──────── "my last connection is closed" ◀─────────┘   (while stopping)
//! ```
//!
//! With an acceptor per loop, each serving loop has an acceptor and an entrance, and the base loop
//! only starts and stops them.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ruduo_reactor::{EventLoop, LoopHandle, LoopPool, TimerId, Token};

use super::Settings;
use super::entrance::Entrance;
use super::handle::{ServerHandle, Shared};
use crate::acceptor::Acceptor;
use crate::by_id::ById;
use crate::client::connecting;
use crate::connection::CloseReason;
use crate::connection::endpoint::Endpoint;
use crate::context::Context;
use crate::end::Continuation;
use crate::limits::Limits;
use crate::listener::Listener;
use crate::loops::install_on;
use crate::metrics::Counters;
use crate::place::Resident;
use crate::seldom::Seldom;
use crate::transport::Plain;
use crate::{Address, Connection, Handler};

/// The servers of one loop; its `local` value.
#[derive(Default)]
pub(super) struct Servers {
    /// Those that were started on this loop.
    bases: ById<Base>,
    /// Those with connections on this loop.
    pub(super) serving: ById<dyn Serve>,
}

/// What a loop gets when it begins to serve.
struct Part {
    counters: Arc<Counters>,
    /// If it is to accept for itself.
    listener: Option<Arc<Listener>>,
}

/// Gives a server to its loops.
pub(super) fn start<P, F, H>(
    event_loop: &EventLoop,
    listener: Listener,
    settings: Settings,
    per_loop: P,
) -> io::Result<ServerHandle>
where
    P: Fn(&EventLoop) -> F + Send + Sync + 'static,
    F: FnMut(&Connection<'_>) -> H + 'static,
    H: Handler,
{
    let context = |e: io::Error| io::Error::new(e.kind(), format!("starting a server: {e}"));
    settings.check().map_err(context)?;
    let one_for_all = !listener.is_one_of_several();
    let listeners = listener.with_siblings(settings.loops.count())?;
    for listener in &listeners {
        settings.limits.tcp.set_on(listener.as_fd(), listener.address()).map_err(context)?;
    }
    settings.bounds.compare_with_system();
    let shared = Arc::new(Shared::new(&listeners, event_loop.handle(), &settings));
    let install = installation(&shared, &listeners, settings.limits, per_loop);
    let pool = settings.loops.start(event_loop, &install)?;
    // From here on its drop ends what the loops have begun.
    let base = Rc::new(Base::new(shared.clone(), &pool));
    if settings.loops.pool.is_some() {
        install_on(event_loop, pool.loops(), &install).map_err(context)?;
    }
    if one_for_all && let Some(listener) = listeners.first() {
        base.accept(event_loop, listener.clone(), pool)?;
    }
    event_loop.local::<Servers>().bases.insert(shared.id, base);
    log::debug!(
        "serving {} on {} loops, one acceptor for all: {one_for_all}; {}; {:?}",
        shared.local_addr,
        shared.counters.len(),
        shared.admission.bounds,
        settings.limits
    );
    Ok(ServerHandle { shared })
}

/// What makes a loop serve: each takes a part.
fn installation<P, F, H>(
    shared: &Arc<Shared>,
    listeners: &[Arc<Listener>],
    limits: Limits,
    per_loop: P,
) -> Arc<impl Fn(&EventLoop, usize) -> io::Result<()> + Send + Sync + use<P, F, H>>
where
    P: Fn(&EventLoop) -> F + Send + Sync + 'static,
    F: FnMut(&Connection<'_>) -> H + 'static,
    H: Handler,
{
    let part = |(i, counters): (usize, &Arc<Counters>)| {
        let own = listeners.get(i).filter(|listener| listener.is_one_of_several());
        Part { counters: counters.clone(), listener: own.cloned() }
    };
    let parts: Vec<_> = shared.counters.iter().enumerate().map(part).collect();
    let (parts, shared) = (Mutex::new(parts), shared.clone());
    Arc::new(move |event_loop: &EventLoop, _| {
        // Of a loop that does not come, nobody misses the part.
        let part = parts.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some(part) = part else { return Ok(()) };
        let factory = per_loop(event_loop);
        LoopServer::install(event_loop, &shared, limits, part, factory)
    })
}

/// On the base loop: stops the server `id`, if it still runs.
pub(super) fn stop(event_loop: &EventLoop, id: u64, deadline: Instant) {
    if let Some(base) = event_loop.local::<Servers>().bases.get(id) {
        base.stop(event_loop, deadline);
    }
}

/// On the base loop: calls `f` when the server `id` has ended; at once if it has already.
pub(super) fn when_done(event_loop: &EventLoop, id: u64, f: Continuation) {
    match event_loop.local::<Servers>().bases.get(id) {
        Some(base) => base.when_done.borrow_mut().push(f),
        None => f(event_loop),
    }
}

/// A server's part on the loop it was started on.
struct Base {
    shared: Arc<Shared>,
    loops: Vec<LoopHandle>,
    /// Threads of its own end with it.
    pool: Option<LoopPool>,
    /// If it accepts for all.
    acceptor: Cell<Option<Token>>,
    stopping: Cell<bool>,
    /// How many loops have yet to say that their last connection is closed.
    reports_due: Cell<usize>,
    when_done: RefCell<Vec<Continuation>>,
}

/// However a server ends, also with its loop: nobody waits for it for ever.
impl Drop for Base {
    fn drop(&mut self) {
        // Own threads that have reported have nothing left to do, so waiting for them is short.
        drop(self.pool.take());
        // A shared pool lives on. Unless the loops have reported, they still serve.
        let (begins, now) = (!self.stopping.get(), Instant::now());
        self.post_to_parts(move |server, event_loop| {
            server.cut_by(event_loop, now);
            if begins {
                server.begin_stop(event_loop);
            }
        });
        if self.stopping.get() {
            let report = self.shared.stop_report();
            log::info!("the server on {} has ended: {report}", self.shared.local_addr);
        }
        self.shared.end.announce();
    }
}

impl Base {
    fn new(shared: Arc<Shared>, pool: &LoopPool) -> Base {
        Base {
            shared,
            loops: pool.loops().to_vec(),
            pool: Some(pool.clone()),
            acceptor: Cell::new(None),
            stopping: Cell::new(false),
            reports_due: Cell::new(0),
            when_done: RefCell::default(),
        }
    }

    /// Accepts here, for all loops.
    fn accept(
        &self,
        event_loop: &EventLoop,
        listener: Arc<Listener>,
        pool: LoopPool,
    ) -> io::Result<()> {
        let server = event_loop.local::<Servers>().serving.get(self.shared.id);
        let elsewhere = pool.loops() != [event_loop.handle()];
        let pool = elsewhere.then_some(pool);
        let entrance = Entrance::new(event_loop, &self.shared, server, pool);
        let acceptor = Acceptor::start(event_loop, listener, entrance).map_err(|e| {
            io::Error::new(e.kind(), format!("accepting on {}: {e}", self.shared.local_addr))
        })?;
        self.acceptor.set(Some(acceptor));
        Ok(())
    }

    fn stop(&self, event_loop: &EventLoop, deadline: Instant) {
        if self.stopping.replace(true) {
            self.post_to_parts(move |server, event_loop| server.cut_by(event_loop, deadline));
        } else {
            self.begin_stop(event_loop, deadline);
        }
    }

    /// Nobody comes in any more, and each loop is to report when its last connection is closed.
    fn begin_stop(&self, event_loop: &EventLoop, deadline: Instant) {
        log::debug!("stopping the server on {}", self.shared.local_addr);
        if let Some(acceptor) = self.acceptor.take() {
            event_loop.deregister(acceptor);
        }
        self.reports_due.set(self.loops.len());
        for handle in &self.loops {
            let (id, base) = (self.shared.id, self.shared.base.clone());
            let begin_there =
                move |event_loop: &EventLoop| match event_loop.local::<Servers>().serving.get(id) {
                    Some(server) => {
                        server.cut_by(event_loop, deadline);
                        server.begin_stop(event_loop);
                    }
                    None => report(&base, id),
                };
            if handle.post(begin_there).is_err() {
                // That loop has ended, and closed its connections.
                report(&self.shared.base, self.shared.id);
            }
        }
    }

    /// On each loop that still has a part of it.
    fn post_to_parts(&self, f: impl Fn(&dyn Serve, &EventLoop) + Copy + Send + 'static) {
        let id = self.shared.id;
        for handle in &self.loops {
            let _ = handle.post(move |event_loop| {
                if let Some(server) = event_loop.local::<Servers>().serving.get(id) {
                    f(&*server, event_loop);
                }
            });
        }
    }

    /// The last one to report ends the server: it is dropped.
    fn reported(&self, event_loop: &EventLoop) {
        self.reports_due.set(self.reports_due.get() - 1);
        if self.reports_due.get() == 0 {
            event_loop.local::<Servers>().bases.remove(self.shared.id);
            for f in self.when_done.take() {
                event_loop.defer(f);
            }
        }
    }
}

/// Tells the base loop that one loop has no connection of the server left.
fn report(base: &LoopHandle, id: u64) {
    // If the base loop has ended, so has the server.
    let _ = base.post(move |event_loop| {
        if let Some(base) = event_loop.local::<Servers>().bases.get(id) {
            base.reported(event_loop);
        }
    });
}

/// A server's part on a loop that serves its connections, whatever its handlers are.
pub(super) trait Serve {
    /// Makes the connection, of one who is counted as open here.
    fn adopt(&self, event_loop: &EventLoop, socket: OwnedFd, peer: Address);
    /// Tells the handlers, once; and the base loop, when no connection is left.
    fn begin_stop(&self, event_loop: &EventLoop);
    /// Stops the clients that are part of it, and cuts at the deadline what is left.
    fn cut_by(&self, event_loop: &EventLoop, deadline: Instant);
    /// Cuts what is left now.
    fn cut(&self, event_loop: &EventLoop);
    /// Nothing is left.
    fn forget_deadline(&self, event_loop: &EventLoop);
}

struct LoopServer<F> {
    shared: Arc<Shared>,
    context: Rc<Context>,
    factory: RefCell<F>,
    /// If the loop accepts for itself.
    acceptor: Cell<Option<Token>>,
    /// The earliest deadline of those who have stopped it, and the timer that cuts then.
    cut_at: Cell<Option<(Instant, TimerId)>>,
    /// About connections that cannot be watched.
    complaints: Seldom,
}

impl<F, H> LoopServer<F>
where
    F: FnMut(&Connection<'_>) -> H + 'static,
    H: Handler,
{
    fn install(
        event_loop: &EventLoop,
        shared: &Arc<Shared>,
        limits: Limits,
        part: Part,
        factory: F,
    ) -> io::Result<()> {
        let on_closed = {
            let (shared, handle) = (shared.clone(), event_loop.handle());
            move |_: &EventLoop, host: Option<IpAddr>| {
                shared.admission.leave(host);
                handle.remove_load();
            }
        };
        let context =
            Context::new::<Endpoint<Plain, H>>(event_loop, limits, part.counters, on_closed)
                .of_server();
        let server = Rc::new(LoopServer {
            shared: shared.clone(),
            context: Rc::new(context),
            factory: RefCell::new(factory),
            acceptor: Cell::new(None),
            complaints: Seldom::default(),
            cut_at: Cell::new(None),
        });
        if let Some(listener) = part.listener {
            let entrance = Entrance::new(event_loop, shared, Some(server.clone()), None);
            server.acceptor.set(Some(Acceptor::start(event_loop, listener, entrance)?));
        }
        event_loop.local::<Servers>().serving.insert(shared.id, server);
        Ok(())
    }

    /// Clients that are part of the server end with its connections.
    fn stop_parts(&self, event_loop: &EventLoop, deadline: Instant) {
        for client in self.context.parts() {
            connecting::stop(event_loop, client, deadline);
        }
    }

    /// Cuts what is left at the deadline, unless that is to be done earlier anyway.
    fn arm(&self, event_loop: &EventLoop, deadline: Instant) {
        if self.cut_at.get().is_some_and(|(earlier, _)| earlier <= deadline) {
            return;
        }
        let id = self.shared.id;
        let timer = event_loop.run_at(deadline, move |event_loop| {
            if let Some(server) = event_loop.local::<Servers>().serving.get(id) {
                server.cut(event_loop);
            }
        });
        if let Some((_, later)) = self.cut_at.replace(Some((deadline, timer))) {
            event_loop.cancel(later);
        }
    }
}

impl<F, H> Serve for LoopServer<F>
where
    F: FnMut(&Connection<'_>) -> H + 'static,
    H: Handler,
{
    fn adopt(&self, event_loop: &EventLoop, socket: OwnedFd, peer: Address) {
        let endpoint = Endpoint::new(&self.context, socket, peer, Plain);
        if let Err(e) = endpoint.open(event_loop) {
            if self.complaints.is_due() {
                log::error!("closing {e}");
            }
            event_loop.handle().remove_load();
            return self.shared.lose(endpoint.core().host());
        }
        endpoint.begin(event_loop, |conn| (self.factory.borrow_mut())(conn));
    }

    fn begin_stop(&self, event_loop: &EventLoop) {
        let (context, id) = (&self.context, self.shared.id);
        if let Some(acceptor) = self.acceptor.take() {
            event_loop.deregister(acceptor);
        }
        context.begin_stopping();
        for resident in context.connections(event_loop) {
            resident.on_stopping(event_loop);
        }
        let base = self.shared.base.clone();
        context.when_empty(event_loop, move |event_loop| {
            let server = event_loop.local::<Servers>().serving.remove(id);
            if let Some(server) = &server {
                server.forget_deadline(event_loop);
            }
            // Its factory is the user's; the loop drops it when nothing is borrowed.
            event_loop.defer(move |_| drop(server));
            report(&base, id);
        });
    }

    fn cut_by(&self, event_loop: &EventLoop, deadline: Instant) {
        self.arm(event_loop, deadline);
        self.stop_parts(event_loop, deadline);
    }

    fn cut(&self, event_loop: &EventLoop) {
        let context = &self.context;
        context.set_cut();
        for resident in context.connections(event_loop) {
            Connection::new(event_loop, resident.core()).end(CloseReason::Stopped);
        }
        self.stop_parts(event_loop, Instant::now());
    }

    fn forget_deadline(&self, event_loop: &EventLoop) {
        if let Some((_, timer)) = self.cut_at.take() {
            event_loop.cancel(timer);
        }
    }
}
