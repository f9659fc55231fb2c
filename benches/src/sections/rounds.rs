//! Measuring what varies: the contestants take turns, round by round, so that what the machine does
//! meanwhile falls on all of them, and the first of them takes part twice.

use std::io;

use crate::contestants::{BY_HAND, Field, Ready, Task, field};
use crate::record::{Record, Sample, again};

use super::Plan;

/// The figures of one turn: what was measured, with its unit, and the value.
pub(crate) type Figures = Vec<(String, f64)>;

/// Has everybody do each of the cases once per round. Who fails is out of that case.
pub(crate) fn take_turns<C>(
    plan: &Plan,
    section: &str,
    task: Task,
    cases: &[(String, C)],
    measure: impl Fn(&Ready, &C) -> io::Result<Figures>,
) -> io::Result<Record> {
    let mut record = Record { section: section.into(), ..Record::default() };
    let Field { ready, missing } = field(task, |name| name == BY_HAND || plan.wants(name))?;
    record.missing(missing);
    let mut turns: Vec<(String, &Ready)> = ready.iter().map(|r| (r.name.into(), r)).collect();
    if let Some(first) = ready.first() {
        // Far from its other turn in the round, as two contestants are from each other.
        turns.insert(turns.len().div_ceil(2), (again(first.name), first));
    }
    for (case, what) in cases {
        let mut out: Vec<String> = Vec::new();
        for round in 1..=plan.rounds {
            eprintln!("{section}: {case}: round {round} of {}", plan.rounds);
            for (name, contestant) in &turns {
                if out.contains(name) {
                    continue;
                }
                match measure(contestant, what) {
                    Ok(figures) => {
                        for (metric, value) in figures {
                            record.samples.push(Sample {
                                case: case.clone(),
                                metric,
                                contestant: name.clone(),
                                round,
                                value,
                            });
                        }
                    }
                    Err(e) => {
                        record.skipped(name, &format!("{case}: {e}"));
                        out.push(name.clone());
                    }
                }
            }
        }
    }
    Ok(record)
}
