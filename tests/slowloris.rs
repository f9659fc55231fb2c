//! Ten thousand peers that say a little and stay: what they cost, and how they end. The servers are
//! examples, in processes of their own, for both ends of so many connections are more descriptors
//! than a process may have on many machines.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::program::Program;
use common::{allow_descriptors, eventually, proc, read_to_end};
use nix::sys::signal::Signal;

const PEERS: usize = 10_000;
const MOST_EACH: usize = 1024;

/// Room for one end of all connections.
const DESCRIPTORS: u64 = PEERS as u64 + 1000;

/// Peers that say so much of a message.
fn connect(program: &Program, n: usize, said: &str) -> Vec<TcpStream> {
    let connected = (0..n).map(|_| {
        let mut peer = program.connect();
        peer.write_all(said.as_bytes()).unwrap();
        peer
    });
    connected.collect()
}

fn resident(program: &Program) -> usize {
    let rollup = proc::read(&format!("{}/smaps_rollup", program.pid()));
    let rss = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    rss.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

/// How many bytes nobody has received yet, of connections to there.
fn unread(program: &Program) -> usize {
    let port = format!(":{:04X}", program.addr().port());
    let table = proc::read("net/tcp");
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let queue = fields[4].split_once(':').unwrap().1;
        // The listener's is the number of connections that wait.
        fields[1].ends_with(&port).then(|| usize::from_str_radix(queue, 16).unwrap())
    };
    table.lines().skip(1).filter_map(of_line).sum()
}

/// The beginning of a request, a timer for its rest, a deadline for silence, and a session that
/// knows how far it has read.
#[test]
fn b65_ten_thousand_peers_with_an_unread_byte_cost_under_a_kib_each() {
    let test = alone!();
    if !allow_descriptors(DESCRIPTORS) {
        return test.skip("10,000 descriptors are more than are allowed here");
    }
    test.run(|| {
        let hour = ["--idle", "3600", "--header-timeout", "3600"];
        let program = Program::serve("http_hello", &hour);
        // What is there once for all.
        let first = connect(&program, 100, "G");
        let all = |n| program.open_sockets() > n && unread(&program) == 0;
        eventually("all are heard", || all(first.len()));
        let before = resident(&program);
        let peers = connect(&program, PEERS, "G");
        eventually("all are heard", || all(first.len() + peers.len()));
        let each = resident(&program).saturating_sub(before) / PEERS;
        println!("{each} bytes each");
        assert!((1..MOST_EACH).contains(&each), "{each} bytes each");
        drop((first, peers));
        program.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn b65_ten_thousand_peers_that_say_nothing_more_are_cut_and_not_before() {
    const TIME: Duration = Duration::from_secs(3);
    let test = alone!();
    if !allow_descriptors(DESCRIPTORS) {
        return test.skip("10,000 descriptors are more than are allowed here");
    }
    test.run(|| {
        let program = Program::serve("idle_connection", &["--idle", "3"]);
        let sockets = program.open_sockets();
        let mut starts = Vec::with_capacity(PEERS);
        let peers: Vec<TcpStream> = (0..PEERS)
            .map(|_| {
                starts.push(Instant::now());
                connect(&program, 1, "x").remove(0)
            })
            .collect();
        for (peer, start) in peers.iter().zip(starts) {
            assert_eq!(read_to_end(peer).unwrap(), b"x");
            assert!(start.elapsed() >= TIME, "early: {:?}", start.elapsed());
        }
        eventually("nothing is left of them", || program.open_sockets() == sockets);
        let log = program.ends_well_on(Signal::SIGTERM).log;
        assert_eq!(log.matches("the peer said nothing for 3s").count(), PEERS);
    });
}
