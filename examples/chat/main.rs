//! A chat room: what one member says, all members hear.
//!
//! - [`protocol`]: what goes over the wire.
//! - [`server`]: the room, on any number of loops.
//! - [`client`]: a member at a terminal.

#[path = "../common/mod.rs"]
mod common;

mod client;
mod protocol;
mod server;

use std::process::ExitCode;

use common::Long;
use ruduo::Address;

const HELP: &str = "\
A chat room over TCP, with length-prefixed messages.

Usage: chat [--listen ADDRESS] [--threads N]
       chat --join ADDRESS

  --listen ADDRESS  where the room is; port 0 is any free one [127.0.0.1:2033]
  --threads N       threads that serve members; 0: the accepting one [0]
  --join ADDRESS    join the room at this address: each line of standard input is a message
  --help            this text

A member who reads too slowly is cut. SIGINT (Ctrl-C) and SIGTERM end both; a member also leaves at
the end of its standard input, when all it said has been heard.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads, mut join) = (common::loopback(2033), 0, None::<Address>);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("join") => join = Some(arguments.value()?),
                other => return Err(other.unexpected().into()),
            }
        }
        match join {
            Some(address) => client::join(address)?,
            None => server::serve(listen, threads)?,
        }
        Ok(())
    })
}
