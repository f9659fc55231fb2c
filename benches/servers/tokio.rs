//! tokio, as its own pages have it, on one thread or with its scheduler for several.

mod common;

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::process::ExitCode;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::thread;
use std::time::Instant;

use common::{ROUND_TRIPS, TASKS, Task, timers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{Sleep, sleep};

fn main() -> ExitCode {
    common::run(|task| match task.name.as_str() {
        "echo" => one_thread()?.block_on(echo(task)),
        "echo-threads" => {
            Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(echo(task))
        }
        "udp" => one_thread()?.block_on(udp(task)),
        "timers" => LocalSet::new().block_on(&one_thread()?, timers()),
        "tasks" => tasks(),
        "roundtrips" => round_trips(),
        _ => common::unknown(task),
    })
}

fn one_thread() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

async fn echo(task: &Task) -> io::Result<()> {
    let listener = TcpListener::bind(task.address).await?;
    common::listening(listener.local_addr()?)?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(n) = stream.read(&mut buffer).await {
                if n == 0 || stream.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn udp(task: &Task) -> io::Result<()> {
    let socket = UdpSocket::bind(task.address).await?;
    common::listening(socket.local_addr()?)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (n, from) = socket.recv_from(&mut buffer).await?;
        socket.send_to(&buffer[..n], from).await?;
    }
}

async fn timers() -> io::Result<()> {
    // A sleep is armed when it is first polled, and disarmed by its drop.
    let arm = |i| {
        let mut timer: Pin<Box<Sleep>> = Box::pin(sleep(timers::long(i)));
        let _pending = timer.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        timer
    };
    let began = common::cpu_time();
    let mut armed: Vec<_> = (0..timers::COUNT).map(arm).collect();
    common::each("add", began);

    let began = common::cpu_time();
    armed.clear();
    common::each("cancel", began);

    armed.extend((0..timers::WAITING).map(arm));
    let began = common::cpu_time();
    for i in 0..timers::COUNT {
        drop(arm(i));
    }
    common::each("add and cancel", began);

    let began = common::cpu_time();
    let fired = Rc::new(Cell::new(0));
    let all: Vec<_> = (0..timers::COUNT)
        .map(|i| {
            let fired = fired.clone();
            tokio::task::spawn_local(async move {
                sleep(timers::short(i)).await;
                fired.set(fired.get() + 1);
            })
        })
        .collect();
    for one in all {
        one.await?;
    }
    if fired.get() != timers::COUNT {
        return Err(io::Error::other("timers were lost"));
    }
    common::each("add and fire", began);
    Ok(())
}

fn tasks() -> io::Result<()> {
    let (to, mut tasks) = mpsc::unbounded_channel();
    let runtime = one_thread()?;
    let began = Instant::now();
    let producer = thread::spawn(move || (0..TASKS).all(|i| to.send(i).is_ok()));
    let sum = runtime.block_on(async {
        let mut sum = 0;
        while let Some(i) = tasks.recv().await {
            sum += i;
        }
        sum
    });
    let took = began.elapsed();
    producer.join().map_err(|_| io::Error::other("the posting thread panicked"))?;
    common::rate("tasks/s", TASKS, took, sum)
}

fn round_trips() -> io::Result<()> {
    let (here, mut to_here) = mpsc::unbounded_channel();
    let (there, mut to_there) = mpsc::unbounded_channel();
    let (runtime, other) = (one_thread()?, one_thread()?);
    let began = Instant::now();
    let other = thread::spawn(move || {
        other.block_on(async {
            while let Some(i) = to_there.recv().await {
                if here.send(i).is_err() {
                    return;
                }
            }
        });
    });
    runtime.block_on(async {
        for i in 0..ROUND_TRIPS {
            if there.send(i).is_err() || to_here.recv().await != Some(i) {
                return Err(io::Error::other("the other loop is gone"));
            }
        }
        Ok(())
    })?;
    common::figure("round trips/s", ROUND_TRIPS as f64 / began.elapsed().as_secs_f64())?;
    drop(there);
    other.join().map_err(|_| io::Error::other("the other thread panicked"))
}
