//! System calls that are denied, by a filter of the kernel (seccomp) as containers and hardened
//! services have them: the library does without, or says clearly what it needs. A filter is put on one
//! thread, at a moment of the test's choice, and can look at a call's arguments.

#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
#![allow(clippy::unwrap_used)]

mod common;
mod denial;
mod recorder;

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{eventually, nobody, open_fds, read_n, read_to_end, serve, take_logs, within};
use denial::{Call, THREADS, deny};
use nix::errno::Errno;
use recorder::{Recorded, Told, recorded, turns};
use ruduo::{
    Addresses, ConnectError, EventLoop, LoopHandle, LoopPool, LoopThread, NotifierKind, PollerKind,
    TcpClient, TcpServer,
};

/// Runs `body` on a thread of which these calls fail.
fn denied<R: Send>(calls: &[Call], error: Errno, body: impl FnOnce() -> R + Send) -> R {
    let on_thread = || {
        deny(calls, error);
        body()
    };
    thread::scope(|scope| scope.spawn(on_thread).join().unwrap())
}

/// From now on these calls of the loop's thread fail.
fn deny_to(event_loop: &LoopHandle, calls: &'static [Call], error: Errno) {
    event_loop.post(move |_| deny(calls, error)).unwrap();
    turns(event_loop);
}

const EPOLL_CREATE: &[Call] = &[(libc::SYS_epoll_create1, None)];
const MODIFY: &[Call] = &[(libc::SYS_epoll_ctl, Some((1, libc::EPOLL_CTL_MOD as u64)))];
const EVENTFD: &[Call] = &[(libc::SYS_eventfd2, None)];
const WAIT_IN_NANOSECONDS: &[Call] = &[(libc::SYS_epoll_pwait2, None)];
/// All ways to wait that there are.
const WAIT: &[Call] = &[
    (libc::SYS_epoll_pwait2, None),
    (libc::SYS_epoll_pwait, None),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, None),
];

// Making a loop.

#[test]
fn b56_a_loop_without_epoll_is_an_error_that_names_it_and_poll_does_without() {
    alone!().run(|| {
        for error in [Errno::EPERM, Errno::ENOSYS, Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM] {
            denied(EPOLL_CREATE, error, || {
                let by_epoll = EventLoop::builder().poller(PollerKind::Epoll).build();
                let text = by_epoll.unwrap_err().to_string();
                assert!(text.starts_with("making an event loop: epoll_create1: "), "{text}");
                assert!(text.contains(&io::Error::from(error).to_string()), "{text}");
                let is_forbidden = matches!(error, Errno::EPERM | Errno::ENOSYS);
                assert_eq!(text.contains("RUDUO_POLLER=poll"), is_forbidden, "{text}");
                assert_works(&EventLoop::builder().poller(PollerKind::Poll).build().unwrap());
            });
        }
    });
}

#[test]
fn b56_a_loop_without_eventfd_is_an_error_that_names_it_and_others_do_without() {
    alone!().run(|| {
        for error in [Errno::EPERM, Errno::ENOSYS, Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM] {
            denied(EVENTFD, error, || {
                let fds = open_fds();
                let text = EventLoop::builder().notifiers(NotifierKind::Eventfd).build();
                let text = text.unwrap_err().to_string();
                assert!(text.starts_with("making an event loop: eventfd: "), "{text}");
                assert!(text.contains(&io::Error::from(error).to_string()), "{text}");
                assert_eq!(open_fds(), fds, "what had been made before it is undone");
                for kind in [NotifierKind::SocketPair, NotifierKind::Pipe] {
                    assert_works(&EventLoop::builder().notifiers(kind).build().unwrap());
                }
            });
        }
    });
}

/// The loop is woken by another thread, and has timers.
fn assert_works(event_loop: &EventLoop) {
    let handle = event_loop.handle();
    let other = thread::spawn(move || {
        let woken = |event_loop: &EventLoop| {
            event_loop.run_after(Duration::from_millis(1), EventLoop::quit);
        };
        handle.post(woken).unwrap();
    });
    event_loop.run().unwrap();
    other.join().unwrap();
}

#[test]
fn b56_a_pool_without_threads_is_rolled_back() {
    alone!().run(|| {
        let base = EventLoop::new().unwrap();
        let fds = open_fds();
        deny(THREADS, Errno::EAGAIN);
        let text = LoopPool::builder(&base).threads(3).start().unwrap_err().to_string();
        assert!(text.contains("ruduo-0"), "{text}");
        assert_eq!(open_fds(), fds);
    });
}

// Waiting.

#[test]
fn b52_timers_are_exact_enough_and_never_early_without_epoll_pwait2() {
    for_epoll(alone!(), || {
        for error in [Errno::ENOSYS, Errno::EPERM] {
            denied(WAIT_IN_NANOSECONDS, error, || {
                let event_loop = EventLoop::new().unwrap();
                let delays = [100, 1_000, 1_500, 20_300].map(Duration::from_micros);
                let (tell, told) = mpsc::channel();
                for delay in delays {
                    let (tell, start) = (tell.clone(), Instant::now());
                    event_loop.run_after(delay, move |_| {
                        assert!(start.elapsed() >= delay, "early");
                        tell.send(delay).unwrap();
                    });
                }
                event_loop.run_after(Duration::from_millis(50), EventLoop::quit);
                event_loop.run().unwrap();
                assert_eq!(Vec::from_iter(told.try_iter()), delays);
                let turns = event_loop.metrics().turns;
                assert!(turns < 40, "{turns} turns: it spins");
            });
        }
    });
}

/// Runs a test of what only epoll does.
fn for_epoll(alone: common::Alone, body: impl FnOnce()) {
    alone.on_poller(PollerKind::Epoll).run(body);
}

#[test]
fn b57_a_loop_that_cannot_wait_closes_its_connections_and_reports_it() {
    for_epoll(alone!().expect_log("an event loop failed: waiting for events by epoll"), || {
        let (Recorded { server, told, .. }, peer) = recorded(|server| server);
        server.event_loop().post(|_| deny(WAIT, Errno::EPERM)).unwrap();
        assert_eq!(within(&told), Told::Closed("LoopEnded".to_owned()));
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        let error = server.thread.join().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        assert!(error.to_string().contains("epoll"), "{error}");
    });
}

// Connections.

#[test]
fn b06_accepting_that_is_denied_disturbs_nobody_else() {
    each_poller!().expect_log("accepting a connection failed").run(|| {
        let (this, _peer) = recorded(|server| server);
        deny_to(this.server.event_loop(), &[(libc::SYS_accept4, None)], Errno::ENOSYS);
        let _waiting = this.server.connect();
        let metrics = || this.server.server.metrics();
        eventually("accepting has paused", || metrics().accept_pauses > 0);
        assert!(this.turns_in(Duration::from_millis(300)) < 100, "it spins");
        this.call(|conn| conn.set_timer(1, Duration::ZERO));
        assert_eq!(within(&this.told), Told::Timer(1));
        assert_eq!(metrics().accepted, 1);
    });
}

#[test]
fn b18_receiving_that_is_denied_closes_with_the_reason() {
    each_poller!().run(|| {
        for error in [Errno::EPERM, Errno::ENOSYS, Errno::ENOMEM, Errno::ENOBUFS] {
            let (this, mut peer) = recorded(|server| server);
            deny_to(this.server.event_loop(), &[(libc::SYS_recvfrom, None)], error);
            peer.write_all(b"hello").unwrap();
            assert_eq!(this.closed(), format!("ReadFailed({error:?})"));
        }
    });
}

#[test]
fn b25_sending_that_is_denied_closes_with_the_reason() {
    const SEND: &[Call] = &[(libc::SYS_sendto, None)];
    const SEND_SEVERAL: &[Call] = &[(libc::SYS_sendmsg, None)];
    const SEND_FILE: &[Call] = &[(libc::SYS_sendfile, None)];
    each_poller!().run(|| {
        for error in [Errno::EPERM, Errno::ENOSYS, Errno::ENOMEM, Errno::ENOBUFS] {
            for calls in [SEND, SEND_SEVERAL, SEND_FILE] {
                let (this, peer) = recorded(|server| server);
                deny_to(this.server.event_loop(), calls, error);
                this.call(move |conn| {
                    if calls == SEND_FILE {
                        conn.send_file(File::open("/proc/self/exe").unwrap(), 0, 10);
                    } else if calls == SEND_SEVERAL {
                        conn.send_shared(vec![1; 10_000].into());
                        conn.send_shared(vec![2; 10_000].into());
                    } else {
                        conn.send("hello");
                    }
                });
                // What the peer has sent would still be delivered: its end is awaited.
                drop(peer);
                let told = loop {
                    match within(&this.told) {
                        Told::HalfClose => {}
                        other => break other,
                    }
                };
                assert_eq!(told, Told::Closed(format!("WriteFailed({error:?})")), "{calls:?}");
            }
        }
    });
}

/// The kernel has no memory to watch it for something else. Nobody would ever hear of it again.
#[test]
fn b25_a_connection_whose_interest_cannot_be_changed_closes_with_the_reason() {
    for_epoll(alone!(), || {
        let (this, _peer) = recorded(|server| server);
        deny_to(this.server.event_loop(), MODIFY, Errno::ENOMEM);
        this.conn.send(vec![7; 32 * 1024 * 1024]).unwrap();
        let told = loop {
            match within(&this.told) {
                Told::HighWater(_) => {}
                other => break other,
            }
        };
        assert_eq!(told, Told::Closed("ReadFailed(OutOfMemory)".to_owned()));
    });
}

/// A listener that goes on hearing of who waits, and cannot accept, would spin.
#[test]
fn b03_a_listener_pauses_although_its_interest_cannot_be_changed() {
    const ACCEPT: &[Call] = &[(libc::SYS_accept4, None)];
    let shortage = alone!().expect_log("accepting connections pauses");
    for_epoll(shortage, || {
        let running = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, input| conn.send_buffer(input))
                .start()
        });
        deny_to(running.event_loop(), MODIFY, Errno::ENOMEM);
        deny_to(running.event_loop(), ACCEPT, Errno::ENOBUFS);
        let _waits = running.connect();
        eventually("pauses", || running.server.metrics().accept_pauses >= 3);
        let (tell, told) = mpsc::channel();
        running.event_loop().post(move |l| tell.send(l.metrics().turns).unwrap()).unwrap();
        let (turns, pauses) = (within(&told), running.server.metrics().accept_pauses);
        assert!(turns <= 20 + 4 * pauses, "{turns} turns in {pauses} pauses");
    });
}

#[test]
fn b09_a_connection_that_cannot_be_watched_is_closed_and_counted() {
    const ADD: &[Call] = &[(libc::SYS_epoll_ctl, Some((1, libc::EPOLL_CTL_ADD as u64)))];
    for_epoll(alone!(), || {
        let running = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, input| conn.send_buffer(input))
                .start()
        });
        let mut established = running.connect();
        established.write_all(b"hello").unwrap();
        assert_eq!(read_n(&established, 5), b"hello");
        deny_to(running.event_loop(), ADD, Errno::ENOSPC);
        for _ in 0..3 {
            assert_eq!(read_to_end(&running.connect()).unwrap(), b"", "closed without a word");
        }
        // However many they are.
        let lines = take_logs();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains("No space left on device"), "{lines:?}");
        established.write_all(b"still").unwrap();
        assert_eq!(read_n(&established, 5), b"still");
        let metrics = running.server.metrics();
        assert_eq!((metrics.open, metrics.lost), (1, 3), "{metrics}");
        assert_eq!(running.event_loop().load(), 1, "it counts where connections are placed");
    });
}

// Clients.

#[test]
fn b58_a_socket_that_is_denied_is_a_typed_failure() {
    each_poller!().run(|| {
        for (error, expected) in [
            (Errno::EPERM, Some(ConnectError::PermissionDenied)),
            (Errno::EACCES, Some(ConnectError::PermissionDenied)),
            (Errno::EMFILE, None),
            (Errno::ENOBUFS, None),
            (Errno::EAFNOSUPPORT, None),
        ] {
            let failure = failure(nobody(), &[(libc::SYS_socket, None)], error);
            match expected {
                Some(expected) => assert_eq!(failure, expected, "{error}"),
                None => assert!(
                    matches!(&failure, ConnectError::Other(_, why) if
                        why.contains(&io::Error::from(error).to_string())),
                    "{error}: {failure:?}"
                ),
            }
        }
    });
}

/// Names are looked up on threads.
#[test]
fn b58_a_name_without_a_thread_to_look_it_up_is_a_typed_failure() {
    each_poller!().run(|| {
        let failure = failure("localhost:1", THREADS, Errno::EAGAIN);
        let ConnectError::Other(_, why) = &failure else { panic!("{failure:?}") };
        assert!(why.starts_with("starting a resolver thread: "), "{why}");
    });
}

/// Of a client on a thread of which these calls fail.
fn failure(target: impl Into<Addresses>, calls: &'static [Call], error: Errno) -> ConnectError {
    let (tell, told) = mpsc::channel();
    let target = target.into();
    let _client = LoopThread::spawn("client", EventLoop::builder(), move |event_loop| {
        deny(calls, error);
        TcpClient::connect(event_loop, target)
            .on_connect_failed(move |_, failure| {
                tell.send(failure.error.clone()).unwrap();
            })
            .on_message(|_, _| {})
            .start()?;
        Ok(())
    })
    .unwrap();
    within(&told)
}
