//! Ping-pong: each connection keeps some messages in flight, and sends another one for each that
//! has come back.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::lockstep::{connect, pattern};
use super::{Meter, Outcome, Wait};

/// How many connections, of which messages, how many of them in flight on each, and what the client
/// does meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    pub(crate) bytes: usize,
    pub(crate) in_flight: usize,
    pub(crate) wait: Wait,
}

/// The client's side of it.
pub(crate) struct PingPong {
    shape: Shape,
    poll: Epoll,
    peers: Vec<Peer>,
    /// All that can be in flight on one connection, and one message more: what is sent and what
    /// comes back is a slice of it, wherever in a message it begins.
    block: Vec<u8>,
    buffer: Vec<u8>,
}

struct Peer {
    stream: TcpStream,
    /// Where in a message the next byte to send is, and the next to come.
    sending: usize,
    receiving: usize,
    /// Bytes that are still to be sent.
    owed: usize,
    waits_for_room: bool,
    sent_at: VecDeque<Instant>,
}

impl PingPong {
    /// Connects, and sends nothing yet.
    pub(crate) fn new(server: SocketAddr, shape: Shape) -> io::Result<PingPong> {
        let poll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut peers = Vec::with_capacity(shape.connections);
        for i in 0..shape.connections {
            let stream = connect(server)?;
            stream.set_nonblocking(true)?;
            poll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, i as u64))?;
            peers.push(Peer {
                stream,
                sending: 0,
                receiving: 0,
                owed: 0,
                waits_for_room: false,
                sent_at: VecDeque::with_capacity(shape.in_flight),
            });
            // Hundreds that nobody has accepted yet would overflow the backlog.
            if i % 64 == 63 {
                echo_once(&peers[i].stream)?;
            }
        }
        let block = pattern(shape.bytes).repeat(shape.in_flight + 1);
        let buffer = vec![0; (shape.bytes * shape.in_flight).max(1)];
        Ok(PingPong { shape, poll, peers, block, buffer })
    }

    /// Goes on for that long. Messages stay in flight until the next call.
    pub(crate) fn run(&mut self, time: Duration) -> io::Result<Outcome> {
        let mut meter = Meter::new()?;
        let until = meter.began + time;
        for i in 0..self.peers.len() {
            let missing = self.shape.in_flight - self.peers[i].sent_at.len();
            self.send(i, missing, meter.began)?;
        }
        let mut events = [EpollEvent::empty(); 512];
        let mut now = meter.began;
        while now < until {
            let n = self.shape.wait.events(&self.poll, &mut events)?;
            for event in &events[..n] {
                let i = event.data() as usize;
                if event.events().contains(EpollFlags::EPOLLOUT) {
                    self.send(i, 0, now)?;
                }
                if event.events().contains(EpollFlags::EPOLLIN) {
                    now = Instant::now();
                    let answers = self.receive(i)?;
                    for _ in 0..answers {
                        if let Some(sent_at) = self.peers[i].sent_at.pop_front() {
                            meter.answered(now - sent_at);
                        }
                    }
                    self.send(i, answers, now)?;
                }
            }
        }
        Ok(meter.end())
    }

    /// How many messages are complete with what has come.
    fn receive(&mut self, i: usize) -> io::Result<usize> {
        let peer = &mut self.peers[i];
        let n = match (&peer.stream).read(&mut self.buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(e) => return Err(e),
        };
        if self.buffer[..n] != self.block[peer.receiving..peer.receiving + n] {
            return Err(io::Error::other("the server has changed the bytes"));
        }
        let come = peer.receiving + n;
        peer.receiving = come % self.shape.bytes;
        Ok(come / self.shape.bytes)
    }

    /// Sends that many messages more, and what was left over before.
    fn send(&mut self, i: usize, messages: usize, now: Instant) -> io::Result<()> {
        let peer = &mut self.peers[i];
        peer.sent_at.extend(std::iter::repeat_n(now, messages));
        peer.owed += messages * self.shape.bytes;
        if peer.owed > 0 {
            let bytes = &self.block[peer.sending..peer.sending + peer.owed];
            match (&peer.stream).write(bytes) {
                Ok(n) => {
                    peer.owed -= n;
                    peer.sending = (peer.sending + n) % self.shape.bytes;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        if (peer.owed > 0) != peer.waits_for_room {
            peer.waits_for_room = peer.owed > 0;
            let mut interest = EpollFlags::EPOLLIN;
            interest.set(EpollFlags::EPOLLOUT, peer.waits_for_room);
            self.poll.modify(&peer.stream, &mut EpollEvent::new(interest, i as u64))?;
        }
        Ok(())
    }
}

/// One byte there and back, before the pattern begins: then the server has accepted.
fn echo_once(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.write_all(b"x")?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.set_nonblocking(true)
}
