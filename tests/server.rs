//! Servers: how one is described, where its connections go, what it counts.

#![allow(clippy::unwrap_used)]

mod common;

use std::cell::Cell;
use std::fs;
use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{
    DEADLINE, Running, connect, eventually, open_fds, proc, read_n, read_to_end, serve, within,
};
use ruduo::{
    Buffer, Channel, CloseReason, Connection, EventLoop, Handler, Interest, LoopHandle, LoopPool,
    LoopThread, Placement, PollerKind, Server, ServerHandle, TcpServer, handler_fn,
};

/// One line, without its end.
fn read_line(stream: &TcpStream) -> String {
    let byte = || read_n(stream, 1)[0];
    let bytes = std::iter::repeat_with(byte).take_while(|byte| *byte != b'\n').collect();
    String::from_utf8(bytes).unwrap()
}

fn write(mut stream: &TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).unwrap();
}

fn assert_echoes(stream: &TcpStream) {
    write(stream, "hello");
    assert_eq!(read_n(stream, 5), b"hello");
}

fn thread_name() -> String {
    thread::current().name().unwrap().to_owned()
}

/// Greets with the name of the thread that serves it, then echoes.
fn greet_by_thread(server: Server<'_>) -> io::Result<ServerHandle> {
    server
        .on_connect(|conn| conn.send(thread_name() + "\n"))
        .on_message(|conn, input| conn.send_buffer(input))
        .start()
}

// What programs look like. These tests are written as a user would write them, so they also say
// that nothing has to be annotated.

#[test]
fn the_front_page_works_as_written() {
    each_poller!().run(|| {
        let (send, receive) = mpsc::channel();
        let program = thread::spawn(move || {
            let event_loop = EventLoop::new()?;
            let server = TcpServer::bind(&event_loop, "127.0.0.1:0")?
                .threads(4)
                .on_message(|conn, input| conn.send_buffer(input))
                .start()?;
            send.send((server.local_addr().clone(), event_loop.handle())).unwrap();
            // Nobody keeps the handle, and that changes nothing.
            drop(server);
            event_loop.run()
        });
        let (address, event_loop) = within(&receive);
        let peers: Vec<_> = (0..8).map(|_| connect(&address)).collect();
        peers.iter().for_each(assert_echoes);
        event_loop.quit();
        program.join().unwrap().unwrap();
    });
}

#[test]
fn a_session_is_made_for_each_connection() {
    struct Session {
        lines: u64,
    }
    impl Handler for Session {
        fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
            while let Some(end) = input.find_eol() {
                input.consume(end + 1);
                self.lines += 1;
                conn.send(format!("{}\n", self.lines));
            }
        }
        fn on_close(&mut self, _conn: &Connection, _reason: &CloseReason) {}
    }

    each_poller!().run(|| {
        let counter = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.serve(|_conn| Session { lines: 0 })
        });
        let (first, second) = (counter.connect(), counter.connect());
        write(&first, "one\ntwo\nthr");
        assert_eq!([read_line(&first), read_line(&first)], ["1", "2"]);
        write(&second, "one\n");
        assert_eq!(read_line(&second), "1");
        write(&first, "ee\n");
        assert_eq!(read_line(&first), "3");
    });
}

#[test]
fn sessions_of_one_loop_share_state_that_cannot_cross_threads() {
    #[derive(Default)]
    struct Members {
        joined: Cell<u32>,
    }
    struct Session {
        members: Rc<Members>,
    }
    impl Handler for Session {
        fn on_connect(&mut self, conn: &Connection) {
            let joined = &self.members.joined;
            joined.set(joined.get() + 1);
            conn.send(format!("{} {}\n", thread_name(), joined.get()));
        }
        fn on_message(&mut self, _: &Connection, _: &mut Buffer) {}
    }

    each_poller!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.threads(2).serve_per_loop(|_loop| {
                let members = Rc::new(Members::default());
                move |_conn| Session { members: members.clone() }
            })
        });
        let peers: Vec<_> = (0..4).map(|_| server.connect()).collect();
        let greetings: Vec<_> = peers.iter().map(read_line).collect();
        assert_eq!(greetings, ["ruduo-0 1", "ruduo-1 1", "ruduo-0 2", "ruduo-1 2"]);
    });
}

#[test]
fn a_closure_with_state_becomes_a_handler() {
    each_poller!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.serve(|_conn| {
                let mut seen = 0;
                handler_fn(move |conn, input| {
                    seen += input.len();
                    input.clear();
                    conn.send(format!("{seen}\n"));
                })
            })
        });
        let peer = server.connect();
        write(&peer, "abc");
        assert_eq!(read_line(&peer), "3");
        write(&peer, "de");
        assert_eq!(read_line(&peer), "5");
    });
}

/// Tells of each callback, and changes what all but `on_connect` and `on_message` do by default.
struct Recorder {
    callbacks: mpsc::Sender<String>,
}

impl Recorder {
    fn tell(&self, callback: &str) {
        self.callbacks.send(callback.to_owned()).unwrap();
    }
}

impl Handler for Recorder {
    fn on_connect(&mut self, conn: &Connection) {
        self.tell("connect");
        conn.set_timer(7, Duration::ZERO);
    }
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        self.tell("message");
        input.clear();
        conn.send(vec![0; LARGE]);
    }
    fn on_write_complete(&mut self, _: &Connection) {
        self.tell("write complete");
    }
    fn on_high_water(&mut self, _: &Connection, pending: usize) {
        assert!(pending > HIGH_WATER);
        self.tell("high water");
    }
    fn on_low_water(&mut self, _: &Connection) {
        self.tell("low water");
    }
    fn on_half_close(&mut self, conn: &Connection) {
        self.tell("half close");
        conn.shutdown();
    }
    fn on_timer(&mut self, conn: &Connection, key: u64) {
        self.tell(&format!("timer {key}"));
        conn.send("x");
        let recorder = conn.handle_for::<Recorder>();
        recorder.post(|recorder, _| recorder.tell("post")).unwrap();
    }
    fn on_stopping(&mut self, _: &Connection) {
        self.tell("stopping");
    }
    fn on_close(&mut self, _: &Connection, reason: &CloseReason) {
        self.tell(&format!("close: {reason}"));
    }
}

const HIGH_WATER: usize = 1024 * 1024;

/// More than the kernel takes from a peer that does not read.
const LARGE: usize = 50 * 1024 * 1024;

fn assert_every_callback_comes<H: Handler>(wrap: fn(Recorder) -> H) {
    let (send, receive) = mpsc::channel();
    let running = serve(move |event_loop| {
        let make = move |_: &Connection| wrap(Recorder { callbacks: send.clone() });
        TcpServer::bind(event_loop, "127.0.0.1:0")?.water_marks(1000, HIGH_WATER).serve(make)
    });
    let expect = |callbacks: &[&str]| {
        for callback in callbacks {
            assert_eq!(within(&receive), *callback);
        }
    };
    let peer = running.connect();
    expect(&["connect", "timer 7", "post", "write complete"]);
    assert_eq!(read_n(&peer, 1), b"x");
    write(&peer, "go");
    expect(&["message", "high water"]);
    read_n(&peer, LARGE);
    expect(&["low water", "write complete"]);
    running.server.stop(DEADLINE);
    expect(&["stopping"]);
    peer.shutdown(Shutdown::Write).unwrap();
    expect(&["half close", "close: closed by the peer"]);
    running.server.wait().unwrap();
}

#[test]
fn a_handler_gets_every_callback() {
    each_poller!().run(|| assert_every_callback_comes(|recorder| recorder));
}

#[test]
fn a_boxed_handler_gets_every_callback() {
    each_poller!()
        .run(|| assert_every_callback_comes(|recorder| -> Box<dyn Handler> { Box::new(recorder) }));
}

// Settings.

#[test]
fn settings_that_contradict_each_other_are_refused() {
    type Change = fn(Server<'_>) -> Server<'_>;
    let cases: [(Change, &str); 6] = [
        (|server| server.read_size(0), "read size of 0"),
        (
            |server| {
                let server = server.read_size(usize::MAX).input_limit(usize::MAX);
                server.output_limit(usize::MAX)
            },
            "where 1073741824 are the most",
        ),
        (|server| server.input_limit(1000).read_size(1001), "input limit (1000 bytes)"),
        (|server| server.water_marks(500, 500), "low-water mark (500 bytes)"),
        (|server| server.water_marks(500, 400), "high one (400)"),
        (|server| server.water_marks(0, 9000).output_limit(9000), "output limit (9000)"),
    ];
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        for (change, complaint) in cases {
            let server = change(TcpServer::bind(&event_loop, "127.0.0.1:0").unwrap().threads(2));
            let error = server.on_message(|_, _| {}).start().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains(complaint), "{error}");
        }
    });
}

#[test]
fn connections_beyond_the_maximum_are_refused_until_one_closes() {
    each_poller!().run(|| {
        let running = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .max_connections(2)
                .on_message(|conn, input| conn.send_buffer(input))
                .start()
        });
        let server = &running.server;
        let (first, second) = (running.connect(), running.connect());
        assert_echoes(&first);
        assert_echoes(&second);
        for _ in 0..3 {
            assert_eq!(read_to_end(&running.connect()).unwrap(), b"");
        }
        assert_eq!(
            (server.metrics().refused.total(), server.metrics().accepted, server.metrics().open),
            (3, 2, 2)
        );

        drop(first);
        eventually("the closed connection is counted", || server.metrics().open == 1);
        assert_echoes(&running.connect());
        assert_echoes(&second);
        assert_eq!((server.metrics().refused.total(), server.metrics().accepted), (3, 3));
    });
}

// Where connections go.

#[test]
fn connections_are_spread_over_the_threads_in_turn() {
    each_poller!().run(|| {
        let running = serve(|event_loop| {
            let server = TcpServer::bind(event_loop, "127.0.0.1:0")?;
            greet_by_thread(server.threads(3).name("io"))
        });
        let peers: Vec<_> = (0..6).map(|_| running.connect()).collect();
        let names: Vec<_> = peers.iter().map(read_line).collect();
        assert_eq!(names, ["io-0", "io-1", "io-2", "io-0", "io-1", "io-2"]);
    });
}

#[test]
fn without_threads_the_loop_itself_serves() {
    each_poller!().run(|| {
        let running =
            serve(|event_loop| greet_by_thread(TcpServer::bind(event_loop, "127.0.0.1:0")?));
        assert_eq!(read_line(&running.connect()), "test-loop");
        assert_eq!(read_line(&running.connect()), "test-loop");
    });
}

#[test]
fn placement_by_hash_keeps_a_peer_on_its_loop() {
    each_poller!().run(|| {
        let running = serve(|event_loop| {
            let server = TcpServer::bind(event_loop, "127.0.0.1:0")?;
            greet_by_thread(server.threads(3).placement(Placement::Hash))
        });
        let peers: Vec<_> = (0..6).map(|_| running.connect()).collect();
        let names: Vec<_> = peers.iter().map(read_line).collect();
        assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    });
}

#[test]
fn placement_by_load_chooses_the_loop_with_the_fewest_connections() {
    each_poller!().run(|| {
        let (send, receive) = mpsc::channel();
        let running = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .threads(2)
                .placement(Placement::LeastConnections)
                .on_connect(move |conn| send.send(conn.event_loop().handle()).unwrap())
                .on_message(|conn, input| conn.send_buffer(input))
                .start()
        });
        let join = || (running.connect(), within(&receive));
        let (mut peer, emptied) = join();
        let (_other, busy) = join();
        assert_ne!(emptied, busy);
        for _ in 0..5 {
            drop(peer);
            eventually("the closed connection is no load", || emptied.load() == 0);
            let chosen: LoopHandle;
            (peer, chosen) = join();
            assert_eq!(chosen, emptied);
        }
    });
}

#[test]
fn two_servers_share_a_pool() {
    each_poller!().run(|| {
        let (send, receive) = mpsc::channel();
        let thread = LoopThread::spawn("base", EventLoop::builder(), move |event_loop| {
            let pool = LoopPool::builder(event_loop).threads(2).name("shared").start()?;
            let server = || -> io::Result<ServerHandle> {
                greet_by_thread(TcpServer::bind(event_loop, "127.0.0.1:0")?.pool(&pool))
            };
            send.send((server()?, server()?, pool.clone())).unwrap();
            Ok(())
        })
        .unwrap();
        let (first, second, pool) = within(&receive);
        let peers: Vec<_> =
            (0..4).map(|i| connect([&first, &second][i % 2].local_addr())).collect();
        let mut names: Vec<_> = peers.iter().map(read_line).collect();
        names.sort();
        assert_eq!(names, ["shared-0", "shared-0", "shared-1", "shared-1"]);

        // The end of one server is not the end of the other, nor of the threads.
        first.stop(Duration::ZERO);
        first.wait().unwrap();
        assert_eq!(read_to_end(&peers[0]).unwrap(), b"");
        assert_echoes(&peers[1]);
        assert!(pool.clone().join().unwrap_err().to_string().contains("still shared"));

        second.stop(Duration::ZERO);
        second.wait().unwrap();
        pool.join().unwrap();
        thread.join().unwrap();
    });
}

/// The loop that accepts keeps only those who are placed on it.
#[test]
fn a_server_on_a_loop_of_its_pool_is_served_by_the_others_too() {
    each_poller!().run(|| {
        let (send, receive) = mpsc::channel();
        let thread = LoopThread::spawn("base", EventLoop::builder(), move |event_loop| {
            let pool = LoopPool::builder(event_loop).threads(2).name("shared").start()?;
            let start = move |event_loop: &EventLoop, pool: LoopPool| {
                greet_by_thread(TcpServer::bind(event_loop, "127.0.0.1:0")?.pool(&pool))
            };
            let shared = pool.clone();
            pool.loops()[0].post(move |event_loop| {
                send.send((start(event_loop, shared.clone()), shared)).unwrap();
            })?;
            Ok(())
        })
        .unwrap();
        let (server, pool) = within(&receive);
        let server: ServerHandle = server.unwrap();
        let peers: Vec<_> = (0..4).map(|_| connect(server.local_addr())).collect();
        let mut names: Vec<_> = peers.iter().map(read_line).collect();
        names.sort();
        assert_eq!(names, ["shared-0", "shared-0", "shared-1", "shared-1"]);

        server.stop(Duration::ZERO);
        server.wait().unwrap();
        pool.join().unwrap();
        thread.join().unwrap();
    });
}

/// Who connects before the loop runs comes with the first events, before any task.
#[test]
fn a_pool_without_threads_is_the_loop_itself_from_the_first_turn_on() {
    each_poller!().run(|| {
        let (send, receive) = mpsc::channel();
        let _running = serve(move |event_loop| {
            let pool = LoopPool::builder(event_loop).start()?;
            let server = greet_by_thread(TcpServer::bind(event_loop, "127.0.0.1:0")?.pool(&pool))?;
            send.send(connect(server.local_addr())).unwrap();
            Ok(server)
        });
        assert_eq!(read_line(&within(&receive)), "test-loop");
    });
}

// Counting.

#[test]
fn a_server_counts_connections_and_bytes() {
    each_poller!().run(|| {
        let Running { server, thread: _thread } = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .threads(2)
                .on_message(|conn, input| {
                    conn.send_buffer(input);
                    conn.send("!");
                    conn.shutdown();
                    conn.send("too late");
                })
                .start()
        });
        assert_eq!((server.metrics().open, server.metrics().accepted), (0, 0));
        let peers = [connect(server.local_addr()), connect(server.local_addr())];
        eventually("both are open", || server.metrics().open == 2);
        for peer in &peers {
            write(peer, "hello");
            assert_eq!(read_to_end(peer).unwrap(), b"hello!");
        }
        drop(peers);
        eventually("both are closed", || server.metrics().open == 0);
        assert_eq!(server.metrics().accepted, 2);
        assert_eq!(server.metrics().received, 10);
        assert_eq!(server.metrics().sent, 12);
        assert_eq!(server.metrics().discarded, 16);
        assert_eq!((server.metrics().refused.total(), server.metrics().lost), (0, 0));
    });
}

// Loops that end before their server.

/// A server on two threads, whose connections can do harm to their loop.
fn serve_with(harm: fn(&EventLoop)) -> (Running, mpsc::Receiver<String>) {
    let (send, receive) = mpsc::channel();
    let running = serve(move |event_loop| {
        TcpServer::bind(event_loop, "127.0.0.1:0")?
            .threads(2)
            .on_connect(|conn| conn.send(thread_name() + "\n"))
            .on_message(move |conn, input| {
                if input.readable() == b"harm" {
                    input.clear();
                    harm(conn.event_loop());
                }
                conn.send_buffer(input);
            })
            .on_close(move |_, reason| {
                send.send(format!("{}: {reason}", thread_name())).unwrap();
            })
            .start()
    });
    (running, receive)
}

fn assert_service_survives(harm: fn(&EventLoop)) {
    let (running, closed) = serve_with(harm);
    let peers: Vec<_> = (0..4).map(|_| running.connect()).collect();
    let names: Vec<_> = peers.iter().map(read_line).collect();
    assert_eq!(names, ["ruduo-0", "ruduo-1", "ruduo-0", "ruduo-1"]);

    write(&peers[0], "harm");
    for dead in [0, 2] {
        assert_eq!(within(&closed), "ruduo-0: the event loop ended");
        assert_eq!(read_to_end(&peers[dead]).unwrap(), b"");
        assert_echoes(&peers[dead + 1]);
    }
    let later: Vec<_> = (0..4).map(|_| running.connect()).collect();
    for peer in &later {
        assert_eq!(read_line(peer), "ruduo-1");
        assert_echoes(peer);
    }
    assert_eq!((running.server.metrics().open, running.server.metrics().lost), (6, 0));

    // A server with a dead loop can still be stopped.
    running.server.stop(Duration::ZERO);
    running.server.wait().unwrap();
}

#[test]
fn b57_a_loop_that_has_quit_is_passed_over_and_its_connections_close() {
    each_poller!().run(|| assert_service_survives(EventLoop::quit));
}

#[test]
fn b57_a_loop_whose_wait_fails_is_passed_over_and_its_connections_close() {
    alone!()
        .on_poller(PollerKind::Epoll)
        .expect_log("an event loop failed")
        .run(|| assert_service_survives(break_poller));
}

/// Puts something else in the place of a loop's epoll instance: the nearest a test comes to a
/// kernel that refuses to wait.
fn break_poller(event_loop: &EventLoop) {
    // The instance to break is the one that watches a descriptor of ours.
    let (mine, _) = UnixStream::pair().unwrap();
    let watched = mine.as_raw_fd().to_string();
    event_loop.register(Channel::new(mine, Interest::READ, |_, _, _| {})).unwrap();
    let watches = |fd: &str| {
        let info = proc::read(&format!("self/fdinfo/{fd}"));
        let mut targets = info.lines().filter_map(|line| line.strip_prefix("tfd:"));
        targets.any(|target| target.split_whitespace().next() == Some(&watched))
    };
    let fds = open_fds();
    let mut pollers = fds.iter().filter(|(_, kind)| *kind == "anon_inode:[eventpoll]");
    let (poller, _) = pollers.find(|(fd, _)| watches(fd)).unwrap();
    let null = fs::File::open("/dev/null").unwrap();
    // SAFETY: both are open descriptors; the number keeps its owner, who will close it.
    let outcome = unsafe { libc::dup2(null.as_raw_fd(), poller.parse().unwrap()) };
    assert!(outcome >= 0);
}
