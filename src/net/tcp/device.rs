//! The link as an endpoint sees it.

use std::net::IpAddr;
use std::num::NonZeroUsize;

use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};

use crate::net::outbox::ETHERNET_BYTES;
use crate::net::packet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, pseudo_header,
};
use crate::net::{Instant, Offload, Outbox, TxOffload};

/// Where the checksum stands in the TCP header.
const CHECKSUM_OFFSET: u16 = 16;
/// What an endpoint on an offloading link believes the MTU to be: what a whole frame of 65,535 bytes carries. One of
/// 65,536 is too long for a veth (its gso_max_size), which has the kernel cut it beforehand, or loses it.
const OFFLOAD_MTU: usize = 65_535 - ETHERNET_BYTES;

/// The link as one endpoint sees it: at most one packet to take, and the outbox to write to.
pub(super) struct FlowDevice<'a> {
    pub(super) rx: Option<&'a [u8]>,
    pub(super) ethernet: &'a Ethernet,
    pub(super) mss: u16,
    pub(super) outbox: &'a mut Outbox,
    pub(super) urgent: bool,
}

impl phy::Device for FlowDevice<'_> {
    type RxToken<'b>
        = RxPacket<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = TxSegment<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(RxPacket<'_>, TxSegment<'_>)> {
        let packet = RxPacket(self.rx.take()?);
        Some((packet, TxSegment { ethernet: self.ethernet, mss: self.mss, outbox: self.outbox }))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxSegment<'_>> {
        let room = self.urgent || self.outbox.has_frame_room();
        room.then_some(TxSegment { ethernet: self.ethernet, mss: self.mss, outbox: self.outbox })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.ethernet)
    }
}

/// The link without its outbox, for an interface to be made on.
pub(super) struct Description<'a>(pub(super) &'a Ethernet);

impl phy::Device for Description<'_> {
    type RxToken<'b>
        = RxPacket<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = TxSegment<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(RxPacket<'_>, TxSegment<'_>)> {
        None
    }

    fn transmit(&mut self, _: Instant) -> Option<TxSegment<'_>> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        capabilities(self.0)
    }
}

fn capabilities(ethernet: &Ethernet) -> DeviceCapabilities {
    let mut caps = DeviceCapabilities::default();
    caps.medium = Medium::Ip;
    // What comes in was verified when it was parsed.
    caps.checksum = ChecksumCapabilities::ignored();
    caps.checksum.ipv4 = Checksum::Tx;
    match ethernet.offload {
        Offload::None => {
            caps.max_transmission_unit = usize::from(ethernet.mtu);
            caps.checksum.tcp = Checksum::Tx;
        }
        Offload::ChecksumAndTso | Offload::ChecksumTsoAndUso => {
            caps.max_transmission_unit = OFFLOAD_MTU;
            caps.segmentation.tcpv4 = NonZeroUsize::new(OFFLOAD_MTU);
            caps.segmentation.tcpv6 = NonZeroUsize::new(OFFLOAD_MTU);
        }
    }
    caps
}

pub(super) struct RxPacket<'a>(&'a [u8]);

impl phy::RxToken for RxPacket<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

pub(super) struct TxSegment<'a> {
    ethernet: &'a Ethernet,
    mss: u16,
    outbox: &'a mut Outbox,
}

impl phy::TxToken for TxSegment<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let Self { ethernet, mss, outbox } = self;
        outbox.frame_with(ethernet.port, ETHERNET_BYTES + len, |frame| {
            let result = fill(&mut frame[ETHERNET_BYTES..]);
            (finish_segment(ethernet, mss, frame), result)
        })
    }
}

/// Puts the Ethernet header in front of a segment and leaves its checksum and its cutting to the link, where
/// the link does that.
fn finish_segment(ethernet: &Ethernet, mss: u16, frame: &mut [u8]) -> TxOffload {
    let ipv6 = frame[ETHERNET_BYTES] >> 4 == 6;
    ethernet.header(frame, if ipv6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 });
    if ethernet.offload == Offload::None {
        return TxOffload::None;
    }
    let ip_bytes = if ipv6 { IPV6_HEADER_BYTES } else { IPV4_HEADER_BYTES };
    let (source, destination) = addresses(&frame[ETHERNET_BYTES..], ipv6);
    let start = ETHERNET_BYTES + ip_bytes;
    let segment_bytes = frame.len() - start;
    let mut segment = TcpPacket::new_unchecked(&mut frame[start..]);
    segment.set_checksum(pseudo_header(source, destination, IpProtocol::Tcp, segment_bytes as u32));
    let tcp_bytes = usize::from(segment.header_len());
    if segment_bytes - tcp_bytes > usize::from(mss) {
        TxOffload::Tso { ipv6, header_bytes: (start + tcp_bytes) as u16, mss, start: start as u16 }
    } else {
        TxOffload::Checksum { start: start as u16, offset: CHECKSUM_OFFSET }
    }
}

fn addresses(packet: &[u8], ipv6: bool) -> (IpAddr, IpAddr) {
    if ipv6 {
        let packet = Ipv6Packet::new_unchecked(packet);
        (packet.src_addr().into(), packet.dst_addr().into())
    } else {
        let packet = Ipv4Packet::new_unchecked(packet);
        (packet.src_addr().into(), packet.dst_addr().into())
    }
}
