//! TCP echo.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};

use crate::common::{self, Task};
use crate::poll::{BATCH, Epoll, NO_EVENT, Wait};

/// What is left to write to a connection that does not read, by descriptor.
type Unsent = Vec<Vec<u8>>;

pub(crate) fn echo(task: &Task, wait: Wait) -> io::Result<()> {
    let listener = TcpListener::bind(task.address)?;
    listener.set_nonblocking(true)?;
    let poll = Epoll::new()?;
    poll.control(libc::EPOLL_CTL_ADD, listener.as_raw_fd(), libc::EPOLLIN)?;
    // Accepted sockets inherit it.
    nodelay(listener.as_raw_fd())?;
    common::listening(listener.local_addr()?)?;

    let mut unsent: Unsent = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut events = [NO_EVENT; BATCH];
    loop {
        let n = poll.wait(&mut events, wait)?;
        for event in &events[..n] {
            let fd = event.u64 as RawFd;
            if fd == listener.as_raw_fd() {
                accept(&poll, fd, &mut unsent)?;
            } else if !serve(&poll, fd, event.events, &mut buffer, &mut unsent[fd as usize]) {
                unsent[fd as usize] = Vec::new();
                close(fd);
            }
        }
    }
}

fn accept(poll: &Epoll, listener: RawFd, unsent: &mut Unsent) -> io::Result<()> {
    // SAFETY: null pointers are allowed where the peer's address is not wanted.
    let fd = unsafe {
        libc::accept4(
            listener,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    };
    if fd < 0 {
        let e = io::Error::last_os_error();
        return match e.raw_os_error() {
            Some(libc::EAGAIN | libc::ECONNABORTED | libc::EINTR) => Ok(()),
            _ => Err(e),
        };
    }
    if unsent.len() <= fd as usize {
        unsent.resize_with(fd as usize + 1, Vec::new);
    }
    poll.control(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN)
}

/// One event of a connection. False means that it is over.
fn serve(poll: &Epoll, fd: RawFd, ready: u32, buffer: &mut [u8], unsent: &mut Vec<u8>) -> bool {
    if !unsent.is_empty() {
        return ready & libc::EPOLLOUT as u32 == 0 || flush(poll, fd, unsent);
    }
    let Some(n) = result(
        // SAFETY: the buffer is valid for writing its length.
        unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) },
    ) else {
        return false;
    };
    match n {
        None => true,
        Some(0) => false,
        Some(n) => {
            let Some(sent) = send(fd, &buffer[..n]) else { return false };
            if sent == n {
                return true;
            }
            // The peer does not read: nothing more is read from it until it does.
            unsent.extend_from_slice(&buffer[sent..n]);
            poll.control(libc::EPOLL_CTL_MOD, fd, libc::EPOLLOUT).is_ok()
        }
    }
}

fn flush(poll: &Epoll, fd: RawFd, unsent: &mut Vec<u8>) -> bool {
    let Some(sent) = send(fd, unsent) else { return false };
    unsent.drain(..sent);
    !unsent.is_empty() || poll.control(libc::EPOLL_CTL_MOD, fd, libc::EPOLLIN).is_ok()
}

fn send(fd: RawFd, bytes: &[u8]) -> Option<usize> {
    // SAFETY: the bytes are valid for reading their length.
    let n = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL) };
    result(n).map(|n| n.unwrap_or(0))
}

/// None is an error; Some(None) is "not now".
fn result(n: isize) -> Option<Option<usize>> {
    if n >= 0 {
        return Some(Some(n as usize));
    }
    match io::Error::last_os_error().raw_os_error() {
        Some(libc::EAGAIN | libc::EINTR) => Some(None),
        _ => None,
    }
}

fn nodelay(fd: RawFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int that outlives the call.
    let r = unsafe {
        libc::setsockopt(
            fd,
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn close(fd: RawFd) {
    // SAFETY: the loop owns the descriptor of every connection, and forgets this one.
    unsafe { libc::close(fd) };
}
