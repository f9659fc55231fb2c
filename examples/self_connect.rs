//! A TCP socket that is connected to itself, and a client that is not fooled by it.
//!
//! Who connects to a port of its own machine at which nobody listens is refused, mostly. But the
//! kernel chooses the socket's own port from the same range, and when it happens to choose the very
//! port to connect to, the two ends of the connection are one: what is sent comes back. (That is a
//! simultaneous open, RFC 9293, 3.5, with oneself.) A client that connects to its server again and
//! again while that is down meets this after some ten thousand attempts, then talks to itself, and
//! its server cannot even start, for the port is taken.
//!
//! Shown here in two ways. First by a plain socket, which binds the port before it connects to it, so
//! that nobody has to wait for the coincidence. Then by a client in the same position: it compares the
//! two addresses, closes the connection, tells the program, and tries again.

mod common;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use common::{Ending, Stop, print};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use ruduo::{ConnectError, EventLoop, Retry, TcpClient, TcpServer};

const HELP: &str = "\
Shows a TCP connection of a socket to itself, and a client that notices and tries again.

Usage: self_connect [--port N]

  --port N   the port at which nobody listens, on 127.0.0.1; 0: any free one [0]
  --help     this text";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let mut port = 0;
        while let Some(argument) = arguments.next()? {
            match argument {
                common::Long("port") => port = arguments.value()?,
                other => return Err(other.unexpected().into()),
            }
        }
        show(port).map_err(Stop::Failed)
    })
}

fn show(port: u16) -> io::Result<()> {
    // Held for a moment to see that it is free, and to learn its number.
    let address = TcpListener::bind(("127.0.0.1", port))?.local_addr()?;
    by_a_plain_socket(address)?;
    by_a_client(address)
}

fn by_a_plain_socket(address: SocketAddr) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
    let itself = SockaddrStorage::from(address);
    bind(fd.as_raw_fd(), &itself)?;
    connect(fd.as_raw_fd(), &itself)?;
    let mut stream = TcpStream::from(fd);
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    print(format_args!("a plain socket: {local} is connected to {peer}"))?;
    stream.write_all(b"hello?")?;
    let mut back = [0; 6];
    stream.read_exact(&mut back)?;
    let back = String::from_utf8_lossy(&back);
    print(format_args!("a plain socket: what it sent came back: {back}"))?;
    // A reset, for otherwise the port is not free for a minute (TIME_WAIT).
    let reset = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &reset)?;
    Ok(())
}

fn by_a_client(address: SocketAddr) -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let second = Duration::from_secs(1);
    TcpClient::connect(&event_loop, address)
        .bind_local(address)
        .retry(Retry::exponential().between(second, second).at_most(3))
        .on_connect_failed(move |event_loop, failure| {
            let first = failure.error == ConnectError::SelfConnected && failure.attempt == 1;
            let shown = print(format_args!("a client: {failure}"))
                .and_then(|()| if first { serve(event_loop) } else { Ok(()) });
            if let Err(e) = shown {
                event_loop.local::<Ending>().fails(event_loop, e);
            } else if failure.retry_in.is_none() {
                event_loop.quit();
            }
        })
        .on_message(|_, _| {})
        .start()?;
    event_loop.run()?;
    event_loop.local::<Ending>().outcome()
}

/// The server that was missing, and a client that finds it.
fn serve(event_loop: &EventLoop) -> io::Result<()> {
    let server = TcpServer::bind(event_loop, "127.0.0.1:0")?
        .on_message(|conn, input| conn.send_buffer(input))
        .start()?;
    TcpClient::connect(event_loop, server.local_addr())
        .on_connect(|conn| conn.send("hello?"))
        .on_message(|conn, _| {
            let peer = conn.peer_addr();
            let event_loop = conn.event_loop();
            match print(format_args!("a client: {peer} answers, and is somebody else")) {
                Ok(()) => event_loop.quit(),
                Err(e) => event_loop.local::<Ending>().fails(event_loop, e),
            }
        })
        .start()?;
    Ok(())
}
