//! A datagram socket at work.
//!
//! One event, in this order:
//!
//! 1. if it is readable, one batch is received, and the handler called for each datagram in it;
//! 2. all that was sent meanwhile, and what waited before, leaves, in as few calls as there are;
//! 3. the handler is told of errors, and when all that had to wait has left;
//! 4. the poller is told what to wait for, if that has changed.
//!
//! One batch an event is the fairness budget: the poller is level-triggered and comes again. When
//! something is sent from elsewhere, steps 2 to 4 run at the end of the turn.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use ruduo_reactor::sys::datagram::{Inbound, MAX_DATAGRAM, MAX_PIECES, Name, Piece, SendFailed};
use ruduo_reactor::{Channel, Event, EventLoop, Interest, Ready, Source, Token};

use super::callbacks::UdpHandler;
use super::core::{Core, Resident, Retry, Sockets, Stage, WaitsFor};
use super::datagram::{DatagramError, Datagrams, Operation};
use super::socket::UdpSocket;
use crate::metrics;

/// Calls that send, in one event. What is left goes on at the end of the next turn.
const MAX_CALLS: usize = 64;

/// How long sending pauses when the kernel has no memory for it, of which the poller does not tell
/// the end.
const SEND_PAUSE: Duration = Duration::from_millis(2);

/// How long receiving pauses when it fails again and again without anything coming.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);
const MAX_FAILURES: u32 = 16;

pub(super) struct Endpoint<H> {
    core: Core,
    handler: RefCell<H>,
}

/// How a flush has ended.
enum Flushed {
    /// All of it has left, or has to wait.
    Done,
    /// There is more.
    More,
    /// It goes on after the program has heard of this.
    Failed(DatagramError),
}

/// What the handler was called for, in a batch.
#[derive(Default)]
struct Delivered {
    datagrams: usize,
    bytes: usize,
    truncated: usize,
}

impl<H: UdpHandler> Endpoint<H> {
    /// Puts a socket on the loop. Its handler is called for the first time when no other callback
    /// runs.
    pub(super) fn start(event_loop: &EventLoop, core: Core, handler: H) -> io::Result<()> {
        let endpoint = Rc::new(Endpoint { core, handler: RefCell::new(handler) });
        let token = event_loop.register(Channel::from_source(endpoint.clone(), Interest::NONE))?;
        endpoint.core.attention.token.set(token);
        event_loop.local::<Sockets>().insert(endpoint.core.id, endpoint.clone());
        event_loop.defer(move |event_loop| endpoint.settle(event_loop));
        Ok(())
    }

    /// Whatever comes first, a call from elsewhere perhaps, finds the handler started.
    fn begin(&self, event_loop: &EventLoop) {
        let core = &self.core;
        if core.life.stage.get() != Stage::Ended && !core.life.started.replace(true) {
            self.called(event_loop, "on_start", |handler, socket| handler.on_start(socket));
        }
    }

    /// Calls the handler. A panic is logged and counted, and what it was about is over.
    fn called(&self, event_loop: &EventLoop, what: &str, f: impl FnOnce(&mut H, &UdpSocket<'_>)) {
        let core = &self.core;
        let call = || f(&mut self.handler.borrow_mut(), &UdpSocket::new(event_loop, core));
        let _ = event_loop.isolate(format_args!("{what} of {core}"), call);
    }

    /// Step 1. How much may come at once doubles while there is more: then few datagrams cost little,
    /// and many few calls.
    fn receive(&self, event_loop: &EventLoop) {
        let core = &self.core;
        let settings = &core.settings;
        let (count, is_internet) = (settings.batch, core.bound.family().is_some());
        // What is joined is as large as a datagram can be.
        let room = if core.bound.gro { MAX_DATAGRAM } else { settings.receive_size };
        let is_told = core.bound.gro || core.bound.tells_where_to || settings.timestamps;
        let control = is_internet && is_told;
        let mut inbound = core.lendings.lend_inbound(count, room);
        match inbound.receive(core.bound.as_fd(), core.receiving.burst.get(), control) {
            Ok(received) => {
                core.receiving.failures.set(0);
                core.receiving.burst.set((received * 2).clamp(1, count));
                self.deliver(event_loop, &inbound);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.count_failure(event_loop),
            Err(e) => self.receive_failed(event_loop, e),
        }
        core.lendings.give_back_inbound(inbound);
    }

    /// Panics are caught once a batch: when one happens, the batch goes on behind it.
    fn deliver(&self, event_loop: &EventLoop, inbound: &Inbound) {
        let core = &self.core;
        let mut datagrams = Datagrams::of(inbound, core.settings.receive_size);
        let mut delivered = Delivered::default();
        let mut deliver_rest = || self.deliver_rest(event_loop, &mut datagrams, &mut delivered);
        while event_loop.isolate(format_args!("on_datagram of {core}"), &mut deliver_rest).is_err()
        {
        }
        let Delivered { datagrams, bytes, truncated } = delivered;
        metrics::add(&core.counters.received, datagrams);
        metrics::add(&core.counters.received_bytes, bytes);
        if truncated > 0 {
            metrics::add(&core.counters.truncated, truncated);
        }
    }

    fn deliver_rest(
        &self,
        event_loop: &EventLoop,
        datagrams: &mut Datagrams<'_>,
        delivered: &mut Delivered,
    ) {
        let core = &self.core;
        let socket = UdpSocket::new(event_loop, core);
        while !core.is_over()
            && let Some(datagram) = datagrams.next()
        {
            delivered.datagrams += 1;
            delivered.bytes += datagram.bytes().len();
            delivered.truncated += usize::from(datagram.is_truncated());
            self.handler.borrow_mut().on_datagram(&socket, &datagram);
        }
    }

    #[cold]
    fn receive_failed(&self, event_loop: &EventLoop, error: io::Error) {
        let core = &self.core;
        self.count_failure(event_loop);
        metrics::add(&core.counters.receive_errors, 1);
        let peer = core.bound.peer.clone();
        self.tell(event_loop, DatagramError { operation: Operation::Receive, peer, error });
    }

    /// Whatever the poller keeps telling us of: we do not spin on it.
    fn count_failure(&self, event_loop: &EventLoop) {
        let core = &self.core;
        core.receiving.failures.set(core.receiving.failures.get() + 1);
        if core.receiving.failures.get() >= MAX_FAILURES {
            core.receiving.failures.set(0);
            core.receiving.resting.set(true);
            self.set_timer(event_loop, RECEIVE_PAUSE);
        }
    }

    fn tell(&self, event_loop: &EventLoop, error: DatagramError) {
        self.called(event_loop, "on_error", |handler, socket| handler.on_error(socket, &error));
    }

    /// An error that the poller tells of while nothing is received.
    fn take_error(&self, event_loop: &EventLoop) {
        match getsockopt(&self.core.bound, sockopt::SocketError) {
            Ok(0) => self.count_failure(event_loop),
            Ok(errno) => self.receive_failed(event_loop, io::Error::from_raw_os_error(errno)),
            Err(e) => self.receive_failed(event_loop, e.into()),
        }
    }

    /// Steps 2 to 4.
    fn settle(&self, event_loop: &EventLoop) {
        let core = &self.core;
        core.attention.in_event.set(true);
        self.begin(event_loop);
        let mut calls = 0;
        // What callbacks send in here leaves in here, within bounds.
        while !core.is_over() && calls < MAX_CALLS {
            let flushed = self.flush(&mut calls);
            self.tell_of_errors(event_loop);
            match flushed {
                Flushed::Failed(error) => self.tell(event_loop, error),
                Flushed::More => {}
                Flushed::Done if self.tell_if_drained(event_loop) => {}
                Flushed::Done => break,
            }
        }
        if core.sending.waits_for.get() == WaitsFor::Timer {
            self.set_timer(event_loop, SEND_PAUSE);
        }
        self.watch_the_limit();
        core.attention.in_event.set(false);
        let is_done = core.life.stage.get() == Stage::Stopping && core.queue.borrow().is_empty();
        if core.is_over() || is_done {
            return self.end(event_loop);
        }
        let is_more = calls >= MAX_CALLS && !core.queue.borrow().is_empty();
        if is_more || !core.errors.borrow().is_empty() {
            core.touch(event_loop);
        }
        self.update_interest(event_loop);
    }

    fn tell_of_errors(&self, event_loop: &EventLoop) {
        let errors = self.core.errors.take();
        for error in errors {
            self.tell(event_loop, error);
        }
    }

    /// Whether the program was told, and may have sent more.
    fn tell_if_drained(&self, event_loop: &EventLoop) -> bool {
        let core = &self.core;
        let drained = core.queue.borrow().is_empty() && core.sending.has_waited.replace(false);
        if drained {
            self.called(event_loop, "on_drained", |handler, socket| handler.on_drained(socket));
        }
        drained
    }

    /// One call. There is nothing to do if nothing waits, or all of it has to.
    fn flush(&self, calls: &mut usize) -> Flushed {
        let core = &self.core;
        let mut queue = core.queue.borrow_mut();
        if queue.is_empty() {
            if queue.has_store() {
                core.lendings.give_back_store(queue.take_store());
            }
            return Flushed::Done;
        }
        if core.sending.waits_for.get() != WaitsFor::Nothing {
            return Flushed::Done;
        }
        *calls += 1;
        let at_once = core.settings.batch > 1;
        let many = if at_once { MAX_PIECES } else { 1 };
        let (max_segment, many) =
            match (core.sending.max_segment.get(), core.sending.retrying.get()) {
                (_, Some(_)) => (0, 1),
                (0, None) => (0, many),
                (max, None) => (max, MAX_PIECES),
            };
        let pieces = queue.pieces(max_segment).take(many);
        let sent = core.lendings.outbound.borrow_mut().send(core.bound.as_fd(), at_once, pieces);
        match sent {
            Ok(sent) => {
                core.receiving.failures.set(0);
                if let Some(Retry::Joined(errno)) = core.sending.retrying.take() {
                    self.join_less(errno, queue.front().map_or(0, |piece| piece.bytes.len()));
                }
                let bytes = queue.pop(sent);
                metrics::add(&core.counters.sent, sent);
                metrics::add(&core.counters.sent_bytes, bytes);
                Flushed::More
            }
            Err(failed) => {
                drop(queue);
                self.send_failed(failed)
            }
        }
    }

    #[cold]
    fn send_failed(&self, SendFailed { error, pieces }: SendFailed) -> Flushed {
        let core = &self.core;
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        let is_internet = core.bound.family().is_some();
        let is_connected = core.bound.peer.is_some();
        match errno {
            // Otherwise it is one peer of many that does not read, and nobody else is to wait for
            // that: the datagram is lost, as over a network.
            Errno::EAGAIN if is_internet || is_connected => {
                core.sending.waits_for.set(WaitsFor::Room);
                core.sending.has_waited.set(true);
                return Flushed::Done;
            }
            Errno::ENOBUFS | Errno::ENOMEM => {
                core.sending.waits_for.set(WaitsFor::Timer);
                core.sending.has_waited.set(true);
                return Flushed::Done;
            }
            _ => {}
        }
        let mut queue = core.queue.borrow_mut();
        let peer = match queue.front() {
            Some(Piece { name, .. }) if !name.is_empty() => Some(Name::decode(name)),
            _ => core.bound.peer.clone(),
        };
        let number = errno as i32;
        match core.sending.retrying.take() {
            None if is_internet && is_connected && may_be_of_an_earlier_one(errno) => {
                core.sending.retrying.set(Some(Retry::Told(number)));
            }
            None if pieces > 1 => {
                core.sending.retrying.set(Some(Retry::Joined(number)));
                return Flushed::More;
            }
            before => {
                queue.pop(1);
                metrics::add(&core.counters.send_errors, 1);
                if before == Some(Retry::Told(number)) {
                    return Flushed::More;
                }
            }
        }
        Flushed::Failed(DatagramError { operation: Operation::Send, peer, error })
    }

    /// What was refused when it was joined has left by itself.
    #[cold]
    fn join_less(&self, errno: i32, segment: usize) {
        let core = &self.core;
        let errno = Errno::from_raw(errno);
        match errno {
            // The way out of here cannot cut them, or not so large ones.
            Errno::EIO => core.sending.max_segment.set(0),
            Errno::EMSGSIZE | Errno::EINVAL => {
                core.sending.max_segment.set(segment.saturating_sub(1));
            }
            // It was the network's, and is over.
            _ => return,
        }
        log::debug!("{core}: segments of {segment} bytes are sent one by one: {errno}");
    }

    /// Whether receiving pauses until some of the queue has left.
    fn watch_the_limit(&self) {
        let core = &self.core;
        if core.settings.when_full != super::WhenFull::PauseReading {
            return;
        }
        let queue = core.queue.borrow();
        if core.receiving.full.get() {
            core.receiving.full.set(queue.weight() > queue.limit() / 2);
        } else if queue.weight() >= queue.limit() && !queue.is_empty() {
            core.receiving.full.set(true);
            metrics::add(&core.counters.paused_by_output, 1);
        }
    }

    fn set_timer(&self, event_loop: &EventLoop, after: Duration) {
        let (core, id) = (&self.core, self.core.id);
        if core.timer.get().is_none() {
            let timer = event_loop.run_after(after, move |event_loop| {
                if let Some(resident) = event_loop.local::<Sockets>().get(id) {
                    resident.wake(event_loop);
                }
            });
            core.timer.set(Some(timer));
        }
    }

    fn receives(&self) -> bool {
        let core = &self.core;
        core.life.stage.get() == Stage::Open
            && !core.receiving.full.get()
            && !core.receiving.resting.get()
    }

    fn update_interest(&self, event_loop: &EventLoop) {
        let core = &self.core;
        let mut interest = Interest::NONE;
        if self.receives() {
            interest |= Interest::READ;
        }
        if core.sending.waits_for.get() == WaitsFor::Room {
            interest |= Interest::WRITE;
        }
        if interest == core.attention.interest.replace(interest) {
            return;
        }
        if let Err(e) = event_loop.set_interest(core.attention.token.get(), interest) {
            log::error!("{core} ends: {e}");
            self.end(event_loop);
        }
    }

    fn end(&self, event_loop: &EventLoop) {
        let core = &self.core;
        if core.life.stage.replace(Stage::Ended) == Stage::Ended {
            return;
        }
        core.posted.close();
        core.counters.close();
        let deadline = core.life.deadline.take().map(|(_, timer)| timer);
        for timer in core.timer.take().into_iter().chain(deadline) {
            event_loop.cancel(timer);
        }
        let mut queue = core.queue.borrow_mut();
        metrics::add(&core.counters.discarded, queue.len());
        queue.pop(usize::MAX);
        drop(queue);
        if core.life.started.get() {
            self.called(event_loop, "on_close", |handler, socket| handler.on_close(socket));
        }
        event_loop.deregister(core.attention.token.get());
        // The loop holds the source until nothing is borrowed.
        drop(event_loop.local::<Sockets>().remove(core.id));
    }
}

/// Errors by which the network answers a datagram, and of which the next call on a connected socket
/// hears.
fn may_be_of_an_earlier_one(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ECONNREFUSED
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EHOSTDOWN
            | Errno::EPROTO
            | Errno::ENOPROTOOPT
            | Errno::EACCES
    )
}

impl<H: UdpHandler> Source for Endpoint<H> {
    fn name(&self) -> String {
        self.core.to_string()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.bound.as_fd()
    }

    fn on_event(self: Rc<Self>, event_loop: &EventLoop, event: Event) {
        let core = &self.core;
        core.attention.in_event.set(true);
        if event.ready.contains(Ready::WRITE) && core.sending.waits_for.get() == WaitsFor::Room {
            core.sending.waits_for.set(WaitsFor::Nothing);
        }
        let unasked = event.ready.intersects(Ready::ERROR | Ready::HANGUP);
        if self.receives() {
            if unasked || event.ready.contains(Ready::READ) {
                self.receive(event_loop);
            }
        } else if unasked {
            self.take_error(event_loop);
        }
        self.settle(event_loop);
    }

    fn on_turn_end(&self, event_loop: &EventLoop, _: Token) {
        self.core.unschedule();
        if self.core.life.stage.get() != Stage::Ended {
            self.settle(event_loop);
        }
    }

    /// Not for a panic of the program's, which is caught where it is called.
    fn on_panic(&self, event_loop: &EventLoop, _: Token) {
        self.end(event_loop);
    }

    fn on_loop_end(&self, event_loop: &EventLoop, _: Token) {
        self.end(event_loop);
    }
}

impl<H: UdpHandler> Resident for Endpoint<H> {
    fn core(&self) -> &Core {
        &self.core
    }

    fn call(&self, event_loop: &EventLoop, f: Box<dyn FnOnce(&UdpSocket<'_>) + Send>) {
        let core = &self.core;
        self.begin(event_loop);
        let what = format_args!("a call posted to {core}");
        let _ = event_loop.isolate(what, || f(&UdpSocket::new(event_loop, core)));
    }

    fn wake(&self, event_loop: &EventLoop) {
        let core = &self.core;
        core.timer.set(None);
        core.receiving.resting.set(false);
        if core.sending.waits_for.get() == WaitsFor::Timer {
            core.sending.waits_for.set(WaitsFor::Nothing);
        }
        self.settle(event_loop);
    }
}
