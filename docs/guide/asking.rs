use std::io;

use ruduo::{Addresses, ClientHandle, EventLoop, Retry, TcpClient};

pub fn ask(event_loop: &EventLoop, server: impl Into<Addresses>) -> io::Result<ClientHandle> {
    TcpClient::connect(event_loop, server)
        .retry(Retry::exponential())
        .on_connect_failed(|_event_loop, failure| log::warn!("{failure}"))
        .on_connect(|conn| conn.send("a question\n"))
        .on_message(|conn, input| {
            log::info!("the answer: {}", String::from_utf8_lossy(input.readable()).trim_end());
            input.clear();
            conn.event_loop().quit();
        })
        .start()
}
