//! Step 2: what is queued leaves.

use std::os::fd::AsFd;

use nix::errno::Errno;
use ruduo_reactor::sys::datagram::{MAX_PIECES, Name, Piece, SendFailed};

use super::Endpoint;
use crate::metrics;
use crate::udp::WhenFull;
use crate::udp::callbacks::UdpHandler;
use crate::udp::core::{Retry, WaitsFor};
use crate::udp::datagram::{DatagramError, Operation};

/// How a flush has ended.
pub(super) enum Flushed {
    /// All of it has left, or has to wait.
    Done,
    /// There is more.
    More,
    /// It goes on after the program has heard of this.
    Failed(DatagramError),
}

impl<H: UdpHandler> Endpoint<H> {
    /// One call. There is nothing to do if nothing waits, or all of it has to.
    pub(super) fn flush(&self, calls: &mut usize) -> Flushed {
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
    pub(super) fn watch_the_limit(&self) {
        let core = &self.core;
        if core.settings.when_full != WhenFull::PauseReading {
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
