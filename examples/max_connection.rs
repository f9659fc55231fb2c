//! An echo with a limited number of places. Who finds none free is told so, in a line.
//!
//! The server counts, refuses and tells. Its counts are those of all threads together, and a place is
//! given back before the socket is closed: who sees another leave finds it free. What a refused peer
//! has sent by then does not turn the end of the stream into a reset, at which the line might be lost;
//! `Server::refuse_with` says what that costs.

mod common;

use std::process::ExitCode;
use std::time::Duration;

use common::Long;
use ruduo::{EventLoop, Server};

const HELP: &str = "\
Echoes what it receives over TCP, for a limited number of connections at a time.

Usage: max_connection [--listen ADDRESS] [--threads N] [--max N] [--max-per-peer N]

  --listen ADDRESS   where to listen; port 0 is any free one [127.0.0.1:2007]
  --threads N        threads that serve connections; 0: the accepting one [0]
  --max N            how many connections are served at a time, by all threads [5]
  --max-per-peer N   how many of them may come from one address [as many as there are]
  --help             this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads) = (common::loopback(2007), 0);
        let (mut max, mut max_per_peer) = (5, usize::MAX);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("max") => max = arguments.value()?,
                Long("max-per-peer") => max_per_peer = arguments.value()?,
                other => return Err(other.unexpected().into()),
            }
        }
        let event_loop = EventLoop::new()?;
        let server = Server::bind(&event_loop, listen)?
            .threads(threads)
            .max_connections(max)
            .max_connections_per_peer(max_per_peer)
            .refuse_with(*b"all places are taken, try again later\r\n")
            .on_message(|conn, input| conn.send_buffer(input))
            .start()?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        common::announce(format_args!("listening on {}", server.local_addr()))?;
        Ok(event_loop.run()?)
    })
}
