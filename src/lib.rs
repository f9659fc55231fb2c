//! A reactor in the manner of muduo: one event loop per thread, callbacks, straight on the
//! kernel's readiness calls. No async runtime underneath.
//!
//! ```no_run
//! use ruduo::{EventLoop, TcpServer};
//!
//! fn main() -> std::io::Result<()> {
//!     let event_loop = EventLoop::new()?;
//!     TcpServer::bind(&event_loop, "127.0.0.1:2007")?
//!         .threads(4)
//!         .on_message(|conn, input| conn.send_buffer(input))
//!         .start()?;
//!     event_loop.run()
//! }
//! ```
//!
//! # What to read first
//!
//! The [guide](https://docs.rs/crate/ruduo/latest/source/docs/guide.md) leads from here to a framed
//! protocol with state, timers, broadcast and a graceful stop. Then, or instead:
//!
//! - [`TcpServer`]: a server by closures, as above, or with a typed [`Handler`] for each
//!   connection. The [`Connection`] is what callbacks do things to, the [`Buffer`] is where the
//!   bytes are.
//! - [`LineCodec`] and [`FrameCodec`] find the messages in a stream.
//! - [`TcpClient`]: a connection that this side begins, and begins again.
//! - [`UdpServer`] and [`UdpClient`]: datagrams, by closures or a [`UdpHandler`].
//! - [`ServerHandle`] stops a server gracefully, [`ConnectionHandle`] reaches a connection from
//!   other threads.
//! - [`EventLoop`] for timers, tasks, signals, and channels of your own; [`LoopHandle`] to reach it
//!   from other threads; [`LoopPool`] for several of them.
//! - [`Poller`] alone, for readiness without callbacks.
//!
//! This crate only joins two others under one name: [`ruduo_reactor`], which knows no protocols,
//! and [`ruduo_net`]. How they work inside is told in
//! [`docs/architecture.md`](https://docs.rs/crate/ruduo/latest/source/docs/architecture.md).

#![forbid(unsafe_code)]

#[cfg(feature = "listenfd")]
pub use ruduo_net::ListenFd;
pub use ruduo_net::{
    Address, Addresses, Buffer, Client, ClientHandle, CloseReason, ClosedCounts, ConnectError,
    ConnectFailure, Connected, Connection, ConnectionHandle, ConnectionId, Datagram, DatagramError,
    DecodeError, EncodeError, FrameCodec, Handler, HandlerHandle, Interface, Keepalive, LineCodec,
    ParseAddressError, PeerCredentials, RefusedCounts, Relay, Retry, SendError, Server,
    ServerHandle, ServerMetrics, StopReport, TcpClient, TcpListenerBuilder, TcpServer, UdpBuilder,
    UdpClient, UdpHandle, UdpHandler, UdpMetrics, UdpServer, UdpSocket, UdpSocketHandle,
    UnixAddress, UnixClient, UnixListenerBuilder, UnixServer, WhenFull, callbacks, handler_fn,
};
pub use ruduo_reactor::{
    Channel, Event, EventLoop, EventLoopBuilder, Events, Interest, LoopHandle, LoopMetrics,
    LoopPool, LoopPoolBuilder, LoopThread, Mode, Notifier, NotifierKind, PanicPolicy, Panicked,
    Placement, Poller, PollerKind, PostError, Ready, Signal, SignalId, Source, TimerId, Token,
};

/// The README's code is compiled too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
