//! mio, as its `tcp_server` and `udp_server` examples have it: edge-triggered, so that each event is
//! read until nothing is left.

mod common;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use common::Task;
use mio::net::{TcpListener, TcpStream, UdpSocket};
use mio::{Events, Interest, Poll, Token};

const SERVER: Token = Token(0);

fn main() -> ExitCode {
    common::run(|task| match task.name.as_str() {
        "echo" => echo(task),
        "udp" => udp(task),
        _ => common::unknown(task),
    })
}

struct Peer {
    stream: TcpStream,
    unsent: Vec<u8>,
}

fn echo(task: &Task) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(256);
    let mut listener = TcpListener::bind(task.address)?;
    poll.registry().register(&mut listener, SERVER, Interest::READABLE)?;
    common::listening(listener.local_addr()?)?;

    let mut peers: HashMap<Token, Peer> = HashMap::new();
    let mut next = Token(SERVER.0 + 1);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if let Err(e) = poll.poll(&mut events, None)
            && e.kind() != io::ErrorKind::Interrupted
        {
            return Err(e);
        }
        for event in &events {
            if event.token() == SERVER {
                loop {
                    let (mut stream, _) = match listener.accept() {
                        Ok(accepted) => accepted,
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                        Err(e) => return Err(e),
                    };
                    stream.set_nodelay(true)?;
                    let interest = Interest::READABLE | Interest::WRITABLE;
                    poll.registry().register(&mut stream, next, interest)?;
                    peers.insert(next, Peer { stream, unsent: Vec::new() });
                    next.0 += 1;
                }
            } else if let Some(peer) = peers.get_mut(&event.token())
                && !serve(peer, &mut buffer).unwrap_or(false)
                && let Some(mut peer) = peers.remove(&event.token())
            {
                poll.registry().deregister(&mut peer.stream)?;
            }
        }
    }
}

/// False at the end of the stream.
fn serve(peer: &mut Peer, buffer: &mut [u8]) -> io::Result<bool> {
    loop {
        while !peer.unsent.is_empty() {
            match peer.stream.write(&peer.unsent) {
                Ok(n) => drop(peer.unsent.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e),
            }
        }
        let n = match peer.stream.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(e) => return Err(e),
        };
        let sent = match peer.stream.write(&buffer[..n]) {
            Ok(sent) => sent,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => return Err(e),
        };
        peer.unsent.extend_from_slice(&buffer[sent..n]);
    }
}

fn udp(task: &Task) -> io::Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1);
    let mut socket = UdpSocket::bind(task.address)?;
    poll.registry().register(&mut socket, SERVER, Interest::READABLE)?;
    common::listening(socket.local_addr()?)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        if let Err(e) = poll.poll(&mut events, None)
            && e.kind() != io::ErrorKind::Interrupted
        {
            return Err(e);
        }
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            // A full socket buffer drops the datagram, as a network does.
            let _dropped = socket.send_to(&buffer[..n], from);
        }
    }
}
