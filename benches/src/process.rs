//! The processes of a measurement: contestants, and the tools that look at them.
//!
//! Each is started through this program's own `launch`, which binds it to a CPU and to the life of
//! its parent: however the kit ends, Ctrl-C included, the kernel kills what it has started.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use std::{fs, thread};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a program may take to start or to end. Valgrind is slow.
const PATIENCE: Duration = Duration::from_secs(15);

/// What runs around a contestant.
pub(crate) enum Around {
    Nothing,
    /// Counts instructions of user space into the file.
    Callgrind(PathBuf),
    /// Counts system calls into the file.
    Strace(PathBuf),
}

/// A contestant that runs.
pub(crate) struct Process {
    child: Child,
    /// The contestant's own, also when a tool is its parent.
    pid: Pid,
    lines: Receiver<String>,
    stoppable: bool,
}

impl Process {
    /// Starts `program` with `words`, on one CPU or, with None, on any.
    pub(crate) fn start<W: AsRef<OsStr>>(
        program: &Path,
        words: &[W],
        cpu: Option<usize>,
        around: &Around,
    ) -> io::Result<Process> {
        let mut all: Vec<OsString> = Vec::new();
        let launch = |all: &mut Vec<OsString>| -> io::Result<()> {
            all.extend([std::env::current_exe()?.into(), "launch".into()]);
            all.push(cpu.map_or_else(|| "any".into(), |cpu| cpu.to_string().into()));
            Ok(())
        };
        launch(&mut all)?;
        match around {
            Around::Nothing => {}
            Around::Callgrind(file) => {
                let mut out = OsString::from("--callgrind-out-file=");
                out.push(file);
                all.extend(["valgrind".into(), "--tool=callgrind".into(), out]);
                // It has much to say about kernels that are younger than itself.
                all.push("--log-file=/dev/null".into());
            }
            Around::Strace(file) => {
                all.extend(["strace".into(), "-c".into(), "-f".into(), "-o".into()]);
                all.push(file.into());
                // The tool's child is not ours, so it needs a leash of its own.
                launch(&mut all)?;
            }
        }
        all.push(program.into());
        all.extend(words.iter().map(|word| word.as_ref().to_owned()));

        let mut child = Command::new(&all[0])
            .args(&all[1..])
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| told(e, format!("cannot start {}", program.display())))?;
        let (to, lines) = mpsc::channel();
        if let Some(out) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(out).lines().map_while(Result::ok) {
                    if to.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let pid = Pid::from_raw(child.id() as i32);
        let stoppable = !matches!(around, Around::Nothing);
        Ok(Process { child, pid, lines, stoppable })
    }

    /// Waits until the server says where it listens.
    pub(crate) fn address(&mut self) -> io::Result<SocketAddr> {
        let until = Instant::now() + PATIENCE;
        while let Some(line) = self.line(until)? {
            if let Some(address) = line.strip_prefix("listening on ") {
                return address
                    .parse()
                    .map_err(|e| io::Error::other(format!("'{address}' is no address: {e}")));
            }
        }
        Err(io::Error::other(format!("ended without listening: {}", self.child.wait()?)))
    }

    /// Waits until the program has ended, and returns what it printed.
    pub(crate) fn output(&mut self, patience: Duration) -> io::Result<Vec<String>> {
        let until = Instant::now() + patience;
        let mut output = Vec::new();
        while let Some(line) = self.line(until)? {
            output.push(line);
        }
        let status = self.child.wait()?;
        if status.success() { Ok(output) } else { Err(io::Error::other(status.to_string())) }
    }

    fn line(&mut self, until: Instant) -> io::Result<Option<String>> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let Some(pid) = line.strip_prefix("pid ") else { return Ok(Some(line)) };
                    self.pid = Pid::from_raw(pid.parse().map_err(|e| told_of(&line, e))?);
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "no sign of life for 15 seconds",
                    ));
                }
            }
        }
    }

    /// CPU time of all its threads so far.
    pub(crate) fn cpu_time(&self) -> io::Result<Duration> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            // A thread may end between the two.
            let Ok(stat) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            nanoseconds += stat
                .split_whitespace()
                .next()
                .and_then(|n| n.parse::<u64>().ok())
                .ok_or_else(|| io::Error::other(format!("no time in schedstat: '{stat}'")))?;
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Bytes of memory that are resident now.
    pub(crate) fn resident(&self) -> io::Result<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid))?;
        rollup
            .lines()
            .find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix(" kB")?.parse().ok())
            .map(|kib: u64| kib * 1024)
            .ok_or_else(|| io::Error::other("no Rss in smaps_rollup"))
    }

    /// Lets it stand still. It does when this returns.
    pub(crate) fn pause(&self) -> io::Result<()> {
        kill(self.pid, Signal::SIGSTOP)?;
        let until = Instant::now() + PATIENCE;
        loop {
            let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
            // The state stands behind the name, which may have any characters in it.
            match stat.rsplit_once(") ").and_then(|(_, rest)| rest.bytes().next()) {
                Some(b'T' | b't') => return Ok(()),
                _ if Instant::now() >= until => {
                    let what = format!("it does not stand still: {stat}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
                _ => thread::yield_now(),
            }
        }
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) -> io::Result<()> {
        Ok(kill(self.pid, Signal::SIGCONT)?)
    }

    /// Ends it; a tool around it has written its file then.
    pub(crate) fn stop(mut self) -> io::Result<()> {
        let signal = if self.stoppable { Signal::SIGTERM } else { Signal::SIGKILL };
        kill(self.pid, signal)?;
        let until = Instant::now() + PATIENCE;
        while self.line(until)?.is_some() {}
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended long ago; then there is nothing to do.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// `launch CPU PROGRAM WORDS..`: becomes the program. Returns only when it cannot.
pub(crate) fn launch(mut words: impl Iterator<Item = OsString>) -> io::Error {
    let parent = nix::unistd::getppid();
    let (Some(cpu), Some(program)) = (words.next(), words.next()) else {
        return io::Error::other("launch wants a CPU and a program");
    };
    if let Err(e) = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL) {
        return told(e.into(), "cannot follow the parent's death".into());
    }
    // It may have died before that.
    if nix::unistd::getppid() != parent {
        return io::Error::other("the parent is gone");
    }
    if let Some(cpu) = cpu.to_str().and_then(|cpu| cpu.parse().ok())
        && let Err(e) = pin(cpu)
    {
        return e;
    }
    println!("pid {}", std::process::id());
    let e = Command::new(&program).args(words).exec();
    told(e, format!("cannot run {}", Path::new(&program).display()))
}

/// Binds the calling thread to one CPU.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|e| told(e.into(), format!("cannot be bound to CPU {cpu}")))
}

/// Whether a program of this name can be started.
pub(crate) fn is_installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// The same error with what was tried in front of it.
pub(crate) fn told(e: io::Error, what: String) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}"))
}

fn told_of(line: &str, e: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("'{line}': {e}"))
}
