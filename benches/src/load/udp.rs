//! Datagrams: each socket keeps some in flight, and sends another one for each that has come back.
//! What has been away for long must be lost, and is sent anew.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg};

use super::lockstep::{PATIENCE, pattern};
use super::{Meter, Outcome};

const LOST_AFTER: Duration = Duration::from_millis(50);

/// A datagram begins with when it was sent, in nanoseconds since the load began.
const STAMP: usize = size_of::<u64>();

/// How many sockets, of which datagrams, and how many of them in flight on each.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) sockets: usize,
    pub(crate) bytes: usize,
    pub(crate) in_flight: usize,
}

/// The client's side of it. All that waits on a socket is received in one call, and answered in one,
/// so that the server is what is measured.
pub(crate) struct Datagrams {
    shape: Shape,
    began: Instant,
    poll: Epoll,
    peers: Vec<Peer>,
    message: Vec<u8>,
    /// Room for all that is in flight on a socket, each datagram with a byte too much.
    room: Vec<u8>,
    received: MultiHeaders<()>,
    sent: MultiHeaders<()>,
}

struct Peer {
    socket: UdpSocket,
    flying: usize,
    last: Instant,
}

impl Datagrams {
    /// Opens the sockets, and sends nothing yet.
    pub(crate) fn new(server: SocketAddr, shape: Shape) -> io::Result<Datagrams> {
        let Shape { sockets, bytes, in_flight } = shape;
        let (poll, began) = (Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, Instant::now());
        let open = |i: usize| -> io::Result<Peer> {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect(server)?;
            socket.set_nonblocking(true)?;
            poll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, i as u64))?;
            Ok(Peer { socket, flying: 0, last: began })
        };
        let peers = (0..sockets).map(open).collect::<io::Result<Vec<_>>>()?;
        Ok(Datagrams {
            shape,
            began,
            poll,
            peers,
            message: pattern(bytes),
            room: vec![0; (bytes + 1) * in_flight],
            received: MultiHeaders::preallocate(in_flight, None),
            sent: MultiHeaders::preallocate(in_flight, None),
        })
    }

    /// Goes on for that long. Datagrams stay in flight until the next call.
    pub(crate) fn run(&mut self, time: Duration) -> io::Result<Outcome> {
        let mut meter = Meter::new()?;
        let until = meter.began + time;
        let often = EpollTimeout::try_from(LOST_AFTER).map_err(io::Error::other)?;
        let mut events = [EpollEvent::empty(); 256];
        let (mut now, mut last, mut looked) = (meter.began, meter.began, meter.began);
        for i in 0..self.peers.len() {
            self.fill(i, now)?;
        }
        while now < until {
            let n = match self.poll.wait(&mut events, often) {
                Err(Errno::EINTR) => 0,
                n => n?,
            };
            now = Instant::now();
            for event in &events[..n] {
                let i = event.data() as usize;
                if self.receive(i, &mut meter)? > 0 {
                    last = now;
                    self.fill(i, now)?;
                }
            }
            if now - last > PATIENCE {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"));
            }
            if now - looked >= LOST_AFTER {
                looked = now;
                self.send_the_lost(now)?;
            }
        }
        Ok(meter.end())
    }

    /// How many have come back.
    fn receive(&mut self, i: usize, meter: &mut Meter) -> io::Result<usize> {
        let peer = &mut self.peers[i];
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = self
            .room
            .chunks_exact_mut(self.shape.bytes + 1)
            .map(|b| [IoSliceMut::new(b)])
            .collect();
        let fd = peer.socket.as_raw_fd();
        let none = MsgFlags::empty();
        let lengths: Vec<usize> =
            match recvmmsg(fd, &mut self.received, slices.iter_mut(), none, None) {
                Ok(results) => results.map(|datagram| datagram.bytes).collect(),
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(0),
                Err(e) => return Err(e.into()),
            };
        let now = self.began.elapsed();
        for (length, room) in lengths.iter().zip(self.room.chunks(self.shape.bytes + 1)) {
            let (stamp, rest) =
                room[..*length].split_first_chunk::<STAMP>().unwrap_or((&[0; 8], &[]));
            let sent_at = Duration::from_nanos(u64::from_ne_bytes(*stamp));
            if rest != &self.message[STAMP..] || sent_at > now {
                return Err(io::Error::other("the server has changed the bytes"));
            }
            meter.answered(now - sent_at);
        }
        // More may come than is thought to fly: what was late was not lost.
        peer.flying = peer.flying.saturating_sub(lengths.len());
        peer.last = self.began + now;
        Ok(lengths.len())
    }

    /// Sends what is missing in the air.
    fn fill(&mut self, i: usize, now: Instant) -> io::Result<()> {
        let peer = &mut self.peers[i];
        let missing = self.shape.in_flight - peer.flying;
        let stamp = (now - self.began).as_nanos() as u64;
        self.message[..STAMP].copy_from_slice(&stamp.to_ne_bytes());
        let slices = vec![[IoSlice::new(&self.message)]; missing];
        let (fd, none) = (peer.socket.as_raw_fd(), vec![None; missing]);
        match sendmmsg(fd, &mut self.sent, &slices, none, [], MsgFlags::empty()) {
            Ok(results) => peer.flying += results.count(),
            // No room: it counts as lost.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn send_the_lost(&mut self, now: Instant) -> io::Result<()> {
        for i in 0..self.peers.len() {
            let peer = &mut self.peers[i];
            if now.saturating_duration_since(peer.last) >= LOST_AFTER {
                peer.flying = 0;
                peer.last = now;
                self.fill(i, now)?;
            }
        }
        Ok(())
    }
}
