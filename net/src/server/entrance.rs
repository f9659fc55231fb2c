//! From a listener to a loop: those who come in are counted, or refused, and placed.
//!
//! What crosses threads is a socket with a [`Ticket`], which counts the connection as open on its
//! way, and gives the count back if it never arrives.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ruduo_reactor::{EventLoop, LoopHandle, LoopPool};

use super::admission::{Farewell, Refusal};
use super::handle::Shared;
use super::serving::{Servers, adopt};
use crate::acceptor::Acceptance;
use crate::{Address, UnixAddress};

/// What is done with those who come in at one listener.
pub(super) struct Entrance {
    shared: Arc<Shared>,
    /// The loop that accepts, and its servers.
    here: LoopHandle,
    servers: Rc<Servers>,
    /// Where connections go; if it is `None`, they stay here.
    pool: Option<LoopPool>,
    farewell: Option<Farewell>,
}

impl Entrance {
    pub(super) fn new(
        event_loop: &EventLoop,
        shared: &Arc<Shared>,
        pool: Option<LoopPool>,
    ) -> Rc<Entrance> {
        let message = shared.admission.bounds.message.clone();
        let farewell = message.map(|message| Farewell::new(event_loop, message));
        let (here, servers) = (event_loop.handle(), event_loop.local());
        Rc::new(Entrance { shared: shared.clone(), here, servers, pool, farewell })
    }
}

impl Acceptance for Entrance {
    fn accepted(&self, event_loop: &EventLoop, socket: OwnedFd, peer: Address) {
        let shared = &self.shared;
        let mut ticket = match Ticket::new(shared, &peer) {
            Ok(ticket) => ticket,
            Err(refusal) => {
                log::debug!("refusing {peer}: {refusal:?}, {}", shared.admission.bounds);
                if let Some(farewell) = &self.farewell {
                    farewell.say(event_loop, socket, peer);
                }
                return;
            }
        };
        let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
        let chosen = match &self.pool {
            Some(pool) => match &peer {
                // The port is no part of the key: the connections of one host go together.
                Address::Ip(address) => pool.place(address.ip()),
                // Most peers on Unix sockets have no name, by which they would all go together.
                Address::Unix(UnixAddress::Unnamed) => pool.place(number),
                Address::Unix(name) => pool.place(name),
            },
            None => Some(&self.here),
        };
        let Some(chosen) = chosen else {
            if shared.lost.load(Ordering::Relaxed) == 0 {
                log::error!("closing connections to {}: all loops have ended", shared.local_addr);
            }
            return;
        };
        ticket.send_to(chosen);
        if *chosen == self.here {
            adopt(event_loop, &self.servers, ticket, socket, peer);
        } else {
            // A refused task is dropped, and with it the socket and the ticket.
            let _ = chosen.post(move |event_loop| {
                adopt(event_loop, &event_loop.local(), ticket, socket, peer);
            });
        }
    }

    fn refused(&self) {
        self.shared.refused_descriptors.fetch_add(1, Ordering::Relaxed);
    }

    fn paused(&self) {
        self.shared.accept_pauses.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection that is counted as open but has not arrived at its loop.
pub(super) struct Ticket {
    pub(super) shared: Arc<Shared>,
    peer: Address,
    /// Where it is going.
    event_loop: Option<LoopHandle>,
    arrived: bool,
}

impl Ticket {
    fn new(shared: &Arc<Shared>, peer: &Address) -> Result<Ticket, Refusal> {
        shared.admission.enter(peer)?;
        let (shared, peer) = (shared.clone(), peer.clone());
        Ok(Ticket { shared, peer, event_loop: None, arrived: false })
    }

    fn send_to(&mut self, event_loop: &LoopHandle) {
        event_loop.add_load();
        self.event_loop = Some(event_loop.clone());
    }

    /// From now on the connection's end is what counts it as closed.
    pub(super) fn keep(mut self) {
        self.arrived = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.arrived {
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
            self.shared.admission.leave(&self.peer);
            if let Some(event_loop) = &self.event_loop {
                event_loop.remove_load();
            }
        }
    }
}
