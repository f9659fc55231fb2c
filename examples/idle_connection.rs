//! An echo that closes connections on which nothing has come for a while.
//!
//! A message only stores the time, which the loop reads at most once a turn. A timer, one for each
//! connection, looks at that stamp: if a message has come since, it is armed again for what is left
//! of the time, counted from that message; if none has, the connection is shut down. So the price
//! is a store for each message, and for each connection the memory of a timer and one look in each
//! idle time. Arming the timer anew for each message would do as well, but then each would pay for
//! that. And nobody is closed early, for the time is over when the timer finds that it is.
//!
//! Only what the peer sends counts. One that does not take its echo is not heard either, once more
//! than the high-water mark waits for it, and so it is idle as well.

mod common;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::Long;
use ruduo::{Buffer, Connection, EventLoop, Handler, Server};

const HELP: &str = "\
Echoes what it receives over TCP, and closes connections on which nothing comes.

Usage: idle_connection [--listen ADDRESS] [--threads N] [--idle SECONDS]

  --listen ADDRESS  where to listen; port 0 is any free one [127.0.0.1:2007]
  --threads N       threads that serve connections; 0: the accepting one [0]
  --idle SECONDS    how long a connection may be idle; fractions are allowed [10]
  --help            this text

SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads) = (common::loopback(2007), 0);
        let mut idle = Duration::from_secs(10);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("idle") => idle = seconds(arguments.value()?)?,
                other => return Err(other.unexpected().into()),
            }
        }
        let event_loop = EventLoop::new()?;
        let server = Server::bind(&event_loop, listen)?
            .threads(threads)
            .serve(move |conn| Session { limit: idle, last_message: conn.event_loop().now() })?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        println!("listening on {}", server.local_addr());
        Ok(event_loop.run()?)
    })
}

/// The key of a session's only timer.
const LOOK: u64 = 0;

struct Session {
    limit: Duration,
    last_message: Instant,
}

impl Handler for Session {
    fn on_connect(&mut self, conn: &Connection) {
        conn.set_timer(LOOK, self.limit);
    }

    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        self.last_message = conn.event_loop().now();
        conn.send_buffer(input);
    }

    fn on_timer(&mut self, conn: &Connection, _: u64) {
        let idle = conn.event_loop().now() - self.last_message;
        if idle < self.limit {
            conn.set_timer(LOOK, self.limit - idle);
        } else {
            log::info!("closing the connection of {}: idle for {idle:.1?}", conn.peer_addr());
            // Not `close`: what waits to be sent still leaves.
            conn.shutdown();
        }
    }
}

fn seconds(number: f64) -> Result<Duration, lexopt::Error> {
    match Duration::try_from_secs_f64(number) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(format!("--idle {number}: not a number of seconds above 0").into()),
    }
}
