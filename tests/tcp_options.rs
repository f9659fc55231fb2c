//! Options of the sockets of connections: what they inherit, and what cannot be set.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::channel;
use std::time::Duration;

use common::{open_fds, read_n, serve, within};
use nix::sys::socket::{SockaddrStorage, getpeername, getsockopt, sockopt};
use ruduo::{
    Buffer, Connection, EventLoop, Keepalive, LoopThread, Server, TcpClient, TcpServer, UnixServer,
};

/// This process's descriptor whose other end is there.
fn end_towards(peer: SocketAddr) -> BorrowedFd<'static> {
    let fds = open_fds().into_keys().map(|fd| fd.parse().unwrap());
    let leads_there = |fd: &i32| {
        let address = getpeername::<SockaddrStorage>(*fd).ok();
        address.and_then(|a| a.as_sockaddr_in().copied()).is_some_and(|a| a == peer_in(peer))
    };
    let fd = fds.into_iter().find(leads_there).expect("a descriptor");
    // SAFETY: it stays open as long as the peer, which the test holds.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn peer_in(peer: SocketAddr) -> nix::sys::socket::SockaddrIn {
    let SocketAddr::V4(peer) = peer else { panic!("not IPv4") };
    peer.into()
}

/// A connection that is served.
fn connected(
    settings: impl FnOnce(Server<'_>) -> Server<'_> + Send + 'static,
) -> (common::Running, TcpStream) {
    let server = serve(move |event_loop| {
        settings(TcpServer::bind(event_loop, "127.0.0.1:0")?)
            .on_connect(|conn| conn.send("x"))
            .on_message(|_, input| input.clear())
            .start()
    });
    let peer = server.connect();
    assert_eq!(read_n(&peer, 1), b"x");
    (server, peer)
}

#[cfg(target_os = "linux")]
fn times_of_keepalive(fd: &BorrowedFd<'_>) -> [u32; 3] {
    [
        getsockopt(fd, sockopt::TcpKeepIdle).unwrap(),
        getsockopt(fd, sockopt::TcpKeepInterval).unwrap(),
        getsockopt(fd, sockopt::TcpKeepCount).unwrap(),
    ]
}

#[cfg(not(target_os = "linux"))]
fn times_of_keepalive(_: &BorrowedFd<'_>) -> [u32; 3] {
    common::proc::skip("what sockets inherit is Linux's way")
}

#[cfg(target_os = "linux")]
fn user_timeout(fd: &BorrowedFd<'_>) -> u32 {
    getsockopt(fd, sockopt::TcpUserTimeout).unwrap()
}

#[cfg(not(target_os = "linux"))]
fn user_timeout(_: &BorrowedFd<'_>) -> u32 {
    common::proc::skip("TCP_USER_TIMEOUT is Linux's")
}

#[test]
fn connections_inherit_keepalive_and_user_timeout_from_their_listener() {
    alone!().run(|| {
        let (_server, peer) = connected(|server| {
            server
                .keepalive(Keepalive {
                    after: Duration::from_millis(20_001),
                    every: Duration::from_secs(3),
                    times: 5,
                })
                .user_timeout(Duration::from_millis(12_345))
        });
        let fd = end_towards(peer.local_addr().unwrap());
        assert!(getsockopt(&fd, sockopt::KeepAlive).unwrap());
        assert_eq!(times_of_keepalive(&fd), [21, 3, 5]);
        assert_eq!(user_timeout(&fd), 12_345);
        // None at all would be the system's, and that is a quarter of an hour.
        let (_server, peer) = connected(|server| server.user_timeout(Duration::ZERO));
        assert_eq!(user_timeout(&end_towards(peer.local_addr().unwrap())), 1);
    });
}

#[test]
fn they_are_off_unless_asked_for() {
    alone!().run(|| {
        let (_server, peer) = connected(|server| server);
        let fd = end_towards(peer.local_addr().unwrap());
        assert!(!getsockopt(&fd, sockopt::KeepAlive).unwrap());
        assert_eq!(user_timeout(&fd), 0);
    });
}

/// A small answer does not wait for the acknowledgement of the one before it, unless the program
/// wants that.
#[test]
fn connections_of_servers_and_clients_have_nodelay() {
    alone!().run(|| {
        let has_nodelay = |peer| getsockopt(&end_towards(peer), sockopt::TcpNoDelay).unwrap();
        for wanted in [true, false] {
            let server = serve(move |event_loop| {
                let builder = TcpServer::builder(event_loop);
                let builder = if wanted { builder } else { builder.nodelay(false) };
                builder
                    .bind("127.0.0.1:0")?
                    .on_connect(|conn| conn.send("x"))
                    .on_message(|_, input| input.clear())
                    .start()
            });
            let peer = server.connect();
            assert_eq!(read_n(&peer, 1), b"x");
            assert_eq!(has_nodelay(peer.local_addr().unwrap()), wanted, "of a server");

            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let (tell, told) = channel();
            let client = LoopThread::spawn("client", EventLoop::builder(), move |event_loop| {
                let client = TcpClient::connect(event_loop, address);
                let client = if wanted { client } else { client.nodelay(false) };
                let on_message = move |_: &Connection<'_>, input: &mut Buffer| {
                    input.clear();
                    tell.send(()).unwrap();
                };
                client.on_message(on_message).start().map(drop)
            });
            let mut far = listener.accept().unwrap().0;
            // By then the connection has a descriptor that it keeps.
            far.write_all(b"x").unwrap();
            within(&told);
            assert_eq!(has_nodelay(address), wanted, "of a client");
            drop(far);
            client.unwrap().join().unwrap();
        }
    });
}

#[test]
fn options_that_cannot_be_set_are_refused_with_what_was_tried() {
    alone!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let tcp = || TcpServer::bind(&event_loop, "127.0.0.1:0").unwrap();
        let refusal = |server: Server<'_>| {
            let error = server.on_message(|_, _| {}).start().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            error.to_string()
        };
        let too_long = Keepalive { after: Duration::MAX, ..Keepalive::default() };
        assert!(refusal(tcp().keepalive(too_long)).contains("Keepalive"));
        let too_often = Keepalive { times: 1000, ..Keepalive::default() };
        assert!(refusal(tcp().keepalive(too_often)).contains("times: 1000"));
        assert!(refusal(tcp().user_timeout(Duration::MAX)).contains("user timeout"));

        let unix = || {
            let name = format!("unix:@ruduo-tcp-options-{}", std::process::id());
            UnixServer::bind(&event_loop, name.parse::<ruduo::Address>().unwrap()).unwrap()
        };
        assert!(refusal(unix().keepalive(Keepalive::default())).contains("TCP's"));
        assert!(refusal(unix().user_timeout(Duration::from_secs(1))).contains("TCP's"));
    });
}
