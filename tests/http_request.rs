//! The parser of the HTTP example, as plain data.

#![allow(clippy::unwrap_used)]

#[path = "../examples/http_hello/request.rs"]
mod request;

use proptest::prelude::*;
use request::{MAX_BODY, MAX_FIELDS, MAX_HEAD, Refusal, Request, parse};
use ruduo::Buffer;

fn parse_whole(text: impl AsRef<[u8]>) -> Result<Option<Request>, Refusal> {
    parse(&Buffer::from(text.as_ref()), &mut 0)
}

/// A GET for `x` with these fields.
fn get(fields: &str) -> Request {
    parse_whole(format!("GET / HTTP/1.1\r\nHost: x\r\n{fields}\r\n")).unwrap().unwrap()
}

fn status(text: impl AsRef<[u8]>) -> String {
    parse_whole(text).unwrap_err().status[..3].to_owned()
}

/// As a connection does it: what has come is looked at after each piece.
fn parse_in_pieces(text: &[u8], piece: usize) -> Result<Option<Request>, Refusal> {
    let (mut input, mut searched) = (Buffer::new(), 0);
    for piece in text.chunks(piece) {
        input.append(piece);
        let outcome = parse(&input, &mut searched);
        if !matches!(outcome, Ok(None)) {
            return outcome;
        }
        assert_eq!(searched, input.len());
    }
    Ok(None)
}

#[test]
fn a_request_says_what_it_wants() {
    let plain = get("");
    assert_eq!((plain.head_len, plain.body_len, plain.minor_version), (27, 0, 1));
    assert_eq!((plain.is_head, plain.keep_alive, plain.expects_continue), (false, true, false));
    let with_all =
        get("CONTENT-LENGTH: 0012 \r\ncOnNeCtIoN:\ta , ClosE\t\r\nEXPECT:100-cONTINUE\r\n");
    assert_eq!(with_all.body_len, 12);
    assert_eq!((with_all.keep_alive, with_all.expects_continue), (false, true));
    // What follows is not part of it.
    let two = "HEAD /x HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\nGET";
    let first = parse_whole(two).unwrap().unwrap();
    assert_eq!((first.head_len, first.minor_version), (two.len() - 3, 0));
    assert_eq!((first.is_head, first.keep_alive), (true, true));
}

#[test]
fn limits_hold_to_the_byte() {
    let head = |len: usize| {
        let head = "GET / HTTP/1.1\r\nHost: x\r\nA: \r\n\r\n";
        head.replace("A: ", &format!("A: {}", "a".repeat(len - head.len())))
    };
    let longest = head(MAX_HEAD);
    assert_eq!(parse_whole(&longest).unwrap().unwrap().head_len, MAX_HEAD);
    assert_eq!(parse_whole(&longest[..MAX_HEAD - 1]), Ok(None));
    // Refused as soon as it cannot end in time.
    assert_eq!(status(&head(MAX_HEAD + 1)[..MAX_HEAD]), "431");
    for piece in [1, 100, MAX_HEAD, 2 * MAX_HEAD] {
        let refusal = parse_in_pieces(head(MAX_HEAD + 1).as_bytes(), piece).unwrap_err();
        assert_eq!((&refusal.status[..3], refusal.error.offset()), ("431", MAX_HEAD as u64));
    }
    assert_eq!(status(format!("GET /{}", "a".repeat(MAX_HEAD))), "414");

    let fields = |n| "A: b\r\n".repeat(n);
    get(&fields(MAX_FIELDS - 1));
    assert_eq!(status(format!("GET / HTTP/1.0\r\n{}\r\n", fields(MAX_FIELDS + 1))), "431");

    assert_eq!(get(&format!("Content-Length: {MAX_BODY}\r\n")).body_len, MAX_BODY);
    for too_much in [MAX_BODY + 1, u64::MAX] {
        let text = format!("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: {too_much}0\r\n\r\n");
        assert_eq!(status(text), "413");
    }
}

#[test]
fn a_host_is_a_name_or_an_address() {
    for host in ["", "example.org", "127.0.0.1:8000", "[::1]:80", "a_b-c~%20"] {
        parse_whole(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).unwrap().unwrap();
    }
    for host in ["a b", "a/b", "a@b", "a?b", "a\\b", "\u{e4}"] {
        assert_eq!(status(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")), "400", "{host}");
    }
}

/// Bytes that are nearly a request.
fn nearly_a_request() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
        "GET ",
        "HEAD ",
        "/ ",
        "/",
        " ",
        "HTTP/1.1",
        "HTTP/1.0",
        "\r\n",
        "\r\n",
        "\r\n",
        "\n",
        "\r",
        "Host: x",
        "Host",
        ": ",
        "Content-Length: 3",
        "Connection: close",
        "Expect: 100-continue",
        "Transfer-Encoding: chunked",
        "GET / HTTP/1.1\r\nHost: x\r\n",
        "\0",
        "\u{ff}",
        "a",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    /// However the bytes arrive, the same request comes of them, or the same refusal.
    #[test]
    fn pieces_make_no_difference(text in nearly_a_request(), piece in 1..40usize) {
        let whole = parse_whole(&text);
        let in_pieces = parse_in_pieces(&text, piece);
        match &whole {
            Ok(Some(request)) => prop_assert!(text[..request.head_len].ends_with(b"\r\n\r\n")),
            Ok(None) => {}
            Err(refusal) => prop_assert!(refusal.error.offset() <= text.len() as u64),
        }
        prop_assert_eq!(in_pieces, whole);
    }
}
