//! Ending a program gracefully when it is told to.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::Duration;

use ruduo_reactor::{EventLoop, Signal};

use super::handle::ServerHandle;
use super::serving;

/// The servers that a loop stops when a signal comes; its `local` value.
#[derive(Default)]
struct StopOnSignals {
    servers: RefCell<Vec<(ServerHandle, Duration)>>,
    /// Servers that have yet to end before the loop may quit.
    ending: Cell<usize>,
    stopping: Cell<bool>,
}

impl ServerHandle {
    /// On SIGINT or SIGTERM: stops this server gracefully, with `deadline`, and when it has ended
    /// makes its loop quit, so that [`EventLoop::run`] returns. With several servers on the loop,
    /// call it for each; the loop quits after the last. A second signal makes it quit at once. A line in
    /// the log, at info level, says how many connections were drained and how many cut.
    ///
    /// # Errors
    /// If `event_loop` is not the one this server was started on, or another loop of the process
    /// handles these signals.
    pub fn stop_on_signals(&self, event_loop: &EventLoop, deadline: Duration) -> io::Result<()> {
        if event_loop.handle() != self.shared.base {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "stopping a server on signals: it was started on another loop",
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
        stop.servers.borrow_mut().push((self.clone(), deadline));
        Ok(())
    }
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
            server.stop(deadline);
            serving::when_done(event_loop, server.shared.id, |event_loop| {
                let stop = event_loop.local::<StopOnSignals>();
                stop.ending.set(stop.ending.get() - 1);
                if stop.ending.get() == 0 {
                    event_loop.quit();
                }
            });
        }
    }
}
