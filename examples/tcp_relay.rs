//! A TCP relay: each connection to here becomes one to somewhere else, and what comes on one side
//! leaves on the other.
//!
//! All of that is [`ruduo::Relay`]. Between a fast and a slow side, the fast one waits: it is not read
//! from while more than the high-water mark waits for the other, so a relay needs little memory,
//! however much goes through it. Each direction has its own end: after the client's, the target may go
//! on answering. And what is cut on one side ends with a reset on the other, so that nobody takes a
//! part for the whole.
//!
//! This file connects the two; how, is in `common/dial.rs`.

#[path = "common/dial.rs"]
mod dial;

mod common;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use common::Long;
use dial::{Deadlines, Front, Side};
use lexopt::Arg::Value;
use ruduo::{
    Address, Buffer, CloseReason, ConnectFailure, Connection, EventLoop, Handler, Keepalive, Server,
};

const HELP: &str = "\
Relays TCP connections to another address.

Usage: tcp_relay LISTEN TARGET [--threads N] [--max N] [--connect-timeout SECONDS]
                 [--stall SECONDS] [--patience SECONDS]

  LISTEN                     where to listen; port 0 is any free one
  TARGET                     where to, as NAME:PORT or ADDRESS:PORT; looked up for each connection
  --threads N                threads that serve connections; 0: the accepting one [0]
  --max N                    how many connections may be relayed at once [10000]
  --connect-timeout SECONDS  how long the target may take to accept [10]
  --stall SECONDS            how long a side may take nothing of what waits for it [60]
  --patience SECONDS         when one side has ended, how long the other may be silent [3600]
  --help                     this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut addresses, mut threads, mut max) = (Vec::<String>::new(), 0, 10_000);
        let mut deadlines = Deadlines {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            patience: Duration::from_secs(3600),
        };
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("threads") => threads = arguments.value()?,
                Long("max") => max = arguments.value()?,
                Long("connect-timeout") => {
                    deadlines.connect = common::seconds("--connect-timeout", arguments.value()?)?;
                }
                Long("stall") => deadlines.stall = common::seconds("--stall", arguments.value()?)?,
                Long("patience") => {
                    deadlines.patience = common::seconds("--patience", arguments.value()?)?;
                }
                Value(address) if addresses.len() < 2 => {
                    addresses.push(address.into_string().map_err(lexopt::Error::from)?);
                }
                other => return Err(other.unexpected().into()),
            }
        }
        let [listen, target] = addresses
            .try_into()
            .map_err(|_| common::usage("two addresses are needed, LISTEN and TARGET"))?;
        let listen: Address =
            listen.parse().map_err(|e| common::usage(format!("LISTEN {listen}: {e}")))?;
        let target = Arc::new(common::name_and_port(&target)?);
        let event_loop = EventLoop::new()?;
        let is_tcp = matches!(listen, Address::Ip(_));
        let mut server = Server::bind(&event_loop, listen)?
            .threads(threads)
            .max_connections(max)
            .write_stall_timeout(deadlines.stall);
        if is_tcp {
            // For the silence that no deadline is for: a client that is gone without a word.
            server = server.keepalive(Keepalive::default());
        }
        let server =
            server.serve(move |_| Session { target: target.clone(), deadlines, side: None })?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        common::announce(format_args!("listening on {}", server.local_addr()))?;
        Ok(event_loop.run()?)
    })
}

struct Session {
    target: Arc<(String, u16)>,
    deadlines: Deadlines,
    /// `None` until it is connected.
    side: Option<Side>,
}

impl Front for Session {
    fn joined(&mut self, conn: &Connection, outcome: Result<Side, ConnectFailure>) {
        match outcome {
            Ok(side) => self.side = Some(side),
            Err(e) => {
                log::warn!("{}: {e}", conn.peer_addr());
                conn.reset();
            }
        }
    }
}

impl Handler for Session {
    fn on_connect(&mut self, conn: &Connection) {
        conn.pause_reading();
        let (name, port) = &*self.target;
        match dial::join::<Session>(conn, (name, *port), self.deadlines) {
            Ok(side) => self.side = Some(side),
            Err(e) => {
                log::error!("{}: {e}", conn.peer_addr());
                conn.reset();
            }
        }
    }

    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        if let Some(side) = &mut self.side {
            side.on_message(conn, input);
        }
    }

    fn on_half_close(&mut self, conn: &Connection) {
        if let Some(side) = &mut self.side {
            side.on_half_close(conn);
        }
    }

    fn on_stopping(&mut self, conn: &Connection) {
        if let Some(side) = &mut self.side {
            side.on_stopping(conn);
        }
    }

    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        log::debug!("{}: {reason}", conn.peer_addr());
        if let Some(side) = &mut self.side {
            side.on_close(conn, reason);
        }
    }
}
