//! Which poller is used: by name, by the environment, by the builder; and what is said if there is
//! no such thing.

#![allow(clippy::unwrap_used)]

mod common;

use std::io;

use ruduo::{EventLoop, LoopPool, LoopThread, Poller, PollerKind};

const ALL: [(PollerKind, &str); 3] =
    [(PollerKind::Epoll, "epoll"), (PollerKind::Kqueue, "kqueue"), (PollerKind::Poll, "poll")];

#[test]
fn names_are_those_of_the_kernel_interfaces() {
    for (kind, name) in ALL {
        assert_eq!(kind.to_string(), name);
        assert_eq!(name.parse::<PollerKind>().unwrap(), kind);
    }
    for wrong in ["", "Epoll", "poll ", "select"] {
        let error = wrong.parse::<PollerKind>().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let text = error.to_string();
        assert!(text.contains(&format!("{wrong:?}")) && text.contains("epoll, kqueue, poll"));
    }
}

#[test]
fn what_is_available_works_and_the_rest_says_so() {
    alone!().run(|| {
        assert!(PollerKind::available().contains(&PollerKind::Poll));
        for (kind, name) in ALL {
            let made = Poller::with_kind(kind);
            let with_loop = EventLoop::builder().poller(kind).build();
            if PollerKind::available().contains(&kind) {
                assert_eq!(made.unwrap().kind(), kind);
                assert_eq!(with_loop.unwrap().poller_kind(), kind);
            } else {
                for error in [made.unwrap_err(), with_loop.map(drop).unwrap_err()] {
                    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
                    let text = error.to_string();
                    let best = PollerKind::available()[0].to_string();
                    assert!(text.contains(name) && text.contains(&best), "{text}");
                }
            }
        }
    });
}

#[test]
fn nothing_said_is_the_best() {
    alone!().run(|| {
        if std::env::var_os("RUDUO_POLLER").is_none() {
            assert_eq!(Poller::new().unwrap().kind(), PollerKind::available()[0]);
        }
        assert_eq!(Poller::new().unwrap().kind(), PollerKind::preferred().unwrap());
        assert_eq!(EventLoop::new().unwrap().poller_kind(), PollerKind::preferred().unwrap());
    });
}

#[test]
fn the_environment_chooses_for_all_and_the_builder_has_the_last_word() {
    alone!().env("RUDUO_POLLER", "poll").run(|| {
        assert_eq!(Poller::new().unwrap().kind(), PollerKind::Poll);
        let event_loop = EventLoop::new().unwrap();
        assert_eq!(event_loop.poller_kind(), PollerKind::Poll);
        drop(event_loop);
        let best = PollerKind::available()[0];
        let event_loop = EventLoop::builder().poller(best).build().unwrap();
        assert_eq!(event_loop.poller_kind(), best);
        // The threads of a pool do as its base loop does.
        let on_start = move |event_loop: &EventLoop| {
            assert_eq!(event_loop.poller_kind(), best);
            Ok(())
        };
        LoopPool::builder(&event_loop).threads(1).on_start(on_start).start().unwrap();
    });
}

#[test]
fn a_name_in_the_environment_that_is_none_is_an_error_and_not_ignored() {
    alone!().env("RUDUO_POLLER", "epol").run(|| {
        let thread = LoopThread::spawn("test-loop", EventLoop::builder(), |_| Ok(()));
        for outcome in [Poller::new().map(drop), EventLoop::new().map(drop), thread.map(drop)] {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let text = error.to_string();
            assert!(text.contains("RUDUO_POLLER") && text.contains("\"epol\""), "{text}");
        }
        assert!(!EventLoop::exists_on_this_thread());
        // Who chooses does not ask it.
        EventLoop::builder().poller(PollerKind::Poll).build().unwrap();
    });
}
