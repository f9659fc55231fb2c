//! The reasons that connections give for their end. (Those of a stopped server and an ended loop are
//! in `stopping`, those of panics in `panics`, of peers that linger in `lingering`.)

#![allow(clippy::unwrap_used)]

mod common;
mod scene;

use std::fs::File;
use std::io::Write;
use std::net::Shutdown;

use common::{read_n, read_to_end, reset};
use scene::{ANSWER, Scene, write};

#[test]
fn closed_by_the_peer() {
    each_poller!().run(|| {
        let scene = Scene::new(|conn, input| conn.send_buffer(input));
        let (peer, _) = scene.connect();
        write(&peer, "hello");
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"hello");
        scene.assert_closes("closed by the peer");
    });
}

#[test]
fn shut_down_by_the_program() {
    each_poller!().run(|| {
        let scene = Scene::new(|conn, input| {
            conn.send_buffer(input);
            conn.shutdown();
        });
        let (peer, _) = scene.connect();
        write(&peer, "hello");
        assert_eq!(read_to_end(&peer).unwrap(), b"hello");
        drop(peer);
        scene.assert_closes("shut down");
    });
}

#[test]
fn closed_and_reset_by_the_program() {
    each_poller!().run(|| {
        let scene = Scene::new(|_, _| {});
        let (_peer, conn) = scene.connect();
        conn.close().unwrap();
        scene.assert_closes("closed by the program");
        let (_peer, conn) = scene.connect();
        conn.reset().unwrap();
        scene.assert_closes("reset by the program");
    });
}

#[test]
fn a_reset_by_the_peer_is_a_failure_to_receive() {
    each_poller!().run(|| {
        let scene = Scene::new(|conn, input| conn.send_buffer(input));
        let (peer, _) = scene.connect();
        write(&peer, "hello");
        assert_eq!(read_n(&peer, 5), b"hello");
        reset(peer);
        scene.assert_closes("receiving failed: Connection reset");
    });
}

#[test]
fn a_reset_by_the_peer_with_output_pending_is_a_failure_to_send() {
    each_poller!().run(|| {
        let scene = Scene::new(ANSWER);
        let (peer, _) = scene.connect_and_await_high_water();
        reset(peer);
        scene.assert_closes("sending failed: Connection reset");
    });
}

#[test]
fn a_file_that_is_shorter_than_promised_is_a_failure_to_send() {
    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    each_poller!().run(|| {
        let scene = Scene::new(|conn, input| {
            input.clear();
            let file = File::open(FILE).unwrap();
            let len = file.metadata().unwrap().len();
            conn.send_file(file, 0, len + 10);
        });
        let (peer, _) = scene.connect();
        write(&peer, "go");
        let content = std::fs::read(FILE).unwrap();
        assert_eq!(read_n(&peer, content.len()), content);
        drop(peer);
        scene.assert_closes("sending failed: sending a file: it ends 10 bytes before");
    });
}

#[test]
fn input_that_nobody_consumes_has_a_limit() {
    each_poller!().run(|| {
        let scene = Scene::with(|_, _| {}, |server| server.read_size(1000).input_limit(5000));
        let (peer, _) = scene.connect();
        // In the middle of this the connection ends.
        let _ = (&peer).write_all(&[b'x'; 100_000]);
        scene.assert_closes("more than 5000 bytes of input");
    });
}

#[test]
fn output_that_nobody_takes_has_a_limit() {
    each_poller!().run(|| {
        let scene =
            Scene::with(ANSWER, |server| server.water_marks(1000, 2000).output_limit(1_000_000));
        let (peer, _) = scene.connect();
        write(&peer, "go");
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        scene.assert_closes("more than 1000000 bytes of output");
    });
}
