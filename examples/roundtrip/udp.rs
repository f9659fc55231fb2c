//! Over UDP: a datagram is a message, and some get lost. When it has come is told by the kernel, so
//! that what the program did meanwhile does not count.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ruduo::{
    Addresses, Datagram, DatagramError, EventLoop, UdpClient, UdpHandle, UdpHandler, UdpServer,
    UdpSocket, UdpSocketHandle,
};

use crate::message::{LEN, Message, answer, microseconds, now};
use crate::questions::{PATIENCE, Questions};

/// One byte more than a message has, so that what is longer is seen to be.
const ROOM: usize = LEN + 1;

fn come(datagram: &Datagram) -> i64 {
    datagram.received_at().map_or_else(now, microseconds)
}

pub(crate) fn serve(
    event_loop: &EventLoop,
    listen: Addresses,
    threads: usize,
) -> io::Result<UdpHandle> {
    UdpServer::bind(event_loop, listen)
        .threads(threads)
        .timestamps(true)
        .receive_size(ROOM)
        .on_datagram(|socket, datagram| match answer(datagram.bytes(), come(datagram)) {
            Some(filled_in) => socket.answer(datagram, filled_in),
            None => log::debug!("{}: {} bytes", datagram.peer(), datagram.size()),
        })
        .start()
}

/// Asks until all is answered, or the last has had its time, or a signal comes.
pub(crate) fn ask(event_loop: &EventLoop, server: Addresses, interval: Duration) -> io::Result<()> {
    let client = UdpClient::connect(event_loop, server)
        .timestamps(true)
        .receive_size(ROOM)
        .serve(|event_loop| Asking(event_loop.local()))?;
    ask_next(event_loop, client.socket().clone(), interval);
    event_loop.run()
}

fn ask_next(event_loop: &EventLoop, socket: UdpSocketHandle, interval: Duration) {
    let question = event_loop.local::<RefCell<Questions>>().borrow_mut().next();
    let Some(question) = question else {
        event_loop.run_after(PATIENCE, EventLoop::quit);
        return;
    };
    // It ends with the loop only.
    let _ = socket.send(question);
    event_loop.run_after(interval, move |event_loop| {
        ask_next(event_loop, socket, interval);
    });
}

struct Asking(Rc<RefCell<Questions>>);

impl UdpHandler for Asking {
    fn on_datagram(&mut self, socket: &UdpSocket, datagram: &Datagram) {
        let mut questions = self.0.borrow_mut();
        let taken = match Message::decode(datagram.bytes()) {
            Some(answer) => questions.take(answer, come(datagram)),
            None => Ok(false),
        };
        match taken {
            Ok(true) if questions.are_over() => socket.event_loop().quit(),
            Ok(true) => {}
            Ok(false) => log::warn!("{}: an answer to no question", datagram.peer()),
            // Nobody reads what is printed.
            Err(_) => socket.event_loop().quit(),
        }
    }

    /// The server may come yet, or come back.
    fn on_error(&mut self, _socket: &UdpSocket, error: &DatagramError) {
        log::warn!("{error}");
    }
}
