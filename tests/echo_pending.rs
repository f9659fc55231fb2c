//! The echo example with output pending when it is told to end: all that it had received comes
//! back before it does.

#![allow(clippy::unwrap_used)]

mod common;
mod kernel;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{DEADLINE, connect, eventually, pattern, read_to_end};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The program at work; killed when dropped.
struct Echo {
    child: Child,
    addr: SocketAddr,
}

impl Echo {
    fn start(threads: usize) -> Echo {
        let this = std::env::current_exe().unwrap();
        let program = this.parent().unwrap().with_file_name("examples").join("echo");
        assert!(program.exists(), "{} is missing: run `cargo build --examples`", program.display());
        let mut child = Command::new(program)
            .args(["--listen", "127.0.0.1:0", "--threads", &threads.to_string()])
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let addr = line.trim_end().strip_prefix("listening on ").expect(&line).parse().unwrap();
        Echo { child, addr }
    }

    /// Waits for the program's end, which must be a good one.
    fn ends_well(mut self) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < DEADLINE, "it goes on");
            std::thread::park_timeout(Duration::from_millis(1));
        };
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert_eq!((status.code(), log.as_str()), (Some(0), ""));
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes until the program holds bytes that neither it nor the kernel has got rid of, and has
/// received all. Returns how many bytes were written.
fn fill(peer: &mut TcpStream) -> usize {
    const PIECE: usize = 64 * 1024;
    const HELD: usize = 200 * 1024;
    let near = (peer.local_addr().unwrap(), peer.peer_addr().unwrap());
    let far = (near.1, near.0);
    let mut written = 0;
    loop {
        peer.write_all(&pattern(PIECE)).unwrap();
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

fn ends_on(signal: Signal, threads: usize) {
    let mut echo = Echo::start(threads);
    let mut peer = connect(echo.addr);
    let written = fill(&mut peer);
    kill(Pid::from_raw(echo.child.id() as i32), signal).unwrap();
    eventually("it listens no more", || TcpStream::connect(echo.addr).is_err());
    assert!(echo.child.try_wait().unwrap().is_none(), "it ended with output pending");

    let back = read_to_end(&peer).unwrap();
    assert!(back == pattern(64 * 1024).repeat(written / (64 * 1024)), "{} bytes", back.len());
    drop(peer);
    echo.ends_well();
}

#[test]
fn sigterm_ends_it_when_pending_output_is_delivered() {
    alone!().run(|| ends_on(Signal::SIGTERM, 0));
}

#[test]
fn sigint_ends_it_when_pending_output_is_delivered() {
    alone!().run(|| ends_on(Signal::SIGINT, 2));
}
