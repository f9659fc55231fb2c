//! UDP echo (RFC 862): sends each datagram back to where it came from.

mod common;

use std::process::ExitCode;
use std::time::Duration;

use common::Long;
use ruduo::{EventLoop, UdpServer};

const HELP: &str = "\
Sends each datagram back to where it came from, over UDP or a Unix datagram socket.

Usage: udp_echo [--listen ADDRESS] [--threads N] [--batch N] [--gso] [--poller KIND]

  --listen ADDRESS  where to listen; port 0 is any free one; unix:PATH and unix:@NAME
                    are Unix sockets [127.0.0.1:2007]
  --threads N       threads that serve, each with a socket on the port; 0: the first one [0]
  --batch N         datagrams received, and sent, in one system call [32]
  --gso             have the kernel join what it receives and cut what is sent (GRO, GSO)
  --poller KIND     epoll, poll or kqueue [the best of this system, or RUDUO_POLLER]
  --help            this text

SIGINT (Ctrl-C) and SIGTERM stop it; the log then tells what it has done.
RUST_LOG=debug tells of each error.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads) = (common::loopback(2007), 0);
        let (mut batch, mut gso) = (32, false);
        let mut event_loop = EventLoop::builder();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("batch") => batch = arguments.value()?,
                Long("gso") => gso = true,
                Long("poller") => event_loop = event_loop.poller(arguments.value()?),
                other => return Err(other.unexpected().into()),
            }
        }
        let event_loop = event_loop.build()?;
        let echo = UdpServer::bind(&event_loop, listen)
            .threads(threads)
            .batch(batch)
            .gro(gso)
            .gso(gso)
            .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
            .start()?;
        echo.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        common::announce(format_args!("listening on {}", echo.local_addr()))?;
        Ok(event_loop.run()?)
    })
}
