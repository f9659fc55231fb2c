//! A model of kqueue(2) on Linux, for tests: the same calls, and what the manual pages of the BSDs
//! and macOS say of them. It exists only with `--cfg kqueue_model`, never in a release.
//!
//! ```text
//!   backend (poller/kqueue.rs) ──▶ sys/kqueue.rs ──▶ the kernel of a BSD
//!                                        └─────────▶ this file ──▶ knotes.rs ──▶ epoll, poll, ioctl
//! ```
//!
//! A kqueue is an epoll instance, by whose number it is known; here are the calls, and the table of
//! the numbers. [`knotes`] has the filters.
//!
//! Where it is not a BSD: of an error that is pending it says ECONNRESET whatever it is, for Linux
//! shows no error without taking it away; files, which a BSD can watch, are EPERM; of the filters it
//! has those for reading, writing and user events; and it is slow.

mod knotes;
#[cfg(test)]
mod tests;

use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, Once, PoisonError};
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use libc::{c_int, c_void, timespec};
use nix::errno::Errno;

use self::knotes::Knotes;
use super::{check, poll};

/// As FreeBSD has it, without its `ext`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct kevent {
    pub(crate) ident: usize,
    pub(crate) filter: i16,
    pub(crate) flags: u16,
    pub(crate) fflags: u32,
    pub(crate) data: i64,
    pub(crate) udata: *mut c_void,
}

pub(crate) const EVFILT_READ: i16 = -1;
pub(crate) const EVFILT_WRITE: i16 = -2;
pub(crate) const EVFILT_USER: i16 = -11;
pub(crate) const EV_ADD: u16 = 0x1;
pub(crate) const EV_DELETE: u16 = 0x2;
pub(crate) const EV_ENABLE: u16 = 0x4;
pub(crate) const EV_DISABLE: u16 = 0x8;
pub(crate) const EV_ONESHOT: u16 = 0x10;
pub(crate) const EV_CLEAR: u16 = 0x20;
pub(crate) const EV_RECEIPT: u16 = 0x40;
pub(crate) const EV_DISPATCH: u16 = 0x80;
pub(crate) const EV_ERROR: u16 = 0x4000;
pub(crate) const EV_EOF: u16 = 0x8000;
pub(crate) const NOTE_LOWAT: u32 = 1;
pub(crate) const NOTE_TRIGGER: u32 = 0x0100_0000;

/// A new kqueue, as yet without FD_CLOEXEC.
///
/// # Safety
/// None; the kernel's call is unsafe too.
pub(crate) unsafe fn kqueue() -> c_int {
    returned(make())
}

/// # Safety
/// `changes` is valid for reading `nchanges` entries, `events` for writing `nevents`; `timeout` is
/// null or valid.
pub(crate) unsafe fn kevent(
    kq: c_int,
    changes: *const kevent,
    nchanges: c_int,
    events: *mut kevent,
    nevents: c_int,
    timeout: *const timespec,
) -> c_int {
    let Some(instance) = NUMBERS.with(|numbers| numbers.get(&kq).cloned()) else {
        return returned(Err(Errno::EBADF.into()));
    };
    let changes = (0..nchanges as usize).map(|place| {
        // SAFETY: the caller says that there are so many.
        unsafe { changes.add(place).read() }
    });
    // SAFETY: null or valid, the caller says.
    let timeout = unsafe { timeout.as_ref() };
    let room = nevents as usize;
    let told = instance.apply(kq, changes, room).and_then(|told| {
        // What is told of changes is all that is told then. And who wants no events takes away no
        // sign of a change from who waits on another thread.
        if told.is_empty() && room > 0 { instance.wait(kq, room, timeout) } else { Ok(told) }
    });
    returned(told.map(|told| {
        for (place, event) in told.iter().enumerate() {
            // SAFETY: no more were collected than there is room for, the caller says.
            unsafe { events.add(place).write(*event) };
        }
        told.len() as c_int
    }))
}

/// A second number for a kqueue, which is not handed on to another program.
///
/// # Safety
/// None; the kernel's call is unsafe too.
pub(crate) unsafe fn duplicate(kq: c_int) -> c_int {
    let Some(instance) = NUMBERS.with(|numbers| numbers.get(&kq).cloned()) else {
        return returned(Err(Errno::EBADF.into()));
    };
    // SAFETY: fcntl takes no pointers here.
    let number = check(unsafe { libc::fcntl(kq, libc::F_DUPFD_CLOEXEC, 0) });
    returned(number.inspect(|number| drop(NUMBERS.with(|all| all.insert(*number, instance)))))
}

/// # Safety
/// Whoever closes a descriptor owns it.
pub(crate) unsafe fn close(fd: c_int) -> c_int {
    drop(NUMBERS.with(|numbers| numbers.remove(&fd)));
    // SAFETY: the caller owns it.
    unsafe { libc::close(fd) }
}

/// Whether it is to be as a kernel from before EVFILT_USER, which a test can ask for by the variable
/// `RUDUO_KQUEUE_MODEL`.
fn is_old() -> bool {
    static IS_OLD: LazyLock<bool> =
        LazyLock::new(|| std::env::var("RUDUO_KQUEUE_MODEL").is_ok_and(|wish| wish == "old"));
    *IS_OLD
}

fn is_kqueue(fd: RawFd) -> bool {
    NUMBERS.with(|numbers| numbers.contains_key(&fd))
}

fn returned(outcome: io::Result<c_int>) -> c_int {
    outcome.unwrap_or_else(|e| {
        Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)).set();
        -1
    })
}

fn make() -> io::Result<c_int> {
    static FORKS: Once = Once::new();
    FORKS.call_once(|| {
        // SAFETY: the handlers lock and unlock the table of numbers, so that it is whole in the
        // child, and take it apart there.
        let watched = unsafe { libc::pthread_atfork(Some(lock), Some(unlock), Some(in_child)) };
        assert_eq!(watched, 0);
    });
    // SAFETY: it takes no pointers.
    let number = check(unsafe { libc::epoll_create1(0) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let number = unsafe { OwnedFd::from_raw_fd(number) };
    let instance = Arc::new(Instance { knotes: Mutex::new(Knotes::new()?) });
    let number = number.into_raw_fd();
    NUMBERS.with(|numbers| numbers.insert(number, instance));
    Ok(number)
}

struct Instance {
    knotes: Mutex<Knotes>,
}

impl Instance {
    fn apply(
        &self,
        kq: RawFd,
        changes: impl Iterator<Item = kevent>,
        room: usize,
    ) -> io::Result<Vec<kevent>> {
        let mut told = Vec::new();
        for change in changes {
            let outcome = self.knotes().apply(kq, &change);
            let receipt = change.flags & EV_RECEIPT != 0;
            match outcome {
                Ok(()) if !receipt => {}
                Err(e) if told.len() == room => return Err(e),
                Ok(()) if told.len() == room => {}
                outcome => {
                    let errno = outcome.err().and_then(|e| e.raw_os_error()).unwrap_or(0);
                    told.push(kevent {
                        flags: change.flags | EV_ERROR,
                        data: errno.into(),
                        ..change
                    });
                }
            }
        }
        Ok(told)
    }

    fn wait(&self, kq: RawFd, room: usize, timeout: Option<&timespec>) -> io::Result<Vec<kevent>> {
        let timeout = timeout
            .map(|time| match (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec)) {
                (Ok(seconds), Ok(nanos @ ..1_000_000_000)) => Ok(Duration::new(seconds, nanos)),
                _ => Err(Errno::EINVAL),
            })
            .transpose()?;
        let start = Instant::now();
        loop {
            let (told, mut watched) = {
                let mut knotes = self.knotes();
                (knotes.scan(kq, room)?, knotes.watched(kq))
            };
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            if !told.is_empty() || left == Some(Duration::ZERO) {
                return Ok(told);
            }
            poll::wait(&mut watched, left)?;
        }
    }

    fn knotes(&self) -> impl std::ops::DerefMut<Target = Knotes> + '_ {
        self.knotes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kqueues of this process. A lock of our own, for a fork must find it free or its own.
struct Numbers {
    locked: AtomicBool,
    table: UnsafeCell<BTreeMap<RawFd, Arc<Instance>>>,
}

// SAFETY: the table is reached only by who holds the lock.
unsafe impl Sync for Numbers {}

static NUMBERS: Numbers =
    Numbers { locked: AtomicBool::new(false), table: UnsafeCell::new(BTreeMap::new()) };

impl Numbers {
    fn with<R>(&self, f: impl FnOnce(&mut BTreeMap<RawFd, Arc<Instance>>) -> R) -> R {
        lock();
        // SAFETY: we hold the lock.
        let result = f(unsafe { &mut *self.table.get() });
        unlock();
        result
    }
}

extern "C" fn lock() {
    while NUMBERS.locked.swap(true, Ordering::Acquire) {
        thread::yield_now();
    }
}

extern "C" fn unlock() {
    NUMBERS.locked.store(false, Ordering::Release);
}

/// "The queue is not inherited by a child created with fork(2)."
extern "C" fn in_child() {
    // SAFETY: the fork was made with the lock held, and there is no other thread here.
    let table = mem::take(unsafe { &mut *NUMBERS.table.get() });
    for number in table.keys() {
        // SAFETY: it is a kqueue's; its owners know that it is not inherited.
        unsafe { libc::close(*number) };
    }
    drop(table);
    unlock();
}
