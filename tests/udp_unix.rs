//! Datagrams on Unix sockets: the same, and the file that goes with one.

#![allow(clippy::unwrap_used)]

mod common;
mod datagrams;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;

use common::{DEADLINE, proc, within};
use datagrams::{Running, start};
use ruduo::{Address, EventLoop, UdpClient, UdpServer, UnixAddress};

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("ruduo-udp-{}-{n}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn peer(&self, name: &str) -> UnixDatagram {
        let peer = UnixDatagram::bind(self.at(name)).unwrap();
        peer.set_read_timeout(Some(DEADLINE)).unwrap();
        peer
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn echo_at(path: &Path) -> Running {
    let path = path.to_owned();
    start(move |event_loop| {
        UdpServer::bind(event_loop, path)
            .mode(0o600)
            .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
            .start()
    })
}

#[track_caller]
fn assert_echoes(peer: &UnixDatagram, server: &Path) {
    let mut bytes = [0; 64];
    for sent in [&b"hello"[..], b"", b"again"] {
        peer.send_to(sent, server).unwrap();
        let (n, from) = peer.recv_from(&mut bytes).unwrap();
        assert_eq!((&bytes[..n], from.as_pathname()), (sent, Some(server)));
    }
}

#[test]
fn a_path_is_served_and_its_file_goes_at_the_end() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let path = folder.at("x.sock");
        let running = echo_at(&path);
        assert_eq!(running.udp.local_addr(), &Address::Unix(UnixAddress::Path(path.clone())));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_echoes(&folder.peer("peer"), &path);
        running.stop();
        assert!(!path.exists());
    });
}

#[test]
fn a_file_that_a_dead_server_has_left_is_replaced_and_no_other() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let path = folder.at("x.sock");
        drop(UnixDatagram::bind(&path).unwrap());
        assert!(path.exists());
        let running = echo_at(&path);
        assert_echoes(&folder.peer("peer"), &path);

        let event_loop = EventLoop::new().unwrap();
        let second = UdpServer::bind(&event_loop, &path).on_datagram(|_, _| {}).start();
        assert_eq!(second.unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_echoes(&folder.peer("another"), &path);
        fs::write(folder.at("precious"), "precious").unwrap();
        let at_file = UdpServer::bind(&event_loop, folder.at("precious"));
        let error = at_file.on_datagram(|_, _| {}).start().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert_eq!(fs::read(folder.at("precious")).unwrap(), b"precious");
        drop(running);
    });
}

#[test]
fn a_client_needs_a_name_to_be_answered_at() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let path = folder.at("x.sock");
        let (send, receive) = channel();
        let (answered, answers) = channel();
        let server = {
            let path = path.clone();
            start(move |event_loop| {
                UdpServer::bind(event_loop, path)
                    .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                    .on_error(move |_, error| send.send((error.kind(), error.to_string())).unwrap())
                    .start()
            })
        };
        let target = path.clone();
        let nameless = start(move |event_loop| {
            UdpClient::connect(event_loop, target)
                .on_start(|socket| socket.send("hello"))
                .on_datagram(|_, _| {})
                .start()
        });
        let (kind, text) = within(&receive);
        assert_eq!(kind, ErrorKind::AddrNotAvailable);
        assert!(text.contains("without a name"), "{text}");
        let (target, local) = (path.clone(), folder.at("client"));
        let named = start(move |event_loop| {
            UdpClient::connect(event_loop, target)
                .bind_local(local)
                .on_start(|socket| socket.send("hello"))
                .on_datagram(move |_, datagram| answered.send(datagram.bytes().to_vec()).unwrap())
                .start()
        });
        assert_eq!(within(&answers), b"hello");
        named.stop();
        assert!(!folder.at("client").exists());
        drop((nameless, server));
    });
}

#[test]
fn a_peer_that_is_gone_is_an_error_value() {
    each_poller!().run(|| {
        let folder = Folder::new();
        let peer = folder.peer("peer");
        let (send, receive) = channel();
        let target = folder.at("peer");
        let running = start(move |event_loop| {
            UdpClient::connect(event_loop, target)
                .on_datagram(|_, _| {})
                .on_error(move |_, error| send.send(error.kind()).unwrap())
                .start()
        });
        let handle = running.udp.socket();
        handle.send("hello").unwrap();
        assert_eq!(peer.recv(&mut [0; 8]).unwrap(), 5);
        drop(peer);
        handle.send("hello?").unwrap();
        assert_eq!(within(&receive), ErrorKind::ConnectionRefused);
        handle.send("is there anybody?").unwrap();
        assert_eq!(within(&receive), ErrorKind::NotConnected);
        running.stop();
    });
}

#[test]
fn what_is_of_the_internet_is_refused() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let folder = Folder::new();
        let bind = || UdpServer::bind(&event_loop, folder.at("x")).on_datagram(|_, _| {});
        for builder in [bind().broadcast(true), bind().ttl(1), bind().join([224, 0, 0, 1], "lo")] {
            let error = builder.start().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        }
        let error = bind().threads(2).start().unwrap_err();
        assert!(error.to_string().contains("one loop"), "{error}");
        assert!(!folder.at("x").exists());
    });
}

/// Room for what the kernel says beside a datagram is room for descriptors too.
#[test]
fn descriptors_that_a_peer_sends_do_not_stay() {
    each_poller!().run(|| {
        use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
        use std::os::fd::AsRawFd;
        let folder = Folder::new();
        let path = folder.at("x.sock");
        let (send, receive) = channel();
        let running = {
            let path = path.clone();
            start(move |event_loop| {
                UdpServer::bind(event_loop, path)
                    .timestamps(true)
                    .gro(true)
                    .on_datagram(move |_, datagram| send.send(datagram.bytes().to_vec()).unwrap())
                    .start()
            })
        };
        let peer = folder.peer("peer");
        let before = common::open_fds().len();
        let fds = [peer.as_raw_fd(); 3];
        let control = [ControlMessage::ScmRights(&fds)];
        let to = UnixAddr::new(&path).unwrap();
        let slices = [std::io::IoSlice::new(b"take these")];
        sendmsg(peer.as_raw_fd(), &slices, &control, MsgFlags::empty(), Some(&to)).unwrap();
        assert_eq!(within(&receive), b"take these");
        assert_eq!(common::open_fds().len(), before);
        drop(running);
    });
}

#[test]
fn b64_a_child_process_does_not_inherit_datagram_sockets() {
    each_poller!().run(|| {
        proc::is_wanted();
        let folder = Folder::new();
        let sockets = || {
            let script = "for f in /proc/self/fd/*; do readlink $f; done | grep -c socket:";
            let output = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let before = sockets();
        let running = [echo_at(&folder.at("x")), datagrams::echo()];
        assert_eq!(sockets(), before);
        drop(running);
    });
}
