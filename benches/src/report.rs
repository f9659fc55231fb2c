//! Tables, in Markdown, of what the sections have recorded.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use crate::charts;
use crate::process::told;
use crate::record::{Record, again};
use crate::sections::SECTIONS;

const HEAD: &str = "\
# Measured

Written by `cargo run --release -p ruduo-bench -- all`; what each round gave stands beside this file
in `*.tsv`. [docs/performance.md](../../docs/performance.md) says how it was measured and what to
make of it.
";

/// Writes `REPORT.md` and the charts of all records in the folder.
pub(crate) fn write(folder: &Path) -> io::Result<()> {
    let mut text = String::from(HEAD);
    for section in SECTIONS {
        let Some(record) = Record::load(folder, section.name)? else { continue };
        if record.samples.is_empty() {
            continue;
        }
        let _infallible = write!(text, "\n## {}\n\n{}\n", section.title, section.about);
        let chart = format!("{}.svg", section.name);
        if charts::draw(&record, section.charted, &folder.join(&chart))? {
            let _infallible = write!(text, "\n![{}]({chart})\n", section.title);
        }
        for metric in record.metrics() {
            text.push_str(&table(&record, metric));
        }
        text.push_str(&facts(&record));
    }
    let path = folder.join("REPORT.md");
    std::fs::write(&path, text).map_err(|e| told(e, format!("cannot write {}", path.display())))
}

/// A row for each contestant, a column for each case. Where the section knows its noise, figures are
/// ratios to the baseline; otherwise they are what was counted.
fn table(record: &Record, metric: &str) -> String {
    let cases: Vec<&str> = record
        .cases()
        .into_iter()
        .filter(|case| record.samples.iter().any(|s| s.case == *case && s.metric == metric))
        .collect();
    let baseline = record.baseline();
    let noisy = cases.iter().any(|case| record.is_relative(case, metric));
    let kind = if noisy { ", as a ratio: median (least to most)" } else { "" };

    let mut text = format!("\n**{metric}**{kind}\n\n| |");
    for case in &cases {
        let _infallible = write!(text, " {case} |");
    }
    text.push_str("\n|---|");
    text.push_str(&"--:|".repeat(cases.len()));
    text.push('\n');
    if noisy {
        let cell = |case: &&str| match record.figures(case, metric, baseline) {
            Some(figures) => number(figures.median),
            None => "-".into(),
        };
        row(&mut text, &format!("{baseline}, absolute"), cases.iter().map(cell));
    }
    for contestant in record.contestants() {
        if noisy && (contestant == baseline || contestant == again(baseline)) {
            continue;
        }
        if !record.samples.iter().any(|s| s.contestant == contestant && s.metric == metric) {
            continue;
        }
        let cell = |case: &&str| {
            if noisy {
                ratio(record, case, metric, contestant)
            } else {
                count(record, case, metric, contestant)
            }
        };
        row(&mut text, contestant, cases.iter().map(cell));
    }
    if noisy {
        let cell = |case: &&str| match record.noise(case, metric) {
            Some(noise) => format!("±{:.0} %", noise * 100.0),
            None => "-".into(),
        };
        row(&mut text, "noise: the same program again", cases.iter().map(cell));
    }
    text
}

fn row(text: &mut String, name: &str, cells: impl Iterator<Item = String>) {
    let _infallible = write!(text, "| {name} |");
    for cell in cells {
        let _infallible = write!(text, " {cell} |");
    }
    text.push('\n');
}

fn ratio(record: &Record, case: &str, metric: &str, contestant: &str) -> String {
    let Some(ratio) = record.ratios(case, metric, contestant) else { return "-".into() };
    let noise = record.noise(case, metric).unwrap_or_default();
    let equal = if (ratio.median - 1.0).abs() <= noise { " =" } else { "" };
    format!("{:.2}{equal} ({:.2}–{:.2})", ratio.median, ratio.min, ratio.max)
}

fn count(record: &Record, case: &str, metric: &str, contestant: &str) -> String {
    match record.figures(case, metric, contestant) {
        Some(figures) if figures.min < figures.max => {
            format!("{} ({}–{})", number(figures.median), number(figures.min), number(figures.max))
        }
        Some(figures) => number(figures.median),
        None => "-".into(),
    }
}

fn facts(record: &Record) -> String {
    let mut text = String::from("\n");
    for (name, value) in &record.facts {
        let _infallible = writeln!(text, "- {name}: {value}");
    }
    text
}

/// Three digits that say something, with commas where there are many.
pub(crate) fn number(value: f64) -> String {
    if value.abs() < 10.0 {
        return format!("{value:.2}");
    }
    if value.abs() < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestants::BY_HAND;
    use crate::record::Sample;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (2.031, "2.03"),
            (61.04, "61.0"),
            (246.94, "247"),
            (21_600_000.0, "21,600,000"),
            (-1234.0, "-1,234"),
            (999_999.7, "1,000,000"),
        ] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn who_is_within_the_noise_is_equal() {
        let mut record = Record::default();
        for (contestant, values) in [
            (BY_HAND, [100.0, 100.0]),
            ("by hand (again)", [95.0, 104.0]),
            ("near", [96.0, 97.0]),
            ("far", [90.0, 80.0]),
        ] {
            for (round, value) in values.into_iter().enumerate() {
                let contestant = contestant.into();
                record.samples.push(Sample {
                    case: "c".into(),
                    metric: "m/s".into(),
                    contestant,
                    round,
                    value,
                });
            }
        }
        let table = table(&record, "m/s");
        assert!(table.contains("| by hand, absolute | 100 |"), "{table}");
        assert!(table.contains("| near | 0.96 = (0.96–0.97) |"), "{table}");
        assert!(table.contains("| far | 0.85 (0.80–0.90) |"), "{table}");
        assert!(table.contains("±5 %"), "{table}");
    }
}
