//! discard (RFC 863): throws away what it receives, and closes when the peer does. There is no
//! simpler server, which makes it the one to measure how fast bytes come in.

use std::io;

use ruduo::{Server, ServerHandle};

use crate::throughput::log_throughput;

pub(crate) fn serve(server: Server<'_>) -> io::Result<ServerHandle> {
    let event_loop = server.event_loop();
    let server = server.on_message(|_conn, input| input.clear()).start()?;
    let counted = server.clone();
    log_throughput(event_loop, "discard", move || counted.metrics().received);
    Ok(server)
}
