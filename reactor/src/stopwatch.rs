//! Finding the callback that keeps a loop from everything else.
//!
//! A loop does one thing at a time, so one callback that blocks, on a disk, a lock, a name server,
//! delays every connection of its thread. The stopwatch reads the clock between one callback and
//! the next: the time of each is a lap. A loop that need not find slow callbacks has no stopwatch,
//! and pays nothing.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

/// One line each second at most: who blocks once is likely to block often.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct Stopwatch {
    threshold: Duration,
    /// When the callback that runs now began.
    since: Cell<Instant>,
    longest: Cell<Longest>,
    slow_callbacks: Cell<u64>,
    last_line: Cell<Option<Instant>>,
    /// Callbacks that were too slow and got no line of their own.
    unreported: Cell<u64>,
}

/// When a callback that runs inside another one began, and when the other one did.
pub(crate) struct Inner {
    began: Instant,
    outer: Instant,
}

impl Stopwatch {
    /// `None` if no callback is ever slow enough.
    pub(crate) fn new(threshold: Duration) -> Option<Stopwatch> {
        (threshold < Duration::MAX).then(|| Stopwatch {
            threshold,
            since: Cell::new(Instant::now()),
            longest: Cell::new(Longest::new(Instant::now())),
            slow_callbacks: Cell::default(),
            last_line: Cell::default(),
            unreported: Cell::default(),
        })
    }

    // Cold, here and below: a loop without a stopwatch should not make room for this code.

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
        self.longest.set(self.longest.get().at(now).with(took));
        if took >= self.threshold {
            self.slow_callbacks.set(self.slow_callbacks.get() + 1);
            self.report(what, took, now);
        }
    }

    /// A callback inside another one has returned. The time that it took does not count for the other
    /// one.
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

    /// How many callbacks took longer than they should have.
    pub(crate) fn slow_callbacks(&self) -> u64 {
        self.slow_callbacks.get()
    }

    /// The longest time that one took lately.
    pub(crate) fn longest(&self) -> Duration {
        self.longest.get().at(Instant::now()).longest()
    }
}

/// The longest time in a window that is not yet over, and in the one before. So whoever asks,
/// however often, hears of a slow callback for at least as long as a window.
#[derive(Clone, Copy)]
struct Longest {
    since: Instant,
    in_this: Duration,
    in_last: Duration,
}

const WINDOW: Duration = Duration::from_secs(10);

impl Longest {
    fn new(since: Instant) -> Longest {
        Longest { since, in_this: Duration::ZERO, in_last: Duration::ZERO }
    }

    /// The same, seen at a later time.
    fn at(self, now: Instant) -> Longest {
        let passed = now.saturating_duration_since(self.since);
        if passed < WINDOW {
            self
        } else if passed < 2 * WINDOW {
            let since = self.since + WINDOW;
            Longest { since, in_this: Duration::ZERO, in_last: self.in_this }
        } else {
            Longest::new(now)
        }
    }

    fn with(self, took: Duration) -> Longest {
        Longest { in_this: self.in_this.max(took), ..self }
    }

    fn longest(self) -> Duration {
        self.in_this.max(self.in_last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_is_remembered_for_one_window_and_forgotten_after_two() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let seen = Longest::new(start).with(ms(7)).with(ms(3));
        assert_eq!(seen.longest(), ms(7));
        let later = seen.at(start + WINDOW + ms(1));
        assert_eq!(later.longest(), ms(7));
        assert_eq!(later.with(ms(2)).at(start + 2 * WINDOW).longest(), ms(2));
        assert_eq!(later.at(start + 2 * WINDOW).longest(), Duration::ZERO);
        assert_eq!(seen.at(start + 3 * WINDOW).longest(), Duration::ZERO);
    }
}
