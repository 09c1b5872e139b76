//! `rnet pesto`: the ports of a network that runs under the name pasta, changed through its control socket.
//!
//! What is there already is not asked for, and of what shall go all goes that is there, before what was not there is
//! told.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use crate::cli::pasta::{Change, Pesto};
use crate::config::{Log, LogFormat, LogLevel, Publish};
use crate::control::{self, protocol, protocol::Request};
use crate::error::{Context, Error, Result, exit};
use crate::log;

/// Does what `call` asks for; the exit status, which is 0.
pub fn pesto(call: &Pesto) -> Result<u8> {
    if call.debug {
        log::init(Log { level: LogLevel::Debug, format: LogFormat::Text });
    }
    carry_out(call).map(|()| 0).map_err(|error| error.exit_code(exit::IMITATED_FAILED))
}

fn carry_out(call: &Pesto) -> Result<()> {
    for change in &call.changes {
        match change {
            Change::Replace(all) => replace(&call.socket, all)?,
            Change::Add(wanted) => add(&call.socket, wanted)?,
            Change::Delete(unwanted) => delete(&call.socket, unwanted)?,
        }
    }
    if !call.show {
        return Ok(());
    }
    let text = shown(&published(&call.socket)?);
    io::stdout().write_all(text.as_bytes()).context("cannot write to", "standard output")
}

fn published(socket: &Path) -> Result<Vec<Publish>> {
    protocol::listed(&control::ask_at(socket, &Request::Ports)?)
}

fn add(socket: &Path, wanted: &[Publish]) -> Result<()> {
    let there = published(socket)?;
    let is_new = |asked: &&Publish| !there.iter().any(|port| means(asked, port));
    let new: Vec<Publish> = wanted.iter().filter(is_new).copied().collect();
    if let Some((asked, port)) = new.iter().find_map(|asked| Some((asked, in_the_way(asked, &there)?))) {
        return Err(Error::new("cannot add", rule(asked), format!("{} is there", rule(port)))
            .hint("delete that first, or choose another port"));
    }
    publish(socket, new)
}

fn delete(socket: &Path, unwanted: &[Publish]) -> Result<()> {
    let there = published(socket)?;
    let meant = |port: &&Publish| unwanted.iter().any(|asked| means(asked, port));
    unpublish(socket, there.iter().filter(meant).copied().collect())?;
    match unwanted.iter().find(|asked| !there.iter().any(|port| means(asked, port))) {
        Some(missing) => Err(Error::new("cannot delete", rule(missing), "it is not there")
            .hint(format!("pesto --show {} shows what is", socket.display()))),
        None => Ok(()),
    }
}

/// What stays is not touched. If what is new cannot be had, what was there before is there again.
fn replace(socket: &Path, all: &[Publish]) -> Result<()> {
    let there = published(socket)?;
    let stays = |port: &Publish| all.iter().any(|asked| means(asked, port));
    let gone: Vec<Publish> = there.iter().filter(|port| !stays(port)).copied().collect();
    unpublish(socket, gone.clone())?;
    add(socket, all).map_err(|error| match publish(socket, gone) {
        Ok(()) => error,
        Err(worse) => error.hint(format!("what was there before could not be restored: {worse}")),
    })
}

fn publish(socket: &Path, wanted: Vec<Publish>) -> Result<()> {
    ask(socket, wanted, Request::Publish)
}

fn unpublish(socket: &Path, unwanted: Vec<Publish>) -> Result<()> {
    ask(socket, unwanted, Request::Unpublish)
}

fn ask(socket: &Path, ports: Vec<Publish>, request: fn(Vec<Publish>) -> Request) -> Result<()> {
    if ports.is_empty() { Ok(()) } else { control::ask_at(socket, &request(ports)).map(drop) }
}

/// Whether `asked` names `port`. Without an address it is everywhere, which is one family's wildcard in a network that
/// has only that family.
fn means(asked: &Publish, port: &Publish) -> bool {
    let is_wildcard = |address: IpAddr| address.is_unspecified();
    let address = if asked.host_addr.is_none() && port.host_addr.is_some_and(is_wildcard) {
        None
    } else {
        port.host_addr
    };
    *asked == Publish { host_addr: address, ..*port }
}

/// The port that is bound where `asked` would be, and leads elsewhere.
fn in_the_way<'p>(asked: &Publish, there: &'p [Publish]) -> Option<&'p Publish> {
    let Publish { guest_addr, guest_port, .. } = *asked;
    there.iter().find(|port| means(asked, &Publish { guest_addr, guest_port, ..**port }))
}

/// A line for each port, in the order of their making.
fn shown(ports: &[Publish]) -> String {
    let mut text = "Inbound forwarding rules (HOST):".to_owned();
    if ports.is_empty() {
        text += " none";
    }
    text += "\n";
    for port in ports {
        // Writing to a string does not fail.
        let _ = writeln!(text, "    {}", rule(port));
    }
    text
}

/// `TCP [127.0.0.1%lo]:8080 => [10.88.0.2]:80`.
fn rule(port: &Publish) -> String {
    let from = port.host_addr.map_or("*".to_owned(), |address| address.to_string());
    let interface = port.host_interface.map(|name| format!("%{name}")).unwrap_or_default();
    let number = port.host_port.map_or("any".to_owned(), |number| number.to_string());
    let target = port.guest_addr.map(|address| format!("[{address}]:")).unwrap_or_default();
    let transport = port.transport.to_string().to_uppercase();
    format!("{transport} [{from}{interface}]:{number} => {target}{}", port.guest_port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{IfName, Transport};

    #[test]
    fn a_rule_is_told_whole() {
        let port = Publish {
            host_addr: Some([127, 0, 0, 1].into()),
            host_port: Some(8080),
            host_interface: IfName::new("lo"),
            guest_addr: Some([10, 88, 0, 2].into()),
            guest_port: 80,
            transport: Transport::Tcp,
        };
        assert_eq!(rule(&port), "TCP [127.0.0.1%lo]:8080 => [10.88.0.2]:80");
        let plain = Publish { host_addr: None, host_interface: None, guest_addr: None, ..port };
        assert_eq!(rule(&plain), "TCP [*]:8080 => 80");
        assert_eq!(shown(&[]), "Inbound forwarding rules (HOST): none\n");
    }

    #[test]
    fn ports_are_told_apart_by_all_they_are_and_where_they_are_bound() {
        let asked = Publish {
            host_addr: None,
            host_port: Some(80),
            host_interface: None,
            guest_addr: None,
            guest_port: 80,
            transport: Transport::Udp,
        };
        let at = |address: [u8; 4]| Publish { host_addr: Some(address.into()), ..asked };
        assert!(means(&asked, &asked) && means(&asked, &at([0, 0, 0, 0])));
        assert!(!means(&asked, &at([127, 0, 0, 1])) && !means(&at([0, 0, 0, 0]), &asked));
        assert!(!means(&asked, &Publish { guest_port: 81, ..asked }));
        let elsewhere = [at([127, 0, 0, 1]), Publish { guest_port: 81, ..asked }];
        assert_eq!(in_the_way(&asked, &elsewhere), Some(&elsewhere[1]));
        assert_eq!(in_the_way(&asked, &elsewhere[..1]), None);
    }
}
