use std::collections::HashMap;
use std::io;

use ruduo::{
    Address, Addresses, Datagram, DatagramError, EventLoop, UdpClient, UdpHandle, UdpHandler,
    UdpServer, UdpSocket,
};

#[derive(Default)]
struct Census {
    seen: HashMap<Address, u64>,
}

impl UdpHandler for Census {
    fn on_datagram(&mut self, socket: &UdpSocket, datagram: &Datagram) {
        let count = self.seen.entry(datagram.peer()).or_default();
        *count += 1;
        socket.answer(datagram, format!("your number {count}, of {} bytes", datagram.size()));
    }

    fn on_error(&mut self, _socket: &UdpSocket, error: &DatagramError) {
        log::warn!("{error}");
    }
}

pub fn serve(event_loop: &EventLoop, address: &str) -> io::Result<UdpHandle> {
    UdpServer::bind(event_loop, address).serve(|_event_loop| Census::default())
}

pub fn ask(event_loop: &EventLoop, server: impl Into<Addresses>) -> io::Result<UdpHandle> {
    UdpClient::connect(event_loop, server)
        .on_start(|socket| socket.send("a question"))
        .on_datagram(|socket, datagram| {
            log::info!("the answer: {}", String::from_utf8_lossy(datagram.bytes()));
            socket.event_loop().quit();
        })
        .on_error(|socket, error| {
            log::error!("{error}");
            socket.event_loop().quit();
        })
        .start()
}
