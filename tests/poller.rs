//! The poller alone: the contract at the top of `poller/mod.rs`, point by point.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bare_loop::{FEW_TURNS, notifier_kinds, pair};
use common::DEADLINE;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use ruduo::{Events, Interest, Mode, Notifier, Poller, Ready, Token};

const MODES: [Mode; 3] = [Mode::Level, Mode::Edge, Mode::OneShot];

/// What is ready within `timeout`, by token.
fn ready(poller: &Poller, timeout: Duration) -> Vec<(u64, Ready)> {
    let mut events = Events::with_capacity(16);
    poller.wait(&mut events, Some(timeout)).unwrap();
    let mut list: Vec<_> = events.iter().map(|event| (event.token.0, event.ready)).collect();
    assert_eq!((events.len(), events.is_empty()), (list.len(), list.is_empty()));
    list.sort_by_key(|(token, _)| *token);
    list
}

fn ready_now(poller: &Poller) -> Vec<(u64, Ready)> {
    ready(poller, Duration::ZERO)
}

#[test]
fn registrations_are_per_descriptor() {
    alone!().run(|| {
        let poller = Poller::new().unwrap();
        let (mut near, far) = pair();
        let kind = |outcome: io::Result<()>| outcome.unwrap_err().kind();

        let unknown = poller.modify(&far, Token(1), Interest::READ, Mode::Level);
        assert_eq!(kind(unknown), io::ErrorKind::NotFound);
        assert_eq!(kind(poller.delete(&far)), io::ErrorKind::NotFound);
        poller.add(&far, Token(1), Interest::READ, Mode::Level).unwrap();
        let twice = poller.add(&far, Token(2), Interest::WRITE, Mode::Level);
        assert_eq!(kind(twice), io::ErrorKind::AlreadyExists);

        // The failures have changed nothing.
        near.write_all(b"x").unwrap();
        assert_eq!(ready_now(&poller), [(1, Ready::READ)]);
        poller.modify(&far, Token(3), Interest::WRITE, Mode::Level).unwrap();
        assert_eq!(ready_now(&poller), [(3, Ready::WRITE)]);
        poller.delete(&far).unwrap();
        assert_eq!(ready_now(&poller), []);
        poller.add(&far, Token(u64::MAX), Interest::READ, Mode::Level).unwrap();
        assert_eq!(ready_now(&poller), [(u64::MAX, Ready::READ)]);
        poller.delete(&far).unwrap();
    });
}

#[test]
fn a_regular_file_can_not_be_watched() {
    alone!().run(|| {
        let poller = Poller::new().unwrap();
        let file = File::open("/proc/self/exe").unwrap();
        let refused = poller.add(&file, Token(0), Interest::READ, Mode::Level).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
    });
}

#[test]
fn reading_and_writing_come_in_one_event() {
    alone!().run(|| {
        let poller = Poller::new().unwrap();
        for mode in MODES {
            let (mut near, far) = pair();
            near.write_all(b"x").unwrap();
            let both = Interest::READ | Interest::WRITE;
            poller.add(&far, Token(7), both, mode).unwrap();
            assert_eq!(ready_now(&poller), [(7, Ready::READ | Ready::WRITE)], "{mode:?}");
            poller.delete(&far).unwrap();
        }
    });
}

#[test]
fn level_edge_and_one_shot_differ_in_what_they_repeat() {
    alone!().run(|| {
        let poller = Poller::new().unwrap();
        for mode in MODES {
            let (mut near, mut far) = pair();
            poller.add(&far, Token(1), Interest::READ, mode).unwrap();
            assert_eq!(ready_now(&poller), [], "{mode:?}");
            let readable = [(1, Ready::READ)];

            near.write_all(b"a").unwrap();
            assert_eq!(ready_now(&poller), readable, "{mode:?}");
            let repeats = mode == Mode::Level;
            assert_eq!(!ready_now(&poller).is_empty(), repeats, "{mode:?}");

            near.write_all(b"b").unwrap();
            let tells_of_more = mode != Mode::OneShot;
            assert_eq!(!ready_now(&poller).is_empty(), tells_of_more, "{mode:?}");

            // Setting the interest reports what is there, in every mode.
            poller.modify(&far, Token(1), Interest::READ, mode).unwrap();
            assert_eq!(ready_now(&poller), readable, "{mode:?}");

            far.read_exact(&mut [0; 2]).unwrap();
            poller.modify(&far, Token(1), Interest::READ, mode).unwrap();
            assert_eq!(ready_now(&poller), [], "{mode:?}");
            poller.delete(&far).unwrap();
        }
    });
}

#[test]
fn errors_and_hang_ups_are_reported_unasked() {
    alone!().run(|| {
        let poller = Poller::new().unwrap();
        for mode in MODES {
            let (near, mut far) = pair();
            far.write_all(b"never read").unwrap();
            poller.add(&far, Token(1), Interest::NONE, mode).unwrap();
            assert_eq!(ready_now(&poller), [], "{mode:?}");
            drop(near);
            assert_eq!(ready_now(&poller), [(1, Ready::ERROR | Ready::HANGUP)], "{mode:?}");
            assert_eq!(!ready_now(&poller).is_empty(), mode == Mode::Level, "{mode:?}");
            poller.delete(&far).unwrap();
        }
    });
}

#[test]
fn what_does_not_fit_comes_with_the_next_wait() {
    alone!().run(|| {
        let poller = Poller::new().unwrap();
        let pairs: Vec<(UnixStream, UnixStream)> = (0..10).map(|_| pair()).collect();
        for ((mut near, far), token) in pairs.iter().map(|(n, f)| (n, f)).zip(0..) {
            near.write_all(b"x").unwrap();
            poller.add(far, Token(token), Interest::READ, Mode::OneShot).unwrap();
        }
        // Even a list without room has room for one.
        let mut events = Events::with_capacity(0);
        let mut seen = Vec::new();
        for _ in 0..10 {
            poller.wait(&mut events, Some(DEADLINE)).unwrap();
            assert_eq!(events.len(), 1);
            seen.extend(events.iter().map(|event| event.token.0));
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..10));
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty(), "the last wait's event is gone");
    });
}

#[test]
fn a_timeout_is_never_early() {
    alone!().run(|| {
        let poller = Poller::new().unwrap();
        for micros in [1, 70, 999, 1_001, 12_345] {
            let timeout = Duration::from_micros(micros);
            let start = Instant::now();
            assert_eq!(ready(&poller, timeout), []);
            assert!(start.elapsed() >= timeout, "{timeout:?}: {:?}", start.elapsed());
        }
    });
}

/// Waits while another thread, after a moment, uses the notifier.
fn wait_until_woken(poller: &Poller, notifier: &Notifier, timeout: Option<Duration>) {
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::park_timeout(Duration::from_millis(20));
            notifier.notify().unwrap();
        });
        let (mut events, mut waits) = (Events::with_capacity(4), 0);
        while events.is_empty() {
            poller.wait(&mut events, timeout).unwrap();
            waits += 1;
        }
        let events: Vec<_> = events.iter().map(|event| (event.token.0, event.ready)).collect();
        assert_eq!(events, [(9, Ready::READ)], "{notifier:?}");
        assert!(waits < FEW_TURNS, "{timeout:?}: {waits} waits");
    });
}

fn b51_long_timeouts() {
    let poller = Poller::new().unwrap();
    let notifier = poller.notifier(Token(9)).unwrap();
    let days = |n: u64| Duration::from_secs(n * 86_400);
    // 2^32 ms is where an int of milliseconds comes round to "at once".
    let round = Duration::from_millis(1 << 32);
    for timeout in [days(25), days(40), round, days(300), Duration::MAX] {
        wait_until_woken(&poller, &notifier, Some(timeout));
    }
}

#[test]
fn b51_the_longest_timeouts_wait() {
    alone!().run(b51_long_timeouts);
}

#[test]
fn b51_the_longest_timeouts_wait_without_epoll_pwait2() {
    const INJECT: &str = "inject=epoll_pwait2:error=ENOSYS";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", INJECT];
    alone!().under(&strace).run(b51_long_timeouts);
}

#[test]
fn a_notifier_ends_the_wait_in_progress() {
    alone!().run(|| {
        for kind in notifier_kinds() {
            let poller = Poller::new().unwrap();
            let notifier = poller.notifier_with_kind(Token(9), *kind).unwrap();
            for _ in 0..5 {
                wait_until_woken(&poller, &notifier, None);
                notifier.acknowledge();
                assert_eq!(ready_now(&poller), [], "{kind:?}");
            }
        }
    });
}

#[test]
fn a_notifier_ends_the_next_wait_and_notifications_may_be_seen_as_one() {
    alone!().run(|| {
        for kind in notifier_kinds() {
            let poller = Poller::new().unwrap();
            let notifier = poller.notifier_with_kind(Token(9), *kind).unwrap();
            for notifications in [1, 2, 1_000, 1] {
                for _ in 0..notifications {
                    notifier.notify().unwrap();
                }
                assert_eq!(ready(&poller, DEADLINE), [(9, Ready::READ)], "{kind:?}");
                notifier.acknowledge();
                assert_eq!(ready_now(&poller), [], "{kind:?}, {notifications} notifications");
            }
        }
    });
}

/// More notifications than a pipe or socket has room for.
#[test]
fn b43_a_full_notifier_has_been_used() {
    alone!().run(|| {
        for kind in notifier_kinds() {
            let poller = Poller::new().unwrap();
            let notifier = poller.notifier_with_kind(Token(9), *kind).unwrap();
            for _ in 0..2 {
                for _ in 0..300_000 {
                    notifier.notify().unwrap();
                }
                assert_eq!(ready(&poller, DEADLINE), [(9, Ready::READ)], "{kind:?}");
                notifier.acknowledge();
                assert_eq!(ready_now(&poller), [], "{kind:?}");
            }
            notifier.notify().unwrap();
            assert_eq!(ready(&poller, DEADLINE), [(9, Ready::READ)], "{kind:?}");
        }
    });
}

extern "C" fn do_nothing(_: libc::c_int) {}

#[test]
fn a_signal_ends_the_wait_early_and_empty() {
    alone!().run(|| {
        let handler = SigHandler::Handler(do_nothing);
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
        let poller = Poller::new().unwrap();
        // SAFETY: it has no preconditions.
        let waiting = unsafe { libc::pthread_self() };
        let (done, is_done) = mpsc::channel::<()>();
        let signaller = thread::spawn(move || {
            // Again and again, for the first may come before the wait.
            while is_done.try_recv() == Err(mpsc::TryRecvError::Empty) {
                // SAFETY: the thread that waits joins this one.
                unsafe { libc::pthread_kill(waiting, libc::SIGUSR1) };
                thread::park_timeout(Duration::from_millis(1));
            }
        });
        let start = Instant::now();
        assert_eq!(ready(&poller, DEADLINE), []);
        assert!(start.elapsed() < DEADLINE);
        drop(done);
        signaller.join().unwrap();
    });
}
