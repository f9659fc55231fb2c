//! TCP time (RFC 868): see `simple_all/time.rs`.

mod common;
#[path = "simple_all/time.rs"]
mod time;

use std::process::ExitCode;

const HELP: &str = "\
Tells the seconds since 1900 over TCP, as 32 bits in network byte order.

Usage: time [--listen ADDRESS] [--threads N] [--poller KIND]

  --listen ADDRESS  where to listen; port 0 is any free one [127.0.0.1:2037]
  --threads N       threads that serve connections; 0: the accepting one [0]
  --poller KIND     epoll, poll or kqueue [the best of this system, or RUDUO_POLLER]
  --help            this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    common::run_server(HELP, 2037, time::serve)
}
