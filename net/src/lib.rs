//! TCP servers on the reactor of ruduo: buffers, connections, handlers.
//!
//! To read the source, follow a byte: the [`acceptor`](TcpServer) takes a connection,
//! `server/serving.rs` puts it on a loop, `connection/endpoint.rs` receives into a [`Buffer`] and
//! calls the [`Handler`], `connection/output.rs` holds what it sends, and the endpoint hands that
//! to the kernel. The rules of when are in `connection/state.rs`.

#![forbid(unsafe_code)]

mod acceptor;
mod buffer;
mod client;
mod codec;
mod connection;
mod context;
mod handler;
mod lender;
mod limits;
mod listener;
mod registry;
mod server;
mod transport;

pub use buffer::Buffer;
pub use client::TcpClient;
pub use codec::{DecodeError, EncodeError, FrameCodec, LineCodec};
pub use connection::{CloseReason, Connection, ConnectionHandle, HandlerHandle, SendError};
pub use handler::{Handler, handler_fn};
pub use registry::ConnectionId;
pub use server::{ListenerBuilder, ServerHandle, TcpServer};

/// The types in which [`TcpServer`] keeps its closures. Programs need not name them.
pub mod callbacks {
    pub use crate::server::{
        CallbackHandler, Callbacks, CanStart, NoMessage, SomeCallbacks, Unset,
    };
}
