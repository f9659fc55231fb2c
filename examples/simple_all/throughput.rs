//! How fast bytes move, told while they do.

use std::time::Duration;

use ruduo::EventLoop;

const PERIOD: Duration = Duration::from_secs(3);

/// Every 3 seconds logs by how much `count` has grown since the last look, unless it has not.
pub(crate) fn log_throughput(
    event_loop: &EventLoop,
    service: &'static str,
    count: impl Fn() -> u64 + 'static,
) {
    let (mut last_count, mut last_look) = (count(), event_loop.now());
    event_loop.run_every(PERIOD, move |event_loop| {
        let (count, now) = (count(), event_loop.now());
        // A busy loop looks late, so what counts is the time that has really passed.
        let (bytes, seconds) = (count - last_count, (now - last_look).as_secs_f64());
        (last_count, last_look) = (count, now);
        if bytes > 0 {
            let rate = bytes as f64 / seconds / f64::from(1 << 20);
            log::info!("{service}: {bytes} bytes in {seconds:.1} s, {rate:.1} MiB/s");
        }
    });
}
