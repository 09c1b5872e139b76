//! A guest that costs next to nothing: packets made once, of which each use rewrites ports, numbers and checksum.
//!
//! IPv4 only. The sum over the payload is kept, so that a packet of any size is ready after the same few dozen
//! nanoseconds.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use rnet::config::MacAddr;
use rnet::net::outbox::ETHERNET_BYTES;
use rnet::net::packet::{ETHERTYPE_IPV4, IPV4_HEADER_BYTES, UDP_HEADER_BYTES, pseudo_header};
use rnet::net::{Offload, RxOffload, TxOffload};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
    checksum,
};

/// The guest.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
/// With whom it talks.
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// Port of the remote end.
pub(crate) const REMOTE_PORT: u16 = 4000;
/// The guest's station.
pub(crate) const MAC: MacAddr = MacAddr([0x52, 0x55, 0x0a, 0, 2, 0x64]);
/// Length of a TCP header without options.
pub(crate) const TCP_HEADER_BYTES: usize = 20;
const TRANSPORT: usize = ETHERNET_BYTES + IPV4_HEADER_BYTES;
/// Advertised window, to be shifted by [`WINDOW_SCALE`]: far more than a burst.
const WINDOW: u16 = 0x4000;
const WINDOW_SCALE: u8 = 7;

/// The link on which the guest lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) mtu: u16,
    pub(crate) offload: Offload,
}

impl Link {
    /// Payload of one TCP segment.
    pub(crate) fn mss(self) -> u16 {
        self.mtu - (IPV4_HEADER_BYTES + TCP_HEADER_BYTES) as u16
    }
}

/// A frame with a TCP segment or a UDP datagram from the guest to the remote end.
pub(crate) struct Packet {
    frame: Vec<u8>,
    payload_sum: u16,
    rx: RxOffload,
}

impl Packet {
    /// A TCP segment; a SYN announces the link's segment size and a window scale.
    pub(crate) fn tcp(link: Link, control: TcpControl, payload: &[u8]) -> Self {
        let syn = control == TcpControl::Syn;
        let segment = TcpRepr {
            src_port: 1,
            dst_port: REMOTE_PORT,
            control,
            seq_number: TcpSeqNumber(0),
            ack_number: (!syn).then_some(TcpSeqNumber(0)),
            window_len: WINDOW,
            window_scale: syn.then_some(WINDOW_SCALE),
            max_seg_size: syn.then_some(link.mss()),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        let mut frame = ip_frame(IpProtocol::Tcp, segment.buffer_len());
        let mut packet = TcpPacket::new_unchecked(&mut frame[TRANSPORT..]);
        segment.emit(&mut packet, &ADDRESS.into(), &REMOTE.into(), &ChecksumCapabilities::ignored());
        let partial_checksum = link.offload != Offload::None;
        let segment_bytes = (payload.len() > usize::from(link.mss())).then_some(link.mss());
        let rx = RxOffload { partial_checksum, segment_bytes };
        Self { frame, payload_sum: checksum::data(payload), rx }
    }

    /// A UDP datagram.
    pub(crate) fn udp(link: Link, payload: &[u8]) -> Self {
        let datagram = UdpRepr { src_port: 1, dst_port: REMOTE_PORT };
        let mut frame = ip_frame(IpProtocol::Udp, UDP_HEADER_BYTES + payload.len());
        datagram.emit(
            &mut UdpPacket::new_unchecked(&mut frame[TRANSPORT..]),
            &ADDRESS.into(),
            &REMOTE.into(),
            payload.len(),
            |room| room.copy_from_slice(payload),
            &ChecksumCapabilities::ignored(),
        );
        let partial_checksum = link.offload != Offload::None;
        let rx = RxOffload { partial_checksum, segment_bytes: None };
        Self { frame, payload_sum: checksum::data(payload), rx }
    }

    /// The segment from `port` with these numbers.
    pub(crate) fn segment(&mut self, port: u16, sequence: u32, acknowledged: u32) -> (&[u8], RxOffload) {
        let bytes = &mut self.frame[TRANSPORT..];
        let len = bytes.len() as u32;
        let mut segment = TcpPacket::new_unchecked(bytes);
        segment.set_src_port(port);
        segment.set_seq_number(TcpSeqNumber(sequence as i32));
        segment.set_ack_number(TcpSeqNumber(acknowledged as i32));
        segment.set_checksum(0);
        if !self.rx.partial_checksum {
            let header_bytes = usize::from(segment.header_len());
            let header = &segment.into_inner()[..header_bytes];
            let sum = checksum::combine(&[
                pseudo_sum(IpProtocol::Tcp, len),
                checksum::data(header),
                self.payload_sum,
            ]);
            TcpPacket::new_unchecked(&mut self.frame[TRANSPORT..]).set_checksum(!sum);
        }
        (&self.frame, self.rx)
    }

    /// The datagram from `port`.
    pub(crate) fn datagram(&mut self, port: u16) -> (&[u8], RxOffload) {
        let bytes = &mut self.frame[TRANSPORT..];
        let len = bytes.len() as u32;
        let mut datagram = UdpPacket::new_unchecked(bytes);
        datagram.set_src_port(port);
        datagram.set_checksum(0);
        if !self.rx.partial_checksum {
            let header = &datagram.into_inner()[..UDP_HEADER_BYTES];
            let sum = checksum::combine(&[
                pseudo_sum(IpProtocol::Udp, len),
                checksum::data(header),
                self.payload_sum,
            ]);
            UdpPacket::new_unchecked(&mut self.frame[TRANSPORT..]).set_checksum(!sum);
        }
        (&self.frame, self.rx)
    }
}

/// A frame to the gateway with room for `len` bytes behind its IP header.
fn ip_frame(protocol: IpProtocol, len: usize) -> Vec<u8> {
    let mut frame = vec![0; TRANSPORT + len];
    frame[..6].copy_from_slice(&MacAddr::GATEWAY.0);
    frame[6..12].copy_from_slice(&MAC.0);
    frame[12..ETHERNET_BYTES].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
    let header = Ipv4Repr {
        src_addr: ADDRESS,
        dst_addr: REMOTE,
        next_header: protocol,
        payload_len: len,
        hop_limit: 64,
    };
    header
        .emit(&mut Ipv4Packet::new_unchecked(&mut frame[ETHERNET_BYTES..]), &ChecksumCapabilities::default());
    frame
}

fn pseudo_sum(protocol: IpProtocol, len: u32) -> u16 {
    pseudo_header(IpAddr::V4(ADDRESS), IpAddr::V4(REMOTE), protocol, len)
}

/// How many packets the link makes of a frame with datagrams.
pub(crate) fn packets(frame: &[u8], offload: TxOffload) -> u64 {
    match offload {
        TxOffload::Uso { header_bytes, datagram_bytes, .. } => {
            (frame.len() - usize::from(header_bytes)).div_ceil(datagram_bytes.into()) as u64
        }
        _ => 1,
    }
}

/// What a TCP segment from the gateway says.
pub(crate) struct Heard {
    /// The guest's port.
    pub(crate) port: u16,
    /// The number that the remote end's next byte will have.
    pub(crate) next: u32,
    /// Bytes of payload.
    pub(crate) len: usize,
}

/// Reads a frame from the gateway; `None` if it is not TCP.
pub(crate) fn hear(frame: &[u8]) -> Option<Heard> {
    let ip = Ipv4Packet::new_unchecked(&frame[ETHERNET_BYTES..]);
    if ip.next_header() != IpProtocol::Tcp {
        return None;
    }
    let segment = TcpPacket::new_unchecked(&frame[TRANSPORT..]);
    let len = frame.len() - TRANSPORT - usize::from(segment.header_len());
    let flags = u32::from(segment.syn()) + u32::from(segment.fin());
    let next = (segment.seq_number().0 as u32).wrapping_add(len as u32 + flags);
    Some(Heard { port: segment.dst_port(), next, len })
}

/// Nanoseconds that the guest itself takes to send a segment and to read one.
pub(crate) fn own_ns(link: Link) -> f64 {
    const SEGMENTS: u32 = 100_000;
    let mut packet = Packet::tcp(link, TcpControl::Psh, &[0; 100]);
    let start = Instant::now();
    for number in 0..SEGMENTS {
        let (frame, _) = black_box(&mut packet).segment(1, number, number);
        black_box(hear(black_box(frame)));
    }
    start.elapsed().as_nanos() as f64 / f64::from(SEGMENTS)
}
