//! ICMP and ICMPv6 towards the guest: the gateway's own errors, errors that the host met, echo replies.
//!
//! No error is ever sent about another error, about a fragment other than the first, or about a packet that
//! was not from one station to one station (RFC 1122 section 3.2.2, RFC 4443 section 2.4 (e)). An error quotes
//! as much of its cause as fits into 576 bytes (RFC 1812 section 4.3.2.3) or, with IPv6, into 1280 (RFC 4443
//! section 2.4 (c)). Redirects and the obsolete source quench are never passed on.

use std::net::{IpAddr, Ipv4Addr};

use etherparse::{icmpv4, icmpv6};
use smoltcp::wire::{IpProtocol, checksum};

use super::packet::{Ethernet, IpHeader, IpPacket, pseudo_header};
use super::{Family, Outbox};

/// Hop limit of what the gateway sends on its own account (the IANA default TTL).
pub const HOP_LIMIT: u8 = 64;

/// Type, code, checksum and the four bytes whose meaning depends on the type.
const HEADER_BYTES: usize = 8;
/// Largest ICMPv4 error, its IP header included.
const MAX_V4_ERROR_BYTES: usize = 576;
/// Largest ICMPv6 error, its IP header included.
const MAX_V6_ERROR_BYTES: usize = 1280;

/// Why a packet went no further, in the terms of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No route to the destination's network.
    Network,
    /// The destination does not answer on its link.
    Host,
    /// Nobody listens on the port.
    Port,
    /// A rule forbids it.
    Prohibited,
    /// Larger than the next link carries, and not to be fragmented.
    TooBig {
        /// Largest packet of that link, in bytes.
        mtu: u16,
    },
    /// The hop limit was used up.
    HopLimit,
}

/// The header of an ICMP message of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) code: u8,
    /// Bytes 4 to 7.
    pub(super) rest: [u8; 4],
}

impl Header {
    const fn new(kind: u8, code: u8) -> Self {
        Self { kind, code, rest: [0; 4] }
    }

    const fn rest(self, rest: [u8; 4]) -> Self {
        Self { rest, ..self }
    }
}

impl Unreachable {
    /// RFC 792, RFC 1812 section 5.2.7.1 (prohibited), RFC 1191 section 4 (MTU).
    fn v4(self) -> Header {
        use icmpv4::*;
        match self {
            Self::Network => Header::new(TYPE_DEST_UNREACH, CODE_DST_UNREACH_NET),
            Self::Host => Header::new(TYPE_DEST_UNREACH, CODE_DST_UNREACH_HOST),
            Self::Port => Header::new(TYPE_DEST_UNREACH, CODE_DST_UNREACH_PORT),
            Self::Prohibited => Header::new(TYPE_DEST_UNREACH, CODE_DST_UNREACH_FILTER_PROHIB),
            Self::TooBig { mtu } => need_fragmentation(mtu.into()),
            Self::HopLimit => Header::new(TYPE_TIME_EXCEEDED, CODE_TIME_EXCEEDED_TTL_EXCEEDED_IN_TRANSIT),
        }
    }

    /// RFC 4443 section 3.
    fn v6(self) -> Header {
        use icmpv6::*;
        match self {
            Self::Network => Header::new(TYPE_DST_UNREACH, CODE_DST_UNREACH_NO_ROUTE),
            Self::Host => Header::new(TYPE_DST_UNREACH, CODE_DST_UNREACH_ADDR),
            Self::Port => Header::new(TYPE_DST_UNREACH, CODE_DST_UNREACH_PORT),
            Self::Prohibited => Header::new(TYPE_DST_UNREACH, CODE_DST_UNREACH_PROHIBITED),
            Self::TooBig { mtu } => too_big(mtu.into()),
            Self::HopLimit => Header::new(TYPE_TIME_EXCEEDED, CODE_TIME_EXCEEDED_HOP_LIMIT_EXCEEDED),
        }
    }
}

/// Tells the guest at `to` that its packet `original` went no further, in the name of `from`.
///
/// `original` is the whole IP packet, with right lengths and, for IPv4, a right header checksum. `false` if no
/// error may be sent about it, the families differ or the outbox is full.
pub fn error(
    ethernet: &Ethernet,
    outbox: &mut Outbox,
    from: IpAddr,
    original: &[u8],
    to: IpAddr,
    what: Unreachable,
) -> bool {
    let header = match Family::of(from) {
        Family::V4 => what.v4(),
        Family::V6 => what.v6(),
    };
    match quotable(original) {
        Some(_) => report(ethernet, outbox, from, to, header, original),
        None => false,
    }
}

/// Passes an error that the host met on to the guest at `to`, around the guest's packet `original` as
/// [`error`] takes it.
///
/// `kind`, `code` and `info` (the next hop's MTU, or the pointer of a parameter problem) are those of `from`'s
/// family. If the guest speaks the other one they are translated (RFC 7915 sections 4.2 and 5.2), and the error
/// comes in the name of `original`'s destination, as `from` has no address that the guest could be shown.
/// `false` also if `kind` is no error or has no translation.
#[expect(clippy::too_many_arguments, reason = "the fields of one ICMP error")]
pub fn relay(
    ethernet: &Ethernet,
    outbox: &mut Outbox,
    from: IpAddr,
    kind: u8,
    code: u8,
    info: u32,
    to: IpAddr,
    original: &[u8],
) -> bool {
    let Some(cause) = quotable(original) else {
        return false;
    };
    let header = match (Family::of(from), Family::of(to)) {
        (Family::V4, Family::V4) => error_v4(kind, code, info),
        (Family::V6, Family::V6) => error_v6(kind, code, info),
        (Family::V4, Family::V6) => translated_to_v6(kind, code, info),
        (Family::V6, Family::V4) => translated_to_v4(kind, code, info),
    };
    let from = if Family::of(from) == Family::of(to) { from } else { cause.destination };
    header.is_some_and(|header| report(ethernet, outbox, from, to, header, original))
}

/// Answers an echo request to one of the gateway's own addresses (RFC 792, RFC 4443 section 4.2); the checksum
/// of `ip` has been verified. `false` if it is none, came from no single station, or the outbox is full.
pub fn echo_reply(ethernet: &Ethernet, outbox: &mut Outbox, ip: &IpPacket<'_>) -> bool {
    let Some((&[kind, 0, _, _, r0, r1, r2, r3], body)) = ip.payload().split_first_chunk() else {
        return false;
    };
    let answer = match (ip.protocol, kind) {
        (IpProtocol::Icmp, icmpv4::TYPE_ECHO_REQUEST) => icmpv4::TYPE_ECHO_REPLY,
        (IpProtocol::Icmpv6, icmpv6::TYPE_ECHO_REQUEST) => icmpv6::TYPE_ECHO_REPLY,
        _ => return false,
    };
    if !is_one_station(ip.source) || !is_one_station(ip.destination) {
        return false;
    }
    let header = Header::new(answer, 0).rest([r0, r1, r2, r3]);
    send(ethernet, outbox, ip.destination, ip.source, HOP_LIMIT, header, body)
}

/// Sends one ICMP message of the addresses' family, its checksum complete.
pub(super) fn send(
    ethernet: &Ethernet,
    outbox: &mut Outbox,
    from: IpAddr,
    to: IpAddr,
    hop_limit: u8,
    header: Header,
    body: &[u8],
) -> bool {
    let (protocol, pseudo) = match (from, to) {
        (IpAddr::V4(_), IpAddr::V4(_)) => (IpProtocol::Icmp, 0),
        (IpAddr::V6(_), IpAddr::V6(_)) => {
            let Ok(len) = u32::try_from(HEADER_BYTES + body.len()) else {
                return false;
            };
            (IpProtocol::Icmpv6, pseudo_header(from, to, IpProtocol::Icmpv6, len))
        }
        _ => return false,
    };
    let [r0, r1, r2, r3] = header.rest;
    let mut head = [header.kind, header.code, 0, 0, r0, r1, r2, r3];
    let sum = !checksum::combine(&[pseudo, checksum::data(&head), checksum::data(body)]);
    head[2..4].copy_from_slice(&sum.to_be_bytes());
    let ip = IpHeader { source: from, destination: to, hop_limit, protocol };
    ethernet.ip(outbox, ip, &head, body)
}

fn report(
    ethernet: &Ethernet,
    outbox: &mut Outbox,
    from: IpAddr,
    to: IpAddr,
    header: Header,
    original: &[u8],
) -> bool {
    let (limit, ip_header) = match Family::of(from) {
        Family::V4 => (MAX_V4_ERROR_BYTES, super::packet::IPV4_HEADER_BYTES),
        Family::V6 => (MAX_V6_ERROR_BYTES, super::packet::IPV6_HEADER_BYTES),
    };
    let quote = original.len().min(limit - ip_header - HEADER_BYTES);
    send(ethernet, outbox, from, to, HOP_LIMIT, header, &original[..quote])
}

/// The packet, if an error may be sent about it.
fn quotable(original: &[u8]) -> Option<IpPacket<'_>> {
    let ip = match original.first()? >> 4 {
        4 => IpPacket::parse_v4(original),
        _ => IpPacket::parse_v6(original),
    }
    .ok()?;
    let is_later_fragment = ip.fragment.is_some_and(|fragment| fragment.offset_bytes != 0);
    let addressed = is_one_station(ip.source) && is_one_station(ip.destination);
    (addressed && !is_later_fragment && !is_error(&ip)).then_some(ip)
}

/// Whether the packet is an ICMP error itself, or an ICMP message too short to tell.
fn is_error(ip: &IpPacket<'_>) -> bool {
    let kind = ip.payload().first();
    match ip.protocol {
        IpProtocol::Icmp => kind.is_none_or(|kind| {
            matches!(
                *kind,
                icmpv4::TYPE_DEST_UNREACH
                    | icmpv4::TYPE_SOURCE_QUENCH
                    | icmpv4::TYPE_REDIRECT
                    | icmpv4::TYPE_TIME_EXCEEDED
                    | icmpv4::TYPE_PARAMETER_PROBLEM
            )
        }),
        // The high bit tells informational messages from errors (RFC 4443 section 2.1).
        IpProtocol::Icmpv6 => kind.is_none_or(|kind| *kind < 128 || *kind == icmpv6::TYPE_REDIRECT_MESSAGE),
        _ => false,
    }
}

/// Whether `ip` can be one station's: neither a group, nor all, nor nobody.
pub(super) fn is_one_station(ip: IpAddr) -> bool {
    let is_broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(ip.is_unspecified() || ip.is_multicast() || is_broadcast)
}

fn need_fragmentation(mtu: u32) -> Header {
    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes();
    Header::new(icmpv4::TYPE_DEST_UNREACH, icmpv4::CODE_DST_UNREACH_NEED_FRAG).rest([0, 0, mtu[0], mtu[1]])
}

fn too_big(mtu: u32) -> Header {
    Header::new(icmpv6::TYPE_PACKET_TOO_BIG, 0).rest(mtu.to_be_bytes())
}

fn error_v4(kind: u8, code: u8, info: u32) -> Option<Header> {
    match (kind, code) {
        (icmpv4::TYPE_DEST_UNREACH, icmpv4::CODE_DST_UNREACH_NEED_FRAG) => Some(need_fragmentation(info)),
        (icmpv4::TYPE_DEST_UNREACH | icmpv4::TYPE_TIME_EXCEEDED, _) => Some(Header::new(kind, code)),
        (icmpv4::TYPE_PARAMETER_PROBLEM, _) => {
            let pointer = u8::try_from(info).unwrap_or(0);
            Some(Header::new(kind, code).rest([pointer, 0, 0, 0]))
        }
        _ => None,
    }
}

fn error_v6(kind: u8, code: u8, info: u32) -> Option<Header> {
    match kind {
        icmpv6::TYPE_DST_UNREACH | icmpv6::TYPE_TIME_EXCEEDED => Some(Header::new(kind, code)),
        icmpv6::TYPE_PACKET_TOO_BIG => Some(too_big(info)),
        icmpv6::TYPE_PARAMETER_PROBLEM => Some(Header::new(kind, code).rest(info.to_be_bytes())),
        _ => None,
    }
}

/// RFC 7915 section 4.2, error messages.
fn translated_to_v6(kind: u8, code: u8, info: u32) -> Option<Header> {
    use icmpv6::*;
    match (kind, code) {
        (icmpv4::TYPE_DEST_UNREACH, 0 | 1 | 5 | 6 | 7 | 8 | 11 | 12) => {
            Some(Header::new(TYPE_DST_UNREACH, CODE_DST_UNREACH_NO_ROUTE))
        }
        (icmpv4::TYPE_DEST_UNREACH, icmpv4::CODE_DST_UNREACH_PROTOCOL) => {
            let next_header_field = 6u32.to_be_bytes();
            let header = Header::new(TYPE_PARAMETER_PROBLEM, CODE_PARAM_PROBLEM_UNRECOG_NEXT_HEADER);
            Some(header.rest(next_header_field))
        }
        (icmpv4::TYPE_DEST_UNREACH, icmpv4::CODE_DST_UNREACH_PORT) => {
            Some(Header::new(TYPE_DST_UNREACH, CODE_DST_UNREACH_PORT))
        }
        (icmpv4::TYPE_DEST_UNREACH, icmpv4::CODE_DST_UNREACH_NEED_FRAG) => {
            // The header grows by 20 bytes, and no IPv6 link carries less than 1280.
            Some(too_big(info.saturating_add(20).max(1280)))
        }
        (icmpv4::TYPE_DEST_UNREACH, 9 | 10 | 13 | 15) => {
            Some(Header::new(TYPE_DST_UNREACH, CODE_DST_UNREACH_PROHIBITED))
        }
        (icmpv4::TYPE_TIME_EXCEEDED, _) => Some(Header::new(TYPE_TIME_EXCEEDED, code)),
        (icmpv4::TYPE_PARAMETER_PROBLEM, 0 | 2) => {
            let pointer = pointer_to_v6(info)?;
            let header = Header::new(TYPE_PARAMETER_PROBLEM, CODE_PARAM_PROBLEM_ERR_HEADER_FIELD);
            Some(header.rest(pointer.to_be_bytes()))
        }
        _ => None,
    }
}

/// RFC 7915 section 5.2, error messages.
fn translated_to_v4(kind: u8, code: u8, info: u32) -> Option<Header> {
    use icmpv4::*;
    match (kind, code) {
        (icmpv6::TYPE_DST_UNREACH, 0 | 2 | 3) => Some(Header::new(TYPE_DEST_UNREACH, CODE_DST_UNREACH_HOST)),
        (icmpv6::TYPE_DST_UNREACH, icmpv6::CODE_DST_UNREACH_PROHIBITED) => {
            Some(Header::new(TYPE_DEST_UNREACH, CODE_DST_UNREACH_HOST_PROHIB))
        }
        (icmpv6::TYPE_DST_UNREACH, icmpv6::CODE_DST_UNREACH_PORT) => {
            Some(Header::new(TYPE_DEST_UNREACH, CODE_DST_UNREACH_PORT))
        }
        // The header shrinks by 20 bytes.
        (icmpv6::TYPE_PACKET_TOO_BIG, _) => Some(need_fragmentation(info.saturating_sub(20))),
        (icmpv6::TYPE_TIME_EXCEEDED, _) => Some(Header::new(TYPE_TIME_EXCEEDED, code)),
        (icmpv6::TYPE_PARAMETER_PROBLEM, icmpv6::CODE_PARAM_PROBLEM_ERR_HEADER_FIELD) => {
            let pointer = pointer_to_v4(info)?;
            Some(Header::new(TYPE_PARAMETER_PROBLEM, 0).rest([pointer, 0, 0, 0]))
        }
        (icmpv6::TYPE_PARAMETER_PROBLEM, icmpv6::CODE_PARAM_PROBLEM_UNRECOG_NEXT_HEADER) => {
            Some(Header::new(TYPE_DEST_UNREACH, CODE_DST_UNREACH_PROTOCOL))
        }
        _ => None,
    }
}

/// The IPv6 header field that corresponds to byte `pointer` of an IPv4 header (RFC 7915 figure 3).
fn pointer_to_v6(pointer: u32) -> Option<u32> {
    match pointer {
        0 | 1 => Some(pointer),
        2 | 3 => Some(4),
        8 => Some(7),
        9 => Some(6),
        12..=15 => Some(8),
        16..=19 => Some(24),
        _ => None,
    }
}

/// The IPv4 header field that corresponds to byte `pointer` of an IPv6 header (RFC 7915 figure 6).
fn pointer_to_v4(pointer: u32) -> Option<u8> {
    match pointer {
        0 => Some(0),
        1 => Some(1),
        4 | 5 => Some(2),
        6 => Some(9),
        7 => Some(8),
        8..=23 => Some(12),
        24..=39 => Some(16),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::fixture::{self, Datagram, GUEST_V4, GUEST_V6, REMOTE_V4, REMOTE_V6};

    const ROUTER_V4: &str = "10.0.2.2";
    const ROUTER_V6: &str = "fd00::2";

    #[test]
    fn every_reason_has_its_type_and_code_in_both_families() {
        let table = [
            (Unreachable::Network, (3, 0), (1, 0)),
            (Unreachable::Host, (3, 1), (1, 3)),
            (Unreachable::Port, (3, 3), (1, 4)),
            (Unreachable::Prohibited, (3, 13), (1, 1)),
            (Unreachable::TooBig { mtu: 1400 }, (3, 4), (2, 0)),
            (Unreachable::HopLimit, (11, 0), (3, 0)),
        ];
        for (what, v4, v6) in table {
            let original = fixture::udp(GUEST_V4, REMOTE_V4, b"hello");
            let sent = error_about(&original, ROUTER_V4, GUEST_V4, what).expect("an error");
            assert_eq!((sent.header.kind, sent.header.code), v4, "{what:?}");
            assert_eq!(sent.body, original);
            let original = fixture::udp(GUEST_V6, REMOTE_V6, b"hello");
            let sent = error_about(&original, ROUTER_V6, GUEST_V6, what).expect("an error");
            assert_eq!((sent.header.kind, sent.header.code), v6, "{what:?}");
            assert_eq!(sent.body, original);
        }
    }

    #[test]
    fn the_mtu_is_where_each_family_looks_for_it() {
        let what = Unreachable::TooBig { mtu: 1400 };
        let original = fixture::udp(GUEST_V4, REMOTE_V4, b"hello");
        let sent = error_about(&original, ROUTER_V4, GUEST_V4, what).expect("an error");
        assert_eq!(sent.header.rest, [0, 0, 0x05, 0x78]);
        let original = fixture::udp(GUEST_V6, REMOTE_V6, b"hello");
        let sent = error_about(&original, ROUTER_V6, GUEST_V6, what).expect("an error");
        assert_eq!(sent.header.rest, [0, 0, 0x05, 0x78]);
    }

    #[test]
    fn the_quote_is_cut_to_the_smallest_mtu() {
        let original = fixture::udp(GUEST_V4, REMOTE_V4, &[7; 3000]);
        let sent = error_about(&original, ROUTER_V4, GUEST_V4, Unreachable::Port).expect("an error");
        assert_eq!(sent.packet_bytes, 576);
        assert_eq!(sent.body, original[..548]);
        let original = fixture::udp(GUEST_V6, REMOTE_V6, &[7; 3000]);
        let sent = error_about(&original, ROUTER_V6, GUEST_V6, Unreachable::Port).expect("an error");
        assert_eq!(sent.packet_bytes, 1280);
        assert_eq!(sent.body, original[..1232]);
    }

    #[test]
    fn no_error_about_an_error() {
        for kind in [3, 4, 5, 11, 12] {
            let original = icmp_packet(GUEST_V4, REMOTE_V4, Header::new(kind, 0), b"quote");
            assert!(error_about(&original, ROUTER_V4, GUEST_V4, Unreachable::Host).is_none());
        }
        for kind in [1, 2, 3, 4, 100, 127, 137] {
            let original = icmp_packet(GUEST_V6, REMOTE_V6, Header::new(kind, 0), b"quote");
            assert!(error_about(&original, ROUTER_V6, GUEST_V6, Unreachable::Host).is_none());
        }
        let ping = icmp_packet(GUEST_V4, REMOTE_V4, Header::new(8, 0), b"ping");
        assert!(error_about(&ping, ROUTER_V4, GUEST_V4, Unreachable::Host).is_some());
    }

    #[test]
    fn no_error_about_groups_or_unspecified_sources() {
        let refused = [
            ("0.0.0.0", REMOTE_V4),
            ("255.255.255.255", REMOTE_V4),
            (GUEST_V4, "224.0.0.251"),
            (GUEST_V4, "255.255.255.255"),
            ("::", REMOTE_V6),
            ("ff02::1", REMOTE_V6),
            (GUEST_V6, "ff02::fb"),
        ];
        for (source, destination) in refused {
            let original = fixture::udp(source, destination, b"hello");
            let (from, to) = if source.contains(':') { (ROUTER_V6, GUEST_V6) } else { (ROUTER_V4, GUEST_V4) };
            assert!(
                error_about(&original, from, to, Unreachable::Port).is_none(),
                "{source} -> {destination}"
            );
        }
    }

    #[test]
    fn only_the_first_fragment_gets_an_error() {
        for (guest, remote, router) in [(GUEST_V4, REMOTE_V4, ROUTER_V4), (GUEST_V6, REMOTE_V6, ROUTER_V6)] {
            let fragments = fixture::udp_fragments(guest, remote, &[1; 4000], 1500);
            assert!(error_about(&fragments[0], router, guest, Unreachable::Host).is_some());
            assert!(error_about(&fragments[1], router, guest, Unreachable::Host).is_none());
        }
    }

    #[test]
    fn errors_of_the_same_family_pass_unchanged() {
        let original = fixture::udp(GUEST_V4, REMOTE_V4, b"hello");
        let sent = relayed("192.0.2.1", (11, 0, 0), GUEST_V4, &original).expect("an error");
        assert_eq!(sent.source, fixture::ip("192.0.2.1"));
        assert_eq!(sent.header, Header::new(11, 0));
        assert_eq!(sent.body, original);
        let sent = relayed("192.0.2.1", (3, 4, 1280), GUEST_V4, &original).expect("an error");
        assert_eq!(sent.header, Header::new(3, 4).rest([0, 0, 5, 0]));
        let sent = relayed("192.0.2.1", (12, 0, 9), GUEST_V4, &original).expect("an error");
        assert_eq!(sent.header, Header::new(12, 0).rest([9, 0, 0, 0]));
        let original = fixture::udp(GUEST_V6, REMOTE_V6, b"hello");
        let sent = relayed("2001:db8::9", (2, 0, 1300), GUEST_V6, &original).expect("an error");
        assert_eq!(sent.header, Header::new(2, 0).rest(1300u32.to_be_bytes()));
    }

    #[test]
    fn what_is_no_error_is_not_relayed() {
        let v4 = fixture::udp(GUEST_V4, REMOTE_V4, b"hello");
        let v6 = fixture::udp(GUEST_V6, REMOTE_V6, b"hello");
        for kind in (0..=255).filter(|kind| ![3, 11, 12].contains(kind)) {
            assert!(relayed("192.0.2.1", (kind, 0, 0), GUEST_V4, &v4).is_none());
            assert!(relayed("192.0.2.1", (kind, 0, 0), GUEST_V6, &v6).is_none());
        }
        for kind in (0..=255).filter(|kind| !(1..=4).contains(kind)) {
            assert!(relayed("2001:db8::9", (kind, 0, 0), GUEST_V6, &v6).is_none());
            assert!(relayed("2001:db8::9", (kind, 0, 0), GUEST_V4, &v4).is_none());
        }
    }

    #[test]
    fn icmpv4_errors_are_translated_for_an_ipv6_guest() {
        let table = [
            ((3, 0, 0), Some(Header::new(1, 0))),
            ((3, 1, 0), Some(Header::new(1, 0))),
            ((3, 2, 0), Some(Header::new(4, 1).rest([0, 0, 0, 6]))),
            ((3, 3, 0), Some(Header::new(1, 4))),
            ((3, 4, 1480), Some(Header::new(2, 0).rest(1500u32.to_be_bytes()))),
            ((3, 4, 0), Some(Header::new(2, 0).rest(1280u32.to_be_bytes()))),
            ((3, 9, 0), Some(Header::new(1, 1))),
            ((3, 13, 0), Some(Header::new(1, 1))),
            ((3, 14, 0), None),
            ((3, 15, 0), Some(Header::new(1, 1))),
            ((3, 16, 0), None),
            ((11, 1, 0), Some(Header::new(3, 1))),
            ((12, 0, 9), Some(Header::new(4, 0).rest([0, 0, 0, 6]))),
            ((12, 0, 6), None),
            ((12, 1, 0), None),
        ];
        let original = fixture::udp(GUEST_V6, REMOTE_V6, b"hello");
        for (met, expected) in table {
            let sent = relayed("192.0.2.1", met, GUEST_V6, &original);
            assert_eq!(sent.as_ref().map(|sent| sent.header), expected, "{met:?}");
            assert!(sent.is_none_or(|sent| sent.source == fixture::ip(REMOTE_V6)));
        }
    }

    #[test]
    fn icmpv6_errors_are_translated_for_an_ipv4_guest() {
        let table = [
            ((1, 0, 0), Some(Header::new(3, 1))),
            ((1, 1, 0), Some(Header::new(3, 10))),
            ((1, 2, 0), Some(Header::new(3, 1))),
            ((1, 3, 0), Some(Header::new(3, 1))),
            ((1, 4, 0), Some(Header::new(3, 3))),
            ((1, 5, 0), None),
            ((2, 0, 1500), Some(Header::new(3, 4).rest([0, 0, 0x05, 0xc8]))),
            ((2, 0, u32::MAX), Some(Header::new(3, 4).rest([0, 0, 0xff, 0xff]))),
            ((3, 0, 0), Some(Header::new(11, 0))),
            ((4, 0, 24), Some(Header::new(12, 0).rest([16, 0, 0, 0]))),
            ((4, 0, 2), None),
            ((4, 1, 6), Some(Header::new(3, 2))),
            ((4, 2, 0), None),
        ];
        let original = fixture::udp(GUEST_V4, REMOTE_V4, b"hello");
        for (met, expected) in table {
            let sent = relayed("2001:db8::9", met, GUEST_V4, &original);
            assert_eq!(sent.map(|sent| sent.header), expected, "{met:?}");
        }
    }

    #[test]
    fn the_gateway_answers_echo_requests() {
        for (guest, router, request, reply) in [(GUEST_V4, ROUTER_V4, 8, 0), (GUEST_V6, ROUTER_V6, 128, 129)]
        {
            let ping =
                icmp_packet(guest, router, Header::new(request, 0).rest([0x12, 0x34, 0, 1]), b"payload");
            let sent = echoed(&ping, 1500).expect("a reply");
            assert_eq!(sent.header, Header::new(reply, 0).rest([0x12, 0x34, 0, 1]));
            assert_eq!(sent.body, b"payload");
            assert_eq!((sent.source, sent.destination), (fixture::ip(router), fixture::ip(guest)));
        }
    }

    #[test]
    fn echo_requests_from_or_to_groups_are_not_answered() {
        for (source, destination) in
            [("224.0.0.1", ROUTER_V4), ("0.0.0.0", ROUTER_V4), (GUEST_V4, "255.255.255.255")]
        {
            assert!(echoed(&icmp_packet(source, destination, Header::new(8, 0), b""), 1500).is_none());
        }
        assert!(echoed(&icmp_packet(GUEST_V6, "ff02::1", Header::new(128, 0), b""), 1500).is_none());
        assert!(echoed(&icmp_packet(GUEST_V4, ROUTER_V4, Header::new(0, 0), b""), 1500).is_none());
    }

    #[test]
    fn hostile_originals_do_no_harm() {
        for original in
            [fixture::udp(GUEST_V4, REMOTE_V4, b"hello"), fixture::udp(GUEST_V6, REMOTE_V6, b"hello")]
        {
            for bytes in fixture::mutations(&original) {
                error_about(&bytes, ROUTER_V4, GUEST_V4, Unreachable::Port);
                error_about(&bytes, ROUTER_V6, GUEST_V6, Unreachable::Port);
                relayed("192.0.2.1", (3, 4, 9), GUEST_V6, &bytes);
            }
        }
        let ping = icmp_packet(GUEST_V6, ROUTER_V6, Header::new(128, 0), b"payload");
        for bytes in fixture::mutations(&ping) {
            if fixture::parse(&bytes).is_some() {
                echoed(&bytes, 1500);
            }
        }
    }

    struct Sent {
        header: Header,
        body: Vec<u8>,
        source: IpAddr,
        destination: IpAddr,
        packet_bytes: usize,
    }

    fn error_about(original: &[u8], from: &str, to: &str, what: Unreachable) -> Option<Sent> {
        let mut outbox = Outbox::new();
        let (from, to) = (fixture::ip(from), fixture::ip(to));
        let sent = error(&fixture::ethernet(1500), &mut outbox, from, original, to, what);
        only_message(&mut outbox, sent)
    }

    fn relayed(from: &str, (kind, code, info): (u8, u8, u32), to: &str, original: &[u8]) -> Option<Sent> {
        let mut outbox = Outbox::new();
        let (from, to) = (fixture::ip(from), fixture::ip(to));
        let sent = relay(&fixture::ethernet(1500), &mut outbox, from, kind, code, info, to, original);
        only_message(&mut outbox, sent)
    }

    fn echoed(request: &[u8], mtu: u16) -> Option<Sent> {
        let mut outbox = Outbox::new();
        let ip = fixture::parse(request).expect("a packet");
        let sent = echo_reply(&fixture::ethernet(mtu), &mut outbox, &ip);
        only_message(&mut outbox, sent)
    }

    fn only_message(outbox: &mut Outbox, sent: bool) -> Option<Sent> {
        let packets = fixture::packets(outbox);
        assert_eq!(packets.len(), usize::from(sent));
        let packet = packets.first()?;
        let ip = fixture::parse(packet).expect("a packet");
        assert!(ip.transport_checksum_is_valid());
        let (&[kind, code, _, _, r0, r1, r2, r3], body) = ip.payload().split_first_chunk().expect("a header");
        Some(Sent {
            header: Header::new(kind, code).rest([r0, r1, r2, r3]),
            body: body.to_vec(),
            source: ip.source,
            destination: ip.destination,
            packet_bytes: packet.len(),
        })
    }

    fn icmp_packet(source: &str, destination: &str, header: Header, body: &[u8]) -> Datagram {
        let mut outbox = Outbox::new();
        let (source, destination) = (fixture::ip(source), fixture::ip(destination));
        assert!(send(&fixture::ethernet(65520), &mut outbox, source, destination, 64, header, body));
        fixture::packets(&mut outbox).remove(0)
    }
}
