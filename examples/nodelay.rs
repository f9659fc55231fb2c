//! What two small writes cost where one would do: the classic pause of 40 ms, and two ways out.
//!
//! A request is written in two pieces, and the answer comes when both are there. Nagle's algorithm
//! holds the second piece back until the first is acknowledged; the other end delays its
//! acknowledgement in the hope that an answer will carry it. Both wait for each other, until the
//! delay is over.
//!
//! TCP_NODELAY switches Nagle's algorithm off: then each piece leaves at once, in a segment of its
//! own. To write both in one piece is better still: one segment, one system call, one wakeup of the
//! other end. That is what happens on a ruduo connection, whatever a callback sends and in
//! however many pieces; TCP_NODELAY is on beside that, for Nagle's algorithm could only hold it back.
//!
//! The client here is blocking, on std alone, so that its writes are what they seem. The server that
//! answers it is ruduo's.

mod common;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{Long, print};
use ruduo::{EventLoop, TcpServer};

const HELP: &str = "\
Measures a request in two writes: with Nagle's algorithm, without, and as one write.

Usage: nodelay [--rounds N]

  --rounds N  how many requests of each kind; the median is printed [50]
  --help      this text";

/// The request's two pieces.
const HEADER: [u8; 4] = *b"head";
const BODY: [u8; 96] = [b'b'; 96];
const REQUEST: usize = HEADER.len() + BODY.len();

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let mut rounds: usize = 50;
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("rounds") => rounds = arguments.value()?,
                other => return Err(other.unexpected().into()),
            }
        }
        if rounds == 0 {
            return Err(lexopt::Error::from("--rounds 0: there is no median of nothing").into());
        }
        let event_loop = EventLoop::new()?;
        let server = TcpServer::bind(&event_loop, "127.0.0.1:0")?
            .on_message(|conn, input| {
                // Answers whole requests; what is there of the next one comes again.
                while input.len() >= REQUEST {
                    input.consume(REQUEST);
                    conn.send("!");
                }
            })
            .start()?;
        server.stop_on_signals(&event_loop, Duration::ZERO)?;
        let address = server
            .local_addr()
            .as_ip()
            .ok_or_else(|| io::Error::other("a TCP server without an Internet address"))?;
        let (tell, told) = mpsc::channel();
        let handle = event_loop.handle();
        thread::spawn(move || {
            // Nobody listens if a signal came first.
            let _ = tell.send(measure(address, rounds));
            handle.quit();
        });
        event_loop.run()?;
        match told.try_recv() {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Ok(()),
        }
    })
}

fn measure(server: SocketAddr, rounds: usize) -> io::Result<()> {
    let in_two = |stream: &mut TcpStream| {
        stream.write_all(&HEADER)?;
        stream.write_all(&BODY)
    };
    let whole = [&HEADER[..], &BODY].concat();
    let in_one = |stream: &mut TcpStream| stream.write_all(&whole);
    let with_nagle = median(server, rounds, false, in_two)?;
    print(format_args!(
        "write, write, read with Nagle's algorithm:      {}",
        milliseconds(with_nagle)
    ))?;
    let without = median(server, rounds, true, in_two)?;
    print(format_args!(
        "write, write, read without it (TCP_NODELAY):    {}",
        milliseconds(without)
    ))?;
    let coalesced = median(server, rounds, true, in_one)?;
    print(format_args!(
        "one write of both, read:                        {}",
        milliseconds(coalesced)
    ))?;
    Ok(())
}

/// How long a request and its answer take, half of the times at most.
fn median(
    server: SocketAddr,
    rounds: usize,
    nodelay: bool,
    ask: impl Fn(&mut TcpStream) -> io::Result<()>,
) -> io::Result<Duration> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(nodelay)?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        ask(&mut stream)?;
        stream.read_exact(&mut [0])?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[rounds / 2])
}

fn milliseconds(time: Duration) -> String {
    format!("{:7.3} ms", time.as_secs_f64() * 1000.0)
}
