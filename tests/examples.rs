//! What all examples have in common, each of them: help, bad arguments, an address in use, an end
//! by signals.

#![allow(clippy::unwrap_used)]

mod common;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::Command;

use common::eventually;
use common::program::{Program, binary, run};
use nix::sys::signal::Signal;
use ruduo::PollerKind;

/// Every example there is. Programs are files, or folders with a `main.rs`.
fn examples() -> BTreeSet<String> {
    let names = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let is_program =
            path.extension().is_some_and(|e| e == "rs") || path.join("main.rs").exists();
        is_program.then(|| path.file_stem().unwrap().to_str().unwrap().to_owned())
    };
    let found: BTreeSet<_> =
        std::fs::read_dir("examples").expect("the package's folder").filter_map(names).collect();
    assert!(found.contains("echo"), "{found:?}");
    found
}

fn help(example: &str) -> String {
    let output = run(example, &["--help"]);
    assert_eq!(output.status.code(), Some(0), "{example}");
    String::from_utf8(output.stdout).unwrap()
}

/// Examples that listen for connections and need no other argument. (Those of datagrams have tests
/// of their own.)
fn servers() -> impl Iterator<Item = String> {
    let serves = |example: &String| {
        let help = help(example);
        help.contains("--listen ADDRESS") && !help.contains("datagram socket")
    };
    examples().into_iter().filter(serves)
}

fn options(help: &str) -> impl Iterator<Item = &str> {
    let words = help.split_whitespace().map(|word| word.trim_matches(['[', ']', '.', ',']));
    words.filter(|word| word.starts_with("--"))
}

#[test]
fn help_tells_of_each_option_and_its_default() {
    alone!().run(|| {
        for example in examples() {
            let help = help(&example);
            assert!(help.contains(&format!("Usage: {example}")), "{help}");
            assert!(help.contains("--help"), "{help}");
            for line in help.lines() {
                assert!(line.len() <= 100, "{example}: {line}");
                let says_more = line.split_whitespace().count() > 2;
                assert!(!line.trim_start().starts_with("--") || says_more, "{example}: {line}");
            }
            // An option named in the text is explained in the list.
            for option in options(&help).collect::<BTreeSet<_>>() {
                let explained = |line: &str| line.trim_start().starts_with(option);
                assert!(help.lines().any(explained), "{example}: {option}");
            }
        }
    });
}

/// Starts an example whose standard output nobody reads.
fn unread(example: &str, arguments: &[&str]) -> Program {
    Program::unread(Command::new(binary(example)).args(arguments).env("RUST_LOG", "debug"))
}

/// `--help | head -1`.
#[test]
fn help_that_nobody_reads_is_no_failure() {
    alone!().run(|| {
        for example in examples() {
            let ended = unread(&example, &["--help"]).ends_well();
            assert_eq!(ended.log, "", "{example}");
        }
    });
}

/// Arguments with which an example ends by itself after a moment, if there are such.
fn brief(example: &str) -> Option<&'static [&'static str]> {
    match example {
        "nodelay" => Some(&["--rounds", "1"]),
        "self_connect" => Some(&[]),
        "soak" => Some(&["--minutes", "0.05"]),
        "wakeups" => Some(&["--rounds", "10"]),
        _ => None,
    }
}

/// Arguments with which the others serve, on free ports.
fn serving(example: &str) -> &'static [&'static str] {
    match example {
        "gateway" => {
            &["--listen", "127.0.0.1:0", "--discovery", "224.0.0.50:0", "--interface", "127.0.0.1"]
        }
        "netcat" => &["-l", "127.0.0.1:0"],
        "simple_all" => &["--base-port", "0"],
        "tcp_relay" => &["127.0.0.1:0", "127.0.0.1:9"],
        _ => &["--listen", "127.0.0.1:0"],
    }
}

/// An example, and how it is to be ended if it does not end by itself.
fn assert_ends_well(example: &str, program: Program, by: Option<Signal>) {
    if let Some(signal) = by {
        program.signal(signal);
    }
    let ended = program.wait();
    assert_eq!((ended.code, ended.signal), (Some(0), None), "{example}: {}", ended.log);
    assert!(!ended.log.contains("panicked"), "{example}: {}", ended.log);
}

/// `.. | true`: no server stops serving for that, and whatever else there is ends well.
#[test]
fn output_that_nobody_reads_is_no_failure() {
    alone!().run(|| {
        for example in examples() {
            if let Some(arguments) = brief(&example) {
                assert_ends_well(&example, unread(&example, arguments), None);
                continue;
            }
            let program = RefCell::new(unread(&example, serving(&example)));
            // It first listens, then can be told to end, and then says where it listens.
            eventually("it can be told to end, or has ended", || {
                let mut program = program.borrow_mut();
                !program.is_running() || program.catches(Signal::SIGTERM)
            });
            assert_ends_well(&example, program.into_inner(), Some(Signal::SIGTERM));
        }
    });
}

/// The same of examples that are clients of another one.
#[test]
fn clients_whose_output_nobody_reads_end_well() {
    alone!().run(|| {
        for (example, arguments) in [
            ("chat", &["--join"][..]),
            ("roundtrip", &["--connect"]),
            ("heartbeat", &["--connect"]),
        ] {
            let server = Program::serve(example, &[]);
            let address = server.addr().to_string();
            let client = unread(example, &[arguments, &[&address]].concat());
            // A client that is there for its output ends by itself.
            let goes_on = example == "heartbeat";
            if goes_on {
                eventually("it is alive", || client.log().contains(": alive"));
            }
            assert_ends_well(example, client, goes_on.then_some(Signal::SIGTERM));
            server.ends_well_on(Signal::SIGTERM);
        }
    });
}

#[test]
fn bad_arguments_get_one_line_and_status_2() {
    alone!().run(|| {
        for example in examples() {
            let help = help(&example);
            let mut bad = vec!["--nonsense".to_owned(), "-?".to_owned()];
            for option in
                ["--listen", "--threads", "--poller"].into_iter().filter(|o| help.contains(*o))
            {
                bad.extend([option.to_owned(), format!("{option}=here")]);
            }
            for argument in bad {
                let output = run(&example, &[&argument]);
                let text = String::from_utf8(output.stderr).unwrap();
                assert_eq!(output.status.code(), Some(2), "{example} {argument}: {text}");
                assert_eq!(text.lines().count(), 1, "{example} {argument}: {text}");
                assert!(text.starts_with(&format!("{example}: ")), "{text}");
                assert!(output.stdout.is_empty());
            }
        }
    });
}

#[test]
fn servers_that_let_choose_a_poller_serve_with_each() {
    alone!().run(|| {
        let takes_poller = |example: &String| help(example).contains("--poller KIND");
        let chosen: Vec<_> = servers().filter(takes_poller).collect();
        assert!(chosen.len() >= 6, "{chosen:?}");
        for example in chosen {
            for kind in PollerKind::available() {
                let program = Program::serve(&example, &["--poller", &kind.to_string()]);
                drop(program.connect());
                program.ends_well_on(Signal::SIGTERM);
            }
        }
    });
}

#[test]
fn an_address_in_use_gets_one_clear_line_and_status_1() {
    alone!().run(|| {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        for example in servers() {
            let output = run(&example, &["--listen", &address]);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{example}: {text}");
            assert_eq!(text.lines().count(), 1, "{example}: {text}");
            assert!(text.contains(&address) && text.contains("in use"), "{example}: {text}");
        }
    });
}

#[test]
fn sigterm_and_sigint_end_servers_with_status_0() {
    alone!().run(|| {
        for example in servers() {
            let threads = help(&example).contains("--threads N");
            for (signal, n) in [(Signal::SIGTERM, "0"), (Signal::SIGINT, "2")] {
                let arguments = if threads { &["--threads", n][..] } else { &[] };
                let program = Program::serve(&example, arguments);
                let peer = program.connect();
                program.signal(signal);
                // The peer need not do anything for its server to end, except to go away.
                drop(peer);
                let ended = program.wait();
                assert_eq!((ended.code, ended.signal), (Some(0), None), "{example} on {signal}");
                assert!(ended.log.contains("stopping"), "{example}: {}", ended.log);
                assert!(!ended.log.contains("ERROR"), "{example}: {}", ended.log);
            }
        }
    });
}
