use std::io;

use ruduo::{EventLoop, ServerHandle, TcpServer};

pub fn serve(event_loop: &EventLoop, address: &str) -> io::Result<ServerHandle> {
    TcpServer::bind(event_loop, address)?
        .threads(2)
        .on_message(|conn, input| conn.send_buffer(input))
        .start()
}

pub fn main() -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let server = serve(&event_loop, "127.0.0.1:2007")?;
    println!("listening on {}", server.local_addr());
    event_loop.run()
}
