//! Servers each loop of which accepts for itself.

#![allow(clippy::unwrap_used)]

mod common;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use common::{
    DEADLINE, Running, allow_descriptors, eventually, logs, new_socket, open_fds, read_n, serve,
    within,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{SockaddrStorage, connect};
use ruduo::{Connection, EventLoop, LoopPool, Server, TcpServer, handler_fn};

fn write(mut stream: &TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).unwrap();
}

fn bind(event_loop: &EventLoop) -> io::Result<Server<'_>> {
    TcpServer::builder(event_loop).acceptor_per_loop(true).bind("127.0.0.1:0")
}

/// Answers with the name of the thread that serves.
fn serve_names(settings: impl FnOnce(Server<'_>) -> Server<'_> + Send + 'static) -> Running {
    serve(move |event_loop| {
        settings(bind(event_loop)?)
            .on_message(|conn, input| {
                input.clear();
                conn.send(thread::current().name().unwrap_or("?"));
            })
            .start()
    })
}

fn name(peer: &TcpStream, len: usize) -> String {
    write(peer, "?");
    String::from_utf8(read_n(peer, len)).unwrap()
}

#[test]
fn every_loop_accepts_its_own_on_one_port() {
    each_poller!().run(|| {
        let running = serve_names(|server| server.threads(3));
        let peers: Vec<_> = (0..200).map(|_| running.connect()).collect();
        let mut served = HashMap::new();
        for peer in &peers {
            *served.entry(name(peer, 7)).or_insert(0) += 1;
        }
        // The kernel chooses by a hash of the ports; 200 of them leave no loop out.
        let mut names: Vec<_> = served.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["ruduo-0", "ruduo-1", "ruduo-2"], "{served:?}");
        let metrics = running.server.metrics();
        assert_eq!((metrics.accepted, metrics.open, metrics.lost), (200, 200, 0), "{metrics}");

        running.server.stop(Duration::ZERO);
        let report = running.server.wait().unwrap();
        assert_eq!((report.drained, report.cut), (0, 200));
        assert!(TcpStream::connect(running.addr()).is_err(), "somebody still listens");
    });
}

#[test]
fn without_threads_it_is_the_loop_itself() {
    each_poller!().run(|| {
        let running = serve_names(|server| server);
        assert_eq!(name(&running.connect(), 9), "test-loop");
        running.server.stop(Duration::ZERO);
        running.server.wait().unwrap();
    });
}

#[test]
fn a_pool_that_is_shared_will_do() {
    each_poller!().run(|| {
        let running = serve(|event_loop| {
            let pool = LoopPool::builder(event_loop).threads(2).name("pool").start()?;
            bind(event_loop)?.pool(&pool).on_message(|conn, _| conn.send("x")).start()
        });
        let peers: Vec<_> = (0..50).map(|_| running.connect()).collect();
        for peer in &peers {
            assert_eq!(name(peer, 1), "x");
        }
        running.server.stop(Duration::ZERO);
        assert_eq!(running.server.wait().unwrap().cut, 50);
        assert!(TcpStream::connect(running.addr()).is_err(), "somebody still listens");
    });
}

#[test]
fn the_limit_of_connections_is_that_of_all_loops_together() {
    const LIMIT: usize = 20;
    each_poller!().run(|| {
        let running = serve_names(|server| server.threads(3).max_connections(LIMIT));
        let peers: Vec<_> = (0..100).map(|_| running.connect()).collect();
        let decided = || {
            let metrics = running.server.metrics();
            metrics.accepted + metrics.refused.max_connections
        };
        eventually("all are let in or not", || decided() == 100);
        let metrics = running.server.metrics();
        assert_eq!(metrics.accepted, LIMIT as u64, "{metrics}");
        let is_served = |peer: &&TcpStream| {
            let _ = (&mut &**peer).write(b"?");
            matches!((&mut &**peer).read(&mut [0; 7]), Ok(7))
        };
        assert_eq!(peers.iter().filter(is_served).count() as u64, metrics.accepted);
    });
}

#[test]
fn a_stop_while_connections_flood_in_ends_them_all() {
    const FLOOD: usize = 2000;
    let test = each_poller!();
    // Both ends of each.
    if !allow_descriptors(2 * FLOOD as u64 + 100) {
        return test.skip("4,100 descriptors are more than are allowed here");
    }
    test.run(|| {
        let running = serve_names(|server| server.threads(2));
        let address = running.addr();
        let flood = thread::spawn(move || {
            let connect = |_| TcpStream::connect(address).ok();
            (0..).map_while(connect).take(FLOOD).collect::<Vec<_>>()
        });
        eventually("the flood has begun", || running.server.metrics().accepted >= 20);
        running.server.stop(Duration::ZERO);
        running.server.wait().unwrap();
        let metrics = running.server.metrics();
        assert_eq!((metrics.open, metrics.lost), (0, 0), "{metrics}");
        assert_eq!(metrics.accepted, metrics.closed.total(), "{metrics}");
        drop(flood.join().unwrap());
    });
}

#[test]
fn a_panic_while_a_loop_begins_is_an_error_and_nobody_listens() {
    each_poller!().expect_log("panicked: on purpose").run(|| {
        let event_loop = EventLoop::new().unwrap();
        let server = bind(&event_loop).unwrap().threads(2);
        let (send, receive) = std::sync::mpsc::channel();
        let error = server
            .serve_per_loop(move |event_loop| {
                send.send(event_loop.handle()).unwrap();
                assert!(thread::current().name() != Some("ruduo-1"), "on purpose");
                |_: &ruduo::Connection<'_>| ruduo::handler_fn(|_, _| {})
            })
            .unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        assert!(within(&receive).is_ended());
    });
}

/// The second loop of the pool has ended, which is found out when the first one serves already.
#[test]
fn a_start_that_fails_on_a_shared_pool_leaves_nothing_on_its_loops() {
    each_poller!().run(|| {
        for acceptor_per_loop in [false, true] {
            let event_loop = EventLoop::new().unwrap();
            let pool = LoopPool::builder(&event_loop).threads(2).start().unwrap();
            let ended = &pool.loops()[1];
            ended.quit();
            eventually("a loop of the pool has ended", || ended.is_ended());

            let builder = TcpServer::builder(&event_loop).acceptor_per_loop(acceptor_per_loop);
            let server = builder.bind("127.0.0.1:0").unwrap().pool(&pool);
            let (of_factory, factories) = mpsc::channel::<()>();
            let error = server
                .serve_per_loop(move |_| {
                    let of_factory = of_factory.clone();
                    move |_: &Connection<'_>| {
                        let _ = &of_factory;
                        handler_fn(|_, _| {})
                    }
                })
                .unwrap_err();
            assert!(error.to_string().starts_with("starting a server: "), "{error}");
            let left = factories.recv_timeout(DEADLINE);
            assert_eq!(left, Err(RecvTimeoutError::Disconnected), "a loop keeps its factory");
            let listens = || open_fds().values().any(|kind| kind.starts_with("socket:"));
            eventually("nobody listens", || !listens());
        }
    });
}

/// Takes all descriptors, until what it returns is dropped.
fn take_all_descriptors() -> Vec<File> {
    (0..).map_while(|_| File::open("/dev/zero").ok()).collect()
}

/// Without descriptors each acceptor pauses by itself, and the connections of its loop go on; with
/// them, each goes on by itself.
#[test]
fn b01_each_acceptor_pauses_and_goes_on_by_itself() {
    const LOOPS: usize = 3;
    each_poller!().expect_log("ulimit -n").run(|| {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256, hard).unwrap();
        let running = serve_names(|server| server.threads(LOOPS));
        let established: Vec<_> = (0..30).map(|_| running.connect()).collect();
        let loops: HashSet<_> = established.iter().map(|peer| name(peer, 7)).collect();
        assert_eq!(loops.len(), LOOPS);

        // The kernel sends these to all loops alike, and there is no descriptor for any.
        let peers: Vec<_> = (0..100).map(|_| new_socket()).collect();
        let shortage = take_all_descriptors();
        peers.iter().for_each(|peer| connect_to(peer, running.addr()));
        // Each acceptor says so once in a while.
        let has_paused = |line: &String| line.contains("ulimit -n");
        eventually("all have paused", || logs().iter().filter(|l| has_paused(l)).count() == LOOPS);
        let pauses = || running.server.metrics().accept_pauses;
        eventually("each pause is counted", || pauses() >= LOOPS as u64);
        for peer in &established {
            name(peer, 7);
        }

        // The next one may still be refused, by who does not know that the shortage is over.
        drop((peers, shortage));
        let again = RefCell::new(HashSet::new());
        eventually("all accept again", || {
            let mut peer = running.connect();
            let mut name = [0; 7];
            if peer.write_all(b"?").and_then(|()| peer.read_exact(&mut name)).is_ok() {
                again.borrow_mut().insert(name);
            }
            again.borrow().len() == LOOPS
        });
    });
}

fn connect_to(peer: &OwnedFd, address: SocketAddr) {
    connect(peer.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
}
