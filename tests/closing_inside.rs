//! Closing a connection, another one or the server from inside each of the callbacks. Whatever is
//! closed, callbacks do not nest, and each connection closes once, as the last thing it does (see
//! `actor`, which checks that).

#![allow(clippy::unwrap_used)]

mod actor;
mod common;

use std::time::Duration;

use actor::{At, Role, play};

const CLOSED: &str = "closed by the program";
const RESET: &str = "reset by the program";
const STOPPED: &str = "cut at the stop's deadline";

/// With the two connections on one loop, and on different ones.
const THREADS: [usize; 2] = [0, 2];

fn assert_closes_itself(at: At) {
    for threads in THREADS {
        let play = play(threads, at, |_, conn| {
            conn.close();
            conn.shutdown();
            conn.close();
        });
        play.running.server.stop(Duration::ZERO);
        let (reason, _) = play.end();
        let too_late = at == At::Close;
        assert_eq!(reason, if too_late { "closed by the peer" } else { CLOSED });
    }
}

fn assert_resets_itself(at: At) {
    for threads in THREADS {
        let play = play(threads, at, |_, conn| {
            conn.reset();
            conn.close();
        });
        play.running.server.stop(Duration::ZERO);
        let (reason, _) = play.end();
        let too_late = at == At::Close;
        assert_eq!(reason, if too_late { "closed by the peer" } else { RESET });
    }
}

fn assert_closes_another(at: At) {
    for threads in THREADS {
        let mut play = play(threads, at, |scene, _| {
            scene.other().close().unwrap();
            // On one loop it is known to be closed by now, on different ones it may be.
            let _ = scene.other().close();
        });
        assert_eq!(play.end_of(Role::Other), CLOSED);
        play.running.server.stop(Duration::ZERO);
        play.end();
    }
}

fn assert_stops_the_server(at: At) {
    for threads in THREADS {
        let play = play(threads, at, |scene, _| {
            scene.server().stop(Duration::ZERO);
            scene.server().stop(Duration::ZERO);
        });
        let (_, reason) = play.end();
        assert_eq!(reason, STOPPED);
    }
}

macro_rules! everything_can_be_closed {
    ($($name:ident: $at:ident;)*) => {$(
        #[test]
        fn $name() {
            each_poller!().run(|| {
                assert_closes_itself(At::$at);
                assert_resets_itself(At::$at);
                assert_closes_another(At::$at);
                assert_stops_the_server(At::$at);
            });
        }
    )*};
}

everything_can_be_closed! {
    b31_everything_can_be_closed_inside_on_connect: Connect;
    b31_everything_can_be_closed_inside_on_message: Message;
    b31_everything_can_be_closed_inside_on_write_complete: WriteComplete;
    b31_everything_can_be_closed_inside_on_high_water: HighWater;
    b31_everything_can_be_closed_inside_on_low_water: LowWater;
    b31_everything_can_be_closed_inside_on_half_close: HalfClose;
    b31_everything_can_be_closed_inside_on_timer: Timer;
    b31_everything_can_be_closed_inside_on_stopping: Stopping;
    b31_everything_can_be_closed_inside_a_posted_call: Post;
    b31_everything_can_be_closed_inside_on_close: Close;
}
