//! A function that is called once, kept by value.
//!
//! A `Box<dyn FnOnce>` is allocated on the thread that posts and freed on the loop's, where both
//! meet in the allocator's lock. Most closures capture a handle and a number or two, so that much
//! room is in the task itself, and only a larger one is put in a box. Tasks are copied from queue to
//! queue, so more room would make all of them slower.

use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit, needs_drop};

use crate::EventLoop;

/// With the table beside it, half a cache line.
type Room = MaybeUninit<[usize; 3]>;

/// What a loop calls once.
pub(crate) struct Task {
    captured: Room,
    table: &'static Table,
    /// What is captured may belong to this thread.
    _thread: PhantomData<*const ()>,
}

/// What can be done with the closure that was captured; its type is known only to these two.
struct Table {
    /// Both take a pointer to a closure of their own type, and leave nothing in its place.
    call: unsafe fn(*mut Room, &EventLoop),
    /// `None` if there is nothing to do.
    drop: Option<unsafe fn(*mut Room)>,
}

impl Task {
    pub(crate) fn new<F: FnOnce(&EventLoop) + 'static>(f: F) -> Task {
        if size_of::<F>() <= size_of::<Room>() && align_of::<F>() <= align_of::<Room>() {
            Task::captured(f)
        } else {
            let boxed: Box<dyn FnOnce(&EventLoop)> = Box::new(f);
            Task::captured(boxed)
        }
    }

    fn captured<F: FnOnce(&EventLoop) + 'static>(f: F) -> Task {
        assert!(size_of::<F>() <= size_of::<Room>() && align_of::<F>() <= align_of::<Room>());
        let mut captured = Room::uninit();
        // SAFETY: the room is this function's own, and large and aligned enough, as just asserted.
        unsafe { captured.as_mut_ptr().cast::<F>().write(f) };
        let table = const {
            let drop: Option<unsafe fn(*mut Room)> =
                if needs_drop::<F>() { Some(drop_in_place::<F>) } else { None };
            &Table { call: call::<F>, drop }
        };
        Task { captured, table, _thread: PhantomData }
    }

    /// Whether dropping it runs code, a user's perhaps.
    pub(crate) fn needs_drop(&self) -> bool {
        self.table.drop.is_some()
    }

    pub(crate) fn run(self, event_loop: &EventLoop) {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `captured` holds a closure of the type that `table` was made for, since nobody
        // but `new` writes either, and `ManuallyDrop` keeps it from being dropped again.
        unsafe { (this.table.call)(&raw mut this.captured, event_loop) }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(drop) = self.table.drop {
            // SAFETY: as in `run`: it has not been called, for that forgets the task.
            unsafe { drop(&raw mut self.captured) }
        }
    }
}

/// # Safety
/// `room` points to an `F`, which is gone after it.
unsafe fn call<F: FnOnce(&EventLoop)>(room: *mut Room, event_loop: &EventLoop) {
    // SAFETY: as the caller promises.
    let f = unsafe { room.cast::<F>().read() };
    f(event_loop);
}

/// # Safety
/// `room` points to an `F`, which is gone after it.
unsafe fn drop_in_place<F>(room: *mut Room) {
    // SAFETY: as the caller promises.
    unsafe { room.cast::<F>().drop_in_place() }
}

/// A task that came, or may come, from another thread.
pub(crate) struct SendTask(Task);

// SAFETY: `new` takes only closures that are `Send`, and a task is nothing else.
unsafe impl Send for SendTask {}

impl SendTask {
    pub(crate) fn new(f: impl FnOnce(&EventLoop) + Send + 'static) -> SendTask {
        SendTask(Task::new(f))
    }

    pub(crate) fn into_task(self) -> Task {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::io;
    use std::rc::Rc;

    /// Calls one task that captures `more`, and drops another; both have to let go of what they
    /// captured.
    fn called_and_dropped<T: Copy + PartialEq + 'static>(more: T) -> io::Result<()> {
        let event_loop = EventLoop::new()?;
        let told = Rc::new(Cell::new(None));
        let make = || {
            let told = told.clone();
            Task::new(move |_| {
                assert!((&raw const more).is_aligned());
                told.set(Some(more));
            })
        };
        drop(make());
        assert!(told.get().is_none());
        make().run(&event_loop);
        assert!(told.get() == Some(more));
        assert_eq!(Rc::strong_count(&told), 1);
        Ok(())
    }

    #[derive(Clone, Copy, PartialEq)]
    #[repr(align(64))]
    struct Aligned(u8);

    #[test]
    fn small_and_large_closures_run_once_or_are_dropped_once() -> io::Result<()> {
        called_and_dropped(())?;
        called_and_dropped([7usize; 2])?;
        called_and_dropped([7usize; 3])?;
        called_and_dropped([7u8; 4096])?;
        called_and_dropped(Aligned(7))
    }

    #[test]
    fn what_a_task_captured_is_dropped_when_it_panics() -> io::Result<()> {
        let event_loop = EventLoop::new()?;
        let held = Rc::new(());
        let captured = held.clone();
        let task = Task::new(move |_| {
            let _captured = captured;
            panic!("on purpose");
        });
        let run = std::panic::AssertUnwindSafe(|| task.run(&event_loop));
        assert!(std::panic::catch_unwind(run).is_err());
        assert_eq!(Rc::strong_count(&held), 1);
        Ok(())
    }
}
