//! chargen (RFC 864): an endless stream of lines, as fast as the peer reads it.
//!
//! The stream leaves in blocks: the first when the connection is made, the next each time the kernel
//! has taken all of the last. It looks as if sending and `on_write_complete` called each other for
//! ever. They do not, for to send is only to queue: the loop writes after the callback has returned,
//! in its next turn, and then calls `on_write_complete` from where it did before. So the stack
//! never grows, and with one block a turn a connection leaves room for all the others, for timers
//! and tasks. Where the peer reads slowly, the loop waits for it as for any other event.
//!
//! All connections send the same block, and nobody copies it. A peer that does not read costs its
//! connection and what the kernel buffers, and nothing here.

use std::io;
use std::sync::Arc;

use ruduo::{Connection, Server, ServerHandle};

use crate::throughput::log_throughput;

const CHARACTERS: usize = 95;
const LINE: usize = 72;

/// How often a block goes through all the lines there are. 9 times are 63,270 bytes: enough to be
/// worth a system call, and little enough to wait for.
const ROUNDS: usize = 9;

pub(crate) fn serve(server: Server<'_>) -> io::Result<ServerHandle> {
    let event_loop = server.event_loop();
    let block = block();
    let send_next = move |conn: &Connection| {
        // Not when the server stops: the stream then ends with the line at the end of a block.
        if conn.takes_output() {
            conn.send_shared(block.clone());
        }
    };
    let server = server
        .on_connect(send_next.clone())
        .on_write_complete(send_next)
        .on_message(|_conn, input| input.clear())
        // A peer that has nothing to say may still read: a client with its input from /dev/null
        // finishes at once and wants its characters nevertheless. One that is really gone answers
        // them with a reset, and that ends the connection.
        .on_half_close(|_conn| {})
        .start()?;
    let counted = server.clone();
    log_throughput(event_loop, "chargen", move || counted.metrics().sent);
    Ok(server)
}

/// Each line begins one character later than the last, on the ring of the printable ones. So they
/// repeat after 95, and a block of whole rounds can follow itself.
fn block() -> Arc<[u8]> {
    let ring = (b' '..=b'~').cycle();
    let line = |n| ring.clone().skip(n % CHARACTERS).take(LINE).chain(*b"\r\n");
    (0..ROUNDS * CHARACTERS).flat_map(line).collect()
}
