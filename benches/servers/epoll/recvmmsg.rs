//! UDP echo in batches: one system call for all datagrams that wait, and one for all answers.

use std::io;
use std::mem;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, RawFd};

use crate::common::{self, Task};
use crate::poll::{Epoll, NO_EVENT, Wait};

/// The most datagrams that move in one call.
const DATAGRAMS: usize = 64;

/// Room for the largest of them.
const ROOM: usize = 64 * 1024;

pub(crate) fn echo(task: &Task) -> io::Result<()> {
    let socket = UdpSocket::bind(task.address)?;
    socket.set_nonblocking(true)?;
    let poll = Epoll::new()?;
    poll.control(libc::EPOLL_CTL_ADD, socket.as_raw_fd(), libc::EPOLLIN)?;
    common::listening(socket.local_addr()?)?;
    let mut batch = Batch::new();
    let mut events = [NO_EVENT; 1];
    loop {
        poll.wait(&mut events, Wait::Asleep)?;
        loop {
            let come = batch.receive(socket.as_raw_fd());
            batch.send(socket.as_raw_fd(), come);
            if come < DATAGRAMS {
                break;
            }
        }
    }
}

/// What the two calls want: an array of headers, each of which points to an address and to a slice,
/// which points to a buffer.
struct Batch {
    headers: Vec<libc::mmsghdr>,
    slices: Vec<libc::iovec>,
    #[expect(dead_code, reason = "only the kernel looks into it")]
    addresses: Vec<libc::sockaddr_storage>,
    #[expect(dead_code, reason = "only the kernel looks into it")]
    buffers: Vec<u8>,
    /// How many headers have been used since their lengths were set.
    used: usize,
}

impl Batch {
    fn new() -> Batch {
        let mut buffers = vec![0; DATAGRAMS * ROOM];
        // SAFETY: all zero is an address of no family.
        let no_address: libc::sockaddr_storage = unsafe { mem::zeroed() };
        let mut addresses = vec![no_address; DATAGRAMS];
        let mut slices: Vec<libc::iovec> = buffers
            .chunks_exact_mut(ROOM)
            .map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: ROOM })
            .collect();
        let header = |(slice, address): (&mut libc::iovec, &mut libc::sockaddr_storage)| {
            // SAFETY: all zero is a header of nothing.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_iov = slice;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = (&raw mut *address).cast();
            header
        };
        let headers = slices.iter_mut().zip(&mut addresses).map(header).collect();
        Batch { headers, slices, addresses, buffers, used: DATAGRAMS }
    }

    /// How many have come; 0 also if that cannot be told, for the next event tries again.
    fn receive(&mut self, fd: RawFd) -> usize {
        for (header, slice) in self.headers[..self.used].iter_mut().zip(&mut self.slices) {
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            slice.iov_len = ROOM;
        }
        let headers = self.headers.as_mut_ptr();
        // SAFETY: the headers point to slices, buffers and addresses that live as long as they.
        let n = unsafe { libc::recvmmsg(fd, headers, DATAGRAMS as u32, 0, std::ptr::null_mut()) };
        self.used = usize::try_from(n).unwrap_or(0);
        self.used
    }

    /// Sends the first ones back. A full socket buffer drops the rest, as a network does.
    fn send(&mut self, fd: RawFd, come: usize) {
        for (header, slice) in self.headers[..come].iter().zip(&mut self.slices) {
            slice.iov_len = header.msg_len as usize;
        }
        let mut sent = 0;
        while sent < come {
            let left = &mut self.headers[sent..come];
            // SAFETY: as above; these have been filled by the kernel.
            let n = unsafe { libc::sendmmsg(fd, left.as_mut_ptr(), left.len() as u32, 0) };
            match usize::try_from(n) {
                Ok(n) => sent += n,
                Err(_) => return,
            }
        }
    }
}
