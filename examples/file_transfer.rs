//! Sends a file to everybody who connects, and ends so that nothing of it is lost.
//!
//! Three ways to send, the same end: [`Connection::finish`]. All that is queued leaves, then the end
//! of our stream (FIN); what the peer has said or still says is received and thrown away until it
//! ends too. To close at once instead, with a single byte unread, makes the kernel send a reset, at
//! which the peer may lose what is on its way to it. A peer that does not end is cut after a while
//! (`linger`), and so is one that stops taking the file (`write_stall_timeout`).
//!
//! A stream has no other sign that it is complete than its end. So whatever goes wrong in the middle
//! (the file cannot be read any more, the peer is cut) ends with a reset, which nobody takes for the
//! end of the file.

mod common;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use common::{Long, Stop};
use lexopt::Arg::Value;
use ruduo::{Buffer, CloseReason, Connection, EventLoop, Handler, Server, ServerHandle};

const HELP: &str = "\
Sends a file over TCP to everybody who connects, then ends the connection.

Usage: file_transfer [FILE] [--way WAY] [--listen ADDRESS] [--threads N]
                     [--stall SECONDS] [--linger SECONDS]

  FILE              what to send [this program's own file]
  --way WAY         how: whole, chunks or sendfile [sendfile]
  --listen ADDRESS  where to listen; port 0 is any free one [127.0.0.1:2021]
  --threads N       threads that serve connections; 0: the accepting one [0]
  --stall SECONDS   how long a peer may take nothing of the file [60]
  --linger SECONDS  how long a peer that has the file may take to end [5]
  --help            this text

To receive: nc 127.0.0.1 2021 </dev/null >copy

SIGINT (Ctrl-C) and SIGTERM stop it; files on their way then have 60 seconds to arrive.
RUST_LOG=debug tells of each connection.";

#[derive(Clone, Copy)]
enum Way {
    /// In memory, once for all connections: simple, and for files that fit there.
    Whole,
    /// 64 KiB of it at a time, each when the one before has left. As much memory as that, and the
    /// way for what is made while it is sent.
    Chunks,
    /// sendfile(2): the kernel takes it from its cache of the file, and it never comes here.
    Sendfile,
}

impl FromStr for Way {
    type Err = String;
    fn from_str(text: &str) -> Result<Way, String> {
        match text {
            "whole" => Ok(Way::Whole),
            "chunks" => Ok(Way::Chunks),
            "sendfile" => Ok(Way::Sendfile),
            _ => Err("neither whole, chunks nor sendfile".to_owned()),
        }
    }
}

fn main() -> ExitCode {
    common::run(HELP, |mut arguments| {
        let (mut listen, mut threads, mut way) = (common::loopback(2021), 0, Way::Sendfile);
        let (mut stall, mut linger) = (Duration::from_secs(60), Duration::from_secs(5));
        let mut path: Option<PathBuf> = None;
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("way") => way = arguments.value()?,
                Long("listen") => listen = arguments.value()?,
                Long("threads") => threads = arguments.value()?,
                Long("stall") => stall = common::seconds("--stall", arguments.value()?)?,
                Long("linger") => linger = common::seconds("--linger", arguments.value()?)?,
                Value(file) if path.is_none() => path = Some(file.into()),
                other => return Err(other.unexpected().into()),
            }
        }
        let path = path.map_or_else(std::env::current_exe, Ok)?;
        let (file, len) = open(&path)
            .map_err(|e| io::Error::new(e.kind(), format!("opening {}: {e}", path.display())))?;
        let event_loop = EventLoop::new()?;
        let server = Server::bind(&event_loop, listen)?
            .threads(threads)
            .write_stall_timeout(stall)
            .linger(linger);
        let server = serve(server, way, file, len)?;
        server.stop_on_signals(&event_loop, Duration::from_secs(60))?;
        common::announce(format_args!("listening on {}", server.local_addr()))?;
        Ok::<(), Stop>(event_loop.run()?)
    })
}

fn open(path: &PathBuf) -> io::Result<(File, u64)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok((file, metadata.len()))
}

fn serve(server: Server<'_>, way: Way, file: File, len: u64) -> io::Result<ServerHandle> {
    match way {
        Way::Whole => {
            let bytes: Arc<[u8]> = read_whole(&file, len)?.into();
            // What waits is one file for all, but each connection counts it.
            let room = 2 * bytes.len() + (64 << 20);
            server
                .output_limit(room)
                .on_connect(move |conn| {
                    conn.send_shared(bytes.clone());
                    conn.finish();
                })
                .on_message(|_, input| input.clear())
                // It goes on, behind our end.
                .on_stopping(|_| {})
                .on_close(report)
                .start()
        }
        Way::Chunks => {
            let file = Arc::new(file);
            server.serve(move |_| Chunks { file: file.clone(), offset: 0, len })
        }
        Way::Sendfile => server
            .on_connect(move |conn| match file.try_clone() {
                Ok(file) => {
                    conn.send_file(file, 0, len);
                    conn.finish();
                }
                Err(e) => {
                    log::error!("opening the file once more: {e}");
                    conn.reset();
                }
            })
            .on_message(|_, input| input.clear())
            .on_stopping(|_| {})
            .on_close(report)
            .start(),
    }
}

fn read_whole(file: &File, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

const CHUNK: u64 = 64 * 1024;

struct Chunks {
    file: Arc<File>,
    offset: u64,
    len: u64,
}

impl Handler for Chunks {
    fn on_connect(&mut self, conn: &Connection) {
        self.send_next(conn);
    }

    fn on_write_complete(&mut self, conn: &Connection) {
        // Also once more after the last chunk, when there is nothing to be sent any more.
        if conn.takes_output() {
            self.send_next(conn);
        }
    }

    /// Whatever the peer says, it does not concern the file.
    fn on_message(&mut self, _: &Connection, input: &mut Buffer) {
        input.clear();
    }

    /// It has no more to say, and gets its file nevertheless: not the end of our stream yet.
    fn on_half_close(&mut self, _: &Connection) {}

    fn on_stopping(&mut self, _: &Connection) {}

    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        report(conn, reason);
    }
}

impl Chunks {
    fn send_next(&mut self, conn: &Connection) {
        let mut chunk = vec![0; CHUNK.min(self.len - self.offset) as usize];
        match self.file.read_exact_at(&mut chunk, self.offset) {
            Ok(()) => {
                self.offset += chunk.len() as u64;
                conn.send_buffer(&mut Buffer::from(chunk));
                if self.offset == self.len {
                    conn.finish();
                }
            }
            Err(e) => {
                log::error!("reading the file at {}: {e}", self.offset);
                conn.reset();
            }
        }
    }
}

fn report(conn: &Connection, reason: &CloseReason) {
    log::info!("{} got {} bytes: {reason}", conn.peer_addr(), conn.bytes_sent());
}
