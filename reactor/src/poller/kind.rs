//! Which kernel interfaces there are, and which one is taken when nobody says.

use std::env;
use std::fmt;
use std::io;
use std::str::FromStr;

/// A kernel interface that tells which descriptors are ready. All have names on all systems;
/// [`PollerKind::available`] are those that this one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PollerKind {
    /// epoll(7), on Linux.
    Epoll,
    /// kqueue(2), on the BSDs and macOS.
    Kqueue,
    /// poll(2), on every system. The kernel looks at each descriptor in each wait, so it is for
    /// hundreds of them rather than for thousands.
    Poll,
}

/// The environment variable that [`PollerKind::preferred`] reads.
const VARIABLE: &str = "RUDUO_POLLER";

impl PollerKind {
    /// Those that this system has, the best first.
    #[must_use]
    pub const fn available() -> &'static [PollerKind] {
        &[
            #[cfg(target_os = "linux")]
            PollerKind::Epoll,
            #[cfg(kqueue)]
            PollerKind::Kqueue,
            PollerKind::Poll,
        ]
    }

    /// What is used if nothing is said: the one that the environment variable `RUDUO_POLLER` names
    /// (`epoll`, `kqueue` or `poll`), and the best available one if it is not set.
    ///
    /// # Errors
    /// `InvalidInput` if the variable holds anything else.
    pub fn preferred() -> io::Result<PollerKind> {
        match env::var_os(VARIABLE) {
            None => Ok(PollerKind::available()[0]),
            Some(name) => name.to_string_lossy().parse().map_err(|e: io::Error| {
                io::Error::new(e.kind(), format!("the environment variable {VARIABLE}: {e}"))
            }),
        }
    }

    /// Why a poller of this kind cannot be had.
    pub(super) fn missing(self) -> io::Error {
        let names: Vec<_> = PollerKind::available().iter().map(ToString::to_string).collect();
        io::Error::new(
            io::ErrorKind::Unsupported,
            format!("there is no {self} on this system, but {}", names.join(", ")),
        )
    }
}

impl fmt::Display for PollerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PollerKind::Epoll => "epoll",
            PollerKind::Kqueue => "kqueue",
            PollerKind::Poll => "poll",
        })
    }
}

/// From the name of the kernel interface: `epoll`, `kqueue`, `poll`.
impl FromStr for PollerKind {
    type Err = io::Error;

    fn from_str(name: &str) -> io::Result<PollerKind> {
        match name {
            "epoll" => Ok(PollerKind::Epoll),
            "kqueue" => Ok(PollerKind::Kqueue),
            "poll" => Ok(PollerKind::Poll),
            other => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("no poller is called {other:?}; there are epoll, kqueue, poll"),
            )),
        }
    }
}
