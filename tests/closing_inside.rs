//! Closing a connection, another one or the server from inside each of the callbacks. Whatever is
//! closed, callbacks do not nest, and each connection closes once, as the last thing it does (see
//! `actor`, which checks that).

#![allow(clippy::unwrap_used)]

mod actor;
mod common;
mod kernel;
mod recorder;

use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actor::{At, Role, play};
use common::{Alone, Running, serve, within};
use recorder::{Hold, hold};
use ruduo::{Buffer, CloseReason, Connection, ConnectionHandle, Handler, HandlerHandle, TcpServer};

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

// Nothing else is told between closing and the close.

/// Does its act for each message, leaves that where it is, and tells of everything.
struct Acting {
    tell: Sender<String>,
    act: fn(&Acting, &Connection<'_>),
    connections: Arc<Mutex<Vec<ConnectionHandle>>>,
}

impl Acting {
    fn tell(&self, what: impl Into<String>) {
        self.tell.send(what.into()).unwrap();
    }
}

impl Handler for Acting {
    fn on_connect(&mut self, conn: &Connection<'_>) {
        self.connections.lock().unwrap().push(conn.handle());
    }
    fn on_message(&mut self, conn: &Connection<'_>, _: &mut Buffer) {
        self.tell("message");
        (self.act)(self, conn);
    }
    fn on_write_complete(&mut self, _: &Connection<'_>) {
        self.tell("write complete");
    }
    fn on_high_water(&mut self, _: &Connection<'_>, _: usize) {
        self.tell("high water");
    }
    fn on_close(&mut self, _: &Connection<'_>, reason: &CloseReason) {
        self.tell(format!("close: {reason}"));
    }
}

type Peer = (TcpStream, HandlerHandle<Acting>);

/// A server of those, and connections to it.
fn acting<const PEERS: usize>(
    act: fn(&Acting, &Connection<'_>),
) -> (Running, Receiver<String>, [Peer; PEERS]) {
    let ((tell, told), (connected, handles)) = (channel(), channel());
    let running = serve(move |event_loop| {
        let connections = Arc::<Mutex<Vec<ConnectionHandle>>>::default();
        TcpServer::bind(event_loop, "127.0.0.1:0")?.water_marks(0, 1000).serve(move |conn| {
            connected.send(conn.handle_for()).unwrap();
            Acting { tell: tell.clone(), act, connections: connections.clone() }
        })
    });
    let peers = std::array::from_fn(|_| (running.connect(), within(&handles)));
    (running, told, peers)
}

/// Something has arrived from this peer at the server, whose loop is held.
fn say_something(running: &Running, peer: &TcpStream) {
    // The faults below count send calls, so this is none.
    File::from(OwnedFd::from(peer.try_clone().unwrap())).write_all(b"message").unwrap();
    kernel::wait_for_bytes((running.addr(), peer.local_addr().unwrap()), 7);
}

/// Ends the server; what was told since.
fn rest(running: &Running, told: &Receiver<String>) -> Vec<String> {
    running.server.stop(Duration::ZERO);
    running.server.wait().unwrap();
    told.try_iter().collect()
}

/// The first calls that send find no room. So what the connection has sent leaves, or does not, in
/// the very event that brings the message for which it closes.
fn assert_close_comes_next(alone: Alone, calls: &str, act: fn(&Acting, &Connection<'_>)) {
    let fault = format!("inject=sendto:error=EAGAIN:when={calls}");
    alone.under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", &fault]).run(|| {
        let (running, told, [(peer, conn)]) = acting(act);
        let (hold, wait) = Hold::new();
        let send = move |_: &mut Acting, conn: &Connection<'_>| {
            wait();
            conn.send("x");
        };
        conn.post(send).unwrap();
        let held = hold.begin();
        say_something(&running, &peer);
        drop(held);
        assert_eq!(within(&told), "message");
        assert_eq!(within(&told), format!("close: {CLOSED}"));
        assert_eq!(rest(&running, &told), [""; 0]);
    });
}

#[test]
fn b31_after_a_close_nobody_hears_that_all_was_sent() {
    assert_close_comes_next(each_poller!(), "1", |_, conn| conn.close());
}

#[test]
fn b31_after_a_close_nobody_hears_that_much_is_left() {
    assert_close_comes_next(each_poller!(), "1..2", |_, conn| {
        conn.send([0; 2000]);
        conn.close();
    });
}

#[test]
fn b31_after_a_close_what_was_held_back_does_not_come_again() {
    each_poller!().run(|| {
        let (running, told, [(mut peer, conn)]) = acting(|_, conn| conn.pause_reading());
        peer.write_all(b"message").unwrap();
        assert_eq!(within(&told), "message");
        let close = |_: &mut Acting, conn: &Connection<'_>| {
            conn.resume_reading();
            assert!(conn.wants_input());
            conn.close();
            assert!(!conn.wants_input());
        };
        conn.post(close).unwrap();
        assert_eq!(within(&told), format!("close: {CLOSED}"));
        assert_eq!(rest(&running, &told), [""; 0]);
    });
}

/// Both have something to say in the same turn, and the first of them closes the other.
#[test]
fn b31_who_was_closed_by_another_is_not_heard_in_the_same_turn() {
    each_poller!().run(|| {
        let (running, told, peers) = acting::<2>(|this, conn| {
            let connections = this.connections.lock().unwrap();
            let other = connections.iter().find(|other| other.id() != conn.id());
            other.unwrap().close().unwrap();
        });
        let held = hold(running.event_loop());
        peers.iter().for_each(|(peer, _)| say_something(&running, peer));
        drop(held);
        assert_eq!(within(&told), "message");
        assert_eq!(within(&told), format!("close: {CLOSED}"));
        assert_eq!(rest(&running, &told), [format!("close: {STOPPED}")]);
    });
}
