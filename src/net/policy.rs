//! Where a new flow goes: one pure function over its final, translated destination.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::{Alias, Network, Splicing};

const DNS_PORT: u16 = 53;
/// DNS over TLS and over QUIC (RFC 7858, RFC 9250).
const ENCRYPTED_DNS_PORT: u16 = 853;

/// The decision about a new flow from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To this host-side address.
    Connect(SocketAddr),
    /// To the DNS forwarder.
    Dns,
    /// To this port of the DNS server that the forwarder would ask.
    DnsServer(u16),
    /// Refuse, and say so to the guest.
    Deny(DenyReason),
}

/// Why a destination is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenyReason {
    /// The host's loopback, however it was written.
    HostLoopback,
    /// 169.254.0.0/16 or fe80::/10: neighbours of the host and cloud metadata.
    LinkLocal,
    /// Broadcast, multicast, unspecified or reserved space: not one station.
    NotUnicast,
    /// The network is internal.
    NoWayOut,
    /// An address of the guest's own network that nobody has, or a port that the gateway does not serve.
    NoSuchService,
}

/// Decides where a guest's flow to `to` goes. Port 53 of the forwarder's address is the forwarder; aliases, such as
/// the gateway's address, stand for addresses of the host. The check is made on the address that would be used in the
/// end.
pub fn route(network: &Network, to: SocketAddr) -> Verdict {
    let ip = to.ip();
    let alias = network.aliases.iter().find(|alias| alias.guest == ip);
    if is_forwarder(network, ip) {
        match to.port() {
            DNS_PORT => return Verdict::Dns,
            ENCRYPTED_DNS_PORT if network.encrypted_dns => return Verdict::DnsServer(ENCRYPTED_DNS_PORT),
            _ if alias.is_none() => return Verdict::Deny(DenyReason::NoSuchService),
            _ => {}
        }
    }
    let target = alias.map_or(to, |alias| SocketAddr::new(alias.host, to.port()));
    let opens = |alias: &Alias| network.host_access.loopback || !alias.host.is_loopback();
    if network.host_access.allowed.contains(&target) || alias.is_some_and(opens) {
        return Verdict::Connect(target);
    }
    if network.internal {
        return Verdict::Deny(DenyReason::NoWayOut);
    }
    match denied(network, target.ip()) {
        Some(reason) => Verdict::Deny(reason),
        None => Verdict::Connect(target),
    }
}

/// Whether `ip` is the gateway's own address, which answers echo requests.
pub fn is_gateway(network: &Network, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => network.ipv4.is_some_and(|plan| ip == plan.gateway),
        IpAddr::V6(ip) => network.ipv6.is_some_and(|plan| ip == plan.gateway),
    }
}

/// Whether `ip` is the DNS forwarder's address.
pub fn is_forwarder(network: &Network, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => network.ipv4.is_some_and(|plan| Some(ip) == plan.dns),
        IpAddr::V6(ip) => network.ipv6.is_some_and(|plan| Some(ip) == plan.dns),
    }
}

/// Whether `ip` is the gateway's own on the link: the router's, the forwarder's or an alias.
pub fn is_own(network: &Network, ip: IpAddr) -> bool {
    is_gateway(network, ip)
        || is_forwarder(network, ip)
        || network.aliases.iter().any(|alias| alias.guest == ip)
}

/// Whether `ip` is one of the guest's.
pub fn is_guest(network: &Network, ip: IpAddr) -> bool {
    if network.further_guest_addresses.contains(&ip) {
        return true;
    }
    match ip {
        IpAddr::V4(ip) => network.ipv4.is_some_and(|plan| ip == plan.guest || ip == plan.lease),
        IpAddr::V6(ip) => network.ipv6.is_some_and(|plan| ip == plan.guest),
    }
}

/// Whether `ip` is of a station in a shared subnet, for which the gateway answers. Link-local addresses are not.
pub fn is_neighbor(network: &Network, ip: IpAddr) -> bool {
    network.shares_subnet && is_local(network, ip) && !is_guest(network, ip)
}

/// Whether `ip` belongs to the guest's own network.
pub fn is_local(network: &Network, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => network.ipv4.is_some_and(|plan| plan.subnet.contains(&ip)),
        IpAddr::V6(ip) => network.ipv6.is_some_and(|plan| plan.subnet.contains(&ip)),
    }
}

/// Why an address may not be reached by default, if so.
pub(super) fn denied(network: &Network, ip: IpAddr) -> Option<DenyReason> {
    if is_local(network, ip) && !is_neighbor(network, ip) {
        return Some(DenyReason::NoSuchService);
    }
    match ip {
        IpAddr::V4(ip) => denied_v4(network, ip),
        IpAddr::V6(ip) => denied_v6(network, ip),
    }
}

fn denied_v4(network: &Network, ip: Ipv4Addr) -> Option<DenyReason> {
    match ip.octets() {
        // Linux delivers 0.0.0.0/8 as "this host" (RFC 1122 section 3.2.1.3).
        [0 | 127, ..] => Some(DenyReason::HostLoopback),
        [169, 254, ..] if !network.host_access.link_local => Some(DenyReason::LinkLocal),
        [224..=255, ..] => Some(DenyReason::NotUnicast),
        _ if is_shared_broadcast(network, ip) => Some(DenyReason::NotUnicast),
        _ => None,
    }
}

/// A subnet of one or two addresses has none to spare (RFC 3021).
fn is_shared_broadcast(network: &Network, ip: Ipv4Addr) -> bool {
    let subnet = network.ipv4.filter(|_| network.shares_subnet).map(|plan| plan.subnet);
    subnet.is_some_and(|subnet| subnet.prefix_len() < 31 && ip == subnet.broadcast())
}

fn denied_v6(network: &Network, ip: Ipv6Addr) -> Option<DenyReason> {
    if ip.is_loopback() || ip.is_unspecified() {
        return Some(DenyReason::HostLoopback);
    }
    if ip.is_multicast() {
        return Some(DenyReason::NotUnicast);
    }
    if ip.is_unicast_link_local() {
        return Some(DenyReason::LinkLocal);
    }
    embedded_v4(ip).and_then(|ip| denied(network, ip.into()))
}

/// The IPv4 address that a translator on the way would take out of `ip`: v4-mapped and v4-compatible
/// (RFC 4291 section 2.5.5), NAT64 (RFC 6052, RFC 8215) and 6to4 (RFC 3056).
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let bytes = ip.octets();
    let v4 = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    match ip.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => Some(v4(12)),
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => Some(v4(12)),
        [0x2002, ..] => Some(v4(2)),
        _ => None,
    }
}

/// How a client of a published port is shown to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Where the guest sees it come from: the client's own address, or an alias or the gateway's if the guest could
    /// not answer that one (loopback, link-local, the guest's own network).
    pub source: SocketAddr,
    /// The guest's end.
    pub guest: SocketAddr,
}

/// The guest's end of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its address; `None` is the guest's own.
    pub addr: Option<IpAddr>,
    /// Its port.
    pub port: u16,
}

/// The way of `client` to `service`, and the way through the other family for a guest that refuses the first. `None`
/// if the network does not have the service's family.
pub fn inbound(
    network: &Network,
    client: SocketAddr,
    service: Service,
) -> Option<(Inbound, Option<Inbound>)> {
    let client_ip = client.ip().to_canonical();
    let way = |source: IpAddr, guest: IpAddr| Inbound {
        source: SocketAddr::new(source, client.port()),
        guest: SocketAddr::new(guest, service.port),
    };
    if let Some(addr) = service.addr {
        let gateway = gateway_like(network, addr)?;
        let same = client_ip.is_ipv4() == addr.is_ipv4();
        return Some((way(if same { shown(network, client_ip, gateway) } else { gateway }, addr), None));
    }
    let v4 = network.ipv4.map(|plan| (IpAddr::from(plan.gateway), IpAddr::from(plan.guest)));
    let v6 = network.ipv6.map(|plan| (IpAddr::from(plan.gateway), IpAddr::from(plan.guest)));
    let (same, other) = if client_ip.is_ipv4() { (v4, v6) } else { (v6, v4) };
    let other = other.map(|(gateway, guest)| way(gateway, guest));
    match same {
        Some((gateway, guest)) => Some((way(shown(network, client_ip, gateway), guest), other)),
        None => other.map(|way| (way, None)),
    }
}

/// Where the kernel takes a client that it joins with the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Splice {
    /// The guest's end. A connection to it that is opened inside the guest has the same address as its source.
    pub guest: SocketAddr,
    /// The other IP family's, for a guest that refuses the first.
    pub fallback: Option<SocketAddr>,
}

/// Whether the kernel joins `client` with the guest's `service`: a client on the host's loopback, whose address the
/// guest could not be shown anyway.
pub fn splice(network: &Network, client: SocketAddr, service: Service) -> Option<Splice> {
    if network.splice == Splicing::Off || !client.ip().to_canonical().is_loopback() {
        return None;
    }
    if network.splice == Splicing::ToLoopback && service.addr.is_none() {
        return Some(to_loopback(client, service.port));
    }
    let (way, fallback) = inbound(network, client, service)?;
    Some(Splice { guest: way.guest, fallback: fallback.map(|way| way.guest) })
}

/// The guest's loopback in the family of `client`, and in the other.
fn to_loopback(client: SocketAddr, port: u16) -> Splice {
    let v4 = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
    let v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port);
    let (same, other) = if client.ip().to_canonical().is_ipv4() { (v4, v6) } else { (v6, v4) };
    Splice { guest: same, fallback: Some(other) }
}

/// What the guest sees of `client`: what it can answer to.
fn shown(network: &Network, client: IpAddr, gateway: IpAddr) -> IpAddr {
    let hidden = is_guest(network, client) || denied(network, client).is_some();
    if !hidden {
        return client;
    }
    let stands_for = |alias: &&Alias| {
        let loopback = alias.host.is_loopback() && client.is_loopback();
        alias.guest.is_ipv4() == gateway.is_ipv4() && (alias.host == client || loopback)
    };
    network.aliases.iter().find(stands_for).map_or(gateway, |alias| alias.guest)
}

/// The gateway's address in the family of `like`, if it has one there.
pub fn gateway_like(network: &Network, like: IpAddr) -> Option<IpAddr> {
    match like {
        IpAddr::V4(_) => network.ipv4.map(|plan| plan.gateway.into()),
        IpAddr::V6(_) => network.ipv6.map(|plan| plan.gateway.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::fixture;

    /// Every way to write the host's loopback: directly, as this host, through the gateway's address, inside IPv6.
    const LOOPBACK: [&str; 26] = [
        "127.0.0.1:80",
        "127.0.0.0:80",
        "127.1.2.3:80",
        "127.255.255.255:80",
        "0.0.0.0:80",
        "0.1.2.3:80",
        "10.0.2.2:80",
        "[::1]:80",
        "[::]:80",
        "[fd00::2]:80",
        "[::ffff:127.0.0.1]:80",
        "[::ffff:127.9.9.9]:80",
        "[::ffff:0.0.0.0]:80",
        "[::ffff:0:127.0.0.1]:80",
        "[::127.0.0.1]:80",
        "[::0.0.0.2]:80",
        "[64:ff9b::127.0.0.1]:80",
        "[64:ff9b::0.0.0.0]:80",
        "[64:ff9b:1::127.0.0.1]:80",
        "[64:ff9b:1:7:8:9:127.0.0.1]:80",
        "[2002:7f00:1::]:80",
        "[2002:7f00:1::1]:80",
        "[2002:7fff:ffff:1:2:3:4:5]:80",
        "[2002::]:80",
        "[2002:0:0:1::]:80",
        "[::ffff:0:0]:80",
    ];

    #[test]
    fn no_spelling_of_the_hosts_loopback_is_let_through() {
        for to in LOOPBACK {
            assert_eq!(verdict(to), Verdict::Deny(DenyReason::HostLoopback), "{to}");
        }
    }

    #[test]
    fn link_local_and_metadata_are_closed() {
        let closed = [
            "169.254.169.254:80",
            "169.254.0.1:80",
            "[fe80::1]:80",
            "[febf:ffff::1]:80",
            "[::ffff:169.254.169.254]:80",
            "[64:ff9b::169.254.169.254]:80",
            "[2002:a9fe:a9fe::]:80",
        ];
        for to in closed {
            assert_eq!(verdict(to), Verdict::Deny(DenyReason::LinkLocal), "{to}");
        }
    }

    #[test]
    fn what_is_not_one_station_is_closed() {
        let closed = [
            "255.255.255.255:80",
            "224.0.0.1:80",
            "239.255.255.250:1900",
            "240.0.0.1:80",
            "[ff02::1]:80",
            "[ff0e::1]:80",
            "[::ffff:255.255.255.255]:80",
        ];
        for to in closed {
            assert_eq!(verdict(to), Verdict::Deny(DenyReason::NotUnicast), "{to}");
        }
    }

    #[test]
    fn the_guests_own_network_has_nobody_else() {
        for to in
            ["10.0.2.1:80", "10.0.2.100:80", "10.0.2.255:80", "10.0.2.0:80", "[fd00::1]:80", "[fd00::100]:80"]
        {
            assert_eq!(verdict(to), Verdict::Deny(DenyReason::NoSuchService), "{to}");
        }
    }

    #[test]
    fn the_forwarder_serves_its_port_only() {
        for to in ["10.0.2.3:53", "[fd00::3]:53"] {
            assert_eq!(verdict(to), Verdict::Dns);
        }
        for to in ["10.0.2.3:80", "10.0.2.3:0", "[fd00::3]:853"] {
            assert_eq!(verdict(to), Verdict::Deny(DenyReason::NoSuchService), "{to}");
        }
    }

    #[test]
    fn encrypted_queries_go_to_the_server_where_that_is_wanted() {
        let mut network = fixture::network();
        network.encrypted_dns = true;
        for to in ["10.0.2.3:853", "[fd00::3]:853"] {
            assert_eq!(route(&network, socket(to)), Verdict::DnsServer(853));
        }
        assert_eq!(route(&network, socket("10.0.2.3:80")), Verdict::Deny(DenyReason::NoSuchService));
    }

    #[test]
    fn a_forwarder_at_an_alias_leaves_it_the_other_ports() {
        let mut network = fixture::network();
        let plan = network.ipv4.as_mut().expect("IPv4");
        plan.dns = Some(plan.gateway);
        network.host_access.loopback = true;
        assert_eq!(route(&network, socket("10.0.2.2:53")), Verdict::Dns);
        assert_eq!(route(&network, socket("10.0.2.2:80")), Verdict::Connect(socket("127.0.0.1:80")));
    }

    #[test]
    fn the_rest_of_the_world_is_open() {
        let open = [
            "198.51.100.7:443",
            "10.0.3.1:80",
            "192.168.1.1:80",
            "8.8.8.8:53",
            "[2001:db8::1]:80",
            "[fd01::1]:80",
            "[64:ff9b::198.51.100.7]:80",
            "[::ffff:198.51.100.7]:80",
            "[2002:c633:6407::1]:80",
        ];
        for to in open {
            assert_eq!(verdict(to), Verdict::Connect(socket(to)), "{to}");
        }
    }

    #[test]
    fn an_allowed_address_opens_just_that_address_and_port() {
        let mut network = fixture::network();
        network.host_access.allowed = vec![socket("127.0.0.1:5432"), socket("169.254.169.254:80")];
        assert_eq!(route(&network, socket("127.0.0.1:5432")), Verdict::Connect(socket("127.0.0.1:5432")));
        assert_eq!(route(&network, socket("10.0.2.2:5432")), Verdict::Connect(socket("127.0.0.1:5432")));
        assert_eq!(
            route(&network, socket("169.254.169.254:80")),
            Verdict::Connect(socket("169.254.169.254:80"))
        );
        let closed = [
            "127.0.0.1:5433",
            "127.0.0.2:5432",
            "0.0.0.0:5432",
            "10.0.2.2:5433",
            "[::1]:5432",
            "[fd00::2]:5432",
            "[::ffff:127.0.0.1]:5432",
            "169.254.169.254:8080",
            "[::ffff:169.254.169.254]:80",
        ];
        for to in closed {
            assert!(matches!(route(&network, socket(to)), Verdict::Deny(_)), "{to}");
        }
    }

    #[test]
    fn the_hosts_loopback_opens_through_the_gateway_only() {
        let mut network = fixture::network();
        network.host_access.loopback = true;
        assert_eq!(route(&network, socket("10.0.2.2:80")), Verdict::Connect(socket("127.0.0.1:80")));
        assert_eq!(route(&network, socket("[fd00::2]:80")), Verdict::Connect(socket("[::1]:80")));
        for to in LOOPBACK.iter().filter(|to| !["10.0.2.2:80", "[fd00::2]:80"].contains(to)) {
            assert_eq!(route(&network, socket(to)), Verdict::Deny(DenyReason::HostLoopback), "{to}");
        }
    }

    #[test]
    fn an_alias_stands_for_what_it_names() {
        let mut network = fixture::network();
        network.aliases = vec![alias("169.254.1.2", "192.0.2.5"), alias("10.0.2.9", "127.0.0.1")];
        assert_eq!(route(&network, socket("169.254.1.2:80")), Verdict::Connect(socket("192.0.2.5:80")));
        assert_eq!(route(&network, socket("10.0.2.9:80")), Verdict::Deny(DenyReason::HostLoopback));
        network.host_access.loopback = true;
        assert_eq!(route(&network, socket("10.0.2.9:80")), Verdict::Connect(socket("127.0.0.1:80")));
        for to in ["10.0.2.2:80", "127.0.0.1:80", "169.254.1.1:80"] {
            assert!(matches!(route(&network, socket(to)), Verdict::Deny(_)), "{to} is no alias");
        }
    }

    #[test]
    fn a_shared_subnet_has_stations_but_for_the_guest() {
        let mut network = fixture::network();
        network.shares_subnet = true;
        network.aliases.clear();
        for to in ["10.0.2.2:80", "10.0.2.77:80", "[fd00::77]:80"] {
            assert_eq!(route(&network, socket(to)), Verdict::Connect(socket(to)), "{to}");
        }
        for to in ["10.0.2.100:80", "[fd00::100]:80", "10.0.2.255:80"] {
            assert!(matches!(route(&network, socket(to)), Verdict::Deny(_)), "{to}");
        }
    }

    #[test]
    fn without_a_forwarder_its_address_is_nothing_special() {
        let mut network = fixture::network();
        network.ipv4.as_mut().expect("IPv4").dns = None;
        assert_eq!(route(&network, socket("10.0.2.3:53")), Verdict::Deny(DenyReason::NoSuchService));
        network.ipv4.as_mut().expect("IPv4").dns = Some([169, 254, 1, 1].into());
        assert_eq!(route(&network, socket("169.254.1.1:53")), Verdict::Dns);
    }

    #[test]
    fn link_local_can_be_opened() {
        let mut network = fixture::network();
        network.host_access.link_local = true;
        let to = socket("169.254.169.254:80");
        assert_eq!(route(&network, to), Verdict::Connect(to));
        assert_eq!(route(&network, socket("[fe80::1]:80")), Verdict::Deny(DenyReason::LinkLocal));
    }

    #[test]
    fn a_client_is_shown_as_what_the_guest_can_answer() {
        let mut network = fixture::network();
        network.aliases = vec![alias("169.254.1.2", "10.0.2.100"), alias("10.0.2.9", "127.0.0.1")];
        let shown = |client: &str| {
            let service = Service { addr: None, port: 80 };
            let (way, _) = inbound(&network, socket(client), service).expect("both families");
            way.source.ip().to_string()
        };
        assert_eq!(shown("198.51.100.7:1"), "198.51.100.7");
        assert_eq!(shown("127.0.0.5:1"), "10.0.2.9");
        assert_eq!(shown("10.0.2.100:1"), "169.254.1.2", "the host's address that the guest has too");
        assert_eq!(shown("169.254.7.7:1"), "10.0.2.2");
        assert_eq!(shown("[::1]:1"), "fd00::2");
    }

    #[test]
    fn a_service_with_an_address_has_one_way() {
        let network = fixture::network();
        let service = Service { addr: Some(fixture::ip("10.0.2.15")), port: 80 };
        let (way, other) = inbound(&network, socket("[2001:db8::1]:9"), service).expect("IPv4");
        assert_eq!((way.source, way.guest), (socket("10.0.2.2:9"), socket("10.0.2.15:80")));
        assert_eq!(other, None);
    }

    #[test]
    fn clients_of_the_hosts_loopback_alone_are_spliced() {
        let mut network = fixture::network();
        network.splice = Splicing::ToAddress;
        let service = Service { addr: None, port: 80 };
        let (v4, v6) = (socket("10.0.2.100:80"), socket("[fd00::100]:80"));
        for (client, guest, fallback) in [
            ("127.0.0.1:5000", v4, v6),
            ("127.8.0.1:5000", v4, v6),
            ("[::ffff:127.0.0.1]:5000", v4, v6),
            ("[::1]:5000", v6, v4),
        ] {
            let expected = Splice { guest, fallback: Some(fallback) };
            assert_eq!(splice(&network, socket(client), service), Some(expected), "{client}");
        }
        for client in ["198.51.100.7:5000", "192.0.2.2:5000", "[2001:db8::1]:5000", "169.254.0.1:5000"] {
            assert_eq!(splice(&network, socket(client), service), None, "{client}");
        }
        network.ipv6 = None;
        let only = Some(Splice { guest: v4, fallback: None });
        assert_eq!(splice(&network, socket("[::1]:5000"), service), only);
        network.splice = Splicing::Off;
        assert_eq!(splice(&network, socket("127.0.0.1:5000"), service), None);
    }

    #[test]
    fn the_guests_loopback_is_for_loopback_clients_of_ports_without_an_address() {
        let mut network = fixture::network();
        network.splice = Splicing::ToLoopback;
        let (v4, v6) = (socket("127.0.0.1:80"), socket("[::1]:80"));
        let service = Service { addr: None, port: 80 };
        for (client, guest, fallback) in [("127.8.0.1:5000", v4, v6), ("[::1]:5000", v6, v4)] {
            let expected = Splice { guest, fallback: Some(fallback) };
            assert_eq!(splice(&network, socket(client), service), Some(expected), "{client}");
        }
        assert_eq!(splice(&network, socket("198.51.100.7:5000"), service), None);
        let named = Service { addr: Some(fixture::ip("10.89.0.2")), port: 80 };
        let expected = Some(Splice { guest: socket("10.89.0.2:80"), fallback: None });
        assert_eq!(splice(&network, socket("127.0.0.1:5000"), named), expected);
    }

    #[test]
    fn without_ipv6_its_addresses_are_nothing_special() {
        let mut network = fixture::network();
        network.ipv6 = None;
        assert!(!is_gateway(&network, fixture::ip("fd00::2")));
        assert!(!is_forwarder(&network, fixture::ip("fd00::3")));
        assert!(!is_local(&network, fixture::ip("fd00::100")));
        assert_eq!(route(&network, socket("[::1]:80")), Verdict::Deny(DenyReason::HostLoopback));
    }

    #[test]
    fn without_ipv4_its_addresses_are_nothing_special() {
        let mut network = fixture::network();
        network.ipv4 = None;
        assert!(!is_gateway(&network, fixture::ip("10.0.2.2")));
        assert!(!is_forwarder(&network, fixture::ip("10.0.2.3")));
        assert!(!is_guest(&network, fixture::ip("10.0.2.100")));
        assert_eq!(route(&network, socket("127.0.0.1:80")), Verdict::Deny(DenyReason::HostLoopback));
    }

    #[test]
    fn clients_of_a_missing_family_come_through_the_other() {
        let mut network = fixture::network();
        network.ipv4 = None;
        network.splice = Splicing::ToAddress;
        let service = Service { addr: None, port: 80 };
        let (way, other) = inbound(&network, socket("198.51.100.7:9"), service).expect("IPv6");
        assert_eq!((way.source, way.guest), (socket("[fd00::2]:9"), socket("[fd00::100]:80")));
        assert_eq!(other, None);
        let only = Splice { guest: socket("[fd00::100]:80"), fallback: None };
        assert_eq!(splice(&network, socket("127.0.0.1:9"), service), Some(only));
        let named = Service { addr: Some(fixture::ip("10.0.2.15")), port: 80 };
        assert_eq!(inbound(&network, socket("198.51.100.7:9"), named), None);
    }

    fn alias(guest: &str, host: &str) -> Alias {
        Alias { guest: fixture::ip(guest), host: fixture::ip(host) }
    }

    fn verdict(to: &str) -> Verdict {
        route(&fixture::network(), socket(to))
    }

    fn socket(text: &str) -> SocketAddr {
        text.parse().expect("an address and port")
    }
}
