//! C functions that stand before those of the C library in a process: a kernel or a clock as one
//! rarely meets them. Each file here is a library for LD_PRELOAD.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::{env, fs, process, thread};

use crate::common::Alone;

/// Runs a test in a process of its own with the shim `name` in it. Skipped, loudly, if there is no
/// C compiler.
pub fn run(alone: Alone, name: &str, body: impl FnOnce()) {
    if let Some(library) = build(&alone, name) {
        alone.env("LD_PRELOAD", library).run(body);
    }
}

/// Compiles the shim `name`, for a process that the test starts. `None` if the test is skipped.
pub fn build(alone: &Alone, name: &str) -> Option<PathBuf> {
    let libraries = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = libraries.join(format!("{name}.so"));
    if Alone::is_own_process() {
        // The process that started this one has built it.
        return Some(library);
    }
    if Command::new("cc").arg("--version").output().is_err() {
        alone.skip("there is no C compiler (cc) on this machine");
        return None;
    }
    // Others may be building or using the same one: it appears, or is replaced, at once.
    let (process, thread) = (process::id(), thread::current().id());
    let new = libraries.join(format!("{name}-{process}-{thread:?}.so"));
    let source = format!("{}/tests/shim/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("cc")
        .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
        .args([&new, Path::new(&source)])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::rename(new, &library).unwrap();
    Some(library)
}

/// A number that the shim in this process exports.
#[track_caller]
pub fn number(name: &CStr) -> &'static AtomicU64 {
    // SAFETY: the name ends with a zero.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    // SAFETY: what is asked for by name is an atomic of 64 bits, which lives as long as the
    // process; null is none.
    let number = unsafe { address.cast::<AtomicU64>().as_ref() };
    number.unwrap_or_else(|| panic!("no shim in this process has a {name:?}"))
}
