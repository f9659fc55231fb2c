//! Step 1: one batch is received, and the handler is called for each datagram in it.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use ruduo_reactor::EventLoop;
use ruduo_reactor::sys::datagram::{Inbound, MAX_DATAGRAM};

use super::Endpoint;
use crate::metrics;
use crate::udp::callbacks::UdpHandler;
use crate::udp::core::Stage;
use crate::udp::datagram::{DatagramError, Datagrams, Operation};
use crate::udp::socket::UdpSocket;

/// How long receiving pauses when it fails again and again without anything coming.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);
const MAX_FAILURES: u32 = 16;

/// What the handler was called for, in a batch.
#[derive(Default)]
struct Delivered {
    datagrams: usize,
    bytes: usize,
    truncated: usize,
}

impl<H: UdpHandler> Endpoint<H> {
    /// Whether anything is to be received now.
    pub(super) fn receives(&self) -> bool {
        let core = &self.core;
        core.life.stage.get() == Stage::Open
            && !core.receiving.full.get()
            && !core.receiving.resting.get()
    }

    /// How much may come at once doubles while there is more: then few datagrams cost little,
    /// and many few calls.
    pub(super) fn receive(&self, event_loop: &EventLoop) {
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
        let mut datagrams = Datagrams::of(inbound, core.settings.receive_size, core.bound.gro);
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

    /// An error that the poller tells of while nothing is received.
    pub(super) fn take_error(&self, event_loop: &EventLoop) {
        match getsockopt(&self.core.bound, sockopt::SocketError) {
            Ok(0) => self.count_failure(event_loop),
            Ok(errno) => self.receive_failed(event_loop, io::Error::from_raw_os_error(errno)),
            Err(e) => self.receive_failed(event_loop, e.into()),
        }
    }
}
