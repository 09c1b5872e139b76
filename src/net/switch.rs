//! Frames between the guests of one network: which port a frame goes to, and who may send it.
//!
//! Every guest has a [`Seat`]: a station and addresses that the network has given it, and that it may not change. What
//! claims another's is dropped where it comes in, so nothing has to be learned, and nobody can pretend to be somebody
//! else: not as a sender, nor in ARP or neighbour discovery, nor as a router or DHCP server. A frame passes as it is,
//! with what the link says about its checksum and segments; only ARP, IPv4 and IPv6 pass. A frame for a station that
//! nobody has goes nowhere.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use etherparse::icmpv6::{
    TYPE_NEIGHBOR_ADVERTISEMENT, TYPE_NEIGHBOR_SOLICITATION, TYPE_REDIRECT_MESSAGE, TYPE_ROUTER_ADVERTISEMENT,
};
use etherparse::{ArpEthIpv4Packet, ArpPacketSlice};
use smoltcp::wire::IpProtocol;

use super::neighbor;
use super::packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetFrame, IpPacket};
use super::{DropReason, PortId};
use crate::config::{Ipv6Plan, MacAddr, Network};

/// Where servers of DHCP send from, and where clients listen (RFC 2131 section 4.1, RFC 8415 section 7.2).
const DHCP_SERVERS: [u16; 2] = [67, 547];
const DHCP_CLIENTS: [u16; 2] = [68, 546];
/// Where the target of a neighbour solicitation or advertisement begins (RFC 4861 sections 4.3 and 4.4).
const NDP_TARGET: usize = 8;

/// The place of one guest among others.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Its station.
    pub mac: MacAddr,
    /// The network as it is to this guest: its addresses, and what it may reach.
    pub network: Arc<Network>,
}

/// Where a frame from a guest goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the gateway.
    Gateway,
    /// To one other guest.
    Port(PortId),
    /// To all other guests, and the gateway.
    All,
    /// Nowhere.
    Nowhere,
}

/// Who is where.
#[derive(Debug, Default)]
pub(super) struct Stations(HashMap<MacAddr, PortId>);

impl Stations {
    /// `false`, and nothing changed, if somebody has that station.
    pub(super) fn add(&mut self, mac: MacAddr, port: PortId) -> bool {
        let is_free = !mac.is_group() && !self.0.contains_key(&mac);
        if is_free {
            self.0.insert(mac, port);
        }
        is_free
    }

    pub(super) fn remove(&mut self, port: PortId) {
        self.0.retain(|_, of| *of != port);
    }

    /// The way of a frame that `seat` on `from` sends, or why it has none.
    pub(super) fn way(&self, from: PortId, seat: &Seat, bytes: &[u8]) -> Result<Way, DropReason> {
        let frame = EthernetFrame::parse(bytes)?;
        seat.check(&frame)?;
        match frame.destination {
            own if own == seat.network.gateway_mac => Ok(Way::Gateway),
            all if all.is_group() => Ok(Way::All),
            one => match self.0.get(&one) {
                Some(port) if *port != from => Ok(Way::Port(*port)),
                _ => Err(DropReason::ForeignDestination),
            },
        }
    }
}

impl Seat {
    /// Refuses what claims to be from somebody else.
    fn check(&self, frame: &EthernetFrame<'_>) -> Result<(), DropReason> {
        if frame.source != self.mac {
            return Err(DropReason::BadSource);
        }
        match frame.ethertype {
            ETHERTYPE_ARP => self.check_arp(frame.payload),
            ETHERTYPE_IPV4 => self.check_ip(&IpPacket::parse_v4(frame.payload)?),
            ETHERTYPE_IPV6 if self.network.ipv6.is_some() => {
                let ip = IpPacket::parse_v6(frame.payload)?;
                self.check_ip(&ip)?;
                self.check_discovery(&ip)
            }
            _ => Err(DropReason::Unsupported),
        }
    }

    /// Requests and replies tell an address of their sender; in a probe it is unspecified (RFC 5227 section 2.1.1).
    fn check_arp(&self, payload: &[u8]) -> Result<(), DropReason> {
        let packet = ArpPacketSlice::from_slice(payload).map_err(|_| DropReason::Malformed)?;
        let arp: ArpEthIpv4Packet = packet.to_packet().try_eth_ipv4().map_err(|_| DropReason::Unsupported)?;
        let sender = Ipv4Addr::from(arp.sender_ipv4);
        let is_own = arp.sender_mac == self.mac.0 && (sender.is_unspecified() || self.has(sender.into()));
        if is_own { Ok(()) } else { Err(DropReason::BadSource) }
    }

    fn check_ip(&self, ip: &IpPacket<'_>) -> Result<(), DropReason> {
        let is_own = ip.source.is_unspecified() || self.has(ip.source);
        if is_own && !serves_dhcp(ip) { Ok(()) } else { Err(DropReason::BadSource) }
    }

    /// Nobody is a router here but the gateway, and nobody speaks for another's address.
    fn check_discovery(&self, ip: &IpPacket<'_>) -> Result<(), DropReason> {
        if ip.protocol != IpProtocol::Icmpv6 {
            return Ok(());
        }
        match *ip.payload() {
            // What is discovered comes whole (RFC 6980).
            [TYPE_ROUTER_ADVERTISEMENT | TYPE_REDIRECT_MESSAGE, ..] => Err(DropReason::BadSource),
            [TYPE_NEIGHBOR_ADVERTISEMENT, ref rest @ ..] => self.check_target(rest),
            // Who has no address yet asks whether one is free, and so claims it (RFC 4862 section 5.4).
            [TYPE_NEIGHBOR_SOLICITATION, ref rest @ ..] if ip.source.is_unspecified() => {
                self.check_target(rest)
            }
            _ => Ok(()),
        }
    }

    /// Refuses a target that is not this guest's; `rest` is the message behind its type.
    fn check_target(&self, rest: &[u8]) -> Result<(), DropReason> {
        let target = rest.get(NDP_TARGET - 1..).and_then(<[u8]>::first_chunk::<16>);
        let target = Ipv6Addr::from(*target.ok_or(DropReason::Malformed)?);
        if self.has(target.into()) { Ok(()) } else { Err(DropReason::BadSource) }
    }

    /// Whether `address` is this guest's: given to it, or made of its station (RFC 4291 appendix A).
    fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.network.ipv4.is_some_and(|plan| address == plan.guest),
            IpAddr::V6(address) => {
                let given = |plan: Ipv6Plan| address == plan.guest || address == link_local(self.mac);
                self.network.ipv6.is_some_and(given)
            }
        }
    }
}

/// Whether a packet from a guest could be taken for a DHCP server's. The ports are in a first fragment too, unless it hides
/// them behind further headers; a UDP length of its own does not change what a kernel makes of it.
fn serves_dhcp(ip: &IpPacket<'_>) -> bool {
    if ip.fragment.is_some_and(|fragment| fragment.offset_bytes > 0) {
        return false;
    }
    match ip.protocol {
        IpProtocol::HopByHop | IpProtocol::Ipv6Route | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Frag => {
            ip.fragment.is_some()
        }
        IpProtocol::Udp => ip.payload().first_chunk().is_some_and(|&[s0, s1, d0, d1]| {
            DHCP_SERVERS.contains(&u16::from_be_bytes([s0, s1]))
                || DHCP_CLIENTS.contains(&u16::from_be_bytes([d0, d1]))
        }),
        _ => false,
    }
}

/// The link-local address of a station, as kernels make it (EUI-64).
fn link_local(MacAddr([a, b, c, d, e, f]): MacAddr) -> Ipv6Addr {
    let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    let address = Ipv6Addr::from(0xfe80 << 112 | u128::from(interface));
    debug_assert_ne!(address, neighbor::LINK_LOCAL);
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Outbox;
    use crate::net::fixture::{self, Datagram};

    const WEB: MacAddr = MacAddr([0x52, 0x57, 10, 89, 0, 2]);
    const DB: MacAddr = MacAddr([0x52, 0x57, 10, 89, 0, 3]);

    #[test]
    fn a_frame_goes_to_the_station_that_it_is_for() {
        let packet = fixture::udp("10.89.0.2", "10.89.0.3", b"hello");
        assert_eq!(way(WEB, DB, ETHERTYPE_IPV4, &packet), Ok(Way::Port(PortId(1))));
        assert_eq!(way(WEB, MacAddr::GATEWAY, ETHERTYPE_IPV4, &packet), Ok(Way::Gateway));
        assert_eq!(way(WEB, MacAddr::BROADCAST, ETHERTYPE_IPV4, &packet), Ok(Way::All));
        let nobody = MacAddr([0x52, 0x57, 10, 89, 0, 9]);
        for to in [nobody, WEB] {
            assert_eq!(way(WEB, to, ETHERTYPE_IPV4, &packet), Err(DropReason::ForeignDestination));
        }
    }

    #[test]
    fn nobody_sends_as_somebody_else() {
        for source in ["10.89.0.3", "10.89.0.1", "10.89.0.9", "127.0.0.1", "192.0.2.1"] {
            let packet = fixture::udp(source, "10.89.0.3", b"hello");
            assert_eq!(way(WEB, DB, ETHERTYPE_IPV4, &packet), Err(DropReason::BadSource), "{source}");
        }
        let packet = fixture::udp("10.89.0.2", "10.89.0.3", b"hello");
        assert_eq!(way(DB, DB, ETHERTYPE_IPV4, &packet), Err(DropReason::BadSource));
        for source in ["fd00:89::3", "fe80::2", "fe80::1", "2001:db8::1"] {
            let packet = fixture::udp(source, "fd00:89::3", b"hello");
            assert_eq!(way(WEB, DB, ETHERTYPE_IPV6, &packet), Err(DropReason::BadSource), "{source}");
        }
        for source in ["fd00:89::2", "fe80::5057:aff:fe59:2", "::"] {
            let packet = fixture::udp(source, "fd00:89::3", b"hello");
            assert_eq!(way(WEB, DB, ETHERTYPE_IPV6, &packet), Ok(Way::Port(PortId(1))), "{source}");
        }
    }

    #[test]
    fn nobody_answers_for_somebody_else() {
        let arp = |mac: MacAddr, sender: &str| {
            let address = |text: &str| match fixture::ip(text) {
                IpAddr::V4(address) => address.octets(),
                IpAddr::V6(_) => panic!("{text}"),
            };
            let packet = ArpEthIpv4Packet {
                operation: etherparse::ArpOperation::REPLY,
                sender_mac: mac.0,
                sender_ipv4: address(sender),
                target_mac: DB.0,
                target_ipv4: address("10.89.0.3"),
            };
            way(WEB, DB, ETHERTYPE_ARP, &packet.to_bytes().to_vec())
        };
        assert_eq!(arp(WEB, "10.89.0.2"), Ok(Way::Port(PortId(1))));
        assert_eq!(arp(WEB, "0.0.0.0"), Ok(Way::Port(PortId(1))));
        for (mac, sender) in [(WEB, "10.89.0.1"), (WEB, "10.89.0.3"), (DB, "10.89.0.2")] {
            assert_eq!(arp(mac, sender), Err(DropReason::BadSource));
        }
        assert_eq!(discovery(TYPE_NEIGHBOR_ADVERTISEMENT, "fd00:89::2"), Ok(Way::Port(PortId(1))));
        for (kind, target) in [
            (TYPE_NEIGHBOR_ADVERTISEMENT, "fd00:89::1"),
            (TYPE_ROUTER_ADVERTISEMENT, "fd00:89::2"),
            (TYPE_REDIRECT_MESSAGE, "fd00:89::2"),
        ] {
            assert_eq!(discovery(kind, target), Err(DropReason::BadSource), "{kind} {target}");
        }
    }

    #[test]
    fn only_the_gateway_serves_dhcp() {
        let at = |text: &str| text.parse().expect("an address and a port");
        let way_of = |from: &str, to: &str, change: fn(&mut Vec<u8>)| {
            let mut outbox = Outbox::new();
            assert!(fixture::ethernet(1500).udp(&mut outbox, at(from), at(to), 64, b"x"));
            let mut packet = fixture::packets(&mut outbox).remove(0);
            change(&mut packet);
            way(WEB, DB, ETHERTYPE_IPV4, &packet)
        };
        for (from, to) in [
            ("10.89.0.2:67", "10.89.0.3:68"),
            ("10.89.0.2:9", "10.89.0.3:68"),
            ("10.89.0.2:67", "10.89.0.3:9"),
        ] {
            assert_eq!(way_of(from, to, |_| {}), Err(DropReason::BadSource), "{from} {to}");
            let first_fragment: fn(&mut Vec<u8>) = |packet| {
                packet[6] |= 0x20;
                // The header's sum has grown by as much (RFC 1624).
                let (sum, borrow) = u16::from_be_bytes([packet[10], packet[11]]).overflowing_sub(0x2000);
                packet[10..12].copy_from_slice(&(sum - u16::from(borrow)).to_be_bytes());
            };
            assert_eq!(way_of(from, to, first_fragment), Err(DropReason::BadSource), "{from} {to}");
            let without_length: fn(&mut Vec<u8>) = |packet| packet[24..26].fill(0);
            assert_eq!(way_of(from, to, without_length), Err(DropReason::BadSource), "{from} {to}");
        }
        assert_eq!(way_of("10.89.0.2:68", "10.89.0.3:67", |_| {}), Ok(Way::Port(PortId(1))));
    }

    #[test]
    fn nothing_that_a_guest_can_send_makes_it_fall() {
        let packet = fixture::udp("fd00:89::2", "fd00:89::3", b"hello");
        for mutated in fixture::mutations(&frame(WEB, DB, ETHERTYPE_IPV6, &packet)) {
            let _ = stations().way(PortId(0), &seat(), &mutated);
        }
        for kind in [0x8100, 0x88cc, 0] {
            assert_eq!(way(WEB, DB, kind, &packet), Err(DropReason::Unsupported));
        }
    }

    fn discovery(kind: u8, target: &str) -> Result<Way, DropReason> {
        let IpAddr::V6(target) = fixture::ip(target) else { panic!("{target}") };
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        message.extend(target.octets());
        let mut packet = fixture::udp("fd00:89::2", "fd00:89::3", &message);
        // The message in the datagram's place, and with its protocol.
        packet.drain(40..48);
        packet[4..6].copy_from_slice(&(message.len() as u16).to_be_bytes());
        packet[6] = 58;
        way(WEB, DB, ETHERTYPE_IPV6, &packet)
    }

    /// Where a frame goes that WEB sends from port 0; DB is on port 1.
    fn way(source: MacAddr, to: MacAddr, ethertype: u16, packet: &Datagram) -> Result<Way, DropReason> {
        stations().way(PortId(0), &seat(), &frame(source, to, ethertype, packet))
    }

    fn stations() -> Stations {
        let mut stations = Stations::default();
        assert!(stations.add(WEB, PortId(0)) && stations.add(DB, PortId(1)));
        assert!(!stations.add(DB, PortId(2)) && !stations.add(MacAddr::BROADCAST, PortId(2)));
        stations
    }

    fn seat() -> Seat {
        let mut network = fixture::network();
        if let Some(plan) = &mut network.ipv4 {
            plan.guest = Ipv4Addr::new(10, 89, 0, 2);
        }
        if let Some(plan) = &mut network.ipv6 {
            plan.guest = "fd00:89::2".parse().expect("an address");
        }
        Seat { mac: WEB, network: Arc::new(network) }
    }

    fn frame(source: MacAddr, to: MacAddr, ethertype: u16, packet: &[u8]) -> Vec<u8> {
        [&to.0[..], &source.0, &ethertype.to_be_bytes(), packet].concat()
    }
}
