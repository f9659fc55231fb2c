//! sigaction(2): a handler that sets a flag and wakes a loop, nothing else.
//!
//! A signal handler may interrupt any thread at any instruction, so it can use only atomics and
//! async-signal-safe calls (signal-safety(7)). Everything that deserves the name "handling" is
//! done by the loop, which the handler wakes by writing to the loop's wake descriptor.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use nix::errno::Errno;

use super::check;

/// One more than the largest signal number of any platform we build for.
const SIGNALS: usize = 129;

struct Slot {
    arrived: AtomicBool,
    /// Where to write; -1 when no loop has asked for this signal.
    wake_fd: AtomicI32,
}

static SLOTS: [Slot; SIGNALS] =
    [const { Slot { arrived: AtomicBool::new(false), wake_fd: AtomicI32::new(-1) } }; SIGNALS];

/// How many threads are inside [`on_signal`] now.
static INSIDE: AtomicUsize = AtomicUsize::new(0);

/// A signal whose arrival wakes a loop. Dropping it brings the previous action back.
pub(crate) struct Installed {
    signal: libc::c_int,
    previous: libc::sigaction,
}

impl Installed {
    /// Takes over `signal` for the loop behind `wake`, a descriptor on which a write of eight
    /// bytes is a wakeup. The caller keeps `wake` open for as long as the value lives.
    pub(crate) fn new(signal: libc::c_int, wake: BorrowedFd<'_>) -> io::Result<Installed> {
        let slot = slot(signal).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("no signal has number {signal}"))
        })?;
        slot.wake_fd
            .compare_exchange(-1, wake.as_raw_fd(), Ordering::SeqCst, Ordering::SeqCst)
            .map_err(|_| {
                io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("signal {signal} is already handled by another loop of this process"),
                )
            })?;
        slot.arrived.store(false, Ordering::SeqCst);
        let previous = set_handler(signal).inspect_err(|_| {
            slot.wake_fd.store(-1, Ordering::SeqCst);
        })?;
        Ok(Installed { signal, previous })
    }

    /// Whether the signal came since the last call.
    pub(crate) fn take(&self) -> bool {
        slot(self.signal).is_some_and(|slot| slot.arrived.swap(false, Ordering::SeqCst))
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        // SAFETY: `previous` was filled by sigaction for this same signal.
        unsafe { libc::sigaction(self.signal, &raw const self.previous, std::ptr::null_mut()) };
        if let Some(slot) = slot(self.signal) {
            slot.wake_fd.store(-1, Ordering::SeqCst);
        }
        // A handler on another thread may have read the descriptor just before. Wait the few
        // instructions until it is out, so that it can't write to a descriptor re-used after us.
        while INSIDE.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }
}

/// In a forked child: the parent's loops are not ours to wake, and a thread that was inside the
/// handler at the fork is not here to leave it.
pub(super) fn forget_parent() {
    for slot in &SLOTS {
        slot.wake_fd.store(-1, Ordering::SeqCst);
    }
    INSIDE.store(0, Ordering::SeqCst);
}

fn slot(signal: libc::c_int) -> Option<&'static Slot> {
    SLOTS.get(usize::try_from(signal).ok()?)
}

fn set_handler(signal: libc::c_int) -> io::Result<libc::sigaction> {
    let mut previous = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: all-zero is a valid sigaction (no handler, no flags, empty mask).
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as usize;
    // SA_RESTART: other threads' blocking calls need not know about our signals.
    action.sa_flags = libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: both pointers are valid; the handler does only what signal-safety(7) allows.
    check(unsafe { libc::sigaction(signal, &raw const action, previous.as_mut_ptr()) })?;
    // SAFETY: sigaction succeeded, so it has filled `previous`.
    Ok(unsafe { previous.assume_init() })
}

extern "C" fn on_signal(signal: libc::c_int) {
    INSIDE.fetch_add(1, Ordering::SeqCst);
    if let Some(slot) = slot(signal) {
        slot.arrived.store(true, Ordering::SeqCst);
        let fd = slot.wake_fd.load(Ordering::SeqCst);
        if fd >= 0 {
            write_wakeup(fd);
        }
    }
    INSIDE.fetch_sub(1, Ordering::SeqCst);
}

/// Writes the number one. A full pipe means that a wakeup is already on its way. An eventfd that is
/// saturated makes no new edge, so it is emptied first; nothing else can be read from what we write
/// to. `errno` belongs to the code that was interrupted, so it is put back.
fn write_wakeup(fd: libc::c_int) {
    let one = 1u64.to_ne_bytes();
    let saved = Errno::last_raw();
    // SAFETY: the buffer is valid for its length; write is async-signal-safe.
    let write = || unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
    if write() < 0 {
        let mut count = [0u8; 8];
        // SAFETY: the buffer is valid for its length; read is async-signal-safe.
        unsafe { libc::read(fd, count.as_mut_ptr().cast(), count.len()) };
        write();
    }
    Errno::set_raw(saved);
}
