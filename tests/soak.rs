//! The soak example, for a few seconds: it runs, finds nothing, and says so; and it ends when told.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::program::{Program, binary, run};
use common::within;
use nix::sys::signal::Signal;

#[test]
fn b69_a_few_seconds_under_faults_lose_nothing() {
    alone!().run(|| {
        let output = run("soak", &["--minutes", "0.05", "--peers", "6", "--seed", "7"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text}{log}");
        let verdict = text.lines().last().unwrap();
        assert!(verdict.contains("0 bytes lost, 0 descriptors leaked"), "{verdict}");
        let figures: Vec<u64> =
            verdict.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert!(figures[0] > 10 && figures[1] > 0, "it has hardly begun: {verdict}");
    });
}

#[test]
fn a_signal_ends_it_early_with_a_verdict() {
    alone!().run(|| {
        let mut command = Command::new(binary("soak"));
        let program = Program::spawn(command.args(["--minutes", "60", "--peers", "2"]));
        assert!(within(&program.lines).contains("connections"), "a line of figures");
        program.signal(Signal::SIGTERM);
        assert!(within(&program.lines).starts_with("verdict: "));
        program.ends_well();
    });
}
