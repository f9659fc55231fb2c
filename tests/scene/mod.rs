//! A server whose sessions do one act for each message, and tell how they end.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::io::Write;
use std::net::TcpStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use ruduo::{Buffer, CloseReason, Connection, ConnectionHandle, Handler, Server, TcpServer};

use crate::common::{Running, pattern, serve, within};

/// More than the kernel takes from a peer that does not read.
pub const LARGE: usize = 50 * 1024 * 1024;

pub type Act = fn(&Connection<'_>, &mut Buffer);

pub enum Told {
    Connect(ConnectionHandle),
    HighWater,
    Close { reason: String, is_clean: bool },
}

/// Does its act for each message, and tells what comes of it.
struct Session {
    act: Act,
    tell: Sender<Told>,
    is_closed: bool,
}

impl Handler for Session {
    fn on_connect(&mut self, conn: &Connection) {
        self.tell.send(Told::Connect(conn.handle())).unwrap();
    }
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        assert!(!self.is_closed, "on_message after on_close");
        (self.act)(conn, input);
    }
    fn on_high_water(&mut self, _: &Connection, _: usize) {
        assert!(!self.is_closed, "on_high_water after on_close");
        self.tell.send(Told::HighWater).unwrap();
    }
    fn on_close(&mut self, _: &Connection, reason: &CloseReason) {
        assert!(!self.is_closed, "on_close twice");
        self.is_closed = true;
        let close = Told::Close { reason: reason.to_string(), is_clean: reason.is_clean() };
        self.tell.send(close).unwrap();
    }
}

/// A server of such sessions.
pub struct Scene {
    pub running: Running,
    told: Receiver<Told>,
}

impl Scene {
    pub fn new(act: Act) -> Scene {
        Scene::with(act, |server| server)
    }

    pub fn with(act: Act, settings: fn(Server<'_>) -> Server<'_>) -> Scene {
        let (tell, told) = mpsc::channel();
        let running = serve(move |event_loop| {
            let server = settings(TcpServer::bind(event_loop, "127.0.0.1:0")?);
            server.serve(move |_| Session { act, tell: tell.clone(), is_closed: false })
        });
        Scene { running, told }
    }

    pub fn connect(&self) -> (TcpStream, ConnectionHandle) {
        let peer = self.running.connect();
        let Told::Connect(conn) = within(&self.told) else { panic!("not yet connected") };
        (peer, conn)
    }

    /// A peer that has said "go" and got more for it than the kernel takes.
    pub fn connect_and_await_high_water(&self) -> (TcpStream, ConnectionHandle) {
        let (peer, conn) = self.connect();
        write(&peer, "go");
        assert!(matches!(within(&self.told), Told::HighWater));
        (peer, conn)
    }

    /// Waits for the end of a connection.
    pub fn close(&self) -> (String, bool) {
        loop {
            if let Told::Close { reason, is_clean } = within(&self.told) {
                return (reason, is_clean);
            }
        }
    }

    pub fn assert_closes(&self, expected: &str) {
        let (reason, is_clean) = self.close();
        assert!(reason.contains(expected), "{reason}");
        assert_eq!(is_clean, ["closed by the peer", "shut down"].contains(&&reason[..]));
    }
}

impl Drop for Scene {
    /// Nothing comes after the end of a connection.
    fn drop(&mut self) {
        if !thread::panicking() {
            self.running.server.stop(Duration::ZERO);
            self.running.server.wait().unwrap();
            assert_eq!(self.told.try_iter().count(), 0);
        }
    }
}

/// Answers everything with more than the kernel takes.
pub const ANSWER: Act = |conn, input| {
    input.clear();
    conn.send(pattern(LARGE));
};

pub fn write(mut stream: &TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).unwrap();
}
