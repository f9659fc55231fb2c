//! Ending a program gracefully when it is told to.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ruduo_reactor::{EventLoop, LoopHandle, Signal};

use crate::end::Continuation;

/// What can be stopped by a signal: a server of connections or datagrams, a client.
pub(crate) trait Stops {
    /// The loop it was started on.
    fn base(&self) -> &LoopHandle;
    fn begin_stop(&self, deadline: Duration);
    fn has_ended(&self) -> bool;
    /// On the base loop: calls `f` when it has ended; at once if it has already.
    fn when_done(&self, event_loop: &EventLoop, f: Continuation);
}

/// The servers and clients that a loop stops when a signal comes; its `local` value.
#[derive(Default)]
struct StopOnSignals {
    servers: RefCell<Vec<(Rc<dyn Stops>, Duration)>>,
    /// Servers that have yet to end before the loop may quit.
    ending: Cell<usize>,
    stopping: Cell<bool>,
}

/// On SIGINT or SIGTERM, stops this one as well, and makes the loop quit when all have ended.
pub(crate) fn stop_on_signals(
    event_loop: &EventLoop,
    server: Rc<dyn Stops>,
    deadline: Duration,
) -> io::Result<()> {
    if event_loop.handle() != *server.base() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "stopping on signals: it was started on another loop",
        ));
    }
    let stop = event_loop.local::<StopOnSignals>();
    if stop.servers.borrow().is_empty() {
        let interrupt = event_loop.on_signal(Signal::SIGINT, StopOnSignals::arrived)?;
        // Both or none: a signal that is taken has to stop something.
        event_loop.on_signal(Signal::SIGTERM, StopOnSignals::arrived).inspect_err(|_| {
            event_loop.remove_signal(interrupt);
        })?;
    }
    let mut servers = stop.servers.borrow_mut();
    // Who makes many, one after the other, must not pay for all that there ever were.
    servers.retain(|(server, _)| !server.has_ended());
    servers.push((server, deadline));
    Ok(())
}

impl StopOnSignals {
    fn arrived(event_loop: &EventLoop, signal: Signal) {
        log::info!("{signal}: stopping");
        event_loop.local::<StopOnSignals>().begin(event_loop);
    }

    fn begin(&self, event_loop: &EventLoop) {
        if self.stopping.replace(true) {
            log::info!("one signal more: what has not ended yet is cut now");
            event_loop.quit();
            return;
        }
        let servers = self.servers.borrow().clone();
        self.ending.set(servers.len());
        for (server, deadline) in servers {
            server.begin_stop(deadline);
            let ended = |event_loop: &EventLoop| {
                let stop = event_loop.local::<StopOnSignals>();
                stop.ending.set(stop.ending.get() - 1);
                if stop.ending.get() == 0 {
                    event_loop.quit();
                }
            };
            server.when_done(event_loop, Box::new(ended));
        }
    }
}
