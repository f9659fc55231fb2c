//! Sockets, as the layer above the reactor needs them: safe functions on descriptors.
//!
//! `EINTR` is dealt with here, once for all callers: the call is made again, for on a non-blocking
//! descriptor it is short, and no caller could do anything else. Only [`recv`] and [`send`], which
//! are called for each message, leave that to a caller who comes back anyway.

use std::io::{self, IoSlice};
use std::mem;
use std::net::SocketAddr;
#[cfg(target_vendor = "apple")]
use std::os::fd::AsFd;
#[cfg(not(target_vendor = "apple"))]
use std::os::fd::RawFd;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::SockType;

use super::address::{Address, RawAddress};
use super::{check, check_len, set_nonblocking};

/// The most slices that [`send_slices`] takes. More would need a longer array on the stack for a
/// case that the kernel's own socket buffer bounds anyway.
pub const MAX_SLICES: usize = 16;

/// Sending to a peer that is gone is an error and raises no SIGPIPE. macOS takes this for an option
/// of the socket: see [`take_over`].
#[cfg(not(target_vendor = "apple"))]
pub(super) const NO_SIGNAL: libc::c_int = libc::MSG_NOSIGNAL;
#[cfg(target_vendor = "apple")]
pub(super) const NO_SIGNAL: libc::c_int = 0;

/// Accepts one connection: a non-blocking, close-on-exec socket, and where it comes from.
///
/// # Errors
/// Those of accept(2), `WouldBlock` when nobody waits.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, Address)> {
    let mut peer = RawAddress::empty();
    let (address, len) = peer.as_mut_ptrs();
    // SAFETY: address and length are valid for writing, the length says how much room there is.
    let fd = retry(|| unsafe { accept_raw(listener.as_raw_fd(), address, len) as libc::ssize_t })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    // macOS refuses to change options of a socket whose peer has reset it already.
    #[cfg(target_vendor = "apple")]
    make_ours(fd.as_fd()).map_err(|_| io::Error::from_raw_os_error(libc::ECONNABORTED))?;
    Ok((fd, peer.decode()))
}

/// accept(2) of a socket that is as ours are.
///
/// # Safety
/// As accept(2): `address` is valid for writing as many bytes as `len` says, and `len` too.
#[cfg(not(target_vendor = "apple"))]
unsafe fn accept_raw(
    listener: RawFd,
    address: *mut libc::sockaddr,
    len: *mut libc::socklen_t,
) -> libc::c_int {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the caller's.
    unsafe { libc::accept4(listener, address, len, flags) }
}

#[cfg(target_vendor = "apple")]
use libc::accept as accept_raw;

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
    #[cfg(not(target_vendor = "apple"))]
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    #[cfg(target_vendor = "apple")]
    let flags = SockFlag::empty();
    let fd = socket(family, kind, flags, None)?;
    #[cfg(target_vendor = "apple")]
    make_ours(fd.as_fd())?;
    Ok(fd)
}

/// Makes a socket that somebody else has made like those that are made here: non-blocking, and no
/// reason for SIGPIPE.
///
/// # Errors
/// Those of fcntl(2) and setsockopt(2).
pub fn take_over(socket: BorrowedFd<'_>) -> io::Result<()> {
    set_nonblocking(socket)?;
    // On other systems each call of send says so: see `NO_SIGNAL`.
    #[cfg(target_vendor = "apple")]
    set_option(socket, libc::SOL_SOCKET, libc::SO_NOSIGPIPE, 1)?;
    Ok(())
}

/// Sets an option whose value is a number. (On OpenBSD nobody needs it: it has none of the options
/// that nix lacks.)
#[cfg(not(target_os = "openbsd"))]
pub(super) fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let len = mem::size_of_val(&value) as libc::socklen_t;
    let (fd, value) = (socket.as_raw_fd(), (&raw const value).cast());
    // SAFETY: the pointer is valid for reading as many bytes as are told.
    check(unsafe { libc::setsockopt(fd, level, option, value, len) })?;
    Ok(())
}

/// What macOS cannot be told in the call that makes a socket. A fork on another thread may come
/// between the two.
#[cfg(target_vendor = "apple")]
fn make_ours(socket: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    fcntl(socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    take_over(socket)
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

/// How many bytes of what was sent the kernel still holds. TCP holds them until they are
/// acknowledged (and counts one more for the end of the stream until that is), a Unix socket until
/// they are received (and counts with them the memory that it needs to hold them).
///
/// # Errors
/// Those of ioctl(2) and getsockopt(2); `Unsupported` where it cannot be asked.
pub fn unsent(socket: BorrowedFd<'_>) -> io::Result<usize> {
    #[cfg(any(target_os = "linux", target_os = "freebsd", target_os = "netbsd"))]
    {
        #[cfg(target_os = "linux")]
        const UNSENT: libc::Ioctl = libc::TIOCOUTQ;
        #[cfg(not(target_os = "linux"))]
        const UNSENT: libc::c_ulong = libc::FIONWRITE;
        let mut bytes: libc::c_int = 0;
        // SAFETY: the kernel writes one int to a place that is valid for writing it.
        check(unsafe { libc::ioctl(socket.as_raw_fd(), UNSENT, &raw mut bytes) })?;
        Ok(usize::try_from(bytes).unwrap_or(0))
    }
    #[cfg(target_vendor = "apple")]
    {
        let mut bytes: libc::c_int = 0;
        let mut len = mem::size_of_val(&bytes) as libc::socklen_t;
        let (fd, level, value) = (socket.as_raw_fd(), libc::SOL_SOCKET, (&raw mut bytes).cast());
        // SAFETY: the kernel writes one int to a place that is valid for writing it.
        check(unsafe { libc::getsockopt(fd, level, libc::SO_NWRITE, value, &raw mut len) })?;
        Ok(usize::try_from(bytes).unwrap_or(0))
    }
    #[cfg(any(target_os = "openbsd", target_os = "dragonfly"))]
    {
        let _ = socket;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// What recv(2) or send(2) returned, still in one register: a number of bytes, or -1, and then the
/// reason is in `errno`. The code that handles each message compares the number; everybody else
/// asks for an [`io::Result`], at once, before another call changes `errno`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it may be an error"]
pub struct Moved(libc::ssize_t);

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
        self.0 == bytes as libc::ssize_t
    }

    /// The number of bytes, or the error.
    ///
    /// # Errors
    /// That of the call; `Interrupted` too, when it has moved nothing and may be made again.
    #[cold]
    pub fn into_result(self) -> io::Result<usize> {
        usize::try_from(self.0).map_err(|_| io::Error::last_os_error())
    }
}

/// Receives into the spare room of `bytes` and lengthens it by what came. The room is not zeroed
/// first. 0 is the end of the stream, so there has to be room: a receive of length 0 returns 0 too.
///
/// Fails as recv(2) does.
#[inline(always)]
pub fn recv(socket: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> Moved {
    let room = bytes.spare_capacity_mut();
    debug_assert!(!room.is_empty(), "this would look like the end of the stream");
    let (start, len) = (room.as_mut_ptr().cast(), room.len());
    // SAFETY: the pointer is valid for writing `len` bytes.
    let moved = Moved(unsafe { libc::recv(socket.as_raw_fd(), start, len, 0) });
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
    let (start, len) = (bytes.as_ptr().cast(), bytes.len());
    // SAFETY: the pointer is valid for reading `len` bytes.
    Moved(unsafe { libc::send(socket.as_raw_fd(), start, len, NO_SIGNAL) })
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
    retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, NO_SIGNAL) })
}

/// Repeats a call while it is interrupted by signals.
#[inline(always)]
pub(super) fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    let n = call();
    if n >= 0 { Ok(n as usize) } else { failed(call) }
}

/// The call has failed: says why, or calls again if it was interrupted. Kept out of the way of
/// calls that succeed.
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
