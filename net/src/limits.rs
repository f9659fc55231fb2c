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
        let bad = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
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

/// The methods of a builder that set the bounds of its connections, for it is the same for all who
/// make some. It has a method `limits`.
macro_rules! connection_settings {
    ($builder:ident) => {
        /// # The bounds of each connection
        impl<C> $builder<'_, C> {
            /// How many bytes one receive can bring; 64 KiB by default. Each loop has a few buffers of
            /// this size, shared by all connections.
            pub fn read_size(mut self, bytes: usize) -> Self {
                self.limits().read_size = bytes;
                self
            }

            /// How many bytes of input a handler may leave unconsumed; 1 MiB by default. A connection
            /// that reaches it is closed ([`InputFull`](crate::CloseReason::InputFull)).
            pub fn input_limit(mut self, bytes: usize) -> Self {
                self.limits().input = bytes;
                self
            }

            /// When `high` bytes wait for the peer, reading from it pauses until only `low` are left:
            /// who does not read the answers gets to ask no more. 1 MiB and 256 KiB by default.
            pub fn water_marks(mut self, low: usize, high: usize) -> Self {
                self.limits().low_water = low;
                self.limits().high_water = high;
                self
            }

            /// How many bytes of memory output may hold; 64 MiB by default. Sending more closes the
            /// connection ([`OutputFull`](crate::CloseReason::OutputFull)).
            pub fn output_limit(mut self, bytes: usize) -> Self {
                self.limits().output = bytes;
                self
            }

            /// How long (between once and twice as long) a connection that is ending waits without
            /// any progress: of the output that is still pending, and after our end of the stream,
            /// of what the peer still sends. (What is thrown away, after `finish` or `reject`, is
            /// no progress.) 5 s by default.
            pub fn linger(mut self, linger: std::time::Duration) -> Self {
                self.limits().linger = linger;
                self
            }
        }
    };
}

pub(crate) use connection_settings;
