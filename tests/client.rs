//! Connections that this side began.

#![allow(clippy::unwrap_used)]

mod common;

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::rc::Rc;
use std::time::Duration;

use common::{DEADLINE, read_n, read_to_end, serve};
use nix::sys::socket::{getsockopt, sockopt};
use ruduo::{
    Buffer, CloseReason, Connection, EventLoop, Handler, Keepalive, TcpClient, TcpServer,
    handler_fn,
};

/// Keeps what comes; quits the loop at the end.
#[derive(Default)]
struct Collector {
    seen: Rc<RefCell<Vec<u8>>>,
    reason: Rc<RefCell<String>>,
}

impl Handler for Collector {
    fn on_message(&mut self, _: &Connection, input: &mut Buffer) {
        self.seen.borrow_mut().extend_from_slice(input.readable());
        input.clear();
    }

    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        *self.reason.borrow_mut() = reason.to_string();
        conn.event_loop().quit();
    }
}

#[test]
fn a_stream_that_is_connected_becomes_a_connection() {
    each_poller!().run(|| {
        let echo = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, input| conn.send_buffer(input))
                .start()
        });
        let event_loop = EventLoop::new().unwrap();
        let collector = Collector::default();
        let (seen, reason) = (collector.seen.clone(), collector.reason.clone());
        let client = TcpClient::from_stream(&event_loop, echo.connect()).unwrap();
        let handle = client.serve(|_| collector).unwrap();
        handle.send("hello, ").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                handle.send("world").unwrap();
                handle.shutdown().unwrap();
            });
            event_loop.run().unwrap();
        });
        assert_eq!(*seen.borrow(), b"hello, world");
        assert_eq!(*reason.borrow(), "shut down");
        assert!(handle.is_closed());
    });
}

#[test]
fn the_peers_end_and_the_loops_end_are_told() {
    each_poller!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let event_loop = EventLoop::new().unwrap();
        let (first, second) = (Collector::default(), Collector::default());
        let reasons = (first.reason.clone(), second.reason.clone());
        let near = [connect(), connect()];
        let (far, addr) = listener.accept().unwrap();
        let (other, _) = listener.accept().unwrap();
        assert_eq!(near[0].local_addr().unwrap(), addr);
        for (stream, handler) in near.into_iter().zip([first, second]) {
            TcpClient::from_stream(&event_loop, stream).unwrap().serve(|_| handler).unwrap();
        }
        far.shutdown(Shutdown::Write).unwrap();
        event_loop.run().unwrap();
        assert_eq!(*reasons.0.borrow(), "closed by the peer");
        assert_eq!(*reasons.1.borrow(), "the event loop ended");
        far.set_read_timeout(Some(DEADLINE)).unwrap();
        other.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(read_to_end(&far).unwrap(), b"");
        assert_eq!(read_to_end(&other).unwrap(), b"");
    });
}

#[test]
fn what_on_connect_sends_leaves_and_a_dropped_handle_changes_nothing() {
    struct Greets;
    impl Handler for Greets {
        fn on_connect(&mut self, conn: &Connection) {
            conn.send("hello");
        }
        fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
            input.clear();
            conn.event_loop().quit();
        }
    }
    each_poller!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let event_loop = EventLoop::new().unwrap();
        drop(TcpClient::from_stream(&event_loop, stream).unwrap().serve(|_| Greets).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(read_n(&far, 5), b"hello");
                far.write_all(b"x").unwrap();
            });
            event_loop.run().unwrap();
        });
    });
}

/// It waits for the handler. Nothing else happens to the connection that could take it along.
#[test]
fn what_is_sent_before_a_connection_has_begun_leaves() {
    each_poller!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        far.set_read_timeout(Some(DEADLINE)).unwrap();
        let event_loop = EventLoop::new().unwrap();
        event_loop.defer(move |event_loop| {
            let client = TcpClient::from_stream(event_loop, stream).unwrap();
            client.serve(|_| Collector::default()).unwrap().send("hello").unwrap();
        });
        let mut bytes = [0; 5];
        std::thread::scope(|scope| {
            let peer = scope.spawn(|| {
                let outcome = far.read_exact(&mut bytes);
                // Ends the connection, and with it the loop.
                far.shutdown(Shutdown::Write).unwrap();
                outcome
            });
            event_loop.run().unwrap();
            peer.join().unwrap().expect("it never left");
        });
        assert_eq!(bytes, *b"hello");
    });
}

/// With something borrowed around it, for example.
#[test]
fn nothing_is_called_inside_the_callback_that_begins_a_connection() {
    struct Borrows(Rc<RefCell<Vec<&'static str>>>);
    impl Handler for Borrows {
        fn on_connect(&mut self, conn: &Connection) {
            self.0.borrow_mut().push("on_connect");
            conn.send("second");
        }
        fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
            self.0.borrow_mut().push("on_message");
            input.clear();
            conn.close();
        }
        fn on_close(&mut self, conn: &Connection, _: &CloseReason) {
            conn.event_loop().quit();
        }
    }
    each_poller!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        far.set_read_timeout(Some(DEADLINE)).unwrap();
        // There is something to read, and an end, before anybody can.
        far.write_all(b"x").unwrap();
        far.shutdown(Shutdown::Write).unwrap();
        let event_loop = EventLoop::new().unwrap();
        let calls = Rc::new(RefCell::new(Vec::new()));
        let seen = calls.clone();
        event_loop.defer(move |event_loop| {
            let calls = seen.clone();
            let mut borrowed = seen.borrow_mut();
            borrowed.push("a task begins");
            let new = move |_: &Connection| {
                calls.borrow_mut().push("factory");
                Borrows(calls)
            };
            let handle = TcpClient::from_stream(event_loop, stream).unwrap().serve(new).unwrap();
            handle.send("first ").unwrap();
            borrowed.push("and ends");
        });
        event_loop.run().unwrap();
        let expected = ["a task begins", "and ends", "factory", "on_connect", "on_message"];
        assert_eq!(*calls.borrow(), expected);
        assert_eq!(read_n(&far, 12), b"first second");
    });
}

#[test]
fn a_connection_may_end_before_it_has_begun() {
    each_poller!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let event_loop = EventLoop::new().unwrap();
        let streams = (connect(), connect());
        let collector = Collector::default();
        let reason = collector.reason.clone();
        event_loop.defer(move |event_loop| {
            let client = TcpClient::from_stream(event_loop, streams.0).unwrap();
            let never = |_: &Connection<'_>| -> Collector { panic!("a handler for nothing") };
            client.serve(never).unwrap().close().unwrap();
            event_loop.defer(move |event_loop| {
                event_loop.quit();
                let client = TcpClient::from_stream(event_loop, streams.1).unwrap();
                client.serve(|_| collector).unwrap();
            });
        });
        event_loop.run().unwrap();
        assert_eq!(event_loop.metrics().panics, 0);
        assert_eq!(*reason.borrow(), "the event loop ended");
        for _ in 0..2 {
            let far = listener.accept().unwrap().0;
            far.set_read_timeout(Some(DEADLINE)).unwrap();
            assert_eq!(read_to_end(&far).unwrap(), b"");
        }
    });
}

#[test]
fn a_hang_up_before_it_has_begun_is_noticed_though_reading_is_paused() {
    struct Pauses(Rc<RefCell<String>>);
    impl Handler for Pauses {
        fn on_connect(&mut self, conn: &Connection) {
            conn.pause_reading();
            conn.set_timer(0, Duration::from_secs(1));
        }
        fn on_message(&mut self, _: &Connection, input: &mut Buffer) {
            input.clear();
        }
        fn on_timer(&mut self, conn: &Connection, _: u64) {
            conn.resume_reading();
        }
        fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
            *self.0.borrow_mut() = reason.to_string();
            conn.event_loop().quit();
        }
    }
    each_poller!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let event_loop = EventLoop::new().unwrap();
        let reason = Rc::new(RefCell::new(String::new()));
        let pauses = Pauses(reason.clone());
        TcpClient::from_stream(&event_loop, stream).unwrap().serve(|_| pauses).unwrap();
        common::reset(far);
        event_loop.run().unwrap();
        assert!(reason.borrow().contains("reset"), "{}", reason.borrow());
    });
}

#[test]
fn a_child_forked_by_a_last_task_sends_nothing() {
    each_poller!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        far.set_read_timeout(Some(DEADLINE)).unwrap();
        let event_loop = EventLoop::new().unwrap();
        let client = TcpClient::from_stream(&event_loop, stream).unwrap();
        let handle = client.serve(|_| handler_fn(|_, input| input.clear())).unwrap();
        let parent = std::process::id();
        event_loop.run_after(Duration::from_millis(20), move |event_loop| {
            event_loop.quit();
            event_loop.defer(move |_| {
                handle.send("once").unwrap();
                // SAFETY: the child only leaves the loop, and exits.
                let child = unsafe { libc::fork() };
                if child > 0 {
                    // SAFETY: nobody asks how it ended.
                    unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
                }
            });
        });
        let outcome = event_loop.run();
        if std::process::id() != parent {
            // SAFETY: the child leaves without running what belongs to its parent.
            unsafe { libc::_exit(i32::from(outcome.is_ok())) }
        }
        drop(event_loop);
        assert_eq!(read_to_end(&far).unwrap(), b"once");
    });
}

#[test]
fn a_stream_that_is_not_connected_any_more_is_an_error() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        common::reset(listener.accept().unwrap().0);
        common::eventually("the reset has arrived", || stream.peer_addr().is_err());
        let error = TcpClient::from_stream(&event_loop, stream).unwrap_err();
        assert!(error.to_string().contains("taking over a stream"), "{error}");

        event_loop.quit();
        event_loop.run().unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let client = TcpClient::from_stream(&event_loop, stream).unwrap();
        let error = client.serve(|_| handler_fn(|_, input| input.clear())).unwrap_err();
        assert!(error.to_string().contains("ended"), "{error}");
    });
}

/// As std makes it, it would wait in the call until the peer has room.
#[test]
fn a_stream_that_blocks_does_not_block_the_loop() {
    each_poller!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let event_loop = EventLoop::new().unwrap();
        TcpClient::from_stream(&event_loop, stream)
            .unwrap()
            .on_connect(|conn| conn.send_shared(vec![b'x'; 50 << 20].into()))
            .on_high_water(|conn, _| conn.event_loop().quit())
            .on_message(|_, input| input.clear())
            .start()
            .unwrap();
        event_loop.run().unwrap();
        drop(far);
    });
}

#[test]
fn a_stream_is_described_by_closures_and_settings_like_a_client() {
    each_poller!().run(|| {
        let echo = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, input| conn.send_buffer(input))
                .start()
        });
        let event_loop = EventLoop::new().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (stream, tell_end) = (echo.connect(), tell.clone());
        let same = stream.try_clone().unwrap();
        let handle = TcpClient::from_stream(&event_loop, stream)
            .unwrap()
            .idle_timeout(Duration::from_millis(200))
            .keepalive(Keepalive::default())
            .nodelay(false)
            .on_connect(|conn| conn.send("hello"))
            .on_message(move |_, input| {
                tell.send(String::from_utf8_lossy(input.readable()).into_owned()).unwrap();
                input.clear();
            })
            .on_close(move |conn, reason| {
                tell_end.send(reason.to_string()).unwrap();
                conn.event_loop().quit();
            })
            .start()
            .unwrap();
        assert!(getsockopt(&same, sockopt::KeepAlive).unwrap());
        assert!(!same.nodelay().unwrap());
        event_loop.run().unwrap();
        let told: Vec<_> = told.try_iter().collect();
        assert_eq!(told.concat(), "hellothe peer said nothing for 200ms");
        assert!(handle.is_closed());
    });
}

#[test]
fn a_stream_has_nodelay_and_its_settings_are_checked() {
    each_poller!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let event_loop = EventLoop::new().unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let same = stream.try_clone().unwrap();
        let client = TcpClient::from_stream(&event_loop, stream).unwrap();
        client.serve(|_| handler_fn(|_, _| {})).unwrap();
        assert!(same.nodelay().unwrap());

        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let client = TcpClient::from_stream(&event_loop, stream).unwrap();
        let error = client.water_marks(10, 5).serve(|_| handler_fn(|_, _| {})).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("taking over a stream"), "{error}");
    });
}
