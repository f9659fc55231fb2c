//! Heartbeats: a client and a server that notice that the other one hangs.
//!
//! A process that is stopped, or stuck in a loop, is no matter for TCP: its kernel goes on
//! acknowledging, and answering the kernel's own keepalive. Only the program itself can show that it is
//! alive, by saying something now and then. So both sides send a line each interval, and both close
//! a connection on which nothing has come for the timeout: that is the idle time, a setting, for which
//! what is received counts and what is sent does not.
//!
//! The timeout allows for some lost time: three intervals by default, for a heartbeat that comes late
//! is no reason to give a peer up.

mod common;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use common::{Ending, Long};
use ruduo::{
    Address, Buffer, Client, CloseReason, Connection, EventLoop, Handler, LineCodec, Server,
};

const HELP: &str = "\
Sends a heartbeat each interval, and closes connections on which none comes.

Usage: heartbeat [--listen ADDRESS] [--threads N] [--interval SECONDS] [--timeout SECONDS]
       heartbeat --connect ADDRESS [--interval SECONDS] [--timeout SECONDS]

  --listen ADDRESS     where to listen; port 0 is any free one [127.0.0.1:2022]
  --threads N          threads that serve connections; 0: the accepting one [0]
  --connect ADDRESS    be a client, of the server there
  --interval SECONDS   how often to send a heartbeat; fractions are allowed [1]
  --timeout SECONDS    how long the other side may send none [3]
  --help               this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
A client whose server hangs ends with status 1. To see it: kill -STOP one of the two.";

const BEAT: u64 = 0;

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads, mut server) = (common::loopback(2022), 0, None);
        let (mut interval, mut timeout) = (Duration::from_secs(1), Duration::from_secs(3));
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("connect") => server = Some(arguments.value()?),
                Long("interval") => interval = common::seconds("--interval", arguments.value()?)?,
                Long("timeout") => timeout = common::seconds("--timeout", arguments.value()?)?,
                other => return Err(other.unexpected().into()),
            }
        }
        if timeout <= interval {
            let why = "--timeout: longer than --interval, or every connection is given up";
            return Err(common::usage(why));
        }
        let event_loop = EventLoop::new()?;
        match server {
            Some(server) => Ok(connect(&event_loop, server, interval, timeout)?),
            None => {
                let server = Server::bind(&event_loop, listen)?
                    .threads(threads)
                    .idle_timeout(timeout)
                    .serve(move |_| Beating::new(interval))?;
                server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
                common::announce(format_args!("listening on {}", server.local_addr()))?;
                Ok(event_loop.run()?)
            }
        }
    })
}

struct Beating {
    interval: Duration,
    lines: LineCodec,
    /// A client's, which ends with its connection.
    ending: Option<Ending>,
}

impl Beating {
    fn new(interval: Duration) -> Beating {
        Beating { interval, lines: LineCodec::lf_or_crlf().max_len(1000), ending: None }
    }
}

impl Handler for Beating {
    fn on_connect(&mut self, conn: &Connection) {
        if let Some(ending) = &self.ending {
            let told = common::announce(format_args!("connected to {}", conn.peer_addr()));
            if let Err(e) = told {
                ending.fails(conn.event_loop(), e);
            }
        }
        self.on_timer(conn, BEAT);
    }

    fn on_timer(&mut self, conn: &Connection, _: u64) {
        if conn.takes_output() {
            conn.send("alive\n");
            conn.set_timer(BEAT, self.interval);
        }
    }

    /// What is said does not matter, only that something is.
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        while let Some(line) = self.lines.decode(conn, input) {
            log::debug!("{}: {}", conn.peer_addr(), String::from_utf8_lossy(line));
        }
    }

    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        log::info!("{}: {reason}", conn.peer_addr());
        if let Some(ending) = &self.ending {
            ending.closed(conn.event_loop(), &format!("lost {}", conn.peer_addr()), reason);
        }
    }
}

/// A client: ends with its connection.
fn connect(
    event_loop: &EventLoop,
    server: Address,
    interval: Duration,
    timeout: Duration,
) -> io::Result<()> {
    let ending = Ending::default();
    let (not_connected, of_handler) = (ending.clone(), ending.clone());
    let client = Client::connect(event_loop, server)
        .idle_timeout(timeout)
        .on_connect_failed(move |event_loop, e| not_connected.not_connected(event_loop, e))
        .serve(move |_| Beating { ending: Some(of_handler.clone()), ..Beating::new(interval) })?;
    ending.run(event_loop, &client)
}
