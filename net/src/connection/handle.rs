//! Reaching a connection from outside its callbacks: from other threads, or later.
//!
//! What a handle asks for becomes a task of the connection's loop. On that loop's own thread it is
//! done at once, but only while none of the connection's posted operations is on its way: all
//! operations on a connection, from whichever thread, have one order, and no later one overtakes.

use std::any::{Any, type_name};
use std::fmt;
use std::fs::File;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;

use ruduo_reactor::{EventLoop, LoopHandle};

use super::core::Core;
use super::operation::{Operation, Payload};
use super::output::{FileRange, Outgoing};
use super::throttle::Posted;
use crate::place::{Place, Resident};
use crate::posted::Outstanding;
use crate::{Buffer, Connection, ConnectionId, Handler, SendError};

/// Reaches a connection from any thread. Cheap to clone; harmless after the connection's end.
///
/// Operations of one thread are carried out in their order, and so are those of two threads where
/// one is known to come after the other. An operation that the connection does not live to see is
/// dropped.
///
/// ```
/// use ruduo_net::TcpServer;
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// TcpServer::bind(&event_loop, "127.0.0.1:0")?
///     .on_message(|conn, input| {
///         let (handle, question) = (conn.handle(), input.readable().to_vec());
///         input.clear();
///         std::thread::spawn(move || {
///             // ... something slow, and then, if the peer is still there:
///             handle.send(question.to_ascii_uppercase())?;
///             handle.shutdown()
///         });
///     })
///     .start()?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone)]
pub struct ConnectionHandle {
    event_loop: LoopHandle,
    name: Name,
    posted: Arc<Posted>,
}

/// A token comes again after 2^32 others, while somebody may still hold a handle; an id does not.
#[derive(Clone, Copy)]
struct Name {
    id: ConnectionId,
    place: Place,
}

impl Name {
    /// The connection, if it still lives.
    fn resident(self, event_loop: &EventLoop) -> Option<Rc<dyn Resident>> {
        self.place.resident(event_loop).filter(|resident| resident.core().id() == self.id)
    }
}

impl ConnectionHandle {
    pub(super) fn new(event_loop: &EventLoop, core: &Core) -> ConnectionHandle {
        ConnectionHandle {
            event_loop: event_loop.handle(),
            name: Name { id: core.id(), place: core.place() },
            posted: core.posted().clone(),
        }
    }

    /// The connection, on its loop, if it still lives.
    pub(crate) fn resident(&self, event_loop: &EventLoop) -> Option<Rc<dyn Resident>> {
        self.name.resident(event_loop)
    }

    /// The connection's name.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.name.id
    }

    /// The loop that serves it.
    #[must_use]
    pub fn event_loop(&self) -> &LoopHandle {
        &self.event_loop
    }

    /// Whether the connection is over, as far as is known on this thread.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.posted.is_closed()
    }

    /// Sends a copy of `bytes`.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the connection or its loop is known to be over,
    /// [`SendError::Full`] if what is on its way to the loop exceeds the output limit.
    pub fn send(&self, bytes: impl AsRef<[u8]>) -> Result<(), SendError> {
        self.submit(Operation::Send(Payload::Buffer(Buffer::from(bytes.as_ref()))))
    }

    /// Sends what is in `buffer`, without copying it, and leaves it empty. A callback can pass on to
    /// another connection what it has received; see
    /// [`pause_while_above`](ConnectionHandle::pause_while_above).
    ///
    /// # Errors
    /// As [`send`](ConnectionHandle::send); what is in `buffer` is dropped then.
    pub fn send_buffer(&self, buffer: &mut Buffer) -> Result<(), SendError> {
        let queued = self.event_loop.with_local(|event_loop| {
            let resident = self.resident(event_loop)?;
            let core = resident.core();
            if core.has_outstanding() {
                return None;
            }
            Some(Connection::new(event_loop, core).queue(Outgoing::Buffer(buffer)))
        });
        match queued.flatten() {
            Some(outcome) => outcome,
            None => self.submit(Operation::Send(Payload::Buffer(std::mem::take(buffer)))),
        }
    }

    /// Sends bytes that other connections send too, without copying them.
    ///
    /// # Errors
    /// As [`send`](ConnectionHandle::send).
    pub fn send_shared(&self, bytes: Arc<[u8]>) -> Result<(), SendError> {
        self.submit(Operation::Send(Payload::Shared(bytes)))
    }

    /// Sends `len` bytes of `file` from `offset` on, without reading them into this process.
    ///
    /// # Errors
    /// As [`send`](ConnectionHandle::send).
    pub fn send_file(&self, file: File, offset: u64, len: u64) -> Result<(), SendError> {
        self.submit(Operation::Send(Payload::File(FileRange { file, offset, len })))
    }

    /// See [`Connection::shutdown`].
    ///
    /// # Errors
    /// [`SendError::Closed`], for this one and those below, if the connection or its loop is
    /// known to be over.
    pub fn shutdown(&self) -> Result<(), SendError> {
        self.submit(Operation::Shutdown)
    }

    /// See [`Connection::close`].
    ///
    /// # Errors
    /// As [`shutdown`](ConnectionHandle::shutdown).
    pub fn close(&self) -> Result<(), SendError> {
        self.submit(Operation::Close)
    }

    /// See [`Connection::reset`].
    ///
    /// # Errors
    /// As [`shutdown`](ConnectionHandle::shutdown).
    pub fn reset(&self) -> Result<(), SendError> {
        self.submit(Operation::Reset)
    }

    /// See [`Connection::pause_reading`].
    ///
    /// # Errors
    /// As [`shutdown`](ConnectionHandle::shutdown).
    pub fn pause_reading(&self) -> Result<(), SendError> {
        self.submit(Operation::Pause)
    }

    /// See [`Connection::resume_reading`].
    ///
    /// # Errors
    /// As [`shutdown`](ConnectionHandle::shutdown).
    pub fn resume_reading(&self) -> Result<(), SendError> {
        self.submit(Operation::Resume)
    }

    /// Carries an operation out, or posts it.
    fn submit(&self, operation: Operation) -> Result<(), SendError> {
        if self.posted.is_closed() {
            return Err(SendError::Closed);
        }
        let mut operation = Some(operation);
        let outcome = self.at_once(&mut operation);
        match operation {
            Some(operation) => self.post(operation),
            None => outcome,
        }
    }

    /// The direct path: takes the operation and carries it out, on the loop's own thread and with
    /// nothing on its way before it. Otherwise leaves it there.
    fn at_once(&self, operation: &mut Option<Operation>) -> Result<(), SendError> {
        let carry_out = |event_loop: &EventLoop| {
            let Some(resident) = self.resident(event_loop) else {
                *operation = None;
                return Err(SendError::Closed);
            };
            let core = resident.core();
            let conn = Connection::new(event_loop, core);
            let queues = core.has_outstanding();
            match operation.take_if(|operation| !(queues && operation.is_in_order())) {
                Some(Operation::Send(payload)) => {
                    payload.with_outgoing(|outgoing| conn.queue(outgoing))
                }
                Some(other) => {
                    conn.perform(other);
                    Ok(())
                }
                None => Ok(()),
            }
        };
        self.event_loop.with_local(carry_out).unwrap_or(Ok(()))
    }

    /// Leaves an operation for the loop.
    pub(super) fn post(&self, operation: Operation) -> Result<(), SendError> {
        let weight = operation.weight();
        // What weighs nothing is never too much: a close has to get through.
        if weight > 0 && self.posted.has_no_room_for(weight) {
            return Err(SendError::Full);
        }
        let outstanding = Outstanding::new(&self.posted, weight);
        let name = self.name;
        let task = move |event_loop: &EventLoop| {
            // It has arrived: what the loop does from here on no longer has to queue behind it.
            drop(outstanding);
            if let Some(resident) = name.resident(event_loop) {
                Connection::new(event_loop, resident.core()).perform(operation);
            }
        };
        self.event_loop.post(task).map_err(|_| SendError::Closed)?;
        if weight > 0 {
            self.hold_back_sources();
        }
        Ok(())
    }

    pub(super) fn posted(&self) -> &Arc<Posted> {
        &self.posted
    }
}

/// Reaches a connection's handler of type `H` from any thread.
///
/// ```no_run
/// use ruduo_net::{Buffer, Connection, Handler};
///
/// #[derive(Default)]
/// struct Session { muted: bool }
///
/// impl Handler for Session {
///     fn on_connect(&mut self, conn: &Connection) {
///         let session = conn.handle_for::<Session>();
///         std::thread::spawn(move || {
///             // ... some slow look-up, and then, on the connection's loop:
///             session.post(|session, conn| {
///                 session.muted = true;
///                 conn.send("you are muted\n");
///             })
///         });
///     }
///     fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
///         if self.muted { input.clear() } else { conn.send_buffer(input) }
///     }
/// }
/// ```
pub struct HandlerHandle<H> {
    handle: ConnectionHandle,
    _handler: PhantomData<fn(H)>,
}

impl<H: Handler> HandlerHandle<H> {
    pub(super) fn new(handle: ConnectionHandle) -> HandlerHandle<H> {
        HandlerHandle { handle, _handler: PhantomData }
    }

    /// The connection itself.
    #[must_use]
    pub fn connection(&self) -> &ConnectionHandle {
        &self.handle
    }

    /// Calls `f` with the handler and its connection, on the connection's loop, as one of its
    /// callbacks: never inside another one, and a panic closes the connection. Dropped if the
    /// connection ends first. If the handler is not an `H` the connection closes, and a line at
    /// error level says so.
    ///
    /// What `f` does to the connection takes the call's own place in the order of operations: it
    /// comes before all that any thread has posted since the call.
    ///
    /// # Errors
    /// [`SendError::Closed`] if the connection or its loop is known to be over.
    pub fn post(
        &self,
        f: impl FnOnce(&mut H, &Connection<'_>) + Send + 'static,
    ) -> Result<(), SendError> {
        if self.handle.posted.is_closed() {
            return Err(SendError::Closed);
        }
        let outstanding = Outstanding::new(&self.handle.posted, 0);
        let name = self.handle.name;
        let call = move |handler: &mut dyn Any, conn: &Connection<'_>| {
            if let Some(handler) = find::<H>(handler) {
                f(handler, conn);
            } else {
                let (id, wanted) = (conn.id(), type_name::<H>());
                log::error!("handle_for: the handler of connection {id} is not a {wanted}");
                conn.close();
            }
        };
        let task = move |event_loop: &EventLoop| {
            drop(outstanding);
            if let Some(resident) = name.resident(event_loop) {
                resident.call(event_loop, Box::new(call));
            }
        };
        self.handle.event_loop.post(task).map_err(|_| SendError::Closed)
    }
}

/// The handler itself, or what is in its box.
fn find<H: Handler>(handler: &mut dyn Any) -> Option<&mut H> {
    if handler.is::<H>() {
        return handler.downcast_mut();
    }
    let inside: &mut dyn Any = &mut **handler.downcast_mut::<Box<dyn Handler>>()?;
    inside.downcast_mut()
}

impl<H> Clone for HandlerHandle<H> {
    fn clone(&self) -> HandlerHandle<H> {
        HandlerHandle { handle: self.handle.clone(), _handler: PhantomData }
    }
}

impl<H> fmt::Debug for HandlerHandle<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HandlerHandle").field(&self.handle).finish()
    }
}

impl fmt::Debug for ConnectionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionHandle").field("id", &self.name.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::TcpClient;

    /// A connection may get the token of one that somebody still has a handle to.
    #[test]
    fn a_handle_does_not_reach_another_connection_with_the_same_token() {
        let event_loop = EventLoop::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let client = TcpClient::from_stream(&event_loop, stream).unwrap();
        let handle = client.on_message(|_, input| input.clear()).start().unwrap();
        let name = Name { id: ConnectionId::next(), ..handle.name };
        let earlier = ConnectionHandle { name, ..handle.clone() };
        let outcomes = Rc::new(Cell::new(None));
        let told = outcomes.clone();
        event_loop.defer(move |event_loop| {
            told.set(Some((earlier.close(), handle.send("x"))));
            event_loop.quit();
        });
        event_loop.run().unwrap();
        assert_eq!(outcomes.take(), Some((Err(SendError::Closed), Ok(()))));
    }
}
