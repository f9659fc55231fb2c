//! Where a server begins: a socket that listens.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use ruduo_reactor::EventLoop;

use super::{Server, Settings};
use crate::callbacks::Unset;
use crate::listener::{ListenOptions, Listener};
use crate::{Address, Addresses};

/// Servers on TCP: makes a [`Server`] that listens.
///
/// ```
/// use ruduo_net::TcpServer;
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// let server = TcpServer::bind(&event_loop, "127.0.0.1:0")?
///     .on_message(|conn, input| conn.send_buffer(input))
///     .start()?;
/// println!("listening on {}", server.local_addr());
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct TcpServer(());

/// Servers on a Unix socket, unix(7): makes a [`Server`] that listens. Its connections are like all
/// others, and can tell whose they are ([`Connection::peer_credentials`]).
///
/// [`Connection::peer_credentials`]: crate::Connection::peer_credentials
///
/// ```
/// use ruduo_net::UnixServer;
/// use ruduo_reactor::EventLoop;
///
/// let path = std::env::temp_dir().join(format!("ruduo-{}.sock", std::process::id()));
/// let event_loop = EventLoop::new()?;
/// UnixServer::builder(&event_loop)
///     .mode(0o600)
///     .bind(&path)?
///     .on_message(|conn, input| conn.send_buffer(input))
///     .start()?;
/// assert!(path.exists());
/// drop(event_loop);
/// assert!(!path.exists());
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct UnixServer(());

/// Settings of a TCP socket that must come before it is bound; from [`TcpServer::builder`].
#[derive(Clone, Copy, Debug)]
#[must_use = "call bind"]
pub struct TcpListenerBuilder<'l> {
    event_loop: &'l EventLoop,
    options: ListenOptions,
}

/// Settings of a Unix socket that must come before it is bound; from [`UnixServer::builder`].
#[derive(Clone, Copy, Debug)]
#[must_use = "call bind"]
pub struct UnixListenerBuilder<'l> {
    event_loop: &'l EventLoop,
    options: ListenOptions,
}

impl TcpServer {
    /// Binds and listens with the usual settings.
    ///
    /// # Errors
    /// As [`TcpListenerBuilder::bind`].
    pub fn bind(event_loop: &EventLoop, address: impl Into<Addresses>) -> io::Result<Server<'_>> {
        TcpServer::builder(event_loop).bind(address)
    }

    /// For settings that must come before binding.
    pub fn builder(event_loop: &EventLoop) -> TcpListenerBuilder<'_> {
        TcpListenerBuilder { event_loop, options: ListenOptions::default() }
    }

    /// A server on a socket that listens already, for example one that was inherited.
    ///
    /// # Errors
    /// If it can't be made non-blocking or is not a TCP socket.
    pub fn from_listener(event_loop: &EventLoop, listener: TcpListener) -> io::Result<Server<'_>> {
        Server::from_fd(event_loop, listener.into())
    }
}

impl UnixServer {
    /// Binds and listens with the usual settings.
    ///
    /// # Errors
    /// As [`UnixListenerBuilder::bind`].
    pub fn bind(event_loop: &EventLoop, address: impl Into<Addresses>) -> io::Result<Server<'_>> {
        UnixServer::builder(event_loop).bind(address)
    }

    /// For settings that must come before binding.
    pub fn builder(event_loop: &EventLoop) -> UnixListenerBuilder<'_> {
        UnixListenerBuilder { event_loop, options: ListenOptions::default() }
    }

    /// A server on a socket that listens already. Its file is left where it is at the end.
    ///
    /// # Errors
    /// If it can't be made non-blocking.
    pub fn from_listener(event_loop: &EventLoop, listener: UnixListener) -> io::Result<Server<'_>> {
        Server::from_fd(event_loop, listener.into())
    }
}

impl<'l> TcpListenerBuilder<'l> {
    /// Lets several sockets listen on one port, among which the kernel spreads the connections
    /// (SO_REUSEPORT). Off by default.
    pub fn reuse_port(mut self, reuse_port: bool) -> Self {
        self.options.reuse_port = reuse_port;
        self
    }

    /// Gives each loop that serves a socket of its own on the port, from which it accepts for itself
    /// (SO_REUSEPORT). Off by default: then one loop accepts, and hands the connections to the others.
    ///
    /// It saves each connection the way from one thread to another, a wakeup and some microseconds:
    /// for servers whose connections are many and short. The price: the kernel chooses the loop, by
    /// a hash of the addresses, so a loop that is busy, or blocked, gets its share all the same
    /// ([`Placement`](ruduo_reactor::Placement) has no say); and a connection that waits in the queue
    /// of a socket that is closed is reset, be it at the stop of the server or when a loop ends. Do
    /// not use it for few or long connections, nor with
    /// [`hand_over`](crate::ServerHandle::hand_over).
    pub fn acceptor_per_loop(mut self, acceptor_per_loop: bool) -> Self {
        self.options.per_loop = acceptor_per_loop;
        self
    }

    /// Makes an IPv6 socket refuse IPv4 peers. Off by default: `[::]` serves both.
    pub fn ipv6_only(mut self, ipv6_only: bool) -> Self {
        self.options.ipv6_only = ipv6_only;
        self
    }

    /// Whether accepted sockets have TCP_NODELAY. On by default: all that a callback sends leaves
    /// in one piece anyway, and Nagle's algorithm would only hold the piece back.
    pub fn nodelay(mut self, nodelay: bool) -> Self {
        self.options.nodelay = nodelay;
        self
    }

    /// How many connections may wait to be accepted; 4,096 by default. The system caps it
    /// (`net.core.somaxconn`).
    pub fn backlog(mut self, backlog: u16) -> Self {
        self.options.backlog = backlog;
        self
    }

    /// Binds and listens, on the first of the addresses that can be bound. Port 0 is any free one;
    /// [`ServerHandle::local_addr`](crate::ServerHandle::local_addr) tells which.
    ///
    /// # Errors
    /// What resolving the name, or bind(2) and listen(2), say, with the address. `InvalidInput` for
    /// the address of a Unix socket.
    pub fn bind(self, address: impl Into<Addresses>) -> io::Result<Server<'l>> {
        let wanted = |address: &Address| matches!(address, Address::Ip(_));
        listen(self.event_loop, address.into(), self.options, wanted, "UnixServer")
    }
}

impl<'l> UnixListenerBuilder<'l> {
    /// The permissions of the socket's file, for example `0o660`: who may write to it may connect.
    /// By default what the process's umask leaves. (The file's folder is a better guard where other
    /// systems than Linux, which look at it alone, matter.)
    pub fn mode(mut self, mode: u32) -> Self {
        self.options.mode = Some(mode);
        self
    }

    /// How many connections may wait to be accepted; 4,096 by default. The system caps it
    /// (`net.core.somaxconn`).
    pub fn backlog(mut self, backlog: u16) -> Self {
        self.options.backlog = backlog;
        self
    }

    /// Binds and listens: `"unix:/run/x.sock"` or a path, or `"unix:@name"`, a name without a file.
    ///
    /// A file that a server has left which is no more is replaced: it is connected to first, and
    /// removed only if that is refused. The file is removed when the server stops listening.
    ///
    /// A server that is about to listen refuses, too. So programs that use this library come and go
    /// in one folder one at a time, by its lock (flock(2)), and none takes another one's file. Who
    /// waits for the lock in vain, for a quarter of a second, removes nothing. A server of another
    /// kind is taken for dead in the moment between its bind(2) and listen(2).
    ///
    /// # Errors
    /// What bind(2) and listen(2) say, with the address: `AddrInUse` if somebody listens there, or
    /// something is there that is no socket, or that may not be removed for want of the folder's lock.
    /// `InvalidInput` for an address that is no Unix socket's.
    pub fn bind(self, address: impl Into<Addresses>) -> io::Result<Server<'l>> {
        let wanted = |address: &Address| matches!(address, Address::Unix(_));
        listen(self.event_loop, address.into(), self.options, wanted, "TcpServer")
    }
}

fn listen<'l>(
    event_loop: &'l EventLoop,
    addresses: Addresses,
    options: ListenOptions,
    wanted: impl Fn(&Address) -> bool,
    other: &str,
) -> io::Result<Server<'l>> {
    if let Some(address) = addresses.known().into_iter().flatten().find(|a| !wanted(a)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "listening on {address}: that is for {other}, or Server::bind, which takes all"
            ),
        ));
    }
    Server::listen(event_loop, &addresses, options)
}

impl<'l> Server<'l> {
    /// Binds and listens on whatever the address is, TCP or a Unix socket, with the usual settings:
    /// for programs that are told where to listen.
    ///
    /// # Errors
    /// As [`TcpListenerBuilder::bind`] and [`UnixListenerBuilder::bind`].
    pub fn bind(
        event_loop: &'l EventLoop,
        address: impl Into<Addresses>,
    ) -> io::Result<Server<'l>> {
        Server::listen(event_loop, &address.into(), ListenOptions::default())
    }

    fn listen(
        event_loop: &'l EventLoop,
        addresses: &Addresses,
        options: ListenOptions,
    ) -> io::Result<Server<'l>> {
        Ok(Server::new(event_loop, Listener::on(addresses, options)?))
    }

    fn from_fd(event_loop: &'l EventLoop, fd: OwnedFd) -> io::Result<Server<'l>> {
        Ok(Server::new(event_loop, Listener::from_fd(fd).map_err(taking_over)?))
    }

    fn new(event_loop: &'l EventLoop, listener: Listener) -> Server<'l> {
        Server { event_loop, listener, settings: Settings::default(), callbacks: Unset }
    }
}

fn taking_over(e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("taking over a listener: {e}"))
}
