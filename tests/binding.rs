//! Binding: where a server listens, and what it says when it can't.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};

use common::{connect, read_n, serve};
use ruduo::{Address, EventLoop, Server, ServerHandle, TcpServer};

/// One line, without its end.
fn read_line(stream: &TcpStream) -> String {
    let byte = || read_n(stream, 1)[0];
    let bytes = std::iter::repeat_with(byte).take_while(|byte| *byte != b'\n').collect();
    String::from_utf8(bytes).unwrap()
}

fn assert_echoes(mut stream: &TcpStream) {
    stream.write_all(b"hello").unwrap();
    assert_eq!(read_n(stream, 5), b"hello");
}

/// Tells each peer its address, then echoes.
fn tell_address(server: Server<'_>) -> io::Result<ServerHandle> {
    server
        .on_connect(|conn| conn.send(format!("{}\n", conn.peer_addr())))
        .on_message(|conn, input| conn.send_buffer(input))
        .start()
}

fn assert_told(stream: &TcpStream) {
    assert_eq!(read_line(stream), stream.local_addr().unwrap().to_string());
}

#[test]
fn a_port_that_is_taken_is_an_error_that_names_it() {
    alone!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        let error = TcpServer::bind(&event_loop, address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    });
}

#[test]
fn an_address_that_is_not_ours_is_an_error_that_names_it() {
    alone!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        // Reserved for documentation (RFC 5737), so no interface has it.
        let error = TcpServer::bind(&event_loop, "192.0.2.1:80").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(error.to_string().contains("192.0.2.1:80"), "{error}");
        let error = TcpServer::bind(&event_loop, "127.0.0.1").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("\"127.0.0.1\" is neither an address"), "{error}");
    });
}

#[test]
fn port_0_is_any_free_one_and_the_handle_tells_which() {
    alone!().run(|| {
        let server = serve(|event_loop| tell_address(TcpServer::bind(event_loop, "127.0.0.1:0")?));
        assert_ne!(server.addr().port(), 0);
        assert_told(&server.connect());
    });
}

#[test]
fn the_first_address_that_can_be_bound_is_taken() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            let addresses: [Address; 2] =
                ["192.0.2.1:80", "127.0.0.1:0"].map(|address| address.parse().unwrap());
            tell_address(TcpServer::bind(event_loop, &addresses[..])?)
        });
        assert!(server.addr().ip().is_loopback());
        assert_told(&server.connect());
    });
}

#[test]
fn several_servers_share_a_port_if_all_want_to() {
    alone!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let sharing = || TcpServer::builder(&event_loop).reuse_port(true);
        let first = tell_address(sharing().bind("127.0.0.1:0").unwrap()).unwrap();
        let second = tell_address(sharing().bind(first.local_addr()).unwrap()).unwrap();
        assert_eq!(first.local_addr(), second.local_addr());
        let error = TcpServer::bind(&event_loop, first.local_addr()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    });
}

#[test]
fn a_listener_can_be_taken_over() {
    alone!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        // They wait in the queue, as peers do while a service is restarted. Several of them: the
        // loop then tries to accept one more than there is, and would hang if the listener, made
        // as a blocking one, had stayed so.
        let early: Vec<_> = (0..3).map(|_| connect(address)).collect();
        let server =
            serve(|event_loop| tell_address(TcpServer::from_listener(event_loop, listener)?));
        assert_eq!(server.addr(), address);
        for peer in early.into_iter().chain([server.connect()]) {
            assert_told(&peer);
            assert_echoes(&peer);
        }
    });
}

#[test]
fn ipv6_serves_ipv4_too_unless_told_otherwise() {
    let bind = |ipv6_only| {
        serve(move |event_loop| {
            tell_address(TcpServer::builder(event_loop).ipv6_only(ipv6_only).bind("[::]:0")?)
        })
    };
    alone!().run(|| {
        if TcpListener::bind("[::1]:0").is_err() {
            eprintln!("SKIPPED: there is no IPv6 on this machine");
            return;
        }
        let both = bind(false);
        let port = both.addr().port();
        assert_told(&TcpStream::connect(("::1", port)).unwrap());
        let v4 = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mapped = format!("[::ffff:127.0.0.1]:{}", v4.local_addr().unwrap().port());
        assert_eq!(read_line(&v4), mapped);

        let only_v6 = bind(true);
        let port = only_v6.addr().port();
        // Mostly nobody is there, but another process may listen on this port of IPv4.
        let _refused = TcpStream::connect(("127.0.0.1", port));
        assert_told(&TcpStream::connect(("::1", port)).unwrap());
        assert_eq!(only_v6.server.metrics().accepted, 1);
    });
}
