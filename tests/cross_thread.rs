//! Connections used from other threads: one causal order, nothing lost, safe after the end.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use common::{Running, pattern, read_n, read_to_end, serve, within};
use ruduo::{
    Buffer, CloseReason, Connection, ConnectionHandle, Handler, HandlerHandle, SendError, TcpServer,
};

/// Does something on another thread. When this returns it has happened, and the caller knows.
fn elsewhere(f: impl FnOnce() + Send + 'static) {
    std::thread::spawn(f).join().unwrap();
}

/// Waits until the loop has run what was posted before.
fn barrier(running: &Running) {
    let (send, receive) = channel();
    running.event_loop().post(move |_| send.send(()).unwrap()).unwrap();
    within(&receive);
}

/// A server that does `act` for each message, and one peer of it, whose handle comes along. The
/// receiver gets the reasons of ends.
fn serve_one(
    act: impl Fn(&Connection, &mut Buffer) + Send + Sync + 'static,
) -> (Running, TcpStream, ConnectionHandle, Receiver<String>) {
    let (handles, handle) = channel();
    // Not every test looks, and on_close comes after the end of the test too.
    let (ends, ended) = channel();
    let running = serve(move |event_loop| {
        TcpServer::bind(event_loop, "127.0.0.1:0")?
            .read_size(4096)
            .water_marks(1024, 16 * 1024 * 1024)
            .output_limit(32 * 1024 * 1024)
            .on_connect(move |conn| drop(handles.send(conn.handle())))
            .on_close(move |_, reason| drop(ends.send(format!("{reason:?}"))))
            .on_message(act)
            .start()
    });
    let peer = running.connect();
    let handle = within(&handle);
    (running, peer, handle, ended)
}

/// As `serve_one`, in which the only message is a cue to do `act` on the loop.
fn on_cue(act: impl Fn(&Connection) + Send + Sync + 'static) -> (Running, TcpStream) {
    let (running, mut peer, ..) = serve_one(move |conn, input| {
        input.clear();
        act(conn);
    });
    peer.write_all(b"!").unwrap();
    (running, peer)
}

#[test]
fn b29_messages_of_each_thread_arrive_in_order() {
    const THREADS: u32 = 4;
    const MESSAGES: u32 = 2000;
    each_poller!().run(|| {
        let (_running, peer, handle, _) = serve_one(|_, _| {});
        let send_all = |thread: u32, handle: &ConnectionHandle| {
            for number in 0..MESSAGES {
                let mut message = Buffer::new();
                message.append_u32(thread);
                message.append_u32(number);
                handle.send_buffer(&mut message).unwrap();
            }
        };
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let handle = handle.clone();
                scope.spawn(move || send_all(thread, &handle));
            }
        });
        let mut next = [0; THREADS as usize];
        let mut bytes = Buffer::from(read_n(&peer, (THREADS * MESSAGES * 8) as usize));
        while let (Some(thread), Some(number)) = (bytes.read_u32(), bytes.read_u32()) {
            assert_eq!(number, next[thread as usize], "of thread {thread}");
            next[thread as usize] += 1;
        }
        assert_eq!(next, [MESSAGES; THREADS as usize]);
    });
}

#[test]
fn b29_a_send_on_the_loop_leaves_after_a_posted_one_it_knows_of() {
    each_poller!().run(|| {
        let (_running, peer) = on_cue(|conn| {
            let post = |text: &'static str| {
                let handle = conn.handle();
                elsewhere(move || handle.send(text).unwrap());
            };
            post("1");
            conn.send("2");
            post("3");
            conn.send_buffer(&mut Buffer::from("4"));
            post("5");
            conn.send_shared(Arc::from(*b"6"));
            post("7");
            conn.try_send("8").unwrap();
            post("9");
            conn.handle().send("a").unwrap();
            post("b");
            conn.shutdown();
        });
        assert_eq!(read_to_end(&peer).unwrap(), b"123456789ab");
    });
}

#[test]
fn b29_a_posted_send_is_not_overtaken_through_another_connection() {
    const ROUNDS: usize = 300;
    each_poller!().run(|| {
        let (handles, handle) = channel::<ConnectionHandle>();
        // Each connection answers what comes to it on the first one.
        let first = std::sync::OnceLock::<ConnectionHandle>::new();
        let running = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_connect(move |conn| drop(handles.send(conn.handle())))
                .on_message(move |conn, input| {
                    let first = first.get_or_init(|| conn.handle());
                    first.send_buffer(input).unwrap();
                })
                .start()
        });
        let mut reader = running.connect();
        let handle = within(&handle);
        reader.write_all(b"x").unwrap();
        assert_eq!(read_n(&reader, 1), b"x");

        let mut other = running.connect();
        for _ in 0..ROUNDS {
            handle.send("1").unwrap();
            other.write_all(b"2").unwrap();
            assert_eq!(read_n(&reader, 2), b"12");
        }
    });
}

#[test]
fn b29_send_then_shutdown_from_another_thread_loses_nothing() {
    each_poller!().run(|| {
        let (running, peer, handle, ended) = serve_one(|_, _| {});
        let bytes = pattern(1024 * 1024);
        handle.send(&bytes).unwrap();
        handle.shutdown().unwrap();
        assert!(read_to_end(&peer).unwrap() == bytes, "not what was sent");
        drop(peer);
        assert_eq!(within(&ended), "ShutDown");
        assert_eq!(running.server.metrics().discarded, 0);
    });
}

#[track_caller]
fn assert_dead(handle: &ConnectionHandle) {
    let closed = Err(SendError::Closed);
    assert!(handle.is_closed());
    assert_eq!(handle.send("x"), closed);
    assert_eq!(handle.send_buffer(&mut Buffer::from("x")), closed);
    assert_eq!(handle.send_shared(Arc::from(*b"x")), closed);
    assert_eq!(handle.pause_reading(), closed);
    assert_eq!(handle.resume_reading(), closed);
    assert_eq!(handle.shutdown(), closed);
    assert_eq!(handle.close(), closed);
    assert_eq!(handle.reset(), closed);
}

#[test]
fn b29_handles_are_safe_after_the_end_of_the_connection() {
    each_poller!().run(|| {
        let (running, peer, handle, ended) = serve_one(|_, _| {});
        drop(peer);
        assert_eq!(within(&ended), "PeerClosed");
        assert_dead(&handle);
        // On the loop's thread too, and with another connection in the same place.
        let _next = running.connect();
        let (send, receive) = channel();
        let look = move |_: &_| {
            assert_dead(&handle);
            send.send(()).unwrap();
        };
        running.event_loop().post(look).unwrap();
        within(&receive);
    });
}

#[test]
fn b29_handles_are_safe_after_the_end_of_the_loop() {
    each_poller!().run(|| {
        let (running, _peer, handle, ended) = serve_one(|_, _| {});
        drop(running);
        assert_eq!(within(&ended), "LoopEnded");
        assert_dead(&handle);
    });
}

#[test]
fn b29_a_handle_made_in_on_close_is_closed() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let running = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_close(move |conn, _| send.send(conn.handle()).unwrap())
                .on_message(|_, _| {})
                .start()
        });
        drop(running.connect());
        assert_dead(&within(&receive));
    });
}

#[test]
fn b29_a_handle_on_the_loops_thread_acts_at_once() {
    each_poller!().run(|| {
        let (results, result) = channel();
        let (_running, peer) = on_cue(move |conn| {
            let handle = conn.handle();
            handle.send("abc").unwrap();
            // What is on its way counts with its storage, so this is what has arrived.
            let pending = conn.pending_output();
            handle.shutdown().unwrap();
            results.send((pending, conn.try_send("d"), handle.send("e"))).unwrap();
        });
        let closed = Err(SendError::Closed);
        assert_eq!(within(&result), (3, closed, closed));
        assert_eq!(read_to_end(&peer).unwrap(), b"abc");
    });
}

#[test]
fn b29_reading_pauses_and_resumes_through_handles() {
    each_poller!().run(|| {
        let (messages, message) = channel();
        let (running, mut peer, handle, _) = serve_one(move |_, input| {
            messages.send(input.read_bytes(input.len()).unwrap()).unwrap();
        });
        // Pauses are counted.
        handle.pause_reading().unwrap();
        handle.pause_reading().unwrap();
        barrier(&running);
        peer.write_all(b"first").unwrap();
        let mut other = running.connect();
        other.write_all(b"other").unwrap();
        assert_eq!(within(&message), b"other");
        handle.resume_reading().unwrap();
        barrier(&running);
        other.write_all(b"again").unwrap();
        assert_eq!(within(&message), b"again");
        handle.resume_reading().unwrap();
        assert_eq!(within(&message), b"first");
    });
}

#[test]
fn b29_pending_output_counts_what_is_on_its_way() {
    each_poller!().run(|| {
        let (counts, count) = channel();
        let (_running, peer) = on_cue(move |conn| {
            let handle = conn.handle();
            elsewhere(move || handle.send("posted").unwrap());
            let mut sent = 0;
            while conn.pending_output() < 100_000 {
                conn.send([b'x'; 1000]);
                sent += 1;
                assert!(sent <= 100, "what was sent is not counted");
            }
            conn.shutdown();
            counts.send(sent).unwrap();
        });
        let bytes = read_to_end(&peer).unwrap();
        assert_eq!(bytes.len(), 6 + 1000 * within(&count));
        assert!(bytes.starts_with(b"posted"));
    });
}

/// Limits of 64 KiB, within which a few buffers of 8,000 bytes fit.
fn serve_narrow(
    act: impl Fn(&Connection) + Send + Sync + 'static,
) -> (Running, TcpStream, ConnectionHandle, Receiver<String>) {
    let (handles, handle) = channel();
    let (ends, ended) = channel();
    let running = serve(move |event_loop| {
        TcpServer::bind(event_loop, "127.0.0.1:0")?
            .read_size(4096)
            .water_marks(1024, 16 * 1024)
            .output_limit(64 * 1024)
            .on_connect(move |conn| drop(handles.send(conn.handle())))
            .on_close(move |_, reason: &CloseReason| drop(ends.send(format!("{reason:?}"))))
            .on_message(move |conn, input| {
                input.clear();
                act(conn);
            })
            .start()
    });
    let peer = running.connect();
    let handle = within(&handle);
    (running, peer, handle, ended)
}

#[test]
fn b29_output_beyond_the_limit_closes_and_leaves_no_hole() {
    each_poller!().run(|| {
        let (running, mut peer, _, ended) = serve_narrow(|conn| {
            let handle = conn.handle();
            elsewhere(move || handle.send("begin ").unwrap());
            conn.send([b'1'; 40_000]);
            conn.send([b'2'; 40_000]); // too much
            conn.send("end");
        });
        peer.write_all(b"!").unwrap();
        assert_eq!(within(&ended), "OutputFull { limit: 65536 }");
        assert!(running.server.metrics().discarded >= 40_000);
        // What came, if anything, is a beginning of what was sent.
        let whole = [b"begin ".as_slice(), &[b'1'; 40_000]].concat();
        if let Ok(bytes) = read_to_end(&peer) {
            assert!(whole.starts_with(&bytes), "there is a hole in what the peer got");
        }
    });
}

/// As `serve_narrow`, with a loop that stands still until the sender is used.
fn serve_held() -> (Running, TcpStream, ConnectionHandle, Sender<()>) {
    let (blocked, is_blocked) = channel();
    let (go_on, may_go_on) = channel::<()>();
    let may_go_on = std::sync::Mutex::new(may_go_on);
    let (running, mut peer, handle, _) = serve_narrow(move |_| {
        blocked.send(()).unwrap();
        within(&may_go_on.lock().unwrap());
    });
    peer.write_all(b"!").unwrap();
    within(&is_blocked);
    (running, peer, handle, go_on)
}

#[test]
fn b29_handles_say_full_when_too_much_is_on_its_way() {
    each_poller!().run(|| {
        let (_running, peer, handle, go_on) = serve_held();
        let accepted = (0..100).take_while(|_| handle.send([b'x'; 8000]).is_ok()).count();
        assert_eq!(accepted, 8, "of 8,000 bytes each fit into 64 KiB");
        assert_eq!(handle.send([b'y'; 8000]), Err(SendError::Full));
        go_on.send(()).unwrap();
        // What was accepted arrives, and then there is room again.
        assert_eq!(read_n(&peer, 64_000), [b'x'; 64_000]);
        handle.send("z").unwrap();
        handle.shutdown().unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"z");
    });
}

/// Until it has arrived, it takes all that memory.
#[test]
fn b29_a_mostly_empty_buffer_that_is_on_its_way_counts_with_its_storage() {
    each_poller!().run(|| {
        let (_running, peer, handle, go_on) = serve_held();
        let send = |_: &i32| {
            let mut buffer = Buffer::with_capacity(10_000);
            buffer.append(b"x");
            handle.send_buffer(&mut buffer).is_ok()
        };
        let accepted = (0..100).take_while(send).count();
        assert!((5..=6).contains(&accepted), "{accepted} of 10,000 bytes each fit into 64 KiB");
        go_on.send(()).unwrap();
        handle.shutdown().unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), vec![b'x'; accepted]);
    });
}

#[derive(Default)]
struct Session {
    calls: u32,
}

impl Handler for Session {
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        // Everything below is posted before the loop can run any of it.
        input.clear();
        let session = conn.handle_for::<Session>();
        elsewhere(move || {
            let in_call = |session: &mut Session, conn: &Connection| {
                session.calls += 1;
                conn.handle().send("b").unwrap();
                conn.send("c");
            };
            session.connection().send("a").unwrap();
            session.post(in_call).unwrap();
            session.connection().send("d").unwrap();
            session.post(|session, conn| conn.send(session.calls.to_string())).unwrap();
        });
        conn.shutdown();
    }
}

#[test]
fn b29_posted_calls_reach_the_handler_in_the_order_of_sends() {
    each_poller!().run(|| {
        let running = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.serve(|_| Session::default())
        });
        let mut peer = running.connect();
        peer.write_all(b"!").unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"abcd1");
    });
}

#[test]
fn b29_posted_calls_find_what_is_in_the_box() {
    each_poller!().run(|| {
        let running = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .serve(|_| Box::new(Session::default()) as Box<dyn Handler>)
        });
        let mut peer = running.connect();
        peer.write_all(b"!").unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"abcd1");
    });
}

/// Whatever is on its way before it: it is for the input that is at hand.
#[test]
fn b29_a_pause_on_the_loops_thread_waits_for_nothing() {
    each_poller!().run(|| {
        let (results, result) = channel();
        let (_running, _peer) = on_cue(move |conn| {
            let handle = conn.handle();
            elsewhere(move || handle.send("x").unwrap());
            let before = conn.wants_input();
            conn.handle().pause_reading().unwrap();
            results.send((before, conn.wants_input())).unwrap();
        });
        assert_eq!(within(&result), (true, false));
    });
}

/// Another thread pauses, and then the loop, which knows of it, resumes.
#[test]
fn b29_a_resume_does_not_come_before_the_pause_it_ends() {
    each_poller!().run(|| {
        let running = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, input| {
                    let handle = conn.handle();
                    elsewhere(move || handle.pause_reading().unwrap());
                    conn.resume_reading();
                    let handle = conn.handle();
                    elsewhere(move || handle.pause_reading().unwrap());
                    conn.handle().resume_reading().unwrap();
                    conn.send_buffer(input);
                })
                .start()
        });
        let mut peer = running.connect();
        for _ in 0..3 {
            peer.write_all(b"x").unwrap();
            assert_eq!(read_n(&peer, 1), b"x");
        }
    });
}

/// Sends, in a posted call, while other threads post more.
struct Busy;

impl Handler for Busy {
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        input.clear();
        let busy = conn.handle_for::<Busy>();
        elsewhere(move || {
            let in_call = |_: &mut Busy, conn: &Connection| {
                let handle = conn.handle();
                elsewhere(move || handle.send("5").unwrap());
                conn.send("1");
            };
            busy.post(in_call).unwrap();
            busy.post(|_, conn| conn.handle().send("2").unwrap()).unwrap();
            busy.connection().send("3").unwrap();
            busy.post(|_, conn| conn.send("4")).unwrap();
        });
    }
}

#[test]
fn b29_what_a_posted_call_does_has_the_place_of_the_call() {
    each_poller!().run(|| {
        let running =
            serve(|event_loop| TcpServer::bind(event_loop, "127.0.0.1:0")?.serve(|_| Busy));
        let mut peer = running.connect();
        peer.write_all(b"!").unwrap();
        assert_eq!(read_n(&peer, 5), b"12345");
    });
}

#[test]
fn b29_calls_posted_by_two_threads_do_not_disorder_what_they_send() {
    each_poller!().run(|| {
        let (send, handle) = channel();
        let running = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.serve(move |conn| {
                send.send(conn.handle_for::<Busy>()).unwrap();
                Busy
            })
        });
        let peer = running.connect();
        let busy = within(&handle);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..20_000_u32 {
                    busy.post(move |_, conn| conn.send(number.to_be_bytes())).unwrap();
                }
            });
            // Calls that do nothing, at any moment.
            scope.spawn(|| (0..20_000).for_each(|_| busy.post(|_, _| {}).unwrap()));
            for number in 0..20_000_u32 {
                assert_eq!(read_n(&peer, 4), number.to_be_bytes());
            }
        });
    });
}

struct Tells {
    me: std::sync::mpsc::Sender<HandlerHandle<Session>>,
    end: std::sync::mpsc::Sender<String>,
}

impl Handler for Tells {
    fn on_connect(&mut self, conn: &Connection) {
        self.me.send(conn.handle_for::<Session>()).unwrap();
    }
    fn on_message(&mut self, _: &Connection, _: &mut Buffer) {}
    fn on_close(&mut self, _: &Connection, reason: &CloseReason) {
        drop(self.end.send(format!("{reason:?}")));
    }
}

#[test]
fn b29_a_call_for_a_handler_of_another_type_closes_and_says_so() {
    each_poller!().expect_log("is not a cross_thread::Session").run(|| {
        let (me, handle) = channel();
        let (end, ended) = channel();
        let running = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .serve(move |_| Tells { me: me.clone(), end: end.clone() })
        });
        let peer = running.connect();
        let session = within(&handle);
        session.post(|_, _| panic!("there is no such handler")).unwrap();
        assert_eq!(within(&ended), "Closed");
        assert_eq!(read_to_end(&peer).unwrap(), b"");
        assert_eq!(session.post(|_, _| {}), Err(SendError::Closed), "after its end");
    });
}
