//! Signals by way of a loop.

#![allow(clippy::unwrap_used)]

mod bare_loop;
mod common;

use std::cell::Cell;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::process::Command;
use std::ptr;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bare_loop::{A_WHILE, FEW_TURNS, Record, assert_exited_well, forked, notifier_kinds, run};
use common::{open_fds, proc, serve_on, within};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, kill, raise, sigaction};
use nix::unistd::Pid;
use ruduo::{Client, EventLoop, LoopThread, PollerKind, Signal, SignalId, TcpServer, UnixServer};

extern "C" fn do_nothing(_: libc::c_int) {}

/// Sets an action that can be told from the default.
fn set_previous(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler, if any, does nothing.
    unsafe { sigaction(signal, &action) }.unwrap();
}

/// What happens on the signal now: a handler's address, or SIG_DFL or SIG_IGN, and two flags.
fn action(signal: Signal) -> (usize, libc::c_int) {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null pointer asks for the action and changes none.
    let outcome = unsafe { libc::sigaction(signal as i32, ptr::null(), action.as_mut_ptr()) };
    assert_eq!(outcome, 0);
    // SAFETY: the call has filled it.
    let action = unsafe { action.assume_init() };
    (action.sa_sigaction, action.sa_flags & (libc::SA_RESTART | libc::SA_ONSTACK))
}

/// From outside, as `kill` on a shell does it.
fn send(signal: Signal) {
    kill(Pid::this(), signal).unwrap();
}

#[test]
fn a_signal_calls_a_function_on_the_loop() {
    each_poller!().run(|| {
        for kind in notifier_kinds() {
            let (arrived, arrivals) = mpsc::channel();
            let init = move |event_loop: &EventLoop| {
                event_loop.on_signal(Signal::SIGUSR1, move |event_loop, signal| {
                    assert!(event_loop.handle().is_loop_thread());
                    arrived.send(signal).unwrap();
                })?;
                Ok(())
            };
            let builder = EventLoop::builder().notifiers(*kind);
            let thread = LoopThread::spawn("test-loop", builder, init).unwrap();
            for _ in 0..50 {
                send(Signal::SIGUSR1);
                assert_eq!(within(&arrivals), Signal::SIGUSR1);
            }
            thread.join().unwrap();
        }
    });
}

#[test]
fn a_signal_before_run_is_not_lost() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        event_loop.on_signal(Signal::SIGTERM, |event_loop, _| event_loop.quit()).unwrap();
        send(Signal::SIGTERM);
        run(&event_loop);
    });
}

#[test]
fn each_signal_calls_its_own_functions() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        for (name, signal) in
            [("one", Signal::SIGUSR1), ("two", Signal::SIGUSR2), ("also two", Signal::SIGUSR2)]
        {
            let seen = seen.clone();
            let call = move |event_loop: &EventLoop, got| {
                seen.push((name, got));
                event_loop.run_after(A_WHILE, EventLoop::quit);
            };
            event_loop.on_signal(signal, call).unwrap();
        }
        event_loop.run_after(Duration::ZERO, |_| raise(Signal::SIGUSR2).unwrap());
        run(&event_loop);
        assert_eq!(seen.take(), [("two", Signal::SIGUSR2), ("also two", Signal::SIGUSR2)]);
        assert!(event_loop.metrics().turns < FEW_TURNS);
    });
}

#[test]
fn the_previous_action_comes_back() {
    each_poller!().run(|| {
        let default = action(Signal::SIGUSR1);
        set_previous(Signal::SIGUSR2, SigHandler::Handler(do_nothing));
        let own = action(Signal::SIGUSR2);
        set_previous(Signal::SIGHUP, SigHandler::SigIgn);
        let ignored = action(Signal::SIGHUP);
        let all = [(Signal::SIGUSR1, default), (Signal::SIGUSR2, own), (Signal::SIGHUP, ignored)];
        let back = || all.iter().all(|(signal, before)| action(*signal) == *before);
        let taken = || all.iter().all(|(signal, before)| action(*signal) != *before);
        let set = |event_loop: &EventLoop| {
            all.map(|(signal, _)| event_loop.on_signal(signal, |_, _| {}).unwrap())
        };

        // When it is removed, which helps once.
        let event_loop = EventLoop::new().unwrap();
        let ids = set(&event_loop);
        assert!(taken());
        assert!(ids.iter().all(|id| event_loop.remove_signal(*id)));
        assert!(back());
        assert!(ids.iter().all(|id| !event_loop.remove_signal(*id)));

        // With the last of several functions.
        let (first, second) = (set(&event_loop), set(&event_loop));
        assert!(first.iter().all(|id| event_loop.remove_signal(*id)));
        assert!(taken());
        assert!(second.iter().all(|id| event_loop.remove_signal(*id)));
        assert!(back());

        // When the loop ends, and when it never ran.
        set(&event_loop);
        event_loop.quit();
        run(&event_loop);
        assert!(back());
        drop(event_loop);
        let event_loop = EventLoop::new().unwrap();
        set(&event_loop);
        assert!(taken());
        drop(event_loop);
        assert!(back());

        // And it works: this would end the process otherwise.
        send(Signal::SIGUSR2);
        send(Signal::SIGHUP);
    });
}

#[test]
fn functions_of_a_signal_may_remove_themselves_and_each_other() {
    each_poller!().run(|| {
        set_previous(Signal::SIGUSR1, SigHandler::SigIgn);
        let event_loop = EventLoop::new().unwrap();
        let seen = Record::new();
        let ids: Rc<Cell<[Option<SignalId>; 3]>> = Rc::default();
        let all = [0, 1, 2].map(|i| {
            let (seen, ids) = (seen.clone(), Rc::clone(&ids));
            let call = move |event_loop: &EventLoop, _| {
                seen.push(i);
                // The first removes itself and the second, which has not been called yet.
                if seen.len() == 1 {
                    let [mine, other, _] = ids.get().map(Option::unwrap);
                    assert!(event_loop.remove_signal(mine) && event_loop.remove_signal(other));
                    let seen = seen.clone();
                    let new = move |event_loop: &EventLoop, _| {
                        seen.push(3);
                        event_loop.quit();
                    };
                    event_loop.on_signal(Signal::SIGUSR1, new).unwrap();
                    event_loop.defer(|_| send(Signal::SIGUSR1));
                }
            };
            Some(event_loop.on_signal(Signal::SIGUSR1, call).unwrap())
        });
        ids.set(all);
        send(Signal::SIGUSR1);
        run(&event_loop);
        assert_eq!(seen.take(), [0, 2, 2, 3]);
    });
}

#[test]
fn one_loop_of_the_process_has_a_signal() {
    each_poller!().run(|| {
        let ask =
            |event_loop: &EventLoop| event_loop.on_signal(Signal::SIGUSR1, |_, _| {}).map(drop);
        let first = EventLoop::new().unwrap();
        let id = first.on_signal(Signal::SIGUSR1, |_, _| {}).unwrap();
        let handled = action(Signal::SIGUSR1);

        let second = LoopThread::spawn("second", EventLoop::builder(), ask);
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(action(Signal::SIGUSR1), handled, "the first one still has it");

        first.remove_signal(id);
        LoopThread::spawn("second", EventLoop::builder(), ask).unwrap().join().unwrap();
        ask(&first).unwrap();
    });
}

#[test]
fn signals_that_can_not_be_caught_are_an_error() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        for signal in [Signal::SIGKILL, Signal::SIGSTOP] {
            for _ in 0..2 {
                let error = event_loop.on_signal(signal, |_, _| {}).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                let text = error.to_string();
                assert!(text.contains(signal.as_str()), "{text}");
            }
        }
        // The loop is none the worse for it.
        event_loop.on_signal(Signal::SIGUSR1, |event_loop, _| event_loop.quit()).unwrap();
        send(Signal::SIGUSR1);
        run(&event_loop);
    });
}

/// What the kernel refuses to count further does not wake by being written to.
#[test]
fn b43_a_signal_wakes_a_loop_whose_eventfd_is_saturated() {
    each_poller!().run(|| {
        let event_loop = EventLoop::new().unwrap();
        if event_loop.poller_kind() == PollerKind::Kqueue {
            // It has none.
            return;
        }
        event_loop.on_signal(Signal::SIGUSR1, |event_loop, _| event_loop.quit()).unwrap();
        let fds = open_fds();
        let (fd, _) = fds.iter().find(|(_, kind)| kind.contains("[eventfd]")).unwrap();
        // SAFETY: the loop keeps it open.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.parse::<RawFd>().unwrap()) };
        nix::unistd::write(fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        // After the turn in which that was noticed.
        event_loop.run_after(Duration::from_millis(50), |_| send(Signal::SIGUSR1));
        run(&event_loop);
    });
}

/// A loop that handles SIGUSR1, and a thread that has got one. Under [`HELD_UP`] the handler that
/// the kernel calls there is stopped just before it writes to the loop's descriptor.
fn held_up_in_the_handler() -> (EventLoop, thread::JoinHandle<()>) {
    // Should the signal come later than all the rest.
    set_previous(Signal::SIGUSR1, SigHandler::SigIgn);
    let event_loop = EventLoop::new().unwrap();
    event_loop.on_signal(Signal::SIGUSR1, |_, _| {}).unwrap();
    let (next, is_next) = mpsc::channel();
    let signalled = thread::spawn(move || {
        next.send(()).unwrap();
        raise(Signal::SIGUSR1).unwrap();
    });
    within(&is_next);
    // Time to get there. If it does not, the test has an easy time.
    thread::park_timeout(Duration::from_millis(100));
    (event_loop, signalled)
}

/// Each thread's first write takes 300 ms to begin.
const HELD_UP: [&str; 7] =
    ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=write:delay_enter=300000:when=1"];

/// The loop ends meanwhile, and its descriptor's number gets a new owner.
#[test]
fn a_late_signal_does_not_write_to_a_descriptor_of_somebody_else() {
    each_poller!().under(&HELD_UP).run(|| {
        let (event_loop, signalled) = held_up_in_the_handler();
        drop(event_loop);
        let (first, second) = (bare_loop::pair(), bare_loop::pair());
        signalled.join().unwrap();
        for mut socket in [&first.0, &first.1, &second.0, &second.1] {
            let received = socket.read(&mut [0; 8]).map_err(|e| e.kind());
            assert_eq!(received, Err(io::ErrorKind::WouldBlock));
        }
    });
}

/// In the child that thread does not exist, so nobody will ever come out of the handler there.
#[test]
fn a_forked_child_does_not_wait_for_a_signal_handler_it_left_behind() {
    each_poller!().under(&HELD_UP).run(|| {
        let (event_loop, signalled) = held_up_in_the_handler();
        let mut event_loop = Some(event_loop);
        let child = forked(|| drop(event_loop.take()));
        assert_exited_well(child);
        signalled.join().unwrap();
    });
}

/// Handlers are gone with exec, but ignored signals and descriptors would be passed on, and the
/// mask by those who spawn by other means.
#[test]
fn b64_a_child_process_inherits_neither_descriptors_nor_signal_settings() {
    each_poller!().run(|| {
        proc::is_wanted();
        let child = || {
            let script = "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ls /proc/self/fd | wc -l";
            let output = Command::new("sh").args(["-c", script]).output().unwrap();
            assert!(output.status.success());
            String::from_utf8(output.stdout).unwrap()
        };
        let (before, mask) = (child(), SigSet::thread_get_mask().unwrap());
        for kind in notifier_kinds() {
            let event_loop = EventLoop::builder().notifiers(*kind).build().unwrap();
            for signal in [Signal::SIGUSR1, Signal::SIGTERM, Signal::SIGCHLD, Signal::SIGPIPE] {
                event_loop.on_signal(signal, |_, _| {}).unwrap();
            }
            assert_eq!(child(), before, "{kind:?}");
            assert_eq!(SigSet::thread_get_mask().unwrap(), mask, "{kind:?}");
            // Nor does a child that ends disturb the loop.
            event_loop.run_after(A_WHILE, EventLoop::quit);
            run(&event_loop);
            assert!(event_loop.metrics().turns < FEW_TURNS);
        }
    });
}

/// Whatever has the library open descriptors: no program that is started meanwhile gets them.
#[test]
fn b64_every_descriptor_is_close_on_exec() {
    each_poller!().run(|| {
        proc::is_wanted();
        let before = open_fds();
        for kind in notifier_kinds() {
            let (tell, told) = mpsc::channel();
            let path = std::env::temp_dir().join(format!("ruduo-64-{}.sock", std::process::id()));
            let builder = EventLoop::builder().notifiers(*kind);
            let running = serve_on(builder, move |event_loop| {
                let accepted = tell.clone();
                let server = TcpServer::builder(event_loop)
                    .acceptor_per_loop(true)
                    .bind("127.0.0.1:0")?
                    .threads(2)
                    .on_connect(move |_| accepted.send(()).unwrap())
                    .on_message(|_, _| {})
                    .start()?;
                let accepted = tell.clone();
                let unix = UnixServer::bind(event_loop, &path)?
                    .on_connect(move |_| accepted.send(()).unwrap())
                    .on_message(|_, _| {})
                    .start()?;
                for target in [server.local_addr(), unix.local_addr()] {
                    let connected = tell.clone();
                    Client::connect(event_loop, target.clone())
                        .on_connect(move |_| connected.send(()).unwrap())
                        .on_message(|_, _| {})
                        .start()?;
                }
                Ok(server)
            });
            // Both ends of both connections.
            (0..4).for_each(|_| within(&told));
            let opened: Vec<_> =
                open_fds().into_iter().filter(|(fd, _)| !before.contains_key(fd)).collect();
            let count = |what: &str| opened.iter().filter(|(_, to)| to.starts_with(what)).count();
            assert!(count("socket:") >= 7 && count("/dev/null") == 3, "{opened:?}");
            for (fd, to) in &opened {
                // It may be gone: the one of an attempt, for a connection has one of its own.
                let Ok(info) = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")) else {
                    continue;
                };
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
                let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
                assert!(flags & libc::O_CLOEXEC != 0, "{to} would be inherited");
            }
            drop(running);
        }
    });
}
