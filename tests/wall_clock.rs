//! Somebody sets the clock on the wall, an hour forwards or back: no deadline notices.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;
mod recorder;
mod shim;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use bare_loop::{Record, run};
use common::{Alone, read_to_end, within};
use recorder::{Recorded, Told, recorded};
use ruduo::EventLoop;

const HOUR: Duration = Duration::from_secs(3600);

/// Less than the clock jumps, and more than the test lasts: over only for a loop that believes in
/// the clock on the wall.
const FAR: Duration = HOUR.checked_div(2).unwrap();

/// Over before the test is, unless the loop waits for the clock on the wall.
const NEAR: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
enum Jump {
    Forwards,
    Back,
}

/// Runs a test with a clock that can jump, once for each direction.
fn with_each_jump(alone: Alone, body: impl Fn(Jump)) {
    shim::run(alone, "clock", || [Jump::Forwards, Jump::Back].into_iter().for_each(body));
}

/// Sets the clock on the wall.
fn jump(jump: Jump) {
    let (wall, start) = (SystemTime::now(), Instant::now());
    let hour = HOUR.as_nanos() as u64;
    let offset = shim::number(c"wall_clock_offset");
    match jump {
        Jump::Forwards => offset.fetch_add(hour, Ordering::Relaxed),
        Jump::Back => offset.fetch_sub(hour, Ordering::Relaxed),
    };
    let now = SystemTime::now();
    let jumped = match jump {
        Jump::Forwards => now.duration_since(wall),
        Jump::Back => wall.duration_since(now),
    };
    assert!(jumped.unwrap() > HOUR * 9 / 10, "{jump:?}: the clock did not jump");
    assert!(start.elapsed() < FAR, "{jump:?}: the monotonic clock jumped too");
}

#[test]
fn b50_timers_of_a_loop_do_not_notice() {
    with_each_jump(alone!(), |direction| {
        let event_loop = EventLoop::new().unwrap();
        let fired = Record::new();
        let arm = move |event_loop: &EventLoop, fired: &Record<&'static str>, delay: Duration| {
            let start = Instant::now();
            let note = |what: &'static str| {
                let fired = fired.clone();
                let mut times = 0;
                move |event_loop: &EventLoop| {
                    times += 1;
                    assert!(start.elapsed() >= times * delay, "{direction:?}: {what} is early");
                    fired.push(what);
                    if fired.len() == 12 {
                        event_loop.quit();
                    }
                }
            };
            let mut after = note("after");
            let mut at = note("at");
            event_loop.run_after(delay, move |event_loop| after(event_loop));
            event_loop.run_at(start + delay, move |event_loop| at(event_loop));
            event_loop.run_every(delay, note("every"));
        };
        arm(&event_loop, &fired, FAR);
        arm(&event_loop, &fired, NEAR);
        let after_jump = fired.clone();
        event_loop.run_after(NEAR / 2, move |event_loop| {
            jump(direction);
            arm(event_loop, &after_jump, NEAR);
        });
        run(&event_loop);
        let fired = fired.take();
        let count = |what| fired.iter().filter(|fired| **fired == what).count();
        assert_eq!((count("after"), count("at")), (2, 2), "{direction:?}");
    });
}

/// Waits for what is due when `delay` is over. Whatever comes before it is a failure.
#[track_caller]
fn assert_next(this: &Recorded, expected: Told, start: Instant, delay: Duration) {
    assert_eq!(within(&this.told), expected);
    assert!(start.elapsed() >= delay, "{expected:?} is early");
}

#[test]
fn b50_timers_of_a_connection_do_not_notice() {
    with_each_jump(alone!(), |direction| {
        let (this, _peer) = recorded(|server| server);
        let set = |key, delay| this.call(move |conn| conn.set_timer(key, delay));
        let start = Instant::now();
        set(1, FAR);
        set(2, NEAR);
        this.let_turn();
        jump(direction);
        set(3, NEAR);
        assert_next(&this, Told::Timer(2), start, NEAR);
        assert_next(&this, Told::Timer(3), start, NEAR);
    });
}

/// The peer learns of our end and does not finish.
#[test]
fn b50_linger_deadlines_do_not_notice() {
    with_each_jump(alone!(), |direction| {
        let (this, peer) = recorded(|server| server.linger(FAR));
        this.conn.shutdown().unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        this.let_turn();
        jump(direction);
        let start = Instant::now();
        this.call(|conn| conn.set_timer(1, NEAR));
        assert_next(&this, Told::Timer(1), start, NEAR);

        let (this, peer) = recorded(|server| server.linger(NEAR));
        let start = Instant::now();
        this.conn.shutdown().unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        this.let_turn();
        jump(direction);
        assert_next(
            &this,
            Told::Closed(format!("LingerExpired {{ after: {NEAR:?} }}")),
            start,
            NEAR,
        );
    });
}

#[test]
fn b50_the_deadline_of_a_stop_does_not_notice() {
    with_each_jump(alone!(), |direction| {
        let (this, peer) = recorded(|server| server.linger(FAR));
        let server = &this.server.server;
        server.stop(FAR);
        assert_eq!(read_to_end(&peer).unwrap(), b"", "it was told that the server stops");
        this.let_turn();
        jump(direction);
        let start = Instant::now();
        this.call(|conn| conn.set_timer(1, NEAR));
        assert_next(&this, Told::Timer(1), start, NEAR);

        let start = Instant::now();
        server.stop(NEAR);
        this.let_turn();
        jump(direction);
        assert_next(&this, Told::Closed("Stopped".to_owned()), start, NEAR);
        server.wait().unwrap();
    });
}
