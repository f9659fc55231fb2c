//! Channels: what a loop does with registered descriptors.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bare_loop::{Dropped, FEW_TURNS, REPEATS, Record, pair, run, tells_edges, turns_in_a_while};
use common::allow_descriptors;
use ruduo::{Channel, Event, EventLoop, Interest, Mode, PollerKind, Ready, Source, Token};

/// Reads what is there, at most `n` bytes.
fn read(mut stream: &UnixStream, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    let n = stream.read(&mut bytes).unwrap();
    bytes.truncate(n);
    bytes
}

/// Quits at the end of a turn later than all that the test has prepared.
fn quit_soon(event_loop: &EventLoop) {
    event_loop.run_after(Duration::from_millis(1), EventLoop::quit);
}

#[test]
fn level_is_reported_as_long_as_it_holds() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (mut near, far) = pair();
        near.write_all(b"abc").unwrap();
        let seen = Record::new();
        let bytes = seen.clone();
        let handler = move |event_loop: &EventLoop, far: &UnixStream, event: Event| {
            assert_eq!(event.ready, Ready::READ);
            bytes.push((event_loop.metrics().turns, read(far, 1)));
        };
        event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap();
        assert!(turns_in_a_while(&event_loop) < FEW_TURNS);
        assert_eq!(seen.take(), [(1, b"a".to_vec()), (2, b"b".to_vec()), (3, b"c".to_vec())]);
    });
}

#[test]
fn an_edge_is_reported_once_and_each_new_one_again() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (mut near, far) = pair();
        near.write_all(b"abc").unwrap();
        let seen = Record::new();
        let calls = seen.clone();
        let handler = move |_: &EventLoop, _: &UnixStream, event: Event| calls.push(event.ready);
        let channel = Channel::new(far, Interest::READ, handler).mode(Mode::Edge);
        event_loop.register(channel).unwrap();

        let (calls, mut peer) = (seen.clone(), near.try_clone().unwrap());
        event_loop.run_after(bare_loop::A_WHILE, move |event_loop| {
            assert!(calls.len() == 1 || (!tells_edges() && calls.len() < REPEATS));
            calls.take();
            peer.write_all(b"d").unwrap();
            event_loop.run_after(bare_loop::A_WHILE, EventLoop::quit);
        });
        run(&event_loop);
        let seen = seen.take();
        assert!(seen.iter().all(|ready| *ready == Ready::READ) && !seen.is_empty());
        if tells_edges() {
            assert_eq!(seen.len(), 1);
            assert!(event_loop.metrics().turns < FEW_TURNS);
        }
    });
}

#[test]
fn one_shot_is_reported_once_until_its_interest_is_set_again() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (mut near, far) = pair();
        near.write_all(b"abc").unwrap();
        let seen = Record::new();
        let calls = seen.clone();
        let handler = move |_: &EventLoop, _: &UnixStream, event: Event| calls.push(event.ready);
        let channel = Channel::new(far, Interest::READ, handler).mode(Mode::OneShot);
        let token = event_loop.register(channel).unwrap();

        let calls = seen.clone();
        event_loop.run_after(bare_loop::A_WHILE, move |event_loop| {
            assert_eq!(calls.len(), 1);
            assert!(event_loop.metrics().turns < FEW_TURNS);
            event_loop.set_interest(token, Interest::READ).unwrap();
            quit_soon(event_loop);
        });
        run(&event_loop);
        assert_eq!(seen.take(), [Ready::READ; 2]);
    });
}

#[test]
fn interest_is_turned_off_and_on_again() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (mut near, far) = pair();
        near.write_all(b"abc").unwrap();
        let seen = Record::new();
        let calls = seen.clone();
        let handler = move |event_loop: &EventLoop, _: &UnixStream, event: Event| {
            calls.push(event.ready);
            event_loop.set_interest(event.token, Interest::NONE).unwrap();
        };
        let both = Interest::READ | Interest::WRITE;
        let token = event_loop.register(Channel::new(far, both, handler)).unwrap();

        // Each of these, and the first, is reported in one call, which turns the interest off.
        let steps = [Interest::READ, Interest::WRITE, Interest::NONE, both];
        let next = Rc::new(Cell::new(0));
        event_loop.run_every(Duration::from_millis(20), move |event_loop| {
            match steps.get(next.replace(next.get() + 1)) {
                Some(interest) => event_loop.set_interest(token, *interest).unwrap(),
                None => event_loop.quit(),
            }
        });
        run(&event_loop);
        let both = Ready::READ | Ready::WRITE;
        assert_eq!(seen.take(), [both, Ready::READ, Ready::WRITE, both]);
        assert!(event_loop.metrics().turns < FEW_TURNS);
    });
}

/// Two channels are ready in the same batch. The first to be called does something to the other;
/// how many were called, then.
fn called_in_one_batch(act: fn(&EventLoop, Token)) -> usize {
    let event_loop = EventLoop::new().unwrap();
    let turns = Record::new();
    let tokens = Rc::new(Cell::new([Token(0); 2]));
    let mut peers = Vec::new();
    let registered = [0, 1].map(|i| {
        let (mut near, far) = pair();
        near.write_all(b"x").unwrap();
        peers.push(near);
        let (turns, tokens) = (turns.clone(), Rc::clone(&tokens));
        let handler = move |event_loop: &EventLoop, far: &UnixStream, _: Event| {
            _ = read(far, 1);
            turns.push(event_loop.metrics().turns);
            if turns.len() == 1 {
                act(event_loop, tokens.get()[1 - i]);
            }
        };
        event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap()
    });
    tokens.set(registered);
    quit_soon(&event_loop);
    run(&event_loop);
    let turns = turns.take();
    assert!(turns.iter().all(|turn| *turn == turns[0]), "not one batch: turns {turns:?}");
    turns.len()
}

#[test]
fn b36_an_event_of_a_channel_removed_in_the_same_batch_is_dropped() {
    each_poller!().run(|| {
        assert_eq!(called_in_one_batch(|_, _| {}), 2, "without a removal");
        assert_eq!(
            called_in_one_batch(|event_loop, other| assert!(event_loop.deregister(other))),
            1
        );
    });
}

#[test]
fn b36_an_event_that_is_not_wanted_any_more_is_dropped() {
    each_poller!().run(|| {
        let calls = called_in_one_batch(|event_loop, other| {
            event_loop.set_interest(other, Interest::NONE).unwrap();
        });
        assert_eq!(calls, 1);
    });
}

/// Two channels are ready in the same batch. The first to be called removes the other one and
/// gives its descriptor number, and its place in the loop, to a new owner.
#[test]
fn b37_the_next_owner_of_a_descriptor_number_gets_nothing_of_the_old() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (calls_of_old, calls_of_new) = (Record::new(), Record::new());
        let (new_near, new_far) = pair();
        let new_far = Rc::new(new_far);
        let mut peers = Vec::new();
        let sockets = [0, 1].map(|_| {
            let (mut near, far) = pair();
            near.write_all(b"x").unwrap();
            peers.push(near);
            Rc::new(far)
        });
        let tokens = Rc::new(Cell::new([Token(0); 2]));
        let registered = [0, 1].map(|i| {
            let (old, new) = (calls_of_old.clone(), calls_of_new.clone());
            let (tokens, new_far) = (Rc::clone(&tokens), Rc::clone(&new_far));
            let other = Rc::clone(&sockets[1 - i]);
            let handler = move |event_loop: &EventLoop, _: &Rc<UnixStream>, event: Event| {
                old.push(event_loop.metrics().turns);
                event_loop.deregister(event.token);
                assert!(event_loop.deregister(tokens.get()[1 - i]));
                // SAFETY: `other` owns the number before and after; only what it names changes.
                unsafe { libc::dup2(new_far.as_raw_fd(), other.as_raw_fd()) };
                let new = new.clone();
                let handler = move |event_loop: &EventLoop, far: &Rc<UnixStream>, _: Event| {
                    new.push((&**far).read(&mut [0; 8]).map_err(|e| e.kind()));
                    quit_soon(event_loop);
                };
                let channel = Channel::new(Rc::clone(&other), Interest::READ, handler);
                event_loop.register(channel).unwrap();
            };
            let channel = Channel::new(Rc::clone(&sockets[i]), Interest::READ, handler);
            event_loop.register(channel).unwrap()
        });
        tokens.set(registered);
        let (new, mut peer) = (calls_of_new.clone(), new_near.try_clone().unwrap());
        event_loop.run_after(Duration::from_millis(1), move |_| {
            assert_eq!(new.len(), 0, "called without a reason of its own");
            peer.write_all(b"new").unwrap();
        });
        run(&event_loop);
        assert_eq!(calls_of_old.take(), [1]);
        assert_eq!(calls_of_new.take(), [Ok(3)]);
    });
}

#[test]
fn b38_a_duplicate_of_a_removed_descriptor_wakes_nobody() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (mut near, far) = pair();
        let duplicate = far.try_clone().unwrap();
        let calls = Record::new();
        let note = calls.clone();
        let handler = move |event_loop: &EventLoop, _: &UnixStream, event: Event| {
            note.push(());
            event_loop.deregister(event.token);
        };
        event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap();
        near.write_all(b"never read").unwrap();
        assert!(turns_in_a_while(&event_loop) < FEW_TURNS);
        assert_eq!(calls.len(), 1);
        assert_eq!(read(&duplicate, 16), b"never read");
    });
}

/// The peer is gone, with the channel's data unread or without: a hang-up, with or without an
/// error.
fn hang_up(with_error: bool) -> (EventLoop, Token, Record<Ready>) {
    let event_loop = EventLoop::new().unwrap();
    let (mut near, mut far) = pair();
    near.write_all(b"last words").unwrap();
    if with_error {
        far.write_all(b"never read").unwrap();
    }
    drop(near);
    let seen = Record::new();
    let calls = seen.clone();
    let handler = move |event_loop: &EventLoop, far: &UnixStream, event: Event| {
        calls.push(event.ready);
        if event.ready.contains(Ready::READ) {
            let mut far = far;
            while far.read(&mut [0; 4]).unwrap_or(1) > 0 {}
            event_loop.deregister(event.token);
        }
    };
    let token = event_loop.register(Channel::new(far, Interest::NONE, handler)).unwrap();
    (event_loop, token, seen)
}

#[test]
fn a_hang_up_nobody_waits_for_is_reported_once() {
    each_poller!().run(|| {
        let (event_loop, token, seen) = hang_up(false);
        let before = seen.clone();
        event_loop.run_after(bare_loop::A_WHILE, move |event_loop| {
            assert!(event_loop.metrics().turns < FEW_TURNS);
            assert_eq!(before.take(), [Ready::HANGUP]);
            // What the peer left is still there for whoever asks.
            event_loop.set_interest(token, Interest::READ).unwrap();
            quit_soon(event_loop);
        });
        run(&event_loop);
        // kqueue leaves it to the read to say that this was all.
        let on_kqueue = event_loop.poller_kind() == PollerKind::Kqueue;
        let also = if on_kqueue { Ready::empty() } else { Ready::HANGUP };
        assert_eq!(seen.take(), [Ready::READ | also]);
    });
}

#[test]
fn an_error_nobody_waits_for_is_reported_once() {
    each_poller!().run(|| {
        let (event_loop, _, seen) = hang_up(true);
        assert!(turns_in_a_while(&event_loop) < FEW_TURNS);
        assert_eq!(seen.take(), [Ready::ERROR | Ready::HANGUP]);
    });
}

#[test]
fn the_source_is_dropped_at_the_end_of_the_turn() {
    each_poller!().run(|| {
        struct Noted(UnixStream, #[expect(dead_code)] Dropped<&'static str>);
        impl AsFd for Noted {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.0.as_fd()
            }
        }
        let event_loop = EventLoop::new().unwrap();
        let (mut near, far) = pair();
        near.write_all(b"x").unwrap();
        let seen = Record::new();
        let note = seen.clone();
        let handler = move |event_loop: &EventLoop, source: &Noted, event: Event| {
            assert!(event_loop.deregister(event.token));
            assert!(!event_loop.deregister(event.token));
            let error = event_loop.set_interest(event.token, Interest::READ).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            // Still there: this very handler uses it.
            assert_eq!(read(&source.0, 1), b"x");
            let note = note.clone();
            event_loop.defer(move |_| note.push("task of this turn"));
        };
        let source = Noted(far, Dropped(seen.clone(), "dropped"));
        event_loop.register(Channel::new(source, Interest::READ, handler)).unwrap();
        quit_soon(&event_loop);
        run(&event_loop);
        assert_eq!(seen.take(), ["task of this turn", "dropped"]);
    });
}

#[test]
fn the_end_of_a_loop_breaks_cycles() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (_near, far) = pair();
        let far = Rc::new(far);
        let watch: Weak<UnixStream> = Rc::downgrade(&far);
        let in_handler = Rc::clone(&far);
        let handler =
            move |_: &EventLoop, _: &Rc<UnixStream>, _: Event| _ = Rc::strong_count(&in_handler);
        event_loop.register(Channel::new(far, Interest::READ, handler)).unwrap();
        event_loop.quit();
        run(&event_loop);
        assert!(watch.upgrade().is_none());
    });
}

#[test]
fn ten_thousand_descriptors_each_get_their_own_events() {
    let test = each_poller!();
    if !allow_descriptors(11_000) {
        return test.skip("10,000 descriptors are more than are allowed here");
    }
    test.run(|| {
        let pairs = 5_000;
        let event_loop = EventLoop::new().unwrap();
        let calls = Rc::new(RefCell::new(vec![0u32; 2 * pairs]));
        let left = Rc::new(Cell::new(2 * pairs));
        for i in 0..pairs {
            let (near, far) = pair();
            for (n, mut socket) in [(2 * i, near), (2 * i + 1, far)] {
                socket.write_all(&u32::try_from(n).unwrap().to_ne_bytes()).unwrap();
                let (calls, left) = (Rc::clone(&calls), Rc::clone(&left));
                let handler = move |event_loop: &EventLoop, socket: &UnixStream, _: Event| {
                    // It came from the other end.
                    let peer = u32::to_ne_bytes((n ^ 1).try_into().unwrap());
                    assert_eq!(read(socket, 8), peer);
                    calls.borrow_mut()[n] += 1;
                    left.set(left.get() - 1);
                    if left.get() == 0 {
                        quit_soon(event_loop);
                    }
                };
                event_loop.register(Channel::new(socket, Interest::READ, handler)).unwrap();
            }
        }
        run(&event_loop);
        assert!(calls.borrow().iter().all(|calls| *calls == 1));
    });
}

#[test]
fn what_can_not_be_watched_is_an_error_and_dropped() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let held = Dropped(seen.clone(), "dropped");
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        let handler = move |_: &EventLoop, _: &File, _: Event| held.0.push("called");
        let refused = event_loop.register(Channel::new(file, Interest::READ, handler));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);

        let (_near, far) = pair();
        let far = Rc::new(far);
        let channel = || Channel::new(Rc::clone(&far), Interest::READ, |_, _, _| {});
        event_loop.register(channel()).unwrap();
        let twice = event_loop.register(channel());
        assert_eq!(twice.unwrap_err().kind(), io::ErrorKind::AlreadyExists);

        // Long before the loop ends.
        let turn_later = move |event_loop: &EventLoop| {
            assert_eq!(seen.take(), ["dropped"]);
            assert_eq!(Rc::strong_count(&far), 2, "held here and by the first registration");
            event_loop.quit();
        };
        event_loop.defer(|event_loop| event_loop.defer(turn_later));
        run(&event_loop);
    });
}

/// A source that notes what it is told.
struct Told {
    socket: UnixStream,
    seen: Record<(&'static str, u64)>,
}

impl Told {
    fn note(&self, event_loop: &EventLoop, what: &'static str) {
        self.seen.push((what, event_loop.metrics().turns));
    }
}

impl Source for Told {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
    fn on_event(self: Rc<Self>, event_loop: &EventLoop, event: Event) {
        self.note(event_loop, "event");
        _ = read(&self.socket, 1);
        event_loop.at_turn_end(event.token);
    }
    fn on_turn_end(&self, event_loop: &EventLoop, token: Token) {
        self.note(event_loop, "turn end");
        if self.seen.len() < 3 {
            event_loop.at_turn_end(token);
        } else {
            event_loop.quit();
        }
    }
    fn on_loop_end(&self, event_loop: &EventLoop, _: Token) {
        self.note(event_loop, "loop end");
    }
}

/// Not when it was deregistered a moment ago and only waits to be dropped, nor when another one has
/// its place.
#[test]
fn a_source_is_found_by_its_token_while_it_is_registered() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let told = || Rc::new(Told { socket: pair().1, seen: Record::new() });
        let register = |source: &Rc<Told>| {
            event_loop.register(Channel::from_source(source.clone(), Interest::READ)).unwrap()
        };
        let is = |found: Option<Rc<dyn Any>>, source: &Rc<Told>| {
            Rc::ptr_eq(&found.unwrap().downcast::<Told>().unwrap(), source)
        };
        let (first, second) = (told(), told());

        let token = register(&first);
        assert!(is(event_loop.source(token), &first));
        assert!(is(event_loop.sources().pop(), &first));
        event_loop.deregister(token);
        assert!(event_loop.source(token).is_none() && event_loop.sources().is_empty());

        let next = register(&second);
        assert!(is(event_loop.source(next), &second), "{next:?}");
        assert!(event_loop.source(token).is_none(), "{token:?}");
        assert_eq!(event_loop.sources().len(), 1);
    });
}

/// Asked for in an event: at the end of this turn; asked for there: at the end of the next, which
/// does not wait.
#[test]
fn a_source_is_called_at_the_end_of_a_turn_and_of_the_loop() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (mut near, far) = pair();
        near.write_all(b"x").unwrap();
        let seen = Record::new();
        let source = Rc::new(Told { socket: far, seen: seen.clone() });
        event_loop.register(Channel::from_source(source, Interest::READ)).unwrap();
        run(&event_loop);
        let expected = [("event", 1), ("turn end", 1), ("turn end", 2), ("loop end", 2)];
        assert_eq!(seen.take(), expected);
    });
}

#[test]
fn a_removed_source_is_not_called_at_the_end_of_the_turn() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let (_near, far) = pair();
        let seen = Record::new();
        let source = Rc::new(Told { socket: far, seen: seen.clone() });
        let token = event_loop.register(Channel::from_source(source, Interest::READ)).unwrap();
        event_loop.at_turn_end(token);
        event_loop.defer(move |event_loop| {
            event_loop.deregister(token);
            event_loop.quit();
        });
        run(&event_loop);
        assert_eq!(seen.take(), []);
    });
}

/// Each of five thousand pairs sends a byte there and back, and leaves.
#[test]
fn b67_a_loop_with_ten_thousand_descriptors() {
    const PAIRS: usize = 5_000;
    let test = each_poller!();
    if !allow_descriptors(11_000) {
        return test.skip("10,000 descriptors are more than are allowed here");
    }
    test.run(|| {
        let event_loop = EventLoop::new().unwrap();
        let answers = Record::new();
        for _ in 0..PAIRS {
            let (mut near, far) = pair();
            near.write_all(b"x").unwrap();
            let echo = |event_loop: &EventLoop, mut far: &UnixStream, event: Event| {
                far.write_all(&read(far, 1)).unwrap();
                event_loop.deregister(event.token);
            };
            let answers = answers.clone();
            let answered = move |event_loop: &EventLoop, near: &UnixStream, event: Event| {
                answers.push(read(near, 1));
                event_loop.deregister(event.token);
                if answers.len() == PAIRS {
                    event_loop.quit();
                }
            };
            event_loop.register(Channel::new(far, Interest::READ, echo)).unwrap();
            event_loop.register(Channel::new(near, Interest::READ, answered)).unwrap();
        }
        run(&event_loop);
        assert!(answers.take().iter().all(|answer| answer == b"x"));
        drop(event_loop);
    });
}
