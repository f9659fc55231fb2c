//! Two connections that are one: what comes on each leaves on the other.

use crate::{Buffer, CloseReason, Connection, ConnectionHandle, Handler};

/// One side of a relay: a [`Handler`], or a part of one, that sends what its connection receives to
/// another, and ends as the other does.
///
/// - **Nothing piles up.** Reading pauses while the other side is above its high-water mark.
/// - **Each direction ends by itself.** The peer's end of stream is passed on behind its last byte,
///   and the other direction goes on.
/// - **What is cut is not taken for whole.** If one side ends in any other way (a reset, a deadline,
///   a limit, a stop), both peers see a reset.
/// - **A server that stops lets it go on** until the deadline, for it does not know what a good place
///   to end is. A client that is the other side has to be
///   [part of the server](crate::Client::part_of) for that.
///
/// After our end of the stream the answer may take its time, so set a
/// [`linger`](crate::Server::linger) that allows for that, to both. But no
/// [`idle_timeout`](crate::Server::idle_timeout): each side would count its own silence, also while
/// the other one is talking.
///
/// ```
/// use ruduo_net::{Connection, ConnectionHandle, Relay};
///
/// /// For the handler of `conn`; the other one's handler needs one too.
/// fn relay(conn: &Connection, other: &ConnectionHandle) -> Relay {
///     Relay::new(conn, other)
/// }
/// ```
#[derive(Debug)]
pub struct Relay {
    other: ConnectionHandle,
}

impl Relay {
    /// What `conn` receives from now on goes to `other`.
    #[must_use]
    pub fn new(conn: &Connection<'_>, other: &ConnectionHandle) -> Relay {
        conn.handle().pause_while_above(other);
        Relay { other: other.clone() }
    }
}

impl Handler for Relay {
    fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer) {
        if self.other.send_buffer(input).is_err() {
            // The other side is over, or its output limit leaves no room: this one ends as by a
            // cut.
            conn.reset();
        }
    }

    fn on_half_close(&mut self, _: &Connection<'_>) {
        // An error says that it is over, and then so are we.
        let _ = self.other.shutdown();
    }

    fn on_stopping(&mut self, _: &Connection<'_>) {}

    fn on_close(&mut self, conn: &Connection<'_>, reason: &CloseReason) {
        if !reason.is_clean() {
            // Nothing may wait here, and yet more was to come.
            conn.reset();
            let _ = self.other.reset();
        }
    }
}
