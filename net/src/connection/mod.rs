//! A connection, in three parts.
//!
//! - [`state`] is what is known and what is to be done next: plain data, and all the rules.
//! - [`endpoint`] moves the bytes and calls the handler, in the order of one event.
//! - This file and [`handle`] are what the program sees: [`Connection`] inside callbacks,
//!   [`ConnectionHandle`] everywhere else.
//!
//! All of them reach [`core`]. [`operation`] is what can be asked of a connection, and [`output`]
//! the bytes that it has yet to send; [`deadlines`] is how long the peer may keep us waiting, and
//! [`throttle`] who has to wait for the peer; [`send_error`] and [`reason`] say what went wrong.

pub(crate) mod core;
mod credentials;
mod deadlines;
pub(crate) mod endpoint;
mod handle;
mod operation;
mod output;
mod reason;
mod send_error;
mod state;
mod throttle;

use std::fmt;
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ruduo_reactor::EventLoop;
use ruduo_reactor::sys::socket;

use self::core::Core;
pub use self::credentials::PeerCredentials;
pub use self::handle::{ConnectionHandle, HandlerHandle};
use self::operation::{Operation, Payload};
pub(crate) use self::output::MAX_OFFER;
use self::output::{FileRange, Outgoing};
pub use self::reason::CloseReason;
pub use self::send_error::SendError;
use crate::context::Context;
use crate::{Address, Buffer, ConnectionId, DecodeError};

/// One connection, as its callbacks see it.
///
/// It lives as long as the callback; to reach the connection from elsewhere take a
/// [`handle`](Connection::handle). It never leaves its loop's thread:
///
/// ```compile_fail,E0277
/// use ruduo_net::{Connection, TcpServer};
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// TcpServer::bind(&event_loop, "127.0.0.1:0")?
///     .on_message(|conn: &Connection, _input| {
///         std::thread::scope(|scope| {
///             scope.spawn(|| conn.close()); // a Connection is not Sync
///         });
///     })
///     .start()?;
/// # std::io::Result::Ok(())
/// ```
///
/// Nothing here writes to the socket. What a callback sends leaves in one system call right after
/// it, or at the end of the loop's turn if the callback is not this connection's own.
///
/// # Ways to end one
///
/// | call | output that waits | input | the peer sees |
/// |---|---|---|---|
/// | [`shutdown`](Connection::shutdown) | is sent | goes on being delivered | the end of the stream |
/// | [`finish`](Connection::finish) | is sent | is thrown away | the end of the stream |
/// | [`reject`](Connection::reject) | is sent, and what the callback still sends | is thrown away | the end of the stream |
/// | [`close`](Connection::close) | is dropped | is dropped | the end of the stream, or a reset if input was unread |
/// | [`reset`](Connection::reset) | is dropped | is dropped | a reset |
///
/// The first three wait for the peer, but not for ever: until it has taken all output
/// ([`Server::write_stall_timeout`](crate::Server::write_stall_timeout)) and come to its end
/// ([`Server::linger`](crate::Server::linger)). A connection that is cut while output waits, by a
/// deadline, a limit or the end of a stop, ends with a reset. Then
/// [`Handler::on_close`](crate::Handler::on_close) is called with the reason.
#[derive(Clone, Copy)]
pub struct Connection<'l> {
    event_loop: &'l EventLoop,
    core: &'l Core,
    /// It is one of the connection's own events that calls: what the callback leaves to be done is
    /// looked at right after it.
    in_event: bool,
}

impl<'l> Connection<'l> {
    pub(crate) fn new(event_loop: &'l EventLoop, core: &'l Core) -> Connection<'l> {
        Connection { event_loop, core, in_event: false }
    }

    #[inline(always)]
    fn in_event(event_loop: &'l EventLoop, core: &'l Core) -> Connection<'l> {
        Connection { event_loop, core, in_event: true }
    }

    pub(crate) fn context(&self) -> &'l Rc<Context> {
        &self.core.context
    }

    /// Its name, unique in this process.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.core.id()
    }

    /// Where the other end is.
    #[must_use]
    pub fn peer_addr(&self) -> Address {
        self.core.peer()
    }

    /// Our end's address. Asks the kernel.
    ///
    /// # Errors
    /// Those of getsockname(2).
    pub fn local_addr(&self) -> io::Result<Address> {
        socket::local_address(self.core.socket())
    }

    /// Whose process the other end of a Unix socket was when it connected. Asks the kernel.
    ///
    /// # Errors
    /// Those of the system's call. TCP connections have no credentials, and that is an error.
    pub fn peer_credentials(&self) -> io::Result<PeerCredentials> {
        PeerCredentials::of(self.core.socket())
    }

    /// The loop that serves it.
    #[must_use]
    #[inline]
    pub fn event_loop(&self) -> &'l EventLoop {
        self.event_loop
    }

    /// Sends a copy of `bytes`, after everything sent before.
    ///
    /// There is no error to handle: if the program has shut down or closed the connection before,
    /// the bytes are dropped, counted ([`ServerMetrics::discarded`](crate::ServerMetrics)) and
    /// logged at debug level; if they exceed the output limit, the connection closes with
    /// [`CloseReason::OutputFull`]. [`try_send`](Connection::try_send) tells.
    #[inline]
    pub fn send(&self, bytes: impl AsRef<[u8]>) {
        self.queue_in_order(Outgoing::Bytes(bytes.as_ref()));
    }

    /// Sends what is in `buffer` and leaves it empty. Bytes that are many, or all that there is to
    /// send, are not copied: their storage moves.
    #[inline(always)]
    pub fn send_buffer(&self, buffer: &mut Buffer) {
        if !self.queue_first(buffer) {
            self.queue_in_order(Outgoing::Buffer(buffer));
        }
    }

    /// Sends bytes that other connections send too: what is large (4 KiB or more) is not copied.
    pub fn send_shared(&self, bytes: Arc<[u8]>) {
        self.queue_in_order(Outgoing::Shared(bytes));
    }

    /// Sends `len` bytes of `file` from `offset` on, without reading them into this process. If
    /// the file turns out shorter, the connection closes with [`CloseReason::WriteFailed`].
    pub fn send_file(&self, file: File, offset: u64, len: u64) {
        self.queue_in_order(Outgoing::File(FileRange { file, offset, len }));
    }

    /// Like [`send`](Connection::send), but says when it can't, and then has no effect.
    ///
    /// # Errors
    /// [`SendError::Closed`] after shutdown, close or failure; [`SendError::Full`] if the output
    /// limit does not allow it.
    pub fn try_send(&self, bytes: impl AsRef<[u8]>) -> Result<(), SendError> {
        let bytes = bytes.as_ref();
        if self.core.has_outstanding() {
            return self.handle().send(bytes);
        }
        self.queue(Outgoing::Bytes(bytes))
    }

    #[inline(never)]
    fn queue_in_order(&self, outgoing: Outgoing<'_>) {
        if self.core.has_outstanding() {
            // What other threads sent before this leaves before this.
            self.in_order(Operation::Send(Payload::from(outgoing)));
        } else {
            self.queue_or_end(outgoing);
        }
    }

    /// Finishes: sends what is queued, then the end of our stream (FIN), goes on delivering what
    /// the peer sends until it finishes too, and closes. A peer that does not take what is queued is
    /// cut ([`write_stall_timeout`](crate::Server::write_stall_timeout)), and so is one that then
    /// does nothing for the time of [`linger`](crate::Server::linger). What is sent after this is
    /// dropped.
    pub fn shutdown(&self) {
        self.in_order(Operation::Shutdown);
    }

    /// Finishes like [`shutdown`](Connection::shutdown), and wants to hear nothing more: what
    /// `on_message` has left and what still comes is thrown away, also while reading is paused, and
    /// the handler is not told of the peer's end of stream. For a program that has said all there
    /// is to say. (If it closed instead, with input unread, even a line that nobody needs, the
    /// kernel would send a reset, and the peer might lose what we sent.) If a server says
    /// everything in `on_connect` and finishes there, its `on_message` is never called.
    pub fn finish(&self) {
        self.core.state.ignore_input(&self.core.context.lender);
        self.shutdown();
    }

    /// Refuses what the peer sent: nothing more is delivered, neither the rest of `input`, nor what
    /// still comes, nor the peer's end of stream, and after this callback the connection finishes
    /// as by [`shutdown`](Connection::shutdown). So what has been sent, and what the callback still
    /// sends, perhaps an error message, leaves first. The connection closes with
    /// [`CloseReason::Rejected`].
    ///
    /// For parsers, called in `on_message`, as codecs do. The offset in `error` counts from the
    /// first readable byte of `input`; in the close reason it counts from the first byte of the
    /// stream. (A message that a codec has returned is consumed, so 0 is the byte behind it.)
    /// Outside of `on_message` there is no input at hand: pass an empty buffer, and the offset
    /// counts from the first byte that `on_message` has left.
    ///
    /// ```
    /// use ruduo_net::{Buffer, Connection, DecodeError};
    ///
    /// fn on_message(conn: &Connection, input: &mut Buffer) {
    ///     if let Some(at) = input.readable().iter().position(|byte| !byte.is_ascii()) {
    ///         conn.reject(input, DecodeError::new(at, "not ASCII"));
    ///         conn.send("ASCII only, please\n");
    ///         return;
    ///     }
    ///     // ...
    /// }
    /// ```
    pub fn reject(&self, input: &mut Buffer, error: DecodeError) {
        let state = &self.core.state;
        let unread = input.len() + state.input_left();
        let start = self.bytes_received().saturating_sub(unread as u64);
        input.clear();
        let reason = CloseReason::Rejected(error.behind(start));
        state.reject(reason, &self.core.context.lender);
        self.touch();
    }

    /// Why the input was refused, by [`reject`](Connection::reject) or by a codec. All that a codec
    /// tells its handler is that there is no next message. So this is asked after the last one, and
    /// the peer can be told why:
    ///
    /// ```
    /// # use ruduo_net::{Buffer, Connection, LineCodec};
    /// fn on_message(lines: &mut LineCodec, conn: &Connection, input: &mut Buffer) {
    ///     while let Some(line) = lines.decode(conn, input) {
    ///         conn.send(line);
    ///     }
    ///     if let Some(error) = conn.rejection() {
    ///         conn.send(format!("500 {error}\r\n"));
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn rejection(&self) -> Option<DecodeError> {
        match self.core.state.failure() {
            Some(CloseReason::Rejected(error)) => Some(error.clone()),
            _ => None,
        }
    }

    /// Closes now. Output not yet sent is dropped; unread input makes the kernel send a reset.
    pub fn close(&self) {
        self.perform(Operation::Close);
    }

    /// Closes now, with a reset (RST) on purpose.
    pub fn reset(&self) {
        self.perform(Operation::Reset);
    }

    /// Stops receiving, until [`resume_reading`](Connection::resume_reading) has been called as
    /// many times. The kernel's buffers fill, and then the peer has to wait. If the peer goes away
    /// meanwhile, or finishes after we have, the pause lasts no longer than
    /// [`linger`](crate::Server::linger): then the connection ends, and what the peer sent last is
    /// lost.
    pub fn pause_reading(&self) {
        self.perform(Operation::Pause);
    }

    /// Ends one pause. Input that the handler left is delivered again, at the end of the turn.
    pub fn resume_reading(&self) {
        self.in_order(Operation::Resume);
    }

    /// Whether to go on with the input at hand. False while reading is paused, by the program or
    /// because more output waits than the high-water mark allows: then leave the rest, and it comes
    /// again. False also after `close`, `reset`, `reject` and `finish`, after which nothing comes
    /// again; but not after `shutdown`, which goes on listening.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        let posted = self.core.posted_bytes();
        self.core.state.wants_input(&self.core.context.limits, posted)
    }

    /// How many bytes of input a handler may leave unconsumed
    /// ([`Server::input_limit`](crate::Server::input_limit)): no message can be longer.
    #[must_use]
    pub fn input_limit(&self) -> usize {
        self.core.context.limits.input
    }

    /// Whether what is sent now can leave: not after `shutdown` or `close`, or when sending has
    /// failed. For programs that send in [`on_write_complete`](crate::Handler::on_write_complete)
    /// as long as there is somebody to send to. (A `shutdown` that has to queue behind what handles
    /// have posted counts from its turn on.)
    #[must_use]
    pub fn takes_output(&self) -> bool {
        self.core.state.takes_output()
    }

    /// Bytes that wait to be handed to the kernel, those on their way from handles included.
    #[must_use]
    pub fn pending_output(&self) -> usize {
        self.core.state.pending_output().saturating_add(self.core.posted_bytes())
    }

    /// Bytes received so far.
    #[must_use]
    pub fn bytes_received(&self) -> u64 {
        self.core.received.get()
    }

    /// Bytes handed to the kernel so far.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.core.state.bytes_sent()
    }

    /// Calls [`Handler::on_timer`](crate::Handler::on_timer) with `key` once `after` is over. A
    /// timer with the same key that is still armed is replaced. All timers of a connection end
    /// with it.
    ///
    /// ```
    /// # use ruduo_net::{Buffer, Connection, Handler};
    /// # use std::time::Duration;
    /// # struct Session;
    /// /// What the timers of a session are for.
    /// const LOGIN: u64 = 0;
    /// const PING: u64 = 1;
    ///
    /// # impl Handler for Session {
    /// fn on_connect(&mut self, conn: &Connection) {
    ///     conn.set_timer(LOGIN, Duration::from_secs(10));
    ///     conn.set_timer(PING, Duration::from_secs(60));
    /// }
    ///
    /// fn on_timer(&mut self, conn: &Connection, key: u64) {
    ///     match key {
    ///         LOGIN => conn.shutdown(),
    ///         _ => {
    ///             conn.send("ping\n");
    ///             conn.set_timer(PING, Duration::from_secs(60));
    ///         }
    ///     }
    /// }
    /// # fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {}
    /// # }
    /// ```
    pub fn set_timer(&self, key: u64, after: Duration) {
        self.core.set_timer(self.event_loop, key, after);
    }

    /// Disarms the timer `key`. Returns whether it was armed.
    pub fn cancel_timer(&self, key: u64) -> bool {
        self.core.cancel_timer(self.event_loop, key)
    }

    /// How long this peer may say nothing, instead of what
    /// [`idle_timeout`](crate::Server::idle_timeout) says for all. The time begins anew: a program
    /// that took long for an answer sets it again, so that the peer's time counts from there.
    /// `Duration::MAX` is no limit.
    pub fn set_idle_timeout(&self, timeout: Duration) {
        self.core.set_deadlines(self.event_loop, |deadlines| deadlines.idle = timeout);
    }

    /// How long this peer may take nothing of the output that waits for it, instead of what
    /// [`write_stall_timeout`](crate::Server::write_stall_timeout) says for all.
    pub fn set_write_stall_timeout(&self, timeout: Duration) {
        self.core.set_deadlines(self.event_loop, |deadlines| deadlines.write_stall = timeout);
    }

    /// How long this peer may do nothing after our end of the stream, instead of what
    /// [`linger`](crate::Server::linger) says for all. If the peer needs its time for an answer
    /// after our `shutdown`, set this to `Duration::MAX` and rely on another deadline, for example
    /// the idle timeout of whoever waits for that answer.
    pub fn set_linger(&self, linger: Duration) {
        self.core.set_deadlines(self.event_loop, |deadlines| deadlines.linger = linger);
    }

    /// Reaches this connection from other threads, and from this one after the callback.
    #[must_use]
    pub fn handle(&self) -> ConnectionHandle {
        ConnectionHandle::new(self.event_loop, self.core)
    }

    /// Reaches this connection's handler, whose type is `H` (or a `Box<dyn Handler>` with an `H`
    /// in it).
    #[must_use]
    pub fn handle_for<H: crate::Handler>(&self) -> HandlerHandle<H> {
        HandlerHandle::new(self.handle())
    }

    /// Carries out an operation, after those that handles have posted.
    fn in_order(&self, operation: Operation) {
        if !self.core.has_outstanding() {
            self.perform(operation);
            return;
        }
        let len = operation.len();
        if let Err(error) = self.handle().post(operation) {
            self.not_sent(error, len);
        }
    }
}

impl fmt::Debug for Connection<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id())
            .field("peer", &self.peer_addr())
            .finish_non_exhaustive()
    }
}
