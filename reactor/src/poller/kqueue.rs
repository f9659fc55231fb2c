//! The kqueue(2) backend.
//!
//! ```text
//!   interest     READ          WRITE         READ | WRITE       NONE
//!   filters      read          write         read, write        read and write, of ends only
//!
//!   the kernel's batch:   [ read 7 ][ write 9 ][ write 7, EOF ]
//!   ours:                 [ 7: READ | WRITE ][ 9: WRITE ]
//! ```
//!
//! The kernel knows filters, each of one descriptor and one direction, and tells of each by itself.
//! So a table keeps, by the descriptor's number, what was asked for, and the place of its event in
//! the batch being made, where whatever else is told of it is added. (If the kernel's batch ends
//! between two filters of a descriptor, the second one comes with the next.)
//!
//! **Changing** removes filters and adds them anew: a filter that is added while it is there keeps
//! the flags that it had, and so its mode.
//!
//! **Ends** are of directions, too. EOF of the read filter is the end of the peer's stream, EOF of
//! the write filter that of ours, and a hang-up is both. What is no socket has no half-close, and
//! perhaps a filter for one direction only: there an end of either is a hang-up. Who asks for one
//! direction is told of its end by being ready, and of a socket's hang-up by what the read or write
//! returns; who asks for nothing has both filters, so that a hang-up is noticed.
//!
//! **One-shot** filters are removed by the kernel as they fire. The other filter of the descriptor
//! is of the same shot, and is removed once the batch is read.
//!
//! **Repeating** a hang-up that nobody asked for is left to us: those filters are edge-triggered,
//! or a paused connection's input would end each wait. So is telling of a pipe whose other end was
//! closed earlier, for the kernel refuses its filter.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use nix::sys::stat::SFlag;

use super::{
    Backend, Interest, Mode, Notifier, NotifierKind, RawEvent, Ready, is_watched, not_watched,
    raw_event, refuse_files,
};
use crate::sys::kqueue::{Filter, Kevent, Queue, Repeat, Told};
use crate::token::Token;

pub(super) struct Kqueue {
    queue: Queue,
    /// Whether the kernel has EVFILT_USER. OpenBSD and NetBSD got it late.
    has_user_events: bool,
    table: RefCell<Table>,
}

#[derive(Default)]
struct Table {
    /// By the number of the descriptor.
    entries: Vec<Option<Entry>>,
    /// The kernel's batch.
    told: Vec<Kevent>,
    /// The number of the batch.
    batch: u64,
    /// One-shots that have an event in this batch.
    spent: Vec<RawFd>,
    /// Those whose event is ours to repeat.
    again: Vec<RawFd>,
}

#[derive(Clone, Copy)]
struct Entry {
    token: Token,
    interest: Interest,
    mode: Mode,
    kind: Kind,
    /// The directions that the kernel has filters for.
    filters: Interest,
    /// The directions that have ended.
    ended: Interest,
    /// What the kernel does not tell again.
    repeats: Ready,
    /// The batch that has an event of it, and the place there.
    batch: u64,
    place: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// One of its directions can end, and the other go on.
    Socket,
    /// A pipe, a terminal and the like.
    Other,
    /// A notifier made of EVFILT_USER, which is a number and has no directions.
    User,
}

/// What a kernel says when it is to watch a pipe whose other end is closed.
const BROKEN_PIPE: i32 = if cfg!(target_os = "netbsd") { libc::EBADF } else { libc::EPIPE };

const DIRECTIONS: [(Filter, Interest); 2] =
    [(Filter::Read, Interest::READ), (Filter::Write, Interest::WRITE)];

impl Kqueue {
    pub(super) fn new() -> io::Result<Kqueue> {
        let queue = Queue::new()?;
        let (number, filter) = (queue.as_fd().as_raw_fd(), Filter::User);
        let mut has_user_events = true;
        let trial = [Kevent::add(number, filter, Repeat::Clear), Kevent::delete(number, filter)];
        queue.change(&trial, |_, _| has_user_events = false)?;
        Ok(Kqueue { queue, has_user_events, table: RefCell::default() })
    }
}

impl Backend for Kqueue {
    fn add(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        interest: Interest,
        mode: Mode,
    ) -> io::Result<()> {
        let kind = if refuse_files(fd)? == SFlag::S_IFSOCK { Kind::Socket } else { Kind::Other };
        let entry = Entry::new(token, interest, mode, kind);
        self.table.borrow_mut().add(&self.queue, fd.as_raw_fd(), entry)
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
        let entry = table.entry(fd)?;
        *entry = Entry { token, interest, mode, ..*entry };
        table.watch(&self.queue, fd)
    }

    fn delete(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.table.borrow_mut().remove(&self.queue, fd.as_raw_fd())
    }

    fn wait(&self, events: &mut Vec<RawEvent>, timeout: Option<Duration>) -> io::Result<()> {
        events.clear();
        self.table.borrow_mut().wait(&self.queue, events, timeout)
    }

    fn notifier_kinds(&self) -> &'static [NotifierKind] {
        const KINDS: &[NotifierKind] =
            &[NotifierKind::UserEvent, NotifierKind::Pipe, NotifierKind::SocketPair];
        if self.has_user_events { KINDS } else { &KINDS[1..] }
    }

    fn notifier(&self, token: Token, kind: NotifierKind) -> io::Result<Notifier> {
        if kind != NotifierKind::UserEvent {
            let notifier = Notifier::new(token, kind, false)?;
            self.add(notifier.as_fd(), token, Interest::READ, notifier.mode())?;
            return Ok(notifier);
        }
        let notifier = Notifier::of_kqueue(token, self.queue.duplicate()?);
        let entry = Entry::new(token, Interest::READ, notifier.mode(), Kind::User);
        self.table.borrow_mut().add(&self.queue, notifier.as_fd().as_raw_fd(), entry)?;
        Ok(notifier)
    }
}

impl Table {
    fn entry(&mut self, fd: RawFd) -> io::Result<&mut Entry> {
        let entry = self.entries.get_mut(fd as usize).and_then(Option::as_mut);
        entry.ok_or_else(|| not_watched(fd))
    }

    fn add(&mut self, queue: &Queue, fd: RawFd, entry: Entry) -> io::Result<()> {
        let index = fd as usize;
        if self.entries.len() <= index {
            self.entries.resize(index + 1, None);
        }
        if self.entries[index].is_some() {
            return Err(is_watched(fd));
        }
        self.entries[index] = Some(entry);
        let added = match entry.kind {
            Kind::User => queue.change_all(&[Kevent::add(fd, Filter::User, Repeat::Clear)]),
            _ => self.watch(queue, fd),
        };
        added.inspect_err(|_| self.entries[index] = None)
    }

    /// What the kernel does not find when it is to be removed (ENOENT) was removed by itself: the
    /// descriptor was closed before, and perhaps its number has a new owner. Nothing is left to do.
    fn remove(&mut self, queue: &Queue, fd: RawFd) -> io::Result<()> {
        let entry = *self.entry(fd)?;
        self.entries[fd as usize] = None;
        self.again.retain(|other| *other != fd);
        let mut changes = Vec::with_capacity(2);
        match entry.kind {
            Kind::User => changes.push(Kevent::delete(fd, Filter::User)),
            _ => entry.removals(fd, &mut changes),
        }
        queue.change(&changes, |_, _| {})
    }

    /// Replaces the filters by those that the entry's interest asks for. After a failure there are
    /// none.
    fn watch(&mut self, queue: &Queue, fd: RawFd) -> io::Result<()> {
        self.again.retain(|other| *other != fd);
        let entry = self.entry(fd)?;
        if entry.kind == Kind::User {
            // It has but one filter. What came before is reported again.
            return queue.change_all(&[Kevent::trigger(fd)]);
        }
        let mut changes = Vec::with_capacity(4);
        entry.removals(fd, &mut changes);
        let removals = changes.len();
        let (wanted, repeat) = entry.wanted();
        for (filter, direction) in DIRECTIONS {
            if wanted.contains(direction) {
                changes.push(Kevent::add(fd, filter, repeat));
            }
        }
        (entry.filters, entry.ended, entry.repeats) = (wanted, Interest::NONE, Ready::empty());
        let mut outcome = Ok(());
        queue.change(&changes, |index, error| {
            if index < removals {
                // ENOENT, as in `remove`.
                return;
            }
            let direction = direction(changes[index].told().filter);
            entry.filters -= direction;
            match error.raw_os_error() {
                Some(BROKEN_PIPE) => entry.ended |= direction,
                _ => outcome = Err(error),
            }
        })?;
        if entry.interest.is_empty() && !(entry.filters | entry.ended).is_empty() {
            // One of the two will do: neither was asked for, and not everything has both.
            outcome = Ok(());
        }
        if outcome.is_err() {
            let mut changes = Vec::with_capacity(2);
            entry.removals(fd, &mut changes);
            entry.filters = Interest::NONE;
            queue.change(&changes, |_, _| {})?;
        } else if !entry.ended.is_empty() {
            entry.repeats = Ready::HANGUP | (entry.interest & entry.ended).asked();
            self.again.push(fd);
        }
        outcome
    }

    fn wait(
        &mut self,
        queue: &Queue,
        events: &mut Vec<RawEvent>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        self.batch += 1;
        let (timeout, reserved) = match self.again.len() {
            0 => (timeout, 0),
            // Both sides have their turn, be the list ever so short: of one place every other time.
            n => {
                let half = (events.capacity() + usize::from(self.batch.is_multiple_of(2))) / 2;
                (Some(Duration::ZERO), n.min(half))
            }
        };
        queue.wait(&mut self.told, events.capacity() - reserved, timeout)?;
        for index in 0..self.told.len() {
            self.note(self.told[index].told(), events);
        }
        self.repeat(events);
        self.end_shots(queue)
    }

    /// Makes an event of what the kernel tells, or adds to the one that there is.
    fn note(&mut self, told: Told, events: &mut Vec<RawEvent>) {
        let Ok(entry) = self.entry(told.fd) else { return };
        let direction = direction(told.filter);
        // Not for good: a named pipe gets new writers.
        entry.ended.set(direction, told.end);
        let mut ready = (entry.interest & direction).asked();
        ready.set(Ready::ERROR, told.error);
        ready.set(Ready::HANGUP, entry.has_hung_up());
        match (entry.mode, entry.interest.is_empty()) {
            // It has removed itself.
            (Mode::OneShot, false) => entry.filters -= direction,
            (Mode::Level, true) if !ready.is_empty() => {
                entry.repeats |= ready;
                if !self.again.contains(&told.fd) {
                    self.again.push(told.fd);
                }
            }
            _ => {}
        }
        // Nothing if there is input for one that asks for nothing.
        if !ready.is_empty() {
            self.report(told.fd, ready, events);
        }
    }

    /// Returns whether there was room.
    fn report(&mut self, fd: RawFd, ready: Ready, events: &mut Vec<RawEvent>) -> bool {
        let batch = self.batch;
        let Ok(entry) = self.entry(fd) else { return true };
        if entry.batch == batch {
            events[entry.place].events |= u32::from(ready.bits());
            return true;
        }
        if events.len() == events.capacity() {
            return false;
        }
        (entry.batch, entry.place) = (batch, events.len());
        events.push(raw_event(entry.token, ready));
        if entry.mode == Mode::OneShot {
            self.spent.push(fd);
        }
        true
    }

    fn repeat(&mut self, events: &mut Vec<RawEvent>) {
        let mut left = self.again.len();
        while let Some(fd) = self.again.first().copied().filter(|_| left > 0) {
            let Ok(Entry { mode, repeats, .. }) = self.entry(fd).copied() else { return };
            if !self.report(fd, repeats, events) {
                return;
            }
            left -= 1;
            self.again.rotate_left(1);
            if mode != Mode::Level {
                self.again.pop();
            }
        }
    }

    /// Removes what is left of one-shots.
    fn end_shots(&mut self, queue: &Queue) -> io::Result<()> {
        let mut changes = Vec::new();
        while let Some(fd) = self.spent.pop() {
            let entry = self.entry(fd)?;
            entry.removals(fd, &mut changes);
            entry.filters = Interest::NONE;
            if entry.kind == Kind::User {
                // Its filter stays, and has nothing to tell.
                entry.interest = Interest::NONE;
            }
        }
        // ENOENT, as in `remove`.
        queue.change(&changes, |_, _| {})
    }
}

impl Entry {
    fn new(token: Token, interest: Interest, mode: Mode, kind: Kind) -> Entry {
        let (filters, ended) = (Interest::NONE, Interest::NONE);
        let repeats = Ready::empty();
        Entry { token, interest, mode, kind, filters, ended, repeats, batch: 0, place: 0 }
    }

    fn has_hung_up(&self) -> bool {
        match self.kind {
            Kind::Socket => self.ended == Interest::all(),
            _ => !self.ended.is_empty(),
        }
    }

    /// The filters that it should have.
    fn wanted(&self) -> (Interest, Repeat) {
        match self.mode {
            _ if self.interest.is_empty() => (Interest::all(), Repeat::End),
            Mode::Level => (self.interest, Repeat::Level),
            Mode::Edge => (self.interest, Repeat::Clear),
            Mode::OneShot => (self.interest, Repeat::Once),
        }
    }

    /// The changes that remove those that it has.
    fn removals(&self, fd: RawFd, changes: &mut Vec<Kevent>) {
        for (filter, direction) in DIRECTIONS {
            if self.filters.contains(direction) {
                changes.push(Kevent::delete(fd, filter));
            }
        }
    }
}

fn direction(filter: Filter) -> Interest {
    match filter {
        Filter::Read | Filter::User => Interest::READ,
        Filter::Write => Interest::WRITE,
    }
}
