//! The event loop of ruduo: one per thread, callbacks, straight on the kernel's readiness calls.
//!
//! This crate knows descriptors, timers, tasks and signals, but no protocols; `ruduo-net` builds
//! TCP servers on it, and `ruduo` joins the two. To read the source, follow an event:
//!
//! 1. [`Poller`] asks the kernel which descriptors are ready (`poller/mod.rs` has the contract,
//!    `poller/poll.rs` the backend to read first).
//! 2. [`EventLoop::run`] finds the [`Channel`] of each and calls it, then runs timers and tasks
//!    (`event_loop/turn.rs`: the heart).
//! 3. Other threads leave tasks with a [`LoopHandle`]; `inbox.rs` says when that needs a wakeup.
//! 4. `sys/` holds every system call that needs `unsafe`, one file per kernel interface.

#![deny(unsafe_code)]

mod channel;
mod cpus;
mod event_loop;
mod handle;
mod inbox;
mod isolation;
mod metrics;
mod poller;
mod pool;
mod signals;
mod stopwatch;
#[allow(unsafe_code)]
pub mod sys;
mod thread;
mod timer;
mod token;

pub use channel::{Channel, Source};
pub use event_loop::{EventLoop, EventLoopBuilder};
pub use handle::{LoopHandle, PostError};
pub use isolation::{PanicPolicy, Panicked};
pub use metrics::LoopMetrics;
pub use nix::sys::signal::Signal;
pub use poller::{
    Event, Events, Interest, Mode, Notifier, NotifierKind, Poller, PollerKind, Ready,
};
pub use pool::{LoopPool, LoopPoolBuilder, Placement};
pub use signals::SignalId;
pub use thread::LoopThread;
pub use timer::TimerId;
pub use token::Token;
