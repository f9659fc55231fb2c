//! Peers that keep us waiting for their end.

#![allow(clippy::unwrap_used)]

mod common;
mod recorder;
mod scene;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
#[cfg(target_os = "linux")]
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{DEADLINE, connect_with_a_small_buffer, pattern, read_to_end, serve, within};
use recorder::{Told, recorded_after};
#[cfg(target_os = "linux")]
use ruduo::UnixServer;
use ruduo::{Connection, TcpServer};
use scene::{ANSWER, Act, LARGE, Scene, write};

const LINGER: Duration = Duration::from_millis(300);

const LAST_ANSWER: Act = |conn, input| {
    input.clear();
    conn.send(pattern(LARGE));
    conn.shutdown();
};

#[test]
fn b39_a_peer_that_never_closes_is_cut() {
    alone!().run(|| {
        let scene = Scene::with(|conn, _| conn.shutdown(), |server| server.linger(LINGER));
        let (peer, _) = scene.connect();
        let start = Instant::now();
        write(&peer, "go");
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        scene.assert_closes("did not finish within 300ms of our end");
        assert!(start.elapsed() >= LINGER, "{:?}", start.elapsed());
    });
}

#[test]
fn b39_a_peer_that_does_not_take_what_is_pending_is_cut() {
    alone!().run(|| {
        let scene = Scene::with(LAST_ANSWER, |server| server.write_stall_timeout(LINGER));
        let start = Instant::now();
        let (peer, _) = scene.connect_and_await_high_water();
        scene.assert_closes("took nothing of the output for 300ms");
        assert!(start.elapsed() >= LINGER, "{:?}", start.elapsed());
        let mut arrived = Vec::new();
        let error = (&peer).read_to_end(&mut arrived).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(arrived.len() < LARGE && pattern(LARGE).starts_with(&arrived));
    });
}

#[test]
fn b39_a_peer_that_half_closed_and_does_not_take_what_is_pending_is_cut() {
    alone!().run(|| {
        // All that is pending is below the high-water mark, so the end of the stream is seen.
        let scene =
            Scene::with(ANSWER, |server| server.write_stall_timeout(LINGER).water_marks(1, LARGE));
        let start = Instant::now();
        let (peer, _) = scene.connect();
        write(&peer, "go");
        peer.shutdown(Shutdown::Write).unwrap();
        scene.assert_closes("took nothing of the output for 300ms");
        assert!(start.elapsed() >= LINGER, "{:?}", start.elapsed());
    });
}

#[test]
fn b39_a_peer_that_closes_in_time_is_not_cut() {
    alone!().run(|| {
        let scene = Scene::with(|conn, _| conn.shutdown(), |server| server.linger(DEADLINE));
        let (peer, _) = scene.connect();
        write(&peer, "go");
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        drop(peer);
        scene.assert_closes("shut down");
    });
}

#[test]
fn b39_a_peer_that_takes_what_is_pending_slowly_is_not_cut() {
    let stall = Duration::from_secs(1);
    alone!().run(|| {
        for _ in 0..5 {
            let scene = Scene::with(LAST_ANSWER, |server| {
                server.write_stall_timeout(Duration::from_secs(1)).linger(DEADLINE)
            });
            let (peer, _) = scene.connect_and_await_high_water();
            let (received, longest_pause) = read_slowly(&peer, 3 * stall);
            drop(peer);
            if received == LARGE {
                scene.assert_closes("shut down");
                return;
            }
            // It was cut. That is right if this thread did not get to read for so long.
            scene.assert_closes("took nothing of the output for 1s");
            assert!(longest_pause > stall / 2, "cut after {received} bytes, {longest_pause:?}");
        }
        eprintln!("SKIPPED: this machine is too busy for a steady reader");
    });
}

/// After our end of the stream a peer may take its time for its own, as long as it says something.
#[test]
fn b39_a_peer_that_goes_on_sending_is_not_cut_if_somebody_listens() {
    let linger = Duration::from_secs(1);
    let listens: Act = |conn, input| {
        input.clear();
        conn.shutdown();
    };
    alone!().run(|| {
        for _ in 0..5 {
            let scene = Scene::with(listens, |server| server.linger(Duration::from_secs(1)));
            let (peer, _) = scene.connect();
            let longest_pause = write_slowly(&peer, 3 * linger);
            drop(peer);
            let (reason, _) = scene.close();
            if longest_pause < linger / 2 {
                assert_eq!(reason, "shut down");
                return;
            }
        }
        eprintln!("SKIPPED: this machine is too busy for a steady writer");
    });
}

/// Who has paused reading keeps the peer waiting, and not the other way round.
#[test]
fn b39_a_pause_of_our_own_after_shutdown_is_not_the_peers_fault() {
    // Long enough for a peer that is quick when it may be.
    const LINGER: Duration = Duration::from_secs(1);
    const RESUME: Duration = Duration::from_secs(2);
    alone!().run(|| {
        let (tell, told) = mpsc::channel();
        let (tell_end, ended) = mpsc::channel();
        let running = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .linger(LINGER)
                .on_connect(|conn| conn.shutdown())
                .on_message(move |conn, input| {
                    tell.send(input.len()).unwrap();
                    input.clear();
                    if conn.bytes_received() == 5 {
                        conn.pause_reading();
                        conn.set_timer(0, RESUME);
                    }
                })
                .on_timer(|conn, _| conn.resume_reading())
                .on_close(move |_, reason| tell_end.send(reason.to_string()).unwrap())
                .start()
        });
        let mut peer = running.connect();
        peer.write_all(b"first").unwrap();
        assert_eq!(within(&told), 5);
        peer.write_all(b"second").unwrap();
        assert_eq!(within(&told), 6, "it waits in the kernel until we resume");
        drop(peer);
        assert_eq!(within(&ended), "shut down");
    });
}

#[test]
fn b39_a_peer_that_goes_on_sending_is_cut_if_nobody_listens() {
    alone!().run(|| {
        let scene = Scene::with(|conn, _| conn.finish(), |server| server.linger(LINGER));
        let (peer, _) = scene.connect();
        let start = Instant::now();
        let writer = thread::spawn(move || write_slowly(&peer, Duration::from_secs(3)));
        scene.assert_closes("did not finish within 300ms of our end");
        assert!(start.elapsed() >= LINGER);
        writer.join().unwrap();
    });
}

/// A peer that has yet to work for what it will say is not hurried, if the program says so.
#[test]
fn b39_a_connection_may_wait_as_long_as_it_takes() {
    alone!().run(|| {
        let begin = |conn: &Connection<'_>| {
            conn.set_linger(Duration::MAX);
            conn.shutdown();
            conn.set_timer(0, 4 * LINGER);
        };
        let (this, mut peer) = recorded_after(begin, |server| server.linger(LINGER));
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        assert_eq!(within(&this.told), Told::Timer(0));
        peer.write_all(b"at last").unwrap();
        assert_eq!(within(&this.told), Told::Message(b"at last".to_vec()));
        drop(peer);
        assert_eq!(within(&this.told), Told::HalfClose);
        assert_eq!(within(&this.told), Told::Closed("ShutDown".to_owned()));
    });
}

/// All output is with the kernel, and our end of the stream behind it, but not yet with the peer.
#[test]
fn b39_a_peer_that_takes_what_the_kernel_holds_slowly_is_not_cut() {
    const LEN: usize = 300_000;
    alone!().run(|| {
        for _ in 0..5 {
            let scene = Scene::with(
                |conn, input| {
                    input.clear();
                    conn.send(pattern(LEN));
                    conn.shutdown();
                },
                |server| server.linger(LINGER),
            );
            let peer = connect_with_a_small_buffer(scene.running.addr());
            write(&peer, "go");
            let start = Instant::now();
            let (mut last, mut longest_pause) = (start, Duration::ZERO);
            let mut received = 0;
            loop {
                let n = (&peer).read(&mut [0; 4096]).unwrap();
                longest_pause = longest_pause.max(last.elapsed());
                last = Instant::now();
                received += n;
                if n == 0 {
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(received, LEN, "a close loses nothing that the kernel has");
            let time = start.elapsed();
            drop(peer);
            let (reason, _) = scene.close();
            if longest_pause < LINGER / 3 {
                assert!(time > 2 * LINGER, "not slow: {time:?}");
                assert_eq!(reason, "shut down");
                return;
            }
        }
        eprintln!("SKIPPED: this machine is too busy for a steady reader");
    });
}

/// Little as it is, to have taken all of it is something. (A Unix socket holds what was not read.)
#[cfg(target_os = "linux")]
#[test]
fn b39_a_peer_that_takes_the_last_of_it_late_is_not_cut() {
    const LAST: &str = "the last of it";
    alone!().run(|| {
        let path = std::env::temp_dir().join(format!("ruduo-last-{}", std::process::id()));
        let (tell, told) = mpsc::channel();
        let server = {
            let path = path.clone();
            serve(move |event_loop| {
                UnixServer::bind(event_loop, path)?
                    .linger(LINGER)
                    .on_connect(|conn| {
                        conn.send(LAST);
                        conn.shutdown();
                    })
                    .on_message(|_, _| {})
                    .on_close(move |_, reason| tell.send(reason.to_string()).unwrap())
                    .start()
            })
        };
        let not_cut = (0..5).any(|_| {
            let start = Instant::now();
            let mut peer = UnixStream::connect(&path).unwrap();
            thread::sleep(LINGER * 2 / 3);
            let begins = Instant::now();
            peer.read_exact(&mut [0; LAST.len()]).unwrap();
            let before = start.elapsed();
            thread::sleep(LINGER * 2 / 3);
            drop(peer);
            // It may be cut if this thread did not get to act in time.
            let (end, longest) = (within(&told), before.max(begins.elapsed()));
            assert!(end == "shut down" || longest >= LINGER, "{end} after {longest:?}");
            longest < LINGER
        });
        if !not_cut {
            eprintln!("SKIPPED: this machine is too busy for a punctual peer");
        }
        drop(server);
    });
}

/// Writes a byte now and then, until the time is over or nobody is there any more. Returns the
/// longest time between two.
fn write_slowly(mut peer: &TcpStream, time: Duration) -> Duration {
    let start = Instant::now();
    let (mut last, mut longest_pause) = (start, Duration::ZERO);
    while start.elapsed() < time && peer.write_all(b"x").is_ok() {
        longest_pause = longest_pause.max(last.elapsed());
        last = Instant::now();
        thread::sleep(time / 100);
    }
    longest_pause.max(last.elapsed())
}

/// Reads everything in small pieces that are spread over the time. Returns how much there was,
/// and the longest time between two pieces.
fn read_slowly(mut peer: &TcpStream, time: Duration) -> (usize, Duration) {
    const PIECES: usize = 100;
    let mut piece = vec![0; LARGE / PIECES];
    let (mut received, mut longest_pause) = (0, Duration::ZERO);
    let mut last = Instant::now();
    loop {
        // Who is cut is reset.
        let n = peer.read(&mut piece).unwrap_or(0);
        longest_pause = longest_pause.max(last.elapsed());
        last = Instant::now();
        if n == 0 {
            return (received, longest_pause);
        }
        received += n;
        thread::sleep(time * n as u32 / LARGE as u32);
    }
}
