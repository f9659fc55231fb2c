//! netcat: what comes from standard input goes to a peer, and what comes from the peer to standard
//! output.
//!
//! Each direction has its own end: at the end of standard input the peer is told so, and may go on
//! answering; at the end of what the peer sends, whoever reads our standard output is told so, and
//! what comes in may go on. The program ends with the second of the two.
//!
//! Here twice, to compare:
//! - [`blocking`]: two threads, each of which copies one way and blocks.
//! - [`reactor`]: one loop, for which standard input and output are two more descriptors, of whatever
//!   kind: [`stdio`] says what there is to mind.
//!
//! Standard output is for the peer's bytes alone, so what a listener tells, its address, goes to
//! standard error.

#[path = "../common/mod.rs"]
mod common;

mod blocking;
mod reactor;
mod stdio;

use std::net::SocketAddr;
use std::process::ExitCode;

use common::{Long, Short};
use lexopt::Arg::Value;
use stdio::Stdio;

const HELP: &str = "\
Copies standard input to a peer, and what the peer sends to standard output.

Usage: netcat [--blocking] NAME:PORT
       netcat [--blocking] -l ADDRESS

  NAME:PORT    connect to this name or address
  -l ADDRESS   listen here, and talk to the first who connects; port 0 is any free one
  --blocking   two threads that block instead of an event loop
  --help       this text

It ends when both sides have, and when nobody reads its standard output any more.
SIGINT (Ctrl-C) and SIGTERM end it at once; then the peer has 5 seconds to finish.";

/// Where the peer comes from.
pub(crate) enum Peer {
    Called(String, u16),
    Awaited(SocketAddr),
}

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut peer, mut blocking) = (None, false);
        while let Some(argument) = arguments.next()? {
            match argument {
                Short('l') if peer.is_none() => peer = Some(Peer::Awaited(arguments.value()?)),
                Long("blocking") => blocking = true,
                Value(target) if peer.is_none() => {
                    let target = target.into_string().map_err(lexopt::Error::from)?;
                    let (name, port) = common::name_and_port(&target)?;
                    peer = Some(Peer::Called(name, port));
                }
                other => return Err(other.unexpected().into()),
            }
        }
        let peer = peer.ok_or_else(|| common::usage("NAME:PORT or -l ADDRESS is needed"))?;
        let stdio = Stdio::take()?;
        let talk = if blocking { blocking::run } else { reactor::run };
        Ok(talk(peer, stdio)?)
    })
}
