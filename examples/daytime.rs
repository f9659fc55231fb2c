//! TCP daytime (RFC 867): see `simple_all/daytime.rs`.

mod common;
#[path = "simple_all/daytime.rs"]
mod daytime;

use std::process::ExitCode;

const HELP: &str = "\
Tells the date and time (UTC) in one line over TCP.

Usage: daytime [--listen ADDRESS] [--threads N] [--poller KIND]

  --listen ADDRESS  where to listen; port 0 is any free one [127.0.0.1:2013]
  --threads N       threads that serve connections; 0: the accepting one [0]
  --poller KIND     epoll, poll or kqueue [the best of this system, or RUDUO_POLLER]
  --help            this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    common::run_server(HELP, 2013, daytime::serve)
}
