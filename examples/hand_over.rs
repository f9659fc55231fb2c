//! A server that is replaced while it serves: on SIGHUP it starts its own binary anew, which inherits
//! the listener, and ends when that serves. Nobody is refused meanwhile.
//!
//! ```text
//!   SIGHUP ──▶ old: hand_over ──starts──▶ new: from_listenfd, serves
//!              old: stops      ◀─SIGTERM── new
//!              old: drains, ends with 0
//! ```
//!
//! The old one goes on serving until the new one says that it does. So a new version that does not
//! start, for whatever reason, costs a line in the log.

mod common;

use std::process::{Child, Command, ExitCode};
use std::time::Duration;

use common::Long;
use nix::sys::signal::kill;
use nix::unistd::{Pid, getppid};
use ruduo::{EventLoop, Server, ServerHandle, Signal};
use ruduo_net::ListenFd;

const HELP: &str = "\
Echoes what it receives, and hands its listener over to a new instance of itself on SIGHUP.

Usage: hand_over [--listen ADDRESS] [--threads N]

  --listen ADDRESS  where to listen if no listener is inherited (LISTEN_FDS, as from systemd);
                    port 0 is any free one [127.0.0.1:2007]
  --threads N       threads that serve connections; 0: the accepting one [0]
  --help            this text

Install a new version in the place of the old one, and send SIGHUP.
SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.";

/// Tells the new instance whom it replaces.
const PREDECESSOR: &str = "HAND_OVER_PREDECESSOR";

fn main() -> ExitCode {
    // First of all: this changes the environment, which is no good beside other threads.
    let mut inherited = ListenFd::from_env();
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads) = (common::loopback(2007), 0);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                other => return Err(other.unexpected().into()),
            }
        }
        let event_loop = EventLoop::new()?;
        let server = match Server::from_listenfd(&event_loop, &mut inherited, 0)? {
            Some(server) => server,
            None => Server::bind(&event_loop, listen)?,
        };
        // Who is connected when we stop may go on until the deadline.
        let server = server
            .threads(threads)
            .on_message(|conn, input| conn.send_buffer(input))
            .on_stopping(|_| {})
            .start()?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        replace_on_sighup(&event_loop, server.clone())?;
        common::announce(format_args!("listening on {}", server.local_addr()))?;
        if let Some(predecessor) = predecessor() {
            kill(predecessor, Signal::SIGTERM).map_err(std::io::Error::from)?;
        }
        Ok(event_loop.run()?)
    })
}

fn replace_on_sighup(event_loop: &EventLoop, server: ServerHandle) -> std::io::Result<()> {
    // Asked for now: later the file may have been replaced, which is the point.
    let program = std::env::current_exe()?;
    let mut successor: Option<Child> = None;
    event_loop.on_signal(Signal::SIGHUP, move |_, _| {
        // One that has failed is gone by the next time.
        if let Some(Ok(None)) = successor.as_mut().map(Child::try_wait) {
            log::warn!("a successor has been started and does not serve yet");
            return;
        }
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1));
        command.env(PREDECESSOR, std::process::id().to_string());
        match ServerHandle::hand_over(&[&server], command) {
            Ok(child) => {
                log::info!("handing over to process {}", child.id());
                successor = Some(child);
            }
            Err(e) => log::error!("{e}"),
        }
    })?;
    Ok(())
}

/// The process that has started this one in order to be replaced, if it is still there.
fn predecessor() -> Option<Pid> {
    let pid = std::env::var(PREDECESSOR).ok()?.parse().ok().map(Pid::from_raw)?;
    (pid == getppid()).then_some(pid)
}
