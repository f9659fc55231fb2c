//! The wheel's properties, one by one. Random histories are in `model`.

mod model;

use std::collections::BTreeSet;

use super::*;

const HOUR: u64 = 3_600_000_000_000;

/// Advances and takes what is due.
fn fire<T: Default>(wheel: &mut Wheel<T>, now: u64) -> Vec<T> {
    let mut due = Vec::new();
    wheel.advance(now, &mut due);
    check_lists(wheel);
    due.into_iter().filter_map(|id| wheel.remove(id)).collect()
}

/// Lists, bitmaps and places agree, everything on the wheel is later than the hand, and every entry
/// without a timer can be had for the next one.
#[track_caller]
fn check_lists<T: Default>(wheel: &Wheel<T>) {
    let mut linked = 0;
    for (place, slot) in wheel.slots.iter().enumerate() {
        let bit = wheel.occupied[place / SLOTS] >> (place % SLOTS) & 1;
        assert_eq!(bit == 1, slot.head != NIL, "bitmap of place {place}");
        let (mut prev, mut index) = (NIL, slot.head);
        while index != NIL {
            let entry = &wheel.entries[index as usize];
            assert_eq!((entry.prev, entry.place as usize), (prev, place));
            if place == LATE as usize {
                assert!(entry.deadline <= wheel.now);
            } else {
                let tick = entry.deadline.div_ceil(TICK);
                assert_eq!(wheel.place_of(tick) as usize, place);
                assert!(wheel.hand() < slot.earliest && slot.earliest <= tick);
            }
            linked += 1;
            (prev, index) = (index, entry.next);
        }
        assert_eq!(slot.tail, prev, "tail of place {place}");
    }
    let armed = || wheel.entries.iter().filter(|entry| entry.generation.is_some());
    assert_eq!(linked, armed().filter(|entry| entry.place != NOWHERE).count());
    assert_eq!(wheel.len, armed().count());

    let (mut vacant, mut index) = (0, wheel.vacant);
    while let Some(entry) = wheel.entries.get(index as usize) {
        assert_eq!(entry.generation, None);
        vacant += 1;
        index = entry.next;
    }
    assert_eq!(wheel.entries.len() - wheel.len, vacant);
}

#[test]
fn a_wheel_without_timers_allocates_nothing_and_expects_nothing() {
    let mut wheel = Wheel::<()>::new();
    assert_eq!(fire(&mut wheel, HOUR), []);
    assert_eq!((wheel.len, wheel.is_empty(), wheel.next_expiry()), (0, true, None));
    assert_eq!((wheel.slots.capacity(), wheel.entries.capacity()), (0, 0));
}

#[test]
fn an_id_and_an_optional_id_take_eight_bytes_and_an_entry_three_words() {
    assert_eq!((size_of::<TimerId>(), size_of::<Option<TimerId>>()), (8, 8));
    assert_eq!(size_of::<Entry<()>>(), 24);
}

#[test]
fn a_deadline_is_rounded_up_to_its_tick() {
    for (deadline, tick) in [(1, 1), (TICK - 1, 1), (TICK, 1), (TICK + 1, 2), (2 * TICK, 2)] {
        let mut wheel = Wheel::new();
        wheel.insert(deadline, deadline);
        assert_eq!(wheel.next_expiry(), Some(tick * TICK), "of {deadline}");
        assert_eq!(fire(&mut wheel, tick * TICK - 1), [], "before the tick of {deadline}");
        assert_eq!(fire(&mut wheel, tick * TICK), [deadline]);
    }
}

#[test]
fn a_deadline_that_has_passed_is_due_at_the_same_time_again() {
    let mut wheel = Wheel::new();
    wheel.insert(0, "zero");
    assert_eq!(wheel.next_expiry(), Some(0));
    assert_eq!(fire(&mut wheel, 0), ["zero"]);

    let now = 10 * TICK + 5;
    assert_eq!(fire(&mut wheel, now), [""; 0]);
    wheel.insert(now, "now");
    wheel.insert(now + 1, "soon");
    wheel.insert(3, "past");
    assert_eq!(wheel.next_expiry(), Some(now));
    assert_eq!(fire(&mut wheel, now), ["past", "now"]);
    assert_eq!(wheel.next_expiry(), Some(11 * TICK));
    assert_eq!(fire(&mut wheel, 11 * TICK), ["soon"]);
}

#[test]
fn an_earlier_time_counts_as_the_latest_one() {
    let mut wheel = Wheel::new();
    assert_eq!(fire(&mut wheel, 5 * TICK), []);
    wheel.insert(3 * TICK, 3);
    wheel.insert(6 * TICK, 6);
    assert_eq!(fire(&mut wheel, 0), [3]);
    assert_eq!(fire(&mut wheel, 6 * TICK), [6]);
}

#[test]
fn a_batch_is_ordered_by_deadline_then_by_arming() {
    let mut wheel = Wheel::new();
    let moved = wheel.insert(7, "moved");
    for (deadline, name) in [
        (HOUR, "last"),
        (TICK + 9, "c1"),
        (9, "b1"),
        (TICK + 9, "c2"),
        (5, "a"),
        (9, "b2"),
        (9 * TICK, "d"),
    ] {
        wheel.insert(deadline, name);
    }
    assert!(wheel.rearm(moved, 9));
    let ordered = ["a", "b1", "b2", "moved", "c1", "c2", "d", "last"];
    assert_eq!(fire(&mut wheel, 2 * HOUR), ordered);
}

#[test]
fn equal_deadlines_keep_their_order_through_every_level() {
    let mut wheel = Wheel::new();
    let deadline = HOUR + 7;
    let mut now = 0;
    // Each is armed from half as far away as the one before, so they enter on different levels.
    for n in 0.. {
        wheel.insert(deadline, n);
        if now == deadline {
            break;
        }
        now += (deadline - now).div_ceil(2);
        assert_eq!(fire(&mut wheel, now), []);
    }
    let fired = fire(&mut wheel, HOUR + TICK);
    assert!(fired.len() > 20 && fired.is_sorted(), "{fired:?}");
    assert!(wheel.is_empty());
}

#[test]
fn armed_late_is_after_armed_in_time_for_the_same_deadline() {
    let mut wheel = Wheel::new();
    let deadline = 63 * TICK + 1;
    wheel.insert(deadline, "in time");
    assert_eq!(fire(&mut wheel, deadline), [""; 0]);
    wheel.insert(deadline, "late");
    assert_eq!(fire(&mut wheel, 64 * TICK), ["in time", "late"]);
}

#[test]
fn around_the_borders_of_the_levels() {
    let borders = (0..=LEVELS as u32).map(|level| 1_u64 << (GROUP_BITS * level));
    let near = |tick: u64| [tick.saturating_sub(1), tick, tick + 1].map(|tick| tick.min(LAST_TICK));
    let ticks: BTreeSet<u64> = borders.flat_map(near).collect();
    for &start in &ticks {
        for &end in ticks.range(start + 1..) {
            let mut wheel = Wheel::new();
            assert_eq!(fire(&mut wheel, start * TICK), []);
            wheel.insert(end * TICK, end);
            assert_eq!(wheel.next_expiry(), Some(end * TICK), "{start} to {end}");
            assert_eq!(fire(&mut wheel, end * TICK - 1), [], "{start} to {end}");
            assert_eq!(wheel.next_expiry(), Some(end * TICK), "{start} to {end}");
            assert_eq!(fire(&mut wheel, end * TICK), [end]);
            assert_eq!(wheel.next_expiry(), None);
        }
    }
}

#[test]
fn the_end_of_time_does_not_overflow() {
    let mut wheel = Wheel::new();
    let last = wheel.insert(LAST_TICK * TICK, "last tick");
    let never = wheel.insert(u64::MAX, "never");
    assert_eq!(wheel.next_expiry(), Some(LAST_TICK * TICK));
    assert_eq!(fire(&mut wheel, LAST_TICK * TICK - 1), [""; 0]);
    assert_eq!(fire(&mut wheel, u64::MAX - 1), ["last tick"]);
    assert_eq!((wheel.len, wheel.next_expiry()), (1, None));
    assert_eq!((wheel.remove(last), wheel.deadline(never)), (None, Some(u64::MAX)));

    assert!(wheel.rearm(never, u64::MAX - 1));
    assert_eq!(fire(&mut wheel, u64::MAX), ["never"]);
}

#[test]
fn a_timer_an_hour_away_costs_one_wakeup() {
    let mut wheel = Wheel::new();
    wheel.insert(HOUR, ());
    let expiry = wheel.next_expiry().expect("a timer is armed");
    assert_eq!(expiry, HOUR.next_multiple_of(TICK));
    assert_eq!(fire(&mut wheel, expiry), [()]);
}

#[test]
fn a_cancelled_minimum_costs_one_wakeup_and_no_spin() {
    let mut wheel = Wheel::new();
    let cancelled = wheel.insert(1000 * TICK, 1);
    wheel.insert(1010 * TICK, 2);
    assert_eq!(wheel.remove(cancelled), Some(1));
    assert_eq!(wheel.next_expiry(), Some(1000 * TICK));
    assert_eq!(fire(&mut wheel, 1000 * TICK), []);
    assert_eq!(wheel.next_expiry(), Some(1010 * TICK));

    // A slot that became empty forgets its minimum.
    let mut wheel = Wheel::new();
    let cancelled = wheel.insert(1000 * TICK, 1);
    wheel.remove(cancelled);
    wheel.insert(1010 * TICK, 2);
    assert_eq!(wheel.next_expiry(), Some(1010 * TICK));
}

#[test]
fn long_jumps_go_by_slots_and_not_by_ticks() {
    let mut wheel = Wheel::new();
    let century = 100 * 8766 * HOUR;
    for n in 0..5 {
        wheel.insert(n * century + n, n);
    }
    assert_eq!(fire(&mut wheel, century), [0]);
    assert_eq!(fire(&mut wheel, 4 * century), [1, 2, 3]);
    assert_eq!(fire(&mut wheel, u64::MAX), [4]);
}

#[test]
fn a_due_timer_can_be_cancelled_or_postponed_by_another_of_its_batch() {
    let mut wheel = Wheel::new();
    let ids = [1, 2, 3, 4].map(|n| wheel.insert(n, n));
    let mut due = Vec::new();
    wheel.advance(TICK, &mut due);
    assert_eq!((due.as_slice(), wheel.len, wheel.next_expiry()), (ids.as_slice(), 4, None));

    assert_eq!(wheel.remove(ids[1]), Some(2));
    assert_eq!(wheel.remove(ids[1]), None);
    assert!(wheel.rearm(ids[2], 3 * TICK));
    assert!(wheel.rearm(ids[3], 0));
    let deadlines = due.iter().map(|&id| wheel.deadline(id)).collect::<Vec<_>>();
    assert_eq!(deadlines, [Some(1), None, Some(3 * TICK), Some(0)]);
    assert_eq!(fire(&mut wheel, TICK), [4]);
    assert_eq!(fire(&mut wheel, 3 * TICK), [3]);
    assert_eq!(wheel.remove(ids[0]), Some(1));
    assert!(wheel.is_empty());
}

#[test]
fn an_advance_leaves_alone_what_is_in_due_and_does_not_repeat_it() {
    let mut wheel = Wheel::new();
    let (first, second) = (wheel.insert(1, ()), wheel.insert(2 * TICK, ()));
    let mut due = Vec::new();
    wheel.advance(TICK, &mut due);
    wheel.advance(2 * TICK, &mut due);
    wheel.advance(3 * TICK, &mut due);
    assert_eq!(due, [first, second]);
}

#[test]
fn rearming_a_waiting_timer_moves_it() {
    let mut wheel = Wheel::new();
    let id = wheel.insert(TICK, 'a');
    assert!(wheel.rearm(id, HOUR));
    check_lists(&wheel);
    assert_eq!(wheel.deadline(id), Some(HOUR));
    assert_eq!(fire(&mut wheel, 2 * TICK), []);
    assert!(wheel.rearm(id, 3 * TICK));
    assert_eq!(wheel.next_expiry(), Some(3 * TICK));
    assert_eq!(fire(&mut wheel, 3 * TICK), ['a']);
    assert!(!wheel.rearm(id, HOUR));
    assert_eq!(wheel.next_expiry(), None);
}

#[test]
fn an_old_id_never_reaches_the_next_timer_in_its_place() {
    let mut wheel = Wheel::new();
    let old = wheel.insert(TICK, 1);
    assert_eq!(wheel.remove(old), Some(1));
    let new = wheel.insert(TICK, 2);
    assert_eq!(old.index, new.index);
    assert_eq!((wheel.remove(old), wheel.deadline(old)), (None, None));
    assert_eq!(wheel.get_mut(old), None);
    assert!(!wheel.rearm(old, HOUR));
    assert_eq!(wheel.get_mut(new), Some(&mut 2));
    assert_eq!(fire(&mut wheel, TICK), [2]);
}

#[test]
fn generations_come_round_without_a_zero() {
    let mut wheel = Wheel::new();
    wheel.generation = NonZeroU32::MAX;
    let ids = [wheel.insert(1, 1), wheel.insert(1, 2)];
    assert_eq!(ids.map(|id| id.generation), [NonZeroU32::MAX, NonZeroU32::MIN]);
    assert_eq!(fire(&mut wheel, TICK), [1, 2]);
}

#[test]
fn memory_goes_back_after_a_burst_and_ids_stay_unique() {
    let mut wheel = Wheel::new();
    let burst: Vec<TimerId> = (0..10_000).map(|n| wheel.insert(n, n)).collect();
    assert_eq!(fire(&mut wheel, 10_000 + TICK).len(), 10_000);
    assert_eq!(wheel.entries.capacity(), 0);
    assert!(wheel.batch.capacity() <= KEPT_CAPACITY);

    let fresh = (0..10_000).map(|n| wheel.insert(HOUR, n)).collect::<Vec<_>>();
    assert!(burst.iter().all(|&id| wheel.remove(id).is_none()));
    assert!(fresh.iter().all(|&id| wheel.remove(id).is_some()));
    assert_eq!(wheel.entries.capacity(), 0);

    // A little is kept: a loop with one timer that comes and goes does not allocate each time.
    let id = wheel.insert(HOUR, 0);
    wheel.remove(id);
    assert_ne!(wheel.entries.capacity(), 0);
}

#[test]
fn memory_goes_back_after_a_burst_beside_a_timer_that_stays() {
    type Rank = fn(usize) -> usize;
    let first_to_last: Rank = |n| n;
    let last_to_first: Rank = |n| 10_000 - n;
    let anyhow: Rank = |n| n * 7 % 10_000;
    let most_then_few: Rank = |n| if n % 5 == 0 { 20_000 - n } else { n };
    for rank in [first_to_last, last_to_first, anyhow, most_then_few] {
        let mut wheel = Wheel::new();
        let stays = wheel.insert(HOUR, 10_000);
        let burst: Vec<_> = (0..10_000).map(|n| wheel.insert(n as u64, n)).collect();
        let mut order: Vec<_> = (0..10_000).collect();
        order.sort_by_key(|&n| rank(n));
        for n in order {
            assert_eq!(wheel.remove(burst[n]), Some(n));
        }
        check_lists(&wheel);
        assert!(wheel.entries.capacity() <= KEPT_CAPACITY, "{}", wheel.entries.capacity());

        let fresh: Vec<_> = (0..10_000).map(|n| wheel.insert(2 * HOUR, n)).collect();
        assert!(burst.iter().all(|&id| wheel.remove(id).is_none()));
        assert_eq!(wheel.deadline(stays), Some(HOUR));
        assert_eq!(fire(&mut wheel, HOUR + TICK), [10_000]);
        assert!(fresh.iter().all(|&id| wheel.remove(id).is_some()));
    }
}

#[test]
fn when_memory_has_gone_back_the_foremost_places_are_taken_first() {
    let mut wheel = Wheel::new();
    let ids: Vec<_> = (0..6).map(|n| wheel.insert(HOUR, n)).collect();
    for gone in [5, 1, 3] {
        assert_eq!(wheel.remove(ids[gone]), Some(gone));
    }
    wheel.removals = wheel.len;
    wheel.shrink();
    check_lists(&wheel);
    assert_eq!(wheel.entries.len(), 5);
    assert_eq!([(); 3].map(|()| wheel.insert(HOUR, 6).index), [1, 3, 5]);
}

#[test]
fn everything_comes_out_of_a_wheel_that_ends() {
    let mut wheel = Wheel::new();
    for (deadline, value) in [(1, 'd'), (HOUR, 'w'), (u64::MAX, 'n')] {
        wheel.insert(deadline, value);
    }
    wheel.advance(TICK, &mut Vec::new());
    wheel.insert(0, 'l');
    for take in [|_: &mut char| (), |value: &mut char| *value = '!'] {
        let gone = wheel.insert(HOUR, 'g');
        wheel.remove_by(gone, take);
    }
    let mut values: Vec<char> = wheel.into_values().collect();
    values.sort();
    assert_eq!(values, ['d', 'l', 'n', 'w']);
}
