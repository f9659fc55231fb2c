//! A member at a terminal: lines of standard input are messages, what is heard is printed.
//!
//! Standard input is read by a thread of its own, for reading it blocks; the connection's handle
//! takes the lines to the loop. No more than [`WINDOW`] of them are on their way to the others at a
//! time: who pipes a whole book into the room must not be so busy talking that it is cut for not
//! listening.

use std::io::{self, BufRead};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use ruduo::{
    Address, Buffer, Client, CloseReason, Connection, ConnectionHandle, DecodeError, EventLoop,
    Handler,
};

use crate::common::{Ending, print};
use crate::protocol::{EVENTS, Event, TEXTS};

/// Messages that have been sent and not yet heard by everybody.
const WINDOW: usize = 16;

/// Allows one message; comes back when that is heard.
struct Permit;

pub(crate) fn join(room: Address) -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let ending = Ending::default();
    let (not_connected, of_handler) = (ending.clone(), ending.clone());
    let client = Client::connect(&event_loop, room)
        .on_connect_failed(move |event_loop, e| not_connected.not_connected(event_loop, e))
        .serve(move |_| Listener { permits: None, ending: of_handler.clone() })?;
    ending.run(&event_loop, &client)
}

/// Sends what is typed, and leaves at its end, when all of it has been heard.
fn speak(connection: &ConnectionHandle, permitted: &Receiver<Permit>) {
    for line in io::stdin().lock().split(b'\n') {
        match line.map(|line| TEXTS.encode(line)) {
            Ok(Ok(mut message)) => {
                // Both fail when the room is left.
                if permitted.recv().is_err() || connection.send_buffer(&mut message).is_err() {
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
    /// For the thread that speaks.
    permits: Option<Sender<Permit>>,
    ending: Ending,
}

impl Listener {
    fn permit(&self) {
        if let Some(permits) = &self.permits {
            // Nobody speaks any more after the end of standard input.
            let _ = permits.send(Permit);
        }
    }
}

impl Handler for Listener {
    fn on_connect(&mut self, conn: &Connection) {
        let (permits, permitted) = mpsc::channel();
        self.permits = Some(permits);
        (0..WINDOW).for_each(|_| self.permit());
        let connection = conn.handle();
        let speak = move || speak(&connection, &permitted);
        if let Err(e) = thread::Builder::new().name("speaker".into()).spawn(speak) {
            let why = format!("starting a thread that reads standard input: {e}");
            self.ending.fails(conn.event_loop(), io::Error::new(e.kind(), why));
        }
    }

    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        while let Some(frame) = EVENTS.decode(conn, input) {
            let printed = match Event::decode(frame) {
                Ok(Event::Welcome { number }) => print(format_args!("you are member {number}")),
                Ok(Event::Message { from, text }) => {
                    print(format_args!("{from}: {}", printable(text)))
                }
                Ok(Event::Heard { count }) => {
                    self.permit();
                    print(format_args!("heard by everybody: {count}"))
                }
                Err(e) => {
                    conn.reject(input, DecodeError::new(0, e.to_string()));
                    return;
                }
            };
            if let Err(e) = printed {
                self.ending.fails(conn.event_loop(), e);
                return conn.close();
            }
        }
    }

    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        self.ending.closed(conn.event_loop(), "thrown out of the room", reason);
    }
}
