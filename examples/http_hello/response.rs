//! What is sent back.

use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use httpdate::HttpDate;
use ruduo::Connection;

use crate::request::Request;

pub(crate) const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

const BEFORE_DATE: &str = "HTTP/1.1 200 OK\r\nServer: ruduo\r\nDate: ";
const A_DATE: &str = "Thu, 01 Jan 1970 00:00:00 GMT";
const AFTER_DATE: &str = "\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n";
const END_OF_HEAD: &str = "\r\n";
const BODY: &str = "Hello, World!\n";

/// The answer to every request that is in order. Only its date changes, once a second, so it is
/// made that often and copied otherwise.
pub(crate) struct Hello {
    text: Vec<u8>,
    valid_until: Instant,
}

impl Hello {
    pub(crate) fn new() -> Hello {
        let text = [BEFORE_DATE, A_DATE, AFTER_DATE, END_OF_HEAD, BODY].concat().into_bytes();
        let mut hello = Hello { text, valid_until: Instant::now() };
        hello.set_date(Instant::now());
        hello
    }

    /// Sees to it that the date is right.
    #[inline]
    pub(crate) fn refresh(&mut self, now: Instant) {
        if now >= self.valid_until {
            self.set_date(now);
        }
    }

    #[cold]
    fn set_date(&mut self, now: Instant) {
        let time = SystemTime::now();
        // In its place in the text: all dates are of one length.
        let mut place = &mut self.text[BEFORE_DATE.len()..][..A_DATE.len()];
        write!(place, "{}", HttpDate::from(time)).expect("a date has 29 bytes");
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let in_this_second = Duration::from_nanos(since_epoch.subsec_nanos().into());
        self.valid_until = now + (Duration::from_secs(1) - in_this_second);
    }

    /// Sends the answer to `request`. It is the last one unless `keep_alive`.
    pub(crate) fn send(&self, conn: &Connection, request: &Request, keep_alive: bool) {
        let without_body = self.text.len() - BODY.len();
        let text = if request.is_head { &self.text[..without_body] } else { &self.text };
        let connection = match (keep_alive, request.minor_version) {
            (true, 1) => return conn.send(text),
            // HTTP/1.0 closes, unless it is told otherwise.
            (true, _) => "Connection: keep-alive\r\n",
            (false, _) => "Connection: close\r\n",
        };
        let (fields, end) = text.split_at(without_body - END_OF_HEAD.len());
        conn.send(fields);
        conn.send(connection);
        conn.send(end);
    }

    /// The answer to a request that is refused: it has no body, and so suits a HEAD too.
    #[cold]
    pub(crate) fn refusal(&self, status: &str) -> String {
        let date = &self.text[BEFORE_DATE.len()..][..A_DATE.len()];
        let date = String::from_utf8_lossy(date);
        format!(
            "HTTP/1.1 {status}\r\nServer: ruduo\r\nDate: {date}\r\nContent-Length: 0\r\n\
             Connection: close\r\n\r\n"
        )
    }
}
