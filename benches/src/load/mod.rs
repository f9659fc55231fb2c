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
pub(crate) struct Meter {
    pub(crate) began: Instant,
    latency: Histogram<u64>,
}

impl Meter {
    pub(crate) fn new() -> io::Result<Meter> {
        let latency = Histogram::new_with_max(60_000_000_000, 3).map_err(io::Error::other)?;
        Ok(Meter { began: Instant::now(), latency })
    }

    pub(crate) fn answered(&mut self, took: Duration) {
        self.latency.saturating_record(took.as_nanos() as u64);
    }

    pub(crate) fn end(self) -> Outcome {
        Outcome { count: self.latency.len(), time: self.began.elapsed(), latency: self.latency }
    }
}

/// What a client does until there are events.
#[derive(Clone, Copy)]
pub(crate) enum Wait {
    /// Sleeps, as most do.
    Asleep,
    /// Looks again at once, so that nothing of an answer's time is its own waking up.
    Spinning,
}

impl Wait {
    /// Waits for events; a server that gives none for long has failed.
    fn events(self, poll: &Epoll, events: &mut [EpollEvent]) -> io::Result<usize> {
        let timeout = match self {
            Wait::Asleep => EpollTimeout::try_from(lockstep::PATIENCE).map_err(io::Error::other)?,
            Wait::Spinning => EpollTimeout::ZERO,
        };
        let began = Instant::now();
        loop {
            match poll.wait(events, timeout) {
                Ok(0) if began.elapsed() >= lockstep::PATIENCE => {
                    let what = "the server does not answer";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
                Ok(0) | Err(Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }
}
