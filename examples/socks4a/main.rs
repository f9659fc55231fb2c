//! A SOCKS proxy, versions 4 and 4a: the client says where to, and from then on this is a relay.
//!
//! - [`request`]: what goes over the wire before that.
//! - [`session`]: a client from its request to its end.
//! - [`names`]: nobody's slow names keep the others waiting.
//!
//! The relay itself is [`ruduo::Relay`]; how the other side is connected is in `common/dial.rs`.
//!
//! Whoever reaches a proxy reaches all that it reaches. There is no password in this protocol, so
//! listen where only friends are.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/dial.rs"]
mod dial;

mod names;
mod request;
mod session;

use std::process::ExitCode;
use std::time::Duration;

use common::Long;
use dial::Deadlines;
use ruduo::{EventLoop, Keepalive, Server};
use session::Session;

const HELP: &str = "\
A SOCKS proxy, versions 4 and 4a. Try it: curl -x socks4a://127.0.0.1:1080 URL

Usage: socks4a [--listen ADDRESS] [--threads N] [--max N] [--request-timeout SECONDS]
               [--connect-timeout SECONDS]

  --listen ADDRESS           where to listen; port 0 is any free one [127.0.0.1:1080]
  --threads N                threads that serve connections; 0: the accepting one [0]
  --max N                    how many connections may be open at once [10000]
  --request-timeout SECONDS  how long a client may take for its request [10]
  --connect-timeout SECONDS  how long a target may take to accept, and, before that, the names
                             that the same client asked for earlier [10]
  --help                     this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads, mut max) = (common::loopback(1080), 0, 10_000);
        let mut request_timeout = Duration::from_secs(10);
        let mut deadlines = Deadlines {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(60),
            patience: Duration::from_secs(3600),
        };
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("max") => max = arguments.value()?,
                Long("request-timeout") => {
                    request_timeout = common::seconds("--request-timeout", arguments.value()?)?;
                }
                Long("connect-timeout") => {
                    deadlines.connect = common::seconds("--connect-timeout", arguments.value()?)?;
                }
                other => return Err(other.unexpected().into()),
            }
        }
        let is_tcp = listen.as_ip().is_some();
        let event_loop = EventLoop::new()?;
        let mut server = Server::bind(&event_loop, listen)?
            .threads(threads)
            .max_connections(max)
            .write_stall_timeout(deadlines.stall);
        if is_tcp {
            server = server.keepalive(Keepalive::default());
        }
        let server = server.serve(move |conn| Session::new(conn, request_timeout, deadlines))?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        common::announce(format_args!("listening on {}", server.local_addr()))?;
        Ok(event_loop.run()?)
    })
}
