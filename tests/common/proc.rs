//! What proc(5) tells, which is Linux's: a test that asks elsewhere is skipped, loudly, where it
//! asks.

use std::fs;
use std::path::PathBuf;

/// What the process of a test that cannot go on says to the one that started it.
pub const SKIP: &str = "SKIP THIS TEST: ";

/// Ends a test that runs in a process of its own; it does not count as failed.
pub fn skip(why: &str) -> ! {
    panic!("{SKIP}{why}");
}

fn path(name: &str) -> PathBuf {
    if !cfg!(target_os = "linux") {
        skip(&format!("it wants Linux's /proc/{name}"));
    }
    format!("/proc/{name}").into()
}

/// For tests that look there themselves, or have another program do it.
#[track_caller]
pub fn is_wanted() {
    path("self");
}

/// A file's text.
#[track_caller]
pub fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap()
}

/// The entries of a directory.
#[track_caller]
pub fn list(name: &str) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(path(name)).unwrap().map(|entry| entry.unwrap().path())
}
