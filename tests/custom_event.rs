//! The example `custom_event`: input from a thread and a deadline, beside sockets.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::thread;

use common::program::{Program, run};
use common::{eventually, pattern, read_n, read_to_end};
use nix::sys::signal::Signal;

/// Far longer than any test takes.
const NEVER: [&str; 2] = ["--silence", "10000"];

/// Connected, and known to be: what is typed from now on arrives.
fn join(program: &Program) -> TcpStream {
    let before = program.open_sockets();
    let peer = program.connect();
    eventually("it is accepted", || program.open_sockets() > before);
    peer
}

fn tell(program: &mut Program, bytes: &[u8]) {
    program.stdin().write_all(bytes).unwrap();
    program.stdin().flush().unwrap();
}

#[test]
fn what_is_typed_reaches_everyone_in_order() {
    each_poller!().run(|| {
        let mut program = Program::serve("custom_event", &NEVER);
        let peers = [join(&program), join(&program), join(&program)];
        for i in 0..100 {
            let line = format!("line {i}\n");
            tell(&mut program, line.as_bytes());
            for peer in &peers {
                assert_eq!(read_n(peer, line.len()), line.as_bytes());
            }
        }
        // Those who leave are forgotten, and what they say does not matter.
        let [one, mut two, three] = peers;
        drop(one);
        two.write_all(b"noise").unwrap();
        tell(&mut program, b"last\n");
        assert_eq!([read_n(&two, 5), read_n(&three, 5)], [b"last\n", b"last\n"]);
        drop((two, three));
        program.ends_well_on(Signal::SIGTERM);
    });
}

/// Much more than waits between the thread and the loop.
#[test]
fn megabytes_arrive_byte_exact_and_the_end_of_input_ends_nothing() {
    each_poller!().run(|| {
        let mut program = Program::serve("custom_event", &NEVER);
        let peer = join(&program);
        let data = pattern(4_000_000);
        thread::scope(|scope| {
            let reader = scope.spawn(|| read_n(&peer, data.len()));
            tell(&mut program, &data);
            assert!(reader.join().unwrap() == data);
        });
        program.close_stdin();
        eventually("it says so", || program.log().contains("standard input has ended"));
        let late = join(&program);
        program.signal(Signal::SIGINT);
        assert_eq!(read_to_end(&late).unwrap(), b"");
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        drop((late, peer));
        program.ends_well();
    });
}

#[test]
fn silence_is_told_once_and_again_after_the_next_input() {
    each_poller!().run(|| {
        let mut program = Program::serve("custom_event", &["--silence", "0.3"]);
        let silence = b"(silence)\n";
        let peer = join(&program);
        // The first may be over before anybody is here.
        tell(&mut program, b"a");
        let mut before = Vec::new();
        while before.last() != Some(&b'a') {
            before.extend(read_n(&peer, 1));
        }
        assert!(before == b"a" || before == [&silence[..], b"a"].concat());
        assert_eq!(read_n(&peer, silence.len()), silence);
        tell(&mut program, b"b");
        // Had it been told again, that would come first.
        assert_eq!(read_n(&peer, 1), b"b");
        assert_eq!(read_n(&peer, silence.len()), silence);
        drop(peer);
        program.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn a_silence_that_cannot_be_gets_one_line_and_status_2() {
    alone!().run(|| {
        for bad in ["", "0", "-1", "soon", "inf", "1e300"] {
            let output = run("custom_event", &["--silence", bad]);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    });
}
