//! The example file_transfer, end to end: what arrives has the checksum of what was sent, whatever
//! the peer does.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::thread;
use std::time::Duration;

use common::program::{Program, run};
use common::{eventually, pattern, read_to_end};
use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};

const WAYS: [&str; 3] = ["whole", "chunks", "sendfile"];

/// More than the kernel takes when nobody reads, and no whole number of chunks.
const LEN: usize = (20 << 20) + 4321;

/// A file that is gone at the end of the test.
struct Sample(PathBuf);

impl Sample {
    fn new(bytes: &[u8]) -> Sample {
        let name = format!("ruduo-file-transfer-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, bytes).unwrap();
        Sample(path)
    }

    fn serve(&self, way: &str, arguments: &[&str]) -> Program {
        let file = self.0.to_str().unwrap();
        Program::serve("file_transfer", &[&[file, "--way", way][..], arguments].concat())
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(LEN));

#[track_caller]
fn assert_is_the_file(received: &[u8]) {
    assert_eq!(received.len(), LEN);
    assert_eq!(Sha256::digest(received), Sha256::digest(&*BYTES));
}

fn with_each_way(arguments: &[&str], test: impl Fn(&Program, &str)) {
    let sample = Sample::new(&BYTES);
    for way in WAYS {
        let program = sample.serve(way, arguments);
        test(&program, way);
        let log = program.ends_well_on(Signal::SIGTERM).log;
        assert!(!log.contains("ERROR"), "{way}: {log}");
    }
}

#[test]
fn it_arrives_whole() {
    alone!().run(|| {
        with_each_way(&["--threads", "2"], |program, _| {
            for _ in 0..2 {
                assert_is_the_file(&read_to_end(&program.connect()).unwrap());
            }
            eventually("the log tells", || {
                program.log().matches(&format!("{LEN} bytes")).count() == 2
            });
        });
    });
}

#[test]
fn b13_it_arrives_at_a_peer_that_has_finished_first() {
    alone!().run(|| {
        with_each_way(&[], |program, _| {
            let peer = program.connect();
            peer.shutdown(Shutdown::Write).unwrap();
            assert_is_the_file(&read_to_end(&peer).unwrap());
            eventually("the log tells", || {
                program.log().contains("bytes: closed by the peer")
                    || program.log().contains("bytes: shut down")
            });
        });
    });
}

#[test]
fn b32_it_arrives_at_a_slow_peer() {
    alone!().run(|| {
        with_each_way(&[], |program, _| {
            let mut peer = program.connect();
            let mut received = Vec::with_capacity(LEN);
            let mut piece = vec![0; 256 * 1024];
            loop {
                match peer.read(&mut piece).unwrap() {
                    0 => break,
                    n => received.extend_from_slice(&piece[..n]),
                }
                thread::sleep(Duration::from_millis(5));
            }
            assert_is_the_file(&received);
        });
    });
}

/// Says a lot before it reads anything, and goes on saying more: with a close that leaves that
/// unread, the file's end would be lost.
#[test]
fn b33_it_arrives_at_a_peer_that_writes_early() {
    alone!().run(|| {
        with_each_way(&[], |program, way| {
            let peer = program.connect();
            (&peer).write_all(&vec![b'x'; 4 << 20]).unwrap();
            let typist = {
                let mut peer = peer.try_clone().unwrap();
                // Until the connection is over.
                thread::spawn(move || while peer.write_all(b"more").is_ok() {})
            };
            assert_is_the_file(&read_to_end(&peer).unwrap());
            peer.shutdown(Shutdown::Both).unwrap();
            typist.join().unwrap();
            eventually("the log tells", || program.log().contains(&format!("{LEN} bytes")));
            assert!(!program.log().contains("failed"), "{way}: {}", program.log());
        });
    });
}

#[test]
fn b39_a_peer_that_has_the_file_and_does_not_end_is_cut() {
    alone!().run(|| {
        with_each_way(&["--linger", "0.3"], |program, _| {
            let peer = program.connect();
            assert_is_the_file(&read_to_end(&peer).unwrap());
            eventually("it is cut", || program.log().contains("did not finish within 300ms"));
        });
    });
}

/// And learns that it does not have everything.
#[test]
fn b32_a_peer_that_takes_nothing_is_cut_by_a_reset() {
    alone!().run(|| {
        with_each_way(&["--stall", "0.3"], |program, _| {
            let mut peer = program.connect();
            eventually("it is cut", || program.log().contains("took nothing of the output"));
            let mut received = Vec::new();
            let error = peer.read_to_end(&mut received).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
            assert!(received.len() < LEN);
        });
    });
}

/// A stop is no end in the middle.
#[test]
fn a_stop_lets_what_has_begun_arrive() {
    alone!().run(|| {
        let sample = Sample::new(&BYTES);
        for way in WAYS {
            let program = sample.serve(way, &[]);
            let mut peer: TcpStream = program.connect();
            let mut first = vec![0; 1000];
            peer.read_exact(&mut first).unwrap();
            program.signal(Signal::SIGTERM);
            eventually("it stops", || program.log().contains("stopping"));
            let rest = read_to_end(&peer).unwrap();
            assert_is_the_file(&[first, rest].concat());
            drop(peer);
            program.ends_well();
        }
    });
}

#[test]
fn an_empty_file_is_one_too() {
    alone!().run(|| {
        let sample = Sample::new(b"");
        for way in WAYS {
            let program = sample.serve(way, &[]);
            assert_eq!(read_to_end(&program.connect()).unwrap(), b"");
            program.ends_well_on(Signal::SIGTERM);
        }
    });
}

#[test]
fn what_cannot_be_sent_gets_one_line() {
    alone!().run(|| {
        for (arguments, status) in [
            (&["/nowhere/at/all"][..], 1),
            (&["/"], 1),
            (&["--way", "pigeon"], 2),
            (&["--stall", "0"], 2),
            (&["one", "two"], 2),
        ] {
            let output = run("file_transfer", arguments);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
    });
}
