//! The example tcp_relay, end to end.

#![allow(clippy::unwrap_used)]

mod common;
mod dialling;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::program::{Program, binary, run};
use common::{DEADLINE, eventually, pattern, proc, read_n, read_to_end, reset};
use dialling::full;
use nix::sys::signal::Signal;

/// A relay, and what it leads to.
struct Scene {
    relay: Program,
    target: TcpListener,
}

impl Scene {
    fn new(arguments: &[&str]) -> Scene {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("localhost:{}", target.local_addr().unwrap().port());
        let mut command = Command::new(binary("tcp_relay"));
        command.args(["127.0.0.1:0", &address]).args(arguments);
        Scene { relay: Program::spawn(&mut command).listening(1), target }
    }

    /// Both ends of a connection through it.
    fn connect(&self) -> (TcpStream, TcpStream) {
        let client = self.relay.connect();
        let (target, _) = self.target.accept().unwrap();
        target.set_read_timeout(Some(DEADLINE)).unwrap();
        target.set_write_timeout(Some(DEADLINE)).unwrap();
        (client, target)
    }
}

#[test]
fn what_goes_in_comes_out_both_ways_and_the_ends_too() {
    const LEN: usize = 5 << 20;
    alone!().run(|| {
        for threads in ["0", "2"] {
            let scene = Scene::new(&["--threads", threads]);
            let bytes = pattern(LEN);
            let (client, target) = scene.connect();
            thread::scope(|scope| {
                for mut stream in [&client, &target] {
                    let bytes = &bytes;
                    scope.spawn(move || {
                        stream.write_all(bytes).unwrap();
                        stream.shutdown(Shutdown::Write).unwrap();
                    });
                    scope.spawn(move || assert!(read_to_end(stream).unwrap() == *bytes));
                }
            });
            // Neither socket has been closed by us.
            eventually("the relay has closed both", || scene.relay.open_sockets() <= 3);
            scene.relay.ends_well_on(Signal::SIGTERM);
        }
    });
}

/// The client has sent its last byte and gone, and believes that all of it arrives.
#[cfg(target_os = "linux")]
#[test]
fn what_waits_for_the_target_arrives_although_the_relay_is_stopped() {
    use nix::sys::socket::{setsockopt, sockopt};

    // Little enough for the relay to read it to its end, and more than the kernel holds for segments
    // as small as these and a target that takes as little, whatever the pace.
    const LEN: usize = 1 << 20;
    const SEGMENT: u32 = 1000;
    const TAKEN: usize = 16 << 10;
    alone!().run(|| {
        for threads in ["0", "2"] {
            let scene = Scene::new(&["--threads", threads]);
            setsockopt(&scene.target, sockopt::TcpMaxSeg, &SEGMENT).unwrap();
            setsockopt(&scene.target, sockopt::RcvBuf, &TAKEN).unwrap();
            let sockets = scene.relay.open_sockets();
            let (mut client, target) = scene.connect();
            target.shutdown(Shutdown::Write).unwrap();
            let bytes = pattern(LEN);
            client.write_all(&bytes).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&client).unwrap(), b"");
            drop(client);
            eventually("the client's side has closed", || {
                scene.relay.open_sockets() == sockets + 1
            });
            scene.relay.signal(Signal::SIGTERM);
            eventually("the relay has heard it", || scene.relay.log().contains("stopping"));
            assert!(read_to_end(&target).unwrap() == bytes);
            drop(target);
            scene.relay.ends_well();
        }
    });
}

/// Whoever asks, the answer comes long after the end of the question: no deadline is in its way.
#[test]
fn b13_a_half_close_is_carried_through() {
    alone!().run(|| {
        let scene = Scene::new(&[]);
        let ((client, target), (other_client, other_target)) = (scene.connect(), scene.connect());
        let pairs = [(client, target), (other_target, other_client)];
        for (asks, answers) in &pairs {
            let mut asks = asks;
            asks.write_all(b"question").unwrap();
            asks.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(answers).unwrap(), b"question");
        }
        // Longer than a connection lingers that has no reason to.
        thread::sleep(Duration::from_secs(6));
        for (asks, mut answers) in pairs {
            answers.write_all(b"answer").unwrap();
            drop(answers);
            assert_eq!(read_to_end(&asks).unwrap(), b"answer");
        }
        scene.relay.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn b11_a_reset_is_carried_through() {
    alone!().run(|| {
        let scene = Scene::new(&[]);
        for from_client in [true, false] {
            let (mut client, target) = scene.connect();
            client.write_all(b"hello").unwrap();
            assert_eq!(read_n(&target, 5), b"hello");
            let (resets, learns) = if from_client { (client, target) } else { (target, client) };
            reset(resets);
            assert_eq!(read_to_end(&learns).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        scene.relay.ends_well_on(Signal::SIGTERM);
    });
}

/// The most memory it has had, in bytes.
fn most_resident(program: &Program) -> usize {
    let status = proc::read(&format!("{}/status", program.pid()));
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    most.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
}

#[test]
fn b26_a_gib_from_a_fast_to_a_slow_peer_takes_less_than_twice_the_mark() {
    const LEN: usize = 1 << 30;
    const HIGH: usize = 1 << 20;
    // No length of anything in between divides this one.
    const PIECE: usize = (1 << 20) - 7;
    alone!().run(|| {
        let scene = Scene::new(&[]);
        let (mut client, mut target) = scene.connect();
        // The parts of the program that it needs are in memory.
        client.write_all(b"hello").unwrap();
        read_n(&target, 5);
        target.write_all(b"hello").unwrap();
        read_n(&client, 5);
        let before = most_resident(&scene.relay);

        let piece = pattern(PIECE);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut left = LEN;
                while left > 0 {
                    let n = left.min(PIECE);
                    client.write_all(&piece[..n]).unwrap();
                    left -= n;
                }
                client.shutdown(Shutdown::Write).unwrap();
            });
            let mut received = 0;
            let mut bytes = vec![0; PIECE];
            loop {
                let place = received % PIECE;
                let n = target.read(&mut bytes[..PIECE - place]).unwrap();
                if n == 0 {
                    break;
                }
                assert!(bytes[..n] == piece[place..][..n], "wrong after {received} bytes");
                // Slow in each 16 MiB, and very slow at first.
                if received == 0 {
                    thread::sleep(Duration::from_secs(1));
                } else if received >> 24 != (received + n) >> 24 {
                    thread::sleep(Duration::from_millis(20));
                }
                received += n;
            }
            assert_eq!(received, LEN);
        });
        let grown = most_resident(&scene.relay) - before;
        println!("{grown} bytes more");
        assert!(grown < 2 * HIGH, "{grown} bytes more than before");
        drop((client, target));
        scene.relay.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn a_target_that_refuses_is_a_reset_and_the_relay_lives_on() {
    alone!().run(|| {
        let Scene { relay, target } = Scene::new(&[]);
        drop(target);
        for _ in 0..3 {
            let client = relay.connect();
            assert_eq!(read_to_end(&client).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        eventually("the log tells", || {
            let log = relay.log();
            let told = log.lines().filter(|line| line.contains("connecting to \"localhost:"));
            told.filter(|line| line.ends_with("nobody listens there")).count() == 3
        });
        relay.ends_well_on(Signal::SIGTERM);
    });
}

/// A client that has gone before the target was there leaves nothing behind.
#[test]
fn b62_clients_that_leave_at_once_leave_nothing_behind() {
    alone!().run(|| {
        let scene = Scene::new(&["--threads", "1"]);
        let sockets = scene.relay.open_sockets();
        for _ in 0..50 {
            reset(scene.relay.connect());
        }
        scene.target.set_nonblocking(true).unwrap();
        eventually("nothing is left", || {
            while scene.target.accept().is_ok() {}
            scene.relay.open_sockets() <= sockets
        });
        scene.relay.ends_well_on(Signal::SIGTERM);
    });
}

/// A relay to a target that never answers.
fn to_silence(arguments: &[&str]) -> (Program, Vec<OwnedFd>) {
    let (address, fds) = full();
    let mut command = Command::new(binary("tcp_relay"));
    command.args(["127.0.0.1:0", &address.to_string()]).args(arguments);
    (Program::spawn(&mut command).listening(1), fds)
}

#[test]
fn b59_targets_that_do_not_answer_take_no_threads_and_are_given_up() {
    const CLIENTS: usize = 50;
    alone!().run(|| {
        let (relay, _silent) = to_silence(&["--threads", "2", "--connect-timeout", "0.5"]);
        let sockets = relay.open_sockets();
        let threads = || proc::list(&format!("{}/task", relay.pid())).count();
        let before = threads();
        let clients: Vec<_> = (0..CLIENTS).map(|_| relay.connect()).collect();
        for client in clients {
            assert!(threads() <= before);
            assert_eq!(read_to_end(&client).unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        eventually("the log tells", || relay.log().matches("no answer in time").count() == CLIENTS);
        eventually("nothing is left", || relay.open_sockets() <= sockets);
        relay.ends_well_on(Signal::SIGTERM);
    });
}

/// The target would have all the time in the world.
#[test]
fn b62_a_target_is_not_waited_for_when_its_client_has_gone() {
    alone!().run(|| {
        let (relay, _silent) = to_silence(&["--connect-timeout", "3600"]);
        let sockets = relay.open_sockets();
        let clients: Vec<_> = (0..5).map(|_| relay.connect()).collect();
        eventually("targets are being connected", || relay.open_sockets() == sockets + 10);
        clients.into_iter().for_each(reset);
        eventually("nothing is left", || relay.open_sockets() <= sockets);
        let client = relay.connect();
        eventually("one is being connected", || relay.open_sockets() == sockets + 2);
        relay.signal(Signal::SIGTERM);
        // Nothing has come yet that would be lost.
        assert_eq!(read_to_end(&client).unwrap(), b"");
        drop(client);
        relay.ends_well();
    });
}

#[test]
fn a_stop_leaves_what_goes_on_its_time() {
    alone!().run(|| {
        let scene = Scene::new(&[]);
        let (mut client, mut target) = scene.connect();
        client.write_all(b"before").unwrap();
        read_n(&target, 6);
        scene.relay.signal(Signal::SIGTERM);
        eventually("it stops", || scene.relay.log().contains("stopping"));
        client.write_all(b"after").unwrap();
        assert_eq!(read_n(&target, 5), b"after");
        target.write_all(b"bye").unwrap();
        drop(target);
        assert_eq!(read_to_end(&client).unwrap(), b"bye");
        drop(client);
        scene.relay.ends_well();
    });
}

#[test]
fn arguments_that_make_no_sense_get_one_line() {
    alone!().run(|| {
        for arguments in [
            &[][..],
            &["127.0.0.1:0"],
            &["127.0.0.1:0", "nowhere"],
            &["127.0.0.1:0", "nowhere:0"],
            &["here", "127.0.0.1:1"],
            &["127.0.0.1:0", "127.0.0.1:1", "127.0.0.1:2"],
        ] {
            let output = run("tcp_relay", arguments);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    });
}
