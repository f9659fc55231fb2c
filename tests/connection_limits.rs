//! The examples idle_connection and max_connection, end to end.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::program::{Program, binary, run};
use common::{DEADLINE, connect, eventually, pattern, read_to_end};
use nix::sys::signal::Signal;

/// A round trip; false if the connection has ended instead.
fn is_answered(mut peer: &TcpStream) -> bool {
    let mut answer = [0; 5];
    let answered = peer.write_all(b"hello").is_ok() && peer.read_exact(&mut answer).is_ok();
    assert!(!answered || &answer == b"hello");
    answered
}

/// Tries until it succeeds. On a machine that stands still for a second, a peer that wants to talk
/// is idle nevertheless.
fn try_until(what: &str, mut attempt: impl FnMut() -> bool) {
    let start = Instant::now();
    while !attempt() {
        assert!(start.elapsed() < DEADLINE, "not within the deadline: {what}");
    }
}

#[test]
fn a_connection_that_goes_on_talking_stays() {
    alone!().run(|| {
        const IDLE: Duration = Duration::from_secs(1);
        let program = Program::serve("idle_connection", &["--idle", "1"]);
        try_until("it lives for three idle times", || {
            let (peer, begin) = (program.connect(), Instant::now());
            let mut last = begin;
            while begin.elapsed() < 3 * IDLE {
                let now = Instant::now();
                if !is_answered(&peer) {
                    assert!(last.elapsed() >= IDLE, "closed after {:?}", last.elapsed());
                    return false;
                }
                last = now;
                thread::sleep(IDLE / 10);
            }
            true
        });
    });
}

#[test]
fn one_that_falls_silent_is_closed_but_never_early() {
    alone!().run(|| {
        const IDLE: Duration = Duration::from_millis(300);
        for threads in ["0", "2"] {
            let program =
                Program::serve("idle_connection", &["--idle", "0.3", "--threads", threads]);
            thread::scope(|scope| {
                // Each talks for as many tenths of the idle time.
                for tenths in [0, 1, 5, 9, 14] {
                    let addr = program.addr();
                    scope.spawn(move || {
                        let mut last = Instant::now();
                        let peer = connect(addr);
                        for _ in 0..tenths {
                            thread::sleep(IDLE / 10);
                            let now = Instant::now();
                            if !is_answered(&peer) {
                                break;
                            }
                            last = now;
                        }
                        assert_eq!(read_to_end(&peer).unwrap(), b"");
                        assert!(last.elapsed() >= IDLE, "after {:?}", last.elapsed());
                    });
                }
            });
            eventually("the log tells", || {
                program.log().matches("the peer said nothing for 300ms").count() == 5
            });
        }
    });
}

#[test]
fn an_idle_time_that_cannot_be_gets_one_line_and_status_2() {
    alone!().run(|| {
        for value in ["0", "-1", "nan", "inf", "soon"] {
            let output = run("idle_connection", &[&format!("--idle={value}")]);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{value}: {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    });
}

#[test]
fn idle_connections_do_not_keep_it_from_ending() {
    alone!().run(|| {
        let program = Program::serve("idle_connection", &["--idle", "3600", "--threads", "1"]);
        let peer = program.connect();
        assert!(is_answered(&peer));
        program.signal(Signal::SIGTERM);
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        drop(peer);
        program.ends_well();
    });
}

/// Starts a server with this many places.
fn places(max: usize, threads: &str) -> Program {
    Program::serve("max_connection", &["--max", &max.to_string(), "--threads", threads])
}

/// Says something and reads the first line of what comes: is it served, or told that it is not?
fn is_served(mut peer: &TcpStream) -> bool {
    peer.write_all(b"hello\n").unwrap();
    let mut line = String::new();
    BufReader::new(peer).read_line(&mut line).unwrap();
    match &line[..] {
        "hello\n" => true,
        "all places are taken, try again later\r\n" => false,
        other => panic!("{other:?}"),
    }
}

/// Finishes, and waits until the server has finished too.
fn leave(peer: &TcpStream) {
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(peer).unwrap(), b"");
}

#[test]
fn the_one_too_many_is_told_and_the_others_are_served() {
    alone!().run(|| {
        let mut command = Command::new(binary("max_connection"));
        command.args(["--listen", "127.0.0.1:0"]).env("RUST_LOG", "debug");
        let program = Program::spawn(&mut command).listening(1);
        let served: Vec<_> = (0..5).map(|_| program.connect()).collect();
        assert!(served.iter().all(is_served));
        for _ in 0..3 {
            let refused = program.connect();
            assert!(!is_served(&refused));
            assert_eq!(read_to_end(&refused).unwrap(), b"");
        }
        assert!(served.iter().all(is_served));
        eventually("the log tells", || program.log().matches("refusing ").count() == 3);
    });
}

/// What it has sent is read, so that no reset destroys the message.
#[test]
fn a_refused_peer_may_have_sent_much_already() {
    alone!().run(|| {
        let program = places(0, "0");
        for size in [1, 100_000, 4 << 20] {
            let bytes = pattern(size);
            try_until("it has said all in time", || {
                let (mut peer, begin) = (program.connect(), Instant::now());
                match peer.write_all(&bytes).and_then(|()| read_to_end(&peer)) {
                    Ok(said) => {
                        assert_eq!(said, b"all places are taken, try again later\r\n", "{size}");
                        true
                    }
                    // It has a second for that, and is cut then.
                    Err(e) => {
                        assert!(begin.elapsed() >= Duration::from_secs(1), "{size}: {e}");
                        false
                    }
                }
            });
        }
    });
}

/// Who has seen its own end can be sure that its place is free.
#[test]
fn a_place_is_free_when_the_one_who_had_it_has_left() {
    alone!().run(|| {
        for threads in ["0", "2"] {
            let program = places(3, threads);
            let mut served: Vec<_> = (0..3).map(|_| program.connect()).collect();
            assert!(served.iter().all(is_served));
            for i in 0..100 {
                leave(&served.swap_remove(i % 3));
                served.push(program.connect());
                assert!(is_served(&served[2]), "visitor {i}");
                assert!(!is_served(&program.connect()), "one more than visitor {i}");
            }
        }
    });
}

/// The same, were the server ever so slow from closing the socket on: each close takes 50 ms to
/// return.
#[test]
fn a_place_is_free_before_the_end_is_seen() {
    let slow = "inject=close:delay_exit=50000";
    alone!().under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", slow]).run(|| {
        let program = places(1, "2");
        // Ours are not closed before the end.
        let mut left = Vec::new();
        for i in 0..5 {
            let peer = program.connect();
            assert!(is_served(&peer), "visitor {i}");
            leave(&peer);
            left.push(peer);
        }
    });
}

#[test]
fn a_place_is_given_back_by_those_who_vanish() {
    alone!().run(|| {
        let program = places(2, "2");
        let served = || {
            let peer = program.connect();
            is_served(&peer).then_some(peer)
        };
        for _ in 0..10 {
            let mut both = Vec::new();
            try_until("both places are taken", || {
                both.extend(served());
                both.len() == 2
            });
            assert!(served().is_none());
            both.into_iter().for_each(common::reset);
        }
    });
}

/// A server is busy with 64 of the refused at once, and closes the others without a word. On a busy
/// machine it may not have seen any of them go when the last ones come, so there are no more in all.
#[test]
fn of_many_who_come_at_once_exactly_as_many_as_places_are_served() {
    alone!().run(|| {
        let program = places(7, "2");
        let addr = program.addr();
        for _ in 0..2 {
            let come = move || {
                let peers: Vec<_> = (0..9).map(|_| connect(addr)).collect();
                peers.into_iter().map(|peer| (is_served(&peer), peer)).collect::<Vec<_>>()
            };
            let all: Vec<_> = thread::scope(|scope| {
                let crowd: Vec<_> = (0..4).map(|_| scope.spawn(come)).collect();
                crowd.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            let (served, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(|(is, _)| *is);
            assert_eq!((served.len(), refused.len()), (7, 29));
            served.iter().for_each(|(_, peer)| leave(peer));
        }
    });
}
