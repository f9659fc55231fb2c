//! What a datagram costs in memory: nothing, once a few have come; nor does a socket that is idle.

#![allow(clippy::unwrap_used)]

mod common;
mod datagrams;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;

use common::within;
use datagrams::{hold, recv, start};
use ruduo::{EventLoop, UdpServer};

thread_local! {
    /// Allocations of this thread, and bytes that it has and has not freed.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

fn count(allocations: u64, bytes: i64) {
    // A thread that ends has no counts any more.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + allocations));
    let _ = BYTES.try_with(|count| count.set(count.get() + bytes));
}

// SAFETY: it is the system's allocator; the counts are beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(1, layout.size() as i64);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(0, -(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(1, size as i64 - layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn datagrams_are_received_and_answered_without_an_allocation() {
    each_poller!().run(|| {
        for (batch, gso) in [(1, false), (32, false), (32, true)] {
            let counted = Arc::new(AtomicU64::new(0));
            let tell = counted.clone();
            let running = start(move |event_loop| {
                UdpServer::bind(event_loop, "127.0.0.1:0")
                    .batch(batch)
                    .gso(gso)
                    .gro(gso)
                    .timestamps(true)
                    .on_datagram(move |socket, datagram| {
                        tell.store(ALLOCATIONS.get(), Ordering::Relaxed);
                        assert_eq!(datagram.peer().ip(), socket.local_addr().ip());
                        socket.answer(datagram, datagram.bytes());
                    })
                    .start()
            });
            let peer = running.peer();
            let echo_some = || {
                for i in 0..50_u8 {
                    peer.send(&[i; 700]).unwrap();
                }
                for i in 0..50 {
                    assert_eq!(recv(&peer), [i; 700]);
                }
            };
            // The largest batch that there is.
            let release = hold(running.event_loop());
            (0..50).for_each(|_| assert_eq!(peer.send(&[1; 700]).unwrap(), 700));
            drop(release);
            (0..50).for_each(|_| assert_eq!(recv(&peer), [1; 700]));
            let before = counted.load(Ordering::Relaxed);
            (0..40).for_each(|_| echo_some());
            let allocations = counted.load(Ordering::Relaxed) - before;
            // On a busy machine there may be a line in the log.
            assert!(allocations < 50, "batch {batch}: {allocations} for 2,000 datagrams");
        }
    });
}

#[test]
fn sockets_that_are_idle_share_the_room_to_receive() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let running = start(move |event_loop| {
            let bind = |event_loop: &EventLoop| {
                UdpServer::bind(event_loop, "127.0.0.1:0")
                    .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                    .start()
            };
            let first = bind(event_loop)?;
            let before = BYTES.get();
            let all = (0..200).map(|_| bind(event_loop)).collect::<std::io::Result<Vec<_>>>()?;
            let post = move |_: &EventLoop| send.send((all, BYTES.get() - before)).unwrap();
            event_loop.handle().post(post)?;
            Ok(first)
        });
        let (all, bytes) = within(&receive);
        assert!(bytes / 200 < 2000, "{} bytes each", bytes / 200);
        // Each of them has worked once, and holds no more than before.
        let count = || {
            let (send, receive) = channel();
            running.event_loop().post(move |_| send.send(BYTES.get()).unwrap()).unwrap();
            within(&receive)
        };
        running.assert_echoes();
        let before = count();
        for udp in &all {
            let peer = datagrams::peer("127.0.0.1:0");
            peer.connect(udp.local_addr()).unwrap();
            datagrams::assert_echoes(&peer);
        }
        let after = count();
        assert!(after - before < 100_000, "{} bytes", after - before);
    });
}
