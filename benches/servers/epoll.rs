//! The practical limit: an echo loop written by hand on epoll, for nothing but this protocol. It
//! keeps no limits, has no timers and cannot be woken; what a library costs is what it adds to this.

mod common;

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::process::ExitCode;
use std::time::Instant;

use common::{ROUND_TRIPS, Task};

const BATCH: usize = 256;

fn main() -> ExitCode {
    common::run(|task| match task.name.as_str() {
        "echo" => echo(task),
        "udp" => udp(task),
        "roundtrips" => round_trips(),
        _ => common::unknown(task),
    })
}

/// What is left to write to a connection that does not read, by descriptor.
type Unsent = Vec<Vec<u8>>;

fn echo(task: &Task) -> io::Result<()> {
    let listener = TcpListener::bind(task.address)?;
    listener.set_nonblocking(true)?;
    let poll = Epoll::new()?;
    poll.control(libc::EPOLL_CTL_ADD, listener.as_raw_fd(), libc::EPOLLIN)?;
    // Accepted sockets inherit it.
    nodelay(listener.as_raw_fd())?;
    common::listening(listener.local_addr()?)?;

    let mut unsent: Unsent = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
    loop {
        let n = poll.wait(&mut events)?;
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

fn udp(task: &Task) -> io::Result<()> {
    let socket = UdpSocket::bind(task.address)?;
    socket.set_nonblocking(true)?;
    let poll = Epoll::new()?;
    poll.control(libc::EPOLL_CTL_ADD, socket.as_raw_fd(), libc::EPOLLIN)?;
    common::listening(socket.local_addr()?)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
    loop {
        poll.wait(&mut events)?;
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            // A full socket buffer drops the datagram, as a network does.
            let _dropped = socket.send_to(&buffer[..n], from);
        }
    }
}

/// Two loops that wake each other by eventfd. Edge-triggered: a new write is a new event, so that
/// nobody has to read the count.
fn round_trips() -> io::Result<()> {
    let (here, there) = (eventfd()?, eventfd()?);
    let began = Instant::now();
    let other = std::thread::spawn(move || ping(there, here, true));
    ping(here, there, false)?;
    common::figure("round trips/s", ROUND_TRIPS as f64 / began.elapsed().as_secs_f64())?;
    other.join().map_err(|_| io::Error::other("the other thread panicked"))?
}

fn ping(mine: RawFd, others: RawFd, other_begins: bool) -> io::Result<()> {
    let poll = Epoll::new()?;
    poll.control(libc::EPOLL_CTL_ADD, mine, libc::EPOLLIN | libc::EPOLLET)?;
    let mut events = [libc::epoll_event { events: 0, u64: 0 }; 1];
    for _ in 0..ROUND_TRIPS {
        if !other_begins {
            wake(others)?;
        }
        while poll.wait(&mut events)? == 0 {}
        if other_begins {
            wake(others)?;
        }
    }
    Ok(())
}

fn eventfd() -> io::Result<RawFd> {
    // SAFETY: no pointers are involved.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd) }
}

fn wake(fd: RawFd) -> io::Result<()> {
    let one: u64 = 1;
    // SAFETY: eight bytes are read from a value that outlives the call.
    let n = unsafe { libc::write(fd, (&raw const one).cast(), 8) };
    if n == 8 { Ok(()) } else { Err(io::Error::last_os_error()) }
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

struct Epoll(RawFd);

impl Epoll {
    fn new() -> io::Result<Epoll> {
        // SAFETY: no pointers are involved.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(Epoll(fd)) }
    }

    fn control(&self, operation: i32, fd: RawFd, interest: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest as u32, u64: fd as u64 };
        // SAFETY: the event outlives the call.
        let r = unsafe { libc::epoll_ctl(self.0, operation, fd, &mut event) };
        if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn wait(&self, events: &mut [libc::epoll_event]) -> io::Result<usize> {
        // SAFETY: the array is valid for writing its length.
        let n = unsafe { libc::epoll_wait(self.0, events.as_mut_ptr(), events.len() as i32, -1) };
        if n >= 0 {
            return Ok(n as usize);
        }
        let e = io::Error::last_os_error();
        if e.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(e) }
    }
}
