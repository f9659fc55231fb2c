//! Measures ruduo beside other event loops, in one run, and says how sure it is.
//!
//! A contestant is a process of its own, from `servers/`. The load comes from `load/`, or from wrk
//! for HTTP. What to measure stands in `sections/`; each section makes a [`record::Record`].

mod charts;
mod contestants;
mod load;
mod machine;
mod process;
mod readme;
mod record;
mod report;
mod sections;

use std::io;
use std::process::ExitCode;

use lexopt::ValueExt;
use lexopt::prelude::{Long, Short, Value};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use sections::{Plan, SECTIONS};

const HELP: &str = "\
Measures ruduo beside other event loops.

Usage: ruduo-bench SECTION.. [--only NAME]..

Sections:
  pingpong      messages there and back: rate, latency, CPU of the server
  churn         connections that live for one message
  idle          memory per connection
  udp           datagrams there and back
  timers        CPU time to add, cancel, fire one of a million
  tasks         tasks from one thread to a loop, round trips between two loops
  http          http_hello and others, driven by wrk
  options       what acceptors of their own change, and what never sleeping would
  instructions  instructions of user space per message, connection, request, datagram (valgrind)
  syscalls      system calls per message, connection, request, datagram (strace)
  all           all of these
  report        measures nothing, but writes down again what has been measured
  ceilings      only ruduo, and fails if it costs 10 % more than benches/ceilings.tsv allows;
                --accept makes what is measured the new ceilings

  --only NAME   only contestants whose names contain NAME; what is found then goes to
                target/ruduo-bench/results and replaces nothing
  --rounds N    turns of each contestant, where figures vary [5]
  --help        this text

Results go to benches/results: REPORT.md, charts, and what each round gave; the README's figures
are brought up to date.";

enum Wanted {
    Help,
    Sections { names: Vec<String>, plan: Plan, accept: bool },
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "launch") {
        eprintln!("ruduo-bench: {}", process::launch(words));
        return ExitCode::FAILURE;
    }
    let result = match wanted() {
        Ok(Wanted::Help) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Ok(Wanted::Sections { names, plan, accept }) => {
            names.iter().try_fold(true, |good, name| Ok(run(name, &plan, accept)? && good))
        }
        Err(e) => {
            eprintln!("ruduo-bench: {e} (see --help)");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            let e: io::Error = e;
            eprintln!("ruduo-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn wanted() -> Result<Wanted, lexopt::Error> {
    let mut arguments = lexopt::Parser::from_env();
    let mut names: Vec<String> = Vec::new();
    let mut plan = Plan { only: Vec::new(), rounds: 5 };
    let mut accept = false;
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(Wanted::Help),
            Long("only") => plan.only.push(arguments.value()?.parse()?),
            Long("rounds") => plan.rounds = arguments.value()?.parse()?,
            Long("accept") => accept = true,
            Value(name) => names.push(name.parse()?),
            other => return Err(other.unexpected()),
        }
    }
    let known = |name: &str| {
        ["all", "report", "ceilings"].contains(&name) || SECTIONS.iter().any(|s| s.name == name)
    };
    if let Some(name) = names.iter().find(|name| !known(name)) {
        return Err(format!("there is no section '{name}'").into());
    }
    if plan.rounds == 0 {
        return Err("--rounds wants one at least".into());
    }
    if names.is_empty() {
        return Err("which section?".into());
    }
    Ok(Wanted::Sections { names, plan, accept })
}

/// False if what was measured is not as it must be.
fn run(name: &str, plan: &Plan, accept: bool) -> io::Result<bool> {
    if name == "ceilings" {
        return sections::ceilings::check(accept);
    }
    // Contestants inherit it; thousands of connections are thousands of descriptors.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let whole = plan.only.is_empty();
    let results = if whole {
        contestants::workspace().join("benches/results")
    } else {
        contestants::target_dir()?.join("ruduo-bench/results")
    };
    for section in SECTIONS.iter().filter(|section| name == "all" || name == section.name) {
        let mut record = (section.measure)(plan)?;
        record.facts.splice(0..0, machine::facts());
        record.save(&results)?;
    }
    report::write(&results)?;
    if whole {
        readme::write(&results)?;
    }
    println!("{}", results.join("REPORT.md").display());
    Ok(true)
}
