//! The example netcat, end to end: on an event loop, by blocking threads, and one with the other.

#![allow(clippy::unwrap_used)]

mod common;

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use common::program::{binary, run, without_slow_callbacks};
use common::{DEADLINE, eventually, pattern, proc, read_n, read_to_end, reset};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// On an event loop, and with threads.
const WAYS: [&[&str]; 2] = [&[], &["--blocking"]];

/// A netcat at work; killed when dropped.
struct Cat {
    child: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Cat {
    fn spawn(arguments: &[&str], stdin: Stdio, stdout: Stdio) -> Cat {
        let mut command = Command::new(binary("netcat"));
        command.args(arguments).stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Cat { child, stderr }
    }

    /// One that is connected to `address`, with pipes.
    fn call(way: &[&str], address: SocketAddr) -> Cat {
        Cat::spawn(&[way, &[&address.to_string()]].concat(), Stdio::piped(), Stdio::piped())
    }

    /// One that listens, with pipes, and where.
    fn listen(way: &[&str]) -> (Cat, SocketAddr) {
        let arguments = [way, &["-l", "127.0.0.1:0"]].concat();
        let mut cat = Cat::spawn(&arguments, Stdio::piped(), Stdio::piped());
        let mut line = String::new();
        cat.stderr.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").unwrap();
        (cat, address.parse().unwrap())
    }

    fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn proc(&self, file: &str) -> String {
        proc::read(&format!("{}/{file}", self.child.id()))
    }

    /// Its status, and what it has said on standard error.
    #[track_caller]
    fn wait(mut self) -> (Option<i32>, String) {
        eventually("netcat ends", || self.proc("stat").contains(") Z "));
        let mut log = String::new();
        self.stderr.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), without_slow_callbacks(&log))
    }

    #[track_caller]
    fn ends_well(self) {
        let (code, log) = self.wait();
        assert_eq!(code, Some(0), "{log}");
        assert!(!log.contains("ERROR"), "{log}");
    }
}

impl Drop for Cat {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// A netcat of this way that is connected, and the other end.
fn called(way: &[&str]) -> (Cat, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let cat = Cat::call(way, listener.local_addr().unwrap());
    (cat, accept(&listener))
}

/// Each of the ways calls each of them; megabytes go both ways at once.
#[test]
fn all_bytes_arrive_both_ways_at_once_and_then_both_end() {
    const LEN: usize = (8 << 20) + 12_345;
    alone!().run(|| {
        let (there, back) = (pattern(LEN), pattern(LEN + 1)[1..].to_vec());
        for listens in WAYS {
            for calls in WAYS {
                let (mut listener, address) = Cat::listen(listens);
                let mut caller = Cat::call(calls, address);
                thread::scope(|scope| {
                    for (from, to, bytes) in [
                        (caller.stdin(), listener.stdout(), &there),
                        (listener.stdin(), caller.stdout(), &back),
                    ] {
                        let (mut from, mut to) = (from, to);
                        scope.spawn(move || from.write_all(bytes).unwrap());
                        scope.spawn(move || {
                            let mut received = Vec::new();
                            to.read_to_end(&mut received).unwrap();
                            assert!(received == *bytes, "{} bytes", received.len());
                        });
                    }
                });
                listener.ends_well();
                caller.ends_well();
            }
        }
    });
}

/// A file in a temporary folder, removed when dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Temporary {
        Temporary(std::env::temp_dir().join(format!("ruduo-netcat-{name}-{}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// epoll watches no files.
#[test]
fn standard_input_and_output_may_be_files() {
    const LEN: usize = (5 << 20) + 1;
    alone!().run(|| {
        let (source, target) = (Temporary::new("source"), Temporary::new("target"));
        let bytes = pattern(LEN);
        fs::write(&source.0, &bytes).unwrap();
        for way in WAYS {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let (input, output) =
                (File::open(&source.0).unwrap(), File::create(&target.0).unwrap());
            let cat = Cat::spawn(&[way, &[&address[..]]].concat(), input.into(), output.into());
            let mut peer = accept(&listener);
            // All of it before anything is read: the file has to wait.
            peer.write_all(&bytes).unwrap();
            assert!(read_to_end(&peer).unwrap() == bytes);
            drop(peer);
            cat.ends_well();
            assert!(fs::read(&target.0).unwrap() == bytes);
        }
    });
}

#[test]
fn the_end_of_the_input_is_the_peers_end_and_its_answer_arrives() {
    alone!().run(|| {
        for way in WAYS {
            let (mut cat, mut peer) = called(way);
            let mut stdin = cat.stdin();
            stdin.write_all(b"question").unwrap();
            drop(stdin);
            assert_eq!(read_to_end(&peer).unwrap(), b"question");
            peer.write_all(b"answer").unwrap();
            drop(peer);
            let mut answer = Vec::new();
            cat.stdout().read_to_end(&mut answer).unwrap();
            assert_eq!(answer, b"answer");
            cat.ends_well();
        }
    });
}

#[test]
fn the_peers_end_is_that_of_the_output_and_the_input_goes_on() {
    alone!().run(|| {
        for way in WAYS {
            let (mut cat, mut peer) = called(way);
            let mut stdin = cat.stdin();
            peer.write_all(b"that is all").unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            let mut all = Vec::new();
            cat.stdout().read_to_end(&mut all).unwrap();
            assert_eq!(all, b"that is all");
            for _ in 0..3 {
                stdin.write_all(b"more").unwrap();
                assert_eq!(read_n(&peer, 4), b"more");
            }
            drop(stdin);
            assert_eq!(read_to_end(&peer).unwrap(), b"");
            cat.ends_well();
        }
    });
}

/// `netcat .. | head -1`.
#[test]
fn when_nobody_reads_the_output_any_more_it_ends_well() {
    alone!().run(|| {
        for way in WAYS {
            let (mut cat, mut peer) = called(way);
            // Held, so that its end is not why.
            let stdin = cat.stdin();
            let mut head = BufReader::new(cat.stdout());
            peer.write_all(b"first\nsecond\n").unwrap();
            let mut line = String::new();
            head.read_line(&mut line).unwrap();
            assert_eq!(line, "first\n");
            drop(head);
            if way.is_empty() {
                // The loop is told, whether or not there is something to write.
                assert!(read_to_end(&peer).is_ok_and(|rest| rest.is_empty()));
            } else {
                while peer.write_all(&[b'x'; 1000]).is_ok() {}
            }
            cat.ends_well();
            drop(stdin);
        }
    });
}

#[test]
fn b11_what_came_before_a_reset_arrives_and_the_end_is_a_failure() {
    alone!().run(|| {
        for way in WAYS {
            let (mut cat, mut peer) = called(way);
            let stdin = cat.stdin();
            let mut stdout = cat.stdout();
            peer.write_all(b"so far").unwrap();
            let mut six = [0; 6];
            stdout.read_exact(&mut six).unwrap();
            reset(peer);
            let (code, log) = cat.wait();
            assert_eq!((code, log.lines().count()), (Some(1), 1), "{log}");
            assert!(log.contains("reset"), "{log}");
            assert_eq!(&six, b"so far");
            drop(stdin);
        }
    });
}

#[test]
fn a_signal_ends_it_well_in_whatever_state() {
    alone!().run(|| {
        for way in WAYS {
            for signal in [Signal::SIGINT, Signal::SIGTERM] {
                let (listening, _) = Cat::listen(way);
                listening.signal(signal);
                listening.ends_well();

                let (mut cat, mut peer) = called(way);
                let mut stdin = cat.stdin();
                stdin.write_all(b"before").unwrap();
                assert_eq!(read_n(&peer, 6), b"before");
                cat.signal(signal);
                assert_eq!(read_to_end(&peer).unwrap(), b"");
                peer.write_all(b"good bye").unwrap();
                drop(peer);
                let mut last = Vec::new();
                cat.stdout().read_to_end(&mut last).unwrap();
                assert_eq!(last, b"good bye");
                cat.ends_well();
                drop(stdin);
            }
        }
    });
}

/// What it has not read is for whoever reads it next.
#[test]
fn after_a_signal_it_leaves_standard_input_alone() {
    alone!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (mut next, mut stdin) = std::io::pipe().unwrap();
        let input = Stdio::from(next.try_clone().unwrap());
        let cat = Cat::spawn(&[&address], input, Stdio::piped());
        let peer = accept(&listener);
        stdin.write_all(b"before").unwrap();
        assert_eq!(read_n(&peer, 6), b"before");
        cat.signal(Signal::SIGTERM);
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        stdin.write_all(b"after").unwrap();
        drop(stdin);
        drop(peer);
        cat.ends_well();
        let mut rest = Vec::new();
        next.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"after");
    });
}

/// It has its time, and not more; nor does it matter that nobody reads what came. Without a signal it
/// has as much as it likes.
#[cfg(target_os = "linux")]
#[test]
fn a_peer_that_does_not_finish_after_a_signal_is_cut() {
    alone!().run(|| {
        let (mut patient, mut late) = called(&[]);
        drop(patient.stdin());
        assert_eq!(read_to_end(&late).unwrap(), b"");
        let cats = WAYS.map(|way| {
            let (mut cat, mut peer) = called(way);
            let ends = (cat.stdin(), cat.stdout());
            // More than a pipe keeps.
            peer.write_all(&pattern(160_000)).unwrap();
            eventually("the pipe is full", || waiting(&ends.1, libc::FIONREAD) >= PIPE);
            cat.signal(Signal::SIGTERM);
            assert_eq!(read_to_end(&peer).unwrap(), b"");
            (cat, peer, ends)
        });
        // The rest is held, so that its end is not why.
        for (cat, _peer, _ends) in cats {
            cat.ends_well();
        }
        late.write_all(b"late").unwrap();
        drop(late);
        let mut received = Vec::new();
        patient.stdout().read_to_end(&mut received).unwrap();
        assert_eq!(received, b"late");
        patient.ends_well();
    });
}

/// That it cannot send any more is no reason to lose what the peer has sent; but it is a failure.
#[cfg(target_os = "linux")]
#[test]
fn what_came_before_a_reset_is_written_however_late() {
    alone!().run(|| {
        for way in WAYS {
            let (mut cat, mut peer) = called(way);
            let (mut stdin, mut stdout) = (cat.stdin(), cat.stdout());
            let bytes = pattern(160_000);
            peer.write_all(&bytes).unwrap();
            eventually("the pipe is full", || waiting(&stdout, libc::FIONREAD) >= PIPE);
            eventually("all is there", || waiting(&peer, libc::TIOCOUTQ) == 0);
            reset(peer);
            // It hears of that by this, or has heard.
            stdin.write_all(b"too late").unwrap();
            let mut all = Vec::new();
            stdout.read_to_end(&mut all).unwrap();
            assert!(all == bytes, "{way:?}: {} bytes", all.len());
            let (code, log) = cat.wait();
            assert_eq!((code, log.lines().count()), (Some(1), 1), "{log}");
            drop(stdin);
        }
    });
}

/// What a pipe keeps.
#[cfg(target_os = "linux")]
const PIPE: libc::c_int = 64 * 1024;

/// How many bytes wait in a pipe (FIONREAD), or have yet to arrive at a peer (TIOCOUTQ).
#[cfg(target_os = "linux")]
fn waiting(at: &impl AsRawFd, which: libc::Ioctl) -> libc::c_int {
    let mut n = 0;
    // SAFETY: the number is valid for writing.
    let outcome = unsafe { libc::ioctl(at.as_raw_fd(), which, &raw mut n) };
    assert_eq!(outcome, 0);
    n
}

#[cfg(target_os = "linux")]
#[test]
fn while_nobody_reads_its_output_it_sends_all_the_same() {
    alone!().run(|| {
        for way in WAYS {
            let (mut cat, peer) = called(way);
            let (mut stdin, mut stdout) = (cat.stdin(), cat.stdout());
            let bytes = &pattern(1 << 20);
            thread::scope(|scope| {
                scope.spawn(|| (&peer).write_all(bytes).unwrap());
                eventually("the pipe is full", || waiting(&stdout, libc::FIONREAD) >= PIPE);
                // There is some room now, but not for all that waits.
                let mut received = vec![0; 10_000];
                stdout.read_exact(&mut received).unwrap();
                for _ in 0..10 {
                    stdin.write_all(b"still here").unwrap();
                    assert_eq!(read_n(&peer, 10), b"still here");
                }
                drop(stdin);
                received.resize(bytes.len(), 0);
                stdout.read_exact(&mut received[10_000..]).unwrap();
                assert!(received == *bytes);
            });
            drop(peer);
            cat.ends_well();
        }
    });
}

#[test]
fn who_comes_second_is_turned_away_and_the_first_stays() {
    alone!().run(|| {
        for way in WAYS {
            let (mut cat, address) = Cat::listen(way);
            let (mut stdin, mut stdout) = (cat.stdin(), cat.stdout());
            let mut first = common::connect(address);
            first.write_all(b"first").unwrap();
            let mut five = [0; 5];
            stdout.read_exact(&mut five).unwrap();
            assert_eq!(&five, b"first");
            // Refused, or at once at an end, of whatever kind.
            if let Ok(second) = TcpStream::connect(address) {
                second.set_read_timeout(Some(DEADLINE)).unwrap();
                let end = (&second).read(&mut five);
                assert!(!matches!(&end, Err(e) if e.kind() == ErrorKind::WouldBlock), "{end:?}");
                assert!(!matches!(&end, Ok(1..)), "{end:?}");
            }
            stdin.write_all(b"hello").unwrap();
            assert_eq!(read_n(&first, 5), b"hello");
            drop((stdin, first));
            cat.ends_well();
        }
    });
}

/// What is behind them is also the shell's, and outlives us.
#[test]
fn what_it_has_inherited_stays_blocking() {
    alone!().run(|| {
        let (mut cat, mut peer) = called(&[]);
        let (mut stdin, mut stdout) = (cat.stdin(), cat.stdout());
        stdin.write_all(b"to").unwrap();
        assert_eq!(read_n(&peer, 2), b"to");
        peer.write_all(b"fro").unwrap();
        stdout.read_exact(&mut [0; 3]).unwrap();
        let mut pipes = 0;
        for path in proc::list(&format!("{}/fd", cat.child.id())) {
            let number = path.file_name().unwrap().to_str().unwrap();
            if fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().starts_with("pipe:")) {
                let info = cat.proc(&format!("fdinfo/{number}"));
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
                let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
                assert_eq!(flags & libc::O_NONBLOCK, 0, "descriptor {number}: {info}");
                pipes += 1;
            }
        }
        assert!(pipes >= 3, "{pipes} pipes");
        drop((stdin, peer));
        cat.ends_well();
    });
}

/// How it stands, and the CPU time it has used.
fn activity(cat: &Cat) -> Vec<String> {
    let stat = cat.proc("stat");
    let after_name = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let fields: Vec<_> = after_name.map(str::to_owned).collect();
    vec![fields[0].clone(), fields[11].clone(), fields[12].clone()]
}

/// Both ends send, and for a long time neither of them reads.
#[test]
fn b26_who_does_not_read_makes_nothing_grow_and_loses_nothing() {
    const LEN: usize = 64 << 20;
    alone!().run(|| {
        let (mut cat, peer) = called(&[]);
        let (mut stdin, mut stdout) = (cat.stdin(), cat.stdout());
        let bytes = &pattern(LEN);
        thread::scope(|scope| {
            scope.spawn(move || stdin.write_all(bytes).unwrap());
            scope.spawn(|| {
                (&peer).write_all(bytes).unwrap();
                peer.shutdown(Shutdown::Write).unwrap();
            });
            let (last, quiet) = (RefCell::new(Vec::new()), Cell::new(0));
            eventually("all buffers are full, and it sleeps", || {
                let now = activity(&cat);
                quiet.set(if now[0] == "S" && *last.borrow() == now { quiet.get() + 1 } else { 0 });
                last.replace(now);
                quiet.get() > 100
            });
            let status = cat.proc("status");
            let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            let most: usize = most.trim().strip_suffix(" kB").unwrap().parse().unwrap();
            assert!(most < 16 * 1024, "{most} KiB");
            scope.spawn(|| assert!(read_to_end(&peer).unwrap() == *bytes));
            let mut received = Vec::new();
            stdout.read_to_end(&mut received).unwrap();
            assert!(received == *bytes);
        });
        drop(peer);
        cat.ends_well();
    });
}

/// Half of it must not look like all of it.
#[test]
fn standard_input_that_cannot_be_read_is_a_failure_and_a_reset_for_the_peer() {
    alone!().run(|| {
        for way in WAYS {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let folder = File::open(std::env::temp_dir()).unwrap();
            let cat = Cat::spawn(&[way, &[&address]].concat(), folder.into(), Stdio::piped());
            let outcome = read_to_end(&accept(&listener));
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionReset, "{way:?}");
            let (code, log) = cat.wait();
            assert_eq!((code, log.lines().count()), (Some(1), 1), "{log}");
            assert!(log.contains("reading standard input: Is a directory"), "{log}");
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
fn standard_output_that_takes_no_more_is_a_failure_and_a_reset_for_the_peer() {
    alone!().run(|| {
        for way in WAYS {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let full = File::options().write(true).open("/dev/full").unwrap();
            let mut cat = Cat::spawn(&[way, &[&address]].concat(), Stdio::piped(), full.into());
            // Held, so that its end is not why.
            let stdin = cat.stdin();
            let mut peer = accept(&listener);
            peer.write_all(b"hello").unwrap();
            let outcome = read_to_end(&peer);
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionReset, "{way:?}");
            let (code, log) = cat.wait();
            assert_eq!((code, log.lines().count()), (Some(1), 1), "{log}");
            assert!(log.contains("writing to standard output: No space left"), "{log}");
            drop(stdin);
        }
    });
}

#[test]
fn where_nobody_listens_or_what_is_no_address_gets_one_line() {
    alone!().run(|| {
        let nobody = common::nobody().to_string();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        for way in WAYS {
            for (arguments, code) in [
                (&[&nobody[..]][..], 1),
                (&["-l", &address], 1),
                (&[], 2),
                (&["nowhere"], 2),
                (&["nowhere:0"], 2),
                (&["-l", "nowhere"], 2),
                (&["a:1", "b:2"], 2),
                (&["-l", "127.0.0.1:0", "b:2"], 2),
            ] {
                let output = run("netcat", &[way, arguments].concat());
                let text = String::from_utf8(output.stderr).unwrap();
                assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
                assert_eq!(text.lines().count(), 1, "{text}");
                assert!(output.stdout.is_empty());
            }
        }
    });
}
