//! UDP echo, a system call for each datagram that comes and one for each that goes.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use crate::common::{self, Task};
use crate::poll::{Epoll, NO_EVENT, Wait};

pub(crate) fn echo(task: &Task) -> io::Result<()> {
    let socket = UdpSocket::bind(task.address)?;
    socket.set_nonblocking(true)?;
    let poll = Epoll::new()?;
    poll.control(libc::EPOLL_CTL_ADD, socket.as_raw_fd(), libc::EPOLLIN)?;
    common::listening(socket.local_addr()?)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut events = [NO_EVENT; 1];
    loop {
        poll.wait(&mut events, Wait::Asleep)?;
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            // A full socket buffer drops the datagram, as a network does.
            let _dropped = socket.send_to(&buffer[..n], from);
        }
    }
}
