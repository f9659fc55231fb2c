//! `pingpong`, `churn`, `udp` and `idle`: servers under a load that this program makes. The server
//! has one CPU for itself, the client another.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::rounds::{Figures, take_turns};
use super::{CLIENT_CPU, Plan, SERVER_CPU};
use crate::contestants::Task;
use crate::load::lockstep::connect;
use crate::load::pingpong::{PingPong, Shape};
use crate::load::{Outcome, Wait, churn, udp};
use crate::process::{Around, Process, pin};
use crate::record::Record;

/// One turn of one contestant: first as long to get warm, then to be measured.
pub(super) const WARM_UP: Duration = Duration::from_millis(40);
pub(super) const TURN: Duration = Duration::from_millis(160);

pub(crate) fn pingpong(plan: &Plan) -> io::Result<Record> {
    pin(CLIENT_CPU)?;
    let mut cases = Vec::new();
    for bytes in [16, 4096, 16384] {
        for connections in [1, 100, 1000] {
            cases.push((connections, bytes, 1));
        }
    }
    cases.extend([(100, 16, 16), (100, 4096, 16)]);
    let cases: Vec<(String, Shape)> = cases
        .into_iter()
        .map(|(connections, bytes, in_flight)| {
            let shape = Shape { connections, bytes, in_flight, wait: Wait::Asleep };
            (format!("{connections} x {bytes} B{}", flying(in_flight)), shape)
        })
        .collect();
    take_turns(plan, "pingpong", Task::Echo, &cases, |contestant, &shape| {
        let mut server = contestant.start(Some(SERVER_CPU), &Around::Nothing)?;
        let mut load = PingPong::new(server.address()?, shape)?;
        load.run(WARM_UP)?;
        let mut figures = measured(&server, "messages/s", || load.run(TURN))?;
        let messages = figures[0].1;
        figures.insert(
            1,
            ("MiB each second".into(), messages * shape.bytes as f64 / f64::from(1 << 20)),
        );
        Ok(figures)
    })
}

pub(crate) fn churn(plan: &Plan) -> io::Result<Record> {
    pin(CLIENT_CPU)?;
    let cases = [1, 50].map(|at_once| (format!("{at_once} at once"), at_once));
    take_turns(plan, "churn", Task::Echo, &cases, |contestant, &at_once| {
        let mut server = contestant.start(Some(SERVER_CPU), &Around::Nothing)?;
        let address = server.address()?;
        churn::run(address, at_once, WARM_UP)?;
        measured(&server, "connections/s", || churn::run(address, at_once, 2 * TURN))
    })
}

pub(crate) fn datagrams(plan: &Plan) -> io::Result<Record> {
    pin(CLIENT_CPU)?;
    let cases = [(1, 16, 1), (100, 16, 1), (100, 1400, 1), (1, 16, 64), (1, 1400, 64)].map(
        |(sockets, bytes, in_flight)| {
            let case = format!("{sockets} x {bytes} B{}", flying(in_flight));
            (case, udp::Shape { sockets, bytes, in_flight })
        },
    );
    take_turns(plan, "udp", Task::Udp, &cases, |contestant, &shape| {
        let mut server = contestant.start(Some(SERVER_CPU), &Around::Nothing)?;
        let mut load = udp::Datagrams::new(server.address()?, shape)?;
        load.run(WARM_UP)?;
        measured(&server, "datagrams/s", || load.run(2 * TURN))
    })
}

/// How a case tells that more than one is in flight.
fn flying(in_flight: usize) -> String {
    if in_flight == 1 { String::new() } else { format!(" x {in_flight}") }
}

/// What a load has done, and what it has cost the server.
pub(super) fn measured(
    server: &Process,
    rate: &'static str,
    load: impl FnOnce() -> io::Result<Outcome>,
) -> io::Result<Figures> {
    let before = server.cpu_time()?;
    let Outcome { count, time, latency } = load()?;
    let cpu = server.cpu_time()? - before;
    if count == 0 {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in the time of a turn"));
    }
    let microseconds = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(vec![
        (rate.into(), count as f64 / time.as_secs_f64()),
        ("server CPU each, µs".into(), cpu.as_secs_f64() * 1e6 / count as f64),
        ("p50, µs".into(), microseconds(0.5)),
        ("p99, µs".into(), microseconds(0.99)),
        ("p99.9, µs".into(), microseconds(0.999)),
    ])
}

/// How many connections wait, so that one page more or less does not show.
const IDLE: usize = 9_000;

pub(crate) fn idle(plan: &Plan) -> io::Result<Record> {
    let once = Plan { rounds: 1, only: plan.only.clone() };
    let cases = [(format!("{IDLE} connections"), ())];
    take_turns(&once, "idle", Task::Echo, &cases, |contestant, &()| {
        let mut server = contestant.start(Some(SERVER_CPU), &Around::Nothing)?;
        let address = server.address()?;
        let mut witness = connect(address)?;
        echo(&mut witness, 1)?;
        let start = server.resident()?;

        let mut streams = Vec::with_capacity(IDLE);
        for i in 0..IDLE {
            streams.push(connect(address)?);
            if i % 64 == 0 {
                // Then all before it have been accepted too.
                echo(&mut streams[i], 1)?;
            }
        }
        echo(&mut witness, 1)?;
        let silent = server.resident()?;
        for stream in &mut streams {
            echo(stream, 1024)?;
        }
        let spoken = server.resident()?;
        drop(streams);
        settle(&server)?;
        echo(&mut witness, 1)?;
        let closed = server.resident()?;

        let each = |now: u64| now.saturating_sub(start) as f64 / IDLE as f64;
        Ok(vec![
            ("resident bytes each, silent".into(), each(silent)),
            ("resident bytes each, after 1 KiB was echoed".into(), each(spoken)),
            ("resident bytes each that stay after close".into(), each(closed)),
        ])
    })
}

/// Waits until a server that has something to do has done it.
fn settle(server: &Process) -> io::Result<()> {
    let until = Instant::now() + Duration::from_secs(5);
    let mut before = server.cpu_time()?;
    while Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
        let now = server.cpu_time()?;
        if now - before < Duration::from_millis(1) {
            break;
        }
        before = now;
    }
    Ok(())
}

fn echo(stream: &mut TcpStream, bytes: usize) -> io::Result<()> {
    stream.write_all(&vec![b'x'; bytes])?;
    stream.read_exact(&mut vec![0; bytes])
}
