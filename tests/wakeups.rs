//! The example `wakeups`: a table of what each notifier costs.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::program::{Program, binary, run};
use common::within;
use nix::sys::signal::Signal;
use ruduo::{Poller, PollerKind};

/// The names of poller and notifier in each line, and whether all its figures are sound.
fn rows(table: &str) -> Vec<(String, String)> {
    let mut lines = table.lines();
    assert_eq!(
        lines.next().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["poller", "notifier", "wakeups/s", "median", "p99"]
    );
    let row = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [poller, notifier, rate, median, "us", p99, "us"] = words[..] else {
            panic!("{line}");
        };
        let [rate, median, p99] = [rate, median, p99].map(|word| word.parse::<f64>().unwrap());
        assert!(rate >= 1.0 && median > 0.0 && p99 >= median, "{line}");
        (poller.to_owned(), notifier.to_owned())
    };
    lines.map(row).collect()
}

fn expected(pollers: &[PollerKind]) -> Vec<(String, String)> {
    let of_one = |poller: &PollerKind| {
        let kinds = Poller::with_kind(*poller).unwrap().notifier_kinds();
        kinds.iter().map(|kind| (poller.to_string(), kind.to_string())).collect::<Vec<_>>()
    };
    pollers.iter().flat_map(of_one).collect()
}

#[test]
fn every_notifier_of_every_poller_is_measured() {
    alone!().run(|| {
        let output = run("wakeups", &["--rounds", "300"]);
        assert_eq!(output.status.code(), Some(0));
        let table = String::from_utf8(output.stdout).unwrap();
        assert_eq!(rows(&table), expected(PollerKind::available()));

        let output = run("wakeups", &["--rounds", "1", "--poller", "poll"]);
        assert_eq!(output.status.code(), Some(0));
        let table = String::from_utf8(output.stdout).unwrap();
        assert_eq!(rows(&table), expected(&[PollerKind::Poll]));
    });
}

#[test]
fn a_signal_ends_it_early_and_well() {
    alone!().run(|| {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let mut wakeups = Command::new(binary("wakeups"));
            let program = Program::spawn(wakeups.args(["--rounds", "4000000000"]));
            assert!(within(&program.lines).contains("wakeups/s"));
            program.ends_well_on(signal);
        }
    });
}

#[test]
fn no_rounds_are_refused() {
    alone!().run(|| {
        for bad in ["0", "-1", "many"] {
            let output = run("wakeups", &["--rounds", bad]);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    });
}
