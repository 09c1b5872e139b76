//! Networks that have a name, and several containers: `rnet network`, and `rnet run --net NAME`.
//!
//! What a network is stands in a file (`definition`). While containers are in it, a process in the background is its
//! gateway (`gateway`), which carries what they send to each other and to the world; `lease` says who has which address,
//! `protocol` what is said between both, and [`Member`] is a container's side.

mod definition;
mod gateway;
mod lease;
mod member;
mod protocol;

use std::io::{self, Write};

use serde_json::{Value, json};

use self::definition::Definition;
use self::lease::Lease;
pub use self::member::Member;
use crate::cli::Surroundings;
use crate::config::NetworkCommand;
use crate::error::{Context, Error, Result};

/// Does what `rnet network` is asked for; the exit status.
pub fn network(command: &NetworkCommand, surroundings: &Surroundings, seed: u64) -> Result<u8> {
    let text = match command {
        NetworkCommand::Create(wanted) => {
            format!("{}\n", definition::create(wanted, &surroundings.host_subnets)?.name)
        }
        NetworkCommand::List { json: true, .. } => pretty(&described(&definition::list()?)?),
        NetworkCommand::List { quiet: true, .. } => {
            definition::list()?.iter().map(|network| network.name.clone() + "\n").collect()
        }
        NetworkCommand::List { .. } => table(&definition::list()?)?,
        NetworkCommand::Inspect(names) => {
            let found: Vec<Definition> =
                names.iter().map(|name| definition::load(name)).collect::<Result<_>>()?;
            pretty(&described(&found)?)
        }
        NetworkCommand::Remove(names) => {
            names.iter().map(|name| remove(name).map(|()| format!("{name}\n"))).collect::<Result<_>>()?
        }
        NetworkCommand::Prune => prune()?,
        NetworkCommand::Connect { container, membership } => {
            member::connect(container, membership).map(|()| String::new())?
        }
        NetworkCommand::Disconnect { network, container } => {
            member::disconnect(network, container).map(|()| String::new())?
        }
        NetworkCommand::Serve(name) => gateway::start(name, seed).map(|()| String::new())?,
    };
    io::stdout().write_all(text.as_bytes()).context("cannot write to", "standard output")?;
    Ok(0)
}

/// Removes a network that no container is in.
fn remove(name: &str) -> Result<()> {
    definition::load(name)?;
    let members: Vec<String> = member::members(name)?.into_iter().map(|lease| lease.container).collect();
    if !members.is_empty() {
        let cause = format!("containers are in it: {}", members.join(", "));
        return Err(Error::new("cannot remove", format!("the network {name}"), cause)
            .hint(format!("end them, or take them out: rnet network disconnect {name} {}", members[0])));
    }
    definition::remove(name)
}

/// Removes all that no container is in; their names.
fn prune() -> Result<String> {
    let mut removed = String::new();
    for Definition { name, .. } in definition::list()? {
        if member::members(&name)?.is_empty() {
            definition::remove(&name)?;
            removed += &format!("{name}\n");
        }
    }
    Ok(removed)
}

fn described(networks: &[Definition]) -> Result<Value> {
    networks.iter().map(describe).collect::<Result<Vec<Value>>>().map(Value::from)
}

/// All that is known of a network, its containers included.
fn describe(network: &Definition) -> Result<Value> {
    let members = member::members(&network.name)?;
    let mut value = serde_json::to_value(network).unwrap_or_default();
    let more = json!({
        "dns": network.dns(),
        "ipv6_gateway": network.gateway6(),
        "ipv6_dns": network.dns6(),
        "containers": members,
    });
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more.into_iter().filter(|(_, value)| !value.is_null()));
    }
    Ok(value)
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn table(networks: &[Definition]) -> Result<String> {
    let width = networks.iter().map(|network| network.name.len()).max().unwrap_or(0).max("NAME".len()) + 2;
    let mut text =
        format!("{:<width$}{:<20}{:<24}{:<10}CONTAINERS\n", "NAME", "SUBNET", "IPV6 SUBNET", "INTERNAL");
    for network in networks {
        let Definition { name, subnet, ipv6_subnet, internal, .. } = network;
        let ipv6 = ipv6_subnet.map_or_else(|| "-".to_owned(), |subnet| subnet.to_string());
        let internal = if *internal { "yes" } else { "no" };
        let names: Vec<String> =
            member::members(name)?.into_iter().map(|Lease { container, .. }| container).collect();
        let line =
            format!("{name:<width$}{:<20}{ipv6:<24}{internal:<10}{}", subnet.to_string(), names.join(","));
        text += line.trim_end();
        text.push('\n');
    }
    Ok(text)
}
