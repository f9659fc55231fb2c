use std::io;

use ruduo::{Buffer, Connection, EventLoop, Handler, LineCodec, ServerHandle, TcpServer};

struct Session {
    lines: LineCodec,
    count: u64,
}

impl Handler for Session {
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        while let Some(line) = self.lines.decode(conn, input) {
            self.count += 1;
            let text = String::from_utf8_lossy(line);
            conn.send(format!("{}: {text}\n", self.count));
        }
    }
}

pub fn serve(event_loop: &EventLoop, address: &str) -> io::Result<ServerHandle> {
    TcpServer::bind(event_loop, address)?
        .threads(2)
        .serve(|_conn| Session { lines: LineCodec::lf_or_crlf().max_len(1000), count: 0 })
}
