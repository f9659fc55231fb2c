//! Datagrams, many in one call: recvmmsg and sendmmsg on Linux, one call for each elsewhere.
//!
//! ```text
//!   socket ──▶ Inbound: room for a batch ──▶ Received: bytes, name, real length, and what is told
//!   socket ◀── Outbound: headers for a batch ◀── Piece: bytes, name, source
//! ```
//!
//! Both are made once and lent to whichever socket has something to do: what the kernel is pointed
//! at is set up anew for each call, so that nothing in here points anywhere between two calls.
//!
//! A name is an address as the kernel has it. To answer who has sent something it need not be
//! understood, so a peer's name is copied from one call to the other as it came.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd};

#[cfg(target_os = "linux")]
use libc::mmsghdr as Message;

use super::address::{Address, RawAddress};
use super::check_len;
pub use super::control::{Beside, Source};
use super::control::{Control, NO_CONTROL};
use super::socket::NO_SIGNAL;

/// The largest datagram that there is over IP, and so the room that holds any.
pub const MAX_DATAGRAM: usize = 65_535;

/// The most pieces that one call sends: as many as the kernel makes of one message, and no more, so that
/// any of them may go together (`UDP_MAX_SEGMENTS`, which is 128 in newer ones).
pub const MAX_PIECES: usize = 64;

/// As the kernel takes and gives them. Elsewhere we count the bytes of each ourselves.
#[cfg(not(target_os = "linux"))]
struct Message {
    msg_hdr: libc::msghdr,
    msg_len: libc::c_uint,
}

/// The real size of what did not fit is asked for; other systems do not tell it.
#[cfg(target_os = "linux")]
const RECEIVE: libc::c_int = libc::MSG_TRUNC;
#[cfg(not(target_os = "linux"))]
const RECEIVE: libc::c_int = 0;

/// An address as the kernel has it.
pub struct Name(RawAddress);

impl Name {
    /// # Errors
    /// `InvalidInput` for a name of a Unix socket that cannot be one; `Unsupported` for an abstract
    /// one where the system has none.
    pub fn new(address: &Address) -> io::Result<Name> {
        Ok(Name(RawAddress::encode(address)?))
    }

    /// The bytes of it, which mean something on this system alone.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// What such bytes mean. Nonsense reads as a Unix socket without a name.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Address {
        RawAddress::from_bytes(bytes).decode()
    }
}

/// Room for a batch of datagrams.
///
/// What is never written to is never resident: the kernel only gives pages to what comes.
pub struct Inbound {
    room: usize,
    bytes: Box<[MaybeUninit<u8>]>,
    names: Vec<RawAddress>,
    controls: Vec<Control>,
    slices: Vec<libc::iovec>,
    messages: Vec<Message>,
    received: usize,
    /// An error that ended a batch which had begun well.
    deferred: Option<io::Error>,
}

/// One message of a batch: a datagram, or several that the kernel has joined.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// As much of it as there was room for.
    pub bytes: &'a [u8],
    /// How long it was; of a truncated one, where the system tells.
    pub len: usize,
    /// There was more of it than room.
    pub truncated: bool,
    /// Who has sent it: the [`Name`]'s bytes. Empty for a Unix socket without a name.
    pub name: &'a [u8],
    /// What the kernel has told of it.
    pub beside: Beside<'a>,
}

impl Inbound {
    /// Room for `count` datagrams of `room` bytes each, one at least of both.
    #[must_use]
    pub fn new(count: usize, room: usize) -> Inbound {
        let (count, room) = (count.max(1), room.max(1));
        Inbound {
            room,
            bytes: Box::new_uninit_slice(count.saturating_mul(room)),
            names: (0..count).map(|_| RawAddress::empty()).collect(),
            controls: vec![NO_CONTROL; count],
            slices: Vec::with_capacity(count),
            messages: Vec::with_capacity(count),
            received: 0,
            deferred: None,
        }
    }

    /// For how many datagrams there is room.
    #[must_use]
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// How many bytes of each.
    #[must_use]
    pub fn room(&self) -> usize {
        self.room
    }

    /// Receives at most `limit` messages, in one call where the system can, and returns how many
    /// came. Those of before are gone. `control` says whether what is told beside is to be had; a
    /// Unix socket must go without, for its peers could send us descriptors in that room.
    ///
    /// # Errors
    /// Those of recvmsg(2): `WouldBlock` if there is none.
    pub fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        limit: usize,
        control: bool,
    ) -> io::Result<usize> {
        self.received = 0;
        if let Some(error) = self.deferred.take() {
            return Err(error);
        }
        self.point(limit.clamp(1, self.count()), control);
        self.received = self.fill(socket)?;
        Ok(self.received)
    }

    /// Points as many headers as there are to be at their room.
    fn point(&mut self, limit: usize, control: bool) {
        self.slices.clear();
        self.messages.clear();
        let rooms = self.bytes.chunks_exact_mut(self.room);
        self.slices.extend(
            rooms.take(limit).map(|room| libc::iovec {
                iov_base: room.as_mut_ptr().cast(),
                iov_len: room.len(),
            }),
        );
        let rooms = self.slices.iter_mut().zip(&mut self.names).zip(&mut self.controls);
        self.messages.extend(rooms.map(|((slice, name), room)| {
            name.make_room();
            let mut header = empty_header();
            let (address, len) = name.as_mut_ptrs();
            header.msg_name = address.cast();
            // SAFETY: the pointer has just been made of a reference.
            header.msg_namelen = unsafe { *len };
            header.msg_iov = slice;
            header.msg_iovlen = 1;
            if control {
                header.msg_control = room.as_mut_ptr();
                header.msg_controllen = Control::LEN as _;
            }
            Message { msg_hdr: header, msg_len: 0 }
        }));
    }

    fn fill(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        #[cfg(target_os = "linux")]
        if self.messages.len() > 1 {
            return self.fill_at_once(socket);
        }
        self.fill_one_by_one(socket)
    }

    #[cfg(target_os = "linux")]
    fn fill_at_once(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let (fd, len) = (socket.as_raw_fd(), self.messages.len() as libc::c_uint);
        let messages = self.messages.as_mut_ptr();
        let no_timeout = std::ptr::null_mut();
        retry(|| {
            // SAFETY: each header points to a name, a slice and perhaps control data of ours that
            // are valid for writing, and says how long they are.
            let n = unsafe { libc::recvmmsg(fd, messages, len, RECEIVE as _, no_timeout) };
            n as libc::ssize_t
        })
    }

    fn fill_one_by_one(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        for (i, message) in self.messages.iter_mut().enumerate() {
            let header = &raw mut message.msg_hdr;
            // SAFETY: as above, for one of them.
            let len = retry(|| unsafe { libc::recvmsg(socket.as_raw_fd(), header, RECEIVE) });
            match len {
                Ok(len) => message.msg_len = len as libc::c_uint,
                Err(error) if i == 0 => return Err(error),
                Err(error) => {
                    self.deferred = Some(error).filter(|e| e.kind() != io::ErrorKind::WouldBlock);
                    return Ok(i);
                }
            }
        }
        Ok(self.messages.len())
    }

    /// The message `index` of those received.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Received<'_>> {
        let message = self.messages[..self.received].get(index)?;
        let header = &message.msg_hdr;
        let len = message.msg_len as usize;
        let start = self.bytes[index * self.room..].as_ptr().cast::<u8>();
        let there = len.min(self.room);
        // SAFETY: the kernel has initialised so many bytes of this message's room, which lasts as
        // long as `self` is borrowed.
        let bytes = unsafe { std::slice::from_raw_parts(start, there) };
        let name = &self.names[index].as_bytes();
        // SAFETY: the kernel has written the control data to our room, which lasts as long and is not
        // changed before the next `receive`.
        let beside = unsafe { Beside::new(header) };
        Some(Received {
            bytes,
            len,
            truncated: header.msg_flags & libc::MSG_TRUNC != 0,
            name: &name[..(header.msg_namelen as usize).min(name.len())],
            beside,
        })
    }
}

/// A datagram to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// To whom: a [`Name`]'s bytes; empty for the peer that the socket is connected to.
    pub name: &'a [u8],
    /// From which of our addresses: a [`Source`]'s bytes; empty for whichever the routes say.
    pub source: &'a [u8],
    /// What.
    pub bytes: &'a [u8],
    /// It goes with the one before: same name and source, and the kernel is to cut the two apart again
    /// (`UDP_SEGMENT`). All but the last that go together are of one size. Linux only.
    pub joins: bool,
}

/// Why the first of some pieces was not sent.
#[derive(Debug)]
pub struct SendFailed {
    /// What the kernel says.
    pub error: io::Error,
    /// How many pieces it is about: those that go together.
    pub pieces: usize,
}

/// Headers for a batch.
#[derive(Default)]
pub struct Outbound {
    slices: Vec<libc::iovec>,
    controls: Vec<Control>,
    messages: Vec<Message>,
}

impl Outbound {
    /// Sends the pieces, [`MAX_PIECES`] at most, in one call if `at_once` and the system can, and
    /// returns how many the kernel has taken: as many as it could before the first error, which the
    /// next call tells. A name of nonsense is the kernel's to refuse. Never raises SIGPIPE.
    ///
    /// # Errors
    /// That of the first message, see sendmsg(2); then none was sent.
    pub fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        at_once: bool,
        pieces: impl Iterator<Item = Piece<'a>>,
    ) -> Result<usize, SendFailed> {
        self.collect(pieces);
        self.point();
        #[cfg(target_os = "linux")]
        if at_once && self.messages.len() > 1 {
            return self.hand_over_at_once(socket);
        }
        let _ = at_once;
        self.hand_over_one_by_one(socket)
    }

    fn collect<'a>(&mut self, pieces: impl Iterator<Item = Piece<'a>>) {
        self.slices.clear();
        self.messages.clear();
        self.controls.resize(MAX_PIECES, NO_CONTROL);
        for piece in pieces.take(MAX_PIECES) {
            self.slices.push(libc::iovec {
                iov_base: piece.bytes.as_ptr().cast_mut().cast(),
                iov_len: piece.bytes.len(),
            });
            match self.messages.last_mut() {
                Some(message) if piece.joins => message.msg_hdr.msg_iovlen += 1,
                _ => self.begin_message(&piece),
            }
        }
    }

    fn begin_message(&mut self, piece: &Piece<'_>) {
        let mut header = empty_header();
        header.msg_iovlen = 1;
        if !piece.name.is_empty() {
            header.msg_name = piece.name.as_ptr().cast_mut().cast();
            header.msg_namelen = piece.name.len() as libc::socklen_t;
        }
        if !piece.source.is_empty() {
            let control = &mut self.controls[self.messages.len()];
            control.attach_source(&mut header, piece.source);
        }
        self.messages.push(Message { msg_hdr: header, msg_len: 0 });
    }

    /// Points the headers at what does not move any more.
    fn point(&mut self) {
        let mut slices = self.slices.as_mut_ptr();
        for (message, control) in self.messages.iter_mut().zip(&mut self.controls) {
            let header = &mut message.msg_hdr;
            header.msg_iov = slices;
            slices = slices.wrapping_add(slices_of(header));
            if header.msg_iovlen > 1 {
                // SAFETY: it points to the first of this message's slices.
                let segment = unsafe { (*header.msg_iov).iov_len };
                control.attach_segment(header, segment);
            }
            if header.msg_controllen > 0 {
                header.msg_control = control.as_mut_ptr();
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn hand_over_at_once(&mut self, socket: BorrowedFd<'_>) -> Result<usize, SendFailed> {
        let (fd, len) = (socket.as_raw_fd(), self.messages.len() as libc::c_uint);
        let messages = self.messages.as_mut_ptr();
        let sent = retry(|| {
            // SAFETY: each header points to slices, control data and a name that are valid for
            // reading: of ours, and of the caller, who lends them for longer than the call.
            let n = unsafe { libc::sendmmsg(fd, messages, len, NO_SIGNAL as _) };
            n as libc::ssize_t
        });
        match sent {
            Ok(n) => Ok(self.in_first(n)),
            Err(error) => Err(SendFailed { error, pieces: self.in_first(1) }),
        }
    }

    fn hand_over_one_by_one(&mut self, socket: BorrowedFd<'_>) -> Result<usize, SendFailed> {
        for (i, message) in self.messages.iter().enumerate() {
            let header = &raw const message.msg_hdr;
            // SAFETY: as above, for one of them.
            let sent = retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), header, NO_SIGNAL) });
            match sent {
                Ok(_) => {}
                Err(error) if i == 0 => {
                    return Err(SendFailed { error, pieces: self.in_first(1) });
                }
                // The next call will say so.
                Err(_) => return Ok(self.in_first(i)),
            }
        }
        Ok(self.slices.len())
    }

    /// Of how many pieces the first messages are made.
    fn in_first(&self, messages: usize) -> usize {
        self.messages[..messages].iter().map(|message| slices_of(&message.msg_hdr)).sum()
    }
}

#[allow(clippy::unnecessary_cast, reason = "some systems count them in an int")]
fn slices_of(header: &libc::msghdr) -> usize {
    header.msg_iovlen as usize
}

fn empty_header() -> libc::msghdr {
    // SAFETY: all-zero is a valid msghdr: no name, no control data, no slices.
    unsafe { mem::zeroed() }
}

/// Repeats a call while it is interrupted by signals.
fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match check_len(call()) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    fn pair() -> (UdpSocket, UdpSocket) {
        let near = UdpSocket::bind("127.0.0.1:0").unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").unwrap();
        near.set_nonblocking(true).unwrap();
        near.connect(far.local_addr().unwrap()).unwrap();
        far.connect(near.local_addr().unwrap()).unwrap();
        (near, far)
    }

    /// The way of systems without recvmmsg.
    #[test]
    fn one_call_for_each_brings_the_same_as_one_for_all() {
        let (near, far) = pair();
        let mut inbound = Inbound::new(8, 4);
        for at_once in [false, true] {
            for bytes in [&b"one"[..], b"", b"three"] {
                far.send(bytes).unwrap();
            }
            inbound.point(8, true);
            inbound.received = match at_once {
                #[cfg(target_os = "linux")]
                true => inbound.fill_at_once(near.as_fd()).unwrap(),
                _ => inbound.fill_one_by_one(near.as_fd()).unwrap(),
            };
            assert_eq!(inbound.received, 3);
            let all: Vec<_> = (0..4).map_while(|i| inbound.get(i)).collect();
            assert_eq!(
                all.iter().map(|r| r.bytes).collect::<Vec<_>>(),
                [&b"one"[..], b"", b"thre"]
            );
            assert_eq!(all.iter().map(|r| r.truncated).collect::<Vec<_>>(), [false, false, true]);
            if cfg!(target_os = "linux") {
                assert_eq!(all[2].len, 5);
            }
            for received in all {
                assert_eq!(Name::decode(received.name), Address::Ip(far.local_addr().unwrap()));
            }
            let none = inbound.receive(near.as_fd(), 8, true).unwrap_err();
            assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn an_error_behind_datagrams_is_told_after_them() {
        let (near, far) = pair();
        far.send(b"before").unwrap();
        // As if the kernel had said so while the batch was being received.
        let mut inbound = Inbound::new(4, 64);
        inbound.point(4, false);
        inbound.received = inbound.fill_one_by_one(near.as_fd()).unwrap();
        assert_eq!(inbound.received, 1);
        inbound.deferred = Some(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        let error = inbound.receive(near.as_fd(), 4, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let none = inbound.receive(near.as_fd(), 4, false).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn pieces_leave_in_one_call_or_in_one_for_each() {
        let (near, far) = pair();
        let name = Name::new(&far.local_addr().unwrap().into()).unwrap();
        let mut outbound = Outbound::default();
        for at_once in [false, true] {
            let pieces = [(&b"one"[..], &b""[..]), (b"", name.as_bytes()), (b"three", b"")];
            let pieces =
                pieces.map(|(bytes, name)| Piece { name, source: b"", bytes, joins: false });
            assert_eq!(outbound.send(near.as_fd(), at_once, pieces.into_iter()).unwrap(), 3);
            let mut bytes = [0; 16];
            for expected in [&b"one"[..], b"", b"three"] {
                let n = far.recv(&mut bytes).unwrap();
                assert_eq!(&bytes[..n], expected);
            }
        }
    }

    #[test]
    fn the_first_that_cannot_be_sent_is_the_error_and_those_before_it_are_gone() {
        let (near, far) = pair();
        let too_long = vec![0; MAX_DATAGRAM];
        for at_once in [false, true] {
            let pieces = [&b"one"[..], &too_long, b"three"];
            let pieces = pieces.map(|bytes| Piece { name: b"", source: b"", bytes, joins: false });
            let mut outbound = Outbound::default();
            assert_eq!(outbound.send(near.as_fd(), at_once, pieces.into_iter()).unwrap(), 1);
            let failed =
                outbound.send(near.as_fd(), at_once, pieces[1..].iter().copied()).unwrap_err();
            assert_eq!(failed.error.raw_os_error(), Some(libc::EMSGSIZE));
            assert_eq!(failed.pieces, 1);
            let mut bytes = [0; 16];
            assert_eq!(far.recv(&mut bytes).unwrap(), 3);
        }
    }
}
