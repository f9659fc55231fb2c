//! What has been measured: the path from the sections to tables, charts and ceilings.
//!
//! A section ends as a record, which is kept as a file of its own, so that a report can be made of
//! sections that ran one at a time, and anyone can look at what each round gave.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use crate::contestants::BY_HAND;
use crate::process::told;

/// One figure of one contestant in one round.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// What was done, such as `100 x 16 B`.
    pub(crate) case: String,
    /// What was counted, with its unit. Rates end in `/s`, and more is better; of all else, less.
    pub(crate) metric: String,
    pub(crate) contestant: String,
    pub(crate) round: usize,
    pub(crate) value: f64,
}

/// All that a section gave.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Record {
    pub(crate) section: String,
    /// When, on what, of which version.
    pub(crate) facts: Vec<(String, String)>,
    pub(crate) samples: Vec<Sample>,
}

/// The same program again, by which one sees what differs when nothing differs.
pub(crate) fn again(contestant: &str) -> String {
    format!("{contestant} (again)")
}

/// Median, least and most of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Option<Spread> {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() {
            0 => return None,
            n if n % 2 == 0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        };
        Some(Spread { median, min: values[0], max: values[values.len() - 1] })
    }

    /// How far from 1 the ratios went.
    pub(crate) fn noise(self) -> f64 {
        (self.max - 1.0).max(1.0 - self.min)
    }
}

impl Record {
    /// Tells that a contestant could not take part, here and in the report.
    pub(crate) fn skipped(&mut self, contestant: &str, reason: &str) {
        eprintln!("SKIPPED: {contestant}: {reason}");
        self.missing(vec![(contestant, reason.into())]);
    }

    /// Notes who could not be built, and why.
    pub(crate) fn missing(&mut self, missing: Vec<(&str, String)>) {
        for (contestant, reason) in missing {
            let fact = (format!("skipped {contestant}"), reason.replace('\n', " "));
            if !self.facts.contains(&fact) {
                self.facts.push(fact);
            }
        }
    }

    /// Cases in the order in which they were measured; the same for metrics and contestants.
    pub(crate) fn cases(&self) -> Vec<&str> {
        distinct(self.samples.iter().map(|s| s.case.as_str()))
    }

    pub(crate) fn metrics(&self) -> Vec<&str> {
        distinct(self.samples.iter().map(|s| s.metric.as_str()))
    }

    pub(crate) fn contestants(&self) -> Vec<&str> {
        distinct(self.samples.iter().map(|s| s.contestant.as_str()))
    }

    /// Whom the others are compared with: the hand-written one, or else the first.
    pub(crate) fn baseline(&self) -> &str {
        let contestants = self.contestants();
        let by_hand = contestants.iter().find(|&&name| name == BY_HAND);
        by_hand.or(contestants.first()).copied().unwrap_or_default()
    }

    fn values<'r>(
        &'r self,
        case: &'r str,
        metric: &'r str,
        contestant: &'r str,
    ) -> impl Iterator<Item = (usize, f64)> + 'r {
        self.samples
            .iter()
            .filter(move |s| s.case == case && s.metric == metric && s.contestant == contestant)
            .map(|s| (s.round, s.value))
    }

    pub(crate) fn figures(&self, case: &str, metric: &str, contestant: &str) -> Option<Spread> {
        let values: Vec<f64> = self.values(case, metric, contestant).map(|(_, v)| v).collect();
        Spread::of(&values)
    }

    /// The contestant's figure over the baseline's, round by round.
    pub(crate) fn ratios(&self, case: &str, metric: &str, contestant: &str) -> Option<Spread> {
        let base: Vec<(usize, f64)> = self.values(case, metric, self.baseline()).collect();
        let ratios: Vec<f64> = self
            .values(case, metric, contestant)
            .filter_map(|(round, value)| {
                let (_, base) = base.iter().find(|&&(r, base)| r == round && base > 0.0)?;
                Some(value / base)
            })
            .collect();
        Spread::of(&ratios)
    }

    /// How much the same program differed from itself.
    pub(crate) fn noise(&self, case: &str, metric: &str) -> Option<f64> {
        self.ratios(case, metric, &again(self.baseline())).map(Spread::noise)
    }

    /// Whether figures are to be compared round by round: rates and times vary with the machine;
    /// counts, bytes and CPU time of one's own hardly do.
    pub(crate) fn is_relative(&self, case: &str, metric: &str) -> bool {
        (metric.ends_with("/s") || metric.ends_with("µs")) && self.noise(case, metric).is_some()
    }

    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        let mut text = String::new();
        for (name, value) in &self.facts {
            let _infallible = writeln!(text, "# {name}: {value}");
        }
        text.push_str("case\tmetric\tcontestant\tround\tvalue\n");
        for s in &self.samples {
            let Sample { case, metric, contestant, round, value } = s;
            let _infallible = writeln!(text, "{case}\t{metric}\t{contestant}\t{round}\t{value}");
        }
        let path = folder.join(&self.section).with_extension("tsv");
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(|e| told(e, format!("cannot write {}", path.display())))
    }

    /// None if the section has not been measured.
    pub(crate) fn load(folder: &Path, section: &str) -> io::Result<Option<Record>> {
        let path = folder.join(section).with_extension("tsv");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(told(e, format!("cannot read {}", path.display()))),
        };
        let mut record = Record { section: section.into(), ..Record::default() };
        for (number, line) in text.lines().enumerate() {
            if let Some(fact) = line.strip_prefix("# ") {
                let (name, value) = fact.split_once(": ").unwrap_or((fact, ""));
                record.facts.push((name.into(), value.into()));
            } else if !line.starts_with("case\t") {
                record.samples.push(sample(line).ok_or_else(|| {
                    io::Error::other(format!("{}:{}: no sample", path.display(), number + 1))
                })?);
            }
        }
        Ok(Some(record))
    }
}

fn sample(line: &str) -> Option<Sample> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [case, metric, contestant, round, value] = fields[..] else { return None };
    Some(Sample {
        case: case.into(),
        metric: metric.into(),
        contestant: contestant.into(),
        round: round.parse().ok()?,
        value: value.parse().ok()?,
    })
}

fn distinct<'s>(all: impl Iterator<Item = &'s str>) -> Vec<&'s str> {
    let mut found = Vec::new();
    for one in all {
        if !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(values: &[(&str, usize, f64)]) -> Record {
        let samples = values
            .iter()
            .map(|&(contestant, round, value)| Sample {
                case: "c".into(),
                metric: "m/s".into(),
                contestant: contestant.into(),
                round,
                value,
            })
            .collect();
        Record { section: "s".into(), facts: vec![("on".into(), "a: b".into())], samples }
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let record = record(&[
            ("x", 1, 50.0),
            ("x", 2, 400.0),
            (BY_HAND, 1, 100.0),
            (BY_HAND, 2, 200.0),
            ("by hand (again)", 1, 110.0),
            ("by hand (again)", 2, 190.0),
            ("x", 3, 1.0), // a round in which the baseline failed
        ]);
        let ratios = record.ratios("c", "m/s", "x");
        assert_eq!(ratios, Some(Spread { median: 1.25, min: 0.5, max: 2.0 }));
        assert!((record.noise("c", "m/s").unwrap() - 0.1).abs() < 1e-9);
        assert_eq!(record.ratios("c", "m/s", "nobody"), None);
    }

    #[test]
    fn a_record_comes_back_from_its_file() {
        let folder = std::env::temp_dir().join(format!("ruduo-bench-{}", std::process::id()));
        let record = record(&[("x", 1, 0.1), (BY_HAND, 1, 1e9)]);
        record.save(&folder).unwrap();
        assert_eq!(Record::load(&folder, "s").unwrap(), Some(record));
        assert_eq!(Record::load(&folder, "t").unwrap(), None);
        std::fs::write(folder.join("t.tsv"), "a\tb\tc\tone\t2\n").unwrap();
        let e = Record::load(&folder, "t").unwrap_err().to_string();
        assert!(e.ends_with("t.tsv:1: no sample"), "{e}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
