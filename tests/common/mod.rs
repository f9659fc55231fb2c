//! What the tests share: a process of their own with gates at its end, servers on a thread,
//! peers with deadlines.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

pub mod proc;
pub mod program;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ruduo::{EventLoop, EventLoopBuilder, LoopHandle, LoopThread, PollerKind, ServerHandle};

/// How long to wait for what must happen. Generous, for a slow machine; a passing test never
/// waits for it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The name of the test function this stands in, as libtest knows it.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        let name = std::any::type_name_of_val(&here);
        let name = name.strip_suffix("::here").unwrap();
        &name[name.find("::").unwrap() + 2..]
    }};
}

/// Runs a test in a process of its own, and fails it if that process leaks a descriptor or a
/// thread, or logs an unexpected line at warn or above.
///
/// ```ignore
/// #[test]
/// fn b23_epipe_never_kills_the_process() {
///     alone!().run(|| { /* ... */ });
/// }
/// ```
#[macro_export]
macro_rules! alone {
    () => {
        $crate::common::Alone::new($crate::test_name!())
    };
}

/// As [`alone!`], in one process after the other for each poller that this system has; or for the
/// one that `RUDUO_POLLER` names, if it is set. In there that variable names it.
#[macro_export]
macro_rules! each_poller {
    () => {
        alone!().on_each_poller()
    };
}

#[derive(Clone)]
pub struct Alone {
    name: &'static str,
    /// The process's `RUDUO_POLLER`; `None` leaves it as it is.
    pollers: Vec<Option<PollerKind>>,
    under: Vec<String>,
    envs: Vec<(&'static str, OsString)>,
    logs: Vec<&'static str>,
    fds: bool,
}

/// What the line about a slow callback says.
pub const SLOW_CALLBACK: &str = "kept the loop of thread";

const CHILD: &str = "RUDUO_TEST_CHILD";
const POLLER: &str = "RUDUO_POLLER";

impl Alone {
    pub fn new(name: &'static str) -> Alone {
        let (under, envs, logs) = (Vec::new(), Vec::new(), Vec::new());
        Alone { name, pollers: vec![None], under, envs, logs, fds: true }
    }

    /// Whether this is the test's own process, and not the one that starts it.
    pub fn is_own_process() -> bool {
        std::env::var_os(CHILD).is_some()
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn on_each_poller(mut self) -> Alone {
        if std::env::var_os(POLLER).is_none() {
            self.pollers = PollerKind::available().iter().copied().map(Some).collect();
        }
        self
    }

    /// For a test of what only this poller does. It is skipped, loudly, if there is none.
    pub fn on_poller(mut self, kind: PollerKind) -> Alone {
        self.pollers = vec![Some(kind)];
        self
    }

    /// Starts the process by a command that is put before it, for example strace with a fault to
    /// inject. The test is skipped, loudly, if there is no such command.
    pub fn under(mut self, command: &[&str]) -> Alone {
        self.under = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Sets a variable of the process's environment.
    pub fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Alone {
        self.envs.push((name, value.into()));
        self
    }

    /// At least one log line at warn or above contains `text`. Lines that contain none of the
    /// expected texts fail the test.
    pub fn expect_log(mut self, text: &'static str) -> Alone {
        self.logs.push(text);
        self
    }

    /// Says that the test is not run, and why, also if nobody asks what the tests print.
    pub fn skip(&self, why: &str) {
        let _ = writeln!(io::stderr(), "SKIPPED {}: {why}", self.name);
    }

    pub fn run(self, body: impl FnOnce()) {
        if Alone::is_own_process() {
            self.run_here(body);
            return;
        }
        if let Some(program) = self.under.first()
            && Command::new(program).arg("--version").output().is_err()
        {
            return self.skip(&format!("there is no {program} on this machine"));
        }
        for poller in &self.pollers {
            match poller {
                Some(kind) if !PollerKind::available().contains(kind) => {
                    self.skip(&format!("there is no {kind} on this system"));
                }
                _ => self.run_process(*poller),
            }
        }
    }

    fn run_process(&self, poller: Option<PollerKind>) {
        let this = std::env::current_exe().unwrap();
        let mut words = self.under.clone();
        words.push(this.to_str().unwrap().to_owned());
        let folder = Folder::new();
        let output = Command::new(&words[0])
            .args(&words[1..])
            .args(["--exact", self.name, "--nocapture", "--test-threads=1"])
            .env(CHILD, "1")
            .env("TMPDIR", &folder.0)
            .envs(poller.map(|kind| (POLLER, kind.to_string())))
            .envs(self.envs.iter().cloned())
            .output()
            .unwrap();
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        let text = String::from_utf8_lossy(&text);
        if let Some((_, why)) = text.split_once(proc::SKIP) {
            return self.skip(why.lines().next().unwrap_or_default());
        }
        let on = poller.map(|kind| format!(" on {kind}")).unwrap_or_default();
        assert!(
            output.status.success() && text.contains("1 passed"),
            "the test's own process failed{on} ({}):\n{text}",
            output.status
        );
        // What it could not do, it says in a line like this.
        for why in text.lines().filter_map(|line| line.strip_prefix("SKIPPED: ")) {
            self.skip(why);
        }
    }

    fn run_here(self, body: impl FnOnce()) {
        // A test that hangs ends by SIGALRM, and the process that started it reports that.
        nix::unistd::alarm::set(300);
        install_logger();
        let (fds, threads) = (open_fds(), thread_count());
        body();
        eventually("all threads have ended", || thread_count() <= threads);
        if self.fds {
            eventually("all descriptors are closed", || open_fds().len() <= fds.len());
            assert_eq!(open_fds(), fds, "descriptors after the test and before");
        }
        let lines = logs();
        for text in &self.logs {
            assert!(lines.iter().any(|line| line.contains(text)), "no log line says {text:?}");
        }
        for line in &lines {
            let expected = self.logs.iter().any(|text| line.contains(text));
            // On a busy machine any callback may be slow.
            assert!(expected || line.contains(SLOW_CALLBACK), "unexpected log: {line}");
        }
    }
}

/// Where the process of a test has its files and sockets: servers on Unix sockets wait for each other in
/// a folder. It is removed with what is left there.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ruduo-{}-{number}", std::process::id());
        let folder = Folder(std::env::temp_dir().join(name));
        // It may be there if a process of this number was killed.
        folder.remove();
        std::fs::create_dir(&folder.0).unwrap();
        folder
    }

    fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Descriptors and what they lead to.
#[cfg(target_os = "linux")]
pub fn open_fds() -> BTreeMap<String, String> {
    let entry = |path: std::path::PathBuf| {
        let target = std::fs::read_link(&path).ok()?;
        let kind = target.to_string_lossy().into_owned();
        // The directory being listed is open itself.
        (!kind.starts_with("/proc/"))
            .then(|| (path.file_name().unwrap().to_string_lossy().into_owned(), kind))
    };
    proc::list("self/fd").filter_map(entry).collect()
}

/// Descriptors and what they are, as far as the system tells: their number is asked of each that
/// there may be.
#[cfg(not(target_os = "linux"))]
pub fn open_fds() -> BTreeMap<String, String> {
    use nix::sys::resource::{Resource, getrlimit};
    use std::os::fd::BorrowedFd;

    const MOST: i32 = 65_536;
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The limit may have been lowered below what is open already.
    let numbers = 0..i32::try_from(limit).unwrap_or(MOST).clamp(1024, MOST);
    let entry = |fd: i32| {
        // SAFETY: a number that is no descriptor is an error, and nothing else is done with it.
        let stat = nix::sys::stat::fstat(unsafe { BorrowedFd::borrow_raw(fd) }).ok()?;
        Some((fd.to_string(), format!("{:o}:{}", stat.st_mode, stat.st_ino)))
    };
    numbers.filter_map(entry).collect()
}

/// How many threads there are; where the system has no simple answer, as many as always.
fn thread_count() -> usize {
    if cfg!(target_os = "linux") { proc::list("self/task").count() } else { 1 }
}

/// Sees to it that this process, and those it starts, may have so many descriptors. False if that
/// can't be.
pub fn allow_descriptors(enough: u64) -> bool {
    use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

    // FreeBSD counts in signed numbers.
    let enough = enough as rlim_t;
    let is_allowed = || getrlimit(Resource::RLIMIT_NOFILE).unwrap().0 >= enough;
    if !is_allowed() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // What is refused, or cut to what the system has at most, is seen then.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, enough, hard.max(enough));
    }
    is_allowed()
}

/// Waits for a condition that nobody announces (the kernel's, for example). Yields between looks;
/// fails after the deadline.
#[track_caller]
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "not within the deadline: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Receives what must come.
#[track_caller]
pub fn within<T>(receiver: &Receiver<T>) -> T {
    receiver.recv_timeout(DEADLINE).expect("nothing came within the deadline")
}

/// Runs a loop until something ends it, which must come.
#[track_caller]
pub fn runs_to_its_end(event_loop: &EventLoop) {
    let in_time = Rc::new(Cell::new(true));
    let late = in_time.clone();
    event_loop.run_after(DEADLINE, move |event_loop| {
        late.set(false);
        event_loop.quit();
    });
    event_loop.run().unwrap();
    assert!(in_time.get(), "nothing ended the loop within the deadline");
}

static LOGS: Mutex<Vec<String>> = Mutex::new(Vec::new());
static INFOS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Recorder;

impl log::Log for Recorder {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }
    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let line = format!("{} {}: {}", record.level(), record.target(), record.args());
            if record.level() == log::Level::Info {
                INFOS.lock().unwrap().push(line);
                return;
            }
            eprintln!("{line}");
            LOGS.lock().unwrap().push(line);
        }
    }
    fn flush(&self) {}
}

pub fn install_logger() {
    if log::set_logger(&Recorder).is_ok() {
        // Everything is formatted as if it were wanted, so that no log line can be wrong.
        log::set_max_level(log::LevelFilter::Debug);
    }
}

/// The lines at warn or above so far.
pub fn logs() -> Vec<String> {
    LOGS.lock().unwrap().clone()
}

/// The lines at info since the last call.
pub fn take_infos() -> Vec<String> {
    std::mem::take(&mut *INFOS.lock().unwrap())
}

/// The lines at warn or above since the last call, but for those about slow callbacks: on a busy
/// machine any callback is slow.
pub fn take_logs() -> Vec<String> {
    let mut lines = std::mem::take(&mut *LOGS.lock().unwrap());
    lines.retain(|line| !line.contains(SLOW_CALLBACK));
    lines
}

/// A server on a loop of its own thread. Dropping it quits the loop and waits for the thread.
pub struct Running {
    pub server: ServerHandle,
    pub thread: LoopThread,
}

impl Running {
    pub fn addr(&self) -> SocketAddr {
        self.server.local_addr().as_ip().unwrap()
    }

    pub fn event_loop(&self) -> &LoopHandle {
        self.thread.handle()
    }

    pub fn connect(&self) -> TcpStream {
        connect(self.addr())
    }
}

/// Starts what `setup` describes:
/// `serve(|event_loop| TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(..).start())`.
pub fn serve(
    setup: impl FnOnce(&EventLoop) -> io::Result<ServerHandle> + Send + 'static,
) -> Running {
    serve_on(EventLoop::builder(), setup)
}

pub fn serve_on(
    builder: EventLoopBuilder,
    setup: impl FnOnce(&EventLoop) -> io::Result<ServerHandle> + Send + 'static,
) -> Running {
    let (send, receive) = std::sync::mpsc::channel();
    let thread = LoopThread::spawn("test-loop", builder, move |event_loop| {
        send.send(setup(event_loop)?).unwrap();
        Ok(())
    })
    .unwrap();
    Running { server: within(&receive), thread }
}

/// A connected peer whose reads and writes fail after the deadline.
pub fn connect(addr: impl ToSocketAddrs) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// An address at which nobody listens, nor will by chance: on Linux, where each process of a test has an
/// IP address of its own.
pub fn nobody() -> SocketAddr {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let own = if cfg!(target_os = "linux") { [127, 64 + a % 64, b, c] } else { [127, 0, 0, 1] };
    TcpListener::bind((Ipv4Addr::from(own), 0)).unwrap().local_addr().unwrap()
}

/// A TCP socket that is neither bound nor connected.
pub fn new_socket() -> OwnedFd {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    // Not every system can be told at once.
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
    fd
}

/// A connected peer whose kernel takes a little at a time.
pub fn connect_with_a_small_buffer(address: SocketAddr) -> TcpStream {
    use nix::sys::socket::{SockaddrStorage, connect, setsockopt, sockopt};

    let fd = new_socket();
    setsockopt(&fd, sockopt::RcvBuf, &1).unwrap();
    connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(address)).unwrap();
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Everything up to the end of the stream.
pub fn read_to_end(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Exactly `n` bytes.
#[track_caller]
pub fn read_n(mut stream: &TcpStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Makes closing the socket send a reset.
pub fn reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
}

/// Bytes that are easy to tell apart from others and from themselves at another offset.
pub fn pattern(n: usize) -> Vec<u8> {
    let mut x = 0x2545_F491_4F6C_DD1Du64;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let mut bytes = Vec::with_capacity(n + 8);
    while bytes.len() < n {
        bytes.extend_from_slice(&next().to_le_bytes());
    }
    bytes.truncate(n);
    bytes
}

/// CPU time this process has used, user and system.
pub fn cpu_time() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let time =
        |t: nix::sys::time::TimeVal| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000);
    time(usage.user_time()) + time(usage.system_time())
}
