//! What lives on one loop and is named by a number elsewhere: on other threads, in timers and tasks.

use std::cell::RefCell;
use std::collections::BTreeMap;
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
