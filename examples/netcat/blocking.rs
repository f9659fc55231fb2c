//! The classical way: a thread for each direction, which blocks.
//!
//! All they know is the standard library's. Only that the program can be ended by a signal needs
//! more: the threads that block cannot be told, so another one waits for signals, and the main thread
//! for whatever happens first.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{setsockopt, sockopt};

use crate::stdio::Stdio;
use crate::{Peer, common};

/// What one of the threads has to tell.
enum Told {
    Connected(io::Result<TcpStream>),
    /// All of standard input has been sent.
    Sent(Result<(), Failed>),
    /// All that the peer sent has been written.
    Received(Result<(), Failed>),
    Signal,
}

pub(crate) fn run(peer: Peer, stdio: Stdio) -> io::Result<()> {
    let (tell, told) = mpsc::channel();
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // First of all, for threads inherit it.
    signals.thread_block()?;
    on_thread("signals", &tell, move |tell| {
        while signals.wait().is_ok() && tell.send(Told::Signal).is_ok() {}
    })?;
    on_thread("connect", &tell, move |tell| {
        let _ = tell.send(Told::Connected(connect(&peer)));
    })?;
    let stream = match told.recv() {
        Ok(Told::Connected(stream)) => stream?,
        // A signal, before there was anything to lose.
        _ => return Ok(()),
    };
    let (sender, receiver) = (stream.try_clone()?, stream.try_clone()?);
    let Stdio { input, output } = stdio;
    on_thread("send", &tell, move |tell| {
        let _ = tell.send(Told::Sent(send(input, &sender)));
    })?;
    on_thread("receive", &tell, move |tell| {
        let _ = tell.send(Told::Received(receive(&receiver, output)));
    })?;
    wait(&stream, &told)
}

/// What it tells finds nobody when the program ends.
fn on_thread(
    name: &str,
    tell: &Sender<Told>,
    work: impl FnOnce(Sender<Told>) + Send + 'static,
) -> io::Result<()> {
    let tell = tell.clone();
    thread::Builder::new().name(name.to_owned()).spawn(move || work(tell))?;
    Ok(())
}

fn connect(peer: &Peer) -> io::Result<TcpStream> {
    match peer {
        Peer::Called(name, port) => TcpStream::connect((&name[..], *port))
            .map_err(|e| io::Error::new(e.kind(), format!("connecting to \"{name}:{port}\": {e}"))),
        Peer::Awaited(address) => {
            let listener = TcpListener::bind(address)
                .map_err(|e| io::Error::new(e.kind(), format!("listening on {address}: {e}")))?;
            common::remark(format_args!("listening on {}", listener.local_addr()?));
            Ok(listener.accept()?.0)
        }
    }
}

fn send(mut input: File, mut peer: &TcpStream) -> Result<(), Failed> {
    copy(&mut input, &mut peer)?;
    peer.shutdown(Shutdown::Write).map_err(Failed::Writing)
}

/// Drops the output at its end, so that whoever reads it sees that.
fn receive(mut peer: &TcpStream, mut output: File) -> Result<(), Failed> {
    copy(&mut peer, &mut output)
}

/// What copying has ended with.
enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

/// Not `io::copy`, which has the kernel move bytes between a socket and a pipe (splice), and may then
/// wait for more with some in its hands.
fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<(), Failed> {
    let mut piece = vec![0; 64 * 1024];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => to.write_all(&piece[..n]).map_err(Failed::Writing)?,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(Failed::Reading(e)),
        }
    }
}

fn context(what: &str, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}"))
}

/// The peer must not take what it has for the whole: there is no end of the stream, but a reset when
/// the program has ended.
fn cut(stream: &TcpStream) -> io::Result<()> {
    setsockopt(stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}

/// How long the peer may take to finish after a signal.
const PATIENCE: Duration = Duration::from_secs(5);

/// Until both directions have ended, or the program is to.
fn wait(stream: &TcpStream, told: &Receiver<Told>) -> io::Result<()> {
    let (mut sent, mut received) = (None, false);
    let mut deadline: Option<Instant> = None;
    loop {
        let next = match deadline {
            None => told.recv().ok(),
            Some(deadline) => {
                told.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
            }
        };
        match next {
            // Too late.
            None => return Ok(()),
            Some(Told::Signal) if deadline.is_none() => {
                deadline = Some(Instant::now() + PATIENCE);
                // An error says that the peer is gone, and reading says how.
                let _ = stream.shutdown(Shutdown::Write);
            }
            Some(Told::Signal | Told::Connected(_)) => return Ok(()),
            Some(Told::Sent(Ok(()))) => sent = Some(Ok(())),
            Some(Told::Sent(Err(Failed::Writing(e)))) => {
                // What the peer has sent is worth having nevertheless.
                let _ = stream.shutdown(Shutdown::Write);
                sent = Some(Err(e));
            }
            Some(Told::Sent(Err(Failed::Reading(e)))) => {
                cut(stream)?;
                return Err(context("reading standard input", &e));
            }
            Some(Told::Received(Ok(()))) => received = true,
            // Nobody reads our output any more.
            Some(Told::Received(Err(Failed::Writing(e)))) if e.kind() == ErrorKind::BrokenPipe => {
                return Ok(());
            }
            Some(Told::Received(Err(Failed::Writing(e)))) => {
                cut(stream)?;
                return Err(context("writing to standard output", &e));
            }
            Some(Told::Received(Err(Failed::Reading(e)))) => return Err(e),
        }
        match sent.take() {
            // After a signal nobody waits for the rest of standard input.
            _ if received && deadline.is_some() => return Ok(()),
            Some(outcome) if received => return outcome,
            still => sent = still,
        }
    }
}
