//! A listener that outlives its program: nobody is refused while one takes over from the other.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::program::{Ended, Program, binary};
use common::{DEADLINE, connect, eventually, proc, read_n, serve, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ruduo::{EventLoop, ServerHandle, TcpServer, UnixServer};

/// Has ended, and waits for its parent to ask.
fn has_ended(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| stat.contains(") Z "))
}

/// Makes the program replace itself, and returns the process of its successor when it is alone.
fn replace(program: &Program, address: &str) -> Pid {
    program.signal(Signal::SIGHUP);
    assert_eq!(within(&program.lines), format!("listening on {address}"));
    eventually("the old one has ended", || has_ended(program.pid()));
    successor_of(program)
}

fn successor_of(program: &Program) -> Pid {
    const SAYS: &str = "handing over to process ";
    // The log is read by a thread, a line at a time.
    eventually("the log says to whom", || program.log().contains(SAYS));
    let log = program.log();
    let (_, successor) = log.split_once(SAYS).expect(&log);
    Pid::from_raw(successor.lines().next().unwrap().parse().unwrap())
}

/// Ends the successor, which has the old one's output too.
fn end(program: Program, successor: Pid) -> Ended {
    kill(successor, Signal::SIGTERM).unwrap();
    program.wait()
}

#[test]
fn a_storm_of_connections_does_not_notice_that_the_program_is_replaced() {
    each_poller!().run(|| {
        for threads in ["0", "2"] {
            let program = Program::serve("hand_over", &["--threads", threads]);
            let address = program.addr();
            let (calm, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
            let storm: Vec<_> = (0..4)
                .map(|_| {
                    let (calm, served) = (calm.clone(), served.clone());
                    thread::spawn(move || -> io::Result<()> {
                        while !calm.load(Ordering::Relaxed) {
                            let mut peer = std::net::TcpStream::connect(address)?;
                            peer.set_read_timeout(Some(DEADLINE))?;
                            peer.write_all(b"hello")?;
                            peer.read_exact(&mut [0; 5])?;
                            // A reset leaves no port behind that could run short.
                            common::reset(peer);
                            served.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
                .collect();
            let serves_more = || {
                let enough = served.load(Ordering::Relaxed) + 200;
                eventually("the storm goes on", || {
                    served.load(Ordering::Relaxed) >= enough
                        || storm.iter().any(|thread| thread.is_finished())
                });
            };
            // Who is connected stays with the old one, which waits.
            let old = connect(address);
            (&old).write_all(b"hello").unwrap();
            assert_eq!(read_n(&old, 5), b"hello");
            serves_more();
            program.signal(Signal::SIGHUP);
            assert_eq!(within(&program.lines), format!("listening on {address}"));
            eventually("the old one stops", || program.log().contains("SIGTERM: stopping"));
            serves_more();
            (&old).write_all(b"still").unwrap();
            assert_eq!(read_n(&old, 5), b"still");
            drop(old);
            eventually("the old one has ended", || has_ended(program.pid()));
            serves_more();
            calm.store(true, Ordering::Relaxed);
            for thread in storm {
                thread.join().unwrap().unwrap();
            }
            let successor = successor_of(&program);
            let ended = end(program, successor);
            assert_eq!(ended.code, Some(0), "{}", ended.log);
            assert_eq!(ended.log.matches(" has ended: ").count(), 2, "{}", ended.log);
        }
    });
}

fn socket_path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("ruduo-{name}-{}.sock", std::process::id()))
}

#[test]
fn the_file_of_a_unix_socket_is_the_successors() {
    each_poller!().run(|| {
        let path = socket_path("hand-over");
        let address = format!("unix:{}", path.display());
        let mut command = Command::new(binary("hand_over"));
        let program = Program::spawn(command.args(["--listen", &address]));
        assert_eq!(within(&program.lines), format!("listening on {address}"));
        let successor = replace(&program, &address);
        let mut peer = UnixStream::connect(&path).unwrap();
        peer.write_all(b"hello").unwrap();
        peer.read_exact(&mut [0; 5]).unwrap();
        drop(peer);
        let ended = end(program, successor);
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        std::fs::remove_file(&path).unwrap();
    });
}

fn echo(event_loop: &EventLoop) -> io::Result<ServerHandle> {
    TcpServer::bind(event_loop, "127.0.0.1:0")?
        .on_message(|conn, input| conn.send_buffer(input))
        .start()
}

/// What the kernel calls the socket that listens there.
fn listening_at(address: SocketAddr) -> String {
    let port = format!(":{:04X}", address.port());
    let table = proc::read("net/tcp");
    let mut sockets = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let socket = sockets.find(|fields| fields[1].ends_with(&port) && fields[3] == "0A");
    format!("socket:[{}]", socket.unwrap()[9])
}

#[test]
fn the_successor_gets_the_listeners_and_nothing_else_does() {
    each_poller!().run(|| {
        proc::is_wanted();
        let (first, second) = (serve(echo), serve(echo));
        let look = || {
            let mut command = Command::new("sh");
            let script = "echo \"$LISTEN_FDS $LISTEN_PID$LISTEN_FDNAMES$LISTEN_FDS_FIRST_FD\"; \
                          readlink /proc/$$/fd/3; \
                          readlink /proc/$$/fd/4; readlink /proc/$$/fd/*";
            command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
            // As this program may have got it from its own predecessor, or from systemd.
            for variable in ["LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_FDS_FIRST_FD"] {
                command.env(variable, "5");
            }
            command
        };
        let child = ServerHandle::hand_over(&[&first.server, &second.server], look()).unwrap();
        let seen = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let lines: Vec<_> = seen.lines().collect();
        assert_eq!(lines[0], "2 ", "{seen}");
        // In the order in which they are given.
        assert_eq!(lines[1..3], [&first, &second].map(|server| listening_at(server.addr())));
        for socket in &lines[1..3] {
            assert_eq!(lines[3..].iter().filter(|fd| *fd == socket).count(), 1, "{seen}");
        }

        // Another child, started as ever.
        let other = look().env_remove("LISTEN_FDS").output().unwrap();
        let other = String::from_utf8(other.stdout).unwrap();
        assert!(!other.contains(lines[1]) && !other.contains(lines[2]), "{other}");
    });
}

/// As in a program that was started with these descriptors open and has closed them since.
#[test]
fn the_numbers_that_the_successor_gets_may_be_free_here() {
    alone!().run(|| {
        proc::is_wanted();
        let low = [(); 8].map(|()| std::fs::File::open("/dev/null").unwrap());
        let servers = [serve(echo), serve(echo)];
        drop(low);
        let listeners = servers.each_ref().map(|running| &running.server);
        let mut command = Command::new("readlink");
        command.args(["/proc/self/fd/3", "/proc/self/fd/4"]).stdout(Stdio::piped());
        let child = ServerHandle::hand_over(&listeners, command).unwrap();
        let seen = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        let expected = servers.each_ref().map(|running| listening_at(running.addr()));
        assert_eq!(seen.lines().collect::<Vec<_>>(), expected);
        let nothing = Command::new("/nonexistent/program");
        let error = ServerHandle::hand_over(&listeners, nothing).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn a_program_that_cannot_be_started_is_an_error_and_changes_nothing() {
    alone!().run(|| {
        let path = socket_path("not-handed-over");
        let at = path.clone();
        let running = serve(move |event_loop| {
            UnixServer::bind(event_loop, &at)?
                .on_message(|conn, input| conn.send_buffer(input))
                .start()
        });
        // The numbers that a successor gets are free here, and are so again in the end.
        let nothing = Command::new("/nonexistent/program");
        let error = ServerHandle::hand_over(&[&running.server], nothing).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("/nonexistent/program"), "{error}");
        UnixStream::connect(&path).unwrap();
        running.server.stop(Duration::ZERO);
        running.server.wait().unwrap();
        assert!(!path.exists(), "the file is left, and nobody has it");

        let late = ServerHandle::hand_over(&[&running.server], Command::new("true")).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::NotConnected);
    });
}

/// What tells of a program that could not be started is a descriptor too, and may get a number that
/// another thread has given up a moment ago: one of those that the successor is to have.
#[test]
fn a_program_that_cannot_be_started_is_an_error_whoever_closes_descriptors_meanwhile() {
    alone!().run(|| {
        let running = serve(echo);
        let servers = [&running.server; 8];
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let open = || std::fs::File::open("/dev/null").unwrap();
                    drop([(); 8].map(|()| open()));
                }
            });
            let outcomes: Vec<_> = (0..300)
                .map(|_| {
                    let nothing = Command::new("/nonexistent/program");
                    ServerHandle::hand_over(&servers, nothing).map_err(|e| e.kind())
                })
                .collect();
            done.store(true, Ordering::Relaxed);
            for outcome in outcomes {
                assert_eq!(outcome.map(|child| child.id()), Err(io::ErrorKind::NotFound));
            }
        });
    });
}

#[test]
fn no_servers_cannot_be_handed_over() {
    alone!().run(|| {
        let error = ServerHandle::hand_over(&[], Command::new("true")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("no server"), "{error}");
    });
}

#[test]
fn acceptors_per_loop_cannot_be_handed_over() {
    alone!().run(|| {
        for threads in [0, 2] {
            let running = serve(move |event_loop| {
                TcpServer::builder(event_loop)
                    .acceptor_per_loop(true)
                    .bind("127.0.0.1:0")?
                    .threads(threads)
                    .on_message(|conn, input| conn.send_buffer(input))
                    .start()
            });
            let command = Command::new("true");
            let error = ServerHandle::hand_over(&[&running.server], command).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        }
    });
}

#[test]
fn what_does_not_listen_cannot_be_taken_over() {
    alone!().run(|| {
        let running = serve(echo);
        let stream = running.connect();
        let listener = std::net::TcpListener::from(std::os::fd::OwnedFd::from(stream));
        let event_loop = EventLoop::new().unwrap();
        let error = TcpServer::from_listener(&event_loop, listener).unwrap_err();
        assert!(error.to_string().contains("does not listen"), "{error}");
    });
}
