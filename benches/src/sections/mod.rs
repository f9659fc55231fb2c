//! The sections: what can be measured. Each makes a record.

mod alone;
pub(crate) mod ceilings;
pub(crate) mod counting;
mod options;
mod rounds;
mod serving;

use std::io;

use crate::contestants::{Field, field};
use crate::process::is_installed;
use crate::record::{Record, Sample};
use counting::{Counter, WORK};

/// A section that makes a record, with what the report says of it.
pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) about: &'static str,
    /// The metrics that are drawn.
    pub(crate) charted: &'static [&'static str],
    pub(crate) measure: fn(&Plan) -> io::Result<Record>,
}

/// In the order in which `all` measures them.
pub(crate) const SECTIONS: &[Section] = &[
    Section {
        name: "pingpong",
        title: "Ping-pong",
        about: "Connections x bytes of a message (x messages in flight on each, where it is not \
                one). The server is bound to one CPU, the client to the other.",
        charted: &["messages/s"],
        measure: serving::pingpong,
    },
    Section {
        name: "churn",
        title: "Connections that live for one message",
        about: "Connect, 16 bytes there and back, reset; so many at once.",
        charted: &["connections/s"],
        measure: serving::churn,
    },
    Section {
        name: "idle",
        title: "Idle connections",
        about: "How much the server's resident memory grows with each connection, and how much of \
                that stays when all are closed.",
        charted: &["resident bytes each, silent", "resident bytes each, after 1 KiB was echoed"],
        measure: serving::idle,
    },
    Section {
        name: "udp",
        title: "Datagrams",
        about: "Sockets x bytes of a datagram (x datagrams in flight on each, where it is not one). By \
                hand it is a system call for each datagram, recvfrom and sendto; batched it is \
                recvmmsg and sendmmsg.",
        charted: &["datagrams/s", "server CPU each, µs"],
        measure: serving::datagrams,
    },
    Section {
        name: "timers",
        title: "Timers",
        about: "A million timers: CPU time to add one, to cancel one, to add and cancel one while \
                10,000 others wait, and from adding one to its callback. tokio, asio and ruduo's \
                `run_after` read the clock for each. libevent reads a coarse one; libuv, and ruduo by \
                `run_at(now() + delay)`, count from the time of the loop's turn.",
        charted: &["ns of CPU each"],
        measure: alone::timers,
    },
    Section {
        name: "tasks",
        title: "Tasks from other threads",
        about: "Tasks that one thread posts to a loop on another, and round trips between two \
                loops that share a CPU.",
        charted: &["tasks/s", "round trips/s"],
        measure: alone::tasks,
    },
    Section {
        name: "http",
        title: "HTTP",
        about: "`http_hello` and others answer `GET /` with a short text and the date, driven by \
                wrk with one thread.",
        charted: &["requests/s"],
        measure: alone::http,
    },
    Section {
        name: "options",
        title: "Options",
        about: "What can be switched on, beside the hand-written loop. Connections that live for one \
                message, 50 at once, for two loops that serve (the hand-written one is one): one of \
                them accepts for both, or each for itself. And one connection whose server sleeps \
                between messages, looks for a while first, or, by hand, never sleeps.",
        charted: &["connections/s", "messages/s"],
        measure: options::options,
    },
    Section {
        name: "instructions",
        title: "Instructions",
        about: "Instructions of user space that one more message, connection, request or datagram of 16 \
                bytes costs the server, counted by callgrind: the difference between little work and \
                much. Exact, and what to steer by.",
        charted: &["user instructions each"],
        measure: |plan| count(plan, Counter::Instructions),
    },
    Section {
        name: "syscalls",
        title: "System calls",
        about: "The same in system calls, counted by strace.",
        charted: &["system calls each"],
        measure: |plan| count(plan, Counter::Syscalls),
    },
];

/// Where servers run, and where their load comes from.
const SERVER_CPU: usize = 0;
const CLIENT_CPU: usize = 1;

/// How to measure, as the command line has it.
pub(crate) struct Plan {
    /// Only contestants whose names contain one of these; all, if it is empty.
    pub(crate) only: Vec<String>,
    /// How often everybody has a turn, where figures vary.
    pub(crate) rounds: usize,
}

impl Plan {
    fn wants(&self, contestant: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| contestant.contains(part))
    }
}

/// Counts what each piece of work costs each contestant.
fn count(plan: &Plan, counter: Counter) -> io::Result<Record> {
    let mut record = Record { section: counter.section().into(), ..Record::default() };
    if !is_installed(counter.tool()) {
        eprintln!("SKIPPED: {}: there is no {} here", counter.section(), counter.tool());
        return Ok(record);
    }
    let mut out = Vec::new();
    for work in &WORK {
        let Field { ready, missing } = field(work.task(), |name| plan.wants(name))?;
        record.missing(missing);
        for contestant in &ready {
            if out.contains(&contestant.name) {
                continue;
            }
            let what = format!("{} per {}", counter.section(), work.name);
            match counter.slope(contestant, work) {
                Ok(value) => {
                    eprintln!("{what}: {} {value:.2}", contestant.name);
                    record.samples.push(Sample {
                        case: work.name.into(),
                        metric: counter.metric().into(),
                        contestant: contestant.name.into(),
                        round: 1,
                        value,
                    });
                }
                // What the tool cannot follow once it cannot follow at all.
                Err(e) => {
                    record.skipped(contestant.name, &format!("{what}: {e}"));
                    out.push(contestant.name);
                }
            }
        }
    }
    Ok(record)
}
