//! The load: clients on epoll, cheap enough that the server is what is measured. They check what
//! comes back, so that nobody is fast by answering nonsense.

pub(crate) mod churn;
pub(crate) mod lockstep;
pub(crate) mod pingpong;
pub(crate) mod udp;

use std::io;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};

/// What a load has done in its time.
pub(crate) struct Outcome {
    pub(crate) count: u64,
    pub(crate) time: Duration,
    /// Nanoseconds from each request to its answer.
    pub(crate) latency: Histogram<u64>,
}

/// Counts answers and how long they took.
struct Meter {
    began: Instant,
    latency: Histogram<u64>,
}

impl Meter {
    fn new() -> io::Result<Meter> {
        let latency = Histogram::new_with_max(60_000_000_000, 3).map_err(io::Error::other)?;
        Ok(Meter { began: Instant::now(), latency })
    }

    fn answered(&mut self, took: Duration) {
        self.latency.saturating_record(took.as_nanos() as u64);
    }

    fn end(self) -> Outcome {
        Outcome { count: self.latency.len(), time: self.began.elapsed(), latency: self.latency }
    }
}

/// Waits for events; a server that gives none for long has failed.
fn wait(poll: &Epoll, events: &mut [EpollEvent]) -> io::Result<usize> {
    let patience = EpollTimeout::try_from(lockstep::PATIENCE).map_err(io::Error::other)?;
    match poll.wait(events, patience) {
        Ok(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer")),
        Err(Errno::EINTR) => Ok(0),
        other => Ok(other?),
    }
}
