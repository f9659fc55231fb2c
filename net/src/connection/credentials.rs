//! Whose process is at the other end of a Unix socket.

use std::io;
use std::os::fd::BorrowedFd;

/// Who connected, as the kernel noted it then: nobody can pretend to be somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerCredentials {
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
    /// The process, where the system tells it. It may have ended since, and its number have a new
    /// owner: for log lines, not for decisions.
    pub pid: Option<i32>,
}

impl PeerCredentials {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<PeerCredentials> {
        use nix::sys::socket::{getsockopt, sockopt};

        let found = getsockopt(&socket, sockopt::PeerCredentials)?;
        // What SO_PEERCRED says of a socket that is none of Unix: nobody.
        if found.uid() == u32::MAX {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "asking who connected: only Unix sockets tell",
            ));
        }
        Ok(PeerCredentials { uid: found.uid(), gid: found.gid(), pid: Some(found.pid()) })
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    pub(super) fn of(socket: BorrowedFd<'_>) -> io::Result<PeerCredentials> {
        let (uid, gid) = nix::unistd::getpeereid(socket)?;
        Ok(PeerCredentials { uid: uid.as_raw(), gid: gid.as_raw(), pid: None })
    }
}
