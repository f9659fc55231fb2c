//! may_minihttp, as its README has it.

mod common;

use std::io;
use std::net::TcpListener;
use std::process::ExitCode;

use common::Task;
use may_minihttp::{HttpServer, HttpService, Request, Response};

fn main() -> ExitCode {
    common::run(|task| match task.name.as_str() {
        "http" => http(task),
        _ => common::unknown(task),
    })
}

fn http(task: &Task) -> io::Result<()> {
    // It does not tell which port it got, so it gets one that was free a moment ago.
    let address = TcpListener::bind(task.address)?.local_addr()?;
    let server = HttpServer(Hello).start(address)?;
    common::listening(address)?;
    server.join().map_err(|_| io::Error::other("the server panicked"))
}

#[derive(Clone)]
struct Hello;

impl HttpService for Hello {
    fn call(&mut self, _: Request<'_, '_, '_>, response: &mut Response<'_>) -> io::Result<()> {
        response.header("Content-Type: text/plain");
        response.body("Hello, World!");
        Ok(())
    }
}
