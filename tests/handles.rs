//! Handles beside the order of what they send (that is `cross_thread`): inside callbacks, when the
//! connection ends, and in a race with its end.

#![allow(clippy::unwrap_used)]

mod common;
mod recorder;

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;

use common::{eventually, read_n, read_to_end, serve, within};
use recorder::{Recorded, Told, brief, recorded};
use ruduo::{Buffer, Connection, ConnectionHandle, EventLoop, Handler, SendError, TcpServer};

/// All that a handle can do, inside the connection's own callback: no double borrow.
#[test]
fn a_handle_in_the_connections_own_callbacks_is_as_good_as_the_connection() {
    alone!().run(|| {
        let (tell, told) = channel();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_connect(|conn| conn.handle().send("hello, ").unwrap())
                .on_message(|conn, input| {
                    let handle = conn.handle();
                    handle.send_buffer(input).unwrap();
                    handle.pause_reading().unwrap();
                    assert!(!conn.wants_input());
                    handle.resume_reading().unwrap();
                    assert!(conn.wants_input());
                })
                .on_write_complete(|conn| assert_eq!(conn.handle().id(), conn.id()))
                .on_half_close(|conn| conn.handle().shutdown().unwrap())
                .on_close(move |conn, reason| {
                    assert!(conn.handle().is_closed());
                    tell.send((conn.handle().close(), brief(reason))).unwrap();
                })
                .start()
        });
        let mut peer = server.connect();
        peer.write_all(b"world").unwrap();
        assert_eq!(read_n(&peer, 12), b"hello, world");
        drop(peer);
        assert_eq!(within(&told), (Err(SendError::Closed), "PeerClosed".into()));
    });
}

#[test]
fn a_handle_can_close_and_reset_from_another_thread() {
    alone!().run(|| {
        let (this, peer) = recorded(|server| server);
        this.conn.close().unwrap();
        assert_eq!(this.closed(), "Closed");
        assert_eq!(read_to_end(&peer).unwrap(), b"");

        let (this, peer) = recorded(|server| server);
        this.conn.reset().unwrap();
        assert_eq!(this.closed(), "Reset");
        assert_eq!(read_to_end(&peer).unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

/// Also the handler of a connection sees its own posts in order with its own sends.
#[test]
fn b29_a_callback_that_posts_to_itself_sends_the_rest_behind_it() {
    alone!().run(|| {
        let server = serve(move |event_loop| {
            struct Poster;
            impl Handler for Poster {
                fn on_message(&mut self, conn: &Connection<'_>, input: &mut Buffer) {
                    input.clear();
                    conn.send("1");
                    conn.handle_for::<Poster>().post(|_, conn| conn.send("2")).unwrap();
                    conn.send("3");
                    conn.shutdown();
                }
            }
            TcpServer::bind(event_loop, "127.0.0.1:0")?.serve(|_| Poster)
        });
        let mut peer = server.connect();
        peer.write_all(b"go").unwrap();
        assert_eq!(read_to_end(&peer).unwrap(), b"123");
    });
}

#[test]
fn b29_what_a_thread_sends_after_its_shutdown_is_discarded_and_counted() {
    alone!().run(|| {
        let (this, peer) = recorded(|server| server);
        let held = this.hold();
        this.conn.send("before").unwrap();
        this.conn.shutdown().unwrap();
        // The loop has not come to it yet, so nobody knows.
        this.conn.send("after").unwrap();
        drop(held);
        assert_eq!(read_to_end(&peer).unwrap(), b"before");
        // A turn that takes long leaves the last task to the next.
        this.let_turn();
        assert_eq!(this.server.server.metrics().discarded, 5);
    });
}

/// Both are run in one turn.
#[test]
fn b29_a_posted_call_behind_a_close_is_dropped() {
    alone!().run(|| {
        let (this, _peer) = recorded(|server| server);
        let held = this.hold();
        this.call(|conn| conn.close());
        let (tell, told) = channel();
        this.call(move |_| tell.send(()).unwrap());
        drop(held);
        assert_eq!(this.closed(), "Closed");
        assert!(told.recv().is_err(), "called after close");
    });
}

#[test]
fn b29_what_is_on_its_way_when_the_connection_ends_is_dropped() {
    alone!().run(|| {
        let (this, peer) = recorded(|server| server);
        // On their way when it ends.
        let held = this.hold_then(|conn| conn.close());
        this.conn.send("lost").unwrap();
        this.call(|_| panic!("called after the end"));
        this.conn.resume_reading().unwrap();
        drop(held);
        assert_eq!(this.closed(), "Closed");
        drop(peer);

        assert!(this.conn.is_closed());
        assert_eq!(this.conn.send("x"), Err(SendError::Closed));
        assert_eq!(this.handler.post(|_, _| {}), Err(SendError::Closed));
        // The place is somebody else's now.
        let mut other = this.server.connect();
        other.write_all(b"hello").unwrap();
        assert_eq!(within(&this.told), Told::Message(b"hello".to_vec()));
        let conn = this.conn.clone();
        let task = move |_: &EventLoop| assert_eq!(conn.close(), Err(SendError::Closed));
        this.server.event_loop().post(task).unwrap();
        this.let_turn();
        assert!(this.told.try_recv().is_err());
    });
}

#[test]
fn b29_handles_of_handlers_are_safe_after_the_loops_end() {
    alone!().run(|| {
        let (this, peer) = recorded(|server| server);
        let Recorded { server, conn, handler, told, .. } = this;
        drop(server);
        assert_eq!(within(&told), Told::Closed("LoopEnded".into()));
        assert_eq!(conn.send("x"), Err(SendError::Closed));
        assert_eq!(conn.send_shared(Arc::from(*b"x")), Err(SendError::Closed));
        assert_eq!(conn.close(), Err(SendError::Closed));
        assert_eq!(handler.post(|_, _| {}), Err(SendError::Closed));
        assert!(conn.is_closed() && conn.event_loop().is_ended());
        assert_eq!(read_to_end(&peer).unwrap(), b"");
    });
}

/// Threads that send, shut down, close and post while connections come and go.
#[test]
fn b29_handles_may_race_with_the_connections_end() {
    alone!().run(|| {
        let (tell, told) = channel::<ConnectionHandle>();
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .threads(2)
                .on_connect(move |conn| tell.send(conn.handle()).unwrap())
                .on_message(|conn, input| conn.send_buffer(input))
                .start()
        });
        for round in 0..100 {
            let mut peer = server.connect();
            let conn = within(&told);
            let senders: Vec<_> = (0..2)
                .map(|_| {
                    let conn = conn.clone();
                    thread::spawn(move || (0..1000).all(|_| conn.send("x").is_ok()))
                })
                .collect();
            match round % 4 {
                0 => drop(conn.close()),
                1 => drop(conn.reset()),
                2 => drop(conn.shutdown()),
                _ => peer.write_all(b"bye").unwrap(),
            }
            drop(peer);
            for sender in senders {
                sender.join().unwrap();
            }
        }
        eventually("all are closed", || server.server.metrics().open == 0);
    });
}
