//! Micro-benchmarks of the parts on the hot path: `cargo bench -p ruduo-bench`. They find out what
//! became slower; whether it matters, the kit says.

use std::cell::Cell;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::Duration;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use ruduo::{Buffer, Channel, EventLoop, Interest};

fn main() {
    divan::main();
}

mod buffer {
    use super::*;

    #[divan::bench(args = [16, 1024, 16384])]
    fn append_and_consume(bencher: Bencher<'_, '_>, length: usize) {
        let bytes = vec![7; length];
        let mut buffer = Buffer::with_capacity(64 * 1024);
        bencher.counter(BytesCount::new(length)).bench_local(|| {
            buffer.append(black_box(&bytes));
            buffer.consume(length);
        });
    }

    /// The end of a line that is that far away.
    #[divan::bench(args = [16, 1024, 65536])]
    fn find_crlf(bencher: Bencher<'_, '_>, length: usize) {
        let mut buffer = Buffer::with_capacity(length + 2);
        buffer.append(&vec![b'x'; length]);
        buffer.append(b"\r\n");
        bencher.counter(BytesCount::new(length)).bench_local(|| black_box(&buffer).find_crlf());
    }

    #[divan::bench]
    fn integers(bencher: Bencher<'_, '_>) {
        let mut buffer = Buffer::with_capacity(64);
        bencher.bench_local(|| {
            buffer.append_u32(black_box(7));
            buffer.read_u32()
        });
    }
}

/// How many things are done in one measured run, so that a loop's start does not count.
const MANY: usize = 10_000;

/// Runs a loop in which `work` is done first, and which ends when that says so.
fn in_a_loop(bencher: Bencher<'_, '_>, work: impl Fn(&EventLoop) + Copy + 'static) {
    bencher
        .counter(ItemsCount::new(MANY))
        .with_inputs(|| EventLoop::new().expect("a loop"))
        .bench_local_values(|event_loop| {
            event_loop.defer(work);
            event_loop.run().expect("a loop that runs");
        });
}

mod timers {
    use super::*;

    #[divan::bench]
    fn add_and_cancel(bencher: Bencher<'_, '_>) {
        in_a_loop(bencher, |event_loop| {
            for i in 0..MANY as u64 {
                let id = event_loop.run_after(Duration::from_micros(i * 100 + 1), |_| {});
                event_loop.cancel(id);
            }
            event_loop.quit();
        });
    }

    #[divan::bench]
    fn fire(bencher: Bencher<'_, '_>) {
        in_a_loop(bencher, |event_loop| {
            let left = Rc::new(Cell::new(MANY));
            for _ in 0..MANY {
                let left = left.clone();
                event_loop.run_after(Duration::ZERO, move |event_loop| {
                    left.set(left.get() - 1);
                    if left.get() == 0 {
                        event_loop.quit();
                    }
                });
            }
        });
    }
}

mod tasks {
    use super::*;

    #[divan::bench]
    fn defer(bencher: Bencher<'_, '_>) {
        in_a_loop(bencher, |event_loop| {
            for _ in 0..MANY {
                event_loop.defer(|_| {});
            }
            event_loop.defer(EventLoop::quit);
        });
    }

    /// By the handle that other threads have, on the loop itself: no wakeup.
    #[divan::bench]
    fn post(bencher: Bencher<'_, '_>) {
        in_a_loop(bencher, |event_loop| {
            let handle = event_loop.handle();
            for _ in 0..MANY {
                handle.post(|_| {}).expect("a loop that runs");
            }
            handle.post(EventLoop::quit).expect("a loop that runs");
        });
    }
}

mod dispatch {
    use super::*;

    /// From the kernel's event to the callback of its channel, and no more: a level-triggered
    /// source that stays ready.
    #[divan::bench]
    fn event(bencher: Bencher<'_, '_>) {
        in_a_loop(bencher, |event_loop| {
            let (ours, mut theirs) = UnixStream::pair().expect("a pair");
            theirs.write_all(b"x").expect("room for a byte");
            let left = Cell::new(MANY);
            let channel = Channel::new(ours, Interest::READ, move |event_loop, _, _| {
                // It lives as long as it is to be ready.
                let _open = &theirs;
                left.set(left.get() - 1);
                if left.get() == 0 {
                    event_loop.quit();
                }
            });
            event_loop.register(channel).expect("a channel");
        });
    }
}
