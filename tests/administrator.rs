//! What an administrator does to connections: packets are dropped or rejected (nft), connections
//! killed (ss -K). In a network of the test's own.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;
mod namespace;
mod recorder;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use common::{Alone, read_n, within};
use namespace::{command, filter, filter_nothing};
use recorder::{Recorded, Told, brief, recorded, recorded_paused};
use ruduo::{Client, ConnectError, EventLoop, Keepalive, LoopThread, Retry, TcpClient};

/// Runs a test that has rules for packets.
fn with_rules(alone: Alone, body: impl FnOnce()) {
    namespace::run(alone, &["nft list ruleset"], body);
}

/// Runs a test that kills connections.
fn with_kills(alone: Alone, body: impl FnOnce()) {
    // What is there in a new network is nothing, but the kernel can be asked to kill it or cannot.
    namespace::run(alone, &["ss -K sport = 1"], body);
}

// Connecting.

/// What a client is told: a failure, or (`None`) that it is connected.
fn outcomes(
    address: SocketAddr,
    setup: impl for<'l> FnOnce(Client<'l>) -> Client<'l> + Send + 'static,
) -> (LoopThread, Receiver<Option<ConnectError>>) {
    let (failures, told) = mpsc::channel();
    let connects = failures.clone();
    let thread = LoopThread::spawn("client", EventLoop::builder(), move |event_loop| {
        let client = setup(TcpClient::connect(event_loop, address))
            .on_connect_failed(move |_, failure| {
                failures.send(Some(failure.error.clone())).unwrap();
            })
            .on_connect(move |_| connects.send(None).unwrap())
            .on_message(|_, _| {})
            .start()?;
        drop(client);
        Ok(())
    });
    (thread.unwrap(), told)
}

#[test]
fn b59_a_syn_that_is_dropped_is_a_timeout_and_the_next_one_may_arrive() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    with_rules(each_poller!(), || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        filter(address, "drop");
        let start = Instant::now();
        let (_client, told) =
            outcomes(address, |client| client.connect_timeout(TIMEOUT).retry(Retry::exponential()));
        assert_eq!(within(&told), Some(ConnectError::TimedOut));
        assert!(start.elapsed() >= TIMEOUT);
        filter_nothing();
        // An attempt may have begun before that.
        while within(&told).is_some() {}
    });
}

#[test]
fn b58_what_a_firewall_answers_is_told_by_its_kind() {
    with_rules(each_poller!(), || {
        for (answer, expected) in [
            ("tcp reset", ConnectError::Refused),
            ("icmp port-unreachable", ConnectError::Refused),
            ("icmp host-unreachable", ConnectError::Unreachable),
            ("icmp net-unreachable", ConnectError::Unreachable),
            ("icmp admin-prohibited", ConnectError::Unreachable),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            filter(address, &format!("reject with {answer}"));
            let (_client, told) = outcomes(address, |client| client);
            assert_eq!(within(&told), Some(expected), "{answer}");
            filter_nothing();
        }
    });
}

// Established connections.

/// Another peer of the same server is served.
fn assert_serves(this: &Recorded) {
    let mut peer = this.server.connect();
    peer.write_all(b"?").unwrap();
    this.let_turn();
}

#[test]
fn b18_what_nobody_acknowledges_ends_the_connection_at_the_user_timeout() {
    const TIMEOUT: Duration = Duration::from_millis(500);
    with_rules(each_poller!(), || {
        let (this, peer) = recorded(|server| server.user_timeout(TIMEOUT));
        filter(peer.local_addr().unwrap(), "drop");
        let start = Instant::now();
        this.conn.send("hello").unwrap();
        assert_eq!(within(&this.told), Told::WriteComplete);
        assert_eq!(this.closed(), "ReadFailed(ETIMEDOUT)");
        assert!(start.elapsed() >= TIMEOUT);
        assert_serves(&this);
    });
}

/// The network says why, and TCP tries on nevertheless, for it may pass; at the end that is the
/// reason.
#[test]
fn b18_a_network_that_says_why_is_the_reason_at_the_user_timeout() {
    with_rules(each_poller!(), || {
        let (this, peer) = recorded(|server| server.user_timeout(Duration::from_millis(500)));
        filter(peer.local_addr().unwrap(), "reject with icmp host-unreachable");
        this.conn.send("hello").unwrap();
        assert_eq!(within(&this.told), Told::WriteComplete);
        assert_eq!(this.closed(), "ReadFailed(EHOSTUNREACH)");
    });
}

/// What is not acknowledged because it was dropped for a while arrives when it is let in.
#[test]
fn packets_that_are_dropped_for_a_while_are_sent_again() {
    with_rules(each_poller!(), || {
        let (this, peer) = recorded(|server| server.user_timeout(Duration::from_secs(60)));
        filter(peer.local_addr().unwrap(), "drop");
        this.conn.send("hello").unwrap();
        assert_eq!(within(&this.told), Told::WriteComplete);
        filter_nothing();
        assert_eq!(read_n(&peer, 5), b"hello");
    });
}

#[test]
fn b18_a_peer_that_does_not_answer_when_it_is_asked_is_gone() {
    let keepalive =
        Keepalive { after: Duration::from_secs(1), every: Duration::from_secs(1), times: 1 };
    with_rules(each_poller!(), || {
        let start = Instant::now();
        let (this, peer) = recorded(move |server| server.keepalive(keepalive));
        filter(peer.local_addr().unwrap(), "drop");
        assert_eq!(this.closed(), "ReadFailed(ETIMEDOUT)");
        assert!(start.elapsed() >= Duration::from_secs(1), "asked before its time");
        assert_serves(&this);
    });
}

/// The client's side has the same options.
#[test]
fn b18_a_server_that_does_not_answer_when_it_is_asked_is_gone() {
    let keepalive =
        Keepalive { after: Duration::from_secs(1), every: Duration::from_secs(1), times: 1 };
    with_rules(each_poller!(), || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, told) = mpsc::channel();
        let (connects, closes) = (tell.clone(), tell);
        let _client = LoopThread::spawn("client", EventLoop::builder(), move |event_loop| {
            TcpClient::connect(event_loop, address)
                .keepalive(keepalive)
                .on_connect(move |_| connects.send("connected".to_owned()).unwrap())
                .on_message(|_, _| {})
                .on_close(move |_, reason| closes.send(brief(reason)).unwrap())
                .start()?;
            Ok(())
        })
        .unwrap();
        assert_eq!(within(&told), "connected");
        filter(address, "drop");
        assert_eq!(within(&told), "ReadFailed(ETIMEDOUT)");
    });
}

#[test]
fn b24_a_reset_by_a_firewall_is_one_close_with_the_error() {
    with_rules(each_poller!(), || {
        let (this, peer) = recorded(|server| server);
        filter(peer.local_addr().unwrap(), "reject with tcp reset");
        this.conn.send("hello").unwrap();
        assert_eq!(within(&this.told), Told::WriteComplete);
        assert_eq!(this.closed(), "ReadFailed(ECONNRESET)");
        assert_serves(&this);
    });
}

// Killed connections.

/// Kills the server's end. False, and the test is skipped, if this kernel cannot.
fn kill(this: &Recorded) -> bool {
    let (server, peer) = this.ends;
    let killed = command(&format!("ss -K -n -t sport = {} dport = {}", server.port(), peer.port()));
    let is_killed = killed.contains(&format!(":{}", peer.port()));
    if !is_killed {
        println!("SKIPPED: this kernel cannot kill connections (CONFIG_INET_DIAG_DESTROY)");
    }
    is_killed
}

fn assert_is_reset(mut peer: &TcpStream) {
    let outcome = peer.read(&mut [0; 1]);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// Long enough to see a loop spin, which is some ten thousand turns.
const A_WHILE: Duration = Duration::from_millis(300);
const FEW_TURNS: u64 = 100;

#[test]
fn b18_a_connection_that_the_administrator_kills_closes_with_the_reason() {
    with_kills(each_poller!(), || {
        let (this, mut peer) = recorded(|server| server);
        peer.write_all(b"hello").unwrap();
        assert_eq!(within(&this.told), Told::Message(b"hello".to_vec()));
        if kill(&this) {
            assert_eq!(this.closed(), "ReadFailed(ECONNABORTED)");
            assert_is_reset(&peer);
            assert!(this.turns_in(A_WHILE) < FEW_TURNS);
            assert_serves(&this);
        }
    });
}

#[test]
fn b17_killed_while_paused_it_does_not_spin_and_closes_on_resume() {
    with_kills(each_poller!(), || {
        let (this, peer) = recorded_paused(|server| server.linger(Duration::MAX));
        if kill(&this) {
            assert_is_reset(&peer);
            assert!(this.turns_in(A_WHILE) < FEW_TURNS);
            this.conn.resume_reading().unwrap();
            assert_eq!(this.closed(), "ReadFailed(ECONNABORTED)");
        }
    });
}

#[test]
fn b17_killed_while_paused_it_closes_at_the_linger_deadline() {
    with_kills(each_poller!(), || {
        let (this, peer) = recorded_paused(|server| server.linger(Duration::from_millis(100)));
        if kill(&this) {
            assert_is_reset(&peer);
            assert_eq!(this.closed(), "LingerExpired { after: 100ms }");
        }
    });
}

#[test]
fn b25_killed_while_output_waits_it_closes_with_the_reason() {
    const LARGE: usize = 16 * 1024 * 1024;
    with_kills(each_poller!(), || {
        let (this, _peer) = recorded(|server| server);
        this.conn.send(vec![7; LARGE]).unwrap();
        assert!(matches!(within(&this.told), Told::HighWater(_)));
        if kill(&this) {
            let reason = loop {
                match within(&this.told) {
                    Told::Closed(reason) => break reason,
                    // What waited is dropped, and nothing more will come.
                    Told::LowWater | Told::HalfClose => {}
                    other => panic!("told of {other:?}"),
                }
            };
            assert_eq!(reason, "WriteFailed(ECONNABORTED)");
            assert!(this.turns_in(A_WHILE) < FEW_TURNS);
        }
    });
}
