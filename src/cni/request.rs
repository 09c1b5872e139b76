//! What a runtime asks of a network plugin (CNI specification 1.1, sections 2 and 3, and its extension conventions):
//! the environment and the configuration on standard input become a [`Request`]; pure.
//!
//! Nothing is passed over in silence: what a configuration asks for and rnet does not have is an error that names it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::answer::{Code, Failure, Version};
use crate::config::{IfName, MAX_NAME_BYTES, Rate, Rates};

/// Longest list of attachments, ports or addresses in one request.
const MAX_LIST: usize = 65_536;
/// Members of a configuration that need no look at this place.
const PLAIN_MEMBERS: [&str; 10] = [
    "cniVersion",
    "name",
    "type",
    "args",
    "capabilities",
    "runtimeConfig",
    "prevResult",
    "dns",
    "mtu",
    "options",
];
/// Members with this prefix belong to the protocol.
const PROTOCOL_PREFIX: &str = "cni.dev/";

/// What shall be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Request {
    /// Give a container a network.
    Add { attachment: Attachment, netns: PathBuf, wish: Box<Wish>, previous: Option<Value> },
    /// Take it away.
    Del { attachment: Attachment },
    /// Is it as ADD has left it?
    Check { attachment: Attachment, netns: PathBuf, previous: Value },
    /// Take away whatever is not among these.
    Gc { network: String, valid: Vec<Attachment> },
    /// Could networks be given?
    Status,
    /// Which versions are spoken?
    Version,
}

/// One container's interface in one network; unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attachment {
    /// Name of the network.
    pub(super) network: String,
    /// The container.
    pub(super) container: String,
    /// The interface inside.
    pub(super) ifname: String,
}

/// What a container's network shall be like.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Wish {
    /// Options by the names of `rnet attach`, with their values.
    pub(super) options: Vec<(String, String)>,
    /// The guest's addresses, with or without the length of their subnet's prefix.
    pub(super) ips: Vec<(IpAddr, Option<u8>)>,
    /// Limits.
    pub(super) rates: Rates,
    /// For the container's resolver, beside the server.
    pub(super) dns: Dns,
}

/// A `dns` member.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub(super) struct Dns {
    #[serde(default)]
    pub(super) nameservers: Vec<String>,
    pub(super) domain: Option<String>,
    #[serde(default)]
    pub(super) search: Vec<String>,
    #[serde(default)]
    pub(super) options: Vec<String>,
}

/// The environment of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Environment(BTreeMap<String, String>);

/// A configuration as it is written.
#[derive(Clone, Debug, Deserialize)]
struct Configuration {
    #[serde(default)]
    name: String,
    mtu: Option<u16>,
    #[serde(default)]
    options: BTreeMap<String, Value>,
    #[serde(default)]
    dns: Dns,
    #[serde(default, rename = "runtimeConfig")]
    runtime: BTreeMap<String, Value>,
    #[serde(default)]
    args: BTreeMap<String, Value>,
    #[serde(rename = "prevResult")]
    previous: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<ValidAttachment>>,
}

#[derive(Clone, Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

#[derive(Clone, Debug, Deserialize)]
struct PortMapping {
    #[serde(rename = "hostPort")]
    host_port: i64,
    #[serde(rename = "containerPort")]
    container_port: i64,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

/// Seen from the container, in bits in a second, and bits.
#[derive(Clone, Debug, Deserialize)]
struct Bandwidth {
    #[serde(default, rename = "ingressRate")]
    ingress_rate: u64,
    #[serde(default, rename = "ingressBurst")]
    ingress_burst: u64,
    #[serde(default, rename = "egressRate")]
    egress_rate: u64,
    #[serde(default, rename = "egressBurst")]
    egress_burst: u64,
}

impl Environment {
    /// The variables that concern plugins.
    pub(super) fn new(variables: &[(OsString, OsString)]) -> Self {
        let concerns = variables.iter().filter_map(|(name, value)| {
            let name = name.to_str().filter(|name| name.starts_with("CNI_"))?;
            Some((name.to_owned(), value.to_str()?.to_owned()))
        });
        Self(concerns.collect())
    }

    /// A variable that must be set.
    fn required(&self, name: &str) -> Result<&str, Failure> {
        let value = self.0.get(name).map(String::as_str).filter(|value| !value.is_empty());
        value.ok_or_else(|| Failure::new(Code::Environment, format!("{name} is missing")))
    }

    fn attachment(&self, network: String) -> Result<Attachment, Failure> {
        let container = self.required("CNI_CONTAINERID")?;
        if !is_identifier(container) {
            return Err(bad_variable("CNI_CONTAINERID", container, "letters, digits, '-', '_' and '.'"));
        }
        let ifname = self.required("CNI_IFNAME")?;
        let forbidden = |character: char| matches!(character, '/' | ':') || character.is_whitespace();
        let too_long = ifname.len() > IfName::MAX_BYTES;
        if too_long || matches!(ifname, "." | "..") || ifname.contains(forbidden) {
            return Err(bad_variable("CNI_IFNAME", ifname, "the name of an interface"));
        }
        Ok(Attachment { network, container: container.to_owned(), ifname: ifname.to_owned() })
    }

    /// `CNI_ARGS`: `IP` and `MAC` count; others are an error unless `IgnoreUnknown` says otherwise.
    fn arguments(&self) -> Result<BTreeMap<&str, &str>, Failure> {
        let text = self.0.get("CNI_ARGS").map(String::as_str).unwrap_or_default();
        let mut arguments = BTreeMap::new();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| bad_variable("CNI_ARGS", pair, "NAME=VALUE"))?;
            arguments.insert(name, value);
        }
        let ignore =
            arguments.remove("IgnoreUnknown").is_some_and(|value| matches!(value, "1" | "true" | "TRUE"));
        match arguments.keys().find(|name| !matches!(**name, "IP" | "MAC")) {
            Some(unknown) if !ignore => {
                Err(bad_variable("CNI_ARGS", unknown, "IP, MAC, or IgnoreUnknown=1 beside it"))
            }
            _ => Ok(arguments),
        }
    }
}

/// Understands a call. A failure carries the version in which it shall be told, if that was understood.
pub(super) fn parse(environment: &Environment, input: &[u8]) -> (Version, Result<Request, Failure>) {
    let command = match environment.required("CNI_COMMAND") {
        Ok(command) => command,
        Err(failure) => return (Version::NEWEST, Err(failure)),
    };
    let value = match serde_json::from_slice::<Value>(input) {
        // A version can be asked for without a configuration.
        Err(_) if command == "VERSION" => return (Version::NEWEST, Ok(Request::Version)),
        Err(error) => return (Version::NEWEST, Err(undecodable("the network configuration", &error))),
        Ok(value) => value,
    };
    let asked = value.get("cniVersion").and_then(Value::as_str).unwrap_or_default();
    match (Version::named(asked), command) {
        (version, "VERSION") => (version.unwrap_or(Version::NEWEST), Ok(Request::Version)),
        (Some(version), _) => (version, understand(command, version, environment, value)),
        (None, _) => (Version::NEWEST, Err(Failure::incompatible(asked))),
    }
}

fn understand(
    command: &str,
    version: Version,
    environment: &Environment,
    value: Value,
) -> Result<Request, Failure> {
    if matches!(command, "GC" | "STATUS") && !version.has_gc_and_status() {
        let text = format!("{command} is not part of version {version}");
        return Err(Failure::new(Code::Environment, text));
    }
    if command == "DEL" {
        // Whatever else is wrong must not keep a container from its end.
        let name = value.get("name").and_then(Value::as_str).unwrap_or_default();
        return environment.attachment(name.to_owned()).map(|attachment| Request::Del { attachment });
    }
    check_members(&value)?;
    let configuration: Configuration =
        serde_json::from_value(value).map_err(|error| undecodable("the network configuration", &error))?;
    if !is_identifier(&configuration.name) {
        let text = format!("'{}' is no name of a network", configuration.name);
        return Err(Failure::new(Code::Configuration, text));
    }
    let name = configuration.name.clone();
    let netns = || environment.required("CNI_NETNS").map(PathBuf::from);
    match command {
        "ADD" => Ok(Request::Add {
            attachment: environment.attachment(name)?,
            netns: netns()?,
            wish: Box::new(wish(environment, &configuration)?),
            previous: configuration.previous,
        }),
        "CHECK" => Ok(Request::Check {
            attachment: environment.attachment(name)?,
            netns: netns()?,
            previous: configuration
                .previous
                .ok_or_else(|| Failure::new(Code::Configuration, "CHECK needs prevResult"))?,
        }),
        "GC" => Ok(Request::Gc { valid: valid_attachments(&configuration)?, network: name }),
        "STATUS" => Ok(Request::Status),
        other => Err(bad_variable("CNI_COMMAND", other, "ADD, DEL, CHECK, GC, STATUS or VERSION")),
    }
}

/// Refuses members that ask for what rnet does not have.
fn check_members(value: &Value) -> Result<(), Failure> {
    let members = value
        .as_object()
        .ok_or_else(|| Failure::new(Code::Undecodable, "the network configuration is not an object"))?;
    let is_nothing = |value: &Value| match value {
        Value::Object(members) => members.is_empty(),
        other => other.is_null(),
    };
    for (name, value) in members {
        let (known, hint) = match name.as_str() {
            "ipam" => {
                (is_nothing(value), "rnet gives addresses itself; see options.cidr and the capability ips")
            }
            "ipMasq" => {
                (*value == Value::Bool(true), "an rnet network is always behind an address of the host's")
            }
            name => (
                PLAIN_MEMBERS.contains(&name) || name.starts_with(PROTOCOL_PREFIX),
                "options of rnet stand in the member options",
            ),
        };
        if !known {
            return Err(
                Failure::new(Code::Unsupported, format!("the member {name} is not supported")).details(hint)
            );
        }
    }
    Ok(())
}

fn valid_attachments(configuration: &Configuration) -> Result<Vec<Attachment>, Failure> {
    let valid = configuration
        .valid
        .as_deref()
        .ok_or_else(|| Failure::new(Code::Configuration, "GC needs cni.dev/valid-attachments"))?;
    bounded("cni.dev/valid-attachments", valid.len())?;
    let attachment = |valid: &ValidAttachment| Attachment {
        network: configuration.name.clone(),
        container: valid.container.clone(),
        ifname: valid.ifname.clone(),
    };
    Ok(valid.iter().map(attachment).collect())
}

fn wish(environment: &Environment, configuration: &Configuration) -> Result<Wish, Failure> {
    let mut wish = Wish { dns: configuration.dns.clone(), ..Wish::default() };
    for (name, value) in &configuration.options {
        let name_is_given = matches!(name.as_str(), "ifname");
        let value = text(value)
            .filter(|_| !name_is_given)
            .ok_or_else(|| Failure::new(Code::Configuration, format!("options.{name} cannot be {value}")))?;
        wish.option(name, value);
    }
    wish.options.extend(configuration.mtu.map(|mtu| ("mtu".to_owned(), mtu.to_string())));
    if !configuration.dns.nameservers.is_empty() {
        wish.option("dns", configuration.dns.nameservers.join(","));
    }
    for (name, value) in configuration.runtime.iter().filter(|(_, value)| !value.is_null()) {
        wish.capability(name, value)?;
    }
    if let Some(ips) = configuration.args.get("cni").and_then(|args| args.get("ips")) {
        wish.ips(ips)?;
    }
    let arguments = environment.arguments()?;
    if let Some(ip) = arguments.get("IP") {
        wish.ips.push(address(ip)?);
    }
    if let Some(mac) = arguments.get("MAC") {
        wish.option("mac-address", (*mac).to_owned());
    }
    Ok(wish)
}

impl Wish {
    fn option(&mut self, name: &str, value: String) {
        self.options.push((name.to_owned(), value));
    }

    /// A member of `runtimeConfig`.
    fn capability(&mut self, name: &str, value: &Value) -> Result<(), Failure> {
        match name {
            "portMappings" => self.port_mappings(value),
            "ips" => self.ips(value),
            "mac" => {
                let mac = value
                    .as_str()
                    .ok_or_else(|| Failure::new(Code::Configuration, "runtimeConfig.mac is no text"))?;
                self.option("mac-address", mac.to_owned());
                Ok(())
            }
            "bandwidth" => self.bandwidth(value),
            _ => Err(Failure::new(Code::Unsupported, format!("the capability {name} is not supported"))
                .details("remove it from the configuration's capabilities")),
        }
    }

    fn port_mappings(&mut self, value: &Value) -> Result<(), Failure> {
        const WHAT: &str = "runtimeConfig.portMappings";
        let mappings: Vec<PortMapping> =
            serde_json::from_value(value.clone()).map_err(|error| undecodable(WHAT, &error))?;
        bounded(WHAT, mappings.len())?;
        // Port 0 at the host: the container's port is declared, but not published.
        for mapping in mappings.into_iter().filter(|mapping| mapping.host_port != 0) {
            self.option("publish", mapping.publish());
        }
        Ok(())
    }

    fn ips(&mut self, value: &Value) -> Result<(), Failure> {
        const WHAT: &str = "ips";
        let ips: Vec<String> =
            serde_json::from_value(value.clone()).map_err(|error| undecodable(WHAT, &error))?;
        bounded(WHAT, ips.len())?;
        for ip in ips {
            self.ips.push(address(&ip)?);
        }
        Ok(())
    }

    /// Rates of 0 are no limit; a limit without a burst has that of a second.
    fn bandwidth(&mut self, value: &Value) -> Result<(), Failure> {
        const WHAT: &str = "runtimeConfig.bandwidth";
        let bandwidth: Bandwidth =
            serde_json::from_value(value.clone()).map_err(|error| undecodable(WHAT, &error))?;
        let rate = |rate: u64, burst: u64| match rate {
            0 => Ok(None),
            _ => Rate::new(rate, if burst == 0 { rate } else { burst }).map(Some).ok_or_else(|| {
                Failure::new(Code::Configuration, format!("{WHAT} cannot be {rate} with a burst of {burst}"))
            }),
        };
        self.rates = Rates {
            to_guest: rate(bandwidth.ingress_rate, bandwidth.ingress_burst)?,
            from_guest: rate(bandwidth.egress_rate, bandwidth.egress_burst)?,
        };
        Ok(())
    }
}

impl PortMapping {
    /// As `--publish` has it.
    fn publish(&self) -> String {
        let Self { host_port, container_port, protocol, host_ip } = self;
        let protocol = if protocol.is_empty() { "tcp" } else { protocol };
        match host_ip.as_str() {
            "" => format!("{host_port}:{container_port}/{protocol}"),
            ip if ip.contains(':') => format!("[{ip}]:{host_port}:{container_port}/{protocol}"),
            ip => format!("{ip}:{host_port}:{container_port}/{protocol}"),
        }
    }
}

/// An option's value as text: JSON has lists, numbers and truth values where a command line has words.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        Value::Array(parts) => {
            let parts: Option<Vec<&str>> = parts.iter().map(Value::as_str).collect();
            Some(parts?.join(",")).filter(|text| !text.is_empty())
        }
        Value::Null | Value::Object(_) => None,
    }
}

fn address(text: &str) -> Result<(IpAddr, Option<u8>), Failure> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let parsed = address.parse::<IpAddr>().ok().and_then(|address| match prefix {
        Some(prefix) => Some((address, Some(prefix.parse().ok().filter(|prefix| *prefix <= bits(address))?))),
        None => Some((address, None)),
    });
    parsed.ok_or_else(|| Failure::new(Code::Configuration, format!("'{text}' is no IP address")))
}

/// Whether `text` may name a network or a container.
fn is_identifier(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text.bytes().all(inner)
        && text.len() <= 2 * MAX_NAME_BYTES
}

fn bounded(what: &str, len: usize) -> Result<(), Failure> {
    if len <= MAX_LIST {
        return Ok(());
    }
    Err(Failure::new(Code::Configuration, format!("{what} has more than {MAX_LIST} members")))
}

fn bad_variable(name: &str, value: &str, expected: &str) -> Failure {
    Failure::new(Code::Environment, format!("{name} is '{value}'; expected {expected}"))
}

fn undecodable(what: &str, error: &serde_json::Error) -> Failure {
    Failure::new(Code::Undecodable, format!("cannot decode {what}")).details(error)
}

#[cfg(test)]
mod tests;
