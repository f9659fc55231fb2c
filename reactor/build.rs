//! Gives the systems that have kqueue(2) one name, for it is asked for in several places: the cfg
//! `kqueue`. With the cfg `kqueue_model` Linux has it too, as a model of it; see
//! `src/sys/kqueue_model`.

use std::env;

/// As `CARGO_CFG_TARGET_OS` has them.
const SYSTEMS: [&str; 9] =
    ["freebsd", "dragonfly", "openbsd", "netbsd", "macos", "ios", "tvos", "watchos", "visionos"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(kqueue)");
    let system = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let is_model = env::var_os("CARGO_CFG_KQUEUE_MODEL").is_some();
    if SYSTEMS.contains(&system.as_str()) || (is_model && system == "linux") {
        println!("cargo::rustc-cfg=kqueue");
    }
}
