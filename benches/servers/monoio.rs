//! monoio on io_uring, as its `echo` example has it. Where the kernel refuses io_uring it takes no
//! part: on epoll it would be something else.

mod common;

use std::io;
use std::process::ExitCode;

use common::Task;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, RuntimeBuilder};

fn main() -> ExitCode {
    common::run(|task| match task.name.as_str() {
        "echo" => RuntimeBuilder::<IoUringDriver>::new().build()?.block_on(echo(task)),
        _ => common::unknown(task),
    })
}

async fn echo(task: &Task) -> io::Result<()> {
    let listener = TcpListener::bind(task.address)?;
    common::listening(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        monoio::spawn(serve(stream));
    }
}

async fn serve(mut stream: TcpStream) {
    let mut buffer: Vec<u8> = Vec::with_capacity(16 * 1024);
    let mut result;
    loop {
        (result, buffer) = stream.read(buffer).await;
        if !matches!(result, Ok(n) if n > 0) {
            return;
        }
        (result, buffer) = stream.write_all(buffer).await;
        if result.is_err() {
            return;
        }
        buffer.clear();
    }
}
