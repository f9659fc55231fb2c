//! A network of a test's own, in which it may drop packets and kill connections: the machine's own
//! network does not notice. It has a loopback interface and nothing else, unless a cable is laid.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::net::SocketAddr;
use std::process::Command;

use crate::common::{Alone, eventually};

/// Runs a test in a process and a network of its own. Skipped, loudly, if one of these commands
/// fails in such a network: the tools that the test needs, with which they change nothing.
pub fn run(alone: Alone, tools: &[&str], body: impl FnOnce()) {
    if !Alone::is_own_process()
        && let Some(tool) = tools.iter().chain(&["ip link"]).find(|tool| !works(tool))
    {
        let why =
            format!("`unshare --net {tool}` does not work here: a right or a tool is missing");
        return alone.skip(&why);
    }
    alone.under(&["unshare", "--net"]).run(|| {
        command("ip link set lo up");
        body();
    });
}

fn works(command: &str) -> bool {
    let words = command.split_whitespace();
    let output = Command::new("unshare").arg("--net").args(words).output();
    output.is_ok_and(|output| output.status.success())
}

/// Runs a command, which succeeds; returns what it prints.
#[track_caller]
pub fn command(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// What makes a cable: the tool that a test needs which lays one.
pub const CABLE: &str = "ip link add near type veth peer name far";

/// Adds an interface that is not loopback, `near`, with these addresses; the other end of its cable is
/// `far`.
#[track_caller]
pub fn lay_cable(addresses: &[&str]) {
    command(CABLE);
    for end in ["far", "near"] {
        // Nobody else can have the addresses, so they are ours at once; or in two seconds, if that
        // cannot be said.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{end}/accept_dad"), "0");
        command(&format!("ip link set {end} multicast on up"));
    }
    // The kernel notices a little later, and does its routes anew.
    eventually("the cable is live", || command("ip -o link show near").contains("state UP"));
    for address in addresses {
        command(&format!("ip addr add {address} dev near"));
    }
    eventually("no address is tried any more", || {
        command("ip -6 -o addr show tentative").is_empty()
    });
}

/// Does something with all TCP packets that come in to the port of this address: `drop`, `reject with
/// tcp reset`, ...
#[track_caller]
pub fn filter(address: SocketAddr, verdict: &str) {
    command("nft add table inet test");
    command("nft add chain inet test in { type filter hook input priority 0 ; }");
    command(&format!("nft add rule inet test in tcp dport {} {verdict}", address.port()));
}

/// Lets all packets in again.
pub fn filter_nothing() {
    command("nft flush ruleset");
}
