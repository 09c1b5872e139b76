//! Requests and replies as JSON.
//!
//! | request | the reply's `return` |
//! |---|---|
//! | `{"execute": "ports"}` | `{"ports": [PORT...]}` |
//! | `{"execute": "publish", "ports": [WANTED...]}` | the same, of those that were asked for; all or none |
//! | `{"execute": "unpublish", "ports": [WANTED...]}` | `{}` |
//! | `{"execute": "signal", "signal": N, "last": BOOL}` | `{}`: sent to the container, which stays ended if `last` |
//! | `{"execute": "pause"}`, `{"execute": "unpause"}` | `{}`: the container's processes stand still, or go on |
//! | `{"execute": "flows"}` | `{"flows": N, "described": [FLOW...], "counters": {...}}` |
//!
//! WANTED has `transport`, `guest_port` and, where they matter, `host_addr`, `host_port`, `host_interface` and
//! `guest_addr`; PORT also the `number` and the `addresses` that it listens on. A failure is `{"error": {"text":
//! ...}}`. Members that are not known are ignored.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde_json::{Map, Value, from_slice, json};

use crate::config::{IfName, MAX_PUBLISHED, Publish, Transport};
use crate::container::Command;
use crate::error::Error;
use crate::io::command::Snapshot;
use crate::io::ports::Port;
use crate::net::gateway::FlowReport;
use crate::net::{DropReason, FlowKey};
use crate::sys;

/// What can be asked of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Which ports are published?
    Ports,
    /// Publish these.
    Publish(Vec<Publish>),
    /// Close these.
    Unpublish(Vec<Publish>),
    /// What goes on?
    Flows,
    /// Something of the container whose network it is.
    Container(Command),
}

impl Request {
    /// Understands one line. The error is for whoever wrote it.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let value: Value = from_slice(line).map_err(|error| format!("not JSON: {error}"))?;
        match value.get("execute").and_then(Value::as_str) {
            Some("ports") => Ok(Self::Ports),
            Some("publish") => wanted(&value).map(Self::Publish),
            Some("unpublish") => wanted(&value).map(Self::Unpublish),
            Some("flows") => Ok(Self::Flows),
            Some("signal") => signal(&value).map(Self::Container),
            Some("pause") => Ok(Self::Container(Command::Pause(true))),
            Some("unpause") => Ok(Self::Container(Command::Pause(false))),
            Some(other) => Err(format!(
                "'{other}' is not known; there are ports, publish, unpublish, flows, signal, pause and unpause"
            )),
            None => Err("an object with \"execute\" was expected".to_owned()),
        }
    }

    /// The request as JSON.
    pub fn to_json(&self) -> Value {
        let ports = |ports: &[Publish]| Value::Array(ports.iter().map(|port| publish(port).into()).collect());
        match self {
            Self::Ports => json!({"execute": "ports"}),
            Self::Publish(wanted) => json!({"execute": "publish", "ports": ports(wanted)}),
            Self::Unpublish(unwanted) => json!({"execute": "unpublish", "ports": ports(unwanted)}),
            Self::Flows => json!({"execute": "flows"}),
            Self::Container(Command::Signal { number, last }) => {
                json!({"execute": "signal", "signal": number, "last": last})
            }
            Self::Container(Command::Pause(true)) => json!({"execute": "pause"}),
            Self::Container(Command::Pause(false)) => json!({"execute": "unpause"}),
        }
    }
}

/// A reply that all went well.
pub(super) fn done(result: Value) -> Value {
    json!({ "return": result })
}

/// A reply that it did not.
pub(super) fn failed(text: impl std::fmt::Display) -> Value {
    json!({"error": {"text": text.to_string()}})
}

/// What the `reply` of the network `name` returned, or its error.
pub(super) fn outcome(name: &str, reply: &mut Value) -> Result<Value, Error> {
    if let Some(text) = reply.pointer("/error/text").and_then(Value::as_str) {
        return Err(Error::new("network", name, text));
    }
    let result = reply.get_mut("return").map(Value::take);
    result.ok_or_else(|| {
        Error::new("cannot understand", format!("the network {name}"), "its reply returns nothing")
    })
}

/// What is published, by a network's answer to [`Request::Ports`].
pub fn listed(answer: &Value) -> Result<Vec<Publish>, Error> {
    wanted(answer).map_err(|cause| Error::new("cannot understand", "the network's ports", cause))
}

/// The ports of a network, as [`Request::Ports`] is answered.
pub fn listing(ports: &[Port]) -> Value {
    Value::Array(ports.iter().map(port).collect())
}

/// What a [`listing`] says: what is published, and where it is listened on.
pub fn addresses(listing: &Value) -> Result<Vec<(Publish, Vec<SocketAddr>)>, Error> {
    let publishes = listed(&json!({ "ports": listing }))?;
    let addresses = listing.as_array().into_iter().flatten().map(|port| {
        let addresses = port.get("addresses").and_then(Value::as_array).into_iter().flatten();
        addresses.filter_map(|address| address.as_str()?.parse().ok()).collect()
    });
    Ok(publishes.into_iter().zip(addresses).collect())
}

/// Ports of a network.
pub(super) fn ports(ports: &[Port]) -> Value {
    json!({"ports": ports.iter().map(port).collect::<Vec<_>>()})
}

fn port(port: &Port) -> Value {
    let mut members = publish(&port.publish);
    members.insert("number".into(), port.number.0.into());
    let addresses: Vec<_> = port.addresses.iter().map(ToString::to_string).collect();
    members.insert("addresses".into(), addresses.into());
    members.into()
}

fn publish(publish: &Publish) -> Map<String, Value> {
    let mut members = Map::new();
    let mut insert = |name: &str, value: Option<Value>| value.map(|value| members.insert(name.into(), value));
    insert("transport", Some(publish.transport.to_string().into()));
    insert("host_addr", publish.host_addr.map(|addr| addr.to_string().into()));
    insert("host_port", publish.host_port.map(Value::from));
    insert("host_interface", publish.host_interface.map(|name| name.to_string().into()));
    insert("guest_addr", publish.guest_addr.map(|addr| addr.to_string().into()));
    insert("guest_port", Some(publish.guest_port.into()));
    members
}

fn wanted(request: &Value) -> Result<Vec<Publish>, String> {
    let ports = request.get("ports").and_then(Value::as_array).ok_or("a list \"ports\" was expected")?;
    if ports.len() > MAX_PUBLISHED as usize {
        return Err(format!("a network publishes at most {MAX_PUBLISHED} ports"));
    }
    ports.iter().map(wanted_port).collect()
}

fn signal(request: &Value) -> Result<Command, String> {
    let number = request.get("signal").and_then(Value::as_i64).and_then(|number| i32::try_from(number).ok());
    let number = number.filter(|number| sys::signal::all().contains(number));
    let last = request.get("last").and_then(Value::as_bool).unwrap_or(false);
    number
        .map(|number| Command::Signal { number, last })
        .ok_or_else(|| "\"signal\" is no signal's number".into())
}

fn wanted_port(port: &Value) -> Result<Publish, String> {
    let transport = match text(port, "transport")? {
        Some("tcp") => Transport::Tcp,
        Some("udp") => Transport::Udp,
        _ => return Err("\"transport\" is tcp or udp".to_owned()),
    };
    Ok(Publish {
        host_addr: address(port, "host_addr")?,
        host_port: number(port, "host_port")?,
        host_interface: match text(port, "host_interface")? {
            Some(name) => Some(IfName::new(name).ok_or("\"host_interface\" is no interface's name")?),
            None => None,
        },
        guest_addr: address(port, "guest_addr")?,
        guest_port: number(port, "guest_port")?.ok_or("\"guest_port\" is missing")?,
        transport,
    })
}

fn text<'a>(port: &'a Value, name: &str) -> Result<Option<&'a str>, String> {
    match port.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_str().map(Some).ok_or_else(|| format!("\"{name}\" is not a string")),
    }
}

fn address(port: &Value, name: &str) -> Result<Option<IpAddr>, String> {
    let parse = |text| IpAddr::from_str(text).map_err(|_| format!("\"{name}\" is not an IP address"));
    text(port, name)?.map(parse).transpose()
}

fn number(port: &Value, name: &str) -> Result<Option<u16>, String> {
    let wrong = || format!("\"{name}\" is not a port from 1 to 65535");
    match port.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
            number.filter(|number| *number != 0).map(Some).ok_or_else(wrong)
        }
    }
}

/// What goes on in a network.
pub(super) fn snapshot(snapshot: &Snapshot) -> Value {
    let drops = DropReason::ALL.into_iter().map(|reason| {
        let count = snapshot.counters.dropped(reason);
        (reason.name().to_owned(), count.into())
    });
    json!({
        "flows": snapshot.flows,
        "described": snapshot.described.iter().map(flow).collect::<Vec<_>>(),
        "counters": {
            "frames_from_guest": snapshot.counters.frames_in,
            "bytes_from_guest": snapshot.counters.bytes_in,
            "drops": drops.collect::<Map<_, _>>(),
        },
    })
}

fn flow(flow: &FlowReport) -> Value {
    let (protocol, guest, remote) = match flow.key {
        FlowKey::Tcp { guest, remote, .. } => ("tcp", guest.to_string(), Some(remote)),
        FlowKey::Udp { guest, .. } => ("udp", guest.to_string(), None),
        FlowKey::UdpPublished { guest, remote, .. } => ("udp-published", guest.to_string(), Some(remote)),
        FlowKey::Ping { guest, .. } => ("ping", guest.to_string(), None),
    };
    let mut members = Map::new();
    members.insert("protocol".into(), protocol.into());
    members.insert("guest".into(), guest.into());
    if let Some(remote) = remote {
        members.insert("remote".into(), remote.to_string().into());
    }
    if let Some((to_host, to_guest)) = flow.bytes {
        members.insert("bytes_to_host".into(), to_host.into());
        members.insert("bytes_to_guest".into(), to_guest.into());
    }
    members.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::MAX_LINE_BYTES;
    use crate::io::command::PortNumber;

    #[test]
    fn requests_survive_the_way() {
        let port = Publish {
            host_addr: Some([127, 0, 0, 1].into()),
            host_port: Some(8080),
            host_interface: IfName::new("lo"),
            guest_addr: None,
            guest_port: 80,
            transport: Transport::Tcp,
        };
        let random = Publish { host_addr: None, host_port: None, transport: Transport::Udp, ..port };
        for request in [
            Request::Ports,
            Request::Flows,
            Request::Publish(vec![port, random]),
            Request::Unpublish(vec![]),
            Request::Container(Command::Signal { number: 15, last: true }),
            Request::Container(Command::Pause(true)),
            Request::Container(Command::Pause(false)),
        ] {
            let line = request.to_json().to_string();
            assert_eq!(Request::parse(line.as_bytes()), Ok(request), "{line}");
        }
    }

    #[test]
    fn the_longest_list_of_ports_is_one_line() {
        let last = u16::MAX.to_string();
        let longest = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let address = longest.parse().ok();
        let port = Port {
            number: PortNumber(u64::MAX),
            publish: Publish {
                host_addr: address,
                host_port: last.parse().ok(),
                // Each byte is written as `\u0001`.
                host_interface: IfName::new(&"\u{1}".repeat(IfName::MAX_BYTES)),
                guest_addr: address,
                guest_port: u16::MAX,
                transport: Transport::Tcp,
            },
            addresses: vec![format!("[{longest}]:{last}").parse().expect("an address"); 2],
        };
        let line = done(ports(&vec![port; MAX_PUBLISHED as usize])).to_string();
        assert!((line.len() as u64) < MAX_LINE_BYTES, "{}", line.len());
    }

    #[test]
    fn mistakes_are_named() {
        for (line, cause) in [
            ("", "not JSON"),
            ("{}", "execute"),
            (r#"{"execute": "dance"}"#, "'dance' is not known"),
            (r#"{"execute": "publish"}"#, "a list"),
            (r#"{"execute": "signal", "signal": 0}"#, "no signal"),
            (r#"{"execute": "signal", "signal": "TERM"}"#, "no signal"),
            (r#"{"execute": "publish", "ports": [{"guest_port": 80}]}"#, "tcp or udp"),
            (r#"{"execute": "publish", "ports": [{"transport": "tcp"}]}"#, "guest_port"),
            (r#"{"execute": "publish", "ports": [{"transport": "tcp", "guest_port": 80808}]}"#, "65535"),
            (r#"{"execute": "publish", "ports": [{"transport": "tcp", "guest_port": 0}]}"#, "65535"),
            (
                r#"{"execute": "publish", "ports": [{"transport": "tcp", "guest_port": 1, "host_addr": "x"}]}"#,
                "host_addr",
            ),
        ] {
            let error = Request::parse(line.as_bytes()).expect_err(line);
            assert!(error.contains(cause), "{line}: {error}");
        }
    }
}
