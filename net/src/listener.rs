//! Making a listening socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{Backlog, getsockopt, listen, setsockopt, sockopt};
use ruduo_reactor::sys::socket;

use crate::socket_file::SocketFile;
use crate::{Address, Addresses};

/// What must be set before a socket listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListenOptions {
    pub(crate) reuse_port: bool,
    pub(crate) ipv6_only: bool,
    pub(crate) nodelay: bool,
    pub(crate) backlog: u16,
    /// It is one of several, each of which a loop has to itself.
    pub(crate) per_loop: bool,
    /// Permissions of the file of a Unix socket; those the process gives by default otherwise.
    pub(crate) mode: Option<u32>,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions {
            reuse_port: false,
            ipv6_only: false,
            nodelay: true,
            backlog: 4096,
            per_loop: false,
            mode: None,
        }
    }
}

/// A socket that listens. The file of a Unix socket goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    // Closed first: a file without a listener refuses, which a newcomer takes for stale.
    fd: OwnedFd,
    address: Address,
    options: ListenOptions,
    file: Option<SocketFile>,
}

impl Listener {
    /// Listens on the first of the addresses that can be bound.
    pub(crate) fn on(addresses: &Addresses, options: ListenOptions) -> io::Result<Listener> {
        addresses.open("listening on", |address| Listener::at(address, options))
    }

    fn at(address: &Address, options: ListenOptions) -> io::Result<Listener> {
        let fd = socket::stream(address)?;
        if let Address::Ip(ip) = address {
            // A restarted server must not wait for the TIME_WAIT of its predecessor's connections.
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
            if options.reuse_port || options.per_loop {
                setsockopt(&fd, sockopt::ReusePort, &true)?;
            }
            if ip.is_ipv6() {
                // Each system has a default of its own.
                setsockopt(&fd, sockopt::Ipv6V6Only, &options.ipv6_only)?;
            }
        }
        let mut file = match address.path() {
            Some(path) => Some(SocketFile::bind(fd.as_fd(), path, address)?),
            None => {
                socket::bind(fd.as_fd(), address)?;
                None
            }
        };
        if let (Some(file), Some(mode)) = (&file, options.mode) {
            // Before `listen`, so nobody could have connected while it was too permissive.
            file.set_mode(mode)?;
        }
        let backlog = Backlog::new(i32::from(options.backlog)).unwrap_or(Backlog::MAXCONN);
        listen(&fd, backlog)?;
        if let Some(file) = &mut file {
            file.settle();
        }
        Listener::of_listening(fd, file, options)
    }

    /// One that listens already. Its file, if it has one, is somebody else's.
    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Listener> {
        if !getsockopt(&fd, sockopt::AcceptConn)? {
            let why = "it is a socket that does not listen";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        socket::take_over(fd.as_fd())?;
        Listener::of_listening(fd, None, ListenOptions::default())
    }

    fn of_listening(
        fd: OwnedFd,
        file: Option<SocketFile>,
        options: ListenOptions,
    ) -> io::Result<Listener> {
        let address = socket::local_address(fd.as_fd())?;
        if matches!(address, Address::Ip(_)) {
            // What accepted sockets inherit costs no system call for each of them.
            setsockopt(&fd, sockopt::TcpNoDelay, &options.nodelay)?;
        }
        Ok(Listener { fd, address, options, file })
    }

    /// Whether each loop is to have one to itself.
    pub(crate) fn is_one_of_several(&self) -> bool {
        self.options.per_loop
    }

    /// This listener; and if each loop is to have one to itself, as many more on the same port as
    /// there are other loops.
    pub(crate) fn with_siblings(self, loops: usize) -> io::Result<Vec<Arc<Listener>>> {
        let (address, options) = (self.address.clone(), self.options);
        let mut all = vec![Arc::new(self)];
        while options.per_loop && all.len() < loops {
            let sibling = Listener::at(&address, options).map_err(|e| {
                let why = format!("listening on {address} once more, for another loop: {e}");
                io::Error::new(e.kind(), why)
            })?;
            all.push(Arc::new(sibling));
        }
        Ok(all)
    }

    /// Leaves the file of a Unix socket where it is at the end: somebody else listens there too,
    /// and goes on when we stop.
    pub(crate) fn leave_file(&self) {
        if let Some(file) = &self.file {
            file.leave();
        }
    }

    /// Where it listens: the real port, also after binding port 0.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
