//! A kernel that moves one byte a call and interrupts many: nothing is lost, repeated or told of
//! twice, wherever a message is cut.

#![allow(clippy::unwrap_used)]

mod common;
mod recorder;
mod shim;

use std::fs::{self, File};
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;

use common::{Alone, pattern, read_n, read_to_end, serve, within};
use recorder::{Told, recorded};
use ruduo::{Buffer, Connection, TcpServer};

/// Runs a test in which the server's and the peers' sockets move `bytes`, each of them twice.
fn byte_by_byte(alone: Alone, bytes: usize, body: impl FnOnce()) {
    shim::run(alone, "one_byte", || {
        body();
        let count = |name| shim::number(name).load(Ordering::Relaxed) as usize;
        assert_eq!(count(c"one_byte_moved"), 2 * bytes, "it was not in the way of all");
        assert!(count(c"one_byte_interrupted") > bytes / 2);
    });
}

/// Has a connection send, and compares what arrives before its end.
fn assert_arrives(expected: &[u8], send: impl FnOnce(&Connection<'_>) + Send + 'static) {
    let (this, peer) = recorded(|server| server);
    this.call(move |conn| {
        send(conn);
        conn.shutdown();
    });
    let received = read_to_end(&peer).unwrap();
    assert!(received == expected, "{} bytes of {}", received.len(), expected.len());
    drop(peer);
    assert_eq!(within(&this.told), Told::WriteComplete);
    assert_eq!(within(&this.told), Told::HalfClose);
    assert_eq!(this.closed(), "ShutDown");
}

fn file(name: &str, content: &[u8]) -> File {
    let path = std::env::temp_dir().join(format!("ruduo-{name}-{}", std::process::id()));
    fs::write(&path, content).unwrap();
    let file = File::open(&path).unwrap();
    fs::remove_file(path).unwrap();
    file
}

#[test]
fn b21_shared_bytes_arrive() {
    byte_by_byte(alone!(), 20_000, || {
        let data: Arc<[u8]> = pattern(20_000).into();
        assert_arrives(&data.clone(), |conn| conn.send_shared(data));
    });
}

#[test]
fn b21_a_range_of_a_file_arrives() {
    byte_by_byte(alone!(), 20_000, || {
        let content = pattern(30_000);
        let file = file("range", &content);
        assert_arrives(&content[5_000..25_000], |conn| conn.send_file(file, 5_000, 20_000));
    });
}

/// They share a buffer.
#[test]
fn b21_many_small_sends_arrive_in_order() {
    byte_by_byte(alone!(), 20_000, || {
        let data = pattern(20_000);
        let expected = data.clone();
        assert_arrives(&expected, move |conn| data.chunks(7).for_each(|piece| conn.send(piece)));
    });
}

/// Large enough to be slices of their own: more of them than one call takes, with small ones
/// between them.
#[test]
fn b21_many_slices_arrive_in_order() {
    const SLICE: usize = 4096;
    byte_by_byte(alone!(), 20 * (SLICE + 3), || {
        let data = pattern(20 * (SLICE + 3));
        let expected = data.clone();
        assert_arrives(&expected, move |conn| {
            for piece in data.chunks(SLICE + 3) {
                let (small, large) = piece.split_at(3);
                conn.send(small);
                conn.send_shared(Arc::from(large));
            }
        });
    });
}

#[test]
fn b21_all_ways_of_sending_keep_their_order() {
    const SIZES: [usize; 7] = [1, 2, 9, 4095, 4096, 4097, 70];
    const TOTAL: usize = 5 * (4095 + 4096 + 4097 + 82);
    byte_by_byte(alone!(), TOTAL, || {
        let data = pattern(TOTAL);
        let expected = data.clone();
        assert_arrives(&expected, move |conn| {
            let whole = file("whole", &data);
            let mut at = 0;
            for (i, size) in SIZES.into_iter().cycle().take(5 * SIZES.len()).enumerate() {
                let piece = &data[at..at + size];
                match i % 5 {
                    0 => conn.send(piece),
                    1 => conn.send_shared(Arc::from(piece)),
                    2 => conn.send_file(whole.try_clone().unwrap(), at as u64, size as u64),
                    3 => conn.try_send(piece).unwrap(),
                    _ => conn.send_buffer(&mut Buffer::from(piece)),
                }
                at += size;
            }
        });
    });
}

/// A length before each message: both are cut everywhere, and put together again.
#[test]
fn b21_messages_are_put_together() {
    const MESSAGES: usize = 300;
    let messages = (0..MESSAGES).map(|i| pattern(i % 100));
    let framed = |message: Vec<u8>| [&(message.len() as u32).to_be_bytes(), &message[..]].concat();
    let sent: Vec<u8> = messages.flat_map(framed).collect();
    byte_by_byte(alone!(), 2 * sent.len(), || {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, input| {
                    while let Some(len) = input.peek_u32() {
                        let Some(message) = input.read_bytes(4 + len as usize) else { return };
                        conn.send(message);
                    }
                })
                .start()
        });
        let peer = server.connect();
        let received = thread::scope(|scope| {
            scope.spawn(|| {
                (&peer).write_all(&sent).unwrap();
                peer.shutdown(Shutdown::Write).unwrap();
            });
            read_to_end(&peer).unwrap()
        });
        assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
    });
}

/// One byte at a time, each mark is met exactly.
#[test]
fn b21_marks_are_told_once_and_to_the_byte() {
    const ROUNDS: usize = 3;
    const ANSWER: usize = 5_000;
    byte_by_byte(alone!(), ROUNDS * (1 + ANSWER), || {
        let (tell, told) = channel();
        let (high, low, complete) = (tell.clone(), tell.clone(), tell);
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .water_marks(100, 1_000)
                .on_message(|conn, input| {
                    input.clear();
                    conn.send(pattern(ANSWER));
                })
                .on_high_water(move |conn, pending| {
                    assert_eq!(pending, conn.pending_output());
                    high.send(("high", pending)).unwrap();
                })
                .on_low_water(move |conn| low.send(("low", conn.pending_output())).unwrap())
                .on_write_complete(move |conn| {
                    complete.send(("complete", conn.pending_output())).unwrap();
                })
                .start()
        });
        let mut peer: TcpStream = server.connect();
        for _ in 0..ROUNDS {
            peer.write_all(b"?").unwrap();
            assert!(read_n(&peer, ANSWER) == pattern(ANSWER));
            let so_far = [within(&told), within(&told), within(&told)];
            assert_eq!(so_far, [("high", ANSWER - 1), ("low", 100), ("complete", 0)]);
        }
        drop(server);
        assert_eq!(told.try_iter().count(), 0);
    });
}
