//! Somebody sets the clock on the wall, an hour forwards or back: no deadline notices. Two libraries
//! do that, one of our own, which is small, and libfaketime, which also changes what else in the C
//! library knows of time.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;
mod recorder;
mod shim;

use std::env;
use std::fs;
use std::path::Path;
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

/// Runs a test with a clock that can jump, once for each library and direction.
fn with_each_jump(alone: Alone, body: impl Fn(Jump)) {
    let body = || [Jump::Forwards, Jump::Back].into_iter().for_each(body);
    if Alone::is_own_process() {
        return alone.run(body);
    }
    shim::run(alone.clone(), "clock", || {});
    with_libfaketime(alone);
}

/// The variable with the file in which libfaketime looks up what time it is.
const FAKETIME: &str = "FAKETIME_TIMESTAMP_FILE";

/// Starts the test's process with libfaketime in it. Skipped, loudly, if there is none.
fn with_libfaketime(alone: Alone) {
    let folders = ["x86_64-linux-gnu", "aarch64-linux-gnu", ".", "../lib64"];
    let libraries = folders.map(|f| format!("/usr/lib/{f}/faketime/libfaketime.so.1"));
    let Some(library) = libraries.into_iter().find(|library| Path::new(library).exists()) else {
        return alone.skip("there is no libfaketime on this machine");
    };
    let file = format!("{}/faketime-{}", env!("CARGO_TARGET_TMPDIR"), alone.name());
    fs::write(&file, "+0").unwrap();
    alone
        .env("LD_PRELOAD", library)
        .env(FAKETIME, &file)
        // It is read each time.
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1")
        .run(|| {});
    let _ = fs::remove_file(file);
}

/// Sets the clock on the wall.
fn jump(jump: Jump) {
    let (wall, start) = (SystemTime::now(), Instant::now());
    let seconds = HOUR.as_secs() as i64 * if matches!(jump, Jump::Forwards) { 1 } else { -1 };
    if let Some(file) = env::var_os(FAKETIME) {
        let offset: i64 = fs::read_to_string(&file).unwrap().parse().unwrap();
        // Others read it at any time: it changes at once.
        let new = Path::new(&file).with_extension("new");
        fs::write(&new, format!("{:+}", offset + seconds)).unwrap();
        fs::rename(new, file).unwrap();
    } else {
        let nanoseconds = (seconds * 1_000_000_000) as u64;
        // How much the clock of our own library is wrong, in nanoseconds.
        shim::number(c"wall_clock_offset").fetch_add(nanoseconds, Ordering::Relaxed);
    }
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
