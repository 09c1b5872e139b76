//! slirp4netns' API socket: one request and one reply for each connection, a thread for each client, so that none
//! holds up another or the traffic.

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::protocol::{self, Parsed, Request};
use crate::attach::make_way;
use crate::config::Publish;
use crate::error::{Context, Error, Result};
use crate::io::command::PortNumber;
use crate::io::ports::Ports;

/// A request has fewer bytes.
const MAX_REQUEST_BYTES: usize = 4096;
/// Clients at once; further ones wait to be accepted.
const MAX_CLIENTS: usize = 64;
/// A client that says or takes nothing for so long is left.
const CLIENT_PATIENCE: Duration = Duration::from_secs(10);
/// Pause when no client can be accepted or served.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);

/// The socket, listening.
#[derive(Debug)]
pub(super) struct Api(UnixListener);

impl Api {
    /// Makes it at `path`; a socket that was there is removed.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        make_way(path)?;
        UnixListener::bind(path).map(Self).context("cannot listen on the API socket", path.display())
    }

    /// Answers for the network with `ports`, for as long as this process lives. `guest` is where published ports lead
    /// without an address.
    pub(super) fn serve(self, ports: Ports, guest: Ipv4Addr) -> Result<()> {
        thread::Builder::new()
            .name("rnet-api".into())
            .spawn(move || accept(&self.0, &ports, guest))
            .map(drop)
            .context("cannot start", "the thread of the API socket")
    }
}

fn accept(listener: &UnixListener, ports: &Ports, guest: Ipv4Addr) {
    // Every client's thread holds a clone.
    let seats = Arc::new(());
    loop {
        let client = if Arc::strong_count(&seats) > MAX_CLIENTS { None } else { listener.accept().ok() };
        let Some((client, _)) = client else {
            thread::sleep(ACCEPT_RETRY);
            continue;
        };
        let (ports, seat) = (ports.clone(), Arc::clone(&seats));
        let _ = thread::Builder::new().name("rnet-api-client".into()).spawn(move || {
            if let Err(error) = attend(&client, &ports, guest) {
                tracing::debug!(%error, "an API client is gone");
            }
            drop(seat);
        });
    }
}

fn attend(mut client: &UnixStream, ports: &Ports, guest: Ipv4Addr) -> io::Result<()> {
    client.set_read_timeout(Some(CLIENT_PATIENCE))?;
    client.set_write_timeout(Some(CLIENT_PATIENCE))?;
    let reply = match hear(client, guest)? {
        Ok(request) => carry_out(request, ports),
        Err(told) => protocol::failed(&told),
    };
    client.write_all(reply.to_string().as_bytes())
}

/// Reads until the request is whole; the inner error is what the client is told.
fn hear(mut client: impl Read, guest: Ipv4Addr) -> io::Result<std::result::Result<Request, String>> {
    let mut text = Vec::new();
    let mut chunk = [0; MAX_REQUEST_BYTES];
    loop {
        let len = client.read(&mut chunk)?;
        text.extend_from_slice(&chunk[..len]);
        if text.len() >= MAX_REQUEST_BYTES {
            return Ok(Err("bad request: too large message".to_owned()));
        }
        match protocol::parse(&text, guest) {
            Parsed::Whole(request) => return Ok(request),
            Parsed::Partial if len == 0 => return Ok(Err(protocol::not_json("it ends too early"))),
            Parsed::Partial => {}
        }
    }
}

fn carry_out(request: Request, ports: &Ports) -> serde_json::Value {
    match request {
        Request::Add(publish) => match add(&publish, ports) {
            Ok(number) => protocol::added(number.0),
            Err(error) => refused("add_hostfwd: slirp_add_hostfwd failed", &error),
        },
        Request::List => {
            let ports = ports.list();
            protocol::list(ports.iter().map(|port| (port.number.0, &port.publish)))
        }
        Request::Remove(number) => match ports.remove_number(PortNumber(number)) {
            Ok(true) => protocol::removed(),
            Ok(false) => protocol::failed("bad request: remove_hostfwd: bad arguments.id: no port has it"),
            Err(error) => refused("remove_hostfwd: slirp_remove_hostfwd failed", &error),
        },
    }
}

/// Publishes a port. What is published already is in the way of a second one, as it is for the original.
fn add(publish: &Publish, ports: &Ports) -> Result<PortNumber> {
    if let Some(there) = ports.list().iter().find(|port| port.publish == *publish) {
        let cause = format!("it is published already, with id {}", there.number.0);
        return Err(Error::new("cannot publish", publish, cause));
    }
    let added = ports.add(&[*publish])?;
    let nothing = || Error::new("cannot publish", publish, "it was not added");
    added.first().map(|port| port.number).ok_or_else(nothing)
}

/// The reply to a request that could not be met, with the cause on one line.
fn refused(what: &str, error: &Error) -> serde_json::Value {
    let cause = error.to_string().replace("\n  hint: ", "; ");
    protocol::failed(&format!("bad request: {what}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);

    /// What is heard of a client that says `parts`, one at a time, and then hangs up.
    fn heard(parts: &[&[u8]]) -> std::result::Result<Request, String> {
        let parts = parts
            .iter()
            .fold(Box::new(io::empty()) as Box<dyn Read>, |before, part| Box::new(before.chain(*part)));
        hear(parts, GUEST).expect("nothing fails")
    }

    #[test]
    fn a_request_is_heard_in_parts() {
        assert_eq!(heard(&[br#"{"execute": "#, b"\"list_hostfwd\"", b"}\n"]), Ok(Request::List));
    }

    #[test]
    fn a_request_that_ends_too_early_or_never_is_refused() {
        for (text, told) in [(&b""[..], "cannot parse JSON"), (b"{\"execute\":", "cannot parse JSON")] {
            assert!(heard(&[text]).expect_err("not whole").contains(told));
        }
        let endless = vec![b' '; MAX_REQUEST_BYTES];
        assert_eq!(heard(&[&endless]), Err("bad request: too large message".to_owned()));
    }
}
