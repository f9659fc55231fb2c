//! The room, on any number of loops.
//!
//! Each loop has a [`Table`] with the members it serves. A message goes to every loop once, as a
//! task, and each loop hands it to the members at its own table: no lock, and one wakeup a loop
//! instead of one a member. The bytes are encoded once and shared by all loops.
//!
//! ```text
//!   member ──message──▶ its loop ──task──▶ loop 1: its table ──▶ members ┐
//!                                ├─task──▶ loop 2: its table ──▶ members ┼──▶ Receipt
//!                                └─task──▶ loop 3: its table ──▶ members ┘       │
//!   member ◀────────────── "heard by everybody" ◀────────────────────────────────┘
//! ```
//!
//! All the tasks share one [`Receipt`]; when the last of them is gone, everybody has heard. A loop
//! that ends drops its tasks, so nothing waits for it for ever.
//!
//! Nothing grows without bound: a member whose messages are not heard yet has to wait before it
//! says more ([`WINDOW`]), and a member who does not read what the others say is cut
//! ([`BACKLOG`]), not waited for.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ruduo::{
    Address, Buffer, CloseReason, Connection, ConnectionHandle, EventLoop, Handler, HandlerHandle,
    LoopHandle, LoopPool, SendError, Server,
};

use crate::common;
use crate::protocol::{Event, TEXTS};

/// Messages of one member that have not been heard by everybody.
const WINDOW: u64 = 16;

/// Bytes that may wait for a member before it is cut, and the low mark that has to go with that.
const BACKLOG: usize = 1024 * 1024;
const BACKLOG_LOW: usize = BACKLOG / 4;

pub(crate) fn serve(listen: Address, threads: usize) -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let pool = LoopPool::builder(&event_loop).threads(threads).name("chat").start()?;
    let loops: Arc<[LoopHandle]> = pool.loops().into();
    let server = Server::bind(&event_loop, listen)?
        .pool(&pool)
        .water_marks(BACKLOG_LOW, BACKLOG)
        .serve(move |conn| Session::new(conn, loops.clone()))?;
    server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
    common::announce(format_args!("listening on {}", server.local_addr()))?;
    event_loop.run()
}

/// The members on one loop, by number.
#[derive(Default)]
struct Table {
    members: RefCell<BTreeMap<u64, Rc<Member>>>,
}

/// A member, as those at its table know it.
struct Member {
    connection: ConnectionHandle,
    heard: Cell<u64>,
}

impl Member {
    fn hear(&self, message: &Arc<[u8]>) {
        self.heard.update(|heard| heard + 1);
        if self.connection.send_shared(message.clone()) == Err(SendError::Full) {
            // Better gone than with a hole in what it hears.
            let _ = self.connection.close();
        }
    }
}

impl Table {
    fn hear(&self, message: &Arc<[u8]>) {
        for member in self.members.borrow().values() {
            member.hear(message);
        }
    }
}

/// One message on its way to all tables. The last to drop it tells the sender.
struct Receipt {
    sender: HandlerHandle<Session>,
}

impl Drop for Receipt {
    fn drop(&mut self) {
        // A sender that has left needs no answer.
        let _ = self.sender.post(Session::heard_by_all);
    }
}

/// The handler of a member's connection.
struct Session {
    number: u64,
    table: Rc<Table>,
    member: Rc<Member>,
    loops: Arc<[LoopHandle]>,
    said: u64,
    /// How many of those all have heard.
    heard: u64,
    /// It has said its last and leaves when that is heard.
    leaving: bool,
}

impl Session {
    fn new(conn: &Connection, loops: Arc<[LoopHandle]>) -> Session {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Session {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            table: conn.event_loop().local(),
            member: Rc::new(Member { connection: conn.handle(), heard: Cell::default() }),
            loops,
            said: 0,
            heard: 0,
            leaving: false,
        }
    }

    fn say(&mut self, conn: &Connection, message: Buffer) {
        self.said += 1;
        if self.said - self.heard == WINDOW {
            conn.pause_reading();
        }
        let message: Arc<[u8]> = message.into();
        let receipt = Arc::new(Receipt { sender: conn.handle_for() });
        for event_loop in &*self.loops {
            let (message, receipt) = (message.clone(), receipt.clone());
            // A loop that takes no more tasks drops this one, and has no members.
            let _ = event_loop.post(move |event_loop| {
                event_loop.local::<Table>().hear(&message);
                drop(receipt);
            });
        }
    }

    fn heard_by_all(&mut self, conn: &Connection) {
        if self.said - self.heard == WINDOW {
            conn.resume_reading();
        }
        self.heard += 1;
        if let Ok(mut event) = (Event::Heard { count: self.heard }).encode() {
            conn.send_buffer(&mut event);
        }
        self.leave_if_done(conn);
    }

    fn leave_if_done(&self, conn: &Connection) {
        if self.leaving && self.said == self.heard {
            conn.shutdown();
        }
    }
}

impl Handler for Session {
    fn on_connect(&mut self, conn: &Connection) {
        if let Ok(mut event) = (Event::Welcome { number: self.number }).encode() {
            conn.send_buffer(&mut event);
        }
        self.table.members.borrow_mut().insert(self.number, self.member.clone());
        log::info!("member {} joins from {}", self.number, conn.peer_addr());
    }

    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        // Ends also when `say` has paused reading: the rest comes again on resume.
        while let Some(text) = TEXTS.decode(conn, input) {
            match (Event::Message { from: self.number, text }).encode() {
                Ok(message) => self.say(conn, message),
                Err(e) => log::info!("member {} is not heard: {e}", self.number),
            }
        }
    }

    fn on_half_close(&mut self, conn: &Connection) {
        self.leaving = true;
        self.leave_if_done(conn);
    }

    fn on_high_water(&mut self, conn: &Connection, pending: usize) {
        log::info!("member {} is too slow, {pending} bytes wait: cutting it", self.number);
        conn.close();
    }

    /// What members still say is not heard by all any more.
    fn on_stopping(&mut self, conn: &Connection) {
        conn.finish();
    }

    fn on_close(&mut self, _conn: &Connection, reason: &CloseReason) {
        self.table.members.borrow_mut().remove(&self.number);
        let heard = self.member.heard.get();
        log::info!("member {} has said {}, heard {heard}: {reason}", self.number, self.said);
    }
}
