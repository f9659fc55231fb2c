//! daytime (RFC 867): tells the date and time in one line, then closes.

use std::io;
use std::time::SystemTime;

use httpdate::HttpDate;
use ruduo::{Server, ServerHandle};

/// `finish` sends what is queued and waits for the peer to finish too. What comes meanwhile is
/// received and thrown away: closing with unread input would make the kernel send a reset, at which
/// the peer's kernel may forget the line before anybody has read it.
pub(crate) fn serve(server: Server<'_>) -> io::Result<ServerHandle> {
    server
        .on_connect(|conn| {
            conn.send(format!("{}\r\n", HttpDate::from(SystemTime::now())));
            conn.finish();
        })
        .on_message(|_conn, _input| {})
        .start()
}
