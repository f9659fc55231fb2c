//! The guide's programs run, and what the guide shows of them is what they are.

#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "../docs/guide/asking.rs"]
mod asking;
mod common;
#[path = "../docs/guide/datagrams.rs"]
mod datagrams;
#[allow(dead_code)]
#[path = "../docs/guide/echo.rs"]
mod echo;
#[allow(dead_code)]
#[path = "../docs/guide/hub.rs"]
mod hub;
#[path = "../docs/guide/lines.rs"]
mod lines;
#[path = "../docs/guide/store.rs"]
mod store;

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use common::{Running, eventually, pattern, read_n, read_to_end, serve};
use ruduo::{FrameCodec, LoopPool};

/// Long enough for whoever is not about to be too late.
const PATIENT: Duration = Duration::from_secs(1000);

#[test]
fn the_guide_shows_its_programs_as_they_are() {
    let guide = include_str!("../docs/guide.md");
    let programs = [
        include_str!("../docs/guide/echo.rs"),
        include_str!("../docs/guide/lines.rs"),
        include_str!("../docs/guide/store.rs"),
        include_str!("../docs/guide/hub.rs"),
        include_str!("../docs/guide/asking.rs"),
        include_str!("../docs/guide/datagrams.rs"),
    ];
    let blocks: Vec<_> = guide.split("```rust").skip(1).collect();
    assert!(blocks.len() > 10);
    for block in blocks {
        let (code, _) = block.split_once("```").unwrap();
        assert!(programs.iter().any(|program| program.contains(code)), "in no program:\n{code}");
    }
}

#[test]
fn the_echo_echoes() {
    alone!().run(|| {
        let server = serve(|event_loop| echo::serve(event_loop, "127.0.0.1:0"));
        let mut peer = server.connect();
        peer.write_all(&pattern(10_000)).unwrap();
        assert_eq!(read_n(&peer, 10_000), pattern(10_000));
    });
}

#[test]
fn lines_are_counted_for_each_client() {
    alone!().run(|| {
        let server = serve(|event_loop| lines::serve(event_loop, "127.0.0.1:0"));
        for _ in 0..3 {
            let mut peer = server.connect();
            peer.write_all(b"one\r\ntwo\nthree").unwrap();
            assert_eq!(read_n(&peer, 14), b"1: one\n2: two\n");
            peer.write_all(b"\n").unwrap();
            peer.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&peer).unwrap(), b"3: three\n");
        }
        let mut peer = server.connect();
        peer.write_all(&[b"short\n".to_vec(), vec![b'x'; 1001]].concat()).unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"1: short\n");
    });
}

#[test]
fn clients_share_a_store_that_has_an_end() {
    alone!().run(|| {
        let server = serve(|event_loop| store::serve(event_loop, "127.0.0.1:0", 2));
        let (mut one, mut other) = (server.connect(), server.connect());
        one.write_all(b"set a 1 and more\nset b 2\nset c 3\nset b 4\n").unwrap();
        assert_eq!(read_n(&one, 26), b"stored\nstored\nfull\nstored\n");
        other.write_all(b"get a\nget b\nget c\nset a\n").unwrap();
        assert_eq!(read_n(&other, 40), b"1 and more\n4\n\nset KEY VALUE, or get KEY\n");
        other.write_all(&[b'x'; 1002]).unwrap();
        let why = String::from_utf8(read_to_end(&other).unwrap()).unwrap();
        assert!(why.contains("1000"), "{why}");
    });
}

#[test]
fn who_asks_gets_the_answer() {
    alone!().run(|| {
        let server = serve(|event_loop| lines::serve(event_loop, "127.0.0.1:0"));
        let event_loop = ruduo::EventLoop::new().unwrap();
        let client = asking::ask(&event_loop, server.addr()).unwrap();
        event_loop.run().unwrap();
        assert_eq!((client.connections(), client.failures()), (1, 0));
        eventually("the question has come", || server.server.metrics().received == 11);
    });
}

fn hub(threads: usize, patience: Duration) -> Running {
    serve(move |event_loop| {
        let pool = LoopPool::builder(event_loop).threads(threads).start()?;
        hub::serve(event_loop, &pool, "127.0.0.1:0", patience)
    })
}

fn tell(mut peer: &TcpStream, text: &[u8]) {
    peer.write_all(FrameCodec::u16().encode(text).unwrap().readable()).unwrap();
}

fn hear(peer: &TcpStream) -> String {
    let length = u16::from_be_bytes(read_n(peer, 2).try_into().unwrap());
    String::from_utf8(read_n(peer, length.into())).unwrap()
}

#[test]
fn everybody_at_the_hub_hears_everybody() {
    alone!().run(|| {
        for threads in [0, 3] {
            let hub = hub(threads, PATIENT);
            let peers: Vec<_> = (0..10).map(|_| hub.connect()).collect();
            // Who hears itself has been put into its room.
            for (i, peer) in peers.iter().enumerate() {
                tell(peer, format!("peer {i}").as_bytes());
                tell(peer, b"here");
                while hear(peer) != format!("peer {i}: here") {}
            }
            for message in ["one", "two", "three"] {
                tell(&peers[4], message.as_bytes());
            }
            for peer in &peers {
                let news: Vec<_> = std::iter::repeat_with(|| hear(peer))
                    .filter(|news| news.starts_with("peer 4: t") || news == "peer 4: one")
                    .take(3)
                    .collect();
                assert_eq!(news, ["peer 4: one", "peer 4: two", "peer 4: three"]);
            }
        }
    });
}

#[test]
fn who_does_not_tell_its_name_is_shown_the_door() {
    alone!().run(|| {
        let hub = hub(1, Duration::from_millis(50));
        let (silent, named) = (hub.connect(), hub.connect());
        tell(&named, b"somebody");
        assert_eq!(hear(&silent), "hub: you should have told your name");
        assert_eq!(read_to_end(&silent).unwrap(), b"");
    });
}

#[test]
fn what_is_not_text_is_refused() {
    alone!().run(|| {
        let hub = hub(1, PATIENT);
        let peer = hub.connect();
        tell(&peer, b"\xff");
        assert_eq!(read_to_end(&peer).unwrap(), b"");
    });
}

#[test]
fn at_the_end_the_hub_says_good_night() {
    alone!().run(|| {
        let hub = hub(2, PATIENT);
        let peers: Vec<_> = (0..4).map(|_| hub.connect()).collect();
        for peer in &peers {
            tell(peer, b"name");
            tell(peer, b"here");
            hear(peer);
        }
        hub.server.stop(PATIENT);
        for peer in &peers {
            while hear(peer) != "hub: good night" {}
            assert_eq!(read_to_end(peer).unwrap(), b"");
        }
        drop(peers);
        hub.server.wait().unwrap();
    });
}

#[test]
fn datagrams_are_counted_for_each_peer_and_a_question_gets_its_answer() {
    alone!().run(|| {
        let (send, receive) = std::sync::mpsc::channel();
        let serve = move |event_loop: &ruduo::EventLoop| {
            send.send(datagrams::serve(event_loop, "127.0.0.1:0")?).unwrap();
            Ok(())
        };
        let builder = ruduo::EventLoop::builder();
        let thread = ruduo::LoopThread::spawn("test-loop", builder, serve).unwrap();
        let server = common::within(&receive);
        let peer = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        peer.set_read_timeout(Some(common::DEADLINE)).unwrap();
        for count in 1..4 {
            peer.send_to(&[b'x'; 7], server.local_addr()).unwrap();
            let mut bytes = [0; 64];
            let n = peer.recv(&mut bytes).unwrap();
            assert_eq!(bytes[..n], *format!("your number {count}, of 7 bytes").as_bytes());
        }
        let event_loop = ruduo::EventLoop::new().unwrap();
        let client = datagrams::ask(&event_loop, server.local_addr()).unwrap();
        event_loop.run().unwrap();
        assert_eq!((client.metrics().sent, client.metrics().received), (1, 1));
        drop(thread);
    });
}
