//! Descriptors for a program that is started: fork(2), dup2(2) and execve(2).
//!
//! All descriptors of this library are close-on-exec. They stay so here: what the child inherits
//! are duplicates, made between fork and exec, in the child alone. So no other child, started at
//! the same time by another thread, gets any of them.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::check;

/// The first descriptor that is not one of the three of standard input and output.
pub const FIRST: RawFd = 3;

/// How often it is tried while other threads are in the way.
const ATTEMPTS: u32 = 100;

/// Starts a program in which `fds` are the descriptors from [`FIRST`] on, in this order.
///
/// # Errors
/// Those of [`Command::spawn`], and of fcntl(2) for want of descriptors. `ResourceBusy` if other
/// threads open and close descriptors with those numbers all the time.
pub fn spawn_with(mut command: Command, fds: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let end = FIRST + fds.len() as RawFd;
    // Duplicates with numbers that are out of the way, so that none is overwritten before its turn.
    let moved = fds.iter().map(|fd| duplicate(*fd, end)).collect::<io::Result<Vec<OwnedFd>>>()?;
    // One descriptor must not be overwritten: that of the pipe or socket by which the standard
    // library tells of a failed exec. It is made in `spawn`, with the lowest number that is free
    // then. So all numbers that we need are occupied before. As another thread may free one of them
    // just then, the child checks that each leads to where it led before `spawn`.
    let targets: Arc<[AtomicU64]> = fds.iter().map(|_| AtomicU64::default()).collect();
    let give = {
        let targets = targets.clone();
        move || {
            for (number, target) in (FIRST..).zip(&*targets) {
                let now = inode(number);
                if now != NOTHING && now != target.load(Ordering::Relaxed) {
                    return Err(io::Error::from_raw_os_error(libc::EBUSY));
                }
            }
            for (fd, number) in moved.iter().zip(FIRST..) {
                // SAFETY: dup2(2) may be called between fork and exec. It closes `number` here,
                // which the program that follows is not to have anyway.
                check(unsafe { libc::dup2(fd.as_raw_fd(), number) })?;
            }
            Ok(())
        }
    };
    // SAFETY: `give` calls nothing but fstat(2) and dup2(2): it allocates nothing and takes no
    // lock.
    unsafe { command.pre_exec(give) };
    let mut placeholders = Vec::new();
    for _ in 0..ATTEMPTS {
        if let Some(any) = fds.first() {
            loop {
                let placeholder = duplicate(*any, FIRST)?;
                if placeholder.as_raw_fd() >= end {
                    break;
                }
                placeholders.push(placeholder);
            }
        }
        for (number, target) in (FIRST..).zip(&*targets) {
            target.store(inode(number), Ordering::Relaxed);
        }
        match command.spawn() {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
            outcome => return outcome,
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!("other threads open and close descriptors below {end} all the time; try again"),
    ))
}

const NOTHING: u64 = u64::MAX;

/// What a descriptor leads to, as a number: each pipe and socket has one of its own.
fn inode(fd: RawFd) -> u64 {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the call writes to `status` alone, whatever the number is.
    if unsafe { libc::fstat(fd, status.as_mut_ptr()) } < 0 {
        return NOTHING;
    }
    // SAFETY: fstat has succeeded, so it has filled `status`.
    unsafe { status.assume_init() }.st_ino
}

/// A close-on-exec duplicate with a number of at least `min`.
fn duplicate(fd: BorrowedFd<'_>, min: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call makes a new descriptor and changes no other.
    let new = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, min) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(new) })
}
