//! Clients that connect, more closely: which attempt is the one that counts, and what an end ends.

#![allow(clippy::unwrap_used)]

mod common;
mod dialling;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use common::{DEADLINE, eventually, nobody, open_fds, serve, within};
use dialling::{Told, full, plain, quick, scene, start};
use nix::sys::signal::{Signal, raise};
use ruduo::{
    Address, Buffer, CloseReason, ConnectError, Connection, EventLoop, Handler, LoopThread, Retry,
    TcpClient, TcpServer, UnixAddress, UnixClient,
};

/// With a pause between two of them, it would take a minute.
#[test]
fn as_soon_as_an_address_fails_the_next_one_is_tried() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let mut addresses: Vec<SocketAddr> = vec![nobody(); 240];
        addresses.push(server.addr());
        let scene = scene(addresses, Box::new(|client| client.connect_timeout(DEADLINE / 2)));
        assert_eq!(within(&scene.told), Told::Connected(server.addr().into()));
        scene.client.stop(Duration::ZERO);
        scene.client.wait().unwrap();
    });
}

/// The next one has its quarter of a second from where the last one began, and not from where one
/// began that has failed since. What failed before the time was over is told as well.
#[test]
fn after_a_failure_the_pause_between_two_attempts_begins_anew() {
    alone!().run(|| {
        let refuses = nobody();
        let (silent, _fds): (Vec<_>, Vec<_>) = (0..3).map(|_| full()).unzip();
        let addresses = [refuses, silent[0], silent[1], silent[2]];
        // The third of those that are silent has its turn after half a second, or later.
        let timeout = Duration::from_millis(400);
        let scene = scene(addresses, Box::new(move |client| client.connect_timeout(timeout)));
        let Told::Failed { error, tried, .. } = within(&scene.told) else { panic!() };
        assert_eq!(error, ConnectError::TimedOut);
        let expected = [
            (refuses, ConnectError::Refused),
            (silent[0], ConnectError::TimedOut),
            (silent[1], ConnectError::TimedOut),
        ];
        let expected = expected.map(|(address, error)| (Address::from(address), error));
        // A busy loop may get to fewer.
        assert!(tried.len() >= 2 && expected.starts_with(&tried), "{tried:?}");
        scene.client.wait().unwrap();
    });
}

/// Nor does one that was given up hurry the next one.
#[test]
fn each_attempt_has_the_pause_between_addresses_for_itself() {
    alone!().run(|| {
        let (silent, _fds): (Vec<_>, Vec<_>) = (0..2).map(|_| full()).unzip();
        // Less than the pause.
        let timeout = Duration::from_millis(200);
        let scene = scene(
            &silent[..],
            Box::new(move |client| client.connect_timeout(timeout).retry(quick().at_most(2))),
        );
        for _ in 0..3 {
            let Told::Failed { tried, .. } = within(&scene.told) else { panic!() };
            assert_eq!(tried, [(Address::from(silent[0]), ConnectError::TimedOut)]);
        }
        scene.client.wait().unwrap();
    });
}

/// When its time is over or the client is stopped, and not only when the loop ends.
#[test]
fn an_attempt_that_is_given_up_leaves_no_socket() {
    let hour = Duration::from_secs(3600);
    alone!().run(|| {
        for timeout in [Duration::from_millis(50), hour] {
            let (address, fds) = full();
            let sockets = || open_fds().values().filter(|to| to.starts_with("socket:")).count();
            let retry = Retry::exponential().between(hour, hour);
            let scene = scene(
                address,
                Box::new(move |client| client.connect_timeout(timeout).retry(retry)),
            );
            if timeout == hour {
                eventually("it tries", || sockets() == fds.len() + 1);
                scene.client.stop(Duration::ZERO);
                scene.client.wait().unwrap();
            } else {
                assert!(matches!(within(&scene.told), Told::Failed { again: true, .. }));
            }
            eventually("there are those of the listener alone", || sockets() == fds.len());
            scene.client.stop(Duration::ZERO);
            scene.client.wait().unwrap();
        }
    });
}

/// The one before left it behind for a minute (TIME_WAIT), for the kernel alone.
#[test]
fn a_port_of_its_own_can_be_had_again_at_once() {
    alone!().run(|| {
        let own = nobody();
        for _ in 0..2 {
            let server = serve(|event_loop| {
                TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
            });
            let event_loop = EventLoop::new().unwrap();
            let reason = Rc::new(RefCell::new(String::new()));
            let told = reason.clone();
            struct Leaves(Rc<RefCell<String>>);
            impl Handler for Leaves {
                fn on_connect(&mut self, conn: &Connection) {
                    // First, so that the port stays on this side.
                    conn.shutdown();
                }
                fn on_message(&mut self, _: &Connection, _: &mut Buffer) {}
                fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
                    *self.0.borrow_mut() = reason.to_string();
                    conn.event_loop().quit();
                }
            }
            let failure = reason.clone();
            TcpClient::connect(&event_loop, server.addr())
                .bind_local(own)
                .on_connect_failed(move |event_loop, why| {
                    *failure.borrow_mut() = why.to_string();
                    event_loop.quit();
                })
                .serve(move |_| Leaves(told.clone()))
                .unwrap();
            event_loop.run().unwrap();
            assert_eq!(*reason.borrow(), "shut down");
        }
    });
}

/// However long it has lasted, what closes is tried again as after one failure.
#[test]
fn b61_whoever_may_try_once_more_may_do_so_after_each_connection() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_connect(|conn| conn.close())
                .on_message(|_, _| {})
                .start()
        });
        let scene = scene(server.addr(), Box::new(|client| client.retry(quick().at_most(1))));
        for _ in 0..3 {
            assert!(matches!(within(&scene.told), Told::Connected(_)));
            assert!(matches!(within(&scene.told), Told::Closed(_)));
        }
        scene.client.stop(Duration::ZERO);
        scene.client.wait().unwrap();
    });
}

/// While a client waits for the next attempt there is none.
#[test]
fn a_connection_that_has_closed_cannot_be_reached_any_more() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_connect(|conn| conn.close())
                .on_message(|_, _| {})
                .start()
        });
        let hour = Duration::from_secs(3600);
        let retry = Retry::exponential().between(hour, hour);
        let scene = scene(server.addr(), Box::new(move |client| client.retry(retry)));
        assert!(matches!(within(&scene.told), Told::Connected(_)));
        assert!(matches!(within(&scene.told), Told::Closed(_)));
        eventually("it is gone", || scene.client.connection().is_none());
        assert!(!scene.client.is_ended());
        scene.client.stop(Duration::ZERO);
        scene.client.wait().unwrap();
    });
}

#[test]
fn who_has_connected_in_time_is_not_too_late_afterwards() {
    const TIMEOUT: Duration = Duration::from_millis(100);
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let event_loop = EventLoop::new().unwrap();
        let told = Rc::new(RefCell::new(Vec::new()));
        let failures = told.clone();
        struct Stays(Rc<RefCell<Vec<&'static str>>>);
        impl Handler for Stays {
            fn on_connect(&mut self, conn: &Connection) {
                self.0.borrow_mut().push("connected");
                // The timers of a loop fire in their order.
                conn.event_loop().run_after(2 * TIMEOUT, EventLoop::quit);
            }
            fn on_message(&mut self, _: &Connection, _: &mut Buffer) {}
        }
        let stays = told.clone();
        // On a machine that stands still an attempt may really be too late.
        TcpClient::connect(&event_loop, server.addr())
            .connect_timeout(TIMEOUT)
            .retry(quick())
            .on_connect_failed(move |_, _| failures.borrow_mut().push("failed"))
            .serve(move |_| Stays(stays.clone()))
            .unwrap();
        event_loop.run().unwrap();
        let told = told.borrow();
        let since = told.iter().skip_while(|told| **told != "connected");
        assert_eq!(since.copied().collect::<Vec<_>>(), ["connected"]);
    });
}

#[test]
fn b62_stopped_before_it_has_begun_it_attempts_nothing() {
    alone!().run(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let event_loop = EventLoop::new().unwrap();
        let (tell, told) = mpsc::channel();
        let target = listener.local_addr().unwrap();
        let client = start(TcpClient::connect(&event_loop, target), tell);
        client.stop(Duration::ZERO);
        event_loop.defer(|event_loop| event_loop.defer(EventLoop::quit));
        event_loop.run().unwrap();
        assert!(client.is_ended());
        assert_eq!((client.attempts(), told.try_iter().count()), (0, 0));
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    });
}

/// The kernel connects, but has no room to watch the connection.
#[test]
fn b58_a_connection_that_the_loop_cannot_take_in_is_a_failure() {
    // The first call is for what wakes the loop. A Unix socket connects at once.
    let inject = "inject=epoll_ctl:error=ENOSPC:when=2+";
    alone!()
        .under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", inject])
        .env("RUDUO_POLLER", "epoll")
        .run(|| {
            let path = std::env::temp_dir().join(format!("ruduo-full-{}", std::process::id()));
            let listener = UnixListener::bind(&path).unwrap();
            let event_loop = EventLoop::new().unwrap();
            let told = Rc::new(RefCell::new(Vec::new()));
            let failures = told.clone();
            let made = Rc::new(Cell::new(false));
            let sees = made.clone();
            let client = UnixClient::connect(&event_loop, path.as_path())
                .retry(quick().at_most(1))
                .on_connect_failed(move |event_loop, failure| {
                    failures.borrow_mut().push(failure.clone());
                    if failure.retry_in.is_none() {
                        event_loop.quit();
                    }
                })
                .serve(move |_| {
                    sees.set(true);
                    ruduo::handler_fn(|_, _| {})
                })
                .unwrap();
            event_loop.run_after(DEADLINE, EventLoop::quit);
            event_loop.run().unwrap();
            std::fs::remove_file(&path).unwrap();
            assert_eq!((client.connections(), client.failures(), made.get()), (0, 2, false));
            assert!(client.is_ended() && client.connection().is_none());
            for failure in told.borrow().iter() {
                assert!(matches!(&failure.error, ConnectError::Other(_, why) if !why.is_empty()));
                assert_eq!(
                    failure.tried,
                    [(UnixAddress::Path(path.clone()).into(), failure.error.clone())]
                );
            }
            // What was connected is closed, both times.
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                assert_eq!(io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
            }
        });
}

#[test]
fn b62_a_handler_is_told_once_that_its_client_stops() {
    struct Tells(mpsc::Sender<String>);
    impl Handler for Tells {
        fn on_connect(&mut self, _: &Connection) {
            self.0.send("connected".into()).unwrap();
        }
        fn on_message(&mut self, _: &Connection, _: &mut Buffer) {}
        fn on_stopping(&mut self, _: &Connection) {
            self.0.send("stopping".into()).unwrap();
        }
        fn on_close(&mut self, _: &Connection, reason: &CloseReason) {
            self.0.send(reason.to_string()).unwrap();
        }
    }
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let (tell, told) = mpsc::channel();
        let (give, given) = mpsc::channel();
        let address = server.addr();
        let thread = ruduo::LoopThread::spawn("client", EventLoop::builder(), move |event_loop| {
            let tells = move |_: &Connection<'_>| Tells(tell.clone());
            give.send(TcpClient::connect(event_loop, address).serve(tells)?).unwrap();
            Ok(())
        })
        .unwrap();
        let client = within(&given);
        assert_eq!(within(&told), "connected");
        client.stop(Duration::from_secs(600));
        client.stop(Duration::from_secs(300));
        assert_eq!(within(&told), "stopping");
        client.stop(Duration::ZERO);
        assert!(within(&told).contains("stop's deadline"));
        client.wait().unwrap();
        thread.join().unwrap();
        assert_eq!(told.try_iter().count(), 0);
    });
}

/// Nor that of their common loop.
#[test]
fn b62_a_client_that_is_stopped_is_no_end_for_another() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, input| conn.send_buffer(input))
                .start()
        });
        let (tell, told) = mpsc::channel();
        let (give, given) = mpsc::channel();
        let address = server.addr();
        let thread = LoopThread::spawn("clients", EventLoop::builder(), move |event_loop| {
            for name in ["first", "second"] {
                let [connects, stops, messages, closes] = [(); 4].map(|()| tell.clone());
                let client = TcpClient::connect(event_loop, address)
                    .on_connect(move |_| connects.send((name, "connected".to_owned())).unwrap())
                    .on_stopping(move |_| stops.send((name, "stopping".to_owned())).unwrap())
                    .on_message(move |_, input| {
                        input.clear();
                        messages.send((name, "message".to_owned())).unwrap();
                    })
                    .on_close(move |_, reason| closes.send((name, reason.to_string())).unwrap())
                    .start()?;
                give.send(client).unwrap();
            }
            Ok(())
        })
        .unwrap();
        let (first, second) = (within(&given), within(&given));
        (0..2).for_each(|_| assert_eq!(within(&told).1, "connected"));
        first.stop(Duration::from_millis(50));
        first.wait().unwrap();
        assert_eq!(within(&told), ("first", "stopping".into()));
        assert_eq!(within(&told), ("first", "cut at the stop's deadline".into()));
        second.connection().unwrap().send("are you there?").unwrap();
        assert_eq!(within(&told), ("second", "message".into()));
        thread.join().unwrap();
        assert_eq!(within(&told), ("second", "the event loop ended".into()));
    });
}

/// One that has ended already, and one that finishes first.
#[test]
fn on_a_signal_the_loop_quits_after_the_last_of_its_clients_and_servers() {
    alone!().run(|| {
        let peer = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let event_loop = EventLoop::new().unwrap();
        let refused = TcpClient::connect(&event_loop, nobody())
            .on_message(|_, _| {})
            .on_connect_failed({
                let (peer, handle) = (peer.addr(), Rc::new(RefCell::new(None)));
                move |event_loop, _| {
                    let client = TcpClient::connect(event_loop, peer)
                        .retry(quick())
                        .on_connect(|conn| {
                            conn.send("all of this");
                            raise(Signal::SIGTERM).unwrap();
                        })
                        .on_message(|_, _| {})
                        .on_close(|_, reason| assert_eq!(reason.to_string(), "shut down"))
                        .start()
                        .unwrap();
                    client.stop_on_signals(event_loop, DEADLINE).unwrap();
                    handle.replace(Some(client));
                }
            })
            .start()
            .unwrap();
        refused.stop_on_signals(&event_loop, DEADLINE).unwrap();
        let server = TcpServer::bind(&event_loop, "127.0.0.1:0").unwrap();
        let server = server.on_message(|_, _| {}).start().unwrap();
        server.stop_on_signals(&event_loop, DEADLINE).unwrap();
        event_loop.run().unwrap();
        assert!(refused.is_ended() && server.is_ended());
        common::eventually("the peer has got it", || peer.server.metrics().received == 11);
        assert_eq!(event_loop.metrics().panics, 0);
    });
}

#[test]
fn signals_of_one_loop_stop_no_client_of_another() {
    alone!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let scene = scene(nobody(), plain());
        let error = scene.client.stop_on_signals(&event_loop, DEADLINE).unwrap_err();
        assert!(error.to_string().contains("another loop"), "{error}");
        drop(event_loop);
        scene.client.wait().unwrap();
    });
}
