//! `timers`, `tasks` and `http`: contestants that measure themselves, and those that wrk measures.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::rounds::{Figures, take_turns};
use super::{CLIENT_CPU, Plan, SERVER_CPU};
use crate::contestants::{Ready, Task};
use crate::process::{Around, Process, is_installed};
use crate::record::Record;

/// Longer than the slowest of them needs.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn timers(plan: &Plan) -> io::Result<Record> {
    let cases = [(String::from("1M timers"), ())];
    let mut record = take_turns(plan, "timers", Task::Timers, &cases, |contestant, &()| {
        figures(contestant, Some(SERVER_CPU))
    })?;
    // What they print is what they did, each of it in the same unit.
    for sample in &mut record.samples {
        sample.case = std::mem::replace(&mut sample.metric, "ns of CPU each".into());
    }
    Ok(record)
}

pub(crate) fn tasks(plan: &Plan) -> io::Result<Record> {
    let cases = [(String::from("one thread to a loop, two CPUs"), ())];
    let mut record = take_turns(plan, "tasks", Task::Tasks, &cases, |contestant, &()| {
        figures(contestant, None)
    })?;
    let cases = [(String::from("two loops on one CPU"), ())];
    let turns = take_turns(plan, "tasks", Task::RoundTrips, &cases, |contestant, &()| {
        figures(contestant, Some(SERVER_CPU))
    })?;
    record.facts.extend(turns.facts);
    record.samples.extend(turns.samples);
    Ok(record)
}

/// What a contestant prints as `figure VALUE NAME`.
fn figures(contestant: &Ready, cpu: Option<usize>) -> io::Result<Figures> {
    let mut process = contestant.start(cpu, &Around::Nothing)?;
    let mut figures = Figures::new();
    for line in process.output(PATIENCE)? {
        let figure = line.strip_prefix("figure ").and_then(|figure| figure.split_once(' '));
        if let Some((value, name)) = figure {
            let value = value
                .parse()
                .map_err(|e| io::Error::other(format!("'{line}' is no figure: {e}")))?;
            figures.push((name.to_owned(), value));
        }
    }
    Ok(figures)
}

pub(crate) fn http(plan: &Plan) -> io::Result<Record> {
    if !is_installed("wrk") {
        eprintln!("SKIPPED: http: there is no wrk here");
        return Ok(Record { section: "http".into(), ..Record::default() });
    }
    let cases = [("1 connection", 1), ("100 connections", 100)]
        .map(|(case, connections)| (String::from(case), connections));
    take_turns(plan, "http", Task::Http, &cases, |contestant, &connections| {
        let mut server = contestant.start(Some(SERVER_CPU), &Around::Nothing)?;
        let url = format!("http://{}/", server.address()?);
        let connections = format!("-c{connections}");
        let before = server.cpu_time()?;
        let words = ["-t1", "-d2s", "--latency", &connections, &url];
        let mut wrk = Process::start(Path::new("wrk"), &words, Some(CLIENT_CPU), &Around::Nothing)?;
        let output = wrk.output(PATIENCE)?;
        let cpu = server.cpu_time()? - before;
        let said = parse_wrk(&output)
            .ok_or_else(|| io::Error::other(format!("wrk said: {}", output.join(" | "))))?;
        Ok(vec![
            ("requests/s".into(), said.rate),
            ("server CPU each, µs".into(), cpu.as_secs_f64() * 1e6 / said.requests),
            ("p50, µs".into(), said.p50),
            ("p99, µs".into(), said.p99),
        ])
    })
}

#[derive(Debug, PartialEq)]
struct Said {
    rate: f64,
    requests: f64,
    /// Microseconds.
    p50: f64,
    p99: f64,
}

/// None also if there was any error: a server that fails is not fast.
fn parse_wrk(output: &[String]) -> Option<Said> {
    let (mut rate, mut requests, mut p50, mut p99) = (None, None, None, None);
    for line in output {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["Requests/sec:", value] => rate = value.parse().ok(),
            ["50%", value] => p50 = microseconds(value),
            ["99%", value] => p99 = microseconds(value),
            [value, "requests", "in", ..] => requests = value.parse().ok(),
            ["Socket", "errors:", ..] | ["Non-2xx", ..] => return None,
            _ => {}
        }
    }
    Some(Said { rate: rate?, requests: requests?, p50: p50?, p99: p99? })
}

fn microseconds(value: &str) -> Option<f64> {
    let (number, factor) = if let Some(number) = value.strip_suffix("us") {
        (number, 1.0)
    } else if let Some(number) = value.strip_suffix("ms") {
        (number, 1e3)
    } else {
        (value.strip_suffix('s')?, 1e6)
    };
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_understood() {
        let mut output: Vec<String> = "\
  Latency Distribution
     50%  350.00us
     75%  351.00us
     90%    1.00ms
     99%    1.25ms
  246813 requests in 2.00s, 30.13MB read
Requests/sec: 123405.12
Transfer/sec:     15.06MB"
            .lines()
            .map(String::from)
            .collect();
        let said = Said { rate: 123_405.12, requests: 246_813.0, p50: 350.0, p99: 1250.0 };
        assert_eq!(parse_wrk(&output), Some(said));
        output.push("  Socket errors: connect 0, read 3, write 0, timeout 0".into());
        assert_eq!(parse_wrk(&output), None);
    }
}
