//! The examples as a user meets them: real binaries with arguments, output, a log, signals and an
//! exit status.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{SLOW_CALLBACK, connect, eventually, proc, within};

/// An example's binary: beside the tests' own, where `cargo test` has just built it.
pub fn binary(example: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let path = this.parent().unwrap().with_file_name("examples").join(example);
    assert!(path.exists(), "{} is missing: run `cargo build --examples`", path.display());
    path
}

/// Runs an example to its end. Lines about slow callbacks are not among what it says.
pub fn run(example: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary(example));
    let mut output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    output.stderr = without_slow_callbacks(&log).into_bytes();
    output
}

/// A log without the lines about slow callbacks: on a busy machine any callback may be slow.
pub fn without_slow_callbacks(log: &str) -> String {
    log.split_inclusive('\n').filter(|line| !line.contains(SLOW_CALLBACK)).collect()
}

/// strace(1) of what is added to the command, told all this. The test is skipped if there is none.
pub fn traced(how: &[&str]) -> Command {
    let mut command = Command::new("strace");
    if Command::new("strace").arg("-V").output().is_err() {
        proc::skip("there is no strace on this machine");
    }
    // The program is our child then, and strace its.
    command.args(["-D", "-f"]).args(how);
    command
}

/// An example at work; killed when dropped.
pub struct Program {
    child: Child,
    /// What it says on standard output, line by line.
    pub lines: Receiver<String>,
    log: Arc<Mutex<String>>,
    log_reader: Option<JoinHandle<()>>,
    /// Where it listens, if it does.
    pub addrs: Vec<SocketAddr>,
}

/// Nobody is left to kill it when the test is killed.
#[cfg(target_os = "linux")]
fn die_with_us(command: &mut Command) {
    use std::os::unix::process::CommandExt;

    let die_with_us = || Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?);
    // SAFETY: prctl(2) may be called between fork and exec.
    unsafe { command.pre_exec(die_with_us) };
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// What it wrote to standard error.
    pub log: String,
}

impl Program {
    /// Starts a server on a free port and waits until it listens.
    pub fn serve(example: &str, arguments: &[&str]) -> Program {
        let mut command = Command::new(binary(example));
        command.args(["--listen", "127.0.0.1:0"]).args(arguments);
        Program::spawn(&mut command).listening(1)
    }

    pub fn spawn(command: &mut Command) -> Program {
        Program::with_stdout(command, Stdio::piped())
    }

    /// Starts one whose standard output nobody reads: `.. | true`.
    pub fn unread(command: &mut Command) -> Program {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Program::with_stdout(command, writer.into())
    }

    fn with_stdout(command: &mut Command, stdout: Stdio) -> Program {
        #[cfg(target_os = "linux")]
        die_with_us(command);
        let mut child =
            command.stdin(Stdio::piped()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let (send, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take().map(BufReader::new) {
            thread::spawn(move || stdout.lines().try_for_each(|line| send.send(line.unwrap())));
        }
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let log_reader = {
            let (log, mut line) = (log.clone(), String::new());
            thread::spawn(move || {
                while stderr.read_line(&mut line).unwrap() > 0 {
                    log.lock().unwrap().push_str(&without_slow_callbacks(&line));
                    line.clear();
                }
            })
        };
        Program { child, lines, log, log_reader: Some(log_reader), addrs: Vec::new() }
    }

    /// Waits for the lines that tell where it listens.
    #[track_caller]
    pub fn listening(mut self, times: usize) -> Program {
        for _ in 0..times {
            let line = within(&self.lines);
            let addr = line.strip_prefix("listening on ").expect("what the first line says");
            self.addrs.push(addr.parse().unwrap());
        }
        self
    }

    pub fn addr(&self) -> SocketAddr {
        self.addrs[0]
    }

    pub fn connect(&self) -> TcpStream {
        connect(self.addr())
    }

    pub fn stdin(&mut self) -> &mut ChildStdin {
        self.child.stdin.as_mut().unwrap()
    }

    pub fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Whether a handler of its own waits for the signal.
    pub fn catches(&self, signal: Signal) -> bool {
        // proc(5): bit 0 is signal 1.
        let status = proc::read(&format!("{}/status", self.pid()));
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        // It has none when it has ended.
        let caught = caught.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap());
        caught & (1 << (signal as u32 - 1)) != 0
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn threads(&self) -> usize {
        proc::list(&format!("{}/task", self.pid())).count()
    }

    pub fn open_fds(&self) -> usize {
        self.fds().count()
    }

    pub fn open_sockets(&self) -> usize {
        self.open_files().filter(|file| file.to_string_lossy().starts_with("socket:")).count()
    }

    /// What its descriptors lead to.
    pub fn open_files(&self) -> impl Iterator<Item = PathBuf> {
        // A descriptor may be closed while we look.
        self.fds().filter_map(|fd| std::fs::read_link(fd).ok())
    }

    fn fds(&self) -> impl Iterator<Item = PathBuf> {
        proc::list(&format!("{}/fd", self.pid()))
    }

    /// CPU time it has spent, in ticks of 10 ms.
    pub fn ticks(&self) -> u64 {
        // proc(5): fields 14 and 15; the name before them has no spaces.
        let stat = proc::read(&format!("{}/stat", self.pid()));
        let fields = stat.split_whitespace().skip(13).take(2);
        fields.map(|field| field.parse::<u64>().unwrap()).sum()
    }

    /// What it has written to standard error so far, in whole lines.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let child = RefCell::new(&mut self.child);
        eventually("the program ends", || child.borrow_mut().try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap();
        self.log_reader.take().unwrap().join().unwrap();
        Ended { code: status.code(), signal: status.signal(), log: self.log() }
    }

    /// Waits for its end, which is a good one.
    #[track_caller]
    pub fn ends_well(self) -> Ended {
        let ended = self.wait();
        assert_eq!((ended.code, ended.signal), (Some(0), None), "{}", ended.log);
        ended
    }

    /// Tells it to end and checks that it does so well.
    #[track_caller]
    pub fn ends_well_on(self, signal: Signal) -> Ended {
        self.signal(signal);
        self.ends_well()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
