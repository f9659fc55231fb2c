//! A soak: an echo server and a crowd of peers that behave in every way a network lets them, for as
//! long as one likes, with faults in between. At the end it says what was lost.
//!
//! Peers are plain blocking sockets on threads, so that what is tested is on one side only. Each
//! connection draws one way to behave: exchanges of many sizes, half-closes, readers that stall while
//! megabytes wait for them, resets, sudden ends. What comes back is compared byte by byte.
//!
//! Faults: signals interrupt system calls a thousand times a second, loops are held up by tasks that
//! block, and now and then the process runs out of descriptors. Who is turned away then has got
//! nothing at all; who has got one byte must get all of them.

mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{Long, Stop, print};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use ruduo::{Buffer, Connection, EventLoop, Handler, LoopPool, ServerHandle, Signal, TcpServer};

const HELP: &str = "\
Lets peers connect, echo, half-close, stall, reset and vanish at random, under faults.

Usage: soak [--minutes N] [--peers N] [--threads N] [--seed N]

  --minutes N   how long; fractions are allowed [1]
  --peers N     peers at a time [16]
  --threads N   loops that serve them [2]
  --seed N      where the random numbers begin [1]
  --help        this text

A line of figures comes every ten seconds, and at the end a verdict: bytes lost, descriptors leaked,
memory grown. The exit status is 0 if there is nothing to complain of, and 1 otherwise.
SIGINT (Ctrl-C) and SIGTERM end it early, with a verdict.";

/// Memory that may be more at the end than after the first quarter: what the allocator keeps of
/// bursts, whose size is a matter of chance.
const GROWTH: u64 = 16 * 1024 * 1024;

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut minutes, mut peers, mut threads, mut seed) = (1.0, 16, 2, 1);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("minutes") => minutes = arguments.value::<f64>()?,
                Long("peers") => peers = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("seed") => seed = arguments.value()?,
                other => return Err(other.unexpected().into()),
            }
        }
        let time = Duration::try_from_secs_f64(minutes * 60.0)
            .map_err(|_| lexopt::Error::from("--minutes: a number of minutes, and not below 0"))?;
        soak(time, peers, threads, seed).map_err(Stop::Failed)
    })
}

fn soak(time: Duration, peers: u16, threads: usize, seed: u64) -> io::Result<()> {
    let descriptors = open_descriptors();
    let crowd = Arc::new(Crowd::default());
    {
        let event_loop = EventLoop::new()?;
        let pool = LoopPool::builder(&event_loop).threads(threads).name("soak").start()?;
        let server = TcpServer::bind(&event_loop, "127.0.0.1:0")?
            .pool(&pool)
            .serve(|conn| Echo { copies: conn.peer_addr().port().is_some_and(|p| p % 2 == 0) })?;
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let crowd = crowd.clone();
            event_loop.on_signal(signal, move |_, _| crowd.stop.store(true, Ordering::Relaxed))?;
        }
        // Its handler does nothing; what counts is that calls are interrupted.
        event_loop.on_signal(Signal::SIGUSR1, |_, _| {})?;
        let conductor = {
            let (crowd, server, handle) = (crowd.clone(), server.clone(), event_loop.handle());
            thread::spawn(move || {
                let outcome = conduct(&crowd, &server, &pool, time, peers, seed);
                drop(pool);
                handle.quit();
                outcome
            })
        };
        event_loop.run()?;
        conductor.join().map_err(|_| io::Error::other("the conductor of the soak panicked"))??;
        log::info!("{}", server.metrics());
    }
    crowd.judge(descriptors)
}

/// Echoes, by moving buffers or by copying them.
struct Echo {
    copies: bool,
}

impl Handler for Echo {
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        if self.copies {
            conn.send(input.readable());
            input.clear();
        } else {
            conn.send_buffer(input);
        }
    }
}

/// What the peers have seen.
#[derive(Default)]
struct Crowd {
    stop: AtomicBool,
    connections: AtomicU64,
    bytes: AtomicU64,
    /// Bytes that did not come back, or not as they were.
    lost: AtomicU64,
    /// Closed by the server before it has sent anything.
    turned_away: AtomicU64,
    /// Memory at the first quarter and at the end.
    memory: [AtomicU64; 2],
    /// What the server says it has refused.
    refused: AtomicU64,
}

/// Starts everybody, shows how it goes, ends everybody.
fn conduct(
    crowd: &Arc<Crowd>,
    server: &ServerHandle,
    pool: &LoopPool,
    time: Duration,
    peers: u16,
    seed: u64,
) -> io::Result<()> {
    let Some(address) = server.local_addr().as_ip() else { return Ok(()) };
    let held = hold_descriptors(2 * usize::from(peers) + 16)?;
    let begin = Instant::now();
    let (mut threads, mut outcome) = (Vec::new(), Ok(()));
    for i in 0..peers {
        let of_peer = crowd.clone();
        let mut chance = Chance::new(seed.wrapping_mul(1_000_003).wrapping_add(i.into()));
        let peer = move || {
            while !of_peer.is_over() {
                of_peer.connection(address, &mut chance);
            }
        };
        match thread::Builder::new().spawn(peer) {
            Ok(thread) => threads.push(thread),
            Err(e) => {
                let why = format!("starting peer {} of {peers}: {e}", i + 1);
                outcome = Err(io::Error::new(e.kind(), why));
                crowd.stop.store(true, Ordering::Relaxed);
                break;
            }
        }
    }
    threads.push(interrupt(crowd));
    threads.push(run_short(crowd, seed, held));

    let mut chance = Chance::new(seed ^ 0x5EED);
    let mut next_line = Duration::from_secs(10).min(time / 2);
    while begin.elapsed() < time && !crowd.is_over() {
        thread::sleep(Duration::from_millis(10));
        // A callback that blocks: everything on that loop is late.
        if chance.one_in(20) {
            let late = Duration::from_millis(chance.below(20));
            let _ = pool.next_loop().post(move |_| thread::sleep(late));
        }
        if begin.elapsed() >= time / 4 && crowd.memory[0].load(Ordering::Relaxed) == 0 {
            crowd.memory[0].store(resident(), Ordering::Relaxed);
        }
        if begin.elapsed() >= next_line {
            next_line += Duration::from_secs(10);
            crowd.show(begin.elapsed(), server.metrics().open);
        }
    }
    crowd.stop.store(true, Ordering::Relaxed);
    for thread in threads {
        if thread.join().is_err() {
            log::error!("a peer panicked");
            crowd.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
    crowd.memory[1].store(resident(), Ordering::Relaxed);
    server.stop(Duration::from_secs(10));
    if let Err(e) = server.wait() {
        log::error!("{e}");
    }
    crowd.refused.store(server.metrics().refused.total(), Ordering::Relaxed);
    outcome
}

/// Sends a signal to the process a thousand times a second.
fn interrupt(crowd: &Arc<Crowd>) -> JoinHandle<()> {
    let crowd = crowd.clone();
    thread::spawn(move || {
        while !crowd.is_over() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), Signal::SIGUSR1);
            thread::sleep(Duration::from_millis(1));
        }
    })
}

/// Takes the lowest numbers there are, so that the limit can be as low as `count` while the process
/// can open nothing. (A limit below what a loop watches is no shortage but an error: poll(2) refuses
/// to watch so many. One loop may have a connection of each peer, and some that are about to end.)
fn hold_descriptors(count: usize) -> io::Result<Vec<fs::File>> {
    let open = |_| fs::File::open("/dev/null");
    (0..count).map(open).collect::<io::Result<_>>().map_err(|e| {
        let why = format!("holding {count} descriptors, for shortages (`ulimit -n`): {e}");
        io::Error::new(e.kind(), why)
    })
}

/// Leaves the process without descriptors now and then, for a moment.
fn run_short(crowd: &Arc<Crowd>, seed: u64, held: Vec<fs::File>) -> JoinHandle<()> {
    let crowd = crowd.clone();
    thread::spawn(move || {
        let mut chance = Chance::new(seed ^ 0xFD);
        let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
        while !crowd.is_over() {
            thread::sleep(Duration::from_millis(500 + chance.below(1500)));
            // Numbers from this one on are not to be had, and those below are held; what is open
            // stays.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, held.len() as rlim_t, hard);
            thread::sleep(Duration::from_millis(chance.below(100)));
            let _ = setrlimit(Resource::RLIMIT_NOFILE, soft, hard);
        }
    })
}

impl Crowd {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// One connection, from its beginning to whatever end it draws.
    fn connection(&self, address: SocketAddr, chance: &mut Chance) {
        // No descriptor for it: the moment of shortage.
        let Ok(stream) = TcpStream::connect(address) else {
            thread::sleep(Duration::from_millis(1));
            return;
        };
        self.connections.fetch_add(1, Ordering::Relaxed);
        let magnitude = chance.below(21);
        let sent = Sent { seed: chance.next(), len: 1 + chance.below(1 << magnitude) };
        match chance.below(10) {
            0 => drop(stream),
            1 => {
                let _ = (&stream).write_all(&sent.piece(0, sent.len.min(10_000)));
                reset(&stream);
            }
            2..=4 => self.compare(sent, exchange(&stream, sent, chance)),
            5..=7 => self.compare(sent, all_at_once(&stream, sent, Duration::ZERO)),
            _ => {
                let large = Sent { len: sent.len * 8, ..sent };
                let stall = Duration::from_millis(chance.below(50));
                self.compare(large, all_at_once(&stream, large, stall));
            }
        }
    }

    /// What came back must be all of it, or nothing.
    fn compare(&self, sent: Sent, echoed: u64) {
        self.bytes.fetch_add(echoed, Ordering::Relaxed);
        if echoed == 0 {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
        } else if echoed < sent.len {
            log::error!("{echoed} of {} bytes came back as they were", sent.len);
            self.lost.fetch_add(sent.len - echoed, Ordering::Relaxed);
        }
    }

    fn show(&self, elapsed: Duration, open: usize) {
        let line = format_args!(
            "{:>5} s: {} connections, {open} open, {} MiB echoed, {} turned away, {} lost, {} MiB \
             resident",
            elapsed.as_secs(),
            self.connections.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed) >> 20,
            self.turned_away.load(Ordering::Relaxed),
            self.lost.load(Ordering::Relaxed),
            resident() >> 20,
        );
        // The verdict is what counts, and is told by the exit status, too.
        if let Err(e) = common::announce(line) {
            log::warn!("{e}");
        }
    }

    fn judge(&self, descriptors_before: usize) -> io::Result<()> {
        let leaked = open_descriptors().saturating_sub(descriptors_before);
        let growth = match [0, 1].map(|i| self.memory[i].load(Ordering::Relaxed)) {
            // Ended before the first quarter was over.
            [0, _] => 0,
            [early, late] => late.saturating_sub(early),
        };
        let lost = self.lost.load(Ordering::Relaxed);
        let [away, refused] = [&self.turned_away, &self.refused].map(|n| n.load(Ordering::Relaxed));
        let told = print(format_args!(
            "verdict: {} connections, {} MiB echoed; {lost} bytes lost, {leaked} descriptors \
             leaked, {} KiB of memory grown; {away} turned away, and {refused} refused by the server",
            self.connections.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed) >> 20,
            growth >> 10,
        ));
        if lost > 0 || leaked > 0 || growth > GROWTH || away > refused {
            return Err(io::Error::other("something was lost: see the verdict"));
        }
        told
    }
}

/// Bytes that can be told from one another, made when they are needed.
#[derive(Clone, Copy)]
struct Sent {
    seed: u64,
    len: u64,
}

impl Sent {
    fn piece(self, start: u64, len: u64) -> Vec<u8> {
        let byte = |i: u64| (self.seed ^ i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_be_bytes()[1];
        (start..start + len).map(byte).collect()
    }
}

/// Piece by piece, each echoed before the next. Returns how many bytes came back as they were.
fn exchange(mut stream: &TcpStream, sent: Sent, chance: &mut Chance) -> u64 {
    let mut echoed = 0;
    while echoed < sent.len {
        let piece = sent.piece(echoed, (1 + chance.below(20_000)).min(sent.len - echoed));
        let mut back = vec![0; piece.len()];
        if stream.write_all(&piece).and_then(|()| stream.read_exact(&mut back)).is_err()
            || back != piece
        {
            return echoed;
        }
        echoed += piece.len() as u64;
    }
    echoed
}

/// Everything, then our end of the stream; what comes back is read only after a while.
fn all_at_once(stream: &TcpStream, sent: Sent, stall: Duration) -> u64 {
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, mut start) = (stream, 0);
            while start < sent.len {
                let piece = sent.piece(start, (sent.len - start).min(32_768));
                if stream.write_all(&piece).is_err() {
                    return;
                }
                start += piece.len() as u64;
            }
            let _ = stream.shutdown(Shutdown::Write);
        });
        thread::sleep(stall);
        let (mut stream, mut echoed, mut back) = (stream, 0, vec![0; 65_536]);
        loop {
            match stream.read(&mut back) {
                Ok(n) if n > 0 && back[..n] == sent.piece(echoed, n as u64) => echoed += n as u64,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                _ => return echoed,
            }
        }
    })
}

/// Makes closing it send a reset.
fn reset(stream: &TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = nix::sys::socket::setsockopt(stream, nix::sys::socket::sockopt::Linger, &linger);
}

/// Numbers that look random and are the same for the same seed (xorshift64*).
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Chance {
        Chance(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Bytes of memory in use; 0 where /proc does not tell.
fn resident() -> u64 {
    // Asked again when there was no descriptor to ask with.
    for _ in 0..1000 {
        match fs::read_to_string("/proc/self/statm") {
            Ok(text) => {
                let pages: Option<u64> = text.split(' ').nth(1).and_then(|n| n.parse().ok());
                return pages.unwrap_or(0) * 4096;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    0
}

/// 0 where /proc does not tell.
fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}
