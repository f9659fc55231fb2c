//! Clients that connect: what becomes of an attempt, when the next one comes, and how to end it all.

#![allow(clippy::unwrap_used)]

mod common;
mod dialling;

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{DEADLINE, allow_descriptors, new_socket, nobody, open_fds, serve, within};
use dialling::{Setup, Told, full, plain, quick, scene, start};
use nix::sys::socket::{SockaddrIn, bind};
use ruduo::{
    Address, ClientHandle, ConnectError, EventLoop, LoopThread, PanicPolicy, Retry, TcpClient,
    TcpServer, UnixAddress, UnixClient, UnixServer,
};

#[test]
fn a_client_connects_talks_and_ends_with_its_connection() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_connect(|conn| conn.send("hello"))
                .on_message(|conn, input| {
                    assert_eq!(input.readable(), b"hello");
                    conn.finish();
                })
                .start()
        });
        let scene = scene(server.addr(), plain());
        assert_eq!(within(&scene.told), Told::Connected(server.addr().into()));
        assert_eq!(within(&scene.told), Told::Closed("closed by the peer".into()));
        scene.client.wait().unwrap();
        assert_eq!((scene.client.connections(), scene.client.failures()), (1, 0));
        assert!(scene.client.connection().is_none());
    });
}

#[test]
fn unix_sockets_are_connected_to_by_the_same_client() {
    alone!().run(|| {
        let path = std::env::temp_dir().join(format!("ruduo-client-{}", std::process::id()));
        let server = {
            let path = path.clone();
            serve(move |event_loop| {
                UnixServer::bind(event_loop, path)?
                    .on_connect(|conn| conn.finish())
                    .on_message(|_, _| {})
                    .start()
            })
        };
        let event_loop = EventLoop::new().unwrap();
        let client = UnixClient::connect(&event_loop, path.as_path())
            .on_message(|_, _| {})
            .on_close(|conn, reason| {
                assert!(reason.is_clean(), "{reason}");
                conn.event_loop().quit();
            })
            .start()
            .unwrap();
        event_loop.run().unwrap();
        assert_eq!(client.connections(), 1);
        drop(server);
    });
}

#[test]
fn a_name_is_resolved_off_the_loop() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let scene = scene(format!("localhost:{}", server.addr().port()), plain());
        assert_eq!(within(&scene.told), Told::Connected(server.addr().into()));
        scene.client.stop(Duration::ZERO);
        scene.client.wait().unwrap();
    });
}

#[test]
fn b58_refused() {
    alone!().run(|| scene(nobody(), plain()).expect_only(ConnectError::Refused));
}

#[test]
fn b58_unreachable() {
    // A network of its own, in which nothing is up.
    alone!().under(&["unshare", "--net"]).run(|| {
        scene("192.0.2.1:80".to_owned(), plain()).expect_only(ConnectError::Unreachable);
    });
}

#[test]
fn b58_a_file_that_may_not_be_written_to_and_none_at_all() {
    alone!().run(|| {
        let path = std::env::temp_dir().join(format!("ruduo-none-{}", std::process::id()));
        let scene = scene(path, plain());
        let Told::Failed { error: ConnectError::Other(kind, _), .. } = within(&scene.told) else {
            panic!()
        };
        assert_eq!(kind, std::io::ErrorKind::NotFound);
    });
}

#[test]
fn b58_errors_that_connect_returns_at_once() {
    for (errno, expected) in [
        ("EACCES", ConnectError::PermissionDenied),
        ("EADDRNOTAVAIL", ConnectError::AddressExhausted),
        ("ENETUNREACH", ConnectError::Unreachable),
        ("EINVAL", ConnectError::Other(std::io::ErrorKind::InvalidInput, String::new())),
    ] {
        let inject = format!("inject=connect:error={errno}:when=1+");
        alone!()
            .under(&["strace", "-f", "-qq", "-o", "/dev/null", "-e", &inject])
            .env("RUDUO_EXPECTED", format!("{expected:?}"))
            .run(|| {
                let expected = std::env::var("RUDUO_EXPECTED").unwrap();
                let scene = scene("127.0.0.1:9".to_owned(), plain());
                let Told::Failed { error, tried, .. } = within(&scene.told) else { panic!() };
                let said = format!("{error:?}");
                let kind = |text: &str| text.split('"').next().unwrap().to_owned();
                assert_eq!(kind(&said), kind(&expected));
                assert_eq!(tried.len(), 1);
                scene.client.wait().unwrap();
            });
    }
}

#[test]
fn b58_a_name_that_nobody_has() {
    alone!().run(|| {
        let scene = scene("nobody.invalid:1", plain());
        let Told::Failed { error, tried, .. } = within(&scene.told) else { panic!() };
        assert!(matches!(&error, ConnectError::NotResolved(why) if why.contains("nobody.invalid")));
        assert_eq!(tried, []);
        scene.client.wait().unwrap();
    });
}

#[test]
fn a_list_of_no_addresses_is_a_name_that_stands_for_nothing() {
    alone!().run(|| {
        let scene = scene(Vec::<SocketAddr>::new(), plain());
        let Told::Failed { error, again, .. } = within(&scene.told) else { panic!() };
        assert!(!again && matches!(error, ConnectError::NotResolved(_)), "{error:?}");
        scene.client.wait().unwrap();
    });
}

#[test]
fn b59_no_answer_is_a_timeout() {
    alone!().run(|| {
        let (address, _fds) = full();
        let scene =
            scene(address, Box::new(|client| client.connect_timeout(Duration::from_millis(200))));
        let Told::Failed { error, tried, .. } = within(&scene.told) else { panic!() };
        assert_eq!(error, ConnectError::TimedOut);
        assert_eq!(tried, [(address.into(), ConnectError::TimedOut)]);
        scene.client.wait().unwrap();
    });
}

#[test]
fn of_several_addresses_the_first_that_answers_is_taken() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        // One that never answers, one that refuses, and one that accepts.
        let (silent, _fds) = full();
        let scene = scene([silent, nobody(), server.addr()], plain());
        assert_eq!(within(&scene.told), Told::Connected(server.addr().into()));
        scene.client.stop(Duration::ZERO);
        scene.client.wait().unwrap();
        assert_eq!((scene.client.attempts(), scene.client.failures()), (1, 0));
    });
}

#[test]
fn those_that_lose_a_race_are_closed() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let (silent, _fds) = full();
        let event_loop = EventLoop::new().unwrap();
        let open = || open_fds().len();
        let before = open();
        let client = TcpClient::connect(&event_loop, [silent, server.addr()])
            .on_connect(|conn| conn.finish())
            .on_message(|_, _| {})
            .start()
            .unwrap();
        // While the loop runs, for it closes everything when it ends.
        let deadline = Instant::now() + DEADLINE;
        let given_back = Rc::new(Cell::new(false));
        event_loop.run_every(Duration::from_millis(1), {
            let (client, given_back) = (client.clone(), given_back.clone());
            move |event_loop| {
                given_back.set(client.is_ended() && open() <= before);
                if given_back.get() || Instant::now() > deadline {
                    event_loop.quit();
                }
            }
        });
        event_loop.run().unwrap();
        assert_eq!((client.connections(), given_back.get()), (1, true));
    });
}

#[test]
fn when_all_fail_each_is_told_with_its_reason() {
    alone!().run(|| {
        let (one, other) = (nobody(), nobody());
        let scene = scene([one, other], plain());
        let Told::Failed { error, tried, .. } = within(&scene.told) else { panic!() };
        assert_eq!(error, ConnectError::Refused);
        let refused = |address: SocketAddr| (Address::from(address), ConnectError::Refused);
        assert_eq!(tried, [refused(one), refused(other)]);
        scene.client.wait().unwrap();

        // The first one's is the attempt's.
        let path = std::env::temp_dir().join(format!("ruduo-none-{}", std::process::id()));
        let (one, none) = (Address::from(one), Address::from(UnixAddress::Path(path)));
        for addresses in [[one.clone(), none.clone()], [none, one]] {
            let scene = dialling::scene(addresses.to_vec(), plain());
            let Told::Failed { error, tried, .. } = within(&scene.told) else { panic!() };
            let (tried, reasons): (Vec<_>, Vec<_>) = tried.into_iter().unzip();
            assert_eq!(tried, addresses);
            assert!(error == reasons[0] && error != reasons[1], "{error:?} of {reasons:?}");
            scene.client.wait().unwrap();
        }
    });
}

#[test]
fn b60_a_connection_to_itself_is_none() {
    alone!().run(|| {
        let address = nobody();
        scene(address, Box::new(move |client| client.bind_local(address)))
            .expect_only(ConnectError::SelfConnected);
        // Its server can have the port at once: no connection of the past is in its way.
        let SocketAddr::V4(address) = address else { panic!() };
        bind(new_socket().as_raw_fd(), &SockaddrIn::from(address)).unwrap();
    });
}

#[test]
fn b60_a_connection_to_itself_by_another_of_its_addresses_is_none() {
    alone!().run(|| {
        let address = nobody();
        let any = SocketAddr::from(([0, 0, 0, 0], address.port()));
        scene(any, Box::new(move |client| client.bind_local(address)))
            .expect_only(ConnectError::SelfConnected);
    });
}

#[test]
fn b61_attempts_are_counted_until_one_succeeds_and_then_anew() {
    alone!().run(|| {
        let address = nobody();
        let scene = scene(address, Box::new(|client| client.retry(quick())));
        for expected in 1..=4 {
            let Told::Failed { attempt, again, .. } = within(&scene.told) else { panic!() };
            assert_eq!((attempt, again), (expected, true));
        }
        // The server comes, goes, and comes again.
        for _ in 0..2 {
            let server = serve(move |event_loop| {
                TcpServer::bind(event_loop, address)?.on_message(|_, _| {}).start()
            });
            while !matches!(within(&scene.told), Told::Connected(_)) {}
            server.server.stop(Duration::ZERO);
            server.server.wait().unwrap();
            assert!(matches!(within(&scene.told), Told::Closed(_)));
            drop(server);
            let Told::Failed { attempt, .. } = within(&scene.told) else { panic!() };
            assert_eq!(attempt, 1, "a connection sets the count back");
        }
        scene.client.stop(Duration::ZERO);
        scene.client.wait().unwrap();
        assert_eq!(scene.client.connections(), 2);
    });
}

#[test]
fn b61_many_clients_find_a_server_that_was_restarted() {
    const CLIENTS: usize = 1_000;
    let test = alone!();
    // Both ends of each, and what else there is.
    if !allow_descriptors(2 * CLIENTS as u64 + 100) {
        return test.skip("2,100 descriptors are more than are allowed here");
    }
    test.run(|| {
        let address = nobody();
        let (tell, told) = mpsc::channel();
        let thread = LoopThread::spawn("clients", EventLoop::builder(), move |event_loop| {
            for _ in 0..CLIENTS {
                let tell = tell.clone();
                TcpClient::connect(event_loop, address)
                    .retry(quick())
                    .on_connect(move |_| tell.send(()).unwrap())
                    .on_message(|_, _| {})
                    .start()?;
            }
            Ok(())
        })
        .unwrap();
        for _ in 0..2 {
            let server = serve(move |event_loop| {
                TcpServer::bind(event_loop, address)?.on_message(|_, _| {}).start()
            });
            for _ in 0..CLIENTS {
                within(&told);
            }
            server.server.stop(Duration::ZERO);
            server.server.wait().unwrap();
        }
        thread.join().unwrap();
    });
}

#[test]
fn a_policy_that_gives_up_does() {
    alone!().run(|| {
        let scene = scene(nobody(), Box::new(|client| client.retry(quick().at_most(2))));
        for expected in [(1, true), (2, true), (3, false)] {
            let Told::Failed { attempt, again, .. } = within(&scene.told) else { panic!() };
            assert_eq!((attempt, again), expected);
        }
        scene.client.wait().unwrap();
    });
}

/// The states to stop in: before anything has begun, resolving, connecting, waiting, connected.
fn states() -> Vec<(&'static str, Setup, ruduo::Addresses, Vec<OwnedFd>)> {
    let (silent, fds) = full();
    let hour = Duration::from_secs(3600);
    let patient: Setup =
        Box::new(move |client| client.retry(Retry::exponential().between(hour, hour)));
    vec![
        ("connecting", plain(), silent.into(), fds),
        ("resolving", plain(), "localhost:1".into(), Vec::new()),
        ("waiting", patient, nobody().into(), Vec::new()),
    ]
}

#[test]
fn b62_a_client_is_stopped_in_every_state() {
    alone!().run(|| {
        for (state, setup, target, _fds) in states() {
            let scene = scene(target, setup);
            if state == "waiting" {
                assert!(matches!(within(&scene.told), Told::Failed { again: true, .. }));
            }
            scene.client.stop(Duration::from_secs(600));
            scene.client.wait().unwrap();
            let after = scene.told.try_iter().count();
            scene.thread.join().unwrap();
            assert_eq!(scene.told.try_iter().count(), 0, "{state}: {after} before");
        }
    });
}

#[test]
fn b62_a_loop_ends_in_every_state() {
    alone!().run(|| {
        for (state, setup, target, _fds) in states() {
            let scene = scene(target, setup);
            if state == "waiting" {
                assert!(matches!(within(&scene.told), Told::Failed { .. }));
            }
            scene.thread.join().unwrap();
            scene.client.wait().unwrap();
            assert!(scene.client.is_ended());
            scene.client.stop(Duration::ZERO);
        }
    });
}

#[test]
fn b62_a_loop_that_ends_with_a_connection_makes_no_other() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let scene = scene(server.addr(), Box::new(|client| client.retry(quick())));
        assert!(matches!(within(&scene.told), Told::Connected(_)));
        scene.thread.join().unwrap();
        scene.client.wait().unwrap();
        assert!(matches!(within(&scene.told), Told::Closed(_)));
        assert!(scene.client.connection().is_none());
        assert_eq!((scene.client.attempts(), scene.told.try_iter().count()), (1, 0));
    });
}

#[test]
fn b62_a_loop_that_never_ran_ends_its_clients() {
    alone!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (tell, told) = mpsc::channel();
        let client = start(TcpClient::connect(&event_loop, nobody()), tell);
        drop(event_loop);
        client.wait().unwrap();
        assert_eq!(told.try_iter().count(), 0);
    });
}

#[test]
fn b62_stopped_in_the_turn_that_fails_or_connects() {
    /// Stops a client as soon as it has begun and something is done. Returns how often it tried, how
    /// often it was connected, and how much was told of it.
    fn stopped_at_once(target: SocketAddr, done: impl FnOnce() + 'static) -> (u64, u64, usize) {
        let event_loop = EventLoop::new().unwrap();
        let (tell, told) = mpsc::channel();
        let client = start(TcpClient::connect(&event_loop, target).retry(quick()), tell);
        let stopped = client.clone();
        event_loop.defer(move |event_loop| {
            done();
            stopped.stop(Duration::ZERO);
            event_loop.defer(EventLoop::quit);
        });
        event_loop.run().unwrap();
        assert!(client.is_ended());
        (client.attempts(), client.connections(), told.try_iter().count())
    }
    // If that is in one turn, which is not sure: one in which there is no time left ends early.
    let nothing_is_told = |stopped: &dyn Fn() -> (u64, u64, usize)| {
        assert!((0..5).any(|_| stopped() == (1, 0, 0)), "{:?}", stopped());
    };

    alone!().run(|| {
        // muduo's regression: stop in the same turn as a failing connect.
        nothing_is_told(&|| stopped_at_once(nobody(), || {}));

        // In that of one that succeeds: before the loop hears of the stop, it hears that this is done.
        let listener = Rc::new(TcpListener::bind("127.0.0.1:0").unwrap());
        let address = listener.local_addr().unwrap();
        nothing_is_told(&|| {
            let listener = listener.clone();
            stopped_at_once(address, move || drop(listener.accept().unwrap()))
        });
    });
}

#[test]
fn b62_connected_it_stops_gracefully_and_is_cut_at_the_deadline() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_half_close(|_| {})
                .on_message(|_, _| {})
                .start()
        });
        let scene = scene(server.addr(), Box::new(|client| client.retry(quick())));
        assert!(matches!(within(&scene.told), Told::Connected(_)));
        assert!(scene.client.connection().is_some());
        // Its handler shuts down; the server never does. The earliest deadline counts.
        scene.client.stop(Duration::from_secs(600));
        scene.client.stop(Duration::from_millis(100));
        scene.client.stop(Duration::from_secs(600));
        assert_eq!(within(&scene.told), Told::Closed("cut at the stop's deadline".into()));
        scene.client.wait().unwrap();
        assert_eq!(scene.client.attempts(), 1, "no new connection after a stop");
    });
}

#[test]
fn a_client_stops_itself_when_it_is_told_of_a_failure() {
    alone!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let handle = Rc::new(RefCell::new(None::<ClientHandle>));
        let told = Rc::new(RefCell::new(0));
        let client = {
            let (handle, told) = (handle.clone(), told.clone());
            TcpClient::connect(&event_loop, nobody())
                .retry(quick())
                .on_connect_failed(move |event_loop, _| {
                    *told.borrow_mut() += 1;
                    handle.borrow().as_ref().unwrap().stop(Duration::ZERO);
                    event_loop.run_after(Duration::from_millis(100), EventLoop::quit);
                })
                .serve(|_| ruduo::handler_fn(|_, _| {}))
                .unwrap()
        };
        *handle.borrow_mut() = Some(client);
        event_loop.run().unwrap();
        assert_eq!(*told.borrow(), 1);
        drop(event_loop);
    });
}

#[test]
fn b45_a_panic_in_the_failure_callback_or_the_factory_costs_neither_loop_nor_client() {
    alone!().expect_log("panicked").run(|| {
        std::panic::set_hook(Box::new(|_| {}));
        let address = nobody();
        let (tell, told) = mpsc::channel();
        let builder = EventLoop::builder().panic_policy(PanicPolicy::Isolate);
        let thread = LoopThread::spawn("client", builder, move |event_loop| {
            let failures = tell.clone();
            let mut made = 0;
            TcpClient::connect(event_loop, address)
                .retry(quick())
                .on_connect_failed(move |_, _| {
                    failures.send("failed").unwrap();
                    panic!("in the failure callback");
                })
                .serve(move |_| {
                    made += 1;
                    tell.send("made").unwrap();
                    assert!(made > 1, "in the factory");
                    ruduo::handler_fn(|_, _| {})
                })?;
            Ok(())
        })
        .unwrap();
        assert_eq!([within(&told), within(&told)], ["failed", "failed"]);
        let server = serve(move |event_loop| {
            TcpServer::bind(event_loop, address)?.on_message(|_, _| {}).start()
        });
        let mut made = 0;
        while made < 2 {
            made += usize::from(within(&told) == "made");
        }
        thread.join().unwrap();
        drop(server);
    });
}

#[test]
fn settings_that_contradict_each_other_are_an_error_of_starting() {
    alone!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let error = TcpClient::connect(&event_loop, "127.0.0.1:1")
            .water_marks(10, 5)
            .on_message(|_, _| {})
            .start()
            .unwrap_err();
        assert!(error.to_string().contains("starting a client"), "{error}");
    });
}

#[test]
fn options_are_set_on_the_socket() {
    alone!().run(|| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let scene = scene(
            server.addr(),
            Box::new(|client| client.keepalive(ruduo::Keepalive::default()).nodelay(false)),
        );
        assert!(matches!(within(&scene.told), Told::Connected(_)));
        let port = format!(":{}", server.addr().port());
        match Command::new("ss").args(["-tno", "dport", "=", &port]).output() {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(text.contains("timer:(keepalive"), "{text}");
            }
            Err(_) => eprintln!("SKIPPED: there is no ss on this machine"),
        }
        scene.client.stop(Duration::ZERO);
        scene.client.wait().unwrap();
    });
}
