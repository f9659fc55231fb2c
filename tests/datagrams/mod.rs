//! What the tests of datagrams share: sockets of ruduo on a thread, and peers with deadlines.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::sys::socket::{SockaddrIn, SockaddrIn6, getsockname};
use ruduo::{EventLoop, LoopHandle, LoopMetrics, LoopThread, UdpHandle, UdpMetrics, UdpServer};

use crate::common::{Alone, DEADLINE, eventually, within};

/// Sockets on a loop of their own thread. Dropping it quits the loop and waits for the thread.
pub struct Running {
    pub udp: UdpHandle,
    pub thread: LoopThread,
}

impl Running {
    pub fn addr(&self) -> SocketAddr {
        self.udp.local_addr().as_ip().unwrap()
    }

    pub fn event_loop(&self) -> &LoopHandle {
        self.thread.handle()
    }

    pub fn metrics(&self) -> UdpMetrics {
        self.udp.metrics()
    }

    /// A peer that is connected to it.
    pub fn peer(&self) -> UdpSocket {
        let peer = peer(if self.addr().is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" });
        peer.connect(self.addr()).unwrap();
        peer
    }

    pub fn assert_echoes(&self) {
        assert_echoes(&self.peer());
    }

    pub fn stop(&self) {
        self.udp.stop(DEADLINE);
        self.wait();
    }

    /// Not for ever.
    #[track_caller]
    pub fn wait(&self) {
        eventually("the sockets have ended", || self.udp.is_ended());
        self.udp.wait().unwrap();
    }
}

/// Starts what `setup` describes.
pub fn start(setup: impl FnOnce(&EventLoop) -> io::Result<UdpHandle> + Send + 'static) -> Running {
    let (send, receive) = channel();
    let init = move |event_loop: &EventLoop| {
        send.send(setup(event_loop)?).unwrap();
        Ok(())
    };
    let thread = LoopThread::spawn("test-loop", EventLoop::builder(), init).unwrap();
    Running { udp: within(&receive), thread }
}

pub fn echo() -> Running {
    start(|event_loop| {
        UdpServer::bind(event_loop, "127.0.0.1:0")
            .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
            .start()
    })
}

/// A plain socket that does not wait for ever.
pub fn peer(address: &str) -> UdpSocket {
    let peer = UdpSocket::bind(address).unwrap();
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    peer
}

#[track_caller]
pub fn recv(peer: &UdpSocket) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let n = peer.recv(&mut bytes).unwrap();
    bytes.truncate(n);
    bytes
}

#[track_caller]
pub fn assert_echoes(peer: &UdpSocket) {
    peer.send(b"hello").unwrap();
    assert_eq!(recv(peer), b"hello");
}

/// The only descriptor of this process that is bound to the port.
pub fn with_fd_at<R>(port: u16, f: impl Fn(BorrowedFd<'_>) -> R) -> R {
    let fds = crate::common::open_fds().into_keys().map(|fd| fd.parse::<i32>().unwrap());
    let port_of = |fd: i32| {
        let v4 = getsockname::<SockaddrIn>(fd).map(|address| address.port());
        v4.or_else(|_| getsockname::<SockaddrIn6>(fd).map(|address| address.port()))
    };
    let found = fds.filter(|fd| port_of(*fd) == Ok(port));
    let found: Vec<_> = found.collect();
    assert_eq!(found.len(), 1);
    // SAFETY: it is a socket that stays open: the caller holds the server it belongs to.
    f(unsafe { BorrowedFd::borrow_raw(found[0]) })
}

/// Keeps a loop from doing anything until what it returns is dropped.
pub fn hold(event_loop: &LoopHandle) -> Sender<()> {
    let (release, released) = channel::<()>();
    let (send, held) = channel();
    let task = move |_: &EventLoop| {
        send.send(()).unwrap();
        let _ = released.recv();
    };
    event_loop.post(task).unwrap();
    within(&held);
    release
}

/// How many turns the loop makes in this time.
pub fn turns_in(event_loop: &LoopHandle, time: Duration) -> u64 {
    let (before, after) = before_and_after(event_loop, time);
    after.turns - before.turns
}

/// How many timers have fired before this time begins, and within it. With none there is one in the
/// end, which tells.
pub fn timers_until(event_loop: &LoopHandle, time: Duration) -> (u64, u64) {
    let (before, after) = before_and_after(event_loop, time);
    (before.timers, after.timers - before.timers)
}

fn before_and_after(event_loop: &LoopHandle, time: Duration) -> (LoopMetrics, LoopMetrics) {
    let (send, receive): (_, Receiver<_>) = channel();
    let measure = move |event_loop: &EventLoop| {
        let before = event_loop.metrics();
        event_loop.run_after(time, move |event_loop| {
            send.send((before, event_loop.metrics())).unwrap();
        });
    };
    event_loop.post(measure).unwrap();
    within(&receive)
}

/// Runs the test's process with system calls that fail now and then, as strace(1) is told.
pub fn failing(alone: Alone, calls: &str, how: &str) -> Alone {
    let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:{how}"));
    alone.under(&["strace", "-qq", "-f", "-o", "/dev/null", "-e", &trace, "-e", &inject])
}
