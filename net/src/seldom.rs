//! Lines of the log about what may happen with every connection while it lasts.

use std::cell::Cell;
use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(10);

/// Lets the first line pass, and then one in ten seconds.
#[derive(Default)]
pub(crate) struct Seldom {
    last: Cell<Option<Instant>>,
}

impl Seldom {
    /// Whether a line may be written now. Then it has to be.
    pub(crate) fn is_due(&self) -> bool {
        let now = Instant::now();
        let due = self.last.get().is_none_or(|last| now - last >= INTERVAL);
        if due {
            self.last.set(Some(now));
        }
        due
    }
}
