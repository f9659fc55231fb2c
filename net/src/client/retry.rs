//! When a connection that could not be made is tried again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// How long to wait before trying again: exponentially longer, with full jitter.
///
/// Before the n-th attempt after a failure, a time is drawn at random between nothing and
/// `first * 2^(n - 1)`, at most `max`. Without the chance in it, the clients of a server that was
/// restarted would all come back at the same moment, again and again ("Exponential Backoff And
/// Jitter", the AWS Architecture Blog, 2015, compares the ways to draw). A connection that was made
/// sets the count back.
///
/// ```
/// use ruduo_net::Retry;
/// use std::time::Duration;
///
/// let patient = Retry::exponential().between(Duration::from_secs(1), Duration::from_secs(60));
/// let thrice = Retry::exponential().at_most(3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    first: Duration,
    max: Duration,
    /// Attempts after the first that fails.
    times: u32,
}

impl Retry {
    /// Never: one attempt, and when the connection has ended it is not made again.
    #[must_use]
    pub const fn none() -> Retry {
        Retry { first: Duration::ZERO, max: Duration::ZERO, times: 0 }
    }

    /// For ever, from 500 ms to 30 s.
    #[must_use]
    pub const fn exponential() -> Retry {
        Retry { first: Duration::from_millis(500), max: Duration::from_secs(30), times: u32::MAX }
    }

    /// With another shortest and longest bound of the time that is drawn.
    #[must_use]
    pub const fn between(self, first: Duration, max: Duration) -> Retry {
        Retry { first, max, ..self }
    }

    /// Not for ever: so many more attempts after one that failed.
    #[must_use]
    pub const fn at_most(self, times: u32) -> Retry {
        Retry { times, ..self }
    }

    /// How long to wait after `failures` attempts in a row (at least one), or `None` to give up.
    /// `chance` is any number: equal ones draw equal times.
    pub(super) fn delay(&self, failures: u32, chance: u64) -> Option<Duration> {
        (failures <= self.times).then(|| {
            let doubled = 1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
            let bound = self.first.checked_mul(doubled).unwrap_or(self.max).min(self.max);
            // A fraction of 32 bits is finer than any clock here.
            let share = f64::from(chance as u32) / f64::from(u32::MAX);
            // Near the longest duration there is, rounding would go beyond it.
            Duration::try_from_secs_f64(bound.as_secs_f64() * share).unwrap_or(bound)
        })
    }
}

/// A number nobody can guess, and no two threads or processes share: what the standard library keys
/// its hash tables with.
pub(super) fn chance() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Never beyond the bound of this attempt, and the whole range is drawn from.
        #[test]
        fn b61_delays_are_within_bounds_that_double_up_to_the_cap(
            failures in 1u32..80,
            chance: u64,
        ) {
            let retry = Retry::exponential();
            let bound = (0.5 * 2f64.powi(failures as i32 - 1)).min(30.0);
            let delay = retry.delay(failures, chance).unwrap().as_secs_f64();
            prop_assert!(delay <= bound + 1e-6, "{delay} of {bound}");
            prop_assert_eq!(retry.delay(failures, 0), Some(Duration::ZERO));
            let longest = retry.delay(failures, u64::from(u32::MAX)).unwrap().as_secs_f64();
            prop_assert!((longest - bound).abs() < 1e-6, "{longest} of {bound}");
        }
    }

    #[test]
    fn the_longest_bound_is_no_overflow() {
        let retry = Retry::exponential().between(Duration::MAX, Duration::MAX);
        assert_eq!(retry.delay(1, u64::MAX), Some(Duration::MAX));
    }

    #[test]
    fn some_give_up() {
        assert_eq!(Retry::none().delay(1, 7), None);
        let twice = Retry::exponential().at_most(2);
        assert!(twice.delay(2, 7).is_some() && twice.delay(3, 7).is_none());
    }

    #[test]
    fn chance_differs_from_time_to_time() {
        assert!((0..100).any(|_| chance() != chance()));
    }
}
