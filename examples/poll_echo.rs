//! Echo over TCP and UDP with the bare poller: tokens and batches of events, no event loop and no
//! callbacks, in the style of mio.
//!
//! To read it, follow `Trigger` through the file:
//!
//! - **level**: the poller repeats itself as long as there is something to do, so each event gets
//!   one read and one write, and whoever stops early is told again.
//! - **edge**: the poller tells what is new and nothing else. So each event is followed until the
//!   kernel says `WouldBlock`. Who stops before that, here so that one busy peer does not keep
//!   the others waiting, has to remember it: nobody will tell.
//! - **oneshot**: after an event the poller is silent about its descriptor until the interest is
//!   set again.
//!
//! In each of them what an event tells of may be gone when we look. Reading then says
//! `WouldBlock`, and that is no error.

mod common;

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use common::Long;
use ruduo::{
    EventLoop, Events, Interest, LoopThread, Mode, Notifier, Poller, PollerKind, Signal, Token,
};

const HELP: &str = "\
Echoes what it receives over TCP and UDP, with the bare poller.

Usage: poll_echo [--listen ADDRESS] [--trigger KIND] [--poller KIND]

  --listen ADDRESS  where to listen; port 0 is one that is free for both [127.0.0.1:2007]
  --trigger KIND    when the poller tells: level, edge or oneshot [level]
  --poller KIND     epoll, poll or kqueue [the best of this system, or RUDUO_POLLER]
  --help            this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to take what was received.
RUST_LOG=debug tells of each event.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let mut listen = SocketAddr::from(([127, 0, 0, 1], 2007));
        let (mut trigger, mut poller) = (Trigger(Mode::Level), None);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("trigger") => trigger = arguments.value()?,
                Long("poller") => poller = Some(arguments.value::<PollerKind>()?),
                other => return Err(other.unexpected().into()),
            }
        }
        let poller = poller.map_or_else(Poller::new, Poller::with_kind)?;
        let (listener, datagrams) = bind_both(listen)?;
        let stop = poller.notifier(STOP)?;
        let signals = stop_on_signals(stop.clone())?;
        common::announce(format_args!("listening on {}", listener.local_addr()?))?;
        Echo::new(poller, trigger.0, listener, datagrams, stop)?.run()?;
        Ok(signals.join()?)
    })
}

struct Trigger(Mode);

impl FromStr for Trigger {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Trigger, &'static str> {
        match name {
            "level" => Ok(Trigger(Mode::Level)),
            "edge" => Ok(Trigger(Mode::Edge)),
            "oneshot" => Ok(Trigger(Mode::OneShot)),
            _ => Err("there are level, edge and oneshot"),
        }
    }
}

/// TCP and UDP have ports of their own, so one that is free for TCP may be taken for UDP.
fn bind_both(addr: SocketAddr) -> io::Result<(TcpListener, UdpSocket)> {
    let mut attempts = if addr.port() == 0 { 100 } else { 1 };
    loop {
        let bind = || -> io::Result<_> {
            let listener = TcpListener::bind(addr)?;
            let datagrams = UdpSocket::bind(listener.local_addr()?)?;
            listener.set_nonblocking(true)?;
            datagrams.set_nonblocking(true)?;
            Ok((listener, datagrams))
        };
        attempts -= 1;
        match bind() {
            Err(e) if attempts == 0 || e.kind() != ErrorKind::AddrInUse => {
                return Err(io::Error::new(e.kind(), format!("listening on {addr}: {e}")));
            }
            Err(_) => {}
            both => return both,
        }
    }
}

/// A bare poller knows no signals. A loop does, so one on a thread of its own passes them on.
fn stop_on_signals(stop: Notifier) -> io::Result<LoopThread> {
    LoopThread::spawn("signals", EventLoop::builder(), move |event_loop| {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let stop = stop.clone();
            event_loop.on_signal(signal, move |_, signal| {
                log::info!("{signal}: stopping");
                if let Err(e) = stop.notify() {
                    log::error!("telling the echo to stop: {e}");
                }
            })?;
        }
        Ok(())
    })
}

// Tokens. Those of connections count up from here and are never used again, so an event for one
// that is closed finds nobody.
const LISTENER: Token = Token(0);
const DATAGRAMS: Token = Token(1);
const STOP: Token = Token(2);
const FIRST_CONNECTION: u64 = 3;

struct Echo {
    poller: Poller,
    mode: Mode,
    listener: TcpListener,
    datagrams: UdpSocket,
    connections: HashMap<Token, Connection>,
    next_token: u64,
    /// Those that were left before `WouldBlock`, which an edge does not repeat.
    unfinished: BTreeSet<Token>,
    /// When to accept again after there was no room for a connection.
    accept_at: Option<Instant>,
    /// Told to stop: when those go that are still here.
    stop_at: Option<Instant>,
    stop: Notifier,
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    /// Received and not yet sent back. Nothing is read while there is any, so a peer that does
    /// not take its bytes sends no more, and this stays small.
    pending: Vec<u8>,
    /// What the poller was told.
    interest: Interest,
    /// Our side has ended, because the program stops. What still comes is thrown away: closing
    /// with input that nobody has read would reset the connection, and the peer lose the echo.
    finishing: bool,
}

/// What became of one step.
enum Step {
    Done,
    /// The kernel has nothing to read, or no room to write.
    WouldBlock,
    Finished,
}

const CHUNK: usize = 16 * 1024;

/// As long as a datagram can be.
const DATAGRAM: usize = 65_536;

/// How many steps follow an event. Level and one-shot: one read and one write, or two datagrams.
/// Edge: until `WouldBlock`, but not for ever.
fn steps(mode: Mode) -> usize {
    if mode == Mode::Edge { 16 } else { 2 }
}

impl Echo {
    fn new(
        poller: Poller,
        mode: Mode,
        listener: TcpListener,
        datagrams: UdpSocket,
        stop: Notifier,
    ) -> io::Result<Echo> {
        poller.add(&listener, LISTENER, Interest::READ, mode)?;
        poller.add(&datagrams, DATAGRAMS, Interest::READ, mode)?;
        Ok(Echo {
            poller,
            mode,
            listener,
            datagrams,
            connections: HashMap::new(),
            next_token: FIRST_CONNECTION,
            unfinished: BTreeSet::new(),
            accept_at: None,
            stop_at: None,
            stop,
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(256);
        while !self.is_over() {
            self.poller.wait(&mut events, self.timeout())?;
            for token in std::mem::take(&mut self.unfinished) {
                self.serve(token)?;
            }
            for event in events.iter() {
                log::debug!("{event:?}");
                self.serve(event.token)?;
            }
            if self.accept_at.is_some_and(|at| at <= Instant::now()) {
                self.accept_at = None;
                self.poller.modify(&self.listener, LISTENER, Interest::READ, self.mode)?;
            }
        }
        self.poller.delete(&self.stop)
    }

    fn is_over(&self) -> bool {
        let Some(stop_at) = self.stop_at else { return false };
        self.connections.is_empty() || stop_at <= Instant::now()
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.unfinished.is_empty() {
            return Some(Duration::ZERO);
        }
        let next = [self.accept_at, self.stop_at].into_iter().flatten().min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn serve(&mut self, token: Token) -> io::Result<()> {
        match token {
            STOP => self.begin_to_stop(),
            LISTENER | DATAGRAMS if self.stop_at.is_some() => Ok(()),
            LISTENER => self.accept(),
            DATAGRAMS => self.answer_datagrams(),
            connection => self.advance(connection),
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        for _ in 0..steps(self.mode) {
            match self.listener.accept() {
                Ok((stream, peer)) => self.enter(stream, peer)?,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return self.rearm(LISTENER),
                // The peer has gone again.
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    // Out of descriptors, as a rule. The connection stays in the queue and would
                    // be reported again at once.
                    log::warn!("accepting: {e}; trying again in a second (see `ulimit -n`)");
                    self.accept_at = Some(Instant::now() + Duration::from_secs(1));
                    let (listener, none) = (&self.listener, Interest::NONE);
                    return self.poller.modify(listener, LISTENER, none, self.mode);
                }
            }
        }
        self.left_early(LISTENER)
    }

    fn enter(&mut self, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let token = Token(self.next_token);
        self.next_token += 1;
        let interest = Interest::READ;
        self.poller.add(&stream, token, interest, self.mode)?;
        log::debug!("{token:?} is {peer}");
        let (pending, finishing) = (Vec::new(), false);
        self.connections.insert(token, Connection { stream, peer, pending, interest, finishing });
        Ok(())
    }

    fn answer_datagrams(&mut self) -> io::Result<()> {
        let mut bytes = [0; DATAGRAM];
        for _ in 0..steps(self.mode) {
            let received = self.datagrams.recv_from(&mut bytes);
            match received.and_then(|(n, peer)| self.datagrams.send_to(&bytes[..n], peer)) {
                Ok(_) => {}
                // Nothing there; or no room for the answer, and then it is lost, as datagrams are.
                Err(e) if e.kind() == ErrorKind::WouldBlock => return self.rearm(DATAGRAMS),
                // Of this datagram or an earlier one; the socket lives on.
                Err(e) => log::info!("a datagram: {e}"),
            }
        }
        self.left_early(DATAGRAMS)
    }

    /// Moves the bytes of a connection.
    fn advance(&mut self, token: Token) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&token) else { return Ok(()) };
        let mut step = Ok(Step::Done);
        for _ in 0..steps(self.mode) {
            step = connection.step();
            if !matches!(step, Ok(Step::Done)) {
                break;
            }
        }
        let idle = connection.pending.is_empty() && !connection.finishing;
        if idle && self.stop_at.is_some() && matches!(step, Ok(Step::WouldBlock)) {
            connection.finishing = true;
            step = connection.stream.shutdown(Shutdown::Write).map(|()| Step::WouldBlock);
        }
        match step {
            Ok(Step::Finished) => self.close(token, "finished"),
            Err(e) => self.close(token, &e.to_string()),
            Ok(Step::WouldBlock) => self.rearm(token),
            Ok(Step::Done) => self.left_early(token),
        }
    }

    fn left_early(&mut self, token: Token) -> io::Result<()> {
        if self.mode == Mode::Edge || self.stop_at.is_some() {
            log::debug!("{token:?} goes on later");
            self.unfinished.insert(token);
        }
        self.rearm(token)
    }

    /// Tells the poller what to wait for: if that has changed, and after each one-shot.
    fn rearm(&mut self, token: Token) -> io::Result<()> {
        let one_shot = self.mode == Mode::OneShot;
        let (poller, mode) = (&self.poller, self.mode);
        match token {
            LISTENER if one_shot => poller.modify(&self.listener, token, Interest::READ, mode),
            DATAGRAMS if one_shot => poller.modify(&self.datagrams, token, Interest::READ, mode),
            _ => match self.connections.get_mut(&token) {
                Some(Connection { stream, pending, interest, .. }) => {
                    let wanted = if pending.is_empty() { Interest::READ } else { Interest::WRITE };
                    if wanted == *interest && !one_shot {
                        return Ok(());
                    }
                    *interest = wanted;
                    // In every mode this reports what holds already: no edge is missed.
                    poller.modify(&*stream, token, wanted, mode)
                }
                None => Ok(()),
            },
        }
    }

    /// First out of the poller, then closed.
    fn close(&mut self, token: Token, why: &str) -> io::Result<()> {
        let Some(connection) = self.connections.remove(&token) else { return Ok(()) };
        log::debug!("{token:?}, {}, is closed: {why}", connection.peer);
        self.poller.delete(&connection.stream)
    }

    /// What has been received by now is still echoed, then the peers are told that this is all.
    fn begin_to_stop(&mut self) -> io::Result<()> {
        self.stop.acknowledge();
        if self.stop_at.is_some() {
            return Ok(());
        }
        self.stop_at = Some(Instant::now() + Duration::from_secs(5));
        self.accept_at = None;
        self.poller.delete(&self.listener)?;
        self.poller.delete(&self.datagrams)?;
        self.unfinished = self.connections.keys().copied().collect();
        Ok(())
    }
}

impl Connection {
    /// One write if something waits to be sent back, otherwise one read.
    fn step(&mut self) -> io::Result<Step> {
        let moved = if self.pending.is_empty() {
            let mut bytes = [0; CHUNK];
            self.stream.read(&mut bytes).map(|n| {
                let kept = if self.finishing { 0 } else { n };
                self.pending.extend_from_slice(&bytes[..kept]);
                if n == 0 { Step::Finished } else { Step::Done }
            })
        } else {
            self.stream.write(&self.pending).map(|n| {
                self.pending.drain(..n);
                Step::Done
            })
        };
        match moved {
            // Told for nothing, or at the end of what was to be had. No error.
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(Step::WouldBlock),
            Err(e) if e.kind() == ErrorKind::Interrupted => Ok(Step::Done),
            moved => moved,
        }
    }
}
