//! The file of a Unix socket: it comes with the socket, in the place of one that a dead server has left,
//! and goes with it.
//!
//! That a server is dead is known by its refusing to be connected to. But so does one that is about to
//! listen, or has just closed its socket and is about to remove the file. So in one folder our servers
//! come and go one at a time: while one does, it holds the folder's lock (flock(2)).
//!
//! ```text
//!   lock ──▶ bind ──in use──▶ refused? remove ──▶ bind again ──▶ permissions, listen ──▶ unlock
//!   close ──▶ lock ──▶ still ours? remove ──▶ unlock
//! ```
//!
//! Who cannot have the lock in time removes nothing. Datagram sockets are there from when they are
//! bound, and refuse a stream for being of another kind; names without a file come and go with their
//! sockets, so none of this is about them.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use ruduo_reactor::sys::socket;

use crate::Address;

/// The file of a Unix socket that we have made. Dropping this removes it, so that nobody finds a
/// door behind which there is nothing.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode: what is there later may be a successor's.
    identity: (u64, u64),
    /// A forked child has a copy of this value, but the file is its parent's.
    process: u32,
    /// It is a successor's now.
    is_left: AtomicBool,
    /// Until it is what it is to be.
    folder: Option<Folder>,
}

impl SocketFile {
    /// Binds a socket to a path. A file that a dead server has left is removed first: one that is a
    /// socket and refuses to be connected to. One at which somebody listens is in use.
    ///
    /// Others of ours wait until it is [settled](SocketFile::settle).
    pub(crate) fn bind(
        fd: BorrowedFd<'_>,
        path: &Path,
        address: &Address,
    ) -> io::Result<SocketFile> {
        let path = std::path::absolute(path)?;
        let folder = Folder::of(&path);
        let first = socket::bind(fd, address);
        if matches!(&first, Err(e) if e.kind() == io::ErrorKind::AddrInUse) && is_stale(address) {
            folder.check()?;
            log::info!("removing {}: no server is behind it any more", path.display());
            fs::remove_file(&path)?;
            socket::bind(fd, address)?;
        } else {
            first?;
        }
        Ok(SocketFile {
            identity: identity(&path)?,
            path,
            process: std::process::id(),
            is_left: AtomicBool::new(false),
            folder: Some(folder),
        })
    }

    /// Its permissions: who may write to it may connect and send.
    pub(crate) fn set_mode(&self, mode: u32) -> io::Result<()> {
        fs::set_permissions(&self.path, Permissions::from_mode(mode))
    }

    /// The socket is what it is to be: it listens, if it is to.
    pub(crate) fn settle(&mut self) {
        self.folder = None;
    }

    /// Leaves it where it is at the end.
    pub(crate) fn leave(&self) {
        self.is_left.store(true, Ordering::Relaxed);
    }

    fn is_ours(&self) -> bool {
        !self.is_left.load(Ordering::Relaxed)
            && self.process == std::process::id()
            && identity(&self.path).is_ok_and(|there| there == self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Before waiting for the lock, too: a forked child has nothing to do with it.
        if !self.is_ours() {
            return;
        }
        let folder = self.folder.take().unwrap_or_else(|| Folder::of(&self.path));
        let removed = folder
            .check()
            .and_then(|()| if self.is_ours() { fs::remove_file(&self.path) } else { Ok(()) });
        if let Err(e) = removed {
            log::warn!("removing {}: {e}", self.path.display());
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Whether a path is a socket's at which nobody listens. (connect(2) refuses for a file that is no
/// socket too, and that is not ours to remove.)
fn is_stale(address: &Address) -> bool {
    let is_socket = |path| fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    let refused = || {
        let probe = socket::stream(address).and_then(|fd| socket::connect(fd.as_fd(), address));
        probe.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    };
    address.path().is_some_and(is_socket) && refused()
}

/// How long to wait for the lock of a folder. Who has it for its sockets has it for a moment.
const PATIENCE: Duration = Duration::from_millis(250);

/// The folder of a socket's file; while this is there, nobody else of ours comes or goes in it.
#[derive(Debug)]
enum Folder {
    #[expect(dead_code, reason = "held until it is dropped")]
    Locked(Flock<File>),
    /// Somebody else has the lock, and keeps it.
    Busy,
    /// There is none: we may not read the folder, or its file system knows no such locks. Others
    /// of ours cannot have it either.
    Without,
}

impl Folder {
    fn of(path: &Path) -> Folder {
        let Some(Ok(mut folder)) = path.parent().map(File::open) else { return Folder::Without };
        let until = Instant::now() + PATIENCE;
        loop {
            match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => return Folder::Locked(locked),
                Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= until => return Folder::Busy,
                Err((back, Errno::EWOULDBLOCK)) => folder = back,
                Err(_) => return Folder::Without,
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether something may be removed from it.
    fn check(&self) -> io::Result<()> {
        match self {
            Folder::Locked(_) | Folder::Without => Ok(()),
            Folder::Busy => Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "nobody listens at the socket's file, but it is not removed while somebody else \
                 keeps its folder locked (flock)",
            )),
        }
    }
}
