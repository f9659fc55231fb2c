//! ruduo, as its own README would have it.

mod common;

use std::cell::{Cell, RefCell};
use std::io;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use common::{ROUND_TRIPS, TASKS, Task, timers};
use ruduo::{EventLoop, LoopHandle, LoopThread, PostError, TcpServer, TimerId, UdpServer};

fn main() -> ExitCode {
    common::run(|task| match task.name.as_str() {
        "echo" => echo(task, Duration::ZERO),
        "echo-busy" => echo(task, LOOKING),
        "echo-one-acceptor" => echo_on_loops(task, false),
        "echo-acceptors" => echo_on_loops(task, true),
        "udp" => udp(task),
        "timers" => timers::<OfTheCall>(),
        "timers-of-turn" => timers::<OfTheTurn>(),
        "tasks" => tasks(),
        "roundtrips" => round_trips(),
        _ => common::unknown(task),
    })
}

/// How long a loop that looks before it sleeps does that.
const LOOKING: Duration = Duration::from_millis(1);

fn echo(task: &Task, looking: Duration) -> io::Result<()> {
    let event_loop = EventLoop::builder().busy_poll(looking).build()?;
    let server = TcpServer::bind(&event_loop, task.address)?
        .on_message(|conn, input| conn.send_buffer(input))
        .start()?;
    common::listening(server.local_addr())?;
    event_loop.run()
}

/// How many loops serve, where there are several.
const LOOPS: usize = 2;

/// One loop accepts for all of them, or each for itself.
fn echo_on_loops(task: &Task, acceptor_per_loop: bool) -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let server = TcpServer::builder(&event_loop)
        .acceptor_per_loop(acceptor_per_loop)
        .bind(task.address)?
        .threads(LOOPS)
        .on_message(|conn, input| conn.send_buffer(input))
        .start()?;
    common::listening(server.local_addr())?;
    event_loop.run()
}

fn udp(task: &Task) -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let server = UdpServer::bind(&event_loop, task.address)
        .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
        .start()?;
    common::listening(server.local_addr())?;
    event_loop.run()
}

/// What a cancelled timer held is dropped at the end of the turn, so that whole turns have to be
/// measured; and no program cancels a million timers in one.
const PER_TURN: u64 = 1_000;

/// What the delay of a timer counts from.
trait Clock: 'static {
    fn arm(
        event_loop: &EventLoop,
        delay: Duration,
        f: impl FnOnce(&EventLoop) + 'static,
    ) -> TimerId;
}

/// The moment of the call: the clock is read.
struct OfTheCall;

impl Clock for OfTheCall {
    fn arm(
        event_loop: &EventLoop,
        delay: Duration,
        f: impl FnOnce(&EventLoop) + 'static,
    ) -> TimerId {
        event_loop.run_after(delay, f)
    }
}

/// The time of the turn: the clock was read once for all of them.
struct OfTheTurn;

impl Clock for OfTheTurn {
    fn arm(
        event_loop: &EventLoop,
        delay: Duration,
        f: impl FnOnce(&EventLoop) + 'static,
    ) -> TimerId {
        event_loop.run_at(event_loop.now() + delay, f)
    }
}

fn timers<C: Clock>() -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let ids = Rc::new(RefCell::new(Vec::with_capacity(timers::COUNT as usize)));
    let added = ids.clone();
    let add = Phase::begin("add", move |event_loop, i| {
        added.borrow_mut().push(C::arm(event_loop, timers::long(i), |_| {}));
    });
    let cancel = |event_loop: &EventLoop| {
        let cancel = Phase::begin("cancel", move |event_loop, i| {
            event_loop.cancel(ids.borrow()[i as usize]);
        });
        cancel.go_on(event_loop, pair::<C>);
    };
    event_loop.defer(|event_loop| add.go_on(event_loop, cancel));
    event_loop.run()
}

fn pair<C: Clock>(event_loop: &EventLoop) {
    for i in 0..timers::WAITING {
        C::arm(event_loop, timers::long(i), |_| {});
    }
    let pair = Phase::begin("add and cancel", |event_loop, i| {
        let id = C::arm(event_loop, timers::long(i), |_| {});
        event_loop.cancel(id);
    });
    pair.go_on(event_loop, fire::<C>);
}

fn fire<C: Clock>(event_loop: &EventLoop) {
    let began = common::cpu_time();
    let left = Rc::new(Cell::new(timers::COUNT));
    for i in 0..timers::COUNT {
        let left = left.clone();
        C::arm(event_loop, timers::short(i), move |event_loop| {
            left.set(left.get() - 1);
            if left.get() == 0 {
                common::each("add and fire", began);
                event_loop.quit();
            }
        });
    }
}

/// Something that is done a million times, a thousand a turn.
struct Phase<S> {
    name: &'static str,
    step: S,
    next: u64,
    began: Duration,
}

impl<S: FnMut(&EventLoop, u64) + 'static> Phase<S> {
    fn begin(name: &'static str, step: S) -> Phase<S> {
        Phase { name, step, next: 0, began: common::cpu_time() }
    }

    fn go_on(mut self, event_loop: &EventLoop, then: impl FnOnce(&EventLoop) + 'static) {
        if self.next == timers::COUNT {
            common::each(self.name, self.began);
            return then(event_loop);
        }
        for i in self.next..self.next + PER_TURN {
            (self.step)(event_loop, i);
        }
        self.next += PER_TURN;
        event_loop.defer(|event_loop| self.go_on(event_loop, then));
    }
}

thread_local! {
    static SUM: Cell<u64> = const { Cell::new(0) };
}

fn tasks() -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let handle = event_loop.handle();
    let began = Instant::now();
    let producer = std::thread::spawn(move || -> Result<(), PostError> {
        for i in 0..TASKS {
            handle.post(move |_| SUM.set(SUM.get() + i))?;
        }
        handle.post(EventLoop::quit)
    });
    event_loop.run()?;
    let took = began.elapsed();
    producer
        .join()
        .map_err(|_| io::Error::other("the posting thread panicked"))?
        .map_err(io::Error::other)?;
    common::rate("tasks/s", TASKS, took, SUM.get())
}

fn round_trips() -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let other = LoopThread::spawn("other", EventLoop::builder(), |_| Ok(()))?;
    let (here, there) = (event_loop.handle(), other.handle().clone());
    let began = Instant::now();
    there_and_back(here, there, ROUND_TRIPS).map_err(io::Error::other)?;
    event_loop.run()?;
    common::figure("round trips/s", ROUND_TRIPS as f64 / began.elapsed().as_secs_f64())?;
    other.join()
}

fn there_and_back(here: LoopHandle, there: LoopHandle, left: u64) -> Result<(), PostError> {
    there.clone().post(move |_| {
        let back = move |event_loop: &EventLoop| {
            if left == 1 || there_and_back(event_loop.handle(), there, left - 1).is_err() {
                event_loop.quit();
            }
        };
        // Refused only if the loop here has ended, and then nobody waits.
        let _ended = here.post(back);
    })
}
