use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ruduo::{
    Buffer, CloseReason, Connection, ConnectionHandle, ConnectionId, DecodeError, EventLoop,
    FrameCodec, Handler, LoopHandle, LoopPool, ServerHandle, TcpServer,
};

/// What clients send: first a name, then messages.
const TEXTS: FrameCodec = FrameCodec::u16().max_len(1000);

/// What the hub sends: a name and a message.
const NEWS: FrameCodec = FrameCodec::u16().max_len(1000 + 2 + 1000);

struct Session {
    name: Option<String>,
    patience: Duration,
    room: Rc<Room>,
    loops: Arc<[LoopHandle]>,
}

/// The members on one loop.
#[derive(Default)]
struct Room {
    members: RefCell<HashMap<ConnectionId, ConnectionHandle>>,
}

impl Room {
    fn tell(&self, news: &Arc<[u8]>) {
        for member in self.members.borrow().values() {
            let _ = member.send_shared(news.clone());
        }
    }
}

impl Session {
    fn tell_everybody(&self, text: String) {
        let Ok(news) = NEWS.encode(text) else { return };
        let news: Arc<[u8]> = news.into();
        for event_loop in &*self.loops {
            let news = news.clone();
            // An error says that this loop has ended, and its members with it.
            let _ = event_loop.post(move |event_loop| event_loop.local::<Room>().tell(&news));
        }
    }
}

/// The key of a session's timer.
const NAMELESS: u64 = 0;

impl Handler for Session {
    fn on_connect(&mut self, conn: &Connection) {
        self.room.members.borrow_mut().insert(conn.id(), conn.handle());
        conn.set_timer(NAMELESS, self.patience);
    }

    fn on_message(&mut self, conn: &Connection, input: &mut Buffer) {
        while let Some(text) = TEXTS.decode(conn, input) {
            let Ok(text) = std::str::from_utf8(text) else {
                conn.reject(input, DecodeError::new(0, "a text that is not UTF-8"));
                return;
            };
            if let Some(name) = &self.name {
                self.tell_everybody(format!("{name}: {text}"));
            } else {
                conn.cancel_timer(NAMELESS);
                self.name = Some(text.to_owned());
            }
        }
    }

    fn on_timer(&mut self, conn: &Connection, _key: u64) {
        if let Ok(mut news) = NEWS.encode("hub: you should have told your name") {
            conn.send_buffer(&mut news);
        }
        conn.shutdown();
    }

    fn on_high_water(&mut self, conn: &Connection, pending: usize) {
        log::info!("{} reads too slowly, {pending} bytes wait for it", conn.peer_addr());
        conn.close();
    }

    fn on_stopping(&mut self, conn: &Connection) {
        if let Ok(mut news) = NEWS.encode("hub: good night") {
            conn.send_buffer(&mut news);
        }
        conn.shutdown();
    }

    fn on_close(&mut self, conn: &Connection, reason: &CloseReason) {
        self.room.members.borrow_mut().remove(&conn.id());
        log::info!("{} has left: {reason}", conn.peer_addr());
    }
}

pub fn serve(
    event_loop: &EventLoop,
    pool: &LoopPool,
    address: &str,
    patience: Duration,
) -> io::Result<ServerHandle> {
    let loops: Arc<[LoopHandle]> = pool.loops().into();
    TcpServer::bind(event_loop, address)?.pool(pool).serve(move |conn| Session {
        name: None,
        patience,
        room: conn.event_loop().local(),
        loops: loops.clone(),
    })
}

pub fn main() -> io::Result<()> {
    let event_loop = EventLoop::new()?;
    let pool = LoopPool::builder(&event_loop).threads(4).start()?;
    let server = serve(&event_loop, &pool, "127.0.0.1:2011", Duration::from_secs(10))?;
    server.stop_on_signals(&event_loop, Duration::from_secs(5))?;
    event_loop.run()
}
