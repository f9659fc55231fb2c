//! The part of a connection that does not depend on its transport or handler: what
//! [`Connection`](crate::Connection) shows to the program and what handles reach.

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ruduo_reactor::{EventLoop, Interest, TimerId, Token};

use super::deadlines::Look;
use super::state::State;
use super::throttle::{Posted, Throttle};
use crate::Address;
use crate::context::Context;
use crate::limits::Deadlines;
use crate::place::{ConnectionId, Place};

/// A connection without its transport and handler.
pub(crate) struct Core {
    id: ConnectionId,
    socket: OwnedFd,
    peer: Peer,
    pub(super) context: Rc<Context>,
    pub(super) state: State,
    pub(super) received: Cell<u64>,
    pub(super) token: Cell<Token>,
    /// What the poller was last told.
    pub(super) interest: Cell<Interest>,
    /// The loop has been asked to look at the state at the end of the turn.
    scheduled: Cell<bool>,
    /// What handles share with us; made with the first handle.
    posted: OnceCell<Arc<Posted>>,
    /// A call that a handle has posted is running. What it does takes the call's own place in the
    /// order of operations, and does not queue behind what was posted after the call.
    in_call: Cell<bool>,
    timers: Cell<Option<Box<Timers>>>,
}

/// An [`Address`] takes 40 bytes, and most peers have one that fits in 6.
enum Peer {
    V4(SocketAddrV4),
    Other(Box<Address>),
}

impl From<Address> for Peer {
    #[inline]
    fn from(address: Address) -> Peer {
        match address {
            Address::Ip(SocketAddr::V4(address)) => Peer::V4(address),
            other => Peer::Other(Box::new(other)),
        }
    }
}

/// Most connections have none.
#[derive(Default)]
pub(super) struct Timers {
    pub(super) of_program: Vec<(u64, TimerId)>,
    /// Deadlines of this connection alone.
    pub(super) deadlines: Option<Deadlines>,
    /// When to look whether one has passed.
    pub(super) look: Option<Look>,
}

impl Core {
    #[inline]
    pub(super) fn new(socket: OwnedFd, peer: Address, context: Rc<Context>) -> Core {
        Core {
            id: ConnectionId::next(),
            socket,
            peer: peer.into(),
            context,
            state: State::default(),
            received: Cell::new(0),
            token: Cell::new(Token(u64::MAX)),
            interest: Cell::new(Interest::READ),
            scheduled: Cell::new(false),
            posted: OnceCell::new(),
            in_call: Cell::new(false),
            timers: Cell::default(),
        }
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.id
    }

    pub(crate) fn place(&self) -> Place {
        Place { token: self.token.get(), recognise: self.context.recognise }
    }

    pub(super) fn peer(&self) -> Address {
        match &self.peer {
            Peer::V4(address) => Address::Ip((*address).into()),
            Peer::Other(address) => Address::clone(address),
        }
    }

    /// Which host it came from; on a Unix socket, none.
    #[inline]
    pub(crate) fn host(&self) -> Option<IpAddr> {
        match &self.peer {
            Peer::V4(address) => Some((*address.ip()).into()),
            Peer::Other(address) => address.ip(),
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn belongs_to(&self, context: &Rc<Context>) -> bool {
        Rc::ptr_eq(&self.context, context)
    }

    /// Asks the loop to look at the state at the end of the turn.
    #[inline(never)]
    pub(super) fn schedule(&self, event_loop: &EventLoop) {
        if !self.scheduled.replace(true) {
            event_loop.at_turn_end(self.token.get());
        }
    }

    pub(super) fn unschedule(&self) {
        self.scheduled.set(false);
    }
}

/// As log lines name it.
impl fmt::Display for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {} to {}", self.id, self.peer())
    }
}

/// Handles on other threads.
impl Core {
    /// Whether operations posted by handles have yet to arrive. What the program does meanwhile
    /// has to queue behind them.
    #[inline]
    pub(super) fn has_outstanding(&self) -> bool {
        self.posted.get().is_some_and(|posted| posted.outstanding() > 0 && !self.in_call.get())
    }

    /// A call that a handle has posted begins, or has ended.
    pub(super) fn set_in_call(&self, in_call: bool) {
        self.in_call.set(in_call);
    }

    /// Bytes of output on their way from handles.
    pub(super) fn posted_bytes(&self) -> usize {
        self.posted.get().map_or(0, |posted| posted.weight())
    }

    /// What handles share with us; made for the first one.
    pub(super) fn posted(&self) -> &Arc<Posted> {
        self.posted.get_or_init(|| {
            self.state.share();
            let (limits, state) = (&self.context.limits, &self.state);
            let throttle = Throttle::new(limits.low_water, state.is_above_high());
            Arc::new(Posted::new(limits.output, state.is_ended(), throttle))
        })
    }

    /// The same, if there has been any handle.
    pub(super) fn posted_if_made(&self) -> Option<&Arc<Posted>> {
        self.posted.get()
    }

    #[inline]
    pub(super) fn close_handles(&self) {
        if let Some(posted) = self.posted.get() {
            posted.close();
            posted.forget_sources();
        }
    }
}

/// Timers.
impl Core {
    /// Arms the program's timer `key`, in place of the one with this key, if that is armed. Not when
    /// the connection has ended: nobody would cancel it then, and it would be kept until it is due.
    pub(super) fn set_timer(&self, event_loop: &EventLoop, key: u64, after: Duration) {
        self.cancel_timer(event_loop, key);
        if self.state.is_ended() {
            return;
        }
        let place = self.place();
        let timer = event_loop.run_after(after, move |event_loop| {
            if let Some(resident) = place.resident(event_loop) {
                resident.core().forget_timer(key);
                resident.on_timer(event_loop, key);
            }
        });
        self.with_timers(|timers| timers.get_or_insert_default().of_program.push((key, timer)));
    }

    pub(super) fn cancel_timer(&self, event_loop: &EventLoop, key: u64) -> bool {
        let timer = self.forget_timer(key);
        timer.is_some_and(|timer| event_loop.cancel(timer))
    }

    fn forget_timer(&self, key: u64) -> Option<TimerId> {
        self.with_timers(|timers| {
            let of_program = &mut timers.as_mut()?.of_program;
            let index = of_program.iter().position(|(known, _)| *known == key)?;
            Some(of_program.swap_remove(index).1)
        })
    }

    /// Looks at the timers, or changes them.
    #[inline]
    pub(super) fn with_timers<R>(&self, f: impl FnOnce(&mut Option<Box<Timers>>) -> R) -> R {
        let mut timers = self.timers.take();
        let result = f(&mut timers);
        self.timers.set(timers);
        result
    }

    #[inline]
    pub(super) fn cancel_timers(&self, event_loop: &EventLoop) {
        if let Some(timers) = self.timers.take() {
            timers.cancel(event_loop);
        }
    }
}

impl Timers {
    #[inline(never)]
    fn cancel(&self, event_loop: &EventLoop) {
        let of_program = self.of_program.iter().map(|(_, timer)| *timer);
        for timer in of_program.chain(self.look.map(|look| look.timer)) {
            event_loop.cancel(timer);
        }
    }
}
