//! Connecting the one side of a relay to the other, for the examples that are relays.
//!
//! Looking up a name and connecting may take long, so a thread of its own does both. Then the stream
//! is given to the loop of the connection that is to be joined, and the two belong together. There
//! are only so many such threads at a time: who comes when all of them wait for targets that do not
//! answer is told that it can't be.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use ruduo::{Connection, ConnectionHandle, EventLoop, Handler, HandlerHandle, Relay, TcpClient};

/// How long each of a name's addresses may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const MAX_DIALS: usize = 200;
static DIALS: AtomicUsize = AtomicUsize::new(0);

/// One of those that may be going on; gives its place back when dropped.
struct Dial;

impl Dial {
    fn begin() -> Option<Dial> {
        let one_more = |n| (n < MAX_DIALS).then_some(n + 1);
        DIALS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Dial)
    }
}

impl Drop for Dial {
    fn drop(&mut self) {
        DIALS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that came to us and is to be joined with another.
pub(crate) trait Front: Handler {
    /// The other side is there, and this is for the handler to become; or it can't be reached.
    /// What is sent here comes before anything of the other side's.
    fn joined(&mut self, conn: &Connection, outcome: io::Result<Relay>);
}

/// How long the other side may keep us waiting.
#[derive(Clone, Copy)]
pub(crate) struct Deadlines {
    /// Taking nothing of what waits for it.
    pub(crate) stall: Duration,
    /// Saying nothing after our end of the stream.
    pub(crate) patience: Duration,
}

/// Connects to `target` (a name or address, and a port) and joins `conn`, whose handler is an `F`,
/// with what comes of it. Until then, reading pauses.
pub(crate) fn join<F: Front>(conn: &Connection, target: String, deadlines: Deadlines) {
    let Some(place) = Dial::begin() else {
        log::warn!("{}: {MAX_DIALS} targets are being connected already", conn.peer_addr());
        return conn.reset();
    };
    conn.pause_reading();
    let front: HandlerHandle<F> = conn.handle_for();
    let event_loop = conn.event_loop().handle();
    let dial = move || {
        let stream = connect(&target);
        drop(place);
        // If the loop has ended, so has the connection.
        let _ = event_loop.post(move |event_loop| give(event_loop, front, stream, deadlines));
    };
    if let Err(e) = thread::Builder::new().name("dial".into()).spawn(dial) {
        log::error!("starting a thread that connects: {e}");
        conn.reset();
    }
}

fn connect(target: &str) -> io::Result<TcpStream> {
    let failed = |e: io::Error| io::Error::new(e.kind(), format!("connecting to {target}: {e}"));
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in target.to_socket_addrs().map_err(failed)? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(e) => last = e,
        }
    }
    Err(failed(last))
}

/// On the loop: makes the other side a connection, and tells the first one.
fn give<F: Front>(
    event_loop: &EventLoop,
    front: HandlerHandle<F>,
    stream: io::Result<TcpStream>,
    deadlines: Deadlines,
) {
    let front_handle = front.connection().clone();
    let back = stream.and_then(|stream| TcpClient::from_stream(event_loop, stream)).and_then(|c| {
        c.serve(move |back| {
            back.set_write_stall_timeout(deadlines.stall);
            back.set_linger(deadlines.patience);
            // Until the first side is ready.
            back.pause_reading();
            Relay::new(back, &front_handle)
        })
    });
    let back = back.map(|back| Unjoined(Some(back)));
    // An error says that it is over. However this ends without a call, the other side is reset.
    let _ = front.post(move |front, conn| match back.map(Unjoined::join) {
        Ok(None) => {}
        Ok(Some(back)) => {
            conn.set_linger(deadlines.patience);
            front.joined(conn, Ok(Relay::new(conn, &back)));
            conn.resume_reading();
            let _ = back.resume_reading();
        }
        Err(e) => front.joined(conn, Err(e)),
    });
}

/// A connection that nobody knows but this, and that ends with it.
struct Unjoined(Option<ConnectionHandle>);

impl Unjoined {
    fn join(mut self) -> Option<ConnectionHandle> {
        self.0.take()
    }
}

impl Drop for Unjoined {
    fn drop(&mut self) {
        if let Some(back) = &self.0 {
            let _ = back.reset();
        }
    }
}
