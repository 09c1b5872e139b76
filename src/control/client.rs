//! The asking end.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, from_slice};

use super::protocol::{self, Request};
use super::{MAX_LINE_BYTES, place};
use crate::error::{Context, Error, Result};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the network `name`; what it returns. The network's own refusal is an error in its words.
pub fn ask(name: &str, request: &Request) -> Result<Value> {
    ask_within(name, request, PATIENCE)
}

/// As [`ask`], with another patience.
pub fn ask_within(name: &str, request: &Request, patience: Duration) -> Result<Value> {
    converse(&place::connect(name)?, name, request, patience)
}

/// As [`ask`], for the network that has a socket at `path`.
pub fn ask_at(path: &Path, request: &Request) -> Result<Value> {
    converse(&place::connect_at(path)?, &path.display().to_string(), request, PATIENCE)
}

fn converse(mut socket: &UnixStream, name: &str, request: &Request, patience: Duration) -> Result<Value> {
    tracing::debug!(%name, request = %request.to_json(), "ask");
    let about = format!("the network {name}");
    socket.set_read_timeout(Some(patience)).context("cannot ask", &about)?;
    socket.set_write_timeout(Some(patience)).context("cannot ask", &about)?;
    socket.write_all(format!("{}\n", request.to_json()).as_bytes()).context("cannot ask", &about)?;
    let mut line = Vec::new();
    let mut reply = BufReader::new(socket).take(MAX_LINE_BYTES);
    match reply.read_until(b'\n', &mut line) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            let cause = format!("it has not answered for {} s", patience.as_secs());
            return Err(Error::new("cannot hear from", about, cause).hint("is it stopped?"));
        }
        heard => heard.context("cannot hear from", &about)?,
    };
    let mut reply: Value =
        from_slice(&line).map_err(std::io::Error::from).context("cannot understand", &about)?;
    protocol::outcome(name, &mut reply)
}

/// The way to another process that answers for a network. Clones share it.
#[derive(Clone, Debug)]
pub struct Beyond(Arc<Mutex<UnixStream>>);

impl Beyond {
    /// The one at the other end of `socket`, on which nothing else is being said.
    pub fn new(socket: UnixStream) -> Self {
        Self(Arc::new(Mutex::new(socket)))
    }

    /// Its whole reply.
    pub(super) fn ask(&self, request: &Request) -> Result<Value> {
        const WHOM: &str = "the network's gateway";
        // One question at a time.
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        socket.set_read_timeout(Some(PATIENCE)).context("cannot ask", WHOM)?;
        (&*socket).write_all(format!("{}\n", request.to_json()).as_bytes()).context("cannot ask", WHOM)?;
        let mut line = Vec::new();
        let read = BufReader::new(&*socket).take(MAX_LINE_BYTES).read_until(b'\n', &mut line);
        // An answer that comes too late would be taken for that to the next question.
        let read = read.inspect_err(|_| drop(socket.shutdown(Shutdown::Both)));
        read.context("cannot hear from", WHOM)?;
        from_slice(&line).map_err(std::io::Error::from).context("cannot understand", WHOM)
    }
}
