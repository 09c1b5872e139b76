//! What is said on slirp4netns' API socket: a request and a reply, each one JSON value. Pure.
//!
//! Requests are checked in the original's order and refused in its words; where it says too little, the cause follows
//! behind a colon. Where it would crash, or cut a port's number off, this refuses.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use serde_json::{Deserializer, Value, json};

use crate::config::{Publish, Transport};

/// What a client wants.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Publish a port.
    Add(Publish),
    /// Tell which ports are published.
    List,
    /// Close the published port of this number.
    Remove(u64),
}

/// How far the text of a request has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// It may go on.
    Partial,
    /// It is whole; the error is what the client is told.
    Whole(Result<Request, String>),
}

/// Understands what has been read by now. `guest` is where published ports lead without an address.
pub(super) fn parse(text: &[u8], guest: Ipv4Addr) -> Parsed {
    match Deserializer::from_slice(text).into_iter::<Value>().next() {
        None => Parsed::Partial,
        Some(Err(error)) if error.is_eof() => Parsed::Partial,
        Some(Err(error)) => Parsed::Whole(Err(not_json(&error.to_string()))),
        Some(Ok(value)) => {
            Parsed::Whole(request(&value, guest).map_err(|told| format!("bad request: {told}")))
        }
    }
}

/// What a client is told whose request is not JSON, or ends too early.
pub(super) fn not_json(cause: &str) -> String {
    format!("bad request: cannot parse JSON: {cause}")
}

fn request(value: &Value, guest: Ipv4Addr) -> Result<Request, String> {
    let object = value.as_object().ok_or("json_object() failed")?;
    let execute = object.get("execute").and_then(Value::as_str).ok_or("no execute found")?;
    let arguments = object.get("arguments").unwrap_or(&Value::Null);
    match execute {
        "add_hostfwd" => add(arguments, guest).map_err(|name| format!("add_hostfwd: bad arguments.{name}")),
        "list_hostfwd" => Ok(Request::List),
        "remove_hostfwd" => {
            let id = arguments.get("id").and_then(Value::as_u64);
            id.map(Request::Remove).ok_or_else(|| "remove_hostfwd: bad arguments.id".to_owned())
        }
        _ => Err("unknown execute".to_owned()),
    }
}

/// The port to publish; the error is the name of the bad argument.
fn add(arguments: &Value, guest: Ipv4Addr) -> Result<Request, &'static str> {
    let transport = match arguments.get("proto").and_then(Value::as_str) {
        Some("tcp") => Transport::Tcp,
        Some("udp") => Transport::Udp,
        _ => return Err("proto"),
    };
    let host_addr = address(arguments, "host_addr", Ipv4Addr::UNSPECIFIED)?;
    let host_port = port(arguments, "host_port")?;
    let guest_addr = address(arguments, "guest_addr", guest)?;
    let guest_port = port(arguments, "guest_port")?;
    Ok(Request::Add(Publish {
        host_addr: Some(host_addr),
        host_port: Some(host_port),
        host_interface: None,
        guest_addr: Some(guest_addr),
        guest_port,
        transport,
    }))
}

fn address(arguments: &Value, name: &'static str, usual: Ipv4Addr) -> Result<IpAddr, &'static str> {
    match arguments.get(name) {
        None | Some(Value::Null) => Ok(usual.into()),
        Some(Value::String(text)) if text.is_empty() => Ok(usual.into()),
        Some(value) => value.as_str().and_then(|text| IpAddr::from_str(text).ok()).ok_or(name),
    }
}

fn port(arguments: &Value, name: &'static str) -> Result<u16, &'static str> {
    let number = arguments.get(name).and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    number.filter(|port| *port != 0).ok_or(name)
}

/// A port was published under this number.
pub(super) fn added(number: u64) -> Value {
    json!({"return": {"id": number}})
}

/// A port was closed.
pub(super) fn removed() -> Value {
    json!({"return": {}})
}

/// The published ports. The original answers with `entries` alone, its manual with `return`; callers look for either.
pub(super) fn list<'a>(ports: impl Iterator<Item = (u64, &'a Publish)>) -> Value {
    let entries: Vec<Value> = ports.map(|(number, publish)| entry(number, publish)).collect();
    json!({"return": {"entries": entries.clone()}, "entries": entries})
}

fn entry(number: u64, publish: &Publish) -> Value {
    json!({
        "id": number,
        "proto": publish.transport.to_string(),
        "host_addr": publish.host_addr.map(|addr| addr.to_string()),
        "host_port": publish.host_port,
        "guest_addr": publish.guest_addr.map(|addr| addr.to_string()),
        "guest_port": publish.guest_port,
    })
}

/// It went wrong.
pub(super) fn failed(told: &str) -> Value {
    json!({"error": {"desc": told}})
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);

    #[test]
    fn a_port_to_add_has_the_originals_defaults() {
        let wanted = Publish {
            host_addr: Some(Ipv4Addr::UNSPECIFIED.into()),
            host_port: Some(8080),
            host_interface: None,
            guest_addr: Some(GUEST.into()),
            guest_port: 80,
            transport: Transport::Tcp,
        };
        for addresses in ["", r#""host_addr": "", "guest_addr": "","#, r#""host_addr": "0.0.0.0","#] {
            let text = format!(
                r#"{{"execute": "add_hostfwd", "arguments": {{"proto": "tcp", {addresses} "host_port": 8080,
                   "guest_port": 80}}}}"#
            );
            assert_eq!(whole(&text), Ok(Request::Add(wanted)), "{text}");
        }
    }

    #[test]
    fn ipv6_addresses_can_be_published() {
        let text = r#"{"execute": "add_hostfwd", "arguments": {"proto": "udp", "host_addr": "::1", "host_port": 53,
                     "guest_addr": "fd00::100", "guest_port": 53}}"#;
        let Ok(Request::Add(publish)) = whole(text) else { panic!("{text}") };
        assert_eq!(publish.host_addr, "::1".parse().ok());
        assert_eq!((publish.guest_addr, publish.transport), ("fd00::100".parse().ok(), Transport::Udp));
    }

    #[test]
    fn ports_are_listed_and_removed() {
        assert_eq!(whole(r#"{"execute": "list_hostfwd"}"#), Ok(Request::List));
        let remove = r#"{"execute": "remove_hostfwd", "arguments": {"id": 7}}"#;
        assert_eq!(whole(remove), Ok(Request::Remove(7)));
        assert_eq!(whole(&format!("{remove}\n")), Ok(Request::Remove(7)));
    }

    #[test]
    fn mistakes_are_told_in_the_originals_words_and_order() {
        let add = |arguments: &str| format!(r#"{{"execute": "add_hostfwd", "arguments": {arguments}}}"#);
        for (text, told) in [
            ("nonsense".to_owned(), "cannot parse JSON"),
            ("[]".to_owned(), "json_object() failed"),
            ("{}".to_owned(), "no execute found"),
            (r#"{"execute": 1}"#.to_owned(), "no execute found"),
            (r#"{"execute": "dance"}"#.to_owned(), "unknown execute"),
            (r#"{"execute": "add_hostfwd"}"#.to_owned(), "add_hostfwd: bad arguments.proto"),
            (add("{}"), "add_hostfwd: bad arguments.proto"),
            (add(r#"{"proto": "sctp", "host_addr": "x"}"#), "add_hostfwd: bad arguments.proto"),
            (add(r#"{"proto": "tcp", "host_addr": "x"}"#), "add_hostfwd: bad arguments.host_addr"),
            (add(r#"{"proto": "tcp", "guest_addr": 1}"#), "add_hostfwd: bad arguments.host_port"),
            (add(r#"{"proto": "tcp", "host_port": 80808}"#), "add_hostfwd: bad arguments.host_port"),
            (add(r#"{"proto": "tcp", "host_port": "80"}"#), "add_hostfwd: bad arguments.host_port"),
            (add(r#"{"proto": "tcp", "host_port": 0}"#), "add_hostfwd: bad arguments.host_port"),
            (
                add(r#"{"proto": "tcp", "host_port": 1, "guest_addr": "x"}"#),
                "add_hostfwd: bad arguments.guest_addr",
            ),
            (add(r#"{"proto": "tcp", "host_port": 1}"#), "add_hostfwd: bad arguments.guest_port"),
            (r#"{"execute": "remove_hostfwd"}"#.to_owned(), "remove_hostfwd: bad arguments.id"),
            (r#"{"execute": "remove_hostfwd", "arguments": {"id": -1}}"#.to_owned(), "bad arguments.id"),
        ] {
            let error = whole(&text).expect_err(&text);
            assert!(error.starts_with("bad request: ") && error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn a_request_may_come_in_parts() {
        let text = r#"{"execute": "list_hostfwd"}"#;
        for end in 0..text.len() {
            assert_eq!(parse(&text.as_bytes()[..end], GUEST), Parsed::Partial, "{}", &text[..end]);
        }
    }

    #[test]
    fn replies_have_the_shape_that_callers_parse() {
        let Ok(Request::Add(publish)) = whole(
            r#"{"execute": "add_hostfwd", "arguments": {"proto": "tcp", "host_port": 8080, "guest_port": 80}}"#,
        ) else {
            panic!("a good request")
        };
        let list = list([(3, &publish)].into_iter());
        assert_eq!(list["entries"], list["return"]["entries"]);
        assert_eq!(
            list["entries"][0],
            json!({"id": 3, "proto": "tcp", "host_addr": "0.0.0.0", "host_port": 8080,
                   "guest_addr": "10.0.2.100", "guest_port": 80})
        );
        assert_eq!(added(3).to_string(), r#"{"return":{"id":3}}"#);
        assert_eq!(removed().to_string(), r#"{"return":{}}"#);
        assert_eq!(failed("why").to_string(), r#"{"error":{"desc":"why"}}"#);
    }

    fn whole(text: &str) -> Result<Request, String> {
        match parse(text.as_bytes(), GUEST) {
            Parsed::Whole(result) => result,
            Parsed::Partial => panic!("{text} is whole"),
        }
    }
}
