use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ruduo::{Buffer, Connection, EventLoop, Handler, LineCodec, ServerHandle, TcpServer};

/// What has been stored, for all connections.
struct Store {
    entries: RefCell<HashMap<Vec<u8>, Vec<u8>>>,
    most: usize,
}

impl Store {
    fn set(&self, key: &[u8], value: &[u8]) -> bool {
        let mut entries = self.entries.borrow_mut();
        let has_room = entries.len() < self.most || entries.contains_key(key);
        if has_room {
            entries.insert(key.to_vec(), value.to_vec());
        }
        has_room
    }
}

struct Session {
    lines: LineCodec,
    store: Rc<Store>,
}

impl Handler for Session {
    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        while let Some(line) = self.lines.decode(conn, input) {
            let mut words = line.splitn(3, |byte| *byte == b' ');
            match (words.next(), words.next(), words.next()) {
                (Some(b"set"), Some(key), Some(value)) => {
                    conn.send(if self.store.set(key, value) { "stored\n" } else { "full\n" });
                }
                (Some(b"get"), Some(key), None) => {
                    if let Some(value) = self.store.entries.borrow().get(key) {
                        conn.send(value);
                    }
                    conn.send("\n");
                }
                _ => conn.send("set KEY VALUE, or get KEY\n"),
            }
        }
        if let Some(error) = conn.rejection() {
            conn.send(format!("{error}\n"));
        }
    }
}

pub fn serve(event_loop: &EventLoop, address: &str, most: usize) -> io::Result<ServerHandle> {
    TcpServer::bind(event_loop, address)?.idle_timeout(Duration::from_secs(600)).serve_per_loop(
        move |_event_loop| {
            let store = Rc::new(Store { entries: RefCell::default(), most });
            move |_conn| Session {
                lines: LineCodec::lf_or_crlf().max_len(1000),
                store: store.clone(),
            }
        },
    )
}
