//! Where armed timers wait: a hierarchical timer wheel.
//!
//! Arming and cancelling cost the same whether ten timers wait or a million. A heap would pay for
//! its depth each time, and a server moves a deadline with almost every message. This file is the
//! data structure alone: it reads no clock and calls nobody, and its time is nanoseconds since the
//! loop began.
//!
//! Time is cut into ticks of 2^16 ns, and the 48 bits of a tick into eight groups of six. The
//! *hand* is the tick of now. A timer lives on the level of the highest group in which its tick
//! differs from the hand, in the slot which that group of its tick names:
//!
//! ```text
//!           a slot    64 slots    slot 0   1   2   3   4   5  ...  63      h: the hand
//!  level 7  9.1 y     584 y          [ h   .   .   .   .   .  ...   . ]
//!    ...
//!  level 2  268 ms    17 s           [ h   .   .   .   .   .  ...   # ]    hand = 64 + 2
//!  level 1  4.2 ms    268 ms         [ .   h   .   #   .   .  ...   . ]    a timer at 192 + 5:
//!  level 0  65.5 us   4.2 ms         [ .   .   h   |   .   #  ...   . ]    level 1, slot 3
//!                                                  |
//!                    slot { head, tail, earliest }-+    the ticks from 192 to 255
//!                           |
//!                           +-> entry <-> entry <-> entry    in the order of arming; the links
//!                                                            are indices into one slab
//! ```
//!
//! Three things follow, and the code below is little else:
//! - All of a level is before all of the next one, so the lowest bit set in the bitmap of the
//!   lowest level in use names the slot that comes first.
//! - Equal ticks are always in the same slot, in the order of arming.
//! - When the hand moves, every level below the highest group that changed is due as a whole, and
//!   on that level every slot the hand went past. Only the slot in which it arrives is sorted out:
//!   what is due is due, the rest moves to the levels below. A process that was stopped for hours
//!   pays for the slots in use, not for the ticks that went by.
//!
//! The idea is from Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (SOSP 1987); to
//! find the level by the highest group that differs is Tokio's way.

use std::mem;
use std::num::NonZeroU32;

use slab::Slab;

/// A tick in nanoseconds. A power of two, so that a division is a shift; far below the millisecond
/// that `epoll_wait` rounds to, so that it is not the tick that makes a timer late.
const TICK: u64 = 1 << 16;
const LAST_TICK: u64 = u64::MAX / TICK;

const GROUP_BITS: u32 = 6;
const SLOTS: usize = 1 << GROUP_BITS;
const LEVELS: usize = 8;

/// The one slot of a ninth level: timers armed for a moment that had already passed. They are not
/// on the wheel, where every tick is later than the hand.
const LATE_LEVEL: usize = LEVELS;
const LATE: u16 = (LATE_LEVEL * SLOTS) as u16;

/// The place of an entry that is in no slot: due and not yet removed, or later than `LAST_TICK`.
const NOWHERE: u16 = u16::MAX;

/// The end of a list.
const NIL: u32 = u32::MAX;

/// What is kept when the timers are gone: the memory of a burst goes back.
pub(super) const KEPT_CAPACITY: usize = 1024;

/// Names one armed timer.
///
/// Dropping it does nothing. Ids are not re-used: that of a timer which has fired or was cancelled
/// never comes to name another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId {
    // Never zero, so that an `Option<TimerId>` in a connection takes eight bytes.
    generation: NonZeroU32,
    index: u32,
}

pub(crate) struct Wheel<T> {
    /// The latest time that `advance` was told; its tick is the hand.
    now: u64,
    entries: Slab<Entry<T>>,
    /// Level after level, then `LATE`. Nothing until the first timer, for many loops have none.
    slots: Vec<Slot>,
    /// Per level, one bit for each slot that is not empty.
    occupied: [u64; LEVELS + 1],
    /// Counts insertions for the whole wheel, so that ids stay unique when the slab is replaced.
    generation: NonZeroU32,
    /// What `advance` found, with the deadlines to sort it by; empty between calls.
    batch: Vec<(u64, TimerId)>,
    /// Removals from a slab that is much too large, since `shrink` was last tried.
    removals: usize,
}

struct Entry<T> {
    deadline: u64,
    prev: u32,
    next: u32,
    generation: NonZeroU32,
    /// Which of the `slots`: level * 64 + slot, or `LATE`, or `NOWHERE`.
    place: u16,
    value: T,
}

#[derive(Clone, Copy)]
struct Slot {
    head: u32,
    tail: u32,
    /// The earliest tick that was put here since the slot was last empty. A timer that is cancelled
    /// or moved away does not correct it, for that would mean a search: a minimum gone stale costs
    /// one wakeup for nothing. Never two, because it lies within the slot's span, and a hand that
    /// gets there empties the slot.
    earliest: u64,
}

impl Slot {
    const EMPTY: Slot = Slot { head: NIL, tail: NIL, earliest: 0 };
}

impl<T> Wheel<T> {
    pub(crate) fn new() -> Self {
        Wheel {
            now: 0,
            entries: Slab::new(),
            slots: Vec::new(),
            occupied: [0; LEVELS + 1],
            generation: NonZeroU32::MIN,
            batch: Vec::new(),
            removals: 0,
        }
    }

    /// Whether there are no timers: neither any that wait, nor any that are due and not yet
    /// removed.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Arms a timer. One whose deadline has passed is due at the next `advance`, even if that is
    /// told the same time again; one beyond the last tick, in 584 years, never is.
    pub(crate) fn insert(&mut self, deadline: u64, value: T) -> TimerId {
        if self.slots.is_empty() {
            self.slots = vec![Slot::EMPTY; LATE as usize + 1];
        }
        let generation = self.next_generation();
        let place = NOWHERE;
        let entry = Entry { deadline, prev: NIL, next: NIL, generation, place, value };
        let key = self.entries.insert(entry);
        assert!(key < NIL as usize, "an index is 32 bits: there are too many timers");

        let index = key as u32;
        self.arm(index, deadline);
        TimerId { generation, index }
    }

    /// Cancels a timer, or takes a due one. `None` if it is gone already.
    pub(crate) fn remove(&mut self, id: TimerId) -> Option<T> {
        self.entry(id)?;
        self.unlink(id.index);
        let entry = self.entries.remove(id.index as usize);
        if self.entries.capacity() > KEPT_CAPACITY + 4 * self.entries.len() {
            self.shrink();
        }
        Some(entry.value)
    }

    /// Gives back what lies behind the last entry; those before it cannot move, for ids are
    /// indices. It may take a step for each of them, so it is tried once in as many removals as
    /// timers are left: not for each of a few that go in a bad order.
    #[cold]
    #[inline(never)]
    fn shrink(&mut self) {
        self.removals += 1;
        if self.removals >= self.entries.len() {
            self.removals = 0;
            self.entries.shrink_to_fit();
        }
    }

    /// Moves a timer to another deadline; its id stays valid. Among timers of the same deadline it
    /// is now the last. `false` if it is gone.
    pub(crate) fn rearm(&mut self, id: TimerId, deadline: u64) -> bool {
        let Some(entry) = self.entry_mut(id) else { return false };
        entry.deadline = deadline;
        self.unlink(id.index);
        self.arm(id.index, deadline);
        true
    }

    pub(crate) fn get_mut(&mut self, id: TimerId) -> Option<&mut T> {
        self.entry_mut(id).map(|entry| &mut entry.value)
    }

    /// The exact deadline, as it was given.
    pub(crate) fn deadline(&self, id: TimerId) -> Option<u64> {
        self.entry(id).map(|entry| entry.deadline)
    }

    /// All that is left, due or not, in no order.
    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.entries.into_iter().map(|(_, entry)| entry.value)
    }

    /// When `advance` should be called next. Never later than the first timer's tick, and earlier
    /// only if a timer that was cancelled or moved would have been the first.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        if self.occupied[LATE_LEVEL] != 0 {
            return Some(self.now);
        }
        let level = self.occupied.iter().position(|&bits| bits != 0)?;
        let slot = self.occupied[level].trailing_zeros() as usize;
        Some(self.slots[level * SLOTS + slot].earliest * TICK)
    }

    /// Moves the hand to `now` and appends to `due` what it went past, by deadline and, where that
    /// is equal, in the order of arming. A time before the latest one counts as the latest one.
    ///
    /// Due timers are in no slot any more but still here, until `remove` or `rearm`: one that runs
    /// can cancel or postpone another of its batch. So whoever walks `due` skips an id that is gone
    /// and one whose `deadline` is now in the future.
    pub(crate) fn advance(&mut self, now: u64, due: &mut Vec<TimerId>) {
        let before = self.hand();
        self.now = self.now.max(now);
        let hand = self.hand();

        if hand != before {
            let top = level_of(hand ^ before);
            for level in 0..top {
                self.empty_slots(level, u64::MAX);
            }
            let up_to_hand = u64::MAX >> (SLOTS - 1 - slot_of(hand, top));
            self.empty_slots(top, up_to_hand);
        }
        // After the others, for where deadlines are equal these were armed later: when that
        // deadline had passed already.
        self.empty_slots(LATE_LEVEL, u64::MAX);

        self.deliver(due);
    }

    fn hand(&self) -> u64 {
        self.now / TICK
    }

    fn entry(&self, id: TimerId) -> Option<&Entry<T>> {
        self.entries.get(id.index as usize).filter(|entry| entry.generation == id.generation)
    }

    fn entry_mut(&mut self, id: TimerId) -> Option<&mut Entry<T>> {
        self.entries.get_mut(id.index as usize).filter(|entry| entry.generation == id.generation)
    }

    /// Comes round after 2^32 insertions. For an old id to be taken for a new one then, the timer
    /// of exactly its number would have to land in exactly its place.
    fn next_generation(&mut self) -> NonZeroU32 {
        let next = self.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        mem::replace(&mut self.generation, next)
    }

    /// Puts an unlinked entry where its deadline belongs. The tick is rounded up: when the hand is
    /// on it, the deadline has passed, so no timer is early.
    fn arm(&mut self, index: u32, deadline: u64) {
        let tick = if deadline <= self.now { self.hand() } else { deadline.div_ceil(TICK) };
        if tick <= LAST_TICK {
            self.link(index, tick);
        }
    }

    /// Appends an unlinked entry to the slot of `tick`.
    fn link(&mut self, index: u32, tick: u64) {
        let place = self.place_of(tick);
        let slot = &mut self.slots[place as usize];
        let tail = mem::replace(&mut slot.tail, index);

        let entry = &mut self.entries[index as usize];
        entry.prev = tail;
        entry.next = NIL;
        entry.place = place;

        if tail == NIL {
            slot.head = index;
            slot.earliest = tick;
            self.occupied[place as usize / SLOTS] |= 1 << (place as usize % SLOTS);
        } else {
            slot.earliest = slot.earliest.min(tick);
            self.entries[tail as usize].next = index;
        }
    }

    fn place_of(&self, tick: u64) -> u16 {
        match tick ^ self.hand() {
            0 => LATE,
            difference => {
                let level = level_of(difference);
                (level * SLOTS + slot_of(tick, level)) as u16
            }
        }
    }

    /// Takes an entry out of its slot, if it is in one.
    fn unlink(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        let (prev, next) = (entry.prev, entry.next);
        let place = mem::replace(&mut entry.place, NOWHERE) as usize;
        if place == NOWHERE as usize {
            return;
        }
        let slot = &mut self.slots[place];
        if prev == NIL {
            slot.head = next;
        } else {
            self.entries[prev as usize].next = next;
        }
        if next == NIL {
            slot.tail = prev;
        } else {
            self.entries[next as usize].prev = prev;
        }
        if slot.head == NIL {
            self.occupied[place / SLOTS] &= !(1 << (place % SLOTS));
        }
    }

    /// Empties those slots of `level` which `mask` selects, the earliest first.
    fn empty_slots(&mut self, level: usize, mask: u64) {
        let mut passed = self.occupied[level] & mask;
        self.occupied[level] &= !mask;
        while passed != 0 {
            self.empty_slot(level * SLOTS + passed.trailing_zeros() as usize);
            passed &= passed - 1;
        }
    }

    /// Puts what is due into the batch, and what is not on a lower level. Both keep their order.
    fn empty_slot(&mut self, place: usize) {
        let hand = self.hand();
        let mut index = mem::replace(&mut self.slots[place], Slot::EMPTY).head;
        while index != NIL {
            let entry = &mut self.entries[index as usize];
            let next = entry.next;
            let tick = entry.deadline.div_ceil(TICK);
            // A late timer is due although its tick, rounded up, may be the next one.
            if tick <= hand || place == LATE as usize {
                entry.place = NOWHERE;
                let id = TimerId { generation: entry.generation, index };
                self.batch.push((entry.deadline, id));
            } else {
                self.link(index, tick);
            }
            index = next;
        }
    }

    fn deliver(&mut self, due: &mut Vec<TimerId>) {
        // Slots were emptied in the order of time, so there is often nothing to sort, and `sort`
        // would allocate before it noticed.
        if !self.batch.is_sorted_by_key(|&(deadline, _)| deadline) {
            self.batch.sort_by_key(|&(deadline, _)| deadline);
        }
        due.extend(self.batch.drain(..).map(|(_, id)| id));
        self.batch.shrink_to(KEPT_CAPACITY);
    }
}

/// The level of the highest group of bits that is not zero.
fn level_of(difference: u64) -> usize {
    (difference.ilog2() / GROUP_BITS) as usize
}

/// The group of a tick's bits that names its slot on `level`.
fn slot_of(tick: u64, level: usize) -> usize {
    (tick >> (level as u32 * GROUP_BITS)) as usize % SLOTS
}

#[cfg(test)]
mod tests;
