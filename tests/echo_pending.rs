//! The echo example with output pending when it is told to end: all that it had received comes
//! back before it does.

#![allow(clippy::unwrap_used)]

mod common;
mod kernel;

use std::io::Write;
use std::net::TcpStream;

use common::program::Program;
use common::{eventually, pattern, read_to_end};
use nix::sys::signal::Signal;

/// So large that a few looks at the kernel's table will do, and so small that the program, which
/// holds little more than [`HELD`] before, goes on reading.
const PIECE: usize = 256 * 1024;
const HELD: usize = 200 * 1024;

/// Writes until the program holds bytes that neither it nor the kernel has got rid of, and has
/// received all. Returns how many bytes were written.
fn fill(peer: &mut TcpStream) -> usize {
    let piece = pattern(PIECE);
    let near = (peer.local_addr().unwrap(), peer.peer_addr().unwrap());
    let far = (near.1, near.0);
    let mut written = 0;
    loop {
        peer.write_all(&piece).unwrap();
        written += PIECE;
        let ends = || (kernel::end(near).unwrap(), kernel::end(far).unwrap());
        eventually("the program has received it", || {
            let (near, far) = ends();
            near.unsent == 0 && far.unread == 0
        });
        let (near, far) = ends();
        // What is on its way back may be counted at both ends.
        if written >= far.unsent + near.unread + HELD {
            return written;
        }
        assert!(written < 64 << 20, "it does not hold anything");
    }
}

fn ends_on(signal: Signal, threads: &str) {
    let mut echo = Program::serve("echo", &["--threads", threads]);
    let mut peer = echo.connect();
    let written = fill(&mut peer);
    echo.signal(signal);
    let addr = echo.addr();
    eventually("it listens no more", || TcpStream::connect(addr).is_err());
    assert!(echo.is_running(), "it ended with output pending");

    let back = read_to_end(&peer).unwrap();
    assert!(back == pattern(PIECE).repeat(written / PIECE), "{} bytes", back.len());
    drop(peer);
    let ended = echo.wait();
    assert_eq!(ended.code, Some(0));
    assert!(!ended.log.contains("WARN") && !ended.log.contains("ERROR"), "{}", ended.log);
}

#[test]
fn sigterm_ends_it_when_pending_output_is_delivered() {
    alone!().run(|| ends_on(Signal::SIGTERM, "0"));
}

#[test]
fn sigint_ends_it_when_pending_output_is_delivered() {
    alone!().run(|| ends_on(Signal::SIGINT, "2"));
}
