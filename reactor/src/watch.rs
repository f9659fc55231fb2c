//! Finding the callback that keeps a loop from everything else.
//!
//! A loop does one thing at a time, so one callback that blocks, on a disk, a lock, a name server,
//! delays every connection of its thread. The watch reads the clock between one callback and the
//! next; the loop asks it only if it is switched on, and pays nothing otherwise.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

/// One line each second at most: who blocks once is likely to block often.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct Watch {
    threshold: Duration,
    /// When the callback that runs now began.
    since: Cell<Instant>,
    longest: Cell<Duration>,
    last_line: Cell<Option<Instant>>,
    /// Callbacks that were too slow and got no line.
    unreported: Cell<u64>,
}

/// When a callback inside another one began, and the other one.
pub(crate) struct Inner {
    began: Instant,
    outer: Instant,
}

impl Watch {
    /// `None` if no callback is ever slow enough.
    pub(crate) fn new(threshold: Duration) -> Option<Watch> {
        (threshold < Duration::MAX).then(|| Watch {
            threshold,
            since: Cell::new(Instant::now()),
            longest: Cell::default(),
            last_line: Cell::default(),
            unreported: Cell::default(),
        })
    }

    // Cold, here and below: a loop that is not watched should not make room for this.

    /// A callback begins after a wait.
    #[cold]
    #[inline(never)]
    pub(crate) fn begin(&self) {
        self.since.set(Instant::now());
    }

    /// A callback begins inside another one.
    pub(crate) fn begin_inner(&self) -> Inner {
        let began = Instant::now();
        Inner { began, outer: self.since.replace(began) }
    }

    /// A callback has returned, and the next one begins.
    #[cold]
    #[inline(never)]
    pub(crate) fn lap(&self, what: impl FnOnce() -> String) {
        let now = Instant::now();
        let took = now.duration_since(self.since.replace(now));
        if took > self.longest.get() {
            self.longest.set(took);
        }
        if took >= self.threshold {
            self.report(what, took, now);
        }
    }

    /// A callback inside another one has returned. Its time, and that of others inside it, is not
    /// the other one's.
    pub(crate) fn end_inner(&self, inner: Inner, what: impl FnOnce() -> String) {
        self.lap(what);
        self.since.set(inner.outer + (self.since.get() - inner.began));
    }

    #[cold]
    fn report(&self, what: impl FnOnce() -> String, took: Duration, now: Instant) {
        let recently = self.last_line.get().is_some_and(|last| now - last < LINE_INTERVAL);
        if recently {
            self.unreported.set(self.unreported.get() + 1);
            return;
        }
        self.last_line.set(Some(now));
        let (what, thread) = (what(), thread::current());
        let name = thread.name().unwrap_or("without a name");
        let ms = took.as_millis();
        match self.unreported.take() {
            0 => log::warn!("{what} kept the loop of thread {name} from all else for {ms} ms"),
            more => log::warn!(
                "{what} kept the loop of thread {name} from all else for {ms} ms; \
                 {more} more were as slow since the last such line"
            ),
        }
    }

    /// The longest time since this was last asked.
    pub(crate) fn take_longest(&self) -> Duration {
        self.longest.take()
    }
}
