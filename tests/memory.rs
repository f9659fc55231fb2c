//! Memory after a burst is what it was before, to the byte of what was allocated, while loop and
//! connections live on.

#![allow(clippy::unwrap_used)]

mod common;
mod recorder;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use common::{eventually, read_n, serve, within};
use recorder::{hold, recorded, turns};
use ruduo::{EventLoop, LoopHandle, LoopThread, TcpClient, TcpServer, TimerId};

/// Counts the bytes that are allocated and not yet freed.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it is the system's allocator; the counts are beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let before = LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        MOST.fetch_max(before + layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the same contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MILLION: usize = 1_000_000;
const MIB: usize = 1 << 20;

/// What a burst is at least, and what may be kept for the next one.
const LARGE: usize = 8 * MIB;
const LITTLE: usize = 128 * 1024;

const HOUR: Duration = Duration::from_secs(3600);

/// Lets the loop come to rest, and counts.
fn live(event_loop: &LoopHandle) -> usize {
    (0..5).for_each(|_| _ = turns(event_loop));
    LIVE.load(Ordering::Relaxed)
}

/// Nothing of the burst is on its way any more when it returns.
#[track_caller]
fn assert_gives_back(event_loop: &LoopHandle, burst: impl FnOnce()) {
    let before = live(event_loop);
    MOST.store(before, Ordering::Relaxed);
    burst();
    let after = live(event_loop);
    let most = MOST.load(Ordering::Relaxed);
    assert!(most >= before + LARGE, "no burst: {before} bytes before, {most} in it");
    assert!(after <= before + LITTLE, "{before} bytes before, {most} in it, {after} after");
}

fn start() -> LoopThread {
    LoopThread::spawn("test-loop", EventLoop::builder(), |_| Ok(())).unwrap()
}

/// Calls `f` on the loop, and waits for what it returns.
fn on<R: Send + 'static>(
    event_loop: &LoopHandle,
    f: impl FnOnce(&EventLoop) -> R + Send + 'static,
) -> R {
    let (tell, told) = channel();
    event_loop.post(move |event_loop| tell.send(f(event_loop)).unwrap()).unwrap();
    within(&told)
}

fn post_a_million(event_loop: &LoopHandle) {
    for i in 0..MILLION {
        event_loop.post(move |_| assert!(i < MILLION)).unwrap();
    }
}

#[test]
fn b68_a_million_tasks_from_another_thread() {
    alone!().run(|| {
        let thread = start();
        let event_loop = thread.handle();
        assert_gives_back(event_loop, || {
            let held = hold(event_loop);
            post_a_million(event_loop);
            drop(held);
        });
    });
}

#[test]
fn b68_a_million_tasks_from_another_thread_before_the_loop_runs() {
    alone!().run(|| {
        let (tell, told) = channel();
        let thread = LoopThread::spawn("test-loop", EventLoop::builder(), move |event_loop| {
            tell.send(LIVE.load(Ordering::Relaxed)).unwrap();
            let handle = event_loop.handle();
            thread::spawn(move || post_a_million(&handle)).join().unwrap();
            Ok(())
        })
        .unwrap();
        let (before, after) = (within(&told), live(thread.handle()));
        assert!(MOST.load(Ordering::Relaxed) >= before + LARGE);
        assert!(after <= before + LITTLE, "{before} bytes before, {after} after");
    });
}

#[test]
fn b68_a_million_tasks_from_the_loop_itself() {
    alone!().run(|| {
        let thread = start();
        let event_loop = thread.handle();
        assert_gives_back(event_loop, || {
            on(event_loop, |event_loop| {
                for i in 0..MILLION {
                    event_loop.defer(move |_| assert!(i < MILLION));
                }
            });
        });
    });
}

/// So that the queue is never empty.
#[test]
fn b68_a_million_tasks_beside_one_that_comes_again_for_ever() {
    fn again(event_loop: &EventLoop) {
        event_loop.defer(again);
    }
    alone!().run(|| {
        let thread = start();
        let event_loop = thread.handle();
        on(event_loop, again);
        assert_gives_back(event_loop, || {
            let held = hold(event_loop);
            post_a_million(event_loop);
            drop(held);
        });
    });
}

/// Calls `body` with a loop that has no other timer, and with one whose other timer stays.
fn without_and_with_a_timer_that_stays(body: impl Fn(&LoopHandle)) {
    for stays in [false, true] {
        let thread = start();
        if stays {
            on(thread.handle(), |event_loop| _ = event_loop.run_after(HOUR, |_| {}));
        }
        body(thread.handle());
        thread.join().unwrap();
    }
}

fn cancel_a_million(event_loop: &LoopHandle, in_order: fn(Vec<TimerId>) -> Vec<TimerId>) {
    assert_gives_back(event_loop, || {
        on(event_loop, move |event_loop| {
            let delay = |i| HOUR + Duration::from_micros(i as u64 % 1_000);
            // What waits to be dropped, when nothing is borrowed, is a burst too.
            let held = Rc::new(());
            let arm = |i| {
                let held = held.clone();
                event_loop.run_after(delay(i), move |_| drop(held))
            };
            let timers = (0..MILLION).map(arm).collect();
            in_order(timers).into_iter().for_each(|timer| assert!(event_loop.cancel(timer)));
        });
    });
}

#[test]
fn b68_a_million_timers_cancelled_in_the_order_of_arming() {
    alone!().run(|| {
        without_and_with_a_timer_that_stays(|event_loop| cancel_a_million(event_loop, |all| all));
    });
}

#[test]
fn b68_a_million_timers_cancelled_the_last_first() {
    alone!().run(|| {
        without_and_with_a_timer_that_stays(|event_loop| {
            cancel_a_million(event_loop, |all| all.into_iter().rev().collect());
        });
    });
}

/// Few are left all over the place before the last ones go: a search for what can be given back,
/// each time one is cancelled, would take hours.
#[test]
fn b68_a_million_timers_cancelled_here_and_there() {
    alone!().run(|| {
        without_and_with_a_timer_that_stays(|event_loop| {
            cancel_a_million(event_loop, |all| {
                let (few, most): (Vec<_>, Vec<_>) =
                    all.into_iter().enumerate().partition(|(i, _)| i % 5 == 0);
                most.into_iter().chain(few.into_iter().rev()).map(|(_, timer)| timer).collect()
            });
        });
    });
}

#[test]
fn b68_a_million_timers_that_fire() {
    alone!().run(|| {
        without_and_with_a_timer_that_stays(|event_loop| {
            let (tell, told) = channel();
            assert_gives_back(event_loop, || {
                on(event_loop, move |event_loop| {
                    let left = Rc::new(Cell::new(MILLION));
                    for i in 0..MILLION {
                        let (left, tell) = (left.clone(), tell.clone());
                        event_loop.run_after(Duration::from_micros(i as u64 / 5), move |_| {
                            left.set(left.get() - 1);
                            if left.get() == 0 {
                                tell.send(()).unwrap();
                            }
                        });
                    }
                });
                within(&told);
            });
        });
    });
}

// Connections.

/// Each of its buffers is a small one, for some are kept.
const READ_SIZE: usize = 1024;

#[test]
fn b68_a_connection_that_moves_its_timer_a_million_times() {
    alone!().run(|| {
        let (this, _peer) = recorded(|server| server);
        let before = live(this.server.event_loop());
        MOST.store(before, Ordering::Relaxed);
        this.call(|conn| (0..MILLION).for_each(|_| conn.set_timer(1, HOUR)));
        live(this.server.event_loop());
        let most = MOST.load(Ordering::Relaxed);
        assert!(most <= before + LITTLE, "{before} bytes before, {most} in it");
    });
}

/// Each with a key of its own, none of which comes again.
#[test]
fn b68_a_connection_with_one_timer_after_the_other() {
    const TIMERS: u64 = 20_000;
    alone!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_connect(|conn| conn.set_timer(0, Duration::ZERO))
                .on_timer(move |conn, key| match key {
                    0 | TIMERS => tell.send(()).unwrap(),
                    _ => conn.set_timer(key + 1, Duration::ZERO),
                })
                .on_message(|conn, input| {
                    input.clear();
                    conn.set_timer(1, Duration::ZERO);
                })
                .start()
        });
        let mut peer = server.connect();
        within(&told);
        let before = live(server.event_loop());
        peer.write_all(b"x").unwrap();
        within(&told);
        let after = live(server.event_loop());
        assert!(after < before + LITTLE, "{before} bytes before, {after} after");
    });
}

fn read_and_drop(mut peer: &TcpStream, n: usize) {
    let read = io::copy(&mut Read::take(&mut peer, n as u64), &mut io::sink()).unwrap();
    assert_eq!(read, n as u64);
}

#[test]
fn b68_a_million_messages_to_a_connection() {
    alone!().run(|| {
        let (this, peer) = recorded(|server| server.read_size(READ_SIZE));
        assert_gives_back(this.server.event_loop(), || {
            let held = this.hold();
            (0..MILLION).for_each(|_| this.conn.send("x").unwrap());
            drop(held);
            read_and_drop(&peer, MILLION);
            turns(this.server.event_loop());
            this.told.try_iter().for_each(drop);
        });
    });
}

#[test]
fn b20_buffers_shrink_when_a_burst_of_input_is_consumed() {
    const MESSAGE: usize = 2 * MIB;
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .read_size(READ_SIZE)
                .input_limit(2 * MESSAGE)
                .on_message(|conn, input| {
                    if input.len() >= MESSAGE {
                        input.consume(MESSAGE);
                        conn.send("!");
                    }
                })
                .start()
        });
        let data: Arc<[u8]> = vec![0; MESSAGE].into();
        let peers: Vec<_> = (0..8).map(|_| server.connect()).collect();
        eventually("all are connected", || server.server.metrics().accepted == 8);
        assert_gives_back(server.event_loop(), || {
            peers.iter().for_each(|mut peer| peer.write_all(&data[1..]).unwrap());
            let total = peers.len() as u64 * (MESSAGE as u64 - 1);
            eventually("all is received", || server.server.metrics().received == total);
            for mut peer in &peers {
                peer.write_all(&data[..1]).unwrap();
                assert_eq!(read_n(peer, 1), b"!");
            }
        });
    });
}

/// In pieces that share a buffer of the usual size, and in such that need one of their own.
#[test]
fn b20_buffers_shrink_when_a_burst_of_output_has_left() {
    const TOTAL: usize = 32 * MIB;
    alone!().run(|| {
        let (this, peer) = recorded(|server| server.read_size(READ_SIZE));
        for size in [READ_SIZE / 2, 32 * READ_SIZE] {
            assert_gives_back(this.server.event_loop(), || {
                this.call(move |conn| {
                    let piece = vec![0; size];
                    (0..TOTAL / size).for_each(|_| conn.send(&piece));
                });
                read_and_drop(&peer, TOTAL);
                turns(this.server.event_loop());
                this.told.try_iter().for_each(drop);
            });
        }
    });
}

/// Neither the output nor the timer that looks after its peer.
#[test]
fn b22_a_connection_that_was_blocked_once_keeps_nothing_of_that() {
    const EACH: usize = 20;
    const OUTPUT: usize = 16 * MIB;
    alone!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                // A look every second.
                .write_stall_timeout(Duration::from_secs(12))
                .on_connect(move |conn| tell.send(conn.handle()).unwrap())
                .on_message(|_, input| input.clear())
                .start()
        });
        let connections: Vec<_> =
            (0..2 * EACH).map(|_| (server.connect(), within(&told))).collect();
        let output: Arc<[u8]> = vec![b'x'; OUTPUT].into();
        let mut after_each = [0; 2];
        for (round, half) in connections.chunks(EACH).enumerate() {
            for (_, conn) in half {
                conn.send_shared(output.clone()).unwrap();
            }
            let blocked = ((round + 1) * EACH) as u64;
            eventually("all are blocked", || server.server.metrics().paused_by_output == blocked);
            half.iter().for_each(|(peer, _)| read_and_drop(peer, OUTPUT));
            // What is kept by the loop for more like these is there after the first round.
            let is_less = || round == 0 || live(server.event_loop()) < after_each[0] + 1024;
            eventually("as much as after the first", is_less);
            after_each[round] = live(server.event_loop());
        }
    });
}

/// One after the other, each with buffers of its own while it lasts.
#[test]
fn streams_that_come_and_go_leave_nothing_behind() {
    alone!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let thread = start();
        let come_and_go = |_| {
            let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (tell, told) = channel();
            on(thread.handle(), move |event_loop| {
                let stream = TcpClient::from_stream(event_loop, near).unwrap();
                let stream = stream.on_close(move |_, _| tell.send(()).unwrap());
                stream.on_message(|_, input| input.clear()).start().map(drop).unwrap();
            });
            drop(listener.accept().unwrap());
            within(&told);
        };
        // What the loop keeps for the next one is there after a few.
        (0..100).for_each(come_and_go);
        let before = live(thread.handle());
        (0..500).for_each(come_and_go);
        let after = live(thread.handle());
        assert!(after < before + 8192, "{before} bytes before, {after} after");
    });
}

/// Clients, servers and streams of one loop take turns with the same buffers.
#[test]
fn a_client_that_waits_holds_no_buffer_of_its_own() {
    const CLIENTS: usize = 200;
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, input| conn.send_buffer(input))
                .start()
        });
        let address = server.addr();
        let thread = start();
        let event_loop = thread.handle();
        let at_rest = || live(server.event_loop()).min(live(event_loop));
        let before = at_rest();
        let (tell, told) = channel();
        on(event_loop, move |event_loop| {
            for _ in 0..CLIENTS {
                let tell = tell.clone();
                TcpClient::connect(event_loop, address)
                    .on_connect(|conn| conn.send("hello"))
                    .on_message(move |_, input| {
                        input.clear();
                        tell.send(()).unwrap();
                    })
                    .start()
                    .unwrap();
            }
        });
        (0..CLIENTS).for_each(|_| within(&told));
        let each = (at_rest() - before) / CLIENTS;
        // Each loop keeps a few large ones for all.
        assert!(each < 16 * 1024, "{each} bytes for a client and its connections");
    });
}
