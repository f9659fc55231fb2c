//! Clients whose names are not answered, or too late.

#![allow(clippy::unwrap_used)]

mod common;
mod dialling;
mod shim;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::{Alone, eventually, proc, serve, within};
use dialling::{Told, quick, scene};
use ruduo::{ConnectError, TcpServer};

/// Names are looked up on so many threads.
const THREADS: usize = 4;

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

#[test]
fn b59_an_answer_to_an_attempt_that_was_given_up_is_not_taken() {
    Resolver::run(alone!(), |resolver| {
        let server = serve(|event_loop| {
            TcpServer::bind(event_loop, "0.0.0.0:0")?.on_message(|_, _| {}).start()
        });
        let port = server.addr().port();
        let second = Duration::from_secs(1);
        let scene = scene(
            ("slow.test", port),
            Box::new(move |client| client.connect_timeout(second).retry(quick())),
        );
        let Told::Failed { error, tried, .. } = within(&scene.told) else { panic!() };
        assert_eq!((error, tried), (ConnectError::TimedOut, Vec::new()));
        // The next attempt asks again, and meanwhile the first question is answered.
        eventually("it asks again", || resolver.asked() >= 2);
        resolver.answer(1, "127.0.0.2");
        eventually("the loop has been told", || resolver.asked() > resolving());
        // Of the others as many are asked as there are attempts: on a slow machine more than one.
        let mut answered = 1;
        while scene.client.connections() == 0 {
            eventually("there is a question or a connection", || {
                resolver.asked() > answered || scene.client.connections() > 0
            });
            while answered < resolver.asked() {
                answered += 1;
                resolver.answer(answered, "127.0.0.1");
            }
        }
        let connected = scene.told.iter().find(|told| matches!(told, Told::Connected(_)));
        let address = format!("127.0.0.1:{port}").parse().unwrap();
        assert_eq!(connected, Some(Told::Connected(address)));
        scene.client.stop(Duration::ZERO);
        scene.client.wait().unwrap();
    });
}

#[test]
fn questions_that_nobody_waits_for_any_more_are_not_asked() {
    const ATTEMPTS: u32 = 40;
    // So many are made after the name servers have come back, at most.
    const LAST: u32 = 5;
    Resolver::run(alone!(), |resolver| {
        let soon = Duration::from_millis(50);
        let scene = scene(
            ("slow.test", 1),
            Box::new(move |client| {
                client.connect_timeout(soon).retry(quick().at_most(ATTEMPTS - 1))
            }),
        );
        for _ in LAST..ATTEMPTS {
            assert!(matches!(within(&scene.told), Told::Failed { .. }));
        }
        for number in 1..=ATTEMPTS as usize {
            resolver.answer(number, "127.0.0.1");
        }
        scene.client.wait().unwrap();
        eventually("all threads have ended", || resolving() == 0);
        let asked = resolver.asked();
        // One was perhaps given up just then, and the next not yet begun.
        let most = THREADS + 1 + LAST as usize;
        assert!(asked <= most, "{asked} questions for {ATTEMPTS} attempts");
        scene.thread.join().unwrap();
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
