//! Datagrams: how a socket is described, or one for each loop.
//!
//! This file is the description. [`options`] makes the sockets, [`serving`] puts them on their
//! loops, [`endpoint`] is one at work: it calls the handler of [`callbacks`] with a [`socket`] and a
//! [`datagram`], and what is sent waits in a [`queue`]. [`core`] is what of it handles reach, and
//! [`handle`] are those.

pub(crate) mod callbacks;
mod core;
mod datagram;
mod endpoint;
mod handle;
mod metrics;
mod options;
mod queue;
mod serving;
mod socket;

use std::fmt;
use std::io;
use std::net::IpAddr;

use ruduo_reactor::sys::datagram::MAX_DATAGRAM;
use ruduo_reactor::{EventLoop, LoopPool};

pub use self::callbacks::UdpHandler;
use self::callbacks::{CanStartUdp, SomeUdpCallbacks, UdpCallbacks};
pub use self::datagram::{Datagram, DatagramError};
pub use self::handle::{UdpHandle, UdpSocketHandle};
pub use self::metrics::UdpMetrics;
use self::options::Options;
pub use self::queue::WhenFull;
pub use self::socket::UdpSocket;
use crate::callbacks::Unset;
use crate::loops::Loops;
use crate::{Addresses, Interface};

/// Datagram sockets with an address of their own: makes a [`UdpBuilder`].
///
/// ```no_run
/// use ruduo_net::UdpServer;
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// UdpServer::bind(&event_loop, "127.0.0.1:2007")
///     .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
///     .start()?;
/// event_loop.run()?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct UdpServer(());

/// Datagram sockets that are connected to one peer: makes a [`UdpBuilder`].
///
/// Such a socket receives from that peer only, and hears when nobody is there: `on_error` gets
/// `ConnectionRefused`, and the socket goes on. (A Unix socket loses its peer then, and what it sends
/// afterwards is `NotConnected`.)
///
/// ```no_run
/// use ruduo_net::UdpClient;
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// UdpClient::connect(&event_loop, "127.0.0.1:2007")
///     .on_start(|socket| socket.send("hello"))
///     .on_datagram(|socket, datagram| {
///         println!("{} bytes came back", datagram.bytes().len());
///         socket.event_loop().quit();
///     })
///     .on_error(|_socket, error| eprintln!("{error}"))
///     .start()?;
/// event_loop.run()?;
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct UdpClient(());

impl UdpServer {
    /// A socket at `address`: over IP, or, by `"unix:/run/x.sock"` or `"unix:@name"`, a Unix datagram
    /// socket. Nothing happens before [`start`](UdpBuilder::start) or [`serve`](UdpBuilder::serve).
    ///
    /// The file of a Unix socket that a server has left which is no more is replaced; at the end it
    /// is removed. Its peers need a name of their own if they are to be answered; a datagram for one
    /// that does not read, so that its kernel takes no more, is lost, and `on_error` gets
    /// `WouldBlock`.
    ///
    /// At `"0.0.0.0:2007"` or `"[::]:2007"` it serves all addresses of the machine, and an
    /// [`answer`](UdpSocket::answer) leaves from the one that was asked.
    ///
    /// `"[::]:2007"` serves IPv4 too, unless [`ipv6_only`](UdpBuilder::ipv6_only); such peers have
    /// addresses like `[::ffff:127.0.0.1]:7`.
    pub fn bind(event_loop: &EventLoop, address: impl Into<Addresses>) -> UdpBuilder<'_> {
        let local = Some(address.into());
        UdpBuilder::new(event_loop, Options { local, ..Options::default() })
    }
}

impl UdpClient {
    /// A socket that is connected to `target`, from an address that the system chooses (or
    /// [`bind_local`](UdpBuilder::bind_local)). Nothing happens before
    /// [`start`](UdpBuilder::start) or [`serve`](UdpBuilder::serve), which resolves a name and may
    /// block for that; of several addresses the first one that can be connected to is taken.
    pub fn connect(event_loop: &EventLoop, target: impl Into<Addresses>) -> UdpBuilder<'_> {
        let target = Some(target.into());
        UdpBuilder::new(event_loop, Options { target, ..Options::default() })
    }
}

/// A datagram socket, or one for each loop, as it is being described.
///
/// Say what it does in one of two ways: closures without state of their own, then
/// [`start`](UdpBuilder::start); or a [`UdpHandler`] made for each loop, by
/// [`serve`](UdpBuilder::serve). Both open the sockets, give them to the loops and return a
/// [`UdpHandle`], which may be dropped.
///
/// One that does nothing with its datagrams cannot be started:
///
/// ```compile_fail,E0277
/// use ruduo_net::UdpServer;
/// use ruduo_reactor::EventLoop;
///
/// let event_loop = EventLoop::new()?;
/// UdpServer::bind(&event_loop, "127.0.0.1:0").on_start(|socket| socket.close()).start()?;
/// # std::io::Result::Ok(())
/// ```
#[must_use = "nothing happens before `start` or `serve`"]
pub struct UdpBuilder<'l, C = Unset> {
    event_loop: &'l EventLoop,
    options: Options,
    settings: Settings,
    loops: Loops,
    callbacks: C,
}

/// What matters while it runs.
#[derive(Clone, Debug)]
struct Settings {
    receive_size: usize,
    batch: usize,
    queue_limit: usize,
    when_full: WhenFull,
    timestamps: bool,
}

/// The most datagrams that one system call receives.
const MAX_BATCH: usize = 1024;

/// The most memory for a batch: an address space is large, but a mistake may be larger.
const MAX_ROOM: usize = 1 << 30;

impl Settings {
    /// Refuses what makes no sense.
    fn check(&self) -> io::Result<()> {
        let why = if !(1..=MAX_BATCH).contains(&self.batch) {
            format!("a batch has 1 to {MAX_BATCH} datagrams, and not {}", self.batch)
        } else if self.receive_size.saturating_mul(self.batch) > MAX_ROOM {
            let Settings { batch, receive_size, .. } = self;
            format!("room for {batch} datagrams of {receive_size} bytes is more than 1 GiB")
        } else {
            return Ok(());
        };
        Err(io::Error::new(io::ErrorKind::InvalidInput, why))
    }
}

impl<'l> UdpBuilder<'l> {
    fn new(event_loop: &'l EventLoop, options: Options) -> UdpBuilder<'l> {
        let settings = Settings {
            receive_size: MAX_DATAGRAM,
            batch: 32,
            queue_limit: 1024 * 1024,
            when_full: WhenFull::default(),
            timestamps: false,
        };
        UdpBuilder { event_loop, options, settings, loops: Loops::default(), callbacks: Unset }
    }
}

/// Settings of one kind: a value that is set.
macro_rules! setting {
    ($(#[$doc:meta])* $name:ident: $type:ty => $($field:ident).+) => {
        $(#[$doc])*
        pub fn $name(mut self, $name: $type) -> Self {
            self.$($field).+ = $name.into();
            self
        }
    };
}

/// # Receiving and sending
impl<C> UdpBuilder<'_, C> {
    /// How many bytes of a datagram there is room for; what is beyond is cut off, which
    /// [`Datagram::is_truncated`] says. 65,535 by default, which is enough for any over IP (a Unix
    /// datagram may be larger).
    ///
    /// The room for a batch belongs to the loop, which lends it to one socket after the other; of it
    /// only what has been written to takes memory.
    pub fn receive_size(mut self, bytes: usize) -> Self {
        self.settings.receive_size = bytes.max(1);
        self
    }

    setting! {
        /// How many datagrams are received at most before other sources of the loop have their turn,
        /// 32 by default; and, on Linux, received in one system call and sent so (recvmmsg and
        /// sendmmsg). With 1 each has a call of its own; 1,024 is the most. With [`gro`](UdpBuilder::gro) each of them
        /// may be up to 64.
        batch: usize => settings.batch
    }

    setting! {
        /// How much may wait to be sent, in bytes; 1 MiB by default. See
        /// [`UdpSocket::queued`] for what counts. A single datagram that is larger is not sent either.
        queue_limit: usize => settings.queue_limit
    }

    setting! {
        /// What is done with a datagram for which the queue has no room. It is dropped, by default.
        when_full: WhenFull => settings.when_full
    }

    /// Whether [`Datagram::received_at`] tells when the kernel got each datagram. Off by default.
    /// Datagrams of Unix sockets have no such time.
    pub fn timestamps(mut self, timestamps: bool) -> Self {
        self.settings.timestamps = timestamps;
        self.options.timestamps = timestamps;
        self
    }

    setting! {
        /// Lets the kernel receive datagrams of one peer and size together (UDP_GRO). The callback
        /// gets them one by one all the same, but they come with less work. Off by default; where
        /// the system has no such thing it stays off.
        gro: bool => options.gro
    }

    setting! {
        /// Hands the kernel datagrams of one size to one peer together, which it cuts apart
        /// (UDP_SEGMENT). Off by default; where the system or the way out cannot do it, they are
        /// sent one by one.
        gso: bool => options.gso
    }

    setting! {
        /// How much the kernel keeps of what has come and is not received yet, in bytes
        /// (SO_RCVBUF); what is beyond is lost, and counted ([`UdpMetrics::dropped_by_kernel`]). The
        /// system has a default and a limit (`net.core.rmem_default`, `rmem_max`).
        kernel_receive_buffer: usize => options.kernel_receives
    }

    setting! {
        /// How much the kernel keeps of what is sent and has not left yet, in bytes (SO_SNDBUF).
        kernel_send_buffer: usize => options.kernel_sends
    }
}

/// # Addresses
impl<C> UdpBuilder<'_, C> {
    /// From which address a connected socket sends, and where it is answered. Port 0 is any free
    /// one. A Unix socket needs one to be answered at all.
    pub fn bind_local(mut self, address: impl Into<Addresses>) -> Self {
        self.options.local = Some(address.into());
        self
    }

    setting! {
        /// Lets several sockets have one port, among which the system spreads what comes, by the
        /// addresses of both sides (SO_REUSEPORT). With [`threads`](UdpBuilder::threads) or a pool
        /// it is on. (Not every system spreads: macOS and OpenBSD give all to one of them.)
        reuse_port: bool => options.reuse_port
    }

    setting! {
        /// Lets several programs have one port, each of which receives what is sent to a group that
        /// it has joined (SO_REUSEADDR).
        reuse_address: bool => options.reuse_address
    }

    setting! {
        /// Makes an IPv6 socket refuse IPv4 peers. Off by default: `[::]` serves both.
        ipv6_only: bool => options.ipv6_only
    }

    setting! {
        /// The permissions of a Unix socket's file, for example `0o660`: who may write to it may
        /// send. By default what the process's umask leaves.
        mode: u32 => options.mode
    }

    setting! {
        /// Allows sending to broadcast addresses (SO_BROADCAST). Off by default, which is an error
        /// of permission.
        broadcast: bool => options.broadcast
    }

    setting! {
        /// Over how many routers what is sent may go (IP_TTL, IPV6_UNICAST_HOPS).
        ttl: u8 => options.ttl
    }
}

/// # Multicast
impl<C> UdpBuilder<'_, C> {
    /// Joins a group on an interface: what is sent to it and this socket's port comes here too. May
    /// be called for several. An interface is named, numbered, or, for IPv4, given by its address:
    /// `"eth0"`, `2`, `"192.168.1.7"`; [`Interface::Any`] is the system's choice.
    ///
    /// Only groups that a socket has joined itself come to it. With several loops the first one
    /// joins, so that a datagram comes once.
    pub fn join(mut self, group: impl Into<IpAddr>, interface: impl Into<Interface>) -> Self {
        self.options.groups.push((group.into(), interface.into()));
        self
    }

    /// On which interface what is sent to groups leaves; the system chooses by default.
    pub fn multicast_interface(mut self, interface: impl Into<Interface>) -> Self {
        self.options.multicast_interface = Some(interface.into());
        self
    }

    setting! {
        /// Whether what is sent to groups is received on this machine too. It is, by default.
        multicast_loop: bool => options.multicast_loop
    }

    setting! {
        /// Over how many routers what is sent to groups may go; 1, the default, is none: it stays in
        /// the network.
        multicast_ttl: u8 => options.multicast_ttl
    }
}

/// # Loops
impl<C> UdpBuilder<'_, C> {
    setting! {
        /// How many threads serve, each with a loop and a socket of its own on the port, among which
        /// the system spreads what comes (SO_REUSEPORT). With 0, the default, the loop it was
        /// described on serves. The threads end with the sockets. What is sent to all, by broadcast,
        /// comes to each of the sockets.
        threads: usize => loops.threads
    }

    /// The same on the loops of a pool, that others may use too.
    pub fn pool(mut self, pool: &LoopPool) -> Self {
        self.loops.pool = Some(pool.clone());
        self
    }

    /// What own threads are called: this and a number; "ruduo" by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.loops.name = Some(name.into());
        self
    }
}

/// # Behaviour by closures
///
/// They are shared by all sockets and threads. The callbacks are those of [`UdpHandler`].
impl<'l, C: SomeUdpCallbacks> UdpBuilder<'l, C> {
    /// See [`UdpHandler::on_datagram`].
    pub fn on_datagram<F>(self, f: F) -> UdpBuilder<'l, UdpCallbacks<F>>
    where
        F: Fn(&UdpSocket<'_>, &Datagram<'_>) + Send + Sync + 'static,
    {
        self.map_callbacks(|callbacks| {
            let UdpCallbacks { rest, .. } = callbacks;
            UdpCallbacks { datagram: f, rest }
        })
    }

    /// See [`UdpHandler::on_start`].
    pub fn on_start(
        self,
        f: impl Fn(&UdpSocket<'_>) + Send + Sync + 'static,
    ) -> UdpBuilder<'l, UdpCallbacks<C::Datagram>> {
        self.map_callbacks(|mut callbacks| {
            callbacks.rest.start = Some(Box::new(f));
            callbacks
        })
    }

    /// See [`UdpHandler::on_error`].
    pub fn on_error(
        self,
        f: impl Fn(&UdpSocket<'_>, &DatagramError) + Send + Sync + 'static,
    ) -> UdpBuilder<'l, UdpCallbacks<C::Datagram>> {
        self.map_callbacks(|mut callbacks| {
            callbacks.rest.error = Some(Box::new(f));
            callbacks
        })
    }

    /// See [`UdpHandler::on_drained`].
    pub fn on_drained(
        self,
        f: impl Fn(&UdpSocket<'_>) + Send + Sync + 'static,
    ) -> UdpBuilder<'l, UdpCallbacks<C::Datagram>> {
        self.map_callbacks(|mut callbacks| {
            callbacks.rest.drained = Some(Box::new(f));
            callbacks
        })
    }

    /// See [`UdpHandler::on_close`].
    pub fn on_close(
        self,
        f: impl Fn(&UdpSocket<'_>) + Send + Sync + 'static,
    ) -> UdpBuilder<'l, UdpCallbacks<C::Datagram>> {
        self.map_callbacks(|mut callbacks| {
            callbacks.rest.close = Some(Box::new(f));
            callbacks
        })
    }

    fn map_callbacks<D>(
        self,
        f: impl FnOnce(UdpCallbacks<C::Datagram>) -> UdpCallbacks<D>,
    ) -> UdpBuilder<'l, UdpCallbacks<D>> {
        let UdpBuilder { event_loop, options, settings, loops, callbacks } = self;
        let callbacks = f(callbacks.into_callbacks());
        UdpBuilder { event_loop, options, settings, loops, callbacks }
    }
}

/// # Starting
impl<C: CanStartUdp> UdpBuilder<'_, C> {
    /// Opens the sockets and serves them with the closures.
    ///
    /// # Errors
    /// What resolving a name, socket(2), bind(2), connect(2) or an option say, with the address or
    /// the group; settings that contradict each other; what kept threads from starting.
    pub fn start(self) -> io::Result<UdpHandle> {
        let UdpBuilder { event_loop, options, settings, loops, callbacks } = self;
        let handler = callbacks.into_handler();
        serving::start(event_loop, &options, &settings, &loops, move |_| handler.clone())
    }
}

impl UdpBuilder<'_> {
    /// Opens the sockets and serves each with a handler, which `make_handler` makes on its loop.
    ///
    /// ```no_run
    /// use ruduo_net::{Datagram, UdpHandler, UdpServer, UdpSocket};
    /// use ruduo_reactor::EventLoop;
    ///
    /// #[derive(Default)]
    /// struct Counter(u64);
    ///
    /// impl UdpHandler for Counter {
    ///     fn on_datagram(&mut self, socket: &UdpSocket, datagram: &Datagram) {
    ///         self.0 += 1;
    ///         socket.answer(datagram, self.0.to_string());
    ///     }
    /// }
    ///
    /// let event_loop = EventLoop::new()?;
    /// UdpServer::bind(&event_loop, "127.0.0.1:2007").threads(2).serve(|_loop| Counter::default())?;
    /// event_loop.run()?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// As [`start`](UdpBuilder::start).
    pub fn serve<P, H>(self, make_handler: P) -> io::Result<UdpHandle>
    where
        P: Fn(&EventLoop) -> H + Send + Sync + 'static,
        H: UdpHandler,
    {
        let UdpBuilder { event_loop, options, settings, loops, .. } = self;
        serving::start(event_loop, &options, &settings, &loops, make_handler)
    }
}

impl<C> fmt::Debug for UdpBuilder<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UdpBuilder")
            .field("options", &self.options)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
