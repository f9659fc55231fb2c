//! A whole connection beside a model. A script moves both ends: the peer sends, reads or not,
//! half-closes, closes, resets; the server's side sends in every way, pauses, arms timers, shuts
//! down, closes, from its callbacks and between them. However it goes: every byte is accounted for in
//! both directions, there is one close, last and for a reason that fits, and memory has its bounds.
//!
//! Everything is one thread: the script is a task of the connection's own loop, a step or several
//! each turn, and no deadline is short enough to pass.

#![no_main]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags, setsockopt, sockopt};
use ruduo::{
    Buffer, CloseReason, Connection, ConnectionHandle, EventLoop, Handler, SendError, Server,
    TcpServer, UnixServer,
};

const READ_SIZE: usize = 4096;
const INPUT_LIMIT: usize = 3 * READ_SIZE;
const LOW: usize = 16 * 1024;
const HIGH: usize = 64 * 1024;
const OUTPUT_LIMIT: usize = 256 * 1024;
/// Long enough for any deadline and timer not to pass.
const FOR_EVER: Duration = Duration::from_secs(1_000_000);

#[derive(Arbitrary, Debug)]
struct Script {
    transport: Transport,
    steps: Vec<Step>,
    /// What callbacks do, one after the other.
    reactions: Vec<Reaction>,
    end: End,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Tcp,
    Unix,
}

/// What happens when the script is at its end and both sides still stand.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum End {
    PeerFinishes,
    ServerFinishes,
    Stop,
    Quit,
}

#[derive(Arbitrary, Clone, Debug)]
enum Step {
    /// The loop makes a turn; otherwise the next step comes in the same one.
    Turn,
    PeerSends(u16),
    PeerReads(u16),
    /// Whether the peer takes everything, each turn.
    PeerListens(bool),
    PeerShutsDown,
    PeerCloses,
    PeerResets,
    Server(Act),
    Stop,
}

#[derive(Arbitrary, Clone, Debug)]
struct Reaction {
    /// How much of its input a callback consumes, and whether it echoes it all instead.
    consume: Consume,
    acts: [Option<Act>; 2],
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Consume {
    All,
    Some(u16),
    Nothing,
    Echo,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Act {
    Send { how: How, len: u16 },
    Shutdown,
    Finish,
    Close,
    Reset,
    Pause,
    Resume,
    SetTimer { key: u8, far: bool },
    CancelTimer { key: u8 },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum How {
    Copy,
    Try,
    Buffer,
    Shared,
}

/// What both sides send are pieces of this: nobody finds the same eight bytes at two places of a
/// period.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut x = 0x2545_F491_4F6C_DD1D_u64;
    let mut one = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    let period: Vec<u8> = (0..PERIOD).map(|_| one()).collect();
    period.iter().cycle().take(PERIOD * 8).copied().collect()
});

const PERIOD: usize = 65_521;

/// A piece of a stream, by its place in the stream.
fn bytes(from: u64, len: usize) -> &'static [u8] {
    &BYTES[(from % PERIOD as u64) as usize..][..len]
}

/// What the two sides have done and what they may expect.
#[derive(Default)]
struct Model {
    /// Sent by the peer and taken by its kernel; given to the handler; consumed by it.
    peer_sent: u64,
    offered: u64,
    consumed: u64,
    /// Pieces that the server has sent and the peer has not received: place and length.
    expected: VecDeque<(u64, usize)>,
    server_sent: u64,
    peer_received: u64,
    /// Where the server's own bytes go on.
    next: u64,

    peer_finished: bool,
    /// It has closed or reset: errors are to be expected.
    peer_vanished: bool,
    peer_saw: Option<Result<(), Errno>>,

    connected: bool,
    inside: bool,
    told_half_close: bool,
    shut: bool,
    /// It shut down before it was told that the peer had finished.
    shut_first: bool,
    /// The program wants to hear nothing more.
    deaf: bool,
    pauses: u32,
    above_high: bool,
    /// Input that was left may come again without new bytes.
    again: bool,
    timers: [Option<bool>; 4],
    /// The program's first deed that ends the connection at once.
    ended: Option<&'static str>,
    stopped: bool,
    quit: bool,
    closed: Option<String>,
}

impl Model {
    fn left(&self) -> usize {
        (self.offered - self.consumed) as usize
    }

    fn end(&mut self, why: &'static str) {
        self.ended.get_or_insert(why);
    }

    fn shut(&mut self) {
        self.shut = true;
        self.shut_first |= !self.told_half_close;
    }

    fn queued(&mut self, from: u64, len: usize) {
        self.expected.push_back((from, len));
        self.server_sent += len as u64;
    }

    /// The peer has received this.
    fn receive(&mut self, mut got: &[u8]) {
        self.peer_received += got.len() as u64;
        while !got.is_empty() {
            let (from, len) =
                self.expected.pop_front().expect("the peer received what nobody sent");
            let n = len.min(got.len());
            assert_eq!(&got[..n], bytes(from, n), "the peer received something else");
            got = &got[n..];
            if n < len {
                self.expected.push_front((from + n as u64, len - n));
            }
        }
    }
}

/// The world of one run: a value of its loop.
#[derive(Default)]
struct World {
    model: RefCell<Model>,
    reactions: RefCell<VecDeque<Reaction>>,
    handle: RefCell<Option<ConnectionHandle>>,
    peer: RefCell<Option<OwnedFd>>,
    listens: Cell<bool>,
}

/// The server's side.
struct Session(Rc<World>);

impl Session {
    /// Whatever is called: after the first, before the last, not inside another, and not when the
    /// program has ended it.
    fn called(&self, conn: &Connection<'_>, f: impl FnOnce(&mut Model, Reaction)) {
        let reaction = self.0.reactions.borrow_mut().pop_front();
        let reaction = reaction.unwrap_or(Reaction { consume: Consume::All, acts: [None; 2] });
        let acts = reaction.acts;
        {
            let model = &mut *self.0.model.borrow_mut();
            assert!(model.connected && model.closed.is_none(), "called before or after its life");
            assert!(model.ended.is_none(), "called after {:?}", model.ended);
            assert!(!std::mem::replace(&mut model.inside, true), "called inside a callback");
            assert!(conn.pending_output() <= OUTPUT_LIMIT, "more output than the limit");
            f(model, reaction);
        }
        for act in acts.into_iter().flatten() {
            self.act(conn, act);
        }
        let model = &mut *self.0.model.borrow_mut();
        model.again |= !conn.wants_input();
        model.inside = false;
    }

    fn act(&self, conn: &Connection<'_>, act: Act) {
        let model = &mut *self.0.model.borrow_mut();
        match act {
            Act::Send { how, len } => send(model, conn, how, len.into()),
            Act::Shutdown => {
                conn.shutdown();
                model.shut();
            }
            Act::Finish => {
                conn.finish();
                model.shut();
                model.deaf = true;
                // What was left is thrown away.
                model.consumed = model.offered;
            }
            Act::Close => {
                conn.close();
                model.end("Closed");
            }
            Act::Reset => {
                conn.reset();
                model.end("Reset");
            }
            Act::Pause => {
                conn.pause_reading();
                model.pauses += 1;
            }
            Act::Resume => {
                conn.resume_reading();
                model.pauses = model.pauses.saturating_sub(1);
                model.again = true;
            }
            Act::SetTimer { key, far } => {
                let key = key % 4;
                conn.set_timer(key.into(), if far { FOR_EVER } else { Duration::ZERO });
                model.timers[usize::from(key)] = Some(far);
            }
            Act::CancelTimer { key } => {
                let key = key % 4;
                let was_armed = model.timers[usize::from(key)].take().is_some();
                assert_eq!(conn.cancel_timer(key.into()), was_armed);
            }
        }
        let over = model.shut || model.ended.is_some();
        assert!(!(over && conn.takes_output()), "it takes output after its end");
    }
}

fn send(model: &mut Model, conn: &Connection<'_>, how: How, len: usize) {
    let (from, pending) = (model.next, conn.pending_output());
    let could = conn.takes_output();
    let piece = bytes(from, len);
    match how {
        How::Try => match conn.try_send(piece) {
            Ok(()) => assert!(could, "it takes output after its end"),
            Err(SendError::Closed) => return assert!(!could, "it takes no output"),
            // What is held counts with its storage, which may be twice as long.
            Err(_) => return assert!((pending + len) * 2 > OUTPUT_LIMIT, "full too early"),
        },
        How::Copy => conn.send(piece),
        How::Buffer => {
            let mut buffer = Buffer::from(piece);
            conn.send_buffer(&mut buffer);
            assert!(buffer.is_empty(), "what is sent is gone");
        }
        How::Shared => conn.send_shared(Arc::from(piece)),
    }
    sent(model, conn, (could, pending), (from, len));
    model.next += len as u64;
}

/// The program has sent a piece, for a connection of which this was true before.
fn sent(
    model: &mut Model,
    conn: &Connection<'_>,
    (could, pending): (bool, usize),
    (from, len): (u64, usize),
) {
    if could && conn.takes_output() {
        assert_eq!(conn.pending_output(), pending + len);
        model.queued(from, len);
    } else {
        assert_eq!(conn.pending_output(), pending, "it takes what is beyond its limit or end");
        if could {
            assert!((pending + len) * 2 > OUTPUT_LIMIT, "full too early");
            model.end("OutputFull");
        }
    }
}

impl Handler for Session {
    fn on_connect(&mut self, conn: &Connection<'_>) {
        assert!(!std::mem::replace(&mut self.0.model.borrow_mut().connected, true), "again");
        *self.0.handle.borrow_mut() = Some(conn.handle());
        self.called(conn, |_, _| {});
    }

    fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer) {
        self.called(conn, |model, reaction| {
            assert_eq!(model.pauses, 0, "paused by the program");
            assert!(!model.above_high, "paused above the high-water mark");
            assert!(!model.deaf, "it wanted to hear nothing more");
            let left = model.left();
            assert!(input.len() >= left, "what was left is lost");
            assert!(input.len() > left || std::mem::take(&mut model.again), "nothing has come");
            assert_eq!(input.readable(), bytes(model.consumed, input.len()), "received wrongly");
            assert!(input.len() <= INPUT_LIMIT, "more input than the limit");
            model.offered = model.consumed + input.len() as u64;
            assert!(model.offered <= model.peer_sent, "received what nobody sent");
            assert_eq!(conn.bytes_received(), model.offered);
            model.again = false;
            let whole = (model.consumed, input.len());
            match reaction.consume {
                Consume::All => input.clear(),
                Consume::Some(n) => input.consume(usize::from(n).min(input.len())),
                Consume::Nothing => {}
                Consume::Echo => {
                    let before = (conn.takes_output(), conn.pending_output());
                    conn.send_buffer(input);
                    assert!(input.is_empty(), "what is sent is gone");
                    sent(model, conn, before, whole);
                }
            }
            model.consumed = model.offered - input.len() as u64;
        });
        // It could go on, and leaves as much as is allowed.
        let model = &mut *self.0.model.borrow_mut();
        if !model.deaf && model.left() >= INPUT_LIMIT && conn.wants_input() {
            model.end("InputFull");
        }
    }

    fn on_write_complete(&mut self, conn: &Connection<'_>) {
        self.called(conn, |_, _| {});
    }

    fn on_high_water(&mut self, conn: &Connection<'_>, pending: usize) {
        self.called(conn, |model, _| {
            assert!(!std::mem::replace(&mut model.above_high, true), "told again");
            assert!(pending > HIGH && pending == conn.pending_output());
        });
    }

    fn on_low_water(&mut self, conn: &Connection<'_>) {
        self.called(conn, |model, _| {
            assert!(std::mem::replace(&mut model.above_high, false), "it was not above");
            assert!(conn.pending_output() <= LOW);
            model.again = true;
        });
    }

    fn on_half_close(&mut self, conn: &Connection<'_>) {
        self.called(conn, |model, _| {
            assert!(model.peer_finished && !model.deaf);
            assert!(!std::mem::replace(&mut model.told_half_close, true), "told again");
            assert!(model.offered == model.peer_sent || model.peer_vanished, "input is missing");
        });
        // Sometimes it stays open, until the script ends.
        if self.0.reactions.borrow().is_empty() {
            self.act(conn, Act::Shutdown);
        }
    }

    fn on_timer(&mut self, conn: &Connection<'_>, key: u64) {
        self.called(conn, |model, _| {
            let armed = model.timers[key as usize].take();
            assert_eq!(armed, Some(false), "timer {key} is not due");
        });
    }

    fn on_stopping(&mut self, conn: &Connection<'_>) {
        self.called(conn, |model, _| assert!(model.stopped));
        self.act(conn, Act::Shutdown);
    }

    fn on_close(&mut self, conn: &Connection<'_>, reason: &CloseReason) {
        let model = &mut *self.0.model.borrow_mut();
        assert!(model.connected && !model.inside && model.closed.is_none(), "closed twice");
        let name = format!("{reason:?}");
        let name = name.split([' ', '(']).next().unwrap_or_default().to_owned();
        model.closed = Some(name.clone());
        self.0.listens.set(true);

        let failed = matches!(reason, CloseReason::ReadFailed(_) | CloseReason::WriteFailed(_));
        match model.ended {
            _ if failed => assert!(model.peer_vanished, "{reason} with a peer that did nothing"),
            Some(ended) => assert_eq!(name, ended),
            None if name == "LoopEnded" => assert!(model.quit),
            None if model.shut_first => {
                let fits = ["ShutDown", "PeerClosed", "Unfinished"].contains(&&*name);
                assert!(fits && model.peer_finished, "{reason}");
            }
            None => {
                let left = model.left();
                assert!(model.told_half_close, "{reason}");
                match reason {
                    CloseReason::PeerClosed => assert_eq!(left, 0),
                    CloseReason::Unfinished { left: said } => assert_eq!(*said, left),
                    other => panic!("{other}"),
                }
            }
        }
        if reason.is_clean() || name == "Unfinished" {
            let all = model.offered == model.peer_sent;
            assert!(all || model.deaf || model.peer_vanished, "{reason}: input is missing");
            assert_eq!(conn.bytes_sent(), model.server_sent, "{reason}: output is missing");
        }
        assert!(conn.bytes_sent() >= model.peer_received);
    }
}

/// The other side.
impl World {
    fn peer(&self) -> Option<RawFd> {
        self.peer.borrow().as_ref().map(AsRawFd::as_raw_fd)
    }

    fn perform(&self, step: Step) {
        let model = &mut *self.model.borrow_mut();
        match (step, self.peer()) {
            (Step::PeerSends(len), Some(peer)) if !model.peer_finished => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                // Nothing at all if the kernel has no room, or the server is gone.
                let sent = socket::send(peer, bytes(model.peer_sent, len.into()), flags);
                model.peer_sent += sent.unwrap_or(0) as u64;
            }
            (Step::PeerReads(most), Some(peer)) => {
                read(model, peer, most.into());
            }
            (Step::PeerListens(listens), _) => self.listens.set(listens),
            (Step::PeerShutsDown, Some(peer)) => {
                // It may have been reset.
                let _ = socket::shutdown(peer, socket::Shutdown::Write);
                model.peer_finished = true;
            }
            (step @ (Step::PeerCloses | Step::PeerResets), Some(peer)) => {
                if let Step::PeerResets = step {
                    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                    let peer = &*self.peer.borrow();
                    let peer = peer.as_ref().expect("it is there");
                    setsockopt(peer, sockopt::Linger, &linger).expect("a socket lingers");
                }
                let _ = peer;
                *self.peer.borrow_mut() = None;
                model.peer_finished = true;
                model.peer_vanished = true;
            }
            (Step::Server(act), _) => self.act_from_outside(model, act),
            _ => {}
        }
    }

    /// What a program does by its handle, outside the connection's callbacks.
    fn act_from_outside(&self, model: &mut Model, act: Act) {
        let handle = self.handle.borrow();
        let Some(handle) = &*handle else { return };
        let over = model.closed.is_some();
        assert_eq!(handle.is_closed(), over);
        let outcome = match act {
            Act::Send { how, len } => {
                let piece = bytes(model.next, len.into());
                let outcome = match how {
                    How::Copy | How::Try => handle.send(piece),
                    How::Buffer => handle.send_buffer(&mut Buffer::from(piece)),
                    How::Shared => handle.send_shared(Arc::from(piece)),
                };
                match outcome {
                    Ok(()) => {
                        assert!(
                            !model.shut && model.ended.is_none(),
                            "it takes output after its end"
                        );
                        model.queued(model.next, piece.len());
                        model.next += piece.len() as u64;
                    }
                    Err(SendError::Closed) => {
                        let may =
                            model.shut || model.ended.is_some() || model.peer_vanished || over;
                        assert!(may, "it takes no output");
                    }
                    Err(_) => {}
                }
                return;
            }
            Act::Shutdown => {
                model.shut();
                handle.shutdown()
            }
            Act::Close => {
                model.end("Closed");
                handle.close()
            }
            Act::Reset => {
                model.end("Reset");
                handle.reset()
            }
            Act::Pause => {
                model.pauses += 1;
                handle.pause_reading()
            }
            Act::Resume => {
                model.pauses = model.pauses.saturating_sub(1);
                model.again = true;
                handle.resume_reading()
            }
            // Only callbacks can do these.
            Act::Finish | Act::SetTimer { .. } | Act::CancelTimer { .. } => return,
        };
        assert_eq!(outcome.is_err(), over);
    }

    /// The peer takes all there is.
    fn listen(&self) {
        if let Some(peer) = self.peer() {
            let model = &mut *self.model.borrow_mut();
            while read(model, peer, 65_536) {}
        }
    }

    /// Whether nothing more can happen.
    fn is_settled(&self) -> bool {
        let model = self.model.borrow();
        let peer_is_done = model.peer_saw.is_some() || self.peer.borrow().is_none();
        model.closed.is_some() && peer_is_done
    }
}

/// Receives once. True if something came.
fn read(model: &mut Model, peer: RawFd, most: usize) -> bool {
    if most == 0 || model.peer_saw.is_some() {
        return false;
    }
    let mut room = vec![0; most];
    match socket::recv(peer, &mut room, MsgFlags::MSG_DONTWAIT) {
        Ok(0) => model.peer_saw = Some(Ok(())),
        Ok(n) => model.receive(&room[..n]),
        Err(Errno::EAGAIN) => return false,
        Err(error) => model.peer_saw = Some(Err(error)),
    }
    model.peer_saw.is_none()
}

/// Listens, and connects the peer.
fn connected(event_loop: &EventLoop, transport: Transport) -> (Server<'_>, OwnedFd) {
    match transport {
        Transport::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
            // Connections inherit it: they are soon full.
            setsockopt(&listener, sockopt::SndBuf, &4096).expect("a socket has a buffer");
            let address = listener.local_addr().expect("it is bound");
            let server = TcpServer::from_listener(event_loop, listener).expect("it listens");
            (server, TcpStream::connect(address).expect("it listens").into())
        }
        Transport::Unix => {
            // One at a time in a process, but others may be fuzzing too.
            let name = format!("ruduo-fuzz-{}", std::process::id());
            let address = SocketAddr::from_abstract_name(name).expect("it is short");
            let listener = UnixListener::bind_addr(&address).expect("a name is free");
            let address = listener.local_addr().expect("it is bound");
            let server = UnixServer::from_listener(event_loop, listener).expect("it listens");
            (server, UnixStream::connect_addr(&address).expect("it listens").into())
        }
    }
}

/// One turn of the script; the rest is for the next ones.
fn go_on(event_loop: &EventLoop, world: Rc<World>, mut steps: VecDeque<Step>, end: Ending) {
    if world.listens.get() {
        world.listen();
    }
    while let Some(step) = steps.pop_front() {
        match step {
            Step::Turn => break,
            Step::Stop => end.stop(&world),
            step => world.perform(step),
        }
    }
    if steps.is_empty() {
        end.begin(event_loop, &world);
        settle(event_loop, world, 0);
    } else {
        event_loop.defer(move |event_loop| go_on(event_loop, world, steps, end));
    }
}

struct Ending {
    server: ruduo::ServerHandle,
    how: End,
}

impl Ending {
    fn stop(&self, world: &World) {
        self.server.stop(FOR_EVER);
        world.model.borrow_mut().stopped = true;
    }

    /// Nobody holds anything back any more, and somebody begins to finish.
    fn begin(&self, event_loop: &EventLoop, world: &World) {
        world.reactions.borrow_mut().clear();
        world.listens.set(true);
        let pauses = world.model.borrow().pauses;
        for _ in 0..pauses {
            world.perform(Step::Server(Act::Resume));
        }
        match self.how {
            End::PeerFinishes => world.perform(Step::PeerShutsDown),
            End::ServerFinishes => {}
            End::Stop => self.stop(world),
            End::Quit => {
                world.model.borrow_mut().quit = true;
                event_loop.quit();
            }
        }
    }
}

/// Goes on until both ends have ended. Turns are enough, mostly; but the network may have its own pace.
fn settle(event_loop: &EventLoop, world: Rc<World>, turns: u32) {
    world.listen();
    if turns == 2 {
        world.perform(Step::Server(Act::Shutdown));
    }
    if turns == 4 {
        world.perform(Step::PeerShutsDown);
    }
    if world.is_settled() {
        return event_loop.quit();
    }
    let go_on = move |event_loop: &EventLoop| settle(event_loop, world, turns + 1);
    match turns {
        0..200 => event_loop.defer(go_on),
        200..5_000 => drop(event_loop.run_after(Duration::from_millis(1), go_on)),
        _ => panic!("it does not end"),
    }
}

fn next_descriptor() -> RawFd {
    File::open("/dev/null").expect("a descriptor is free").as_raw_fd()
}

fuzz_target!(|script: Script| {
    let descriptor = next_descriptor();
    let event_loop = EventLoop::builder().slow_callback(Duration::MAX).build().expect("a loop");
    let world = event_loop.local::<World>();
    world.reactions.borrow_mut().extend(script.reactions);

    let (server, peer) = connected(&event_loop, script.transport);
    *world.peer.borrow_mut() = Some(peer);
    let server = server
        .read_size(READ_SIZE)
        .input_limit(INPUT_LIMIT)
        .water_marks(LOW, HIGH)
        .output_limit(OUTPUT_LIMIT)
        .write_stall_timeout(Duration::MAX)
        .linger(Duration::MAX)
        .serve_per_loop(|event_loop| {
            let world = event_loop.local::<World>();
            move |_: &Connection<'_>| Session(world.clone())
        })
        .expect("it can be served");

    let end = Ending { server: server.clone(), how: script.end };
    let steps = VecDeque::from(script.steps);
    let first = world.clone();
    event_loop.defer(move |event_loop| go_on(event_loop, first, steps, end));
    event_loop.run().expect("the loop runs");
    drop(event_loop);

    world.listen();
    let model = world.model.take();
    assert_eq!(model.connected, model.closed.is_some(), "closed as often as connected");
    let Some(reason) = model.closed.as_deref() else { return };
    let metrics = server.metrics();
    assert_eq!((metrics.accepted, metrics.open, metrics.closed.total()), (1, 0, 1));
    assert!(metrics.sent >= model.peer_received && metrics.received >= model.offered);
    if !model.peer_vanished {
        let got_all = model.peer_received == model.server_sent;
        match reason {
            "PeerClosed" | "ShutDown" | "Unfinished" => {
                assert!(
                    got_all && model.peer_saw == Some(Ok(())),
                    "{reason}: {:?}",
                    model.peer_saw
                );
            }
            // The peer must not take what it has for everything.
            "OutputFull" | "InputFull" if script.transport == Transport::Tcp && !got_all => {
                assert!(model.peer_saw != Some(Ok(())), "{reason}: an end of the stream");
            }
            _ => {}
        }
    }
    *world.peer.borrow_mut() = None;
    drop((server, world));
    assert_eq!(next_descriptor(), descriptor, "descriptors are left open");
});
