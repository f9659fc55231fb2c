//! The example heartbeat, end to end: each side notices that the other one hangs.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use common::program::{Program, binary, run};
use common::{eventually, within};
use nix::sys::signal::Signal;

const TIMES: [&str; 4] = ["--interval", "0.1", "--timeout", "1"];
const TIMEOUT: Duration = Duration::from_secs(1);

/// A server with one client.
fn pair(threads: &str) -> (Program, Program) {
    let server = Program::serve("heartbeat", &[&TIMES[..], &["--threads", threads]].concat());
    let addr = server.addr().to_string();
    let mut command = Command::new(binary("heartbeat"));
    // It tells of each heartbeat.
    command.args(["--connect", &addr]).args(TIMES).env("RUST_LOG", "debug");
    let client = Program::spawn(&mut command);
    assert_eq!(within(&client.lines), format!("connected to {addr}"));
    (server, client)
}

const SILENCE: &str = "the peer said nothing for 1s";

#[test]
fn a_stopped_client_is_noticed_by_its_server() {
    alone!().run(|| {
        let (server, client) = pair("2");
        client.signal(Signal::SIGSTOP);
        eventually("the server gives it up", || server.log().contains(SILENCE));
        // It finds that out when it goes on.
        client.signal(Signal::SIGCONT);
        assert_eq!(client.wait().signal, None);
        server.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn a_stopped_server_is_noticed_by_its_client() {
    alone!().run(|| {
        let (server, client) = pair("0");
        server.signal(Signal::SIGSTOP);
        let ended = client.wait();
        assert_eq!(ended.code, Some(1), "{}", ended.log);
        assert!(ended.log.contains(SILENCE), "{}", ended.log);
        server.signal(Signal::SIGCONT);
        server.ends_well_on(Signal::SIGTERM);
    });
}

/// On a machine that stands still for a second, a peer may be given up nevertheless; so this is
/// tried a few times.
#[test]
fn as_long_as_both_beat_nobody_is_given_up() {
    alone!().run(|| {
        for _ in 0..5 {
            let (server, client) = pair("0");
            let given_up = || [&server, &client].iter().any(|p| p.log().contains(SILENCE));
            // Three times the timeout.
            eventually("hearts beat", || {
                client.log().matches(": alive").count() >= 30 || given_up()
            });
            if !given_up() {
                assert!(!client.log().contains("shut down"), "{}", client.log());
                client.ends_well_on(Signal::SIGTERM);
                server.ends_well_on(Signal::SIGTERM);
                return;
            }
        }
        eprintln!("SKIPPED: this machine is too busy for steady hearts");
    });
}

/// Its kernel acknowledges all the time, and it reads what comes. It only says nothing.
#[test]
fn a_peer_that_only_listens_is_given_up() {
    alone!().run(|| {
        let server = Program::serve("heartbeat", &TIMES);
        let mut peer = server.connect();
        let start = Instant::now();
        peer.write_all(b"alive\n").unwrap();
        let beats = BufReader::new(&peer).lines().map_while(Result::ok).count();
        assert!(start.elapsed() >= TIMEOUT);
        assert!(beats >= 2, "{beats} heartbeats came");
        eventually("the log tells", || server.log().contains(SILENCE));
        server.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn times_that_cannot_work_are_refused() {
    alone!().run(|| {
        for arguments in [&["--interval", "3"][..], &["--timeout", "0"], &["--connect", "here"]] {
            assert_eq!(run("heartbeat", arguments).status.code(), Some(2), "{arguments:?}");
        }
        // Nobody listens there.
        assert_eq!(run("heartbeat", &["--connect", "127.0.0.1:1"]).status.code(), Some(1));
    });
}
