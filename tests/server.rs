//! Servers.

mod common;

use std::io::Write;

use common::{read_n, serve};
use ruduo::TcpServer;

#[test]
fn echoes() {
    alone!().run(|| {
        let echo = serve(|event_loop| {
            TcpServer::bind(event_loop, "127.0.0.1:0")?
                .on_message(|conn, input| conn.send_buffer(input))
                .start()
        });
        let mut peer = echo.connect();
        peer.write_all(b"hello").unwrap();
        assert_eq!(read_n(&peer, 5), b"hello");
    });
}
