//! The README's figures: one chart and one table, from the same run as the report, written between
//! two marks so that nobody has to copy a number.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use crate::contestants::workspace;
use crate::process::told;
use crate::record::Record;
use crate::report::number;

const BEGIN: &str = "<!-- figures: written by ruduo-bench report -->\n";
const END: &str = "<!-- end of figures -->\n";

/// A column: where its figures are.
struct Column {
    title: &'static str,
    section: &'static str,
    case: &'static str,
    metric: &'static str,
}

const COLUMNS: &[Column] = &[
    Column {
        title: "instructions per message",
        section: "instructions",
        case: "message, 100 connections",
        metric: "user instructions each",
    },
    Column {
        title: "system calls per message",
        section: "syscalls",
        case: "message, 100 connections",
        metric: "system calls each",
    },
    Column {
        title: "messages/s, by hand = 1",
        section: "pingpong",
        case: "100 x 16 B",
        metric: "messages/s",
    },
    Column {
        title: "bytes per idle connection",
        section: "idle",
        case: "9000 connections",
        metric: "resident bytes each, silent",
    },
    Column {
        title: "timer added and cancelled, ns",
        section: "timers",
        case: "add and cancel",
        metric: "ns of CPU each",
    },
];

/// Writes them, if all that they need has been measured.
pub(crate) fn write(results: &Path) -> io::Result<()> {
    let mut columns = Vec::new();
    for column in COLUMNS {
        match Record::load(results, column.section)? {
            Some(record) => columns.push((column, record)),
            None => return Ok(()),
        }
    }
    let path = workspace().join("README.md");
    let text = std::fs::read_to_string(&path).and_then(|readme| {
        replace(&readme, &block(&columns))
            .ok_or_else(|| io::Error::other("the marks of the figures are gone"))
    });
    text.and_then(|text| std::fs::write(&path, text))
        .map_err(|e| told(e, format!("cannot bring {} up to date", path.display())))
}

fn block(columns: &[(&Column, Record)]) -> String {
    let mut text = String::from(
        "![Instructions of user space per message](benches/results/instructions.svg)\n\n\
         | 16-byte messages, 100 connections |",
    );
    for (column, _) in columns {
        let _infallible = write!(text, " {} |", column.title);
    }
    text.push_str("\n|---|");
    text.push_str(&"--:|".repeat(columns.len()));
    text.push('\n');
    let contestants = columns.iter().find(|(column, _)| column.section == "pingpong");
    for contestant in contestants.map(|(_, record)| record.contestants()).unwrap_or_default() {
        if contestant.ends_with("(again)") {
            continue;
        }
        let _infallible = write!(text, "| {contestant} |");
        for (Column { case, metric, .. }, record) in columns {
            let figures = if record.is_relative(case, metric) {
                record.ratios(case, metric, contestant)
            } else {
                record.figures(case, metric, contestant)
            };
            let cell = figures.map_or("-".into(), |figures| number(figures.median));
            let _infallible = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    for (column, record) in columns {
        if let Some(noise) = record.noise(column.case, column.metric)
            && record.is_relative(column.case, column.metric)
        {
            let _infallible = write!(
                text,
                "\nThe hand-written loop, measured twice, differed from itself by up to {:.0} % in {}.\n",
                noise * 100.0,
                column.metric
            );
        }
    }
    text
}

/// The README with `block` between its marks.
fn replace(readme: &str, block: &str) -> Option<String> {
    let (before, rest) = readme.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{block}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_changes() {
        let readme = format!("a\n{BEGIN}old\n{END}b\n");
        assert_eq!(replace(&readme, "new\n"), Some(format!("a\n{BEGIN}new\n{END}b\n")));
        assert_eq!(replace("no marks", "new\n"), None);
    }
}
