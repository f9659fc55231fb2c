//! Unix sockets: the same server on another kind of address, and the file that goes with it.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use bare_loop::{assert_exited_well, forked};
use common::program::{Program, binary};
use common::{DEADLINE, Running, serve, within};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use ruduo::{
    Address, EventLoop, Placement, Retry, Server, ServerHandle, TcpServer, UnixAddress, UnixClient,
    UnixServer,
};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ruduo-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("x.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn echo(server: Server<'_>) -> io::Result<ServerHandle> {
    server.on_message(|conn, input| conn.send_buffer(input)).start()
}

fn serve_at(path: &Path) -> Running {
    let path = path.to_owned();
    serve(move |event_loop| echo(UnixServer::bind(event_loop, path)?))
}

fn assert_echoes(mut stream: UnixStream) {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"hello").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"hello");
}

#[test]
fn a_path_is_served_and_its_file_goes_when_the_server_stops() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let running = serve_at(&folder.socket());
        let address = Address::Unix(UnixAddress::Path(folder.socket()));
        assert_eq!(running.server.local_addr(), &address);
        assert_echoes(UnixStream::connect(folder.socket()).unwrap());
        running.server.stop(Duration::ZERO);
        running.server.wait().unwrap();
        assert!(!folder.socket().exists());
    });
}

#[test]
fn a_relative_path_is_removed_also_after_the_folder_was_changed() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let before = std::env::current_dir().unwrap();
        std::env::set_current_dir(&folder.0).unwrap();
        let running = serve(|event_loop| echo(Server::bind(event_loop, "unix:x.sock")?));
        std::env::set_current_dir(before).unwrap();
        assert_echoes(UnixStream::connect(folder.socket()).unwrap());
        drop(running);
        assert!(!folder.socket().exists());
    });
}

#[test]
fn a_file_that_a_dead_server_has_left_is_replaced() {
    each_poller!().run(|| {
        let folder = Folder::new();
        drop(UnixListener::bind(folder.socket()).unwrap());
        assert!(fs::metadata(folder.socket()).unwrap().file_type().is_socket());
        let running = serve_at(&folder.socket());
        assert_echoes(UnixStream::connect(folder.socket()).unwrap());
        drop(running);
    });
}

#[test]
fn where_somebody_listens_the_address_is_in_use() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let running = serve_at(&folder.socket());
        let event_loop = EventLoop::new().unwrap();
        let error = UnixServer::bind(&event_loop, folder.socket()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("x.sock"), "{error}");
        assert_echoes(UnixStream::connect(folder.socket()).unwrap());
        drop(running);
    });
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    each_poller!().run(|| {
        let folder = Folder::new();
        fs::write(folder.socket(), "precious").unwrap();
        let event_loop = EventLoop::new().unwrap();
        let error = UnixServer::bind(&event_loop, folder.socket()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read_to_string(folder.socket()).unwrap(), "precious");
    });
}

/// Between bind and listen it refuses, as a dead one does.
#[cfg(target_os = "linux")]
#[test]
fn a_server_that_is_about_to_listen_is_not_taken_for_dead() {
    let slow = "inject=listen:delay_enter=100000";
    alone!().under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", slow]).run(|| {
        let folder = Folder::new();
        let path = folder.socket();
        let first = thread::spawn(move || serve_at(&path));
        common::eventually("it has been bound", || folder.socket().exists());
        let event_loop = EventLoop::new().unwrap();
        let error = UnixServer::bind(&event_loop, folder.socket()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
        let first = first.join().unwrap();
        assert_echoes(UnixStream::connect(folder.socket()).unwrap());
        drop(first);
    });
}

/// Who finds the file of a dead server and removes it must not remove that of who was faster.
#[test]
fn of_many_that_replace_a_dead_server_one_does() {
    const RIVALS: usize = 4;
    alone!().run(|| {
        let folder = Folder::new();
        for _ in 0..100 {
            drop(UnixListener::bind(folder.socket()).unwrap());
            let (begin, end) = (Barrier::new(RIVALS), Barrier::new(RIVALS));
            let rival = || {
                let event_loop = EventLoop::new().unwrap();
                begin.wait();
                let server = UnixServer::bind(&event_loop, folder.socket());
                end.wait();
                let outcome = server.as_ref().map(|_| ()).map_err(io::Error::kind);
                let connects = UnixStream::connect(folder.socket()).is_ok();
                // The winner's file goes with it.
                end.wait();
                (outcome, connects)
            };
            let outcomes = thread::scope(|scope| {
                let rivals: Vec<_> = (0..RIVALS).map(|_| scope.spawn(rival)).collect();
                rivals.into_iter().map(|rival| rival.join().unwrap()).collect::<Vec<_>>()
            });
            let won = outcomes.iter().filter(|(outcome, _)| outcome.is_ok()).count();
            let in_use = (Err(io::ErrorKind::AddrInUse), true);
            let lost = outcomes.iter().filter(|outcome| **outcome == in_use).count();
            assert_eq!((won, lost), (1, RIVALS - 1), "{outcomes:?}");
            assert!(!folder.socket().exists());
        }
    });
}

/// Somebody else of ours may just be coming or going.
#[test]
fn while_somebody_has_its_folder_locked_a_dead_server_is_not_replaced() {
    each_poller!().run(|| {
        let folder = Folder::new();
        drop(UnixListener::bind(folder.socket()).unwrap());
        let open = fs::File::open(&folder.0).unwrap();
        let locked = Flock::lock(open, FlockArg::LockExclusiveNonblock).unwrap();
        let event_loop = EventLoop::new().unwrap();
        let error = UnixServer::bind(&event_loop, folder.socket()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("keeps its folder locked"), "{error}");
        assert!(folder.socket().exists());
        // To come where nobody was takes nobody's place.
        let other = folder.socket().with_file_name("other");
        let running = serve_at(&other);
        assert_echoes(UnixStream::connect(&other).unwrap());
        drop(locked);
        drop(running);
        drop(serve_at(&folder.socket()));
        assert!(!folder.socket().exists());
    });
}

/// They have no name by which they could be known, so they are nobody's in particular.
#[test]
fn placement_by_hash_spreads_those_without_a_name() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let path = folder.socket();
        let running = serve(move |event_loop| {
            UnixServer::bind(event_loop, path)?
                .threads(4)
                .placement(Placement::Hash)
                .on_connect(|conn| {
                    conn.send(thread::current().name().unwrap());
                    conn.finish();
                })
                .on_message(|_, _| {})
                .start()
        });
        let names: BTreeSet<_> = (0..32)
            .map(|_| {
                let mut name = String::new();
                UnixStream::connect(folder.socket()).unwrap().read_to_string(&mut name).unwrap();
                name
            })
            .collect();
        assert_eq!(names.len(), 4, "{names:?}");
        drop(running);
    });
}

#[test]
fn the_file_of_a_successor_stays() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let running = serve_at(&folder.socket());
        fs::remove_file(folder.socket()).unwrap();
        let successor = serve_at(&folder.socket());
        drop(running);
        assert_echoes(UnixStream::connect(folder.socket()).unwrap());
        drop(successor);
        assert!(!folder.socket().exists());
    });
}

/// It has a copy of all there is, and drops it.
#[test]
fn a_forked_child_leaves_the_file_to_its_parent() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let event_loop = EventLoop::new().unwrap();
        let server = echo(UnixServer::bind(&event_loop, folder.socket()).unwrap()).unwrap();
        let mut event_loop = Some(event_loop);
        assert_exited_well(forked(|| drop(event_loop.take())));
        assert!(folder.socket().exists(), "{server:?} has none");
        drop(event_loop);
        assert!(!folder.socket().exists());
    });
}

#[test]
fn permissions_are_those_asked_for() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let path = folder.socket();
        let running =
            serve(move |event_loop| echo(UnixServer::builder(event_loop).mode(0o606).bind(path)?));
        let mode = fs::metadata(folder.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o606);
        drop(running);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn an_abstract_name_needs_no_file() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::SocketAddr;

    each_poller!().run(|| {
        let name = format!("ruduo-test-{}", std::process::id());
        let address = format!("unix:@{name}");
        let running = {
            let address = address.clone();
            serve(move |event_loop| echo(Server::bind(event_loop, address)?))
        };
        assert_eq!(running.server.local_addr().to_string(), address);
        let there = SocketAddr::from_abstract_name(name).unwrap();
        assert_echoes(UnixStream::connect_addr(&there).unwrap());
        drop(running);
    });
}

#[test]
fn a_connection_tells_whose_it_is() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let path = folder.socket();
        let running = serve(move |event_loop| {
            UnixServer::bind(event_loop, path)?
                .on_connect(|conn| {
                    let peer = conn.peer_credentials().unwrap();
                    conn.send(format!("{} {:?} {}", peer.uid, peer.pid, conn.peer_addr()));
                    conn.finish();
                })
                .on_message(|_, _| {})
                .start()
        });
        let mut told = String::new();
        UnixStream::connect(folder.socket()).unwrap().read_to_string(&mut told).unwrap();
        let (uid, pid) = (nix::unistd::getuid(), Some(std::process::id()));
        assert_eq!(told, format!("{uid} {pid:?} unix:"));
        drop(running);
    });
}

/// It is known by that path, however often it connects, and leaves nothing there.
#[test]
fn a_client_with_a_path_of_its_own_connects_again_and_again() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let (path, own) = (folder.socket(), folder.socket().with_file_name("own"));
        // Somebody was here before and has crashed.
        drop(UnixListener::bind(&own).unwrap());
        let event_loop = EventLoop::new().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        UnixServer::bind(&event_loop, path.clone())
            .unwrap()
            .on_connect(move |conn| {
                tell.send(conn.peer_addr().to_string()).unwrap();
                conn.finish();
            })
            .on_message(|_, _| {})
            .start()
            .unwrap();
        let client = UnixClient::connect(&event_loop, path)
            .bind_local(UnixAddress::Path(own.clone()))
            .retry(Retry::exponential().between(Duration::ZERO, Duration::ZERO).at_most(3))
            .on_connect_failed(|event_loop, failure| {
                if failure.retry_in.is_none() {
                    event_loop.quit();
                }
            })
            .on_message(|_, _| {})
            .start()
            .unwrap();
        let observed = client.clone();
        event_loop.run_every(Duration::from_millis(1), move |event_loop| {
            if observed.connections() >= 3 {
                observed.stop(Duration::ZERO);
            }
            if observed.is_ended() {
                event_loop.quit();
            }
        });
        event_loop.run().unwrap();
        assert_eq!(client.failures(), 0);
        for _ in 0..3 {
            assert_eq!(within(&told), format!("unix:{}", own.display()));
        }
        assert!(!own.exists(), "its file is left behind");
    });
}

/// As over a network: there it is the kernel that waits.
#[cfg(target_os = "linux")]
#[test]
fn a_client_waits_for_room_in_the_queue_of_a_server() {
    use ruduo::LoopThread;

    use nix::sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, connect, listen, socket,
    };
    use std::os::fd::AsRawFd;

    each_poller!().run(|| {
        let folder = Folder::new();
        let path = folder.socket();
        let listener = UnixListener::bind(&path).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let address = UnixAddr::new(&path).unwrap();
        let mut first = Vec::new();
        loop {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
            match connect(fd.as_raw_fd(), &address) {
                Ok(()) => first.push(fd),
                Err(e) => break assert_eq!(e, nix::errno::Errno::EAGAIN),
            }
        }
        let (tell, told) = std::sync::mpsc::channel();
        let (failed, tried) = (tell.clone(), tell.clone());
        let thread = LoopThread::spawn("test-loop", EventLoop::builder(), move |event_loop| {
            UnixClient::connect(event_loop, path)
                .on_connect_failed(move |_, failure| failed.send(failure.to_string()).unwrap())
                .on_connect(move |_| tell.send("connected".to_owned()).unwrap())
                .on_message(|_, _| {})
                .start()?;
            event_loop.defer(move |_| tried.send("tried".to_owned()).unwrap());
            Ok(())
        });
        assert_eq!(within(&told), "tried");
        let accepted: Vec<_> = first.iter().map(|_| listener.accept().unwrap()).collect();
        assert_eq!(within(&told), "connected");
        drop((accepted, thread.unwrap()));
    });
}

/// Anybody on the machine may connect under such a name, and it stands in our log.
#[test]
fn a_name_chosen_by_a_peer_is_printed_in_one_line_and_without_control_characters() {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrLike, UnixAddr, bind, connect, socket,
    };
    use std::os::fd::AsRawFd;

    fn told(server: &Path, name: &dyn SockaddrLike) -> String {
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        bind(fd.as_raw_fd(), name).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(server).unwrap()).unwrap();
        let (mut stream, mut told) = (UnixStream::from(fd), String::new());
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.read_to_string(&mut told).unwrap();
        told
    }

    each_poller!().run(|| {
        let folder = Folder::new();
        let path = folder.socket();
        let running = serve(move |event_loop| {
            UnixServer::bind(event_loop, path)?
                .on_connect(|conn| {
                    conn.send(conn.peer_addr().to_string());
                    conn.finish();
                })
                .on_message(|_, _| {})
                .start()
        });
        let evil = "x\nERROR forged: \u{1b}[2J";
        let escaped = "x\\nERROR forged: \\x1b[2J";
        let file = folder.socket().with_file_name(evil);
        let of_file = told(&folder.socket(), &UnixAddr::new(&file).unwrap());
        assert!(of_file.starts_with("unix:/") && of_file.ends_with(escaped), "{of_file:?}");
        #[cfg(target_os = "linux")]
        {
            let name = format!("{evil} {}", std::process::id());
            let of_name = UnixAddr::new_abstract(name.as_bytes()).unwrap();
            let of_name = told(&folder.socket(), &of_name);
            assert_eq!(of_name, format!("unix:@{escaped} {}", std::process::id()));
        }
        drop(running);
    });
}

#[test]
fn tcp_connections_have_no_credentials() {
    each_poller!().run(|| {
        let running = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_connect(|conn| {
                    conn.send(conn.peer_credentials().unwrap_err().to_string());
                    conn.finish();
                })
                .on_message(|_, _| {})
                .start()
        });
        let told = common::read_to_end(&running.connect()).unwrap();
        assert!(!told.is_empty());
    });
}

#[test]
fn an_address_of_the_other_kind_is_refused_with_the_cure() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        for error in [
            TcpServer::bind(&event_loop, "unix:@x").unwrap_err(),
            UnixServer::bind(&event_loop, "127.0.0.1:0").unwrap_err(),
        ] {
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(error.to_string().contains("Server::bind"), "{error}");
        }
    });
}

#[test]
fn a_name_too_long_is_an_error_that_says_so() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let error = Server::bind(&event_loop, format!("unix:{}", "x".repeat(200))).unwrap_err();
        assert!(error.to_string().contains("107 bytes, and this one 200"), "{error}");
    });
}

#[test]
fn the_echo_example_serves_a_path_and_removes_it() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let path = folder.socket();
        let program = Program::spawn(Command::new(binary("echo")).arg("--unix").arg(&path));
        assert_eq!(within(&program.lines), format!("listening on unix:{}", path.display()));
        assert_echoes(UnixStream::connect(&path).unwrap());
        program.ends_well_on(Signal::SIGTERM);
        assert!(!path.exists());
    });
}
