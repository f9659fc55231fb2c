//! The model does what the manual pages of kqueue(2) say.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use std::{ptr, thread};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};

use super::*;
use crate::sys::kqueue::Queue;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

struct Kq(RawFd);

impl Drop for Kq {
    fn drop(&mut self) {
        // SAFETY: it is ours.
        unsafe { close(self.0) };
    }
}

impl Kq {
    fn new() -> Kq {
        // SAFETY: it has no preconditions.
        Kq(check(unsafe { kqueue() }).unwrap())
    }

    fn call(
        &self,
        changes: &[kevent],
        room: usize,
        timeout: Option<Duration>,
    ) -> io::Result<Vec<kevent>> {
        let nothing = kevent { filter: 0, ..entry(0, 0, 0) };
        let mut events = vec![nothing; room];
        let timeout = timeout.map(|time| timespec {
            tv_sec: time.as_secs() as libc::time_t,
            tv_nsec: time.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        let (list, n) = (changes.as_ptr(), changes.len() as c_int);
        // SAFETY: both lists are as long as is said, and the timeout outlives the call.
        let n =
            check(unsafe { kevent(self.0, list, n, events.as_mut_ptr(), room as c_int, timeout) })?;
        events.truncate(n as usize);
        Ok(events)
    }

    /// Makes a change, and returns its error.
    fn change(&self, fd: &impl AsRawFd, filter: i16, flags: u16) -> io::Result<()> {
        self.call(&[entry(fd.as_raw_fd(), filter, flags)], 0, None).map(drop)
    }

    fn now(&self) -> Vec<kevent> {
        self.call(&[], 16, Some(Duration::ZERO)).unwrap()
    }

    /// The filters that hold now.
    fn filters(&self) -> Vec<i16> {
        let mut filters: Vec<_> = self.now().iter().map(|event| event.filter).collect();
        filters.sort_unstable();
        filters
    }

    /// The one event that there will be.
    fn next(&self) -> kevent {
        let events = self.call(&[], 16, Some(LONG)).unwrap();
        assert_eq!(events.len(), 1, "{events:?}");
        events[0]
    }
}

fn entry(fd: RawFd, filter: i16, flags: u16) -> kevent {
    let udata = ptr::null_mut();
    kevent { ident: fd as usize, filter, flags, fflags: 0, data: 0, udata }
}

fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().unwrap()
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

fn errno<T: std::fmt::Debug>(outcome: io::Result<T>) -> i32 {
    outcome.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn a_level_repeats_and_ev_clear_waits_for_more() {
    let (kq, (mut near, mut far)) = (Kq::new(), pair());
    for (flags, repeats) in [(0, true), (EV_CLEAR, false)] {
        kq.change(&far, EVFILT_READ, EV_ADD | flags).unwrap();
        assert_eq!(kq.filters(), []);
        near.write_all(b"abc").unwrap();
        let event = kq.next();
        assert_eq!((event.filter, event.data, event.flags & EV_EOF), (EVFILT_READ, 3, 0));
        assert_eq!(kq.filters().len(), usize::from(repeats));
        near.write_all(b"d").unwrap();
        assert_eq!(kq.next().data, 4);
        far.read_exact(&mut [0; 4]).unwrap();
        assert_eq!(kq.filters(), [], "found anew when it is fetched");
        kq.change(&far, EVFILT_READ, EV_DELETE).unwrap();
    }
}

#[test]
fn adding_again_reports_again_and_keeps_the_flags() {
    let (kq, (mut near, far)) = (Kq::new(), pair());
    near.write_all(b"x").unwrap();
    kq.change(&far, EVFILT_READ, EV_ADD | EV_CLEAR).unwrap();
    assert_eq!(kq.filters(), [EVFILT_READ]);
    assert_eq!(kq.filters(), []);
    kq.change(&far, EVFILT_READ, EV_ADD).unwrap();
    assert_eq!(kq.filters(), [EVFILT_READ]);
    assert_eq!(kq.filters(), [], "it is not level-triggered by that");
}

#[test]
fn reading_and_writing_are_two_events() {
    let (kq, (mut near, far)) = (Kq::new(), pair());
    near.write_all(b"x").unwrap();
    for filter in [EVFILT_READ, EVFILT_WRITE] {
        kq.change(&far, filter, EV_ADD).unwrap();
    }
    let mut events = kq.now();
    events.sort_unstable_by_key(|event| event.filter);
    let [write, read] = events[..] else { panic!("{events:?}") };
    assert_eq!((read.filter, read.data), (EVFILT_READ, 1));
    assert!(write.filter == EVFILT_WRITE && write.data > 1_000, "{write:?}");
    // What happens to one is nothing to the other.
    kq.change(&far, EVFILT_WRITE, EV_DELETE).unwrap();
    kq.change(&far, EVFILT_WRITE, EV_ADD | EV_CLEAR).unwrap();
    assert_eq!(kq.filters(), [EVFILT_WRITE, EVFILT_READ]);
    near.write_all(b"x").unwrap();
    assert_eq!(kq.filters(), [EVFILT_READ]);
}

#[test]
fn one_shots_are_removed_and_dispatched_ones_disabled() {
    let (kq, (mut near, far)) = (Kq::new(), pair());
    near.write_all(b"x").unwrap();
    kq.change(&far, EVFILT_READ, EV_ADD | EV_ONESHOT).unwrap();
    assert_eq!(kq.filters(), [EVFILT_READ]);
    near.write_all(b"x").unwrap();
    assert_eq!(kq.filters(), []);
    assert_eq!(errno(kq.change(&far, EVFILT_READ, EV_DELETE)), libc::ENOENT);

    kq.change(&far, EVFILT_READ, EV_ADD | EV_DISPATCH).unwrap();
    for _ in 0..2 {
        assert_eq!(kq.filters(), [EVFILT_READ]);
        near.write_all(b"x").unwrap();
        assert_eq!(kq.filters(), []);
        kq.change(&far, EVFILT_READ, EV_ENABLE).unwrap();
    }
    kq.change(&far, EVFILT_READ, EV_DISABLE).unwrap();
    assert_eq!(kq.filters(), []);
    kq.change(&far, EVFILT_READ, EV_DELETE).unwrap();
    assert_eq!(errno(kq.change(&far, EVFILT_READ, EV_ENABLE)), libc::ENOENT);
}

#[test]
fn an_end_of_stream_comes_with_the_data_before_it() {
    for own_end in [false, true] {
        let (kq, (mut near, mut far)) = (Kq::new(), tcp_pair());
        for filter in [EVFILT_READ, EVFILT_WRITE] {
            kq.change(&far, filter, EV_ADD | EV_CLEAR).unwrap();
        }
        assert_eq!(kq.filters(), [EVFILT_WRITE]);
        near.write_all(b"last words").unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        let start = Instant::now();
        // Linux tells of room to write again; that may be.
        let end = loop {
            let events = kq.call(&[], 16, Some(LONG)).unwrap();
            if let Some(end) = events.into_iter().find(|event| event.flags & EV_EOF != 0) {
                break end;
            }
            assert!(start.elapsed() < LONG);
        };
        // The peer's end is not ours.
        assert_eq!((end.filter, end.data, end.fflags), (EVFILT_READ, 10, 0));
        far.read_exact(&mut [0; 10]).unwrap();
        kq.change(&far, EVFILT_READ, EV_ADD).unwrap();
        let again = kq.now().into_iter().find(|event| event.filter == EVFILT_READ).unwrap();
        assert_eq!((again.flags & EV_EOF, again.data), (EV_EOF, 0));
        if own_end {
            far.shutdown(Shutdown::Write).unwrap();
        }
        kq.change(&far, EVFILT_WRITE, EV_ADD).unwrap();
        let write = kq.now().into_iter().find(|event| event.filter == EVFILT_WRITE).unwrap();
        assert_eq!(write.flags & EV_EOF != 0, own_end);
    }
}

#[test]
fn a_reset_is_the_end_of_both_with_the_error_in_fflags() {
    let (kq, (near, mut far)) = (Kq::new(), tcp_pair());
    kq.change(&far, EVFILT_READ, EV_ADD).unwrap();
    setsockopt(&near, Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    drop(near);
    let read = kq.next();
    kq.change(&far, EVFILT_READ, EV_DELETE).unwrap();
    kq.change(&far, EVFILT_WRITE, EV_ADD).unwrap();
    let write = kq.next();
    for event in [read, write] {
        assert_eq!(event.flags & EV_EOF, EV_EOF);
        assert_eq!(event.fflags, libc::ECONNRESET as u32);
    }
    let error = far.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "looking has not taken it away");
}

#[test]
fn data_of_a_listener_is_its_backlog() {
    let (kq, listener) = (Kq::new(), TcpListener::bind("127.0.0.1:0").unwrap());
    kq.change(&listener, EVFILT_READ, EV_ADD).unwrap();
    assert_eq!(kq.filters(), []);
    let address = listener.local_addr().unwrap();
    let peers = [(); 3].map(|()| TcpStream::connect(address).unwrap());
    assert_eq!(kq.next().data, 3);
    for left in [2, 1] {
        listener.accept().unwrap();
        assert_eq!(kq.next().data, left);
    }
    listener.accept().unwrap();
    assert_eq!(kq.filters(), []);
    drop(peers);
}

#[test]
fn a_low_water_mark_waits_for_so_much_or_an_end() {
    let (kq, (mut near, far)) = (Kq::new(), pair());
    let change = entry(far.as_raw_fd(), EVFILT_READ, EV_ADD);
    kq.call(&[kevent { fflags: NOTE_LOWAT, data: 3, ..change }], 0, None).unwrap();
    near.write_all(b"ab").unwrap();
    assert_eq!(kq.filters(), []);
    near.write_all(b"c").unwrap();
    assert_eq!(kq.filters(), [EVFILT_READ]);
    kq.call(&[kevent { fflags: NOTE_LOWAT, data: 4, ..change }], 0, None).unwrap();
    assert_eq!(kq.filters(), []);
    drop(near);
    assert_eq!(kq.next().flags & EV_EOF, EV_EOF);
}

#[test]
fn pipes_end_and_refuse_to_be_written_to_when_their_reader_is_gone() {
    let kq = Kq::new();
    let (read, mut write) = io::pipe().unwrap();
    kq.change(&read, EVFILT_READ, EV_ADD).unwrap();
    kq.change(&write, EVFILT_WRITE, EV_ADD).unwrap();
    assert_eq!(kq.filters(), [EVFILT_WRITE]);
    write.write_all(b"x").unwrap();
    assert_eq!(kq.filters(), [EVFILT_WRITE, EVFILT_READ]);
    drop(write);
    let event = kq.next();
    assert_eq!((event.filter, event.flags & EV_EOF, event.data), (EVFILT_READ, EV_EOF, 1));

    let (read, write) = io::pipe().unwrap();
    kq.change(&write, EVFILT_WRITE, EV_ADD).unwrap();
    drop(read);
    let event = kq.now().into_iter().find(|event| event.filter == EVFILT_WRITE).unwrap();
    assert_eq!(event.flags & EV_EOF, EV_EOF);
    kq.change(&write, EVFILT_WRITE, EV_DELETE).unwrap();
    assert_eq!(errno(kq.change(&write, EVFILT_WRITE, EV_ADD)), libc::EPIPE);
}

#[test]
fn a_filter_of_the_wrong_direction_tells_nothing_or_is_refused() {
    let kq = Kq::new();
    let (read, mut write) = io::pipe().unwrap();
    kq.change(&read, EVFILT_WRITE, EV_ADD).unwrap();
    kq.change(&write, EVFILT_READ, EV_ADD).unwrap();
    write.write_all(b"x").unwrap();
    assert_eq!(kq.filters(), []);
    drop(read);
    assert_eq!(kq.filters(), []);

    let other = Kq::new();
    let change = |filter| kq.call(&[entry(other.0, filter, EV_ADD)], 0, None);
    change(EVFILT_READ).unwrap();
    assert_eq!(errno(change(EVFILT_WRITE)), libc::EINVAL);
}

#[test]
fn a_user_event_wakes_who_waits_from_any_thread() {
    let kq = &Kq::new();
    let user = entry(77, EVFILT_USER, 0);
    // A function, for an entry holds a pointer and so stays on its thread.
    let trigger = || kevent { fflags: NOTE_TRIGGER, ..entry(77, EVFILT_USER, 0) };
    assert_eq!(errno(kq.call(&[trigger()], 0, None)), libc::ENOENT);
    kq.call(&[kevent { flags: EV_ADD | EV_CLEAR, ..user }], 0, None).unwrap();
    assert_eq!(kq.filters(), []);
    for _ in 0..3 {
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::park_timeout(Duration::from_millis(5));
                // Twice is once.
                kq.call(&[trigger(), trigger()], 0, None).unwrap();
            });
            let event = kq.next();
            assert_eq!((event.ident, event.filter), (77, EVFILT_USER));
        });
        assert!(kq.filters().len() <= 1);
        assert_eq!(kq.filters(), [], "EV_CLEAR");
    }
}

#[test]
fn closing_a_descriptor_removes_its_filters_whoever_has_a_duplicate() {
    let (kq, (mut near, far)) = (Kq::new(), pair());
    let duplicate = far.try_clone().unwrap();
    let number = far.as_raw_fd();
    kq.change(&far, EVFILT_READ, EV_ADD).unwrap();
    near.write_all(b"x").unwrap();
    assert_eq!(kq.filters(), [EVFILT_READ]);
    drop(far);
    assert_eq!(kq.filters(), []);
    near.write_all(b"x").unwrap();
    assert_eq!(kq.filters(), []);

    // The number's next owner is not watched.
    kq.change(&duplicate, EVFILT_READ, EV_ADD).unwrap();
    let (_other, mut another) = pair();
    // SAFETY: both are open, and the number is the duplicate's own.
    check(unsafe { libc::dup2(_other.as_raw_fd(), duplicate.as_raw_fd()) }).unwrap();
    another.write_all(b"x").unwrap();
    assert_eq!(kq.filters(), []);
    assert_eq!(errno(kq.change(&duplicate, EVFILT_READ, EV_DELETE)), libc::ENOENT);
    let _ = number;
}

#[test]
fn each_change_has_a_receipt_if_it_wants_one_and_errors_are_told_of() {
    let (kq, (mut near, far)) = (Kq::new(), pair());
    near.write_all(b"x").unwrap();
    let fd = far.as_raw_fd();
    let changes = [
        entry(fd, EVFILT_READ, EV_ADD | EV_RECEIPT),
        entry(fd, EVFILT_WRITE, EV_DELETE | EV_RECEIPT),
        entry(fd, EVFILT_WRITE, EV_ADD),
        entry(fd, 99, EV_ADD),
        entry(i32::MAX, EVFILT_READ, EV_ADD),
    ];
    // With room for more: no event comes beside them.
    let told = kq.call(&changes, 16, None).unwrap();
    let errors: Vec<_> = told.iter().map(|told| (told.ident, told.filter, told.data)).collect();
    let (fd_of, errno_of) = (fd as usize, i64::from);
    let expected = [
        (fd_of, EVFILT_READ, 0),
        (fd_of, EVFILT_WRITE, errno_of(libc::ENOENT)),
        (fd_of, 99, errno_of(libc::EINVAL)),
        (i32::MAX as usize, EVFILT_READ, errno_of(libc::EBADF)),
    ];
    assert_eq!(errors, expected);
    assert!(told.iter().all(|told| told.flags & EV_ERROR != 0));
    assert_eq!(kq.filters(), [EVFILT_WRITE, EVFILT_READ], "the others were applied");
    // Without room the first error ends the call.
    let changes = [entry(fd, 99, EV_ADD), entry(fd, EVFILT_READ, EV_DELETE)];
    assert_eq!(errno(kq.call(&changes, 0, None)), libc::EINVAL);
    assert_eq!(kq.filters(), [EVFILT_WRITE, EVFILT_READ]);

    let none = Kq(i32::MAX);
    assert_eq!(errno(none.call(&[], 1, None)), libc::EBADF);
}

#[test]
fn in_a_short_list_all_have_their_turn() {
    let kq = Kq::new();
    let mut pairs: Vec<_> = (0..5).map(|_| pair()).collect();
    for (near, far) in &mut pairs {
        near.write_all(b"x").unwrap();
        kq.change(far, EVFILT_READ, EV_ADD).unwrap();
    }
    for _ in 0..2 {
        let mut seen = Vec::new();
        for _ in 0..5 {
            let events = kq.call(&[], 1, Some(LONG)).unwrap();
            seen.extend(events.iter().map(|event| event.ident as RawFd));
        }
        let expected: Vec<_> = pairs.iter().map(|(_, far)| far.as_raw_fd()).collect();
        assert_eq!(seen, expected);
    }
}

extern "C" fn do_nothing(_: c_int) {}

#[test]
fn timeouts_are_never_early_and_a_signal_ends_a_wait() {
    let kq = Kq::new();
    for micros in [1, 999, 2_500] {
        let (start, timeout) = (Instant::now(), Duration::from_micros(micros));
        assert!(kq.call(&[], 1, Some(timeout)).unwrap().is_empty());
        assert!(start.elapsed() >= timeout);
    }
    assert!(kq.call(&[], 0, None).unwrap().is_empty(), "no room, no wait");

    let action =
        SigAction::new(SigHandler::Handler(do_nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGURG, &action) }.unwrap();
    // SAFETY: it has no preconditions.
    let waiting = unsafe { libc::pthread_self() };
    let waits = AtomicBool::new(true);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Again and again, for the first may come before the wait.
            while waits.load(Ordering::Acquire) {
                // SAFETY: the thread that waits joins this one.
                unsafe { libc::pthread_kill(waiting, libc::SIGURG) };
                thread::park_timeout(Duration::from_millis(1));
            }
        });
        let outcome = kq.call(&[], 1, Some(LONG));
        waits.store(false, Ordering::Release);
        assert_eq!(errno(outcome), libc::EINTR);
    });
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: fcntl takes no pointers here.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// And what uses it has learnt that: in the child it leaves alone what has its number now.
#[test]
fn a_forked_child_does_not_inherit_it() {
    use std::os::fd::AsFd;

    let queue = Queue::new().unwrap();
    let fd = queue.as_fd().as_raw_fd();
    let again = queue.duplicate().unwrap();
    for fd in [fd, again.as_fd().as_raw_fd()] {
        // SAFETY: fcntl takes no pointers here.
        assert_eq!(check(unsafe { libc::fcntl(fd, libc::F_GETFD) }).unwrap(), libc::FD_CLOEXEC);
    }
    // SAFETY: the child only opens, closes and ends.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let gone = !is_open(fd);
            // SAFETY: 0 is open, or it fails and the test with it.
            unsafe { libc::dup2(0, fd) };
            drop(queue);
            let left_alone = is_open(fd);
            // SAFETY: it has no preconditions.
            unsafe { libc::_exit(i32::from(!(gone && left_alone))) }
        }
        ForkResult::Parent { child } => {
            let status = waitpid(child, None).unwrap();
            assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
            assert!(is_open(fd));
        }
    }
}
