//! What datagram sockets count.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError, Weak};

use ruduo_reactor::sys::datagram_options;

use crate::metrics::read;

/// What the sockets of a [`UdpHandle`](crate::UdpHandle) have done so far, on all their loops: from
/// [`UdpHandle::metrics`](crate::UdpHandle::metrics). Prints as one line, `open=1 received=12 ...`,
/// as log collectors read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UdpMetrics {
    /// Sockets open now.
    pub open: usize,
    /// Datagrams received.
    pub received: u64,
    /// Bytes in them, as far as there was room.
    pub received_bytes: u64,
    /// Those among them that did not fit into the room for one.
    pub truncated: u64,
    /// Datagrams handed to the kernel.
    pub sent: u64,
    /// Bytes in them.
    pub sent_bytes: u64,
    /// Datagrams dropped because the queue had no room for them.
    pub dropped_newest: u64,
    /// Datagrams dropped from the queue to make room for later ones.
    pub dropped_oldest: u64,
    /// Datagrams that were queued or sent when their socket ended, and dropped.
    pub discarded: u64,
    /// Datagrams that the kernel did not take.
    pub send_errors: u64,
    /// Errors while receiving, and those of earlier sending that the network has told of later.
    pub receive_errors: u64,
    /// Times that receiving paused because the queue was full
    /// ([`WhenFull::PauseReading`](crate::WhenFull)).
    pub paused_by_output: u64,
    /// Datagrams that came and that the kernel dropped, above all because the socket's receive buffer
    /// was full: more came than was received. A larger
    /// [`kernel_receive_buffer`](crate::UdpBuilder::kernel_receive_buffer) helps against bursts,
    /// [`threads`](crate::UdpBuilder::threads) against more. `None` where the system does not tell;
    /// Linux does, in 32 bits for each socket: after 4,294,967,295 comes 0.
    pub dropped_by_kernel: Option<u64>,
}

/// What one socket counts. Only its loop adds to it.
#[derive(Debug, Default)]
pub(super) struct Counters {
    kernel: Mutex<Kernel>,
    pub(super) received: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) truncated: AtomicU64,
    pub(super) sent: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) dropped_newest: AtomicU64,
    pub(super) dropped_oldest: AtomicU64,
    pub(super) discarded: AtomicU64,
    pub(super) send_errors: AtomicU64,
    pub(super) receive_errors: AtomicU64,
    pub(super) paused_by_output: AtomicU64,
}

/// Who knows what the kernel has dropped.
#[derive(Debug)]
enum Kernel {
    /// It is asked when somebody wants to know, so that receiving costs nothing more.
    Knows(Weak<OwnedFd>),
    /// It has been asked for the last time.
    HasSaid(Option<u32>),
}

impl Default for Kernel {
    fn default() -> Kernel {
        Kernel::HasSaid(None)
    }
}

impl Kernel {
    fn dropped(&self) -> Option<u32> {
        match self {
            Kernel::Knows(socket) => datagram_options::dropped(socket.upgrade()?.as_fd()),
            Kernel::HasSaid(dropped) => *dropped,
        }
    }
}

impl Counters {
    pub(super) fn of(socket: Weak<OwnedFd>) -> Counters {
        Counters { kernel: Mutex::new(Kernel::Knows(socket)), ..Counters::default() }
    }

    /// The socket ends. From here on only its owner has it, so that it is closed when that says so.
    pub(super) fn close(&self) {
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        *kernel = Kernel::HasSaid(kernel.dropped());
    }

    pub(super) fn add_to(&self, sum: &mut UdpMetrics) {
        sum.received += read(&self.received);
        sum.received_bytes += read(&self.received_bytes);
        sum.truncated += read(&self.truncated);
        sum.sent += read(&self.sent);
        sum.sent_bytes += read(&self.sent_bytes);
        sum.dropped_newest += read(&self.dropped_newest);
        sum.dropped_oldest += read(&self.dropped_oldest);
        sum.discarded += read(&self.discarded);
        sum.send_errors += read(&self.send_errors);
        sum.receive_errors += read(&self.receive_errors);
        sum.paused_by_output += read(&self.paused_by_output);
        let kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dropped) = kernel.dropped() {
            *sum.dropped_by_kernel.get_or_insert(0) += u64::from(dropped);
        }
    }
}

impl fmt::Display for UdpMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "open={} received={}", self.open, self.received)?;
        write!(f, " received_bytes={} truncated={}", self.received_bytes, self.truncated)?;
        write!(f, " sent={} sent_bytes={}", self.sent, self.sent_bytes)?;
        write!(f, " dropped_newest={}", self.dropped_newest)?;
        write!(f, " dropped_oldest={} discarded={}", self.dropped_oldest, self.discarded)?;
        write!(f, " send_errors={}", self.send_errors)?;
        write!(f, " receive_errors={}", self.receive_errors)?;
        write!(f, " paused_by_output={}", self.paused_by_output)?;
        match self.dropped_by_kernel {
            Some(dropped) => write!(f, " dropped_by_kernel={dropped}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who collects these lines finds each figure under its own name.
    #[test]
    fn a_line_has_each_figure_by_its_name() {
        let metrics = UdpMetrics {
            open: 1,
            received: 2,
            received_bytes: 3,
            truncated: 4,
            sent: 5,
            sent_bytes: 6,
            dropped_newest: 7,
            dropped_oldest: 8,
            discarded: 9,
            send_errors: 10,
            receive_errors: 11,
            paused_by_output: 12,
            dropped_by_kernel: None,
        };
        let line = "open=1 received=2 received_bytes=3 truncated=4 sent=5 sent_bytes=6 \
                    dropped_newest=7 dropped_oldest=8 discarded=9 send_errors=10 \
                    receive_errors=11 paused_by_output=12";
        assert_eq!(metrics.to_string(), line);
        let metrics = UdpMetrics { dropped_by_kernel: Some(13), ..metrics };
        assert_eq!(metrics.to_string(), format!("{line} dropped_by_kernel=13"));
    }
}
