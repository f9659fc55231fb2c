//! Five small services of the early Internet on one loop, or on the threads of one pool: echo
//! (RFC 862) and four that have a file of their own.

#[path = "../common/mod.rs"]
mod common;

mod chargen;
mod daytime;
mod discard;
mod throughput;
mod time;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Duration;

use common::{Long, Stop};
use ruduo::{EventLoop, LoopPool, Server, ServerHandle, TcpServer};

const HELP: &str = "\
Serves echo, discard, daytime, chargen and time over TCP, all in one loop.

Usage: simple_all [--ip ADDRESS] [--base-port PORT] [--threads N]

  --ip ADDRESS      where to listen [127.0.0.1]
  --base-port PORT  a service's port is this plus its well-known one (echo 7, discard 9,
                    daytime 13, chargen 19, time 37); 0: any free ones [2000]
  --threads N       threads that serve connections, of all services; 0: the accepting one [0]
  --help            this text

Standard output gets a line for each service, in the order above: listening on ADDRESS.
SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

type Serve = fn(Server<'_>) -> io::Result<ServerHandle>;

/// Each with its well-known port, in the order of those.
const SERVICES: [(&str, u16, Serve); 5] = [
    ("echo", 7, echo),
    ("discard", 9, discard::serve),
    ("daytime", 13, daytime::serve),
    ("chargen", 19, chargen::serve),
    ("time", 37, time::serve),
];

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut ip, mut base_port, mut threads) = (IpAddr::from(Ipv4Addr::LOCALHOST), 2000, 0);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("ip") => ip = arguments.value()?,
                Long("base-port") => base_port = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                other => return Err(other.unexpected().into()),
            }
        }
        let [.., (_, highest, _)] = SERVICES;
        if base_port > u16::MAX - highest {
            let why = format!("--base-port {base_port} leaves no room for the ports above it");
            return Err(Stop::Usage(why.into()));
        }
        Ok(serve(ip, base_port, threads)?)
    })
}

fn serve(ip: IpAddr, base_port: u16, threads: usize) -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let pool = LoopPool::builder(&event_loop).threads(threads).start()?;
    let start = |(name, well_known, serve): (&'static str, u16, Serve)| {
        let port = if base_port == 0 { 0 } else { base_port + well_known };
        let server = TcpServer::bind(&event_loop, (ip, port))?.pool(&pool);
        Ok((name, serve(server)?))
    };
    // All of them listen, or none is announced.
    let services: Vec<_> = SERVICES.into_iter().map(start).collect::<io::Result<_>>()?;
    for (name, server) in services {
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        log::info!("{name} on {}", server.local_addr());
        common::announce(format_args!("listening on {}", server.local_addr()))?;
    }
    event_loop.run()
}

fn echo(server: Server<'_>) -> io::Result<ServerHandle> {
    server.on_message(|conn, input| conn.send_buffer(input)).start()
}
