//! On an event loop: one thread, which waits for the peer, for standard input, and for room in
//! standard output, all at once.
//!
//! ```text
//!   standard input ──▶ Input ──send──▶ Connection ──▶ peer
//!                        └── waits until the piece has left
//!
//!   peer ──▶ Connection ──on_message──▶ Output ──▶ standard output
//!                └── reading pauses until all of it is written
//! ```
//!
//! So neither way holds more than a few buffers, however slow the other end is.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ruduo::{Buffer, CloseReason, Connection, EventLoop, Handler, TcpClient, TcpServer};

use crate::Peer;
use crate::common::{self, Ending};
use crate::stdio::{Input, Output, Stdio};

/// As long as its user likes.
const PATIENCE: Duration = Duration::MAX;

pub(crate) fn run(peer: Peer, stdio: Stdio) -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let ends = event_loop.local::<Ends>();
    ends.stdio.replace(Some(stdio));
    let ending = &ends.ending;
    match peer {
        Peer::Called(name, port) => {
            let not_connected = ending.clone();
            let client = TcpClient::connect(&event_loop, (name, port))
                .write_stall_timeout(PATIENCE)
                .linger(PATIENCE)
                .on_connect_failed(move |event_loop, e| not_connected.not_connected(event_loop, e))
                .serve(Session::new)?;
            ending.run(&event_loop, &client)
        }
        Peer::Awaited(address) => {
            let server = TcpServer::bind(&event_loop, address)?
                .write_stall_timeout(PATIENCE)
                .linger(PATIENCE)
                .serve(Session::new)?;
            server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
            common::remark(format_args!("listening on {}", server.local_addr()));
            event_loop.run()?;
            ending.outcome()
        }
    }
}

/// What the one connection of the loop is connected with; the loop's `local` value.
#[derive(Default)]
struct Ends {
    /// The first connection takes it.
    stdio: RefCell<Option<Stdio>>,
    ending: Ending,
}

struct Session {
    /// `None` for one that has come too late.
    input: Option<Rc<Input>>,
    /// `None` also when the peer has sent its last byte.
    output: Option<Rc<Output>>,
}

impl Session {
    fn new(conn: &Connection) -> Session {
        let ends = conn.event_loop().local::<Ends>();
        let Some(Stdio { input, output }) = ends.stdio.take() else {
            conn.reset();
            return Session { input: None, output: None };
        };
        Session {
            input: Some(Input::new(input, conn.handle(), ends.ending.clone())),
            output: Some(Output::new(output, conn.handle(), ends.ending.clone())),
        }
    }
}

impl Handler for Session {
    fn on_connect(&mut self, conn: &Connection) {
        if let Some(input) = &self.input {
            input.begin(conn.event_loop());
        }
        if let Some(output) = &self.output {
            output.begin(conn.event_loop());
        }
    }

    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        if let Some(output) = &self.output {
            output.write(conn.event_loop(), input);
        }
    }

    fn on_write_complete(&mut self, conn: &Connection) {
        if let Some(input) = &self.input {
            input.sent(conn.event_loop());
        }
    }

    /// The peer's end is that of our output. Our own comes with the end of the input.
    fn on_half_close(&mut self, conn: &Connection) {
        if let Some(output) = self.output.take() {
            output.end(conn.event_loop());
        }
    }

    /// What has been read so far is sent.
    fn on_stopping(&mut self, conn: &Connection) {
        if let Some(input) = &self.input {
            input.end(conn.event_loop());
        }
        conn.shutdown();
    }

    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        let event_loop = conn.event_loop();
        let Some(input) = &self.input else { return };
        input.end(event_loop);
        event_loop.local::<Ends>().ending.note(&conn.peer_addr().to_string(), reason);
        event_loop.quit();
    }
}
