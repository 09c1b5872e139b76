//! What the tests of several protocols share: a network, packets, and their mutations.

use std::net::{IpAddr, SocketAddr};

use etherparse::{ArpEthIpv4Packet, ArpOperation};

use super::packet::{Ethernet, EthernetFrame, IpPacket};
use super::{Offload, Outbox, PortId};
use crate::config::{Ipv4Plan, Ipv6Plan, MacAddr, Network};

/// An IP packet of its own.
pub(super) type Datagram = Vec<u8>;

pub(super) const GUEST_V4: &str = "10.0.2.100";
pub(super) const GUEST_V6: &str = "fd00::100";
pub(super) const REMOTE_V4: &str = "198.51.100.7";
pub(super) const REMOTE_V6: &str = "2001:db8::7";
pub(super) const GUEST_MAC: MacAddr = MacAddr([0x52, 0x55, 0x0a, 0, 2, 0x64]);

/// An address out of its text.
pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The default network.
pub(super) fn network() -> Network {
    let ipv4 = Ipv4Plan::new("10.0.2.0/24".parse().expect("a subnet")).expect("a plan");
    Network::new(ipv4, Ipv6Plan::new("fd00::/64".parse().expect("a prefix")))
}

/// The way to the guest.
pub(super) fn ethernet(mtu: u16) -> Ethernet {
    Ethernet { port: PortId(0), from: MacAddr::GATEWAY, to: GUEST_MAC, offload: Offload::None, mtu }
}

/// Takes all frames out of the outbox.
pub(super) fn frames(outbox: &mut Outbox) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some((_, bytes, _)) = outbox.front_frame() {
        frames.push(bytes[super::outbox::HEADROOM..].to_vec());
        outbox.pop_frame();
    }
    frames
}

/// The IP packets in the frames of the outbox, which it empties.
pub(super) fn packets(outbox: &mut Outbox) -> Vec<Datagram> {
    frames(outbox)
        .iter()
        .map(|frame| EthernetFrame::parse(frame).expect("a frame").payload.to_vec())
        .collect()
}

/// Parses a packet of either version.
pub(super) fn parse(bytes: &[u8]) -> Option<IpPacket<'_>> {
    match bytes.first()? >> 4 {
        4 => IpPacket::parse_v4(bytes).ok(),
        _ => IpPacket::parse_v6(bytes).ok(),
    }
}

/// An ARP packet of the guest's, who asks for `target`.
pub(super) fn arp_request(sender: &str, target: &str) -> Vec<u8> {
    let v4 = |text| match ip(text) {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: GUEST_MAC.0,
        sender_ipv4: v4(sender),
        target_mac: [0; 6],
        target_ipv4: v4(target),
    }
    .to_bytes()
    .to_vec()
}

/// A UDP packet from port 4000 to port 7.
pub(super) fn udp(source: &str, destination: &str, payload: &[u8]) -> Datagram {
    udp_fragments(source, destination, payload, 65520).remove(0)
}

/// The same in packets of at most `mtu` bytes.
pub(super) fn udp_fragments(source: &str, destination: &str, payload: &[u8], mtu: u16) -> Vec<Datagram> {
    let mut outbox = Outbox::new();
    let (source, destination) = (SocketAddr::new(ip(source), 4000), SocketAddr::new(ip(destination), 7));
    assert!(ethernet(mtu).udp(&mut outbox, source, destination, 64, payload));
    packets(&mut outbox)
}

/// Every prefix of `bytes`, and `bytes` with each single byte replaced: by the extremes, each bit flipped,
/// and a seeded random value.
pub(super) fn mutations(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let prefixes = (0..bytes.len()).map(|len| bytes[..len].to_vec());
    let mut random = Random(0x5eed);
    let replaced = (0..bytes.len()).flat_map(move |at| {
        let original = bytes[at];
        let flips = (0..8).map(move |bit| original ^ (1 << bit));
        let values = flips.chain([0, 0xff, random.next() as u8]);
        values.map(move |value| {
            let mut mutated = bytes.to_vec();
            mutated[at] = value;
            mutated
        })
    });
    prefixes.chain(replaced)
}

/// A xorshift generator: the same numbers in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
