//! Takes connections off a listening socket.
//!
//! Accepting needs a descriptor. When the process has none left, the connection stays in the
//! kernel's queue and the listener stays readable, so a loop that just went on would spin. Two
//! remedies work together here:
//!
//! - The listener pauses, and a timer resumes it: established connections are not disturbed, and
//!   a short shortage costs nobody a connection.
//! - If the shortage lasts, a spare descriptor is given up for a moment to accept and close what
//!   waits, so that peers learn at once that they are refused instead of hanging (the trick is
//!   from libev's manual, "The special problem of accept()ing when you can't").

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use ruduo_reactor::sys::socket;
use ruduo_reactor::{Channel, Event, EventLoop, Interest, Source, Token};

use crate::Address;
use crate::listener::Listener;
use crate::seldom::Seldom;

/// The most connections accepted, or refused by way of the spare descriptor, in one turn.
const MAX_BURST: u32 = 64;

/// How long the listener pauses when resources are short.
const PAUSE: Duration = Duration::from_millis(100);

/// What an acceptor does with what it accepts.
pub(crate) trait Acceptance {
    fn accepted(&self, event_loop: &EventLoop, socket: OwnedFd, peer: Address);
    /// A connection was refused for want of descriptors.
    fn refused(&self);
    /// Accepting pauses.
    fn paused(&self);
}

/// A listening socket on a loop.
pub(crate) struct Acceptor {
    listener: Arc<Listener>,
    acceptance: Rc<dyn Acceptance>,
    /// How many may be accepted this turn. The number doubles from turn to turn while connections
    /// keep coming, and begins anew at one otherwise: then no call is spent on finding out that
    /// nobody else waits.
    burst: Cell<u32>,
    last_turn: Cell<u64>,
    spare: RefCell<Option<File>>,
    /// Failed attempts since the last success.
    failures: Cell<u32>,
    complaints: Seldom,
}

impl Acceptor {
    /// Starts accepting. Deregistering the token ends it and closes the listener.
    pub(crate) fn start(
        event_loop: &EventLoop,
        listener: Arc<Listener>,
        acceptance: Rc<dyn Acceptance>,
    ) -> io::Result<Token> {
        let acceptor = Acceptor {
            listener,
            acceptance,
            burst: Cell::new(1),
            last_turn: Cell::new(0),
            spare: RefCell::new(open_spare()),
            failures: Cell::new(0),
            complaints: Seldom::default(),
        };
        event_loop.register(Channel::from_source(Rc::new(acceptor), Interest::READ))
    }

    fn next_burst(&self, event_loop: &EventLoop) -> u32 {
        let turn = event_loop.metrics().turns;
        let in_a_row = self.last_turn.replace(turn) + 1 == turn;
        let burst = if in_a_row { (self.burst.get() * 2).min(MAX_BURST) } else { 1 };
        self.burst.set(burst);
        burst
    }

    /// Accepts one connection; false if the turn's accepting is over.
    fn accept(&self, event_loop: &EventLoop, token: Token) -> bool {
        let error = match socket::accept(self.listener.as_fd()) {
            Ok((socket, peer)) => {
                if self.failures.replace(0) > 0 {
                    // The shortage is over. Another thread may have taken the spare's number in
                    // it; without a spare the next one could refuse nobody.
                    let mut spare = self.spare.borrow_mut();
                    *spare = spare.take().or_else(open_spare);
                }
                self.acceptance.accepted(event_loop, socket, peer);
                return true;
            }
            Err(error) => error,
        };
        match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::EAGAIN => false,
            // This connection died in the queue; accept(2) says to go on as after EAGAIN. It counts
            // against the burst.
            Errno::ECONNABORTED
            | Errno::EPROTO
            | Errno::ENETDOWN
            | Errno::ENOPROTOOPT
            | Errno::EHOSTDOWN
            | Errno::EHOSTUNREACH
            | Errno::EOPNOTSUPP
            | Errno::ENETUNREACH => true,
            #[cfg(target_os = "linux")]
            Errno::ENONET => true,
            Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM => {
                self.run_short(event_loop, token, &error);
                false
            }
            // A firewall forbids this one (EPERM), or something we do not know. It may repeat for
            // ever, so it must not spin either.
            _ => {
                self.log(&format!("accepting a connection failed: {error}"));
                self.pause(event_loop, token);
                false
            }
        }
    }

    fn run_short(&self, event_loop: &EventLoop, token: Token, error: &io::Error) {
        let is = |errno: Errno| error.raw_os_error() == Some(errno as i32);
        let cure = if is(Errno::EMFILE) { " (check 'ulimit -n')" } else { "" };
        self.log(&format!("accepting connections pauses: {error}{cure}; established ones go on"));
        self.failures.set(self.failures.get().saturating_add(1));
        // Of this process, or of the whole system.
        let is_about_descriptors = is(Errno::EMFILE) || is(Errno::ENFILE);
        if is_about_descriptors && self.failures.get() > 1 {
            self.refuse_waiting();
        }
        self.pause(event_loop, token);
    }

    /// Accepts and closes what waits, with the spare descriptor's number. If another thread
    /// snatches the number first, they wait until the next time.
    fn refuse_waiting(&self) {
        self.spare.replace(None);
        for _ in 0..MAX_BURST {
            match socket::accept(self.listener.as_fd()) {
                Ok((socket, _)) => {
                    drop(socket);
                    self.acceptance.refused();
                }
                Err(_) => break,
            }
        }
        self.spare.replace(open_spare());
    }

    fn pause(&self, event_loop: &EventLoop, token: Token) {
        if let Err(e) = event_loop.set_interest(token, Interest::NONE) {
            return self.log(&format!("pausing a listener: {e}"));
        }
        self.acceptance.paused();
        resume_later(event_loop, token);
    }

    fn log(&self, line: &str) {
        if self.complaints.is_due() {
            log::warn!("{line}");
        }
    }
}

impl Source for Acceptor {
    fn name(&self) -> String {
        "a listener".to_owned()
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    fn on_event(self: Rc<Self>, event_loop: &EventLoop, event: Event) {
        for _ in 0..self.next_burst(event_loop) {
            if !self.accept(event_loop, event.token) {
                break;
            }
        }
    }

    /// Whatever panicked, the server goes on accepting.
    fn on_panic(&self, _: &EventLoop, _: Token) {}
}

/// Ends a pause when its time is over. Nobody else would, so a kernel that has no memory for that either
/// is asked again.
fn resume_later(event_loop: &EventLoop, token: Token) {
    event_loop.run_after(PAUSE, move |event_loop| {
        match event_loop.set_interest(token, Interest::READ) {
            Ok(()) => {}
            // The listener is gone by now.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                log::debug!("accepting connections goes on pausing: {e}");
                resume_later(event_loop, token);
            }
        }
    });
}

fn open_spare() -> Option<File> {
    File::open("/dev/null").ok()
}
