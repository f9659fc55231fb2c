//! The buffer among the types of the standard library: made from slices and vectors, compared,
//! printed, used as a reader and as a writer.

use std::sync::Arc;
use std::{fmt, io};

use super::{Buffer, Inner};

/// Takes the vector over without copying. There is no prepend room until it is consumed or grows.
impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Buffer {
        if bytes.capacity() == 0 {
            return Buffer::new();
        }
        let mut buffer = Buffer { inner: Some(Box::new(Inner { bytes, read: 0 })) };
        if buffer.is_empty() {
            buffer.clear();
        }
        buffer
    }
}

impl From<&[u8]> for Buffer {
    fn from(bytes: &[u8]) -> Buffer {
        let mut buffer = Buffer::new();
        buffer.append(bytes);
        buffer
    }
}

impl<const N: usize> From<&[u8; N]> for Buffer {
    fn from(bytes: &[u8; N]) -> Buffer {
        Buffer::from(&bytes[..])
    }
}

/// As for a vector: takes it over without copying.
impl From<String> for Buffer {
    fn from(text: String) -> Buffer {
        Buffer::from(text.into_bytes())
    }
}

impl From<&str> for Buffer {
    fn from(text: &str) -> Buffer {
        Buffer::from(text.as_bytes())
    }
}

/// Copies the readable bytes, once for all who share them.
impl From<Buffer> for Arc<[u8]> {
    fn from(buffer: Buffer) -> Arc<[u8]> {
        Arc::from(buffer.readable())
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self.readable()
    }
}

/// Buffers are equal when their readable bytes are, wherever these stand in the storage.
impl PartialEq for Buffer {
    fn eq(&self, other: &Buffer) -> bool {
        self.readable() == other.readable()
    }
}

impl Eq for Buffer {}

/// The lengths and the first bytes only: a log line must not carry a whole upload.
impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 32;
        let start = &self.readable()[..self.len().min(SHOWN)];
        let more = if start.len() < self.len() { ".." } else { "" };
        f.debug_struct("Buffer")
            .field("prependable", &self.prependable_len())
            .field("readable", &self.len())
            .field("writable", &self.writable_len())
            .field("bytes", &format_args!("\"{}\"{more}", start.escape_ascii()))
            .finish()
    }
}

/// Reading consumes. It never fails, and 0 means that the buffer is empty now, not that no more
/// bytes will come.
impl io::Read for Buffer {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.len().min(into.len());
        into[..n].copy_from_slice(&self.readable()[..n]);
        self.consume(n);
        Ok(n)
    }
}

/// Writing appends, also by `write!`. It never fails and takes all it is given.
///
/// ```
/// use ruduo_net::Buffer;
/// use std::io::Write;
///
/// let mut reply = Buffer::new();
/// write!(reply, "{} {}\r\n", 200, "OK")?;
/// assert_eq!(reply.readable(), b"200 OK\r\n");
/// # std::io::Result::Ok(())
/// ```
impl io::Write for Buffer {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.append(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
