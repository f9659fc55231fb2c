//! Descriptors for a program that is started: fork(2), dup2(2) and execve(2).
//!
//! All descriptors of this library are close-on-exec. They stay so here: what the child inherits are
//! duplicates, made between fork and exec, in the child alone. So no other child, started at the
//! same time by another thread, gets any of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use super::check;

/// The first descriptor that is not one of the three of standard input and output.
pub const FIRST: RawFd = 3;

/// Starts a program in which `fds` are the descriptors from [`FIRST`] on, in this order.
///
/// # Errors
/// Those of [`Command::spawn`], and of fcntl(2) for want of descriptors.
pub fn spawn_with(mut command: Command, fds: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let end = FIRST + fds.len() as RawFd;
    // The numbers that the child will use must mean nothing there: neither one of `fds`, which would
    // be overwritten before its turn, nor what the standard library tells of a failed exec by.
    let fds = fds.iter().map(|fd| duplicate(*fd, end)).collect::<io::Result<Vec<OwnedFd>>>()?;
    let mut placeholders = Vec::new();
    if let Some(any) = fds.first() {
        loop {
            let placeholder = duplicate(any.as_fd(), FIRST)?;
            if placeholder.as_raw_fd() >= end {
                break;
            }
            placeholders.push(placeholder);
        }
    }
    let give = move || {
        for (fd, number) in fds.iter().zip(FIRST..) {
            // SAFETY: dup2(2) may be called between fork and exec. It closes `number` here, which
            // is nobody's: a placeholder, close-on-exec anyway.
            check(unsafe { libc::dup2(fd.as_raw_fd(), number) })?;
        }
        Ok(())
    };
    // SAFETY: `give` calls nothing but dup2(2): it allocates nothing and takes no lock.
    unsafe { command.pre_exec(give) };
    command.spawn()
}

/// A close-on-exec duplicate with a number of at least `min`.
fn duplicate(fd: BorrowedFd<'_>, min: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call makes a new descriptor and changes no other.
    let new = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, min) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}
