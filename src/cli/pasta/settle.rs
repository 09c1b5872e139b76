//! Options and the host's network together become a [`Pasta`].

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::super::{Note, Request, Surroundings};
use super::naming;
use super::options::Options;
use super::ports::{self, Ports, Spec};
use crate::config::{
    Alias, Allowance, Attach, Autoconfiguration, Automatic, BindAt, Config, Container, Exit, Forward,
    GuestRoute, HostAccess, HostInterface, HostNetwork, Identity, IfName, ImageUse, Ipv4Plan, Ipv6Plan, Life,
    Lifecycle, LinkKind, LinkSpec, Log, LogFormat, LogLevel, LoopbackForward, MAX_PUBLISHED, MacAddr,
    Network, NetworkMode, Outbound, Pasta, PastaGuest, Privileges, Protocols, Publish, RootFs, Setup,
    Splicing, Target, Terminal, Transport,
};

/// The guest's own network where the host has none.
const LOCAL_SUBNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 2, 1), 16);
const LOCAL_GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 2);
const LOCAL_GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const LOCAL_IFNAME: &str = "tap0";
const DEFAULT_MTU: u16 = 65_520;
/// The MTU of a link whose MTU is not set.
const KERNELS_MTU: u16 = 1500;
/// Least MTU that the gateway serves (RFC 791), and least with IPv6 (RFC 8200 section 5).
const MIN_MTU: u16 = 576;
const IPV6_MIN_MTU: u16 = 1280;
const DEFAULT_SHELL: &str = "/bin/sh";

pub(super) fn settle(
    options: Options,
    host: &HostNetwork,
    surroundings: &Surroundings,
) -> Result<Request<Pasta>, String> {
    let mut notes: Vec<Note> = options.without_effect.iter().map(|text| note(*text)).collect();
    let target = target(&options)?;
    let families = Families::of(&options, host)?;
    let mtu = mtu(&options, families.v4.is_some(), &mut notes);
    let mut network = network(&options, host, &families, mtu);
    let (advertised, left_out) = naming::advertised(&options, host, &network);
    network.advertised = advertised;
    notes.extend(left_out.into_iter().map(note));
    let link = link(&options, &families, surroundings);
    let (inbound, outbound, mut automatic) = ports(&options, host, mtu.ipv6 && families.v6.is_some())?;
    network.loopback_forwards = outbound;
    network.splice = splicing(&options);
    automatic.loopback_servers = network.splice == Splicing::ToLoopback;
    let is_tcp = |forward: &Forward| forward.publish.transport == Transport::Tcp;
    network.publishes_later = options.conf_path.is_some() || automatic.tcp_in || inbound.iter().any(is_tcp);
    network.automatic = automatic;
    let log = Log { level: log_level(&options, target.is_none()), format: LogFormat::Text };
    let absolute = |path: &PathBuf| surroundings.cwd.join(path);
    let log_file = options.log_file();
    let control = options.conf_path.as_ref().map(absolute);
    let guest = match target {
        Some(target) => PastaGuest::Attached(Box::new(Attach {
            network,
            target,
            link,
            lifecycle: Lifecycle {
                pid_file: options.pid.as_ref().map(absolute),
                detach: !options.foreground,
                outlives_target: options.no_netns_quit,
                ..Lifecycle::default()
            },
            name: None,
            memo: None,
            log,
        })),
        None => PastaGuest::Command(Box::new(Config {
            mode: NetworkMode::User,
            network,
            link,
            container: container(options.operands, surroundings),
            image: ImageUse::default(),
            name: None,
            life: Life::default(),
            log,
        })),
    };
    let config = Box::new(Pasta { guest, inbound, control, log_file });
    Ok(Request { config, notes })
}

fn note(text: impl Into<String>) -> Note {
    Note { level: LogLevel::Info, text: text.into() }
}

/// Whose network it becomes; `None` is a command's.
fn target(options: &Options) -> Result<Option<Target>, String> {
    let userns = options.userns.clone();
    if let Some(netns) = &options.netns {
        let named = Path::new("/run/netns").join(netns);
        let netns = if netns.to_string_lossy().contains('/') { netns.into() } else { named };
        return Ok(Some(Target::Path { netns, userns }));
    }
    let [only] = &options.operands[..] else { return Ok(None) };
    let digits = only.to_str().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.filter(|digits| !digits.is_empty()) {
        Some(digits) => {
            let pid = digits.parse().ok().filter(|pid| *pid > 0);
            let pid = pid.ok_or_else(|| format!("Invalid PID {digits}"))?;
            Ok(Some(Target::Process { pid, userns }))
        }
        None => Ok(None),
    }
}

/// What the guest has of one family.
struct Family {
    /// Never empty; the first counts where one is asked for.
    addresses: Vec<IpNet>,
    gateway: Option<IpAddr>,
    routes: Vec<GuestRoute>,
    /// The host's own address, by which others know it.
    host_address: Option<IpAddr>,
}

/// Both families; at least one is there.
struct Families {
    v4: Option<Family>,
    v6: Option<Family>,
    /// Name of the host's interface that they are modelled on.
    template: Option<String>,
}

impl Families {
    fn of(options: &Options, host: &HostNetwork) -> Result<Self, String> {
        if let Some(name) = options.interface
            && !host.interfaces.iter().any(|interface| interface.name == name.as_str())
        {
            return Err(format!("Invalid interface name {name}: No such device"));
        }
        let template = |ipv4: bool| template(options, host, ipv4);
        let (of_v4, of_v6) = (template(true), template(false));
        let mut v4 = if options.ipv6_only { None } else { family(options, host, of_v4, true) };
        let v6 = if options.ipv4_only { None } else { family(options, host, of_v6, false) };
        if v4.is_none() && v6.is_none() {
            v4 = Some(local_family());
        }
        let name = of_v4.filter(|_| v4.is_some()).or(of_v6.filter(|_| v6.is_some()));
        Ok(Self { v4, v6, template: name.map(|interface| interface.name.clone()) })
    }
}

/// The interface of the host after which a family is modelled: the one given, the one of the first default route, or
/// of any.
fn template<'h>(options: &Options, host: &'h HostNetwork, ipv4: bool) -> Option<&'h HostInterface> {
    let outbound = if ipv4 { options.outbound_if4 } else { options.outbound_if6 };
    if let Some(name) = options.interface.or(outbound) {
        return host.interfaces.iter().find(|interface| interface.name == name.as_str());
    }
    let mut of_family = host.routes.iter().filter(|route| is_v4(&route.route.destination) == ipv4);
    let default = of_family.clone().find(|route| route.route.destination.prefix_len() == 0);
    let index = default.or_else(|| of_family.next())?.interface;
    host.interfaces.iter().find(|interface| interface.index == index)
}

fn is_v4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

/// What the guest gets of one family; `None` if there is no address.
fn family(
    options: &Options,
    host: &HostNetwork,
    template: Option<&HostInterface>,
    ipv4: bool,
) -> Option<Family> {
    let of_host: Vec<IpNet> = template
        .map(|interface| interface.addresses.iter().copied().filter(|net| is_v4(net) == ipv4).collect())
        .unwrap_or_default();
    let given = options.address.of(ipv4);
    let addresses = match given {
        Some(address) => vec![with_prefix(address, &of_host, options.netmask)],
        None => masked(&of_host, options),
    };
    let first = addresses.first()?;
    let routes: Vec<&GuestRoute> = template
        .map(|interface| {
            let through = host.routes.iter().filter(|route| route.interface == interface.index);
            through
                .filter(|route| is_v4(&route.route.destination) == ipv4)
                .filter(|route| given.is_some() || !route.of_address)
                .map(|route| &route.route)
                .collect()
        })
        .unwrap_or_default();
    let given_gateway = options.gateway.of(ipv4);
    let default = routes.iter().find(|route| route.destination.prefix_len() == 0);
    let gateway = given_gateway.or_else(|| default.and_then(|route| route.via));
    let copied = given_gateway.is_none() && !options.no_copy_routes;
    let routes = if copied {
        complete(routes.into_iter().copied().collect(), &addresses)
    } else {
        complete(gateway.map(|via| default_route(first, via)).into_iter().collect(), &addresses)
    };
    let host_address = of_host.first().map(IpNet::addr);
    Some(Family { addresses, gateway, routes, host_address })
}

/// A netmask that is given counts for the addresses of the host too; of them only one is taken if so asked.
fn masked(of_host: &[IpNet], options: &Options) -> Vec<IpNet> {
    let count = if options.no_copy_addrs { 1 } else { of_host.len() };
    let of_host = of_host.iter().take(count);
    of_host
        .map(|net| match (net, options.netmask) {
            (IpNet::V4(net), Some(bits)) => Ipv4Net::new(net.addr(), bits).map_or(IpNet::V4(*net), IpNet::V4),
            _ => *net,
        })
        .collect()
}

/// The prefix of an address that is given: the one given, the host's for the same address, or that of its class.
fn with_prefix(address: IpAddr, of_host: &[IpNet], netmask: Option<u8>) -> IpNet {
    if let Some(same) = of_host.iter().find(|net| net.addr() == address)
        && (netmask.is_none() || address.is_ipv6())
    {
        return *same;
    }
    match address {
        IpAddr::V4(address) => {
            let of_class = match address.octets()[0] {
                0..=127 => 8,
                128..=191 => 16,
                192..=223 => 24,
                _ => 32,
            };
            Ipv4Net::new(address, netmask.unwrap_or(of_class))
                .unwrap_or(Ipv4Net::new_assert(address, 32))
                .into()
        }
        IpAddr::V6(address) => Ipv6Net::new_assert(address, 64).into(),
    }
}

fn default_route(like: &IpNet, via: IpAddr) -> GuestRoute {
    let destination = match like {
        IpNet::V4(_) => IpNet::V4(Ipv4Net::default()),
        IpNet::V6(_) => IpNet::V6(Ipv6Net::default()),
    };
    GuestRoute { destination, via: Some(via), metric: None }
}

/// `routes` in an order in which each next hop is reachable, with a route to those that would not be.
fn complete(mut routes: Vec<GuestRoute>, addresses: &[IpNet]) -> Vec<GuestRoute> {
    routes.sort_by_key(|route| (route.via.is_some(), std::cmp::Reverse(route.destination.prefix_len())));
    let mut missing: Vec<GuestRoute> = Vec::new();
    for via in routes.iter().filter_map(|route| route.via) {
        let link_local = matches!(via, IpAddr::V6(via) if via.is_unicast_link_local());
        let direct = routes.iter().filter(|route| route.via.is_none() && route.destination.prefix_len() > 0);
        let mut nets = direct.chain(&missing).map(|route| route.destination).chain(addresses.iter().copied());
        if !link_local && !nets.any(|net| net.contains(&via)) {
            missing.push(GuestRoute { destination: via.into(), via: None, metric: None });
        }
    }
    missing.into_iter().chain(routes).collect()
}

fn local_family() -> Family {
    let addresses = vec![IpNet::V4(LOCAL_SUBNET)];
    let routes = vec![default_route(&addresses[0], LOCAL_GATEWAY.into())];
    Family { addresses, gateway: Some(LOCAL_GATEWAY.into()), routes, host_address: None }
}

/// The MTU as it is served.
#[derive(Clone, Copy)]
struct Mtu {
    bytes: u16,
    /// Whether it suffices.
    ipv6: bool,
}

fn mtu(options: &Options, has_ipv4: bool, notes: &mut Vec<Note>) -> Mtu {
    let asked = match options.mtu {
        None => DEFAULT_MTU,
        Some(0) => KERNELS_MTU,
        Some(mtu) => mtu,
    };
    let least = if has_ipv4 { MIN_MTU } else { IPV6_MIN_MTU };
    let bytes = asked.clamp(least, Network::MAX_MTU);
    if bytes != asked {
        notes.push(note(format!("the MTU is {bytes} instead of {asked}")));
    }
    Mtu { bytes, ipv6: bytes >= IPV6_MIN_MTU }
}

fn network(options: &Options, host: &HostNetwork, families: &Families, mtu: Mtu) -> Network {
    let ipv4 = families.v4.as_ref().and_then(|family| ipv4_plan(family, options, host));
    let ipv6 = families.v6.as_ref().filter(|_| mtu.ipv6).and_then(|family| ipv6_plan(family, options, host));
    // Who configures itself has the first address of each family alone.
    let set = [&families.v4, &families.v6].into_iter().flatten().filter(|_| options.config_net);
    let all = set.flat_map(|family| &family.addresses);
    let has_gateway = families.v4.as_ref().is_some_and(|family| family.gateway.is_some());
    Network {
        mtu: mtu.bytes,
        dns_servers: options.dns_hosts.clone(),
        aliases: aliases(options, families, ipv4.as_ref(), ipv6.as_ref()),
        host_access: HostAccess { loopback: true, link_local: true, ..HostAccess::default() },
        shares_subnet: true,
        further_guest_addresses: all.map(IpNet::addr).collect(),
        protocols: Protocols { tcp: !options.no_tcp, udp: !options.no_udp, icmp: !options.no_icmp },
        outbound: outbound(options),
        autoconfiguration: Autoconfiguration {
            dhcp: !options.no_dhcp && has_gateway,
            dhcpv6: !options.no_dhcpv6,
            router_advertisements: !options.no_ra && !options.config_net,
            managed: !options.no_dhcpv6,
        },
        encrypted_dns: true,
        freebind: options.freebind,
        gateway_mac: options.mac.unwrap_or(MacAddr::GATEWAY),
        ..Network::new(ipv4, ipv6)
    }
}

/// Without TCP on the link there is none past it.
fn splicing(options: &Options) -> Splicing {
    match (options.no_splice || options.no_tcp, options.host_lo_to_ns_lo) {
        (true, _) => Splicing::Off,
        (false, true) => Splicing::ToLoopback,
        (false, false) => Splicing::ToAddress,
    }
}

fn ipv4_plan(family: &Family, options: &Options, host: &HostNetwork) -> Option<Ipv4Plan> {
    let Some(IpNet::V4(subnet)) = family.addresses.first() else { return None };
    let gateway = match family.gateway {
        Some(IpAddr::V4(gateway)) => gateway,
        _ => LOCAL_GATEWAY,
    };
    let dns = match naming::forwarder(options, host, gateway.into()) {
        Some(IpAddr::V4(dns)) => Some(dns),
        _ => None,
    };
    Some(Ipv4Plan { subnet: *subnet, gateway, dns, guest: subnet.addr(), lease: subnet.addr() })
}

fn ipv6_plan(family: &Family, options: &Options, host: &HostNetwork) -> Option<Ipv6Plan> {
    let Some(IpNet::V6(subnet)) = family.addresses.first() else { return None };
    let gateway = match family.gateway {
        Some(IpAddr::V6(gateway)) => gateway,
        _ => LOCAL_GATEWAY_V6,
    };
    let dns = match naming::forwarder(options, host, gateway.into()) {
        Some(IpAddr::V6(dns)) => Some(dns),
        _ => None,
    };
    Some(Ipv6Plan { subnet: *subnet, gateway, dns, guest: subnet.addr() })
}

/// What stands for the host's loopback comes first: it wins.
fn aliases(
    options: &Options,
    families: &Families,
    ipv4: Option<&Ipv4Plan>,
    ipv6: Option<&Ipv6Plan>,
) -> Vec<Alias> {
    let mut aliases = Vec::new();
    let plans: [(_, Option<IpAddr>, IpAddr); 2] = [
        (families.v4.as_ref(), ipv4.map(|plan| plan.gateway.into()), Ipv4Addr::LOCALHOST.into()),
        (families.v6.as_ref(), ipv6.map(|plan| plan.gateway.into()), Ipv6Addr::LOCALHOST.into()),
    ];
    for (family, gateway, loopback) in plans {
        let Some((family, gateway)) = family.zip(gateway) else { continue };
        let ipv4 = gateway.is_ipv4();
        let of_gateway = Some(gateway).filter(|_| !options.no_map_gw);
        if let Some(guest) = options.map_host_loopback.of(ipv4).or(of_gateway) {
            aliases.push(Alias { guest, host: loopback });
        }
        if let (Some(guest), Some(host)) = (options.map_guest_addr.of(ipv4), family.host_address) {
            aliases.push(Alias { guest, host });
        }
    }
    aliases
}

fn outbound(options: &Options) -> Outbound {
    Outbound {
        ipv4: Exit { address: options.outbound.v4, interface: options.outbound_if4 },
        ipv6: Exit { address: options.outbound.v6, interface: options.outbound_if6 },
    }
}

fn link(options: &Options, families: &Families, surroundings: &Surroundings) -> LinkSpec {
    let given = options.ifname.as_ref().map(IfName::as_str);
    let ifname = given.or(families.template.as_deref()).unwrap_or(LOCAL_IFNAME);
    let families = || [&families.v4, &families.v6].into_iter().flatten();
    let setup = if options.config_net {
        Setup::Given {
            addresses: families().flat_map(|family| family.addresses.iter().copied()).collect(),
            routes: families().flat_map(|family| family.routes.iter().copied()).collect(),
        }
    } else {
        Setup::Nothing
    };
    LinkSpec {
        kind: LinkKind::Auto,
        ifname: ifname.to_owned(),
        mac: options.ns_mac,
        take_over: false,
        queues: 1,
        queues_given: false,
        setup,
        loopback: true,
        capture: options.pcap.as_ref().map(|path| surroundings.cwd.join(path)),
    }
}

fn container(words: Vec<OsString>, surroundings: &Surroundings) -> Container {
    let shell = surroundings.env.iter().find(|(name, _)| name == "SHELL").map(|(_, shell)| shell.clone());
    let shell = shell.filter(|shell| Path::new(shell).is_absolute());
    let command = if words.is_empty() {
        // A login shell.
        vec![shell.unwrap_or_else(|| OsStr::new(DEFAULT_SHELL).into()), "-l".into()]
    } else {
        words
    };
    Container {
        rootfs: RootFs::Host,
        command,
        env: surroundings.env.clone(),
        workdir: None,
        hostname: hostname(&surroundings.hostname),
        volumes: Vec::new(),
        tmpfs: Vec::new(),
        read_only: false,
        init: false,
        privileges: Privileges::unconfined(),
        terminal: Terminal::Inherited,
        identity: Identity::default(),
        allowance: Allowance::default(),
    }
}

/// `pasta-` and the host's name, as long as it may be (sethostname(2)).
fn hostname(of_host: &str) -> String {
    const MAX_BYTES: usize = 64;
    let mut name = format!("pasta-{of_host}");
    name.truncate(name.floor_char_boundary(MAX_BYTES));
    name
}

fn log_level(options: &Options, command: bool) -> LogLevel {
    match (options.trace, options.debug, options.quiet || command) {
        (true, ..) => LogLevel::Trace,
        (_, true, _) => LogLevel::Debug,
        (_, _, true) => LogLevel::Warn,
        _ => LogLevel::Info,
    }
}

type Directions = (Vec<Forward>, Vec<LoopbackForward>, Automatic);

/// The four directions of ports. Those that are bound for one family only are so if the network has no other.
fn ports(options: &Options, host: &HostNetwork, has_ipv6: bool) -> Result<Directions, String> {
    let mut inbound = Vec::new();
    let only = only_family(options, has_ipv6);
    let mut automatic = Automatic { ephemeral: host.ephemeral, ..Automatic::default() };
    for (said, transport) in [(&options.tcp_in, Transport::Tcp), (&options.udp_in, Transport::Udp)] {
        let direction = direction(said, true, host)?;
        match transport {
            Transport::Tcp => (automatic.tcp_in, automatic.tcp_at) = direction.followed_at(only),
            Transport::Udp => (automatic.udp_in, automatic.udp_at) = direction.followed_at(only),
        }
        for (ports, option) in direction.ports {
            inbound.extend(forwards(&ports, &option, transport, only));
        }
    }
    let mut outbound = Vec::new();
    for (said, transport) in [(&options.tcp_out, Transport::Tcp), (&options.udp_out, Transport::Udp)] {
        let direction = direction(said, false, host)?;
        match transport {
            Transport::Tcp => automatic.tcp_out = direction.automatic.is_some(),
            Transport::Udp => automatic.udp_out = direction.automatic.is_some(),
        }
        let pairs = direction.ports.into_iter().flat_map(|(ports, _)| ports.pairs);
        outbound.extend(pairs.map(|pair| LoopbackForward {
            guest_port: pair.from,
            host_port: pair.to,
            transport,
        }));
    }
    let count = inbound.len() + outbound.len();
    let tolerant = inbound.iter().any(|forward| forward.option.is_none());
    if count > MAX_PUBLISHED as usize && !tolerant {
        return Err(format!("More than {MAX_PUBLISHED} ports to forward"));
    }
    inbound.truncate(MAX_PUBLISHED as usize);
    Ok((inbound, outbound, automatic))
}

/// The wildcard of the only family that was asked for.
fn only_family(options: &Options, has_ipv6: bool) -> Option<IpAddr> {
    if options.ipv6_only && has_ipv6 {
        Some(Ipv6Addr::UNSPECIFIED.into())
    } else if options.ipv4_only {
        Some(Ipv4Addr::UNSPECIFIED.into())
    } else {
        None
    }
}

#[derive(Default)]
struct Direction {
    /// Those that follow who listens, and where they are bound.
    automatic: Option<BindAt>,
    /// With the options that asked for them.
    ports: Vec<(Ports, String)>,
}

impl Direction {
    /// Whether it follows who listens, and where it is bound then; `only` is the wildcard.
    fn followed_at(&self, only: Option<IpAddr>) -> (bool, BindAt) {
        let at = self.automatic.unwrap_or_default();
        (self.automatic.is_some(), BindAt { address: at.address.or(only), ..at })
    }
}

/// A word cannot stand beside ports or another word; nothing said is `auto`. One that repeats itself, as callers that
/// add defaults do, is heard once.
fn direction(said: &[(char, String)], may_bind: bool, host: &HostNetwork) -> Result<Direction, String> {
    const MIXED: &str = "Specific ports cannot be specified together with all/none/auto";
    let mut word = None;
    let mut ports = Vec::new();
    for (letter, text) in said {
        if text == "all" {
            return Err("'all' port forwarding is only allowed for passt".to_owned());
        }
        let spec = ports::parse(text, may_bind, host.ephemeral);
        match spec.ok_or_else(|| format!("Invalid port specifier {text}"))? {
            Spec::Ports(spec) => ports.push((spec, format!("-{letter} {text}"))),
            other if word.as_ref().is_some_and(|word| *word != other) => return Err(MIXED.to_owned()),
            other => word = Some(other),
        }
    }
    if word.is_some() && !ports.is_empty() {
        return Err(MIXED.to_owned());
    }
    let automatic = match word {
        Some(Spec::Auto(at)) => Some(at),
        None if ports.is_empty() => Some(BindAt::default()),
        _ => None,
    };
    Ok(Direction { automatic, ports })
}

fn forwards<'p>(
    ports: &'p Ports,
    option: &'p str,
    transport: Transport,
    only: Option<IpAddr>,
) -> impl Iterator<Item = Forward> + 'p {
    ports.published(transport).map(move |publish| Forward {
        publish: Publish { host_addr: publish.host_addr.or(only), ..publish },
        option: (!ports.all_but).then(|| option.to_owned()),
    })
}
