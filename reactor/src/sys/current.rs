//! The loop that runs on this thread, for code that was not handed it.
//!
//! A [`LoopHandle`](crate::LoopHandle) can be used from any thread; on the loop's own thread it
//! may act at once instead of posting. The loop is a plain value that the user owns and may have
//! moved before `run`, so only its address during `run` can be kept, and only for that long.

use std::cell::Cell;
use std::ptr;

use crate::EventLoop;

thread_local! {
    static CURRENT: Cell<*const EventLoop> = const { Cell::new(ptr::null()) };
}

/// Makes `event_loop` the current one of this thread while `f` runs.
pub(crate) fn enter<R>(event_loop: &EventLoop, f: impl FnOnce() -> R) -> R {
    struct Leave(*const EventLoop);
    impl Drop for Leave {
        fn drop(&mut self) {
            CURRENT.set(self.0);
        }
    }
    let _leave = Leave(CURRENT.replace(event_loop));
    f()
}

/// Calls `f` with the current loop of this thread, if there is one.
pub(crate) fn with<R>(f: impl FnOnce(Option<&EventLoop>) -> R) -> R {
    // SAFETY: a non-null pointer was made from a reference in `enter`, which is further up this
    // very stack: it resets the pointer before that reference ends, also when unwinding.
    f(unsafe { CURRENT.get().as_ref() })
}
