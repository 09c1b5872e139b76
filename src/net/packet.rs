//! Frames taken apart once, and put together.
//!
//! Taking apart: [`EthernetFrame`], then [`IpPacket`]; both only borrow. Putting together: [`Ethernet`] says
//! from where to where on the link, and writes IP packets, fragmented where the MTU asks for it, straight into
//! the [`Outbox`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use smoltcp::wire::checksum;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet};

use super::outbox::{ETHERNET_BYTES, may_follow};
use super::{DropReason, Offload, Outbox, PortId, TxOffload};
use crate::config::MacAddr;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Length of an IPv4 header without options.
pub const IPV4_HEADER_BYTES: usize = 20;
/// Length of the fixed IPv6 header.
pub const IPV6_HEADER_BYTES: usize = 40;
/// Length of a UDP header.
pub const UDP_HEADER_BYTES: usize = 8;
/// Where the checksum stands in a UDP header.
const UDP_CHECKSUM_OFFSET: usize = 6;
/// Extension headers of IPv6 that are followed in one packet.
const MAX_EXTENSION_HEADERS: usize = 8;
/// Length of the IPv6 fragment header (RFC 8200 section 4.5).
const FRAGMENT_HEADER_BYTES: usize = 8;

/// An Ethernet frame.
#[derive(Clone, Copy, Debug)]
pub struct EthernetFrame<'a> {
    /// To whom.
    pub destination: MacAddr,
    /// From whom.
    pub source: MacAddr,
    /// What the payload is.
    pub ethertype: u16,
    /// The rest, padding included.
    pub payload: &'a [u8],
}

impl<'a> EthernetFrame<'a> {
    /// Splits the header off.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let (header, payload) = bytes.split_first_chunk::<ETHERNET_BYTES>().ok_or(DropReason::Malformed)?;
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *header;
        Ok(Self {
            destination: MacAddr([d0, d1, d2, d3, d4, d5]),
            source: MacAddr([s0, s1, s2, s3, s4, s5]),
            ethertype: u16::from_be_bytes([t0, t1]),
            payload,
        })
    }
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification field.
    pub ident: u32,
    /// Offset of the payload in the whole, in bytes.
    pub offset_bytes: u16,
    /// Whether further ones follow.
    pub more: bool,
}

/// An IP packet of either version, its lengths checked.
#[derive(Clone, Copy, Debug)]
pub struct IpPacket<'a> {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// IPv4's Don't Fragment bit; always set for IPv6.
    pub dont_fragment: bool,
    /// Protocol of the payload, after IPv6's extension headers (in a fragment: after the fragment header).
    pub protocol: IpProtocol,
    /// Set if this is a fragment.
    pub fragment: Option<Fragment>,
    /// The packet without link padding.
    pub bytes: &'a [u8],
    /// Where the payload starts in `bytes`.
    pub header_bytes: usize,
}

impl<'a> IpPacket<'a> {
    /// Parses an IPv4 packet; its header checksum must be right.
    pub fn parse_v4(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let packet = Ipv4Packet::new_checked(bytes).map_err(|_| DropReason::Malformed)?;
        if packet.version() != 4 || usize::from(packet.header_len()) < IPV4_HEADER_BYTES {
            return Err(DropReason::Malformed);
        }
        if !packet.verify_checksum() {
            return Err(DropReason::Checksum);
        }
        let is_fragment = packet.more_frags() || packet.frag_offset() != 0;
        Ok(Self {
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            hop_limit: packet.hop_limit(),
            dont_fragment: packet.dont_frag(),
            protocol: packet.next_header(),
            fragment: is_fragment.then(|| Fragment {
                ident: packet.ident().into(),
                offset_bytes: packet.frag_offset(),
                more: packet.more_frags(),
            }),
            bytes: &bytes[..usize::from(packet.total_len())],
            header_bytes: usize::from(packet.header_len()),
        })
    }

    /// Parses an IPv6 packet and walks its extension headers (RFC 8200 section 4).
    pub fn parse_v6(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let packet = Ipv6Packet::new_checked(bytes).map_err(|_| DropReason::Malformed)?;
        if packet.version() != 6 {
            return Err(DropReason::Malformed);
        }
        let mut parsed = Self {
            source: packet.src_addr().into(),
            destination: packet.dst_addr().into(),
            hop_limit: packet.hop_limit(),
            dont_fragment: true,
            protocol: packet.next_header(),
            fragment: None,
            bytes: &bytes[..packet.total_len()],
            header_bytes: IPV6_HEADER_BYTES,
        };
        for _ in 0..MAX_EXTENSION_HEADERS {
            let length_unit = match parsed.protocol {
                IpProtocol::HopByHop | IpProtocol::Ipv6Route | IpProtocol::Ipv6Opts => 8,
                IpProtocol::Ipv6Frag => 0,
                _ => return Ok(parsed),
            };
            let header: &[u8; 8] = parsed.payload().first_chunk().ok_or(DropReason::Malformed)?;
            if length_unit == 0 {
                parsed.note_fragment(header);
            }
            parsed.protocol = IpProtocol::from(header[0]);
            parsed.header_bytes += 8 + usize::from(header[1]) * length_unit;
            if parsed.header_bytes > parsed.bytes.len() {
                return Err(DropReason::Malformed);
            }
            // What follows a fragment header is counted from there, extension headers included.
            if parsed.fragment.is_some() {
                return Ok(parsed);
            }
        }
        Err(DropReason::Unsupported)
    }

    /// An "atomic" fragment (offset 0, no more) is a whole packet (RFC 6946).
    fn note_fragment(&mut self, header: &[u8; 8]) {
        let [_, _, o0, o1, i0, i1, i2, i3] = *header;
        let field = u16::from_be_bytes([o0, o1]);
        let fragment = Fragment {
            ident: u32::from_be_bytes([i0, i1, i2, i3]),
            offset_bytes: field & !7,
            more: field & 1 != 0,
        };
        self.fragment = (fragment.more || fragment.offset_bytes != 0).then_some(fragment);
    }

    /// What follows the headers.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[self.header_bytes..]
    }

    /// Whether the payload's 16-bit one's complement sum, the pseudo-header included, is right.
    pub fn transport_checksum_is_valid(&self) -> bool {
        let payload = self.payload();
        let Ok(len) = u32::try_from(payload.len()) else {
            return false;
        };
        let sum = checksum::data(payload);
        match (self.source, self.destination, self.protocol) {
            (_, _, IpProtocol::Icmp) => sum == !0,
            (source, destination, protocol) => {
                let pseudo = pseudo_header(source, destination, protocol, len);
                checksum::combine(&[pseudo, sum]) == !0
            }
        }
    }
}

/// One's complement sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1), not complemented.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: IpProtocol, len: u32) -> u16 {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            checksum::pseudo_header_v4(&source, &destination, protocol, len)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            checksum::pseudo_header_v6(&source, &destination, protocol, len)
        }
        _ => 0,
    }
}

/// The header of a UDP datagram (RFC 768). `None` if the payload is too long for its length field.
pub fn udp_header(
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
) -> Option<[u8; UDP_HEADER_BYTES]> {
    let mut header = partial_udp_header(source, destination, payload.len())?;
    let sum = checksum::combine(&[checksum::data(&header), checksum::data(payload)]);
    // Zero means "no checksum" (RFC 768), so a sum that comes out as zero is sent as all ones.
    let field = if sum == !0 { !0 } else { !sum };
    header[UDP_CHECKSUM_OFFSET..].copy_from_slice(&field.to_be_bytes());
    Some(header)
}

/// The same with the pseudo-header's sum in the checksum's place, for the link to finish.
fn partial_udp_header(
    source: SocketAddr,
    destination: SocketAddr,
    payload_bytes: usize,
) -> Option<[u8; UDP_HEADER_BYTES]> {
    let udp_len = u16::try_from(UDP_HEADER_BYTES + payload_bytes).ok()?;
    let pseudo = pseudo_header(source.ip(), destination.ip(), IpProtocol::Udp, udp_len.into());
    let mut header = [0; UDP_HEADER_BYTES];
    header[..2].copy_from_slice(&source.port().to_be_bytes());
    header[2..4].copy_from_slice(&destination.port().to_be_bytes());
    header[4..6].copy_from_slice(&udp_len.to_be_bytes());
    header[UDP_CHECKSUM_OFFSET..].copy_from_slice(&pseudo.to_be_bytes());
    Some(header)
}

/// Between whom a frame goes on which link: the ends of everything written through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// The link.
    pub port: PortId,
    /// The gateway's station.
    pub from: MacAddr,
    /// The station on it.
    pub to: MacAddr,
    /// What the link finishes for us.
    pub offload: Offload,
    /// Largest IP packet on the link, in bytes.
    pub mtu: u16,
}

impl Ethernet {
    /// Sends one frame from the gateway with `len` bytes of payload, which `fill` writes whole.
    pub fn frame(
        &self,
        outbox: &mut Outbox,
        ethertype: u16,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> TxOffload,
    ) -> bool {
        outbox.frame(self.port, ETHERNET_BYTES + len, |frame| {
            self.header(frame, ethertype);
            fill(&mut frame[ETHERNET_BYTES..])
        })
    }

    /// Writes the Ethernet header to the start of `frame`.
    pub fn header(&self, frame: &mut [u8], ethertype: u16) {
        frame[..6].copy_from_slice(&self.to.0);
        frame[6..12].copy_from_slice(&self.from.0);
        frame[12..ETHERNET_BYTES].copy_from_slice(&ethertype.to_be_bytes());
    }

    /// Sends a UDP datagram, in fragments if it exceeds the MTU; the checksum of one that does not is left to a link
    /// that finishes it, and it joins the frame before it if the link cuts them apart again. `false` if it is too long
    /// for UDP, the families differ or the outbox is full.
    pub fn udp(
        &self,
        outbox: &mut Outbox,
        source: SocketAddr,
        destination: SocketAddr,
        hop_limit: u8,
        payload: &[u8],
    ) -> bool {
        let ip = IpHeader {
            source: source.ip(),
            destination: destination.ip(),
            hop_limit,
            protocol: IpProtocol::Udp,
        };
        let whole = self.carries_udp(destination, payload.len());
        if self.offload == Offload::None || !whole || source.is_ipv4() != destination.is_ipv4() {
            let header = udp_header(source, destination, payload);
            return header.is_some_and(|header| self.ip(outbox, ip, &header, payload));
        }
        let head = |payload_bytes| UdpHead::new(self, ip, (source, destination), payload_bytes);
        if self.offload == Offload::ChecksumTsoAndUso && self.join(outbox, head, payload) {
            return true;
        }
        let head = head(payload.len());
        outbox.frame(self.port, head.len + payload.len(), |frame| {
            head.write(frame);
            frame[head.len..].copy_from_slice(payload);
            TxOffload::Checksum { start: head.udp_at(), offset: UDP_CHECKSUM_OFFSET as u16 }
        })
    }

    /// Whether a UDP datagram to `destination` crosses the link in one packet.
    pub fn carries_udp(&self, destination: SocketAddr, payload_bytes: usize) -> bool {
        let header = if destination.is_ipv4() { IPV4_HEADER_BYTES } else { IPV6_HEADER_BYTES };
        header + UDP_HEADER_BYTES + payload_bytes <= usize::from(self.mtu)
    }

    /// Appends a datagram to the newest frame, if that holds datagrams of its size and with its `head`.
    fn join(&self, outbox: &mut Outbox, head: impl Fn(usize) -> UdpHead, payload: &[u8]) -> bool {
        let Some((port, frame, offload)) = outbox.newest_frame() else { return false };
        let Some((header_bytes, datagram_bytes)) = datagrams_in(frame, offload) else { return false };
        let whole = frame.len() - header_bytes;
        if port != self.port || !may_follow(whole, datagram_bytes, payload.len()) {
            return false;
        }
        let head = head(whole + payload.len());
        if head.len != header_bytes || !head.is_same_way(frame) {
            return false;
        }
        outbox.extend_frame(payload, |frame| {
            head.write(frame);
            TxOffload::Uso {
                header_bytes: head.len as u16,
                datagram_bytes: datagram_bytes as u16,
                start: head.udp_at(),
            }
        })
    }

    /// Sends an IP packet whose payload is `head` followed by `tail`, in fragments if it exceeds the MTU. `head`
    /// is at most a few dozen bytes and stays in the first fragment. `false` if it is too long for IP, the
    /// families differ or the outbox is full.
    pub fn ip(&self, outbox: &mut Outbox, ip: IpHeader, head: &[u8], tail: &[u8]) -> bool {
        if ip.source.is_ipv4() != ip.destination.is_ipv4() {
            return false;
        }
        let len = head.len() + tail.len();
        if ip.bytes() + len <= usize::from(self.mtu) {
            return self.packet(outbox, ip, None, head, tail, TxOffload::None);
        }
        let overhead = if ip.source.is_ipv4() { 0 } else { FRAGMENT_HEADER_BYTES };
        let chunk = (usize::from(self.mtu) - ip.bytes() - overhead) & !7;
        // The identification only has to differ among packets in flight between the same two addresses.
        let ident = u32::from(checksum::data(head)) ^ (u32::from(checksum::data(tail)) << 8);
        let mut offset = 0;
        while offset < len {
            let end = (offset + chunk).min(len);
            let (Ok(offset_bytes), more) = (u16::try_from(offset), end < len) else {
                return false;
            };
            let fragment = Fragment { ident, offset_bytes, more };
            let (head, tail) = if offset == 0 {
                (head, &tail[..end - head.len()])
            } else {
                (&[][..], &tail[offset - head.len()..end - head.len()])
            };
            if !self.packet(outbox, ip, Some(fragment), head, tail, TxOffload::None) {
                return false;
            }
            offset = end;
        }
        true
    }

    fn packet(
        &self,
        outbox: &mut Outbox,
        ip: IpHeader,
        fragment: Option<Fragment>,
        head: &[u8],
        tail: &[u8],
        offload: TxOffload,
    ) -> bool {
        let header =
            ip.bytes() + if fragment.is_some() && !ip.source.is_ipv4() { FRAGMENT_HEADER_BYTES } else { 0 };
        let len = header + head.len() + tail.len();
        self.frame(outbox, ip.ethertype(), len, |packet| {
            ip.emit(packet, fragment);
            packet[header..header + head.len()].copy_from_slice(head);
            packet[header + head.len()..].copy_from_slice(tail);
            offload
        })
    }
}

/// The bytes of all headers of a frame with UDP, and of the first datagram in it.
fn datagrams_in(frame: &[u8], offload: TxOffload) -> Option<(usize, usize)> {
    match offload {
        TxOffload::Uso { header_bytes, datagram_bytes, .. } => {
            Some((header_bytes.into(), datagram_bytes.into()))
        }
        TxOffload::Checksum { start, offset } if usize::from(offset) == UDP_CHECKSUM_OFFSET => {
            let header_bytes = usize::from(start) + UDP_HEADER_BYTES;
            Some((header_bytes, frame.len() - header_bytes))
        }
        _ => None,
    }
}

/// The headers of a frame with UDP whose checksum the link finishes.
struct UdpHead {
    bytes: [u8; Self::MAX_BYTES],
    len: usize,
}

impl UdpHead {
    const MAX_BYTES: usize = ETHERNET_BYTES + IPV6_HEADER_BYTES + UDP_HEADER_BYTES;

    /// `ends` are of one family, and the packet is at most 65,535 bytes long.
    fn new(ethernet: &Ethernet, ip: IpHeader, ends: (SocketAddr, SocketAddr), payload_bytes: usize) -> Self {
        let mut bytes = [0; Self::MAX_BYTES];
        let udp_at = ETHERNET_BYTES + ip.bytes();
        ethernet.header(&mut bytes, ip.ethertype());
        let packet_bytes = ip.bytes() + UDP_HEADER_BYTES + payload_bytes;
        ip.emit_for(packet_bytes, &mut bytes[ETHERNET_BYTES..udp_at], None);
        let udp = partial_udp_header(ends.0, ends.1, payload_bytes).unwrap_or_default();
        bytes[udp_at..udp_at + UDP_HEADER_BYTES].copy_from_slice(&udp);
        Self { bytes, len: udp_at + UDP_HEADER_BYTES }
    }

    fn udp_at(&self) -> u16 {
        (self.len - UDP_HEADER_BYTES) as u16
    }

    fn write(&self, frame: &mut [u8]) {
        frame[..self.len].copy_from_slice(&self.bytes[..self.len]);
    }

    /// Whether `frame` has these headers but for lengths and checksums.
    fn is_same_way(&self, frame: &[u8]) -> bool {
        let ip = ETHERNET_BYTES;
        let udp_lengths = self.len - 4;
        let same: &[Range<usize>] = if self.bytes[ip] >> 4 == 4 {
            &[0..ip + 2, ip + 4..ip + 10, ip + 12..udp_lengths]
        } else {
            &[0..ip + 4, ip + 6..udp_lengths]
        };
        same.iter().all(|range| self.bytes[range.clone()] == frame[range.clone()])
    }
}

/// The start of a packet that a guest had sent, rebuilt for an ICMP error to quote.
pub struct Quote {
    bytes: [u8; Self::MAX_BYTES],
    len: usize,
}

impl Quote {
    /// What an ICMPv6 error of the minimum MTU has room for (RFC 4443 section 2.4 c).
    const MAX_BYTES: usize = 1280 - IPV6_HEADER_BYTES - 8;

    /// The packet `ip` whose payload starts with `head`, of at most a few dozen bytes, and goes on with `tail`;
    /// what does not fit is cut off.
    pub fn new(ip: IpHeader, head: &[u8], tail: &[u8]) -> Self {
        let mut bytes = [0; Self::MAX_BYTES];
        let tail_at = ip.bytes() + head.len();
        let tail = &tail[..tail.len().min(Self::MAX_BYTES - tail_at)];
        let len = tail_at + tail.len();
        ip.emit(&mut bytes[..len], None);
        bytes[ip.bytes()..tail_at].copy_from_slice(head);
        bytes[tail_at..len].copy_from_slice(tail);
        Self { bytes, len }
    }

    /// The packet, from its IP header on.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The fields of an IP header that vary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpHeader {
    /// Source address.
    pub source: IpAddr,
    /// Destination address, of the same family.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Protocol of the payload.
    pub protocol: IpProtocol,
}

impl IpHeader {
    /// Its length, without a fragment header.
    pub fn bytes(&self) -> usize {
        if self.source.is_ipv4() { IPV4_HEADER_BYTES } else { IPV6_HEADER_BYTES }
    }

    fn ethertype(&self) -> u16 {
        if self.source.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 }
    }

    /// Writes the header to the start of `packet`, whose length is the packet's.
    pub(super) fn emit(&self, packet: &mut [u8], fragment: Option<Fragment>) {
        self.emit_for(packet.len(), packet, fragment);
    }

    /// Writes the header of a packet of `packet_bytes` to the start of `bytes`.
    fn emit_for(&self, packet_bytes: usize, bytes: &mut [u8], fragment: Option<Fragment>) {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.emit_v4(packet_bytes, bytes, (source, destination), fragment)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.emit_v6(packet_bytes, bytes, (source, destination), fragment)
            }
            _ => bytes.fill(0),
        }
    }

    fn emit_v4(
        &self,
        packet_bytes: usize,
        bytes: &mut [u8],
        (source, destination): (Ipv4Addr, Ipv4Addr),
        fragment: Option<Fragment>,
    ) {
        bytes[..IPV4_HEADER_BYTES].fill(0);
        // The MTU and the outbox bound every packet to 65,535 bytes.
        let total = u16::try_from(packet_bytes).unwrap_or(u16::MAX);
        let mut packet = Ipv4Packet::new_unchecked(bytes);
        packet.set_version(4);
        packet.set_header_len(IPV4_HEADER_BYTES as u8);
        packet.set_total_len(total);
        match fragment {
            Some(fragment) => {
                packet.set_ident(fragment.ident as u16);
                packet.set_more_frags(fragment.more);
                packet.set_frag_offset(fragment.offset_bytes);
            }
            None => packet.set_dont_frag(true),
        }
        packet.set_hop_limit(self.hop_limit);
        packet.set_next_header(self.protocol);
        packet.set_src_addr(source);
        packet.set_dst_addr(destination);
        packet.fill_checksum();
    }

    fn emit_v6(
        &self,
        packet_bytes: usize,
        bytes: &mut [u8],
        (source, destination): (Ipv6Addr, Ipv6Addr),
        fragment: Option<Fragment>,
    ) {
        bytes[..IPV6_HEADER_BYTES].fill(0);
        let payload = u16::try_from(packet_bytes - IPV6_HEADER_BYTES).unwrap_or(u16::MAX);
        if let Some(fragment) = fragment {
            let header = &mut bytes[IPV6_HEADER_BYTES..IPV6_HEADER_BYTES + FRAGMENT_HEADER_BYTES];
            header[0] = self.protocol.into();
            header[1] = 0;
            header[2..4].copy_from_slice(&(fragment.offset_bytes | u16::from(fragment.more)).to_be_bytes());
            header[4..].copy_from_slice(&fragment.ident.to_be_bytes());
        }
        let mut packet = Ipv6Packet::new_unchecked(bytes);
        packet.set_version(6);
        packet.set_payload_len(payload);
        packet.set_next_header(if fragment.is_some() { IpProtocol::Ipv6Frag } else { self.protocol });
        packet.set_hop_limit(self.hop_limit);
        packet.set_src_addr(source);
        packet.set_dst_addr(destination);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Instant;
    use crate::net::fixture::{self, GUEST_MAC, GUEST_V4, GUEST_V6, REMOTE_V4, REMOTE_V6};
    use crate::net::outbox::HEADROOM;
    use crate::net::reassembly::Reassembly;

    const ENDS: [(&str, &str); 2] = [(GUEST_V4, REMOTE_V4), (GUEST_V6, REMOTE_V6)];

    #[test]
    fn frames_come_from_the_gateway() {
        let mut outbox = Outbox::new();
        let sent = fixture::ethernet(1500).frame(&mut outbox, ETHERTYPE_ARP, 3, |bytes| {
            bytes.copy_from_slice(&[1, 2, 3]);
            TxOffload::None
        });
        assert!(sent);
        let bytes = fixture::frames(&mut outbox).remove(0);
        let frame = EthernetFrame::parse(&bytes).expect("a frame");
        assert_eq!((frame.destination, frame.source), (GUEST_MAC, MacAddr::GATEWAY));
        assert_eq!((frame.ethertype, frame.payload), (ETHERTYPE_ARP, &[1, 2, 3][..]));
        assert_eq!(EthernetFrame::parse(&bytes[..13]).err(), Some(DropReason::Malformed));
    }

    #[test]
    fn a_datagram_that_fits_is_one_packet() {
        for (source, destination) in ENDS {
            let bytes = fixture::udp(source, destination, b"hello");
            let ip = fixture::parse(&bytes).expect("a packet");
            assert_eq!((ip.source, ip.destination), (fixture::ip(source), fixture::ip(destination)));
            assert_eq!((ip.hop_limit, ip.protocol, ip.fragment), (64, IpProtocol::Udp, None));
            assert!(ip.dont_fragment);
            assert_eq!(ip.payload()[..6], [0x0f, 0xa0, 0, 7, 0, 13]);
            assert!(ip.payload()[8..] == *b"hello");
        }
    }

    #[test]
    fn udp_checksums_are_valid_and_never_zero() {
        for (source, destination) in ENDS {
            for word in 0..=u16::MAX {
                let bytes = fixture::udp(source, destination, &word.to_be_bytes());
                let ip = fixture::parse(&bytes).expect("a packet");
                assert!(ip.transport_checksum_is_valid());
                assert_ne!(ip.payload()[6..8], [0, 0], "that would mean none");
            }
            let odd = fixture::udp(source, destination, &[1, 2, 3]);
            assert!(fixture::parse(&odd).expect("a packet").transport_checksum_is_valid());
        }
    }

    #[test]
    fn an_offloading_link_finishes_the_checksum_of_whole_datagrams_only() {
        for (source, destination) in ENDS {
            let mut outbox = Outbox::new();
            let ethernet = Ethernet { offload: Offload::ChecksumAndTso, ..fixture::ethernet(1500) };
            let (from, to) =
                (SocketAddr::new(fixture::ip(source), 4000), SocketAddr::new(fixture::ip(destination), 7));
            assert!(ethernet.udp(&mut outbox, from, to, 64, b"hello"));
            let (_, frame, offload) = outbox.front_frame().expect("a frame");
            let frame = &mut frame[HEADROOM..];
            let TxOffload::Checksum { start, offset } = offload else { panic!("{offload:?}") };
            let (start, field) = (usize::from(start), usize::from(start + offset));
            let sum = !checksum::data(&frame[start..]);
            frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
            assert_eq!(frame[ETHERNET_BYTES..], fixture::udp(source, destination, b"hello"));
            outbox.pop_frame();
            assert!(ethernet.udp(&mut outbox, from, to, 64, &[7; 3000]));
            assert_eq!(outbox.front_frame().map(|(_, _, offload)| offload), Some(TxOffload::None));
            let whole = joined(&fixture::packets(&mut outbox));
            assert!(fixture::parse(&whole).expect("a packet").transport_checksum_is_valid());
        }
    }

    #[test]
    fn datagrams_of_one_size_join_in_one_frame() {
        for (source, destination) in ENDS {
            let mut link = Joining::new(source, destination);
            for len in [500, 500, 500, 20] {
                assert!(link.send(4000, 64, len));
            }
            let frames = link.frames();
            let [(frame, TxOffload::Uso { header_bytes, datagram_bytes, start })] = &frames[..] else {
                panic!("{frames:?}");
            };
            assert_eq!((*datagram_bytes, header_bytes - start), (500, 8));
            let ip = fixture::parse(&frame[ETHERNET_BYTES..]).expect("a packet");
            assert_eq!((ip.payload().len(), ip.payload()[8..] == [1; 1520]), (1528, true));
            let udp = partial_udp_header(link.from(4000), link.to, 1520).expect("short");
            assert_eq!(ip.payload()[..8], udp, "the sum of the whole");
        }
    }

    #[test]
    fn what_differs_does_not_join() {
        for (source, destination) in ENDS {
            for (port, hop_limit, len) in [(4001, 64, 500), (4000, 63, 500), (4000, 64, 501), (4000, 64, 0)] {
                let mut link = Joining::new(source, destination);
                assert!(link.send(4000, 64, 500) && link.send(port, hop_limit, len));
                assert_eq!(link.frames().len(), 2, "{port} {hop_limit} {len}");
            }
            let mut link = Joining::new(source, destination);
            assert!(link.send(4000, 64, 500) && link.send(4000, 64, 9) && link.send(4000, 64, 9));
            assert_eq!(link.frames().len(), 2, "only the last may be shorter");
            assert!(link.send(4000, 64, 500));
            link.ethernet.to = MacAddr([2; 6]);
            assert!(link.send(4000, 64, 500));
            assert_eq!(link.frames().len(), 2, "another station");
        }
    }

    #[test]
    fn joined_datagrams_are_as_many_as_the_kernel_cuts() {
        for (source, destination) in ENDS {
            let mut link = Joining::new(source, destination);
            assert!((0..65).all(|_| link.send(4000, 64, 10)));
            assert_eq!(link.frames().len(), 2);
            assert!((0..45).all(|_| link.send(4000, 64, 1452)));
            let sizes: Vec<usize> = link.frames().iter().map(|(frame, _)| frame.len() / 1452).collect();
            assert_eq!(sizes, [45]);
            assert!((0..46).all(|_| link.send(4000, 64, 1452)));
            assert_eq!(link.frames().len(), 2, "an IP packet has 65,535 bytes");
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed() {
        for (source, destination) in ENDS {
            let mut bytes = fixture::udp(source, destination, b"hello");
            *bytes.last_mut().expect("a byte") ^= 4;
            assert!(!fixture::parse(&bytes).expect("a packet").transport_checksum_is_valid());
        }
        let mut bytes = fixture::udp(GUEST_V4, REMOTE_V4, b"hello");
        bytes[8] ^= 1;
        assert_eq!(IpPacket::parse_v4(&bytes).err(), Some(DropReason::Checksum));
    }

    #[test]
    fn fragments_join_to_the_same_bytes_at_every_mtu() {
        for (source, destination) in ENDS {
            for mtu in [576, 1280, 1500, 9000, 65520] {
                for len in [0, 1, 540, 548, 549, 1232, 1472, 1473, 8000, 65_507] {
                    let payload: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
                    let packets = fixture::udp_fragments(source, destination, &payload, mtu);
                    assert!(packets.iter().all(|packet| packet.len() <= usize::from(mtu)));
                    let joined = joined(&packets);
                    let ip = fixture::parse(&joined).expect("a packet");
                    assert!(ip.transport_checksum_is_valid(), "{len} bytes at {mtu}");
                    assert!(ip.payload()[8..] == payload);
                }
            }
        }
    }

    #[test]
    fn a_datagram_beyond_the_length_field_is_refused() {
        let mut outbox = Outbox::new();
        let (source, destination) =
            (SocketAddr::new(fixture::ip(GUEST_V6), 1), SocketAddr::new(fixture::ip(REMOTE_V6), 2));
        let ethernet = fixture::ethernet(1500);
        assert!(!ethernet.udp(&mut outbox, source, destination, 64, &[0; 65_528]));
        assert!(outbox.is_empty());
        assert!(ethernet.udp(&mut outbox, source, destination, 64, &[0; 65_527]));
    }

    #[test]
    fn the_reserve_of_the_outbox_holds_the_largest_datagram_in_fragments() {
        let mut outbox = Outbox::new();
        let (source, destination) =
            (SocketAddr::new(fixture::ip(GUEST_V4), 1), SocketAddr::new(fixture::ip(REMOTE_V4), 2));
        while outbox.has_room() {
            assert!(fixture::ethernet(576).udp(&mut outbox, source, destination, 64, b"small"));
        }
        assert!(fixture::ethernet(576).udp(&mut outbox, source, destination, 64, &[0; 65_507]));
    }

    #[test]
    fn mixed_families_are_not_sent() {
        let mut outbox = Outbox::new();
        let (source, destination) =
            (SocketAddr::new(fixture::ip(GUEST_V4), 1), SocketAddr::new(fixture::ip(REMOTE_V6), 2));
        assert!(!fixture::ethernet(1500).udp(&mut outbox, source, destination, 64, b"hello"));
        assert!(outbox.is_empty());
    }

    #[test]
    fn link_padding_is_cut_off() {
        for (source, destination) in ENDS {
            let mut bytes = fixture::udp(source, destination, b"x");
            let len = bytes.len();
            bytes.extend([0; 20]);
            assert_eq!(fixture::parse(&bytes).expect("a packet").bytes.len(), len);
        }
    }

    #[test]
    fn extension_headers_are_walked_up_to_a_bound() {
        for (headers, expected) in
            [(0, Ok(IpProtocol::Udp)), (7, Ok(IpProtocol::Udp)), (8, Err(DropReason::Unsupported))]
        {
            let bytes = with_options(headers);
            assert_eq!(IpPacket::parse_v6(&bytes).map(|ip| ip.protocol), expected);
        }
        let bytes = with_options(2);
        let ip = IpPacket::parse_v6(&bytes).expect("a packet");
        assert_eq!((ip.header_bytes, ip.payload().len()), (56, 13));
    }

    #[test]
    fn an_atomic_fragment_is_a_whole_packet() {
        let plain = fixture::udp(GUEST_V6, REMOTE_V6, b"hello");
        let mut bytes = plain[..40].to_vec();
        bytes[6] = 44;
        bytes[5] += 8;
        bytes.extend([17, 0, 0, 0, 1, 2, 3, 4]);
        bytes.extend(&plain[40..]);
        let ip = IpPacket::parse_v6(&bytes).expect("a packet");
        assert_eq!((ip.fragment, ip.protocol), (None, IpProtocol::Udp));
        assert!(ip.transport_checksum_is_valid());
    }

    #[test]
    fn hostile_packets_do_no_harm() {
        for (source, destination) in ENDS {
            let fragments = fixture::udp_fragments(source, destination, &[7; 1400], 1280);
            for bytes in fragments.iter().flat_map(|packet| fixture::mutations(&packet[..80])) {
                for parsed in [IpPacket::parse_v4(&bytes), IpPacket::parse_v6(&bytes)].into_iter().flatten() {
                    parsed.transport_checksum_is_valid();
                }
            }
        }
        for bytes in fixture::mutations(&with_options(3)) {
            if let Ok(ip) = IpPacket::parse_v6(&bytes) {
                ip.transport_checksum_is_valid();
            }
        }
    }

    /// A UDP packet behind so many destination options headers of 8 bytes each.
    fn with_options(headers: u8) -> Vec<u8> {
        let plain = fixture::udp(GUEST_V6, REMOTE_V6, b"hello");
        let mut bytes = plain[..40].to_vec();
        bytes[5] += headers * 8;
        bytes[6] = if headers > 0 { 60 } else { 17 };
        for left in (0..headers).rev() {
            bytes.extend([if left > 0 { 60 } else { 17 }, 0, 1, 4, 0, 0, 0, 0]);
        }
        bytes.extend(&plain[40..]);
        bytes
    }

    fn joined(packets: &[Vec<u8>]) -> Vec<u8> {
        let mut reassembly = Reassembly::new();
        for packet in packets {
            let ip = fixture::parse(packet).expect("a packet");
            if ip.fragment.is_none() {
                return packet.clone();
            }
            let added = reassembly.add(Instant::ZERO, PortId(0), &ip);
            if let Some(whole) = added.expect("no drop") {
                return whole.packet().bytes.to_vec();
            }
        }
        panic!("the fragments do not join");
    }

    /// A link that cuts joined datagrams apart.
    struct Joining {
        ethernet: Ethernet,
        outbox: Outbox,
        from: IpAddr,
        to: SocketAddr,
    }

    impl Joining {
        fn new(source: &str, destination: &str) -> Self {
            let ethernet = Ethernet { offload: Offload::ChecksumTsoAndUso, ..fixture::ethernet(1500) };
            let to = SocketAddr::new(fixture::ip(destination), 7);
            Self { ethernet, outbox: Outbox::new(), from: fixture::ip(source), to }
        }

        fn from(&self, port: u16) -> SocketAddr {
            SocketAddr::new(self.from, port)
        }

        fn send(&mut self, port: u16, hop_limit: u8, len: usize) -> bool {
            let from = self.from(port);
            self.ethernet.udp(&mut self.outbox, from, self.to, hop_limit, &vec![1; len])
        }

        fn frames(&mut self) -> Vec<(Vec<u8>, TxOffload)> {
            let mut frames = Vec::new();
            while let Some((_, frame, offload)) = self.outbox.front_frame() {
                frames.push((frame[HEADROOM..].to_vec(), offload));
                self.outbox.pop_frame();
            }
            frames
        }
    }
}
