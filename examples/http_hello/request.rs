//! From bytes to a request, or to what is wrong with them. This is plain data: no connection, no
//! clock.
//!
//! The grammar is httparse's affair. What stands here is what a server owes beyond it, above all
//! to be strict about where a request ends: where a server and a proxy in front of it disagree
//! about that, a part of one client's request becomes the next client's ("request smuggling").

use std::borrow::Cow;
use std::mem::MaybeUninit;

use httparse::{EMPTY_HEADER, Error, Status};
use ruduo::{Buffer, DecodeError};

/// The longest head of a request: request line, header fields and the empty line, in bytes.
pub(crate) const MAX_HEAD: usize = 8 * 1024;
/// The most header fields of a request.
pub(crate) const MAX_FIELDS: usize = 64;
/// The longest body of a request, in bytes.
pub(crate) const MAX_BODY: u64 = 1024 * 1024;

pub(crate) const BAD_REQUEST: &str = "400 Bad Request";
const CONTENT_TOO_LARGE: &str = "413 Content Too Large";
const URI_TOO_LONG: &str = "414 URI Too Long";
const EXPECTATION_FAILED: &str = "417 Expectation Failed";
const FIELDS_TOO_LARGE: &str = "431 Request Header Fields Too Large";
const NOT_IMPLEMENTED: &str = "501 Not Implemented";
const VERSION_NOT_SUPPORTED: &str = "505 HTTP Version Not Supported";

/// What one has to know of a request in order to answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The bytes up to the body.
    pub(crate) head_len: usize,
    pub(crate) body_len: u64,
    /// It is HTTP/1.0 or HTTP/1.1.
    pub(crate) minor_version: u8,
    /// It is a HEAD: the answer has no body.
    pub(crate) is_head: bool,
    /// The client wants to send another request after this one.
    pub(crate) keep_alive: bool,
    /// The client waits for a 100 (Continue) before it sends the body.
    pub(crate) expects_continue: bool,
}

/// Why a request is not served. The connection ends with it, for mostly nobody knows where the
/// next request would begin.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: &'static str,
    pub(crate) error: DecodeError,
}

fn refusal(status: &'static str, offset: usize, reason: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal { status, error: DecodeError::new(offset, reason) }
}

/// The request at the beginning of `input`, when all of its head is there.
///
/// The first `searched` bytes of `input` contain no end of a head; if there is still none, this is
/// set to what has been searched by then. So the search takes a constant time per byte, and
/// httparse, which begins at the first byte each time, sees a head only once.
pub(crate) fn parse(input: &Buffer, searched: &mut usize) -> Result<Option<Request>, Refusal> {
    let bytes = input.readable();
    let mut from = *searched;
    while let Some(newline) = input.find_eol_from(from).filter(|at| *at < MAX_HEAD) {
        from = newline + 1;
        match bytes[..newline] {
            [.., b'\n', b'\r'] => return understand(&bytes[..from]).map(Some),
            [.., b'\r'] => {}
            // 9112, 2.2 allows to take it for the end of a line, but not everybody does.
            _ => return Err(refusal(BAD_REQUEST, newline, "a line that ends without CR")),
        }
    }
    if bytes.len() < MAX_HEAD {
        *searched = bytes.len();
        return Ok(None);
    }
    Err(if bytes[..MAX_HEAD].contains(&b'\n') {
        refusal(FIELDS_TOO_LARGE, MAX_HEAD, format!("a head of more than {MAX_HEAD} bytes"))
    } else {
        refusal(URI_TOO_LONG, MAX_HEAD, format!("a request line of more than {MAX_HEAD} bytes"))
    })
}

/// What a whole head says.
fn understand(head: &[u8]) -> Result<Request, Refusal> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(head, &mut fields) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) => return Err(refusal(BAD_REQUEST, 0, "no request line")),
        Err(error) => return Err(malformed(head, error)),
    }
    let minor_version = parsed.version.unwrap_or(0);

    let (mut host, mut body_len, mut coding) = (None, None, None);
    let (mut close, mut keep_alive, mut expects_continue) = (false, false, false);
    for field in parsed.headers.iter() {
        let (value, at) = (field.value, offset(head, field.name.as_bytes()));
        let is = |name| field.name.eq_ignore_ascii_case(name);
        if is("host") {
            if host.replace(at).is_some() {
                return Err(refusal(BAD_REQUEST, at, "a second Host"));
            }
            if !value.iter().all(may_stand_in_host) {
                return Err(refusal(BAD_REQUEST, at, "a malformed Host"));
            }
        } else if is("connection") {
            close |= contains_token(value, b"close");
            keep_alive |= contains_token(value, b"keep-alive");
        } else if is("content-length") {
            let Some(len) = decimal(value) else {
                return Err(refusal(BAD_REQUEST, at, "a malformed Content-Length"));
            };
            if body_len.replace(len).is_some() {
                return Err(refusal(BAD_REQUEST, at, "a second Content-Length"));
            }
            if len > MAX_BODY {
                let reason = format!("a body of {len} bytes, where {MAX_BODY} are allowed");
                return Err(refusal(CONTENT_TOO_LARGE, at, reason));
            }
        } else if is("transfer-encoding") {
            coding = Some(at);
        } else if is("expect") {
            if !value.eq_ignore_ascii_case(b"100-continue") {
                return Err(refusal(EXPECTATION_FAILED, at, "an unknown expectation"));
            }
            // 9110, 10.1.1: a client of HTTP/1.0 would take the 100 for its answer.
            expects_continue = minor_version > 0;
        }
    }
    // 9112, 6.1: two lengths, and one reader believes the one, one the other.
    match (coding, body_len) {
        (Some(at), Some(_)) => {
            return Err(refusal(BAD_REQUEST, at, "Transfer-Encoding beside Content-Length"));
        }
        (Some(at), None) => return Err(refusal(NOT_IMPLEMENTED, at, "a Transfer-Encoding")),
        (None, _) => {}
    }
    if host.is_none() && minor_version > 0 {
        return Err(refusal(BAD_REQUEST, head.len(), "no Host"));
    }
    let is_head = match parsed.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return Err(refusal(NOT_IMPLEMENTED, 0, "neither GET nor HEAD")),
    };
    Ok(Request {
        head_len: head.len(),
        body_len: body_len.unwrap_or(0),
        minor_version,
        is_head,
        keep_alive: !close && (keep_alive || minor_version > 0),
        expects_continue,
    })
}

/// Where `part`, which is a part of `head`, begins in it.
fn offset(head: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - head.as_ptr().addr()
}

/// A host's name or address and a port (9110, 7.2).
fn may_stand_in_host(byte: &u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'%' | b':'
        | b'[' | b']' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=')
}

/// Whether `token` is in a list with commas between.
fn contains_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(token))
}

/// A number of digits and nothing else: no sign, no space. What is too great to count is as great
/// as can be counted.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, byte| {
        let digit = char::from(*byte).to_digit(10)?;
        Some(number.saturating_mul(10).saturating_add(digit.into()))
    })
}

/// What httparse says, with the place, which it does not say, and a status.
#[cold]
fn malformed(head: &[u8], error: Error) -> Refusal {
    let mut lines = head.split_inclusive(|byte| *byte == b'\n');
    match error {
        Error::TooManyHeaders => {
            let at = lines.take(1 + MAX_FIELDS).map(<[u8]>::len).sum();
            refusal(FIELDS_TOO_LARGE, at, format!("more than {MAX_FIELDS} header fields"))
        }
        Error::Version => {
            let line = lines.next().unwrap_or(head).trim_ascii_end();
            let version = line.split(|byte| *byte == b' ').nth(2).unwrap_or(line);
            let status = match version.strip_prefix(b"HTTP/") {
                Some([b'0'..=b'9', b'.', b'0'..=b'9']) => VERSION_NOT_SUPPORTED,
                _ => BAD_REQUEST,
            };
            refusal(status, offset(head, version), "neither HTTP/1.0 nor HTTP/1.1")
        }
        error => {
            let request_line = lines.next().unwrap_or(head);
            let mut at = 0;
            if httparse::Request::new(&mut []).parse(request_line).is_ok() {
                let is_fine =
                    |field: &&[u8]| httparse::parse_headers(field, &mut [EMPTY_HEADER]).is_ok();
                at = request_line.len() + lines.take_while(is_fine).map(<[u8]>::len).sum::<usize>();
            }
            refusal(BAD_REQUEST, at, error.to_string())
        }
    }
}
