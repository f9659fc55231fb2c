//! The chargen example, end to end: what it sends, to whom, how fairly, and how it ends.

#![allow(clippy::unwrap_used)]

mod common;
mod kernel;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use common::program::{Program, binary};
use common::{connect, eventually, pattern, proc, read_n};
use nix::sys::signal::Signal;
use nix::sys::socket::{MsgFlags, recv};

/// A line has 72 characters, CR and LF.
const LINE: usize = 74;
/// Lines repeat after as many.
const ROUND: usize = 95 * LINE;

/// What RFC 864 says: number the printable characters from 0 through 94 and see them as a ring; on
/// line n put the characters n through n + 71; end each line with CR and LF.
fn byte_at(offset: usize) -> u8 {
    let (n, column) = (offset / LINE, offset % LINE);
    match column {
        72 => b'\r',
        73 => b'\n',
        i => b' ' + ((n + i) % 95) as u8,
    }
}

/// Reads the stream and compares it.
struct Reader {
    peer: TcpStream,
    /// Bytes read so far.
    offset: usize,
    /// More than a read brings, from wherever in a round it begins.
    expected: Vec<u8>,
    bytes: Vec<u8>,
}

impl Reader {
    fn new(peer: TcpStream, read_size: usize) -> Reader {
        let expected = (0..ROUND + read_size).map(byte_at).collect();
        Reader { peer, offset: 0, expected, bytes: vec![0; read_size] }
    }

    /// Reads once; 0 at the end of the stream.
    #[track_caller]
    fn read(&mut self) -> usize {
        let n = self.peer.read(&mut self.bytes).unwrap();
        let expected = &self.expected[self.offset % ROUND..];
        assert!(self.bytes[..n] == expected[..n], "after {} bytes", self.offset);
        self.offset += n;
        n
    }

    #[track_caller]
    fn read_until(&mut self, offset: usize) {
        while self.offset < offset {
            assert!(self.read() > 0, "the stream ended after {} bytes", self.offset);
        }
    }

    fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.peer.local_addr().unwrap(), self.peer.peer_addr().unwrap())
    }

    /// Waits until the kernel's buffers at both ends have bytes that cannot go on.
    fn wait_until_stuck(&self) {
        let near = self.ends();
        let far = (near.1, near.0);
        eventually("it waits for the reader", || {
            let unread = kernel::end(near).is_some_and(|end| end.unread > 0);
            unread && kernel::end(far).is_some_and(|end| end.unsent > 0)
        });
    }
}

/// Resident memory of a program, in bytes.
fn memory(program: &Program) -> usize {
    let rollup = proc::read(&format!("{}/smaps_rollup", program.pid()));
    let rss = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
    rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn sends_the_lines_of_rfc_864() {
    alone!().run(|| {
        let chargen = Program::serve("chargen", &[]);
        let received = read_n(&chargen.connect(), 700_000);
        let first = r##" !"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\]^_`abcdefg"##;
        assert_eq!(received[..LINE], *format!("{first}\r\n").as_bytes());
        let differs = received.iter().enumerate().find(|(i, byte)| **byte != byte_at(*i));
        assert_eq!(differs, None);
    });
}

#[test]
fn a_slow_reader_gets_every_byte_in_order() {
    alone!().run(|| {
        let chargen = Program::serve("chargen", &[]);
        let mut reader = Reader::new(chargen.connect(), LINE);
        reader.wait_until_stuck();
        for _ in 0..50 {
            reader.read_until(reader.offset + 1_000);
            reader.wait_until_stuck();
        }
        let mut reader = Reader { offset: reader.offset, ..Reader::new(reader.peer, 100_000) };
        reader.read_until(64 << 20);
    });
}

#[test]
fn readers_at_once_get_the_whole_stream_each() {
    alone!().run(|| {
        for threads in ["0", "2"] {
            let chargen = Program::serve("chargen", &["--threads", threads]);
            thread::scope(|scope| {
                for read_size in [1_000, 7_000, 64_000] {
                    let mut reader = Reader::new(chargen.connect(), read_size);
                    scope.spawn(move || reader.read_until(8 << 20));
                }
            });
        }
    });
}

/// All connections send the same block. A copy for each of them would be 63,270 bytes.
#[test]
fn peers_that_do_not_read_cost_no_memory_for_bytes() {
    alone!().run(|| {
        const PEERS: usize = 40;
        let chargen = Program::serve("chargen", &[]);
        let stuck = || {
            let reader = Reader::new(chargen.connect(), LINE);
            reader.wait_until_stuck();
            reader
        };
        let first = stuck();
        let before = memory(&chargen);
        let others: Vec<_> = (1..PEERS).map(|_| stuck()).collect();
        let more = memory(&chargen).saturating_sub(before);
        assert!(more < others.len() * 20_000, "{more} bytes more");
        for mut reader in others.into_iter().chain([first]) {
            reader.read_until(100_000);
        }
    });
}

#[test]
fn what_a_peer_sends_is_thrown_away_also_if_it_does_not_read() {
    alone!().run(|| {
        let chargen = Program::serve("chargen", &[]);
        let mut reader = Reader::new(chargen.connect(), 64_000);
        reader.wait_until_stuck();
        reader.peer.write_all(&pattern(32 << 20)).unwrap();
        reader.read_until(8 << 20);
    });
}

#[test]
fn a_half_close_does_not_end_the_stream() {
    alone!().run(|| {
        let chargen = Program::serve("chargen", &[]);
        let before = chargen.open_fds();
        let mut reader = Reader::new(chargen.connect(), 64_000);
        reader.peer.shutdown(Shutdown::Write).unwrap();
        // More than was on its way by then.
        reader.read_until(64 << 20);
        drop(reader);
        eventually("a peer that is gone is noticed", || chargen.open_fds() == before);
    });
}

/// And not in the middle of one, although there the kernel has no room for more.
#[test]
fn a_stop_ends_the_stream_at_the_end_of_a_line() {
    alone!().run(|| {
        for (signal, threads) in [(Signal::SIGTERM, "0"), (Signal::SIGINT, "2")] {
            let mut command = Command::new(binary("chargen"));
            command.args(["--listen", "127.0.0.1:0", "--threads", threads]);
            let chargen = Program::spawn(command.env("RUST_LOG", "debug")).listening(1);
            let mut reader = Reader::new(chargen.connect(), 64_000);
            reader.read_until(1 << 20);
            reader.wait_until_stuck();
            chargen.signal(signal);
            while reader.read() > 0 {}
            assert_eq!(reader.offset % LINE, 0, "{} bytes", reader.offset);
            drop(reader);
            let log = chargen.ends_well().log;
            assert!(log.contains(": shut down"), "it was cut: {log}");
            assert!(!log.contains("discarded"), "it went on sending: {log}");
        }
    });
}

/// The peer reads faster than the program can write, and nevertheless its loop answers others.
#[test]
fn a_stream_leaves_others_their_turns() {
    alone!().run(|| {
        let mut command = Command::new(binary("simple_all"));
        let all = Program::spawn(command.args(["--base-port", "0"])).listening(5);
        let [echo, _, _, chargen, _] = all.addrs[..] else { unreachable!() };
        let progress = Arc::new((AtomicUsize::new(0), AtomicBool::new(false)));
        let reader = {
            let progress = progress.clone();
            thread::spawn(move || {
                let (read, enough) = &*progress;
                let (peer, mut bytes) = (connect(chargen), vec![0; 1 << 20]);
                while !enough.load(Ordering::Relaxed) {
                    // The kernel drops what the sender has to copy, so there is always room.
                    let n = recv(peer.as_raw_fd(), &mut bytes, MsgFlags::MSG_TRUNC).unwrap();
                    assert!(n > 0);
                    read.fetch_add(n, Ordering::Relaxed);
                }
            })
        };
        let (read, enough) = &*progress;
        let mut peer = connect(echo);
        for message in 0..100_u32 {
            let before = read.load(Ordering::Relaxed);
            peer.write_all(&message.to_be_bytes()).unwrap();
            assert_eq!(read_n(&peer, 4), message.to_be_bytes());
            eventually("the stream goes on", || read.load(Ordering::Relaxed) > before);
        }
        enough.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
}
