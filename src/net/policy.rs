//! Where a new flow goes: one pure function over its final, translated destination.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Network;

/// The decision about a new flow from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To this host-side address.
    Connect(SocketAddr),
    /// To the DNS forwarder.
    Dns,
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
    /// An address of the guest's own network that nobody has, or a port that the gateway does not serve.
    NoSuchService,
}

/// Decides where a guest's flow to `to` goes. `port` 53 of the forwarder's address is the forwarder; the
/// gateway's address stands for the host's loopback. The check is made on the address that would be used in
/// the end.
pub fn route(network: &Network, to: SocketAddr) -> Verdict {
    let ip = to.ip();
    if is_forwarder(network, ip) {
        return if to.port() == 53 {
            Verdict::Dns
        } else {
            Verdict::Deny(DenyReason::NoSuchService)
        };
    }
    let is_gateway = is_gateway(network, ip);
    let target = if is_gateway {
        SocketAddr::new(loopback_like(ip), to.port())
    } else {
        to
    };
    if network.host_access.allowed.contains(&target) || (is_gateway && network.host_access.loopback) {
        return Verdict::Connect(target);
    }
    match denied(network, target.ip()) {
        Some(reason) => Verdict::Deny(reason),
        None => Verdict::Connect(target),
    }
}

/// Whether `ip` is the gateway's own address, which answers echo requests.
pub fn is_gateway(network: &Network, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip == network.ipv4.gateway,
        IpAddr::V6(ip) => network.ipv6.is_some_and(|plan| ip == plan.gateway),
    }
}

/// Whether `ip` is the DNS forwarder's address.
pub fn is_forwarder(network: &Network, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip == network.ipv4.dns,
        IpAddr::V6(ip) => network.ipv6.is_some_and(|plan| ip == plan.dns),
    }
}

/// Whether `ip` belongs to the guest's own network.
pub fn is_local(network: &Network, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => network.ipv4.subnet.contains(&ip),
        IpAddr::V6(ip) => network.ipv6.is_some_and(|plan| plan.subnet.contains(&ip)),
    }
}

/// Why an address may not be reached by default, if so.
pub(super) fn denied(network: &Network, ip: IpAddr) -> Option<DenyReason> {
    if is_local(network, ip) {
        return Some(DenyReason::NoSuchService);
    }
    match ip {
        IpAddr::V4(ip) => denied_v4(ip),
        IpAddr::V6(ip) => denied_v6(ip),
    }
}

fn denied_v4(ip: Ipv4Addr) -> Option<DenyReason> {
    match ip.octets() {
        // Linux delivers 0.0.0.0/8 as "this host" (RFC 1122 section 3.2.1.3).
        [0 | 127, ..] => Some(DenyReason::HostLoopback),
        [169, 254, ..] => Some(DenyReason::LinkLocal),
        [224..=255, ..] => Some(DenyReason::NotUnicast),
        _ => None,
    }
}

fn denied_v6(ip: Ipv6Addr) -> Option<DenyReason> {
    if ip.is_loopback() || ip.is_unspecified() {
        return Some(DenyReason::HostLoopback);
    }
    if ip.is_multicast() {
        return Some(DenyReason::NotUnicast);
    }
    if ip.is_unicast_link_local() {
        return Some(DenyReason::LinkLocal);
    }
    embedded_v4(ip).and_then(denied_v4)
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

fn loopback_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// How a client of a published port is shown to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Where the guest sees it come from: the client's own address, or the gateway's if the guest could not
    /// answer that one (loopback, link-local, the guest's own network).
    pub source: SocketAddr,
    /// The guest's end.
    pub guest: SocketAddr,
}

/// The way of `client` to `guest_port`, and the way through the other family for a guest that refuses the first.
pub fn inbound(network: &Network, client: SocketAddr, guest_port: u16) -> (Inbound, Option<Inbound>) {
    let client_ip = client.ip().to_canonical();
    let way = |source: IpAddr, guest: IpAddr| Inbound {
        source: SocketAddr::new(source, client.port()),
        guest: SocketAddr::new(guest, guest_port),
    };
    let v4 = (
        IpAddr::from(network.ipv4.gateway),
        IpAddr::from(network.ipv4.guest),
    );
    let Some(plan) = network.ipv6 else {
        let source = if client_ip.is_ipv4() {
            shown(network, client_ip, v4.0)
        } else {
            v4.0
        };
        return (way(source, v4.1), None);
    };
    let v6 = (IpAddr::from(plan.gateway), IpAddr::from(plan.guest));
    let (same, other) = if client_ip.is_ipv4() { (v4, v6) } else { (v6, v4) };
    (
        way(shown(network, client_ip, same.0), same.1),
        Some(way(other.0, other.1)),
    )
}

fn shown(network: &Network, client: IpAddr, gateway: IpAddr) -> IpAddr {
    if denied(network, client).is_some() {
        gateway
    } else {
        client
    }
}
