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
//!                                                            are indices into one vector
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
/// does not come to name another one, unless 2^32 others have been armed meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId {
    // Never zero, so that an `Option<TimerId>` in a connection takes eight bytes.
    generation: NonZeroU32,
    index: u32,
}

pub(crate) struct Wheel<T> {
    /// The latest time that `advance` was told; its tick is the hand.
    now: u64,
    entries: Vec<Entry<T>>,
    /// The first of the vacant entries, which are linked by `next`.
    vacant: u32,
    /// How many entries are not vacant.
    len: usize,
    /// Level after level, then `LATE`. Nothing until the first timer, for many loops have none.
    slots: Vec<Slot>,
    /// Per level, one bit for each slot that is not empty.
    occupied: [u64; LEVELS + 1],
    /// Counts insertions for the whole wheel, so that ids stay unique when entries go and come back.
    generation: NonZeroU32,
    /// What `advance` found, with the deadlines to sort it by; empty between calls.
    batch: Vec<(u64, TimerId)>,
    /// Removals while there is room for far too many, since `shrink` was last tried.
    removals: usize,
}

/// Read and written where it stands, also while it is vacant: moving a timer into such a vector and
/// out of it again would cost more than all else that is done to arm and cancel it.
struct Entry<T> {
    deadline: u64,
    prev: u32,
    next: u32,
    /// `None` if it is vacant.
    generation: Option<NonZeroU32>,
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

impl<T: Default> Wheel<T> {
    pub(crate) fn new() -> Self {
        Wheel {
            now: 0,
            entries: Vec::new(),
            vacant: NIL,
            len: 0,
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
        self.len == 0
    }

    /// Arms a timer. One whose deadline has passed is due at the next `advance`, even if that is
    /// told the same time again; one beyond the last tick, in 584 years, never is.
    pub(crate) fn insert(&mut self, deadline: u64, value: T) -> TimerId {
        if self.vacant == NIL {
            self.grow();
        }
        let index = self.vacant;
        let generation = self.next_generation();
        let (place, prev) = self.append(index, self.tick_of(deadline));

        let entry = &mut self.entries[index as usize];
        self.vacant = mem::replace(&mut entry.next, NIL);
        self.len += 1;
        entry.deadline = deadline;
        entry.prev = prev;
        entry.generation = Some(generation);
        entry.place = place;
        entry.value = value;
        TimerId { generation, index }
    }

    /// Cancels a timer, or takes a due one. `None` if it is gone already.
    pub(crate) fn remove(&mut self, id: TimerId) -> Option<T> {
        self.remove_by(id, mem::take)
    }

    /// The same where `take` decides what becomes of the value. One that it leaves is dropped when
    /// another timer gets the place.
    pub(crate) fn remove_by<R>(
        &mut self,
        id: TimerId,
        take: impl FnOnce(&mut T) -> R,
    ) -> Option<R> {
        let vacant = self.vacant;
        let entry = self.entry_mut(id)?;
        let taken = take(&mut entry.value);
        let (place, prev) = (entry.place, entry.prev);
        let next = mem::replace(&mut entry.next, vacant);
        entry.generation = None;
        self.vacant = id.index;
        self.len -= 1;
        self.close_gap(place, prev, next);
        if self.entries.capacity() > KEPT_CAPACITY + 4 * self.len {
            self.shrink();
        }
        Some(taken)
    }

    /// Makes one entry more, vacant; and the slots, if it is the first.
    fn grow(&mut self) {
        if self.slots.is_empty() {
            self.slots = vec![Slot::EMPTY; LATE as usize + 1];
        }
        assert!(
            self.entries.len() < NIL as usize,
            "an index is 32 bits: there are too many timers"
        );
        self.vacant = self.entries.len() as u32;
        self.entries.push(Entry {
            deadline: 0,
            prev: NIL,
            next: NIL,
            generation: None,
            place: NOWHERE,
            value: T::default(),
        });
    }

    /// Gives back what lies behind the last entry in use; those before it cannot move, for ids are
    /// indices. It may take a step for each of them, so it is tried once in as many removals as
    /// timers are left: not for each of a few that go in a bad order.
    #[cold]
    #[inline(never)]
    fn shrink(&mut self) {
        self.removals += 1;
        if self.removals < self.len {
            return;
        }
        self.removals = 0;
        let before = self.entries.len();
        while self.entries.pop_if(|entry| entry.generation.is_none()).is_some() {}
        if self.entries.len() < before {
            self.entries.shrink_to_fit();
            self.vacant = NIL;
            // The foremost first: then there is soon more to give back at the end.
            for (index, entry) in self.entries.iter_mut().enumerate().rev() {
                if entry.generation.is_none() {
                    entry.next = mem::replace(&mut self.vacant, index as u32);
                }
            }
        }
    }

    /// Moves a timer to another deadline; its id stays valid. Among timers of the same deadline it
    /// is now the last. `false` if it is gone.
    pub(crate) fn rearm(&mut self, id: TimerId, deadline: u64) -> bool {
        let Some(entry) = self.entry_mut(id) else { return false };
        entry.deadline = deadline;
        let (place, prev, next) = (entry.place, entry.prev, entry.next);
        self.close_gap(place, prev, next);
        self.link(id.index, self.tick_of(deadline));
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
        let armed = self.entries.into_iter().filter(|entry| entry.generation.is_some());
        armed.map(|entry| entry.value)
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
        let entry = self.entries.get(id.index as usize)?;
        (entry.generation == Some(id.generation)).then_some(entry)
    }

    fn entry_mut(&mut self, id: TimerId) -> Option<&mut Entry<T>> {
        let entry = self.entries.get_mut(id.index as usize)?;
        (entry.generation == Some(id.generation)).then_some(entry)
    }

    /// Comes round after 2^32 insertions. For an old id to be taken for a new one then, the timer
    /// of exactly its number would have to land in exactly its place.
    fn next_generation(&mut self) -> NonZeroU32 {
        let next = self.generation.checked_add(1).unwrap_or(NonZeroU32::MIN);
        mem::replace(&mut self.generation, next)
    }

    /// The tick in which a timer that is armed now is due. It is rounded up: when the hand is on it,
    /// the deadline has passed, so no timer is early.
    fn tick_of(&self, deadline: u64) -> u64 {
        if deadline <= self.now { self.hand() } else { deadline.div_ceil(TICK) }
    }

    /// Puts an entry that is in no slot into that of `tick`.
    fn link(&mut self, index: u32, tick: u64) {
        let (place, prev) = self.append(index, tick);
        let entry = &mut self.entries[index as usize];
        entry.place = place;
        entry.prev = prev;
        entry.next = NIL;
    }

    /// Makes an entry the last in the slot of `tick`. Returns what the entry itself has to say then:
    /// its place, and who is before it.
    fn append(&mut self, index: u32, tick: u64) -> (u16, u32) {
        if tick > LAST_TICK {
            return (NOWHERE, NIL);
        }
        let place = self.place_of(tick);
        let slot = &mut self.slots[place as usize];
        let tail = mem::replace(&mut slot.tail, index);
        if tail == NIL {
            slot.head = index;
            slot.earliest = tick;
            self.occupied[place as usize / SLOTS] |= 1 << (place as usize % SLOTS);
        } else {
            slot.earliest = slot.earliest.min(tick);
            self.entries[tail as usize].next = index;
        }
        (place, tail)
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

    /// Joins what was before an entry and what was behind it, if it was in a slot.
    fn close_gap(&mut self, place: u16, prev: u32, next: u32) {
        if place == NOWHERE {
            return;
        }
        let place = place as usize;
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
                if let Some(generation) = entry.generation {
                    self.batch.push((entry.deadline, TimerId { generation, index }));
                }
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
