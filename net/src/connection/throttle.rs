//! Pausing those who send faster than a connection's peer takes it.
//!
//! ```text
//!   source ──reads──▶ program ──sends──▶ on its way to ──▶ output ──▶ the peer
//!                                        another loop
//!     ▲                                       │               │
//!     └── paused while more than the low mark ┘               │
//!     └── paused from the high mark on until the low one ─────┘
//! ```
//!
//! Each of the two is one pause, which counts with those that the program may have made itself.
//! What was paused is resumed, neither more nor less: sources that join meanwhile are paused too,
//! and at the connection's end all of them go on.

use std::sync::{Arc, Mutex, PoisonError};

use ruduo_reactor::EventLoop;

use super::core::Core;
use super::handle::ConnectionHandle;
use super::state::Crossed;
use crate::posted;

/// What handles and their connection have in common.
pub(super) type Posted = posted::Posted<Throttle>;

/// Who is to be paused for a connection, and when.
#[derive(Debug)]
pub(super) struct Throttle {
    /// If more than this is on its way, in bytes, those who send it are paused.
    mark: usize,
    sources: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    all: Vec<ConnectionHandle>,
    /// Present while the output is above its mark.
    above: Option<Held>,
    /// Too much is on its way, and those who send it have been paused until it has arrived.
    is_flooded: bool,
}

/// Sources that have been paused, until this is dropped.
#[derive(Debug)]
struct Held(Vec<ConnectionHandle>);

impl Held {
    /// Under the lock, so that no resume comes before its pause: neither takes a lock of ours, nor
    /// calls the program.
    fn hold(sources: &[ConnectionHandle]) {
        for source in sources {
            // An error says that it is over.
            let _ = source.pause_reading();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for source in &self.0 {
            let _ = source.resume_reading();
        }
    }
}

impl Throttle {
    pub(super) fn new(mark: usize, is_above: bool) -> Throttle {
        let above = is_above.then(|| Held(Vec::new()));
        Throttle { mark, sources: Mutex::new(Known { above, ..Known::default() }) }
    }

    fn with<R>(&self, f: impl FnOnce(&mut Known) -> R) -> R {
        f(&mut self.sources.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Posted {
    /// One more source. Not if the connection is over: nobody would resume it.
    fn add_source(&self, source: &ConnectionHandle) {
        self.shared.with(|known| {
            if self.is_closed() {
                return;
            }
            known.all.retain(|source| !source.is_closed());
            known.all.push(source.clone());
            if let Some(Held(held)) = &mut known.above {
                Held::hold(std::slice::from_ref(source));
                held.push(source.clone());
            }
        });
    }

    /// The output has crossed its high mark.
    fn above(&self) {
        self.shared.with(|known| {
            Held::hold(&known.all);
            known.above = Some(Held(known.all.clone()));
        });
    }

    /// The output has come down to its low mark.
    fn below(&self) {
        let held = self.shared.with(|known| known.above.take());
        drop(held);
    }

    /// The connection is over, and `close` has been called.
    pub(super) fn forget_sources(&self) {
        let known = self.shared.with(std::mem::take);
        drop(known);
    }

    /// Whoever sends is to be paused. `None` if they are, or if there is nobody.
    fn begin_flood(&self) -> Option<Held> {
        self.shared.with(|known| {
            if known.is_flooded || known.all.is_empty() {
                return None;
            }
            known.is_flooded = true;
            Held::hold(&known.all);
            Some(Held(known.all.clone()))
        })
    }
}

impl Core {
    /// The output has crossed a mark.
    pub(super) fn tell_sources(&self, crossed: Crossed) {
        let Some(posted) = self.posted_if_made() else { return };
        match crossed {
            Crossed::High => posted.above(),
            Crossed::Low => posted.below(),
        }
    }
}

impl ConnectionHandle {
    /// Pauses reading on this connection whenever more than the high-water mark waits on `other`
    /// ([`water_marks`](crate::Server::water_marks)), until only the low one does: for programs
    /// that pass on what this one receives. From any thread, whatever loops the two are on. If they
    /// are on two, it pauses also while more than the low mark is on its way from the one to the
    /// other.
    ///
    /// These pauses count with those of the program: reading goes on when all have ended. When
    /// either connection ends, this ends with it, and the other one goes on. It cannot be undone
    /// otherwise.
    ///
    /// ```
    /// # use ruduo_net::{Connection, ConnectionHandle};
    /// /// From now on `conn` sends its input to `other`, and the other way round.
    /// fn join(conn: &Connection, other: &ConnectionHandle) {
    ///     conn.handle().pause_while_above(other);
    ///     other.pause_while_above(&conn.handle());
    /// }
    /// ```
    pub fn pause_while_above(&self, other: &ConnectionHandle) {
        other.posted().add_source(self);
    }

    /// After something has been posted: if much is on its way, the sources pause until it has
    /// arrived. The task that resumes them is posted behind it.
    pub(super) fn hold_back_sources(&self) {
        let posted = self.posted();
        if posted.weight() <= posted.shared.mark {
            return;
        }
        if let Some(held) = posted.begin_flood() {
            let posted: Arc<Posted> = posted.clone();
            let arrived = move |_: &EventLoop| {
                posted.shared.with(|known| known.is_flooded = false);
                drop(held);
            };
            // If the loop has ended, the task is dropped here, and they go on.
            let _ = self.event_loop().post(arrived);
        }
    }
}
