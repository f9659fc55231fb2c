//! What a test's process asks of the kernel, as strace tells.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::fs;

use crate::common::Alone;

/// Runs a test under strace, which writes the calls of each thread to a file. Returns what it saw,
/// or nothing in the test's own process or without strace.
pub fn calls_of(alone: Alone, which: &str, body: impl FnOnce()) -> Option<String> {
    let name = format!("ruduo-calls-{}-{}", std::process::id(), alone.name());
    let path = std::env::temp_dir().join(name);
    let (out, trace) = (path.to_str().unwrap(), format!("trace={which}"));
    alone.under(&["strace", "-f", "-qq", "-o", out, "-e", &trace]).run(body);
    let calls = fs::read_to_string(&path).ok();
    let _ = fs::remove_file(path);
    calls
}
