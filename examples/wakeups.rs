//! What it costs to wake another thread that waits for events: the same two threads, and each kind
//! of notifier between them.
//!
//! ```text
//!   asking thread                           answering thread
//!   stamp = now; notify ──────────────────▶ wait returns: now - stamp is a latency
//!   wait returns ◀─────────────────────────  notify
//! ```

mod common;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Long, Stop, print};
use ruduo::{
    EventLoop, Events, LoopThread, Notifier, NotifierKind, Poller, PollerKind, Signal, Token,
};

const HELP: &str = "\
Measures wakeups from one thread to another: how many a second, and how long one takes.

Usage: wakeups [--rounds N] [--poller KIND]

  --rounds N     wakeups there and back, of each kind [20000]
  --poller KIND  epoll, poll or kqueue [all that this system has]
  --help         this text

Two threads wake each other in turn. The latency is the time from before a notification until the
other thread has returned from its wait. It is far shorter if that thread has not yet fallen asleep:
then the median and the 99th percentile tell of different things.
SIGINT (Ctrl-C) and SIGTERM end it early.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut rounds, mut pollers) = (20_000, PollerKind::available().to_vec());
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("rounds") => rounds = arguments.value::<u32>()?,
                Long("poller") => pollers = vec![arguments.value()?],
                other => return Err(other.unexpected().into()),
            }
        }
        if rounds == 0 {
            return Err(Stop::Usage("--rounds must be at least 1".into()));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let signals = stop_on_signals(&stop)?;
        let [poller, notifier] = ["poller", "notifier"];
        print(format_args!(
            "{poller:8}{notifier:12}{:>12}{:>16}{:>12}",
            "wakeups/s", "median", "p99"
        ))?;
        for poller in pollers {
            for notifier in Poller::with_kind(poller)?.notifier_kinds() {
                let measured = measure(poller, *notifier, rounds, &stop)?;
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let [poller, notifier] = [poller.to_string(), notifier.to_string()];
                let Measured { per_second, median, p99 } = measured;
                print(format_args!(
                    "{poller:8}{notifier:12}{per_second:>12.0}{median:>13.1} us{p99:>9.1} us"
                ))?;
            }
        }
        Ok(signals.join()?)
    })
}

fn stop_on_signals(stop: &Arc<AtomicBool>) -> io::Result<LoopThread> {
    let stop = Arc::clone(stop);
    LoopThread::spawn("signals", EventLoop::builder(), move |event_loop| {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let stop = Arc::clone(&stop);
            event_loop.on_signal(signal, move |_, _| stop.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    })
}

struct Measured {
    per_second: f64,
    /// Microseconds, as the next.
    median: f64,
    p99: f64,
}

fn measure(
    poller: PollerKind,
    notifier: NotifierKind,
    rounds: u32,
    stop: &AtomicBool,
) -> io::Result<Measured> {
    let (mut here, mut there) = (Place::new(poller, notifier)?, Place::new(poller, notifier)?);
    let (to_here, to_there) = (here.notifier.clone(), there.notifier.clone());
    let origin = Instant::now();
    let now = || origin.elapsed().as_nanos() as u64;
    // The last notification tells the answering thread to end.
    let (stamp, end) = (AtomicU64::new(0), AtomicBool::new(false));
    let ((done, elapsed), mut latencies) = thread::scope(|scope| {
        let answer = || -> io::Result<Vec<u64>> {
            let mut latencies = Vec::new();
            loop {
                there.wait()?;
                if end.load(Ordering::Acquire) {
                    return Ok(latencies);
                }
                if latencies.len() < SAMPLES {
                    latencies.push(now().saturating_sub(stamp.load(Ordering::Acquire)));
                }
                to_here.notify()?;
            }
        };
        let answering = scope.spawn(answer);
        let mut ask = || -> io::Result<(u32, Duration)> {
            let (mut done, start) = (0, Instant::now());
            while done < rounds {
                stamp.store(now(), Ordering::Release);
                to_there.notify()?;
                // It answers, or it has failed and says why when it is joined.
                while !here.wait_for(ANSWER)? && !answering.is_finished() {}
                done += 1;
                if stop.load(Ordering::Relaxed) || answering.is_finished() {
                    break;
                }
            }
            Ok((done, start.elapsed()))
        };
        let asked = ask();
        end.store(true, Ordering::Release);
        to_there.notify()?;
        let latencies = answering.join().map_err(|_| io::Error::other("a thread panicked"))??;
        io::Result::Ok((asked?, latencies))
    })?;
    latencies.sort_unstable();
    let percentile = |p: usize| {
        let index = latencies.len().saturating_sub(1) * p / 100;
        latencies.get(index).map_or(f64::NAN, |nanos| *nanos as f64 / 1_000.0)
    };
    // There and back.
    let per_second = 2.0 * f64::from(done) / elapsed.as_secs_f64();
    Ok(Measured { per_second, median: percentile(50), p99: percentile(99) })
}

/// Latencies that are kept, of each kind: the first ones. More would tell little more.
const SAMPLES: usize = 1_000_000;

/// How long to wait for an answer before looking whether the other thread is still there.
const ANSWER: Duration = Duration::from_secs(1);

/// Where a thread waits, and how others wake it.
struct Place {
    poller: Poller,
    notifier: Notifier,
    events: Events,
}

impl Place {
    fn new(poller: PollerKind, notifier: NotifierKind) -> io::Result<Place> {
        let poller = Poller::with_kind(poller)?;
        let notifier = poller.notifier_with_kind(Token(0), notifier)?;
        Ok(Place { poller, notifier, events: Events::with_capacity(1) })
    }

    fn wait(&mut self) -> io::Result<()> {
        while !self.wait_for(Duration::MAX)? {}
        Ok(())
    }

    /// Whether it was notified within the timeout.
    fn wait_for(&mut self, timeout: Duration) -> io::Result<bool> {
        self.poller.wait(&mut self.events, Some(timeout))?;
        let notified = !self.events.is_empty();
        if notified {
            self.notifier.acknowledge();
        }
        Ok(notified)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(e) = self.poller.delete(&self.notifier) {
            log::warn!("deleting a notifier: {e}");
        }
    }
}
