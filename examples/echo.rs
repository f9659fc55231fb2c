//! TCP echo (RFC 862): sends back what it receives, and closes when the peer has finished and
//! everything was echoed.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::prelude::*;
use ruduo::{EventLoop, TcpServer};

const HELP: &str = "\
Echoes what it receives over TCP.

Usage: echo [--listen ADDRESS] [--threads N]

  --listen ADDRESS  where to listen; port 0 is any free one [127.0.0.1:2007]
  --threads N       threads that serve connections; 0: the accepting one [0]
  --help            this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let (listen, threads) = match arguments() {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(e) => {
            eprintln!("echo: {e} (see --help)");
            return ExitCode::from(2);
        }
    };
    match echo(listen, threads) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("echo: {e}");
            ExitCode::FAILURE
        }
    }
}

fn echo(listen: SocketAddr, threads: usize) -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let server = TcpServer::bind(&event_loop, listen)?
        .threads(threads)
        .on_message(|conn, input| conn.send_buffer(input))
        .start()?;
    server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
    println!("listening on {}", server.local_addr());
    event_loop.run()
}

fn arguments() -> Result<Option<(SocketAddr, usize)>, lexopt::Error> {
    let (mut listen, mut threads) = (SocketAddr::from(([127, 0, 0, 1], 2007)), 0);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("listen") => listen = parser.value()?.parse()?,
            Long("threads") => threads = parser.value()?.parse()?,
            Long("help") | Short('h') => return Ok(None),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Some((listen, threads)))
}
