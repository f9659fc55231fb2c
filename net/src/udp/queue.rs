//! What waits to be sent: datagrams one behind the other, within a limit.
//!
//! ```text
//!   store.entries  ... gone ... │ how long each of it is  │ ...
//!   store.bytes    ... gone ... │ name │ source │ bytes   │ name │ source │ bytes │
//! ```
//!
//! No datagram has an allocation of its own. The store is lent by the loop while something waits,
//! so a socket with nothing to send has none. Plain data: no system calls, no callbacks.

use std::mem;

use ruduo_reactor::sys::datagram::Piece;

/// What a socket does with a datagram for which its queue has no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// Drops it, and counts that.
    #[default]
    DropNewest,
    /// Drops those that have waited longest until there is room, and counts them: for values of
    /// which the latest counts.
    DropOldest,
    /// Receives nothing more until half of the queue has left, so that what is not received waits
    /// in the kernel, and is lost there. What callbacks and handles send meanwhile is taken up to
    /// twice the limit; beyond that it is dropped as the newest.
    PauseReading,
}

/// Memory of a queue.
#[derive(Default)]
pub(super) struct Store {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    name: u32,
    source: u32,
    bytes: usize,
}

impl Entry {
    /// How many bytes of the store are its own.
    fn len(&self) -> usize {
        self.name as usize + self.source as usize + self.bytes
    }
}

/// One that many have in common, and are not to be counted for.
const ENTRY: usize = mem::size_of::<Entry>();

/// The most that the kernel joins into one message, with room for headers.
const MAX_JOINED: usize = 65_000;

pub(super) struct Queue {
    store: Store,
    /// How much at the beginning of the store has left.
    gone: Gone,
    /// How much memory those take that wait: bytes, names, and what tells them apart.
    weight: usize,
    limit: usize,
    when_full: WhenFull,
}

#[derive(Clone, Copy, Default)]
struct Gone {
    bytes: usize,
    entries: usize,
}

/// What had to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) newest: usize,
    pub(super) oldest: usize,
}

impl Queue {
    pub(super) fn new(limit: usize, when_full: WhenFull) -> Queue {
        Queue { store: Store::default(), gone: Gone::default(), weight: 0, limit, when_full }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many datagrams wait.
    pub(super) fn len(&self) -> usize {
        self.store.entries.len() - self.gone.entries
    }

    pub(super) fn weight(&self) -> usize {
        self.weight
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Takes a datagram in, or does what is to be done without room.
    #[inline]
    pub(super) fn offer(&mut self, name: &[u8], source: &[u8], bytes: &[u8]) -> Dropped {
        let need = name.len() + source.len() + bytes.len() + ENTRY;
        let dropped = match self.has_room(need, self.limit) {
            true => Dropped::default(),
            false => self.drop_some(need),
        };
        if dropped.newest == 0 {
            self.push(name, source, bytes);
        }
        dropped
    }

    fn has_room(&self, need: usize, limit: usize) -> bool {
        self.weight.saturating_add(need) <= limit
    }

    /// What is to go, for want of room.
    #[cold]
    fn drop_some(&mut self, need: usize) -> Dropped {
        let mut dropped = Dropped::default();
        let limit = match self.when_full {
            WhenFull::PauseReading => self.limit.saturating_mul(2),
            _ => self.limit,
        };
        if self.when_full == WhenFull::DropOldest && need <= limit {
            while !self.has_room(need, limit) {
                self.pop(1);
                dropped.oldest += 1;
            }
        }
        dropped.newest = usize::from(!self.has_room(need, limit));
        dropped
    }

    fn push(&mut self, name: &[u8], source: &[u8], bytes: &[u8]) {
        let Queue { store: Store { bytes: all, entries }, gone, .. } = self;
        let entry =
            Entry { name: name.len() as u32, source: source.len() as u32, bytes: bytes.len() };
        make_room(all, &mut gone.bytes, entry.len());
        make_room(entries, &mut gone.entries, 1);
        all.extend_from_slice(name);
        if !source.is_empty() {
            all.extend_from_slice(source);
        }
        all.extend_from_slice(bytes);
        entries.push(entry);
        self.weight += entry.len() + ENTRY;
    }

    /// The one that leaves next.
    pub(super) fn front(&self) -> Option<Piece<'_>> {
        self.iter().next()
    }

    /// The first so many have left. Returns how many bytes they had.
    pub(super) fn pop(&mut self, count: usize) -> usize {
        let mut sum = 0;
        for entry in self.store.entries[self.gone.entries..].iter().take(count) {
            self.gone.entries += 1;
            self.gone.bytes += entry.len();
            self.weight -= entry.len() + ENTRY;
            sum += entry.bytes;
        }
        if self.is_empty() {
            self.store.bytes.clear();
            self.store.entries.clear();
            self.gone = Gone::default();
        }
        sum
    }

    fn iter(&self) -> impl Iterator<Item = Piece<'_>> {
        let mut rest = &self.store.bytes[self.gone.bytes..];
        self.store.entries[self.gone.entries..].iter().map(move |entry| {
            let (name, behind) = rest.split_at(entry.name as usize);
            // Hardly any have one.
            let (source, behind) = match entry.source {
                0 => (&[][..], behind),
                len => behind.split_at(len as usize),
            };
            let (bytes, behind) = behind.split_at(entry.bytes);
            rest = behind;
            Piece { name, source, bytes, joins: false }
        })
    }

    /// In order, those to one peer joined if they have one size, of at most `max_segment` bytes; the
    /// last of them may be smaller.
    pub(super) fn pieces(&self, max_segment: usize) -> impl Iterator<Item = Piece<'_>> {
        let mut run = Run::NONE;
        self.iter().map(move |piece| {
            let joins = max_segment > 0 && run.takes(&piece, max_segment);
            Piece { joins, ..piece }
        })
    }

    /// Whether there is memory to queue in.
    pub(super) fn has_store(&self) -> bool {
        self.store.entries.capacity() > 0
    }

    pub(super) fn set_store(&mut self, store: Store) {
        self.store = store;
    }

    /// Of an empty one.
    pub(super) fn take_store(&mut self) -> Store {
        mem::take(&mut self.store)
    }
}

/// What is gone makes room if it is as much as what is left: moving that is paid for.
fn make_room<T>(all: &mut Vec<T>, gone: &mut usize, need: usize) {
    let full = all.capacity() - all.len() < need;
    if full && *gone > 0 && *gone >= all.len() - *gone {
        all.drain(..*gone);
        *gone = 0;
    }
}

impl Store {
    /// What it allocates.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * ENTRY
    }
}

/// Datagrams of one size to one peer, from one address. There are never too many of them: of as many
/// pieces as leave in a call the kernel makes one message.
struct Run<'a> {
    name: &'a [u8],
    source: &'a [u8],
    segment: usize,
    bytes: usize,
    /// The last one was smaller, or there is none.
    is_over: bool,
}

impl<'a> Run<'a> {
    const NONE: Run<'static> = Run { name: &[], source: &[], segment: 0, bytes: 0, is_over: true };

    fn takes(&mut self, piece: &Piece<'a>, max_segment: usize) -> bool {
        let Piece { name, source, bytes, .. } = *piece;
        let joins = !self.is_over
            && self.segment <= max_segment
            && !bytes.is_empty()
            && bytes.len() <= self.segment
            && self.bytes + bytes.len() <= MAX_JOINED
            && name == self.name
            && source == self.source;
        if joins {
            self.bytes += bytes.len();
            self.is_over = bytes.len() < self.segment;
        } else {
            let segment = bytes.len();
            *self = Run { name, source, segment, bytes: segment, is_over: false };
        }
        joins
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use proptest::prelude::*;

    /// Name, source and bytes.
    type Parts = [Vec<u8>; 3];

    fn contents(queue: &Queue) -> Vec<Parts> {
        queue
            .iter()
            .map(|piece| [piece.name, piece.source, piece.bytes].map(<[u8]>::to_vec))
            .collect()
    }

    #[test]
    fn those_of_one_size_to_one_peer_go_together() {
        let mut queue = Queue::new(1 << 20, WhenFull::DropNewest);
        let all: [(&str, usize); 8] =
            [("a", 5), ("a", 5), ("a", 3), ("a", 3), ("b", 3), ("b", 4), ("b", 0), ("b", 0)];
        for (name, len) in all {
            queue.offer(name.as_bytes(), b"", &vec![0; len]);
        }
        let joins = |max| queue.pieces(max).map(|piece| piece.joins).collect::<Vec<_>>();
        assert_eq!(joins(1400), [false, true, true, false, false, false, false, false]);
        assert_eq!(joins(4), [false, false, false, true, false, false, false, false]);
        assert_eq!(joins(0), [false; 8]);

        let mut queue = Queue::new(1 << 20, WhenFull::DropNewest);
        for _ in 0..128 {
            queue.offer(b"a", b"", &[0; 1200]);
        }
        // 54 of them are 64,800 bytes.
        let begins: Vec<_> =
            queue.pieces(1400).enumerate().filter(|(_, p)| !p.joins).map(|(i, _)| i).collect();
        assert_eq!(begins, [0, 54, 108]);

        let mut queue = Queue::new(1 << 20, WhenFull::DropNewest);
        for (name, source) in
            [("a", "b"), ("a", "b"), ("ab", ""), ("a", "c"), ("a", "c"), ("a", "d")]
        {
            queue.offer(name.as_bytes(), source.as_bytes(), b"x");
        }
        let joins: Vec<_> = queue.pieces(1400).map(|piece| piece.joins).collect();
        assert_eq!(joins, [false, true, false, false, true, false]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// A list of datagrams does the same, with more memory.
        #[test]
        fn it_is_a_list_of_datagrams_within_a_limit(
            when_full in prop::sample::select(vec![
                WhenFull::DropNewest, WhenFull::DropOldest, WhenFull::PauseReading,
            ]),
            limit in 0_usize..300,
            steps in prop::collection::vec((0_usize..8, 0_usize..5, 0_usize..90, 0_usize..4), 1..60),
        ) {
            let mut queue = Queue::new(limit, when_full);
            let mut model: VecDeque<Parts> = VecDeque::new();
            let weight_of = |parts: &Parts| parts.iter().map(Vec::len).sum::<usize>() + ENTRY;
            let weight = |model: &VecDeque<Parts>| model.iter().map(weight_of).sum::<usize>();
            let max = if when_full == WhenFull::PauseReading { 2 * limit } else { limit };
            for (i, (name, source, len, pops)) in steps.into_iter().enumerate() {
                let parts = [name, source, len].map(|len| vec![i as u8; len]);
                let need = weight_of(&parts);
                let mut expected = Dropped::default();
                if when_full == WhenFull::DropOldest && need <= max {
                    while weight(&model) + need > max {
                        model.pop_front();
                        expected.oldest += 1;
                    }
                }
                let fits = weight(&model) + need <= max;
                expected.newest = usize::from(!fits);
                prop_assert_eq!(queue.offer(&parts[0], &parts[1], &parts[2]), expected);
                if fits {
                    model.push_back(parts);
                }
                let gone = model.drain(..pops.min(model.len()));
                let gone = gone.map(|[_, _, bytes]| bytes.len()).sum::<usize>();
                prop_assert_eq!(queue.pop(pops), gone);
                prop_assert_eq!(contents(&queue), Vec::from(model.clone()));
                prop_assert_eq!(queue.weight(), weight(&model));
                prop_assert!(queue.weight() <= max);
            }
        }
    }
}
