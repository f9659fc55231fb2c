//! daytime (RFC 867): tells the date and time in one line, then closes.

use std::io;
use std::time::SystemTime;

use httpdate::HttpDate;
use ruduo::{ServerHandle, TcpServer};

/// `shutdown` sends what is queued and then goes on receiving until the peer has finished too. What
/// comes is still to be thrown away: closing with unread input would make the kernel send a reset,
/// at which the peer's kernel may forget the line before anybody has read it.
pub(crate) fn serve(server: TcpServer<'_>) -> io::Result<ServerHandle> {
    server
        .on_connect(|conn| {
            conn.send(format!("{}\r\n", HttpDate::from(SystemTime::now())));
            conn.shutdown();
        })
        .on_message(|_conn, input| input.clear())
        .start()
}
