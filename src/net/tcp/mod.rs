//! TCP: one private smoltcp endpoint per flow, between the guest and one host socket.
//!
//! Theory of operation. A guest's SYN is held until the host socket has connected, so that the guest sees
//! what really happened: the SYN is then replayed into a listening endpoint, or answered with a reset or an ICMP
//! error. A published connection goes the other way: the host has accepted, and the endpoint opens towards the
//! guest from the client's own address. Bytes are lent, not queued: the host socket is read *into* the
//! endpoint's ring and written *out of* it, so that backpressure is the TCP window.
//!
//! Each flow has its own interface and a socket set of one: smoltcp's cost per packet grows with the sockets
//! in a set, while the flow table finds the endpoint in constant time. On links with offloads an endpoint
//! believes in an MTU of 65,521 bytes; what exceeds the guest's segment size leaves as one frame that the
//! kernel cuts (TSO). (smoltcp 0.14 drops IPv6 segments above the MTU that it was told.)

mod device;
mod endpoint;
mod flow;
mod spares;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;

use smoltcp::wire::{IpProtocol, TcpPacket, TcpSeqNumber};

use super::gateway::{Core, Flow, FromGuest};
use super::icmp::{self, Unreachable};
use super::nat::Refused;
use super::packet::{Ethernet, IPV6_HEADER_BYTES, IpHeader, IpPacket};
use super::policy::{self, DenyReason, Inbound, Service, Verdict};
use super::{DropReason, Duration, FlowId, FlowKey, HostError, HostOp, PortId, Release, dns, nat};
use crate::config::Denial;
pub(super) use endpoint::{Endpoint, Refusal};
pub(super) use flow::TcpFlow;
use flow::{Outcome, Stage};
pub(super) use spares::Spares;

/// Guest connections that wait for their host socket at once. A further SYN is not answered, and the guest repeats
/// it, so that addresses that never answer leave file descriptors to those that do.
const MAX_CONNECTING: usize = 4096;
/// A DNS server that has not accepted by then is passed over.
const DNS_CONNECT: Duration = Duration::from_secs(3);
/// Length of a TCP header without options (RFC 9293 section 3.1).
const TCP_HEADER_BYTES: usize = 20;
/// A retry when an endpoint wants attention at once but had room to act: it cannot have meant it.
const POLL_AGAIN: Duration = Duration::from_millis(1);

/// A host socket, or a test's stand-in. `WouldBlock` means that readiness will be announced.
pub trait HostStream: io::Read + io::Write {
    /// Sends FIN after what was written.
    fn shutdown_write(&mut self) -> io::Result<()>;
}

/// A segment from the guest.
pub(super) fn from_guest(core: &mut Core, packet: &FromGuest<'_>) {
    let ip = &packet.ip;
    let Ok(segment) = TcpPacket::new_checked(ip.payload()) else {
        return core.counters.drop(DropReason::Malformed);
    };
    if !is_plain(ip) || segment.src_port() == 0 || segment.dst_port() == 0 {
        return core.counters.drop(DropReason::Unsupported);
    }
    // Not even a reset answers what was sent to many (RFC 1122 section 4.2.3.10).
    if !icmp::is_one_station(ip.destination) {
        return core.counters.drop(DropReason::Denied);
    }
    let guest = SocketAddr::new(ip.source, segment.src_port());
    let remote = SocketAddr::new(ip.destination, segment.dst_port());
    let key = FlowKey::Tcp { port: packet.port, guest, remote };
    let opens = opens(packet);
    match flow_of(core, &key, opens) {
        Some(id) => segment_of_flow(core, id, packet),
        None if opens => open(core, packet, key, guest, remote),
        None => refuse(core, packet, DropReason::NoFlow),
    }
}

/// Whether a segment asks for a new connection.
fn opens(packet: &FromGuest<'_>) -> bool {
    let segment = TcpPacket::new_checked(packet.ip.payload());
    segment.is_ok_and(|segment| segment.syn() && !segment.ack() && !segment.rst())
}

/// The flow that a segment belongs to. One that the guest has done with, and only its host still drains, yields its
/// key to a segment that opens a new connection.
fn flow_of(core: &mut Core, key: &FlowKey, opens: bool) -> Option<FlowId> {
    let id = core.table.find(key)?;
    match core.table.get(id) {
        Some(Flow::Tcp(flow)) if opens && flow.guest_has_left() => {
            core.table.unkey(id);
            None
        }
        _ => Some(id),
    }
}

/// Whether smoltcp will see the headers that the parser saw (it does not follow IPv6's extension headers).
fn is_plain(ip: &IpPacket<'_>) -> bool {
    ip.source.is_ipv4() || ip.header_bytes == IPV6_HEADER_BYTES
}

fn segment_of_flow(core: &mut Core, id: FlowId, packet: &FromGuest<'_>) {
    let now = core.now;
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    flow.ethernet.to = packet.mac;
    match &mut flow.stage {
        // The guest repeats its SYN, or has given up and begins anew with another.
        Stage::Connecting { syn, .. } if opens(packet) => *syn = packet.ip.bytes.into(),
        Stage::Connecting { .. } => {}
        Stage::Open(endpoint) => {
            endpoint.receive(&packet.ip, &flow.ethernet, &mut core.outbox, now);
            core.queue(id);
        }
    }
}

/// Decides about a new connection from the guest.
fn open(core: &mut Core, packet: &FromGuest<'_>, key: FlowKey, guest: SocketAddr, remote: SocketAddr) {
    let ethernet = core.ethernet(packet.port, packet.mac);
    let (target, dns_attempt) = match policy::route(core.network_of(packet.port), remote) {
        Verdict::Connect(target) => (target, None),
        // The servers are outside; over UDP the forwarder itself says what there is to say.
        Verdict::Dns if core.network.internal => return deny(core, packet),
        Verdict::Dns => {
            core.outbox.op(HostOp::RefreshResolvers);
            match dns::server(core, 0) {
                Some(server) => (server, Some(0)),
                None => return refuse(core, packet, DropReason::NoFlow),
            }
        }
        Verdict::DnsServer(port) => match dns::server_at(core, port) {
            Some(server) => (server, None),
            None => return refuse(core, packet, DropReason::NoFlow),
        },
        // Nobody could answer from an address of many.
        Verdict::Deny(DenyReason::NotUnicast) => return core.counters.drop(DropReason::Denied),
        Verdict::Deny(reason) => {
            nat::log_denied(core, "tcp", guest, remote, reason);
            return deny(core, packet);
        }
    };
    if core.connecting >= core.shard.part(MAX_CONNECTING) {
        return core.counters.drop(DropReason::Limit);
    }
    if packet.ip.hop_limit <= 1 && dns_attempt.is_none() {
        return time_exceeded(core, &ethernet, &packet.ip);
    }
    let stage = Stage::Connecting { syn: packet.ip.bytes.into(), dns_attempt };
    match core.table.insert(Some(key), Flow::Tcp(Box::new(TcpFlow::new(ethernet, stage)))) {
        Some(flow) => {
            tracing::debug!(%guest, %remote, %target, "tcp connect");
            core.connecting += 1;
            connect(core, flow, target, dns_attempt.is_some());
        }
        None => refuse(core, packet, DropReason::Limit),
    }
}

/// Has the host connect `flow` to `to`, and looks after it in time.
fn connect(core: &mut Core, flow: FlowId, to: SocketAddr, is_dns: bool) {
    let patience = if is_dns { DNS_CONNECT } else { core.network.timeouts.connect.into() };
    core.table.set_deadline(flow, Some(core.now + patience));
    core.outbox.op(HostOp::Connect { flow, to });
}

/// The deadline of `id` has come.
pub(super) fn expire(core: &mut Core, id: FlowId) {
    match core.table.get(id) {
        Some(Flow::Tcp(flow)) if matches!(flow.stage, Stage::Connecting { .. }) => {
            core.outbox.op(HostOp::Release { flow: id, how: Release::Reset });
            connect_failed(core, id, HostError::TimedOut);
        }
        _ => core.queue(id),
    }
}

fn time_exceeded(core: &mut Core, ethernet: &Ethernet, ip: &IpPacket<'_>) {
    core.counters.drop(DropReason::HopLimit);
    let from = core.gateway_address(ip.source);
    icmp::error(ethernet, &mut core.outbox, from, ip.bytes, ip.source, Unreachable::HopLimit);
}

/// Answers what the policy forbids.
fn deny(core: &mut Core, packet: &FromGuest<'_>) {
    match core.network.denial {
        Denial::Refused => refuse(core, packet, DropReason::Denied),
        Denial::Unreachable => {
            core.counters.drop(DropReason::Denied);
            nat::tell(core, packet, Unreachable::Network);
        }
    }
}

/// Answers with a reset.
fn refuse(core: &mut Core, packet: &FromGuest<'_>, reason: DropReason) {
    core.counters.drop(reason);
    let ethernet = core.ethernet(packet.port, packet.mac);
    let (now, outbox) = (core.now, &mut core.outbox);
    core.refusals[usize::from(packet.port.0)].answer(&packet.ip, &ethernet, outbox, now);
}

/// The host socket of `id` has connected: the guest's SYN is replayed.
pub(super) fn connected(core: &mut Core, id: FlowId) {
    let (now, seed) = (core.now, core.next_seed());
    let Some(Flow::Tcp(flow)) = core.table.get(id) else { return };
    if let Stage::Connecting { dns_attempt: Some(attempt), .. } = &flow.stage
        && let Some(server) = dns::server(core, *attempt)
    {
        dns::answered(core, server);
    }
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    let Stage::Connecting { syn, .. } = &flow.stage else { return };
    let Some(remote) = destination(syn) else { return };
    let mut endpoint = core.spares.take(&flow.ethernet, seed, now);
    let syn = syn.clone();
    if let (true, Ok(packet)) = (endpoint.listen(remote), parse(&syn)) {
        endpoint.receive(&packet, &flow.ethernet, &mut core.outbox, now);
    }
    flow.stage = Stage::Open(endpoint);
    core.connecting -= 1;
    core.queue(id);
}

/// The host socket of `id` could not connect: the guest learns why.
pub(super) fn connect_failed(core: &mut Core, id: FlowId, error: HostError) {
    let Some(Flow::Tcp(flow)) = core.table.get(id) else { return };
    let ethernet = flow.ethernet;
    let Stage::Connecting { syn, dns_attempt } = &flow.stage else { return };
    let syn = syn.clone();
    if let Some(attempt) = *dns_attempt
        && let Some(to) = dns::server(core, attempt + 1)
    {
        let stage = Stage::Connecting { syn, dns_attempt: Some(attempt + 1) };
        if let Some(Flow::Tcp(flow)) = core.table.get_mut(id) {
            flow.stage = stage;
        }
        return connect(core, id, to, true);
    }
    core.table.remove(id);
    core.connecting -= 1;
    let Ok(ip) = parse(&syn) else { return };
    tracing::debug!(guest = %ip.source, remote = %ip.destination, ?error, "tcp connect failed");
    let unreachable = match error {
        // The guest's own timer says so in its own words.
        HostError::TimedOut => return,
        HostError::Refused => {
            return core.refusals[usize::from(ethernet.port.0)].answer(
                &ip,
                &ethernet,
                &mut core.outbox,
                core.now,
            );
        }
        HostError::NetUnreachable => Unreachable::Network,
        HostError::HostUnreachable | HostError::Exhausted => Unreachable::Host,
        HostError::Prohibited => Unreachable::Prohibited,
    };
    let from = core.gateway_address(ip.source);
    icmp::error(&ethernet, &mut core.outbox, from, ip.bytes, ip.source, unreachable);
}

/// A client was accepted on a published port: opens towards the guest. `None`, and the client should be reset, if
/// there is no room for it.
pub(super) fn accepted(
    core: &mut Core,
    port: PortId,
    service: Service,
    client: SocketAddr,
) -> Option<FlowId> {
    let (way, fallback) = policy::inbound(core.network_of(port), client, service)?;
    let ethernet = core.ethernet(port, core.station(port));
    let (key, source) = free_key(core, port, way)?;
    let endpoint = opening_endpoint(core, &ethernet, source, way.guest, fallback.is_some())?;
    let mut flow = TcpFlow::new(ethernet, Stage::Open(endpoint));
    flow.fallback = fallback;
    let id = core.table.insert(Some(key), Flow::Tcp(Box::new(flow)))?;
    tracing::debug!(%client, guest = %way.guest, "tcp published");
    core.queue(id);
    Some(id)
}

fn opening_endpoint(
    core: &mut Core,
    ethernet: &Ethernet,
    source: SocketAddr,
    guest: SocketAddr,
    has_other_way: bool,
) -> Option<Box<Endpoint>> {
    let (now, seed) = (core.now, core.next_seed());
    let mut endpoint = core.spares.take(ethernet, seed, now);
    // Of the two families it is IPv6 that a guest may have and not use.
    endpoint.connect(source, guest, has_other_way && guest.is_ipv6()).then_some(endpoint)
}

/// A key of this shard that no other flow has: the source's port moves if two clients came to look alike.
fn free_key(core: &Core, port: PortId, way: Inbound) -> Option<(FlowKey, SocketAddr)> {
    let first = way.source.port();
    let numbers = (first..=u16::MAX).chain(1..first);
    let own = |number: &u16| core.shard.of_tcp(way.guest.port(), *number) == core.shard.index();
    numbers.filter(own).map(|number| SocketAddr::new(way.source.ip(), number)).find_map(|remote| {
        let key = FlowKey::Tcp { port, guest: way.guest, remote };
        core.table.find(&key).is_none().then_some((key, remote))
    })
}

/// Serves the flow `id` with its host socket.
pub(super) fn service(core: &mut Core, id: FlowId, host: &mut impl HostStream) {
    let now = core.now;
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    flow.queued = false;
    match flow.service(host, &mut core.outbox, now) {
        Outcome::Alive(more) => rearm(core, id, more),
        Outcome::Ended(how) => end(core, id, how),
        Outcome::Refused => refused_by_guest(core, id),
    }
}

/// Sees to it that the flow is served again when it must be.
fn rearm(core: &mut Core, id: FlowId, more: bool) {
    let now = core.now;
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    let Stage::Open(endpoint) = &mut flow.stage else { return };
    let next = endpoint.next_poll(now);
    let due = next.is_some_and(|at| at <= now);
    if more || (due && !core.outbox.has_frame_room()) {
        core.queue(id);
    }
    core.table.set_deadline(id, if due { Some(now + POLL_AGAIN) } else { next });
}

/// An ICMP "destination unreachable" from the guest about a segment to it: a firewall that rejects, most likely. It
/// ends a connection that is still opening as a reset would (RFC 1122 section 4.2.3.9), unless it may pass.
pub(super) fn guest_refused(core: &mut Core, port: PortId, refused: &Refused<'_>) {
    let key = FlowKey::Tcp { port, guest: refused.guest, remote: refused.remote };
    let now = core.now;
    let Some(id) = core.table.find(&key) else { return core.counters.drop(DropReason::NoFlow) };
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    let Stage::Open(endpoint) = &mut flow.stage else { return };
    let reset = reset_instead(refused);
    if let (true, true, Ok(reset)) = (endpoint.opening, is_lasting(refused), parse(&reset)) {
        endpoint.receive(&reset, &flow.ethernet, &mut core.outbox, now);
        core.queue(id);
    }
}

/// The reset by which the guest's kernel would have refused the quoted SYN: the endpoint ignores it unless that was its
/// latest.
fn reset_instead(refused: &Refused<'_>) -> Vec<u8> {
    let [.., s0, s1, s2, s3] = *refused.head;
    let (source, destination) = (refused.guest.ip(), refused.remote.ip());
    let ip = IpHeader { source, destination, hop_limit: 1, protocol: IpProtocol::Tcp };
    let mut packet = vec![0; ip.bytes() + TCP_HEADER_BYTES];
    ip.emit(&mut packet, None);
    let mut reset = TcpPacket::new_unchecked(&mut packet[ip.bytes()..]);
    reset.set_src_port(refused.guest.port());
    reset.set_dst_port(refused.remote.port());
    reset.set_header_len(TCP_HEADER_BYTES as u8);
    reset.set_rst(true);
    reset.set_ack(true);
    reset.set_ack_number(TcpSeqNumber(i32::from_be_bytes([s0, s1, s2, s3])) + 1);
    packet
}

/// Whether the next attempt would meet the same: nobody listens, or a rule forbids it.
fn is_lasting(refused: &Refused<'_>) -> bool {
    if refused.guest.is_ipv4() {
        // Protocol or port unreachable (RFC 792); prohibited: net, host, by administration (RFC 1812 section 5.2.7.1).
        matches!(refused.code, 2 | 3 | 9 | 10 | 13)
    } else {
        // Prohibited, port unreachable, source refused, route rejected (RFC 4443 section 3.1).
        matches!(refused.code, 1 | 4 | 5 | 6)
    }
}

fn refused_by_guest(core: &mut Core, id: FlowId) {
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    let ethernet = flow.ethernet;
    let again = flow.fallback.take().and_then(|way| {
        let (key, source) = free_key(core, ethernet.port, way)?;
        Some((key, opening_endpoint(core, &ethernet, source, way.guest, false)?))
    });
    let Some((key, endpoint)) = again else { return end(core, id, Release::Reset) };
    core.table.rekey(id, key);
    if let Some(Flow::Tcp(flow)) = core.table.get_mut(id) {
        flow.stage = Stage::Open(endpoint);
    }
    core.queue(id);
}

fn end(core: &mut Core, id: FlowId, how: Release) {
    let Some(Flow::Tcp(flow)) = core.table.remove(id) else { return };
    tracing::debug!(to_host = flow.to_host_bytes, to_guest = flow.to_guest_bytes, ?how, "tcp end");
    core.outbox.op(HostOp::Release { flow: id, how });
    if let Stage::Open(endpoint) = flow.stage {
        core.spares.put(endpoint, core.now);
    }
}

/// The link of the flow `id` is gone.
pub(super) fn cut(core: &mut Core, id: FlowId) {
    if let Some(Flow::Tcp(flow)) = core.table.get(id)
        && matches!(flow.stage, Stage::Connecting { .. })
    {
        core.connecting -= 1;
    }
    end(core, id, Release::Reset);
}

/// Notes what the poll said of the flow's host socket.
pub(super) fn host_ready(core: &mut Core, id: FlowId, readable: bool, writable: bool) {
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    flow.readable |= readable;
    flow.writable |= writable;
    if matches!(flow.stage, Stage::Open(_)) {
        core.queue(id);
    }
}

/// Puts the flow on the ready list unless it is there; `false` if it was.
pub(super) fn mark_queued(flow: &mut TcpFlow) -> bool {
    !std::mem::replace(&mut flow.queued, true)
}

fn parse(packet: &[u8]) -> Result<IpPacket<'_>, DropReason> {
    match packet.first() {
        Some(first) if first >> 4 == 4 => IpPacket::parse_v4(packet),
        _ => IpPacket::parse_v6(packet),
    }
}

/// Where a saved segment was going.
fn destination(packet: &[u8]) -> Option<SocketAddr> {
    let ip = parse(packet).ok()?;
    let segment = TcpPacket::new_checked(ip.payload()).ok()?;
    Some(SocketAddr::new(ip.destination, segment.dst_port()))
}
