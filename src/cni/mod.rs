//! `rnet cni`: rnet as a network plugin (CNI specification 0.4.0, 1.0.0 and 1.1.0), for nerdctl, Nomad, Kubernetes and
//! podman's CNI backend.
//!
//! `request` understands the call and `answer` composes what is printed, both pure; here it is carried out. ADD starts
//! one network in the background, which ends by DEL, by GC or with its namespace. All that is remembered is in the
//! network's own directory (see [`crate::control`]).

mod answer;
mod request;

use std::io::{self, Read, Write};
use std::iter;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use self::answer::{Code, Failure, Made, Version};
use self::request::{Attachment, Environment, Request, Wish};
use crate::attach;
use crate::cli::{self, Options, Surroundings};
use crate::config::{
    Attach, IfName, Ipv4Plan, Ipv6Plan, Lifecycle, Log, LogFormat, LogLevel, MAX_NAME_BYTES, MacAddr,
    Network, Rates, Target, container_name, name_like,
};
use crate::container::{self, Namespaces};
use crate::control;
use crate::control::protocol::Request as Question;
use crate::error::{Context, Error, Result};
use crate::log;
use crate::sys::netlink::{self, Route};

/// Attachments that are called alike at most.
const MAX_NAMESAKES: usize = 9;
/// Longest configuration, in bytes.
const MAX_INPUT_BYTES: u64 = 16 * 1024 * 1024;

/// Carries out the call that the environment and standard input describe, and prints the answer; the exit status.
/// `seed` feeds the gateway's random choices. No thread may have been started before.
pub fn cni(surroundings: &Surroundings, seed: u64) -> Result<u8> {
    log::init(LOG);
    let environment = Environment::new(&surroundings.env);
    let mut input = Vec::new();
    let (version, request) = match io::stdin().take(MAX_INPUT_BYTES).read_to_end(&mut input) {
        Ok(_) => request::parse(&environment, &input),
        Err(error) => {
            (Version::NEWEST, Err(Failure::new(Code::Io, "cannot read the configuration").details(error)))
        }
    };
    match request.and_then(|request| carry_out(request, version, surroundings, seed)) {
        Ok(None) => Ok(0),
        Ok(Some(answer)) => print(&answer).map(|()| 0),
        Err(failure) => print(&failure.to_json(version)).map(|()| 1),
    }
}

const LOG: Log = Log { level: LogLevel::Warn, format: LogFormat::Text };

fn print(answer: &Value) -> Result<()> {
    writeln!(io::stdout(), "{answer:#}").context("cannot write to", "standard output")
}

fn carry_out(
    request: Request,
    version: Version,
    surroundings: &Surroundings,
    seed: u64,
) -> std::result::Result<Option<Value>, Failure> {
    match request {
        Request::Add { attachment, netns, wish, previous } => {
            let config = configuration(&attachment, &netns, &wish, surroundings)?;
            let mac = config.link.mac.unwrap_or(MacAddr::BROADCAST);
            let made = Made { ifname: &attachment.ifname, mac, netns: &netns, network: &config.network };
            // Composed first: a result that cannot be told must not leave a network.
            let answer = answer::added(version, previous, &made, &wish.dns)?;
            attach::attach(&config, seed, || Ok(|_: &mut _| Ok(())))
                .map_err(|error| Failure::of(Code::SetUp, &error))?;
            Ok(Some(answer))
        }
        Request::Del { attachment } => {
            let name = name_of(&attachment)?;
            name.map_or(Ok(false), |name| control::end(&name, &memo(&attachment)))?;
            Ok(None)
        }
        Request::Check { attachment, netns, previous } => {
            check(&attachment, &netns, &previous).map(|()| None)
        }
        Request::Gc { network, valid } => collect(&network, &valid).map(|()| None),
        Request::Status => {
            control::check().map(|()| None).map_err(|error| Failure::of(Code::Unavailable, &error))
        }
        Request::Version => Ok(Some(answer::versions(version))),
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::of(Code::Io, &error)
    }
}

/// What the network that was made for `attachment` is called, if there is one.
fn name_of(attachment: &Attachment) -> Result<Option<String>> {
    let memo = memo(attachment);
    Ok(control::memos()?.into_iter().find(|(_, found)| *found == memo).map(|(name, _)| name))
}

/// What a network for `attachment` is to be called: the first of its possible names that nobody else has.
fn new_name(attachment: &Attachment) -> Result<String> {
    if let Some(name) = name_of(attachment)? {
        return Ok(name);
    }
    for name in possible_names(attachment) {
        if control::is_free(&name)? {
            return Ok(name);
        }
    }
    Err(Error::new(
        "cannot make a network for",
        &attachment.container,
        "all names that it could have are taken",
    ))
}

/// `CONTAINER-IFNAME`, and the same with a number behind it. Different attachments may have the same.
fn possible_names(attachment: &Attachment) -> impl Iterator<Item = String> {
    const NUMBER_BYTES: usize = 2;
    let Attachment { container, ifname, .. } = attachment;
    let plain = container_name(&format!("{container}-{ifname}")).unwrap_or_else(|_| {
        let ifname = name_like(ifname, IfName::MAX_BYTES);
        let container = name_like(container, MAX_NAME_BYTES - NUMBER_BYTES - 1 - ifname.len());
        format!("{container}-{ifname}")
    });
    let numbered = name_like(&plain, MAX_NAME_BYTES - NUMBER_BYTES);
    iter::once(plain).chain((2..=MAX_NAMESAKES).map(move |number| format!("{numbered}-{number}")))
}

fn configuration(
    attachment: &Attachment,
    netns: &Path,
    wish: &Wish,
    surroundings: &Surroundings,
) -> std::result::Result<Attach, Failure> {
    let mut options = wish.options.clone();
    options.push(("ifname".to_owned(), attachment.ifname.clone()));
    let Options { mut network, mut link, notes } =
        cli::named("", &options, surroundings).map_err(|cause| Failure::new(Code::Configuration, cause))?;
    network.rates = wish.rates;
    if wish.rates != Rates::default() {
        link.queues = 1;
    }
    let is_given = |name: &str| wish.options.iter().any(|(option, _)| option == name);
    for (address, prefix) in &wish.ips {
        let given = is_given(if address.is_ipv4() { "cidr" } else { "cidr6" });
        settle_guest(&mut network, *address, prefix.filter(|_| !given)).map_err(|cause| {
            Failure::new(Code::Configuration, format!("the guest cannot have {address}")).details(cause)
        })?;
    }
    for note in notes.iter().filter(|note| note.level == LogLevel::Warn) {
        tracing::warn!("{}", note.text);
    }
    Ok(Attach {
        network,
        target: Target::Path { netns: netns.to_owned(), userns: None },
        link,
        lifecycle: Lifecycle { detach: true, ..Lifecycle::default() },
        name: Some(new_name(attachment)?),
        memo: Some(memo(attachment)),
        log: LOG,
    })
}

/// Gives the guest `address`; with a `prefix` the subnet is that of the address.
fn settle_guest(
    network: &mut Network,
    address: IpAddr,
    prefix: Option<u8>,
) -> std::result::Result<(), &'static str> {
    const NO_SUBNET: &str = "its subnet is too small, or not one for guests";
    const NO_HOST: &str = "it is not that of a station in the guest's subnet";
    match address {
        IpAddr::V4(address) => {
            let mut plan = network.ipv4.ok_or("the network is IPv6 only")?;
            if let Some(prefix) = prefix {
                let subnet = ipnet::Ipv4Net::new(address, prefix).map_err(|_| NO_SUBNET)?;
                plan = Ipv4Plan::new(subnet).ok_or(NO_SUBNET)?;
            }
            network.ipv4 = Some(plan.with_guest(address).ok_or(NO_HOST)?);
        }
        IpAddr::V6(address) => {
            let mut plan = network.ipv6.ok_or("the network is IPv4 only")?;
            if let Some(prefix) = prefix {
                let subnet = ipnet::Ipv6Net::new(address, prefix).map_err(|_| NO_SUBNET)?;
                plan = Ipv6Plan::new(subnet).ok_or(NO_SUBNET)?;
            }
            network.ipv6 = Some(plan.with_guest(address).ok_or(NO_HOST)?);
        }
    }
    // The gateways' addresses stand for the host's loopback, wherever they are now.
    network.aliases = Network::new(network.ipv4, network.ipv6).aliases;
    Ok(())
}

/// What a network remembers of its attachment, for DEL and [`collect`]: others may have the same name.
fn memo(attachment: &Attachment) -> String {
    let Attachment { network, container, ifname } = attachment;
    json!({"cni": {"network": network, "container": container, "ifname": ifname}}).to_string()
}

fn attachment_in(memo: &str) -> Option<Attachment> {
    let memo: Value = serde_json::from_str(memo).ok()?;
    let member = |name: &str| memo.pointer(&format!("/cni/{name}"))?.as_str().map(str::to_owned);
    Some(Attachment {
        network: member("network")?,
        container: member("container")?,
        ifname: member("ifname")?,
    })
}

/// Ends every network of the plugin's network `network` that is not `valid` any more.
fn collect(network: &str, valid: &[Attachment]) -> std::result::Result<(), Failure> {
    let mut failure = None;
    for (name, memo) in control::memos()? {
        let stale =
            attachment_in(&memo).is_some_and(|found| found.network == network && !valid.contains(&found));
        if stale && let Err(error) = control::end(&name, &memo) {
            failure = Some(Failure::from(error));
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Whether the network is served, and its interface as it was when ADD returned.
fn check(attachment: &Attachment, netns: &Path, previous: &Value) -> std::result::Result<(), Failure> {
    let broken = |error: Error| Failure::of(Code::Broken, &error);
    let (mac, addresses) = answer::promised(previous, &attachment.ifname, netns)?;
    let name = name_of(attachment).map_err(broken)?;
    let gone = || Failure::new(Code::Broken, format!("{} has no network of rnet's", attachment.container));
    control::ask(&name.ok_or_else(gone)?, &Question::Ports).map_err(broken)?;
    let namespaces = Namespaces::at(netns, None).map_err(broken)?;
    container::inspect(&namespaces, || as_promised(&attachment.ifname, &mac, &addresses)).map_err(broken)
}

fn as_promised(ifname: &str, mac: &str, addresses: &[IpAddr]) -> Result<()> {
    let wrong =
        |cause: String| Err(Error::new("cannot find all of", format!("the interface {ifname}"), cause));
    if Route::index(ifname).is_err() {
        return wrong("it does not exist".to_owned());
    }
    match Route::station(ifname) {
        Some(found) if found.to_string() == mac => {}
        found => return wrong(format!("its address is {found:?} instead of {mac}")),
    }
    let found = netlink::addresses(ifname).context("cannot list the addresses of", ifname)?;
    match addresses.iter().find(|address| !found.contains(address)) {
        Some(missing) => wrong(format!("it has no address {missing}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_container_and_interface_and_never_too_long() {
        let names = |container: &str, ifname: &str| -> Vec<String> {
            let (network, container, ifname) = ("net".into(), container.into(), ifname.into());
            possible_names(&Attachment { network, container, ifname }).collect()
        };
        assert_eq!(
            names(&"0123456789abcdef".repeat(4), "eth0")[..2],
            ["0123456789ab-eth0", "0123456789ab-eth0-2"]
        );
        assert_eq!(names("a-b", "c")[0], names("a", "b-c")[0], "which is why there are more");
        assert_eq!(names("box", "net@1")[0], "box-net_1");
        for container in ["x".repeat(63), "y".repeat(500), format!("{}-eth0", "z".repeat(58))] {
            let names = names(&container, "eth0.4094");
            assert!(names.iter().all(|name| crate::config::is_network_name(name)), "{names:?}");
            assert!(names[0].ends_with("-eth0.4094"), "{names:?}");
            let different: std::collections::HashSet<_> = names.iter().collect();
            assert_eq!(different.len(), MAX_NAMESAKES);
        }
    }

    #[test]
    fn a_given_address_moves_the_plan_with_it() {
        let network = with(&[("192.168.7.9", Some(24))]).expect("a usual address");
        assert_eq!(network.ipv4.expect("IPv4").gateway.to_string(), "192.168.7.2");
        assert_eq!(
            (network.ipv4.expect("IPv4").guest, network.ipv4.expect("IPv4").lease),
            (address4("192.168.7.9"), address4("192.168.7.9"))
        );
        assert_eq!(network.aliases[0].guest, IpAddr::from(network.ipv4.expect("IPv4").gateway));
        let network = with(&[("10.0.2.55", None), ("fd00::77", Some(64))]).expect("usual addresses");
        assert_eq!(network.ipv4.expect("IPv4").guest, address4("10.0.2.55"));
        assert_eq!(network.ipv6.expect("both").guest.to_string(), "fd00::77");
    }

    #[test]
    fn the_gateway_makes_room_for_a_guest_in_its_place() {
        let network = with(&[("10.0.2.2", None)]).expect("a station");
        assert_eq!(
            (network.ipv4.expect("IPv4").guest, network.ipv4.expect("IPv4").gateway),
            (address4("10.0.2.2"), address4("10.0.2.100"))
        );
        let network = with(&[("10.0.2.3", None)]).expect("a station");
        assert_eq!(network.ipv4.expect("IPv4").dns, Some(address4("10.0.2.100")));
    }

    #[test]
    fn impossible_addresses_are_refused() {
        for (ip, prefix, cause) in [
            ("10.9.9.9", None, "not that of a station"),
            ("10.0.2.0", None, "not that of a station"),
            ("10.0.2.255", None, "not that of a station"),
            ("10.9.9.9", Some(31), "too small"),
            ("127.0.0.9", Some(8), "too small, or not one for guests"),
            ("fd00::9", Some(120), "too small"),
            ("fd01::9", None, "not that of a station"),
        ] {
            assert!(with(&[(ip, prefix)]).expect_err(ip).contains(cause), "{ip}");
        }
        let mut network = Network { ipv6: None, ..plain() };
        assert!(settle_guest(&mut network, "fd00::9".parse().expect("one"), None).is_err());
    }

    #[test]
    fn a_memo_tells_the_attachment() {
        let attachment =
            Attachment { network: "net".to_owned(), container: "box".to_owned(), ifname: "eth0".to_owned() };
        assert_eq!(attachment_in(&memo(&attachment)), Some(attachment.clone()));
        assert_eq!(attachment_in("{}"), None);
        let of = |container: &str, ifname: &str| Attachment {
            container: container.to_owned(),
            ifname: ifname.to_owned(),
            ..attachment.clone()
        };
        let (one, other) = (of("a", "b-c"), of("a-b", "c"));
        assert_ne!(memo(&one), memo(&other));
    }

    fn with(ips: &[(&str, Option<u8>)]) -> std::result::Result<Network, &'static str> {
        let mut network = plain();
        for (ip, prefix) in ips {
            settle_guest(&mut network, ip.parse().expect("an address"), *prefix)?;
        }
        Ok(network)
    }

    fn plain() -> Network {
        let ipv4 = Ipv4Plan::new("10.0.2.0/24".parse().expect("a subnet")).expect("large enough");
        let ipv6 = Ipv6Plan::new("fd00::/64".parse().expect("a subnet")).expect("large enough");
        Network::new(ipv4, Some(ipv6))
    }

    fn address4(text: &str) -> std::net::Ipv4Addr {
        text.parse().expect("an address")
    }
}
