//! TCP echo (RFC 862): sends back what it receives, and closes when the peer has finished and
//! everything was echoed.

mod common;

use std::process::ExitCode;
use std::time::Duration;

use common::Long;
use ruduo::{EventLoop, Server, UnixAddress};

const HELP: &str = "\
Echoes what it receives, over TCP or a Unix socket.

Usage: echo [--listen ADDRESS] [--unix PATH] [--threads N] [--poller KIND]

  --listen ADDRESS  where to listen; port 0 is any free one [127.0.0.1:2007]
  --unix PATH       listen on a Unix socket instead, the same as --listen unix:PATH
  --threads N       threads that serve connections; 0: the accepting one [0]
  --poller KIND     epoll, poll or kqueue [the best of this system, or RUDUO_POLLER]
  --help            this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads) = (common::loopback(2007), 0);
        let mut event_loop = EventLoop::builder();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("unix") => listen = UnixAddress::Path(arguments.value()?).into(),
                Long("threads") => threads = arguments.value()?,
                Long("poller") => event_loop = event_loop.poller(arguments.value()?),
                other => return Err(other.unexpected().into()),
            }
        }
        let event_loop = event_loop.build()?;
        let server = Server::bind(&event_loop, listen)?
            .threads(threads)
            .on_message(|conn, input| conn.send_buffer(input))
            .start()?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        common::announce(format_args!("listening on {}", server.local_addr()))?;
        Ok(event_loop.run()?)
    })
}
