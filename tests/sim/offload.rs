//! What the kernel does between the gateway and the guest: it judges every frame, finishes checksums, and cuts large
//! TCP segments and joined datagrams.

use rnet::config::MacAddr;
use rnet::net::TxOffload;
use rnet::net::packet::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthernetFrame, IpPacket, pseudo_header,
};
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket, checksum};

pub(crate) const ETHERNET_BYTES: usize = 14;
/// Where the checksum stands in the two headers.
const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;

/// The frames that the guest sees of one that the gateway sent; anything wrong with them panics.
pub(crate) fn finish(frame: &[u8], offload: TxOffload, mtu: u16) -> Vec<Vec<u8>> {
    let frames = match offload {
        TxOffload::None => vec![frame.to_vec()],
        TxOffload::Checksum { start, offset } => vec![finish_checksum(frame, start, offset)],
        TxOffload::Tso { ipv6, header_bytes, mss, start } => {
            cut(frame, ipv6, header_bytes.into(), mss, start.into())
        }
        TxOffload::Uso { header_bytes, datagram_bytes, start } => {
            cut_datagrams(frame, header_bytes.into(), datagram_bytes.into(), start.into())
        }
    };
    for frame in &frames {
        assert_valid(frame, mtu);
    }
    frames
}

/// A frame without its Ethernet header.
pub(crate) fn parse(bytes: &[u8]) -> Option<IpPacket<'_>> {
    match bytes.first()? >> 4 {
        4 => IpPacket::parse_v4(bytes).ok(),
        _ => IpPacket::parse_v6(bytes).ok(),
    }
}

fn assert_valid(frame: &[u8], mtu: u16) {
    let ethernet = EthernetFrame::parse(frame).expect("an Ethernet header");
    assert_eq!(ethernet.source, MacAddr::GATEWAY);
    if ethernet.ethertype == ETHERTYPE_ARP {
        assert_eq!(ethernet.payload.len(), 28);
        return;
    }
    let ip = parse(ethernet.payload).expect("a well-formed IP packet");
    let ethertype = if ip.source.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    assert_eq!(ethernet.ethertype, ethertype);
    assert_eq!(ip.bytes.len(), ethernet.payload.len(), "bytes behind the packet");
    assert!(ip.bytes.len() <= usize::from(mtu), "{} bytes on a link of {mtu}", ip.bytes.len());
    assert!(ip.hop_limit > 0);
    assert!(!ip.source.is_unspecified() && !ip.source.is_multicast(), "{ip:?}");
    if ip.fragment.is_none() {
        assert!(ip.transport_checksum_is_valid(), "a wrong checksum");
    }
}

fn finish_checksum(frame: &[u8], start: u16, offset: u16) -> Vec<u8> {
    let start = usize::from(start);
    let ip = parse(&frame[ETHERNET_BYTES..]).expect("a well-formed IP packet");
    let expected = if ip.protocol == IpProtocol::Udp { UDP_CHECKSUM } else { TCP_CHECKSUM };
    assert_eq!((start, offset), (ETHERNET_BYTES + ip.header_bytes, expected));
    let mut frame = frame.to_vec();
    let sum = !checksum::data(&frame[start..]);
    let field = start + usize::from(offset);
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn cut(frame: &[u8], ipv6: bool, header_bytes: usize, mss: u16, start: usize) -> Vec<Vec<u8>> {
    let ip = parse(&frame[ETHERNET_BYTES..]).expect("a well-formed IP packet");
    assert_eq!(ipv6, ip.source.is_ipv6());
    assert_eq!(start, ETHERNET_BYTES + ip.header_bytes);
    let segment = TcpPacket::new_checked(ip.payload()).expect("a well-formed segment");
    assert_eq!(header_bytes, start + usize::from(segment.header_len()));
    let len = ip.payload().len() as u32;
    assert_eq!(segment.checksum(), pseudo_header(ip.source, ip.destination, IpProtocol::Tcp, len));
    let (header, payload) = frame.split_at(header_bytes);
    assert!(payload.len() > usize::from(mss), "nothing to cut");
    let pieces = payload.len().div_ceil(mss.into());
    payload
        .chunks(mss.into())
        .enumerate()
        .map(|(number, chunk)| {
            let mut piece = [header, chunk].concat();
            let offset = number * usize::from(mss);
            rewrite(&mut piece[ETHERNET_BYTES..], number, offset, number + 1 == pieces);
            piece
        })
        .collect()
}

/// As Linux has it in net/ipv4/udp_offload.c: at most 64 datagrams, and the sum is that of the whole.
fn cut_datagrams(frame: &[u8], header_bytes: usize, datagram_bytes: usize, start: usize) -> Vec<Vec<u8>> {
    let ip = parse(&frame[ETHERNET_BYTES..]).expect("a well-formed IP packet");
    assert_eq!((ip.protocol, ip.fragment), (IpProtocol::Udp, None));
    assert_eq!((start, header_bytes), (ETHERNET_BYTES + ip.header_bytes, start + 8));
    let datagram = UdpPacket::new_checked(ip.payload()).expect("a well-formed datagram");
    let len = ip.payload().len() as u32;
    assert_eq!(u32::from(datagram.len()), len);
    assert_eq!(datagram.checksum(), pseudo_header(ip.source, ip.destination, IpProtocol::Udp, len));
    let (header, payload) = frame.split_at(header_bytes);
    assert!(payload.len() > datagram_bytes, "nothing to cut");
    assert!(payload.len() <= 64 * datagram_bytes, "more datagrams than Linux cuts");
    payload.chunks(datagram_bytes).map(|chunk| finish_datagram([header, chunk].concat(), start)).collect()
}

fn finish_datagram(mut frame: Vec<u8>, start: usize) -> Vec<u8> {
    set_length(&mut frame[ETHERNET_BYTES..]);
    let ip = parse(&frame[ETHERNET_BYTES..]).expect("a well-formed IP packet");
    let (source, destination) = (ip.source.into(), ip.destination.into());
    let len = (frame.len() - start) as u16;
    let mut datagram = UdpPacket::new_unchecked(&mut frame[start..]);
    datagram.set_len(len);
    datagram.fill_checksum(&source, &destination);
    frame
}

/// Makes the headers of one piece of a large segment right.
fn rewrite(packet: &mut [u8], number: usize, offset: usize, last: bool) {
    if packet[0] >> 4 == 4 {
        let mut ip = Ipv4Packet::new_unchecked(&mut *packet);
        ip.set_ident(ip.ident().wrapping_add(number as u16));
    }
    set_length(packet);
    let ip = parse(packet).expect("a well-formed IP packet");
    let (header_bytes, source, destination) = (ip.header_bytes, ip.source.into(), ip.destination.into());
    let mut segment = TcpPacket::new_unchecked(&mut packet[header_bytes..]);
    segment.set_seq_number(segment.seq_number() + offset);
    segment.set_fin(segment.fin() && last);
    segment.set_psh(segment.psh() && last);
    segment.fill_checksum(&source, &destination);
}

/// Makes the length in an IP header without options that of `packet`, and its checksum right.
pub(crate) fn set_length(packet: &mut [u8]) {
    let len = packet.len();
    if packet[0] >> 4 == 4 {
        let mut ip = Ipv4Packet::new_unchecked(packet);
        ip.set_total_len(len as u16);
        ip.fill_checksum();
    } else {
        Ipv6Packet::new_unchecked(packet).set_payload_len((len - 40) as u16);
    }
}

/// A frame in one line.
pub(crate) fn describe(frame: &[u8]) -> String {
    let Some(ip) = frame.get(ETHERNET_BYTES..).and_then(parse) else {
        return format!("{} bytes", frame.len());
    };
    let what = match TcpPacket::new_checked(ip.payload()) {
        Ok(segment) if ip.protocol == IpProtocol::Tcp => segment.to_string(),
        _ => format!("{} {} bytes", ip.protocol, ip.payload().len()),
    };
    format!("{} -> {} {what}", ip.source, ip.destination)
}
