//! A SOCKS proxy, versions 4 and 4a: the client says where to, and from then on this is a relay.
//!
//! ```text
//!   client:   4 │ command │ port (2) │ address (4) │ user, 0 [│ name, 0]     the name if the address
//!   server:   0 │ result  │ port (2) │ address (4)                           is 0.0.0.x, x not 0
//! ```
//!
//! What the client sends behind its request is for the target, and waits until that is there. The
//! relay itself is [`ruduo::Relay`]; how the other side is connected is in `common/dial.rs`.
//!
//! Whoever reaches a proxy reaches all that it reaches. There is no password in this protocol, so
//! listen where only friends are.

#[path = "common/dial.rs"]
mod dial;

mod common;

use std::io;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use common::Long;
use dial::{Deadlines, Front};
use ruduo::{
    Buffer, CloseReason, Connection, DecodeError, EventLoop, Handler, Keepalive, Relay, Server,
};

const HELP: &str = "\
A SOCKS proxy, versions 4 and 4a. Try it: curl -x socks4a://127.0.0.1:1080 URL

Usage: socks4a [--listen ADDRESS] [--threads N] [--max N] [--request-timeout SECONDS]

  --listen ADDRESS           where to listen; port 0 is any free one [127.0.0.1:1080]
  --threads N                threads that serve connections; 0: the accepting one [0]
  --max N                    how many connections may be open at once [10000]
  --request-timeout SECONDS  how long a client may take for its request [10]
  --help                     this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

const DEADLINES: Deadlines =
    Deadlines { stall: Duration::from_secs(60), patience: Duration::from_secs(3600) };

/// The key of a timer: the whole request has to come by then.
const REQUEST: u64 = 0;

const GRANTED: u8 = 90;
const REJECTED: u8 = 91;

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads, mut max) = (common::loopback(1080), 0, 10_000);
        let mut timeout = Duration::from_secs(10);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("max") => max = arguments.value()?,
                Long("request-timeout") => {
                    timeout = common::seconds("--request-timeout", arguments.value()?)?;
                }
                other => return Err(other.unexpected().into()),
            }
        }
        let is_tcp = listen.as_ip().is_some();
        let event_loop = EventLoop::new()?;
        let mut server = Server::bind(&event_loop, listen)?
            .threads(threads)
            .max_connections(max)
            .write_stall_timeout(DEADLINES.stall);
        if is_tcp {
            server = server.keepalive(Keepalive::default());
        }
        let server = server.serve(move |conn| {
            conn.set_timer(REQUEST, timeout);
            Session::Asked
        })?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        println!("listening on {}", server.local_addr());
        Ok(event_loop.run()?)
    })
}

enum Session {
    /// The request has not come, or not all of it.
    Asked,
    /// Its target is being connected.
    Joining,
    Joined(Relay),
    /// It was told that there will be nothing.
    Refused,
}

impl Handler for Session {
    fn on_timer(&mut self, conn: &Connection, _: u64) {
        log::debug!("{}: no request in time", conn.peer_addr());
        conn.close();
    }

    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        match self {
            Session::Joined(relay) => relay.on_message(conn, input),
            Session::Asked => match parse(input.readable()) {
                Ok(Some((target, len))) => {
                    input.consume(len);
                    conn.cancel_timer(REQUEST);
                    log::debug!("{} wants {target}", conn.peer_addr());
                    *self = Session::Joining;
                    dial::join::<Session>(conn, target, DEADLINES);
                }
                Ok(None) => {}
                Err(why) => {
                    conn.cancel_timer(REQUEST);
                    conn.reject(input, DecodeError::new(0, why));
                    conn.send(reply(REJECTED));
                    *self = Session::Refused;
                }
            },
            // What is left of the input comes again when the target is there.
            Session::Joining | Session::Refused => {}
        }
    }

    fn on_half_close(&mut self, conn: &Connection) {
        match self {
            Session::Joined(relay) => relay.on_half_close(conn),
            _ => conn.shutdown(),
        }
    }

    fn on_stopping(&mut self, conn: &Connection) {
        match self {
            Session::Joined(relay) => relay.on_stopping(conn),
            _ => conn.close(),
        }
    }

    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        log::debug!("{}: {reason}", conn.peer_addr());
        if let Session::Joined(relay) = self {
            relay.on_close(conn, reason);
        }
    }
}

impl Front for Session {
    fn joined(&mut self, conn: &Connection, outcome: io::Result<Relay>) {
        match outcome {
            Ok(relay) => {
                conn.send(reply(GRANTED));
                *self = Session::Joined(relay);
            }
            Err(e) => {
                log::info!("{}: {e}", conn.peer_addr());
                conn.send(reply(REJECTED));
                conn.finish();
                *self = Session::Refused;
            }
        }
    }
}

fn reply(result: u8) -> [u8; 8] {
    [0, result, 0, 0, 0, 0, 0, 0]
}

/// Names and users are not longer than this.
const MOST: usize = 255;

/// Where a request wants to go, and how long it is. `None` if not all of it is there; an error as soon
/// as it can't be one.
fn parse(input: &[u8]) -> Result<Option<(String, usize)>, &'static str> {
    match input {
        [] => return Ok(None),
        [4, ..] => {}
        _ => return Err("not SOCKS version 4"),
    }
    match input.get(1) {
        None => return Ok(None),
        Some(1) => {}
        Some(_) => return Err("a command other than CONNECT"),
    }
    let Some((&[_, _, port1, port2, a, b, c, d], rest)) = input.split_first_chunk() else {
        return Ok(None);
    };
    let port = u16::from_be_bytes([port1, port2]);
    if port == 0 {
        return Err("port 0");
    }
    let Some(end) = end_of_text(rest)? else { return Ok(None) };
    let behind_user = &rest[end + 1..];
    let address = Ipv4Addr::new(a, b, c, d);
    let (target, behind) = if [a, b, c] == [0; 3] && d != 0 {
        let Some(end) = end_of_text(behind_user)? else { return Ok(None) };
        let name = std::str::from_utf8(&behind_user[..end]);
        let name = name.map_err(|_| "a name that is not text")?;
        if name.is_empty() || name.contains(|c: char| c.is_ascii_control() || c == ':') {
            return Err("a name that can't be one");
        }
        (format!("{name}:{port}"), &behind_user[end + 1..])
    } else {
        (format!("{address}:{port}"), behind_user)
    };
    Ok(Some((target, input.len() - behind.len())))
}

/// Where the text that begins here ends, with a 0. `None` if that is not there yet.
fn end_of_text(input: &[u8]) -> Result<Option<usize>, &'static str> {
    match input.iter().take(MOST + 1).position(|byte| *byte == 0) {
        None if input.len() > MOST => Err("a user or name of more than 255 bytes"),
        end => Ok(end),
    }
}
