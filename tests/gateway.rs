//! The example gateway, end to end: apps that look for it, talk to it, and send it nonsense.

#![allow(clippy::unwrap_used)]

mod common;
mod datagrams;

use std::cell::Cell;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::program::{Program, binary, run, traced};
use common::{eventually, pattern, proc};
use datagrams::{assert_echoes, peer, recv};
use nix::sys::signal::Signal;

/// Every machine has this interface, and what is sent to a group on it stays there.
const INTERFACE: [&str; 2] = ["--interface", "127.0.0.1"];

/// One on free ports: the service's address is its first, the group its second.
fn gateway(arguments: &[&str]) -> Program {
    gateway_in("224.0.0.50:0", arguments)
}

fn gateway_in(group: &str, arguments: &[&str]) -> Program {
    gateway_by(Command::new(binary("gateway")), group, arguments)
}

fn gateway_by(mut command: Command, group: &str, arguments: &[&str]) -> Program {
    command.args(["--listen", "127.0.0.1:0", "--discovery", group]).args(INTERFACE).args(arguments);
    Program::spawn(&mut command).listening(2)
}

fn app(server: SocketAddr) -> UdpSocket {
    let app = peer("127.0.0.1:0");
    app.connect(server).unwrap();
    app
}

/// Asks the group; where the answer comes from, and what it is.
fn ask_group(app: &UdpSocket, group: SocketAddr, question: &[u8]) -> (SocketAddr, Vec<u8>) {
    app.send_to(question, group).unwrap();
    let mut bytes = vec![0; 65_536];
    let (n, from) = app.recv_from(&mut bytes).unwrap();
    bytes.truncate(n);
    (from, bytes)
}

#[test]
fn the_service_says_back_what_it_hears() {
    alone!().run(|| {
        for threads in ["0", "2"] {
            let gateway = gateway(&["--threads", threads]);
            let apps: Vec<_> = (0..8).map(|_| app(gateway.addr())).collect();
            for app in &apps {
                assert_echoes(app);
            }
            for len in [0, 1, 1472, 1473, 65_507] {
                apps[0].send(&pattern(len)).unwrap();
                assert!(recv(&apps[0]) == pattern(len), "{len} bytes");
            }
            gateway.ends_well_on(Signal::SIGTERM);
        }
    });
}

#[test]
fn who_asks_the_group_is_answered_and_nobody_else() {
    alone!().run(|| {
        let gateway = gateway(&[]);
        let (asks, listens) = (peer("127.0.0.1:0"), peer("127.0.0.1:0"));
        let group = gateway.addrs[1];
        assert_eq!(group.ip().to_string(), "224.0.0.50");
        let (from, answer) = ask_group(&asks, group, b"whois");
        // From an address of the gateway's own: that is what was looked for.
        assert_eq!(
            (from.to_string(), &answer[..]),
            (format!("127.0.0.1:{}", group.port()), &b"whois"[..])
        );
        // The answer to a later question is the first that the other one gets.
        assert_eq!(ask_group(&listens, group, b"me too").1, b"me too");
        gateway.ends_well_on(Signal::SIGINT);
    });
}

#[test]
fn several_gateways_of_one_machine_hear_the_same_question() {
    alone!().run(|| {
        let first = gateway(&[]);
        let group = first.addrs[1];
        let second = gateway_in(&group.to_string(), &[]);
        assert_eq!(second.addrs[1], group);
        let app = peer("127.0.0.1:0");
        assert_eq!(ask_group(&app, group, b"whois").1, b"whois");
        assert_eq!(recv(&app), b"whois");
        second.ends_well_on(Signal::SIGTERM);
        assert_eq!(ask_group(&app, group, b"and now").1, b"and now");
        first.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn what_is_longer_than_the_buffer_is_reported_with_its_size_and_nothing_ends() {
    alone!().run(|| {
        let gateway = gateway(&["--buffer", "100"]);
        let app = app(gateway.addr());
        app.send(&pattern(101)).unwrap();
        app.send(&pattern(100)).unwrap();
        // There is no answer to the first.
        assert_eq!(recv(&app), pattern(100));
        eventually("the service tells", || {
            let from = app.local_addr().unwrap();
            let line = format!("service: a datagram of {from} has 101 bytes, of which 100 fit");
            gateway.log().contains(&line)
        });
        // Many of them are few lines.
        for _ in 0..50 {
            app.send(&pattern(60_000)).unwrap();
            assert_echoes(&app);
        }

        let asks = peer("127.0.0.1:0");
        asks.send_to(&pattern(2000), gateway.addrs[1]).unwrap();
        assert_eq!(ask_group(&asks, gateway.addrs[1], b"whois").1, b"whois");
        eventually("discovery tells", || {
            gateway.log().contains("has 2000 bytes, of which 100 fit")
        });
        let log = gateway.ends_well_on(Signal::SIGTERM).log;
        assert!(log.matches("has 60000 bytes").count() < 25, "{log}");
    });
}

/// A second after the other.
#[test]
fn those_of_which_no_line_tells_are_counted_in_the_next() {
    alone!().run(|| {
        let gateway = gateway(&["--buffer", "100"]);
        let app = app(gateway.addr());
        let sent = Cell::new(0);
        let untold = || -> Vec<u64> {
            let log = gateway.log();
            let lines = log.lines().filter_map(|line| line.split_once("(see --buffer); "));
            lines.map(|(_, rest)| rest.split(' ').next().unwrap().parse().unwrap()).collect()
        };
        eventually("there are three lines", || {
            app.send(&pattern(101)).unwrap();
            sent.set(sent.get() + 1);
            untold().len() >= 3
        });
        let untold = untold();
        assert!(untold[0] == 0 && untold[1] > 0 && untold[2] > 0, "{untold:?}");
        let told = untold.len() as u64 + untold.iter().sum::<u64>();
        assert!(told <= sent.get(), "{untold:?} of {sent:?}");
        gateway.ends_well_on(Signal::SIGTERM);
    });
}

/// Each answer goes to a port that nobody has any more.
#[test]
fn askers_that_are_gone_disturb_nobody() {
    alone!().run(|| {
        let gateway = gateway(&[]);
        let stays = app(gateway.addr());
        for _ in 0..20 {
            drop(app(gateway.addr()).send(b"and away"));
            assert_echoes(&stays);
        }
        gateway.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn an_answer_that_no_way_leads_to_ends_nothing() {
    alone!().run(|| {
        let inject = "inject=sendmsg,sendmmsg:error=EHOSTUNREACH:when=1";
        let mut strace = traced(&["-qq", "-o", "/dev/null", "-e", "trace=sendmsg", "-e", inject]);
        strace.arg(binary("gateway")).env("RUST_LOG", "debug");
        let gateway = gateway_by(strace, "224.0.0.50:0", &[]);
        let app = app(gateway.addr());
        app.send(b"gets no answer").unwrap();
        eventually("it is told", || gateway.log().contains("service: sending a datagram to"));
        assert_echoes(&app);
        gateway.ends_well_on(Signal::SIGTERM);
    });
}

/// A look is repeated, for now and then something else happens to a process.
#[test]
fn it_sleeps_while_nobody_asks() {
    alone!().run(|| {
        let gateway = gateway(&["--threads", "2"]);
        assert_echoes(&app(gateway.addr()));
        assert_eq!(gateway.threads(), 3);
        let switches = || -> usize {
            let tasks = proc::list(&format!("{}/task", gateway.pid()));
            let of_task = |task: PathBuf| -> usize {
                let status = fs::read_to_string(task.join("status")).unwrap();
                let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
                line.unwrap().trim().parse().unwrap()
            };
            tasks.map(of_task).sum()
        };
        eventually("it does not wake up for a quarter of a second", || {
            let before = switches();
            thread::sleep(Duration::from_millis(250));
            switches() == before
        });
        gateway.ends_well_on(Signal::SIGTERM);
    });
}

/// What it says on standard error, when it cannot start.
fn complaint(arguments: &[&str], code: i32) -> String {
    let output = run("gateway", arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    assert!(output.stdout.is_empty());
    text
}

#[test]
fn without_discovery_it_does_not_start() {
    alone!().run(|| {
        for interface in ["nowhere0", "192.0.2.1"] {
            let text = complaint(&["--listen", "127.0.0.1:0", "--interface", interface], 1);
            assert!(text.contains("joining 224.0.0.50"), "{text}");
            assert!(text.contains(interface), "{text}");
            assert!(text.contains("there is no"), "{text}");
        }
    });
}

/// In a network of its own, in which nothing is up.
#[test]
fn without_any_interface_for_a_group_it_does_not_start() {
    alone!().under(&["unshare", "--net"]).run(|| {
        let text = complaint(&["--listen", "127.0.0.1:0"], 1);
        assert!(text.contains("joining 224.0.0.50"), "{text}");
        assert!(text.contains("no route leads to it: name an interface"), "{text}");
    });
}

#[test]
fn an_address_in_use_is_an_error_of_starting() {
    alone!().run(|| {
        let holder = peer("127.0.0.1:0");
        let taken = holder.local_addr().unwrap().to_string();
        let text = complaint(&[&["--listen", &taken][..], &INTERFACE].concat(), 1);
        assert!(text.contains(&taken) && text.contains("in use"), "{text}");
    });
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    alone!().run(|| {
        for arguments in [
            ["--discovery", "192.0.2.1:4321"],
            ["--discovery", "[ff02::1]:4321"],
            ["--buffer", "0"],
            ["--buffer", "big"],
        ] {
            complaint(&arguments, 2);
        }
    });
}
