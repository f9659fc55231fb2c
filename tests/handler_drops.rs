//! Values whose Drop acts on the connection, its neighbour and the loop, wherever the program may
//! leave one: nothing is borrowed then, every connection ends once, and nothing leaks.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{DEADLINE, Running, eventually, read_n, serve, within};
use ruduo::{Buffer, CloseReason, Connection, EventLoop, Handler, HandlerHandle, TcpServer};

/// What the tests count.
#[derive(Default)]
struct Counts {
    alive: AtomicUsize,
    dropped: AtomicUsize,
    opened: AtomicUsize,
    closed: AtomicUsize,
}

/// Acts when dropped.
struct Mine {
    session: HandlerHandle<Session>,
    counts: Arc<Counts>,
    /// What it arms and posts carries mines too, this many generations.
    generations: u32,
}

impl Mine {
    fn new(session: &HandlerHandle<Session>, counts: &Arc<Counts>, generations: u32) -> Mine {
        counts.alive.fetch_add(1, SeqCst);
        Mine { session: session.clone(), counts: counts.clone(), generations }
    }

    fn child(&self) -> Option<Mine> {
        (self.generations > 0).then(|| Mine::new(&self.session, &self.counts, self.generations - 1))
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        self.counts.alive.fetch_sub(1, SeqCst);
        self.counts.dropped.fetch_add(1, SeqCst);
        let handle = self.session.connection().clone();
        // Whatever of this comes too late is refused, and what it carried drops right here.
        let _ = handle.send("bang");
        let (in_call, in_task) = (self.child(), self.child());
        let _ = self.session.post(move |session, conn| {
            session.mine = in_call;
            conn.set_timer(2, Duration::ZERO);
        });
        let _ = handle.event_loop().post(move |_| drop(in_task));
        handle.event_loop().with_local(|event_loop| {
            let (fired, cancelled, deferred) = (self.child(), self.child(), self.child());
            event_loop.run_after(Duration::ZERO, move |_| drop(fired));
            let timer = event_loop.run_after(DEADLINE, move |_| drop(cancelled));
            event_loop.cancel(timer);
            event_loop.defer(move |_| drop(deferred));
        });
        let _ = handle.pause_reading();
        let _ = handle.resume_reading();
        let _ = handle.shutdown();
        let _ = handle.close();
        drop(handle);
    }
}

/// Does to itself what its peer says.
struct Session {
    mine: Option<Mine>,
    counts: Arc<Counts>,
}

impl Handler for Session {
    fn on_connect(&mut self, conn: &Connection) {
        self.counts.opened.fetch_add(1, SeqCst);
        self.mine = Some(Mine::new(&conn.handle_for(), &self.counts, 2));
    }

    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        let mine = || Mine::new(&conn.handle_for(), &self.counts, 2);
        match input.read_u8() {
            Some(b'e') => conn.send("echo"),
            Some(b'd') => self.mine = None,
            Some(b't') => conn.set_timer(1, Duration::ZERO),
            Some(b'p') => {
                let mine = mine();
                conn.handle_for::<Session>().post(move |_, _| drop(mine)).unwrap();
            }
            // The call that is posted finds no connection.
            Some(b'l') => {
                let mine = mine();
                conn.handle_for::<Session>().post(move |_, _| drop(mine)).unwrap();
                conn.close();
            }
            // The call finds a handler, but of another type.
            Some(b'w') => {
                let mine = mine();
                conn.handle_for::<Other>().post(move |_, _| drop(mine)).unwrap();
            }
            Some(b'x') => {
                let mine = mine();
                let panics = move |_: &mut Session, _: &Connection| {
                    let _mine = mine;
                    panic!("on purpose");
                };
                conn.handle_for::<Session>().post(panics).unwrap();
            }
            Some(b'c') => {
                let mine = mine();
                let event_loop = conn.event_loop();
                let timer = event_loop.run_after(DEADLINE, move |_| drop(mine));
                event_loop.cancel(timer);
            }
            Some(b'q') => conn.event_loop().quit(),
            _ => conn.close(),
        }
    }

    fn on_timer(&mut self, _: &Connection, _: u64) {
        self.mine = None;
    }

    fn on_close(&mut self, conn: &Connection, _: &CloseReason) {
        self.counts.closed.fetch_add(1, SeqCst);
        if let Some(mine) = &self.mine {
            // One more, replaced while the connection is being torn down.
            self.mine = Some(Mine::new(&mine.session, &self.counts, 1));
            conn.send("nobody gets this");
        }
    }
}

struct Other;

impl Handler for Other {
    fn on_message(&mut self, _: &Connection, _: &mut Buffer) {}
}

fn start(counts: &Arc<Counts>) -> Running {
    let counts = counts.clone();
    serve(move |event_loop| {
        TcpServer::bind(event_loop, "127.0.0.1:0")?
            .serve(move |_| Session { mine: None, counts: counts.clone() })
    })
}

fn panics(running: &Running) -> u64 {
    let (send, receive) = channel();
    let look = move |event_loop: &EventLoop| send.send(event_loop.metrics().panics).unwrap();
    running.event_loop().post(look).unwrap();
    within(&receive)
}

/// A peer says `command`, which ends its connection one way or another; a neighbour, and the loop,
/// go on; and all is over in the end.
fn ends_once(command: u8, expected_panics: u64) {
    let counts = Arc::new(Counts::default());
    let running = start(&counts);
    let mut neighbour = running.connect();
    let mut peer = running.connect();
    peer.write_all(&[command]).unwrap();
    eventually("the connection has ended", || counts.closed.load(SeqCst) == 1);
    neighbour.write_all(b"e").unwrap();
    assert_eq!(read_n(&neighbour, 4), b"echo");
    assert_eq!(panics(&running), expected_panics);
    assert_eq!(running.server.metrics().open, 1);
    over(running, &counts, 2);
}

fn over(running: Running, counts: &Arc<Counts>, connections: usize) {
    drop(running);
    assert_eq!(counts.opened.load(SeqCst), connections);
    assert_eq!(counts.closed.load(SeqCst), connections, "one on_close each");
    assert!(counts.dropped.load(SeqCst) >= connections);
    assert_eq!(counts.alive.load(SeqCst), 0, "values that were never dropped");
    assert_eq!(Arc::strong_count(counts), 1, "something still holds what the handlers held");
}

#[test]
fn b41_a_handler_may_drop_a_value_that_acts_inside_a_callback() {
    alone!().run(|| ends_once(b'd', 0));
}

#[test]
fn b41_a_handler_may_drop_a_value_that_acts_in_its_timer() {
    alone!().run(|| ends_once(b't', 0));
}

#[test]
fn b41_a_handler_with_a_value_that_acts_may_be_dropped_with_its_connection() {
    alone!().run(|| ends_once(b'.', 0));
}

#[test]
fn b41_a_posted_call_may_hold_a_value_that_acts() {
    alone!().run(|| ends_once(b'p', 0));
}

#[test]
fn b41_a_posted_call_that_comes_too_late_may_hold_a_value_that_acts() {
    alone!().run(|| ends_once(b'l', 0));
}

#[test]
fn b41_a_posted_call_of_the_wrong_type_may_hold_a_value_that_acts() {
    alone!().expect_log("is not a handler_drops::Other").run(|| ends_once(b'w', 0));
}

#[test]
fn b41_a_posted_call_that_panics_may_hold_a_value_that_acts() {
    alone!().expect_log("on purpose").run(|| ends_once(b'x', 1));
}

#[test]
fn b41_a_timer_cancelled_in_a_callback_may_hold_a_value_that_acts() {
    alone!().run(|| ends_once(b'c', 0));
}

#[test]
fn b41_handlers_with_values_that_act_may_end_with_their_loop() {
    alone!().run(|| {
        let counts = Arc::new(Counts::default());
        let running = start(&counts);
        let mut peers: Vec<_> = (0..20).map(|_| running.connect()).collect();
        eventually("all are there", || counts.opened.load(SeqCst) == 20);
        peers[7].write_all(b"q").unwrap();
        eventually("the loop has ended", || !running.thread.is_running());
        over(running, &counts, 20);
    });
}

#[test]
fn b41_handlers_with_values_that_act_may_end_with_their_server() {
    alone!().run(|| {
        let counts = Arc::new(Counts::default());
        let running = start(&counts);
        let _peers: Vec<_> = (0..20).map(|_| running.connect()).collect();
        eventually("all are there", || counts.opened.load(SeqCst) == 20);
        running.server.stop(Duration::ZERO);
        running.server.wait().unwrap();
        assert_eq!(panics(&running), 0);
        over(running, &counts, 20);
    });
}

/// Tells by its drop.
struct Tells(Mutex<Sender<()>>);

impl Drop for Tells {
    fn drop(&mut self) {
        let _ = self.0.lock().unwrap().send(());
    }
}

#[test]
fn b41_a_refused_call_is_dropped_where_it_was_posted() {
    alone!().run(|| {
        let (handles, handle) = channel();
        let running = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_connect(move |conn| handles.send(conn.handle_for::<Other>()).unwrap())
                .on_message(|_, _| {})
                .start()
        });
        let _peer = running.connect();
        let other = within(&handle);
        drop(running);
        let (tell, told) = channel();
        let value = Tells(Mutex::new(tell));
        assert!(other.post(move |_, _| drop(value)).is_err());
        told.try_recv().expect("the value was dropped already");
    });
}
