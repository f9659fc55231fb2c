//! time (RFC 868): tells the seconds since 1900 as a 32-bit number, in network byte order, then
//! closes. What the peer sends is thrown away, not left unread; `daytime.rs` says why.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use ruduo::{Server, ServerHandle};

/// From the beginning of 1900 to that of 1970, in seconds.
const EPOCHS_APART: u32 = 2_208_988_800;

pub(crate) fn serve(server: Server<'_>) -> io::Result<ServerHandle> {
    server
        .on_connect(|conn| {
            conn.send(seconds_since_1900().to_be_bytes());
            conn.finish();
        })
        .on_message(|_conn, _input| {})
        .start()
}

/// 32 bits last until 7 February 2036. Then the number begins again at 0, and a client that knows
/// roughly what year it is can still tell the time.
fn seconds_since_1900() -> u32 {
    // A clock that stands before 1970 is not set.
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since_1970.as_secs() as u32).wrapping_add(EPOCHS_APART)
}
