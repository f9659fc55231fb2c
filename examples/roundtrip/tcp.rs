//! Over TCP: a stream, in which 16 bytes are a message, wherever it is cut.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ruduo::{
    Addresses, Buffer, Client, CloseReason, Connection, DecodeError, EventLoop, Handler, Server,
    ServerHandle,
};

use crate::message::{LEN, Message, answer, now};
use crate::questions::{PATIENCE, Questions};

pub(crate) fn serve(
    event_loop: &EventLoop,
    listen: Addresses,
    threads: usize,
) -> io::Result<ServerHandle> {
    Server::bind(event_loop, listen)?.threads(threads).on_message(fill_in).start()
}

fn fill_in(conn: &Connection, input: &mut Buffer) {
    let come = now();
    while let Some(filled_in) = input.read_slice(LEN).and_then(|question| answer(question, come)) {
        conn.send(filled_in);
    }
}

const ASK: u64 = 0;

/// What an end that nobody here wanted leaves.
type Failure = Rc<RefCell<Option<String>>>;

/// Asks until all is answered or a signal comes.
pub(crate) fn ask(event_loop: &EventLoop, server: Addresses, interval: Duration) -> io::Result<()> {
    let failure = Failure::default();
    let (of_connecting, of_connection) = (failure.clone(), failure.clone());
    let questions = event_loop.local::<RefCell<Questions>>();
    Client::connect(event_loop, server)
        .idle_timeout(interval.saturating_add(PATIENCE))
        .on_connect_failed(move |event_loop, why| {
            of_connecting.replace(Some(why.to_string()));
            event_loop.quit();
        })
        .serve(move |_| Asking {
            interval,
            questions: questions.clone(),
            failure: of_connection.clone(),
        })?;
    event_loop.run()?;
    failure.take().map_or(Ok(()), |why| Err(io::Error::other(why)))
}

struct Asking {
    interval: Duration,
    questions: Rc<RefCell<Questions>>,
    failure: Failure,
}

impl Handler for Asking {
    fn on_connect(&mut self, conn: &Connection) {
        self.on_timer(conn, ASK);
    }

    fn on_timer(&mut self, conn: &Connection, _: u64) {
        if let Some(question) = self.questions.borrow_mut().next() {
            conn.send(question);
            conn.set_timer(ASK, self.interval);
        }
    }

    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        let come = now();
        let mut questions = self.questions.borrow_mut();
        while let Some(answer) = input.read_slice(LEN).and_then(Message::decode) {
            match questions.take(answer, come) {
                Ok(true) => {}
                Ok(false) => {
                    conn.reject(input, DecodeError::new(0, "an answer to no question"));
                    return;
                }
                // Nobody reads what is printed.
                Err(_) => return conn.close(),
            }
        }
        if questions.are_over() {
            conn.shutdown();
        }
    }

    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        let over = self.questions.borrow().are_over();
        if !over && !matches!(reason, CloseReason::LoopEnded | CloseReason::Closed) {
            let why = format!("the connection with {} has ended: {reason}", conn.peer_addr());
            self.failure.replace(Some(why));
        }
        conn.event_loop().quit();
    }
}
