//! A program's logger is code of the program too. (It is the only test in this process.)

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};

use common::{eventually, read_n, read_to_end, serve};
use ruduo::TcpServer;

/// How often it has panicked.
static PANICS: AtomicU32 = AtomicU32::new(0);

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        if record.args().to_string().starts_with("refusing ") {
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
fn b45_a_logger_that_panics_while_somebody_is_refused_ends_no_server() {
    log::set_logger(&Logger).unwrap();
    log::set_max_level(log::LevelFilter::Debug);
    let running = serve(|event_loop| {
        TcpServer::bind(event_loop, "127.0.0.1:0")?
            .max_connections(1)
            .on_message(|conn, input| conn.send_buffer(input))
            .start()
    });
    for panics in 1..=2 {
        let peer = running.connect();
        assert_echoes(&peer);
        assert_eq!(read_to_end(&running.connect()).unwrap(), b"");
        assert_eq!(PANICS.load(Ordering::Relaxed), panics);
        assert_echoes(&peer);
        drop(peer);
        eventually("there is a place", || running.server.metrics().open == 0);
    }
}
