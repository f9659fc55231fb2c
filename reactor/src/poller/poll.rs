//! The poll(2) backend: works everywhere, and the one to read first.
//!
//! ```text
//!   places: descriptor ──▶ place
//!                            │
//!   list:    [ fd 3  asks IN ][ fd 9  asks IN|OUT ][ !5: silent ] ...   what the kernel is handed
//!   known:   [ token, mode   ][ token, mode       ][ token, mode ] ...   what we keep beside it
//! ```
//!
//! The kernel keeps nothing between two calls: it is handed the whole list, looks at every
//! descriptor in it and answers in place. So adding and changing cost no system call, and a wait
//! costs time for every descriptor, ready or not. An entry with a negative number is passed over;
//! the complement of a descriptor's number is one, and can be undone.
//!
//! **One-shot** is an entry that becomes silent when it is reported.
//!
//! **Edge** can only be approximated. poll tells states: a condition that ended and began again
//! between two calls looks as if it had lasted. A reader who has met `WouldBlock` relies on being
//! told of whatever comes next, so nothing that could be new may be left out. A reader who has left
//! something unread relies on not being told of it in each wait. So an edge-triggered entry that
//! was reported rests for a while. Its rest ends as soon as the condition is seen to be over, for
//! from then on its next beginning can be seen; and at the latest after a millisecond, when it is
//! reported again if the condition holds. So no event is lost, an event may be a millisecond late,
//! and a condition that the user lets last makes spurious ones, at most a thousand a second. Ask
//! for [`Interest::WRITE`] only while there is something to write, or use level.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use super::{
    Backend, Interest, Mode, Notifier, NotifierKind, RawEvent, Ready, is_watched, not_watched,
    raw_event, refuse_files,
};
use crate::sys::poll;
use crate::token::Token;

/// How long an edge-triggered descriptor rests at most.
const REST: Duration = Duration::from_millis(1);

#[derive(Default)]
pub(super) struct Poll {
    table: RefCell<Table>,
}

#[derive(Default)]
struct Table {
    list: Vec<libc::pollfd>,
    known: Vec<Known>,
    places: HashMap<RawFd, usize>,
    /// The place to look at first: where the last batch had no more room.
    first: usize,
    /// Entries that rest: edge-triggered, reported, and silent in `list` until the rest is over.
    resting: Vec<libc::pollfd>,
    /// When they have rested long enough; `None` if none rests.
    rest_until: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Known {
    token: Token,
    mode: Mode,
}

impl Backend for Poll {
    fn add(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        interest: Interest,
        mode: Mode,
    ) -> io::Result<()> {
        refuse_files(fd)?;
        let fd = fd.as_raw_fd();
        let table = &mut *self.table.borrow_mut();
        if table.places.contains_key(&fd) {
            return Err(is_watched(fd));
        }
        table.places.insert(fd, table.list.len());
        table.list.push(entry(fd, interest));
        table.known.push(Known { token, mode });
        Ok(())
    }

    fn modify(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        interest: Interest,
        mode: Mode,
    ) -> io::Result<()> {
        let fd = fd.as_raw_fd();
        let table = &mut *self.table.borrow_mut();
        let place = table.place(fd)?;
        table.forget_rest(fd);
        table.list[place] = entry(fd, interest);
        table.known[place] = Known { token, mode };
        Ok(())
    }

    fn delete(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.table.borrow_mut().remove(fd.as_raw_fd())
    }

    #[inline(never)]
    fn wait(&self, events: &mut Vec<RawEvent>, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        let closed = self.table.borrow_mut().wait(events, timeout)?;
        for fd in closed {
            log::error!(
                "descriptor {fd} was closed while a poller watched it, and is not watched any \
                 more; delete it from its poller before you close it"
            );
        }
        Ok(())
    }

    fn notifier_kinds(&self) -> &'static [NotifierKind] {
        #[cfg(target_os = "linux")]
        return &[NotifierKind::Eventfd, NotifierKind::SocketPair, NotifierKind::Pipe];
        #[cfg(not(target_os = "linux"))]
        return &[NotifierKind::Pipe, NotifierKind::SocketPair];
    }

    fn notifier(&self, token: Token, kind: NotifierKind) -> io::Result<Notifier> {
        let notifier = Notifier::new(token, kind, false)?;
        self.add(notifier.as_fd(), token, Interest::READ, notifier.mode())?;
        Ok(notifier)
    }
}

impl Table {
    fn place(&self, fd: RawFd) -> io::Result<usize> {
        self.places.get(&fd).copied().ok_or_else(|| not_watched(fd))
    }

    /// The last entry moves to the place that becomes free.
    fn remove(&mut self, fd: RawFd) -> io::Result<()> {
        let place = self.place(fd)?;
        self.forget_rest(fd);
        self.places.remove(&fd);
        self.list.swap_remove(place);
        self.known.swap_remove(place);
        if let Some(moved) = self.list.get(place) {
            self.places.insert(number(moved), place);
        }
        Ok(())
    }

    /// Returns the descriptors that turned out to be closed.
    fn wait(
        &mut self,
        events: &mut Vec<RawEvent>,
        timeout: Option<Duration>,
    ) -> io::Result<Vec<RawFd>> {
        // A rest that is over ends the wait early, with no event.
        let rest = self.end_rests()?;
        let timeout = [timeout, rest].into_iter().flatten().min();
        let ready = poll::wait(&mut self.list, timeout).map_err(explain)?;
        let closed = self.collect(ready, events);
        for fd in &closed {
            // Otherwise every wait from now on would return at once, or the next owner of the
            // number would be taken for this one.
            self.remove(*fd)?;
        }
        Ok(closed)
    }

    /// Turns the kernel's answers into events, as many as there is room for.
    fn collect(&mut self, mut ready: usize, events: &mut Vec<RawEvent>) -> Vec<RawFd> {
        let mut closed = Vec::new();
        // If they do not all fit, the next batch begins with the first that did not.
        let first = std::mem::take(&mut self.first);
        let places = (first..self.list.len()).chain(0..first.min(self.list.len()));
        for place in places {
            if ready == 0 {
                break;
            }
            let answer = self.list[place].revents;
            if answer == 0 {
                continue;
            }
            if events.len() == events.capacity() {
                self.first = place;
                break;
            }
            ready -= 1;
            if answer & libc::POLLNVAL != 0 {
                closed.push(self.list[place].fd);
                continue;
            }
            let Known { token, mode } = self.known[place];
            events.push(raw_event(token, Ready::from_bits_truncate(answer as u8)));
            match mode {
                Mode::Level => {}
                Mode::Edge => self.rest(place),
                Mode::OneShot => self.list[place].fd = silent(self.list[place].fd),
            }
        }
        closed
    }

    fn rest(&mut self, place: usize) {
        let entry = &mut self.list[place];
        self.resting.push(*entry);
        entry.fd = silent(entry.fd);
        self.rest_until.get_or_insert_with(|| Instant::now() + REST);
    }

    /// Before a wait: ends the rest of those whose condition is over, and of all if the time is.
    /// Returns how long the others go on resting.
    fn end_rests(&mut self) -> io::Result<Option<Duration>> {
        let Some(until) = self.rest_until else { return Ok(None) };
        let left = until.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            poll::wait(&mut self.resting, Some(Duration::ZERO))?;
        }
        let (list, places) = (&mut self.list, &self.places);
        self.resting.retain(|entry| {
            let lasts = entry.revents != 0 && !left.is_zero();
            if !lasts && let Some(place) = places.get(&entry.fd) {
                list[*place].fd = entry.fd;
            }
            lasts
        });
        if self.resting.is_empty() {
            self.rest_until = None;
        }
        Ok(self.rest_until.map(|_| left))
    }

    fn forget_rest(&mut self, fd: RawFd) {
        self.resting.retain(|entry| entry.fd != fd);
    }
}

/// Adds the cure to the one error that a program can bring about.
fn explain(e: io::Error) -> io::Error {
    match e.raw_os_error() {
        Some(libc::EINVAL) => io::Error::new(
            e.kind(),
            "waiting with poll: more descriptors are watched than the process may open, for the \
             limit has been lowered; raise it (`ulimit -n`), or use another poller",
        ),
        _ => e,
    }
}

fn entry(fd: RawFd, interest: Interest) -> libc::pollfd {
    libc::pollfd { fd, events: libc::c_short::from(interest.bits()), revents: 0 }
}

fn silent(fd: RawFd) -> RawFd {
    !fd
}

/// The descriptor of an entry, silent or not.
fn number(entry: &libc::pollfd) -> RawFd {
    if entry.fd < 0 { !entry.fd } else { entry.fd }
}

const _: () = {
    assert!(Interest::READ.bits() as libc::c_short == libc::POLLIN);
    assert!(Interest::WRITE.bits() as libc::c_short == libc::POLLOUT);
    assert!(Ready::READ.bits() as libc::c_short == libc::POLLIN);
    assert!(Ready::WRITE.bits() as libc::c_short == libc::POLLOUT);
    assert!(Ready::ERROR.bits() as libc::c_short == libc::POLLERR);
    assert!(Ready::HANGUP.bits() as libc::c_short == libc::POLLHUP);
};
