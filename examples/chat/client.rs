//! A member at a terminal: lines of standard input are messages, what is heard is printed.
//!
//! Standard input is read by a thread of its own, for reading it blocks; the connection's handle
//! takes the lines to the loop. No more than [`WINDOW`] of them are on their way to the others at a
//! time: who pipes a whole book into the room must not be so busy talking that it is cut for not
//! listening.

use std::cell::RefCell;
use std::io::{self, BufRead, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use ruduo::{
    Buffer, CloseReason, Connection, ConnectionHandle, DecodeError, EventLoop, Handler, Signal,
    TcpClient,
};

use crate::protocol::{EVENTS, Event, TEXTS};

/// Messages that have been sent and not yet heard by everybody.
const WINDOW: usize = 16;

/// Allows one message; comes back when that is heard.
struct Permit;

pub(crate) fn join(room: SocketAddr) -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let stream = TcpStream::connect(room)
        .map_err(|e| io::Error::new(e.kind(), format!("joining the room at {room}: {e}")))?;
    let (permits, permitted) = mpsc::channel();
    let failure = Rc::new(RefCell::new(None));
    let listener = Listener { permits, failure: failure.clone() };
    let connection = TcpClient::from_stream(&event_loop, stream)?.serve(|_conn| listener)?;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (connection, mut again) = (connection.clone(), false);
        event_loop.on_signal(signal, move |event_loop, _| {
            if std::mem::replace(&mut again, true) || connection.shutdown().is_err() {
                event_loop.quit();
            }
        })?;
    }
    thread::spawn(move || speak(&connection, &permitted));
    event_loop.run()?;
    let failure = failure.take();
    failure.map_or(Ok(()), |why| Err(io::Error::other(format!("thrown out of the room: {why}"))))
}

/// Sends what is typed, and leaves at its end, when all of it has been heard.
fn speak(connection: &ConnectionHandle, permitted: &Receiver<Permit>) {
    for line in io::stdin().lock().split(b'\n') {
        match line.map(|line| TEXTS.encode(line)) {
            Ok(Ok(message)) => {
                // Both fail when the room is left.
                if permitted.recv().is_err() || connection.send_buffer(message).is_err() {
                    return;
                }
            }
            Ok(Err(e)) => log::warn!("not sent: {e}"),
            Err(e) => {
                log::error!("reading standard input: {e}");
                break;
            }
        }
    }
    // All permits at once: nothing is on its way any more.
    let all_heard = (0..WINDOW).all(|_| permitted.recv().is_ok());
    if all_heard {
        let _ = connection.shutdown();
    }
}

/// A text comes from strangers, so it gets no control over the terminal.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.replace(char::is_control, "\u{fffd}")
}

struct Listener {
    permits: Sender<Permit>,
    /// Why the connection ended, if nobody here wanted it to.
    failure: Rc<RefCell<Option<String>>>,
}

impl Listener {
    fn permit(&self) {
        // Nobody speaks any more after the end of standard input.
        let _ = self.permits.send(Permit);
    }
}

impl Handler for Listener {
    fn on_connect(&mut self, _conn: &Connection) {
        (0..WINDOW).for_each(|_| self.permit());
    }

    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        let mut output = io::stdout().lock();
        while let Some(frame) = EVENTS.decode(conn, input) {
            let printed = match Event::decode(frame) {
                Ok(Event::Welcome { number }) => writeln!(output, "you are member {number}"),
                Ok(Event::Message { from, text }) => {
                    writeln!(output, "{from}: {}", printable(text))
                }
                Ok(Event::Heard { count }) => {
                    self.permit();
                    writeln!(output, "heard by everybody: {count}")
                }
                Err(e) => {
                    conn.reject(input, DecodeError::new(0, e.to_string()));
                    return;
                }
            };
            if printed.is_err() {
                // Nobody reads any more.
                conn.close();
            }
        }
    }

    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        let left = reason.is_clean() || matches!(reason, CloseReason::Closed);
        if !left {
            self.failure.replace(Some(reason.to_string()));
        }
        conn.event_loop().quit();
    }
}
