//! What lives on one loop and is named by a number elsewhere: on other threads, in timers and
//! tasks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that nothing else has, or will have.
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A `local` value of the loop, or part of one.
pub(crate) struct ById<T: ?Sized>(RefCell<BTreeMap<u64, Rc<T>>>);

impl<T: ?Sized> Default for ById<T> {
    fn default() -> ById<T> {
        ById(RefCell::default())
    }
}

impl<T: ?Sized> ById<T> {
    pub(crate) fn insert(&self, id: u64, value: Rc<T>) {
        self.0.borrow_mut().insert(id, value);
    }

    pub(crate) fn get(&self, id: u64) -> Option<Rc<T>> {
        self.0.borrow().get(&id).cloned()
    }

    /// The caller drops what it gets when nothing is borrowed.
    pub(crate) fn remove(&self, id: u64) -> Option<Rc<T>> {
        self.0.borrow_mut().remove(&id)
    }
}

/// With the loop, which catches a panic and tells of it. But one panic while another one unwinds
/// would end the process, and these are the values of several users: so each is dropped by itself,
/// and the loop gets the first.
impl<T: ?Sized> Drop for ById<T> {
    fn drop(&mut self) {
        let mut first = None;
        for value in std::mem::take(self.0.get_mut()).into_values() {
            match (catch_unwind(AssertUnwindSafe(|| drop(value))), &first) {
                (Ok(()), _) => {}
                (Err(payload), None) => first = Some(payload),
                // Its Drop may panic in turn.
                (Err(payload), Some(_)) => std::mem::forget(payload),
            }
        }
        if let Some(payload) = first {
            resume_unwind(payload);
        }
    }
}
