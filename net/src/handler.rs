//! What a program does with its connections.

use std::any::Any;

use crate::{Buffer, CloseReason, Connection};

/// The program's side of one connection: made when the connection is, dropped after `on_close` and
/// before the socket is closed. So when the peer sees the connection closed, all that its handler
/// held has been given back.
///
/// All methods are called on the connection's loop, one at a time and never from inside one
/// another: what they do to connections (this one or others) takes effect after they return. So
/// they may call anything, hold no locks and need no `Send`. If one panics, its connection is
/// closed and the loop goes on.
///
/// ```
/// use ruduo_net::{Buffer, CloseReason, Connection, Handler, LineCodec};
///
/// /// Answers each line with its number.
/// struct Session {
///     lines: LineCodec,
///     count: u64,
/// }
///
/// impl Handler for Session {
///     fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
///         while let Some(_line) = self.lines.decode(conn, input) {
///             self.count += 1;
///             conn.send(format!("{}\n", self.count));
///         }
///     }
///
///     fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
///         println!("{} sent {} lines, then: {reason}", conn.peer_addr(), self.count);
///     }
/// }
/// ```
pub trait Handler: Any {
    /// The connection is made. What is sent here leaves at the end of the turn.
    fn on_connect(&mut self, conn: &Connection<'_>) {
        let _ = conn;
    }

    /// Bytes came. `input` holds everything not yet consumed: consume what is a whole message,
    /// leave the rest, and it comes again with more behind it.
    ///
    /// A handler that takes several messages from one input stops when
    /// [`wants_input`](Connection::wants_input) is false; it is called again with what it left
    /// when it may go on.
    fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer);

    /// All output has been handed to the kernel: the time to send more of something long. What is
    /// sent here leaves when every other connection has had its turn, so a handler that always
    /// sends more neither recurses nor starves anybody.
    fn on_write_complete(&mut self, conn: &Connection<'_>) {
        let _ = conn;
    }

    /// More than the high-water mark waits to be sent (`pending` bytes). Called once each time
    /// the mark is crossed upwards; reading is paused already.
    fn on_high_water(&mut self, conn: &Connection<'_>, pending: usize) {
        let _ = (conn, pending);
    }

    /// Output has come down to the low-water mark; reading goes on.
    fn on_low_water(&mut self, conn: &Connection<'_>) {
        let _ = conn;
    }

    /// The peer has sent its last byte and may still be reading. By default the connection shuts
    /// down too: pending output is delivered, then it closes. A handler that overrides this has to
    /// end the connection itself. Input that was left may still be delivered after this, when
    /// reading is resumed.
    fn on_half_close(&mut self, conn: &Connection<'_>) {
        conn.shutdown();
    }

    /// A timer set by [`Connection::set_timer`] is due.
    fn on_timer(&mut self, conn: &Connection<'_>, key: u64) {
        let _ = (conn, key);
    }

    /// The server or client is being stopped, and its connections have time until the deadline. By
    /// default the connection shuts down: pending output is delivered, and it closes when the peer
    /// does.
    fn on_stopping(&mut self, conn: &Connection<'_>) {
        conn.shutdown();
    }

    /// The connection is over. Called exactly once, last. Only [`reset`](Connection::reset) still has
    /// an effect: the peer sees that, and not the end of the stream.
    fn on_close(&mut self, conn: &Connection<'_>, reason: &CloseReason) {
        let _ = (conn, reason);
    }
}

/// A handler chosen while the program runs, for example by the protocol that a server speaks on
/// this port.
impl Handler for Box<dyn Handler> {
    fn on_connect(&mut self, conn: &Connection<'_>) {
        (**self).on_connect(conn);
    }
    fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer) {
        (**self).on_message(conn, input);
    }
    fn on_write_complete(&mut self, conn: &Connection<'_>) {
        (**self).on_write_complete(conn);
    }
    fn on_high_water(&mut self, conn: &Connection<'_>, pending: usize) {
        (**self).on_high_water(conn, pending);
    }
    fn on_low_water(&mut self, conn: &Connection<'_>) {
        (**self).on_low_water(conn);
    }
    fn on_half_close(&mut self, conn: &Connection<'_>) {
        (**self).on_half_close(conn);
    }
    fn on_timer(&mut self, conn: &Connection<'_>, key: u64) {
        (**self).on_timer(conn, key);
    }
    fn on_stopping(&mut self, conn: &Connection<'_>) {
        (**self).on_stopping(conn);
    }
    fn on_close(&mut self, conn: &Connection<'_>, reason: &CloseReason) {
        (**self).on_close(conn, reason);
    }
}

/// Makes a handler of a closure that is called for messages. It may keep state of its own.
///
/// ```no_run
/// use ruduo_net::{TcpServer, handler_fn};
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// TcpServer::bind(&event_loop, "127.0.0.1:0")?.serve(|_conn| {
///     let mut seen = 0;
///     handler_fn(move |conn, input| {
///         seen += input.len();
///         input.clear();
///         conn.send(format!("{seen} bytes so far\n"));
///     })
/// })?;
/// # std::io::Result::Ok(())
/// ```
pub fn handler_fn<F>(on_message: F) -> impl Handler
where
    F: FnMut(&Connection<'_>, &mut Buffer) + 'static,
{
    struct HandlerFn<F>(F);

    impl<F: FnMut(&Connection<'_>, &mut Buffer) + 'static> Handler for HandlerFn<F> {
        #[inline]
        fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer) {
            (self.0)(conn, input);
        }
    }

    HandlerFn(on_message)
}
