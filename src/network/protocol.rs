//! What is said to the gateway of a network, one line of JSON each way.
//!
//! | request | the reply's `return` |
//! |---|---|
//! | `{"join": JOIN}` | the `Lease`; then the link's descriptor is sent, and [`Joined`] comes back |
//! | `{"members": {}}` | all leases |
//! | `{"leave": {"container": NAME}}` | `{}` |
//!
//! A connection that has joined takes requests about its own ports from then on ([`crate::control::protocol`]). The
//! lease ends with it, or with the process that [`Join::pid`] names. A failure is `{"error": {"text": ...}}`.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Context, Error, Result};

/// Longest line, in bytes: the ports of a container are part of it.
const MAX_LINE_BYTES: usize = 8 * 1024 * 1024;

/// A request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Request {
    Join(Box<Join>),
    Members {},
    Leave { container: String },
}

/// What a container brings along.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Join {
    /// What it is called, and by which only it is found.
    pub(super) container: String,
    /// Further names that are its own.
    pub(super) names: Vec<String>,
    /// Names that it may share.
    pub(super) aliases: Vec<String>,
    pub(super) ipv4: Option<Ipv4Addr>,
    pub(super) ipv6: Option<Ipv6Addr>,
    /// Its station.
    pub(super) mac: Option<String>,
    /// Closed destinations that it may reach.
    pub(super) allowed: Vec<SocketAddr>,
    /// All of the host's loopback.
    pub(super) host_loopback: bool,
    /// Ports to be published, as [`crate::control::protocol`] has them.
    pub(super) ports: Value,
    /// The process with which the lease ends, if not with the connection.
    pub(super) pid: Option<i32>,
}

/// The container is in.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Joined {
    /// Its published ports, as [`crate::control::protocol`] has them.
    pub(super) ports: Value,
    /// Names that it did not get.
    pub(super) kept: Vec<String>,
}

/// Sends a line.
pub(super) fn send(mut socket: &UnixStream, value: &impl Serialize) -> io::Result<()> {
    let line = serde_json::to_string(value)?;
    socket.write_all(format!("{line}\n").as_bytes())
}

/// Sends how something went.
pub(super) fn reply<T: Serialize>(socket: &UnixStream, result: &Result<T>) -> io::Result<()> {
    match result {
        Ok(value) => send(socket, &json!({ "return": value })),
        Err(error) => send(socket, &json!({ "error": { "text": error.to_string() } })),
    }
}

/// The next line, without its end; `None` at the end of the stream. Nothing behind it is taken from the socket, where a
/// descriptor may follow.
pub(super) fn receive(mut socket: &UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while socket.read(&mut byte)? > 0 {
        if byte[0] == b'\n' {
            return Ok(Some(line));
        }
        line.push(byte[0]);
        if line.len() > MAX_LINE_BYTES {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(None)
}

/// How something went at the other end; `None` if that has gone.
pub(super) fn outcome<T: DeserializeOwned>(socket: &UnixStream, network: &str) -> Result<Option<T>> {
    let about = || format!("the gateway of the network {network}");
    let line = match receive(socket) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        line => line.context("cannot hear from", about())?,
    };
    let Some(line) = line else { return Ok(None) };
    let mut reply: Value =
        serde_json::from_slice(&line).map_err(|error| Error::new("cannot understand", about(), error))?;
    if let Some(text) = reply.pointer("/error/text").and_then(Value::as_str) {
        return Err(Error::told(text.to_owned()));
    }
    let value = reply.get_mut("return").map(Value::take).unwrap_or_default();
    serde_json::from_value(value).map(Some).map_err(|error| Error::new("cannot understand", about(), error))
}
