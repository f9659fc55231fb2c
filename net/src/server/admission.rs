//! Who is let in: how many at once, how many of one peer, and what the refused are told.
//!
//! The counts are shared by all loops, for connections end where they live. Connections change them
//! when they begin and end, and never in between.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, rlim_t};
use ruduo_reactor::EventLoop;

use crate::connection::endpoint::Endpoint;
use crate::context::Context;
use crate::limits::{Deadlines, Limits};
use crate::transport::Plain;
use crate::{Address, Buffer, Connection, Handler};

/// The longest message to those who are refused; what every socket's buffer takes at once.
const MAX_MESSAGE: usize = 1024;

/// How many of the refused a loop is busy with at once. The others are closed without a word.
const MAX_FAREWELLS: usize = 64;

/// How long a refused peer may take to take its leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// Descriptors that a server needs beside its connections: listeners, pollers, the program's own.
const SPARE_DESCRIPTORS: usize = 64;

/// The bounds, as they are set.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) total: usize,
    pub(super) per_peer: usize,
    pub(super) message: Option<Arc<[u8]>>,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { total: usize::MAX, per_peer: usize::MAX, message: None }
    }
}

impl Bounds {
    pub(super) fn check(&self) -> io::Result<()> {
        match &self.message {
            Some(message) if message.len() > MAX_MESSAGE => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "the message to the refused has {} bytes, and {MAX_MESSAGE} are the most",
                    message.len()
                ),
            )),
            _ => Ok(()),
        }
    }

    /// A limit that the system does not let us reach is worth a line before it matters.
    pub(super) fn compare_with_system(&self) {
        let needed = self.total.saturating_add(SPARE_DESCRIPTORS);
        match getrlimit(Resource::RLIMIT_NOFILE) {
            Ok((soft, _))
                if self.total < usize::MAX
                    && rlim_t::try_from(needed).is_ok_and(|needed| soft < needed) =>
            {
                log::warn!(
                    "max_connections is {}, but this process may have {soft} descriptors: set \
                     'ulimit -n {needed}' (systemd: LimitNOFILE={needed}) or a lower limit",
                    self.total
                );
            }
            _ => {}
        }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |n: usize| if n == usize::MAX { "any".to_owned() } else { n.to_string() };
        write!(f, "{} connections, {} of a peer", number(self.total), number(self.per_peer))
    }
}

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    MaxConnections,
    MaxPerPeer,
}

/// Counts those who are in.
pub(super) struct Admission {
    pub(super) bounds: Bounds,
    open: AtomicUsize,
    /// Empty if there is no limit to them.
    peers: Mutex<HashMap<IpAddr, usize>>,
    pub(super) refused_max_connections: AtomicU64,
    pub(super) refused_max_per_peer: AtomicU64,
}

impl Admission {
    pub(super) fn new(bounds: Bounds) -> Admission {
        Admission {
            bounds,
            open: AtomicUsize::new(0),
            peers: Mutex::default(),
            refused_max_connections: AtomicU64::new(0),
            refused_max_per_peer: AtomicU64::new(0),
        }
    }

    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// One more, if there is room; from which host, if it has one. [`leave`](Admission::leave) has
    /// to follow, sooner or later.
    ///
    /// Several acceptors may be at it. Nobody takes a place before he is sure to keep it: a place
    /// given back may be what somebody else was refused for.
    pub(super) fn enter(&self, host: Option<IpAddr>) -> Result<(), Refusal> {
        let mut of_peer = self.counted(host).map(|host| (host, self.lock_peers()));
        if let Some((host, peers)) = &of_peer
            && peers.get(host).is_some_and(|open| *open >= self.bounds.per_peer)
        {
            self.refused_max_per_peer.fetch_add(1, Ordering::Relaxed);
            return Err(Refusal::MaxPerPeer);
        }
        let one_more = |open| (open < self.bounds.total).then_some(open + 1);
        if self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_err() {
            self.refused_max_connections.fetch_add(1, Ordering::Relaxed);
            return Err(Refusal::MaxConnections);
        }
        if let Some((host, peers)) = &mut of_peer {
            *peers.entry(*host).or_default() += 1;
        }
        Ok(())
    }

    pub(super) fn leave(&self, host: Option<IpAddr>) {
        if let Some(host) = self.counted(host)
            && let Entry::Occupied(mut open) = self.lock_peers().entry(host)
        {
            *open.get_mut() -= 1;
            if *open.get() == 0 {
                open.remove();
            }
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    fn lock_peers(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose connection it is, if that matters. An IPv6 host has a network of its own to choose
    /// addresses from, so its first 64 bits count.
    #[inline]
    fn counted(&self, host: Option<IpAddr>) -> Option<IpAddr> {
        let host = host.filter(|_| self.bounds.per_peer < usize::MAX)?;
        Some(match host.to_canonical() {
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
            ip @ IpAddr::V4(_) => ip,
        })
    }
}

/// Tells the refused why, on one loop. A peer may have sent something already, and closing a socket
/// with unread input is a reset, which may overtake the message. So the refused are connections
/// for a moment: they get the message and the end of the stream, what they send is thrown away, and
/// they have a second to go. The price is a descriptor for that time, hence the bound.
pub(super) struct Farewell {
    message: Arc<[u8]>,
    context: Rc<Context>,
}

impl Farewell {
    pub(super) fn new(event_loop: &EventLoop, message: Arc<[u8]>) -> Farewell {
        let deadlines = Deadlines { linger: FAREWELL, ..Deadlines::default() };
        let limits = Limits { deadlines, ..Limits::default() };
        let context =
            Context::new::<Endpoint<Plain, Leaving>>(event_loop, limits, Arc::default(), |_, _| {});
        Farewell { message, context: Rc::new(context) }
    }

    pub(super) fn say(&self, event_loop: &EventLoop, socket: OwnedFd, peer: Address) {
        if self.context.open() >= MAX_FAREWELLS {
            return;
        }
        let endpoint = Endpoint::new(&self.context, socket, peer, Plain);
        match endpoint.open(event_loop) {
            Ok(()) => endpoint.begin(event_loop, |_| Leaving(self.message.clone())),
            Err(e) => log::debug!("closing {e}"),
        }
    }
}

struct Leaving(Arc<[u8]>);

impl Handler for Leaving {
    fn on_connect(&mut self, conn: &Connection<'_>) {
        conn.send_shared(self.0.clone());
        conn.finish();
    }

    fn on_message(&mut self, _: &Connection<'_>, _: &mut Buffer) {}
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn peer(last: u8) -> Option<IpAddr> {
        Some([127, 0, 0, last].into())
    }

    fn bounds(total: usize, per_peer: usize) -> Admission {
        Admission::new(Bounds { total, per_peer, message: None })
    }

    fn host(ip: &str) -> Option<IpAddr> {
        Some(ip.parse().unwrap())
    }

    /// Whoever makes up addresses must find neither more room nor memory that is never freed.
    #[test]
    fn a_peer_is_an_ipv4_address_or_an_ipv6_network_while_it_has_connections() {
        let admission = bounds(usize::MAX, 1);
        for (first, other, is_the_same) in [
            ("127.0.0.1", "::ffff:127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("2001:db8::1", "2001:db8::ffff:0:0:1", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
        ] {
            admission.enter(host(first)).unwrap();
            let outcome = admission.enter(host(other));
            assert_eq!(outcome.is_err(), is_the_same, "{first} and {other}");
            admission.leave(host(first));
            if outcome.is_ok() {
                admission.leave(host(other));
            }
            assert!(admission.lock_peers().is_empty(), "{first} and {other} are remembered");
        }
        // Those on a Unix socket have no address, and are not counted.
        assert_eq!([admission.enter(None), admission.enter(None)], [Ok(()), Ok(())]);
    }

    /// Whoever is refused has not been in anybody's way.
    #[test]
    fn the_refused_take_no_place_for_a_moment() {
        let admission = bounds(2, 1);
        let (greedy, modest) = (peer(2), peer(3));
        admission.enter(greedy).unwrap();
        thread::scope(|scope| {
            let flood = scope.spawn(|| {
                for _ in 0..100_000 {
                    assert_eq!(admission.enter(greedy), Err(Refusal::MaxPerPeer));
                }
            });
            while !flood.is_finished() {
                assert_eq!(admission.enter(modest), Ok(()));
                admission.leave(modest);
            }
        });
        assert_eq!(admission.open(), 1);
    }

    /// Of those who race for a place that comes free, one gets it.
    #[test]
    fn a_free_place_is_given_to_one_of_those_who_want_it() {
        const ROUNDS: usize = 20_000;
        let admission = bounds(1, usize::MAX);
        admission.enter(peer(2)).unwrap();
        let arrived = AtomicUsize::new(0);
        // Both go on within nanoseconds, if there are two processors.
        let meet = |n: usize| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 * n {
                thread::yield_now();
            }
        };
        thread::scope(|scope| {
            let other = scope.spawn(|| {
                let want = |round| {
                    meet(round);
                    admission.enter(peer(3)).is_ok()
                };
                (1..=ROUNDS).map(want).collect::<Vec<_>>()
            });
            let give_and_want = |round| {
                meet(round);
                admission.leave(peer(2));
                admission.enter(peer(2)).is_ok()
            };
            let this: Vec<_> = (1..=ROUNDS).map(give_and_want).collect();
            for (this, other) in this.into_iter().zip(other.join().unwrap()) {
                assert!(this != other, "the place was given to both, or to none");
            }
        });
    }
}
