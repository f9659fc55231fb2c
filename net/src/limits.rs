//! How much a connection may hold, and how long it may linger.

use std::io;
use std::time::Duration;

/// The bounds of each connection. Sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Room for one receive. One receive an event is also what keeps a connection from starving
    /// the others.
    pub(crate) read_size: usize,
    /// Input the handler has not consumed.
    pub(crate) input: usize,
    /// Output above which reading pauses, and below which it resumes.
    pub(crate) high_water: usize,
    pub(crate) low_water: usize,
    /// Memory held by output.
    pub(crate) output: usize,
    /// How long to wait for the peer after our side is done.
    pub(crate) linger: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            read_size: 64 * 1024,
            input: 1024 * 1024,
            high_water: 1024 * 1024,
            low_water: 256 * 1024,
            output: 64 * 1024 * 1024,
            linger: Duration::from_secs(5),
        }
    }
}

impl Limits {
    /// Refuses settings that contradict each other.
    pub(crate) fn check(&self) -> io::Result<()> {
        let bad = |why: String| {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("starting a server: {why}")))
        };
        let Limits { read_size, input, high_water, low_water, output, .. } = *self;
        if read_size == 0 {
            return bad("a read size of 0 bytes reads nothing".into());
        }
        if input < read_size {
            return bad(format!(
                "the input limit ({input} bytes) is below the read size ({read_size})"
            ));
        }
        if low_water >= high_water {
            return bad(format!(
                "the low-water mark ({low_water} bytes) must be below the high one ({high_water})"
            ));
        }
        if high_water >= output {
            return bad(format!(
                "the high-water mark ({high_water} bytes) must be below the output limit ({output})"
            ));
        }
        if output / 2 < read_size + crate::Buffer::CHEAP_PREPEND {
            return bad(format!(
                "the output limit ({output} bytes) must be at least twice the read size \
                 ({read_size}): an echoed buffer counts with its whole storage"
            ));
        }
        Ok(())
    }
}
