//! The filters of one kqueue, which its manual calls knotes.
//!
//! ```text
//!   epoll says that something happened ──▶ queue ──▶ does the filter hold now? ──▶ event
//!   EV_ADD, EV_ENABLE, NOTE_TRIGGER ───────▶  ▲               no: out of the queue
//!                                             └── level-triggered: in again, at the end
//! ```
//!
//! As in the kernels, an event is not kept but found anew when it is fetched. Two epoll instances,
//! edge-triggered, tell of what happens, one of input and one of room for output, for an edge of
//! the one is none of the other. What holds is asked by poll(2) and ioctl(2).
//!
//! A filter goes when its descriptor is closed. epoll would keep one whose open file has another
//! descriptor, and a number may have a new owner; so epoll is asked, by adding it again, whether
//! what has this number is still what it watches.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use libc::{c_int, c_void, pollfd};
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    EV_ADD, EV_CLEAR, EV_DELETE, EV_DISABLE, EV_DISPATCH, EV_ENABLE, EV_EOF, EV_ONESHOT,
    EVFILT_READ, EVFILT_USER, EVFILT_WRITE, NOTE_LOWAT, NOTE_TRIGGER, is_kqueue, kevent,
};
use crate::sys::{check, poll};

type Key = (usize, i16);

pub(super) struct Knotes {
    known: HashMap<Key, Knote>,
    /// Those to look at.
    queue: VecDeque<Key>,
    /// Watches the descriptors of EVFILT_WRITE; the kqueue itself watches those of EVFILT_READ.
    write: OwnedFd,
    /// Ends a wait when another thread has changed something.
    changed: EventFd,
}

struct Knote {
    /// EV_CLEAR, EV_ONESHOT, EV_DISPATCH: those of the first EV_ADD.
    flags: u16,
    fflags: u32,
    data: i64,
    udata: *mut c_void,
    enabled: bool,
    queued: bool,
    triggered: bool,
}

// SAFETY: nobody follows `udata`.
unsafe impl Send for Knotes {}

/// What a filter says when it holds.
#[derive(Default)]
struct Holds {
    data: i64,
    end: bool,
    error: u32,
}

impl Knotes {
    pub(super) fn new() -> io::Result<Knotes> {
        // SAFETY: it takes no pointers.
        let write = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        let write = unsafe { OwnedFd::from_raw_fd(write) };
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let changed = EventFd::from_value_and_flags(0, flags)?;
        Ok(Knotes { known: HashMap::new(), queue: VecDeque::new(), write, changed })
    }

    /// What becomes readable when a filter may hold.
    pub(super) fn watched(&self, kq: RawFd) -> [pollfd; 3] {
        [kq, self.write.as_raw_fd(), self.changed.as_raw_fd()].map(|fd| pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        })
    }

    pub(super) fn apply(&mut self, kq: RawFd, change: &kevent) -> io::Result<()> {
        let key = (change.ident, change.filter);
        match change.filter {
            EVFILT_READ | EVFILT_WRITE => {
                // SAFETY: fcntl takes no pointers here.
                check(unsafe { libc::fcntl(change.ident as RawFd, libc::F_GETFD) })?;
                self.forget_if_closed(kq, key);
            }
            EVFILT_USER if !super::is_old() => {}
            _ => return Err(Errno::EINVAL.into()),
        }
        let is_there = self.known.contains_key(&key);
        if !is_there && change.flags & EV_ADD == 0 {
            return Err(Errno::ENOENT.into());
        }
        if change.flags & EV_DELETE != 0 {
            self.remove(kq, key);
            return Ok(());
        }
        if !is_there {
            self.add(kq, key, change)?;
        }
        let Some(knote) = self.known.get_mut(&key) else { return Ok(()) };
        if change.flags & EV_ADD != 0 {
            // Parameters change, the flags do not.
            (knote.fflags, knote.data, knote.udata) = (change.fflags, change.data, change.udata);
        }
        if change.flags & (EV_ADD | EV_ENABLE) != 0 {
            knote.enabled = true;
        }
        if change.flags & EV_DISABLE != 0 {
            knote.enabled = false;
        }
        knote.triggered |= change.filter == EVFILT_USER && change.fflags & NOTE_TRIGGER != 0;
        self.look_at(key);
        self.changed.write(1)?;
        Ok(())
    }

    /// The events that there are, `room` of them at most.
    pub(super) fn scan(&mut self, kq: RawFd, room: usize) -> io::Result<Vec<kevent>> {
        // An error means that there was nothing in it.
        let _ = self.changed.read();
        self.take_hints(kq, EVFILT_READ)?;
        self.take_hints(self.write.as_raw_fd(), EVFILT_WRITE)?;
        let mut told = Vec::new();
        for _ in 0..self.queue.len() {
            if told.len() == room {
                break;
            }
            let Some(key) = self.queue.pop_front() else { break };
            if let Some(knote) = self.known.get_mut(&key) {
                knote.queued = false;
            }
            self.forget_if_closed(kq, key);
            let Some(knote) = self.known.get_mut(&key) else { continue };
            if !knote.enabled {
                continue;
            }
            let Some(holds) = knote.holds(key)? else { continue };
            told.push(kevent {
                ident: key.0,
                filter: key.1,
                flags: knote.flags | if holds.end { EV_EOF } else { 0 },
                fflags: holds.error,
                data: holds.data,
                udata: knote.udata,
            });
            if knote.flags & EV_CLEAR != 0 {
                knote.triggered = false;
            }
            if knote.flags & EV_ONESHOT != 0 {
                self.remove(kq, key);
            } else if knote.flags & EV_DISPATCH != 0 {
                knote.enabled = false;
            } else if knote.flags & EV_CLEAR == 0 {
                self.look_at(key);
            }
        }
        Ok(told)
    }

    fn add(&mut self, kq: RawFd, key: Key, change: &kevent) -> io::Result<()> {
        if key.1 != EVFILT_USER {
            if key.1 == EVFILT_WRITE && is_kqueue(key.0 as RawFd) {
                return Err(Errno::EINVAL.into());
            }
            if key.1 == EVFILT_WRITE && is_pipe(key.0 as RawFd)? {
                let state = look(key.0 as RawFd, libc::POLLOUT)?;
                if state & (libc::POLLERR | libc::POLLHUP) != 0 {
                    return Err(Errno::EPIPE.into());
                }
            }
            self.control(kq, libc::EPOLL_CTL_ADD, key)?;
        }
        let flags = change.flags & (EV_CLEAR | EV_ONESHOT | EV_DISPATCH);
        let knote = Knote {
            flags,
            fflags: 0,
            data: 0,
            udata: ptr::null_mut(),
            enabled: true,
            queued: false,
            triggered: false,
        };
        self.known.insert(key, knote);
        Ok(())
    }

    fn remove(&mut self, kq: RawFd, key: Key) {
        self.forget(key);
        if key.1 != EVFILT_USER {
            // An error means that epoll has forgotten it, too.
            let _ = self.control(kq, libc::EPOLL_CTL_DEL, key);
        }
    }

    fn forget(&mut self, key: Key) {
        if self.known.remove(&key).is_some_and(|knote| knote.queued) {
            self.queue.retain(|other| *other != key);
        }
    }

    fn forget_if_closed(&mut self, kq: RawFd, key: Key) {
        if key.1 == EVFILT_USER || !self.known.contains_key(&key) {
            return;
        }
        match self.control(kq, libc::EPOLL_CTL_ADD, key) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            // It was not there, so this is another file; or this cannot be watched, or is closed.
            Ok(()) => self.remove(kq, key),
            Err(_) => self.forget(key),
        }
    }

    fn look_at(&mut self, key: Key) {
        let Some(knote) = self.known.get_mut(&key) else { return };
        if !knote.queued {
            knote.queued = true;
            self.queue.push_back(key);
        }
    }

    fn take_hints(&mut self, epoll: RawFd, filter: i16) -> io::Result<()> {
        const ROOM: usize = 64;
        loop {
            let mut list = [libc::epoll_event { events: 0, u64: 0 }; ROOM];
            let room = ROOM as c_int;
            // SAFETY: the list is valid for writing `room` events.
            let n = check(unsafe { libc::epoll_wait(epoll, list.as_mut_ptr(), room, 0) })? as usize;
            for event in &list[..n] {
                self.look_at((event.u64 as usize, filter));
            }
            if n < ROOM {
                return Ok(());
            }
        }
    }

    fn control(&self, kq: RawFd, op: c_int, (ident, filter): Key) -> io::Result<()> {
        let (epoll, events) = match filter {
            EVFILT_READ => (kq, libc::EPOLLIN | libc::EPOLLRDHUP),
            _ => (self.write.as_raw_fd(), libc::EPOLLOUT),
        };
        let events = (events | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events, u64: ident as u64 };
        // SAFETY: `event` lives across the call and the kernel only reads it.
        check(unsafe { libc::epoll_ctl(epoll, op, ident as RawFd, &raw mut event) })?;
        Ok(())
    }
}

impl Knote {
    fn holds(&self, (ident, filter): Key) -> io::Result<Option<Holds>> {
        let fd = ident as RawFd;
        let low_water = (self.fflags & NOTE_LOWAT != 0).then_some(self.data);
        if filter != EVFILT_USER && is_wrong_end(fd, filter)? {
            return Ok(None);
        }
        match filter {
            EVFILT_READ => reading(fd, low_water),
            EVFILT_WRITE => writing(fd, low_water),
            _ => Ok(self.triggered.then(Holds::default)),
        }
    }
}

fn reading(fd: RawFd, low_water: Option<i64>) -> io::Result<Option<Holds>> {
    let state = look(fd, libc::POLLIN | libc::POLLRDHUP)?;
    let end = state & libc::POLLRDHUP != 0 || (state & libc::POLLHUP != 0 && is_pipe(fd)?);
    let failed = state & libc::POLLERR != 0;
    let data = if option(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).is_ok_and(|is| is != 0) {
        // Linux says how long the backlog of a TCP socket is, and of others that it is not empty.
        let waiting = tcp_info(fd).map_or(1, |info| i64::from(info.tcpi_unacked));
        if state & libc::POLLIN != 0 { waiting.max(1) } else { 0 }
    } else {
        count(fd, libc::FIONREAD)?
    };
    let has_enough = match low_water {
        Some(low_water) => data >= low_water && is_socket(fd),
        None => state & libc::POLLIN != 0,
    };
    let has_enough = has_enough || (low_water.is_some() && !is_socket(fd) && data > 0);
    Ok((has_enough || end || failed).then(|| Holds { data, end, error: error(end && failed) }))
}

fn writing(fd: RawFd, low_water: Option<i64>) -> io::Result<Option<Holds>> {
    let state = look(fd, libc::POLLOUT | libc::POLLRDHUP)?;
    let failed = state & libc::POLLERR != 0;
    if !is_socket(fd) {
        let end = failed && is_pipe(fd)?;
        let holds = || Holds { data: i64::from(state & libc::POLLOUT != 0), end, error: 0 };
        return Ok((state & libc::POLLOUT != 0 || end).then(holds));
    }
    let hung_up = state & libc::POLLHUP != 0;
    if hung_up && state & libc::POLLRDHUP == 0 {
        // It was never connected.
        return Ok(None);
    }
    let end = hung_up || has_shut_down(fd);
    let buffer = option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF)?;
    let room = (i64::from(buffer) - count(fd, libc::TIOCOUTQ)?).max(0);
    let has_enough = state & libc::POLLOUT != 0 && low_water.is_none_or(|least| room >= least);
    let holds = || Holds { data: room, end, error: error(end && failed) };
    Ok((has_enough || end || failed).then(holds))
}

fn error(failed: bool) -> u32 {
    if failed { libc::ECONNRESET as u32 } else { 0 }
}

/// Whether this side has ended its stream.
fn has_shut_down(fd: RawFd) -> bool {
    if let Ok(info) = tcp_info(fd) {
        // FIN_WAIT1, FIN_WAIT2, TIME_WAIT, LAST_ACK, CLOSING of the kernel's include/net/tcp_states.h
        return matches!(info.tcpi_state, 4 | 5 | 6 | 9 | 11);
    }
    if !option(fd, libc::SOL_SOCKET, libc::SO_TYPE).is_ok_and(|kind| kind == libc::SOCK_STREAM) {
        return false;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: no byte is read. On a stream it sends nothing, and fails if nothing could be sent.
    let sent = unsafe { libc::send(fd, ptr::null(), 0, flags) };
    sent < 0 && Errno::last() == Errno::EPIPE
}

/// What poll(2) says. Errors and hang-ups come unasked.
fn look(fd: RawFd, events: libc::c_short) -> io::Result<libc::c_short> {
    let mut list = [pollfd { fd, events, revents: 0 }];
    poll::wait(&mut list, Some(Duration::ZERO))?;
    Ok(list[0].revents)
}

fn count(fd: RawFd, request: libc::Ioctl) -> io::Result<i64> {
    let mut bytes: c_int = 0;
    // SAFETY: the kernel writes one int to a place that is valid for writing it.
    match check(unsafe { libc::ioctl(fd, request, &raw mut bytes) }) {
        Ok(_) => Ok(bytes.into()),
        // A file that does not count.
        Err(e) if e.raw_os_error() == Some(libc::EBADF) => Err(e),
        Err(_) => Ok(0),
    }
}

fn option(fd: RawFd, level: c_int, name: c_int) -> io::Result<c_int> {
    let mut value: c_int = 0;
    let mut len = size_of::<c_int>() as libc::socklen_t;
    let value_at = (&raw mut value).cast();
    // SAFETY: value and length are valid for writing, the length says how much room there is.
    check(unsafe { libc::getsockopt(fd, level, name, value_at, &raw mut len) })?;
    Ok(value)
}

fn tcp_info(fd: RawFd) -> io::Result<libc::tcp_info> {
    // SAFETY: all-zero is a valid tcp_info: integers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let info_at = (&raw mut info).cast();
    // SAFETY: value and length are valid for writing, the length says how much room there is.
    check(unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info_at, &raw mut len)
    })?;
    Ok(info)
}

fn is_socket(fd: RawFd) -> bool {
    option(fd, libc::SOL_SOCKET, libc::SO_TYPE).is_ok()
}

/// Whether a filter was asked of the end of a pipe that is for the other direction. FreeBSD takes it
/// and tells nothing; other systems tell of the end.
fn is_wrong_end(fd: RawFd, filter: i16) -> io::Result<bool> {
    if !is_pipe(fd)? {
        return Ok(false);
    }
    // SAFETY: fcntl takes no pointers here.
    let mode = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })? & libc::O_ACCMODE;
    let other = if filter == EVFILT_READ { libc::O_WRONLY } else { libc::O_RDONLY };
    Ok(mode == other)
}

fn is_pipe(fd: RawFd) -> io::Result<bool> {
    // SAFETY: all-zero is a valid stat: integers.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the place is valid for writing.
    check(unsafe { libc::fstat(fd, &raw mut stat) })?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFIFO)
}
