//! The examples discard, daytime, time and simple_all, end to end.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::program::{Program, binary, run};
use common::{connect, eventually, pattern, proc, read_n, read_to_end};
use nix::sys::signal::Signal;

/// Starts all five services on free ports.
fn simple_all(threads: &str) -> Program {
    let arguments = ["--base-port", "0", "--threads", threads];
    Program::spawn(Command::new(binary("simple_all")).args(arguments)).listening(5)
}

/// Sends bytes to a service that sends none back, finishes, and waits until it has taken them all.
#[track_caller]
fn discard(addr: SocketAddr, bytes: &[u8]) {
    let mut peer = connect(addr);
    peer.write_all(bytes).unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&peer).unwrap(), b"");
}

#[track_caller]
fn check_daytime(peer: &TcpStream) {
    // The line knows no fractions of seconds.
    let earliest = SystemTime::now() - Duration::from_secs(60);
    let line = String::from_utf8(read_to_end(peer).unwrap()).unwrap();
    let date = line.strip_suffix("\r\n").expect("a line that ends");
    let told = httpdate::parse_http_date(date).expect(date);
    assert!((earliest..=SystemTime::now()).contains(&told), "{line}");
}

#[track_caller]
fn check_time(peer: &TcpStream) {
    let since_1900 = || {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        // Seventy years, seventeen of which were leap years.
        (since_1970.as_secs() + (70 * 365 + 17) * 24 * 3600) as u32
    };
    let earliest = since_1900().wrapping_sub(60);
    let told: [u8; 4] = read_to_end(peer).unwrap().try_into().expect("32 bits and the end");
    // The number begins again at 0 in 2036.
    let later = u32::from_be_bytes(told).wrapping_sub(earliest);
    assert!(later <= since_1900().wrapping_sub(earliest), "{told:?}");
}

#[test]
fn discard_takes_what_comes_and_closes_after_the_peer() {
    alone!().run(|| {
        for threads in ["0", "2"] {
            let program = Program::serve("discard", &["--threads", threads]);
            thread::scope(|scope| {
                for size in [0, 1, 64 << 20] {
                    let addr = program.addr();
                    scope.spawn(move || discard(addr, &pattern(size)));
                }
            });
        }
    });
}

#[test]
fn daytime_tells_the_date_in_one_line() {
    alone!().run(|| {
        let program = Program::serve("daytime", &[]);
        check_daytime(&program.connect());
        check_daytime(&program.connect());
    });
}

#[test]
fn time_tells_the_seconds_since_1900() {
    alone!().run(|| {
        let program = Program::serve("time", &[]);
        check_time(&program.connect());
        check_time(&program.connect());
    });
}

/// If it were left unread, or were too much, the peer would see a reset.
#[test]
fn what_a_peer_sends_to_daytime_and_time_is_thrown_away() {
    alone!().run(|| {
        for (example, check) in [("daytime", check_daytime as fn(&TcpStream)), ("time", check_time)]
        {
            let program = Program::serve(example, &[]);
            let before = program.open_fds();
            let mut peer = program.connect();
            peer.write_all(&pattern(8 << 20)).unwrap();
            check(&peer);
            drop(peer);
            eventually("it closes", || program.open_fds() == before);
        }
    });
}

#[test]
fn simple_all_serves_all_five() {
    alone!().run(|| {
        for threads in [0, 2] {
            let all = simple_all(&threads.to_string());
            let tasks = proc::list(&format!("{}/task", all.pid()));
            assert_eq!(tasks.count(), 1 + threads, "the services share their threads");
            let [echo, discards, daytime, chargen, time] = all.addrs[..] else { unreachable!() };
            // As many as there are loops, and one more.
            for _ in 0..3 {
                let mut peer = connect(echo);
                peer.write_all(b"hello").unwrap();
                peer.shutdown(Shutdown::Write).unwrap();
                assert_eq!(read_to_end(&peer).unwrap(), b"hello");
                discard(discards, b"hello");
                check_daytime(&connect(daytime));
                assert_eq!(read_n(&connect(chargen), 4), b" !\"#");
                check_time(&connect(time));
            }
            let services = ["echo", "discard", "daytime", "chargen", "time"];
            for (name, addr) in services.iter().zip(&all.addrs) {
                let line = format!("{name} on {addr}\n");
                eventually("the log tells where it is", || all.log().contains(&line));
            }
        }
    });
}

#[test]
fn simple_all_listens_above_a_base_port() {
    alone!().run(|| {
        // Nobody else's address, and so all of its ports are free.
        let [_, a, b, c] = std::process::id().to_be_bytes();
        let ip = format!("127.{}.{b}.{c}", 100 + a);
        let start = || Program::spawn(Command::new(binary("simple_all")).args(["--ip", &ip]));
        let all = start().listening(5);
        let expected = [2007, 2009, 2013, 2019, 2037].map(|port| format!("{ip}:{port}"));
        assert_eq!(all.addrs.iter().map(SocketAddr::to_string).collect::<Vec<_>>(), expected);

        let second = run("simple_all", &["--ip", &ip]);
        let text = String::from_utf8(second.stderr).unwrap();
        assert_eq!((second.status.code(), text.lines().count()), (Some(1), 1), "{text}");
        assert!(text.contains(&expected[0]) && text.contains("in use"), "{text}");
    });
}

#[test]
fn simple_all_refuses_what_is_no_address_or_base_port() {
    alone!().run(|| {
        for (option, value) in [("--ip", "here"), ("--base-port", "65499"), ("--base-port", "x")] {
            let output = run("simple_all", &[option, value]);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{option} {value}: {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.contains(value) && output.stdout.is_empty(), "{text}");
        }
    });
}

#[test]
fn simple_all_ends_on_signals_with_connections_open() {
    alone!().run(|| {
        for (signal, threads) in [(Signal::SIGTERM, "0"), (Signal::SIGINT, "2")] {
            let all = simple_all(threads);
            let peers: Vec<_> = all.addrs.iter().map(|addr| connect(*addr)).collect();
            read_n(&peers[3], 1_000_000);
            all.signal(signal);
            drop(peers);
            let ended = all.wait();
            assert_eq!((ended.code, ended.signal), (Some(0), None), "{}", ended.log);
            assert!(
                ended.log.contains("stopping") && !ended.log.contains("ERROR"),
                "{}",
                ended.log
            );
        }
    });
}

/// The bytes that a service says in its log it has moved, line by line.
fn logged(log: &str, service: &str) -> Vec<usize> {
    let line = |line: &str| {
        let (_, text) = line.split_once(&format!("] {service}: "))?;
        let (bytes, rate) = text.split_once(" bytes in ")?;
        assert!(rate.ends_with(" MiB/s"), "{line}");
        Some(bytes.parse().unwrap())
    };
    log.lines().filter_map(line).collect()
}

#[test]
fn throughput_is_logged_while_there_is_some() {
    alone!().run(|| {
        const SIZE: usize = 20 << 20;
        let all = simple_all("2");
        let bytes = pattern(SIZE);
        // Twice, so that two periods have passed. chargen has had nobody to send to in either.
        for times in 1..=2 {
            discard(all.addrs[1], &bytes);
            discard(all.addrs[1], &bytes);
            let told = || logged(&all.log(), "discard").iter().sum::<usize>();
            eventually("the log tells of all bytes", || told() == times * 2 * SIZE);
        }
        read_n(&connect(all.addrs[3]), SIZE);
        eventually("chargen's log", || logged(&all.log(), "chargen").iter().sum::<usize>() >= SIZE);
        let log = all.ends_well_on(Signal::SIGTERM).log;
        assert_eq!(logged(&log, "discard").iter().sum::<usize>(), 4 * SIZE);
        assert!(!logged(&log, "chargen").contains(&0) && !logged(&log, "discard").contains(&0));
    });
}
