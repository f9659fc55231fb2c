//! How long a peer may keep its connection waiting: to say something, to take what waits for it.
//! (How long to come to its end is in `lingering`.)

#![allow(clippy::unwrap_used)]

mod common;
mod recorder;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, TryRecvError, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use common::{DEADLINE, connect_with_a_small_buffer, read_n, read_to_end, serve, within};
use recorder::{Recorded, Told, brief, recorded, recorded_after, recorded_open};
use ruduo::{Buffer, CloseReason, Connection, EventLoop, Handler, TcpServer};

const TIME: Duration = Duration::from_millis(400);

/// More than the kernel takes from a peer that does not read.
const A_LOT: usize = 50 << 20;

const IDLE: &str = "Idle { after: 400ms }";
const NO_FIRST_BYTE: &str = "NoFirstByte { after: 400ms }";
const STALLED: &str = "WriteStalled { after: 400ms }";

/// Waits for the end, which is not within the time from `start` on.
#[track_caller]
fn assert_closes(this: &Recorded, start: Instant, time: Duration, reason: &str) {
    loop {
        match within(&this.told) {
            Told::Closed(told) => {
                assert_eq!(told, reason);
                assert!(start.elapsed() >= time, "early: {:?}", start.elapsed());
                return;
            }
            Told::Message(_) | Told::WriteComplete | Told::HighWater(_) | Told::LowWater => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Lets time pass, as the connection's own loop measures it, in which nothing else happens.
#[track_caller]
fn let_pass(this: &Recorded, time: Duration) {
    this.call(move |conn| conn.set_timer(0, time));
    assert_eq!(within(&this.told), Told::Timer(0));
}

/// Acts for a while in small steps. Returns the longest time between two.
fn steadily(time: Duration, mut act: impl FnMut()) -> Duration {
    let start = Instant::now();
    let (mut last, mut longest_pause) = (start, Duration::ZERO);
    while start.elapsed() < time {
        act();
        longest_pause = longest_pause.max(last.elapsed());
        last = Instant::now();
        thread::sleep(TIME / 20);
    }
    longest_pause.max(last.elapsed())
}

/// Repeats what depends on a thread that is not kept waiting, until it was not.
fn until_steady(attempt: impl Fn() -> bool) {
    if !(0..5).any(|_| attempt()) {
        eprintln!("SKIPPED: this machine is too busy for a steady peer");
    }
}

/// Sends more than the kernel takes.
fn send_a_lot(conn: &Connection<'_>) {
    conn.send_shared(vec![b'x'; A_LOT].into());
}

// Saying something.

#[test]
fn b65_a_peer_that_stops_talking_is_cut_and_not_before() {
    alone!().run(|| {
        until_steady(|| {
            let (this, mut peer) = recorded(|server| server.idle_timeout(TIME));
            let mut last = Instant::now();
            let longest_pause = steadily(3 * TIME, || {
                last = Instant::now();
                // Fails if it was cut.
                let _ = peer.write_all(b"x");
            });
            if longest_pause > TIME / 2 {
                return false;
            }
            assert_closes(&this, last, TIME, IDLE);
            assert_eq!(read_to_end(&peer).unwrap(), b"");
            true
        });
    });
}

/// Not later than it says, when the machine has time: the time does not count from some look before
/// the last byte, nor from one long after it.
#[test]
fn b65_a_deadline_is_late_by_at_most_an_eighth() {
    alone!().run(|| {
        let lateness = |n: u32| {
            let (this, mut peer) = recorded(|server| server.idle_timeout(TIME));
            // Each time elsewhere between two looks, and soon after one if they were a quarter of the
            // time apart.
            thread::sleep(TIME / 2 + Duration::from_millis(10) + n % 4 * Duration::from_millis(7));
            let start = Instant::now();
            // Fails if it was cut, for this thread has slept for too long.
            if peer.write_all(b"x").is_err() || !matches!(within(&this.told), Told::Message(_)) {
                return TIME;
            }
            assert_closes(&this, start, TIME, IDLE);
            start.elapsed() - TIME
        };
        assert!((0..30).map(lateness).any(|lateness| lateness <= TIME / 8), "30 times late");
    });
}

#[test]
fn what_we_send_does_not_hide_a_peer_that_says_nothing() {
    alone!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .idle_timeout(TIME)
                .on_connect(|conn| conn.set_timer(0, TIME / 10))
                .on_timer(|conn, _| {
                    conn.send("ping");
                    conn.set_timer(0, TIME / 10);
                })
                .on_message(|_, input| input.clear())
                .on_close(move |_, reason| tell.send(brief(reason)).unwrap())
                .start()
        });
        let start = Instant::now();
        let peer = server.connect();
        assert_eq!(within(&told), IDLE);
        assert!(start.elapsed() >= TIME);
        assert!(!read_to_end(&peer).unwrap().is_empty());
    });
}

/// A server with one silent peer, for which it does something now and then before the time is over.
/// The time then begins anew, from the last time on.
fn assert_time_begins_anew(
    times: u64,
    wait: Duration,
    act: impl Fn(&Connection<'_>, u64) + Send + Sync + 'static,
) {
    let (tell, told) = channel();
    let (tell_end, ended) = channel();
    let server = serve(move |event_loop| {
        TcpServer::bind(event_loop, "127.0.0.1:0")?
            .idle_timeout(TIME)
            .on_connect(move |conn| conn.set_timer(1, wait))
            .on_timer(move |conn, time| {
                tell.send(Instant::now()).unwrap();
                act(conn, time);
                if time < times {
                    conn.set_timer(time + 1, wait);
                }
            })
            .on_message(|_, input| input.clear())
            .on_close(move |_, reason| tell_end.send(brief(reason)).unwrap())
            .start()
    });
    let _peer = server.connect();
    assert_eq!(within(&ended), IDLE);
    let acts: Vec<Instant> = told.try_iter().collect();
    assert_eq!(acts.len() as u64, times, "cut too early");
    let after = acts.last().unwrap().elapsed();
    assert!(after >= TIME, "cut too early: {after:?}");
}

/// It is not the peer that is silent then. What it had been before does not count.
#[test]
fn while_we_pause_reading_the_peer_is_not_idle() {
    fn pause_and_resume(conn: &Connection<'_>, time: u64) {
        if time % 2 == 1 { conn.pause_reading() } else { conn.resume_reading() }
    }
    alone!().run(|| {
        assert_time_begins_anew(6, 3 * TIME / 4, pause_and_resume);
        // A pause may begin and end between two looks at the connection.
        assert_time_begins_anew(20, TIME / 10, |conn, _| {
            let handle = conn.handle();
            conn.pause_reading();
            conn.event_loop().run_after(Duration::ZERO, move |_| handle.resume_reading().unwrap());
        });
    });
}

#[test]
fn what_a_connection_has_set_for_itself_outlasts_a_pause() {
    alone!().run(|| {
        let (this, _peer) = recorded(|server| server);
        this.call(|conn| {
            conn.set_idle_timeout(TIME);
            conn.set_timer(1, DEADLINE);
            conn.pause_reading();
        });
        let_pass(&this, 2 * TIME);
        // The program's timer is known, too.
        let (tell, told) = channel();
        this.call(move |conn| tell.send(conn.cancel_timer(1)).unwrap());
        assert!(within(&told));
        let start = Instant::now();
        this.conn.resume_reading().unwrap();
        assert_closes(&this, start, TIME, IDLE);
    });
}

/// A pause that is over in the turn it began in, with the look at the deadline between: a busy loop
/// finds all three due at once.
#[test]
fn a_pause_of_less_than_a_turn_does_not_lose_the_deadline() {
    struct Pausing(Sender<String>);
    impl Handler for Pausing {
        fn on_connect(&mut self, conn: &Connection<'_>) {
            conn.set_timer(0, Duration::from_millis(1));
            conn.event_loop().defer(|_| thread::sleep(TIME));
        }
        fn on_message(&mut self, _: &Connection<'_>, input: &mut Buffer) {
            input.clear();
        }
        fn on_timer(&mut self, conn: &Connection<'_>, _: u64) {
            conn.pause_reading();
            let handle = conn.handle();
            conn.event_loop().defer(move |_| handle.resume_reading().unwrap());
        }
        fn on_close(&mut self, _: &Connection<'_>, reason: &CloseReason) {
            self.0.send(brief(reason)).unwrap();
        }
    }
    each_poller!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .idle_timeout(TIME)
                .serve(move |_| Pausing(tell.clone()))
        });
        let _peer = server.connect();
        assert_eq!(within(&told), IDLE);
    });
}

/// Who takes long for its answers sets the time anew.
#[test]
fn setting_the_idle_time_begins_it_anew() {
    alone!().run(|| {
        assert_time_begins_anew(6, 3 * TIME / 4, |conn, _| conn.set_idle_timeout(TIME));
        assert_time_begins_anew(200, TIME / 100, |conn, _| conn.set_idle_timeout(TIME));
    });
}

#[test]
fn a_peer_that_takes_a_long_answer_is_not_idle() {
    alone!().run(|| {
        until_steady(|| {
            let (this, mut peer) = recorded_after(send_a_lot, |server| server.idle_timeout(TIME));
            let Told::HighWater(_) = within(&this.told) else { panic!("no high water") };
            let_pass(&this, 2 * TIME);
            let start = Instant::now();
            let taken = peer.read_exact(&mut vec![0; A_LOT]);
            // The last of it is the kernel's, and not ours to wait for.
            if taken.is_err() && start.elapsed() >= TIME {
                return false;
            }
            taken.unwrap();
            assert_closes(&this, start, TIME, IDLE);
            true
        });
    });
}

#[test]
fn a_peer_that_has_finished_is_not_idle() {
    alone!().run(|| {
        let (this, peer) = recorded_open(|server| server);
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(within(&this.told), Told::HalfClose);
        this.call(|conn| conn.set_idle_timeout(TIME));
        let_pass(&this, 2 * TIME);
        this.conn.send("the answer").unwrap();
        this.conn.shutdown().unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"the answer");
    });
}

#[test]
fn a_connection_can_have_an_idle_time_of_its_own() {
    alone!().run(|| {
        let (this, _peer) = recorded(|server| server);
        let_pass(&this, TIME / 2);
        let start = Instant::now();
        this.call(|conn| conn.set_idle_timeout(TIME));
        assert_closes(&this, start, TIME, IDLE);

        let for_ever = |conn: &Connection<'_>| conn.set_idle_timeout(Duration::MAX);
        let (this, _peer) = recorded_after(for_ever, |server| server.idle_timeout(TIME));
        let_pass(&this, 2 * TIME);
        this.call(|conn| conn.set_idle_timeout(Duration::from_secs(3600)));
        let_pass(&this, 2 * TIME);
        // A shorter one does not wait for a look that was meant for a longer one.
        let start = Instant::now();
        this.call(|conn| conn.set_idle_timeout(TIME));
        assert_closes(&this, start, TIME, IDLE);
    });
}

#[test]
fn b65_a_peer_that_never_says_anything_is_cut() {
    alone!().run(|| {
        let start = Instant::now();
        let (this, peer) =
            recorded(|server| server.first_byte_timeout(TIME).idle_timeout(TIME / 20));
        assert_closes(&this, start, TIME, NO_FIRST_BYTE);
        assert_eq!(read_to_end(&peer).unwrap(), b"");
    });
}

#[test]
fn after_its_first_byte_a_peer_may_be_idle() {
    alone!().run(|| {
        until_steady(|| {
            let (this, mut peer) = recorded(|server| server.first_byte_timeout(TIME));
            // Fails if it comes too late.
            let said = peer.write_all(b"x");
            if said.is_err() || !matches!(within(&this.told), Told::Message(_)) {
                return false;
            }
            let_pass(&this, 2 * TIME);
            drop(peer);
            assert_eq!(within(&this.told), Told::HalfClose);
            true
        });
    });
}

/// The idle time does not wait for a look that was meant for a much longer one.
#[test]
fn a_peer_with_much_time_for_its_first_byte_is_idle_soon_after_it() {
    alone!().run(|| {
        let (this, mut peer) =
            recorded(|server| server.first_byte_timeout(40 * DEADLINE).idle_timeout(TIME));
        let start = Instant::now();
        peer.write_all(b"x").unwrap();
        assert_closes(&this, start, TIME, IDLE);
    });
}

/// The loop is busy with another event when the time is over, and the peer has spoken.
#[test]
fn what_we_had_no_time_to_hear_counts() {
    alone!().run(|| {
        until_steady(|| {
            let (give, peers) = channel::<TcpStream>();
            let (tell, told) = channel();
            let (tell_begin, begin) = channel();
            let server = serve(move |event_loop| {
                let busy = event_loop.notifier(move |_| {
                    thread::sleep(3 * TIME);
                    // Fails if it was cut.
                    let _ = within(&peers).write_all(b"here I am");
                })?;
                let first = Arc::new(OnceLock::new());
                let begun = first.clone();
                TcpServer::bind(event_loop, "127.0.0.1:0")?
                    .on_message(move |conn, input| {
                        if conn.bytes_received() == 1 {
                            first.set(Instant::now()).unwrap();
                            conn.set_idle_timeout(TIME);
                            conn.set_timer(0, TIME / 2);
                        }
                        conn.send_buffer(input);
                    })
                    .on_timer(move |_, _| {
                        tell_begin.send(begun.get().unwrap().elapsed()).unwrap();
                        busy.notify().unwrap();
                    })
                    .on_close(move |_, reason| tell.send(brief(reason)).unwrap())
                    .start()
            });
            let mut peer = server.connect();
            give.send(peer.try_clone().unwrap()).unwrap();
            peer.write_all(b".").unwrap();
            let echo = read_to_end(&peer).unwrap_or_default();
            assert_eq!(within(&told), IDLE);
            // Otherwise its time was over before the loop was busy.
            let is_steady = begin.try_recv().is_ok_and(|time| time < TIME * 3 / 4);
            if is_steady {
                assert_eq!(echo, b".here I am");
            }
            is_steady
        });
    });
}

// Taking what waits.

#[test]
fn b26_a_peer_that_takes_nothing_is_cut() {
    alone!().run(|| {
        let start = Instant::now();
        let (this, peer) = recorded_after(send_a_lot, |server| server.write_stall_timeout(TIME));
        assert_closes(&this, start, TIME, STALLED);
        // And learns that it does not have everything.
        let error = read_to_end(&peer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    });
}

/// Reading has paused, so its end of the stream is not even seen.
#[test]
fn b26_a_peer_that_half_closes_and_takes_nothing_is_cut() {
    alone!().run(|| {
        let start = Instant::now();
        let (this, mut peer) =
            recorded_after(send_a_lot, |server| server.write_stall_timeout(TIME).linger(TIME / 20));
        let Told::HighWater(_) = within(&this.told) else { panic!("no high water") };
        // Fails if this comes too late.
        let _ = peer.write_all(b"x");
        let _ = peer.shutdown(Shutdown::Write);
        assert_closes(&this, start, TIME, STALLED);
    });
}

/// The kernel has room for more only now and then, and in between the peer does take something.
#[test]
fn b26_a_slow_peer_is_not_cut() {
    alone!().run(|| {
        until_steady(|| {
            let (this, mut peer) =
                recorded_after(send_a_lot, |server| server.write_stall_timeout(TIME));
            let Told::HighWater(_) = within(&this.told) else { panic!("no high water") };
            let mut piece = vec![0; 20_000];
            let longest_pause = steadily(5 * TIME, || drop(peer.read(&mut piece)));
            if longest_pause > TIME / 2 {
                return false;
            }
            assert_eq!(this.told.try_recv(), Err(TryRecvError::Empty));
            // Until it takes nothing more.
            assert_closes(&this, Instant::now(), Duration::ZERO, STALLED);
            true
        });
    });
}

/// The least that counts is 4 KiB in the time of the deadline.
#[test]
fn b26_a_peer_that_takes_it_in_drops_is_cut() {
    alone!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .write_stall_timeout(TIME)
                .on_connect(send_a_lot)
                .on_message(|_, input| input.clear())
                .on_close(move |_, reason| tell.send(brief(reason)).unwrap())
                .start()
        });
        let start = Instant::now();
        let peer = connect_with_a_small_buffer(server.addr());
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut taken = 0;
                // Until it is cut, which may be known here first.
                while !stop.load(Ordering::Relaxed)
                    && let Ok(n) = (&peer).read(&mut [0; 400])
                {
                    taken += n;
                    thread::sleep(TIME / 5);
                }
                taken
            });
            let end = told.recv_timeout(DEADLINE);
            let time = start.elapsed();
            stop.store(true, Ordering::Relaxed);
            let taken = reader.join().unwrap();
            assert_eq!(end.unwrap(), STALLED);
            assert!(time >= TIME && taken > 400, "{time:?}, {taken} bytes");
        });
    });
}

/// As long as what waits is below the mark, reading goes on.
#[test]
fn b26_a_peer_that_talks_and_takes_nothing_is_cut() {
    alone!().run(|| {
        let (this, mut peer) = recorded_after(send_a_lot, |server| {
            server.write_stall_timeout(TIME).water_marks(1, A_LOT + (1 << 20))
        });
        let start = Instant::now();
        let end = loop {
            match this.told.recv_timeout(TIME / 20) {
                Ok(Told::Closed(reason)) => break reason,
                Ok(told) => assert!(matches!(told, Told::Message(_)), "{told:?}"),
                Err(_) => assert!(start.elapsed() < DEADLINE, "it is not cut"),
            }
            // Fails when it is.
            let _ = peer.write_all(b"x");
        };
        assert_eq!(end, STALLED);
        assert!(start.elapsed() >= TIME);
    });
}

/// Nor does what we add to it move the time, though each time somebody looks what is awaited.
#[test]
fn b26_a_peer_that_takes_nothing_is_cut_while_more_is_sent_to_it() {
    alone!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .write_stall_timeout(TIME)
                .idle_timeout(Duration::from_secs(3600))
                .on_connect(|conn| conn.set_timer(0, TIME / 2))
                .on_timer(|conn, first| {
                    if first == 0 {
                        send_a_lot(conn);
                    }
                    conn.send("more");
                    conn.set_timer(1, TIME / 40);
                })
                .on_message(|_, input| input.clear())
                .on_close(move |_, reason| tell.send(brief(reason)).unwrap())
                .start()
        });
        let _peer = server.connect();
        assert_eq!(within(&told), STALLED);
    });
}

#[test]
fn a_connection_can_have_a_write_stall_time_of_its_own() {
    alone!().run(|| {
        let begin = |conn: &Connection<'_>| {
            conn.set_write_stall_timeout(Duration::MAX);
            send_a_lot(conn);
        };
        let (this, peer) = recorded_after(begin, |server| server.write_stall_timeout(TIME));
        let Told::HighWater(_) = within(&this.told) else { panic!("no high water") };
        let_pass(&this, 3 * TIME);
        // Also when it has to wait already.
        let start = Instant::now();
        this.call(|conn| conn.set_write_stall_timeout(TIME));
        assert_closes(&this, start, TIME, STALLED);
        drop(peer);
    });
}

/// Nobody looks any more when there is nothing to wait for.
#[test]
fn b22_a_connection_that_has_been_blocked_causes_no_wakeups_later() {
    alone!().run(|| {
        let (this, peer) = recorded_after(send_a_lot, |server| server.write_stall_timeout(TIME));
        read_n(&peer, A_LOT);
        while within(&this.told) != Told::WriteComplete {}
        // One look may still come.
        let_pass(&this, TIME / 4);
        assert!(this.turns_in(TIME) < 4);
    });
}

/// A dozen of them, however often the time was made shorter.
#[test]
fn b22_the_looks_at_a_connection_are_few() {
    alone!().run(|| {
        let (this, _peer) = recorded(|server| server);
        this.call(|conn| {
            for shorter in (0..20).rev() {
                conn.set_idle_timeout(6 * TIME + shorter * TIME / 10);
            }
        });
        // Two of a fifth of a second, and what asks.
        let turns = this.turns_in(TIME);
        assert!(turns < 10, "{turns} turns");
    });
}

/// How many turns a loop makes while a connection is idle for as long as it may be: one for each
/// look, if nobody else has anything to do.
fn turns_until_idle(time: Duration) -> u64 {
    let (tell, told) = channel();
    let tell_end = tell.clone();
    let turns = |conn: &Connection<'_>| conn.event_loop().metrics().turns;
    let server = serve(move |event_loop| {
        TcpServer::bind(event_loop, "127.0.0.1:0")?
            .idle_timeout(time)
            .on_connect(move |conn| tell.send(turns(conn)).unwrap())
            .on_message(|_, input| input.clear())
            .on_close(move |conn, _| tell_end.send(turns(conn)).unwrap())
            .start()
    });
    let _peer = server.connect();
    let (begins, ends) = (within(&told), within(&told));
    ends - begins
}

/// What is over in an instant is not looked at all the time until then.
#[test]
fn b22_the_looks_at_a_connection_with_a_short_time_are_fewer() {
    alone!().run(|| {
        let turns = turns_until_idle(Duration::from_millis(10));
        assert!(turns < 9, "{turns} turns");
    });
}

/// So a deadline is late by no more than the time between two of them. (They are fewer on a machine
/// that is too busy for a timer every thirtieth of a second, or, in the end, every third.)
#[test]
fn b65_within_a_deadline_there_are_a_dozen_looks() {
    alone!().run(|| {
        let enough = |n: u32| turns_until_idle(TIME * n) >= 12;
        assert!([1, 1, 2, 4, 10].into_iter().any(enough), "fewer, five times");
    });
}

// Settings.

#[test]
fn timeouts_of_zero_are_refused() {
    alone!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let server = || TcpServer::bind(&event_loop, "127.0.0.1:0").unwrap();
        let zero = Duration::ZERO;
        for server in [
            server().idle_timeout(zero),
            server().first_byte_timeout(zero),
            server().write_stall_timeout(zero),
        ] {
            let refused = server.on_message(|_, _| {}).start().unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidInput);
            assert!(refused.to_string().contains("timeout of zero"), "{refused}");
        }
    });
}
