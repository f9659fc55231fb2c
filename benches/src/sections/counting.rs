//! `instructions` and `syscalls`: what a message costs the server, as a count. The same work is done
//! twice, a little of it and a lot; the difference is free of what it costs to start and to end.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::contestants::{Ready, Task};
use crate::load::lockstep::{self, Exchange};
use crate::process::{Around, Process, told};

/// What counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Instructions of user space, by callgrind.
    Instructions,
    /// System calls, by strace.
    Syscalls,
}

/// What is done a counted number of times.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    kind: Kind,
    connections: usize,
    few: usize,
    many: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    Echo,
    Churn,
    Http,
    Datagrams,
}

/// What is counted, the cheapest first.
pub(crate) const WORK: [Work; 5] = [
    Work::new("message, 100 connections", Kind::Echo, 100, 2_000, 22_000),
    Work::new("message, 1 connection", Kind::Echo, 1, 2_000, 22_000),
    Work::new("connect, echo, reset", Kind::Churn, 50, 500, 3_500),
    Work::new("HTTP request, 100 connections", Kind::Http, 100, 2_000, 22_000),
    Work::new("datagram, 32 waiting", Kind::Datagrams, 32, 1_280, 12_800),
];

impl Counter {
    pub(crate) fn section(self) -> &'static str {
        match self {
            Counter::Instructions => "instructions",
            Counter::Syscalls => "syscalls",
        }
    }

    pub(crate) fn metric(self) -> &'static str {
        match self {
            Counter::Instructions => "user instructions each",
            Counter::Syscalls => "system calls each",
        }
    }

    pub(crate) fn tool(self) -> &'static str {
        match self {
            Counter::Instructions => "valgrind",
            Counter::Syscalls => "strace",
        }
    }

    fn around(self, file: PathBuf) -> Around {
        match self {
            Counter::Instructions => Around::Callgrind(file),
            Counter::Syscalls => Around::Strace(file),
        }
    }

    /// How much one more piece of `work` costs the contestant.
    pub(crate) fn slope(self, contestant: &Ready, work: &Work) -> io::Result<f64> {
        let few = self.total(contestant, work, work.few)?;
        let many = self.total(contestant, work, work.many)?;
        Ok((many as f64 - few as f64) / (work.many - work.few) as f64)
    }

    fn total(self, contestant: &Ready, work: &Work, count: usize) -> io::Result<u64> {
        let file = std::env::temp_dir().join(format!("ruduo-bench-{}.count", std::process::id()));
        let mut process = contestant.start(None, &self.around(file.clone()))?;
        let done = process.address().and_then(|address| work.run(&process, address, count));
        let stopped = process.stop();
        let total = done.and(stopped).and_then(|()| self.read(&file));
        // It is not there if the tool could not start.
        let _gone = std::fs::remove_file(&file);
        total
    }

    fn read(self, file: &Path) -> io::Result<u64> {
        let text = std::fs::read_to_string(file)
            .map_err(|e| told(e, format!("{} has left no count", self.tool())))?;
        let total = match self {
            Counter::Instructions => callgrind_total(&text),
            Counter::Syscalls => strace_total(&text),
        };
        total.ok_or_else(|| io::Error::other(format!("no count in what {} wrote", self.tool())))
    }
}

impl Work {
    const fn new(
        name: &'static str,
        kind: Kind,
        connections: usize,
        few: usize,
        many: usize,
    ) -> Work {
        Work { name, kind, connections, few, many }
    }

    pub(crate) fn task(&self) -> Task {
        match self.kind {
            Kind::Echo | Kind::Churn => Task::Echo,
            Kind::Http => Task::Http,
            Kind::Datagrams => Task::Udp,
        }
    }

    fn run(&self, process: &Process, server: SocketAddr, count: usize) -> io::Result<()> {
        match self.kind {
            Kind::Echo => lockstep::messages(server, Exchange::Echo(16), self.connections, count),
            Kind::Churn => lockstep::churn(server, self.connections, count),
            Kind::Http => lockstep::messages(server, Exchange::Http, self.connections, count),
            Kind::Datagrams => lockstep::datagrams(server, self.connections, count, process),
        }
    }
}

fn callgrind_total(text: &str) -> Option<u64> {
    text.lines()
        .rev()
        .find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// The last line: `100.00 SECONDS USECS/CALL CALLS [ERRORS] total`.
fn strace_total(text: &str) -> Option<u64> {
    let words: Vec<&str> =
        text.lines().rev().find(|line| line.ends_with(" total"))?.split_whitespace().collect();
    words.get(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_found() {
        assert_eq!(callgrind_total("events: Ir\nfn=main\n1 2\ntotals: 123 4\n"), Some(123));
        assert_eq!(callgrind_total("events: Ir\n"), None);
        let head = "% time     seconds  usecs/call     calls    errors syscall\n";
        let with_errors = "100.00    0.012345           3      4061        12 total\n";
        let without = "100.00    0.012345           3      4061           total\n";
        assert_eq!(strace_total(&format!("{head}{with_errors}")), Some(4061));
        assert_eq!(strace_total(&format!("{head}{without}")), Some(4061));
        assert_eq!(strace_total(head), None);
    }
}
