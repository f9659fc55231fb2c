//! The example `udp_echo`, as a user meets it.

#![allow(clippy::unwrap_used)]

mod common;
mod datagrams;

use common::program::{Program, run};
use datagrams::{assert_echoes, peer, recv};
use nix::sys::signal::Signal;
use ruduo::PollerKind;

fn assert_serves(program: &Program) {
    let peer = peer("127.0.0.1:0");
    peer.connect(program.addr()).unwrap();
    assert_echoes(&peer);
    for i in 0..20 {
        peer.send(&vec![i; 1 << (i % 14)]).unwrap();
    }
    for i in 0..20 {
        assert_eq!(recv(&peer), vec![i; 1 << (i % 14)]);
    }
}

/// It has as many threads, and the poller, that it was told to have.
#[cfg(target_os = "linux")]
#[track_caller]
fn assert_as_told(program: &Program, way: &[&str]) {
    let value = |option| way.iter().skip_while(|word| **word != option).nth(1).copied();
    let threads = value("--threads").map_or(0, |n| n.parse::<usize>().unwrap());
    assert_eq!(program.threads(), 1 + threads, "{way:?}");
    let is_epoll = program.open_files().any(|file| file.ends_with("anon_inode:[eventpoll]"));
    match value("--poller") {
        Some("epoll") => assert!(is_epoll),
        Some("poll") => assert!(!is_epoll),
        _ => {}
    }
}

#[test]
fn it_echoes_however_it_is_told_to_and_ends_by_a_signal() {
    alone!().run(|| {
        let mut ways = vec![
            vec![],
            vec!["--threads", "2"],
            vec!["--batch", "1"],
            vec!["--gso"],
            vec!["--gso", "--batch", "1", "--threads", "1"],
        ];
        let pollers: Vec<_> = PollerKind::available().iter().map(ToString::to_string).collect();
        ways.extend(pollers.iter().map(|kind| vec!["--poller", kind]));
        for (way, signal) in ways.iter().zip([Signal::SIGTERM, Signal::SIGINT].iter().cycle()) {
            let program = Program::serve("udp_echo", way);
            assert_serves(&program);
            #[cfg(target_os = "linux")]
            assert_as_told(&program, way);
            let ended = program.ends_well_on(*signal);
            let log = &ended.log;
            assert!(log.contains("received=21") && log.contains("sent=21"), "{way:?}: {log}");
        }
    });
}

/// What the kernel is asked for.
#[cfg(target_os = "linux")]
#[test]
fn batches_and_segments_are_as_it_is_told() {
    use common::eventually;
    use common::program::{binary, traced};

    alone!().run(|| {
        let trace = std::env::temp_dir().join(format!("ruduo-udp-echo-{}", std::process::id()));
        for (way, is_many, is_joined) in [
            (&[][..], true, false),
            (&["--batch", "1"], false, false),
            (&["--gso", "--batch", "1"], false, true),
        ] {
            let file = trace.to_str().unwrap();
            let mut command = traced(&["-e", "trace=setsockopt,recvmmsg,sendmmsg", "-o", file]);
            command.arg(binary("udp_echo")).args(["--listen", "127.0.0.1:0"]);
            let program = Program::spawn(command.args(way)).listening(1);
            assert_serves(&program);
            program.ends_well_on(Signal::SIGTERM);
            let calls = || std::fs::read_to_string(&trace).unwrap();
            eventually("all is written down", || calls().contains("+++ exited with 0 +++"));
            let calls = calls();
            assert_eq!(calls.contains("recvmmsg("), is_many, "{calls}");
            let options = calls.lines().filter(|line| line.contains("SOL_UDP"));
            assert_eq!(options.count(), if is_joined { 2 } else { 0 }, "{calls}");
        }
        std::fs::remove_file(trace).unwrap();
    });
}

#[cfg(target_os = "linux")]
#[test]
fn it_serves_unix_datagrams() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    use std::process::Command;

    use common::program::binary;
    use common::{DEADLINE, within};

    alone!().run(|| {
        let mut command = Command::new(binary("udp_echo"));
        let name = format!("unix:@ruduo-udp-echo-{}", std::process::id());
        let program = Program::spawn(command.args(["--listen", &name]));
        assert_eq!(within(&program.lines), format!("listening on {name}"));
        let near = std::env::temp_dir().join(format!("ruduo-{}.sock", std::process::id()));
        let peer = UnixDatagram::bind(&near).unwrap();
        peer.set_read_timeout(Some(DEADLINE)).unwrap();
        let address = SocketAddr::from_abstract_name(&name[6..]).unwrap();
        peer.send_to_addr(b"hello", &address).unwrap();
        let mut bytes = [0; 16];
        assert_eq!(peer.recv(&mut bytes).unwrap(), 5);
        std::fs::remove_file(near).unwrap();
        program.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn an_address_in_use_gets_one_clear_line_and_status_1() {
    alone!().run(|| {
        let holder = peer("127.0.0.1:0");
        let taken = holder.local_addr().unwrap();
        let output = run("udp_echo", &["--listen", &taken.to_string()]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(&taken.to_string()) && text.contains("in use"), "{text}");
        drop(holder);
    });
}
