//! Two loops that wake each other by eventfd. Edge-triggered: a new write is a new event, so that
//! nobody has to read the count.

use std::io;
use std::os::fd::RawFd;
use std::time::Instant;

use crate::common::{self, ROUND_TRIPS};
use crate::poll::{Epoll, NO_EVENT, Wait};

pub(crate) fn measure() -> io::Result<()> {
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
    let mut events = [NO_EVENT; 1];
    for _ in 0..ROUND_TRIPS {
        if !other_begins {
            wake(others)?;
        }
        while poll.wait(&mut events, Wait::Asleep)? == 0 {}
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
