//! Clients whose names are not answered, or too late.

#![allow(clippy::unwrap_used)]

mod common;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod denial;
mod dialling;
mod recorder;
mod shim;

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use common::{Alone, eventually, open_fds, proc, serve, within};
use dialling::{Scene, Setup, Told, quick, scene};
use recorder::{hold, turns};
use ruduo::{ConnectError, Retry, TcpServer};

/// So many names are looked up at a time, and so many if all are slow.
const AT_ONCE: usize = 16;
const MAX_THREADS: usize = 64;

/// The name servers of a test's process: see `shim/resolver.c`.
struct Resolver {
    folder: PathBuf,
}

impl Resolver {
    fn run(alone: Alone, body: impl FnOnce(&Resolver)) {
        let name =
            format!("ruduo-resolver-{}-{:?}", std::process::id(), std::thread::current().id());
        let folder = std::env::temp_dir().join(name);
        if !Alone::is_own_process() {
            fs::create_dir(&folder).unwrap();
        }
        let alone = alone.env("RUDUO_RESOLVER", &folder);
        shim::run(alone, "resolver", || {
            body(&Resolver { folder: std::env::var_os("RUDUO_RESOLVER").unwrap().into() });
        });
        if !Alone::is_own_process() {
            fs::remove_dir_all(&folder).unwrap();
        }
    }

    /// How many questions have been asked.
    fn asked(&self) -> usize {
        (1..).take_while(|n| self.folder.join(format!("asked-{n}")).exists()).count()
    }

    fn answer(&self, number: usize, address: &str) {
        // It appears at once.
        let unfinished = self.folder.join(format!("unfinished-{number}"));
        fs::write(&unfinished, address).unwrap();
        fs::rename(unfinished, self.folder.join(number.to_string())).unwrap();
    }
}

/// Threads of the resolver that are at work in this process.
fn resolving() -> usize {
    let tasks = proc::list("self/task");
    let names = tasks.filter_map(|task| fs::read_to_string(task.join("comm")).ok());
    names.filter(|name| name.trim_end() == "resolver").count()
}

/// Waits for as long as it takes.
fn patient() -> Setup {
    Box::new(|client| client.connect_timeout(Duration::from_secs(3600)))
}

#[test]
fn b59_an_answer_to_an_attempt_that_was_given_up_is_not_taken() {
    Resolver::run(alone!(), |resolver| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let hour = Duration::from_secs(3600);
        let scene = scene(
            ("slow.test", server.addr().port()),
            Box::new(move |client| {
                let retry = Retry::exponential().between(hour, hour);
                client.connect_timeout(Duration::from_millis(50)).retry(retry)
            }),
        );
        let Told::Failed { error, tried, again: true, .. } = within(&scene.told) else { panic!() };
        assert_eq!((error, tried), (ConnectError::TimedOut, Vec::new()));
        resolver.answer(1, "127.0.0.1");
        eventually("it has been told", || resolving() == 0);
        // The loop, too: what is posted now comes behind it.
        let (tell, told) = mpsc::channel();
        scene.thread.handle().post(move |_| tell.send(()).unwrap()).unwrap();
        within(&told);
        scene.client.stop(Duration::ZERO);
        scene.client.wait().unwrap();
        scene.thread.join().unwrap();
        assert_eq!((scene.client.attempts(), scene.client.connections()), (1, 0));
        assert_eq!(scene.told.iter().count(), 0);
    });
}

/// The loop is busy when the answer comes, and until the time is over: it looks at that first.
#[test]
fn b59_an_answer_that_waited_for_the_loop_until_the_timeout_is_not_taken() {
    const TIMEOUT: Duration = Duration::from_millis(500);
    Resolver::run(alone!(), |resolver| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let hour = Duration::from_secs(3600);
        let scene = scene(
            ("slow.test", server.addr().port()),
            Box::new(move |client| {
                client.connect_timeout(TIMEOUT).retry(Retry::exponential().between(hour, hour))
            }),
        );
        eventually("it is asked", || resolver.asked() == 1);
        let held = hold(scene.thread.handle());
        resolver.answer(1, "127.0.0.1");
        eventually("the answer is on its way", || resolving() == 0);
        std::thread::sleep(TIMEOUT);
        drop(held);
        let Told::Failed { error, .. } = within(&scene.told) else { panic!() };
        assert_eq!(error, ConnectError::TimedOut);
        // Time enough for a connection.
        (0..5).for_each(|_| _ = turns(scene.thread.handle()));
        scene.client.stop(Duration::ZERO);
        scene.client.wait().unwrap();
        assert_eq!((scene.client.attempts(), scene.client.connections()), (1, 0));
    });
}

/// However often it is asked, a name server that does not answer holds up those who ask for its
/// names, and nobody else.
#[test]
fn b59_names_that_are_stuck_have_one_thread_each_and_one_answer_for_all() {
    const EACH: usize = 2 * AT_ONCE;
    Resolver::run(alone!(), |resolver| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let port = server.addr().port();
        let connects_to = |name: &str| scene((name, port), patient());
        let stuck: Vec<_> =
            (0..EACH).flat_map(|_| ["slow.one", "slow.two"].map(connects_to)).collect();
        eventually("both are asked", || resolver.asked() == 2);
        let assert_connects = |scene: Scene| {
            assert_eq!(within(&scene.told), Told::Connected(server.addr().into()));
            scene.client.stop(Duration::ZERO);
            scene.client.wait().unwrap();
        };
        (0..2 * AT_ONCE).for_each(|_| assert_connects(connects_to("localhost")));
        assert_eq!(resolver.asked(), 2);
        for number in [1, 2] {
            resolver.answer(number, "127.0.0.1");
        }
        stuck.into_iter().for_each(assert_connects);
        eventually("all threads have ended", || resolving() == 0);
        assert_eq!(resolver.asked(), 2);
    });
}

/// However many names are stuck, as long as they are not too many: others are looked up.
#[test]
fn b59_names_that_are_stuck_do_not_hold_up_others() {
    const STUCK: usize = 2 * AT_ONCE;
    Resolver::run(alone!(), |resolver| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let port = server.addr().port();
        let stuck: Vec<_> =
            (0..STUCK).map(|n| scene((format!("slow.{n}"), port), patient())).collect();
        eventually("all are asked", || resolver.asked() == STUCK);
        let scene = scene(("localhost", port), patient());
        assert_eq!(within(&scene.told), Told::Connected(server.addr().into()));
        assert!(stuck.iter().all(|stuck| stuck.told.try_recv().is_err()));
        (1..=STUCK).for_each(|number| resolver.answer(number, "127.0.0.1"));
        for scene in stuck.into_iter().chain([scene]) {
            scene.client.stop(Duration::ZERO);
            scene.client.wait().unwrap();
        }
        eventually("all threads have ended", || resolving() == 0);
    });
}

/// The answer that an attempt did not live to see is there for the next.
#[test]
fn b59_who_tries_again_need_not_be_asked_for_again() {
    Resolver::run(alone!(), |resolver| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let port = server.addr().port();
        let soon = Duration::from_millis(200);
        let scene = scene(
            ("slow.test", port),
            Box::new(move |client| client.connect_timeout(soon).retry(quick())),
        );
        for _ in 0..8 {
            assert!(matches!(within(&scene.told), Told::Failed { .. }));
        }
        assert_eq!((resolver.asked(), resolving()), (1, 1));
        resolver.answer(1, "127.0.0.1");
        // An attempt may end just then, and the next one ask anew.
        let mut number = 1;
        while let Told::Failed { .. } = within(&scene.told) {
            number += 1;
            resolver.answer(number, "127.0.0.1");
        }
        assert_eq!(scene.client.connections(), 1);
        scene.client.stop(Duration::ZERO);
        scene.client.wait().unwrap();
    });
}

/// A thread that cannot be had is no failure while there are others: they come to it.
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
#[test]
fn b59_who_gets_no_thread_waits_for_those_that_are_there() {
    Resolver::run(alone!(), |resolver| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?.on_message(|_, _| {}).start()
        });
        let port = server.addr().port();
        let first = scene(("slow.one", port), patient());
        eventually("the first is asked", || resolver.asked() == 1);
        let second = scene(
            ("slow.two", port),
            Box::new(|client| {
                denial::deny(denial::THREADS, nix::errno::Errno::EAGAIN);
                patient()(client)
            }),
        );
        eventually("it tries", || second.client.attempts() == 1);
        // And has asked, with which its task ends: before the one thread may be without work.
        let (tell, told) = mpsc::channel();
        second.thread.handle().post(move |_| tell.send(()).unwrap()).unwrap();
        within(&told);
        for (number, scene) in [(1, first), (2, second)] {
            eventually("its turn has come", || resolver.asked() == number);
            resolver.answer(number, "127.0.0.1");
            assert_eq!(within(&scene.told), Told::Connected(server.addr().into()));
            scene.client.stop(Duration::ZERO);
            scene.client.wait().unwrap();
        }
    });
}

/// A question holds the means to wake the loop of who asks, and so a descriptor.
#[test]
fn questions_that_nobody_waits_for_any_more_are_neither_kept_nor_asked() {
    const GIVEN_UP: usize = 20;
    Resolver::run(alone!(), |resolver| {
        let name = |number: usize| format!("slow.{number}");
        // The last of them has to wait for its turn.
        let wanted: Vec<_> = (0..=MAX_THREADS).map(|n| scene((name(n), 1), patient())).collect();
        eventually("all threads are at work", || resolver.asked() == MAX_THREADS);
        assert_eq!(resolving(), MAX_THREADS);
        let before = open_fds().len();
        let give_up = |name: String| {
            let soon = Duration::from_millis(20);
            let scene = scene((name, 1), Box::new(move |client| client.connect_timeout(soon)));
            assert!(matches!(within(&scene.told), Told::Failed { again: false, .. }));
            scene.client.wait().unwrap();
            scene.thread.join().unwrap();
        };
        for number in 0..GIVEN_UP {
            // Together with somebody who waits on, and alone.
            give_up(name(number % wanted.len()));
            give_up(name(wanted.len() + number));
        }
        // The name servers may just have had a file of theirs open.
        eventually("all of theirs are closed", || open_fds().len() <= before);
        for number in 1..=wanted.len() + GIVEN_UP {
            resolver.answer(number, "127.0.0.1");
        }
        for scene in &wanted {
            let Told::Failed { error, .. } = within(&scene.told) else { panic!() };
            assert_eq!(error, ConnectError::Refused, "it was looked up");
        }
        eventually("all threads have ended", || resolving() == 0);
        assert_eq!(resolver.asked(), wanted.len());
    });
}

#[test]
fn b62_a_client_is_stopped_while_its_name_is_looked_up() {
    Resolver::run(alone!(), |resolver| {
        let scene = scene(("slow.test", 1), Box::new(|client| client.retry(quick())));
        eventually("it is asked", || resolver.asked() == 1);
        scene.client.stop(Duration::from_secs(600));
        scene.client.wait().unwrap();
        resolver.answer(1, "127.0.0.1");
        eventually("the answer has come", || resolving() == 0);
        scene.thread.join().unwrap();
        assert_eq!(scene.told.iter().count(), 0);
    });
}
