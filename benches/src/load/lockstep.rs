//! A load that does a known number of things, for tools that count: one request on each connection,
//! then one reply on each, and again. It is slow, and the same each time.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::process::Process;

/// A server that takes longer than this for one answer has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// How long a server may rest before it is asked again, so that who looks for more than was there
/// does so in vain, as with a client that is not slowed down by a tool.
const PAUSE: Duration = Duration::from_micros(100);

/// What is said to a server, and what it must answer.
#[derive(Clone, Copy)]
pub(crate) enum Exchange {
    /// As many bytes, which come back.
    Echo(usize),
    /// One request for `/`, which is answered with 200 and a length.
    Http,
}

/// Exchanges `messages` in all, on `connections` that are opened for it.
pub(crate) fn messages(
    server: SocketAddr,
    exchange: Exchange,
    connections: usize,
    messages: usize,
) -> io::Result<()> {
    let request = request(server, exchange);
    let mut streams =
        (0..connections).map(|_| connect(server)).collect::<io::Result<Vec<TcpStream>>>()?;
    for _ in 0..messages / connections {
        std::thread::sleep(PAUSE);
        for stream in &mut streams {
            stream.write_all(&request)?;
        }
        for stream in &mut streams {
            answer(stream, exchange, &request)?;
        }
    }
    Ok(())
}

/// Makes `count` connections, `at_once` at a time; on each one message is echoed, and then the
/// client resets it.
pub(crate) fn churn(server: SocketAddr, at_once: usize, count: usize) -> io::Result<()> {
    let exchange = Exchange::Echo(16);
    let request = request(server, exchange);
    for _ in 0..count / at_once {
        std::thread::sleep(PAUSE);
        let mut streams =
            (0..at_once).map(|_| connect(server)).collect::<io::Result<Vec<TcpStream>>>()?;
        for stream in &mut streams {
            stream.write_all(&request)?;
        }
        for stream in &mut streams {
            answer(stream, exchange, &request)?;
        }
        streams.into_iter().try_for_each(reset)?;
    }
    Ok(())
}

/// Exchanges `count` datagrams, `at_once` at a time. The server stands still until all of them wait
/// for it, for how many it finds in one look is what decides what one of them costs.
pub(crate) fn datagrams(
    server: SocketAddr,
    at_once: usize,
    count: usize,
    process: &Process,
) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let message = pattern(16);
    let mut answer = vec![0; message.len() + 1];
    for _ in 0..count / at_once {
        process.pause()?;
        for _ in 0..at_once {
            socket.send(&message)?;
        }
        process.resume()?;
        for _ in 0..at_once {
            let length = socket.recv(&mut answer)?;
            if answer[..length] != message {
                return Err(io::Error::other("a wrong answer"));
            }
        }
    }
    Ok(())
}

/// Connects, without Nagle's delay.
pub(crate) fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Closes with a reset, so that no port waits in TIME_WAIT.
pub(crate) fn reset(stream: TcpStream) -> io::Result<()> {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&stream, sockopt::Linger, &at_once)?;
    Ok(())
}

fn request(server: SocketAddr, exchange: Exchange) -> Vec<u8> {
    match exchange {
        Exchange::Echo(length) => pattern(length),
        Exchange::Http => format!("GET / HTTP/1.1\r\nHost: {server}\r\n\r\n").into_bytes(),
    }
}

/// Bytes that are wrong when they are moved.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

fn answer(stream: &mut TcpStream, exchange: Exchange, request: &[u8]) -> io::Result<()> {
    let mut bytes = vec![0; 64 * 1024];
    let mut length = 0;
    let wanted = loop {
        if let Some(wanted) = answer_length(exchange, &bytes[..length])?
            && length >= wanted
        {
            break wanted;
        }
        match stream.read(&mut bytes[length..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => length += n,
        }
    };
    let echoed = matches!(exchange, Exchange::Http) || &bytes[..length] == request;
    if length == wanted && echoed { Ok(()) } else { Err(io::Error::other("a wrong answer")) }
}

/// How long the answer is in all, if what has come of it tells.
fn answer_length(exchange: Exchange, come: &[u8]) -> io::Result<Option<usize>> {
    if let Exchange::Echo(length) = exchange {
        return Ok(Some(length));
    }
    let Some(end) = come.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = String::from_utf8_lossy(&come[..end]).to_ascii_lowercase();
    let mut lines = head.split("\r\n");
    let ok = lines.next().is_some_and(|status| status.starts_with("http/1.1 200"));
    let body: Option<usize> =
        lines.find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    match body {
        Some(body) if ok => Ok(Some(end + 4 + body)),
        _ => Err(io::Error::other(format!("not the answer that was asked for: {head}"))),
    }
}
