//! TCP discard (RFC 863): see `simple_all/discard.rs`.

mod common;
#[path = "simple_all/discard.rs"]
mod discard;
#[path = "simple_all/throughput.rs"]
mod throughput;

use std::process::ExitCode;
use std::time::Duration;

use ruduo::{EventLoop, TcpServer};

const HELP: &str = "\
Throws away what it receives over TCP, and logs every 3 seconds how much that was.

Usage: discard [--listen ADDRESS] [--threads N]

  --listen ADDRESS  where to listen; port 0 is any free one [127.0.0.1:2009]
  --threads N       threads that serve connections; 0: the accepting one [0]
  --help            this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    common::run(HELP, |arguments| {
        let (listen, threads) = common::listen_and_threads(arguments, 2009)?;
        let event_loop = EventLoop::new()?;
        let server = discard::serve(TcpServer::bind(&event_loop, listen)?.threads(threads))?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        println!("listening on {}", server.local_addr());
        Ok(event_loop.run()?)
    })
}
