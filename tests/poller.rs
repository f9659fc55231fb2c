//! The poller alone: the contract at the top of `poller/mod.rs`, point by point.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use bare_loop::{A_WHILE, FEW_TURNS, REPEATS, next, pair, ready, ready_now, tells_edges};
use common::{DEADLINE, allow_descriptors};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::mkfifo;
use ruduo::{Events, Interest, Mode, Notifier, Poller, PollerKind, Ready, Token};

const MODES: [Mode; 3] = [Mode::Level, Mode::Edge, Mode::OneShot];

#[test]
fn registrations_are_per_descriptor() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        let (mut near, far) = pair();
        let kind = |outcome: io::Result<()>| outcome.unwrap_err().kind();

        let unknown = poller.modify(&far, Token(1), Interest::READ, Mode::Level);
        assert_eq!(kind(unknown), io::ErrorKind::NotFound);
        assert_eq!(kind(poller.delete(&far)), io::ErrorKind::NotFound);
        poller.add(&far, Token(1), Interest::READ, Mode::Level).unwrap();
        let twice = poller.add(&far, Token(2), Interest::WRITE, Mode::Level);
        assert_eq!(kind(twice), io::ErrorKind::AlreadyExists);

        // The failures have changed nothing.
        near.write_all(b"x").unwrap();
        assert_eq!(ready_now(&poller), [(1, Ready::READ)]);
        poller.modify(&far, Token(3), Interest::WRITE, Mode::Level).unwrap();
        assert_eq!(ready_now(&poller), [(3, Ready::WRITE)]);
        poller.delete(&far).unwrap();
        assert_eq!(ready_now(&poller), []);
        poller.add(&far, Token(u64::MAX), Interest::READ, Mode::Level).unwrap();
        assert_eq!(ready_now(&poller), [(u64::MAX, Ready::READ)]);
        poller.delete(&far).unwrap();
    });
}

#[test]
fn a_regular_file_can_not_be_watched() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        let refused = poller.add(&file, Token(0), Interest::READ, Mode::Level).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        if poller.kind() != PollerKind::Epoll {
            // We refuse it, for there are kernels that do not.
            assert!(refused.to_string().contains("always ready"), "{refused}");
        }
    });
}

#[test]
fn b67_reading_and_writing_come_in_one_event() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        for mode in MODES {
            let (mut near, far) = pair();
            near.write_all(b"x").unwrap();
            let both = Interest::READ | Interest::WRITE;
            poller.add(&far, Token(7), both, mode).unwrap();
            assert_eq!(ready_now(&poller), [(7, Ready::READ | Ready::WRITE)], "{mode:?}");
            poller.delete(&far).unwrap();
        }
    });
}

#[test]
fn level_edge_and_one_shot_differ_in_what_they_repeat() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        for mode in MODES {
            let (mut near, mut far) = pair();
            poller.add(&far, Token(1), Interest::READ, mode).unwrap();
            assert_eq!(ready_now(&poller), [], "{mode:?}");
            let readable = [(1, Ready::READ)];

            near.write_all(b"a").unwrap();
            assert_eq!(ready_now(&poller), readable, "{mode:?}");
            if mode != Mode::Edge || tells_edges() {
                let repeats = mode == Mode::Level;
                assert_eq!(!ready_now(&poller).is_empty(), repeats, "{mode:?}");
            }

            near.write_all(b"b").unwrap();
            match mode {
                Mode::OneShot => assert_eq!(ready_now(&poller), []),
                _ => assert_eq!(next(&poller), readable, "{mode:?}"),
            }

            // Setting the interest reports what is there, in every mode.
            poller.modify(&far, Token(1), Interest::READ, mode).unwrap();
            assert_eq!(ready_now(&poller), readable, "{mode:?}");

            far.read_exact(&mut [0; 2]).unwrap();
            poller.modify(&far, Token(1), Interest::READ, mode).unwrap();
            assert_eq!(ready_now(&poller), [], "{mode:?}");
            poller.delete(&far).unwrap();
        }
    });
}

#[test]
fn b67_interest_is_turned_off_and_on_again() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        for mode in MODES {
            let (mut near, far) = pair();
            near.write_all(b"x").unwrap();
            poller.add(&far, Token(1), Interest::READ, mode).unwrap();
            for _ in 0..3 {
                assert_eq!(ready_now(&poller), [(1, Ready::READ)], "{mode:?}");
                poller.modify(&far, Token(1), Interest::NONE, mode).unwrap();
                assert_eq!(ready_now(&poller), [], "{mode:?}");
                poller.modify(&far, Token(2), Interest::WRITE, mode).unwrap();
                assert_eq!(ready_now(&poller), [(2, Ready::WRITE)], "{mode:?}");
                poller.modify(&far, Token(1), Interest::READ, mode).unwrap();
            }
            poller.delete(&far).unwrap();
        }
    });
}

#[test]
fn a_mode_can_be_changed() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        let (mut near, far) = pair();
        near.write_all(b"x").unwrap();
        poller.add(&far, Token(1), Interest::READ, Mode::Level).unwrap();
        for _ in 0..2 {
            for _ in 0..3 {
                assert_eq!(ready_now(&poller), [(1, Ready::READ)], "level");
            }
            for mode in [Mode::Edge, Mode::OneShot] {
                poller.modify(&far, Token(1), Interest::READ, mode).unwrap();
                assert_eq!(ready_now(&poller), [(1, Ready::READ)], "{mode:?}");
                if mode == Mode::OneShot || tells_edges() {
                    assert_eq!(ready_now(&poller), [], "{mode:?}");
                }
            }
            poller.modify(&far, Token(1), Interest::READ, Mode::Level).unwrap();
        }
        poller.delete(&far).unwrap();
    });
}

/// Where reading and writing are told of by themselves, the list may end between the two.
#[test]
fn a_one_shot_tells_once_however_short_the_list() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        let pairs: Vec<_> = (0..3).map(|_| pair()).collect();
        for ((mut near, far), token) in pairs.iter().map(|(near, far)| (near, far)).zip(0..) {
            near.write_all(b"x").unwrap();
            let both = Interest::READ | Interest::WRITE;
            poller.add(far, Token(token), both, Mode::OneShot).unwrap();
        }
        let mut told = Vec::new();
        let mut events = Events::with_capacity(1);
        // Some more than there can be.
        for _ in 0..4 * pairs.len() {
            poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
            told.extend(events.iter().map(|event| event.token.0));
        }
        told.sort_unstable();
        assert_eq!(told, [0, 1, 2]);
        pairs.iter().for_each(|(_, far)| poller.delete(far).unwrap());
    });
}

#[test]
fn who_asks_for_nothing_is_told_of_neither_input_nor_a_half_close() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        for mode in MODES {
            let (mut near, far) = pair();
            poller.add(&far, Token(1), Interest::NONE, mode).unwrap();
            assert_eq!(ready_now(&poller), [], "{mode:?}");
            near.write_all(b"x").unwrap();
            let start = Instant::now();
            assert_eq!(ready(&poller, A_WHILE), [], "input, {mode:?}");
            assert!(start.elapsed() >= A_WHILE, "not even for nothing, {mode:?}");
            near.shutdown(Shutdown::Write).unwrap();
            assert_eq!(ready_now(&poller), [], "half-close, {mode:?}");
            drop(near);
            let told = next(&poller);
            assert!(told.len() == 1 && told[0].1.contains(Ready::HANGUP), "{mode:?}: {told:?}");
            poller.delete(&far).unwrap();
        }
    });
}

#[test]
fn a_pipe_whose_other_end_has_gone_before_is_told_of() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        for interest in [Interest::WRITE, Interest::NONE] {
            for mode in MODES {
                let (read, write) = io::pipe().unwrap();
                drop(read);
                poller.add(&write, Token(1), interest, mode).unwrap();
                let told = next(&poller);
                assert!(told.len() == 1 && told[0].0 == 1, "{interest:?}, {mode:?}: {told:?}");
                let gone = Ready::ERROR | Ready::HANGUP;
                let asked = Ready::from_bits_truncate(interest.bits());
                let is_told = told[0].1.intersects(gone) && told[0].1.contains(asked);
                assert!(is_told, "{interest:?}, {mode:?}: {told:?}");
                if mode != Mode::Edge || tells_edges() {
                    let repeats = mode == Mode::Level;
                    assert_eq!(!ready_now(&poller).is_empty(), repeats, "{interest:?}, {mode:?}");
                }
                poller.delete(&write).unwrap();
            }
        }
        assert_eq!(ready_now(&poller), []);
    });
}

#[test]
fn a_pipe_whose_other_end_goes_is_told_of_unasked() {
    let gone = Ready::ERROR | Ready::HANGUP;
    each_poller!().run(move || {
        let poller = Poller::new().unwrap();
        for mode in MODES {
            for (asked, as_asked) in [(false, Ready::empty()), (true, Ready::READ | Ready::WRITE)] {
                let interest = |direction| if asked { direction } else { Interest::NONE };
                let (read, write) = io::pipe().unwrap();
                poller.add(&read, Token(1), interest(Interest::READ), mode).unwrap();
                assert_eq!(ready_now(&poller), [], "{mode:?}");
                drop(write);
                let told = next(&poller);
                let is_told = told.len() == 1 && told[0].1.intersects(gone | as_asked);
                assert!(is_told, "reading, {mode:?}, {asked}: {told:?}");
                poller.delete(&read).unwrap();

                let (read, mut write) = io::pipe().unwrap();
                fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
                while write.write(&[0; 4096]).is_ok() {}
                poller.add(&write, Token(1), interest(Interest::WRITE), mode).unwrap();
                assert_eq!(ready_now(&poller), [], "{mode:?}");
                drop(read);
                let told = next(&poller);
                let is_told = told.len() == 1 && told[0].1.intersects(gone | as_asked);
                assert!(is_told, "writing, {mode:?}, {asked}: {told:?}");
                poller.delete(&write).unwrap();
            }
        }
    });
}

/// A kqueue, for one, cannot be asked whether it is writable. Where there is none it is a descriptor
/// like others.
#[test]
fn who_asks_for_nothing_needs_no_more_than_there_is() {
    each_poller!().run(|| {
        let (poller, other) = (Poller::new().unwrap(), Poller::new().unwrap());
        let notifier = other.notifier(Token(2)).unwrap();
        for mode in MODES {
            poller.add(&notifier, Token(1), Interest::NONE, mode).unwrap();
            assert_eq!(ready_now(&poller), [], "{mode:?}");
            poller.delete(&notifier).unwrap();
        }
        other.delete(&notifier).unwrap();
    });
}

/// What has been told stays so while others are told of all the time.
#[test]
fn in_a_short_list_hang_ups_have_their_turn() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        let busy: Vec<_> = (0..4).map(|_| pair()).collect();
        for ((mut near, far), token) in busy.iter().map(|(near, far)| (near, far)).zip(0..) {
            near.write_all(b"x").unwrap();
            poller.add(far, Token(token), Interest::READ, Mode::Level).unwrap();
        }
        let hung_up: Vec<_> = (4..8).map(|token| (token, pair().0)).collect();
        for (token, far) in &hung_up {
            poller.add(far, Token(*token), Interest::NONE, Mode::Level).unwrap();
        }
        for room in [1, 2, 3] {
            let mut events = Events::with_capacity(room);
            let mut told = [0; 8];
            for _ in 0..80 {
                poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
                assert!(events.len() <= room, "{} in the place of {room}", events.len());
                events.iter().for_each(|event| told[event.token.0 as usize] += 1);
            }
            assert!(told.iter().all(|times| *times > 3), "room for {room}: {told:?}");
        }
        busy.iter().for_each(|(_, far)| poller.delete(far).unwrap());
        // What is deleted is not told of again, and the rest waits for nothing.
        hung_up.iter().for_each(|(_, far)| poller.delete(far).unwrap());
        let start = Instant::now();
        assert_eq!(ready(&poller, A_WHILE), []);
        assert!(start.elapsed() >= A_WHILE);
    });
}

/// Which systems refuse what differs. Who is refused can try again.
#[test]
fn what_is_refused_is_not_taken_for_watched() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        let null = File::open("/dev/null").unwrap();
        for interest in [Interest::READ, Interest::NONE] {
            let add = || poller.add(&null, Token(1), interest, Mode::Level);
            match add() {
                Ok(()) => poller.delete(&null).unwrap(),
                Err(refused) => {
                    let again = add().unwrap_err();
                    assert_eq!(again.kind(), refused.kind(), "{interest:?}: {again}");
                    poller.delete(&null).unwrap_err();
                }
            }
        }
    });
}

#[test]
fn a_named_pipe_gets_new_writers() {
    each_poller!().run(|| {
        let name = format!("ruduo-{}-{}", std::process::id(), PollerKind::preferred().unwrap());
        let path = std::env::temp_dir().join(name);
        mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let open = |write: bool| {
            let flags = OFlag::O_NONBLOCK.bits();
            File::options().read(!write).write(write).custom_flags(flags).open(&path).unwrap()
        };
        let poller = Poller::new().unwrap();
        let reader = open(false);
        poller.add(&reader, Token(1), Interest::READ, Mode::Level).unwrap();
        for _ in 0..2 {
            let mut writer = open(true);
            writer.write_all(b"x").unwrap();
            assert_eq!(ready_now(&poller), [(1, Ready::READ)]);
            (&reader).read_exact(&mut [0]).unwrap();
            assert_eq!(ready_now(&poller), []);
            drop(writer);
            let told = next(&poller);
            assert!(told.len() == 1 && told[0].1.contains(Ready::HANGUP), "{told:?}");
        }
        // Nothing is left of the hang-up that is over.
        poller.modify(&reader, Token(1), Interest::NONE, Mode::Level).unwrap();
        assert_eq!(ready_now(&poller), [(1, Ready::HANGUP)]);
        let writer = open(true);
        poller.modify(&reader, Token(1), Interest::READ, Mode::Level).unwrap();
        assert_eq!(ready_now(&poller), []);
        drop(writer);
        poller.delete(&reader).unwrap();
        std::fs::remove_file(&path).unwrap();
    });
}

#[test]
fn a_notifier_can_be_a_one_shot_and_loses_nothing() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        let notifier = poller.notifier(Token(1)).unwrap();
        poller.modify(&notifier, Token(2), Interest::READ, Mode::OneShot).unwrap();
        notifier.notify().unwrap();
        for _ in 0..3 {
            let told: Vec<_> = next(&poller).iter().map(|(token, _)| *token).collect();
            assert_eq!(told, [2]);
            // Silent until it is modified, and told of then.
            notifier.notify().unwrap();
            assert_eq!(ready_now(&poller), []);
            poller.modify(&notifier, Token(2), Interest::READ, Mode::OneShot).unwrap();
        }
        poller.delete(&notifier).unwrap();
    });
}

/// By FIONREAD.
fn has_input(stream: &UnixStream) -> bool {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to where the pointer leads.
    let outcome = unsafe { libc::ioctl(stream.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    assert_eq!(outcome, 0);
    bytes > 0
}

/// Reads until there is nothing left. Returns how much that was.
fn drain(mut stream: &UnixStream) -> usize {
    let mut total = 0;
    loop {
        match stream.read(&mut [0; 64]) {
            Ok(0) => return total,
            Ok(n) => total += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return total,
            Err(e) => panic!("{e}"),
        }
    }
}

/// Whoever reads until `WouldBlock` is told of what comes afterwards, however soon that is.
#[test]
fn no_edge_after_a_drain_is_lost() {
    const BYTES: usize = 20_000;
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        let (mut near, far) = pair();
        poller.add(&far, Token(1), Interest::READ, Mode::Edge).unwrap();
        let writer = thread::spawn(move || {
            near.set_nonblocking(false).unwrap();
            for i in 0..BYTES {
                near.write_all(b"x").unwrap();
                if i % 64 == 0 {
                    thread::yield_now();
                }
            }
            near
        });
        let mut received = 0;
        while received < BYTES {
            assert_eq!(next(&poller), [(1, Ready::READ)]);
            received += drain(&far);
        }
        drop(writer.join().unwrap());
        poller.delete(&far).unwrap();
    });
}

/// A condition that its reader leaves as it is does not make the poller spin: neither input that
/// is not read, nor room for output that is not used, nor a peer that is gone.
#[test]
fn an_edge_that_is_left_alone_does_not_spin() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        let (mut near, far) = pair();
        near.write_all(b"x").unwrap();
        poller.add(&far, Token(1), Interest::READ | Interest::WRITE, Mode::Edge).unwrap();
        for gone in [false, true] {
            if gone {
                near.shutdown(std::net::Shutdown::Both).unwrap();
            }
            let (start, mut waits) = (Instant::now(), 0);
            while start.elapsed() < A_WHILE {
                poller.wait(&mut Events::with_capacity(4), Some(A_WHILE)).unwrap();
                waits += 1;
            }
            let bound = if tells_edges() { FEW_TURNS as usize } else { REPEATS };
            assert!(waits < bound, "{waits} waits");
        }
        poller.delete(&far).unwrap();
    });
}

#[test]
fn errors_and_hang_ups_are_reported_unasked() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        for mode in MODES {
            let (near, mut far) = pair();
            far.write_all(b"never read").unwrap();
            poller.add(&far, Token(1), Interest::NONE, mode).unwrap();
            assert_eq!(ready_now(&poller), [], "{mode:?}");
            drop(near);
            assert_eq!(ready_now(&poller), [(1, Ready::ERROR | Ready::HANGUP)], "{mode:?}");
            if mode != Mode::Edge || tells_edges() {
                assert_eq!(!ready_now(&poller).is_empty(), mode == Mode::Level, "{mode:?}");
            }
            // Who asks for something else is told of that, as often as it says.
            poller.modify(&far, Token(2), Interest::READ, Mode::OneShot).unwrap();
            let told = ready_now(&poller);
            assert!(told.len() == 1 && told[0].0 == 2, "{mode:?}: {told:?}");
            assert_eq!(ready_now(&poller), [], "{mode:?}");
            poller.delete(&far).unwrap();
        }
    });
}

/// The kernel has forgotten the number of what was closed, and the poller has not. Its next owner
/// changes or deletes what is no longer there.
#[cfg(any(kqueue_model, not(target_os = "linux")))]
#[test]
fn a_number_can_be_changed_and_deleted_by_its_next_owner() {
    alone!().on_poller(PollerKind::Kqueue).run(|| {
        let poller = Poller::new().unwrap();
        for changes in [false, true] {
            let (_near, far) = pair();
            poller.add(&far, Token(1), Interest::READ, Mode::Level).unwrap();
            // The lowest number that is free.
            let number = far.as_raw_fd();
            drop(far);
            let (far, mut near) = pair();
            assert_eq!(far.as_raw_fd(), number);
            near.write_all(b"x").unwrap();
            assert_eq!(ready_now(&poller), []);
            if changes {
                poller.modify(&far, Token(2), Interest::READ, Mode::Level).unwrap();
                assert_eq!(ready_now(&poller), [(2, Ready::READ)]);
            }
            poller.delete(&far).unwrap();
            assert_eq!(ready_now(&poller), []);
        }
    });
}

/// One direction can be watched and the other cannot: both together are refused, and nothing of
/// that is left.
#[cfg(kqueue_model)]
#[test]
fn of_what_is_refused_nothing_is_left() {
    alone!().on_poller(PollerKind::Kqueue).run(|| {
        let (poller, other) = (Poller::new().unwrap(), Poller::new().unwrap());
        let (mut near, far) = pair();
        near.write_all(b"x").unwrap();
        other.add(&far, Token(1), Interest::READ, Mode::Level).unwrap();
        // Of this neither can.
        let null = File::open("/dev/null").unwrap();
        poller.add(&null, Token(3), Interest::NONE, Mode::Level).unwrap_err();
        // The descriptor of a kqueue that has something to tell.
        let queue = other.notifier(Token(2)).unwrap();
        let both = Interest::READ | Interest::WRITE;
        let refused = poller.add(&queue, Token(3), both, Mode::Level).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        poller.add(&queue, Token(4), Interest::READ, Mode::OneShot).unwrap();
        assert_eq!(ready_now(&poller), [(4, Ready::READ)]);
        assert_eq!(ready_now(&poller), []);
        poller.delete(&queue).unwrap();
        other.delete(&queue).unwrap();
        other.delete(&far).unwrap();
    });
}

/// Registrations that come, change and go in no order at all: each wait reports exactly those that
/// are watched, have what they are watched for, and have not used up their one shot.
#[test]
fn whatever_the_order_exactly_what_is_watched_and_ready_is_reported() {
    struct Watched {
        token: u64,
        interest: Interest,
        one_shot: bool,
        armed: bool,
    }
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        let mut pairs: Vec<(UnixStream, UnixStream)> = (0..40).map(|_| pair()).collect();
        let mut watched: Vec<Option<Watched>> = pairs.iter().map(|_| None).collect();
        let mut dice = common::pattern(8 * 4_000).into_iter();
        let mut roll = |sides: u8| dice.next().map(|byte| byte % sides);
        let mut token = 0;
        let mut steps = 0;
        while let (Some(index), Some(action), Some(bits)) = (roll(40), roll(6), roll(8)) {
            let index = usize::from(index);
            let (near, far) = &mut pairs[index];
            let interest = Interest::from_bits_truncate(bits & 5);
            let one_shot = bits & 2 != 0;
            let mode = if one_shot { Mode::OneShot } else { Mode::Level };
            match (action, &mut watched[index]) {
                (0, _) => near.write_all(b"x").unwrap(),
                (1, _) => drop(drain(far)),
                (2, entry @ Some(_)) => {
                    poller.delete(&*far).unwrap();
                    *entry = None;
                }
                (3 | 4, Some(entry)) => {
                    token += 1;
                    poller.modify(&*far, Token(token), interest, mode).unwrap();
                    *entry = Watched { token, interest, one_shot, armed: true };
                }
                (_, entry @ None) => {
                    token += 1;
                    poller.add(&*far, Token(token), interest, mode).unwrap();
                    *entry = Some(Watched { token, interest, one_shot, armed: true });
                }
                _ => {}
            }
            if steps % 3 == 0 {
                let mut expected = Vec::new();
                for ((_, far), entry) in pairs.iter().zip(&mut watched) {
                    let Some(entry) = entry.as_mut().filter(|entry| entry.armed) else { continue };
                    let unread = has_input(far);
                    let has = if unread { Ready::READ | Ready::WRITE } else { Ready::WRITE };
                    let ready = has & Ready::from_bits_truncate(entry.interest.bits());
                    if !ready.is_empty() {
                        expected.push((entry.token, ready));
                        entry.armed = !entry.one_shot;
                    }
                }
                expected.sort_by_key(|(token, _)| *token);
                assert_eq!(ready_now(&poller), expected);
            }
            steps += 1;
        }
        assert!(steps > 10_000);
        for ((_, far), _) in pairs.iter().zip(&watched).filter(|(_, entry)| entry.is_some()) {
            poller.delete(far).unwrap();
        }
    });
}

#[test]
fn b67_ten_thousand_descriptors() {
    const PAIRS: usize = 5_000;
    let test = each_poller!();
    if !allow_descriptors(11_000) {
        return test.skip("10,000 descriptors are more than are allowed here");
    }
    test.run(|| {
        let poller = Poller::new().unwrap();
        let mut pairs: Vec<_> = (0..PAIRS).map(|_| pair()).collect();
        for (i, (near, far)) in pairs.iter().enumerate() {
            for (fd, token) in [(near, 2 * i), (far, 2 * i + 1)] {
                poller.add(fd, Token(token as u64), Interest::READ, Mode::Level).unwrap();
            }
        }
        let all_ready = |poller: &Poller| {
            let mut events = Events::with_capacity(2 * PAIRS);
            poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
            let mut tokens: Vec<_> = events.iter().map(|event| event.token.0 as usize).collect();
            tokens.sort_unstable();
            tokens
        };
        assert_eq!(all_ready(&poller), []);
        for (near, _) in pairs.iter_mut().step_by(7) {
            near.write_all(b"x").unwrap();
        }
        let expected: Vec<_> = (0..PAIRS).step_by(7).map(|i| 2 * i + 1).collect();
        assert_eq!(all_ready(&poller), expected);

        // With room for few, every one of them has its turn.
        let mut events = Events::with_capacity(16);
        let mut seen = BTreeSet::new();
        for _ in 0..=expected.len() / 16 {
            poller.wait(&mut events, Some(DEADLINE)).unwrap();
            seen.extend(events.iter().map(|event| event.token.0 as usize));
        }
        assert!(seen.into_iter().eq(expected.iter().copied()));

        // Half of them go, in the manner of the young ones first; the others are still found.
        for (near, far) in pairs.drain(PAIRS / 2..).rev() {
            poller.delete(&far).unwrap();
            poller.delete(&near).unwrap();
        }
        let expected: Vec<_> = expected.into_iter().filter(|token| *token < PAIRS).collect();
        assert_eq!(all_ready(&poller), expected);
        for (near, far) in &pairs {
            poller.delete(near).unwrap();
            poller.delete(far).unwrap();
        }
        assert_eq!(all_ready(&poller), []);
    });
}

#[test]
fn a_limit_below_what_is_watched_is_an_error_that_says_so() {
    alone!().on_poller(PollerKind::Poll).run(|| {
        let poller = Poller::new().unwrap();
        let (near, far) = pair();
        for fd in [&near, &far] {
            poller.add(fd, Token(1), Interest::READ, Mode::Level).unwrap();
        }
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 1, hard).unwrap();
        let outcome = poller.wait(&mut Events::with_capacity(1), Some(Duration::ZERO));
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("ulimit -n"), "{error}");
        assert_eq!(ready_now(&poller), []);
        for fd in [&near, &far] {
            poller.delete(fd).unwrap();
        }
    });
}

/// A mistake of the program, which the kernel cannot tell from its successor in every case.
#[test]
fn a_descriptor_closed_while_it_is_watched_is_told_of_once() {
    let alone = alone!().on_poller(PollerKind::Poll).expect_log("was closed while a poller");
    alone.run(|| {
        let poller = Poller::new().unwrap();
        let (mut near, far) = pair();
        let number = far.as_raw_fd();
        poller.add(&far, Token(1), Interest::READ, Mode::Level).unwrap();
        drop(far);
        assert_eq!(ready_now(&poller), []);
        let lines = common::logs();
        assert!(lines.len() == 1 && lines[0].contains(&number.to_string()), "{lines:?}");
        let start = Instant::now();
        assert_eq!(ready(&poller, A_WHILE), []);
        assert!(start.elapsed() >= A_WHILE, "it is not watched any more");

        // The next owner of the number is not taken for it.
        let (near_2, far_2) = pair();
        assert_eq!(far_2.as_raw_fd().min(near_2.as_raw_fd()), number);
        for fd in [&near_2, &far_2] {
            poller.add(fd, Token(2), Interest::READ, Mode::Level).unwrap();
        }
        assert_eq!(ready_now(&poller), []);
        assert!(near.write_all(b"x").is_err());
        assert_eq!(common::logs().len(), 1);
    });
}

#[test]
fn what_does_not_fit_comes_with_the_next_wait() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        let pairs: Vec<(UnixStream, UnixStream)> = (0..10).map(|_| pair()).collect();
        for ((mut near, far), token) in pairs.iter().map(|(n, f)| (n, f)).zip(0..) {
            near.write_all(b"x").unwrap();
            poller.add(far, Token(token), Interest::READ, Mode::OneShot).unwrap();
        }
        // Even a list without room has room for one.
        let mut events = Events::with_capacity(0);
        let mut seen = Vec::new();
        for _ in 0..10 {
            poller.wait(&mut events, Some(DEADLINE)).unwrap();
            assert_eq!(events.len(), 1);
            seen.extend(events.iter().map(|event| event.token.0));
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..10));
        poller.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty(), "the last wait's event is gone");
    });
}

#[test]
fn a_timeout_is_never_early() {
    each_poller!().run(|| {
        let poller = Poller::new().unwrap();
        for micros in [1, 70, 999, 1_001, 12_345] {
            let timeout = Duration::from_micros(micros);
            let start = Instant::now();
            assert_eq!(ready(&poller, timeout), []);
            assert!(start.elapsed() >= timeout, "{timeout:?}: {:?}", start.elapsed());
        }
    });
}

/// Waits while another thread, after a moment, uses the notifier.
fn wait_until_woken(poller: &Poller, notifier: &Notifier, timeout: Option<Duration>) {
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::park_timeout(Duration::from_millis(20));
            notifier.notify().unwrap();
        });
        let (mut events, mut waits) = (Events::with_capacity(4), 0);
        while events.is_empty() {
            poller.wait(&mut events, timeout).unwrap();
            waits += 1;
        }
        let events: Vec<_> = events.iter().map(|event| (event.token.0, event.ready)).collect();
        assert_eq!(events, [(9, Ready::READ)], "{notifier:?}");
        assert!(waits < FEW_TURNS, "{timeout:?}: {waits} waits");
    });
}

fn b51_long_timeouts() {
    let poller = Poller::new().unwrap();
    let notifier = poller.notifier(Token(9)).unwrap();
    let days = |n: u64| Duration::from_secs(n * 86_400);
    // 2^32 ms is where an int of milliseconds comes round to "at once".
    let round = Duration::from_millis(1 << 32);
    for timeout in [days(25), days(40), round, days(300), Duration::MAX] {
        wait_until_woken(&poller, &notifier, Some(timeout));
    }
}

#[test]
fn b51_the_longest_timeouts_wait() {
    each_poller!().run(b51_long_timeouts);
}

#[test]
fn b51_the_longest_timeouts_wait_without_epoll_pwait2() {
    const INJECT: &str = "inject=epoll_pwait2:error=ENOSYS";
    let strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", INJECT];
    alone!().on_poller(PollerKind::Epoll).under(&strace).run(b51_long_timeouts);
}

extern "C" fn do_nothing(_: libc::c_int) {}

#[test]
fn a_signal_ends_the_wait_early_and_empty() {
    each_poller!().run(|| {
        let handler = SigHandler::Handler(do_nothing);
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
        let poller = Poller::new().unwrap();
        // What an earlier wait has found.
        let (near, far) = pair();
        let mut events = Events::with_capacity(4);
        poller.add(&far, Token(7), Interest::WRITE, Mode::Level).unwrap();
        poller.wait(&mut events, None).unwrap();
        assert_eq!(events.len(), 1);
        poller.delete(&far).unwrap();
        // SAFETY: it has no preconditions.
        let waiting = unsafe { libc::pthread_self() };
        let (done, is_done) = mpsc::channel::<()>();
        let signaller = thread::spawn(move || {
            // Again and again, for the first may come before the wait.
            while is_done.try_recv() == Err(mpsc::TryRecvError::Empty) {
                // SAFETY: the thread that waits joins this one.
                unsafe { libc::pthread_kill(waiting, libc::SIGUSR1) };
                thread::park_timeout(Duration::from_millis(1));
            }
        });
        let start = Instant::now();
        poller.wait(&mut events, Some(DEADLINE)).unwrap();
        assert!(events.is_empty(), "{events:?}");
        assert!(start.elapsed() < DEADLINE);
        drop((near, done));
        signaller.join().unwrap();
    });
}
