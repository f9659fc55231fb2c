//! Churn: connections that live for one message. The client resets them, so that no port waits.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::lockstep::{connect, pattern, reset};
use super::{Meter, Outcome, Wait};

/// Keeps that many connections in the air for that long.
pub(crate) fn run(server: SocketAddr, at_once: usize, time: Duration) -> io::Result<Outcome> {
    let poll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let message = pattern(16);
    let mut meter = Meter::new()?;
    let until = meter.began + time;
    let begin = |i: usize| -> io::Result<(TcpStream, Instant)> {
        let began = Instant::now();
        let stream = connect(server)?;
        poll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, i as u64))?;
        (&stream).write_all(&message)?;
        Ok((stream, began))
    };
    let mut flying = (0..at_once).map(begin).collect::<io::Result<Vec<_>>>()?;
    let mut events = [EpollEvent::empty(); 256];
    let mut answer = vec![0; message.len()];
    loop {
        let n = Wait::Asleep.events(&poll, &mut events)?;
        for event in &events[..n] {
            let i = event.data() as usize;
            (&flying[i].0).read_exact(&mut answer)?;
            if answer != message {
                return Err(io::Error::other("the server has changed the bytes"));
            }
            meter.answered(flying[i].1.elapsed());
            let next = begin(i)?;
            let (old, _) = std::mem::replace(&mut flying[i], next);
            reset(old)?;
        }
        if Instant::now() >= until {
            flying.into_iter().try_for_each(|(stream, _)| reset(stream))?;
            return Ok(meter.end());
        }
    }
}
