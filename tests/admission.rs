//! Limits to the number of connections, and what those are told who are beyond.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use common::{
    DEADLINE, Running, eventually, new_socket, open_fds, read_n, read_to_end, serve, take_logs,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{SockaddrStorage, bind, connect};
use ruduo::{EventLoop, Server, TcpServer};

fn write(mut stream: &TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).unwrap();
}

fn assert_echoes(stream: &TcpStream) {
    write(stream, "hello");
    assert_eq!(read_n(stream, 5), b"hello");
}

fn echo(settings: impl FnOnce(Server<'_>) -> Server<'_> + Send + 'static) -> Running {
    serve(move |event_loop| {
        settings(TcpServer::bind(event_loop, "127.0.0.1:0")?)
            .on_message(|conn, input| conn.send_buffer(input))
            .start()
    })
}

/// A peer with this address.
fn connect_from(ip: Ipv4Addr, server: SocketAddr) -> TcpStream {
    let fd = new_socket();
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::from((ip, 0)))).unwrap();
    connect(fd.as_raw_fd(), &SockaddrStorage::from(server)).unwrap();
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn one_peer_gets_no_more_than_its_share() {
    each_poller!().run(|| {
        for threads in [0, 2] {
            let running = echo(move |server| server.threads(threads).max_connections_per_peer(2));
            let (greedy, modest) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
            let connect_from = |ip| connect_from(ip, running.addr());
            let mut peers = vec![connect_from(greedy), connect_from(greedy)];
            peers.iter().for_each(assert_echoes);
            for _ in 0..3 {
                assert_eq!(read_to_end(&connect_from(greedy)).unwrap(), b"");
            }
            assert_echoes(&connect_from(modest));
            let metrics = running.server.metrics();
            assert_eq!(metrics.refused.max_connections_per_peer, 3, "{metrics}");
            assert_eq!((metrics.refused.total(), metrics.accepted), (3, 3), "{metrics}");

            // A place that comes free can be had again.
            peers.pop();
            let open = || running.server.metrics().open;
            eventually("the closed ones are counted", || open() == 1);
            assert_echoes(&connect_from(greedy));
            drop(peers);
            eventually("all are closed", || open() == 0);
        }
    });
}

#[test]
fn the_refused_are_told_whatever_they_have_sent() {
    each_poller!().run(|| {
        for threads in [0, 2] {
            let running = echo(move |server| {
                server.threads(threads).max_connections(1).refuse_with(*b"full, come later\n")
            });
            let served = running.connect();
            assert_echoes(&served);
            let mut refused = 0;
            for chunk in [0, 1, 100_000] {
                let begin = Instant::now();
                loop {
                    let (mut peer, start) = (running.connect(), Instant::now());
                    refused += 1;
                    let sent = peer.write_all(&vec![b'x'; chunk]);
                    let sent = sent.and_then(|()| peer.shutdown(Shutdown::Write));
                    match sent.and_then(|()| read_to_end(&peer)) {
                        // The end of the stream and no reset, although nobody reads what it sent.
                        Ok(told) => break assert_eq!(told, b"full, come later\n"),
                        // It has a second for all that, and is cut then.
                        Err(e) => {
                            assert!(start.elapsed() >= Duration::from_secs(1), "{chunk}: {e}");
                            assert!(begin.elapsed() < DEADLINE, "{chunk}: again and again: {e}");
                        }
                    }
                }
            }
            let metrics = running.server.metrics();
            let counts = (metrics.refused.max_connections, metrics.accepted);
            assert_eq!(counts, (refused, 1), "{metrics}");
            // What goes on with the refused is not the server's traffic.
            assert_eq!((metrics.received, metrics.closed.total()), (5, 0), "{metrics}");
            assert_echoes(&served);
        }
    });
}

#[test]
fn the_refused_cannot_hold_more_descriptors_than_allowed() {
    alone!().run(|| {
        let running = echo(|server| server.max_connections(0).refuse_with(*b"no\n"));
        // None of them goes, and so each of the first 64 keeps a descriptor for a second.
        let before = open_fds().len();
        let peers: Vec<_> = (0..200).map(|_| running.connect()).collect();
        let refused = || running.server.metrics().refused.max_connections;
        eventually("all are refused", || refused() == 200);
        let held = open_fds().len() - before - peers.len();
        assert!(held <= 64, "{held} descriptors");
        let told: Vec<_> = peers.iter().map(|peer| read_to_end(peer).unwrap()).collect();
        assert!(told[..60].iter().all(|words| words == b"no\n"), "{:?}", &told[..60]);
        assert!(told.iter().all(|words| words.is_empty() || words == b"no\n"));
        // Whoever does not go is made to.
        eventually("their descriptors are given back", || open_fds().len() == before + 200);
    });
}

#[test]
fn the_refused_do_not_stay_by_sending() {
    each_poller!().run(|| {
        let running = echo(|server| server.max_connections(0).refuse_with(*b"no\n"));
        let start = Instant::now();
        let peer = running.connect();
        assert_eq!(read_to_end(&peer).unwrap(), b"no\n");
        eventually("nobody receives what it sends", || (&peer).write(b"x").is_err());
        assert!(start.elapsed() >= Duration::from_secs(1), "it had {:?}", start.elapsed());
    });
}

#[test]
fn a_message_to_the_refused_that_is_too_long_is_an_error() {
    alone!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let start = |len| {
            let server = TcpServer::bind(&event_loop, "127.0.0.1:0").unwrap();
            server.refuse_with(vec![b'x'; len]).on_message(|_, _| {}).start()
        };
        let error = start(1025).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("1024 are the most"), "{error}");
        start(1024).unwrap();
    });
}

#[test]
fn a_limit_beyond_that_of_descriptors_is_told_of_at_start() {
    alone!().run(|| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256, hard).unwrap();
        for (limit, lines) in [(usize::MAX, 0), (192, 0), (193, 1), (10_000, 1)] {
            let running = echo(move |server| server.max_connections(limit));
            running.server.stop(Duration::ZERO);
            running.server.wait().unwrap();
            let said = take_logs();
            assert_eq!(said.len(), lines, "{limit}: {said:?}");
            if let Some(line) = said.first() {
                let cure = format!("ulimit -n {}", limit + 64);
                assert!(line.contains("256 descriptors") && line.contains(&cure), "{line}");
            }
        }
    });
}
