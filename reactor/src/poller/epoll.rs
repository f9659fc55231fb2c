//! The epoll(7) backend.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::{Backend, Interest, Mode, Notifier, NotifierKind, RawEvent, Ready};
use crate::sys::epoll::{self, Op};
use crate::token::Token;

pub(super) struct Epoll {
    epoll: epoll::Epoll,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Epoll> {
        let context = |e: io::Error| {
            let forbidden = matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS));
            let cure = if forbidden { " (RUDUO_POLLER=poll does without it)" } else { "" };
            io::Error::new(e.kind(), format!("epoll_create1: {e}{cure}"))
        };
        Ok(Epoll { epoll: epoll::Epoll::new().map_err(context)? })
    }
}

impl Backend for Epoll {
    fn add(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        interest: Interest,
        mode: Mode,
    ) -> io::Result<()> {
        self.epoll.ctl(Op::Add, fd, flags(interest, mode), token.0)
    }

    fn modify(
        &self,
        fd: BorrowedFd<'_>,
        token: Token,
        interest: Interest,
        mode: Mode,
    ) -> io::Result<()> {
        self.epoll.ctl(Op::Modify, fd, flags(interest, mode), token.0)
    }

    fn delete(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.epoll.ctl(Op::Delete, fd, 0, 0)
    }

    #[inline(always)]
    fn wait(&self, events: &mut Vec<RawEvent>, timeout: Option<Duration>) -> io::Result<()> {
        self.epoll.wait(events, timeout)
    }

    fn notifier_kinds(&self) -> &'static [NotifierKind] {
        &[NotifierKind::Eventfd, NotifierKind::SocketPair, NotifierKind::Pipe]
    }

    /// An eventfd is watched edge-triggered: each write is an edge of its own, so it need not be
    /// read between notifications. Pipes and socket pairs are watched level-triggered and drained.
    fn notifier(&self, token: Token, kind: NotifierKind) -> io::Result<Notifier> {
        let notifier = Notifier::new(token, kind, true)?;
        self.add(notifier.as_fd(), token, Interest::READ, notifier.mode())?;
        Ok(notifier)
    }
}

fn flags(interest: Interest, mode: Mode) -> u32 {
    let mode = match mode {
        Mode::Level => 0,
        Mode::Edge => libc::EPOLLET,
        Mode::OneShot => libc::EPOLLONESHOT,
    };
    u32::from(interest.bits()) | mode as u32
}

const _: () = {
    assert!(Interest::READ.bits() as i32 == libc::EPOLLIN);
    assert!(Interest::WRITE.bits() as i32 == libc::EPOLLOUT);
    assert!(Ready::READ.bits() as i32 == libc::EPOLLIN);
    assert!(Ready::WRITE.bits() as i32 == libc::EPOLLOUT);
    assert!(Ready::ERROR.bits() as i32 == libc::EPOLLERR);
    assert!(Ready::HANGUP.bits() as i32 == libc::EPOLLHUP);
};
