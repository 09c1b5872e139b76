//! Echo requests beyond the gateway, through the host's ping sockets (ICMP sockets for the unprivileged).
//!
//! One guest address and identifier is one flow with one host socket, whatever it pings. The kernel puts the
//! socket's own identifier into what is sent; answers get the guest's back. Only echo passes.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{IpProtocol, checksum};

use super::gateway::{Core, Flow, FromGuest};
use super::nat::{self, Notice, Permits};
use super::packet::{IpHeader, Quote, pseudo_header};
use super::policy::{self, Verdict};
use super::{DropReason, Family, FlowId, FlowKey, HostError, HostOp, IcmpError, PortId, Release};
use crate::config::MacAddr;

/// Length of the header of an echo message (RFC 792, RFC 4443 section 4.1).
const ECHO_HEADER_BYTES: usize = 8;

/// One guest address and identifier.
#[derive(Debug)]
pub(super) struct PingFlow {
    pub(super) port: PortId,
    mac: MacAddr,
    guest: IpAddr,
    ident: u16,
    /// Whom the guest first pinged, to quote it should the host socket not open.
    first: IpAddr,
    /// The latest sequence number, for an error that does not quote one.
    sequence: u16,
    permits: Permits,
}

/// The fields of an echo message.
#[derive(Clone, Copy, Debug)]
struct Echo<'a> {
    kind: u8,
    ident: u16,
    sequence: u16,
    content: &'a [u8],
}

impl<'a> Echo<'a> {
    fn parse(message: &'a [u8]) -> Option<Self> {
        let (header, content) = message.split_first_chunk::<ECHO_HEADER_BYTES>()?;
        let [kind, _, _, _, i0, i1, s0, s1] = *header;
        Some(Self {
            kind,
            ident: u16::from_be_bytes([i0, i1]),
            sequence: u16::from_be_bytes([s0, s1]),
            content,
        })
    }

    /// The header, its checksum made for a packet between the two addresses.
    fn header(&self, source: IpAddr, destination: IpAddr) -> [u8; ECHO_HEADER_BYTES] {
        let [i0, i1] = self.ident.to_be_bytes();
        let [s0, s1] = self.sequence.to_be_bytes();
        let mut header = [self.kind, 0, 0, 0, i0, i1, s0, s1];
        let pseudo = match Family::of(source) {
            Family::V4 => 0,
            Family::V6 => {
                let len = u32::try_from(ECHO_HEADER_BYTES + self.content.len()).unwrap_or(u32::MAX);
                pseudo_header(source, destination, IpProtocol::Icmpv6, len)
            }
        };
        let sum = checksum::combine(&[pseudo, checksum::data(&header), checksum::data(self.content)]);
        header[2..4].copy_from_slice(&(!sum).to_be_bytes());
        header
    }
}

/// Types of echo request and reply, and the protocol, in a family.
fn types(family: Family) -> (u8, u8, IpProtocol) {
    match family {
        Family::V4 => (8, 0, IpProtocol::Icmp),
        Family::V6 => (128, 129, IpProtocol::Icmpv6),
    }
}

/// An echo request that the guest sent to anything but the gateway's own addresses.
pub(super) fn from_guest(core: &mut Core, packet: &FromGuest<'_>) {
    let message = packet.ip.payload();
    let Some(echo) = Echo::parse(message) else {
        return core.counters.drop(DropReason::Malformed);
    };
    if !packet.offload.partial_checksum && !packet.ip.transport_checksum_is_valid() {
        return core.counters.drop(DropReason::Checksum);
    }
    let destination = SocketAddr::new(packet.ip.destination, 0);
    match policy::route(core.network_of(packet.port), destination) {
        Verdict::Connect(target) => outward(core, packet, &echo, target),
        Verdict::Dns | Verdict::DnsServer(_) => core.counters.drop(DropReason::Unsupported),
        Verdict::Deny(reason) => {
            let guest = SocketAddr::new(packet.ip.source, 0);
            nat::deny(core, packet, "icmp", guest, destination, reason);
        }
    }
}

fn outward(core: &mut Core, packet: &FromGuest<'_>, echo: &Echo<'_>, target: SocketAddr) {
    let destination = SocketAddr::new(packet.ip.destination, 0);
    let Some(hop_limit) = nat::hop_limit_outward(core, packet, target != destination) else {
        return;
    };
    let Some(id) = find_or_open(core, packet, echo) else {
        return core.counters.drop(DropReason::Limit);
    };
    let Some(Flow::Ping(flow)) = core.table.get_mut(id) else {
        return core.counters.drop(DropReason::NoFlow);
    };
    flow.mac = packet.mac;
    flow.sequence = echo.sequence;
    flow.permits.grant(&core.network, target, destination);
    let payload = core.outbox.store(packet.ip.payload());
    core.outbox.op(HostOp::Send { flow: id, to: target, hop_limit, payload });
    refresh(core, id);
}

/// The flow of the guest's identifier, made if there is none. `None` if the table is full.
fn find_or_open(core: &mut Core, packet: &FromGuest<'_>, echo: &Echo<'_>) -> Option<FlowId> {
    let guest = packet.ip.source;
    let key = FlowKey::Ping { port: packet.port, guest, ident: echo.ident };
    if let Some(id) = core.table.find(&key) {
        return Some(id);
    }
    let flow = PingFlow {
        port: packet.port,
        mac: packet.mac,
        guest,
        ident: echo.ident,
        first: packet.ip.destination,
        sequence: echo.sequence,
        permits: Permits::default(),
    };
    let id = core.table.insert(Some(key), Flow::Ping(flow))?;
    let family = Family::of(guest);
    core.outbox.op(HostOp::OpenPing { flow: id, family });
    tracing::debug!(%guest, destination = %packet.ip.destination, ident = echo.ident, "ping flow");
    Some(id)
}

fn refresh(core: &mut Core, id: FlowId) {
    let idle = core.network.timeouts.ping;
    core.table.set_deadline(id, Some(core.now + idle.into()));
}

/// An ICMP message on the flow's host socket.
pub(super) fn from_host(core: &mut Core, id: FlowId, from: SocketAddr, hop_limit: u8, message: &[u8]) {
    let Some(Flow::Ping(flow)) = core.table.get(id) else {
        return core.counters.drop(DropReason::NoFlow);
    };
    let (_, reply, protocol) = types(Family::of(flow.guest));
    let Some(echo) = Echo::parse(message).filter(|echo| echo.kind == reply) else {
        return core.counters.drop(DropReason::Unsupported);
    };
    let Some(remote) = known_as(core, flow, from.ip()) else {
        return core.counters.drop(DropReason::Denied);
    };
    let ip = IpHeader {
        source: remote,
        destination: flow.guest,
        hop_limit: nat::hop_limit_inward(hop_limit),
        protocol,
    };
    let answer = Echo { ident: flow.ident, ..echo };
    let header = answer.header(ip.source, ip.destination);
    let ethernet = core.ethernet(flow.port, flow.mac);
    if !ethernet.ip(&mut core.outbox, ip, &header, answer.content) {
        core.counters.drop(DropReason::Limit);
    }
    refresh(core, id);
}

fn known_as(core: &Core, flow: &PingFlow, remote: IpAddr) -> Option<IpAddr> {
    let known_as = flow.permits.known_as(&core.network, SocketAddr::new(remote, 0))?;
    Some(known_as.ip())
}

/// The host's ping socket for the flow could not be opened. The next request tries again.
pub(super) fn open_failed(core: &mut Core, id: FlowId, error: HostError) {
    let Some(Flow::Ping(flow)) = core.table.remove(id) else {
        return;
    };
    if error != HostError::Prohibited {
        nat::log_open_failed(core, Family::of(flow.guest), error);
    } else if core.notices.admit(core.now, Notice::PingForbidden) {
        tracing::warn!(
            "the host does not let this user ping, so the guest can only ping the gateway; \
             `sysctl -w net.ipv4.ping_group_range=\"0 2147483647\"` on the host allows it, for IPv6 too"
        );
    }
    let ethernet = core.ethernet(flow.port, flow.mac);
    let quote = quote(&flow, flow.first, flow.sequence, &[]);
    nat::tell_open_failed(core, &ethernet, flow.guest, error, &quote);
}

/// A request of the flow met an ICMP error; `message` is how it began on the host's side.
pub(super) fn failed(core: &mut Core, id: FlowId, error: IcmpError, message: &[u8]) {
    let Some(Flow::Ping(flow)) = core.table.get(id) else {
        return core.counters.drop(DropReason::NoFlow);
    };
    let Some(remote) = known_as(core, flow, error.to.ip()) else {
        return core.counters.drop(DropReason::Denied);
    };
    let (sequence, content) = match Echo::parse(message) {
        Some(echo) => (echo.sequence, echo.content),
        None => (flow.sequence, &[][..]),
    };
    let quote = quote(flow, remote, sequence, content);
    let (guest, ethernet) = (flow.guest, core.ethernet(flow.port, flow.mac));
    nat::relay_error(core, &ethernet, guest, &error, &quote);
}

/// The request that the guest had sent.
fn quote(flow: &PingFlow, remote: IpAddr, sequence: u16, content: &[u8]) -> Quote {
    let (kind, _, protocol) = types(Family::of(flow.guest));
    let ip = IpHeader { source: flow.guest, destination: remote, hop_limit: 1, protocol };
    let echo = Echo { kind, ident: flow.ident, sequence, content };
    Quote::new(ip, &echo.header(ip.source, ip.destination), content)
}

/// The flow has been idle for its time.
pub(super) fn expire(core: &mut Core, id: FlowId) {
    if let Some(Flow::Ping(_)) = core.table.remove(id) {
        core.outbox.op(HostOp::Release { flow: id, how: Release::Close });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::fixture::{self, GUEST_V4, GUEST_V6, REMOTE_V4, REMOTE_V6};
    use crate::net::testing::{Bench, Got, Sent};

    const IDENT: u16 = 0x1234;
    const FAMILIES: [(&str, &str); 2] = [(GUEST_V4, REMOTE_V4), (GUEST_V6, REMOTE_V6)];

    #[test]
    fn an_answer_gets_the_guests_identifier_back() {
        for (guest, remote) in FAMILIES {
            let mut bench = Bench::new();
            let sent = ping(&mut bench, guest, remote, 64, b"payload");
            assert_eq!((sent.to.ip(), sent.hop_limit), (fixture::ip(remote), 63));
            from_host(&mut bench.core, sent.flow, sent.to, 50, &answer(&sent));
            let got = bench.got_one();
            assert_eq!((got.source, got.hop_limit), (fixture::ip(remote), 49));
            let echo = Echo::parse(&got.payload).expect("an echo message");
            assert_eq!((echo.ident, echo.sequence, echo.content), (IDENT, 7, &b"payload"[..]));
            assert_eq!(echo.kind, types(Family::of(got.source)).1);
        }
    }

    #[test]
    fn large_echoes_pass() {
        for (guest, remote) in FAMILIES {
            let mut bench = Bench::with(|network| network.mtu = 1500);
            let content = vec![0xa5; 60_000];
            let sent = ping(&mut bench, guest, remote, 64, &content);
            assert_eq!(sent.payload.len(), 60_008);
            from_host(&mut bench.core, sent.flow, sent.to, 50, &answer(&sent));
            assert_eq!(bench.got_one().payload[8..], content);
        }
    }

    #[test]
    fn only_answers_that_the_guest_may_see_reach_it() {
        let mut bench = Bench::new();
        let sent = ping(&mut bench, GUEST_V4, REMOTE_V4, 64, b"payload");
        let request = sent.payload.clone();
        from_host(&mut bench.core, sent.flow, sent.to, 50, &request);
        from_host(&mut bench.core, sent.flow, sent.to, 50, &[0; 7]);
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        from_host(&mut bench.core, sent.flow, loopback, 50, &answer(&sent));
        assert!(bench.got().is_empty());
    }

    #[test]
    fn the_gateway_is_the_first_hop_and_refuses_for_the_host() {
        for (to, hop_limit, expected) in [(REMOTE_V4, 1, (11, 0)), ("169.254.169.254", 64, (3, 13))] {
            let mut bench = Bench::new();
            request(&mut bench, GUEST_V4, to, hop_limit, b"payload");
            let got = bench.got_one();
            let (kind, code, quoted) = got.icmp_error();
            assert_eq!((kind, code), expected);
            assert_eq!(got.source, fixture::ip("10.0.2.2"));
            assert_request(&quoted, GUEST_V4, to, b"payload");
            bench.assert_empty();
        }
    }

    #[test]
    fn errors_quote_the_guests_request() {
        for (guest, remote) in FAMILIES {
            let mut bench = Bench::new();
            let sent = ping(&mut bench, guest, remote, 3, b"payload");
            let kind = if sent.to.is_ipv4() { 11 } else { 3 };
            let error = IcmpError { offender: None, kind, code: 0, info: 0, to: sent.to };
            let mut met = sent.payload.clone();
            met[4..6].copy_from_slice(&[0xee, 0xee]);
            failed(&mut bench.core, sent.flow, error, &met);
            assert_request(&bench.got_one().icmp_error().2, guest, remote, b"payload");
            failed(&mut bench.core, sent.flow, error, b"");
            assert_request(&bench.got_one().icmp_error().2, guest, remote, b"");
        }
    }

    #[test]
    fn a_host_that_forbids_ping_is_told_of_once() {
        let mut bench = Bench::new();
        for _ in 0..2 {
            let flow = ping(&mut bench, GUEST_V4, REMOTE_V4, 64, b"payload").flow;
            open_failed(&mut bench.core, flow, HostError::Prohibited);
            let (kind, code, quoted) = bench.got_one().icmp_error();
            assert_eq!((kind, code), (3, 13));
            assert_request(&quoted, GUEST_V4, REMOTE_V4, b"");
            bench.assert_empty();
        }
        assert!(!bench.core.notices.admit(bench.core.now, Notice::PingForbidden));
    }

    #[test]
    fn idle_flows_go() {
        let mut bench = Bench::new();
        let flow = ping(&mut bench, GUEST_V4, REMOTE_V4, 64, b"payload").flow;
        bench.wait(59);
        assert!(bench.ops().is_empty());
        bench.wait(1);
        let how = Release::Close;
        assert_eq!(bench.ops(), [HostOp::Release { flow, how }]);
        bench.assert_empty();
    }

    fn request(bench: &mut Bench, guest: &str, remote: &str, hop_limit: u8, content: &[u8]) {
        let source = fixture::ip(guest);
        let (kind, _, protocol) = types(Family::of(source));
        let ip = IpHeader { source, destination: fixture::ip(remote), hop_limit, protocol };
        let [i0, i1] = IDENT.to_be_bytes();
        bench.guest_icmp(ip, [kind, 0, 0, 0, i0, i1, 0, 7], content);
    }

    fn ping(bench: &mut Bench, guest: &str, remote: &str, hop_limit: u8, content: &[u8]) -> Sent {
        request(bench, guest, remote, hop_limit, content);
        bench.sent_one()
    }

    /// What the remote end answers, with the host socket's identifier.
    fn answer(sent: &Sent) -> Vec<u8> {
        let mut answer = sent.payload.clone();
        answer[0] = types(Family::of(sent.to.ip())).1;
        answer[4..6].copy_from_slice(&[0xee, 0xee]);
        answer
    }

    fn assert_request(quoted: &Got, guest: &str, remote: &str, content: &[u8]) {
        assert_eq!(quoted.source, fixture::ip(guest));
        assert_eq!(quoted.destination, fixture::ip(remote));
        let echo = Echo::parse(&quoted.payload).expect("an echo message");
        assert_eq!(echo.kind, types(Family::of(quoted.source)).0);
        assert_eq!((echo.ident, echo.sequence, echo.content), (IDENT, 7, content));
    }
}
