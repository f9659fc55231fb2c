//! Which side of a fork(2) we are on.
//!
//! A forked child shares its parent's epoll instance: a loop that went on in the child would
//! change what the parent waits for. So a loop remembers the fork generation it was made in and
//! refuses to work in a later one. A handler set by `pthread_atfork` counts, so a turn costs no
//! system call; asking `getpid` would be one each time.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

static GENERATION: AtomicU32 = AtomicU32::new(0);

/// How many forks lie between this process and the one in which this was first called, which begins
/// the count.
///
/// Children made by a bare `clone` or `vfork` system call are not counted: POSIX allows them
/// nothing but `exec`.
pub(crate) fn generation() -> u32 {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        // SAFETY: the handler only changes atomics, which is allowed in a forked child. A
        // failure (ENOMEM) leaves forks uncounted, as they would be without this file.
        let _ = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
    GENERATION.load(Ordering::Relaxed)
}

/// The same for callers who know that the count has begun: a single load.
pub(crate) fn current_generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

extern "C" fn in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    super::signal::forget_parent();
}
