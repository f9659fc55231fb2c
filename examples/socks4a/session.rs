//! A client, from its request to its end.
//!
//! ```text
//!   Asked ──an address──────────────────▶ Joining ──▶ Joined
//!     │                                    ▲  │
//!     └────a name──▶ Waiting ──its turn────┘  │
//!     │                 │                     │
//!     └─no request──────┴─too late────────────┴──▶ Refused
//! ```
//!
//! What the client sends behind its request is for the target, and waits until that is there: reading
//! pauses.

use std::time::Duration;

use ruduo::{Buffer, CloseReason, ConnectFailure, Connection, DecodeError, Handler};

use crate::dial::{self, Deadlines, Front, Side};
use crate::names::{Place, Turn};
use crate::request::{self, GRANTED, Host, REJECTED, Target};

/// The key of the one timer: the whole request, and then the turn of its name, has to come by then.
const DEADLINE: u64 = 0;

pub(crate) struct Session {
    deadlines: Deadlines,
    state: State,
}

enum State {
    /// The request has not come, or not all of it.
    Asked,
    /// Other names of the same peer come first.
    Waiting(Target, #[expect(dead_code, reason = "held until it is dropped")] Place),
    /// Its target is being connected. Until it is, another name may have to wait.
    Joining(Side, #[expect(dead_code, reason = "held until it is dropped")] Option<Turn>),
    Joined(Side),
    /// It was told that there will be nothing.
    Refused,
}

impl Session {
    pub(crate) fn new(conn: &Connection, timeout: Duration, deadlines: Deadlines) -> Session {
        conn.set_timer(DEADLINE, timeout);
        Session { deadlines, state: State::Asked }
    }

    fn requested(&mut self, conn: &Connection, target: Target) {
        log::debug!("{} wants {target}", conn.peer_addr());
        conn.pause_reading();
        match target.host {
            Host::Address(_) => {
                conn.cancel_timer(DEADLINE);
                self.join(conn, &target, None);
            }
            Host::Name(_) => {
                conn.set_timer(DEADLINE, self.deadlines.connect);
                self.state = State::Waiting(target, Place::take(conn));
            }
        }
    }

    /// The name may be looked up.
    pub(crate) fn on_turn(&mut self, conn: &Connection, turn: Turn) {
        if let State::Waiting(target, _) = std::mem::replace(&mut self.state, State::Refused) {
            conn.cancel_timer(DEADLINE);
            self.join(conn, &target, Some(turn));
        }
    }

    fn join(&mut self, conn: &Connection, target: &Target, turn: Option<Turn>) {
        let name = target.host.to_string();
        match dial::join::<Session>(conn, (&name, target.port), self.deadlines) {
            Ok(side) => self.state = State::Joining(side, turn),
            Err(e) => {
                log::error!("{}: {e}", conn.peer_addr());
                self.refuse(conn);
            }
        }
    }

    fn refuse(&mut self, conn: &Connection) {
        conn.send(request::reply(REJECTED));
        conn.finish();
        self.state = State::Refused;
    }
}

impl Front for Session {
    fn joined(&mut self, conn: &Connection, outcome: Result<Side, ConnectFailure>) {
        match outcome {
            Ok(side) => {
                conn.send(request::reply(GRANTED));
                self.state = State::Joined(side);
            }
            Err(e) => {
                log::info!("{}: {e}", conn.peer_addr());
                self.refuse(conn);
            }
        }
    }
}

impl Handler for Session {
    fn on_timer(&mut self, conn: &Connection, _: u64) {
        match &self.state {
            State::Waiting(target, _) => {
                log::info!("{}: {target} had to wait too long", conn.peer_addr());
                self.refuse(conn);
            }
            _ => {
                log::debug!("{}: no request in time", conn.peer_addr());
                conn.close();
            }
        }
    }

    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        match &mut self.state {
            State::Asked => match request::parse(input.readable()) {
                Ok(Some((target, len))) => {
                    input.consume(len);
                    self.requested(conn, target);
                }
                Ok(None) => {}
                Err(why) => {
                    conn.cancel_timer(DEADLINE);
                    conn.reject(input, DecodeError::new(0, why));
                    conn.send(request::reply(REJECTED));
                    self.state = State::Refused;
                }
            },
            State::Joined(side) => side.on_message(conn, input),
            // What is left of the input comes again when the target is there.
            State::Waiting(..) | State::Joining(..) | State::Refused => {}
        }
    }

    fn on_half_close(&mut self, conn: &Connection) {
        match &mut self.state {
            State::Joining(side, _) | State::Joined(side) => side.on_half_close(conn),
            _ => conn.shutdown(),
        }
    }

    fn on_stopping(&mut self, conn: &Connection) {
        match &mut self.state {
            State::Joining(side, _) | State::Joined(side) => side.on_stopping(conn),
            _ => conn.close(),
        }
    }

    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        log::debug!("{}: {reason}", conn.peer_addr());
        if let State::Joining(side, _) | State::Joined(side) = &mut self.state {
            side.on_close(conn, reason);
        }
    }
}
