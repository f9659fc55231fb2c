//! Five small services of the early Internet on one loop, or on the threads of one pool: echo
//! (RFC 862), discard, daytime, chargen and time, each in a file of its own.

mod chargen;
#[path = "../common/mod.rs"]
mod common;
mod daytime;
mod discard;
mod throughput;
mod time;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use common::{Arguments, Long, Stop};
use ruduo::{EventLoop, LoopPool, ServerHandle, TcpServer};

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

/// The highest of the well-known ports.
const TIME: u16 = 37;

fn main() -> ExitCode {
    common::run(HELP, |arguments| {
        let Options { ip, base_port, threads } = options(arguments)?;
        let event_loop = EventLoop::new()?;
        let pool = LoopPool::builder(&event_loop).threads(threads).start()?;
        let bind = |well_known| {
            let port = if base_port == 0 { 0 } else { base_port + well_known };
            Ok::<_, io::Error>(TcpServer::bind(&event_loop, SocketAddr::new(ip, port))?.pool(&pool))
        };
        let services = [
            ("echo", echo(bind(7)?)?),
            ("discard", discard::serve(&event_loop, bind(9)?)?),
            ("daytime", daytime::serve(bind(13)?)?),
            ("chargen", chargen::serve(&event_loop, bind(19)?)?),
            ("time", time::serve(bind(TIME)?)?),
        ];
        for (name, server) in services {
            server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
            log::info!("{name} on {}", server.local_addr());
            println!("listening on {}", server.local_addr());
        }
        Ok(event_loop.run()?)
    })
}

fn echo(server: TcpServer<'_>) -> io::Result<ServerHandle> {
    server.on_message(|conn, input| conn.send_buffer(input)).start()
}

struct Options {
    ip: IpAddr,
    base_port: u16,
    threads: usize,
}

fn options(mut arguments: Arguments) -> Result<Options, Stop> {
    let mut options = Options { ip: Ipv4Addr::LOCALHOST.into(), base_port: 2000, threads: 0 };
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("ip") => options.ip = arguments.value()?,
            Long("base-port") => options.base_port = base_port(arguments.value()?)?,
            Long("threads") => options.threads = arguments.value()?,
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}

fn base_port(port: u16) -> Result<u16, lexopt::Error> {
    let highest = u16::MAX - TIME;
    if port > highest {
        return Err(format!("--base-port {port} leaves no room for the ports above it").into());
    }
    Ok(port)
}
