//! Datagrams: each socket has one in flight, and sends another when it has come back, or when it
//! has been away for so long that it must be lost.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::lockstep::{PATIENCE, pattern};
use super::{Meter, Outcome};

const LOST_AFTER: Duration = Duration::from_millis(50);

/// The client's side of it.
pub(crate) struct Datagrams {
    poll: Epoll,
    sockets: Vec<(UdpSocket, Instant)>,
    message: Vec<u8>,
}

impl Datagrams {
    pub(crate) fn new(server: SocketAddr, sockets: usize, bytes: usize) -> io::Result<Datagrams> {
        let poll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let open = |i: usize| -> io::Result<(UdpSocket, Instant)> {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            poll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, i as u64))?;
            Ok((socket, Instant::now()))
        };
        let sockets = (0..sockets).map(open).collect::<io::Result<Vec<_>>>()?;
        Ok(Datagrams { poll, sockets, message: pattern(bytes) })
    }

    /// Goes on for that long.
    pub(crate) fn run(&mut self, time: Duration) -> io::Result<Outcome> {
        let mut meter = Meter::new()?;
        let until = meter.began + time;
        for (socket, sent_at) in &mut self.sockets {
            *sent_at = send(socket, &self.message)?;
        }
        let patience = EpollTimeout::try_from(LOST_AFTER).map_err(io::Error::other)?;
        let mut buffer = vec![0; self.message.len() + 1];
        let mut events = [EpollEvent::empty(); 256];
        let mut last = meter.began;
        while Instant::now() < until {
            let n = self.poll.wait(&mut events, patience)?;
            for event in &events[..n] {
                let (socket, sent_at) = &mut self.sockets[event.data() as usize];
                let length = match socket.recv(&mut buffer) {
                    Ok(length) => length,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(e) => return Err(e),
                };
                if buffer[..length] != self.message {
                    return Err(io::Error::other("the server has changed the bytes"));
                }
                meter.answered(sent_at.elapsed());
                *sent_at = send(socket, &self.message)?;
                last = *sent_at;
            }
            if n == 0 {
                for (socket, sent_at) in &mut self.sockets {
                    *sent_at = send(socket, &self.message)?;
                }
            }
            if last.elapsed() > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"));
            }
        }
        Ok(meter.end())
    }
}

fn send(socket: &UdpSocket, message: &[u8]) -> io::Result<Instant> {
    let now = Instant::now();
    match socket.send(message) {
        // No room: it counts as lost.
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => Err(e),
        _ => Ok(now),
    }
}
