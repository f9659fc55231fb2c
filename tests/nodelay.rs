//! The example nodelay, end to end.

#![allow(clippy::unwrap_used)]

mod common;

use common::program::run;

#[test]
fn it_prints_three_times_of_which_nagles_is_the_longest() {
    alone!().run(|| {
        let output = run("nodelay", &["--rounds", "21"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text}");
        let times: Vec<f64> = text
            .lines()
            .map(|line| line.strip_suffix(" ms").unwrap().rsplit(' ').next().unwrap())
            .map(|time| time.parse().unwrap())
            .collect();
        let [with_nagle, without, coalesced] = times[..] else { panic!("{text}") };
        assert!(without > 0.0 && coalesced > 0.0, "{text}");
        // The kernel delays acknowledgements by 40 ms.
        assert!(with_nagle >= 20.0 && with_nagle > without && with_nagle > coalesced, "{text}");
    });
}

#[test]
fn no_rounds_are_refused() {
    alone!().run(|| {
        let output = run("nodelay", &["--rounds", "0"]);
        assert_eq!(output.status.code(), Some(2));
    });
}
