//! Names wait for their turn: of one peer, only so many are on their way at a time.
//!
//! Looking a name up may take as long as its name servers like, and the library looks up four at a
//! time in the whole process. So whoever asks for some names that are not answered would keep
//! everybody else's waiting. Therefore a peer, by its address, has two turns at a time. A turn lasts
//! from asking for the name until its target is connected, or is not: the library tells no earlier,
//! and the simple rule is slow only for those who are slow themselves. (It is against one peer and its
//! mistakes, not against a crowd of them.)

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ruduo::{Connection, ConnectionId, HandlerHandle};

use crate::session::Session;

/// Turns that a peer has at a time: fewer than there are threads.
const MOST: usize = 2;

/// All peers that have turns now, by address. (Those at a Unix socket count as one.)
static PEERS: Mutex<BTreeMap<Option<IpAddr>, Peer>> = Mutex::new(BTreeMap::new());

#[derive(Default)]
struct Peer {
    turns: usize,
    /// The oldest first.
    waiting: BTreeMap<ConnectionId, HandlerHandle<Session>>,
}

fn lock() -> MutexGuard<'static, BTreeMap<Option<IpAddr>, Peer>> {
    PEERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place among those that wait, which is given up when it is dropped.
pub(crate) struct Place {
    peer: Option<IpAddr>,
    id: ConnectionId,
}

impl Place {
    /// From now on, a connection waits for [`Session::on_turn`].
    pub(crate) fn take(conn: &Connection) -> Place {
        let place = Place { peer: conn.peer_addr().ip(), id: conn.id() };
        lock().entry(place.peer).or_default().waiting.insert(place.id, conn.handle_for());
        call_next(place.peer);
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut peers = lock();
        if let Some(peer) = peers.get_mut(&self.peer) {
            peer.waiting.remove(&self.id);
        }
    }
}

/// A name may be on its way; the next one's turn comes when this is dropped.
pub(crate) struct Turn {
    peer: Option<IpAddr>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut peers = lock();
        if let Some(peer) = peers.get_mut(&self.peer) {
            peer.turns -= 1;
            if peer.turns == 0 && peer.waiting.is_empty() {
                peers.remove(&self.peer);
            }
        }
        drop(peers);
        call_next(self.peer);
    }
}

/// Gives the next one its turn, if there is one to give.
fn call_next(address: Option<IpAddr>) {
    let next = {
        let mut peers = lock();
        let Some(peer) = peers.get_mut(&address).filter(|peer| peer.turns < MOST) else { return };
        let Some((_, next)) = peer.waiting.pop_first() else { return };
        peer.turns += 1;
        next
    };
    let turn = Turn { peer: address };
    // If that connection has ended, the call is dropped, and the turn with it: then it is another's.
    let _ = next.post(move |session, conn| session.on_turn(conn, turn));
}
