//! The HTTP example, end to end: the real binary, clients that split, pipeline, dawdle and cheat.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::program::{Program, binary, run};
use common::{eventually, proc, read_n, read_to_end};
use nix::sys::signal::Signal;

const GET: &str = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
const HEAD: &str = "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n";
const LAST: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

/// The answer to a GET. Dates are masked in all that is compared.
const HELLO: &str = "HTTP/1.1 200 OK\r\nServer: ruduo\r\nDate: *\r\n\
                     Content-Type: text/plain\r\nContent-Length: 14\r\n\r\nHello, World!\n";

const BAD: &str = "400 Bad Request";
const TIMEOUT: &str = "408 Request Timeout";
const TOO_LARGE: &str = "413 Content Too Large";
const TOO_LONG: &str = "414 URI Too Long";
const UNEXPECTED: &str = "417 Expectation Failed";
const TOO_MUCH: &str = "431 Request Header Fields Too Large";
const UNKNOWN: &str = "501 Not Implemented";
const VERSION: &str = "505 HTTP Version Not Supported";

fn serve(arguments: &[&str]) -> Program {
    Program::serve("http_hello", arguments)
}

/// A server that logs how connections end.
fn serve_logging(arguments: &[&str]) -> Program {
    let mut command = Command::new(binary("http_hello"));
    command.args(["--listen", "127.0.0.1:0"]).args(arguments).env("RUST_LOG", "debug");
    Program::spawn(&mut command).listening(1)
}

/// An answer with one more header field.
fn with_field(answer: &str, field: &str) -> String {
    answer.replace("\r\n\r\n", &format!("\r\n{field}\r\n\r\n"))
}

fn without_body(answer: &str) -> String {
    answer.strip_suffix("Hello, World!\n").unwrap().to_owned()
}

/// What is sent back to who asks for what makes no sense.
fn refusal(status: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nServer: ruduo\r\nDate: *\r\nContent-Length: 0\r\n\
         Connection: close\r\n\r\n"
    )
}

fn masked(bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).unwrap();
    let mask = |line| if str::starts_with(line, "Date: ") { "Date: *" } else { line };
    text.split("\r\n").map(mask).collect::<Vec<_>>().join("\r\n")
}

fn send(mut peer: &TcpStream, bytes: impl AsRef<[u8]>) {
    peer.write_all(bytes.as_ref()).unwrap();
}

/// Everything that comes until the server closes.
fn rest(peer: &TcpStream) -> String {
    masked(&read_to_end(peer).unwrap())
}

/// Sends one request and reads the answer; `None` if the server has closed.
fn ask(mut peer: &TcpStream) -> Option<String> {
    peer.write_all(GET.as_bytes()).ok()?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"World!\n") {
        let mut byte = [0; 256];
        match peer.read(&mut byte) {
            Ok(n @ 1..) => answer.extend_from_slice(&byte[..n]),
            _ => return None,
        }
    }
    Some(String::from_utf8(answer).unwrap())
}

/// Sends all of it, finishes, and reads all that comes back.
fn exchange(server: &Program, bytes: impl AsRef<[u8]>) -> String {
    let peer = server.connect();
    send(&peer, bytes);
    peer.shutdown(Shutdown::Write).unwrap();
    rest(&peer)
}

/// The most memory that the server has had so far, in kB.
fn peak_memory(server: &Program) -> usize {
    let status = proc::read(&format!("{}/status", server.pid()));
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn two_requests_split_at_any_byte_get_the_same_answers() {
    alone!().run(|| {
        let server = serve(&[]);
        let prober = server.connect();
        let pair = format!("{GET}GET /b HTTP/1.1\r\nHost: y\r\nContent-Length: 5\r\n\r\nhello");
        for at in 0..=pair.len() {
            let peer = server.connect();
            send(&peer, &pair[..at]);
            // When this is answered, the only loop has seen what came before it.
            ask(&prober).unwrap();
            send(&peer, &pair[at..]);
            peer.shutdown(Shutdown::Write).unwrap();
            assert_eq!(rest(&peer), [HELLO, HELLO].concat(), "split at {at}");
        }
    });
}

#[test]
fn requests_in_single_bytes_are_answered_as_soon_as_they_are_whole() {
    alone!().run(|| {
        let server = serve(&[]);
        let (peer, prober) = (server.connect(), server.connect());
        // Empty lines in front of a request, whole or split, are no request.
        for request in [GET, "\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", GET] {
            for byte in request.bytes() {
                send(&peer, [byte]);
                ask(&prober).unwrap();
            }
            assert_eq!(masked(&read_n(&peer, HELLO.len() + 28)), HELLO);
        }
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&peer), "");
    });
}

#[test]
fn a_thousand_requests_in_one_write_are_answered_in_order() {
    alone!().run(|| {
        for threads in ["0", "2"] {
            let server = serve(&["--threads", threads]);
            let requests: String =
                (0..1_000).map(|i| if i % 3 == 0 { HEAD } else { GET }).collect();
            let answers: String = (0..1_000)
                .map(|i| if i % 3 == 0 { without_body(HELLO) } else { HELLO.into() })
                .collect();
            assert_eq!(exchange(&server, requests), answers);
        }
    });
}

#[test]
fn answers_to_requests_that_came_together_leave_together() {
    alone!().run(|| {
        let server = serve(&[]);
        let mut peer = server.connect();
        for _ in 0..10 {
            send(&peer, GET.repeat(20));
            let mut answers = [0; 16_384];
            // Loopback delivers in one piece what is sent in one.
            let n = peer.read(&mut answers).unwrap();
            assert_eq!(masked(&answers[..n]), HELLO.repeat(20));
        }
    });
}

/// Who asks without reading is not read from; who reads in the end gets every answer.
#[test]
fn a_client_that_reads_late_costs_little_memory_and_gets_everything() {
    alone!().run(|| {
        const COUNT: usize = 200_000;
        let server = serve(&[]);
        let peer = server.connect();
        let sent = AtomicUsize::new(0);
        let answers = thread::scope(|scope| {
            scope.spawn(|| {
                let batch = GET.repeat(1_000);
                for _ in 0..COUNT / 1_000 {
                    send(&peer, &batch);
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                peer.shutdown(Shutdown::Write).unwrap();
            });
            // Reads only when it looks as if nothing moved any more.
            let mut before = usize::MAX;
            while sent.load(Ordering::Relaxed) != before {
                before = sent.load(Ordering::Relaxed);
                thread::park_timeout(Duration::from_millis(200));
            }
            read_to_end(&peer).unwrap()
        });
        assert_eq!(answers.len(), COUNT * (HELLO.len() + 28));
        assert_eq!(masked(&answers), HELLO.repeat(COUNT));
        let peak = peak_memory(&server);
        assert!(peak < 16 * 1024, "{peak} kB at most, for {} kB of answers", answers.len() / 1024);
    });
}

#[test]
fn a_bad_request_gets_its_status_and_ends_the_connection_with_a_reason() {
    alone!().run(|| {
        let line = "GET / HTTP/1.1\r\n";
        let with = |field: &str| format!("{line}Host: x\r\n{field}\r\n\r\n");
        let many: String = (0..65).map(|i| format!("F{i:02}: x\r\n")).collect();
        let long = "a".repeat(10_000);
        let cases: Vec<(&str, String, &str)> = vec![
            // A head that makes no sense.
            (BAD, "GET / HTTP/1.1\nHost: x\n\n".into(), "14: a line that ends without CR"),
            (BAD, with("A: b\n"), "29: a line that ends without CR"),
            (BAD, format!("{line}Host: x\r\n\n"), "25: a line that ends without CR"),
            (BAD, with("A : b"), "25: invalid header name"),
            (BAD, with("A: b\r\n folded"), "31: invalid header name"),
            (BAD, with("A: \0"), "25: invalid header value"),
            (BAD, with("A: b\rC: d"), "25: invalid header value"),
            (BAD, "\u{16}\u{3}\u{1}\r\n\r\n".into(), "0: invalid token"),
            (BAD, "GET /\r\n\r\n".into(), "0: invalid token"),
            (BAD, "GET /  HTTP/1.1\r\n\r\n".into(), "6: neither HTTP/1.0 nor HTTP/1.1"),
            (BAD, "GET / FTP/1.1\r\n\r\n".into(), "6: neither HTTP/1.0 nor HTTP/1.1"),
            // Host.
            (BAD, format!("{line}\r\n"), "18: no Host"),
            (BAD, with("host: x"), "25: a second Host"),
            (BAD, with("host: x").replace("HTTP/1.1", "HTTP/1.0"), "25: a second Host"),
            (BAD, format!("{line}Host: x/y z\r\n\r\n"), "16: a malformed Host"),
            // Length.
            (BAD, with("Content-Length: x"), "25: a malformed Content-Length"),
            (BAD, with("Content-Length: +1"), "25: a malformed Content-Length"),
            (BAD, with("Content-Length:"), "25: a malformed Content-Length"),
            (TOO_LARGE, with("Content-Length: 1048577"), "25: a body of 1048577 bytes"),
            (TOO_LARGE, with("Content-Length: 99999999999999999999999"), "25: a body of 1844674"),
            // Limits.
            (TOO_LONG, format!("GET /{long}"), "8192: a request line of more than 8192 bytes"),
            (TOO_MUCH, with(&format!("A: {long}")), "8192: a head of more than 8192 bytes"),
            (TOO_MUCH, format!("{line}{many}\r\n"), "528: more than 64 header fields"),
            // What we cannot do.
            (UNEXPECTED, with("Expect: a miracle"), "25: an unknown expectation"),
            (UNKNOWN, with("A: b").replace("GET", "POST"), "0: neither GET nor HEAD"),
            (UNKNOWN, with("A: b").replace("GET", "get"), "0: neither GET nor HEAD"),
            (UNKNOWN, with("Transfer-Encoding: chunked"), "25: a Transfer-Encoding"),
            (
                VERSION,
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
                "6: neither HTTP/1.0 nor HTTP/1.1",
            ),
            // An end in the middle.
            (BAD, "GET / HT".into(), "0: the stream ends within a request"),
            (BAD, with("Content-Length: 1"), "46: the stream ends within a request"),
        ];
        let server = serve_logging(&[]);
        let before = peak_memory(&server);
        for (status, bad, _) in &cases {
            assert_eq!(exchange(&server, bad), refusal(status), "{bad:.200}");
            // Behind one that is in order, and before one that is never looked at.
            let all = format!("{GET}{bad}");
            assert_eq!(exchange(&server, all), [HELLO, &refusal(status)].concat(), "{bad:.200}");
        }
        let after = peak_memory(&server);
        assert!(after < before + 2_048, "{before} kB before, {after} kB after");
        let log = server.ends_well_on(Signal::SIGTERM).log;
        let reasons: Vec<_> = log.lines().filter_map(|line| line.split_once("at byte ")).collect();
        assert_eq!(reasons.len(), 2 * cases.len(), "{log}");
        for ((_, _, reason), logged) in cases.iter().zip(reasons.chunks(2)) {
            let (offset, what) = reason.split_once(": ").unwrap();
            assert!(logged[0].1.starts_with(reason), "{:?}, not {reason}", logged[0].1);
            let behind = format!("{}: {what}", offset.parse::<usize>().unwrap() + GET.len());
            assert!(logged[1].1.starts_with(&behind), "{:?}, not {behind}", logged[1].1);
            assert!(logged[0].0.contains("input refused"), "{}", logged[0].0);
        }
    });
}

/// What a proxy in front might take for something else gets one refusal, and nothing behind it an
/// answer.
#[test]
fn a_smuggled_request_is_never_answered() {
    alone!().run(|| {
        let server = serve(&[]);
        let head = "GET / HTTP/1.1\r\nHost: x\r\n";
        for (fields, status) in [
            ("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", BAD),
            ("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", BAD),
            ("Content-Length: 0\r\nContent-Length: 28\r\n", BAD),
            ("Content-Length: 0\r\nContent-Length: 0\r\n", BAD),
            ("Content-Length: 0, 28\r\n", BAD),
            ("Content-Length: 0x1c\r\n", BAD),
            ("Content-Length : 28\r\n", BAD),
            ("Content-Length\t: 28\r\n", BAD),
            ("A: b\nContent-Length: 28\r\n", BAD),
            ("A: b\rContent-Length: 28\r\n", BAD),
            ("A: b\r\n\tContent-Length: 28\r\n", BAD),
            ("Transfer-Encoding : chunked\r\n", BAD),
            ("Transfer-Encoding: identity\r\n", UNKNOWN),
            ("Transfer-Encoding: xchunked\r\n", UNKNOWN),
            ("transfer-encoding:\tchunked\r\n", UNKNOWN),
            ("Transfer-Encoding:\r\n", UNKNOWN),
        ] {
            let smuggled = format!("{head}{fields}\r\n0\r\n\r\n{GET}{GET}");
            assert_eq!(exchange(&server, smuggled), refusal(status), "{fields}");
        }
    });
}

#[test]
fn head_gets_the_same_head_and_no_body() {
    alone!().run(|| {
        let server = serve(&[]);
        let answers = exchange(&server, [HEAD, GET, HEAD].concat());
        assert_eq!(answers, [&without_body(HELLO), HELLO, &without_body(HELLO)].concat());
        let close = HEAD.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        let expected = without_body(&with_field(HELLO, "Connection: close"));
        assert_eq!(exchange(&server, close), expected);
    });
}

/// Each version has its own default, and what comes after the last answer is not answered.
#[test]
fn a_connection_lives_on_as_its_version_and_its_header_say() {
    alone!().run(|| {
        let server = serve(&[]);
        let (stays, says_so, closes) = (
            HELLO.to_owned(),
            with_field(HELLO, "Connection: keep-alive"),
            with_field(HELLO, "Connection: close"),
        );
        for (head, answer) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n", &stays),
            ("GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n", &stays),
            ("GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n", &stays),
            ("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n", &closes),
            ("GET / HTTP/1.1\r\nHost: x\r\nCONNECTION:Foo ,CLOSE\r\n", &closes),
            (
                "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nConnection: keep-alive\r\n",
                &closes,
            ),
            ("GET / HTTP/1.0\r\n", &closes),
            ("GET / HTTP/1.0\r\nHost: x\r\n", &closes),
            ("GET / HTTP/1.0\r\nConnection: close\r\n", &closes),
            ("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n", &closes),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n", &says_so),
        ] {
            let request = format!("{head}\r\n");
            let lives_on = !answer.contains("close");
            // The client does not finish: it is the server that closes, or nobody.
            let peer = server.connect();
            send(&peer, request.repeat(2));
            let mut expected = answer.clone();
            if lives_on {
                send(&peer, LAST);
                expected = format!("{answer}{answer}{closes}");
            }
            assert_eq!(rest(&peer), expected, "{head}");
        }
    });
}

/// Whatever else the client sends after the last answer, it gets that answer, and no reset.
#[test]
fn what_is_sent_after_the_last_request_does_not_destroy_its_answer() {
    alone!().run(|| {
        let server = serve(&[]);
        let peer = server.connect();
        send(&peer, LAST);
        send(&peer, "x".repeat(300_000));
        peer.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&peer), with_field(HELLO, "Connection: close"));
    });
}

#[test]
fn bodies_are_skipped_however_they_come() {
    alone!().run(|| {
        let server = serve(&[]);
        let prober = server.connect();
        let before = peak_memory(&server);
        for len in [0, 1, 27, 4_096, 65_536, 100_000, 1 << 20] {
            let body = "GET / HTTP/1.1\r\n".repeat(len / 16 + 1);
            let head = format!("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n");
            let whole = [&head, &body[..len]].concat();
            assert_eq!(exchange(&server, [&whole, GET, &whole].concat()), HELLO.repeat(3), "{len}");
            // Piece by piece, in pieces that the server sees one by one.
            let peer = server.connect();
            for piece in whole.as_bytes().chunks(1 + whole.len() / 20) {
                send(&peer, piece);
                ask(&prober).unwrap();
            }
            send(&peer, LAST);
            assert_eq!(rest(&peer), format!("{HELLO}{}", with_field(HELLO, "Connection: close")));
        }
        let after = peak_memory(&server);
        assert!(after < before + 2_048, "{before} kB before, {after} kB after");
    });
}

#[test]
fn a_client_that_waits_for_100_continue_is_invited() {
    alone!().run(|| {
        let server = serve(&[]);
        let invitation = "HTTP/1.1 100 Continue\r\n\r\n";
        let head = "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-Continue\r\n\r\n";
        let peer = server.connect();
        for _ in 0..2 {
            send(&peer, head);
            assert_eq!(masked(&read_n(&peer, invitation.len())), invitation);
            send(&peer, "hello");
            assert_eq!(masked(&read_n(&peer, HELLO.len() + 28)), HELLO);
        }
        // One who sends the body anyway, one who has none, and one who would not understand.
        assert_eq!(exchange(&server, format!("{head}hello")), HELLO);
        assert_eq!(exchange(&server, head.replace('5', "0")), HELLO);
        let old = server.connect();
        send(&old, head.replace("HTTP/1.1", "HTTP/1.0"));
        ask(&server.connect()).unwrap();
        send(&old, "hello");
        assert_eq!(rest(&old), with_field(HELLO, "Connection: close"));
        // A body that is too long is refused instead of invited.
        assert_eq!(exchange(&server, head.replace('5', "5000000")), refusal(TOO_LARGE));
    });
}

#[test]
fn the_date_is_right_and_goes_on() {
    alone!().run(|| {
        let server = serve(&[]);
        let peer = server.connect();
        let date = || {
            let answer = ask(&peer).unwrap();
            let line = answer.lines().find_map(|line| line.strip_prefix("Date: ")).unwrap();
            httpdate::parse_http_date(line).unwrap()
        };
        let second = Duration::from_secs(1);
        let looks = || {
            let before = SystemTime::now();
            let date = date();
            assert!(date + second + second > before, "{date:?} before {before:?}");
            assert!(date <= SystemTime::now());
            date
        };
        let first = looks();
        eventually("the date goes on", || looks() > first);
    });
}

#[test]
fn a_request_that_does_not_come_is_408() {
    alone!().run(|| {
        let server = serve_logging(&["--header-timeout", "1"]);
        let beginnings = [
            ("G".into(), "", 0),
            ("GET / HTTP/1.1\r\n".into(), "", 0),
            (format!("{GET}\r\nGET"), HELLO, GET.len() + 2),
            ("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhell".into(), "", 50),
        ];
        let start = Instant::now();
        let peers = beginnings.each_ref().map(|(sent, ..)| {
            let peer = server.connect();
            send(&peer, sent);
            peer
        });
        for (peer, (sent, answers, _)) in peers.iter().zip(&beginnings) {
            assert_eq!(rest(peer), format!("{answers}{}", refusal(TIMEOUT)), "{sent}");
        }
        assert!(start.elapsed() >= Duration::from_secs(1));
        drop(peers);
        let log = server.ends_well_on(Signal::SIGTERM).log;
        for (.., offset) in beginnings {
            let reason = format!("at byte {offset}: the request did not come in time");
            assert!(log.contains(&reason), "{reason}: {log}");
        }
    });
}

#[test]
fn an_idle_connection_just_ends() {
    alone!().run(|| {
        let server = serve(&["--idle", "1"]);
        let cases = [("", ""), ("\r\n\r\n", ""), ("\r", ""), (GET, HELLO)];
        let peers = cases.map(|(sent, answer)| {
            let peer = server.connect();
            send(&peer, sent);
            (peer, answer)
        });
        for (peer, answer) in &peers {
            assert_eq!(rest(peer), *answer);
        }
    });
}

/// The deadline counts from the first byte, not from the last one (Slowloris).
#[test]
fn a_request_that_comes_drop_by_drop_is_408_too() {
    alone!().run(|| {
        let server = serve(&["--header-timeout", "1"]);
        let mut peer = server.connect();
        send(&peer, "GET / HTTP/1.1\r\nHost: x\r\nA: ");
        peer.set_nonblocking(true).unwrap();
        let mut answer = [0; 512];
        let n = loop {
            let _ = peer.write(b"a");
            match peer.read(&mut answer) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                outcome => break outcome.unwrap(),
            }
            thread::park_timeout(Duration::from_millis(2));
        };
        assert_eq!(masked(&answer[..n]), refusal(TIMEOUT));
    });
}

#[test]
fn a_connection_in_use_is_not_idle() {
    alone!().run(|| {
        let server = serve(&["--idle", "1"]);
        let half = Duration::from_millis(500);
        // On a machine that stands still for a second, the server is right to close. Once more.
        loop {
            let peer = server.connect();
            let start = Instant::now();
            while start.elapsed() < half && ask(&peer).is_some() {}
            let last = Instant::now();
            if ask(&peer).is_some() {
                assert_eq!(rest(&peer), "");
                assert!(last.elapsed() >= 2 * half, "closed after {:?}", last.elapsed());
                break;
            }
        }
    });
}

/// A deadline that cannot be counted is none.
#[test]
fn timeouts_may_be_of_any_size() {
    alone!().run(|| {
        let longest = u64::MAX.to_string();
        let server = serve(&["--idle", &longest, "--header-timeout", &longest]);
        let peer = server.connect();
        send(&peer, "GET / HT");
        ask(&server.connect()).unwrap();
        send(&peer, &LAST["GET / HT".len()..]);
        assert_eq!(rest(&peer), with_field(HELLO, "Connection: close"));
        for option in ["--idle", "--header-timeout"] {
            assert_eq!(run("http_hello", &[option, "soon"]).status.code(), Some(2));
        }
    });
}

#[test]
fn a_stop_ends_idle_connections_and_waits_for_requests_that_have_begun() {
    alone!().run(|| {
        for threads in ["0", "2"] {
            let server = serve(&["--threads", threads]);
            let idle: Vec<_> = (0..4).map(|_| server.connect()).collect();
            let begun: Vec<_> = (0..4).map(|_| server.connect()).collect();
            let body = "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhel";
            for peer in idle.iter().chain(&begun) {
                ask(peer).unwrap();
            }
            for (i, peer) in begun.iter().enumerate() {
                send(peer, if i % 2 == 0 { &GET[..9] } else { body });
            }
            // Every loop has seen the beginnings when it has answered this.
            idle.iter().for_each(|peer| assert!(ask(peer).is_some()));
            server.signal(Signal::SIGTERM);
            for peer in &idle {
                assert_eq!(rest(peer), "");
            }
            drop(idle);
            for (i, peer) in begun.iter().enumerate() {
                send(peer, if i % 2 == 0 { &GET[9..] } else { "lo" });
                assert_eq!(rest(peer), with_field(HELLO, "Connection: close"));
            }
            drop(begun);
            assert_eq!(server.wait().code, Some(0));
        }
    });
}
