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
            let ended = program.ends_well_on(*signal);
            let log = &ended.log;
            assert!(log.contains("received=21") && log.contains("sent=21"), "{way:?}: {log}");
        }
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
