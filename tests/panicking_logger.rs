//! A program's logger is code of the program too. (It is the only test in this process.)

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;

use common::{eventually, read_n, read_to_end, serve, within};
use ruduo::TcpServer;

/// In which lines it panics.
static WORDS: Mutex<&str> = Mutex::new("refusing ");

/// How often it has panicked.
static PANICS: AtomicU32 = AtomicU32::new(0);

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        let words = *WORDS.lock().unwrap();
        if record.args().to_string().contains(words) {
            PANICS.fetch_add(1, Ordering::Relaxed);
            panic!("on purpose");
        }
    }
    fn flush(&self) {}
}

fn assert_echoes(mut peer: &TcpStream) {
    peer.write_all(b"hello").unwrap();
    assert_eq!(read_n(peer, 5), b"hello");
}

#[test]
fn b45_a_logger_that_panics_ends_no_server_and_loses_no_end() {
    log::set_logger(&Logger).unwrap();
    log::set_max_level(log::LevelFilter::Debug);
    let (tell, closed) = channel();
    let running = serve(move |event_loop| {
        TcpServer::bind(event_loop, "127.0.0.1:0")?
            .max_connections(1)
            .on_message(|conn, input| conn.send_buffer(input))
            .on_close(move |_, _| tell.send(()).unwrap())
            .start()
    });
    for panics in 1..=2 {
        let peer = running.connect();
        assert_echoes(&peer);
        assert_eq!(read_to_end(&running.connect()).unwrap(), b"");
        assert_eq!(PANICS.load(Ordering::Relaxed), panics);
        assert_echoes(&peer);
        drop(peer);
        within(&closed);
        eventually("there is a place", || running.server.metrics().open == 0);
    }
    // So that the lines about those are written.
    let (tell, told) = channel();
    running.event_loop().post(move |_| tell.send(()).unwrap()).unwrap();
    within(&told);
    *WORDS.lock().unwrap() = ": closed by the peer";
    for panics in 3..=4 {
        let peer = running.connect();
        assert_echoes(&peer);
        drop(peer);
        within(&closed);
        eventually("it is not counted any more", || running.server.metrics().open == 0);
        eventually("it has panicked", || PANICS.load(Ordering::Relaxed) == panics);
    }
}
