//! The echo example, end to end: the real binary, real clients.

#![allow(clippy::unwrap_used)]

mod common;
mod shim;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use common::program::{Program, binary};
use common::{Alone, eventually, pattern, read_n, read_to_end};
use nix::sys::signal::Signal;
use ruduo::PollerKind;
use sha2::{Digest, Sha256};

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
    each_poller!().run(|| {
        let echo = Program::serve("echo", &[]);
        let sent = pattern(64 << 20);
        let received = echo_all(&echo.connect(), &sent);
        assert_eq!((received.len(), hash(&received)), (sent.len(), hash(&sent)));
    });
}

#[test]
fn a_client_that_shuts_down_its_write_side_at_once_gets_everything() {
    each_poller!().run(|| {
        let echo = Program::serve("echo", &[]);
        for size in [0, 1, 1_000, 100_000] {
            let (mut peer, sent) = (echo.connect(), pattern(size));
            peer.write_all(&sent).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            assert_eq!(hash(&read_to_end(&peer).unwrap()), hash(&sent), "{size} bytes");
        }
    });
}

/// The poller is the one that was asked for, whatever the environment says.
#[test]
fn the_poller_can_be_chosen() {
    alone!().env("RUDUO_POLLER", "poll").run(|| {
        for kind in PollerKind::available() {
            let name = kind.to_string();
            let program = Program::serve("echo", &["--poller", &name, "--threads", "1"]);
            let peer = program.connect();
            assert_eq!(echo_all(&peer, b"hello"), b"hello");
            let is_epoll = |fd: &PathBuf| fd.to_string_lossy().contains("[eventpoll]");
            let instances = program.open_files().filter(is_epoll).count();
            // One for each of its two loops. (The model of kqueue is made of epoll.)
            match kind {
                PollerKind::Epoll => assert_eq!(instances, 2),
                PollerKind::Kqueue if cfg!(kqueue_model) => assert!(instances > 0),
                _ => assert_eq!(instances, 0, "{kind}"),
            }
            drop(peer);
            program.ends_well_on(Signal::SIGTERM);
        }
    });
}

#[test]
fn one_byte_at_a_time_comes_back() {
    each_poller!().run(|| {
        let echo = Program::serve("echo", &[]);
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
    each_poller!().run(|| {
        let echo = Program::serve("echo", &["--threads", "2"]);
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
    each_poller!().run(|| {
        let echo = Program::serve("echo", &["--threads", "1"]);
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

/// Each call of the server that moves bytes moves one, and many are interrupted: first those that
/// read and write, then those that write only, so that much is read which leaves in little pieces.
/// The calls of the clients do what they can.
fn echo_byte_by_byte(alone: Alone, threads: &str, bytes: usize, clients: fn(&Program)) {
    let Some(shim) = shim::build(&alone, "one_byte") else { return };
    alone.run(|| {
        for (choice, expected) in [("both", 2 * bytes), ("writes", bytes)] {
            let mut command = Command::new(binary("echo"));
            command.args(["--listen", "127.0.0.1:0", "--threads", threads]);
            command.env("LD_PRELOAD", &shim).env("ONE_BYTE", choice);
            let echo = Program::spawn(&mut command).listening(1);
            clients(&echo);
            let log = echo.ends_well_on(Signal::SIGTERM).log;
            let told = log.lines().find_map(|line| line.strip_prefix("one_byte: moved ")).unwrap();
            let (moved, interrupted) = told.split_once(", interrupted ").unwrap();
            assert_eq!(moved, expected.to_string(), "{choice}: it was not in the way of all");
            assert!(interrupted.parse::<usize>().unwrap() > expected / 4, "{log}");
        }
    });
}

#[test]
fn b21_bytes_that_move_one_by_one_come_back_exact() {
    echo_byte_by_byte(each_poller!(), "0", 40_000, |echo| {
        let sent = pattern(40_000);
        let received = echo_all(&echo.connect(), &sent);
        assert_eq!((received.len(), hash(&received)), (sent.len(), hash(&sent)));
    });
}

#[test]
fn b21_bytes_that_move_one_by_one_come_back_after_a_half_close() {
    const SIZES: [usize; 6] = [0, 1, 2, 3, 1_000, 20_000];
    echo_byte_by_byte(each_poller!(), "0", SIZES.iter().sum(), |echo| {
        for size in SIZES {
            let (mut peer, sent) = (echo.connect(), pattern(size));
            peer.write_all(&sent).unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            assert_eq!(hash(&read_to_end(&peer).unwrap()), hash(&sent), "{size} bytes");
        }
    });
}

const CONNECTIONS: usize = 6;
const EACH: usize = 10_000;

fn echo_on_several_connections(echo: &Program) {
    thread::scope(|scope| {
        for i in 0..CONNECTIONS {
            let peer = echo.connect();
            scope.spawn(move || {
                let sent = &pattern(EACH + i)[i..];
                let received = echo_all(&peer, sent);
                assert_eq!((received.len(), hash(&received)), (sent.len(), hash(sent)));
            });
        }
    });
}

#[test]
fn b21_bytes_that_move_one_by_one_stay_with_their_connection() {
    echo_byte_by_byte(each_poller!(), "0", CONNECTIONS * EACH, echo_on_several_connections);
}

#[test]
fn b21_bytes_that_move_one_by_one_stay_with_their_connection_on_several_threads() {
    echo_byte_by_byte(each_poller!(), "2", CONNECTIONS * EACH, echo_on_several_connections);
}

#[test]
fn sigterm_and_sigint_end_it_with_status_0() {
    each_poller!().run(|| {
        for (signal, threads) in
            [(Signal::SIGTERM, "0"), (Signal::SIGINT, "0"), (Signal::SIGTERM, "2")]
        {
            let echo = Program::serve("echo", &["--threads", threads]);
            let mut peer = echo.connect();
            peer.write_all(b"hello").unwrap();
            assert_eq!(read_n(&peer, 5), b"hello");
            echo.signal(signal);
            // The connection is told to finish, and does: there is nothing left to cut.
            assert_eq!(read_to_end(&peer).unwrap(), b"");
            drop(peer);
            let ended = echo.wait();
            assert_eq!((ended.code, ended.signal), (Some(0), None), "{signal}: {}", ended.log);
            assert!(ended.log.contains("stopping"), "{}", ended.log);
        }
    });
}

#[test]
fn what_was_received_before_sigterm_is_still_echoed() {
    each_poller!().run(|| {
        let echo = Program::serve("echo", &[]);
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
        assert_eq!(echo.wait().code, Some(0));
    });
}

#[test]
fn a_second_signal_ends_it_at_once() {
    each_poller!().run(|| {
        let echo = Program::serve("echo", &[]);
        let mut peer = echo.connect();
        peer.write_all(b"x").unwrap();
        read_n(&peer, 1);
        echo.signal(Signal::SIGTERM);
        // It waits for our end of the stream now.
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        echo.signal(Signal::SIGTERM);
        assert_eq!(echo.wait().code, Some(0));
    });
}
