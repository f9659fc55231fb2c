//! Timers of connections.

#![allow(clippy::unwrap_used)]

mod common;
mod recorder;

use std::io::Write;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::{DEADLINE, read_n, read_to_end, serve, within};
use recorder::{Recorded, Told, brief, recorded};
use ruduo::TcpServer;

const SHORT: Duration = Duration::from_millis(30);
/// Long enough that it never fires while a test waits for something else.
const LONG: Duration = Duration::from_secs(3600);

/// Waits until all timers of the loop with a deadline before now and `delay` have fired, if armed.
fn wait_past(this: &Recorded, delay: Duration) {
    let (tell, told) = channel();
    let arm = move |event_loop: &ruduo::EventLoop| {
        event_loop.run_after(delay, move |_| tell.send(()).unwrap());
    };
    this.server.event_loop().post(arm).unwrap();
    within(&told);
}

#[test]
fn fires_once_with_its_key_and_never_early() {
    each_poller!().run(|| {
        let (this, _peer) = recorded(|server| server);
        let start = Instant::now();
        this.call(|conn| {
            conn.set_timer(3, LONG);
            conn.set_timer(1, SHORT);
            conn.set_timer(2, 2 * SHORT);
        });
        assert_eq!(within(&this.told), Told::Timer(1));
        assert!(start.elapsed() >= SHORT);
        assert_eq!(within(&this.told), Told::Timer(2));
        assert!(start.elapsed() >= 2 * SHORT);
        wait_past(&this, 3 * SHORT);
        assert!(this.told.try_recv().is_err(), "once each");
    });
}

#[test]
fn setting_it_again_replaces_it() {
    each_poller!().run(|| {
        let (this, _peer) = recorded(|server| server);
        let start = Instant::now();
        this.call(|conn| {
            conn.set_timer(1, LONG);
            conn.set_timer(1, SHORT);
            conn.set_timer(2, SHORT);
            conn.set_timer(2, 4 * SHORT);
        });
        assert_eq!(within(&this.told), Told::Timer(1));
        assert_eq!(within(&this.told), Told::Timer(2));
        assert!(start.elapsed() >= 4 * SHORT, "the one that was replaced has fired");
        wait_past(&this, SHORT);
        assert!(this.told.try_recv().is_err());
    });
}

#[test]
fn cancelling_tells_whether_it_was_armed() {
    each_poller!().run(|| {
        let (this, _peer) = recorded(|server| server);
        let (tell, told) = channel();
        this.call(move |conn| {
            conn.set_timer(1, SHORT);
            let first = conn.cancel_timer(1);
            let second = conn.cancel_timer(1);
            tell.send((first, second, conn.cancel_timer(2))).unwrap();
        });
        assert_eq!(within(&told), (true, false, false));
        wait_past(&this, 2 * SHORT);
        assert!(this.told.try_recv().is_err(), "fired although cancelled");
    });
}

#[test]
fn one_that_has_fired_is_not_armed() {
    each_poller!().run(|| {
        let (this, _peer) = recorded(|server| server);
        this.call(|conn| conn.set_timer(1, Duration::ZERO));
        assert_eq!(within(&this.told), Told::Timer(1));
        let (tell, told) = channel();
        this.call(move |conn| tell.send(conn.cancel_timer(1)).unwrap());
        assert!(!within(&told));
    });
}

/// Also with a delay of zero the others get their turns in between.
#[test]
fn may_be_set_again_by_itself() {
    each_poller!().run(|| {
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_connect(|conn| conn.set_timer(5, Duration::ZERO))
                .on_timer(|conn, key| {
                    conn.send([b'0' + key as u8]);
                    match key {
                        0 => conn.shutdown(),
                        _ => conn.set_timer(key - 1, Duration::ZERO),
                    }
                })
                .on_message(|_, _| {})
                .start()
        });
        let peer = server.connect();
        assert_eq!(read_to_end(&peer).unwrap(), b"543210");
    });
}

#[test]
fn keys_belong_to_their_connection() {
    each_poller!().run(|| {
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, input| match input.read_u8() {
                    Some(b'c') => assert!(!conn.cancel_timer(1), "cancelled another's timer"),
                    _ => conn.set_timer(1, SHORT),
                })
                .on_timer(|conn, _| conn.send("fired"))
                .start()
        });
        let (mut one, mut other) = (server.connect(), server.connect());
        one.write_all(b"s").unwrap();
        other.write_all(b"c").unwrap();
        assert_eq!(read_n(&one, 5), b"fired");
    });
}

#[test]
fn all_end_with_the_connection() {
    each_poller!().run(|| {
        // Closed by the program, and by the peer.
        for by_peer in [false, true] {
            let (this, peer) = recorded(|server| server);
            this.call(move |conn| {
                conn.set_timer(1, SHORT);
                conn.set_timer(2, 2 * SHORT);
                conn.set_timer(3, LONG);
                if !by_peer {
                    conn.close();
                }
            });
            drop(peer);
            let mut last = within(&this.told);
            // The first ones may be over before the peer's end is noticed.
            while matches!(last, Told::Timer(1 | 2) | Told::HalfClose) {
                last = within(&this.told);
            }
            assert!(matches!(last, Told::Closed(_)), "{last:?}");
            wait_past(&this, 3 * SHORT);
            assert!(this.told.try_recv().is_err(), "told of something after the end");
        }
    });
}

/// Both are due at once; the first one closes.
#[test]
fn none_fires_after_close_in_the_same_turn() {
    each_poller!().run(|| {
        let (tell, told) = channel();
        let closed = tell.clone();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_connect(|conn| (1..=2).for_each(|key| conn.set_timer(key, Duration::ZERO)))
                .on_message(|_, _| {})
                .on_timer(move |conn, key| {
                    conn.close();
                    tell.send(Told::Timer(key)).unwrap();
                })
                .on_close(move |_, reason| closed.send(Told::Closed(brief(reason))).unwrap())
                .start()
        });
        let _peer = server.connect();
        assert!(matches!(within(&told), Told::Timer(_)));
        assert_eq!(within(&told), Told::Closed("Closed".into()));
    });
}

#[test]
fn one_set_in_the_last_callback_never_fires() {
    each_poller!().run(|| {
        let (tell, told) = channel();
        let fired = tell.clone();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|_, _| {})
                .on_timer(move |_, _| fired.send("fired").unwrap())
                .on_close(move |conn, _| {
                    conn.set_timer(1, Duration::ZERO);
                    conn.set_timer(2, DEADLINE);
                    tell.send("closed").unwrap();
                })
                .start()
        });
        drop(server.connect());
        assert_eq!(within(&told), "closed");
        recorder::turns(server.event_loop());
        recorder::turns(server.event_loop());
        assert!(told.try_recv().is_err());
    });
}

/// It could not fire any more, but would be kept until it is due.
#[test]
fn none_is_armed_for_a_connection_that_has_ended() {
    each_poller!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|_, _| {})
                .on_close(move |conn, _| {
                    conn.set_timer(1, Duration::ZERO);
                    let (event_loop, tell) = (conn.event_loop(), tell.clone());
                    let before = event_loop.metrics().timers;
                    event_loop.run_after(SHORT, move |event_loop| {
                        tell.send(event_loop.metrics().timers - before).unwrap();
                    });
                })
                .start()
        });
        drop(server.connect());
        assert_eq!(within(&told), 1, "timers, of which one is the test's");
    });
}
