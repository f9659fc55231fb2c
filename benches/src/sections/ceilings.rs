//! `ceilings`: counts what ruduo costs and compares it with what it may cost. Counts hardly move by
//! themselves, so that a change which makes the hot path heavier is seen here, on any machine.

use std::io;

use super::counting::{Counter, WORK};
use crate::contestants::{RUDUO, field, workspace};
use crate::process::is_installed;
use crate::record::{Record, Sample};

/// A count may be above its ceiling by this part of it: compilers differ.
const SLACK: f64 = 0.10;

/// False if something costs more than it may. With `accept` what is measured becomes the ceiling.
pub(crate) fn check(accept: bool) -> io::Result<bool> {
    let folder = workspace().join("benches");
    let old = Record::load(&folder, "ceilings")?.unwrap_or_default();
    let mut new = Record { section: "ceilings".into(), ..Record::default() };
    let mut holds = true;
    for counter in [Counter::Instructions, Counter::Syscalls] {
        if !is_installed(counter.tool()) {
            if accept {
                let what = format!("without {} half of the ceilings would be lost", counter.tool());
                return Err(io::Error::new(io::ErrorKind::NotFound, what));
            }
            println!("SKIPPED: {}: there is no {} here", counter.section(), counter.tool());
            continue;
        }
        for work in &WORK {
            for contestant in field(work.task(), |name| name == RUDUO)?.ready {
                let value = counter.slope(&contestant, work)?;
                let what = format!("{} per {}", counter.section(), work.name);
                let verdict = match old.figures(work.name, counter.metric(), RUDUO) {
                    _ if accept => String::new(),
                    None => {
                        holds = false;
                        ", which has NO CEILING".into()
                    }
                    Some(ceiling) => {
                        let most = ceiling.median * (1.0 + SLACK);
                        holds &= value <= most;
                        let relation = if value <= most { "within" } else { "ABOVE" };
                        format!(", {relation} {:.2} + {:.0} %", ceiling.median, SLACK * 100.0)
                    }
                };
                println!("{what}: {value:.2}{verdict}");
                new.samples.push(Sample {
                    case: work.name.into(),
                    metric: counter.metric().into(),
                    contestant: RUDUO.into(),
                    round: 1,
                    value,
                });
            }
        }
    }
    if accept {
        new.facts = vec![(
            "what ruduo may cost".into(),
            "`ruduo-bench ceilings --accept` writes this".into(),
        )];
        new.save(&folder)?;
    } else if !holds {
        println!(
            "If the new cost is worth it, say why in the commit and run: \
             cargo run -p ruduo-bench -- ceilings --accept"
        );
    }
    Ok(holds)
}
