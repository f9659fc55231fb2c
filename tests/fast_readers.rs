//! Peers that read as fast as they are written to: feeding them takes turns with everything else
//! that the loop does.

#![allow(clippy::unwrap_used)]

mod common;
mod shim;

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use common::{Running, eventually, pattern, read_n, serve, within};
use ruduo::{Buffer, Connection, EventLoop, Handler, HandlerHandle, TcpServer};

/// Echoes; and once it has been given a piece to send, sends it whenever all was sent.
#[derive(Default)]
struct Session {
    piece: Option<Arc<[u8]>>,
    /// The turns in which all was sent.
    completed_in: Vec<u64>,
}

impl Handler for Session {
    fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer) {
        conn.send_buffer(input);
    }
    fn on_write_complete(&mut self, conn: &Connection<'_>) {
        if let Some(piece) = &self.piece {
            self.completed_in.push(conn.event_loop().metrics().turns);
            conn.send_shared(piece.clone());
        }
    }
}

/// A server and the peer that is going to be fed.
struct Scene {
    server: Running,
    peer: TcpStream,
    session: HandlerHandle<Session>,
}

impl Scene {
    fn new() -> Scene {
        let (tell, connected) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.serve(move |conn| {
                // Only the first one is waited for.
                let _ = tell.send(conn.handle_for());
                Session::default()
            })
        });
        let peer = server.connect();
        Scene { server, peer, session: within(&connected) }
    }

    /// Calls `f` on the loop, as a callback of the fed connection.
    fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Session, &Connection<'_>) -> R + Send + 'static,
    ) -> R {
        let (tell, told) = channel();
        self.session.post(move |session, conn| tell.send(f(session, conn)).unwrap()).unwrap();
        within(&told)
    }

    /// Starts sending without end, in pieces that are large for the shim.
    fn feed(&self) {
        let piece: Arc<[u8]> = pattern(64 * 1024).into();
        self.call(|session, conn| {
            conn.send_shared(piece.clone());
            session.piece = Some(piece);
        });
    }

    /// Another peer comes, and is served as if it were alone.
    fn serve_another(&self) {
        let mut other = self.server.connect();
        for byte in 0..50 {
            other.write_all(&[byte]).unwrap();
            assert_eq!(read_n(&other, 1), [byte]);
        }
    }

    /// The most times that all was sent in one turn, of at least a thousand times.
    #[track_caller]
    fn most_completions_a_turn(&self) -> usize {
        let turns = || self.call(|session, _| session.completed_in.clone());
        eventually("all was sent often", || turns().len() >= 1_000);
        turns().chunk_by(|a, b| a == b).map(<[u64]>::len).max().unwrap()
    }
}

/// The most large calls that the loop makes in a turn, from now on: between two tasks of which
/// each leaves the next.
fn most_calls_a_turn(scene: &Scene) -> Arc<AtomicU64> {
    fn look(event_loop: &EventLoop, before: (u64, u64), most: Arc<AtomicU64>) {
        let now = (event_loop.metrics().turns, load(shim::number(c"fast_reader_calls")));
        // A turn may have had no time for this task.
        if now.0 == before.0 + 1 {
            most.fetch_max(now.1 - before.1, Ordering::Relaxed);
        }
        event_loop.defer(move |event_loop| look(event_loop, now, most));
    }
    let most = Arc::new(AtomicU64::new(0));
    let maximum = most.clone();
    scene.call(move |_, conn| look(conn.event_loop(), (0, 0), maximum));
    most
}

fn load(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

#[test]
fn b30_a_peer_that_is_fed_endlessly_takes_turns_with_the_others() {
    shim::run(alone!(), "fast_reader", || {
        let scene = Scene::new();
        let most = most_calls_a_turn(&scene);
        scene.feed();
        scene.serve_another();
        assert_eq!(scene.most_completions_a_turn(), 1);
        assert_eq!(load(&most), 1);
    });
}

/// An event is answered by one call, and what its callbacks left by another at the end of the turn.
#[test]
fn b30_a_peer_that_is_fed_endlessly_and_asks_for_more_takes_turns_with_the_others() {
    shim::run(alone!(), "fast_reader", || {
        let scene = Scene::new();
        let most = most_calls_a_turn(&scene);
        scene.feed();
        let done = Arc::new(AtomicBool::new(false));
        let asking = {
            let (mut peer, done) = (scene.peer.try_clone().unwrap(), done.clone());
            thread::spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    peer.write_all(b"?").unwrap();
                }
            })
        };
        scene.serve_another();
        assert!(scene.most_completions_a_turn() <= 2);
        assert!(load(&most) <= 2, "{} calls in a turn", load(&most));
        done.store(true, Ordering::Relaxed);
        asking.join().unwrap();
    });
}

/// A real one. The kernel's buffer fills now and then, so that some pieces begin with an event.
#[test]
fn b30_a_peer_that_reads_all_it_is_fed_takes_turns_with_the_others() {
    alone!().run(|| {
        let scene = Scene::new();
        let reader = {
            let mut peer = scene.peer.try_clone().unwrap();
            thread::spawn(move || io::copy(&mut peer, &mut io::sink()))
        };
        scene.feed();
        scene.serve_another();
        assert!(scene.most_completions_a_turn() <= 2);
        drop(scene);
        // How it ends is not the matter here.
        let _ = reader.join().unwrap();
    });
}

/// So large that it would take for ever to send it in one event, whatever the size of a chunk.
#[test]
fn b30_a_large_file_leaves_in_bounded_chunks() {
    const LEN: u64 = 1 << 40;
    const LARGE_CHUNK: u64 = 4 << 20;
    shim::run(alone!(), "fast_reader", || {
        let path = std::env::temp_dir().join(format!("ruduo-large-{}", std::process::id()));
        let file = File::create_new(&path).unwrap();
        fs::remove_file(path).unwrap();
        file.set_len(LEN).unwrap();

        let scene = Scene::new();
        let most = most_calls_a_turn(&scene);
        scene.call(|_, conn| conn.send_file(file, 0, LEN));
        scene.serve_another();
        assert_eq!(load(&most), 1);
        assert!(load(shim::number(c"fast_reader_most")) <= LARGE_CHUNK);
        assert!(scene.call(|_, conn| conn.pending_output()) > 0, "it was not so large");
    });
}

#[test]
fn b30_a_large_buffer_leaves_in_bounded_pieces() {
    const LEN: usize = 48 << 20;
    const LARGE_PIECE: u64 = 4 << 20;
    shim::run(alone!(), "fast_reader", || {
        let scene = Scene::new();
        let most = most_calls_a_turn(&scene);
        for shared in [true, false] {
            scene.call(move |_, conn| match shared {
                true => conn.send_shared(vec![0; LEN].into()),
                false => conn.send(vec![0; LEN]),
            });
            scene.serve_another();
            eventually("all is sent", || scene.call(|_, conn| conn.pending_output()) == 0);
        }
        assert_eq!(load(&most), 1);
        assert!(load(shim::number(c"fast_reader_most")) <= LARGE_PIECE);
    });
}

#[test]
fn b30_a_long_queue_leaves_a_call_at_a_time() {
    const PIECES: usize = 2_000;
    shim::run(alone!(), "fast_reader", || {
        let scene = Scene::new();
        let most = most_calls_a_turn(&scene);
        let piece: Arc<[u8]> = pattern(5_000).into();
        scene.call(move |_, conn| (0..PIECES).for_each(|_| conn.send_shared(piece.clone())));
        scene.serve_another();
        eventually("all is sent", || scene.call(|_, conn| conn.pending_output()) == 0);
        assert_eq!(load(&most), 1);
        assert!(load(shim::number(c"fast_reader_calls")) > 100, "it was no long queue");
    });
}
