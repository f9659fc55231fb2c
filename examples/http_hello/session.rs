//! One connection: requests in, answers out, and an end when the client, the clock or the server's
//! stop says so.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use ruduo::{Buffer, Connection, DecodeError, Handler};

use crate::request::{self, BAD_REQUEST, Refusal, Request};
use crate::response::{CONTINUE, Hello};

const REQUEST_TIMEOUT: &str = "408 Request Timeout";

/// How long a client may keep us waiting.
#[derive(Clone, Copy)]
pub(crate) struct Deadlines {
    /// For a request's head from its first byte on, and then for its body.
    pub(crate) request: Duration,
    /// Between two requests, or without reading the answers.
    pub(crate) idle: Duration,
}

/// What the connections of one loop share.
pub(crate) struct Site {
    deadlines: Deadlines,
    hello: RefCell<Hello>,
}

impl Site {
    pub(crate) fn new(deadlines: Deadlines) -> Site {
        Site { deadlines, hello: RefCell::new(Hello::new()) }
    }
}

pub(crate) struct Session {
    site: Rc<Site>,
    phase: Phase,
    /// When the phase began.
    since: Instant,
    /// When the timer will look at the deadline.
    next_look: Option<Instant>,
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
    fn on_connect(&mut self, conn: &Connection) {
        self.watch(conn);
    }

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
    }

    fn on_timer(&mut self, conn: &Connection, _key: u64) {
        self.next_look = None;
        if self.deadline().is_none_or(|deadline| conn.event_loop().now() < deadline) {
            return self.watch(conn);
        }
        match self.phase {
            Phase::Idle => self.finish(conn),
            Phase::Head { .. } | Phase::Body { .. } => {
                self.refuse_unfinished(conn, REQUEST_TIMEOUT, "the request did not come in time");
            }
        }
    }

    fn on_stopping(&mut self, conn: &Connection) {
        match self.phase {
            Phase::Idle => self.finish(conn),
            Phase::Head { .. } | Phase::Body { .. } => self.stopping = true,
        }
    }
}

impl Session {
    pub(crate) fn new(conn: &Connection, site: Rc<Site>) -> Session {
        let since = conn.event_loop().now();
        Session { site, phase: Phase::Idle, since, next_look: None, stopping: false }
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
                    self.enter(conn, Phase::Body { request, left: request.body_len });
                }
                true
            }
            Ok(None) => {
                if let Phase::Idle = self.phase {
                    self.since = conn.event_loop().now();
                }
                self.phase = Phase::Head { searched };
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
            self.enter(conn, Phase::Idle);
        } else {
            self.finish(conn);
        }
    }

    fn refuse(&mut self, conn: &Connection, input: &mut Buffer, refusal: Refusal) {
        let mut hello = self.site.hello.borrow_mut();
        hello.refresh(conn.event_loop().now());
        conn.send(hello.refusal(refusal.status));
        conn.reject(input, refusal.error);
        self.phase = Phase::Idle;
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
        self.phase = Phase::Idle;
    }
}

/// # Deadlines
///
/// Requests only note when they came. A timer looks at that when the deadline would be due, and if
/// there is another deadline by then, goes on waiting for that one. So a connection that is in use
/// sets its timer once a minute and not once a request.
impl Session {
    fn enter(&mut self, conn: &Connection, phase: Phase) {
        self.phase = phase;
        self.since = conn.event_loop().now();
    }

    /// When the client will have kept us waiting for too long; `None` in a future too far to count.
    fn deadline(&self) -> Option<Instant> {
        let Deadlines { request, idle } = self.site.deadlines;
        match self.phase {
            Phase::Head { .. } | Phase::Body { .. } => self.since.checked_add(request),
            Phase::Idle => self.since.checked_add(idle),
        }
    }

    fn watch(&mut self, conn: &Connection) {
        if let Some(deadline) = self.deadline()
            && self.next_look.is_none_or(|look| deadline < look)
        {
            conn.set_timer(0, deadline.saturating_duration_since(conn.event_loop().now()));
            self.next_look = Some(deadline);
        }
    }
}
