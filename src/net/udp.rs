//! UDP between the guest and the world, by RFC 4787.
//!
//! A guest socket is one flow with one host socket, whatever it talks to (endpoint-independent mapping), and gets
//! answers from everybody (endpoint-independent filtering), except from addresses that the policy keeps from the
//! guest. A client of a published port is a flow of its own, without a socket: it comes and goes through the
//! published one. Multicast and broadcast are refused.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::IpProtocol;

use super::gateway::{Core, Flow, FromGuest};
use super::nat::{self, Permits, Refused};
use super::packet::{IpHeader, Quote, UDP_HEADER_BYTES, udp_header};
use super::policy::{self, Inbound, Verdict};
use super::{
    DropReason, Family, FlowId, FlowKey, HostError, HostOp, IcmpError, LargeDatagram, PortId, PublishId,
    Release, dns, icmp,
};
use crate::config::{MacAddr, Transport};

/// Datagrams that one super-datagram may stand for (Linux's UDP_MAX_SEGMENTS).
const MAX_SEGMENTS: usize = 128;
/// Largest payload in an IPv4 packet.
const MAX_PAYLOAD_V4: usize = 65_535 - 20 - UDP_HEADER_BYTES;
/// Clients of published ports at once, a quarter of all flows: addresses that somebody forges must not take the
/// guest's own flows away.
const MAX_CLIENTS: usize = 16_384;
/// Other source ports that are tried for a client whose own is taken at the guest.
const MAX_PORT_PROBES: u16 = 64;
/// The dynamic ports (RFC 6335 section 6), from which they are taken.
const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 49_152..=65_535;

/// One guest socket.
#[derive(Debug)]
pub(super) struct UdpFlow {
    pub(super) port: PortId,
    mac: MacAddr,
    guest: SocketAddr,
    /// Whom the guest first sent to, to quote it should the host socket not open.
    first: SocketAddr,
    permits: Permits,
    /// It has only spoken to port 53.
    only_dns: bool,
}

/// One client of a published port.
#[derive(Debug)]
pub(super) struct PublishedFlow {
    publish: PublishId,
    pub(super) port: PortId,
    client: SocketAddr,
    /// The host address that the client last sent to; answers leave from it.
    host: IpAddr,
    guest: SocketAddr,
    /// The client as the guest sees it.
    remote: SocketAddr,
    /// The way through the other family, should the guest refuse this one.
    other: Option<Inbound>,
}

/// The flows of published ports' clients.
pub(super) type Clients = HashMap<(PublishId, SocketAddr), FlowId>;

/// A datagram, or several of one size, from the guest.
#[derive(Clone, Copy, Debug)]
struct Datagram<'a> {
    source: SocketAddr,
    destination: SocketAddr,
    payload: &'a [u8],
    segment_bytes: Option<u16>,
}

impl<'a> Datagram<'a> {
    /// Checks the lengths of a whole (reassembled) packet; its checksum was verified when it came in.
    fn parse(packet: &FromGuest<'a>) -> Result<Self, DropReason> {
        let ip = &packet.ip;
        let segment = ip.payload();
        let header: &[u8; UDP_HEADER_BYTES] = segment.first_chunk().ok_or(DropReason::Malformed)?;
        let [s0, s1, d0, d1, l0, l1, ..] = *header;
        let segment_bytes = packet.offload.segment_bytes;
        let len = match segment_bytes {
            Some(_) => segment.len(),
            None => usize::from(u16::from_be_bytes([l0, l1])),
        };
        let destination = SocketAddr::new(ip.destination, u16::from_be_bytes([d0, d1]));
        if len < UDP_HEADER_BYTES || len > segment.len() || destination.port() == 0 {
            return Err(DropReason::Malformed);
        }
        let segment = &segment[..len];
        Ok(Self {
            source: SocketAddr::new(ip.source, u16::from_be_bytes([s0, s1])),
            destination,
            payload: &segment[UDP_HEADER_BYTES..],
            segment_bytes,
        })
    }

    /// The payloads of the datagrams that it stands for.
    fn payloads(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let chunk = match self.segment_bytes {
            Some(bytes) if bytes > 0 => usize::from(bytes),
            _ => self.payload.len().max(1),
        };
        // An empty payload is a datagram too, but has no chunk.
        let empty = self.payload.is_empty().then_some(self.payload);
        self.payload.chunks(chunk).take(MAX_SEGMENTS).chain(empty)
    }
}

/// A UDP packet that the guest sent to anything but the gateway's DHCP ports.
pub(super) fn from_guest(core: &mut Core, packet: &FromGuest<'_>) {
    let datagram = match Datagram::parse(packet) {
        Ok(datagram) => datagram,
        Err(reason) => return core.counters.drop(reason),
    };
    let to_client =
        FlowKey::UdpPublished { port: packet.port, guest: datagram.source, remote: datagram.destination };
    if let Some(flow) = core.table.find(&to_client) {
        return to_published_client(core, packet, &datagram, flow);
    }
    match policy::route(core.network_of(packet.port), datagram.destination) {
        Verdict::Connect(target) => outward(core, packet, &datagram, target),
        Verdict::Dns => {
            for payload in datagram.payloads() {
                dns::from_guest(core, packet, datagram.source, payload);
            }
        }
        Verdict::DnsServer(port) => match dns::server_at(core, port) {
            Some(server) if server.is_ipv4() == datagram.destination.is_ipv4() => {
                outward(core, packet, &datagram, server);
            }
            _ => core.counters.drop(DropReason::NoFlow),
        },
        Verdict::Deny(reason) => {
            nat::deny(core, packet, "udp", datagram.source, datagram.destination, reason)
        }
    }
}

fn outward(core: &mut Core, packet: &FromGuest<'_>, datagram: &Datagram<'_>, target: SocketAddr) {
    let to_gateway = target != datagram.destination;
    let Some(hop_limit) = nat::hop_limit_outward(core, packet, to_gateway) else {
        return;
    };
    let Some(id) = find_or_open(core, packet, datagram, target) else {
        return core.counters.drop(DropReason::Limit);
    };
    let Some(Flow::Udp(flow)) = core.table.get_mut(id) else {
        return core.counters.drop(DropReason::NoFlow);
    };
    flow.mac = packet.mac;
    flow.only_dns &= target.port() == 53;
    flow.permits.grant(&core.network, target, datagram.destination);
    for payload in datagram.payloads() {
        core.outbox.send(payload, |payload| HostOp::Send { flow: id, to: target, hop_limit, payload });
    }
    refresh(core, id);
}

/// The flow of the guest's socket, made if there is none. `None` if the table is full.
fn find_or_open(
    core: &mut Core,
    packet: &FromGuest<'_>,
    datagram: &Datagram<'_>,
    target: SocketAddr,
) -> Option<FlowId> {
    let guest = datagram.source;
    let key = FlowKey::Udp { port: packet.port, guest };
    if let Some(id) = core.table.find(&key) {
        return Some(id);
    }
    let flow = UdpFlow {
        port: packet.port,
        mac: packet.mac,
        guest,
        first: datagram.destination,
        permits: Permits::default(),
        only_dns: true,
    };
    let id = core.table.insert(Some(key), Flow::Udp(flow))?;
    let family = Family::of(guest.ip());
    core.outbox.op(HostOp::OpenUdp { flow: id, family, to_loopback: target.ip().is_loopback() });
    tracing::debug!(%guest, destination = %datagram.destination, "UDP flow");
    Some(id)
}

/// Traffic in either direction keeps a flow (RFC 4787 REQ-6).
fn refresh(core: &mut Core, id: FlowId) {
    let timeouts = &core.network.timeouts;
    let idle = match core.table.get(id) {
        Some(Flow::Udp(flow)) if flow.only_dns => timeouts.udp_dns,
        _ => timeouts.udp,
    };
    core.table.set_deadline(id, Some(core.now + idle.into()));
}

/// A datagram on a guest socket's host socket.
pub(super) fn from_host(core: &mut Core, id: FlowId, from: SocketAddr, hop_limit: u8, payload: &[u8]) {
    let Some(Flow::Udp(flow)) = core.table.get(id) else {
        return core.counters.drop(DropReason::NoFlow);
    };
    let Some(remote) = flow.permits.known_as(&core.network, from) else {
        return core.counters.drop(DropReason::Denied);
    };
    let (port, mac, guest) = (flow.port, flow.mac, flow.guest);
    let hop_limit = nat::hop_limit_inward(hop_limit);
    deliver(core, (port, mac, guest), remote, hop_limit, payload);
    refresh(core, id);
}

/// Sends a datagram to a guest socket.
pub(super) fn deliver(
    core: &mut Core,
    (port, mac, guest): (PortId, MacAddr, SocketAddr),
    remote: SocketAddr,
    hop_limit: u8,
    payload: &[u8],
) {
    if guest.is_ipv4() && payload.len() > MAX_PAYLOAD_V4 {
        return core.counters.drop(DropReason::Malformed);
    }
    let ethernet = core.ethernet(port, mac);
    if !core.shard.is_first() && !ethernet.carries_udp(guest, payload.len()) {
        let datagram = LargeDatagram { port, station: mac, remote, guest, hop_limit };
        let payload = core.outbox.store(payload);
        return core.outbox.op(HostOp::PassOn { datagram, payload });
    }
    if !ethernet.udp(&mut core.outbox, remote, guest, hop_limit, payload) {
        core.counters.drop(DropReason::Limit);
    }
}

/// The host's socket for the flow could not be opened. The next datagram tries again.
pub(super) fn open_failed(core: &mut Core, id: FlowId, error: HostError) {
    let Some(Flow::Udp(flow)) = core.table.remove(id) else {
        return;
    };
    nat::log_open_failed(core, Family::of(flow.guest.ip()), error);
    let ethernet = core.ethernet(flow.port, flow.mac);
    if let Some(quote) = quote(flow.guest, flow.first, &[]) {
        nat::tell_open_failed(core, &ethernet, flow.guest.ip(), error, &quote);
    }
}

/// A datagram of the flow met an ICMP error; `payload` is how its payload began.
pub(super) fn failed(core: &mut Core, id: FlowId, error: IcmpError, payload: &[u8]) {
    let Some(Flow::Udp(flow)) = core.table.get(id) else {
        return core.counters.drop(DropReason::NoFlow);
    };
    let guest = flow.guest;
    let Some(remote) = flow.permits.known_as(&core.network, error.to) else {
        return core.counters.drop(DropReason::Denied);
    };
    let ethernet = core.ethernet(flow.port, flow.mac);
    if let Some(quote) = quote(guest, remote, payload) {
        nat::relay_error(core, &ethernet, guest.ip(), &error, &quote);
    }
}

/// What the guest had sent.
fn quote(guest: SocketAddr, remote: SocketAddr, payload: &[u8]) -> Option<Quote> {
    let ip =
        IpHeader { source: guest.ip(), destination: remote.ip(), hop_limit: 1, protocol: IpProtocol::Udp };
    Some(Quote::new(ip, &udp_header(guest, remote, payload)?, payload))
}

/// The flow, of either kind, has been idle for its time.
pub(super) fn expire(core: &mut Core, id: FlowId) {
    match core.table.remove(id) {
        Some(Flow::Udp(flow)) => {
            tracing::debug!(guest = %flow.guest, "UDP flow idle");
            core.outbox.op(HostOp::Release { flow: id, how: Release::Close });
        }
        Some(Flow::UdpPublished(flow)) => {
            core.udp_clients.remove(&(flow.publish, flow.client));
        }
        _ => {}
    }
}

/// A datagram from client `from` on a published port, sent to the host's address `to`.
pub(super) fn published(core: &mut Core, publish: PublishId, from: SocketAddr, to: IpAddr, payload: &[u8]) {
    let id = match core.udp_clients.get(&(publish, from)) {
        Some(id) => *id,
        None => match admit(core, publish, from, to) {
            Ok(id) => id,
            Err(reason) => return core.counters.drop(reason),
        },
    };
    let Some(Flow::UdpPublished(flow)) = core.table.get_mut(id) else {
        return core.counters.drop(DropReason::NoFlow);
    };
    flow.host = to;
    let (port, guest, remote) = (flow.port, flow.guest, flow.remote);
    let mac = core.station(port);
    deliver(core, (port, mac, guest), remote, icmp::HOP_LIMIT, payload);
    refresh(core, id);
}

/// The published port is closed: forgets its clients.
pub(super) fn unpublished(core: &mut Core, publish: PublishId) {
    let table = &mut core.table;
    core.udp_clients.retain(|(of, _), id| {
        let stays = *of != publish;
        if !stays {
            table.remove(*id);
        }
        stays
    });
}

/// Makes the flow of a new client.
fn admit(
    core: &mut Core,
    publish: PublishId,
    client: SocketAddr,
    host: IpAddr,
) -> Result<FlowId, DropReason> {
    let published = core.published.get(publish.0 as usize).copied().flatten();
    let Some(published) = published.filter(|published| published.transport == Transport::Udp) else {
        return Err(DropReason::NoFlow);
    };
    if core.udp_clients.len() >= core.shard.part(MAX_CLIENTS) {
        return Err(DropReason::Limit);
    }
    let (way, other) = policy::inbound(core.network_of(published.port), client, published.service)
        .ok_or(DropReason::NoFlow)?;
    let (port, guest) = (published.port, way.guest);
    let remote = free_remote(core, port, way).ok_or(DropReason::Limit)?;
    let flow = PublishedFlow { publish, port, client, host, guest, remote, other };
    let key = FlowKey::UdpPublished { port, guest, remote };
    let id = core.table.insert(Some(key), Flow::UdpPublished(flow)).ok_or(DropReason::Limit)?;
    core.udp_clients.insert((publish, client), id);
    tracing::debug!(%client, %guest, %remote, "published UDP flow");
    Ok(id)
}

/// The client as the guest sees it: with its own port if that is free. `None` if no port that was tried is.
fn free_remote(core: &Core, port: PortId, way: Inbound) -> Option<SocketAddr> {
    let own = way.source.port();
    let span = DYNAMIC_PORTS.end() - DYNAMIC_PORTS.start();
    let others = (0..MAX_PORT_PROBES).map(|n| DYNAMIC_PORTS.start() + own.wrapping_add(n) % span);
    std::iter::once(own).chain(others).map(|number| SocketAddr::new(way.source.ip(), number)).find(
        |&remote| {
            let guest = way.guest;
            let key = FlowKey::UdpPublished { port, guest, remote };
            core.table.find(&key).is_none()
        },
    )
}

fn to_published_client(core: &mut Core, packet: &FromGuest<'_>, datagram: &Datagram<'_>, id: FlowId) {
    let Some(Flow::UdpPublished(flow)) = core.table.get(id) else {
        return core.counters.drop(DropReason::NoFlow);
    };
    let (publish, to, from) = (flow.publish, flow.client, flow.host);
    let to_gateway = flow.remote.ip() != flow.client.ip();
    if nat::hop_limit_outward(core, packet, to_gateway).is_none() {
        return;
    }
    // Only such a client itself may keep its mapping: another service of the host might have its port by then.
    if policy::denied(&core.network, to.ip()).is_none() {
        refresh(core, id);
    }
    for payload in datagram.payloads() {
        core.outbox.send(payload, |payload| HostOp::Reply { publish, to, from, payload });
    }
}

/// An ICMP "destination unreachable" from the guest. If it is about a published port's client, that goes through
/// the other family from now on, or, where there is none left, is forgotten: a client can not be told.
pub(super) fn guest_refused(core: &mut Core, port: PortId, refused: &Refused<'_>) {
    let key = FlowKey::UdpPublished { port, guest: refused.guest, remote: refused.remote };
    let Some(id) = core.table.find(&key) else {
        return core.counters.drop(DropReason::NoFlow);
    };
    if !go_other_way(core, id, quoted_payload(refused)) {
        expire(core, id);
    }
}

/// Moves a client's flow to its other way and repeats the datagram that was refused, if it was quoted whole.
fn go_other_way(core: &mut Core, id: FlowId, payload: Option<&[u8]>) -> bool {
    let Some(Flow::UdpPublished(flow)) = core.table.get_mut(id) else {
        return false;
    };
    let Some(other) = flow.other.take() else {
        return false;
    };
    let (port, guest) = (flow.port, other.guest);
    let Some(remote) = free_remote(core, port, other) else {
        return false;
    };
    if !core.table.rekey(id, FlowKey::UdpPublished { port, guest, remote }) {
        return false;
    }
    if let Some(Flow::UdpPublished(flow)) = core.table.get_mut(id) {
        (flow.guest, flow.remote) = (guest, remote);
    }
    if let Some(payload) = payload {
        let mac = core.station(port);
        deliver(core, (port, mac, guest), remote, icmp::HOP_LIMIT, payload);
    }
    true
}

/// The payload of a datagram that is quoted whole.
fn quoted_payload<'a>(refused: &Refused<'a>) -> Option<&'a [u8]> {
    let [_, _, _, _, l0, l1, _, _] = *refused.head;
    let payload_bytes = usize::from(u16::from_be_bytes([l0, l1])).checked_sub(UDP_HEADER_BYTES)?;
    refused.rest.get(..payload_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Alias, Denial};
    use crate::net::RxOffload;
    use crate::net::fixture;
    use crate::net::gateway::Published;
    use crate::net::table::Table;
    use crate::net::testing::{Bench, MAX_FLOWS, at};

    const GUEST: &str = "10.0.2.100:4000";
    const GUEST6: &str = "[fd00::100]:4000";
    const PUBLISH: PublishId = PublishId(0);

    #[test]
    fn one_guest_socket_is_one_host_socket_and_anyone_may_answer() {
        let mut bench = Bench::new();
        bench.guest_udp(GUEST, "198.51.100.7:7", b"one");
        bench.guest_udp(GUEST, "203.0.113.9:9", b"two");
        let sent = bench.sent();
        assert_eq!(sent[0].flow, sent[1].flow);
        assert_eq!((sent[0].to, &sent[0].payload[..]), (at("198.51.100.7:7"), &b"one"[..]));
        assert_eq!((sent[1].to, sent[1].hop_limit), (at("203.0.113.9:9"), 63));
        from_host(&mut bench.core, sent[0].flow, at("192.0.2.1:1"), 50, b"three");
        let got = bench.got_one();
        assert_eq!(got.udp(), (at("192.0.2.1:1"), at(GUEST), &b"three"[..]));
        assert_eq!(got.hop_limit, 49);
    }

    #[test]
    fn the_gateway_stands_for_the_hosts_loopback_both_ways() {
        for (guest, gateway, loopback) in
            [(GUEST, "10.0.2.2:53", "127.0.0.1:53"), (GUEST6, "[fd00::2]:53", "[::1]:53")]
        {
            let mut bench = Bench::with(|network| network.host_access.loopback = true);
            bench.guest_udp_hops(guest, gateway, b"to", 1);
            let sent = bench.sent_one();
            assert_eq!(sent.to, at(loopback));
            from_host(&mut bench.core, sent.flow, at(loopback), 64, b"from");
            assert_eq!(bench.got_one().udp(), (at(gateway), at(guest), &b"from"[..]));
        }
    }

    #[test]
    fn unasked_neighbours_of_the_host_do_not_reach_the_guest() {
        let mut bench = Bench::with(|network| network.host_access.allowed.push(at("127.0.0.1:53")));
        bench.guest_udp(GUEST, "198.51.100.7:7", b"out");
        let flow = bench.sent_one().flow;
        for from in ["127.0.0.1:53", "169.254.169.254:80", "10.0.2.2:53", "10.0.2.3:53", "0.0.0.0:9"] {
            from_host(&mut bench.core, flow, at(from), 64, b"in");
        }
        assert!(bench.got().is_empty());
        assert_eq!(bench.core.counters.dropped(DropReason::Denied), 5);
        bench.guest_udp(GUEST, "10.0.2.2:53", b"out");
        from_host(&mut bench.core, flow, at("127.0.0.1:53"), 64, b"in");
        from_host(&mut bench.core, flow, at("127.0.0.1:54"), 64, b"in");
        assert_eq!(bench.got_one().udp().0, at("10.0.2.2:53"));
    }

    #[test]
    fn refused_destinations_are_answered_and_make_no_flow() {
        for (guest, to, answer) in [
            (GUEST, "10.0.2.2:5432", (3, 13)),
            (GUEST, "169.254.169.254:80", (3, 13)),
            (GUEST, "10.0.2.3:54", (3, 13)),
            (GUEST6, "[fd00::2]:5432", (1, 1)),
            (GUEST6, "[::ffff:127.0.0.1]:5432", (1, 1)),
        ] {
            let mut bench = Bench::new();
            bench.guest_udp(guest, to, b"secret");
            let got = bench.got_one();
            let (kind, code, quoted) = got.icmp_error();
            assert_eq!((kind, code), answer, "{to}");
            assert_eq!(quoted.udp(), (at(guest), at(to), &b"secret"[..]));
            assert_eq!(got.source, bench.core.gateway_address(at(guest).ip()));
            assert_eq!(bench.core.counters.dropped(DropReason::Denied), 1);
            bench.assert_empty();
        }
    }

    #[test]
    fn what_is_closed_can_look_unreachable() {
        let mut bench = Bench::with(|network| network.denial = Denial::Unreachable);
        bench.guest_udp(GUEST, "10.0.2.2:5432", b"secret");
        let (kind, code, _) = bench.got_one().icmp_error();
        assert_eq!((kind, code), (3, 0));
    }

    #[test]
    fn an_alias_answers_under_its_own_name() {
        let (alias, host) = ("169.254.1.2:53", "192.0.2.5:53");
        let mut bench = Bench::with(|network| {
            network.aliases.push(Alias { guest: at(alias).ip(), host: at(host).ip() });
        });
        bench.guest_udp(GUEST, alias, b"to");
        let sent = bench.sent_one();
        assert_eq!(sent.to, at(host));
        from_host(&mut bench.core, sent.flow, at(host), 64, b"from");
        assert_eq!(bench.got_one().udp(), (at(alias), at(GUEST), &b"from"[..]));
    }

    #[test]
    fn groups_are_refused_in_silence() {
        let mut bench = Bench::new();
        for to in ["224.0.0.251:5353", "255.255.255.255:9", "10.0.2.255:137"] {
            bench.guest_udp(GUEST, to, b"anyone?");
        }
        bench.guest_udp(GUEST6, "[ff02::fb]:5353", b"anyone?");
        assert!(bench.got().is_empty());
        assert_eq!(bench.core.counters.dropped(DropReason::Denied), 4);
        bench.assert_empty();
    }

    #[test]
    fn the_gateway_is_the_first_hop() {
        for (guest, to, gateway, answer) in [
            (GUEST, "198.51.100.7:33434", "10.0.2.2:0", (11, 0)),
            (GUEST6, "[2001:db8::7]:33434", "[fd00::2]:0", (3, 0)),
        ] {
            let mut bench = Bench::new();
            bench.guest_udp_hops(guest, to, b"probe", 1);
            assert!(bench.sent().is_empty());
            let got = bench.got_one();
            let (kind, code, quoted) = got.icmp_error();
            assert_eq!((got.source, (kind, code)), (at(gateway).ip(), answer));
            assert_eq!(quoted.udp(), (at(guest), at(to), &b"probe"[..]));
            bench.guest_udp_hops(guest, to, b"probe", 2);
            assert_eq!(bench.sent_one().hop_limit, 1);
        }
    }

    #[test]
    fn large_datagrams_pass_both_ways_and_arrive_in_fragments() {
        for (guest, remote) in [(GUEST, "198.51.100.7:7"), (GUEST6, "[2001:db8::7]:7")] {
            for mtu in [1280, 1500, 65520] {
                let mut bench = Bench::with(|network| network.mtu = mtu);
                let payload: Vec<u8> = (0..60_000u32).map(|n| (n % 251) as u8).collect();
                bench.guest_udp(guest, remote, &payload);
                let sent = bench.sent_one();
                assert_eq!(sent.payload, payload);
                from_host(&mut bench.core, sent.flow, at(remote), 64, &payload);
                assert_eq!(bench.got_one().udp(), (at(remote), at(guest), &payload[..]));
            }
        }
    }

    #[test]
    fn a_super_datagram_is_cut_into_its_segments() {
        let mut bench = Bench::new();
        let packet = fixture::udp("10.0.2.100", "198.51.100.7", b"aaabbbc");
        let offload =
            |segment_bytes| RxOffload { partial_checksum: true, segment_bytes: Some(segment_bytes) };
        bench.guest_packet(&packet, offload(3));
        let payloads: Vec<Vec<u8>> = bench.sent().into_iter().map(|sent| sent.payload).collect();
        assert_eq!(payloads, [&b"aaa"[..], b"bbb", b"c"]);
        let packet = fixture::udp("10.0.2.100", "198.51.100.7", &[0; 60_000]);
        bench.guest_packet(&packet, offload(1));
        assert_eq!(bench.sent().len(), MAX_SEGMENTS);
    }

    #[test]
    fn empty_datagrams_and_those_without_checksum_pass() {
        let mut bench = Bench::new();
        bench.guest_udp(GUEST, "198.51.100.7:7", b"");
        assert!(bench.sent_one().payload.is_empty());
        let mut packet = fixture::udp("10.0.2.100", "198.51.100.7", b"hello");
        packet[26..28].fill(0);
        bench.guest_packet(&packet, RxOffload::default());
        assert_eq!(bench.sent_one().payload, b"hello");
    }

    #[test]
    fn wrong_lengths_and_checksums_go_nowhere() {
        let mut bench = Bench::new();
        let v4 = fixture::udp("10.0.2.100", "198.51.100.7", b"hello");
        let mut v6 = fixture::udp("fd00::100", "2001:db8::7", b"hello");
        for (at, bytes) in [(24, [0, 7]), (24, [0, 14]), (22, [0, 0]), (26, [1, 2])] {
            let mut packet = v4.clone();
            packet[at..at + 2].copy_from_slice(&bytes);
            bench.guest_packet(&packet, RxOffload { partial_checksum: at != 26, segment_bytes: None });
        }
        v6[46..48].fill(0);
        bench.guest_packet(&v6, RxOffload::default());
        assert_eq!(bench.core.counters.dropped(DropReason::Malformed), 3);
        assert_eq!(bench.core.counters.dropped(DropReason::Checksum), 2);
        bench.assert_empty();
    }

    #[test]
    fn hostile_packets_do_no_harm() {
        let mut bench = Bench::new();
        for packet in [
            fixture::udp("10.0.2.100", "198.51.100.7", b"hello"),
            fixture::udp("fd00::100", "2001:db8::7", b"hello"),
        ] {
            for bytes in fixture::mutations(&packet) {
                if fixture::parse(&bytes).is_some() {
                    bench.guest_packet(&bytes, RxOffload::default());
                }
                let _ = Refused::parse(&bytes);
                bench.got();
                bench.ops();
            }
        }
    }

    #[test]
    fn idle_flows_go_and_traffic_either_way_keeps_them() {
        let mut bench = Bench::new();
        bench.guest_udp(GUEST, "198.51.100.7:7", b"out");
        let flow = bench.sent_one().flow;
        bench.wait(299);
        from_host(&mut bench.core, flow, at("198.51.100.7:7"), 64, b"in");
        bench.got();
        bench.wait(299);
        assert!(bench.ops().is_empty());
        bench.wait(1);
        let how = Release::Close;
        assert_eq!(bench.ops(), [HostOp::Release { flow, how }]);
        bench.assert_empty();
    }

    #[test]
    fn a_flow_that_only_asks_names_goes_sooner() {
        let mut bench = Bench::new();
        bench.guest_udp("10.0.2.100:1", "198.51.100.7:53", b"name?");
        bench.guest_udp("10.0.2.100:2", "198.51.100.7:53", b"name?");
        bench.guest_udp("10.0.2.100:2", "198.51.100.7:54", b"more");
        bench.wait(30);
        assert_eq!(bench.core.table.len(), 1);
        bench.wait(270);
        assert!(bench.core.table.is_empty());
    }

    #[test]
    fn a_full_table_refuses_and_keeps_what_it_has() {
        let mut bench = Bench::new();
        for port in 0..=MAX_FLOWS {
            bench.guest_udp(&format!("10.0.2.100:{}", 4000 + port), "198.51.100.7:7", b"out");
        }
        assert_eq!(bench.sent().len(), MAX_FLOWS);
        assert_eq!(bench.core.counters.dropped(DropReason::Limit), 1);
        bench.wait(300);
        bench.ops();
        bench.assert_empty();
    }

    #[test]
    fn an_error_of_the_path_quotes_what_the_guest_had_sent() {
        let mut bench = Bench::new();
        bench.guest_udp(GUEST, "198.51.100.7:33434", b"probe");
        let flow = bench.sent_one().flow;
        let mut error = IcmpError {
            offender: Some(at("203.0.113.1:0").ip()),
            kind: 11,
            code: 0,
            info: 0,
            to: at("198.51.100.7:33434"),
        };
        for (offender, seen) in [
            (Some("203.0.113.1:0"), "203.0.113.1:0"),
            (Some("169.254.0.1:0"), "10.0.2.2:0"),
            (None, "10.0.2.2:0"),
        ] {
            error.offender = offender.map(|offender| at(offender).ip());
            failed(&mut bench.core, flow, error, b"probe");
            let got = bench.got_one();
            let (kind, code, quoted) = got.icmp_error();
            assert_eq!((got.source, kind, code), (at(seen).ip(), 11, 0));
            assert_eq!(quoted.udp(), (at(GUEST), error.to, &b"probe"[..]));
        }
    }

    #[test]
    fn an_error_of_the_hosts_loopback_speaks_of_the_gateway() {
        let mut bench = Bench::with(|network| network.host_access.loopback = true);
        bench.guest_udp(GUEST, "10.0.2.2:9", b"hi");
        let sent = bench.sent_one();
        let error = IcmpError { offender: Some(sent.to.ip()), kind: 3, code: 3, info: 0, to: sent.to };
        failed(&mut bench.core, sent.flow, error, b"");
        let got = bench.got_one();
        let (kind, code, quoted) = got.icmp_error();
        assert_eq!((got.source, kind, code), (at("10.0.2.2:0").ip(), 3, 3));
        assert_eq!(quoted.udp(), (at(GUEST), at("10.0.2.2:9"), &b""[..]));
    }

    #[test]
    fn a_socket_is_bound_to_no_exit_for_the_hosts_loopback() {
        for (to, expected) in [("10.0.2.2:9", true), ("198.51.100.7:9", false)] {
            let mut bench = Bench::with(|network| network.host_access.loopback = true);
            bench.guest_udp(GUEST, to, b"hi");
            let opened = bench.ops().into_iter().find_map(|op| match op {
                HostOp::OpenUdp { to_loopback, .. } => Some(to_loopback),
                _ => None,
            });
            assert_eq!(opened, Some(expected), "{to}");
        }
    }

    #[test]
    fn a_host_without_the_family_fails_fast() {
        let mut bench = Bench::new();
        bench.guest_udp(GUEST6, "[2001:db8::7]:7", b"hi");
        let flow = bench.sent_one().flow;
        open_failed(&mut bench.core, flow, HostError::NetUnreachable);
        let (kind, code, quoted) = bench.got_one().icmp_error();
        assert_eq!((kind, code), (1, 0));
        assert_eq!(quoted.udp().1, at("[2001:db8::7]:7"));
        bench.assert_empty();
        bench.guest_udp(GUEST6, "[2001:db8::7]:7", b"hi");
        assert!(matches!(bench.ops()[0], HostOp::OpenUdp { .. }));
    }

    #[test]
    fn the_guest_sees_a_client_and_answers_it() {
        for (client, guest) in
            [("203.0.113.9:5000", "10.0.2.100:80"), ("[2001:db8::9]:5000", "[fd00::100]:80")]
        {
            let mut bench = publishing();
            published(&mut bench.core, PUBLISH, at(client), at(guest).ip(), b"ask");
            assert_eq!(bench.got_one().udp(), (at(client), at(guest), &b"ask"[..]));
            bench.guest_udp(guest, client, b"answer");
            assert_eq!(reply(&mut bench), (at(client), at(guest).ip(), b"answer".to_vec()));
            bench.wait(300);
            bench.assert_empty();
        }
    }

    #[test]
    fn clients_on_the_hosts_loopback_appear_as_the_gateway_each_with_a_port() {
        let mut bench = publishing();
        let clients = [at("127.0.0.1:5000"), at("127.0.0.2:5000"), at("10.0.2.7:5000")];
        let host = at("127.0.0.1:0").ip();
        for client in clients {
            published(&mut bench.core, PUBLISH, client, host, b"ask");
        }
        let seen: Vec<SocketAddr> = bench.got().iter().map(|got| got.udp().0).collect();
        assert_eq!(seen[0], at("10.0.2.2:5000"));
        assert!(seen.iter().all(|seen| seen.ip() == at("10.0.2.2:0").ip()));
        assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2]);
        for (client, seen) in clients.iter().zip(&seen) {
            bench.guest_udp("10.0.2.100:80", &seen.to_string(), b"answer");
            assert_eq!(reply(&mut bench), (*client, host, b"answer".to_vec()));
        }
    }

    #[test]
    fn the_guest_alone_does_not_keep_its_way_to_the_hosts_loopback() {
        let mut bench = publishing();
        let host = at("127.0.0.1:0").ip();
        published(&mut bench.core, PUBLISH, at("127.0.0.1:5000"), host, b"ask");
        bench.got();
        bench.wait(299);
        bench.guest_udp("10.0.2.100:80", "10.0.2.2:5000", b"answer");
        reply(&mut bench);
        bench.wait(1);
        bench.assert_empty();
        bench.guest_udp("10.0.2.100:80", "10.0.2.2:5000", b"answer");
        assert_eq!(bench.got_one().icmp_error().1, 13);
    }

    #[test]
    fn a_closed_port_forgets_its_clients() {
        let mut bench = publishing();
        let client = at("198.51.100.7:5000");
        published(&mut bench.core, PUBLISH, client, client.ip(), b"ask");
        unpublished(&mut bench.core, PublishId(7));
        assert_eq!(bench.core.table.len(), 1, "that of another port");
        unpublished(&mut bench.core, PUBLISH);
        assert_eq!((bench.core.table.len(), bench.core.udp_clients.len()), (0, 0));
    }

    #[test]
    fn without_ipv6_its_clients_appear_as_the_gateway() {
        let mut bench = publishing();
        std::sync::Arc::make_mut(&mut bench.core.network).ipv6 = None;
        let client = at("[2001:db8::9]:5000");
        published(&mut bench.core, PUBLISH, client, client.ip(), b"ask");
        let got = bench.got_one();
        assert_eq!(got.udp(), (at("10.0.2.2:5000"), at("10.0.2.100:80"), &b"ask"[..]));
        bench.guest_udp("10.0.2.100:80", "10.0.2.2:5000", b"answer");
        assert_eq!(reply(&mut bench).0, client);
    }

    #[test]
    fn a_guest_that_refuses_one_family_is_asked_in_the_other() {
        let mut bench = publishing();
        let client = at("[::1]:5000");
        published(&mut bench.core, PUBLISH, client, client.ip(), b"ask");
        refuse(&mut bench, "fd00::100", "fd00::2");
        let got = bench.got_one();
        assert_eq!(got.udp(), (at("10.0.2.2:5000"), at("10.0.2.100:80"), &b"ask"[..]));
        bench.guest_udp("10.0.2.100:80", "10.0.2.2:5000", b"answer");
        assert_eq!(reply(&mut bench).0, client);
        published(&mut bench.core, PUBLISH, client, client.ip(), b"again");
        refuse(&mut bench, "10.0.2.100", "10.0.2.2");
        bench.assert_empty();
    }

    #[test]
    fn a_flood_of_clients_leaves_room_for_the_guests_own_flows() {
        let mut bench = publishing();
        bench.core.table = Table::new(MAX_CLIENTS + 1);
        let host = fixture::ip("192.0.2.1");
        for client in 0..MAX_CLIENTS as u32 + 5 {
            let forged = SocketAddr::from(((0xc633_0000 + client).to_be_bytes(), 5000));
            published(&mut bench.core, PUBLISH, forged, host, b"ask");
            bench.got();
        }
        assert_eq!(bench.core.counters.dropped(DropReason::Limit), 5);
        bench.guest_udp(GUEST, "198.51.100.7:7", b"out");
        assert_eq!(bench.sent_one().payload, b"out");
    }

    /// A bench that publishes port 80 of the guest.
    fn publishing() -> Bench {
        let mut bench = Bench::new();
        let service = policy::Service { addr: None, port: 80 };
        bench.core.published.push(Some(Published { transport: Transport::Udp, service, port: PortId(0) }));
        bench
    }

    /// The one answer to a client: to whom, from which host address, what.
    fn reply(bench: &mut Bench) -> (SocketAddr, IpAddr, Vec<u8>) {
        match bench.ops()[..] {
            [HostOp::Reply { publish, to, from, payload }] => {
                assert_eq!(publish, PUBLISH);
                (to, from, bench.core.outbox.payload(payload).to_vec())
            }
            ref ops => panic!("{ops:?}"),
        }
    }

    /// The guest answers the one packet it got with "port unreachable".
    fn refuse(bench: &mut Bench, guest: &str, remote: &str) {
        let refused = fixture::packets(&mut bench.core.outbox).remove(0);
        let (guest, remote) = (fixture::ip(guest), fixture::ip(remote));
        let (kind, code, protocol) =
            if guest.is_ipv4() { (3, 3, IpProtocol::Icmp) } else { (1, 4, IpProtocol::Icmpv6) };
        let ip = IpHeader { source: guest, destination: remote, hop_limit: 64, protocol };
        bench.guest_icmp(ip, [kind, code, 0, 0, 0, 0, 0, 0], &refused);
    }
}
