//! Events that are not sockets, beside sockets: a notifier that another thread fires, and a
//! deadline.
//!
//! Standard input may be a terminal, a pipe or a file, and no poller watches files. So a thread
//! reads it, which may block, and hands what it has read to the loop: first the bytes into a
//! channel, then [`Notifier::notify`](ruduo::Notifier::notify). The loop acknowledges first and
//! looks afterwards, so nothing is left lying, although many notifications may be one call.
//!
//! ```text
//!   thread "input"                            loop
//!   read ──▶ bytes ──▶ channel of 16 ──────▶ notifier's callback ──▶ every peer
//!                notify ─────────────────────▶   │
//!                                                ▼ moves
//!                                             deadline ──▶ "(silence)" to every peer
//! ```

mod common;

use std::cell::{Cell, RefCell};
use std::io::{self, Read};
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use common::Long;
use ruduo::{
    Buffer, CloseReason, Connection, ConnectionHandle, EventLoop, Handler, Notifier, Server,
    TimerId,
};

const HELP: &str = "\
Sends what comes from standard input to everyone who is connected, and says when nothing comes.

Usage: custom_event [--listen ADDRESS] [--silence SECONDS]

  --listen ADDRESS   where to listen; port 0 is any free one [127.0.0.1:2007]
  --silence SECONDS  after how long without input peers are told of it; may be a fraction [10]
  --help             this text

The end of standard input changes nothing for who is connected.
SIGINT (Ctrl-C) and SIGTERM stop it; connections then have 5 seconds to finish.";

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut silence) = (common::loopback(2007), 10.0);
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("listen") => listen = arguments.value()?,
                Long("silence") => silence = arguments.value()?,
                other => return Err(other.unexpected().into()),
            }
        }
        let silence = common::seconds("--silence", silence)?;
        let event_loop = EventLoop::new()?;
        // Without threads all connections are served by this loop.
        let server = Server::bind(&event_loop, listen)?.serve(|_conn| Peer)?;
        server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
        listen_to_input(&event_loop, silence)?;
        common::announce(format_args!("listening on {}", server.local_addr()))?;
        Ok(event_loop.run()?)
    })
}

/// Chunks that wait for the loop. If it does not come round, the thread waits, and with it whoever
/// writes to our standard input.
const WAITING: usize = 16;

fn listen_to_input(event_loop: &EventLoop, silence: Duration) -> io::Result<()> {
    let (sender, chunks) = mpsc::sync_channel(WAITING);
    let deadline = Rc::new(Deadline { silence, timer: Cell::new(None) });
    deadline.begin(event_loop);
    let on_input = move |event_loop: &EventLoop| take_input(event_loop, &chunks, &deadline);
    let notifier = event_loop.notifier(on_input)?;
    let read_all = move || read_input(&sender, &notifier);
    // It ends with the process: nothing ends a read that blocks.
    thread::Builder::new().name("input".to_owned()).spawn(read_all)?;
    Ok(())
}

/// On a thread of its own: reads until there is no more, or nobody who wants it.
fn read_input(sender: &mpsc::SyncSender<Arc<[u8]>>, notifier: &Notifier) {
    let mut bytes = [0; 64 * 1024];
    loop {
        match io::stdin().read(&mut bytes) {
            Ok(0) => return log::info!("standard input has ended"),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return log::error!("reading standard input: {e}"),
            Ok(n) => {
                // The loop has ended if nobody receives.
                if sender.send(Arc::from(&bytes[..n])).is_err() {
                    return;
                }
                if let Err(e) = notifier.notify() {
                    return log::error!("telling the loop of input: {e}");
                }
            }
        }
    }
}

/// On the loop: everything that has come since it was here last, which may be nothing.
fn take_input(event_loop: &EventLoop, chunks: &Receiver<Arc<[u8]>>, deadline: &Rc<Deadline>) {
    for chunk in chunks.try_iter() {
        event_loop.local::<Peers>().send(&chunk);
        deadline.begin(event_loop);
    }
}

/// A time until which something must have happened.
struct Deadline {
    silence: Duration,
    timer: Cell<Option<TimerId>>,
}

impl Deadline {
    /// Counts from now.
    fn begin(self: &Rc<Self>, event_loop: &EventLoop) {
        let deadline = Rc::clone(self);
        let over = move |event_loop: &EventLoop| {
            deadline.timer.set(None);
            log::info!("nothing has come for {:?}", deadline.silence);
            event_loop.local::<Peers>().send(&Arc::from(&b"(silence)\n"[..]));
        };
        if let Some(earlier) = self.timer.replace(Some(event_loop.run_after(self.silence, over))) {
            event_loop.cancel(earlier);
        }
    }
}

/// Everyone who is connected to this loop.
#[derive(Default)]
struct Peers(RefCell<Vec<ConnectionHandle>>);

impl Peers {
    fn send(&self, bytes: &Arc<[u8]>) {
        for peer in self.0.borrow().iter() {
            // A refusal means that it is about to leave.
            if let Err(e) = peer.send_shared(Arc::clone(bytes)) {
                log::debug!("{:?}: {e}", peer.id());
            }
        }
    }
}

struct Peer;

impl Handler for Peer {
    fn on_connect(&mut self, conn: &Connection) {
        conn.event_loop().local::<Peers>().0.borrow_mut().push(conn.handle());
    }

    /// They are here to listen.
    fn on_message(&mut self, _conn: &Connection, input: &mut Buffer) {
        input.clear();
    }

    fn on_close(&mut self, conn: &Connection, _reason: &CloseReason) {
        let peers = conn.event_loop().local::<Peers>();
        peers.0.borrow_mut().retain(|peer| peer.id() != conn.id());
    }
}
