//! Random histories of a wheel, held against a list of timers, each of which is looked at each
//! time.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What the wheel should be: a list of timers, each looked at every time.
struct Model {
    wheel: Wheel<usize>,
    now: u64,
    armings: usize,
    /// Every timer there ever was, and what its id still names.
    timers: Vec<(TimerId, Option<Timer>)>,
}

#[derive(Clone, Copy)]
struct Timer {
    deadline: u64,
    arming: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Waiting { tick: u64 },
    Late,
    Due,
}

#[derive(Clone, Copy, Debug)]
enum When {
    After(u64),
    Ago(u64),
    At(u64),
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert(When),
    Remove(usize),
    Rearm(usize, When),
    /// Advance, and take what is due or leave it.
    Advance(When, bool),
    /// Advance to a nanosecond before the next expiry, to it, or to one after it.
    AdvanceToExpiry(u64, bool),
}

/// From a nanosecond to centuries, each magnitude as likely as the next.
fn span() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0..64_u32).prop_map(|(bits, shift)| bits >> shift)
}

fn when() -> impl Strategy<Value = When> {
    let border = (0..LEVELS as u32, 0..4_u64, 0..3_u64).prop_map(|(level, slots, by)| {
        ((slots << (level * GROUP_BITS)) * TICK).saturating_add(by).saturating_sub(1)
    });
    prop_oneof![
        6 => (0..1_000_000_000_u64).prop_map(When::After),
        6 => (0..200 * TICK).prop_map(When::After),
        6 => span().prop_map(When::After),
        2 => border.clone().prop_map(When::After),
        2 => border.prop_map(When::At),
        1 => (0..5_u64).prop_map(|n| When::After(n * TICK)),
        1 => (0..3 * TICK).prop_map(When::Ago),
        1 => span().prop_map(When::At),
        1 => (0..3 * TICK).prop_map(|ns| When::At(u64::MAX - ns)),
    ]
}

fn near() -> impl Strategy<Value = When> {
    prop_oneof![
        4 => (0..100 * TICK).prop_map(When::After),
        4 => (0..1_000_000_000_u64).prop_map(When::After),
        1 => (0..20 * HOUR).prop_map(When::After),
        1 => (0..3 * TICK).prop_map(When::Ago),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => when().prop_map(Step::Insert),
        2 => any::<usize>().prop_map(Step::Remove),
        3 => (any::<usize>(), when()).prop_map(|(n, when)| Step::Rearm(n, when)),
        3 => (near(), any::<bool>()).prop_map(|(when, take)| Step::Advance(when, take)),
        4 => (0..3_u64, any::<bool>()).prop_map(|(by, take)| Step::AdvanceToExpiry(by, take)),
    ]
}

impl Model {
    fn new() -> Self {
        Model { wheel: Wheel::new(), now: 0, armings: 0, timers: Vec::new() }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Insert(when) => {
                let timer = self.timer(when);
                let id = self.wheel.insert(timer.deadline, self.timers.len());
                assert!(self.timers.iter().all(|&(known, _)| known != id));
                self.timers.push((id, Some(timer)));
            }
            Step::Remove(n) if !self.timers.is_empty() => {
                let n = n % self.timers.len();
                self.remove(n);
            }
            Step::Rearm(n, when) if !self.timers.is_empty() => {
                let n = n % self.timers.len();
                let timer = self.timer(when);
                let (id, known) = &mut self.timers[n];
                assert_eq!(self.wheel.rearm(*id, timer.deadline), known.is_some());
                if let Some(known) = known {
                    *known = timer;
                }
            }
            Step::Advance(when, take) => self.advance(self.resolve(when), take),
            Step::AdvanceToExpiry(by, take) => {
                if let Some(expiry) = self.wheel.next_expiry() {
                    self.advance(expiry.saturating_add(by).saturating_sub(1), take);
                }
            }
            Step::Remove(_) | Step::Rearm(..) => {}
        }
        self.check();
    }

    fn resolve(&self, when: When) -> u64 {
        match when {
            When::After(ns) => self.now.saturating_add(ns),
            When::Ago(ns) => self.now.saturating_sub(ns),
            When::At(ns) => ns,
        }
    }

    fn timer(&mut self, when: When) -> Timer {
        self.armings += 1;
        let deadline = self.resolve(when);
        let state = if deadline <= self.now {
            State::Late
        } else {
            State::Waiting { tick: deadline.div_ceil(TICK) }
        };
        Timer { deadline, arming: self.armings, state }
    }

    fn remove(&mut self, n: usize) {
        let (id, timer) = &mut self.timers[n];
        assert_eq!(self.wheel.remove(*id), timer.take().map(|_| n));
    }

    fn advance(&mut self, now: u64, take: bool) {
        self.now = self.now.max(now);
        let mut expected = Vec::new();
        for (n, (_, timer)) in self.timers.iter_mut().enumerate() {
            let Some(timer) = timer else { continue };
            let due = match timer.state {
                State::Waiting { tick } => tick <= self.now / TICK,
                State::Late => true,
                State::Due => false,
            };
            if due {
                assert!(timer.deadline <= self.now);
                timer.state = State::Due;
                expected.push((timer.deadline, timer.arming, n));
            }
        }
        expected.sort();

        let mut due = Vec::new();
        self.wheel.advance(now, &mut due);
        let expected: Vec<usize> = expected.into_iter().map(|(_, _, n)| n).collect();
        let found: Vec<usize> =
            due.iter().map(|&id| *self.wheel.get_mut(id).expect("a due timer is kept")).collect();
        assert_eq!(found, expected);
        assert!(self.wheel.next_expiry().is_none_or(|expiry| expiry > self.now), "would spin");
        if take {
            expected.into_iter().for_each(|n| self.remove(n));
        }
    }

    fn check(&self) {
        check_lists(&self.wheel);
        let live = || self.timers.iter().filter_map(|(_, timer)| timer.as_ref());
        assert_eq!(self.wheel.len, live().count());
        assert_eq!(self.wheel.is_empty(), live().count() == 0);
        for (id, timer) in &self.timers {
            assert_eq!(self.wheel.deadline(*id), timer.map(|timer| timer.deadline));
        }
        let earliest = live().filter_map(|timer| match timer.state {
            State::Waiting { tick } => tick.checked_mul(TICK),
            State::Late => Some(self.now),
            State::Due => None,
        });
        match (self.wheel.next_expiry(), earliest.min()) {
            (Some(expiry), Some(earliest)) => assert!(expiry <= earliest),
            (expiry, earliest) => assert_eq!(expiry, earliest),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_a_list_does(steps in vec(step(), 1..120)) {
        let mut model = Model::new();
        for step in steps {
            model.run(step);
        }
    }

    /// The loop's own use: sleep until the next expiry. Every timer fires when the hand reaches its
    /// tick, and wakeups for nothing are not more than the timers that were cancelled.
    #[test]
    fn following_the_next_expiry_is_exact_and_wakes_little(
        timers in vec((span(), prop::bool::weighted(0.3)), 1..60),
    ) {
        let mut wheel = Wheel::new();
        let mut cancelled = 0;
        let armed: Vec<_> = timers.iter().map(|&(at, _)| (wheel.insert(at, at), at)).collect();
        for (&(id, at), &(_, cancel)) in armed.iter().zip(&timers) {
            if cancel {
                prop_assert_eq!(wheel.remove(id), Some(at));
                cancelled += 1;
            }
        }
        let mut for_nothing = 0;
        while let Some(expiry) = wheel.next_expiry() {
            let fired = fire(&mut wheel, expiry);
            for_nothing += u32::from(fired.is_empty());
            for at in fired {
                prop_assert_eq!(at.div_ceil(TICK) * TICK, expiry);
            }
        }
        prop_assert!(for_nothing <= cancelled, "{} wakeups for nothing", for_nothing);
    }
}
