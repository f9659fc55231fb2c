//! One connection: requests in, answers out, and an end when the client, the clock or the server's
//! stop says so.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use ruduo::{Buffer, Connection, DecodeError, Handler};

use crate::request::{self, BAD_REQUEST, Refusal, Request};
use crate::response::{CONTINUE, Hello};

const REQUEST_TIMEOUT: &str = "408 Request Timeout";

/// What the connections of one loop share.
pub(crate) struct Site {
    /// For a request's head from its first byte on, and then for its body.
    timeout: Duration,
    hello: RefCell<Hello>,
}

impl Site {
    pub(crate) fn new(timeout: Duration) -> Site {
        Site { timeout, hello: RefCell::new(Hello::new()) }
    }
}

pub(crate) struct Session {
    site: Rc<Site>,
    phase: Phase,
    /// The phase has changed since the timer was last seen to.
    is_new: bool,
    has_timer: bool,
    /// The server is being stopped.
    stopping: bool,
}

#[derive(Clone, Copy)]
enum Phase {
    /// Between two requests.
    Idle,
    /// A request has begun; its head does not end in the bytes that have been searched.
    Head { searched: usize },
    /// So many bytes of the request's body have yet to come.
    Body { request: Request, left: u64 },
}

impl Handler for Session {
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        // Stops also when the client sends requests without reading the answers.
        while !input.is_empty() && conn.wants_input() && self.go_on(conn, input) {}
        self.watch(conn);
    }

    fn on_half_close(&mut self, conn: &Connection) {
        match self.phase {
            Phase::Idle => self.finish(conn),
            Phase::Head { .. } | Phase::Body { .. } => {
                self.refuse_unfinished(conn, BAD_REQUEST, "the stream ends within a request");
            }
        }
        self.watch(conn);
    }

    fn on_timer(&mut self, conn: &Connection, _key: u64) {
        self.has_timer = false;
        self.refuse_unfinished(conn, REQUEST_TIMEOUT, "the request did not come in time");
    }

    fn on_stopping(&mut self, conn: &Connection) {
        match self.phase {
            Phase::Idle => self.finish(conn),
            Phase::Head { .. } | Phase::Body { .. } => self.stopping = true,
        }
    }
}

impl Session {
    pub(crate) fn new(site: Rc<Site>) -> Session {
        Session { site, phase: Phase::Idle, is_new: false, has_timer: false, stopping: false }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.is_new = true;
    }

    /// A request of which not everything has come has a deadline. (Most come whole, and need no timer.
    /// How long a client may be silent between two is a setting of the server.)
    fn watch(&mut self, conn: &Connection) {
        if !std::mem::take(&mut self.is_new) {
            return;
        }
        let has_begun = !matches!(self.phase, Phase::Idle);
        if has_begun {
            conn.set_timer(0, self.site.timeout);
        } else if self.has_timer {
            conn.cancel_timer(0);
        }
        self.has_timer = has_begun;
    }

    /// Takes the next piece of the input, if it is there.
    fn go_on(&mut self, conn: &Connection, input: &mut Buffer) -> bool {
        match self.phase {
            Phase::Idle => {
                // 9112, 2.2: some old clients end their requests with one line too much.
                while input.readable().starts_with(b"\r\n") {
                    input.consume(2);
                }
                !matches!(input.readable(), [] | [b'\r']) && self.read_head(conn, input, 0)
            }
            Phase::Head { searched } => self.read_head(conn, input, searched),
            Phase::Body { request, left } => self.skip_body(conn, input, request, left),
        }
    }

    fn read_head(&mut self, conn: &Connection, input: &mut Buffer, mut searched: usize) -> bool {
        match request::parse(input, &mut searched) {
            Ok(Some(request)) => {
                input.consume(request.head_len);
                if request.body_len == 0 {
                    self.answer(conn, &request);
                } else {
                    // Who sends it already needs no invitation.
                    if request.expects_continue && input.is_empty() {
                        conn.send(CONTINUE);
                    }
                    self.enter(Phase::Body { request, left: request.body_len });
                }
                true
            }
            Ok(None) => {
                match self.phase {
                    Phase::Head { .. } => self.phase = Phase::Head { searched },
                    _ => self.enter(Phase::Head { searched }),
                }
                false
            }
            Err(refusal) => {
                self.refuse(conn, input, refusal);
                false
            }
        }
    }

    /// Nobody wants the body, so it is never kept, however long it is.
    fn skip_body(
        &mut self,
        conn: &Connection,
        input: &mut Buffer,
        request: Request,
        left: u64,
    ) -> bool {
        let here = left.min(input.len() as u64);
        input.consume(here as usize);
        if here < left {
            self.phase = Phase::Body { request, left: left - here };
            return false;
        }
        self.answer(conn, &request);
        true
    }

    fn answer(&mut self, conn: &Connection, request: &Request) {
        let now = conn.event_loop().now();
        let keep_alive = request.keep_alive && !self.stopping;
        let mut hello = self.site.hello.borrow_mut();
        hello.refresh(now);
        hello.send(conn, request, keep_alive);
        drop(hello);
        if keep_alive {
            self.enter(Phase::Idle);
        } else {
            self.finish(conn);
        }
    }

    fn refuse(&mut self, conn: &Connection, input: &mut Buffer, refusal: Refusal) {
        let mut hello = self.site.hello.borrow_mut();
        hello.refresh(conn.event_loop().now());
        conn.send(hello.refusal(refusal.status));
        drop(hello);
        conn.reject(input, refusal.error);
        self.enter(Phase::Idle);
    }

    /// Refuses what has come so far for what has not. The input that was left is thrown away with
    /// the rest.
    fn refuse_unfinished(&mut self, conn: &Connection, status: &'static str, reason: &'static str) {
        let refusal = Refusal { status, error: DecodeError::new(0, reason) };
        self.refuse(conn, &mut Buffer::new(), refusal);
    }

    /// Ends the connection when the answers so far are sent. What the client still sends is of no
    /// interest.
    fn finish(&mut self, conn: &Connection) {
        conn.finish();
        self.enter(Phase::Idle);
    }
}
