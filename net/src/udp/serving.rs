//! Sockets on their loops, and how they end.
//!
//! ```text
//!   base loop                          each loop (or the base loop itself)
//!   opens all sockets   ──────────▶    Endpoint: socket, handler
//!   Base: how many are open  ◀───────  Presence, dropped with the socket
//! ```

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ruduo_reactor::{EventLoop, LoopPool};

use super::callbacks::UdpHandler;
use super::core::{Core, Sockets};
use super::endpoint::Endpoint;
use super::handle::{Shared, UdpHandle, UdpSocketHandle};
use super::metrics::Counters;
use super::options::{Bound, Options};
use super::{Settings, UdpSocket};
use crate::by_id::{ById, next_id};
use crate::end::Continuation;
use crate::loops::{Loops, install_on};
use crate::posted::Posted;

/// Those that were started on one loop; its `local` value.
type Bases = ById<Base>;

/// What a loop gets: a socket, and what those elsewhere share with it.
pub(super) struct Part {
    pub(super) id: u64,
    pub(super) bound: Bound,
    pub(super) counters: Arc<Counters>,
    pub(super) posted: Arc<Posted<()>>,
    pub(super) presence: Presence,
}

/// Opens the sockets and gives them to their loops.
pub(super) fn start<P, H>(
    event_loop: &EventLoop,
    options: &Options,
    settings: &Settings,
    loops: &Loops,
    make_handler: P,
) -> io::Result<UdpHandle>
where
    P: Fn(&EventLoop) -> H + Send + Sync + 'static,
    H: UdpHandler,
{
    let context = |e: io::Error| io::Error::new(e.kind(), format!("starting a server: {e}"));
    loops.check().and_then(|()| settings.check()).map_err(context)?;
    let bounds = options.open(loops.count())?;
    let id = next_id();
    let counters: Vec<_> = bounds.iter().map(|bound| Arc::new(Counters::of(bound.fd()))).collect();
    let local = bounds[0].local.clone();
    let shared = Arc::new(Shared::new(id, local, event_loop.handle(), counters.clone()));
    let parts: Vec<_> = bounds
        .into_iter()
        .zip(counters)
        .map(|(bound, counters)| Part {
            id: next_id(),
            bound,
            counters,
            posted: Arc::new(Posted::new(settings.queue_limit, false, ())),
            presence: Presence(shared.clone()),
        })
        .collect();
    let reached: Vec<_> = parts.iter().map(|part| (part.id, part.posted.clone())).collect();
    let parts = Mutex::new(parts.into_iter().map(Some).collect::<Vec<_>>());
    let settings = settings.clone();
    let install = Arc::new(move |event_loop: &EventLoop, place: usize| {
        let part = parts.lock().unwrap_or_else(PoisonError::into_inner)[place].take();
        let Some(part) = part else { return Ok(()) };
        let handler = make_handler(event_loop);
        Endpoint::start(event_loop, Core::new(event_loop, part, settings.clone()), handler)
    });
    let pool = loops.start(event_loop, &install)?;

    let with_loops = pool.loops().iter().zip(reached);
    let sockets: Vec<_> = with_loops
        .map(|(handle, (id, posted))| UdpSocketHandle::new(handle.clone(), id, posted))
        .collect();
    // From here on its drop ends what the loops have begun.
    let base = Rc::new(Base {
        shared: shared.clone(),
        sockets: sockets.clone(),
        pool: Some(pool.clone()),
        open: Cell::new(sockets.len()),
        when_done: RefCell::default(),
    });
    if loops.pool.is_some() {
        install_on(event_loop, pool.loops(), &install).map_err(context)?;
    }
    event_loop.local::<Bases>().insert(id, base);
    log::debug!("datagrams on {} on {} loops", shared.local_addr(), sockets.len());
    Ok(UdpHandle::new(shared, sockets))
}

/// On a socket's loop: lets what is queued leave, until the deadline.
pub(super) fn stop(event_loop: &EventLoop, id: u64, deadline: Instant) {
    if let Some(resident) = event_loop.local::<Sockets>().get(id) {
        resident.core().stop(event_loop, deadline);
    }
}

/// On the base loop: calls `f` when all have ended; at once if they have already.
pub(super) fn when_done(event_loop: &EventLoop, id: u64, f: Continuation) {
    match event_loop.local::<Bases>().get(id) {
        Some(base) => base.when_done.borrow_mut().push(f),
        None => f(event_loop),
    }
}

/// A socket is there, or on its way to its loop. Goes with it, however it ends.
pub(super) struct Presence(Arc<Shared>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        let id = self.0.id;
        // If the base loop has ended, so has all that began there.
        let _ = self.0.base.post(move |event_loop| {
            if let Some(base) = event_loop.local::<Bases>().get(id) {
                base.one_has_ended(event_loop);
            }
        });
    }
}

/// What remains on the loop they were started on.
struct Base {
    shared: Arc<Shared>,
    sockets: Vec<UdpSocketHandle>,
    /// Threads of their own end with it.
    pool: Option<LoopPool>,
    open: Cell<usize>,
    when_done: RefCell<Vec<Continuation>>,
}

/// However they end, also with the loop: nobody waits for it for ever.
impl Drop for Base {
    fn drop(&mut self) {
        // Own threads whose sockets have ended have nothing left to do, so waiting for them is short.
        drop(self.pool.take());
        // A shared pool lives on, but its base does not, so they end.
        for socket in &self.sockets {
            let _ = socket.post(|socket: &UdpSocket<'_>| socket.close());
        }
        if self.open.get() == 0 {
            let (address, metrics) = (self.shared.local_addr(), self.shared.metrics());
            log::info!("datagrams on {address} have ended: {metrics}");
        }
        self.shared.end.announce();
    }
}

impl Base {
    /// The last one ends the whole: it is dropped.
    fn one_has_ended(&self, event_loop: &EventLoop) {
        self.open.set(self.open.get() - 1);
        if self.open.get() == 0 {
            event_loop.local::<Bases>().remove(self.shared.id);
            for f in self.when_done.take() {
                event_loop.defer(f);
            }
        }
    }
}
