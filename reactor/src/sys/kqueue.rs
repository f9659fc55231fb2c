//! kqueue(2): a descriptor that keeps filters, each of one descriptor and one direction, and tells
//! which of them hold.
//!
//! On Linux, for tests, a model stands in for the kernel; what is here does not notice.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::time::Duration;

use super::{check, fork};

#[cfg(kqueue_model)]
use super::kqueue_model as kernel;
#[cfg(not(kqueue_model))]
use libc as kernel;

/// The kernel's own structure, in which changes are handed over and events come back.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Kevent(kernel::kevent);

// SAFETY: it is integers and a pointer that is never followed.
unsafe impl Send for Kevent {}

/// NetBSD counts in another type than the others.
#[cfg(target_os = "netbsd")]
type Count = libc::size_t;
#[cfg(not(target_os = "netbsd"))]
type Count = libc::c_int;

/// And so it does with flags.
#[cfg(target_os = "netbsd")]
type Flags = u32;
#[cfg(not(target_os = "netbsd"))]
type Flags = u16;

/// What is watched of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    Read,
    Write,
    /// EVFILT_USER: nothing of the descriptor, whose number only is its name.
    User,
}

/// When a filter reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// As long as it holds.
    Level,
    /// EV_CLEAR: when it begins to hold, and when more comes.
    Clear,
    /// EV_ONESHOT: once, and is removed then.
    Once,
    /// As `Clear`, but of sockets only an end and an error: NOTE_LOWAT asks for more bytes than
    /// there can be. macOS takes that for as many as a buffer holds, and pipes, terminals and
    /// listeners do not know it, so other events come too, though no more often than something
    /// happens.
    End,
}

/// NetBSD has EV_RECEIPT since version 10 only, and an older kernel takes no notice of it.
const HAS_RECEIPTS: bool = !cfg!(target_os = "netbsd");

/// How many changes are handed over in one call.
const CHANGES: usize = 16;

/// The longest a wait is asked to last. OpenBSD and NetBSD refuse what is over three years; a wait
/// cut short by this costs its caller one turn a day.
const LONGEST: Duration = Duration::from_secs(86_400);

/// A kqueue, or a duplicate of its descriptor.
///
/// The kernel does not hand it on to a forked child, where its number may have another owner: so
/// the child does not close it.
pub(crate) struct Queue {
    fd: RawFd,
    generation: u32,
}

impl Queue {
    pub(crate) fn new() -> io::Result<Queue> {
        let generation = fork::generation();
        // SAFETY: it has no preconditions.
        let fd = check(unsafe { kernel::kqueue() })?;
        let queue = Queue { fd, generation };
        // Not all systems can be told at once, nor all versions of the others. So an `exec` on
        // another thread may come between, and is handed a descriptor that is of no use to it.
        // SAFETY: fcntl takes no pointers here.
        check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
        Ok(queue)
    }

    /// The same kqueue under another number.
    pub(crate) fn duplicate(&self) -> io::Result<Queue> {
        // SAFETY: it takes a number.
        let fd = check(unsafe { duplicate(self.fd) })?;
        Ok(Queue { fd, generation: self.generation })
    }

    /// Applies changes, all of them, and tells of those that failed: the place of each in `changes`
    /// and the error.
    pub(crate) fn change(
        &self,
        changes: &[Kevent],
        mut failed: impl FnMut(usize, io::Error),
    ) -> io::Result<()> {
        if !HAS_RECEIPTS {
            return self.change_one_by_one(changes, failed);
        }
        for (first, changes) in (0..).step_by(CHANGES).zip(changes.chunks(CHANGES)) {
            // Every change asks for a receipt: then the call tells of each, in order, and neither
            // stops at the first error nor takes events.
            let mut receipts = [MaybeUninit::<Kevent>::uninit(); CHANGES];
            let room = changes.len();
            // With receipts it does not wait; without a timeout a kernel that knows none would.
            let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: the first list is valid for reading, the second for writing as many entries
            // as is said; the timeout outlives the call.
            let n = check(unsafe {
                kernel::kevent(
                    self.fd,
                    changes.as_ptr().cast(),
                    room as Count,
                    receipts.as_mut_ptr().cast(),
                    room as Count,
                    &raw const at_once,
                )
            })?;
            for (place, receipt) in receipts[..n as usize].iter().enumerate() {
                // SAFETY: the kernel has initialised the first `n` entries.
                let Kevent(receipt) = unsafe { receipt.assume_init() };
                let errno = receipt.data as i32;
                if receipt.flags & kernel::EV_ERROR != 0 && errno != 0 {
                    failed(first + place, io::Error::from_raw_os_error(errno));
                }
            }
        }
        Ok(())
    }

    /// A call for each change, which without room for events takes none, and returns the change's
    /// error as its own.
    fn change_one_by_one(
        &self,
        changes: &[Kevent],
        mut failed: impl FnMut(usize, io::Error),
    ) -> io::Result<()> {
        for (place, change) in changes.iter().enumerate() {
            let Kevent(mut change) = *change;
            change.flags &= !kernel::EV_RECEIPT;
            let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: the change is valid for reading, there is no list of events; the timeout
            // outlives the call.
            let outcome = check(unsafe {
                kernel::kevent(
                    self.fd,
                    &raw const change,
                    1,
                    std::ptr::null_mut(),
                    0,
                    &raw const at_once,
                )
            });
            if let Err(error) = outcome {
                failed(place, error);
            }
        }
        Ok(())
    }

    /// Applies changes, and returns the error of the last that failed.
    pub(crate) fn change_all(&self, changes: &[Kevent]) -> io::Result<()> {
        let mut outcome = Ok(());
        self.change(changes, |_, error| outcome = Err(error))?;
        outcome
    }

    /// Waits and replaces the contents of `events`, with `room` of them at most. `None` waits for
    /// ever.
    pub(crate) fn wait(
        &self,
        events: &mut Vec<Kevent>,
        room: usize,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        events.clear();
        events.reserve(room);
        let timeout = timeout.map(timespec);
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let room = libc::c_int::try_from(room).unwrap_or(libc::c_int::MAX);
        // SAFETY: there are no changes; the list is valid for writing `room` events; the timeout is
        // null or outlives the call.
        let n = check(unsafe {
            kernel::kevent(
                self.fd,
                std::ptr::null(),
                0,
                events.as_mut_ptr().cast(),
                room as Count,
                timeout,
            )
        })?;
        // SAFETY: the kernel has initialised the first `n` events, at most the capacity.
        unsafe { events.set_len(n as usize) };
        Ok(())
    }

    /// Fires the EVFILT_USER filter that has this descriptor's number, if there is one still.
    pub(crate) fn trigger(&self) -> io::Result<()> {
        let mut outcome = Ok(());
        self.change(&[Kevent::trigger(self.fd)], |_, error| {
            // It was removed: nobody waits for it any more.
            if error.raw_os_error() != Some(libc::ENOENT) {
                outcome = Err(error);
            }
        })?;
        outcome
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.generation == fork::current_generation() {
            // SAFETY: the number is ours, for this is the process that opened it, and nobody uses
            // it after this.
            unsafe { close(self.fd) };
        }
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it is open for as long as the value lives; but in a forked child, where loops and
        // pollers refuse to be used.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl Kevent {
    /// The change that adds a filter.
    pub(crate) fn add(fd: RawFd, filter: Filter, repeat: Repeat) -> Kevent {
        let flags = match repeat {
            Repeat::Level => 0,
            Repeat::Clear | Repeat::End => kernel::EV_CLEAR,
            Repeat::Once => kernel::EV_ONESHOT,
        };
        let mut change = Kevent::new(fd, filter, kernel::EV_ADD | flags);
        if repeat == Repeat::End {
            change.0.fflags = kernel::NOTE_LOWAT;
            change.0.data = i32::MAX as _;
        }
        change
    }

    /// The change that removes a filter.
    pub(crate) fn delete(fd: RawFd, filter: Filter) -> Kevent {
        Kevent::new(fd, filter, kernel::EV_DELETE)
    }

    /// The change that makes an EVFILT_USER filter report.
    pub(crate) fn trigger(fd: RawFd) -> Kevent {
        let mut change = Kevent::new(fd, Filter::User, 0);
        change.0.fflags = kernel::NOTE_TRIGGER;
        change
    }

    /// With a receipt, as all changes.
    fn new(fd: RawFd, filter: Filter, flags: Flags) -> Kevent {
        // SAFETY: all-zero is a valid kevent: integers and a null pointer.
        let mut entry: kernel::kevent = unsafe { mem::zeroed() };
        entry.ident = fd as libc::uintptr_t;
        entry.filter = match filter {
            Filter::Read => kernel::EVFILT_READ,
            Filter::Write => kernel::EVFILT_WRITE,
            Filter::User => kernel::EVFILT_USER,
        };
        entry.flags = flags | kernel::EV_RECEIPT;
        Kevent(entry)
    }

    pub(crate) fn told(&self) -> Told {
        let Kevent(event) = self;
        let filter = match event.filter {
            kernel::EVFILT_READ => Filter::Read,
            kernel::EVFILT_WRITE => Filter::Write,
            _ => Filter::User,
        };
        let end = event.flags & kernel::EV_EOF != 0;
        // With EV_EOF the socket's error comes in `fflags`; EV_ERROR is the kernel's own.
        let error = (end && event.fflags != 0) || event.flags & kernel::EV_ERROR != 0;
        Told { fd: event.ident as RawFd, filter, end, error }
    }
}

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) fd: RawFd,
    pub(crate) filter: Filter,
    /// EV_EOF: the direction has ended. There may still be data to read.
    pub(crate) end: bool,
    /// An error is pending.
    pub(crate) error: bool,
}

/// In whole microseconds, rounded up: some kernels count them, and would leave off the rest and be
/// early.
fn timespec(timeout: Duration) -> libc::timespec {
    let micros = timeout.min(LONGEST).as_nanos().div_ceil(1_000);
    libc::timespec {
        tv_sec: (micros / 1_000_000) as libc::time_t,
        tv_nsec: (micros % 1_000_000 * 1_000) as libc::c_long,
    }
}

/// A second number for a kqueue, which is not handed on to another program.
///
/// # Safety
/// None of its own: it takes a number. It is one of the calls that the model has, too.
#[cfg(not(kqueue_model))]
unsafe fn duplicate(fd: RawFd) -> RawFd {
    // SAFETY: fcntl takes no pointers here.
    unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) }
}
#[cfg(not(kqueue_model))]
use libc::close;

#[cfg(kqueue_model)]
use kernel::{close, duplicate};

// What is handed to the kernel has the layout that its headers say.
#[cfg(all(target_os = "freebsd", target_pointer_width = "64"))]
const _: () = assert!(size_of::<Kevent>() == 64);
#[cfg(all(target_vendor = "apple", target_pointer_width = "64"))]
const _: () = assert!(size_of::<Kevent>() == 32);
#[cfg(all(target_os = "openbsd", target_pointer_width = "64"))]
const _: () = assert!(size_of::<Kevent>() == 32);
#[cfg(all(target_os = "netbsd", target_pointer_width = "64"))]
const _: () = assert!(size_of::<Kevent>() == 40);
#[cfg(all(target_os = "dragonfly", target_pointer_width = "64"))]
const _: () = assert!(size_of::<Kevent>() == 32);

#[cfg(all(test, kqueue_model))]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    type Failures = Vec<(usize, Option<i32>)>;

    fn told(queue: &Queue) -> Vec<Told> {
        let mut events = Vec::new();
        queue.wait(&mut events, 8, Some(Duration::ZERO)).unwrap();
        events.iter().map(Kevent::told).collect()
    }

    #[test]
    fn timeouts_are_rounded_up_to_microseconds_and_clamped_to_a_day() {
        let day = (86_400, 0);
        for (timeout, expected) in [
            (Duration::ZERO, (0, 0)),
            (Duration::from_nanos(1), (0, 1_000)),
            (Duration::from_micros(7), (0, 7_000)),
            (Duration::from_nanos(7_001), (0, 8_000)),
            (Duration::new(3, 999_999_001), (4, 0)),
            (LONGEST, day),
            (LONGEST + Duration::from_nanos(1), day),
            (Duration::MAX, day),
        ] {
            let libc::timespec { tv_sec, tv_nsec, .. } = timespec(timeout);
            assert_eq!((tv_sec, tv_nsec), expected, "{timeout:?}");
        }
    }

    #[test]
    fn an_event_tells_of_an_end_and_of_an_error() {
        let told = |flags, fflags| {
            let mut event = Kevent::new(7, Filter::Write, 0);
            (event.0.flags, event.0.fflags) = (flags, fflags);
            let Told { fd, filter, end, error } = event.told();
            assert_eq!((fd, filter), (7, Filter::Write));
            (end, error)
        };
        assert_eq!(told(kernel::EV_CLEAR, 0), (false, false));
        assert_eq!(told(kernel::EV_EOF, 0), (true, false));
        assert_eq!(told(kernel::EV_EOF, libc::ECONNRESET as u32), (true, true));
        assert_eq!(told(kernel::EV_ERROR, 0), (false, true));
        // Without an end they are the filter's own.
        assert_eq!(told(kernel::EV_CLEAR, kernel::NOTE_LOWAT), (false, false));
    }

    /// More of them than one call takes.
    #[test]
    fn failures_are_told_by_the_place_of_the_change() {
        let queue = Queue::new().unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        let mut changes = vec![Kevent::add(near.as_raw_fd(), Filter::Write, Repeat::Level); 40];
        for place in [3, 16, 39] {
            changes[place] = Kevent::add(-1, Filter::Read, Repeat::Level);
        }
        let mut places = Vec::new();
        queue.change(&changes, |place, _| places.push(place)).unwrap();
        assert_eq!(places, [3, 16, 39]);
        assert_eq!(queue.change_all(&changes).unwrap_err().raw_os_error(), Some(libc::EBADF));
        queue.change_all(&changes[..3]).unwrap();
    }

    /// Both ways of handing over changes do the same, and neither swallows an event.
    #[test]
    fn changes_are_applied_and_their_errors_told_with_and_without_receipts() {
        for one_by_one in [false, true] {
            let queue = Queue::new().unwrap();
            let change = |changes: &[Kevent]| {
                let mut failures = Failures::new();
                let note = |place, error: io::Error| failures.push((place, error.raw_os_error()));
                match one_by_one {
                    true => queue.change_one_by_one(changes, note).unwrap(),
                    false => queue.change(changes, note).unwrap(),
                }
                failures
            };
            let (near, mut far) = UnixStream::pair().unwrap();
            let fd = near.as_raw_fd();
            far.write_all(b"x").unwrap();
            assert_eq!(change(&[Kevent::add(fd, Filter::Read, Repeat::Once)]), []);
            // It has something to tell already, once.
            let failures = change(&[
                Kevent::delete(fd, Filter::Write),
                Kevent::add(fd, Filter::Write, Repeat::Level),
                Kevent::add(-1, Filter::Read, Repeat::Level),
                Kevent::delete(fd, Filter::Write),
            ]);
            let expected: Failures = vec![(0, Some(libc::ENOENT)), (2, Some(libc::EBADF))];
            assert_eq!(failures, expected);
            let filters: Vec<_> = told(&queue).iter().map(|told| told.filter).collect();
            assert_eq!(filters, [Filter::Read]);
            assert_eq!(told(&queue), []);
            (&near).read_exact(&mut [0]).unwrap();
        }
    }
}
