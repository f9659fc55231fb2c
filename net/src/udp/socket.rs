//! A datagram socket as callbacks see it.

use std::fmt;
use std::io;
use std::net::IpAddr;

use ruduo_reactor::EventLoop;

use super::core::Core;
use super::datagram::Datagram;
use super::handle::UdpSocketHandle;
use crate::{Address, Interface};

/// A datagram socket, in its callbacks.
///
/// What they send is queued, and leaves right after them: all answers to a batch of datagrams in one
/// system call where the system can. It arrives or does not; what the kernel says against it comes
/// to `on_error`.
#[derive(Clone, Copy)]
pub struct UdpSocket<'a> {
    event_loop: &'a EventLoop,
    core: &'a Core,
}

impl<'a> UdpSocket<'a> {
    pub(super) fn new(event_loop: &'a EventLoop, core: &'a Core) -> UdpSocket<'a> {
        UdpSocket { event_loop, core }
    }

    /// The loop it is on, for timers and tasks.
    #[must_use]
    pub fn event_loop(&self) -> &'a EventLoop {
        self.event_loop
    }

    /// Its own address: the real port, also after binding port 0.
    #[must_use]
    pub fn local_addr(&self) -> &'a Address {
        &self.core.bound.local
    }

    /// Who it is connected to.
    #[must_use]
    pub fn peer_addr(&self) -> Option<&'a Address> {
        self.core.bound.peer.as_ref()
    }

    /// Reaches it from elsewhere: from any thread, or later.
    #[must_use]
    pub fn handle(&self) -> UdpSocketHandle {
        UdpSocketHandle::new(self.event_loop.handle(), self.core.id, self.core.posted.clone())
    }

    /// Sends a datagram to who has sent `datagram`, from the address that it was sent to.
    #[inline]
    pub fn answer(&self, datagram: &Datagram<'_>, bytes: impl AsRef<[u8]>) {
        self.core.answer(self.event_loop, bytes.as_ref(), datagram);
    }

    /// Sends a datagram to the peer of a connected socket.
    pub fn send(&self, bytes: impl AsRef<[u8]>) {
        self.core.send(self.event_loop, bytes.as_ref(), &[], &[]);
    }

    /// Sends a datagram to `peer`. A connected socket sends to its own peer only, by
    /// [`send`](UdpSocket::send). From a socket at all addresses (`0.0.0.0`, `[::]`) it leaves from
    /// the one that the routes say, which need not be the one that the peer has written to:
    /// [`answer`](UdpSocket::answer) minds that.
    pub fn send_to(&self, bytes: impl AsRef<[u8]>, peer: &Address) {
        self.core.send_to(self.event_loop, bytes.as_ref(), peer);
    }

    /// How much waits to be sent, in bytes: of datagrams, addresses, and 16 more for each. What is
    /// over [`queue_limit`](crate::UdpBuilder::queue_limit) is treated as
    /// [`when_full`](crate::UdpBuilder::when_full) says.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.core.queue.borrow().weight()
    }

    /// Joins a multicast group, from now on; see [`UdpBuilder::join`](crate::UdpBuilder::join).
    ///
    /// # Errors
    /// What setsockopt(2) says, with group and interface; `NotFound` if there is no such interface.
    pub fn join(
        &self,
        group: impl Into<IpAddr>,
        interface: impl Into<Interface>,
    ) -> io::Result<()> {
        self.core.bound.join(group.into(), &interface.into())
    }

    /// Leaves a group that it has joined, on the same interface.
    ///
    /// # Errors
    /// As [`join`](UdpSocket::join); `AddrNotAvailable` if it was not joined.
    pub fn leave(
        &self,
        group: impl Into<IpAddr>,
        interface: impl Into<Interface>,
    ) -> io::Result<()> {
        self.core.bound.leave(group.into(), &interface.into())
    }

    /// Ends this socket after the current callback; what is queued is dropped. (To let it leave,
    /// [`UdpHandle::stop`](crate::UdpHandle::stop).)
    pub fn close(&self) {
        self.core.close(self.event_loop);
    }
}

impl fmt::Debug for UdpSocket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpSocket")
            .field("local_addr", self.local_addr())
            .field("peer_addr", &self.peer_addr())
            .finish_non_exhaustive()
    }
}
