//! The command line of slirp4netns(1).
//!
//! Options, defaults, the order of the checks and their words are the original's, as its callers look for them. What
//! an option means to rnet beyond that is in docs/compat.md.

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};

use super::Usage;
use super::getopt::{Opt, Reader, Word};
use crate::config::{
    Attach, Confinement, Denial, Exit, HostAccess, IfName, Ipv4Plan, Ipv6Plan, Lifecycle, LinkKind, LinkSpec,
    Log, LogFormat, LogLevel, MacAddr, Network, OutboundInterfaces, Setup, Slirp4netns, Target,
};

/// The name that it answers to.
pub(super) const NAME: &str = "slirp4netns";

const MAX_MTU: u16 = 65_521;
const DEFAULT_MTU: u16 = 1500;
/// Least MTU of a link with IPv6 (RFC 8200 section 5).
const IPV6_MIN_MTU: u16 = 1280;
const DEFAULT_IFNAME: &str = "tap0";
/// Prefix lengths that leave room for the address plan.
const PREFIX_LENGTHS: std::ops::RangeInclusive<u8> = 1..=25;
/// What DHCP gives is this far into the network.
const LEASE: u32 = 15;
/// Length of a unix socket's path, its closing zero included (unix(7)).
const SOCKET_PATH_BYTES: usize = 108;

const USAGE: &str = "\
Usage: slirp4netns [OPTION]... PID|PATH|FD [TAPNAME]
User-mode networking for unprivileged network namespaces.

-c, --configure          bring up the interface
-e, --exit-fd=FD         specify the FD for terminating slirp4netns
-r, --ready-fd=FD        specify the FD to write to when the network is configured
-m, --mtu=MTU            specify MTU (default=1500, max=65521)
-6, --enable-ipv6        enable IPv6
-a, --api-socket=PATH    specify API socket path
--cidr=CIDR              specify network address CIDR (default=10.0.2.0/24)
--disable-host-loopback  prohibit connecting to 127.0.0.1:* on the host namespace
--netns-type=TYPE        specify network namespace type ([path|pid|tapfd], default=pid)
--userns-path=PATH       specify user namespace path
--enable-sandbox         have no files but /etc and /run, and drop all caps except CAP_NET_BIND_SERVICE
--enable-seccomp         forbid system calls that are not needed
--outbound-addr=IPv4     sets outbound ipv4 address to bound to (an interface's name means its first)
--outbound-addr6=IPv6    sets outbound ipv6 address to bound to (an interface's name means its first)
--disable-dns            disables 10.0.2.3 (or configured internal ip) to host dns redirect
--macaddress=MAC         specify the MAC address of the TAP (only valid with -c)
--target-type=TYPE       specify the target type ([netns|bess], default=netns)
-h, --help               show this help and exit
-v, --version            show version and exit
";

/// Which option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    Configure,
    ExitFd,
    ReadyFd,
    Mtu,
    Ipv6,
    ApiSocket,
    Cidr,
    DisableHostLoopback,
    NetnsType,
    UsernsPath,
    Sandbox,
    Seccomp,
    OutboundAddr,
    OutboundAddr6,
    DisableDns,
    MacAddress,
    TargetType,
    Help,
    Version,
}

const OPTIONS: &[Opt<Is>] = &[
    flag(Is::Configure, "configure", Some(b'c')),
    value(Is::ExitFd, "exit-fd", Some(b'e')),
    value(Is::ReadyFd, "ready-fd", Some(b'r')),
    value(Is::Mtu, "mtu", Some(b'm')),
    value(Is::Cidr, "cidr", None),
    flag(Is::DisableHostLoopback, "disable-host-loopback", None),
    flag(Is::DisableHostLoopback, "no-host-loopback", None),
    value(Is::NetnsType, "netns-type", None),
    value(Is::UsernsPath, "userns-path", None),
    value(Is::ApiSocket, "api-socket", Some(b'a')),
    flag(Is::Ipv6, "enable-ipv6", Some(b'6')),
    flag(Is::Sandbox, "enable-sandbox", None),
    flag(Is::Sandbox, "create-sandbox", None),
    flag(Is::Seccomp, "enable-seccomp", None),
    flag(Is::Help, "help", Some(b'h')),
    flag(Is::Version, "version", Some(b'v')),
    value(Is::OutboundAddr, "outbound-addr", None),
    value(Is::OutboundAddr6, "outbound-addr6", None),
    flag(Is::DisableDns, "disable-dns", None),
    value(Is::MacAddress, "macaddress", None),
    value(Is::TargetType, "target-type", None),
];

const fn flag(is: Is, long: &'static str, short: Option<u8>) -> Opt<Is> {
    Opt { is, long, short, takes_argument: false }
}

const fn value(is: Is, long: &'static str, short: Option<u8>) -> Opt<Is> {
    Opt { is, long, short, takes_argument: true }
}

/// What was said, before it is judged as a whole.
#[derive(Debug, Default)]
struct Said {
    configure: bool,
    exit_fd: Option<RawFd>,
    ready_fd: Option<RawFd>,
    mtu: Option<u16>,
    ipv6: bool,
    api_socket: Option<PathBuf>,
    cidr: Option<OsString>,
    disable_host_loopback: bool,
    netns_type: Option<OsString>,
    userns_path: Option<PathBuf>,
    confinement: Confinement,
    outbound_addr: Option<OsString>,
    outbound_addr6: Option<OsString>,
    disable_dns: bool,
    mac_address: Option<OsString>,
    target_type: Option<OsString>,
    operands: Vec<OsString>,
}

/// Understands the words after the program's name.
pub(super) fn parse(words: impl Iterator<Item = OsString>) -> Result<Slirp4netns, Usage> {
    let mut said = Said::default();
    for word in Reader::new(NAME, OPTIONS, words) {
        match word.map_err(|told| mistake(&told))? {
            Word::Operand(operand) => said.operands.push(operand),
            Word::Option(Is::Help, _) => return Err(Usage::text(USAGE.to_owned())),
            Word::Option(Is::Version, _) => return Err(Usage::text(version())),
            Word::Option(option, argument) => note(&mut said, option, argument)?,
        }
    }
    judge(said)
}

fn note(said: &mut Said, option: Is, argument: OsString) -> Result<(), Usage> {
    match option {
        Is::Configure => said.configure = true,
        Is::ExitFd => said.exit_fd = Some(descriptor("exit-fd", &argument)?),
        Is::ReadyFd => said.ready_fd = Some(descriptor("ready-fd", &argument)?),
        Is::Mtu => said.mtu = Some(mtu(&argument)?),
        Is::Ipv6 => said.ipv6 = true,
        Is::ApiSocket => said.api_socket = Some(argument.into()),
        Is::Cidr => said.cidr = Some(argument),
        Is::DisableHostLoopback => said.disable_host_loopback = true,
        Is::NetnsType => said.netns_type = Some(argument),
        Is::UsernsPath => said.userns_path = Some(argument.into()),
        Is::Sandbox => said.confinement.files = true,
        Is::Seccomp => said.confinement.system_calls = true,
        Is::OutboundAddr => said.outbound_addr = Some(argument),
        Is::OutboundAddr6 => said.outbound_addr6 = Some(argument),
        Is::DisableDns => said.disable_dns = true,
        Is::MacAddress => said.mac_address = Some(argument),
        Is::TargetType => said.target_type = Some(argument),
        Is::Help | Is::Version => {}
    }
    Ok(())
}

fn judge(said: Said) -> Result<Slirp4netns, Usage> {
    let (target, has_name) = target(&said)?;
    let mut more = said.operands.iter().skip(1);
    let ifname = if has_name { more.next() } else { None };
    let ifname = ifname.map_or(Ok(DEFAULT_IFNAME.to_owned()), |word| ifname_of(word))?;
    if said.mac_address.is_some() && !said.configure {
        return Err(mistake("--macaddr cannot be specified when --configure or -c is not specified"));
    }
    if said.api_socket.as_ref().is_some_and(|path| path.as_os_str().len() >= SOCKET_PATH_BYTES) {
        return Err(refusal(&format!("the specified API socket path is too long (>= {SOCKET_PATH_BYTES})")));
    }
    let mac = said.mac_address.as_deref().map(mac_address).transpose()?;
    let (network, outbound) = network(&said)?;
    let greeting = greeting(&said, &network, more.next().is_some());
    let attach = Attach {
        network,
        target,
        link: link(ifname, mac, said.configure),
        lifecycle: Lifecycle {
            ready_fd: said.ready_fd,
            exit_fd: said.exit_fd,
            outlives_target: true,
            ..Lifecycle::default()
        },
        name: None,
        memo: None,
        log: Log { level: LogLevel::Warn, format: LogFormat::Text },
    };
    let Said { api_socket, confinement, .. } = said;
    Ok(Slirp4netns { attach, api_socket, confinement, outbound, greeting })
}

fn link(ifname: String, mac: Option<MacAddr>, configure: bool) -> LinkSpec {
    LinkSpec {
        kind: LinkKind::Auto,
        ifname,
        mac,
        // The TAP that callers make beforehand has one.
        queues: 1,
        queues_given: false,
        take_over: true,
        loopback: true,
        capture: None,
        setup: if configure { Setup::Plan } else { Setup::Nothing },
    }
}

/// The target, and whether the name of a TAP follows it.
fn target(said: &Said) -> Result<(Target, bool), Usage> {
    let Some(operand) = said.operands.first() else {
        return Err(Usage::failed(USAGE.to_owned(), String::new()));
    };
    let userns = said.userns_path.clone();
    match said.target_type.as_deref().map(OsStr::as_bytes) {
        None | Some(b"netns") => {}
        Some(b"bess") => {
            let conflict = [
                (said.configure, "--configure"),
                (said.netns_type.is_some(), "--netns-type"),
                (userns.is_some(), "--userns-path"),
            ];
            return match conflict.iter().find(|(given, _)| *given) {
                Some((_, option)) => Err(mistake(&format!("{option} conflicts with --target-type=bess"))),
                None => Ok((Target::Bess { path: operand.into() }, false)),
            };
        }
        Some(_) => return Err(mistake("--target-type must be either \"netns\" or \"bess\"")),
    }
    match said.netns_type.as_deref().map(OsStr::as_bytes) {
        None | Some(b"pid") => match number::<i32>(operand).filter(|pid| *pid > 0) {
            Some(pid) => Ok((Target::Process { pid, userns }, true)),
            None => Err(mistake("PID must be a positive integer")),
        },
        Some(b"tapfd") => match number::<RawFd>(operand).filter(|fd| *fd >= 0) {
            Some(fd) => Ok((Target::Tap { fd }, false)),
            None => Err(mistake("tapfd must be a non-negative integer")),
        },
        Some(_) => Ok((Target::Path { netns: operand.into(), userns }, true)),
    }
}

fn ifname_of(word: &OsStr) -> Result<String, Usage> {
    let name = word.to_str().filter(|name| IfName::new(name).is_some() && !name.contains('/'));
    name.map(str::to_owned).ok_or_else(|| {
        refusal(&format!(
            "'{}' is no name of an interface: those have 1 to {} bytes",
            word.to_string_lossy(),
            IfName::MAX_BYTES
        ))
    })
}

fn network(said: &Said) -> Result<(Network, OutboundInterfaces), Usage> {
    let mut ipv4 = ipv4_plan(said.cidr.as_deref())?;
    let mtu = said.mtu.unwrap_or(DEFAULT_MTU);
    let mut ipv6 = if said.ipv6 && mtu >= IPV6_MIN_MTU { ipv6_plan() } else { None };
    if said.disable_dns {
        ipv4.dns = None;
        ipv6 = ipv6.map(|plan| Ipv6Plan { dns: None, ..plan });
    }
    let (exit4, interface4) = exit::<Ipv4Addr>(said.outbound_addr.as_deref(), "outbound-addr", "ipv4")?;
    let (exit6, interface6) = exit::<Ipv6Addr>(said.outbound_addr6.as_deref(), "outbound-addr6", "ipv6")?;
    let mut network = Network::new(ipv4, ipv6);
    network.mtu = mtu;
    network.host_access =
        HostAccess { loopback: !said.disable_host_loopback, link_local: true, allowed: Vec::new() };
    network.denial = Denial::Unreachable;
    network.outbound.ipv4 = exit4;
    network.outbound.ipv6 = exit6;
    Ok((network, OutboundInterfaces { ipv4: interface4, ipv6: interface6 }))
}

fn ipv4_plan(cidr: Option<&OsStr>) -> Result<Ipv4Plan, Usage> {
    let cidr = cidr.map_or("10.0.2.0/24".into(), OsStr::to_string_lossy);
    let shape = cidr.split_once('/').filter(|(address, length)| {
        let digits = |text: &str, most: usize| {
            (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        digits(length, 2) && address.split('.').count() == 4 && address.split('.').all(|part| digits(part, 3))
    });
    let (address, length) = shape.ok_or_else(|| refusal(&format!("invalid CIDR: {cidr}")))?;
    let invalid = || refusal(&format!("invalid network address: {address}"));
    let parsed = Ipv4Addr::from_str(address).map_err(|_| invalid())?;
    let length = u8::from_str(length).ok().filter(|length| PREFIX_LENGTHS.contains(length));
    let length = length.ok_or_else(|| {
        refusal(&format!("prefix length needs to be {}-{}", PREFIX_LENGTHS.start(), PREFIX_LENGTHS.end()))
    })?;
    let subnet = Ipv4Net::new_assert(parsed, length);
    if subnet.network() != parsed {
        return Err(refusal(&format!(
            "CIDR needs to be a network address like {}, not like {cidr}",
            subnet.trunc()
        )));
    }
    let plan = Ipv4Plan::new(subnet).ok_or_else(invalid)?;
    Ok(Ipv4Plan { lease: Ipv4Addr::from(u32::from(subnet.network()) + LEASE), ..plan })
}

fn ipv6_plan() -> Option<Ipv6Plan> {
    Ipv6Plan::new(Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 64))
}

/// From where the traffic of a family leaves: an address, or the interface that has it.
fn exit<A: FromStr + Into<IpAddr>>(
    said: Option<&OsStr>,
    option: &str,
    family: &str,
) -> Result<(Exit, Option<IfName>), Usage> {
    let Some(text) = said.map(OsStr::to_string_lossy) else {
        return Ok((Exit::default(), None));
    };
    if let Ok(address) = A::from_str(&text) {
        return Ok((Exit { address: Some(address.into()), interface: None }, None));
    }
    match IfName::new(&text) {
        Some(name) if IpAddr::from_str(&text).is_err() => Ok((Exit::default(), Some(name))),
        _ => Err(refusal(&format!("{option} has to be valid {family} address or interface name."))),
    }
}

fn mac_address(word: &OsStr) -> Result<MacAddr, Usage> {
    let text = word.to_string_lossy();
    MacAddr::from_str(&text).map_err(|_| {
        refusal(&format!(
            "\"{text}\" is an invalid MAC address.\nmacaddress has to be a valid MAC address (hex string, 6 bytes, \
             each byte separated by a ':')."
        ))
    })
}

fn mtu(argument: &OsStr) -> Result<u16, Usage> {
    let mtu = number(argument).filter(|mtu| (1..=MAX_MTU).contains(mtu));
    mtu.ok_or_else(|| mistake("MTU must be a positive integer (< 65522)"))
}

fn descriptor(option: &str, argument: &OsStr) -> Result<RawFd, Usage> {
    let fd = number(argument).filter(|fd| *fd >= 0);
    fd.ok_or_else(|| mistake(&format!("{option} must be a non-negative integer")))
}

fn number<T: FromStr>(word: &OsStr) -> Option<T> {
    word.to_str()?.parse().ok()
}

/// A mistake that the usage may help with; its text goes to standard output, as in the original.
fn mistake(told: &str) -> Usage {
    Usage::failed(USAGE.to_owned(), format!("{told}\n"))
}

/// A mistake that it would not help with.
fn refusal(told: &str) -> Usage {
    Usage::failed(String::new(), format!("{told}\n"))
}

/// The first line of the original's shape, and what scripts look for in the others.
fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "slirp4netns version 1.3.2+rnet-{version}\ncommit: rnet {version}\nlibslirp: none (rnet {version})\n\
         SLIRP_CONFIG_VERSION_MAX: 6\nlibseccomp: none (rnet {version})\n"
    )
}

/// What people read when it has started; no program does.
fn greeting(said: &Said, network: &Network, too_many: bool) -> String {
    let mut text = String::new();
    if too_many {
        text.push_str("WARNING: too many arguments\n");
    }
    let mut line = |name: &str, value: &dyn std::fmt::Display| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "* {:<17}{value}", format!("{name}:"));
    };
    line("MTU", &network.mtu);
    if let Some(plan) = &network.ipv4 {
        line("Network", &plan.subnet.network());
        line("Netmask", &plan.subnet.netmask());
        line("Gateway", &plan.gateway);
        plan.dns.iter().for_each(|dns| line("DNS", dns));
        line("DHCP", &plan.lease);
        line("Recommended IP", &plan.guest);
    }
    if let Some(path) = &said.api_socket {
        line("API Socket", &path.display());
    }
    if said.ipv6 && network.ipv6.is_none() {
        let _ = writeln!(text, "WARNING: no IPv6, which takes an MTU of {IPV6_MIN_MTU}");
    }
    if network.host_access.loopback {
        let _ = writeln!(
            text,
            "WARNING: 127.0.0.1:* on the host is accessible as {} (set --disable-host-loopback to prohibit \
             connecting to 127.0.0.1:*)",
            network.gateway()
        );
    }
    text
}

#[cfg(test)]
mod tests;
