//! What the contestants that are written in Rust do alike: read what to do from the command line,
//! say where they listen, and keep account of CPU time.

// Not every contestant does everything.
#![allow(dead_code)]

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// What a contestant is asked to do.
pub(crate) struct Task {
    pub(crate) name: String,
    /// Where to listen, if it is a server.
    pub(crate) address: SocketAddr,
}

/// Reads `PROGRAM TASK [ADDRESS]` and does it. A task that the contestant does not know is an error.
pub(crate) fn run(program: impl FnOnce(&Task) -> io::Result<()>) -> ExitCode {
    let mut words = std::env::args().skip(1);
    let (Some(name), address) = (words.next(), words.next()) else {
        eprintln!("usage: PROGRAM TASK [ADDRESS]; the benchmark kit starts this program");
        return ExitCode::from(2);
    };
    let address = match address.as_deref().unwrap_or("127.0.0.1:0").parse() {
        Ok(address) => address,
        Err(e) => {
            eprintln!("not an address: {e}");
            return ExitCode::from(2);
        }
    };
    match program(&Task { name, address }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// The answer to a task that a contestant has no way to do.
pub(crate) fn unknown(task: &Task) -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        format!("this contestant does not do '{}'", task.name),
    ))
}

/// Tells the kit where the server can be reached.
pub(crate) fn listening(address: impl std::fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "listening on {address}")?;
    out.flush()
}

/// Tells the kit one result.
pub(crate) fn figure(name: &str, value: f64) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "figure {value} {name}")?;
    out.flush()
}

/// Tells the kit what one of a million timers has cost since `began`, in nanoseconds of CPU time.
pub(crate) fn each(name: &str, began: Duration) {
    each_of(name, began, timers::COUNT);
}

/// The same for another number of them.
pub(crate) fn each_of(name: &str, began: Duration, count: u64) {
    let spent = cpu_time().saturating_sub(began);
    // Nobody listens only if the kit is gone, and then this process ends too.
    let _gone = figure(name, spent.as_nanos() as f64 / count as f64);
}

/// Tells the kit how many of the numbered tasks were done in a second. Their numbers' sum says
/// whether all of them were.
pub(crate) fn rate(name: &str, count: u64, took: Duration, sum: u64) -> io::Result<()> {
    if sum != count * (count - 1) / 2 {
        return Err(io::Error::other("tasks were lost"));
    }
    figure(name, count as f64 / took.as_secs_f64())
}

/// CPU time that this process has used, in all its threads.
pub(crate) fn cpu_time() -> Duration {
    // The clock always exists, so this cannot fail; if it did, the figures would be zero and seen.
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// What the task `timers` is, so that everybody does the same.
pub(crate) mod timers {
    use std::time::Duration;

    /// How many are added, cancelled, fired.
    pub(crate) const COUNT: u64 = 1_000_000;
    /// How many wait while others are added and cancelled at once.
    pub(crate) const WAITING: u64 = 10_000;

    /// Between 10 and 60 seconds: it does not fire while this is measured.
    pub(crate) fn long(i: u64) -> Duration {
        Duration::from_micros(10_000_000 + scattered(i) % 50_000_000)
    }

    /// Up to a second.
    pub(crate) fn short(i: u64) -> Duration {
        Duration::from_micros(scattered(i) % 1_000_000)
    }

    /// The same numbers for everybody, in no order.
    fn scattered(i: u64) -> u64 {
        i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20
    }
}

/// How many tasks are posted by the task `tasks`.
pub(crate) const TASKS: u64 = 2_000_000;
/// How many times the task `roundtrips` goes there and back.
pub(crate) const ROUND_TRIPS: u64 = 100_000;
