//! A client on a loop of its own thread, what it is told, and targets that do not accept.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Backlog, SockaddrIn, bind, listen};
use ruduo::{
    Address, Client, ClientHandle, CloseReason, ConnectError, ConnectFailure, EventLoop,
    LoopThread, Retry,
};

use crate::common::{new_socket, within};

#[derive(Debug, PartialEq)]
pub enum Told {
    Failed { error: ConnectError, tried: Vec<(Address, ConnectError)>, attempt: u32, again: bool },
    Connected(Address),
    Closed(String),
}

/// A client on a loop of its own thread, and what it is told.
pub struct Scene {
    pub client: ClientHandle,
    pub told: Receiver<Told>,
    pub thread: LoopThread,
}

pub type Setup = Box<dyn for<'l> FnOnce(Client<'l>) -> Client<'l> + Send>;

fn failed(failure: &ConnectFailure) -> Told {
    assert!(failure.to_string().starts_with(&format!("connecting to {}", failure.target)));
    let (error, tried) = (failure.error.clone(), failure.tried.clone());
    Told::Failed { error, tried, attempt: failure.attempt, again: failure.retry_in.is_some() }
}

pub fn start(client: Client<'_>, tell: Sender<Told>) -> ClientHandle {
    let [failures, connects, closes] = [tell.clone(), tell.clone(), tell];
    client
        .on_connect_failed(move |_, failure| failures.send(failed(failure)).unwrap())
        .on_connect(move |conn| connects.send(Told::Connected(conn.peer_addr())).unwrap())
        .on_message(|conn, input| conn.send_buffer(input))
        .on_close(move |_, reason: &CloseReason| {
            closes.send(Told::Closed(reason.to_string())).unwrap();
        })
        .start()
        .unwrap()
}

pub fn scene(target: impl Into<ruduo::Addresses>, setup: Setup) -> Scene {
    let (tell, told) = mpsc::channel();
    let (give, given) = mpsc::channel();
    let target = target.into();
    let thread = LoopThread::spawn("client", EventLoop::builder(), move |event_loop| {
        give.send(start(setup(Client::connect(event_loop, target)), tell)).unwrap();
        Ok(())
    })
    .unwrap();
    Scene { client: within(&given), told, thread }
}

pub fn plain() -> Setup {
    Box::new(|client| client)
}

impl Scene {
    #[track_caller]
    pub fn expect_only(self, expected: ConnectError) {
        let Told::Failed { error, attempt, again, .. } = within(&self.told) else { panic!() };
        assert_eq!((error, attempt, again), (expected, 1, false));
        self.client.wait().unwrap();
        assert_eq!((self.client.attempts(), self.client.failures()), (1, 1));
        assert!(self.client.connection().is_none());
        self.thread.join().unwrap();
        assert_eq!(self.told.try_iter().count(), 0, "told once");
    }
}

/// A listener whose queue is full, so that the next handshake is not answered; and what fills it.
pub fn full() -> (SocketAddr, Vec<OwnedFd>) {
    let new = || {
        let fd = new_socket();
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        fd
    };
    let listener = new();
    let any: SockaddrIn = "127.0.0.1:0".parse().unwrap();
    bind(listener.as_raw_fd(), &any).unwrap();
    listen(&listener, Backlog::new(1).unwrap()).unwrap();
    let address: SockaddrIn = nix::sys::socket::getsockname(listener.as_raw_fd()).unwrap();
    let mut fds = vec![listener];
    for _ in 0..4 {
        let peer = new();
        let _ = nix::sys::socket::connect(peer.as_raw_fd(), &address);
        fds.push(peer);
    }
    (std::net::SocketAddrV4::from(address).into(), fds)
}

/// Tries again at once, or almost.
pub fn quick() -> Retry {
    Retry::exponential().between(Duration::from_millis(5), Duration::from_millis(50))
}
