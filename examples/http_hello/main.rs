//! An HTTP/1.1 server that says hello to whoever asks, however they ask: one request after the
//! other or many at once, split at any byte, with a body or without.
//!
//! - [`request`] tells where a request ends and what it wants, or what is wrong with it.
//! - [`response`] is what is sent back, made once and not for each request.
//! - [`session`] is one connection: it brings the two together and watches the clock.
//!
//! Sections of RFC 9110 (HTTP semantics) and RFC 9112 (HTTP/1.1) are quoted as in "9112, 2.2".

#[path = "../common/mod.rs"]
mod common;
mod request;
mod response;
mod session;

use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use common::Long;
use ruduo::{EventLoop, Server};
use session::{Session, Site};

const HELP: &str = "\
Answers every GET and HEAD over HTTP/1.1 with a greeting.

Usage: http_hello [--listen ADDRESS] [--threads N] [--header-timeout SECONDS] [--idle SECONDS]

  --listen ADDRESS          where to listen; port 0 is any free one [127.0.0.1:8000]
  --threads N               threads that serve connections; 0: the accepting one [0]
  --header-timeout SECONDS  how long a request's head may take to come, and then its body [10]
  --idle SECONDS            how long a client may say nothing, or take nothing [60]
  --help                    this text

SIGINT (Ctrl-C) and SIGTERM stop it; requests that have begun then have 5 seconds to finish.
RUST_LOG=debug tells of each connection.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads) = (common::loopback(8000), 0);
        let (mut request, mut idle) = (10, 60);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("header-timeout") => request = arguments.value()?,
                Long("idle") => idle = arguments.value()?,
                other => return Err(other.unexpected().into()),
            }
        }
        let (request, idle) = (Duration::from_secs(request), Duration::from_secs(idle));
        let event_loop = EventLoop::new()?;
        let server = Server::bind(&event_loop, listen)?
            .threads(threads)
            .idle_timeout(idle)
            .write_stall_timeout(idle)
            .serve_per_loop(move |_| {
                let site = Rc::new(Site::new(request));
                move |_conn| Session::new(site.clone())
            })?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        common::announce(format_args!("listening on {}", server.local_addr()))?;
        Ok(event_loop.run()?)
    })
}
