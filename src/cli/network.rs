//! Networks on the command line: whose a container is in (`rnet run`), and those that have a name (`rnet network`).

use std::net::{Ipv4Addr, Ipv6Addr};

use clap::{Args, Subcommand};
use ipnet::{Ipv4Net, Ipv6Net};

use super::args::{NetworkArgs, TrafficArgs};
use super::{Note, values};
use crate::config::{
    Ipv4Plan, Ipv6Choice, Ipv6Plan, LogLevel, Membership, NetworkCommand, NetworkMode, NewNetwork,
};

const HEADING: &str = "Network";
const EXPECTED: &str = "expected user, none, host, container:NAME or the name of a network";

/// Whose network it is.
#[derive(Args, Debug)]
pub(super) struct ModeArgs {
    /// The container's network: user (its own, through rnet), none, host, that of another (container:NAME|PID), or a
    /// network by its name.
    #[arg(
        long = "net",
        visible_alias = "network",
        value_name = "MODE",
        default_value = "user",
        value_parser = mode,
        help_heading = HEADING
    )]
    pub(super) net: NetworkMode,

    /// The container's IPv4 address in a network that has a name [default: a free one].
    #[arg(long, value_name = "ADDR", help_heading = HEADING)]
    ip: Option<Ipv4Addr>,

    /// The same for IPv6.
    #[arg(long, value_name = "ADDR", help_heading = HEADING)]
    ip6: Option<Ipv6Addr>,

    /// A name by which others in the network find the container besides its own; several may have it. Repeatable.
    #[arg(long, value_name = "NAME", value_parser = values::hostname, help_heading = HEADING)]
    network_alias: Vec<String>,
}

fn mode(text: &str) -> Result<NetworkMode, String> {
    match text.split_once(':') {
        None => match text {
            "user" => Ok(NetworkMode::User),
            "none" => Ok(NetworkMode::None),
            "host" => Ok(NetworkMode::Host),
            name => named(name)
                .map_err(|_| EXPECTED.to_owned())
                .map(|network| NetworkMode::Named(Membership { network, ..Membership::default() })),
        },
        Some(("container", whose)) => values::name(whose).map(NetworkMode::Container),
        Some(_) => Err(EXPECTED.to_owned()),
    }
}

/// The name of a network, which is a domain too.
fn named(text: &str) -> Result<String, String> {
    if NetworkMode::RESERVED.contains(&text) {
        return Err(format!("'{text}' means something else to --net"));
    }
    values::name(text)?;
    values::hostname(text)
}

/// Settles whose network it is: refuses what that cannot have; what only has no effect is noted.
pub(super) fn settle(
    args: ModeArgs,
    network: &NetworkArgs,
    traffic: &TrafficArgs,
    notes: &mut Vec<Note>,
) -> Result<NetworkMode, String> {
    let ModeArgs { net, ip, ip6, network_alias } = args;
    if let NetworkMode::Named(membership) = net {
        check_named(&membership.network, network, traffic)?;
        return Ok(NetworkMode::Named(Membership {
            ipv4: ip,
            ipv6: ip6,
            aliases: network_alias,
            ..membership
        }));
    }
    let given =
        [("--ip", ip.is_some()), ("--ip6", ip6.is_some()), ("--network-alias", !network_alias.is_empty())];
    if let Some((option, _)) = given.iter().find(|(_, given)| *given) {
        return Err(format!("{option} is for a network that has a name: --net NAME"));
    }
    check(&net, traffic, notes)?;
    Ok(net)
}

/// Refuses what the network and not its container decides.
fn check_named(name: &str, network: &NetworkArgs, traffic: &TrafficArgs) -> Result<(), String> {
    let given = [
        ("--cidr", network.cidr.is_some()),
        ("--cidr6", network.cidr6.is_some()),
        ("--no-ipv6", network.no_ipv6),
        ("--dns", !traffic.dns.is_empty()),
        ("--outbound", !traffic.outbound.is_empty()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((option, _)) => {
            Err(format!("{option} cannot be used with --net {name}: that network decides it"))
        }
        None => Ok(()),
    }
}

/// `rnet network`: what to do.
#[derive(Debug, Subcommand)]
pub(super) enum NetworkVerb {
    /// Make a network for several containers.
    Create {
        /// Its name, and the domain of its containers' names.
        #[arg(value_name = "NAME", value_parser = named)]
        name: String,
        /// Its IPv4 addresses [default: a free 10.89.N.0/24].
        #[arg(long, value_name = "CIDR", value_parser = subnet)]
        subnet: Option<Ipv4Net>,
        /// The gateway's IPv4 address [default: the first one].
        #[arg(long, value_name = "ADDR")]
        gateway: Option<Ipv4Addr>,
        /// Its IPv6 addresses [default: a free fd00:10:89:N::/64].
        #[arg(long, value_name = "CIDR", value_parser = subnet6, conflicts_with = "no_ipv6")]
        ipv6_subnet: Option<Ipv6Net>,
        /// IPv4 only.
        #[arg(long)]
        no_ipv6: bool,
        /// Let nothing lead out of it.
        #[arg(long)]
        internal: bool,
        /// Largest IP packet in bytes, 1280 to 65520.
        #[arg(long, value_name = "BYTES", default_value_t = 65520, value_parser = clap::value_parser!(u16).range(1280..=65520))]
        mtu: u16,
    },
    /// List networks.
    Ls {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Print names only.
        #[arg(short, long)]
        quiet: bool,
    },
    /// Describe networks and the containers that are in them, as JSON.
    Inspect {
        /// Networks.
        #[arg(value_name = "NAME", required = true, value_parser = values::name)]
        names: Vec<String>,
    },
    /// Remove networks that no container is in.
    Rm {
        /// Networks.
        #[arg(value_name = "NAME", required = true, value_parser = values::name)]
        names: Vec<String>,
    },
    /// Remove all networks that no container is in.
    Prune,
    /// Bring a running container into a network, too.
    Connect {
        /// The network.
        #[arg(value_name = "NETWORK", value_parser = values::name)]
        network: String,
        /// The container: its name, or the beginning of its id.
        #[arg(value_name = "CONTAINER", value_parser = values::name)]
        container: String,
        /// A further name for the container there. Repeatable.
        #[arg(long, value_name = "NAME", value_parser = values::hostname)]
        alias: Vec<String>,
        /// Its IPv4 address there [default: a free one].
        #[arg(long, value_name = "ADDR")]
        ip: Option<Ipv4Addr>,
        /// The same for IPv6.
        #[arg(long, value_name = "ADDR")]
        ip6: Option<Ipv6Addr>,
    },
    /// Take a container out of a network.
    Disconnect {
        /// The network.
        #[arg(value_name = "NETWORK", value_parser = values::name)]
        network: String,
        /// The container.
        #[arg(value_name = "CONTAINER", value_parser = values::name)]
        container: String,
    },
    /// The gateway of a network; started by the first container.
    #[command(hide = true)]
    Serve {
        /// The network.
        #[arg(value_name = "NAME", value_parser = values::name)]
        name: String,
    },
}

/// Settles `rnet network`.
pub(super) fn verb(verb: NetworkVerb) -> NetworkCommand {
    match verb {
        NetworkVerb::Create { name, subnet, gateway, ipv6_subnet, no_ipv6, internal, mtu } => {
            let ipv6 = match ipv6_subnet {
                Some(subnet) => Ipv6Choice::Given(subnet),
                None if no_ipv6 => Ipv6Choice::Off,
                None => Ipv6Choice::Free,
            };
            NetworkCommand::Create(NewNetwork { name, subnet, gateway, ipv6, internal, mtu })
        }
        NetworkVerb::Ls { json, quiet } => NetworkCommand::List { json, quiet },
        NetworkVerb::Inspect { names } => NetworkCommand::Inspect(names),
        NetworkVerb::Rm { names } => NetworkCommand::Remove(names),
        NetworkVerb::Prune => NetworkCommand::Prune,
        NetworkVerb::Connect { network, container, alias, ip, ip6 } => NetworkCommand::Connect {
            container,
            membership: Membership { network, ipv4: ip, ipv6: ip6, aliases: alias },
        },
        NetworkVerb::Disconnect { network, container } => NetworkCommand::Disconnect { network, container },
        NetworkVerb::Serve { name } => NetworkCommand::Serve(name),
    }
}

fn subnet(text: &str) -> Result<Ipv4Net, String> {
    let net: Ipv4Net = text.parse().map_err(|_| format!("'{text}' is not a network such as 10.89.7.0/24"))?;
    let plan = Ipv4Plan::new(net).filter(|plan| (8..=29).contains(&plan.subnet.prefix_len()));
    plan.map(|plan| plan.subnet)
        .ok_or_else(|| format!("'{text}' has no room for stations, or is not unicast"))
}

fn subnet6(text: &str) -> Result<Ipv6Net, String> {
    let net: Ipv6Net = text.parse().map_err(|_| format!("'{text}' is not a network such as fd00:7::/64"))?;
    let plan = Ipv6Plan::new(net).filter(|plan| plan.subnet.prefix_len() >= 8);
    plan.map(|plan| plan.subnet)
        .ok_or_else(|| format!("'{text}' has no room for stations, or is not unicast"))
}

/// Refuses what a network that rnet does not carry cannot have; what only has no effect is noted.
fn check(mode: &NetworkMode, traffic: &TrafficArgs, notes: &mut Vec<Note>) -> Result<(), String> {
    if mode.is_carried() {
        return Ok(());
    }
    if !traffic.publish.is_empty() {
        match mode {
            // As docker has it: the container's ports are the host's anyway.
            NetworkMode::Host => notes.push(Note {
                level: LogLevel::Warn,
                text: "--publish has no effect with --net host: the container's ports are the host's"
                    .to_owned(),
            }),
            _ => {
                return Err(format!(
                    "--publish cannot be used with --net {mode}: rnet does not carry that network"
                ));
            }
        }
    }
    let given = [
        ("--allow-host", !traffic.allow_host.is_empty()),
        ("--host-loopback", traffic.host_loopback),
        ("--dns", !traffic.dns.is_empty()),
        ("--outbound", !traffic.outbound.is_empty()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((option, _)) => {
            Err(format!("{option} cannot be used with --net {mode}: rnet does not carry that network"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_written_as_docker_writes_them() {
        for text in ["user", "none", "host", "container:4711", "container:web", "net1"] {
            assert_eq!(mode(text).expect(text).to_string(), text);
        }
        for text in ["", "bridge:x", "-x", "container:", "container:-1", "ns:/proc/1/ns/net"] {
            mode(text).expect_err(text);
        }
    }
}
