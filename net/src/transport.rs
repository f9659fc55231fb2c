//! How a connection's bytes get to the kernel and back.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};
use ruduo_reactor::sys::sendfile;
use ruduo_reactor::sys::socket::{self, Moved};

/// What moves the bytes of a connection. There is one transport so far; encryption would be
/// another. An endpoint is compiled for each, so this costs nothing.
pub(crate) trait Transport: 'static {
    /// Receives into the spare room of `bytes`, which there is. 0 is the end of the stream.
    fn recv(&self, socket: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> Moved;
    fn send(&self, socket: BorrowedFd<'_>, bytes: &[u8]) -> Moved;
    fn send_slices(&self, socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize>;
    fn send_file(
        &self,
        socket: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        offset: u64,
        count: usize,
    ) -> io::Result<usize>;
    /// Sends the end of our stream.
    fn shutdown(&self, socket: BorrowedFd<'_>) -> io::Result<()>;
}

/// The bytes as they are.
pub(crate) struct Plain;

impl Transport for Plain {
    #[inline(always)]
    fn recv(&self, socket: BorrowedFd<'_>, bytes: &mut Vec<u8>) -> Moved {
        socket::recv(socket, bytes)
    }

    #[inline(always)]
    fn send(&self, socket: BorrowedFd<'_>, bytes: &[u8]) -> Moved {
        socket::send(socket, bytes)
    }

    fn send_slices(&self, socket: BorrowedFd<'_>, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        socket::send_slices(socket, slices)
    }

    fn send_file(
        &self,
        socket: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        offset: u64,
        count: usize,
    ) -> io::Result<usize> {
        sendfile::send_file(socket, file, offset, count)
    }

    fn shutdown(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        Ok(shutdown(socket.as_raw_fd(), Shutdown::Write)?)
    }
}

/// Makes the coming close send a reset instead of an orderly end.
pub(crate) fn reset_on_close(socket: BorrowedFd<'_>) -> io::Result<()> {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    Ok(setsockopt(&socket, sockopt::Linger, &linger)?)
}
