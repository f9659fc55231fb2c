//! The example roundtrip, end to end: both sides of it against each other, and each against peers
//! that are not as they should be.

#![allow(clippy::unwrap_used)]

mod common;
mod datagrams;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::program::{Program, binary, run, without_slow_callbacks};
use common::{DEADLINE, eventually, proc, read_n, read_to_end, within};
use datagrams::{peer, recv};
use nix::sys::signal::Signal;

fn microseconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

fn question(sent: i64) -> Vec<u8> {
    [sent.to_be_bytes(), [0; 8]].concat()
}

/// T1 and T2.
fn times(answer: &[u8]) -> (i64, i64) {
    let (sent, received) = answer.split_at(8);
    (i64::from_be_bytes(sent.try_into().unwrap()), i64::from_be_bytes(received.try_into().unwrap()))
}

/// The numbers in a line that the client prints.
fn numbers(line: &str) -> Vec<i64> {
    line.split(' ').filter_map(|word| word.parse().ok()).collect()
}

const ASK_FIVE_TIMES: [&str; 4] = ["--interval", "0.01", "--count", "5"];

fn client(server: SocketAddr, arguments: &[&str]) -> Program {
    let server = server.to_string();
    Program::spawn(Command::new(binary("roundtrip")).args(["--connect", &server]).args(arguments))
}

/// Server and client have the same clock, so what is measured must be 0 within the bound.
#[track_caller]
fn check_offset(round_trip: i64, offset: i64) {
    assert!(round_trip >= 0 && offset.abs() <= round_trip / 2 + 1, "{round_trip} us: {offset} us");
}

#[track_caller]
fn measures_five_times(server: SocketAddr, arguments: &[&str]) {
    let client = client(server, &[&ASK_FIVE_TIMES, arguments].concat());
    let mut quickest = i64::MAX;
    for _ in 0..5 {
        let line = within(&client.lines);
        let [round_trip, offset] = numbers(&line)[..] else { panic!("{line}") };
        check_offset(round_trip, offset);
        quickest = quickest.min(round_trip);
    }
    let line = within(&client.lines);
    let [5, 5, round_trip, offset] = numbers(&line)[..] else { panic!("{line}") };
    check_offset(round_trip, offset);
    assert_eq!(round_trip, quickest, "{line}");
    client.ends_well();
}

/// Where that can be known.
#[track_caller]
fn assert_threads(server: &Program, expected: usize) {
    assert!(!cfg!(target_os = "linux") || server.threads() == expected);
}

#[test]
fn the_client_measures_and_ends() {
    alone!().run(|| {
        let server = Program::serve("roundtrip", &["--threads", "2"]);
        assert_threads(&server, 3);
        measures_five_times(server.addr(), &[]);
        server.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn the_client_measures_and_ends_over_udp() {
    alone!().run(|| {
        let server = Program::serve("roundtrip", &["--udp", "--threads", "2"]);
        assert_threads(&server, 3);
        measures_five_times(server.addr(), &["--udp"]);
        server.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn datagrams_that_are_no_messages_get_no_answer() {
    alone!().run(|| {
        let server = Program::serve("roundtrip", &["--udp"]);
        let peer = peer("127.0.0.1:0");
        peer.connect(server.addr()).unwrap();
        let before = microseconds();
        for len in [0, 1, 15, 17, 60_000] {
            peer.send(&vec![0; len]).unwrap();
        }
        peer.send(&question(7)).unwrap();
        // It is the first.
        let (sent, received) = times(&recv(&peer));
        assert_eq!(sent, 7);
        assert!((before..=microseconds()).contains(&received), "{received}");
        server.ends_well_on(Signal::SIGTERM);
    });
}

/// Stops a program for a moment, in which something happens.
fn while_it_stands_still(program: &Program, body: impl FnOnce()) {
    program.signal(Signal::SIGSTOP);
    eventually("it stands still", || {
        let tasks = proc::list(&format!("{}/task", program.pid()));
        let stat = |task: PathBuf| fs::read_to_string(task.join("stat")).unwrap();
        tasks.map(stat).all(|stat| stat.contains(") T "))
    });
    body();
    let now = microseconds();
    eventually("time passes", || microseconds() > now + 20_000);
    program.signal(Signal::SIGCONT);
}

/// The kernel tells when a datagram has come, however late the program gets to it.
#[test]
fn what_a_program_does_meanwhile_does_not_count_over_udp() {
    alone!().run(|| {
        let server = Program::serve("roundtrip", &["--udp"]);
        let asks = peer("127.0.0.1:0");
        asks.connect(server.addr()).unwrap();
        let mut come = 0;
        while_it_stands_still(&server, || {
            asks.send(&question(7)).unwrap();
            come = microseconds();
        });
        let (_, received) = times(&recv(&asks));
        assert!(received <= come, "{received} {come}");
        server.ends_well_on(Signal::SIGTERM);

        let answers = peer("127.0.0.1:0");
        let client = client(answers.local_addr().unwrap(), &["--udp", "--count", "1"]);
        let mut message = [0; 16];
        let (_, from) = answers.recv_from(&mut message).unwrap();
        let sent = times(&message).0;
        while_it_stands_still(&client, || {
            answers.send_to(&message, from).unwrap();
            come = microseconds();
        });
        let line = within(&client.lines);
        let round_trip = numbers(&line)[0];
        assert!(round_trip <= come - sent, "{line}, {} us", come - sent);
        client.ends_well();
    });
}

/// The client's clock is five seconds ahead of the one, and behind the other; which it finds as exactly
/// as half of a round trip.
#[test]
fn clocks_that_differ_are_told_by_how_much_and_in_which_direction() {
    const SECONDS: i64 = 5_000_000;
    alone!().run(|| {
        for ahead in [SECONDS, -SECONDS] {
            let server = peer("127.0.0.1:0");
            let addr = server.local_addr().unwrap();
            let client = client(addr, &["--udp", "--count", "1"]);
            let mut message = [0; 16];
            let (_, from) = server.recv_from(&mut message).unwrap();
            message[8..].copy_from_slice(&(microseconds() - ahead).to_be_bytes());
            server.send_to(&message, from).unwrap();
            let line = within(&client.lines);
            let [round_trip, offset] = numbers(&line)[..] else { panic!("{line}") };
            check_offset(round_trip, offset - ahead);
            let line = within(&client.lines);
            assert_eq!(numbers(&line), [1, 1, round_trip, offset], "{line}");
            client.ends_well();
        }
    });
}

/// Of three questions the first is lost, the second is answered twice and by nonsense, too.
#[test]
fn what_is_lost_or_comes_twice_over_udp_is_no_end() {
    alone!().run(|| {
        let server = peer("127.0.0.1:0");
        let addr = server.local_addr().unwrap();
        let client = client(addr, &["--udp", "--interval", "0.05"]);
        let receive = |server: &UdpSocket| {
            let mut message = [0; 16];
            let (_, client) = server.recv_from(&mut message).unwrap();
            message[8..].copy_from_slice(&microseconds().to_be_bytes());
            (message, client)
        };
        receive(&server);
        let (answer, from) = receive(&server);
        for bytes in [&answer[..], &answer, b"nonsense", &[7; 16]] {
            server.send_to(bytes, from).unwrap();
        }
        let line = within(&client.lines);
        assert!(line.starts_with("round trip "), "{line}");
        let (third, from) = receive(&server);
        server.send_to(&third, from).unwrap();
        let line = within(&client.lines);
        assert!(line.starts_with("round trip "), "{line}");
        let told = || client.log().matches("an answer to no question").count() == 3;
        eventually("the client tells of what it did not ask", told);
        client.ends_well_on(Signal::SIGINT);
    });
}

/// Answers have a time to come in, and then it is over.
#[test]
fn without_any_answer_it_ends_by_itself() {
    alone!().run(|| {
        let silent = peer("127.0.0.1:0");
        let listens = TcpListener::bind("127.0.0.1:0").unwrap();
        let addrs = [silent.local_addr().unwrap(), listens.local_addr().unwrap()];
        let over_udp = client(addrs[0], &["--udp", "--count", "2", "--interval", "0.01"]);
        let over_tcp = client(addrs[1], &["--count", "2", "--interval", "0.01"]);
        fails_with(over_udp, "2 asked, none answered");
        fails_with(over_tcp, "has ended: ");
    });
}

/// It does not wait for all of them for ever.
#[test]
fn of_more_than_a_thousand_open_questions_the_first_are_given_up() {
    alone!().run(|| {
        let server = peer("127.0.0.1:0");
        let addr = server.local_addr().unwrap();
        let client = client(addr, &["--udp", "--interval", "0.0001"]);
        let mut message = [0; 16];
        let (_, from) = server.recv_from(&mut message).unwrap();
        for _ in 0..1000 {
            server.recv_from(&mut [0; 16]).unwrap();
        }
        server.send_to(&message, from).unwrap();
        eventually("the first is none of them", || {
            client.log().contains("an answer to no question")
        });
        assert!(client.lines.try_recv().is_err());
        client.signal(Signal::SIGTERM);
        fails_with(client, "none answered");
    });
}

#[test]
fn questions_are_no_closer_together_than_told() {
    alone!().run(|| {
        let server = Program::serve("roundtrip", &[]);
        let server_too = Program::serve("roundtrip", &["--udp"]);
        for (addr, arguments) in [(server.addr(), &[][..]), (server_too.addr(), &["--udp"])] {
            let before = Instant::now();
            let client =
                client(addr, &[&["--count", "3", "--interval", "0.15"][..], arguments].concat());
            client.ends_well();
            assert!(before.elapsed() >= Duration::from_millis(300));
        }
        server.ends_well_on(Signal::SIGTERM);
        server_too.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn nobody_at_all_over_udp_is_told_of() {
    alone!().run(|| {
        // It has the port, and refuses what others than its peer send there.
        let holder = peer("127.0.0.1:0");
        holder.connect("127.0.0.1:9").unwrap();
        let nobody = holder.local_addr().unwrap();
        let client = client(nobody, &["--udp", "--interval", "0.01"]);
        // And goes on: somebody may come yet.
        eventually("the client tells", || client.log().matches("refused").count() >= 3);
        client.signal(Signal::SIGTERM);
        fails_with(client, "none answered");
    });
}

#[test]
fn messages_are_found_wherever_the_stream_is_cut() {
    alone!().run(|| {
        let server = Program::serve("roundtrip", &[]);
        let mut peer = server.connect();
        peer.set_nodelay(true).unwrap();
        let before = microseconds();
        for byte in question(7) {
            peer.write_all(&[byte]).unwrap();
        }
        let (sent, received) = times(&read_n(&peer, 16));
        assert_eq!(sent, 7);
        assert!((before..=microseconds()).contains(&received), "{received}");

        // Two and a half at once. What is no whole message at the end gets no answer.
        let mut bytes = [question(-8), question(i64::MIN)].concat();
        bytes.extend([1; 8]);
        peer.write_all(&bytes).unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        let answers = read_to_end(&peer).unwrap();
        assert_eq!(answers.len(), 32);
        assert_eq!((times(&answers[..16]).0, times(&answers[16..]).0), (-8, i64::MIN));
        server.ends_well_on(Signal::SIGINT);
    });
}

/// A server of ours that does with its one client what the test wants.
fn fake_server(serve: impl FnOnce(TcpStream) + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        serve(stream);
    });
    (addr, thread)
}

#[track_caller]
fn fails_with(client: Program, why: &str) {
    let ended = client.wait();
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(ended.log.contains(why), "{}", ended.log);
}

#[test]
fn a_server_that_answers_what_was_not_asked_is_refused() {
    alone!().run(|| {
        let (addr, server) = fake_server(|mut stream| {
            let mut asked = [0; 16];
            stream.read_exact(&mut asked).unwrap();
            stream.write_all(&[0xff; 16]).unwrap();
            // Until the client has gone.
            let _ = stream.read_to_end(&mut Vec::new());
        });
        fails_with(client(addr, &["--count", "1"]), "an answer to no question");
        server.join().unwrap();
    });
}

/// Times that no clock has must not upset the arithmetic.
#[test]
fn any_time_may_stand_in_an_answer() {
    alone!().run(|| {
        for received in [i64::MIN, i64::MAX] {
            let (addr, server) = fake_server(move |mut stream| {
                let mut message = [0; 16];
                stream.read_exact(&mut message).unwrap();
                message[8..].copy_from_slice(&received.to_be_bytes());
                stream.write_all(&message).unwrap();
                let _ = stream.read_to_end(&mut Vec::new());
            });
            let client = client(addr, &["--count", "1"]);
            let line = within(&client.lines);
            assert!(line.starts_with("round trip "), "{line}");
            client.ends_well();
            server.join().unwrap();
        }
    });
}

#[test]
fn a_server_that_goes_away_or_is_not_there_is_told_of() {
    alone!().run(|| {
        let (addr, server) = fake_server(drop);
        fails_with(client(addr, &[]), "has ended: ");
        server.join().unwrap();
        // Nobody listens there any more.
        fails_with(client(addr, &[]), "nobody listens there");
    });
}

#[test]
fn a_signal_ends_a_client_that_would_go_on() {
    alone!().run(|| {
        let server = Program::serve("roundtrip", &[]);
        let client = client(server.addr(), &["--interval", "0.01"]);
        let line = within(&client.lines);
        assert!(line.starts_with("round trip "), "{line}");
        client.ends_well_on(Signal::SIGINT);
        server.ends_well_on(Signal::SIGTERM);
    });
}

/// `roundtrip .. | head -1`.
#[test]
fn when_nobody_reads_what_it_tells_it_ends_well() {
    alone!().run(|| {
        for udp in [&[][..], &["--udp"]] {
            let server = Program::serve("roundtrip", udp);
            let mut command = Command::new(binary("roundtrip"));
            command.args(["--connect", &server.addr().to_string(), "--interval", "0.01"]).args(udp);
            let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = piped.spawn().unwrap();
            let mut line = String::new();
            let mut head = BufReader::new(child.stdout.take().unwrap());
            head.read_line(&mut line).unwrap();
            assert!(line.starts_with("round trip "), "{line}");
            drop(head);
            let output = child.wait_with_output().unwrap();
            let log = without_slow_callbacks(&String::from_utf8(output.stderr).unwrap());
            assert_eq!((output.status.code(), &log[..]), (Some(0), ""));
            server.ends_well_on(Signal::SIGTERM);
        }
    });
}

#[test]
fn numbers_that_make_no_sense_are_refused() {
    alone!().run(|| {
        for arguments in [["--interval", "0"], ["--count", "-1"], ["--interval", "often"]] {
            assert_eq!(run("roundtrip", &arguments).status.code(), Some(2), "{arguments:?}");
        }
    });
}
