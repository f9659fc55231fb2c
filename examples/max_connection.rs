//! An echo with a limited number of places. Who finds none free is told so, in a line.
//!
//! A place is a value. Taking one counts it, atomically, so that no two threads take the last one;
//! dropping it gives it back. It lives in the handler of its connection and so cannot be forgotten,
//! whichever way the connection ends, by a panic too. And the handler is dropped before the socket
//! is closed: who sees another leave finds the place free.
//!
//! A refused peer has to be accepted before it can be told anything, and costs a connection until it
//! has finished or 5 seconds are over (`Server::linger`). Closing at once would be cheaper. But
//! if the peer has sent something by then, it is unread, and closing with unread input makes the
//! kernel send a reset, at which the peer's kernel may forget the line before anybody has read it.
//! A server that need not say anything leaves counting and closing to `Server::max_connections`.

mod common;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::Long;
use ruduo::{Buffer, Connection, EventLoop, Handler, Server};

const HELP: &str = "\
Echoes what it receives over TCP, for a limited number of connections at a time.

Usage: max_connection [--listen ADDRESS] [--threads N] [--max N]

  --listen ADDRESS  where to listen; port 0 is any free one [127.0.0.1:2007]
  --threads N       threads that serve connections; 0: the accepting one [0]
  --max N           how many connections are served at a time, by all threads [5]
  --help            this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads, mut max) = (common::loopback(2007), 0, 5);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("max") => max = arguments.value()?,
                other => return Err(other.unexpected().into()),
            }
        }
        let event_loop = EventLoop::new()?;
        let taken = Arc::new(AtomicUsize::new(0));
        let server = Server::bind(&event_loop, listen)?
            .threads(threads)
            .serve(move |_conn| Session { place: Place::take(&taken, max) })?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        println!("listening on {}", server.local_addr());
        Ok(event_loop.run()?)
    })
}

/// One of the connections that may be served. Given back when dropped.
struct Place {
    taken: Arc<AtomicUsize>,
}

impl Place {
    /// One more, unless `max` are taken.
    fn take(taken: &Arc<AtomicUsize>, max: usize) -> Option<Place> {
        let one_more = |n| (n < max).then_some(n + 1);
        // Nothing but the number itself is shared, so it needs no order with anything else.
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Place { taken: taken.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Session {
    /// `None`: it is refused.
    place: Option<Place>,
}

impl Handler for Session {
    fn on_connect(&mut self, conn: &Connection) {
        if self.place.is_none() {
            log::info!("refusing {}: all places are taken", conn.peer_addr());
            conn.send("all places are taken, try again later\r\n");
            conn.finish();
        }
    }

    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        conn.send_buffer(input);
    }
}
