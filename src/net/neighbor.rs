//! Who has which address on the guest's link: ARP and IPv6 neighbour discovery, the answering half.
//!
//! The gateway answers for its own addresses, the forwarder's and those that stand for the host's, and where the subnet
//! is shared for everything but the guest's own, always with its one station, and advertises itself as the router
//! to those who solicit. It keeps no cache and learns nothing: a guest's station is taken from its frames.
//! Advertisements and redirects of guests are ignored, and nothing is sent unasked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::icmpv6::{
    NdpOptionSlice, NdpOptionsIterator, NeighborAdvertisementHeader, PrefixInformation,
    RouterAdvertisementHeader, TYPE_NEIGHBOR_ADVERTISEMENT, TYPE_NEIGHBOR_SOLICITATION,
    TYPE_REDIRECT_MESSAGE, TYPE_ROUTER_ADVERTISEMENT, TYPE_ROUTER_SOLICITATION,
};
use etherparse::{ArpEthIpv4Packet, ArpHardwareId, ArpOperation, ArpPacketSlice, EtherType};
use smoltcp::wire::IpProtocol;

use super::icmp::{self, HOP_LIMIT, Header};
use super::packet::{ETHERTYPE_ARP, Ethernet, IpPacket};
use super::{DropReason, Outbox, TxOffload, policy};
use crate::config::{Ipv6Plan, MacAddr, Network, SearchList};

/// The gateway's link-local address: the source of router advertisements and DHCPv6 replies.
pub const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// Hop limit of every NDP message; a smaller one has crossed a router (RFC 4861 section 3.1).
const NDP_HOP_LIMIT: u8 = 255;
/// Group of all nodes and the Ethernet address that it maps to (RFC 2464 section 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: MacAddr = MacAddr([0x33, 0x33, 0, 0, 0, 1]);
/// The first 104 bits of a solicited-node group (RFC 4291 section 2.7.1).
const SOLICITED_NODE_PREFIX: [u8; 13] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff];
/// The longest that the field holds (RFC 8319 section 4), as no unsolicited advertisement renews it.
const ROUTER_LIFETIME_S: u16 = u16::MAX;
/// No end (RFC 4861 section 4.6.2, RFC 8106 section 5.1).
const INFINITE_S: u32 = u32::MAX;
/// The prefix length with which stateless autoconfiguration works (RFC 4862 section 5.5.3 (d)).
const AUTONOMOUS_PREFIX_LEN: u8 = 64;

const OPTION_SOURCE_LINK_LAYER: u8 = 1;
const OPTION_TARGET_LINK_LAYER: u8 = 2;
const OPTION_MTU: u8 = 5;
const OPTION_RDNSS: u8 = 25;
const OPTION_DNSSL: u8 = 31;

/// Answers an ARP request for an address of the gateway (RFC 826), probes for those that are surely its own included
/// (RFC 5227).
///
/// `payload` is the frame's, `ethernet` the way back to its source. Replies and requests for other addresses
/// are no error.
pub fn arp(
    ethernet: &Ethernet,
    network: &Network,
    outbox: &mut Outbox,
    payload: &[u8],
) -> Result<(), DropReason> {
    let packet = ArpPacketSlice::from_slice(payload).map_err(|_| DropReason::Malformed)?;
    let is_ethernet = packet.hw_addr_type() == ArpHardwareId::ETHERNET && packet.hw_addr_size() == 6;
    let is_ipv4 = packet.proto_addr_type() == EtherType::IPV4 && packet.proto_addr_size() == 4;
    if !is_ethernet || !is_ipv4 {
        return Err(DropReason::Unsupported);
    }
    let request = packet.to_packet().try_eth_ipv4().map_err(|_| DropReason::Unsupported)?;
    let target = Ipv4Addr::from(request.target_ipv4).into();
    // Or it tells others that it has the address (RFC 5227 section 2.3).
    let sender = request.sender_ipv4;
    let is_probe = Ipv4Addr::from(sender).is_unspecified() || sender == request.target_ipv4;
    let is_ours = is_ours(network, target, is_probe);
    if request.operation != ArpOperation::REQUEST || !is_ours {
        return Ok(());
    }
    let reply = ArpEthIpv4Packet {
        operation: ArpOperation::REPLY,
        sender_mac: ethernet.from.0,
        sender_ipv4: request.target_ipv4,
        target_mac: request.sender_mac,
        target_ipv4: request.sender_ipv4,
    };
    let sent = ethernet.frame(outbox, ETHERTYPE_ARP, ArpEthIpv4Packet::LEN, |bytes| {
        bytes.copy_from_slice(&reply.to_bytes());
        TxOffload::None
    });
    sent_or_full(sent)
}

/// Answers neighbour solicitations for the gateway's addresses, [`LINK_LOCAL`] included, and the forwarder's, and
/// router solicitations (RFC 4861 sections 6.2.6 and 7.2.4). Advertisements and redirects are ignored.
///
/// The checksum of `ip` has been verified; hop limit, code, lengths and addresses are checked here.
pub fn ndp(
    ethernet: &Ethernet,
    network: &Network,
    outbox: &mut Outbox,
    ip: &IpPacket<'_>,
) -> Result<(), DropReason> {
    let (IpAddr::V6(source), IpAddr::V6(destination), IpProtocol::Icmpv6, Some(plan)) =
        (ip.source, ip.destination, ip.protocol, network.ipv6)
    else {
        return Err(DropReason::Unsupported);
    };
    let (&[kind, code, ..], body) = ip.payload().split_first_chunk::<8>().ok_or(DropReason::Malformed)?;
    if ip.hop_limit != NDP_HOP_LIMIT || code != 0 {
        return Err(DropReason::Malformed);
    }
    match kind {
        TYPE_NEIGHBOR_SOLICITATION => {
            solicited_neighbor(ethernet, network, outbox, source, destination, body)
        }
        TYPE_ROUTER_SOLICITATION => {
            check_options(source, body)?;
            if network.autoconfiguration.router_advertisements {
                return advertise_router(ethernet, network, &plan, outbox, source);
            }
            Ok(())
        }
        TYPE_ROUTER_ADVERTISEMENT | TYPE_NEIGHBOR_ADVERTISEMENT | TYPE_REDIRECT_MESSAGE => Ok(()),
        _ => Err(DropReason::Unsupported),
    }
}

/// RFC 4861 sections 7.1.1 (validity) and 7.2.4 (answer).
fn solicited_neighbor(
    ethernet: &Ethernet,
    network: &Network,
    outbox: &mut Outbox,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    body: &[u8],
) -> Result<(), DropReason> {
    let (target, options) = body.split_first_chunk::<16>().ok_or(DropReason::Malformed)?;
    let target = Ipv6Addr::from(*target);
    let to_solicited_node = destination.octets().starts_with(&SOLICITED_NODE_PREFIX);
    if target.is_multicast() || (source.is_unspecified() && !to_solicited_node) {
        return Err(DropReason::Malformed);
    }
    check_options(source, options)?;
    if target != LINK_LOCAL && !is_ours(network, target.into(), source.is_unspecified()) {
        return Ok(());
    }
    let flags =
        NeighborAdvertisementHeader { router: true, solicited: !source.is_unspecified(), r#override: true };
    let header = Header { kind: TYPE_NEIGHBOR_ADVERTISEMENT, code: 0, rest: flags.to_bytes() };
    let mut body = target.octets().to_vec();
    body.extend(link_layer_option(OPTION_TARGET_LINK_LAYER, ethernet.from));
    answer(ethernet, outbox, target, source, header, &body)
}

/// Whether the gateway answers for `target`. In a shared subnet it does not stand in the way of one who only asks
/// whether an address is free.
fn is_ours(network: &Network, target: IpAddr, is_probe: bool) -> bool {
    let stands_in = network.shares_subnet && !is_probe && !policy::is_guest(network, target);
    policy::is_own(network, target) || stands_in
}

fn advertise_router(
    ethernet: &Ethernet,
    network: &Network,
    plan: &Ipv6Plan,
    outbox: &mut Outbox,
    to: Ipv6Addr,
) -> Result<(), DropReason> {
    let fields = RouterAdvertisementHeader {
        cur_hop_limit: HOP_LIMIT,
        managed_address_config: network.autoconfiguration.managed,
        other_config: true,
        router_lifetime: ROUTER_LIFETIME_S,
    };
    let header = Header { kind: TYPE_ROUTER_ADVERTISEMENT, code: 0, rest: fields.to_bytes() };
    let prefix = PrefixInformation {
        prefix_length: plan.subnet.prefix_len(),
        on_link: true,
        autonomous_address_configuration: plan.subnet.prefix_len() == AUTONOMOUS_PREFIX_LEN,
        valid_lifetime: INFINITE_S,
        preferred_lifetime: INFINITE_S,
        prefix: plan.subnet.network().octets(),
    };
    // Reachable time and retransmission timer: unspecified.
    let mut body = vec![0; 8];
    body.extend(link_layer_option(OPTION_SOURCE_LINK_LAYER, ethernet.from));
    body.extend(mtu_option(ethernet.mtu));
    body.extend(prefix.to_bytes());
    body.extend(rdnss_option(network));
    body.extend(dnssl_option(&network.advertised.search));
    answer(ethernet, outbox, LINK_LOCAL, to, header, &body)
}

/// Sends to the solicitor, or to all nodes if it has no address yet.
fn answer(
    ethernet: &Ethernet,
    outbox: &mut Outbox,
    from: Ipv6Addr,
    solicitor: Ipv6Addr,
    header: Header,
    body: &[u8],
) -> Result<(), DropReason> {
    let (to, mac) =
        if solicitor.is_unspecified() { (ALL_NODES, ALL_NODES_MAC) } else { (solicitor, ethernet.to) };
    let ethernet = Ethernet { to: mac, ..*ethernet };
    let sent = icmp::send(&ethernet, outbox, from.into(), to.into(), NDP_HOP_LIMIT, header, body);
    sent_or_full(sent)
}

/// Options must be whole and not empty; a source without an address has no link-layer address to tell either
/// (RFC 4861 sections 6.1.1 and 7.1.1). A group is never a source.
fn check_options(source: Ipv6Addr, options: &[u8]) -> Result<(), DropReason> {
    if source.is_multicast() {
        return Err(DropReason::BadSource);
    }
    for option in NdpOptionsIterator::from_slice(options) {
        let option = option.map_err(|_| DropReason::Malformed)?;
        let is_source = matches!(option, NdpOptionSlice::SourceLinkLayerAddress(_));
        if is_source && source.is_unspecified() {
            return Err(DropReason::Malformed);
        }
    }
    Ok(())
}

/// A station as an option (RFC 4861 section 4.6.1); its length counts in units of 8 bytes.
fn link_layer_option(kind: u8, MacAddr([a, b, c, d, e, f]): MacAddr) -> [u8; 8] {
    [kind, 1, a, b, c, d, e, f]
}

/// RFC 4861 section 4.6.4.
fn mtu_option(mtu: u16) -> [u8; 8] {
    let [high, low] = mtu.to_be_bytes();
    [OPTION_MTU, 1, 0, 0, 0, 0, high, low]
}

/// RFC 8106 section 5.1; nothing without a server.
fn rdnss_option(network: &Network) -> Vec<u8> {
    let servers = network.advertised_servers().filter_map(|server| match server {
        IpAddr::V6(server) => Some(server.octets()),
        IpAddr::V4(_) => None,
    });
    naming_option(OPTION_RDNSS, &servers.flatten().collect::<Vec<u8>>())
}

/// RFC 8106 section 5.2; nothing without a domain.
fn dnssl_option(search: &SearchList) -> Vec<u8> {
    naming_option(OPTION_DNSSL, search.wire())
}

/// What both have in common: two reserved bytes, a lifetime, and zeroes up to a multiple of 8 bytes.
fn naming_option(kind: u8, content: &[u8]) -> Vec<u8> {
    if content.is_empty() {
        return Vec::new();
    }
    let units = 1 + content.len().div_ceil(8);
    let mut option = vec![kind, u8::try_from(units).unwrap_or(u8::MAX), 0, 0];
    option.extend(INFINITE_S.to_be_bytes());
    option.extend(content);
    option.resize(8 * units, 0);
    option
}

fn sent_or_full(sent: bool) -> Result<(), DropReason> {
    if sent { Ok(()) } else { Err(DropReason::Limit) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Advertised;
    use crate::net::fixture::{self, GUEST_MAC, GUEST_V6};
    use crate::net::packet::EthernetFrame;

    const GUEST_LINK_LOCAL: &str = "fe80::5055:aff:fe00:264";
    const SOURCE_OPTION: [u8; 8] = [1, 1, 0x52, 0x55, 0x0a, 0, 2, 0x64];

    #[test]
    fn arp_is_answered_for_gateway_and_forwarder() {
        for ours in ["10.0.2.2", "10.0.2.3"] {
            let frames = arp_answers(&fixture::arp_request("10.0.2.100", ours)).expect("valid");
            let frame = EthernetFrame::parse(&frames[0]).expect("a frame");
            assert_eq!((frame.destination, frame.source), (GUEST_MAC, MacAddr::GATEWAY));
            assert_eq!(frame.ethertype, ETHERTYPE_ARP);
            let reply = read_arp(frame.payload);
            assert_eq!(reply.operation, ArpOperation::REPLY);
            assert_eq!((reply.sender_mac, reply.target_mac), (MacAddr::GATEWAY.0, GUEST_MAC.0));
            assert_eq!(IpAddr::from(reply.sender_ipv4), fixture::ip(ours));
            assert_eq!(IpAddr::from(reply.target_ipv4), fixture::ip("10.0.2.100"));
        }
    }

    #[test]
    fn a_probe_for_our_address_is_answered_too() {
        assert_eq!(arp_answers(&fixture::arp_request("0.0.0.0", "10.0.2.2")).map(|sent| sent.len()), Ok(1));
    }

    #[test]
    fn arp_for_others_and_arp_replies_stay_unanswered() {
        for target in ["10.0.2.100", "10.0.2.4", "8.8.8.8", "0.0.0.0", "10.0.2.255"] {
            assert_eq!(arp_answers(&fixture::arp_request("10.0.2.100", target)), Ok(Vec::new()));
        }
        let mut reply = fixture::arp_request("10.0.2.100", "10.0.2.2");
        reply[7] = 2;
        assert_eq!(arp_answers(&reply), Ok(Vec::new()));
    }

    #[test]
    fn the_station_that_was_chosen_answers() {
        let from = MacAddr([2, 0, 0, 0, 0, 9]);
        let (ethernet, mut outbox) = (Ethernet { from, ..fixture::ethernet(1500) }, Outbox::new());
        let request = fixture::arp_request("10.0.2.100", "10.0.2.2");
        arp(&ethernet, &fixture::network(), &mut outbox, &request).expect("valid");
        let frames = fixture::frames(&mut outbox);
        let frame = EthernetFrame::parse(&frames[0]).expect("a frame");
        assert_eq!((frame.source.0, &frame.payload[8..14]), (from.0, &from.0[..]));
    }

    #[test]
    fn arp_in_a_shared_subnet_is_answered_for_all_but_the_guest() {
        let mut network = fixture::network();
        network.shares_subnet = true;
        network.aliases[0].guest = fixture::ip("169.254.1.2");
        let count = |sender: &str, target: &str| {
            let mut outbox = Outbox::new();
            let request = fixture::arp_request(sender, target);
            arp(&fixture::ethernet(1500), &network, &mut outbox, &request).expect("valid");
            fixture::frames(&mut outbox).len()
        };
        for target in ["10.0.2.77", "198.51.100.1", "10.0.2.3", "169.254.1.2"] {
            assert_eq!(count("10.0.2.100", target), 1, "{target}");
        }
        assert_eq!(count("10.0.2.77", "10.0.2.100"), 0, "the guest's own");
        assert_eq!(count("0.0.0.0", "10.0.2.77"), 0, "a probe");
    }

    #[test]
    fn neighbors_of_a_shared_subnet_are_answered_for_too() {
        let mut network = fixture::network();
        network.shares_subnet = true;
        let count = |source, target: &str, options: &[u8]| {
            answers(&network, &solicitation(source, target, options)).expect("valid").len()
        };
        assert_eq!(count(GUEST_V6, "fd00::77", &SOURCE_OPTION), 1);
        assert_eq!(count(GUEST_V6, "fd00::100", &SOURCE_OPTION), 0, "the guest's own");
        assert_eq!(count("::", "fd00::77", &[]), 0, "a probe");
    }

    #[test]
    fn routers_are_silent_if_they_shall_be() {
        let mut network = fixture::network();
        network.autoconfiguration.router_advertisements = false;
        assert_eq!(answers(&network, &router_solicitation(GUEST_LINK_LOCAL, &[])), Ok(Vec::new()));
    }

    #[test]
    fn arp_of_other_hardware_or_protocols_is_refused() {
        for (at, value) in [(1, 6), (2, 0x86), (4, 5), (5, 3)] {
            let mut request = fixture::arp_request("10.0.2.100", "10.0.2.2");
            request[at] = value;
            assert_eq!(arp_answers(&request), Err(DropReason::Unsupported), "byte {at}");
        }
    }

    #[test]
    fn neighbors_learn_the_gateways_station() {
        for target in ["fd00::2", "fd00::3", "fe80::2"] {
            let sent = ndp_answer(&solicitation(GUEST_V6, target, &SOURCE_OPTION)).expect("an answer");
            assert_eq!(sent.to_mac, GUEST_MAC);
            assert_eq!((sent.source, sent.destination), (fixture::ip(target), fixture::ip(GUEST_V6)));
            assert_eq!(sent.message[..2], [TYPE_NEIGHBOR_ADVERTISEMENT, 0]);
            assert_eq!(sent.message[4] >> 5, 0b111, "router, solicited, override");
            assert_eq!(sent.message[8..24], octets(target));
            assert_eq!(sent.message[24..], [2, 1, 0x52, 0x55, 0x0a, 0, 2, 2]);
        }
    }

    #[test]
    fn duplicate_address_detection_is_answered_to_all_nodes() {
        let sent = ndp_answer(&solicitation("::", "fd00::2", &[])).expect("an answer");
        assert_eq!(sent.to_mac, ALL_NODES_MAC);
        assert_eq!(sent.destination, IpAddr::from(ALL_NODES));
        assert_eq!(sent.message[4] >> 5, 0b101, "router and override, not solicited");
    }

    #[test]
    fn the_guests_own_addresses_are_its_own() {
        for target in [GUEST_V6, "fd00::4", "fe80::1", "2001:db8::1"] {
            assert!(ndp_answer(&solicitation("::", target, &[])).is_none());
        }
    }

    #[test]
    fn invalid_solicitations_are_dropped() {
        let good = solicitation(GUEST_V6, "fd00::2", &SOURCE_OPTION);
        let mut hop = good.clone();
        hop.hop_limit = 254;
        let mut code = good.clone();
        code.message[1] = 1;
        let mut short = good.clone();
        short.message.truncate(20);
        let mut group = good.clone();
        group.message[8] = 0xff;
        let mut empty_option = good.clone();
        empty_option.message[25] = 0;
        let mut cut_option = good.clone();
        cut_option.message[25] = 2;
        let mut unicast_probe = solicitation("::", "fd00::2", &[]);
        unicast_probe.destination = "fd00::2";
        let told_source = solicitation("::", "fd00::2", &SOURCE_OPTION);
        for bad in [hop, code, short, group, empty_option, cut_option, unicast_probe, told_source] {
            assert_eq!(exchange(&bad), Err(DropReason::Malformed), "{bad:?}");
        }
        let from_group = solicitation("ff02::1", "fd00::2", &[]);
        assert_eq!(exchange(&from_group), Err(DropReason::BadSource));
    }

    #[test]
    fn a_router_solicitation_brings_prefix_mtu_and_dns() {
        let sent = ndp_answer(&router_solicitation(GUEST_LINK_LOCAL, &SOURCE_OPTION)).expect("an answer");
        assert_eq!((sent.source, sent.destination), (LINK_LOCAL.into(), fixture::ip(GUEST_LINK_LOCAL)));
        assert_eq!(sent.message[..2], [TYPE_ROUTER_ADVERTISEMENT, 0]);
        assert_eq!(sent.message[4..8], [64, 0x40, 0xff, 0xff], "hop limit, O flag, lifetime");
        let (options, rdnss) = sent.message[16..].split_at(48);
        assert_eq!(options[..8], [1, 1, 0x52, 0x55, 0x0a, 0, 2, 2]);
        assert_eq!(options[8..16], [5, 1, 0, 0, 0, 0, 0x05, 0xdc]);
        let prefix = PrefixInformation::from_slice(&options[16..]).expect("a prefix");
        assert_eq!((prefix.prefix_length, prefix.prefix), (64, octets("fd00::")));
        assert!(prefix.on_link && prefix.autonomous_address_configuration);
        assert_eq!((prefix.valid_lifetime, prefix.preferred_lifetime), (u32::MAX, u32::MAX));
        assert_eq!(rdnss[..8], [25, 3, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(rdnss[8..], octets("fd00::3"));
    }

    #[test]
    fn a_router_advertisement_names_all_servers_and_domains() {
        let mut network = fixture::network();
        let servers = ["2001:db8::53", "192.0.2.53", "2001:db8::54"];
        network.advertised.servers = Some(servers.map(fixture::ip).to_vec());
        network.advertised.search.push("example.org").expect("a domain");
        let frames = answers(&network, &router_solicitation(GUEST_LINK_LOCAL, &[])).expect("valid");
        let message = parse_answer(&frames[0]).message;
        let (rdnss, dnssl) = message[64..].split_at(40);
        assert_eq!(rdnss[..8], [25, 5, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(rdnss[8..24], octets("2001:db8::53"));
        assert_eq!(rdnss[24..], octets("2001:db8::54"));
        assert_eq!(dnssl, *b"\x1f\x03\0\0\xff\xff\xff\xff\x07example\x03org\0\0\0\0");
        network.advertised = Advertised { servers: Some(Vec::new()), ..Advertised::default() };
        let frames = answers(&network, &router_solicitation(GUEST_LINK_LOCAL, &[])).expect("valid");
        assert_eq!(parse_answer(&frames[0]).message.len(), 64, "nothing about names");
    }

    #[test]
    fn a_router_solicitation_without_a_source_is_answered_to_all_nodes() {
        let sent = ndp_answer(&router_solicitation("::", &[])).expect("an answer");
        assert_eq!((sent.to_mac, sent.destination), (ALL_NODES_MAC, ALL_NODES.into()));
        let told_source = router_solicitation("::", &SOURCE_OPTION);
        assert_eq!(exchange(&told_source), Err(DropReason::Malformed));
    }

    #[test]
    fn autoconfiguration_is_offered_only_where_it_works() {
        let mut network = fixture::network();
        network.ipv6 = Ipv6Plan::new("fd00::/96".parse().expect("a prefix"));
        let frames = answers(&network, &router_solicitation(GUEST_LINK_LOCAL, &[])).expect("valid");
        let message = parse_answer(&frames[0]).message;
        assert_eq!(message[32..36], [3, 4, 96, 0x80], "on link, not autonomous");
    }

    #[test]
    fn what_guests_advertise_is_ignored() {
        for kind in [TYPE_ROUTER_ADVERTISEMENT, TYPE_NEIGHBOR_ADVERTISEMENT, TYPE_REDIRECT_MESSAGE] {
            let mut message = solicitation(GUEST_V6, "fd00::2", &[]);
            message.message[0] = kind;
            assert_eq!(exchange(&message), Ok(Vec::new()));
        }
        let mut other = solicitation(GUEST_V6, "fd00::2", &[]);
        other.message[0] = 143;
        assert_eq!(exchange(&other), Err(DropReason::Unsupported));
    }

    #[test]
    fn without_ipv6_nobody_answers() {
        let mut network = fixture::network();
        network.ipv6 = None;
        let request = solicitation(GUEST_V6, "fd00::2", &[]);
        assert_eq!(answers(&network, &request), Err(DropReason::Unsupported));
    }

    #[test]
    fn hostile_messages_do_no_harm() {
        for bytes in fixture::mutations(&fixture::arp_request("10.0.2.100", "10.0.2.2")) {
            drop(arp_answers(&bytes));
        }
        for request in
            [solicitation(GUEST_V6, "fd00::2", &SOURCE_OPTION), router_solicitation("::", &SOURCE_OPTION)]
        {
            for bytes in fixture::mutations(&request.message) {
                let mut mutated = request.clone();
                mutated.message = bytes;
                drop(exchange(&mutated));
            }
        }
    }

    #[derive(Clone, Debug)]
    struct Request {
        source: &'static str,
        destination: &'static str,
        hop_limit: u8,
        message: Vec<u8>,
    }

    struct Answer {
        to_mac: MacAddr,
        source: IpAddr,
        destination: IpAddr,
        message: Vec<u8>,
    }

    fn solicitation(source: &'static str, target: &str, options: &[u8]) -> Request {
        let mut message = vec![TYPE_NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(octets(target));
        message.extend(options);
        Request { source, destination: "ff02::1:ff00:2", hop_limit: 255, message }
    }

    fn router_solicitation(source: &'static str, options: &[u8]) -> Request {
        let mut message = vec![TYPE_ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        message.extend(options);
        Request { source, destination: "ff02::2", hop_limit: 255, message }
    }

    fn ndp_answer(request: &Request) -> Option<Answer> {
        let frames = exchange(request).expect("a valid request");
        assert!(frames.len() < 2);
        frames.first().map(|frame| parse_answer(frame))
    }

    fn parse_answer(frame: &[u8]) -> Answer {
        let frame = EthernetFrame::parse(frame).expect("a frame");
        let ip = fixture::parse(frame.payload).expect("a packet");
        assert!(ip.transport_checksum_is_valid());
        assert_eq!(ip.hop_limit, 255);
        Answer {
            to_mac: frame.destination,
            source: ip.source,
            destination: ip.destination,
            message: ip.payload().to_vec(),
        }
    }

    fn exchange(request: &Request) -> Result<Vec<Vec<u8>>, DropReason> {
        answers(&fixture::network(), request)
    }

    fn answers(network: &Network, request: &Request) -> Result<Vec<Vec<u8>>, DropReason> {
        let ip = IpPacket {
            source: fixture::ip(request.source),
            destination: fixture::ip(request.destination),
            hop_limit: request.hop_limit,
            dont_fragment: true,
            protocol: IpProtocol::Icmpv6,
            fragment: None,
            bytes: &request.message,
            header_bytes: 0,
        };
        let mut outbox = Outbox::new();
        ndp(&fixture::ethernet(1500), network, &mut outbox, &ip)?;
        Ok(fixture::frames(&mut outbox))
    }

    fn arp_answers(request: &[u8]) -> Result<Vec<Vec<u8>>, DropReason> {
        let mut outbox = Outbox::new();
        arp(&fixture::ethernet(1500), &fixture::network(), &mut outbox, request)?;
        Ok(fixture::frames(&mut outbox))
    }

    fn read_arp(payload: &[u8]) -> ArpEthIpv4Packet {
        let packet = ArpPacketSlice::from_slice(payload).expect("an ARP packet");
        packet.to_packet().try_eth_ipv4().expect("Ethernet and IPv4")
    }

    fn octets(ip: &str) -> [u8; 16] {
        match fixture::ip(ip) {
            IpAddr::V6(ip) => ip.octets(),
            IpAddr::V4(_) => [0; 16],
        }
    }
}
