//! The gateway of a smart home, as its devices and apps talk to it: over UDP, in two places.
//!
//! ```text
//!   an app, which knows nothing yet                         the gateway
//!   "whois" ──▶ group 224.0.0.50, port 4321 ──────────────▶ discovery
//!           ◀──────────────────────────────── to who asked, and to nobody else
//!   "read"  ──▶ the gateway's address, port 9898 ─────────▶ service
//!           ◀───────────────────────────────────────────────
//! ```
//!
//! Here both say back what they hear. Both are on one loop, or the service on several: nothing
//! blocks, and nothing happens while nobody asks. Who sends more than fits is told of in the log and
//! gets no answer, for half an answer would be a wrong one; whatever a datagram does to one of the
//! sockets, the other datagrams are answered.

mod common;

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{Long, Stop};
use ruduo::{
    Address, Datagram, DatagramError, EventLoop, Interface, UdpHandler, UdpServer, UdpSocket,
};

const HELP: &str = "\
Answers on two datagram sockets: discovery in a multicast group, and a service. Both echo.

Usage: gateway [--listen ADDRESS] [--threads N] [--discovery GROUP] [--interface I] [--buffer BYTES]

  --listen ADDRESS   where the service is; port 0 is any free one [0.0.0.0:9898]
  --threads N        threads for the service; 0: the one that discovery is on [0]
  --discovery GROUP  the IPv4 multicast group and port of discovery [224.0.0.50:4321]
  --interface I      where the group is joined: a name, a number, or an address of this machine
                     [the one that the system's routes lead to]
  --buffer BYTES     room for a datagram; a longer one is reported, and not answered [65535]
  --help             this text

SIGINT (Ctrl-C) and SIGTERM stop it; answers then have 5 seconds to leave.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads) = (Address::Ip(([0, 0, 0, 0], 9898).into()), 0);
        let mut discovery = Address::Ip(([224, 0, 0, 50], 4321).into());
        let (mut interface, mut buffer) = (Interface::Any, 65_535);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("discovery") => discovery = arguments.value()?,
                Long("interface") => interface = arguments.value()?,
                Long("buffer") => buffer = arguments.value()?,
                other => return Err(other.unexpected().into()),
            }
        }
        let (group, port) = group(&discovery)?;
        if buffer == 0 {
            return Err(lexopt::Error::from("--buffer 0: no datagram has room there").into());
        }
        let event_loop = EventLoop::new()?;
        let service = UdpServer::bind(&event_loop, listen)
            .threads(threads)
            .receive_size(buffer)
            .serve(|_| Echo::new("service"))?;
        // Several programs of this machine may be in the group.
        let discovery = UdpServer::bind(&event_loop, (Ipv4Addr::UNSPECIFIED, port))
            .reuse_address(true)
            .join(group, interface)
            .receive_size(buffer)
            .serve(|_| Echo::new("discovery"))?;
        for sockets in [&service, &discovery] {
            sockets.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        }
        common::announce(format_args!("listening on {}", service.local_addr()))?;
        let port = discovery.local_addr().port().unwrap_or(port);
        common::announce(format_args!("listening on {group}:{port}"))?;
        Ok(event_loop.run()?)
    })
}

fn group(discovery: &Address) -> Result<(Ipv4Addr, u16), Stop> {
    match discovery {
        Address::Ip(std::net::SocketAddr::V4(v4)) if v4.ip().is_multicast() => {
            Ok((*v4.ip(), v4.port()))
        }
        _ => {
            let why = format!("--discovery {discovery}: no IPv4 multicast group and port");
            Err(lexopt::Error::from(why).into())
        }
    }
}

/// Whoever sends nonsense must not fill the disk with our log.
const A_LINE_EACH: Duration = Duration::from_secs(1);

/// One socket at work.
struct Echo {
    what: &'static str,
    told: Option<Instant>,
    /// Datagrams that were too long since then.
    untold: u64,
}

impl Echo {
    fn new(what: &'static str) -> Echo {
        Echo { what, told: None, untold: 0 }
    }

    fn tell_of_truncated(&mut self, datagram: &Datagram) {
        if self.told.is_some_and(|told| told.elapsed() < A_LINE_EACH) {
            self.untold += 1;
            return;
        }
        let (peer, size, room) = (datagram.peer(), datagram.size(), datagram.bytes().len());
        log::warn!(
            "{}: a datagram of {peer} has {size} bytes, of which {room} fit (see --buffer); \
             {} more since the last such line",
            self.what,
            self.untold
        );
        self.told = Some(Instant::now());
        self.untold = 0;
    }
}

impl UdpHandler for Echo {
    fn on_datagram(&mut self, socket: &UdpSocket, datagram: &Datagram) {
        if datagram.is_truncated() {
            return self.tell_of_truncated(datagram);
        }
        log::debug!("{}: {} bytes of {}", self.what, datagram.size(), datagram.peer());
        socket.answer(datagram, datagram.bytes());
    }

    /// An answer that nobody wanted, or that no way leads to: the asker's loss.
    fn on_error(&mut self, _socket: &UdpSocket, error: &DatagramError) {
        log::debug!("{}: {error}", self.what);
    }
}
