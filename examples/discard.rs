//! TCP discard (RFC 863): see `simple_all/discard.rs`.

mod common;
#[path = "simple_all/discard.rs"]
mod discard;
#[path = "simple_all/throughput.rs"]
mod throughput;

use std::process::ExitCode;

const HELP: &str = "\
Throws away what it receives over TCP, and logs every 3 seconds how much that was.

Usage: discard [--listen ADDRESS] [--threads N] [--poller KIND]

  --listen ADDRESS  where to listen; port 0 is any free one [127.0.0.1:2009]
  --threads N       threads that serve connections; 0: the accepting one [0]
  --poller KIND     epoll, poll or kqueue [the best of this system, or RUDUO_POLLER]
  --help            this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    common::run_server(HELP, 2009, discard::serve)
}
