//! The example `poll_echo`: the bare poller at work, with each trigger on each poller.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::VecDeque;
use std::io::Write;
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::program::{Program, binary, run};
use common::{DEADLINE, eventually, pattern, proc, read_n, read_to_end};
use nix::sys::signal::Signal;

const TRIGGERS: [&str; 3] = ["level", "edge", "oneshot"];

/// Starts it with each trigger; on which poller, the environment says.
fn with_each_trigger(body: impl Fn(Program, &str)) {
    for trigger in TRIGGERS {
        body(Program::serve("poll_echo", &["--trigger", trigger]), trigger);
    }
}

fn datagrams(program: &Program) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(program.addr()).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
}

#[test]
fn streams_come_back_byte_exact_to_many_peers_at_once() {
    each_poller!().run(|| {
        with_each_trigger(|program, trigger| {
            let data = pattern(2_000_000);
            thread::scope(|scope| {
                for _ in 0..8 {
                    let (stream, data) = (program.connect(), &data);
                    let mut writer = stream.try_clone().unwrap();
                    scope.spawn(move || {
                        writer.write_all(data).unwrap();
                        writer.shutdown(Shutdown::Write).unwrap();
                    });
                    scope.spawn(move || {
                        let echo = read_to_end(&stream).unwrap();
                        assert!(echo == *data, "{trigger}: {} bytes", echo.len());
                    });
                }
            });
            eventually("all are closed", || program.open_sockets() == 2);
            program.ends_well_on(Signal::SIGTERM);
        });
    });
}

#[test]
fn datagrams_of_every_size_come_back() {
    each_poller!().run(|| {
        with_each_trigger(|program, trigger| {
            let socket = datagrams(&program);
            let mut buffer = vec![0; 65_536];
            for size in [0, 1, 1_472, 1_473, 16_000, 65_507, 0, 5] {
                let data = pattern(size);
                assert_eq!(socket.send(&data).unwrap(), size);
                let n = socket.recv(&mut buffer).unwrap();
                assert!(buffer[..n] == data, "{trigger}: {n} bytes for {size}");
            }
            // Several at once: an edge is told once for all of them.
            for i in 0..20u8 {
                socket.send(&[i]).unwrap();
            }
            for i in 0..20u8 {
                assert_eq!(socket.recv(&mut buffer).unwrap(), 1);
                assert_eq!(buffer[0], i, "{trigger}");
            }
            program.ends_well_on(Signal::SIGINT);
        });
    });
}

/// A peer whose sends go on until no more fit, because it does not read.
fn fill(stream: &TcpStream) -> usize {
    let chunk = pattern(16_384);
    let mut stream = stream.try_clone().unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut sent = 0;
    loop {
        match stream.write(&chunk[sent % chunk.len()..]) {
            Ok(n) => sent += n,
            Err(_) => return sent,
        }
    }
}

#[test]
fn who_does_not_read_holds_up_only_itself_and_then_gets_everything() {
    each_poller!().run(|| {
        with_each_trigger(|program, trigger| {
            let slow = program.connect();
            let sent = fill(&slow);
            let mut other = program.connect();
            for _ in 0..100 {
                other.write_all(b"ping").unwrap();
                assert_eq!(read_n(&other, 4), b"ping", "{trigger}");
            }
            slow.shutdown(Shutdown::Write).unwrap();
            let echo = read_to_end(&slow).unwrap();
            let chunk = pattern(16_384);
            let right = echo.iter().zip(chunk.iter().cycle()).all(|(a, b)| a == b);
            assert!(echo.len() == sent && right, "{trigger}: {} of {sent}", echo.len());
            drop(other);
            program.ends_well_on(Signal::SIGTERM);
        });
    });
}

/// An edge must be followed until there is no more, but not by letting everybody else wait. The
/// program is stopped while it gets more than it does at a time, so that both events are in one
/// batch.
#[test]
fn whoever_has_much_to_do_leaves_others_their_turns() {
    const DATAGRAMS: usize = 100;
    each_poller!().run(|| {
        let mut command = Command::new(binary("poll_echo"));
        command.args(["--listen", "127.0.0.1:0", "--trigger", "edge"]).env("RUST_LOG", "debug");
        let program = Program::spawn(&mut command).listening(1);
        let (socket, mut peer) = (datagrams(&program), program.connect());
        peer.write_all(b"ping").unwrap();
        assert_eq!(read_n(&peer, 4), b"ping");
        let state_is = |state: &str| proc::read(&format!("{}/stat", program.pid())).contains(state);
        eventually("it waits", || state_is(") S "));
        let earlier = program.log().len();

        program.signal(Signal::SIGSTOP);
        eventually("it is stopped", || state_is(") T "));
        (0..DATAGRAMS).for_each(|i| assert_eq!(socket.send(&[i as u8]).unwrap(), 1));
        peer.write_all(b"ping").unwrap();
        program.signal(Signal::SIGCONT);
        assert_eq!(read_n(&peer, 4), b"ping");
        for i in 0..DATAGRAMS {
            let mut byte = [0];
            assert_eq!(socket.recv(&mut byte).unwrap(), 1);
            assert_eq!(usize::from(byte[0]), i);
        }
        drop(peer);
        let log = program.ends_well_on(Signal::SIGTERM).log;
        let (peers_turn, others_rest) = (log[earlier..].find("Token(3.0)"), log.rfind("goes on"));
        assert!(peers_turn.unwrap() + earlier < others_rest.unwrap(), "{log}");
    });
}

/// Neither does it spin, which takes time, nor wake for nothing, which takes context switches.
#[test]
fn idle_is_idle() {
    each_poller!().run(|| {
        with_each_trigger(|program, trigger| {
            let mut peer = program.connect();
            peer.write_all(b"ping").unwrap();
            read_n(&peer, 4);
            let switches = || {
                let status = proc::read(&format!("{}/status", program.pid()));
                let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
                line.unwrap().split_whitespace().last().unwrap().parse::<u64>().unwrap()
            };
            let (start, before) = (Instant::now(), (switches(), program.ticks()));
            while start.elapsed() < Duration::from_millis(200) {
                thread::park_timeout(Duration::from_millis(50));
            }
            let (switched, spent) = (switches() - before.0, program.ticks() - before.1);
            assert!(switched < 10, "{trigger}: {switched} context switches while idle");
            assert!(spent < 5, "{trigger}: {spent} ticks of CPU time while idle");
            drop(peer);
            program.ends_well_on(Signal::SIGTERM);
        });
    });
}

#[test]
fn what_was_received_before_a_signal_is_still_echoed() {
    each_poller!().run(|| {
        with_each_trigger(|program, trigger| {
            let idle = program.connect();
            let slow = program.connect();
            let sent = fill(&slow);
            program.signal(Signal::SIGTERM);
            assert_eq!(read_to_end(&idle).unwrap(), b"", "{trigger}");
            drop(idle);
            // Everything up to some place, at least what it had in hand; and no reset.
            let echo = read_to_end(&slow).unwrap();
            let right = echo.iter().zip(pattern(16_384).iter().cycle()).all(|(a, b)| a == b);
            assert!(right && (16_384..=sent).contains(&echo.len()), "{trigger}: {}", echo.len());
            drop(slow);
            let ended = program.ends_well();
            assert!(ended.log.contains("stopping"), "{}", ended.log);
        });
    });
}

/// Whoever does not get a place now gets one when another peer leaves, and nothing spins meanwhile.
#[test]
fn b01_out_of_descriptors_it_accepts_again_later() {
    let test = alone!();
    if cfg!(kqueue_model) {
        return test.skip("the model of kqueue needs more descriptors than the program may have");
    }
    test.run(|| {
        for trigger in TRIGGERS {
            let example = binary("poll_echo");
            let words = ["sh", "-c", "ulimit -n 13; exec \"$@\"", "sh", example.to_str().unwrap()];
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).args(["--listen", "127.0.0.1:0", "--trigger", trigger]);
            let program = Program::spawn(&mut command).listening(1);
            let start = Instant::now();
            // More than find a place on any poller: poll(2) has none of its own and leaves room
            // for two more peers than epoll.
            let mut peers: VecDeque<_> = (0..10).map(|_| program.connect()).collect();
            eventually("it says why", || program.log().contains("ulimit -n"));
            while let Some(mut peer) = peers.pop_front() {
                peer.write_all(b"ping").unwrap();
                assert_eq!(read_n(&peer, 4), b"ping", "{trigger}");
            }
            // Once a second at most.
            let lines = program.log().matches("ulimit -n").count() as u64;
            assert!(lines <= 1 + start.elapsed().as_secs(), "{}", program.log());
            program.ends_well_on(Signal::SIGTERM);
        }
    });
}

#[test]
fn it_says_what_it_does_not_know() {
    alone!().run(|| {
        for (arguments, status, text) in [
            (&["--trigger", "both"][..], 2, "level, edge and oneshot"),
            (&["--poller", "select"], 2, "epoll, kqueue, poll"),
            (&["--poller", "kqueue", "--listen", "127.0.0.1:0"], 1, "no kqueue on this system"),
        ] {
            let is_here = ruduo::PollerKind::available().contains(&ruduo::PollerKind::Kqueue);
            if is_here && status == 1 {
                continue;
            }
            let output = run("poll_echo", arguments);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(status), "{error}");
            assert!(error.lines().count() == 1 && error.contains(text), "{error}");
        }
    });
}
