//! A server whose sessions are closures with a state, and peers whose streams come in pieces.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Instant;

use ruduo::{Buffer, CloseReason, Connection, Handler, Server, TcpServer};

use crate::common::{DEADLINE, Running, read_to_end, serve, within};
use crate::recorder::brief;

/// What a session tells the test.
pub enum Told {
    Message(String),
    Closed(String),
}

/// How it does that.
pub struct Tell(Sender<Told>);

impl Tell {
    pub fn message(&self, message: &[u8]) {
        // A test that has seen enough does not listen any more.
        let _ = self.0.send(Told::Message(String::from_utf8_lossy(message).into_owned()));
    }
}

/// Helps the compiler to see that a closure is an act of a session, for borrows of any length.
pub fn act<A: FnMut(&Connection<'_>, &mut Buffer, &Tell) + 'static>(act: A) -> A {
    act
}

struct Session<A> {
    act: A,
    tell: Tell,
}

impl<A: FnMut(&Connection<'_>, &mut Buffer, &Tell) + 'static> Handler for Session<A> {
    fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer) {
        (self.act)(conn, input, &self.tell);
    }
    fn on_close(&mut self, _: &Connection<'_>, reason: &CloseReason) {
        let _ = self.tell.0.send(Told::Closed(brief(reason)));
    }
}

/// A server that makes an act for each connection, and calls it for each input.
pub struct Sessions {
    pub running: Running,
    told: Receiver<Told>,
}

/// One connection, from its beginning to its end.
#[derive(Debug, PartialEq)]
pub struct Talk {
    pub messages: Vec<String>,
    pub reason: String,
    /// What the peer got.
    pub answers: Vec<u8>,
}

impl Sessions {
    pub fn new<A>(make: impl Fn() -> A + Send + Sync + 'static) -> Sessions
    where
        A: FnMut(&Connection<'_>, &mut Buffer, &Tell) + 'static,
    {
        Sessions::with(|server| server, make)
    }

    pub fn with<A>(
        settings: impl FnOnce(Server<'_>) -> Server<'_> + Send + 'static,
        make: impl Fn() -> A + Send + Sync + 'static,
    ) -> Sessions
    where
        A: FnMut(&Connection<'_>, &mut Buffer, &Tell) + 'static,
    {
        let (tell, told) = channel();
        let running = serve(move |event_loop| {
            let server = settings(TcpServer::bind(event_loop, "127.0.0.1:0")?);
            server.serve(move |_| Session { act: make(), tell: Tell(tell.clone()) })
        });
        Sessions { running, told }
    }

    pub fn connect(&self) -> TcpStream {
        let peer = self.running.connect();
        // A piece must not wait until the one before it is acknowledged.
        peer.set_nodelay(true).unwrap();
        peer
    }

    /// Sends pieces of which each is received by itself.
    #[track_caller]
    pub fn send(&self, mut peer: &TcpStream, pieces: &[&[u8]]) {
        for piece in pieces {
            let received = self.running.server.metrics().received + piece.len() as u64;
            peer.write_all(piece).unwrap();
            let start = Instant::now();
            while self.running.server.metrics().received < received {
                assert!(start.elapsed() < DEADLINE, "a piece was not received");
                thread::yield_now();
            }
        }
    }

    /// A peer that sends these pieces, and then the end of its stream.
    #[track_caller]
    pub fn talk(&self, pieces: &[&[u8]]) -> Talk {
        let peer = self.connect();
        self.send(&peer, pieces);
        self.finish(&peer)
    }

    /// Sends the end of the stream, and waits for the end of the connection.
    #[track_caller]
    pub fn finish(&self, peer: &TcpStream) -> Talk {
        peer.shutdown(Shutdown::Write).unwrap();
        let answers = read_to_end(peer).unwrap();
        let (messages, reason) = self.until_closed();
        Talk { messages, reason, answers }
    }

    #[track_caller]
    pub fn message(&self) -> String {
        match within(&self.told) {
            Told::Message(message) => message,
            Told::Closed(reason) => panic!("closed: {reason}"),
        }
    }

    /// Whether the session has nothing to tell just now.
    pub fn is_silent(&self) -> bool {
        self.told.try_recv().is_err()
    }

    /// The messages until the end of the connection, and its reason.
    #[track_caller]
    pub fn until_closed(&self) -> (Vec<String>, String) {
        let mut messages = Vec::new();
        loop {
            match within(&self.told) {
                Told::Message(message) => messages.push(message),
                Told::Closed(reason) => return (messages, reason),
            }
        }
    }
}

/// A stream in one piece, in two that are cut at each place, and byte by byte.
pub fn cuts(stream: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    let in_two = (1..stream.len()).map(|at| vec![&stream[..at], &stream[at..]]);
    [vec![stream], stream.chunks(1).collect()].into_iter().chain(in_two)
}
