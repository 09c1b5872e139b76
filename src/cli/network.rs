//! Options of `rnet run` about whose network a container is in.

use clap::Args;

use super::args::TrafficArgs;
use super::{Note, values};
use crate::config::{LogLevel, NetworkMode};

/// Whose network it is.
#[derive(Args, Debug)]
pub(super) struct ModeArgs {
    /// The container's network: user (its own, through rnet), none, host, or that of another (container:NAME|PID).
    #[arg(
        long = "net",
        visible_alias = "network",
        value_name = "MODE",
        default_value = "user",
        value_parser = mode,
        help_heading = "Network"
    )]
    pub(super) net: NetworkMode,
}

fn mode(text: &str) -> Result<NetworkMode, String> {
    match text.split_once(':') {
        None => match text {
            "user" => Ok(NetworkMode::User),
            "none" => Ok(NetworkMode::None),
            "host" => Ok(NetworkMode::Host),
            _ => Err("expected user, none, host or container:NAME".to_owned()),
        },
        Some(("container", whose)) => values::name(whose).map(NetworkMode::Container),
        Some(_) => Err("expected user, none, host or container:NAME".to_owned()),
    }
}

/// Refuses what a network that rnet does not carry cannot have; what only has no effect is noted.
pub(super) fn check(mode: &NetworkMode, traffic: &TrafficArgs, notes: &mut Vec<Note>) -> Result<(), String> {
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
        for text in ["user", "none", "host", "container:4711", "container:web"] {
            assert_eq!(mode(text).expect(text).to_string(), text);
        }
        for text in ["", "bridge:x", "container:", "container:-1", "ns:/proc/1/ns/net"] {
            mode(text).expect_err(text);
        }
    }
}
