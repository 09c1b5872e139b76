//! Answers control connections: a thread that accepts, and one for each client, so that none holds up another or the
//! traffic.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Uid;

use super::client::Beyond;
use super::protocol::{self, Request};
use super::{MAX_LINE_BYTES, Place, Socket};
use crate::container::Commands;
use crate::error::{Context, Result};
use crate::io::ports::Ports;

/// Clients at once; further ones are told to come again.
const MAX_CLIENTS: usize = 16;
/// A client that says or takes nothing for so long is left.
const CLIENT_PATIENCE: Duration = Duration::from_secs(30);
/// Pause when a connection cannot be accepted, as the host is out of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// What requests are about.
#[derive(Clone, Debug)]
pub struct Desk {
    /// The network's published ports.
    pub ports: Ports,
    /// The container whose network it is, if it is one of rnet's.
    pub container: Option<Commands>,
    /// Who answers for its ports and traffic instead, if it is not this process that serves the network.
    pub beyond: Option<Beyond>,
}

/// Answers at `place` for what is on the `desk`, for as long as this process lives.
pub fn serve(place: &Place, desk: Desk) -> Result<()> {
    answer_on(place.listener(), desk)
}

/// The same at a path.
pub fn serve_at(socket: &Socket, desk: Desk) -> Result<()> {
    answer_on(socket.listener(), desk)
}

fn answer_on(listener: io::Result<UnixListener>, desk: Desk) -> Result<()> {
    let listener = listener.context("cannot share", "the control socket")?;
    thread::Builder::new()
        .name("rnet-control".into())
        .spawn(move || accept(&listener, &desk))
        .map(drop)
        .context("cannot start", "the control thread")
}

fn accept(listener: &UnixListener, desk: &Desk) {
    // Every client's thread holds a clone.
    let seats = Arc::new(());
    loop {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(ACCEPT_RETRY);
            continue;
        };
        if !is_own(&client) {
            continue;
        }
        if Arc::strong_count(&seats) > MAX_CLIENTS {
            let _ = reply(&client, &protocol::failed("too many clients; try again"));
            continue;
        }
        let (desk, seat) = (desk.clone(), Arc::clone(&seats));
        let _ = thread::Builder::new().name("rnet-client".into()).spawn(move || {
            if let Err(error) = attend(&client, &desk) {
                tracing::debug!(%error, "a control client is gone");
            }
            drop(seat);
        });
    }
}

/// Whether the peer runs as the same user, or as root.
pub(crate) fn is_own(client: &UnixStream) -> bool {
    let peer = getsockopt(client, sockopt::PeerCredentials).map(|peer| Uid::from_raw(peer.uid()));
    peer.is_ok_and(|peer| peer == Uid::effective() || peer.is_root())
}

fn attend(client: &UnixStream, desk: &Desk) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_PATIENCE))?;
    client.set_write_timeout(Some(CLIENT_PATIENCE))?;
    let mut lines = BufReader::new(client);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') && line.len() as u64 == MAX_LINE_BYTES {
            return reply(client, &protocol::failed(format!("a line has at most {MAX_LINE_BYTES} bytes")));
        }
        reply(client, &answer(&line, desk))?;
    }
}

fn reply(mut client: &UnixStream, value: &serde_json::Value) -> io::Result<()> {
    client.write_all(format!("{value}\n").as_bytes())
}

/// The reply to a request.
pub(crate) fn answer(line: &[u8], Desk { ports, container, beyond }: &Desk) -> serde_json::Value {
    let request = Request::parse(line);
    if let (Some(beyond), Ok(request)) = (beyond, &request)
        && !matches!(request, Request::Container(_))
    {
        return beyond.ask(request).unwrap_or_else(|error| protocol::failed(&error));
    }
    let result = match request {
        Ok(Request::Ports) => Ok(protocol::ports(&ports.list())),
        Ok(Request::Publish(wanted)) => ports.add(&wanted).map(|ports| protocol::ports(&ports)),
        Ok(Request::Unpublish(unwanted)) => ports.remove(&unwanted).map(|()| serde_json::json!({})),
        Ok(Request::Flows) => ports.look().map(|seen| protocol::snapshot(&seen)),
        Ok(Request::Container(command)) => match container {
            Some(container) => container.ask(command).map(|()| serde_json::json!({})),
            None => return protocol::failed("it is no container of rnet's"),
        },
        Err(mistake) => return protocol::failed(mistake),
    };
    result.map_or_else(protocol::failed, protocol::done)
}
