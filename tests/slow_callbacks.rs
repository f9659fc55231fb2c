//! A callback that keeps its loop from everything else is found and named.

#![allow(clippy::unwrap_used)]

mod common;

use std::cell::Cell;
use std::io::{self, Write};
use std::net::Shutdown;
use std::rc::Rc;
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use common::{SLOW_CALLBACK, logs, read_n, read_to_end, serve_on, within};
use ruduo::{
    Buffer, Channel, CloseReason, Connection, EventLoop, Handler, Interest, TcpServer, UdpServer,
    UdpSocket,
};

const THRESHOLD: Duration = Duration::from_millis(20);

/// Blocks, as a callback should not.
fn block() {
    std::thread::sleep(2 * THRESHOLD);
}

/// The only lines about slow callbacks so far; all other ones are quick.
fn lines() -> Vec<String> {
    logs().into_iter().filter(|line| line.contains(SLOW_CALLBACK)).collect()
}

/// On a busy machine a quick callback may take long too, and then has the line that only comes once
/// a second. So each attempt has a loop of its own.
#[track_caller]
fn some_attempt(what: &str, blames_the_culprit: impl Fn() -> bool) {
    assert!((0..20).any(|_| blames_the_culprit()), "nobody is blamed for {what}: {:?}", lines());
}

/// A loop with the watch on does this, is told to quit, and `culprit` has got the first line.
#[track_caller]
fn blames(culprit: &str, setup: impl Fn(&EventLoop)) {
    some_attempt(culprit, || {
        let event_loop = EventLoop::builder().slow_callback(THRESHOLD).build().unwrap();
        setup(&event_loop);
        let before = lines().len();
        event_loop.run().unwrap();
        let metrics = event_loop.metrics();
        assert!(metrics.lag >= 2 * THRESHOLD && metrics.slow_callbacks >= 1, "{metrics}");
        let words = [metrics.slow_callbacks.into(), metrics.lag.as_micros()];
        let words = format!(" slow_callbacks={} lag_us={}", words[0], words[1]);
        assert!(metrics.to_string().ends_with(&words), "{metrics}");
        let thread = std::thread::current();
        let thread = format!("{SLOW_CALLBACK} {}", thread.name().unwrap());
        lines()[before..]
            .first()
            .is_some_and(|line| line.contains(culprit) && line.contains(&thread))
    });
}

#[test]
fn b54_slow_callbacks_of_the_loop_are_named() {
    alone!().expect_log(SLOW_CALLBACK).run(|| {
        blames("a timer", |event_loop| {
            event_loop.run_after(Duration::from_millis(1), |event_loop| {
                block();
                event_loop.quit();
            });
        });
        blames("a task", |event_loop| {
            event_loop.defer(|event_loop| {
                block();
                event_loop.quit();
            });
        });
        blames("an event of a channel", |event_loop| {
            let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
            (&near).write_all(b"x").unwrap();
            let channel = Channel::new(far, Interest::READ, move |event_loop, _, event| {
                let _ = &near;
                block();
                event_loop.deregister(event.token);
                event_loop.quit();
            });
            event_loop.register(channel).unwrap();
        });
        blames("the handler of SIGUSR1", |event_loop| {
            let on_signal = |event_loop: &EventLoop, _| {
                block();
                event_loop.quit();
            };
            event_loop.on_signal(ruduo::Signal::SIGUSR1, on_signal).unwrap();
            nix::sys::signal::raise(ruduo::Signal::SIGUSR1).unwrap();
        });
        blames("the drop of a value", |event_loop| {
            struct Slow;
            impl Drop for Slow {
                fn drop(&mut self) {
                    block();
                }
            }
            let slow = Slow;
            let timer = event_loop.run_after(Duration::from_secs(1000), move |_| drop(slow));
            event_loop.defer(move |event_loop| {
                event_loop.cancel(timer);
                event_loop.defer(|event_loop| {
                    event_loop.run_after(Duration::from_millis(1), EventLoop::quit);
                });
            });
        });
    });
}

#[test]
fn b54_what_many_timers_take_together_is_not_blamed_on_the_first() {
    alone!().expect_log(SLOW_CALLBACK).run(|| {
        some_attempt("sorting", || {
            let threshold = Duration::from_millis(2);
            let event_loop = EventLoop::builder().slow_callback(threshold).build().unwrap();
            let now = event_loop.now();
            for i in 0..200_000_u64 {
                let scattered = Duration::from_nanos(i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 44);
                event_loop.run_at(now + scattered, |_| {});
            }
            event_loop.run_at(now + threshold, EventLoop::quit);
            let before = lines().len();
            event_loop.run().unwrap();
            lines()[before..].first().is_some_and(|line| line.contains("sorting the timers"))
        });
    });
}

/// Blocks in one of its callbacks.
struct Slow {
    which: &'static str,
    closed: Sender<()>,
}

impl Slow {
    fn here(&self, which: &str) {
        if self.which == which {
            block();
        }
    }
}

impl Handler for Slow {
    fn on_connect(&mut self, conn: &Connection) {
        self.here("on_connect");
        conn.set_timer(0, Duration::from_millis(1));
        let _ = conn.handle_for::<Slow>().post(|slow, _| slow.here("a call to a handler"));
    }
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        self.here("an event");
        conn.send_buffer(input);
    }
    fn on_timer(&mut self, conn: &Connection, _: u64) {
        self.here("on_timer");
        conn.send("t");
    }
    fn on_close(&mut self, _: &Connection, _: &CloseReason) {
        self.here("on_close");
        self.closed.send(()).unwrap();
    }
}

#[test]
fn b54_slow_callbacks_of_connections_are_named_with_connection_and_thread() {
    alone!().expect_log(SLOW_CALLBACK).run(|| {
        for which in ["on_connect", "an event", "a call to a handler", "on_timer", "on_close"] {
            some_attempt(which, || blames_the_callback(which));
        }
    });
}

fn blames_the_callback(which: &'static str) -> bool {
    let (send, closed) = mpsc::channel();
    let builder = EventLoop::builder().slow_callback(THRESHOLD);
    let running = serve_on(builder, move |event_loop| {
        let new = move |_: &Connection| Slow { which, closed: send.clone() };
        TcpServer::bind(event_loop, "127.0.0.1:0")?.serve(new)
    });
    let before = lines().len();
    let mut peer = running.connect();
    read_n(&peer, 1);
    peer.write_all(b"x").unwrap();
    read_n(&peer, 1);
    peer.shutdown(Shutdown::Write).unwrap();
    read_to_end(&peer).unwrap();
    within(&closed);
    drop(running);
    let culprit = format!("{which} of connection #");
    let whose = format!("to {} {SLOW_CALLBACK} test-loop", peer.local_addr().unwrap());
    lines()[before..].first().is_some_and(|line| line.contains(&culprit) && line.contains(&whose))
}

#[test]
fn b54_slow_callbacks_of_datagram_sockets_are_named_with_the_socket() {
    alone!().expect_log(SLOW_CALLBACK).run(|| {
        // What the socket itself calls in its event is told apart; a batch of datagrams is not.
        for (which, culprit) in [
            ("on_start", "on_start of"),
            ("on_datagram", "on_datagram of"),
            ("a call", "a call posted to"),
            ("on_close", "on_close of"),
        ] {
            let when = move |here: &str| {
                if which == here {
                    block();
                }
            };
            some_attempt(which, || {
                let event_loop = EventLoop::builder().slow_callback(THRESHOLD).build().unwrap();
                let udp = UdpServer::bind(&event_loop, "127.0.0.1:0")
                    .on_start(move |_| when("on_start"))
                    .on_datagram(move |socket, _| {
                        when("on_datagram");
                        let call = move |socket: &UdpSocket<'_>| {
                            when("a call");
                            socket.close();
                        };
                        socket.handle().post(call).unwrap();
                    })
                    .on_close(move |socket| {
                        when("on_close");
                        socket.event_loop().quit();
                    })
                    .start()
                    .unwrap();
                let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                peer.send_to(b"x", udp.local_addr()).unwrap();
                let before = lines().len();
                event_loop.run().unwrap();
                let whose = format!("{culprit} the datagram socket on {}", udp.local_addr());
                lines()[before..].first().is_some_and(|line| line.contains(&whose))
            });
        }
    });
}

/// Neither the life of a loop before it ends, nor its sleep, nor the time of what a callback calls, is
/// that of the callback.
#[test]
fn b54_nobody_is_blamed_for_the_time_of_others() {
    alone!().expect_log(SLOW_CALLBACK).run(|| {
        some_attempt("its loop's life", || {
            let unwatched = Duration::from_secs(1000);
            let unused = EventLoop::builder().slow_callback(unwatched).build().unwrap();
            block();
            let lag = Rc::new(Cell::new(Duration::MAX));
            let seen = lag.clone();
            unused.defer(|_| {});
            unused.defer(move |event_loop| seen.set(event_loop.metrics().lag));
            drop(unused);
            lag.get() < 2 * THRESHOLD
        });
        some_attempt("its loop's sleep", || {
            let event_loop = EventLoop::builder().slow_callback(THRESHOLD).build().unwrap();
            event_loop.run_after(2 * THRESHOLD, EventLoop::quit);
            event_loop.run().unwrap();
            event_loop.metrics().slow_callbacks == 0
        });
        some_attempt("what is inside", || {
            let inside = EventLoop::builder().slow_callback(THRESHOLD).build().unwrap();
            inside.defer(|event_loop| {
                let _ =
                    event_loop.isolate("the middle", || event_loop.isolate("the innermost", block));
                event_loop.quit();
            });
            let before = lines().len();
            inside.run().unwrap();
            let lines = lines().split_off(before);
            let is_alone = inside.metrics().slow_callbacks == 1;
            drop(inside);
            is_alone && lines.len() == 1 && lines[0].contains("the innermost kept")
        });
        some_attempt("who comes first", || {
            let event_loop = EventLoop::builder().slow_callback(THRESHOLD).build().unwrap();
            event_loop.defer(|_| block());
            for _ in 0..10 {
                event_loop.defer(|_| {});
            }
            event_loop.defer(EventLoop::quit);
            event_loop.run().unwrap();
            event_loop.metrics().slow_callbacks == 1
        });
        some_attempt("what is around", || {
            let event_loop = EventLoop::builder().slow_callback(THRESHOLD).build().unwrap();
            event_loop.defer(|event_loop| {
                block();
                let _ = event_loop.isolate("what is inside", || ());
            });
            event_loop.defer(EventLoop::quit);
            let before = lines().len();
            event_loop.run().unwrap();
            let lines = lines().split_off(before);
            // Nor is it that of the next one.
            let once = event_loop.metrics().slow_callbacks == 1;
            once && lines.len() == 1 && lines[0].contains("a task kept")
        });
    });
}

#[test]
fn b54_who_blocks_all_the_time_gets_a_line_a_second() {
    alone!().expect_log(SLOW_CALLBACK).run(|| {
        let event_loop = EventLoop::builder().slow_callback(THRESHOLD).build().unwrap();
        let start = Instant::now();
        let mut ticks = 0;
        event_loop.run_every(Duration::from_millis(1), move |event_loop| {
            block();
            ticks += 1;
            if ticks == 60 {
                event_loop.quit();
            }
        });
        event_loop.run().unwrap();
        let slow = event_loop.metrics().slow_callbacks;
        assert!(slow >= 60, "{}", event_loop.metrics());
        let (lines, seconds) = (lines(), start.elapsed().as_secs() as usize);
        // Sixty times forty milliseconds are more than two seconds.
        assert!((3..=seconds + 1).contains(&lines.len()), "{lines:?}");
        // Each has a line, or is counted in the next one.
        let more = lines.iter().filter_map(|line| {
            let (_, more) = line.split_once(" ms; ")?;
            Some(more.split_once(" more were as slow")?.0.parse::<u64>().unwrap())
        });
        let more: u64 = more.sum();
        assert!(more > 0 && lines.len() as u64 + more <= slow, "of {slow}: {lines:?}");
    });
}

#[test]
fn b54_the_watch_can_be_off_and_its_lag_is_a_metric() {
    alone!().run(|| {
        let off = EventLoop::builder().slow_callback(Duration::MAX).build().unwrap();
        off.defer(|event_loop| {
            block();
            event_loop.quit();
        });
        off.run().unwrap();
        assert_eq!((off.metrics().slow_callbacks, off.metrics().lag), (0, Duration::ZERO));
        drop(off);

        let only_lag = Duration::from_secs(1000);
        let on = EventLoop::builder().slow_callback(only_lag).build().unwrap();
        on.defer(|event_loop| {
            block();
            event_loop.quit();
        });
        on.run().unwrap();
        // Asking changes nothing: several may ask.
        for _ in 0..2 {
            assert!(on.metrics().lag >= 2 * THRESHOLD, "{}", on.metrics());
            assert_eq!(on.metrics().slow_callbacks, 0);
        }
        assert!(lines().is_empty(), "{:?}", lines());
    });
}

#[test]
fn b54_threads_of_a_server_are_watched_as_its_own_loop() {
    alone!().expect_log(SLOW_CALLBACK).run(|| {
        let builder = EventLoop::builder().slow_callback(THRESHOLD);
        let running = serve_on(builder, |event_loop| -> io::Result<_> {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .threads(1)
                .name("worker")
                .on_message(|conn, input| {
                    block();
                    conn.send_buffer(input);
                })
                .start()
        });
        let peer = running.connect();
        common::eventually("the line is there", || {
            (&peer).write_all(b"x").unwrap();
            read_n(&peer, 1);
            lines().iter().any(|line| line.contains(&format!("{SLOW_CALLBACK} worker")))
        });
    });
}
