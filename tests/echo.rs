//! The echo example, end to end: the real binary, real clients.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;

use common::{connect, eventually, pattern, read_n, read_to_end, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

/// The example's binary: beside the tests' own, where `cargo test` has just built it.
fn binary() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let path = this.parent().unwrap().parent().unwrap().join("examples/echo");
    assert!(path.exists(), "{} is missing: run `cargo build --examples`", path.display());
    path
}

/// A running echo server; killed when dropped.
struct Echo {
    process: Child,
    addr: SocketAddr,
}

impl Echo {
    /// Starts it and waits for its line.
    fn start(arguments: &[&str]) -> Echo {
        let mut process = Command::new(binary())
            .args(["--listen", "127.0.0.1:0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, first_line) = mpsc::channel();
        let stdout = process.stdout.take().unwrap();
        thread::spawn(move || send.send(BufReader::new(stdout).lines().next().unwrap().unwrap()));
        let line = within(&first_line);
        let addr = line.strip_prefix("listening on ").expect("what the first line says");
        Echo { process, addr: addr.parse().unwrap() }
    }

    fn connect(&self) -> TcpStream {
        connect(self.addr)
    }

    fn open_fds(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    /// Waits for its end: exit status and what it wrote to standard error.
    fn wait(&mut self) -> (Option<i32>, Option<i32>, String) {
        eventually("the server ends", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()));
            stat.is_ok_and(|stat| stat.contains(") Z "))
        });
        let status = self.process.wait().unwrap();
        let mut log = String::new();
        self.process.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (status.code(), status.signal(), log)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn hash(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Sends all and shuts down the write side in one thread, reads to the end in this one.
fn echo_all(peer: &TcpStream, bytes: &[u8]) -> Vec<u8> {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut peer = peer;
            peer.write_all(bytes).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
        });
        read_to_end(peer).unwrap()
    })
}

#[test]
fn many_megabytes_come_back_byte_exact() {
    alone!().run(|| {
        let echo = Echo::start(&[]);
        let sent = pattern(64 << 20);
        let received = echo_all(&echo.connect(), &sent);
        assert_eq!((received.len(), hash(&received)), (sent.len(), hash(&sent)));
    });
}

#[test]
fn a_client_that_shuts_down_its_write_side_at_once_gets_everything() {
    alone!().run(|| {
        let echo = Echo::start(&[]);
        for size in [0, 1, 1_000, 100_000] {
            let (mut peer, sent) = (echo.connect(), pattern(size));
            peer.write_all(&sent).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            assert_eq!(hash(&read_to_end(&peer).unwrap()), hash(&sent), "{size} bytes");
        }
    });
}

#[test]
fn one_byte_at_a_time_comes_back() {
    alone!().run(|| {
        let echo = Echo::start(&[]);
        let mut peer = echo.connect();
        peer.set_nodelay(true).unwrap();
        for byte in pattern(2_000) {
            peer.write_all(&[byte]).unwrap();
            assert_eq!(read_n(&peer, 1), [byte]);
        }
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"");
    });
}

/// Like muduo's ping-pong client: it leaves only when the server has closed every session after
/// its FIN.
#[test]
fn sessions_on_several_threads_end_when_the_client_does() {
    alone!().run(|| {
        let echo = Echo::start(&["--threads", "2"]);
        let sessions: Vec<_> = (0..50).map(|_| echo.connect()).collect();
        let block = pattern(4096);
        for _ in 0..20 {
            for mut session in &sessions {
                session.write_all(&block).unwrap();
            }
            for session in &sessions {
                assert_eq!(read_n(session, block.len()), block);
            }
        }
        for session in &sessions {
            session.shutdown(Shutdown::Write).unwrap();
        }
        for session in &sessions {
            assert_eq!(read_to_end(session).unwrap(), b"");
        }
    });
}

#[test]
fn no_descriptor_is_left_behind() {
    alone!().run(|| {
        let echo = Echo::start(&["--threads", "1"]);
        let before = echo.open_fds();
        for round in 0..3 {
            let peers: Vec<_> = (0..30).map(|_| echo.connect()).collect();
            for mut peer in &peers {
                peer.write_all(b"x").unwrap();
                read_n(peer, 1);
            }
            assert!(echo.open_fds() >= before + 30);
            for (i, peer) in peers.into_iter().enumerate() {
                match i % 3 {
                    0 => drop(peer),
                    1 => common::reset(peer),
                    _ => peer.shutdown(Shutdown::Write).unwrap(),
                }
            }
            eventually("descriptors are closed", || echo.open_fds() == before);
            assert!(round < 3);
        }
    });
}

#[test]
fn sigterm_and_sigint_end_it_with_status_0() {
    alone!().run(|| {
        for (signal, threads) in
            [(Signal::SIGTERM, "0"), (Signal::SIGINT, "0"), (Signal::SIGTERM, "2")]
        {
            let mut echo = Echo::start(&["--threads", threads]);
            let mut peer = echo.connect();
            peer.write_all(b"hello").unwrap();
            assert_eq!(read_n(&peer, 5), b"hello");
            echo.signal(signal);
            // The connection is told to finish, and does: there is nothing left to cut.
            assert_eq!(read_to_end(&peer).unwrap(), b"");
            drop(peer);
            let (code, by_signal, log) = echo.wait();
            assert_eq!((code, by_signal), (Some(0), None), "{signal}: {log}");
            assert!(log.contains("stopping"), "{log}");
        }
    });
}

#[test]
fn what_was_received_before_sigterm_is_still_echoed() {
    alone!().run(|| {
        let mut echo = Echo::start(&[]);
        let mut peer = echo.connect();
        // More than the kernel's buffers hold, so that output is pending in the server.
        let sent = pattern(32 << 20);
        let writer = {
            let (mut peer, sent) = (peer.try_clone().unwrap(), sent.clone());
            thread::spawn(move || peer.write(&sent).unwrap())
        };
        peer.read_exact(&mut [0; 1]).unwrap();
        echo.signal(Signal::SIGTERM);
        let rest = read_to_end(&peer);
        drop(peer);
        let _ = writer.join();
        // How much it had received is its own affair; what came is a prefix without a hole.
        if let Ok(rest) = rest {
            assert!(sent[1..].starts_with(&rest), "{} bytes that were not sent so", rest.len());
        }
        assert_eq!(echo.wait().0, Some(0));
    });
}

#[test]
fn a_second_signal_ends_it_at_once() {
    alone!().run(|| {
        let mut echo = Echo::start(&[]);
        let mut peer = echo.connect();
        peer.write_all(b"x").unwrap();
        read_n(&peer, 1);
        echo.signal(Signal::SIGTERM);
        // It waits for our end of the stream now.
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        echo.signal(Signal::SIGTERM);
        assert_eq!(echo.wait().0, Some(0));
    });
}

fn run(arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).output().unwrap()
}

#[test]
fn help_tells_of_each_option() {
    alone!().run(|| {
        let output = run(&["--help"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0));
        for option in ["--listen", "--threads", "--help", "127.0.0.1:2007"] {
            assert!(text.contains(option), "{option} is not in:\n{text}");
        }
    });
}

#[test]
fn bad_arguments_get_one_line_and_status_2() {
    alone!().run(|| {
        let some = ["--nonsense", "extra", "--listen", "--listen=here", "--threads=many"];
        for bad in some.map(|word| [word]) {
            let output = run(&bad);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{bad:?}: {text}");
            assert_eq!(text.lines().count(), 1, "{bad:?}: {text}");
            assert!(output.stdout.is_empty());
        }
    });
}

#[test]
fn an_address_in_use_gets_one_clear_line_and_status_1() {
    alone!().run(|| {
        let echo = Echo::start(&[]);
        let address = echo.addr.to_string();
        let output = run(&["--listen", &address]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(&address) && text.contains("in use"), "{text}");
    });
}
