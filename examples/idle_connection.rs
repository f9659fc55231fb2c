//! An echo that closes connections on which nothing has come for a while.
//!
//! That is a setting of the server, so there is little to see here. A message only counts its bytes,
//! as it does anyway; a timer, one for each connection, looks at the count now and then. If there is
//! something new the time begins anew, if there is not for as long as the setting says, the
//! connection is closed: never early, and O(1) for each message. (`net/src/connection/deadlines.rs`
//! is how.)
//!
//! Only what the peer sends counts. One that does not take its echo is not heard either, once more
//! than the high-water mark waits for it; then it has the time of `write_stall_timeout`.

mod common;

use std::process::ExitCode;
use std::time::Duration;

use common::Long;
use ruduo::{CloseReason, EventLoop, Server};

const HELP: &str = "\
Echoes what it receives over TCP, and closes connections on which nothing comes.

Usage: idle_connection [--listen ADDRESS] [--threads N] [--idle SECONDS]

  --listen ADDRESS  where to listen; port 0 is any free one [127.0.0.1:2007]
  --threads N       threads that serve connections; 0: the accepting one [0]
  --idle SECONDS    how long a connection may be idle; fractions are allowed [10]
  --help            this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads) = (common::loopback(2007), 0);
        let mut idle = Duration::from_secs(10);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("idle") => idle = common::seconds("--idle", arguments.value()?)?,
                other => return Err(other.unexpected().into()),
            }
        }
        let event_loop = EventLoop::new()?;
        let server = Server::bind(&event_loop, listen)?
            .threads(threads)
            .idle_timeout(idle)
            .on_message(|conn, input| conn.send_buffer(input))
            .on_close(|conn, reason| {
                if let CloseReason::Idle { .. } = reason {
                    log::info!("closed the connection of {}: {reason}", conn.peer_addr());
                }
            })
            .start()?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        common::announce(format_args!("listening on {}", server.local_addr()))?;
        Ok(event_loop.run()?)
    })
}
