//! Accepting connections when accept(2) fails: no descriptors, buffers or memory are left, or the
//! network is in trouble.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use common::program::{Program, binary};
use common::{eventually, read_n, serve, take_logs, within};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use ruduo::{EventLoop, LoopHandle, PollerKind, ServerHandle, TcpServer};

fn echo(event_loop: &EventLoop) -> io::Result<ServerHandle> {
    TcpServer::bind(event_loop, "127.0.0.1:0")?
        .on_message(|conn, input| conn.send_buffer(input))
        .start()
}

fn write(mut stream: &TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).unwrap();
}

fn assert_echoes(stream: &TcpStream) {
    write(stream, "hello");
    assert_eq!(read_n(stream, 5), b"hello");
}

/// Keeps a loop from doing anything until what it returns is dropped.
fn hold(event_loop: &LoopHandle) -> Sender<()> {
    let (release, released) = mpsc::channel();
    let (send, held) = mpsc::channel();
    let task = move |_: &EventLoop| {
        send.send(()).unwrap();
        let _ = released.recv();
    };
    event_loop.post(task).unwrap();
    within(&held);
    release
}

/// How many turns the loop makes in this time.
fn turns_in(event_loop: &LoopHandle, time: Duration) -> u64 {
    let (send, receive) = mpsc::channel();
    let measure = move |event_loop: &EventLoop| {
        let before = event_loop.metrics().turns;
        event_loop.run_after(time, move |event_loop| {
            send.send(event_loop.metrics().turns - before).unwrap();
        });
    };
    event_loop.post(measure).unwrap();
    within(&receive)
}

/// Waits until the loop has finished what it is doing, closing included.
fn finish_turn(event_loop: &LoopHandle) {
    turns_in(event_loop, Duration::ZERO);
}

/// Long enough to see a loop spin, which is some ten thousand turns.
const A_WHILE: Duration = Duration::from_millis(500);
const FEW_TURNS: u64 = 300;

/// Sees to it that there are descriptors to run out of.
fn limit_descriptors() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
}

/// Takes all descriptors but `n`, until what it returns is dropped.
fn take_all_descriptors_but(n: usize) -> Vec<File> {
    let mut files: Vec<_> = (0..64).map_while(|_| File::open("/dev/zero").ok()).collect();
    files.truncate(files.len() - n);
    files
}

/// Whether the server closes a connection, as opposed to serving it.
fn is_refused(mut peer: &TcpStream) -> bool {
    let outcome = peer.write_all(b"hello").and_then(|()| peer.read(&mut [0; 5]));
    match outcome.map_err(|e| e.kind()) {
        Ok(n) => n == 0,
        // What was sent to a connection that was closed comes back as a reset.
        Err(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => true,
        Err(e) => panic!("neither refused nor served: {e}"),
    }
}

fn assert_one_log_line(text: &str) {
    let lines = take_logs();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(text), "{lines:?}");
}

// Too few descriptors, buffers or memory.

#[test]
fn b01_without_descriptors_the_established_connections_go_on_and_the_rest_is_refused() {
    each_poller!().run(|| {
        limit_descriptors();
        let running = serve(echo);
        let established = running.connect();
        assert_echoes(&established);
        let held = hold(running.event_loop());
        let mut peers: Vec<_> = (0..20).map(|_| running.connect()).collect();
        let shortage = take_all_descriptors_but(3);
        drop(held);

        // Those that were accepted are served, and those beyond learn that they are not.
        for (i, peer) in peers.iter().enumerate() {
            assert_eq!(is_refused(peer), i >= 3, "peer {i}");
            assert_echoes(&established);
        }
        finish_turn(running.event_loop());
        assert_eq!(
            (running.server.metrics().accepted, running.server.metrics().refused.total()),
            (4, 17)
        );
        assert_one_log_line("ulimit -n");

        // The refused ones' descriptors come free, and the next ones are served.
        peers.truncate(3);
        for _ in 0..5 {
            peers.push(running.connect());
        }
        peers.iter().for_each(assert_echoes);
        assert_eq!(
            (running.server.metrics().accepted, running.server.metrics().refused.total()),
            (9, 17)
        );
        drop(shortage);
    });
}

/// The row to the letter: a whole server that may have 12 descriptors, and 20 clients.
#[test]
fn b01_of_twenty_clients_twelve_descriptors_serve_a_few_and_the_rest_is_refused() {
    let test = each_poller!();
    if cfg!(kqueue_model) {
        return test.skip("the model of kqueue needs more descriptors than the server may have");
    }
    test.run(|| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 12; exec \"$@\"", "sh"]).arg(binary("echo"));
        let server = Program::spawn(command.args(["--listen", "127.0.0.1:0"])).listening(1);
        let established = server.connect();
        assert_echoes(&established);

        let start = Instant::now();
        let peers: Vec<_> = (0..20).map(|_| server.connect()).collect();
        let served = peers.iter().filter(|peer| !is_refused(peer)).count();
        // It has 7 or 8 of its own, by the poller, and the established one has one.
        assert!((1..=5).contains(&served), "{served} of 20 are served");
        // Each of those that still come costs it a pause, and no more.
        let (shortage, before) = (Instant::now(), server.ticks());
        while shortage.elapsed() < A_WHILE {
            assert!(is_refused(&server.connect()));
            assert_echoes(&established);
        }
        let spent = server.ticks() - before;
        let whole = shortage.elapsed().as_millis() / 10;
        assert!(u128::from(spent) <= whole / 5, "{spent} of {whole} ticks of CPU time");
        let lines = server.log().matches("ulimit -n").count() as u64;
        assert!((1..=1 + start.elapsed().as_secs() / 10).contains(&lines), "{}", server.log());

        drop(peers);
        eventually("there is a place again", || !is_refused(&server.connect()));
        server.ends_well_on(Signal::SIGTERM);
    });
}

/// Nor does the next one: each begins anew.
#[test]
fn b01_shortages_that_pass_cost_nobody_a_connection() {
    let fault = "inject=accept4:error=EMFILE:when=1+2";
    each_poller!().under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", fault]).run(|| {
        let running = serve(echo);
        for accepted in 1..=3 {
            assert_echoes(&running.connect());
            let metrics = running.server.metrics();
            assert_eq!((metrics.accepted, metrics.refused.total()), (accepted, 0));
            assert!(metrics.accept_pauses >= accepted, "{metrics}");
        }
        assert_one_log_line("Too many open files (os error 24) (check 'ulimit -n')");
    });
}

/// Refusing is bounded as accepting is: timers, and whoever is established, have their turns.
#[test]
fn b07_a_flood_of_refusals_comes_in_bursts() {
    const FLOOD: usize = 200;
    const LARGE_BURST: usize = 100;
    each_poller!().run(|| {
        let running = serve(echo);
        let held = hold(running.event_loop());
        let peers: Vec<_> = (0..FLOOD).map(|_| running.connect()).collect();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let soft = 64 + FLOOD as nix::sys::resource::rlim_t;
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let shortage: Vec<_> = (0..).map_while(|_| File::open("/dev/zero").ok()).collect();
        drop(held);
        assert!(peers.iter().all(is_refused));
        finish_turn(running.event_loop());
        let metrics = running.server.metrics();
        assert_eq!((metrics.accepted, metrics.refused.total()), (0, FLOOD as u64));
        // The first of them refuses nobody.
        let bursts = metrics.accept_pauses - 1;
        assert!(bursts >= (FLOOD / LARGE_BURST) as u64, "{metrics}");
        assert_one_log_line("ulimit -n");
        drop(shortage);
    });
}

#[test]
fn b08_a_spare_descriptor_that_was_snatched_is_replaced_when_there_are_some_again() {
    // Opening the spare anew, after it has been used, fails as if another thread had been faster.
    let fault = "inject=openat:error=EMFILE:when=2";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", "/dev/null", "-e", fault];
    each_poller!().under(&strace).expect_log("ulimit -n").run(|| {
        limit_descriptors();
        let running = serve(echo);
        for _ in 0..3 {
            let held = hold(running.event_loop());
            let peer = running.connect();
            let shortage = take_all_descriptors_but(0);
            drop(held);
            assert!(is_refused(&peer));
            drop(shortage);
            // The spare descriptor may be at work still, and refuse one more.
            finish_turn(running.event_loop());
            assert_echoes(&running.connect());
            // What closes later would end the next shortage.
            eventually("it is closed", || running.server.metrics().open == 0);
            finish_turn(running.event_loop());
        }
    });
}

#[test]
fn b08_another_thread_that_takes_every_free_descriptor_does_not_make_the_loop_spin() {
    each_poller!().run(|| {
        limit_descriptors();
        let running = serve(echo);
        let established = running.connect();
        assert_echoes(&established);
        let held = hold(running.event_loop());
        let peers: Vec<_> = (0..20).map(|_| running.connect()).collect();
        let shortage = take_all_descriptors_but(0);
        let done = Arc::new(AtomicBool::new(false));
        let hog = {
            let done = done.clone();
            thread::spawn(move || {
                let mut files = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    files.extend(File::open("/dev/zero"));
                }
            })
        };
        drop(held);
        assert!(turns_in(running.event_loop(), A_WHILE) < FEW_TURNS);
        assert_echoes(&established);
        done.store(true, Ordering::Relaxed);
        hog.join().unwrap();

        drop(shortage);
        finish_turn(running.event_loop());
        assert_echoes(&running.connect());
        let refused = peers.iter().filter(|peer| is_refused(peer)).count() as u64;
        eventually("all are counted", || running.server.metrics().refused.total() == refused);
        assert_one_log_line("ulimit -n");
    });
}

/// With the second connection the trouble begins, and lasts.
fn assert_shortage_is_survived(message: &str) {
    let running = serve(echo);
    let established = running.connect();
    assert_echoes(&established);
    let waiting = running.connect();
    assert!(turns_in(running.event_loop(), A_WHILE) < FEW_TURNS);
    assert_echoes(&established);
    assert_one_log_line(message);
    assert_eq!(
        (running.server.metrics().accepted, running.server.metrics().refused.total()),
        (1, 0)
    );
    drop(waiting);
}

macro_rules! shortages {
    ($($name:ident: $error:ident, $message:literal;)*) => {$(
        #[test]
        fn $name() {
            let fault = concat!("inject=accept4:error=", stringify!($error), ":when=2+");
            let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", fault];
            each_poller!().under(&strace).run(|| assert_shortage_is_survived($message));
        }
    )*};
}

shortages! {
    b01_emfile_that_lasts_disturbs_nobody_else: EMFILE, "ulimit -n";
    b02_enfile_that_lasts_disturbs_nobody_else: ENFILE,
        "accepting connections pauses: Too many open files in system";
    b03_enobufs_that_lasts_disturbs_nobody_else: ENOBUFS,
        "accepting connections pauses: No buffer space available";
    b03_enomem_that_lasts_disturbs_nobody_else: ENOMEM,
        "accepting connections pauses: Cannot allocate memory";
    b06_eperm_that_lasts_disturbs_nobody_else: EPERM,
        "accepting a connection failed: Operation not permitted";
}

/// Two attempts fail, while three peers wait.
fn assert_refuses(refused: u64) {
    let running = serve(echo);
    let held = hold(running.event_loop());
    let peers: Vec<_> = (0..3).map(|_| running.connect()).collect();
    drop(held);
    assert!(peers.iter().all(|peer| is_refused(peer) == (refused > 0)));
    finish_turn(running.event_loop());
    let metrics = running.server.metrics();
    assert_eq!((metrics.accepted, metrics.refused.total()), (3 - refused, refused));
    assert_one_log_line("accepting connections pauses");
}

macro_rules! refusing {
    ($($(#[$comment:meta])* $name:ident: $error:ident, $refused:literal;)*) => {$(
        $(#[$comment])*
        #[test]
        fn $name() {
            let fault = concat!("inject=accept4:error=", stringify!($error), ":when=1..2");
            let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", fault];
            each_poller!().under(&strace).run(|| assert_refuses($refused));
        }
    )*};
}

refusing! {
    /// A descriptor given up for a moment is one also where the whole system has no other.
    b02_enfile_that_goes_on_refuses_those_who_wait: ENFILE, 3;
    /// It is neither a buffer nor memory.
    b03_enobufs_that_goes_on_refuses_nobody: ENOBUFS, 0;
    b03_enomem_that_goes_on_refuses_nobody: ENOMEM, 0;
}

/// The first three calls fail, and nothing comes of it.
fn assert_served_after_all(is_logged: bool) {
    let running = serve(echo);
    let peers: Vec<_> = (0..3).map(|_| running.connect()).collect();
    peers.iter().for_each(assert_echoes);
    let server = &running.server;
    assert_eq!(
        (server.metrics().accepted, server.metrics().refused.total(), server.metrics().lost),
        (3, 0, 0)
    );
    assert_eq!(take_logs().len(), usize::from(is_logged));
}

/// Nothing else would resume it.
#[test]
fn b03_a_listener_is_resumed_although_the_first_attempt_fails_for_want_of_memory() {
    let shortage = "inject=accept4:error=ENOMEM:when=1";
    // The loop has added its notifier and the listener, and paused this; now it resumes it.
    let fault = "inject=epoll_ctl:error=ENOMEM:when=4";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", shortage, "-e", fault];
    let epoll = alone!().on_poller(PollerKind::Epoll);
    epoll.under(&strace).expect_log("accepting connections pauses").run(|| {
        let running = serve(echo);
        assert_echoes(&running.connect());
    });
}

macro_rules! passing_errors {
    ($($name:ident: $error:ident $(($logged:ident))?;)*) => {$(
        #[test]
        fn $name() {
            let fault = concat!("inject=accept4:error=", stringify!($error), ":when=1..3");
            let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", fault];
            let is_logged = !concat!($(stringify!($logged))?).is_empty();
            each_poller!().under(&strace).run(|| assert_served_after_all(is_logged));
        }
    )*};
}

passing_errors! {
    b02_after_enfile_all_are_served: ENFILE (logged);
    b03_after_enobufs_all_are_served: ENOBUFS (logged);
    b03_after_enomem_all_are_served: ENOMEM (logged);
    b04_econnaborted_is_retried: ECONNABORTED;
    b05_eproto_is_retried: EPROTO;
    b05_enetdown_is_retried: ENETDOWN;
    b05_enoprotoopt_is_retried: ENOPROTOOPT;
    b05_ehostdown_is_retried: EHOSTDOWN;
    b05_enonet_is_retried: ENONET;
    b05_ehostunreach_is_retried: EHOSTUNREACH;
    b05_eopnotsupp_is_retried: EOPNOTSUPP;
    b05_enetunreach_is_retried: ENETUNREACH;
    b06_eintr_is_retried: EINTR;
    b06_after_eperm_all_are_served: EPERM (logged);
}
