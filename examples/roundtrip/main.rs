//! How long a message takes there and back, and how far the two clocks are apart.
//!
//! ```text
//!   client   T1 ─────────╮                 ╭────────▶ T4      round trip  T4 - T1
//!                        ╰──▶ T2 ──────────╯                  offset      (T1 + T4) / 2 - T2
//!   server                (T3 = T2)
//! ```
//!
//! The offset supposes that both ways take as long, so it is no further from the truth than half of
//! a round trip; of several answers the quickest tells best. NTP (RFC 5905) does the same, with a
//! time T3 of its own for the server's sending.

#[path = "../common/mod.rs"]
mod common;
mod message;
mod questions;
mod tcp;
mod udp;

use std::cell::RefCell;
use std::process::ExitCode;
use std::time::Duration;

use common::{Long, Stop};
use questions::Questions;
use ruduo::{EventLoop, Signal};

const HELP: &str = "\
Measures how long a message takes there and back, and how far two clocks are apart.

Usage: roundtrip [--udp] [--listen ADDRESS] [--threads N]
       roundtrip [--udp] --connect ADDRESS [--interval SECONDS] [--count N]

  --udp               over UDP, not over TCP
  --listen ADDRESS    where to listen; port 0 is any free one [127.0.0.1:3123]
  --threads N         threads that serve; 0: the accepting one [0]
  --connect ADDRESS   be a client, of the server there
  --interval SECONDS  how often to ask; may be a fraction [0.2]
  --count N           how often to ask in all; 0: until it is stopped [0]
  --help              this text

SIGINT (Ctrl-C) and SIGTERM stop it. A client without any answer ends with status 1.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads, mut server) = (common::loopback(3123), 0, None);
        let (mut interval, mut count, mut udp) = (Duration::from_millis(200), 0, false);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("udp") => udp = true,
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("connect") => server = Some(arguments.value::<String>()?),
                Long("interval") => interval = common::seconds("--interval", arguments.value()?)?,
                Long("count") => count = arguments.value()?,
                other => return Err(other.unexpected().into()),
            }
        }
        let event_loop = EventLoop::new()?;
        let grace = Duration::from_secs(5);
        match server {
            Some(server) => {
                let questions = Questions::new((count > 0).then_some(count));
                return ask(&event_loop, udp, server, interval, questions);
            }
            None if udp => {
                let sockets = udp::serve(&event_loop, listen.into(), threads)?;
                sockets.stop_on_signals(&event_loop, grace)?;
                common::announce(format_args!("listening on {}", sockets.local_addr()))?;
            }
            None => {
                let server = tcp::serve(&event_loop, listen.into(), threads)?;
                server.stop_on_signals(&event_loop, grace)?;
                common::announce(format_args!("listening on {}", server.local_addr()))?;
            }
        }
        Ok(event_loop.run()?)
    })
}

fn ask(
    event_loop: &EventLoop,
    udp: bool,
    server: String,
    interval: Duration,
    questions: Questions,
) -> Result<(), Stop> {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        event_loop.on_signal(signal, |event_loop, _| event_loop.quit())?;
    }
    let ask = if udp { udp::ask } else { tcp::ask };
    let account = event_loop.local::<RefCell<Questions>>();
    account.replace(questions);
    ask(event_loop, server.into(), interval)?;
    account.borrow().sum_up()?;
    Ok(())
}
