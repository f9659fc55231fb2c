//! Groups, on this machine alone: joined and left, by interface, looped back or not.

#![allow(clippy::unwrap_used)]

mod common;
mod datagrams;
#[cfg(target_os = "linux")]
mod namespace;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{Receiver, channel};

use common::{eventually, within};
use datagrams::{Running, start, with_fd_at};
use nix::sys::socket::{getsockopt, sockopt};
use ruduo::{Address, Interface, UdpServer};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 77, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(239, 255, 77, 2);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x7764, 1);

/// Receives on all groups it is told of and says what came.
fn listener(
    bind: &'static str,
    groups: Vec<IpAddr>,
    interface: Interface,
    threads: usize,
) -> (Running, Receiver<String>) {
    let (send, receive) = channel();
    let running = start(move |event_loop| {
        let mut udp = UdpServer::bind(event_loop, bind).threads(threads);
        for group in groups {
            udp = udp.join(group, interface.clone());
        }
        udp.on_datagram(move |socket, datagram| {
            let text = String::from_utf8(datagram.bytes().to_vec()).unwrap();
            send.send(text).unwrap();
            socket.answer(datagram, datagram.bytes());
        })
        .start()
    });
    (running, receive)
}

/// Sends to groups on an interface.
fn sender(bind: &'static str, interface: Interface, to_ourselves: bool) -> Running {
    start(move |event_loop| {
        UdpServer::bind(event_loop, bind)
            .multicast_interface(interface)
            .multicast_loop(to_ourselves)
            .multicast_ttl(7)
            .ttl(3)
            .on_datagram(|_, _| {})
            .start()
    })
}

fn send(from: &Running, text: &str, group: impl Into<IpAddr>, to: &Running) {
    let address = Address::Ip((group.into(), to.addr().port()).into());
    from.udp.socket().send_to(text, &address).unwrap();
}

/// By plain sockets, so that nothing of ours is taken for a want of the machine.
fn machine_can_v4() -> bool {
    let outcome = || {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.join_multicast_v4(&GROUP, &Ipv4Addr::LOCALHOST)
    };
    outcome().inspect_err(|e| eprintln!("SKIPPED: no IPv4 multicast on loopback: {e}")).is_ok()
}

/// What the loopback interface is called.
const LO: &str = if cfg!(target_os = "linux") { "lo" } else { "lo0" };

fn loopback() -> Interface {
    Interface::Address(Ipv4Addr::LOCALHOST)
}

#[test]
fn what_is_sent_to_a_group_comes_to_who_has_joined_it_and_can_be_answered() {
    each_poller!().run(|| {
        if !machine_can_v4() {
            return;
        }
        let index = nix::net::if_::if_nametoindex(LO).unwrap();
        for by in [loopback(), Interface::from(LO), Interface::Index(index)] {
            let (member, heard) = listener("0.0.0.0:0", vec![GROUP.into()], by.clone(), 0);
            let sender = sender("127.0.0.1:0", by, true);
            send(&sender, "hello", GROUP, &member);
            assert_eq!(within(&heard), "hello");
            eventually("the answer", || sender.metrics().received == 1);
        }
    });
}

#[test]
fn a_group_is_joined_and_left_while_it_serves() {
    each_poller!().run(|| {
        if !machine_can_v4() {
            return;
        }
        let (member, heard) = listener("0.0.0.0:0", vec![GROUP.into()], loopback(), 0);
        // A member of the other one, on this machine and interface, which is not us.
        let (others, _) = listener("0.0.0.0:0", vec![OTHER.into()], loopback(), 0);
        let sender = sender("127.0.0.1:0", loopback(), true);
        // The other one is not ours yet. What comes to the first later shows that it has not come.
        send(&sender, "to the other", OTHER, &member);
        send(&sender, "to the first", GROUP, &member);
        assert_eq!(within(&heard), "to the first");
        let call = |f: fn(&ruduo::UdpSocket<'_>) -> std::io::Result<()>| {
            let (send, receive) = channel();
            member.udp.socket().post(move |socket| send.send(f(socket)).unwrap()).unwrap();
            within(&receive)
        };
        call(|socket| socket.join(OTHER, Ipv4Addr::LOCALHOST)).unwrap();
        call(|socket| socket.leave(GROUP, Ipv4Addr::LOCALHOST)).unwrap();
        send(&sender, "to the first", GROUP, &member);
        send(&sender, "to the other", OTHER, &member);
        assert_eq!(within(&heard), "to the other");
        let error = call(|socket| socket.leave(GROUP, Ipv4Addr::LOCALHOST)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrNotAvailable);
        assert!(error.to_string().contains("leaving 239.255.77.1"), "{error}");
        drop(others);
    });
}

#[test]
fn of_several_loops_one_hears_a_group() {
    each_poller!().run(|| {
        if !machine_can_v4() {
            return;
        }
        let (member, heard) = listener("0.0.0.0:0", vec![GROUP.into()], loopback(), 3);
        let sender = sender("127.0.0.1:0", loopback(), true);
        for text in ["one", "two", "three"] {
            send(&sender, text, GROUP, &member);
            assert_eq!(within(&heard), text);
        }
        eventually("all answers", || sender.metrics().received == 3);
        member.stop();
        assert_eq!(member.metrics().received, 3);
    });
}

#[test]
fn several_programs_share_the_port_of_a_group() {
    each_poller!().run(|| {
        if !machine_can_v4() {
            return;
        }
        let (send_text, heard) = channel();
        let member = start(move |event_loop| {
            UdpServer::bind(event_loop, "0.0.0.0:0")
                .reuse_address(true)
                .join(GROUP, "127.0.0.1")
                .on_datagram(move |_, datagram| send_text.send(datagram.bytes().to_vec()).unwrap())
                .start()
        });
        let (send_text, heard_too) = channel();
        let port = member.addr().port();
        let second = start(move |event_loop| {
            UdpServer::bind(event_loop, (Ipv4Addr::UNSPECIFIED, port))
                .reuse_address(true)
                .join(GROUP, "127.0.0.1")
                .on_datagram(move |_, datagram| send_text.send(datagram.bytes().to_vec()).unwrap())
                .start()
        });
        let sender = sender("127.0.0.1:0", loopback(), true);
        send(&sender, "to all", GROUP, &member);
        assert_eq!(within(&heard), b"to all");
        assert_eq!(within(&heard_too), b"to all");
        drop(second);
    });
}

#[test]
fn an_address_names_no_interface_for_ipv6() {
    each_poller!().run(|| {
        let event_loop = ruduo::EventLoop::new().unwrap();
        let bind = UdpServer::bind(&event_loop, "[::]:0").join(GROUP_V6, "127.0.0.1");
        let error = bind.on_datagram(|_, _| {}).start().unwrap_err();
        assert!(error.to_string().contains("names no interface for IPv6"), "{error}");
    });
}

/// Runs a test in a network of its own with the interface `near`, which knows groups of both kinds: the
/// loopback interface has none of IPv6, and brings back what it is told not to.
#[cfg(target_os = "linux")]
fn with_an_interface(alone: common::Alone, body: impl FnOnce()) {
    namespace::run(alone, &[namespace::CABLE], || {
        namespace::lay_cable(&["10.77.0.1/24", "fd77::1/64"]);
        body();
    });
}

#[cfg(target_os = "linux")]
#[test]
fn ipv6_has_groups_too() {
    with_an_interface(each_poller!(), || {
        const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x7764, 2);
        let index = nix::net::if_::if_nametoindex("near").unwrap();
        for by in [Interface::Index(index), Interface::from("near")] {
            let (member, heard) = listener("[::]:0", vec![GROUP_V6.into()], by.clone(), 0);
            let (others, _) = listener("[::]:0", vec![OTHER_V6.into()], by.clone(), 0);
            let sender = sender("[fd77::1]:0", by.clone(), true);
            send(&sender, "to the other", OTHER_V6, &member);
            send(&sender, "hello", GROUP_V6, &member);
            assert_eq!(within(&heard), "hello");
            eventually("the answer", || sender.metrics().received == 1);

            let (told, outcome) = channel();
            let change = move |socket: &ruduo::UdpSocket<'_>| {
                socket.join(OTHER_V6, by.clone()).unwrap();
                socket.leave(GROUP_V6, by.clone()).unwrap();
                let error = socket.leave(GROUP_V6, by.clone()).unwrap_err();
                told.send(error.to_string()).unwrap();
            };
            member.udp.socket().post(change).unwrap();
            let error = within(&outcome);
            assert!(error.starts_with(&format!("leaving {GROUP_V6}")), "{error}");
            send(&sender, "hello", GROUP_V6, &member);
            send(&sender, "to the other", OTHER_V6, &member);
            assert_eq!(within(&heard), "to the other");
            drop(others);
        }
    });
}

#[cfg(target_os = "linux")]
#[test]
fn what_is_not_to_be_looped_back_is_not_heard_here() {
    with_an_interface(each_poller!(), || {
        let groups: [(_, _, IpAddr); 2] = [
            ("0.0.0.0:0", "10.77.0.1:0", GROUP.into()),
            ("[::]:0", "[fd77::1]:0", GROUP_V6.into()),
        ];
        for (bind, from, group) in groups {
            let (member, heard) = listener(bind, vec![group], "near".into(), 0);
            let to_others = sender(from, "near".into(), false);
            let to_all = sender(from, "near".into(), true);
            send(&to_others, "to others", group, &member);
            eventually("it has left", || to_others.metrics().sent == 1);
            send(&to_all, "to all", group, &member);
            assert_eq!(within(&heard), "to all");
        }
    });
}

/// The groups of IPv4 that a socket for both is in are reached and counted as it is told, too.
#[cfg(target_os = "linux")]
#[test]
fn a_socket_for_both_has_the_options_of_both() {
    with_an_interface(each_poller!(), || {
        let (member, heard) = listener("0.0.0.0:0", vec![GROUP.into()], "near".into(), 0);
        let to_others = sender("[::]:0", "near".into(), false);
        let to_all = sender("[::]:0", "near".into(), true);
        send(&to_others, "to others", GROUP, &member);
        eventually("it has left", || to_others.metrics().sent == 1);
        send(&to_all, "to all", GROUP, &member);
        assert_eq!(within(&heard), "to all");
        with_fd_at(to_all.addr().port(), |fd| {
            assert_eq!(getsockopt(&fd, sockopt::Ipv4Ttl).unwrap(), 3);
            assert_eq!(getsockopt(&fd, sockopt::Ipv6Ttl).unwrap(), 3);
            assert_eq!(getsockopt(&fd, sockopt::IpMulticastTtl).unwrap(), 7);
            assert_eq!(number(fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS), 7);
            let near = nix::net::if_::if_nametoindex("near").unwrap();
            assert_eq!(number(fd, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF), near);
        });
    });
}

/// An option's value.
#[cfg(target_os = "linux")]
fn number(fd: BorrowedFd<'_>, level: libc::c_int, option: libc::c_int) -> u32 {
    use std::os::fd::AsRawFd;

    let (mut value, mut len) = (0_u32, size_of::<u32>() as libc::socklen_t);
    let start = (&raw mut value).cast();
    // SAFETY: both pointers are valid for writing, and the length says how much room there is.
    let outcome = unsafe { libc::getsockopt(fd.as_raw_fd(), level, option, start, &raw mut len) };
    assert_eq!((outcome, len as usize), (0, size_of::<u32>()));
    value
}

#[cfg(target_os = "linux")]
#[test]
fn an_interface_for_groups_may_be_given_by_its_address() {
    each_poller!().run(|| {
        for (by, expected) in
            [(loopback(), Ipv4Addr::LOCALHOST), (Interface::Any, Ipv4Addr::UNSPECIFIED)]
        {
            let sender = sender("127.0.0.1:0", by, true);
            with_fd_at(sender.addr().port(), |fd| {
                let chosen = number(fd, libc::IPPROTO_IP, libc::IP_MULTICAST_IF);
                assert_eq!(Ipv4Addr::from(chosen.to_ne_bytes()), expected);
            });
        }
    });
}

#[test]
fn hops_are_counted_and_groups_looped_back_as_told() {
    each_poller!().run(|| {
        // The loopback interface brings everything back, whatever is told, so the kernel is asked.
        for to_ourselves in [true, false] {
            let sender = sender("127.0.0.1:0", Interface::Any, to_ourselves);
            let looped = |fd: BorrowedFd<'_>| getsockopt(&fd, sockopt::IpMulticastLoop).unwrap();
            assert_eq!(with_fd_at(sender.addr().port(), looped), to_ourselves);
        }
        let sender = sender("127.0.0.1:0", Interface::Any, true);
        with_fd_at(sender.addr().port(), |fd| {
            #[cfg(target_os = "linux")]
            assert_eq!(getsockopt(&fd, sockopt::Ipv4Ttl).unwrap(), 3);
            assert_eq!(getsockopt(&fd, sockopt::IpMulticastTtl).unwrap(), 7);
        });
    });
}
