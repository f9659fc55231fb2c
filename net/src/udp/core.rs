//! The part of a datagram socket that does not depend on its handler: what callbacks and handles
//! reach.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ruduo_reactor::sys::datagram::{Inbound, Name, Outbound};
use ruduo_reactor::{EventLoop, Interest, TimerId, Token};

use super::datagram::{Datagram, DatagramError, Operation};
use super::metrics::Counters;
use super::options::{Bound, mapped};
use super::queue::{Queue, Store};
use super::serving::{Part, Presence};
use super::{Settings, UdpSocket};
use crate::Address;
use crate::by_id::ById;
use crate::metrics;
use crate::posted::Posted;

pub(super) struct Core {
    pub(super) id: u64,
    pub(super) bound: Bound,
    pub(super) settings: Settings,
    pub(super) queue: RefCell<Queue>,
    pub(super) counters: Arc<Counters>,
    pub(super) posted: Arc<Posted<()>>,
    pub(super) lendings: Rc<Lendings>,
    pub(super) life: Life,
    pub(super) attention: Attention,
    pub(super) receiving: Receiving,
    pub(super) sending: Sending,
    /// The timer behind [`Receiving::resting`] and [`WaitsFor::Timer`].
    pub(super) timer: Cell<Option<TimerId>>,
    /// Errors that were found when no callback could be called.
    pub(super) errors: RefCell<Vec<DatagramError>>,
    /// Last, so that all else is gone when the server hears that the socket has ended.
    #[expect(dead_code, reason = "held for its Drop")]
    pub(super) presence: Presence,
}

/// How far a socket has come.
pub(super) struct Life {
    pub(super) stage: Cell<Stage>,
    /// The handler has been called for the first time.
    pub(super) started: Cell<bool>,
    /// By when it is to have stopped, and the timer that sees to it.
    pub(super) deadline: Cell<Option<(Instant, TimerId)>>,
}

/// What makes the loop look at a socket.
pub(super) struct Attention {
    pub(super) token: Cell<Token>,
    /// What the poller was last told.
    pub(super) interest: Cell<Interest>,
    /// Inside our own event, after whose callbacks what they have sent leaves.
    pub(super) in_event: Cell<bool>,
    /// The loop has been asked to look at us at the end of the turn.
    pub(super) scheduled: Cell<bool>,
}

pub(super) struct Receiving {
    /// How much may come at once; see [`Endpoint::receive`](super::endpoint::Endpoint).
    pub(super) burst: Cell<usize>,
    /// It pauses until some of the queue has left.
    pub(super) full: Cell<bool>,
    /// It pauses for a while, after so many failures in a row, with nothing sent in between that may
    /// be why.
    pub(super) resting: Cell<bool>,
    pub(super) failures: Cell<u32>,
}

pub(super) struct Sending {
    pub(super) waits_for: Cell<WaitsFor>,
    /// Something has had to wait since the program was last told that all has left.
    pub(super) has_waited: Cell<bool>,
    /// Segments of so many bytes are joined for the kernel to cut.
    pub(super) max_segment: Cell<usize>,
    /// The first in the queue has met an error that may not be its own, and is tried by itself.
    pub(super) retrying: Cell<Option<Retry>>,
}

/// Where in its life a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Open,
    /// It receives no more, and ends when its queue is empty.
    Stopping,
    /// It ends as soon as no callback runs.
    Closing,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitsFor {
    Nothing,
    /// The kernel says when there is room.
    Room,
    /// Nobody says when.
    Timer,
}

/// Why the first in the queue is tried once more, by itself: with this errno,
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// the network may have answered an earlier one, and that has been told;
    Told(i32),
    /// what it was joined with was refused. If it leaves now, joining was why.
    Joined(i32),
}

impl Core {
    pub(super) fn new(event_loop: &EventLoop, part: Part, settings: Settings) -> Core {
        let Part { id, bound, counters, posted, presence } = part;
        let max_segment = if bound.gso { usize::from(u16::MAX) } else { 0 };
        Core {
            id,
            queue: RefCell::new(Queue::new(settings.queue_limit, settings.when_full)),
            bound,
            settings,
            counters,
            posted,
            lendings: event_loop.local(),
            life: Life {
                stage: Cell::new(Stage::Open),
                started: Cell::new(false),
                deadline: Cell::new(None),
            },
            attention: Attention {
                token: Cell::new(Token(u64::MAX)),
                interest: Cell::new(Interest::NONE),
                in_event: Cell::new(false),
                scheduled: Cell::new(false),
            },
            receiving: Receiving {
                burst: Cell::new(1),
                full: Cell::new(false),
                resting: Cell::new(false),
                failures: Cell::new(0),
            },
            sending: Sending {
                waits_for: Cell::new(WaitsFor::Nothing),
                has_waited: Cell::new(false),
                max_segment: Cell::new(max_segment),
                retrying: Cell::new(None),
            },
            timer: Cell::new(None),
            errors: RefCell::default(),
            presence,
        }
    }

    /// Whether it will never send again.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.life.stage.get(), Stage::Closing | Stage::Ended)
    }

    /// Asks the loop to look at us soon: now, if it is inside our event anyway, otherwise at the end
    /// of the turn.
    #[inline]
    pub(super) fn touch(&self, event_loop: &EventLoop) {
        if !self.attention.in_event.get() && !self.attention.scheduled.replace(true) {
            event_loop.at_turn_end(self.attention.token.get());
        }
    }

    pub(super) fn unschedule(&self) {
        self.attention.scheduled.set(false);
    }

    /// Queues a datagram for an address.
    pub(super) fn send_to(&self, event_loop: &EventLoop, bytes: &[u8], peer: &Address) {
        if self.bound.peer.is_some() {
            // Systems disagree about what naming a peer means then.
            let why = "the socket is connected, and sends to its peer only";
            let error = io::Error::new(io::ErrorKind::InvalidInput, why);
            return self.failed(event_loop, Some(peer.clone()), error);
        }
        let mapped = mapped(self.bound.family(), peer);
        match Name::new(mapped.as_ref().unwrap_or(peer)) {
            Ok(name) => self.send(event_loop, bytes, name.as_bytes(), &[]),
            Err(error) => self.failed(event_loop, Some(peer.clone()), error),
        }
    }

    /// Queues a datagram for who sent one, from where that was sent to.
    #[inline]
    pub(super) fn answer(&self, event_loop: &EventLoop, bytes: &[u8], datagram: &Datagram<'_>) {
        let name = datagram.name();
        if self.bound.peer.is_some() {
            return self.send(event_loop, bytes, &[], &[]);
        }
        if self.bound.family().is_none() && has_no_name(name) {
            let why = "it came from a Unix socket without a name, which cannot be answered";
            let error = io::Error::new(io::ErrorKind::AddrNotAvailable, why);
            return self.failed(event_loop, None, error);
        }
        if self.bound.tells_where_to {
            return self.send(event_loop, bytes, name, datagram.source().as_bytes());
        }
        self.send(event_loop, bytes, name, &[]);
    }

    /// Queues a datagram for a name, or for the peer if that is empty; from an address, or whichever
    /// it is by the routes if that is empty.
    pub(super) fn send(&self, event_loop: &EventLoop, bytes: &[u8], name: &[u8], source: &[u8]) {
        if self.is_over() {
            metrics::add(&self.counters.discarded, 1);
            return;
        }
        let mut queue = self.queue.borrow_mut();
        if !queue.has_store() {
            queue.set_store(self.lendings.lend_store());
        }
        let dropped = queue.offer(name, source, bytes);
        drop(queue);
        if dropped.newest > 0 {
            metrics::add(&self.counters.dropped_newest, dropped.newest);
        }
        if dropped.oldest > 0 {
            // Whatever was tried was not this one.
            self.sending.retrying.set(None);
            metrics::add(&self.counters.dropped_oldest, dropped.oldest);
        }
        self.touch(event_loop);
    }

    /// A datagram that never got into the queue.
    fn failed(&self, event_loop: &EventLoop, peer: Option<Address>, error: io::Error) {
        metrics::add(&self.counters.send_errors, 1);
        self.errors.borrow_mut().push(DatagramError { operation: Operation::Send, peer, error });
        self.touch(event_loop);
    }

    /// Receives no more, sends what is queued until the deadline, and ends.
    pub(super) fn stop(&self, event_loop: &EventLoop, deadline: Instant) {
        if self.life.stage.get() == Stage::Open {
            self.life.stage.set(Stage::Stopping);
        }
        self.touch(event_loop);
        match self.life.deadline.take() {
            Some(sooner) if sooner.0 <= deadline => self.life.deadline.set(Some(sooner)),
            later => {
                if let Some((_, timer)) = later {
                    event_loop.cancel(timer);
                }
                let id = self.id;
                let timer = event_loop.run_at(deadline, move |event_loop| {
                    if let Some(resident) = event_loop.local::<Sockets>().get(id) {
                        resident.core().close(event_loop);
                    }
                });
                self.life.deadline.set(Some((deadline, timer)));
            }
        }
    }

    /// Ends after the current callback.
    pub(super) fn close(&self, event_loop: &EventLoop) {
        if self.life.stage.get() != Stage::Ended {
            self.life.stage.set(Stage::Closing);
            self.touch(event_loop);
        }
    }
}

/// An unnamed socket's name is its family, or nothing.
fn has_no_name(name: &[u8]) -> bool {
    Name::decode(name) == Address::Unix(crate::UnixAddress::Unnamed)
}

/// As log lines name it.
impl fmt::Display for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the datagram socket on {}", self.bound.local)
    }
}

/// What all datagram sockets of a loop use in turn; a `local` value of it. So however many are idle,
/// no memory for datagrams is theirs.
#[derive(Default)]
pub(super) struct Lendings {
    inbound: RefCell<Vec<Inbound>>,
    pub(super) outbound: RefCell<Outbound>,
    stores: RefCell<Vec<Store>>,
}

/// Sockets that want other sizes than the rest bring their own; so many sizes are kept.
const MAX_SIZES: usize = 4;

/// Memory for queues that is kept, and how much each.
const MAX_STORES: usize = 4;
const MAX_STORE: usize = 4 * 1024 * 1024;

impl Lendings {
    /// Room for `count` datagrams of `room` bytes.
    pub(super) fn lend_inbound(&self, count: usize, room: usize) -> Inbound {
        let mut all = self.inbound.borrow_mut();
        let fits = |inbound: &Inbound| inbound.count() == count && inbound.room() == room;
        match all.iter().rposition(fits) {
            Some(index) => all.swap_remove(index),
            None => Inbound::new(count, room),
        }
    }

    pub(super) fn give_back_inbound(&self, inbound: Inbound) {
        let mut all = self.inbound.borrow_mut();
        if all.len() == MAX_SIZES {
            all.remove(0);
        }
        all.push(inbound);
    }

    fn lend_store(&self) -> Store {
        self.stores.borrow_mut().pop().unwrap_or_default()
    }

    pub(super) fn give_back_store(&self, store: Store) {
        let mut all = self.stores.borrow_mut();
        if all.len() < MAX_STORES && store.capacity() <= MAX_STORE {
            all.push(store);
        }
    }
}

/// The datagram sockets of a loop, found by what is not their own event; a `local` value of it.
pub(super) type Sockets = ById<dyn Resident>;

/// A socket, whatever its handler.
pub(super) trait Resident {
    fn core(&self) -> &Core;
    /// Calls `f` as one of its callbacks.
    fn call(&self, event_loop: &EventLoop, f: Box<dyn FnOnce(&UdpSocket<'_>) + Send>);
    /// A timer says that it is time to go on.
    fn wake(&self, event_loop: &EventLoop);
}
