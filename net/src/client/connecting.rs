//! A client at work: one attempt after the other, until there is a connection.
//!
//! ```text
//!              name                  addresses                    first that answers
//!   begin ──▶ Resolving ──────────▶ Connecting ─────────────────▶ Connected
//!     ▲           │ fails, too late     │ all fail, too late          │ closes
//!     │           ▼                     ▼                             ▼
//!     └──────── Waiting ◀──── told to the program; is it tried again? ───▶ the end
//! ```
//!
//! What goes on while it is connecting is in [`race`].

use std::cell::{Cell, RefCell};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ruduo_reactor::{Channel, Event, EventLoop, Interest, Source, TimerId, Token};

use super::failure::{ConnectError, ConnectFailure};
use super::handle::{ClientHandle, Shared};
use super::race::{self, Dialled, Outcome, Race, STAGGER};
use super::resolver::{self, Answer, Question};
use super::{Settings, retry};
use crate::by_id::ById;
use crate::connection::endpoint::Endpoint;
use crate::context::{Context, Part};
use crate::end::Continuation;
use crate::place::Resident;
use crate::socket_file::SocketFile;
use crate::transport::{self, Plain};
use crate::{Address, Addresses, CloseReason, Connection, ConnectionHandle, Handler};

/// The clients of one loop; its `local` value.
type Clients = ById<Worker>;

/// Calls `f` with the client `id` of this loop, if it still works.
fn with(event_loop: &EventLoop, id: u64, f: impl FnOnce(&Worker)) {
    if let Some(worker) = event_loop.local::<Clients>().get(id) {
        f(&worker);
    }
}

/// Gives a client to its loop.
pub(super) fn start<F, H>(
    event_loop: &EventLoop,
    target: Addresses,
    settings: Settings,
    factory: F,
) -> io::Result<ClientHandle>
where
    F: FnMut(&Connection<'_>) -> H + 'static,
    H: Handler,
{
    let limits = settings.limits;
    let context = |e: io::Error| io::Error::new(e.kind(), format!("starting a client: {e}"));
    limits.check().map_err(context)?;
    let part = settings.part_of.as_ref();
    part.map_or(Ok(()), |server| server.check_takes_parts()).map_err(context)?;
    let shared = Arc::new(Shared::new(event_loop.handle()));
    let id = shared.id;
    let part = part.map(|server| Part::new(server, id, event_loop));
    let on_closed = move |event_loop: &EventLoop, _: Option<IpAddr>| {
        with(event_loop, id, |worker| worker.closed(event_loop));
    };
    let context = Context::new::<Endpoint<Plain, H>>(event_loop, limits, Arc::default(), on_closed)
        .of_client(settings.part_of.clone());
    let context = Rc::new(context);
    let factory = Rc::new(RefCell::new(factory));
    let open = {
        let (context, shared) = (context.clone(), shared.clone());
        move |event_loop: &EventLoop, socket: OwnedFd, peer: Address| -> io::Result<()> {
            let endpoint = Endpoint::new(&context, socket, peer, Plain);
            endpoint.open(event_loop)?;
            let handle: ConnectionHandle = Connection::new(event_loop, endpoint.core()).handle();
            shared.connections.fetch_add(1, Ordering::Relaxed);
            shared.set_connection(Some(handle));
            endpoint.begin(event_loop, |conn| (factory.borrow_mut())(conn));
            Ok(())
        }
    };
    let worker = Worker {
        shared: shared.clone(),
        target,
        settings,
        open: Box::new(open),
        phase: RefCell::new(Phase::Waiting),
        timer: Cell::new(None),
        cut_at: Cell::new(None),
        failures: Cell::new(0),
        file: RefCell::default(),
        when_done: RefCell::default(),
        part,
    };
    event_loop.local::<Clients>().insert(id, Rc::new(worker));
    // Not at once, for this may be called inside a callback, and a failure calls another one.
    event_loop.defer(move |event_loop| with(event_loop, id, |worker| worker.begin(event_loop)));
    Ok(ClientHandle { shared })
}

/// Stops the client `id`, if it still works.
pub(crate) fn stop(event_loop: &EventLoop, id: u64, deadline: Instant) {
    with(event_loop, id, |worker| worker.stop(event_loop, deadline));
}

/// Calls `f` when the client `id` has ended; at once if it has already.
pub(super) fn when_done(event_loop: &EventLoop, id: u64, f: Continuation) {
    match event_loop.local::<Clients>().get(id) {
        Some(worker) => worker.when_done.borrow_mut().push(f),
        None => f(event_loop),
    }
}

struct Worker {
    shared: Arc<Shared>,
    target: Addresses,
    settings: Settings,
    /// Makes a connection of a connected socket.
    open: Box<Open>,
    phase: RefCell<Phase>,
    /// The end of an attempt, of the wait between two, or of a connection that is to stop.
    timer: Cell<Option<TimerId>>,
    /// The earliest deadline of those who have stopped it.
    cut_at: Cell<Option<Instant>>,
    /// Attempts in a row that have failed.
    failures: Cell<u32>,
    /// That of the connection, if it was given a path of its own.
    file: RefCell<Option<SocketFile>>,
    when_done: RefCell<Vec<Continuation>>,
    /// Last, so that all else is gone when its server hears that it has ended.
    #[expect(dead_code, reason = "held for its Drop")]
    part: Option<Part>,
}

type Open = dyn Fn(&EventLoop, OwnedFd, Address) -> io::Result<()>;

enum Phase {
    /// Before the next attempt.
    Waiting,
    Resolving(#[expect(dead_code, reason = "held until it is dropped")] Question),
    Connecting(Race),
    Connected,
}

impl Worker {
    fn begin(&self, event_loop: &EventLoop) {
        if self.shared.is_stopping() {
            return;
        }
        self.shared.attempts.fetch_add(1, Ordering::Relaxed);
        self.arm(event_loop, self.settings.connect_timeout, Worker::timed_out);
        if let Some(addresses) = self.target.known().filter(|known| !known.is_empty()) {
            return self.race(event_loop, addresses.to_vec());
        }
        let (id, handle) = (self.shared.id, event_loop.handle());
        let then = move |answer| {
            // If the loop has ended, so has the client.
            let _ = handle.post(move |event_loop| {
                with(event_loop, id, |worker| worker.resolved(event_loop, answer));
            });
        };
        match resolver::resolve(self.target.clone(), then) {
            Ok(question) => _ = self.phase.replace(Phase::Resolving(question)),
            Err(e) => self.failed(event_loop, ConnectError::of(&e), Vec::new()),
        }
    }

    fn resolved(&self, event_loop: &EventLoop, answer: Answer) {
        let expected = matches!(*self.phase.borrow(), Phase::Resolving(_));
        match answer {
            // It was too late: the attempt has been given up. (Had another one begun, it would be as
            // good for that.)
            _ if !expected => {}
            Ok(addresses) => self.race(event_loop, addresses),
            Err(error) => self.failed(event_loop, error, Vec::new()),
        }
    }

    fn race(&self, event_loop: &EventLoop, addresses: Vec<Address>) {
        self.phase.replace(Phase::Connecting(Race::new(addresses)));
        self.next(event_loop);
    }

    /// Tries the next address, and those after it as long as they fail at once.
    fn next(&self, event_loop: &EventLoop) {
        while let Some(address) = self.next_address() {
            match race::connect(&self.settings, &address) {
                Ok(Outcome::Connected(dialled)) => {
                    return self.connected(event_loop, dialled, address);
                }
                Ok(Outcome::InProgress(Dialled { fd, file })) => {
                    let (client, file) = (self.shared.id, RefCell::new(file));
                    let source = Connecting { client, fd, file };
                    let channel = Channel::from_source(Rc::new(source), Interest::WRITE);
                    match event_loop.register(channel) {
                        Ok(token) => return self.in_progress(event_loop, token, address),
                        Err(e) => self.note(address, ConnectError::of(&e)),
                    }
                }
                Err(e) if race::is_busy(&e, &address) => return self.later(event_loop, address),
                Err(e) => self.note(address, ConnectError::of(&e)),
            }
        }
        self.check_lost(event_loop);
    }

    fn next_address(&self) -> Option<Address> {
        match &mut *self.phase.borrow_mut() {
            Phase::Connecting(race) => race.left.pop_front(),
            _ => None,
        }
    }

    fn in_progress(&self, event_loop: &EventLoop, token: Token, address: Address) {
        if let Phase::Connecting(race) = &mut *self.phase.borrow_mut() {
            race.running.push((token, address));
            if !race.left.is_empty() {
                race.stagger = Some(self.next_after(event_loop, STAGGER));
            }
        }
    }

    /// This one has no room now; it is asked again when those that are left have been, until the
    /// attempt has taken too long.
    fn later(&self, event_loop: &EventLoop, address: Address) {
        if let Phase::Connecting(race) = &mut *self.phase.borrow_mut() {
            race.left.push_back(address);
            race.stagger = Some(self.next_after(event_loop, race::BUSY));
        }
    }

    fn next_after(&self, event_loop: &EventLoop, delay: Duration) -> TimerId {
        let id = self.shared.id;
        event_loop.run_after(delay, move |event_loop| {
            with(event_loop, id, |worker| worker.next(event_loop));
        })
    }

    /// One of those that run has come to an end.
    fn answered(&self, event_loop: &EventLoop, token: Token, socket: &Connecting) {
        let found = match &mut *self.phase.borrow_mut() {
            Phase::Connecting(race) => {
                let index = race.running.iter().position(|(running, _)| *running == token);
                index.map(|index| race.running.swap_remove(index).1)
            }
            _ => None,
        };
        let Some(address) = found else { return };
        event_loop.deregister(token);
        // The loop holds the source, and with it the descriptor, until the end of the turn.
        let (fd, file) = (&socket.fd, socket.file.take());
        match race::answer(fd).and_then(|()| fd.try_clone()) {
            Ok(fd) => self.connected(event_loop, Dialled { fd, file }, address),
            Err(e) => {
                drop(file);
                self.note(address, ConnectError::of(&e));
                self.next_at_once(event_loop);
            }
        }
    }

    /// One has failed, so there is no reason to wait with the next.
    fn next_at_once(&self, event_loop: &EventLoop) {
        if let Phase::Connecting(race) = &mut *self.phase.borrow_mut()
            && let Some(stagger) = race.stagger.take()
        {
            event_loop.cancel(stagger);
        }
        self.next(event_loop);
    }

    fn note(&self, address: Address, error: ConnectError) {
        if let Phase::Connecting(race) = &mut *self.phase.borrow_mut() {
            race.tried.push((address, error));
        }
    }

    /// Nothing is left. If nothing runs either, the attempt has failed.
    fn check_lost(&self, event_loop: &EventLoop) {
        let tried = match &mut *self.phase.borrow_mut() {
            Phase::Connecting(race) if race.running.is_empty() => std::mem::take(&mut race.tried),
            _ => return,
        };
        let first = tried.first().map_or(ConnectError::TimedOut, |(_, error)| error.clone());
        self.failed(event_loop, first, tried);
    }

    fn connected(&self, event_loop: &EventLoop, dialled: Dialled, address: Address) {
        let Dialled { fd, file } = dialled;
        if race::is_to_itself(&fd, &address) {
            // With a reset, so that the port is free for its server at once.
            if let Err(e) = transport::reset_on_close(fd.as_fd()) {
                log::debug!("resetting a connection to itself: {e}");
            }
            drop(fd);
            self.note(address, ConnectError::SelfConnected);
            return self.next_at_once(event_loop);
        }
        self.give_up(event_loop);
        if self.shared.is_stopping() {
            return self.end(event_loop);
        }
        self.phase.replace(Phase::Connected);
        self.file.replace(file);
        match (self.open)(event_loop, fd, address.clone()) {
            Ok(()) => self.failures.set(0),
            Err(e) => {
                drop(self.file.take());
                let error = ConnectError::of(&e);
                self.failed(event_loop, error.clone(), vec![(address, error)]);
            }
        }
    }

    fn timed_out(&self, event_loop: &EventLoop) {
        let mut tried = Vec::new();
        if let Phase::Connecting(race) = &mut *self.phase.borrow_mut() {
            tried.append(&mut race.tried);
            let late = race.running.iter().map(|(_, address)| address.clone());
            tried.extend(late.map(|address| (address, ConnectError::TimedOut)));
        }
        self.failed(event_loop, ConnectError::TimedOut, tried);
    }

    /// An attempt has failed. Is there another one?
    fn failed(
        &self,
        event_loop: &EventLoop,
        error: ConnectError,
        tried: Vec<(Address, ConnectError)>,
    ) {
        self.give_up(event_loop);
        if self.shared.is_stopping() {
            return self.end(event_loop);
        }
        self.shared.failures.fetch_add(1, Ordering::Relaxed);
        let attempt = self.failures.get().saturating_add(1);
        self.failures.set(attempt);
        let retry_in = self.settings.retry.delay(attempt, retry::chance());
        self.phase.replace(Phase::Waiting);
        if let Some(delay) = retry_in {
            self.arm(event_loop, delay, Worker::begin);
        }
        let target = self.target.to_string();
        let failure = ConnectFailure { target, error, tried, attempt, retry_in };
        log::debug!("{failure}");
        if let Some(on_failed) = &self.settings.on_failed {
            // A panic in it has been logged and counted; the client goes on.
            let _ = event_loop.isolate("on_connect_failed", || on_failed(event_loop, &failure));
        }
        if retry_in.is_none() {
            self.end(event_loop);
        }
    }

    /// The connection has closed.
    fn closed(&self, event_loop: &EventLoop) {
        self.shared.set_connection(None);
        drop(self.file.take());
        match self.settings.retry.delay(1, retry::chance()) {
            Some(delay) if !self.shared.is_stopping() => {
                self.phase.replace(Phase::Waiting);
                self.arm(event_loop, delay, Worker::begin);
            }
            _ => self.end(event_loop),
        }
    }

    fn stop(&self, event_loop: &EventLoop, deadline: Instant) {
        // Known already, unless it is its server that is stopped.
        self.shared.stopping.store(true, Ordering::Relaxed);
        if !matches!(*self.phase.borrow(), Phase::Connected) {
            return self.end(event_loop);
        }
        let before = self.cut_at.get();
        if before.is_none_or(|before| deadline < before) {
            self.cut_at.set(Some(deadline));
            let delay = deadline.saturating_duration_since(Instant::now());
            self.arm(event_loop, delay, Worker::cut);
        }
        if before.is_none()
            && let Some(resident) = self.resident(event_loop)
        {
            resident.on_stopping(event_loop);
        }
    }

    fn cut(&self, event_loop: &EventLoop) {
        if let Some(resident) = self.resident(event_loop) {
            Connection::new(event_loop, resident.core()).end(CloseReason::Stopped);
        }
    }

    /// The connection, if there is one.
    fn resident(&self, event_loop: &EventLoop) -> Option<Rc<dyn Resident>> {
        self.shared.connection()?.resident(event_loop)
    }

    /// From here on nobody finds it any more.
    fn end(&self, event_loop: &EventLoop) {
        self.give_up(event_loop);
        let worker = event_loop.local::<Clients>().remove(self.shared.id);
        // Its closures are the user's; the loop drops them when nothing is borrowed.
        event_loop.defer(move |_| drop(worker));
        for f in self.when_done.take() {
            event_loop.defer(f);
        }
    }

    /// Ends all that is going on.
    fn give_up(&self, event_loop: &EventLoop) {
        if let Some(timer) = self.timer.take() {
            event_loop.cancel(timer);
        }
        if let Phase::Connecting(race) = &mut *self.phase.borrow_mut() {
            let race = std::mem::take(race);
            if let Some(stagger) = race.stagger {
                event_loop.cancel(stagger);
            }
            for (token, _) in race.running {
                event_loop.deregister(token);
            }
        }
    }

    /// Arms the client's one timer.
    fn arm(&self, event_loop: &EventLoop, delay: Duration, then: fn(&Worker, &EventLoop)) {
        let id = self.shared.id;
        let timer = event_loop.run_after(delay, move |event_loop| {
            with(event_loop, id, |worker| {
                worker.timer.set(None);
                then(worker, event_loop);
            });
        });
        if let Some(before) = self.timer.replace(Some(timer)) {
            event_loop.cancel(before);
        }
    }
}

/// However a client ends, also with its loop: nobody waits for it for ever.
impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.end.announce();
    }
}

/// A socket that waits for the other side's answer.
struct Connecting {
    client: u64,
    fd: OwnedFd,
    /// If it has a path of its own.
    file: RefCell<Option<SocketFile>>,
}

impl Source for Connecting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn name(&self) -> String {
        "a connection that is being made".to_owned()
    }

    fn on_event(self: Rc<Self>, event_loop: &EventLoop, event: Event) {
        with(event_loop, self.client, |worker| {
            worker.answered(event_loop, event.token, &self);
        });
    }
}
