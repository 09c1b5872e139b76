//! A core with one guest, for tests that send as the guest or as the host and read what comes out.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smoltcp::wire::IpProtocol;

use super::fixture::{self, GUEST_MAC};
use super::gateway::{Core, FromGuest, Place, Port};
use super::packet::{IpHeader, IpPacket};
use super::table::Table;
use super::{FlowId, HostOp, Instant, Offload, Outbox, PortId, RxOffload, Shard, dns, ping, udp};
use crate::config::Network;

/// Flows that fit into the core.
pub(super) const MAX_FLOWS: usize = 16;

/// A socket address out of its text.
pub(super) fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// A packet that the guest got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Got {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) hop_limit: u8,
    pub(super) protocol: IpProtocol,
    pub(super) payload: Vec<u8>,
}

impl Got {
    /// Source and destination of a datagram, and its payload.
    pub(super) fn udp(&self) -> (SocketAddr, SocketAddr, &[u8]) {
        assert_eq!(self.protocol, IpProtocol::Udp);
        let port = |at: usize| u16::from_be_bytes([self.payload[at], self.payload[at + 1]]);
        (
            SocketAddr::new(self.source, port(0)),
            SocketAddr::new(self.destination, port(2)),
            &self.payload[8..],
        )
    }

    /// Type and code of an ICMP error, and the packet that it quotes.
    pub(super) fn icmp_error(&self) -> (u8, u8, Self) {
        let quoted = fixture::parse(&self.payload[8..]).expect("a quoted packet");
        (self.payload[0], self.payload[1], Self::from_packet(&quoted))
    }

    fn from_packet(ip: &IpPacket<'_>) -> Self {
        Self {
            source: ip.source,
            destination: ip.destination,
            hop_limit: ip.hop_limit,
            protocol: ip.protocol,
            payload: ip.payload().to_vec(),
        }
    }
}

/// A datagram that went to the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) flow: FlowId,
    pub(super) to: SocketAddr,
    pub(super) hop_limit: u8,
    pub(super) payload: Vec<u8>,
}

/// One guest's core.
pub(super) struct Bench {
    pub(super) core: Core,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    /// With a network that `change` has changed.
    pub(super) fn with(change: impl FnOnce(&mut Network)) -> Self {
        let mut network = fixture::network();
        change(&mut network);
        let mut core = Core::new(Arc::new(network), Shard::WHOLE, 0x5eed, Instant::ZERO);
        core.table = Table::new(MAX_FLOWS);
        core.ports.push(Port { station: GUEST_MAC.into(), offload: Offload::None, place: Place::Only });
        Self { core }
    }

    /// The guest sends a datagram.
    pub(super) fn guest_udp(&mut self, from: &str, to: &str, payload: &[u8]) {
        self.guest_udp_hops(from, to, payload, 64);
    }

    /// The guest sends a datagram with a hop limit.
    pub(super) fn guest_udp_hops(&mut self, from: &str, to: &str, payload: &[u8], hop_limit: u8) {
        let mut outbox = Outbox::new();
        let ethernet = fixture::ethernet(65535);
        assert!(ethernet.udp(&mut outbox, at(from), at(to), hop_limit, payload));
        self.guest_packet(&fixture::packets(&mut outbox)[0], RxOffload::default());
    }

    /// The guest sends an ICMP message whose checksum is right.
    pub(super) fn guest_icmp(&mut self, ip: IpHeader, head: [u8; 8], content: &[u8]) {
        let mut outbox = Outbox::new();
        let header =
            super::icmp::Header { kind: head[0], code: head[1], rest: [head[4], head[5], head[6], head[7]] };
        let ethernet = fixture::ethernet(65535);
        assert!(super::icmp::send(
            &ethernet,
            &mut outbox,
            ip.source,
            ip.destination,
            ip.hop_limit,
            header,
            content
        ));
        self.guest_packet(&fixture::packets(&mut outbox)[0], RxOffload::default());
    }

    /// The guest sends an IP packet, not a fragment.
    pub(super) fn guest_packet(&mut self, bytes: &[u8], offload: RxOffload) {
        let packet = FromGuest {
            port: PortId(0),
            mac: GUEST_MAC,
            ip: fixture::parse(bytes).expect("a packet"),
            offload,
        };
        if let Err(reason) = self.core.packet(&packet) {
            self.core.counters.drop(reason);
        }
    }

    /// What the guest got since, fragments put together.
    pub(super) fn got(&mut self) -> Vec<Got> {
        let mut got: Vec<Got> = Vec::new();
        for bytes in fixture::packets(&mut self.core.outbox) {
            let ip = fixture::parse(&bytes).expect("a packet");
            assert!(bytes.len() <= usize::from(self.core.network.mtu));
            match (ip.fragment, got.last_mut()) {
                (Some(fragment), Some(whole)) if fragment.offset_bytes > 0 => {
                    assert_eq!(usize::from(fragment.offset_bytes), whole.payload.len());
                    whole.payload.extend_from_slice(ip.payload());
                }
                (fragment, _) => {
                    assert!(fragment.is_some() || ip.transport_checksum_is_valid());
                    got.push(Got::from_packet(&ip));
                }
            }
        }
        got
    }

    /// The one packet that the guest got since.
    pub(super) fn got_one(&mut self) -> Got {
        let mut got = self.got();
        assert_eq!(got.len(), 1, "{got:?}");
        got.remove(0)
    }

    /// Takes the operations.
    pub(super) fn ops(&mut self) -> Vec<HostOp> {
        std::iter::from_fn(|| self.core.outbox.pop_op()).collect()
    }

    /// Takes the operations, and shows those that send on a flow's socket.
    pub(super) fn sent(&mut self) -> Vec<Sent> {
        let ops = self.ops();
        let mut sent = Vec::new();
        for op in ops {
            let HostOp::Send { flow, to, hop_limit, payload } = op else { continue };
            let datagrams = self.core.outbox.datagrams(payload);
            sent.extend(datagrams.map(|datagram| Sent { flow, to, hop_limit, payload: datagram.to_vec() }));
        }
        sent
    }

    /// The one datagram that went to the host since.
    pub(super) fn sent_one(&mut self) -> Sent {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    /// Lets time pass, and what is due happen.
    pub(super) fn wait(&mut self, seconds: u64) {
        self.core.now += super::Duration::from_secs(seconds);
        while let Some(id) = self.core.table.pop_due(self.core.now) {
            match self.core.table.get(id) {
                Some(super::gateway::Flow::Dns(_)) => dns::expire(&mut self.core, id),
                Some(super::gateway::Flow::Ping(_)) => ping::expire(&mut self.core, id),
                _ => udp::expire(&mut self.core, id),
            }
        }
    }

    /// Asserts that no flow, operation or index entry is left.
    pub(super) fn assert_empty(&mut self) {
        assert!(self.core.table.is_empty());
        assert!(self.core.udp_clients.is_empty());
        assert!(self.core.dns.is_idle());
        assert!(self.core.outbox.is_empty());
    }
}
