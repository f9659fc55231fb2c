//! The chat example, end to end: a room on several loops, its members, and what each of them hears.

#![allow(clippy::unwrap_used)]

mod common;
#[allow(dead_code)]
#[path = "../examples/chat/protocol.rs"]
mod protocol;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::Command;
use std::rc::Rc;

use common::program::{Program, binary};
use common::{allow_descriptors, connect, read_n, read_to_end, within};
use nix::sys::signal::Signal;
use protocol::{EVENTS, Event, TEXTS};
use ruduo::{
    Buffer, CloseReason, Connection, ConnectionHandle, EventLoop, Handler, PanicPolicy, TcpClient,
};

/// What the members of a test have in common.
#[derive(Default)]
struct Company {
    /// How many have been welcomed.
    welcomed: Cell<usize>,
    /// Messages heard, by all members together.
    heard: Cell<usize>,
    acknowledged: Cell<u64>,
    /// The company is content, and the loop quits, when it has heard and been told so much.
    expected: Cell<(usize, u64)>,
    joined: Cell<usize>,
    /// What is done when all have joined.
    on_joined: RefCell<Option<Box<dyn FnOnce()>>>,
}

impl Company {
    fn check(&self, event_loop: &EventLoop) {
        if self.welcomed.get() == self.joined.get()
            && let Some(begin) = self.on_joined.take()
        {
            begin();
        }
        let (heard, acknowledged) = self.expected.get();
        assert!(self.heard.get() <= heard, "something was heard twice");
        if self.heard.get() == heard && self.acknowledged.get() == acknowledged {
            event_loop.quit();
        }
    }
}

/// A member that notes what it hears: of each sender, one message after the other.
struct Member {
    company: Rc<Company>,
    heard_of: BTreeMap<u64, u64>,
    acknowledged: u64,
}

impl Handler for Member {
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        while let Some(frame) = EVENTS.decode(conn, input) {
            match Event::decode(frame).unwrap() {
                Event::Welcome { .. } => self.company.welcomed.update(|n| n + 1),
                Event::Message { from, text } => {
                    let number: u64 = std::str::from_utf8(text).unwrap().parse().unwrap();
                    let next = self.heard_of.entry(from).or_default();
                    assert_eq!(number, *next, "the next message of {from}");
                    *next += 1;
                    self.company.heard.update(|n| n + 1);
                }
                Event::Heard { count } => {
                    self.acknowledged += 1;
                    assert_eq!(count, self.acknowledged, "acknowledgements in order");
                    self.company.acknowledged.update(|n| n + 1);
                }
            }
        }
        self.company.check(conn.event_loop());
    }

    fn on_close(&mut self, _: &Connection, reason: &CloseReason) {
        let ended = matches!(reason, CloseReason::LoopEnded) || reason.is_clean();
        assert!(ended, "{reason}");
    }
}

fn member(event_loop: &EventLoop, room: SocketAddr, company: &Rc<Company>) -> ConnectionHandle {
    company.joined.update(|n| n + 1);
    let company = company.clone();
    let member = Member { company, heard_of: BTreeMap::new(), acknowledged: 0 };
    TcpClient::from_stream(event_loop, connect(room)).unwrap().serve(|_| member).unwrap()
}

/// Messages that members of a test say: their numbers.
fn say(member: &ConnectionHandle, numbers: std::ops::Range<u64>) {
    for number in numbers {
        member.send_buffer(&mut TEXTS.encode(number.to_string()).unwrap()).unwrap();
    }
}

/// `members` are in a room on `threads` loops; the first `speakers` of them say so many `messages`
/// each. Everyone hears everything exactly once, each speaker's messages in order.
fn everybody_hears_everything(members: usize, threads: &str, speakers: usize, messages: u64) {
    let room = Program::serve("chat", &["--threads", threads]);
    // What a member finds wrong ends the test at once.
    let event_loop = EventLoop::builder().panic_policy(PanicPolicy::Abort).build().unwrap();
    let company = Rc::new(Company::default());
    company.expected.set((members * speakers * messages as usize, speakers as u64 * messages));
    let all: Vec<_> = (0..members).map(|_| member(&event_loop, room.addr(), &company)).collect();
    let begin = move || all[..speakers].iter().for_each(|speaker| say(speaker, 0..messages));
    company.on_joined.replace(Some(Box::new(begin)));
    event_loop.run().unwrap();
    assert_eq!(company.heard.get(), company.expected.get().0);
    drop(event_loop);
    room.ends_well_on(Signal::SIGTERM);
}

#[test]
fn a_thousand_members_on_four_loops_hear_every_message_once_and_in_order() {
    // This process and the room have a descriptor for each.
    let test = alone!();
    if !allow_descriptors(1_100) {
        return test.skip("1,100 descriptors are more than are allowed here");
    }
    test.run(|| everybody_hears_everything(1000, "4", 50, 20));
}

#[test]
fn a_room_on_its_own_loop_is_no_different() {
    alone!().run(|| everybody_hears_everything(20, "0", 20, 50));
}

#[test]
fn who_says_much_at_once_waits_until_it_is_heard() {
    alone!().run(|| everybody_hears_everything(3, "2", 1, 5_000));
}

/// Reads events from a plain socket.
struct Ear {
    stream: TcpStream,
}

impl Ear {
    fn join(room: &Program) -> Ear {
        let ear = Ear { stream: room.connect() };
        assert!(ear.hear().starts_with(b"W"));
        ear
    }

    fn hear(&self) -> Vec<u8> {
        let length = read_n(&self.stream, 4);
        read_n(&self.stream, u32::from_be_bytes(length.try_into().unwrap()) as usize)
    }

    fn say(&self, text: &[u8]) {
        (&self.stream).write_all(TEXTS.encode(text).unwrap().readable()).unwrap();
    }

    fn is_told(&self, count: u64) -> bool {
        loop {
            let event = self.hear();
            if let Event::Heard { count: told } = Event::decode(&event).unwrap() {
                return told == count;
            }
        }
    }
}

#[test]
fn members_may_come_and_go_meanwhile() {
    alone!().run(|| {
        let room = Program::serve("chat", &["--threads", "3"]);
        let (speaker, stays) = (Ear::join(&room), Ear::join(&room));
        for round in 0..100_u64 {
            let passer_by = Ear::join(&room);
            speaker.say(round.to_string().as_bytes());
            match round % 4 {
                0 => drop(passer_by),
                1 => common::reset(passer_by.stream),
                2 => passer_by.stream.shutdown(Shutdown::Both).unwrap(),
                _ => {
                    let event = passer_by.hear();
                    let Event::Message { text, .. } = Event::decode(&event).unwrap() else {
                        panic!("{event:?}");
                    };
                    assert_eq!(text, round.to_string().as_bytes());
                }
            }
            assert!(speaker.is_told(round + 1), "acknowledged although members leave");
            let event = stays.hear();
            let Event::Message { text, .. } = Event::decode(&event).unwrap() else {
                panic!("{event:?}");
            };
            assert_eq!(text, round.to_string().as_bytes());
        }
        drop((speaker, stays));
        room.ends_well_on(Signal::SIGINT);
    });
}

/// Talks to one who does not listen until that one is cut. The speaker hears it too. Returns how
/// many messages that took.
fn cut_by_talking(room: &Program, speaker: &Ear) -> u64 {
    // More than the kernel's buffers and the backlog hold.
    let text = [b'x'; 4000];
    for said in 0..100_000 {
        if room.open_sockets() < 3 {
            return said;
        }
        speaker.say(&text);
        assert!(speaker.is_told(said + 1));
    }
    panic!("it is not cut");
}

#[test]
fn a_member_who_does_not_listen_is_cut_and_the_others_go_on() {
    alone!().run(|| {
        let room = Program::serve("chat", &["--threads", "2"]);
        let (speaker, deaf) = (Ear::join(&room), Ear::join(&room));
        let said = cut_by_talking(&room, &speaker);
        // What it had received before is still there, and then the end.
        let _ = read_to_end(&deaf.stream);
        speaker.say(b"still here");
        assert!(speaker.is_told(said + 1));
        drop(speaker);
        let ended = room.ends_well_on(Signal::SIGTERM);
        assert!(ended.log.contains("is too slow"), "{}", ended.log);
    });
}

#[test]
fn what_breaks_the_protocol_ends_the_member_and_nobody_else() {
    alone!().run(|| {
        let room = Program::serve("chat", &[]);
        let stays = Ear::join(&room);
        for bad in [&b"\xff\xff\xff\xff"[..], b"\0\0\x0f\xa1too long by one"] {
            let mut member = Ear::join(&room);
            member.say(b"hello");
            member.stream.write_all(bad).unwrap();
            read_to_end(&member.stream).unwrap();
            // What it said before is heard.
            assert!(stays.hear().ends_with(b"hello"));
        }
        drop(stays);
        let ended = room.ends_well_on(Signal::SIGTERM);
        let why = "input refused: at byte 9: a frame of 4001 bytes, where 4000 are allowed";
        assert!(ended.log.contains(why), "{}", ended.log);
        assert!(ended.log.contains("a frame of 4294967295 bytes"), "{}", ended.log);
    });
}

/// The member's program.
fn join(room: &Program) -> Program {
    let mut command = Command::new(binary("chat"));
    let member = Program::spawn(command.args(["--join", &room.addr().to_string()]));
    let welcome = within(&member.lines);
    assert!(welcome.starts_with("you are member "), "{welcome}");
    member
}

#[test]
fn a_member_at_a_terminal_is_heard_before_it_leaves() {
    alone!().run(|| {
        let room = Program::serve("chat", &["--threads", "2"]);
        let (mut speaker, listener) = (join(&room), join(&room));
        speaker.stdin().write_all("gr\u{fc}\u{df} euch\n\x1b[2J\nthe last".as_bytes()).unwrap();
        speaker.close_stdin();
        let heard: Vec<_> = (0..3).map(|_| within(&listener.lines)).collect();
        assert_eq!(heard[0], "1: gr\u{fc}\u{df} euch");
        assert_eq!(heard[1], "1: \u{fffd}[2J", "nobody's terminal is controlled by others");
        assert_eq!(heard[2], "1: the last");
        let own: Vec<_> = speaker.lines.iter().collect();
        assert_eq!(own.last().unwrap(), "heard by everybody: 3");
        assert_eq!(speaker.wait().code, Some(0));

        listener.ends_well_on(Signal::SIGINT);
        let last = join(&room);
        room.ends_well_on(Signal::SIGTERM);
        assert_eq!(last.wait().code, Some(0), "the room closes");
    });
}

#[test]
fn a_member_with_much_to_say_is_heard_to_the_last_line() {
    const LINES: usize = 30_000;
    alone!().run(|| {
        let room = Program::serve("chat", &["--threads", "2"]);
        let mut speaker = join(&room);
        let text: String = (0..LINES).map(|i| format!("line {i} {}\n", "x".repeat(90))).collect();
        speaker.stdin().write_all(text.as_bytes()).unwrap();
        speaker.close_stdin();
        let lines: Vec<_> = speaker.lines.iter().collect();
        let heard = lines.iter().filter(|line| line.starts_with("1: line "));
        assert!(heard.zip(0..).all(|(line, i)| line.starts_with(&format!("1: line {i} "))));
        assert_eq!(lines.last().unwrap(), &format!("heard by everybody: {LINES}"));
        assert_eq!(lines.len(), 2 * LINES);
        assert_eq!(speaker.wait().code, Some(0));
    });
}

#[test]
fn a_member_that_is_cut_says_so() {
    alone!().run(|| {
        let room = Program::serve("chat", &["--threads", "2"]);
        let (member, speaker) = (join(&room), Ear::join(&room));
        member.signal(Signal::SIGSTOP);
        cut_by_talking(&room, &speaker);
        member.signal(Signal::SIGCONT);
        let ended = member.wait();
        assert_eq!(ended.code, Some(1), "{}", ended.log);
        let lines: Vec<_> = ended.log.lines().collect();
        assert!(
            matches!(lines[..], [line] if line.contains("thrown out of the room")),
            "{lines:?}"
        );
        drop(speaker);
        room.ends_well_on(Signal::SIGTERM);
    });
}

#[test]
fn a_room_that_is_not_there_gets_one_clear_line() {
    alone!().run(|| {
        let output = common::program::run("chat", &["--join", &common::nobody().to_string()]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
        assert!(text.contains("nobody listens"), "{text}");
    });
}
