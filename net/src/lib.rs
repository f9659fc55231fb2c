//! Servers and clients on the reactor of ruduo: buffers, connections, handlers.
//!
//! To read the source, follow a byte: `acceptor.rs` takes a connection off the listener,
//! `server/serving.rs` puts it on a loop, `connection/endpoint/` receives into a [`Buffer`] and
//! calls the [`Handler`], `connection/output.rs` holds what the handler sends, and the endpoint
//! hands that to the kernel. What happens when is decided in `connection/state/`.

#![forbid(unsafe_code)]

mod acceptor;
mod address;
mod buffer;
mod by_id;
pub mod callbacks;
mod client;
mod codec;
mod connection;
mod context;
mod end;
mod handler;
mod lender;
mod limits;
mod listener;
mod loops;
mod metrics;
mod place;
mod posted;
mod relay;
mod seldom;
mod server;
mod signals;
mod socket_file;
mod tcp_options;
mod transport;
mod udp;

pub use address::Addresses;
pub use buffer::Buffer;
pub use client::{
    Client, ClientHandle, ConnectError, ConnectFailure, Connected, Retry, TcpClient, UnixClient,
};
pub use codec::{DecodeError, EncodeError, FrameCodec, LineCodec};
pub use connection::{
    CloseReason, Connection, ConnectionHandle, HandlerHandle, PeerCredentials, SendError,
};
pub use handler::{Handler, handler_fn};
#[cfg(feature = "listenfd")]
pub use listenfd::ListenFd;
pub use metrics::{ClosedCounts, RefusedCounts, ServerMetrics, StopReport};
pub use place::ConnectionId;
pub use relay::Relay;
pub use ruduo_reactor::sys::address::{Address, ParseAddressError, UnixAddress};
pub use ruduo_reactor::sys::datagram_options::Interface;
pub use server::{
    Server, ServerHandle, TcpListenerBuilder, TcpServer, UnixListenerBuilder, UnixServer,
};
pub use tcp_options::Keepalive;
pub use udp::{
    Datagram, DatagramError, UdpBuilder, UdpClient, UdpHandle, UdpHandler, UdpMetrics, UdpServer,
    UdpSocket, UdpSocketHandle, WhenFull,
};
