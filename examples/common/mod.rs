//! What the examples do alike and what is not their subject: read arguments, write a log, end with
//! the right status.

// Not every example uses everything.
#![allow(dead_code)]

use std::cell::RefCell;
use std::fmt::{self, Display};
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use ruduo::{Address, ClientHandle, CloseReason, ConnectFailure, EventLoop, Server, ServerHandle};

pub(crate) use lexopt::prelude::{Long, Short};

const NAME: &str = env!("CARGO_CRATE_NAME");

/// Why a program ends before it has done its work.
pub(crate) enum Stop {
    Help,
    Usage(lexopt::Error),
    Failed(io::Error),
}

impl From<lexopt::Error> for Stop {
    fn from(e: lexopt::Error) -> Stop {
        Stop::Usage(e)
    }
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Stop {
        Stop::Failed(e)
    }
}

/// Runs a program: its log goes to standard error, and its exit status is 0 when it has done its
/// work, 1 when it could not, and 2 when its arguments make no sense.
pub(crate) fn run(help: &str, program: impl FnOnce(Arguments) -> Result<(), Stop>) -> ExitCode {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    match program(Arguments(lexopt::Parser::from_env())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Help) => announce(help).map_or_else(failed, |()| ExitCode::SUCCESS),
        Err(Stop::Usage(e)) => {
            complain(format_args!("{e} (see --help)"));
            ExitCode::from(2)
        }
        Err(Stop::Failed(e)) => failed(e),
    }
}

fn failed(e: io::Error) -> ExitCode {
    if is_unread(&e) {
        return ExitCode::SUCCESS;
    }
    complain(&e);
    ExitCode::FAILURE
}

fn complain(why: impl Display) {
    remark(format_args!("{NAME}: {why}"));
}

/// Writes a line to standard error, which is for people and no part of what the program puts out.
pub(crate) fn remark(line: impl Display) {
    // There is nobody else to tell.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints a line of what the program is there to print.
///
/// # Errors
/// What writing says. That nobody reads, as after `| head -1`, is one, too, with which the program
/// ends well: [`run`] can tell it from that of a peer who is gone.
pub(crate) fn print(line: impl Display) -> io::Result<()> {
    writeln!(io::stdout(), "{line}").map_err(|e| match e.kind() {
        kind @ ErrorKind::BrokenPipe => io::Error::new(kind, Unread),
        kind => io::Error::new(kind, format!("writing to standard output: {e}")),
    })
}

/// Prints a line for whoever reads; if nobody does, the program goes on all the same.
///
/// # Errors
/// Anything else that writing says.
pub(crate) fn announce(line: impl Display) -> io::Result<()> {
    match print(line) {
        Err(e) if is_unread(&e) => Ok(()),
        outcome => outcome,
    }
}

/// Nobody reads standard output any more.
#[derive(Debug)]
struct Unread;

impl Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads standard output any more")
    }
}

impl std::error::Error for Unread {}

fn is_unread(e: &io::Error) -> bool {
    e.get_ref().is_some_and(|e| e.is::<Unread>())
}

/// Runs a server that takes `--listen`, `--threads` and `--poller` and nothing else: `serve` says
/// what it does.
/// (The example `echo` shows the same, step by step.)
pub(crate) fn run_server(
    help: &str,
    default_port: u16,
    serve: impl FnOnce(Server<'_>) -> io::Result<ServerHandle>,
) -> ExitCode {
    run(help, |mut arguments| {
        let (mut listen, mut threads) = (loopback(default_port), 0);
        let mut event_loop = EventLoop::builder();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("poller") => event_loop = event_loop.poller(arguments.value()?),
                other => return Err(other.unexpected().into()),
            }
        }
        let event_loop = event_loop.build()?;
        let server = serve(Server::bind(&event_loop, listen)?.threads(threads))?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        announce(format_args!("listening on {}", server.local_addr()))?;
        Ok(event_loop.run()?)
    })
}

/// The end of a program that is the client of one connection: it ends with that, and fails if that
/// was not to end.
#[derive(Clone, Default)]
pub(crate) struct Ending(Rc<RefCell<Option<io::Error>>>);

impl Ending {
    /// What `on_connect_failed` calls.
    pub(crate) fn not_connected(&self, event_loop: &EventLoop, failure: &ConnectFailure) {
        self.fails(event_loop, io::Error::other(failure.to_string()));
    }

    /// What `on_close` calls.
    pub(crate) fn closed(&self, event_loop: &EventLoop, what: &str, reason: &CloseReason) {
        self.note(what, reason);
        event_loop.quit();
    }

    /// That the program or its user has ended the connection is no failure.
    pub(crate) fn note(&self, what: &str, reason: &CloseReason) {
        use CloseReason::{Closed, LoopEnded, Stopped};
        if !reason.is_clean() && !matches!(reason, Closed | LoopEnded | Stopped) {
            self.0
                .borrow_mut()
                .get_or_insert_with(|| io::Error::other(format!("{what}: {reason}")));
        }
    }

    /// The first reason is the one that is told.
    pub(crate) fn fails(&self, event_loop: &EventLoop, why: io::Error) {
        self.0.borrow_mut().get_or_insert(why);
        event_loop.quit();
    }

    /// Runs the loop until then, or until a signal has ended it.
    pub(crate) fn run(&self, event_loop: &EventLoop, client: &ClientHandle) -> io::Result<()> {
        client.stop_on_signals(event_loop, Duration::from_secs(5))?;
        event_loop.run()?;
        self.outcome()
    }

    pub(crate) fn outcome(&self) -> io::Result<()> {
        self.0.take().map_or(Ok(()), Err)
    }
}

/// The words of the command line. `--help` among them stops the program.
pub(crate) struct Arguments(lexopt::Parser);

impl Arguments {
    pub(crate) fn next(&mut self) -> Result<Option<lexopt::Arg<'_>>, Stop> {
        match self.0.next()? {
            Some(Long("help") | Short('h')) => Err(Stop::Help),
            argument => Ok(argument),
        }
    }

    /// The word that belongs to the option just read.
    pub(crate) fn value<T: FromStr>(&mut self) -> Result<T, Stop>
    where
        T::Err: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        use lexopt::ValueExt;
        Ok(self.0.value()?.parse()?)
    }
}

/// A time of more than 0, given in seconds.
pub(crate) fn seconds(option: &str, number: f64) -> Result<Duration, Stop> {
    match Duration::try_from_secs_f64(number) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(usage(format!("{option} {number}: not a number of seconds above 0"))),
    }
}

/// What is to be connected to, given as NAME:PORT, ADDRESS:PORT or [ADDRESS]:PORT.
pub(crate) fn name_and_port(text: &str) -> Result<(String, u16), Stop> {
    let parts = text.rsplit_once(':').map(|(name, port)| (name, port.parse()));
    match parts {
        Some((name, Ok(port @ 1..))) if !name.is_empty() => {
            let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            Ok((bare.unwrap_or(name).to_owned(), port))
        }
        _ => Err(usage(format!("{text}: not a name or address with a port, as NAME:PORT"))),
    }
}

/// Arguments make no sense.
pub(crate) fn usage(why: impl Into<String>) -> Stop {
    lexopt::Error::from(why.into()).into()
}

/// An address that only this machine reaches.
pub(crate) fn loopback(port: u16) -> Address {
    Address::Ip(([127, 0, 0, 1], port).into())
}
