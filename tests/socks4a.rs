//! The example socks4a, end to end: by hand, and by curl.

#![allow(clippy::unwrap_used)]

mod common;
mod shim;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::program::{Program, binary};
use common::{DEADLINE, eventually, new_socket, pattern, read_n, read_to_end};
use nix::sys::signal::Signal;
use nix::sys::socket::{SockaddrIn, SockaddrStorage, bind, connect};

const GRANTED: [u8; 8] = [0, 90, 0, 0, 0, 0, 0, 0];
const REJECTED: [u8; 8] = [0, 91, 0, 0, 0, 0, 0, 0];

/// A request for an address; for a name, that is 0.0.0.1.
fn request(port: u16, address: [u8; 4], user: &str, name: Option<&str>) -> Vec<u8> {
    let mut bytes = vec![4, 1];
    bytes.extend(port.to_be_bytes());
    bytes.extend(address);
    bytes.extend(user.bytes().chain([0]));
    bytes.extend(name.iter().flat_map(|name| name.bytes().chain([0])));
    bytes
}

fn target() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn addresses_and_names_are_connected_and_relayed() {
    const LEN: usize = 3 << 20;
    alone!().run(|| {
        let (listener, port) = target();
        for threads in ["0", "2"] {
            let proxy = Program::serve("socks4a", &["--threads", threads]);
            for bytes in [
                request(port, [127, 0, 0, 1], "", None),
                request(port, [127, 0, 0, 1], "me", None),
                request(port, [0, 0, 0, 1], "me", Some("localhost")),
                request(port, [0, 0, 0, 255], "", Some("127.0.0.1")),
            ] {
                let mut client = proxy.connect();
                client.write_all(&bytes).unwrap();
                assert_eq!(read_n(&client, 8), GRANTED);
                let target = accept(&listener);
                let data = pattern(LEN);
                thread::scope(|scope| {
                    for mut stream in [&client, &target] {
                        let data = &data;
                        scope.spawn(move || {
                            stream.write_all(data).unwrap();
                            stream.shutdown(Shutdown::Write).unwrap();
                        });
                        scope.spawn(move || assert!(read_to_end(stream).unwrap() == *data));
                    }
                });
            }
            proxy.ends_well_on(Signal::SIGTERM);
        }
    });
}

/// What comes behind the request is for the target, and what the target says first comes after the
/// answer.
#[test]
fn nothing_overtakes_the_answer_and_nothing_early_is_lost() {
    alone!().run(|| {
        let (listener, port) = target();
        let proxy = Program::serve("socks4a", &[]);
        for _ in 0..20 {
            let mut client = proxy.connect();
            let bytes = request(port, [127, 0, 0, 1], "me", None);
            client.write_all(&[&bytes[..], b"early"].concat()).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut target = accept(&listener);
            target.write_all(b"hello").unwrap();
            assert_eq!(read_to_end(&target).unwrap(), b"early");
            drop(target);
            assert_eq!(read_to_end(&client).unwrap(), [&GRANTED[..], b"hello"].concat());
        }
        proxy.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn a_request_may_come_in_single_bytes() {
    alone!().run(|| {
        let (listener, port) = target();
        let proxy = Program::serve("socks4a", &[]);
        let mut client = proxy.connect();
        client.set_nodelay(true).unwrap();
        for byte in request(port, [0, 0, 0, 1], "me", Some("localhost")) {
            client.write_all(&[byte]).unwrap();
            thread::yield_now();
        }
        assert_eq!(read_n(&client, 8), GRANTED);
        let target = accept(&listener);
        drop(target);
        assert_eq!(read_to_end(&client).unwrap(), b"");
        drop(client);
        proxy.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn b65_what_is_no_request_is_rejected_at_once() {
    alone!().run(|| {
        let (listener, port) = target();
        // Nobody listens there any more.
        drop(listener);
        let long = "x".repeat(256);
        let proxy = Program::serve("socks4a", &[]);
        let mut bind = request(port, [127, 0, 0, 1], "", None);
        bind[1] = 2;
        for bytes in [
            b"GET / HTTP/1.1".to_vec(),
            vec![5, 1, 0],
            bind,
            request(0, [127, 0, 0, 1], "", None),
            // More than is allowed, and no end in sight.
            request(port, [127, 0, 0, 1], &long, None)[..8 + 256].to_vec(),
            request(port, [0, 0, 0, 1], "", Some(&long))[..9 + 256].to_vec(),
            request(port, [0, 0, 0, 1], "", Some("")),
            request(port, [0, 0, 0, 1], "", Some("a\nb")),
            request(port, [0, 0, 0, 1], "", Some("::1")),
            // Sound, but there is nothing there.
            request(port, [127, 0, 0, 1], "", None),
            request(port, [0, 0, 0, 1], "", Some("name.invalid")),
        ] {
            let mut client = proxy.connect();
            client.write_all(&bytes).unwrap();
            assert_eq!(read_to_end(&client).unwrap(), REJECTED, "{bytes:?}");
        }
        proxy.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn b65_half_a_request_has_a_deadline() {
    const TIME: Duration = Duration::from_millis(500);
    alone!().run(|| {
        let proxy = Program::serve("socks4a", &["--request-timeout", "0.5"]);
        let start = Instant::now();
        let mut silent = proxy.connect();
        let _ = silent.write_all(&[4, 1]);
        match read_to_end(&silent) {
            Ok(told) => assert_eq!(told, b""),
            // What was written came too late.
            Err(e) => assert_eq!(e.kind(), ErrorKind::ConnectionReset),
        }
        assert!(start.elapsed() >= TIME);
        // Who has asked in time may take all the time for the rest.
        let (listener, port) = target();
        let begin = Instant::now();
        let client = loop {
            let start = Instant::now();
            let mut client = proxy.connect();
            let asked = client.write_all(&request(port, [127, 0, 0, 1], "", None));
            let mut answer = [0; 8];
            match asked.and_then(|()| client.read_exact(&mut answer)) {
                Ok(()) => assert_eq!(answer, GRANTED),
                // It was too late for that.
                Err(_) if start.elapsed() >= TIME && begin.elapsed() < DEADLINE => continue,
                Err(e) => panic!("{e}"),
            }
            break client;
        };
        let mut target = accept(&listener);
        // Another one's time begins after this one's, and is over after it.
        assert_eq!(read_to_end(&proxy.connect()).unwrap(), b"");
        target.write_all(b"late").unwrap();
        assert_eq!(read_n(&client, 4), b"late");
        drop((client, target));
        proxy.ends_well_on(Signal::SIGTERM);
    });
}

/// A client with another address than the others.
fn connect_from(source: &str, proxy: &Program) -> TcpStream {
    let fd = new_socket();
    bind(fd.as_raw_fd(), &source.parse::<SockaddrIn>().unwrap()).unwrap();
    connect(fd.as_raw_fd(), &SockaddrStorage::from(proxy.addr())).unwrap();
    let stream = TcpStream::from(fd);
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// The name servers do not answer, until the test has them do so.
#[test]
fn b65_slow_names_of_one_peer_keep_nobody_else_waiting_and_have_their_turn() {
    // More than are looked up at a time.
    const NAMES: usize = 8;
    let alone = alone!();
    let Some(resolver) = shim::build(&alone, "resolver") else { return };
    alone.run(|| {
        let (listener, port) = target();
        let folder = std::env::temp_dir().join(format!("ruduo-names-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let mut command = Command::new(binary("socks4a"));
        command.args(["--listen", "127.0.0.1:0", "--threads", "2", "--connect-timeout", "3600"]);
        command.env("LD_PRELOAD", resolver).env("RUDUO_RESOLVER", &folder);
        let proxy = Program::spawn(&mut command).listening(1);
        let clients: Vec<_> = (0..NAMES).map(|_| proxy.connect()).collect();
        for (number, mut client) in clients.iter().enumerate() {
            // Who asks for the same name would get the same answer.
            let name = format!("slow{number}.test");
            client.write_all(&request(port, [0, 0, 0, 1], "", Some(&name))).unwrap();
        }
        eventually("two are asked for", || folder.join("asked-2").exists());
        let mut other = connect_from("127.0.0.2:0", &proxy);
        other.write_all(&request(port, [0, 0, 0, 1], "", Some("localhost"))).unwrap();
        assert_eq!(read_n(&other, 8), GRANTED);
        assert!(!folder.join("asked-3").exists());

        for number in 1..=NAMES {
            let unfinished = folder.join("unfinished");
            fs::write(&unfinished, "127.0.0.1").unwrap();
            fs::rename(unfinished, folder.join(number.to_string())).unwrap();
        }
        for client in &clients {
            assert_eq!(read_n(client, 8), GRANTED);
        }
        drop((clients, other, listener));
        proxy.ends_well_on(Signal::SIGTERM);
        fs::remove_dir_all(folder).unwrap();
    });
}

#[test]
fn curl_gets_a_page_through_it() {
    let test = alone!();
    if Command::new("curl").arg("--version").output().is_err() {
        return test.skip("there is no curl on this machine");
    }
    test.run(|| {
        let proxy = Program::serve("socks4a", &[]);
        let page = Program::serve("http_hello", &[]);
        for option in ["--socks4a", "--socks4"] {
            let output = Command::new("curl")
                .args(["--silent", "--show-error", "--fail", "--max-time", "20", option])
                .arg(proxy.addr().to_string())
                .arg(format!("http://localhost:{}/", page.addr().port()))
                .env_remove("http_proxy")
                .env("NO_PROXY", "")
                .output()
                .unwrap();
            let (text, error) = (output.stdout, String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{option}: {error}");
            assert!(text.to_ascii_lowercase().starts_with(b"hello"), "{text:?}");
        }
        eventually("nothing is left", || proxy.open_sockets() <= 3);
        proxy.ends_well_on(Signal::SIGTERM);
        page.ends_well_on(Signal::SIGTERM);
    });
}
