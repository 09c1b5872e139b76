//! Options of the network that come by name instead of on a command line: a container's annotations, a CNI
//! configuration.
//!
//! Names are those of `rnet attach`'s long options, values have the same grammar, and mistakes are told in the same
//! words. Where an option may be repeated, commas separate the values.

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser};

use super::args::{NetworkArgs, TrafficArgs};
use super::{Note, Surroundings, settle};
use crate::config::{LinkSpec, Network};

/// What the options say.
#[derive(Clone, Debug)]
pub struct Options {
    /// The network.
    pub network: Network,
    /// The link.
    pub link: LinkSpec,
    /// To be logged once logging stands.
    pub notes: Vec<Note>,
}

/// All options that can come by name.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true, disable_version_flag = true)]
struct NamedArgs {
    #[command(flatten)]
    traffic: TrafficArgs,

    #[command(flatten)]
    network: NetworkArgs,
}

/// Understands `options`, pairs of name and value. In messages `prefix` stands before names.
///
/// A flag's value is `true` or `false`.
pub fn named(
    prefix: &str,
    options: &[(String, String)],
    surroundings: &Surroundings,
) -> Result<Options, String> {
    let command = NamedArgs::command();
    let mut argv = Vec::new();
    for (name, value) in options {
        argv.extend(arguments(&command, name, value).map_err(|cause| format!("{prefix}{name}: {cause}"))?);
    }
    let settled = command
        .try_get_matches_from(argv)
        .and_then(|matches| NamedArgs::from_arg_matches(&matches))
        .map_err(|error| sentence(&error))
        .and_then(|NamedArgs { traffic, network }| settle::options(traffic, &network, surroundings));
    settled.map_err(|mistake| renamed(&mistake, prefix))
}

/// The arguments that stand for one option.
fn arguments(command: &clap::Command, name: &str, value: &str) -> Result<Vec<String>, String> {
    let mut known = command.get_arguments();
    let option = known.find(|option| option.get_long() == Some(name)).ok_or("there is no such option")?;
    match (option.get_action(), value) {
        (ArgAction::SetTrue, "true") => Ok(vec![format!("--{name}")]),
        (ArgAction::SetTrue, "false") => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err(format!("'{value}' is neither true nor false")),
        (ArgAction::Append, _) => {
            Ok(value.split(',').map(|part| format!("--{name}={}", part.trim())).collect())
        }
        _ => Ok(vec![format!("--{name}={value}")]),
    }
}

/// What clap says, without its layout.
fn sentence(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let first = text.split("\n\n").next().unwrap_or(text);
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `--mtu` by the name that the user knows it under.
fn renamed(mistake: &str, prefix: &str) -> String {
    let mut parts = mistake.split("--");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let is_option = part.starts_with(|first: char| first.is_ascii_lowercase());
        text + if is_option { prefix } else { "--" } + part
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::RANDOM_BYTES;

    #[test]
    fn options_mean_what_they_mean_on_the_command_line() {
        let options = understood(&[
            ("publish", "8080:80, 127.0.0.1:5353:53/udp"),
            ("mtu", "1500"),
            ("cidr", "10.9.0.0/24"),
            ("host-loopback", "true"),
            ("no-ipv6", "false"),
            ("ifname", "eth0"),
        ])
        .expect("no mistake");
        let ports: Vec<u16> = options.network.publish.iter().map(|publish| publish.guest_port).collect();
        assert_eq!(ports, [80, 53]);
        assert_eq!((options.network.mtu, options.network.ipv6.is_some()), (1500, true));
        assert_eq!(options.network.ipv4.expect("IPv4").guest.to_string(), "10.9.0.100");
        assert!(options.network.host_access.loopback);
        assert_eq!(options.link.ifname, "eth0");
    }

    #[test]
    fn none_at_all_is_the_default_network() {
        let options = understood(&[]).expect("nothing to mistake");
        assert_eq!(options.network.ipv4.expect("IPv4").subnet.to_string(), "10.0.2.0/24");
        assert!(options.network.publish.is_empty() && !options.network.host_access.loopback);
    }

    #[test]
    fn mistakes_name_the_option_as_the_user_wrote_it() {
        for (name, value, told) in [
            ("publish", "80:0", "invalid value '80:0' for 'io.rnet.publish <PORTS>'"),
            ("publish", "8080:80,x", "invalid value 'x' for 'io.rnet.publish <PORTS>'"),
            ("publish", "80:80,80:81", "host port 80/tcp is already published"),
            ("mtu", "many", "for 'io.rnet.mtu <BYTES>'"),
            ("mtu", "600", "with io.rnet.no-ipv6 576 is enough"),
            ("link", "bridge", "io.rnet.link"),
            ("host-loopback", "maybe", "io.rnet.host-loopback: 'maybe' is neither true nor false"),
            ("allow-host", "localhost:1", "io.rnet.allow-host"),
            ("detach", "true", "io.rnet.detach: there is no such option"),
            ("", "", "io.rnet.: there is no such option"),
        ] {
            let mistake = understood(&[(name, value)]).expect_err(value);
            assert!(mistake.contains(told), "{mistake}");
            assert!(!mistake.contains("--") && !mistake.contains('\n'), "{mistake}");
        }
    }

    fn understood(options: &[(&str, &str)]) -> Result<Options, String> {
        let options: Vec<_> =
            options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let surroundings = Surroundings {
            env: Vec::new(),
            cwd: "/".into(),
            hostname: "host".to_owned(),
            stdin_is_tty: false,
            host_subnets: Vec::new(),
            random: [7; RANDOM_BYTES],
            cores: 1,
        };
        named("io.rnet.", &options, &surroundings)
    }
}
