//! The self_connect example: it shows what it promises, and ends by itself.

#![allow(clippy::unwrap_used)]

mod common;

use common::program::run;

#[test]
fn the_plain_socket_talks_to_itself_and_the_client_does_not() {
    alone!().run(|| {
        let output = run("self_connect", &[]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        // It may try again before the other client has its answer.
        let [ends, back, noticed, .., other] = lines[..] else { panic!("{text}") };
        let (one, two) =
            ends.strip_prefix("a plain socket: ").unwrap().split_once(" is connected to ").unwrap();
        assert_eq!(one, two);
        assert!(back.ends_with("came back: hello?"), "{back}");
        assert!(noticed.contains(one) && noticed.contains("a connection to itself"), "{noticed}");
        assert!(noticed.contains("; attempt 2 in "), "{noticed}");
        assert!(other.contains("is somebody else") && !other.contains(one), "{other}");
    });
}

#[test]
fn a_port_that_is_taken_is_an_error() {
    alone!().run(|| {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let output = run("self_connect", &["--port", &port]);
        assert_eq!(output.status.code(), Some(1));
    });
}
