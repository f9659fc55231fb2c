//! A scene for two connections of one server: the actor does something inside a callback of the
//! test's choice, the other one is there to be affected or not. Everything that happens is told.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use ruduo::{Buffer, CloseReason, Connection, ConnectionHandle, Handler, ServerHandle, TcpServer};

use crate::common::{Running, serve, within};

/// Inside which callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Connect,
    Message,
    WriteComplete,
    HighWater,
    LowWater,
    HalfClose,
    Timer,
    Stopping,
    Post,
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Actor,
    Other,
}

/// What can be acted upon. The connection is the actor's own.
pub struct Scene {
    at: At,
    act: Act,
    server: OnceLock<ServerHandle>,
    other: OnceLock<ConnectionHandle>,
}

pub type Act = fn(&Scene, &Connection<'_>);

impl Scene {
    pub fn server(&self) -> &ServerHandle {
        self.server.get().unwrap()
    }

    pub fn other(&self) -> &ConnectionHandle {
        self.other.get().unwrap()
    }
}

/// A callback, by its name, or `"Close: "` and the reason.
type Told = (Role, String);

/// More than the kernel takes from a peer that does not read.
const LARGE: usize = 32 * 1024 * 1024;

struct Player {
    scene: Arc<Scene>,
    role: Role,
    tell: Sender<Told>,
    is_closed: bool,
}

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Tells at the end of a callback, also if it panics.
struct Inside<'a> {
    player: &'a Player,
    what: String,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        IS_INSIDE.set(false);
        // Nobody listens once a test has failed.
        let _ = self.player.tell.send((self.player.role, self.what.clone()));
    }
}

impl Player {
    fn play(&self, at: At, what: String, conn: &Connection<'_>) {
        assert!(!self.is_closed, "{what} after on_close");
        assert!(!IS_INSIDE.replace(true), "{what} inside another callback");
        let _inside = Inside { player: self, what };
        if self.role == Role::Actor && at == self.scene.at {
            (self.scene.act)(&self.scene, conn);
        }
    }

    fn called(&self, at: At, conn: &Connection<'_>) {
        self.play(at, format!("{at:?}"), conn);
    }
}

impl Handler for Player {
    fn on_connect(&mut self, conn: &Connection) {
        if self.role == Role::Other {
            self.scene.other.set(conn.handle()).unwrap();
        }
        self.called(At::Connect, conn);
    }
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        self.called(At::Message, conn);
        let wish = input.readable().to_owned();
        input.clear();
        match &wish[..] {
            b"large" => conn.send(vec![0; LARGE]),
            b"timer" => conn.set_timer(1, Duration::ZERO),
            b"post" => {
                let handle = conn.handle_for::<Player>();
                // It may just have closed itself.
                let _ = handle.post(|player, conn| player.called(At::Post, conn));
            }
            _ => conn.send(wish),
        }
    }
    fn on_write_complete(&mut self, conn: &Connection) {
        self.called(At::WriteComplete, conn);
    }
    fn on_high_water(&mut self, conn: &Connection, _: usize) {
        self.called(At::HighWater, conn);
    }
    fn on_low_water(&mut self, conn: &Connection) {
        self.called(At::LowWater, conn);
    }
    fn on_half_close(&mut self, conn: &Connection) {
        self.called(At::HalfClose, conn);
        conn.shutdown();
    }
    fn on_timer(&mut self, conn: &Connection, _: u64) {
        self.called(At::Timer, conn);
    }
    fn on_stopping(&mut self, conn: &Connection) {
        self.called(At::Stopping, conn);
    }
    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        self.play(At::Close, format!("Close: {reason}"), conn);
        self.is_closed = true;
    }
}

/// A scene in which the act has been performed.
pub struct Play {
    pub running: Running,
    pub actor: TcpStream,
    pub other: TcpStream,
    told: Receiver<Told>,
    so_far: Vec<Told>,
}

/// Has the actor perform `act` inside `at`.
pub fn play(threads: usize, at: At, act: Act) -> Play {
    let (tell, told) = mpsc::channel();
    let scene = Scene { at, act, server: OnceLock::new(), other: OnceLock::new() };
    let scene = Arc::new(scene);
    let is_first = AtomicBool::new(true);
    let running = {
        let scene = scene.clone();
        serve(move |event_loop| {
            let server = TcpServer::bind(event_loop, "127.0.0.1:0")?.threads(threads);
            server.serve(move |_| {
                let first = is_first.swap(false, Ordering::Relaxed);
                let role = if first { Role::Other } else { Role::Actor };
                Player { scene: scene.clone(), role, tell: tell.clone(), is_closed: false }
            })
        })
    };
    scene.server.set(running.server.clone()).unwrap();
    let mut so_far = Vec::new();
    let mut await_told = |role, what: &str| {
        while !so_far.last().is_some_and(|(r, w): &Told| *r == role && w.starts_with(what)) {
            so_far.push(within(&told));
        }
    };
    let other = running.connect();
    await_told(Role::Other, "Connect");
    let actor = running.connect();
    let wish = |wish: &str| (&actor).write_all(wish.as_bytes()).unwrap();
    match at {
        At::Connect => {}
        At::Message | At::WriteComplete => wish("an echo"),
        At::HighWater => wish("large"),
        At::LowWater => {
            wish("large");
            await_told(Role::Actor, "HighWater");
            read_in_background(&actor);
        }
        At::HalfClose | At::Close => actor.shutdown(Shutdown::Write).unwrap(),
        At::Timer => wish("timer"),
        At::Stopping => {
            // Who is not in yet when the stop begins stays out.
            await_told(Role::Actor, "Connect");
            running.server.stop(Duration::MAX);
        }
        At::Post => wish("post"),
    }
    await_told(Role::Actor, &format!("{at:?}"));
    Play { running, actor, other, told, so_far }
}

/// Takes everything until the end of the stream.
fn read_in_background(stream: &TcpStream) {
    let mut stream = stream.try_clone().unwrap();
    thread::spawn(move || {
        let mut room = vec![0; 1024 * 1024];
        while stream.read(&mut room).is_ok_and(|n| n > 0) {}
    });
}

impl Play {
    /// Waits for the end of the actor's connection; returns the reason.
    pub fn end_of(&mut self, role: Role) -> String {
        loop {
            let end = self.so_far.iter().find(|(r, w)| *r == role && w.starts_with("Close"));
            if let Some((_, what)) = end {
                return what["Close: ".len()..].to_owned();
            }
            self.so_far.push(within(&self.told));
        }
    }

    /// Waits for the end of the server, and sees to it that each connection has closed once, and
    /// last. Returns the reasons, of the actor's and the other's.
    pub fn end(mut self) -> (String, String) {
        self.running.server.wait().unwrap();
        assert_eq!(self.running.server.metrics().open, 0);
        let reasons = (self.end_of(Role::Actor), self.end_of(Role::Other));
        self.so_far.extend(self.told.try_iter());
        for role in [Role::Actor, Role::Other] {
            let mut callbacks = self.so_far.iter().filter(|(r, _)| *r == role);
            let close = callbacks.find(|(_, what)| what.starts_with("Close"));
            assert!(close.is_some() && callbacks.next().is_none(), "{:?}", self.so_far);
        }
        reasons
    }
}
