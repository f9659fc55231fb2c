//! From a listener to a loop: those who come in are counted, or refused, and placed.
//!
//! Who is placed on the loop that accepts is there already. What crosses threads is a [`Transfer`],
//! which gives the count back if the connection never arrives.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ruduo_reactor::{EventLoop, LoopHandle, LoopPool};

use super::admission::Farewell;
use super::handle::Shared;
use super::serving::{Serve, Servers};
use crate::acceptor::Acceptance;
use crate::{Address, UnixAddress};

/// What is done with those who come in at one listener.
pub(super) struct Entrance {
    shared: Arc<Shared>,
    /// The loop that accepts.
    here: LoopHandle,
    /// The server's part on that loop, if it has one there.
    server: Option<Rc<dyn Serve>>,
    /// Where connections go; if it is `None`, they stay here.
    pool: Option<LoopPool>,
    farewell: Option<Farewell>,
}

impl Entrance {
    pub(super) fn new(
        event_loop: &EventLoop,
        shared: &Arc<Shared>,
        server: Option<Rc<dyn Serve>>,
        pool: Option<LoopPool>,
    ) -> Rc<Entrance> {
        let message = shared.admission.bounds.message.clone();
        let farewell = message.map(|message| Farewell::new(event_loop, message));
        let (shared, here) = (shared.clone(), event_loop.handle());
        Rc::new(Entrance { shared, here, server, pool, farewell })
    }
}

impl Acceptance for Entrance {
    fn accepted(&self, event_loop: &EventLoop, socket: OwnedFd, peer: Address) {
        let shared = &self.shared;
        if let Err(refusal) = shared.admission.enter(peer.ip()) {
            log::debug!("refusing {peer}: {refusal:?}, {}", shared.admission.bounds);
            if let Some(farewell) = &self.farewell {
                farewell.say(event_loop, socket, peer);
            }
            return;
        }
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
            return shared.lose(peer.ip());
        };
        chosen.add_load();
        match &self.server {
            Some(server) if *chosen == self.here => server.adopt(event_loop, socket, peer),
            _ => Transfer::begin(shared, chosen, socket, peer),
        }
    }

    fn refused(&self) {
        self.shared.refused_descriptors.fetch_add(1, Ordering::Relaxed);
    }

    fn paused(&self) {
        self.shared.accept_pauses.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection on its way to its loop, where it is counted as open already.
struct Transfer {
    shared: Arc<Shared>,
    event_loop: LoopHandle,
    /// Until it has arrived.
    stream: Option<(OwnedFd, Address)>,
}

impl Transfer {
    fn begin(shared: &Arc<Shared>, event_loop: &LoopHandle, socket: OwnedFd, peer: Address) {
        let (shared, to) = (shared.clone(), event_loop.clone());
        let transfer = Transfer { shared, event_loop: to, stream: Some((socket, peer)) };
        // A refused task is dropped, and with it the transfer.
        let _ = event_loop.post(move |event_loop| transfer.arrive(event_loop));
    }

    /// On the chosen loop.
    fn arrive(mut self, event_loop: &EventLoop) {
        let server = event_loop.local::<Servers>().serving.get(self.shared.id);
        if server.is_none() && self.shared.lost.load(Ordering::Relaxed) == 0 {
            log::error!(
                "closing connections to {}: a loop of the server's pool does not serve; why, was \
                 logged when the server was started",
                self.shared.local_addr
            );
        }
        if let Some(server) = server
            && let Some((socket, peer)) = self.stream.take()
        {
            server.adopt(event_loop, socket, peer);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some((_, peer)) = &self.stream {
            log::debug!("closing the connection of {peer}, which no loop takes");
            self.event_loop.remove_load();
            self.shared.lose(peer.ip());
        }
    }
}
