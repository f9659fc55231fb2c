//! Functions that a loop calls when the process gets a signal.
//!
//! The kernel's handler (in `sys::signal`) only sets a flag and wakes the loop, which looks at the
//! flags here and calls the functions in its task phase, where they may do anything.
//!
//! The kernel's handler may do little more than `write`. So a loop whose waker is an event of
//! kqueue, to which nothing can be written, gets a pipe for this. (kqueue's own EVFILT_SIGNAL would
//! not do the same: it reports a signal before the handler runs, even one that is ignored, and on
//! macOS not one that was sent to a thread, as by raise(3).)

use std::cell::{Cell, RefCell};
use std::io;

use nix::sys::signal::Signal;

use crate::EventLoop;
use crate::poller::Notifier;
use crate::sys::signal::Installed;

/// Names one function set by [`EventLoop::on_signal`]. Dropping it does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SignalId(u64);

pub(crate) type Callback = Box<dyn FnMut(&EventLoop, Signal)>;

#[derive(Default)]
pub(crate) struct Signals {
    installed: RefCell<Vec<(Signal, Installed)>>,
    handlers: RefCell<Vec<Handler>>,
    next_id: Cell<u64>,
    /// The loop has been woken, perhaps by a signal, since the flags were last looked at.
    woken: Cell<bool>,
    /// What the kernel's handler writes to, if it is not the waker.
    pipe: RefCell<Option<Notifier>>,
}

struct Handler {
    id: SignalId,
    signal: Signal,
    /// `None` while it runs.
    callback: Option<Callback>,
}

impl Signals {
    pub(crate) fn add(
        &self,
        signal: Signal,
        callback: Callback,
        waker: &Notifier,
        make_pipe: impl FnOnce() -> io::Result<Notifier>,
    ) -> io::Result<SignalId> {
        let mut installed = self.installed.borrow_mut();
        if !installed.iter().any(|(known, _)| *known == signal) {
            let new = self
                .install(signal, waker, make_pipe)
                .map_err(|e| io::Error::new(e.kind(), format!("handling {signal}: {e}")))?;
            installed.push((signal, new));
        }
        let id = SignalId(self.next_id.replace(self.next_id.get() + 1));
        self.handlers.borrow_mut().push(Handler { id, signal, callback: Some(callback) });
        Ok(id)
    }

    fn install(
        &self,
        signal: Signal,
        waker: &Notifier,
        make_pipe: impl FnOnce() -> io::Result<Notifier>,
    ) -> io::Result<Installed> {
        if let Some(write_end) = waker.write_end() {
            return Installed::new(signal as i32, write_end);
        }
        let mut pipe = self.pipe.borrow_mut();
        let pipe = match &mut *pipe {
            Some(pipe) => pipe,
            none => none.insert(make_pipe()?),
        };
        let write_end = pipe.write_end().ok_or(io::ErrorKind::Unsupported)?;
        Installed::new(signal as i32, write_end)
    }

    /// Takes a function out; `Some(None)` if it is running at this moment. With the last one of a
    /// signal, the signal's previous action comes back.
    pub(crate) fn remove(&self, id: SignalId) -> Option<Option<Callback>> {
        let mut handlers = self.handlers.borrow_mut();
        let index = handlers.iter().position(|handler| handler.id == id)?;
        let Handler { signal, callback, .. } = handlers.remove(index);
        if !handlers.iter().any(|other| other.signal == signal) {
            self.installed.borrow_mut().retain(|(known, _)| *known != signal);
        }
        Some(callback)
    }

    /// The loop has been woken, so a signal may have come.
    pub(crate) fn woken(&self) {
        if let Some(pipe) = &*self.pipe.borrow() {
            pipe.acknowledge();
        }
        self.woken.set(true);
    }

    /// Whether a signal may have come since [`Signals::take_arrived`].
    pub(crate) fn may_have_arrived(&self) -> bool {
        self.woken.get()
    }

    /// The functions to call now: those for signals that have come since the last call.
    pub(crate) fn take_arrived(&self) -> Vec<SignalId> {
        if !self.woken.replace(false) {
            return Vec::new();
        }
        let installed = self.installed.borrow();
        let arrived: Vec<Signal> =
            installed.iter().filter(|(_, flag)| flag.take()).map(|(signal, _)| *signal).collect();
        let handlers = self.handlers.borrow();
        handlers.iter().filter(|h| arrived.contains(&h.signal)).map(|h| h.id).collect()
    }

    /// Takes the function out for its call; `None` if it was removed earlier in the batch. Hand it
    /// back with [`Signals::finish`].
    pub(crate) fn start(&self, id: SignalId) -> Option<(Signal, Callback)> {
        let mut handlers = self.handlers.borrow_mut();
        let handler = handlers.iter_mut().find(|handler| handler.id == id)?;
        Some((handler.signal, handler.callback.take()?))
    }

    /// Puts a function back after its call, or returns it if it was removed meanwhile.
    pub(crate) fn finish(&self, id: SignalId, callback: Callback) -> Result<(), Callback> {
        let mut handlers = self.handlers.borrow_mut();
        match handlers.iter_mut().find(|handler| handler.id == id) {
            Some(handler) => {
                handler.callback = Some(callback);
                Ok(())
            }
            None => Err(callback),
        }
    }

    /// Brings all previous actions back and empties itself.
    pub(crate) fn clear(&self) -> impl Iterator<Item = Callback> + use<> {
        self.installed.take();
        self.pipe.take();
        self.handlers.take().into_iter().filter_map(|handler| handler.callback)
    }
}
