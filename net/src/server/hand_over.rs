//! A listener outlives the program that made it: handed over to a successor, or inherited.
//!
//! ```text
//!   old program                          new program
//!   serves; hand_over ────starts───────▶ LISTEN_FDS: from_listenfd, serves
//!   serves on                            serves too, from the same queue
//!   stop: drains, ends                   serves
//! ```
//!
//! Both hold the same socket, whose queue of connections is the kernel's. It lives for as long as
//! either has it open, so nobody is refused and nobody is lost in between.

use std::io;
use std::os::fd::AsFd;
use std::process::{Child, Command};
use std::sync::{Arc, Weak};

use ruduo_reactor::sys::inherit;

use super::ServerHandle;
use crate::listener::Listener;

impl ServerHandle {
    /// Starts a program that inherits the listeners of these servers, in this order, by systemd's
    /// protocol: as descriptors from 3 on, with their number in the variable `LISTEN_FDS`. It gets
    /// them by `Server::from_listenfd` (feature `listenfd`), by [`TcpServer::from_listener`], or by
    /// whatever else knows that protocol without the variable `LISTEN_PID`, which cannot be set
    /// before the program's process exists.
    ///
    /// These servers go on serving, as if nothing had happened; both programs accept what comes,
    /// until one of them is stopped. So stop the old one when the new one says that it serves, and
    /// if it never does, nothing is lost. (The example `hand_over` does so.) The file of a Unix
    /// socket is the successor's now, and not removed by this program at its end.
    ///
    /// In this program the listeners remain close-on-exec; no other program that it starts gets
    /// them. From any thread.
    ///
    /// [`TcpServer::from_listener`]: crate::TcpServer::from_listener
    ///
    /// # Errors
    /// `InvalidInput` for no servers; `NotConnected` if one of them listens no more; `Unsupported`
    /// for one with an [`acceptor_per_loop`](crate::TcpListenerBuilder::acceptor_per_loop), for what
    /// waits in the queues of sockets that the successor does not accept from would be lost;
    /// otherwise what kept the program from being started.
    pub fn hand_over(servers: &[&ServerHandle], mut command: Command) -> io::Result<Child> {
        if servers.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "handing over: there is no server whose listener the program could have",
            ));
        }
        let listeners = servers.iter().map(|server| server.listener());
        let listeners = listeners.collect::<io::Result<Vec<Arc<Listener>>>>()?;
        let fds: Vec<_> = listeners.iter().map(|listener| listener.as_fd()).collect();
        command.env("LISTEN_FDS", fds.len().to_string());
        for leftover in ["LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_FDS_FIRST_FD"] {
            command.env_remove(leftover);
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let child = inherit::spawn_with(command, &fds).map_err(|e| {
            io::Error::new(e.kind(), format!("handing listeners over to {program}: {e}"))
        })?;
        for listener in &listeners {
            listener.leave_file();
        }
        Ok(child)
    }

    fn listener(&self) -> io::Result<Arc<Listener>> {
        let error = |kind, why| {
            let address = self.local_addr();
            Err(io::Error::new(kind, format!("handing over the listener on {address}: {why}")))
        };
        match &self.shared.listeners[..] {
            [one] => match Weak::upgrade(one) {
                Some(listener) if listener.is_one_of_several() => {
                    error(io::ErrorKind::Unsupported, "it is one of an acceptor per loop")
                }
                Some(listener) => Ok(listener),
                None => error(io::ErrorKind::NotConnected, "the server does not listen any more"),
            },
            _ => error(io::ErrorKind::Unsupported, "there is one for each loop"),
        }
    }
}

#[cfg(feature = "listenfd")]
impl<'l> super::Server<'l> {
    /// A server on an inherited listener, the one with this index among those of `inherited`, TCP
    /// or Unix: from systemd (socket activation), from a tool like `systemfd`, or from a predecessor
    /// ([`ServerHandle::hand_over`]). `None` if there is none. The file of a Unix socket is left
    /// where it is at the end.
    ///
    /// Call `ListenFd::from_env` once, early in `main`: it takes the variables out of the
    /// environment, which is no good while other threads run.
    ///
    /// ```no_run
    /// use ruduo_net::{ListenFd, Server};
    /// use ruduo_reactor::EventLoop;
    ///
    /// let mut inherited = ListenFd::from_env();
    /// let event_loop = EventLoop::new()?;
    /// let server = match Server::from_listenfd(&event_loop, &mut inherited, 0)? {
    ///     Some(server) => server,
    ///     None => Server::bind(&event_loop, "127.0.0.1:2007")?,
    /// };
    /// server.on_message(|conn, input| conn.send_buffer(input)).start()?;
    /// event_loop.run()?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// If it is no stream socket that listens, on TCP or Unix.
    pub fn from_listenfd(
        event_loop: &'l ruduo_reactor::EventLoop,
        inherited: &mut listenfd::ListenFd,
        index: usize,
    ) -> io::Result<Option<super::Server<'l>>> {
        let context = |e: io::Error| {
            io::Error::new(e.kind(), format!("taking over inherited descriptor {index}: {e}"))
        };
        // What is not TCP stays where it is, and may be the other.
        let listener = match inherited.take_tcp_listener(index) {
            Ok(Some(listener)) => super::TcpServer::from_listener(event_loop, listener),
            Ok(None) => return Ok(None),
            Err(not_tcp) => match inherited.take_unix_listener(index) {
                Ok(Some(listener)) => super::UnixServer::from_listener(event_loop, listener),
                Ok(None) | Err(_) => Err(not_tcp),
            },
        };
        listener.map(Some).map_err(context)
    }
}
