//! Connections: what they send.

#![allow(clippy::unwrap_used)]

mod calls;
mod common;
mod kernel;
mod recorder;

use std::fs::{self, File};
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use calls::calls_of;
use common::{Alone, pattern, proc, read_n, read_to_end, reset, serve, within};
use recorder::{Told, recorded, recorded_open};
use ruduo::{Buffer, Connection, SendError, TcpServer};
use sha2::{Digest, Sha256};

/// More than the kernel's buffers of both ends take when the peer does not read.
const A_LOT: usize = 32 * 1024 * 1024;

const WINDOW: Duration = Duration::from_millis(300);
const FEW_TURNS: u64 = 20;

/// A file without a name.
fn file(content: &[u8]) -> File {
    let path = std::env::temp_dir().join(format!("ruduo-output-{}", std::process::id()));
    fs::write(&path, content).unwrap();
    let file = File::open(&path).unwrap();
    fs::remove_file(path).unwrap();
    file
}

// Order.

/// All ways of sending in turn, with sizes around those at which pieces are kept apart, to a peer
/// that reads late: writes are cut short at odd places.
#[test]
fn all_ways_of_sending_keep_their_order_and_every_byte() {
    each_poller!().run(|| {
        let (this, mut peer) = recorded(|server| server.water_marks(1 << 20, 48 << 20));
        let data: Arc<[u8]> = pattern(24 << 20).into();
        let content = data.clone();
        let send_all = move |conn: &Connection<'_>| {
            let whole = file(&content);
            let sizes = [1, 10, 4095, 4096, 4097, 65_536, 70_000, 1 << 20, 0, 3 << 20];
            let mut sizes = sizes.iter().cycle();
            let mut at = 0;
            for way in (0..4).cycle() {
                let len = (*sizes.next().unwrap()).min(content.len() - at);
                let piece = &content[at..at + len];
                match way {
                    0 => conn.send(piece),
                    1 => conn.send_shared(Arc::from(piece)),
                    2 => conn.send_file(whole.try_clone().unwrap(), at as u64, len as u64),
                    _ => {
                        let mut buffer = Buffer::from(piece);
                        conn.send_buffer(&mut buffer);
                        assert!(buffer.is_empty());
                    }
                }
                at += len;
                if at == content.len() {
                    break;
                }
            }
            assert_eq!(conn.pending_output(), content.len(), "nothing leaves inside a callback");
            conn.shutdown();
        };
        this.call(send_all);
        let mut hash = Sha256::new();
        std::io::copy(&mut peer, &mut hash).unwrap();
        assert_eq!(hash.finalize(), Sha256::digest(&data));
    });
}

#[test]
fn ten_small_sends_in_a_callback_are_one_call() {
    let body = || {
        let (this, peer) = recorded(|server| server);
        this.call(|conn| (0..10).for_each(|i| conn.send(format!("piece {i}\n"))));
        assert_eq!(read_n(&peer, 80).last(), Some(&b'\n'));
    };
    if let Some(calls) = calls_of(alone!(), "sendto,sendmsg", body) {
        let ours: Vec<_> = calls.lines().filter(|line| line.contains("piece")).collect();
        assert_eq!(ours.len(), 1, "{ours:#?}");
        assert!(ours[0].contains("MSG_NOSIGNAL"), "{ours:#?}");
    }
}

#[test]
fn pieces_of_different_kinds_are_one_call() {
    let body = || {
        let (this, peer) = recorded(|server| server);
        this.call(|conn| {
            for _ in 0..3 {
                conn.send("piece");
                conn.send_shared(Arc::from(pattern(10_000)));
            }
        });
        read_n(&peer, 3 * 10_005);
    };
    if let Some(calls) = calls_of(alone!(), "sendto,sendmsg", body) {
        let ours: Vec<_> = calls.lines().filter(|line| line.contains("piece")).collect();
        assert_eq!(ours.len(), 1, "{ours:#?}");
        assert!(ours[0].contains("= 30015"), "{ours:#?}");
    }
}

// Readiness.

#[test]
fn b22_an_idle_connection_causes_no_wakeups() {
    each_poller!().run(|| {
        let (this, peer) = recorded(|server| server);
        this.conn.send("hello").unwrap();
        assert_eq!(read_n(&peer, 5), b"hello");
        assert!(this.turns_in(WINDOW) < FEW_TURNS);
    });
}

/// Also for output that is below the high-water mark.
#[test]
fn b22_write_interest_is_on_while_output_waits_and_off_when_it_is_gone() {
    each_poller!().run(|| {
        for high_water in [1 << 20, 2 * A_LOT] {
            let (this, peer) = recorded(move |server| {
                server.water_marks(1000, high_water).output_limit(3 * A_LOT)
            });
            let (tell, told) = channel();
            this.call(|conn| conn.send_shared(Arc::from(pattern(A_LOT))));
            this.let_turn();
            this.call(move |conn| tell.send(conn.pending_output()).unwrap());
            assert!(within(&told) > 0, "the kernel takes it all");
            assert!(this.turns_in(WINDOW) < FEW_TURNS, "spins while the peer does not read");
            assert!(read_n(&peer, A_LOT) == pattern(A_LOT));
            while within(&this.told) != Told::WriteComplete {}
            assert!(this.turns_in(WINDOW) < FEW_TURNS, "spins when nothing waits");
        }
    });
}

/// The kernel says that there is no room, and then that there is. The fault counts send calls on
/// each thread.
fn unready_send(alone: Alone, call: &str, send: fn(&Connection<'_>), len: usize) {
    let inject = format!("inject={call}:error=EAGAIN:when=1..2");
    alone.under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject]).run(|| {
        let (this, peer) = recorded(|server| server);
        this.call(send);
        read_n(&peer, len);
        assert_eq!(within(&this.told), Told::WriteComplete);
        assert!(this.turns_in(WINDOW) < FEW_TURNS, "spins when nothing waits");
    });
}

#[test]
fn b22_eagain_on_sending_is_waited_out() {
    unready_send(each_poller!(), "sendto", send_one_piece, 1);
}

#[test]
fn b22_eagain_on_sending_several_pieces_is_waited_out() {
    unready_send(each_poller!(), "sendmsg", send_several_pieces, 10_001);
}

#[test]
fn b22_eagain_on_sending_a_file_is_waited_out() {
    unready_send(each_poller!(), "sendfile", send_a_file, 7);
}

// Errors.

/// By default the kernel kills a process that writes to a closed connection; Rust's runtime
/// prevents that, but a library in a program of another kind must not rely on it.
fn let_sigpipe_kill() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default action is no handler of ours.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.unwrap();
}

/// A peer that has finished and then resets: only then does the kernel say EPIPE to the first
/// attempt to write, and raise the signal with it.
fn send_into_a_broken_pipe(send: impl FnOnce(&Connection<'_>) + Send + 'static) {
    let_sigpipe_kill();
    let (this, peer) = recorded_open(|server| server);
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(within(&this.told), Told::HalfClose);
    let held = this.hold_then(send);
    reset(peer);
    kernel::wait_for_reset(this.ends);
    drop(held);
    assert_eq!(this.closed(), "WriteFailed(EPIPE)");

    // The signal is neither delivered nor left pending for whoever unblocks it.
    let (tell, told) = channel();
    let look = move |_: &ruduo::EventLoop| {
        let status = proc::read("thread-self/status");
        let mask = |name| {
            let line: &str = status.lines().find(|line| line.starts_with(name)).unwrap();
            u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
        };
        let pipe = 1u64 << (libc::SIGPIPE - 1);
        tell.send((mask("SigPnd:") & pipe, mask("SigBlk:") & pipe)).unwrap();
    };
    this.server.event_loop().post(look).unwrap();
    assert_eq!(within(&told), (0, 0), "SIGPIPE is pending, or blocked");
}

#[test]
fn b23_epipe_on_send_never_kills_the_process() {
    each_poller!().run(|| send_into_a_broken_pipe(|conn| conn.send("x")));
}

#[test]
fn b23_epipe_on_sending_several_pieces_never_kills_the_process() {
    each_poller!().run(|| {
        send_into_a_broken_pipe(|conn| {
            conn.send("x");
            conn.send_shared(Arc::from(pattern(10_000)));
        });
    });
}

#[test]
fn b23_epipe_on_send_file_never_kills_the_process() {
    each_poller!().run(|| send_into_a_broken_pipe(|conn| conn.send_file(file(b"content"), 0, 7)));
}

#[test]
fn b24_reset_noticed_while_sending_does_not_hide_what_came_before_it() {
    each_poller!().run(|| {
        let (this, mut peer) = recorded(|server| server.read_size(4096));
        let data = pattern(40_000);
        let held = this.hold_then(|conn| conn.send("answer"));
        peer.write_all(&data).unwrap();
        kernel::wait_for_bytes(this.ends, data.len());
        reset(peer);
        kernel::wait_for_reset(this.ends);
        drop(held);

        let (received, then) = this.messages();
        assert!(received == data, "{} bytes of {}", received.len(), data.len());
        // The send call has taken the error, so what follows the data looks like an orderly end.
        assert_eq!(then, Told::HalfClose);
        assert_eq!(this.closed(), "WriteFailed(ECONNRESET)");
    });
}

/// What the peer has sent is delivered all the same, and what the program sends after the error
/// is counted as discarded.
fn failing_send(alone: Alone, call: &str, error: &'static str, send: fn(&Connection<'_>)) {
    let inject = format!("inject={call}:error={error}:when=1");
    alone.under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject]).run(|| {
        let (this, peer) = recorded(|server| server);
        // The fault counts send calls on each thread, so the peer uses write.
        let mut peer = File::from(OwnedFd::from(peer));
        this.call(send);
        this.let_turn();
        peer.write_all(b"hello").unwrap();
        assert_eq!(within(&this.told), Told::Message(b"hello".to_vec()));
        this.call(|conn| {
            assert_eq!(conn.try_send("x"), Err(SendError::Closed));
            conn.send("discarded");
        });
        this.let_turn();
        assert_eq!(this.server.server.metrics().discarded, 9);
        drop(peer);
        assert_eq!(within(&this.told), Told::HalfClose);
        assert_eq!(this.closed(), format!("WriteFailed({error})"));
    });
}

fn send_one_piece(conn: &Connection<'_>) {
    conn.send("x");
}

fn send_several_pieces(conn: &Connection<'_>) {
    conn.send("x");
    conn.send_shared(Arc::from(pattern(10_000)));
}

fn send_a_file(conn: &Connection<'_>) {
    conn.send_file(file(b"content"), 0, 7);
}

macro_rules! failing_sends {
    ($($name:ident: $call:literal, $error:literal, $send:ident;)*) => {$(
        #[test]
        fn $name() {
            failing_send(each_poller!(), $call, $error, $send);
        }
    )*};
}

failing_sends! {
    b25_ehostunreach_on_sending_closes_with_the_reason: "sendto", "EHOSTUNREACH", send_one_piece;
    b25_enetunreach_on_sending_closes_with_the_reason: "sendto", "ENETUNREACH", send_one_piece;
    b25_etimedout_on_sending_closes_with_the_reason: "sendto", "ETIMEDOUT", send_one_piece;
    b25_enobufs_on_sending_closes_with_the_reason: "sendto", "ENOBUFS", send_one_piece;
    b25_eperm_on_sending_closes_with_the_reason: "sendto", "EPERM", send_one_piece;
    b25_ehostunreach_on_sending_several_pieces_closes_with_the_reason:
        "sendmsg", "EHOSTUNREACH", send_several_pieces;
    b25_enomem_on_sending_several_pieces_closes_with_the_reason:
        "sendmsg", "ENOMEM", send_several_pieces;
    b25_ehostunreach_on_sending_a_file_closes_with_the_reason:
        "sendfile", "EHOSTUNREACH", send_a_file;
    b25_eio_on_sending_a_file_closes_with_the_reason: "sendfile", "EIO", send_a_file;
}

// After the end.

#[test]
fn b28_what_is_sent_after_shutdown_is_refused_and_counted() {
    each_poller!().run(|| {
        let (this, peer) = recorded(|server| server);
        let (tell, told) = channel();
        this.call(move |conn| {
            conn.send("before");
            conn.shutdown();
            conn.send("12345");
            conn.send_buffer(&mut Buffer::from("67"));
            conn.send_shared(Arc::from(*b"8"));
            conn.send_file(file(b"content"), 0, 2);
            let handle = conn.handle();
            tell.send([
                conn.try_send("x"),
                handle.send("x"),
                handle.send_buffer(&mut Buffer::from("x")),
                handle.send_shared(Arc::from(*b"x")),
            ])
            .unwrap();
        });
        assert_eq!(within(&told), [Err(SendError::Closed); 4]);
        assert_eq!(read_to_end(&peer).unwrap(), b"before");
        assert_eq!(this.server.server.metrics().discarded, 10, "1 to 8, and 2 of the file");
        drop(peer);
        assert_eq!(within(&this.told), Told::WriteComplete);
        assert_eq!(within(&this.told), Told::HalfClose);
        assert_eq!(this.closed(), "ShutDown");
    });
}

#[test]
fn b28_what_is_sent_after_close_is_refused_and_counted() {
    each_poller!().run(|| {
        let (this, peer) = recorded(|server| server);
        let (tell, told) = channel();
        this.call(move |conn| {
            conn.send("dropped by close");
            conn.close();
            conn.send("12345");
            tell.send([conn.try_send("x"), conn.handle().send("x")]).unwrap();
        });
        assert_eq!(within(&told), [Err(SendError::Closed); 2]);
        assert_eq!(this.closed(), "Closed");
        assert_eq!(this.server.server.metrics().discarded, 5);
        assert_eq!(read_to_end(&peer).unwrap(), b"");

        // From another thread, once it is over.
        let conn = &this.conn;
        assert!(conn.is_closed());
        let operations = [
            conn.send("x"),
            conn.send_buffer(&mut Buffer::from("x")),
            conn.send_shared(Arc::from(*b"x")),
            conn.shutdown(),
            conn.close(),
            conn.reset(),
            conn.pause_reading(),
            conn.resume_reading(),
            this.handler.post(|_, _| panic!("called after the end")),
        ];
        assert_eq!(operations, [Err(SendError::Closed); 9]);
    });
}

#[test]
fn b28_what_is_sent_from_on_close_goes_nowhere() {
    each_poller!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, _| conn.close())
                .on_close(move |conn, _| {
                    conn.send("12345");
                    conn.shutdown();
                    conn.close();
                    tell.send([conn.try_send("x"), conn.handle().send("x")]).unwrap();
                })
                .start()
        });
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        assert_eq!(within(&told), [Err(SendError::Closed); 2]);
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        assert_eq!(server.server.metrics().discarded, 5);
    });
}
