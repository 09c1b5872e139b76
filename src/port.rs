//! `rnet port` and `rnet flows`: questions to a running network.

use std::io::{self, Write};

use serde_json::Value;

use crate::cli::{Question, Topic};
use crate::control;
use crate::control::protocol::Request;
use crate::error::{Context, Result};

/// Asks, and prints what there is to tell; the exit status, which is 0.
pub fn ask(question: &Question) -> Result<u8> {
    let request = match &question.topic {
        Topic::Ports => Request::Ports,
        Topic::Publish(wanted) => Request::Publish(wanted.clone()),
        Topic::Unpublish(unwanted) => Request::Unpublish(unwanted.clone()),
        Topic::Flows => Request::Flows,
    };
    let answer = control::ask(&question.network, &request)?;
    let text = match (&request, question.json) {
        (_, true) => format!("{answer}\n"),
        (Request::Ports | Request::Publish(_), false) => ports(&answer),
        (Request::Unpublish(_) | Request::Container(_), false) => String::new(),
        (Request::Flows, false) => flows(&answer),
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write to", "standard output")?;
    Ok(0)
}

/// `80/tcp -> 0.0.0.0:8080`, a line for each address, as docker prints it.
fn ports(answer: &Value) -> String {
    let mut text = String::new();
    for port in members(answer, "ports") {
        for address in members(port, "addresses") {
            let (guest, transport) = (word(port, "guest_port"), word(port, "transport"));
            text += &format!("{guest}/{transport} -> {}\n", plain(address));
        }
    }
    text
}

fn flows(answer: &Value) -> String {
    let mut text = String::new();
    for flow in members(answer, "described") {
        text +=
            &format!("{:<14}{:<28}{:<28}", word(flow, "protocol"), word(flow, "guest"), word(flow, "remote"));
        if let (Some(to_host), Some(to_guest)) = (flow.get("bytes_to_host"), flow.get("bytes_to_guest")) {
            text += &format!("{to_host} bytes out, {to_guest} in");
        }
        text = text.trim_end().to_owned() + "\n";
    }
    text + &format!("{} flows\n", word(answer, "flows"))
}

fn members<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

fn word(value: &Value, name: &str) -> String {
    value.get(name).map(plain).unwrap_or_default()
}

/// A string without its quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
