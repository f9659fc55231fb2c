//! calloop, as its book has it: sources made of sources, and callbacks.

mod common;

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use calloop::channel::{self, Channel, Sender};
use calloop::generic::Generic;
use calloop::timer::{TimeoutAction, Timer};
use calloop::{
    EventLoop, EventSource, Interest, LoopHandle, LoopSignal, Mode, Poll, PostAction, Readiness,
    RegistrationToken, Token, TokenFactory,
};
use common::{ROUND_TRIPS, TASKS, Task, timers};

fn main() -> ExitCode {
    common::run(|task| match task.name.as_str() {
        "echo" => echo(task),
        "timers" => timers(),
        "tasks" => tasks(),
        "roundtrips" => round_trips(),
        _ => common::unknown(task),
    })
}

fn echo(task: &Task) -> io::Result<()> {
    let mut event_loop: EventLoop<()> = EventLoop::try_new()?;
    let listener = TcpListener::bind(task.address)?;
    listener.set_nonblocking(true)?;
    common::listening(listener.local_addr()?)?;
    let (handle, buffer) = (event_loop.handle(), Rc::new(RefCell::new(vec![0; 64 * 1024])));
    let listener = Generic::new(listener, Interest::READ, Mode::Level);
    let peers = handle.clone();
    insert(&handle, listener, move |_, listener, ()| {
        let (stream, _) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(PostAction::Continue),
            Err(e) => return Err(e),
        };
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let stream = Generic::new(stream, Interest::READ, Mode::Level);
        let peer = Peer { stream, unsent: Vec::new(), buffer: buffer.clone() };
        insert(&peers, peer, |(), (), ()| ())?;
        Ok(PostAction::Continue)
    })?;
    event_loop.run(None, &mut (), |()| {}).map_err(io::Error::other)
}

fn insert<D, S, F>(handle: &LoopHandle<'_, D>, source: S, f: F) -> io::Result<RegistrationToken>
where
    S: EventSource + 'static,
    F: FnMut(S::Event, &mut S::Metadata, &mut D) -> S::Ret + 'static,
{
    handle.insert_source(source, f).map_err(|e| io::Error::other(e.to_string()))
}

/// A source made of another: it echoes, and asks for room to write when there is none.
struct Peer {
    stream: Generic<TcpStream>,
    unsent: Vec<u8>,
    buffer: Rc<RefCell<Vec<u8>>>,
}

impl EventSource for Peer {
    type Event = ();
    type Metadata = ();
    type Ret = ();
    type Error = io::Error;

    fn process_events<F: FnMut((), &mut ())>(
        &mut self,
        readiness: Readiness,
        token: Token,
        _: F,
    ) -> io::Result<PostAction> {
        let Peer { stream, unsent, buffer } = self;
        let waited = !unsent.is_empty();
        let action = stream.process_events(readiness, token, |_, stream| {
            let over = serve(stream, unsent, &mut buffer.borrow_mut()).unwrap_or(true);
            Ok(if over { PostAction::Remove } else { PostAction::Continue })
        })?;
        let waits = !self.unsent.is_empty();
        if action == PostAction::Continue && waits != waited {
            self.stream.interest = if waits { Interest::WRITE } else { Interest::READ };
            return Ok(PostAction::Reregister);
        }
        Ok(action)
    }

    fn register(&mut self, poll: &mut Poll, tokens: &mut TokenFactory) -> calloop::Result<()> {
        self.stream.register(poll, tokens)
    }

    fn reregister(&mut self, poll: &mut Poll, tokens: &mut TokenFactory) -> calloop::Result<()> {
        self.stream.reregister(poll, tokens)
    }

    fn unregister(&mut self, poll: &mut Poll) -> calloop::Result<()> {
        self.stream.unregister(poll)
    }
}

/// True at the end of the stream.
fn serve(mut stream: &TcpStream, unsent: &mut Vec<u8>, buffer: &mut [u8]) -> io::Result<bool> {
    if !unsent.is_empty() {
        let sent = unless_blocked(stream.write(unsent))?.unwrap_or(0);
        unsent.drain(..sent);
        return Ok(false);
    }
    let Some(n) = unless_blocked(stream.read(buffer))? else { return Ok(false) };
    if n == 0 {
        return Ok(true);
    }
    let sent = unless_blocked(stream.write(&buffer[..n]))?.unwrap_or(0);
    unsent.extend_from_slice(&buffer[sent..n]);
    Ok(false)
}

fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

/// Adding a source looks for a free place among all, and cancelling a timer looks at all of them, so
/// that a million would take hours: after this much CPU time what was done is counted.
const ENOUGH: Duration = Duration::from_millis(300);

fn timers() -> io::Result<()> {
    let event_loop: EventLoop<u64> = EventLoop::try_new()?;
    let handle = event_loop.handle();
    let mut armed = Vec::new();
    measured("add", timers::COUNT, |i| {
        armed.push(arm(&handle, i)?);
        Ok(())
    })?;
    measured("cancel", armed.len() as u64, |i| {
        handle.remove(armed[i as usize]);
        Ok(())
    })?;
    // Its drop would cancel the others, one by one.
    std::mem::forget((event_loop, handle));

    let event_loop: EventLoop<u64> = EventLoop::try_new()?;
    let handle = event_loop.handle();
    for i in 0..timers::WAITING {
        arm(&handle, i)?;
    }
    measured("add and cancel", timers::COUNT, |i| {
        handle.remove(arm(&handle, i)?);
        Ok(())
    })?;
    fire()
}

fn arm(handle: &LoopHandle<'_, u64>, i: u64) -> io::Result<RegistrationToken> {
    insert(handle, Timer::from_duration(timers::long(i)), |_, (), _| TimeoutAction::Drop)
}

fn measured(name: &str, count: u64, mut step: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
    let began = common::cpu_time();
    let mut done = 0;
    while done < count && common::cpu_time() - began < ENOUGH {
        for i in done..count.min(done + 100) {
            step(i)?;
        }
        done = count.min(done + 100);
    }
    common::each_of(name, began, done);
    Ok(())
}

/// As many as wait in the others' measurement of adding and cancelling.
const FIRED: u64 = timers::WAITING;

fn fire() -> io::Result<()> {
    let mut event_loop: EventLoop<u64> = EventLoop::try_new()?;
    let (handle, signal) = (event_loop.handle(), event_loop.get_signal());
    let began = common::cpu_time();
    for i in 0..FIRED {
        let timer = Timer::from_duration(timers::short(i));
        insert(&handle, timer, |_, (), fired: &mut u64| {
            *fired += 1;
            TimeoutAction::Drop
        })?;
    }
    let mut fired = 0;
    event_loop
        .run(None, &mut fired, |fired| {
            if *fired == FIRED {
                signal.stop();
            }
        })
        .map_err(io::Error::other)?;
    common::each_of("add and fire", began, FIRED);
    Ok(())
}

fn tasks() -> io::Result<()> {
    let mut event_loop: EventLoop<(u64, LoopSignal)> = EventLoop::try_new()?;
    let (to, tasks) = channel::channel();
    insert(&event_loop.handle(), tasks, |event, (), (sum, signal): &mut (u64, LoopSignal)| {
        match event {
            channel::Event::Msg(i) => *sum += i,
            channel::Event::Closed => signal.stop(),
        }
    })?;
    let mut state = (0, event_loop.get_signal());
    let began = Instant::now();
    let producer = thread::spawn(move || (0..TASKS).all(|i| to.send(i).is_ok()));
    event_loop.run(None, &mut state, |_| {}).map_err(io::Error::other)?;
    let took = began.elapsed();
    producer.join().map_err(|_| io::Error::other("the posting thread panicked"))?;
    common::rate("tasks/s", TASKS, took, state.0)
}

fn round_trips() -> io::Result<()> {
    let (here, to_here) = channel::channel();
    let (there, to_there) = channel::channel();
    let began = Instant::now();
    there.send(ROUND_TRIPS).map_err(io::Error::other)?;
    let other = thread::spawn(move || forward(to_there, here));
    forward(to_here, there)?;
    common::figure("round trips/s", ROUND_TRIPS as f64 / began.elapsed().as_secs_f64())?;
    other.join().map_err(|_| io::Error::other("the other thread panicked"))?
}

/// A loop that sends each number on, less one, until it has been zero.
fn forward(from: Channel<u64>, to: Sender<u64>) -> io::Result<()> {
    let mut event_loop: EventLoop<LoopSignal> = EventLoop::try_new()?;
    insert(&event_loop.handle(), from, move |event, (), signal: &mut LoopSignal| match event {
        channel::Event::Msg(0) | channel::Event::Closed => signal.stop(),
        channel::Event::Msg(left) => {
            // Refused only if the other loop has ended.
            if to.send(left - 1).is_err() {
                signal.stop();
            }
        }
    })?;
    let mut signal = event_loop.get_signal();
    event_loop.run(None, &mut signal, |_| {}).map_err(io::Error::other)
}
