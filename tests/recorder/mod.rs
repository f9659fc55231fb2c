//! A handler that tells a test what it was told, and a loop that stands still while the test
//! prepares something.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::errno::Errno;
use ruduo::{
    Buffer, CloseReason, Connection, ConnectionHandle, Handler, HandlerHandle, LoopHandle, Server,
    TcpServer,
};

use crate::common::{Running, serve, within};

/// What happened to a connection.
#[derive(Debug, PartialEq)]
pub enum Told {
    Message(Vec<u8>),
    HalfClose,
    HighWater(usize),
    LowWater,
    WriteComplete,
    Timer(u64),
    Closed(String),
}

/// Consumes everything. Does what the test asks for through the connection's handle.
pub struct Recorder {
    told: Sender<Told>,
    stays_open: bool,
}

/// The test's side of a [`Recorder`].
pub struct Recorded {
    pub server: Running,
    /// The server's end and the peer's.
    pub ends: (SocketAddr, SocketAddr),
    pub told: Receiver<Told>,
    pub conn: ConnectionHandle,
    pub handler: HandlerHandle<Recorder>,
}

/// A server with one connection, whose handler is a [`Recorder`]; it shuts down when the peer has
/// finished.
pub fn recorded(
    settings: impl FnOnce(Server<'_>) -> Server<'_> + Send + 'static,
) -> (Recorded, TcpStream) {
    record(settings, |_| {}, false)
}

/// One that stays open when the peer has finished.
pub fn recorded_open(
    settings: impl FnOnce(Server<'_>) -> Server<'_> + Send + 'static,
) -> (Recorded, TcpStream) {
    record(settings, |_| {}, true)
}

/// One with which something is done before anything happens.
pub fn recorded_after(
    begin: fn(&Connection<'_>),
    settings: impl FnOnce(Server<'_>) -> Server<'_> + Send + 'static,
) -> (Recorded, TcpStream) {
    record(settings, begin, false)
}

/// One that has paused reading.
pub fn recorded_paused(
    settings: impl FnOnce(Server<'_>) -> Server<'_> + Send + 'static,
) -> (Recorded, TcpStream) {
    record(settings, |conn| conn.pause_reading(), false)
}

fn record(
    settings: impl FnOnce(Server<'_>) -> Server<'_> + Send + 'static,
    begin: fn(&Connection<'_>),
    stays_open: bool,
) -> (Recorded, TcpStream) {
    let (connected, handles) = channel();
    let (told, events) = channel();
    let server = serve(move |event_loop| {
        settings(TcpServer::bind(event_loop, "127.0.0.1:0")?).serve(move |conn| {
            begin(conn);
            // Only the first connection is waited for.
            let _ = connected.send(conn.handle_for());
            Recorder { told: told.clone(), stays_open }
        })
    });
    let peer = server.connect();
    let handler: HandlerHandle<Recorder> = within(&handles);
    let conn = handler.connection().clone();
    let ends = (server.addr(), peer.local_addr().unwrap());
    (Recorded { server, ends, told: events, conn, handler }, peer)
}

impl Recorder {
    fn tell(&self, what: Told) {
        // A test that has seen enough does not listen any more.
        let _ = self.told.send(what);
    }
}

impl Handler for Recorder {
    fn on_message(&mut self, _: &Connection<'_>, input: &mut Buffer) {
        self.tell(Told::Message(std::mem::take(input).into_vec()));
    }
    fn on_half_close(&mut self, conn: &Connection<'_>) {
        self.tell(Told::HalfClose);
        if !self.stays_open {
            conn.shutdown();
        }
    }
    fn on_high_water(&mut self, _: &Connection<'_>, pending: usize) {
        self.tell(Told::HighWater(pending));
    }
    fn on_low_water(&mut self, _: &Connection<'_>) {
        self.tell(Told::LowWater);
    }
    fn on_write_complete(&mut self, _: &Connection<'_>) {
        self.tell(Told::WriteComplete);
    }
    fn on_timer(&mut self, _: &Connection<'_>, key: u64) {
        self.tell(Told::Timer(key));
    }
    fn on_close(&mut self, _: &Connection<'_>, reason: &CloseReason) {
        self.tell(Told::Closed(brief(reason)));
    }
}

impl Recorded {
    /// All that was received before something else happened, and what that was.
    #[track_caller]
    pub fn messages(&self) -> (Vec<u8>, Told) {
        let mut bytes = Vec::new();
        loop {
            match within(&self.told) {
                Told::Message(more) => bytes.extend(more),
                other => return (bytes, other),
            }
        }
    }

    /// The end of the connection, after which nothing is told.
    #[track_caller]
    pub fn closed(&self) -> String {
        match within(&self.told) {
            Told::Closed(reason) => self.nothing_after(reason),
            other => panic!("told of {other:?}"),
        }
    }

    /// Messages, and then the end.
    #[track_caller]
    pub fn messages_until_closed(&self) -> (Vec<u8>, String) {
        match self.messages() {
            (bytes, Told::Closed(reason)) => (bytes, self.nothing_after(reason)),
            (bytes, other) => panic!("told of {other:?} after {} bytes", bytes.len()),
        }
    }

    #[track_caller]
    fn nothing_after(&self, reason: String) -> String {
        self.let_turn();
        let more = self.told.try_recv();
        assert!(more.is_err(), "told of {more:?} after the end");
        reason
    }

    /// Lets the loop make a few turns, so that what it would do by now is done.
    pub fn let_turn(&self) {
        for _ in 0..3 {
            turns(self.server.event_loop());
        }
    }

    /// Calls `f` on the loop, as one of the connection's callbacks.
    pub fn call(&self, f: impl FnOnce(&Connection<'_>) + Send + 'static) {
        self.handler.post(|_, conn| f(conn)).unwrap();
    }

    /// Makes the loop stand still until the result is dropped.
    pub fn hold(&self) -> Hold {
        hold(self.server.event_loop())
    }

    /// Makes the loop stand still, and then call `f` before it looks at any event.
    pub fn hold_then(&self, f: impl FnOnce(&Connection<'_>) + Send + 'static) -> Hold {
        let (hold, wait) = Hold::new();
        self.call(move |conn| {
            wait();
            f(conn);
        });
        hold.begin()
    }

    /// How many turns the loop makes by itself in some time. A loop that spins makes thousands.
    pub fn turns_in(&self, time: Duration) -> u64 {
        let before = turns(self.server.event_loop());
        std::thread::sleep(time);
        turns(self.server.event_loop()) - before
    }
}

/// Keeps a loop from going on.
#[must_use = "dropping it lets the loop go on"]
pub struct Hold {
    _release: Sender<()>,
    is_held: Receiver<()>,
}

impl Hold {
    /// And what the loop has to call in order to be held.
    pub fn new() -> (Hold, impl FnOnce() + Send + 'static) {
        let ((_release, gate), (held, is_held)) = (channel::<()>(), channel());
        let wait = move || {
            held.send(()).unwrap();
            let _ = gate.recv();
        };
        (Hold { _release, is_held }, wait)
    }

    /// Waits until the loop is held.
    pub fn begin(self) -> Hold {
        within(&self.is_held);
        self
    }
}

/// Makes a loop stand still until the result is dropped.
pub fn hold(event_loop: &LoopHandle) -> Hold {
    let (hold, wait) = Hold::new();
    event_loop.post(move |_| wait()).unwrap();
    hold.begin()
}

/// How many turns the loop has made. Waits for one.
pub fn turns(event_loop: &LoopHandle) -> u64 {
    let (send, receive) = channel();
    event_loop.post(move |event_loop| send.send(event_loop.metrics().turns).unwrap()).unwrap();
    within(&receive)
}

/// A reason in a form that can be compared: `ReadFailed(ECONNRESET)`.
pub fn brief(reason: &CloseReason) -> String {
    let errno = |e: &std::io::Error| {
        e.raw_os_error().map_or(format!("{:?}", e.kind()), |e| format!("{:?}", Errno::from_raw(e)))
    };
    match reason {
        CloseReason::ReadFailed(e) => format!("ReadFailed({})", errno(e)),
        CloseReason::WriteFailed(e) => format!("WriteFailed({})", errno(e)),
        other => format!("{other:?}"),
    }
}
