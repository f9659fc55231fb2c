//! The practical limit: loops written by hand on epoll, each for nothing but its protocol. They keep
//! no limits, have no timers and cannot be woken; what a library costs is what it adds to them.

#[path = "../common.rs"]
mod common;
mod echo;
mod poll;
mod recvfrom;
mod recvmmsg;
mod round_trips;

use std::process::ExitCode;

use poll::Wait;

fn main() -> ExitCode {
    common::run(|task| match task.name.as_str() {
        "echo" => echo::echo(task, Wait::Asleep),
        "echo-spinning" => echo::echo(task, Wait::Spinning),
        "udp" => recvfrom::echo(task),
        "udp-batched" => recvmmsg::echo(task),
        "roundtrips" => round_trips::measure(),
        _ => common::unknown(task),
    })
}
