//! TCP against a guest whose every segment the test chooses. How two whole stacks get on is tests/sim's part.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    Icmpv4Packet, IpAddress, IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, TcpTimestampRepr,
};

use super::HostStream;
use crate::config::{MacAddr, Network, Splicing, Transport};
use crate::net::fixture::{self, GUEST_MAC, Random};
use crate::net::gateway::Gateway;
use crate::net::outbox::{ETHERNET_BYTES, HEADROOM};
use crate::net::packet::{ETHERTYPE_IPV4, EthernetFrame, IpHeader};
use crate::net::policy::Service;
use crate::net::testing::at;
use crate::net::{
    Duration, FlowId, HostEvent, HostOp, Instant, Offload, PortId, PublishId, Release, RxOffload,
};

const GUEST: &str = "10.0.2.100:4000";
const REMOTE: &str = "198.51.100.7:80";
/// Services in a row that the traffic of a test can be reason for.
const MAX_TURNS: usize = 50;
const OTHER_MAC: MacAddr = MacAddr([0x52, 0x55, 0x0a, 0, 2, 0x65]);

#[test]
fn a_spliced_flow_counts_until_it_ends() {
    let mut network = fixture::network();
    network.splice = Splicing::ToAddress;
    let mut gateway = Gateway::new(Arc::new(network), 1, Instant::ZERO);
    gateway.add_port(GUEST_MAC, Offload::None);
    let (flow, splice) =
        gateway.splice(Service { addr: None, port: 80 }, at("127.0.0.1:5000")).expect("a loopback client");
    assert_eq!((gateway.flows(), splice.guest), (1, at("10.0.2.100:80")));
    assert!(gateway.outbox().front_frame().is_none(), "nothing of it crosses the link");
    gateway.splice_ended(flow);
    gateway.splice_ended(flow);
    assert_eq!(gateway.flows(), 0);
    assert!(gateway.splice(Service { addr: None, port: 80 }, at("198.51.100.9:5000")).is_none());
}

#[test]
fn a_long_idle_connection_ends_in_good_order() {
    let mut bench = Bench::new();
    let flow = bench.open(1000);
    bench.wait(3600);
    bench.host.read.push_back(Ok(Vec::new()));
    bench.gateway.host_ready(flow, true, true);
    bench.serve();
    let seen: Vec<TcpControl> = bench.segments().iter().map(|segment| segment.control).collect();
    assert_eq!(seen, [TcpControl::Fin]);
}

#[test]
fn a_guest_that_acknowledges_nothing_is_given_up() {
    let mut bench = Bench::new();
    let flow = bench.open(1000);
    bench.host.read.push_back(Ok(b"hello".to_vec()));
    bench.gateway.host_ready(flow, true, true);
    bench.serve();
    for _ in 0..700 {
        bench.wait(1);
    }
    assert_eq!(bench.ops(), [HostOp::Release { flow, how: Release::Reset }]);
    assert_eq!(bench.gateway.flows(), 0);
}

#[test]
fn the_guests_latest_attempt_is_the_one_that_is_answered() {
    let mut bench = Bench::new();
    bench.guest(TcpControl::Syn, 1000, None);
    let flow = bench.connecting();
    bench.guest(TcpControl::Syn, 5000, None);
    bench.guest(TcpControl::None, 7000, Some(TcpSeqNumber(1)));
    bench.gateway.handle_host(HostEvent::Connected { flow }, bench.now);
    bench.serve();
    assert_eq!(bench.segment().ack, Some(TcpSeqNumber(5001)));
}

#[test]
fn a_guest_may_change_its_station() {
    let mut bench = Bench::new();
    let publish = bench.gateway.publish(Transport::Tcp, Service { addr: None, port: 80 }, PortId(0));
    bench.open(1000);
    bench.mac = OTHER_MAC;
    let acknowledged = bench.acknowledged;
    bench.guest(TcpControl::Fin, 1001, acknowledged);
    bench.serve();
    let segments = bench.segments();
    assert!(!segments.is_empty());
    assert!(segments.iter().all(|segment| segment.to_mac == OTHER_MAC), "{segments:?}");
    bench.gateway.accept(publish, at("203.0.113.9:5000"), bench.now).expect("room");
    bench.serve();
    let opening = bench.segment();
    assert_eq!((opening.control, opening.to_mac), (TcpControl::Syn, OTHER_MAC));
}

#[test]
fn a_station_that_is_not_known_is_learned_from_the_guests_first_packet() {
    let mut gateway = Gateway::new(Arc::new(fixture::network()), 7, Instant::ZERO);
    gateway.add_port(MacAddr::BROADCAST, Offload::None);
    let service = Service { addr: Some(at("10.0.2.15:0").ip()), port: 80 };
    let publish = gateway.publish(Transport::Tcp, service, PortId(0));
    let mut bench = Bench { gateway, ..Bench::new() };
    bench.open(1000);
    bench.segments();
    bench.gateway.accept(publish, at("203.0.113.9:5000"), bench.now).expect("room");
    bench.serve();
    let opening = bench.segment();
    assert_eq!((opening.control, opening.to_mac), (TcpControl::Syn, GUEST_MAC));
}

#[test]
fn the_number_of_a_closed_port_serves_another() {
    let mut bench = Bench::new();
    let service = Service { addr: None, port: 80 };
    let first = bench.gateway.publish(Transport::Tcp, service, PortId(0));
    let second = bench.gateway.publish(Transport::Tcp, service, PortId(0));
    bench.gateway.unpublish(first);
    assert!(bench.gateway.accept(first, at("203.0.113.9:5000"), bench.now).is_none());
    assert!(bench.gateway.accept(second, at("203.0.113.9:5000"), bench.now).is_some());
    assert_eq!(bench.gateway.publish(Transport::Udp, service, PortId(0)), first);
}

#[test]
fn a_guests_firewall_refuses_a_client_at_once() {
    for (code, quoted, ends) in [(3, 0, true), (13, 0, true), (1, 0, false), (4, 0, false), (3, 1, false)] {
        let mut bench = Bench::without_ipv6();
        bench.gateway.publish(Transport::Tcp, Service { addr: None, port: at(GUEST).port() }, PortId(0));
        let flow = bench.gateway.accept(PublishId(0), at(REMOTE), bench.now).expect("room");
        bench.serve();
        let syn = bench.segment();
        bench.guest_unreachable(code, syn.seq + quoted);
        bench.serve();
        let ended = bench.ops() == [HostOp::Release { flow, how: Release::Reset }];
        assert_eq!(ended, ends, "code {code}, sequence number {quoted} off");
    }
}

#[test]
fn an_open_connection_outlives_what_icmp_says() {
    let mut bench = Bench::new();
    bench.open(1000);
    bench.guest_unreachable(3, bench.expected);
    bench.serve();
    assert_eq!((bench.gateway.flows(), bench.ops()), (1, Vec::new()));
}

#[test]
fn a_guest_in_time_wait_gets_another_syn_at_once() {
    let mut bench = Bench::new();
    bench.gateway.publish(Transport::Tcp, Service { addr: None, port: at(GUEST).port() }, PortId(0));
    bench.gateway.accept(PublishId(0), at(REMOTE), bench.now).expect("room");
    bench.serve();
    let first = bench.segment();
    assert_eq!(first.control, TcpControl::Syn);
    bench.guest(TcpControl::None, 77, Some(TcpSeqNumber(99)));
    bench.serve();
    let seen = bench.segments();
    assert_eq!(
        seen.iter().map(|segment| segment.control).collect::<Vec<_>>(),
        [TcpControl::Rst, TcpControl::Syn]
    );
    assert_ne!(seen[1].seq, first.seq);
}

#[test]
fn a_short_half_close_is_not_probed_and_a_long_one_is() {
    let mut bench = Bench::new();
    bench.open(1000);
    bench.guest(TcpControl::Fin, 1001, bench.acknowledged);
    bench.serve();
    assert_eq!(bench.segment().control, TcpControl::None);
    bench.wait(59);
    assert_eq!(bench.gateway.poll_timeout(), Some(bench.now + Duration::from_secs(1)));
    bench.now += Duration::from_secs(1);
    bench.gateway.handle_timeout(bench.now);
    bench.serve();
    bench.segment();
}

#[test]
fn a_host_that_never_connects_is_given_up() {
    let mut bench = Bench::new();
    bench.guest(TcpControl::Syn, 1000, None);
    let flow = bench.connecting();
    bench.wait(129);
    assert_eq!(bench.gateway.flows(), 1);
    bench.wait(2);
    assert_eq!(bench.ops(), [HostOp::Release { flow, how: Release::Reset }]);
    assert_eq!(bench.gateway.flows(), 0);
}

#[test]
fn an_internal_network_asks_no_server_and_goes_nowhere() {
    let mut bench = Bench::of(Network { internal: true, ..fixture::network() }, Offload::None);
    bench.gateway.set_resolvers(&[at("192.0.2.1:53").ip()]);
    for to in ["10.0.2.3:53", "198.51.100.7:80", "192.0.2.1:53"] {
        bench.guest_to(at(GUEST), at(to), TcpControl::Syn, 1000, None);
        assert_eq!(bench.segment().control, TcpControl::Rst, "{to}");
    }
    assert!(bench.ops().is_empty());
}

#[test]
fn a_dns_server_that_never_accepts_is_passed_over() {
    let mut bench = Bench::new();
    bench.gateway.set_resolvers(&[at("192.0.2.1:53").ip(), at("192.0.2.2:53").ip()]);
    let forwarder = at("10.0.2.3:53");
    bench.guest_to(at(GUEST), forwarder, TcpControl::Syn, 1000, None);
    let ops = bench.ops();
    let [HostOp::RefreshResolvers, HostOp::Connect { flow, to }] = ops[..] else { panic!("{ops:?}") };
    assert_eq!(to, at("192.0.2.1:53"));
    bench.wait(3);
    let next = HostOp::Connect { flow, to: at("192.0.2.2:53") };
    assert_eq!(bench.ops(), [HostOp::Release { flow, how: Release::Reset }, next]);
}

#[test]
fn a_closed_window_is_not_probed_without_end() {
    let mut bench = Bench::new();
    let flow = bench.open(1000);
    let first = bench.acknowledged.expect("open");
    bench.host.read.extend([Ok(vec![1; 2000]), Ok(Vec::new())]);
    bench.gateway.host_ready(flow, true, true);
    bench.serve();
    bench.window = 0;
    bench.guest(TcpControl::None, 1001, Some(first + 1000));
    bench.serve();
    bench.guest(TcpControl::None, 1001, Some(first + 2001));
    bench.serve();
    bench.segments();
    bench.wait(10);
    bench.serve();
    assert!(bench.segments().len() < MAX_TURNS);
}

#[test]
fn no_frame_is_longer_than_a_veth_takes() {
    let mut bench = Bench::with(Offload::ChecksumAndTso);
    let flow = bench.open(1000);
    bench.host.read.push_back(Ok(vec![1; 100_000]));
    bench.gateway.host_ready(flow, true, true);
    bench.serve();
    let longest = bench.segments().iter().map(|segment| segment.frame_bytes).max();
    assert_eq!(longest, Some(65_535));
}

#[test]
fn hostile_segments_do_no_harm() {
    let mut random = Random(11);
    for round in 0..1000 {
        let mut bench = Bench::with(if round % 2 == 0 { Offload::None } else { Offload::ChecksumAndTso });
        let mut flow = bench.open(i32::MAX - 1 - random.below(1000) as i32);
        for _ in 0..100 {
            bench.hostile(&mut random);
            flow = bench.connect_all().unwrap_or(flow);
            let read = match random.below(12) {
                0 => Some(Ok(Vec::new())),
                1 => Some(Err(io::ErrorKind::ConnectionReset.into())),
                2..6 => Some(Ok(vec![1; 1 + random.below(5000)])),
                _ => None,
            };
            bench.host.read.extend(read);
            bench.gateway.host_ready(flow, true, true);
            bench.serve();
            bench.wait(random.below(3) as u64);
            bench.segments();
        }
        for _ in 0..100 {
            bench.wait(20);
        }
        bench.host.read.push_back(Ok(Vec::new()));
        bench.gateway.host_ready(flow, true, true);
        bench.serve();
        for _ in 0..100 {
            bench.wait(20);
        }
        assert_eq!(bench.gateway.flows(), 0, "round {round}");
    }
}

/// A gateway, the raw guest behind it and the host socket of its one connection.
struct Bench {
    gateway: Gateway,
    now: Instant,
    mac: MacAddr,
    /// What the guest has acknowledged of the connection that was opened last.
    acknowledged: Option<TcpSeqNumber>,
    /// What the gateway last acknowledged.
    expected: TcpSeqNumber,
    /// What the guest has room for.
    window: u16,
    got: Vec<Segment>,
    host: Host,
}

/// A segment that the guest got.
#[derive(Clone, Copy, Debug)]
struct Segment {
    to_mac: MacAddr,
    control: TcpControl,
    seq: TcpSeqNumber,
    ack: Option<TcpSeqNumber>,
    frame_bytes: usize,
}

impl Bench {
    fn new() -> Self {
        Self::with(Offload::None)
    }

    fn with(offload: Offload) -> Self {
        Self::of(fixture::network(), offload)
    }

    fn without_ipv6() -> Self {
        Self::of(Network { ipv6: None, ..fixture::network() }, Offload::None)
    }

    fn of(network: Network, offload: Offload) -> Self {
        let mut gateway = Gateway::new(Arc::new(network), 7, Instant::ZERO);
        gateway.add_port(GUEST_MAC, offload);
        Self {
            gateway,
            now: Instant::ZERO,
            mac: GUEST_MAC,
            acknowledged: None,
            expected: TcpSeqNumber(0),
            window: u16::MAX,
            got: Vec::new(),
            host: Host::default(),
        }
    }

    /// Opens a connection to the remote end, whose first sequence number is `seq`.
    fn open(&mut self, seq: i32) -> FlowId {
        self.guest(TcpControl::Syn, seq, None);
        let flow = self.connecting();
        self.gateway.handle_host(HostEvent::Connected { flow }, self.now);
        self.serve();
        let answer = self.segment();
        assert_eq!((answer.control, answer.ack), (TcpControl::Syn, Some(TcpSeqNumber(seq) + 1)));
        self.acknowledged = Some(answer.seq + 1);
        self.guest(TcpControl::None, seq + 1, self.acknowledged);
        self.serve();
        flow
    }

    /// The flow that asks for a connection.
    fn connecting(&mut self) -> FlowId {
        match self.ops()[..] {
            [HostOp::Connect { flow, .. }] => flow,
            ref other => panic!("{other:?}"),
        }
    }

    /// Connects what asks for it; the last of the flows.
    fn connect_all(&mut self) -> Option<FlowId> {
        let mut last = None;
        for op in self.ops() {
            if let HostOp::Connect { flow, .. } = op {
                self.gateway.handle_host(HostEvent::Connected { flow }, self.now);
                last = Some(flow);
            }
        }
        last
    }

    fn guest(&mut self, control: TcpControl, seq: i32, ack: Option<TcpSeqNumber>) {
        self.guest_to(at(GUEST), at(REMOTE), control, seq, ack);
    }

    /// The guest sends a segment without payload.
    fn guest_to(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        control: TcpControl,
        seq: i32,
        ack: Option<TcpSeqNumber>,
    ) {
        let segment = TcpRepr {
            src_port: from.port(),
            dst_port: to.port(),
            control,
            seq_number: TcpSeqNumber(seq),
            ack_number: ack,
            window_len: self.window,
            window_scale: None,
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None::<TcpTimestampRepr>,
            payload: &[],
        };
        let mut bytes = vec![0; segment.buffer_len()];
        let (source, destination) = (IpAddress::from(from.ip()), IpAddress::from(to.ip()));
        let mut packet = TcpPacket::new_unchecked(&mut bytes);
        segment.emit(&mut packet, &source, &destination, &ChecksumCapabilities::default());
        let protocol = IpProtocol::Tcp;
        let ip = IpHeader { source: from.ip(), destination: to.ip(), hop_limit: 64, protocol };
        self.guest_ip(ip, &bytes);
    }

    /// The guest's firewall rejects a segment from the remote end.
    fn guest_unreachable(&mut self, code: u8, seq: TcpSeqNumber) {
        let (guest, remote) = (at(GUEST), at(REMOTE));
        let quoted = IpHeader {
            source: remote.ip(),
            destination: guest.ip(),
            hop_limit: 64,
            protocol: IpProtocol::Tcp,
        };
        let mut message = vec![0; 8 + quoted.bytes() + 8];
        quoted.emit(&mut message[8..], None);
        let [.., ports, number] = message.as_chunks_mut::<4>().0 else { panic!("two words") };
        *ports = (u32::from(remote.port()) << 16 | u32::from(guest.port())).to_be_bytes();
        *number = seq.0.to_be_bytes();
        message[..2].copy_from_slice(&[3, code]);
        let mut icmp = Icmpv4Packet::new_unchecked(&mut message);
        icmp.fill_checksum();
        let ip = IpHeader {
            source: guest.ip(),
            destination: remote.ip(),
            hop_limit: 64,
            protocol: IpProtocol::Icmp,
        };
        self.guest_ip(ip, &message);
    }

    /// A segment of the open connection whose numbers are near the right ones and whose flags are any.
    fn hostile(&mut self, random: &mut Random) {
        let near = |random: &mut Random| {
            let far = if random.below(4) == 0 { 1 << random.below(31) } else { 1 };
            (random.below(4) as i32 - 1).wrapping_mul(far)
        };
        let mut bytes = vec![0; 20];
        let mut segment = TcpPacket::new_unchecked(&mut bytes);
        segment.set_src_port(at(GUEST).port());
        segment.set_dst_port(at(REMOTE).port());
        segment.set_seq_number(TcpSeqNumber(self.expected.0.wrapping_add(near(random))));
        let acknowledged = self.acknowledged.unwrap_or_default();
        segment.set_ack_number(TcpSeqNumber(acknowledged.0.wrapping_add(near(random))));
        segment.set_header_len(20);
        let flags = if random.below(3) == 0 { random.below(256) as u8 } else { 0x10 };
        segment.set_window_len(random.below(65_536) as u16 >> random.below(16));
        bytes[13] = flags;
        bytes.extend(vec![7; random.below(3) * random.below(1400)]);
        let mut segment = TcpPacket::new_unchecked(&mut bytes);
        let (from, to) = (at(GUEST).ip(), at(REMOTE).ip());
        segment.fill_checksum(&from.into(), &to.into());
        let ip = IpHeader { source: from, destination: to, hop_limit: 64, protocol: IpProtocol::Tcp };
        self.guest_ip(ip, &bytes);
    }

    fn guest_ip(&mut self, ip: IpHeader, payload: &[u8]) {
        let mut frame = vec![0; ETHERNET_BYTES + ip.bytes()];
        frame[..6].copy_from_slice(&MacAddr::GATEWAY.0);
        frame[6..12].copy_from_slice(&self.mac.0);
        frame[12..ETHERNET_BYTES].copy_from_slice(&ETHERTYPE_IPV4.to_be_bytes());
        frame.extend_from_slice(payload);
        ip.emit(&mut frame[ETHERNET_BYTES..], None);
        self.gateway.handle_frame(PortId(0), &frame, RxOffload::default(), self.now);
    }

    fn serve(&mut self) {
        for turn in 0.. {
            let Some(flow) = self.gateway.next_ready() else { return };
            assert!(turn < MAX_TURNS, "it speaks without end");
            self.gateway.service(flow, &mut self.host, self.now);
            self.collect();
        }
    }

    /// Lets time pass, what is due happen, and the guest hear none of it.
    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        while self.gateway.poll_timeout().is_some_and(|at| at <= self.now) {
            self.gateway.handle_timeout(self.now);
            self.serve();
            self.segments();
        }
    }

    fn ops(&mut self) -> Vec<HostOp> {
        std::iter::from_fn(|| self.gateway.outbox().pop_op()).collect()
    }

    fn segment(&mut self) -> Segment {
        let segments = self.segments();
        assert_eq!(segments.len(), 1, "{segments:?}");
        segments[0]
    }

    fn segments(&mut self) -> Vec<Segment> {
        self.collect();
        std::mem::take(&mut self.got)
    }

    /// Takes the frames, so that the outbox has room.
    fn collect(&mut self) {
        while let Some((_, frame, _)) = self.gateway.outbox().front_frame() {
            let segment = Segment::read(&frame[HEADROOM..]);
            self.gateway.outbox().pop_frame();
            self.expected = segment.ack.unwrap_or(self.expected);
            if segment.seq > self.acknowledged.unwrap_or(segment.seq) {
                self.acknowledged = Some(segment.seq);
            }
            self.got.push(segment);
        }
    }
}

impl Segment {
    fn read(frame: &[u8]) -> Self {
        let frame_bytes = frame.len();
        let frame = EthernetFrame::parse(frame).expect("a frame");
        let ip = fixture::parse(frame.payload).expect("a packet");
        let segment = TcpPacket::new_checked(ip.payload()).expect("a segment");
        let control = match (segment.syn(), segment.fin(), segment.rst()) {
            (true, ..) => TcpControl::Syn,
            (_, true, _) => TcpControl::Fin,
            (.., true) => TcpControl::Rst,
            _ => TcpControl::None,
        };
        let (seq, ack) = (segment.seq_number(), segment.ack().then(|| segment.ack_number()));
        Self { to_mac: frame.destination, control, seq, ack, frame_bytes }
    }
}

/// A host socket that reads what it was given, and takes everything.
#[derive(Default)]
struct Host {
    read: VecDeque<io::Result<Vec<u8>>>,
}

impl Read for Host {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut bytes = self.read.pop_front().unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))?;
        let len = bytes.len().min(buffer.len());
        buffer[..len].copy_from_slice(&bytes[..len]);
        bytes.drain(..len);
        if !bytes.is_empty() {
            self.read.push_front(Ok(bytes));
        }
        Ok(len)
    }
}

impl Write for Host {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl HostStream for Host {
    fn shutdown_write(&mut self) -> io::Result<()> {
        Ok(())
    }
}
