//! What came, and what went wrong.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::SystemTime;

use ruduo_reactor::sys::datagram::{Beside, Inbound, Name, Received, Source};

use crate::Address;

/// A datagram, while its callback runs.
#[derive(Clone, Copy)]
pub struct Datagram<'a> {
    bytes: &'a [u8],
    size: usize,
    truncated: bool,
    name: &'a [u8],
    beside: Beside<'a>,
}

impl<'a> Datagram<'a> {
    /// What is in it: nothing at all may be, which is a datagram too. If there was more of it than
    /// [`receive_size`](crate::UdpBuilder::receive_size), so much.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Who has sent it. (Asking costs nothing for an Internet address, and an allocation for the
    /// path of a Unix socket; answering needs neither.)
    #[must_use]
    pub fn peer(&self) -> Address {
        Name::decode(self.name)
    }

    /// To which address it was sent, if the socket is at all addresses of the machine (`0.0.0.0`,
    /// `[::]`): one of them, a multicast group, a broadcast address. `None` for other sockets, which
    /// have one address, [`UdpSocket::local_addr`](crate::UdpSocket::local_addr).
    #[must_use]
    pub fn local_ip(&self) -> Option<IpAddr> {
        self.beside.sent_to().map(|(to, _)| to)
    }

    /// Whether there was more of it than [`receive_size`](crate::UdpBuilder::receive_size). The rest
    /// is gone.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// How many bytes it had when it came, a truncated one too. (Linux tells; elsewhere it is what
    /// there was room for.)
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// When the kernel got it, by the clock of the system, if
    /// [`timestamps`](crate::UdpBuilder::timestamps) are on.
    #[must_use]
    pub fn received_at(&self) -> Option<SystemTime> {
        self.beside.time()
    }

    /// The peer as the kernel has it.
    pub(super) fn name(&self) -> &'a [u8] {
        self.name
    }

    /// Our address that it is to be answered from, if the kernel has told.
    pub(super) fn source(&self) -> Source {
        self.beside.sent_to().map(|(_, source)| source).unwrap_or_default()
    }
}

impl fmt::Debug for Datagram<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datagram")
            .field("peer", &self.peer())
            .field("size", &self.size)
            .field("truncated", &self.truncated)
            .finish_non_exhaustive()
    }
}

/// The datagrams of a batch, one by one: most messages are one, and some are several that the kernel
/// has joined.
pub(super) struct Datagrams<'a> {
    inbound: &'a Inbound,
    /// How many bytes of one are wanted.
    room: usize,
    /// Whether the kernel joins any: to ask it of each message costs half as much as all the rest.
    joined: bool,
    /// The message to come.
    next: usize,
    /// What is left of one that is several.
    rest: Option<(Received<'a>, &'a [u8])>,
}

impl<'a> Datagrams<'a> {
    pub(super) fn of(inbound: &'a Inbound, room: usize, joined: bool) -> Datagrams<'a> {
        Datagrams { inbound, room, joined, next: 0, rest: None }
    }
}

impl<'a> Iterator for Datagrams<'a> {
    type Item = Datagram<'a>;

    #[inline]
    fn next(&mut self) -> Option<Datagram<'a>> {
        let (message, bytes) = match self.rest.take() {
            Some(several) => several,
            None => {
                let message = self.inbound.get(self.next)?;
                self.next += 1;
                (message, message.bytes)
            }
        };
        let Received { name, beside, truncated, len, .. } = message;
        let segment = if self.joined { beside.segment() } else { None };
        let one = match segment {
            Some(size) if size < bytes.len() => {
                let (one, rest) = bytes.split_at(size);
                self.rest = Some((message, rest));
                one
            }
            _ => bytes,
        };
        // Only a message that is one datagram can be longer than its room, which is that of any.
        let size = if segment.is_none() { len } else { one.len() };
        let truncated = truncated || one.len() > self.room;
        let bytes = &one[..one.len().min(self.room)];
        Some(Datagram { bytes, size, truncated, name, beside })
    }
}

/// What went wrong with a datagram. The socket goes on.
///
/// ```no_run
/// use ruduo_net::UdpServer;
/// use ruduo_reactor::EventLoop;
/// use std::io::ErrorKind;
///
/// let event_loop = EventLoop::new()?;
/// UdpServer::bind(&event_loop, "127.0.0.1:2007")
///     .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
///     .on_error(|_socket, error| match error.kind() {
///         ErrorKind::ConnectionRefused => println!("nobody is there: {error}"),
///         _ => println!("{error}"),
///     })
///     .start()?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct DatagramError {
    pub(super) operation: Operation,
    pub(super) peer: Option<Address>,
    pub(super) error: io::Error,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Send,
    Receive,
}

impl DatagramError {
    /// Whose datagram it is about, if that is known: to whom it was sent, or who the socket is
    /// connected to.
    #[must_use]
    pub fn peer(&self) -> Option<&Address> {
        self.peer.as_ref()
    }

    /// What the system says.
    #[must_use]
    pub fn error(&self) -> &io::Error {
        &self.error
    }

    /// What kind of error that is.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.error.kind()
    }

    /// Whether a datagram could not be sent. Otherwise receiving brought the error: on a connected
    /// socket also the news that an earlier datagram has not arrived (`ConnectionRefused`, nobody
    /// has the port).
    #[must_use]
    pub fn is_of_sending(&self) -> bool {
        self.operation == Operation::Send
    }
}

impl fmt::Display for DatagramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DatagramError { operation, peer, error } = self;
        match (operation, peer) {
            (Operation::Send, Some(peer)) => write!(f, "sending a datagram to {peer}: {error}"),
            (Operation::Send, None) => write!(f, "sending a datagram: {error}"),
            (Operation::Receive, Some(peer)) => {
                write!(f, "receiving datagrams of {peer}: {error}")
            }
            (Operation::Receive, None) => write!(f, "receiving datagrams: {error}"),
        }?;
        let forbidden = error.raw_os_error() == Some(nix::errno::Errno::EACCES as i32);
        match peer {
            Some(Address::Ip(_)) if forbidden => f.write_str(" (is it broadcast? switch it on)"),
            _ => Ok(()),
        }
    }
}

impl Error for DatagramError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}
