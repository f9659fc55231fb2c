//! Names for registered descriptors, none of which can be mistaken for that of a successor.

use std::fmt;

/// Names one registration: what a poller says when the descriptor is ready.
///
/// A token of an [`EventLoop`](crate::EventLoop) is `generation << 32 | index`. The index finds
/// the channel at once; the generation, counted up with each registration, tells a channel from
/// the next one at the same place. So an event that was already on its way when its channel was
/// removed finds nobody, although index and descriptor number may have new owners by then.
///
/// With a bare [`Poller`](crate::Poller) a token is any number the caller likes.
///
/// Dropping a token does nothing; a registration ends by `deregister`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

impl Token {
    pub(crate) fn new(generation: u32, index: usize) -> Token {
        // A loop has at most 2^32 descriptors at once: the kernel's limit is far lower.
        Token(u64::from(generation) << 32 | index as u32 as u64)
    }

    pub(crate) fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(crate) fn index(self) -> usize {
        self.0 as u32 as usize
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}.{})", self.index(), self.generation())
    }
}
