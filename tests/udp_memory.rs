//! What a datagram costs in memory: nothing, once a few have come; nor does a socket that is idle.

#![allow(clippy::unwrap_used)]

mod common;
mod datagrams;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;

use common::{eventually, within};
use datagrams::{Running, hold, recv, start};
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
        running.peer().send(&[7; 20_000]).unwrap();
        eventually("it has come", || running.metrics().sent == 1);
        let before = count();
        for udp in &all {
            // All of it is queued for a moment.
            let peer = datagrams::peer("127.0.0.1:0");
            peer.connect(udp.local_addr()).unwrap();
            peer.send(&[7; 20_000]).unwrap();
            assert_eq!(recv(&peer), [7; 20_000]);
        }
        let after = count();
        assert!(after - before < 100_000, "{} bytes", after - before);
    });
}

/// How many bytes the thread of the loop has.
fn bytes_of(running: &Running) -> i64 {
    let (send, receive) = channel();
    running.event_loop().post(move |_| send.send(BYTES.get()).unwrap()).unwrap();
    within(&receive)
}

#[test]
fn a_loop_keeps_room_of_a_few_sizes_only() {
    each_poller!().run(|| {
        let (send, receive) = channel();
        let running = start(move |event_loop| {
            let bind = |size: usize| {
                UdpServer::bind(event_loop, "127.0.0.1:0")
                    .batch(16)
                    .receive_size(size)
                    .on_datagram(|socket, datagram| socket.answer(datagram, datagram.bytes()))
                    .start()
            };
            send.send((1..=12).map(|i| bind(10_000 * i)).collect::<Vec<_>>()).unwrap();
            bind(1)
        });
        let before = bytes_of(&running);
        for udp in within(&receive) {
            let peer = datagrams::peer("127.0.0.1:0");
            peer.connect(udp.unwrap().local_addr()).unwrap();
            datagrams::assert_echoes(&peer);
        }
        // Of the largest four: 16 times 90,000 bytes, and so on.
        let more = bytes_of(&running) - before;
        assert!(more < 7_000_000, "{more} bytes");
    });
}

#[test]
fn what_was_queued_gives_its_memory_back() {
    each_poller!().run(|| {
        let running = start(|event_loop| {
            UdpServer::bind(event_loop, "127.0.0.1:0")
                .queue_limit(64 << 20)
                .on_datagram(|socket, datagram| {
                    (0..300).for_each(|_| socket.answer(datagram, [7; 60_000]));
                })
                .start()
        });
        let before = bytes_of(&running);
        running.peer().send(b"go").unwrap();
        eventually("all has left", || running.metrics().sent == 300);
        // The room to receive, and for what is queued a few megabytes at most.
        let more = bytes_of(&running) - before;
        assert!(more < 32 * 65_535 + (4 << 20) + 100_000, "{more} bytes");
    });
}

/// In a queue that is never empty, what has left makes room for what comes.
#[cfg(target_os = "linux")]
#[test]
fn a_queue_that_is_never_empty_does_not_grow() {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use ruduo::UdpClient;

    each_poller!().run(|| {
        let name = format!("ruduo-memory-{}", std::process::id());
        let reader = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap());
        let reader = reader.unwrap();
        reader.set_read_timeout(Some(common::DEADLINE)).unwrap();
        let running = start(move |event_loop| {
            UdpClient::connect(event_loop, format!("unix:@{name}")).on_datagram(|_, _| {}).start()
        });
        let send = || running.udp.socket().send([7; 1000]).unwrap();
        let receive = || assert_eq!(reader.recv(&mut [0; 2000]).unwrap(), 1000);
        // More than the reader's kernel keeps.
        (0..600).for_each(|_| send());
        let before = bytes_of(&running);
        for _ in 0..5000 {
            send();
            receive();
        }
        assert!(bytes_of(&running) - before < 1_000_000, "of 5,000,000 bytes");
        assert!(running.metrics().sent < 5600);
        (0..600).for_each(|_| receive());
    });
}
