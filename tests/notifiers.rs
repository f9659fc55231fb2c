//! Events that a program makes itself: with a bare poller, and beside the sockets of a loop.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bare_loop::{
    A_WHILE, Dropped, FEW_TURNS, Record, next, notifier_kinds, pair, ready, ready_now, run,
    turns_in_a_while,
};
use common::{DEADLINE, within};
#[cfg(kqueue_model)]
use ruduo::PollerKind;
use ruduo::{
    Channel, Event, EventLoop, Events, Interest, LoopThread, Mode, Notifier, NotifierKind, Poller,
    Ready, Token,
};

const READABLE: [(u64, Ready); 1] = [(9, Ready::READ)];

/// Calls `body` with a notifier of each kind, whose token is 9, and its poller.
fn each_kind(body: impl Fn(&Poller, &Notifier, NotifierKind)) {
    for kind in notifier_kinds() {
        let poller = Poller::new().unwrap();
        let notifier = poller.notifier_with_kind(Token(9), *kind).unwrap();
        body(&poller, &notifier, *kind);
        poller.delete(&notifier).unwrap();
    }
}

#[test]
fn a_notifier_ends_the_wait_in_progress() {
    let check = |poller: &Poller, notifier: &Notifier, kind| {
        for _ in 0..5 {
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::park_timeout(Duration::from_millis(20));
                    notifier.notify().unwrap();
                });
                let (mut events, mut waits) = (Events::with_capacity(4), 0);
                while events.is_empty() {
                    poller.wait(&mut events, None).unwrap();
                    waits += 1;
                }
                assert!(waits < FEW_TURNS, "{kind}: {waits} waits");
                assert_eq!(events.iter().next().unwrap().token, notifier.token());
            });
            notifier.acknowledge();
            assert_eq!(ready_now(poller), [], "{kind}");
        }
    };
    each_poller!().run(|| each_kind(check));
}

/// OpenBSD and NetBSD got EVFILT_USER late.
#[cfg(kqueue_model)]
#[test]
fn where_kqueue_has_no_user_events_a_pipe_wakes_the_loop() {
    let test = alone!().on_poller(PollerKind::Kqueue).env("RUDUO_KQUEUE_MODEL", "old");
    test.run(|| {
        let poller = Poller::new().unwrap();
        assert_eq!(poller.notifier_kinds(), [NotifierKind::Pipe, NotifierKind::SocketPair]);
        let refused = poller.notifier_with_kind(Token(9), NotifierKind::UserEvent).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
        let notifier = poller.notifier(Token(9)).unwrap();
        for _ in 0..3 {
            notifier.notify().unwrap();
            assert_eq!(ready(&poller, DEADLINE), READABLE);
            notifier.acknowledge();
            assert_eq!(ready_now(&poller), []);
        }
        poller.delete(&notifier).unwrap();

        let other = LoopThread::spawn("woken", EventLoop::builder(), |_| Ok(())).unwrap();
        let (done, is_done) = mpsc::channel();
        other.handle().post(move |_| done.send(()).unwrap()).unwrap();
        within(&is_done);
    });
}

#[test]
fn a_notifier_ends_the_next_wait_and_notifications_may_be_seen_as_one() {
    let check = |poller: &Poller, notifier: &Notifier, kind| {
        for notifications in [1, 2, 1_000, 1] {
            for _ in 0..notifications {
                notifier.notify().unwrap();
            }
            assert_eq!(ready(poller, DEADLINE), READABLE, "{kind}");
            notifier.acknowledge();
            assert_eq!(ready_now(poller), [], "{kind}, {notifications} notifications");
        }
    };
    each_poller!().run(|| each_kind(check));
}

/// More notifications than a pipe or socket has room for.
#[test]
fn b43_a_full_notifier_has_been_used() {
    let check = |poller: &Poller, notifier: &Notifier, kind| {
        for _ in 0..2 {
            for _ in 0..300_000 {
                notifier.notify().unwrap();
            }
            assert_eq!(ready(poller, DEADLINE), READABLE, "{kind}");
            notifier.acknowledge();
            assert_eq!(ready_now(poller), [], "{kind}");
        }
        notifier.notify().unwrap();
        assert_eq!(ready(poller, DEADLINE), READABLE, "{kind}");
        notifier.acknowledge();
    };
    each_poller!().run(|| each_kind(check));
}

/// Who acknowledges and then looks misses nothing, from however many threads it comes.
#[test]
fn b42_no_notification_is_lost() {
    const THREADS: usize = 4;
    const EACH: usize = 5_000;
    let check = |poller: &Poller, notifier: &Notifier, kind| {
        let sent = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (notifier, sent) = (notifier.clone(), Arc::clone(&sent));
                thread::spawn(move || {
                    for _ in 0..EACH {
                        sent.fetch_add(1, Ordering::Release);
                        notifier.notify().unwrap();
                    }
                })
            })
            .collect();
        let (mut seen, mut events) = (0, 0);
        while seen < THREADS * EACH {
            assert_eq!(next(poller), READABLE, "{kind}");
            notifier.acknowledge();
            seen = sent.load(Ordering::Acquire);
            events += 1;
        }
        assert!(events <= THREADS * EACH, "{kind}");
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // What was notified of meanwhile may be told, once.
        if !ready_now(poller).is_empty() {
            notifier.acknowledge();
        }
        assert_eq!(ready_now(poller), [], "{kind}");
    };
    each_poller!().run(|| each_kind(check));
}

/// Two threads that wake each other in turn: whoever is woken was notified, each time anew.
#[test]
fn no_event_comes_without_a_notification() {
    const ROUNDS: usize = 5_000;
    let take_turns = |poller: &Poller, notifier: &Notifier, kind| {
        let (there, round) = (Poller::new().unwrap(), &AtomicUsize::new(0));
        let other = &there.notifier_with_kind(Token(9), kind).unwrap();
        let answer = move || {
            for i in 1..=ROUNDS {
                assert_eq!(next(&there), READABLE, "{kind}");
                other.acknowledge();
                assert_eq!(round.load(Ordering::Acquire), i, "{kind}");
                notifier.notify().unwrap();
            }
            there.delete(other).unwrap();
        };
        thread::scope(|scope| {
            scope.spawn(answer);
            for i in 1..=ROUNDS {
                round.store(i, Ordering::Release);
                other.notify().unwrap();
                assert_eq!(next(poller), READABLE, "{kind}");
                notifier.acknowledge();
            }
        });
        assert_eq!(ready_now(poller), [], "{kind}");
    };
    each_poller!().run(|| each_kind(take_turns));
}

#[test]
fn notifiers_have_their_own_tokens_beside_those_of_sockets() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        let (mut near, far) = pair();
        poller.add(&far, Token(1), Interest::READ, Mode::Level).unwrap();
        let [two, three] = [2, 3].map(|token| poller.notifier(Token(token)).unwrap());
        two.notify().unwrap();
        assert_eq!(ready_now(&poller), [(2, Ready::READ)]);
        two.acknowledge();
        three.notify().unwrap();
        near.write_all(b"x").unwrap();
        assert_eq!(ready_now(&poller), [(1, Ready::READ), (3, Ready::READ)]);
        three.acknowledge();
        for fd in [&two, &three] {
            poller.delete(fd).unwrap();
        }
        poller.delete(&far).unwrap();
    });
}

#[test]
fn a_notifier_that_was_deleted_or_has_lost_its_poller_is_harmless() {
    let check = |poller: &Poller, notifier: &Notifier, kind| {
        let other = poller.notifier_with_kind(Token(5), kind).unwrap();
        poller.delete(&other).unwrap();
        other.notify().unwrap();
        assert_eq!(ready_now(poller), [], "{kind}");
        assert_eq!(poller.delete(&other).unwrap_err().kind(), io::ErrorKind::NotFound, "{kind}");
        notifier.notify().unwrap();
        assert_eq!(ready(poller, DEADLINE), READABLE, "{kind}");
        notifier.acknowledge();
    };
    each_poller!().run(|| {
        each_kind(check);
        let orphan = Poller::new().unwrap().notifier(Token(1)).unwrap();
        orphan.notify().unwrap();
    });
}

#[test]
fn a_loop_calls_back_beside_its_sockets() {
    each_poller!().run(|| {
        for kind in notifier_kinds() {
            let event_loop = EventLoop::builder().notifiers(*kind).build().unwrap();
            let (mut near, far) = pair();
            let seen = Record::new();
            let record = seen.clone();
            let handler = move |event_loop: &EventLoop, _: &UnixStream, event: Event| {
                record.push("socket");
                event_loop.deregister(event.token);
            };
            event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap();
            let (record, mut calls) = (seen.clone(), 0);
            let (called, is_called) = mpsc::channel();
            let notifier = event_loop
                .notifier(move |event_loop| {
                    record.push("notifier");
                    called.send(()).unwrap();
                    calls += 1;
                    if calls == 3 {
                        event_loop.run_after(A_WHILE, EventLoop::quit);
                    }
                })
                .unwrap();
            let other = thread::spawn(move || {
                near.write_all(b"x").unwrap();
                for _ in 0..3 {
                    notifier.notify().unwrap();
                    within(&is_called);
                }
            });
            run(&event_loop);
            other.join().unwrap();
            assert!(
                event_loop.metrics().turns < FEW_TURNS,
                "{kind}: {} turns",
                event_loop.metrics().turns
            );
            let mut seen = seen.take();
            seen.sort_unstable();
            assert_eq!(seen, ["notifier", "notifier", "notifier", "socket"], "{kind}");
        }
    });
}

#[test]
fn what_comes_while_a_loop_is_busy_is_one_call() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let calls = Record::new();
        let record = calls.clone();
        let notifier = event_loop.notifier(move |_| record.push(())).unwrap();
        event_loop.defer(move |_| {
            for _ in 0..1_000 {
                notifier.notify().unwrap();
            }
        });
        assert!(turns_in_a_while(&event_loop) < FEW_TURNS);
        assert_eq!(calls.len(), 1);
    });
}

#[test]
fn deregistering_ends_a_loops_notifier_also_inside_its_callback() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let dropped = Record::new();
        let held = Dropped(dropped.clone(), "callback");
        let calls = Record::new();
        let record = calls.clone();
        let own_token = Record::new();
        let token = own_token.clone();
        let notifier = event_loop
            .notifier(move |event_loop| {
                let _ = &held;
                record.push(());
                for token in token.take() {
                    assert!(event_loop.deregister(token));
                    assert!(!event_loop.deregister(token));
                }
            })
            .unwrap();
        own_token.push(notifier.token());
        notifier.notify().unwrap();
        let again = notifier.clone();
        event_loop.run_after(Duration::from_millis(1), move |_| again.notify().unwrap());
        assert!(turns_in_a_while(&event_loop) < FEW_TURNS);
        assert_eq!((calls.len(), dropped.take()), (1, vec!["callback"]));
        // The loop has ended, and the notifier is nobody's.
        notifier.notify().unwrap();
        assert!(event_loop.notifier(|_| {}).is_err());
    });
}

#[test]
fn b45_a_panic_ends_the_notifier_and_nothing_else() {
    each_poller!().expect_log("panicked").run(|| {
        let event_loop = EventLoop::new().unwrap();
        let dropped = Record::new();
        let held = Dropped(dropped.clone(), ());
        let bad = event_loop
            .notifier(move |_| {
                let _ = &held;
                panic!("in the callback of a notifier");
            })
            .unwrap();
        let calls = Record::new();
        let record = calls.clone();
        let good = event_loop.notifier(move |_| record.push(())).unwrap();
        for notifier in [&bad, &good] {
            notifier.notify().unwrap();
        }
        let again = bad.clone();
        event_loop.run_after(Duration::from_millis(1), move |_| again.notify().unwrap());
        turns_in_a_while(&event_loop);
        assert_eq!((event_loop.metrics().panics, dropped.len(), calls.len()), (1, 1, 1));
    });
}

#[test]
fn any_thread_reaches_the_loop_of_another_one() {
    each_poller!().run(|| {
        let (made, is_made) = mpsc::channel();
        let (called, is_called) = mpsc::channel();
        let worker = LoopThread::spawn("test-loop", EventLoop::builder(), move |event_loop| {
            // Neither `Send` nor shared: the callback stays on its loop.
            let count = std::rc::Rc::new(std::cell::Cell::new(0));
            let notifier = event_loop.notifier(move |_| {
                count.set(count.get() + 1);
                called.send(count.get()).unwrap();
            })?;
            made.send(notifier).unwrap();
            Ok(())
        })
        .unwrap();
        let notifier = within(&is_made);
        for i in 1..=100 {
            notifier.notify().unwrap();
            assert_eq!(within(&is_called), i);
        }
        worker.join().unwrap();
        notifier.notify().unwrap();
    });
}
