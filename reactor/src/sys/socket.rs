//! Sockets, as the layer above the reactor needs them: safe functions on descriptors.
//!
//! `EINTR` is retried here, once for all callers: on a non-blocking descriptor the call is short,
//! and no caller could do anything else.

use std::io::{self, IoSlice};
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::SockType;

use super::address::{Address, RawAddress};
use super::{check, check_len};

/// The most slices that [`send_slices`] takes. More would need a longer array on the stack for a
/// case that the kernel's own socket buffer bounds anyway.
pub const MAX_SLICES: usize = 16;

/// Accepts one connection: a non-blocking, close-on-exec socket, and where it comes from.
///
/// # Errors
/// Those of accept(2), `WouldBlock` when nobody waits.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Address)> {
    let mut peer = RawAddress::empty();
    let (address, len) = peer.as_mut_ptrs();
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: address and length are valid for writing, the length says how much room there is.
    let fd = retry(|| unsafe {
        libc::accept4(listener.as_raw_fd(), address, len, flags) as libc::ssize_t
    })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    Ok((fd, peer.decode()))
}

/// A new stream socket for `address`: non-blocking, close-on-exec, bound and connected to nothing.
///
/// # Errors
/// Those of socket(2).
pub fn stream(address: &Address) -> io::Result<OwnedFd> {
    open(address, SockType::Stream)
}

/// A new datagram socket for `address`, the same otherwise.
///
/// # Errors
/// Those of socket(2).
pub fn datagram(address: &Address) -> io::Result<OwnedFd> {
    open(address, SockType::Datagram)
}

fn open(address: &Address, kind: SockType) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, socket};

    let family = match address {
        Address::Ip(SocketAddr::V4(_)) => AddressFamily::Inet,
        Address::Ip(SocketAddr::V6(_)) => AddressFamily::Inet6,
        Address::Unix(_) => AddressFamily::Unix,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket(family, kind, flags, None)?)
}

/// Gives a socket its own address.
///
/// # Errors
/// Those of bind(2); `InvalidInput` for a name of a Unix socket that cannot be one.
pub fn bind(socket: BorrowedFd<'_>, address: &Address) -> io::Result<()> {
    let raw = RawAddress::encode(address)?;
    // SAFETY: the pointer is valid for reading the length that goes with it.
    check(unsafe { libc::bind(socket.as_raw_fd(), raw.as_ptr(), raw.len()) })?;
    Ok(())
}

/// Begins to connect a non-blocking socket, or connects it. When it is writable, SO_ERROR tells the
/// outcome.
///
/// # Errors
/// Those of connect(2): `EINPROGRESS` is the usual one. An interrupted call is `EINPROGRESS` too:
/// it goes on, and must not be made again.
pub fn connect(socket: BorrowedFd<'_>, address: &Address) -> io::Result<()> {
    let raw = RawAddress::encode(address)?;
    // SAFETY: the pointer is valid for reading the length that goes with it.
    match check(unsafe { libc::connect(socket.as_raw_fd(), raw.as_ptr(), raw.len()) }) {
        Err(e) if e.kind() == io::ErrorKind::Interrupted => {
            Err(io::Error::from_raw_os_error(libc::EINPROGRESS))
        }
        outcome => outcome.map(|_| ()),
    }
}

/// A socket's own address.
///
/// # Errors
/// Those of getsockname(2).
pub fn local_address(socket: BorrowedFd<'_>) -> io::Result<Address> {
    let mut raw = RawAddress::empty();
    let (address, len) = raw.as_mut_ptrs();
    // SAFETY: address and length are valid for writing, the length says how much room there is.
    check(unsafe { libc::getsockname(socket.as_raw_fd(), address, len) })?;
    Ok(raw.decode())
}

/// The address of the socket that this one is connected to.
///
/// # Errors
/// Those of getpeername(2): `NotConnected`.
pub fn peer_address(socket: BorrowedFd<'_>) -> io::Result<Address> {
    let mut raw = RawAddress::empty();
    let (address, len) = raw.as_mut_ptrs();
    // SAFETY: address and length are valid for writing, the length says how much room there is.
    check(unsafe { libc::getpeername(socket.as_raw_fd(), address, len) })?;
    Ok(raw.decode())
}

/// How many bytes of what was sent the kernel still holds: TCP until they are acknowledged (and one
/// more for an end of the stream that is not), a Unix socket until they are received, with what it
/// needs to hold them.
///
/// # Errors
/// Those of ioctl(2), `SIOCOUTQ`; `Unsupported` where it cannot be asked.
pub fn unsent(socket: BorrowedFd<'_>) -> io::Result<usize> {
    #[cfg(target_os = "linux")]
    {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the kernel writes one int to a place that is valid for writing it.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
        Ok(usize::try_from(bytes).unwrap_or(0))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = socket;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// How many bytes a call has moved, or why it failed: in one register, as the kernel itself returns
/// it, a number of bytes or a negated `errno`. Whoever calls it for each message tests a sign; an
/// [`io::Result`] is for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it may be an error"]
pub struct Moved(isize);

impl Moved {
    /// The number of bytes, if it is neither 0 nor an error.
    #[inline(always)]
    pub fn some(self) -> Option<usize> {
        (self.0 > 0).then_some(self.0 as usize)
    }

    /// Whether it is exactly this number of bytes.
    #[inline(always)]
    #[must_use]
    pub fn is(self, bytes: usize) -> bool {
        self.0 == bytes as isize
    }

    /// The number of bytes, or the error.
    ///
    /// # Errors
    /// That of the call.
    pub fn into_result(self) -> io::Result<usize> {
        usize::try_from(self.0).map_err(|_| io::Error::from_raw_os_error(-self.0 as i32))
    }
}

impl From<io::Result<usize>> for Moved {
    /// What is no error of the system becomes `EIO`.
    fn from(result: io::Result<usize>) -> Moved {
        match result {
            Ok(n) => Moved(n as isize),
            Err(e) => Moved(-(e.raw_os_error().unwrap_or(libc::EIO) as isize)),
        }
    }
}

/// Receives into the spare room of `bytes` and lengthens it by what came. The room is not zeroed
/// first. 0 is the end of the stream.
///
/// Fails as recv(2) does; with `EINVAL` if there is no room, for a receive of length 0 would return 0
/// and look like the end of the stream.
#[inline(always)]
pub fn recv(socket: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> Moved {
    let room = bytes.spare_capacity_mut();
    if room.is_empty() {
        return Moved(-(libc::EINVAL as isize));
    }
    let (fd, start, len) = (socket.as_raw_fd(), room.as_mut_ptr(), room.len());
    // SAFETY: the pointer is valid for writing `len` bytes.
    let moved = moved(move || unsafe { libc::recv(fd, start.cast(), len, 0) });
    if let Some(n) = moved.some() {
        // SAFETY: the kernel has initialised the first `n` bytes of the spare room.
        unsafe { bytes.set_len(bytes.len() + n) };
    }
    moved
}

/// Sends from `bytes` and returns how many were taken. Never raises SIGPIPE: a closed peer is the
/// error `BrokenPipe`, whatever the process does with that signal.
///
/// Fails as send(2) does.
#[inline(always)]
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> Moved {
    let (fd, start, len) = (socket.as_raw_fd(), bytes.as_ptr(), bytes.len());
    // SAFETY: the pointer is valid for reading `len` bytes.
    moved(move || unsafe { libc::send(fd, start.cast(), len, libc::MSG_NOSIGNAL) })
}

/// Sends several slices, one after the other, in one call. At most [`MAX_SLICES`] are looked at.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send_slices(socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    // SAFETY: all-zero is a valid msghdr: no address, no control data, no slices.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    // IoSlice has the layout of iovec (std guarantees it); sendmsg only reads through it.
    message.msg_iov = slices.as_ptr().cast_mut().cast();
    message.msg_iovlen = slices.len().min(MAX_SLICES) as _;
    // SAFETY: the header points to slices that outlive the call.
    retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) })
}

/// Sends up to `count` bytes of `file` from `offset` on, without bringing them to user space, and
/// returns how many went. `Ok(0)` means that the file is shorter than `offset`.
///
/// sendfile(2) has no `MSG_NOSIGNAL`, so SIGPIPE is held back on this thread during the call and
/// taken away if the call raised it.
///
/// # Errors
/// Those of sendfile(2).
#[cfg(target_os = "linux")]
pub fn send_file(
    socket: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    offset: u64,
    count: usize,
) -> io::Result<usize> {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};

    let mut offset = libc::off_t::try_from(offset)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "file offset over 2^63"))?;
    let mut pipe = SigSet::empty();
    pipe.add(Signal::SIGPIPE);
    let mut mask = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&pipe), Some(&mut mask))?;
    // SAFETY: the offset is valid for reading and writing.
    let sent = retry(|| unsafe {
        libc::sendfile(socket.as_raw_fd(), file.as_raw_fd(), &raw mut offset, count)
    });
    let raised = sent.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::BrokenPipe);
    if raised && !mask.contains(Signal::SIGPIPE) {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: set and timespec are valid; no information about the signal is asked for.
        unsafe { libc::sigtimedwait(pipe.as_ref(), std::ptr::null_mut(), &raw const now) };
    }
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?;
    sent
}

/// The same as [`retry`], for the calls of each message.
#[inline(always)]
fn moved(call: impl Fn() -> libc::ssize_t) -> Moved {
    let n = call();
    if n >= 0 { Moved(n) } else { failed(call).into() }
}

/// Repeats a call while it is interrupted by signals.
#[inline(always)]
fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    let n = call();
    if n >= 0 { Ok(n as usize) } else { failed(call) }
}

/// The call has failed: says why, or calls again if it was interrupted. Out of the way of those
/// that succeed.
#[cold]
#[inline(never)]
fn failed(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        if let Ok(n) = check_len(call()) {
            return Ok(n);
        }
    }
}
