//! `options`: what a program can switch on, and at what price.
//!
//! The hand-written loop takes part as it always is, so that it is seen what an option changes and
//! what the machine does.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use std::{io, thread};

use super::rounds::{Figures, take_turns};
use super::serving::{TURN, WARM_UP, measured};
use super::{CLIENT_CPU, Plan, SERVER_CPU};
use crate::contestants::{Ready, Task};
use crate::load::lockstep::{connect, pattern};
use crate::load::pingpong::{PingPong, Shape};
use crate::load::{Outcome, Wait, churn};
use crate::process::{Around, pin};
use crate::record::Record;

pub(crate) fn options(plan: &Plan) -> io::Result<Record> {
    pin(CLIENT_CPU)?;
    let mut record = acceptors(plan)?;
    let polling = busy_polling(plan)?;
    record.facts.extend(polling.facts);
    record.samples.extend(polling.samples);
    Ok(record)
}

/// How many connections are in the air.
const AT_ONCE: usize = 50;

/// Short connections for two loops: one accepts for both, or each for itself.
fn acceptors(plan: &Plan) -> io::Result<Record> {
    let cases = [("on one CPU", Some(SERVER_CPU)), ("on two CPUs, one of them the client's", None)]
        .map(|(on, cpu)| (format!("connections, {on}"), cpu));
    take_turns(plan, "options", Task::Acceptors, &cases, |contestant, &cpu| {
        let mut server = contestant.start(cpu, &Around::Nothing)?;
        let address = server.address()?;
        churn::run(address, AT_ONCE, WARM_UP)?;
        measured(&server, "connections/s", || churn::run(address, AT_ONCE, 2 * TURN))
    })
}

/// What a connection does for a loop that looks again for a while before it sleeps.
#[derive(Clone, Copy)]
enum Traffic {
    /// A message follows the other; the client does not sleep either.
    Dense,
    /// A message each millisecond.
    Sparse,
}

fn busy_polling(plan: &Plan) -> io::Result<Record> {
    let cases = [("one after the other", Traffic::Dense), ("one each ms", Traffic::Sparse)]
        .map(|(how, traffic)| (format!("16 B messages, {how}"), traffic));
    take_turns(plan, "options", Task::Waiting, &cases, |contestant, traffic| match traffic {
        Traffic::Dense => dense(contestant),
        Traffic::Sparse => sparse(contestant),
    })
}

fn dense(contestant: &Ready) -> io::Result<Figures> {
    let mut server = contestant.start(Some(SERVER_CPU), &Around::Nothing)?;
    let shape = Shape { connections: 1, bytes: 16, in_flight: 1, wait: Wait::Spinning };
    let mut load = PingPong::new(server.address()?, shape)?;
    load.run(WARM_UP)?;
    measured(&server, "messages/s", || load.run(2 * TURN))
}

fn sparse(contestant: &Ready) -> io::Result<Figures> {
    let mut server = contestant.start(Some(SERVER_CPU), &Around::Nothing)?;
    let mut stream = connect(server.address()?)?;
    exchange_slowly(&mut stream, WARM_UP)?;
    let mut figures = measured(&server, "messages/s", || exchange_slowly(&mut stream, 2 * TURN))?;
    // It is the load's, and says nothing of the server.
    figures.retain(|(metric, _)| metric != "messages/s");
    Ok(figures)
}

fn exchange_slowly(stream: &mut TcpStream, time: Duration) -> io::Result<Outcome> {
    let message = pattern(16);
    let mut answer = vec![0; message.len()];
    let mut meter = crate::load::Meter::new()?;
    while meter.began.elapsed() < time {
        thread::sleep(Duration::from_millis(1));
        let sent_at = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut answer)?;
        meter.answered(sent_at.elapsed());
        if answer != message {
            return Err(io::Error::other("the server has changed the bytes"));
        }
    }
    Ok(meter.end())
}
