//! Standard input and output as two descriptors of an event loop.
//!
//! There are two things to mind.
//!
//! **They are not ours alone.** What makes a descriptor non-blocking, O_NONBLOCK, is no property of
//! the descriptor but of what is behind it, which the shell, the programs of a pipeline and whoever
//! started us share, and which lives on when we have ended: a shell whose terminal does not block any
//! more reads an error and logs out. So it stays as it is, and we never do what could block: one read
//! when there is something to read, and when there is room no write of more than PIPE_BUF bytes, for
//! which that room is enough, as POSIX has it. (Unless others read or write there at the same moment,
//! or it is a terminal, which may have less: then we wait.)
//!
//! **They may be files,** with which epoll refuses to have anything to do (EPERM), like /dev/null.
//! Those are always ready: they are read piece by piece by a task of the loop, after which the others
//! have their turn, and written at once.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use ruduo::{Buffer, Channel, ConnectionHandle, Event, EventLoop, Interest, Source, Token};

use crate::common::Ending;

/// Without the standard library's buffers in between.
pub(crate) struct Stdio {
    pub(crate) input: File,
    pub(crate) output: File,
}

impl Stdio {
    /// Standard output is taken from everybody else in this process: when it is dropped it is closed,
    /// and whoever reads it sees the end.
    pub(crate) fn take() -> io::Result<Stdio> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        nix::unistd::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        Ok(Stdio { input: input.into(), output: output.into() })
    }
}

/// How it is known that a descriptor is ready.
#[derive(Clone, Copy)]
enum Watch {
    /// The loop tells.
    Loop(Token),
    /// It always is.
    Always,
    /// It does not matter any more, or not yet.
    Nobody,
}

impl Watch {
    fn begin(
        event_loop: &EventLoop,
        source: Rc<dyn Source>,
        interest: Interest,
    ) -> io::Result<Watch> {
        match event_loop.register(Channel::from_source(source, interest)) {
            Ok(token) => Ok(Watch::Loop(token)),
            Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(Watch::Always),
            Err(e) => Err(e),
        }
    }

    /// Without interest, only that the other side is gone is told.
    fn wait_for(self, event_loop: &EventLoop, interest: Interest) -> io::Result<()> {
        match self {
            Watch::Loop(token) => event_loop.set_interest(token, interest),
            Watch::Always | Watch::Nobody => Ok(()),
        }
    }

    fn end(self, event_loop: &EventLoop) {
        if let Watch::Loop(token) = self {
            event_loop.deregister(token);
        }
    }
}

/// What is read at a time.
const PIECE: usize = 64 * 1024;

/// Standard input, on its way to the connection: one piece at a time, for what waits for the peer is
/// no reason not to read from it. If that waited for the other way above its high-water mark, at both
/// ends, each would wait for the other.
pub(crate) struct Input {
    file: File,
    connection: ConnectionHandle,
    ending: Ending,
    watch: Cell<Watch>,
    /// A piece has not left yet.
    waiting: Cell<bool>,
    /// There is more already, and the loop does not tell it again and again.
    paused: Cell<bool>,
    /// A task that reads a file waits for its turn.
    queued: Cell<bool>,
}

impl Input {
    pub(crate) fn new(file: File, connection: ConnectionHandle, ending: Ending) -> Rc<Input> {
        Rc::new(Input {
            file,
            connection,
            ending,
            watch: Cell::new(Watch::Nobody),
            waiting: Cell::default(),
            paused: Cell::default(),
            queued: Cell::default(),
        })
    }

    pub(crate) fn begin(self: &Rc<Self>, event_loop: &EventLoop) {
        match Watch::begin(event_loop, self.clone(), Interest::READ) {
            Ok(watch) => self.watch.set(watch),
            Err(e) => self.fail(event_loop, &e),
        }
        self.queue(event_loop);
    }

    /// Nothing waits for the peer any more.
    pub(crate) fn sent(self: &Rc<Self>, event_loop: &EventLoop) {
        self.waiting.set(false);
        if self.paused.replace(false) {
            self.wait_for(event_loop, Interest::READ);
        }
        self.queue(event_loop);
    }

    pub(crate) fn end(&self, event_loop: &EventLoop) {
        self.watch.replace(Watch::Nobody).end(event_loop);
    }

    fn wait_for(&self, event_loop: &EventLoop, interest: Interest) {
        if let Err(e) = self.watch.get().wait_for(event_loop, interest) {
            self.fail(event_loop, &e);
        }
    }

    /// A file is read by tasks, one piece each.
    fn queue(self: &Rc<Self>, event_loop: &EventLoop) {
        if !self.is_always_ready() || self.waiting.get() || self.queued.replace(true) {
            return;
        }
        let input = self.clone();
        event_loop.defer(move |event_loop| {
            input.queued.set(false);
            if input.is_always_ready() && !input.waiting.get() {
                input.read(event_loop);
            }
            // If a signal came meanwhile; otherwise the piece has to leave first.
            input.queue(event_loop);
        });
    }

    fn is_always_ready(&self) -> bool {
        matches!(self.watch.get(), Watch::Always)
    }

    fn read(&self, event_loop: &EventLoop) {
        let mut piece = [0; PIECE];
        match (&self.file).read(&mut piece) {
            Ok(0) => {
                self.end(event_loop);
                // An error, here and below, says that the connection is over, which its handler is told.
                let _ = self.connection.shutdown();
            }
            Ok(n) => {
                self.waiting.set(true);
                let _ = self.connection.send(&piece[..n]);
            }
            // Somebody else was faster, or a signal came.
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => self.fail(event_loop, &e),
        }
    }

    /// The peer must not take what it has for the whole.
    fn fail(&self, event_loop: &EventLoop, e: &io::Error) {
        self.end(event_loop);
        let why = io::Error::new(e.kind(), format!("reading standard input: {e}"));
        self.ending.fails(event_loop, why);
        let _ = self.connection.reset();
    }
}

impl Source for Input {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn name(&self) -> String {
        "standard input".to_owned()
    }

    fn on_event(self: Rc<Self>, event_loop: &EventLoop, _: Event) {
        if self.waiting.get() {
            self.paused.set(true);
            self.wait_for(event_loop, Interest::NONE);
        } else {
            self.read(event_loop);
        }
    }
}

/// When there is room in a pipe, it is for at least so much.
const PIPE_BUF: usize = nix::libc::PIPE_BUF;

/// What came from the connection, on its way to standard output.
pub(crate) struct Output {
    file: File,
    connection: ConnectionHandle,
    ending: Ending,
    watch: Cell<Watch>,
    /// While there is some, the connection does not read.
    pending: RefCell<Buffer>,
}

impl Output {
    pub(crate) fn new(file: File, connection: ConnectionHandle, ending: Ending) -> Rc<Output> {
        let (watch, pending) = (Cell::new(Watch::Nobody), RefCell::default());
        Rc::new(Output { file, connection, ending, watch, pending })
    }

    pub(crate) fn begin(self: &Rc<Self>, event_loop: &EventLoop) {
        match Watch::begin(event_loop, self.clone(), Interest::NONE) {
            Ok(watch) => self.watch.set(watch),
            Err(e) => self.fail(event_loop, &e),
        }
    }

    /// Takes all of it.
    pub(crate) fn write(&self, event_loop: &EventLoop, input: &mut Buffer) {
        match self.watch.get() {
            Watch::Loop(_) => {
                self.pending.borrow_mut().append(input.readable());
                let _ = self.connection.pause_reading();
                self.wait_for(event_loop, Interest::WRITE);
            }
            Watch::Always => {
                if let Err(e) = (&self.file).write_all(input.readable()) {
                    self.fail(event_loop, &e);
                }
            }
            Watch::Nobody => {}
        }
        input.clear();
    }

    /// Closes it: with the loop's, the last one who has it is gone. All is written, for while
    /// something is pending the connection does not read, and hears of no end.
    pub(crate) fn end(&self, event_loop: &EventLoop) {
        self.watch.replace(Watch::Nobody).end(event_loop);
    }

    fn wait_for(&self, event_loop: &EventLoop, interest: Interest) {
        if let Err(e) = self.watch.get().wait_for(event_loop, interest) {
            self.fail(event_loop, &e);
        }
    }

    fn write_some(&self, event_loop: &EventLoop) {
        let outcome = {
            let mut pending = self.pending.borrow_mut();
            let piece = &pending.readable()[..pending.len().min(PIPE_BUF)];
            let outcome = (&self.file).write(piece);
            if let Ok(n) = outcome {
                pending.consume(n);
            }
            outcome
        };
        match outcome {
            Ok(_) if self.pending.borrow().is_empty() => {
                self.wait_for(event_loop, Interest::NONE);
                let _ = self.connection.resume_reading();
            }
            Ok(_) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => self.fail(event_loop, &e),
        }
    }

    /// That nobody reads it any more is a good end, as for all in a pipeline.
    fn fail(&self, event_loop: &EventLoop, e: &io::Error) {
        self.watch.replace(Watch::Nobody).end(event_loop);
        self.pending.borrow_mut().clear();
        if e.kind() == ErrorKind::BrokenPipe {
            let _ = self.connection.close();
        } else {
            let why = io::Error::new(e.kind(), format!("writing to standard output: {e}"));
            self.ending.fails(event_loop, why);
            let _ = self.connection.reset();
        }
    }
}

impl Source for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn name(&self) -> String {
        "standard output".to_owned()
    }

    fn on_event(self: Rc<Self>, event_loop: &EventLoop, _: Event) {
        if self.pending.borrow().is_empty() {
            // Nobody has asked, so this is: the other end is gone.
            self.fail(event_loop, &ErrorKind::BrokenPipe.into());
        } else {
            self.write_some(event_loop);
        }
    }
}
