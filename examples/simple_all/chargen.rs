//! chargen (RFC 864): an endless stream of lines, as fast as the peer reads it.
//!
//! The stream leaves in blocks: the first when the connection is made, each further one when the
//! kernel has taken all of the one before. This looks like a recursion of sending and
//! `on_write_complete`, and like one that never lets anybody else have a turn, but it is neither.
//! To send is only to queue. The loop writes when the callback has returned, once a turn, and calls
//! the next one from where it called the last. Between two blocks it looks at every other
//! connection, timer and task. When the peer reads too slowly for a block, the loop waits for room
//! like for anything else.
//!
//! All connections send the same block, which nobody copies. So a peer that does not read costs its
//! connection and what the kernel buffers, and nothing here.

use std::io;
use std::sync::Arc;

use ruduo::{Buffer, Connection, EventLoop, Handler, ServerHandle, TcpServer};

use crate::throughput::log_throughput;

const CHARACTERS: usize = 95;
const LINE: usize = 72;

/// How often the lines have begun with each of the characters by the end of a block. That makes a
/// block 63,270 bytes: enough for a system call to be worth it, and little enough to wait for.
const ROUNDS: usize = 9;

pub(crate) fn serve(event_loop: &EventLoop, server: TcpServer<'_>) -> io::Result<ServerHandle> {
    let block = block();
    let server = server.serve(move |_conn| Stream { block: Some(block.clone()) })?;
    let counted = server.clone();
    log_throughput(event_loop, "chargen", move || counted.bytes_sent());
    Ok(server)
}

/// Each line begins one character later than the one before, on the ring of the printable ones.
/// So the lines repeat after 95 of them, and a block of whole rounds can follow itself.
fn block() -> Arc<[u8]> {
    let ring = (b' '..=b'~').cycle();
    let line = |n| ring.clone().skip(n % CHARACTERS).take(LINE).chain(*b"\r\n");
    (0..ROUNDS * CHARACTERS).flat_map(line).collect()
}

struct Stream {
    /// What there is to send; nothing more once the server stops.
    block: Option<Arc<[u8]>>,
}

impl Stream {
    fn send_next(&self, conn: &Connection) {
        if let Some(block) = &self.block {
            conn.send_shared(block.clone());
        }
    }
}

impl Handler for Stream {
    fn on_connect(&mut self, conn: &Connection) {
        self.send_next(conn);
    }

    fn on_write_complete(&mut self, conn: &Connection) {
        self.send_next(conn);
    }

    fn on_message(&mut self, _: &Connection, input: &mut Buffer) {
        input.clear();
    }

    /// The peer's last byte means nothing here, where its first one did not either: a client with
    /// its input from /dev/null finishes at once and wants its characters nevertheless. One that is
    /// really gone answers them with a reset, and that ends the connection.
    fn on_half_close(&mut self, _: &Connection) {}

    fn on_stopping(&mut self, conn: &Connection) {
        self.block = None;
        conn.shutdown();
    }
}
