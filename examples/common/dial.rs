//! Connecting the one side of a relay to the other, for the examples that are relays.
//!
//! The other side is a client on the loop that serves the first one. So nothing blocks and no thread
//! is started, however long the target takes, and how many wait at a time is bounded by how many
//! connections are let in.
//!
//! ```text
//!   Joining ──connected──▶ Joined: a Relay on either side
//!      │
//!      └── fails, too late ──▶ Front::joined is told; or the first side ends: nobody is, and the
//!                              attempt is given up
//! ```

use std::io;
use std::time::Duration;

use ruduo::{
    Buffer, ClientHandle, CloseReason, ConnectFailure, Connection, Handler, HandlerHandle,
    Keepalive, Relay, TcpClient,
};

/// A connection that came to us and is to be joined with another.
pub(crate) trait Front: Handler {
    /// The other side is there, and this is for the handler to become; or it can't be reached.
    /// What is sent here comes before anything of the other side's.
    fn joined(&mut self, conn: &Connection, outcome: Result<Side, ConnectFailure>);
}

/// How long the other side may keep us waiting.
#[derive(Clone, Copy)]
pub(crate) struct Deadlines {
    /// Accepting, with the time to look up its name.
    pub(crate) connect: Duration,
    /// Taking nothing of what waits for it.
    pub(crate) stall: Duration,
    /// Saying nothing after our end of the stream.
    pub(crate) patience: Duration,
}

/// Connects to a target, a name or an address and a port, and joins `conn`, whose handler is an `F`
/// and which has paused reading, with what comes of it. Then reading resumes.
///
/// # Errors
/// Deadlines of no time.
pub(crate) fn join<F: Front>(
    conn: &Connection,
    (name, port): (&str, u16),
    deadlines: Deadlines,
) -> io::Result<Side> {
    let front: HandlerHandle<F> = conn.handle_for();
    let failed = front.clone();
    // Not a text with both in it, which could also be the path of a Unix socket: some of those who
    // choose the name are strangers.
    let client = TcpClient::connect(conn.event_loop(), (name, port))
        .connect_timeout(deadlines.connect)
        .write_stall_timeout(deadlines.stall)
        .linger(deadlines.patience)
        .keepalive(Keepalive::default())
        // What waits for the target when all clients have gone is not cut when the server stops.
        .part_of(conn)
        .on_connect_failed(move |_, failure| {
            let failure = failure.clone();
            // An error, here and below, says that the first side is over.
            let _ = failed.post(|front, conn| front.joined(conn, Err(failure)));
        })
        .serve(move |back| {
            // Until the first side is ready.
            back.pause_reading();
            let handle = back.handle();
            // If the first side ends before, it stops this client, and that ends this side.
            let _ = front.post(move |front, conn| {
                conn.set_linger(deadlines.patience);
                front.joined(conn, Ok(Side::Joined(Relay::new(conn, &handle))));
                conn.resume_reading();
                let _ = handle.resume_reading();
            });
            Relay::new(back, front.connection())
        })?;
    Ok(Side::Joining(client))
}

/// The first side of a relay: a part of its handler.
pub(crate) enum Side {
    /// The other one is being connected. Reading has paused, so nothing comes.
    Joining(ClientHandle),
    Joined(Relay),
}

impl Handler for Side {
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        if let Side::Joined(relay) = self {
            relay.on_message(conn, input);
        }
    }

    fn on_half_close(&mut self, conn: &Connection) {
        if let Side::Joined(relay) = self {
            relay.on_half_close(conn);
        }
    }

    fn on_stopping(&mut self, conn: &Connection) {
        match self {
            Side::Joining(_) => conn.close(),
            Side::Joined(relay) => relay.on_stopping(conn),
        }
    }

    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        match self {
            Side::Joining(client) => client.stop(Duration::ZERO),
            Side::Joined(relay) => relay.on_close(conn, reason),
        }
    }
}
