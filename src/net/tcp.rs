//! TCP: one private smoltcp endpoint per flow, between the guest and one host socket.
//!
//! Theory of operation. A guest's SYN is held until the host socket has connected, so that the guest sees
//! what really happened: the SYN is then replayed into a listening endpoint, or answered with a reset or an ICMP
//! error. A published connection goes the other way: the host has accepted, and the endpoint opens towards the
//! guest from the client's own address. Bytes are lent, not queued: the host socket is read *into* the
//! endpoint's ring and written *out of* it, so that backpressure is the TCP window.
//!
//! Each flow has its own interface and a socket set of one: smoltcp's cost per packet grows with the sockets
//! in a set, while the flow table finds the endpoint in constant time. On links with offloads an endpoint
//! believes in an MTU of 65,535 bytes; what exceeds the guest's segment size leaves as one frame that the
//! kernel cuts (TSO). (smoltcp 0.14 drops IPv6 segments above the MTU that it was told.)

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;

use smoltcp::iface::{self, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{self, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpProtocol, TcpPacket};

use super::gateway::{Core, Flow, FromGuest};
use super::icmp::{self, Unreachable};
use super::outbox::ETHERNET_BYTES;
use super::packet::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, IpPacket, pseudo_header,
};
use super::policy::{self, Inbound, Verdict};
use super::{
    DropReason, Duration, FlowId, FlowKey, HostError, HostOp, Instant, Offload, Outbox, PortId, PublishId,
    Release, TxOffload, dns, nat,
};

/// Bytes of each of an endpoint's two rings, and so its largest window. Larger ones fall out of the cache.
const RING_BYTES: usize = 256 * 1024;
/// Bytes moved for one flow, each way, before another has its turn.
const SERVICE_BYTES: usize = 512 * 1024;
/// Closed endpoints kept for the next flows, with the pages of their rings already there.
const SPARE_ENDPOINTS: usize = 16;
/// A guest that has not answered a published connection's SYN by then never will.
const GUEST_CONNECT: Duration = Duration::from_secs(30);
/// How often a half-closed guest is asked whether it still knows the connection. An orphaned FIN_WAIT2 socket
/// answers with a reset, so that no flow stays half-closed for ever.
const HALF_CLOSED_PROBE: Duration = Duration::from_secs(60);
/// A half-closed guest that answers no probe for so long is gone.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(600);
/// Segment size of a guest that names none (RFC 9293 section 3.7.1).
const DEFAULT_MSS: u16 = 536;
/// The least that smoltcp accepts; a smaller one would make the two disagree.
const LEAST_MSS: u16 = 48;
/// Where the checksum stands in the TCP header.
const CHECKSUM_OFFSET: u16 = 16;
/// What an endpoint on an offloading link believes the MTU to be: the largest IP packet.
const OFFLOAD_MTU: usize = 65_535;
/// A retry when an endpoint wants attention at once but had room to act: it cannot have meant it.
const POLL_AGAIN: Duration = Duration::from_millis(1);

/// A host socket, or a test's stand-in. `WouldBlock` means that readiness will be announced.
pub trait HostStream: io::Read + io::Write {
    /// Sends FIN after what was written.
    fn shutdown_write(&mut self) -> io::Result<()>;
}

/// A TCP connection between the guest and the host.
pub(super) struct TcpFlow {
    ethernet: Ethernet,
    stage: Stage,
    /// The published connection's other way to the guest, if the first is refused.
    fallback: Option<Inbound>,
    readable: bool,
    writable: bool,
    /// Waits on the ready list.
    queued: bool,
    /// The host has sent its FIN, and it was passed on.
    host_finished: bool,
    /// The guest has sent its FIN, and it was passed on.
    guest_finished: bool,
    to_host_bytes: u64,
    to_guest_bytes: u64,
}

enum Stage {
    /// The guest's SYN waits for the host socket; the number of forwarder attempts, if it is for DNS.
    Connecting {
        syn: Box<[u8]>,
        dns_attempt: Option<usize>,
    },
    Open(Box<Endpoint>),
}

/// What became of a flow that was served.
enum Outcome {
    /// It lives; it has more to do at once if `true`.
    Alive(bool),
    Ended(Release),
    /// The guest refused a published connection.
    Refused,
}

impl TcpFlow {
    fn new(ethernet: Ethernet, stage: Stage) -> Self {
        Self {
            ethernet,
            stage,
            fallback: None,
            readable: true,
            writable: true,
            queued: false,
            host_finished: false,
            guest_finished: false,
            to_host_bytes: 0,
            to_guest_bytes: 0,
        }
    }

    /// Moves bytes both ways and lets the endpoint speak; everything that changes a flow ends here.
    fn service(&mut self, host: &mut impl HostStream, outbox: &mut Outbox, now: Instant) -> Outcome {
        let Stage::Open(endpoint) = &mut self.stage else { return Outcome::Alive(false) };
        let mut budget = SERVICE_BYTES;
        let moved = loop {
            if endpoint.is_over() {
                return self.over();
            }
            let before = budget;
            let to_host = pump_to_host(endpoint, host, &mut self.writable);
            let to_guest = pump_to_guest(endpoint, host, &mut self.readable);
            let (Ok(to_host), Ok((to_guest, eof))) = (to_host, to_guest) else {
                endpoint.abort(&self.ethernet, outbox, now);
                return Outcome::Ended(Release::Reset);
            };
            self.to_host_bytes += to_host as u64;
            self.to_guest_bytes += to_guest as u64;
            budget = budget.saturating_sub(to_host + to_guest);
            if eof {
                endpoint.socket_mut().close();
                endpoint.probe_half_closed();
                self.host_finished = true;
            }
            endpoint.transmit(&self.ethernet, outbox, now, false);
            if budget == before || budget == 0 || !outbox.has_frame_room() {
                break before != budget;
            }
        };
        self.finish_guest(host);
        self.outcome(moved)
    }

    /// Passes the guest's FIN on once all that came before it is written.
    fn finish_guest(&mut self, host: &mut impl HostStream) {
        let Stage::Open(endpoint) = &mut self.stage else { return };
        if !self.guest_finished && endpoint.guest_has_finished() {
            // A socket that the remote end has reset cannot be shut down; reading it will tell.
            let _ = host.shutdown_write();
            endpoint.probe_half_closed();
            self.guest_finished = true;
        }
    }

    fn outcome(&self, moved: bool) -> Outcome {
        let Stage::Open(endpoint) = &self.stage else { return Outcome::Alive(false) };
        match endpoint.socket().state() {
            _ if endpoint.is_over() => self.over(),
            // The guest link is as good as lossless: nobody needs a TIME-WAIT there.
            State::TimeWait if self.guest_finished => Outcome::Ended(Release::Close),
            _ => Outcome::Alive(moved),
        }
    }

    /// How a flow whose endpoint is over ends.
    fn over(&self) -> Outcome {
        match &self.stage {
            Stage::Open(endpoint) if endpoint.opening => Outcome::Refused,
            _ if self.host_finished && self.guest_finished => Outcome::Ended(Release::Close),
            _ => Outcome::Ended(Release::Reset),
        }
    }
}

/// Writes what the guest has sent out of the ring. Bytes written; an error is the socket's end.
fn pump_to_host(
    endpoint: &mut Endpoint,
    host: &mut impl HostStream,
    writable: &mut bool,
) -> io::Result<usize> {
    let socket = endpoint.socket_mut();
    if !*writable || !socket.can_recv() || matches!(socket.state(), State::SynReceived | State::SynSent) {
        return Ok(0);
    }
    let written = socket.recv(|bytes| match host.write(bytes) {
        Ok(count) => (count, Ok(count)),
        Err(error) => (0, Err(error)),
    });
    match written {
        Ok(result) => blocked(result, writable),
        Err(_) => Ok(0),
    }
}

/// Reads the host socket into the ring. Bytes read, and whether the host has finished.
fn pump_to_guest(
    endpoint: &mut Endpoint,
    host: &mut impl HostStream,
    readable: &mut bool,
) -> io::Result<(usize, bool)> {
    let socket = endpoint.socket_mut();
    if !*readable || !socket.can_send() {
        return Ok((0, false));
    }
    let read = socket.send(|room| match host.read(room) {
        Ok(count) => (count, Ok((count, count == 0 && !room.is_empty()))),
        Err(error) => (0, Err(error)),
    });
    match read {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => blocked(Err(error), readable).map(|count| (count, false)),
        Err(_) => Ok((0, false)),
    }
}

/// Turns "not now" into no bytes and a cleared readiness bit.
fn blocked(result: io::Result<usize>, ready: &mut bool) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            *ready = false;
            Ok(0)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        other => other,
    }
}

/// A smoltcp interface with one TCP socket; reused from flow to flow.
pub(super) struct Endpoint {
    iface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    offload: Offload,
    mtu: u16,
    /// Payload bytes of the largest segment that the guest takes.
    mss: u16,
    /// Opens towards the guest, which has not answered yet.
    opening: bool,
    /// The guest's FIN has arrived.
    fin_received: bool,
    /// The FIN that led into TIME-WAIT has been acknowledged.
    lingers: bool,
}

impl Endpoint {
    fn new(ethernet: &Ethernet, seed: u64, now: Instant) -> Box<Self> {
        let mut socket = tcp::Socket::new(ring(), ring());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let iface = interface(ethernet, seed, now);
        let (offload, mtu) = (ethernet.offload, ethernet.mtu);
        Box::new(Self {
            iface,
            sockets,
            handle,
            offload,
            mtu,
            mss: DEFAULT_MSS,
            opening: false,
            fin_received: false,
            lingers: false,
        })
    }

    fn fits(&self, ethernet: &Ethernet) -> bool {
        self.offload == ethernet.offload && self.mtu == ethernet.mtu
    }

    fn socket(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Gets it ready for another flow.
    fn reset(&mut self) {
        let socket = self.socket_mut();
        socket.abort();
        socket.set_keep_alive(None);
        socket.set_timeout(None);
        self.mss = DEFAULT_MSS;
        self.opening = false;
        self.fin_received = false;
        self.lingers = false;
    }

    /// Waits as `local` for the SYN that is replayed next.
    fn listen(&mut self, local: SocketAddr) -> bool {
        self.socket_mut().listen(local).is_ok()
    }

    /// Opens from `local` (the client's address) to `guest`.
    fn connect(&mut self, local: SocketAddr, guest: SocketAddr) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        socket.set_timeout(Some(GUEST_CONNECT));
        self.opening = socket.connect(self.iface.context(), guest, local).is_ok();
        self.opening
    }

    /// Takes one packet from the guest.
    fn receive(&mut self, packet: &IpPacket<'_>, ethernet: &Ethernet, outbox: &mut Outbox, now: Instant) {
        if let Some(mss) = segment_size(packet) {
            let link_mss = self.mtu.saturating_sub(if packet.source.is_ipv4() { 40 } else { 60 });
            self.mss = mss.clamp(LEAST_MSS, link_mss.max(LEAST_MSS));
        }
        let mut device =
            FlowDevice { rx: Some(packet.bytes), ethernet, mss: self.mss, outbox, urgent: false };
        self.iface.poll_ingress_single(now, &mut device, &mut self.sockets);
        let state = self.socket().state();
        self.fin_received |=
            matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if self.opening && !matches!(self.socket().state(), State::SynSent | State::Closed) {
            self.opening = false;
            self.socket_mut().set_timeout(None);
        }
    }

    /// Says what there is to say while the outbox has room; an urgent word goes into its reserve.
    fn transmit(&mut self, ethernet: &Ethernet, outbox: &mut Outbox, now: Instant, urgent: bool) {
        if self.lingers {
            // The end of TIME-WAIT would throw away what the host socket has yet to take.
            return;
        }
        self.lingers = self.socket().state() == State::TimeWait;
        let mut device = FlowDevice { rx: None, ethernet, mss: self.mss, outbox, urgent };
        while let PollResult::SocketStateChanged = self.iface.poll_egress(now, &mut device, &mut self.sockets)
        {
        }
    }

    fn abort(&mut self, ethernet: &Ethernet, outbox: &mut Outbox, now: Instant) {
        self.socket_mut().abort();
        self.transmit(ethernet, outbox, now, true);
    }

    fn next_poll(&mut self, now: Instant) -> Option<Instant> {
        self.iface.poll_at(now, &self.sockets)
    }

    /// The guest has sent FIN and everything before it has been taken out.
    fn guest_has_finished(&self) -> bool {
        self.fin_received && self.socket().recv_queue() == 0
    }

    /// Closed, and nothing that came in good order is left to take out.
    fn is_over(&self) -> bool {
        let socket = self.socket();
        socket.state() == State::Closed && !(self.fin_received && socket.can_recv())
    }

    fn probe_half_closed(&mut self) {
        let socket = self.socket_mut();
        socket.set_keep_alive(Some(HALF_CLOSED_PROBE));
        socket.set_timeout(Some(HALF_CLOSED_TIMEOUT));
    }
}

fn ring() -> SocketBuffer<'static> {
    SocketBuffer::new(vec![0; RING_BYTES])
}

fn interface(ethernet: &Ethernet, seed: u64, now: Instant) -> Interface {
    let mut config = iface::Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut iface = Interface::new(config, &mut Description(ethernet), now);
    iface.set_any_ip(true);
    iface
}

/// The segment size that a SYN announces, if `packet` is one.
fn segment_size(packet: &IpPacket<'_>) -> Option<u16> {
    let segment = TcpPacket::new_checked(packet.payload()).ok()?;
    if !segment.syn() {
        return None;
    }
    let mut options = segment.options();
    while !options.is_empty() {
        let (rest, option) = smoltcp::wire::TcpOption::parse(options).ok()?;
        if let smoltcp::wire::TcpOption::MaxSegmentSize(size) = option {
            return Some(size);
        }
        options = rest;
    }
    Some(DEFAULT_MSS)
}

/// The link as one endpoint sees it: at most one packet to take, and the outbox to write to.
struct FlowDevice<'a> {
    rx: Option<&'a [u8]>,
    ethernet: &'a Ethernet,
    mss: u16,
    outbox: &'a mut Outbox,
    urgent: bool,
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
struct Description<'a>(&'a Ethernet);

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
        Offload::ChecksumAndTso => {
            caps.max_transmission_unit = OFFLOAD_MTU;
            caps.segmentation.tcpv4 = NonZeroUsize::new(OFFLOAD_MTU);
            caps.segmentation.tcpv6 = NonZeroUsize::new(OFFLOAD_MTU);
        }
    }
    caps
}

struct RxPacket<'a>(&'a [u8]);

impl phy::RxToken for RxPacket<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

struct TxSegment<'a> {
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
        let packet = smoltcp::wire::Ipv6Packet::new_unchecked(packet);
        (packet.src_addr().into(), packet.dst_addr().into())
    } else {
        let packet = smoltcp::wire::Ipv4Packet::new_unchecked(packet);
        (packet.src_addr().into(), packet.dst_addr().into())
    }
}

/// An interface without a socket: it answers every segment with the reset that RFC 9293 section 3.10.7.1 asks.
pub(super) struct Refusal {
    iface: Interface,
    sockets: SocketSet<'static>,
}

impl Refusal {
    pub(super) fn new(ethernet: &Ethernet, now: Instant) -> Self {
        Self { iface: interface(ethernet, 0, now), sockets: SocketSet::new(Vec::new()) }
    }

    fn answer(&mut self, packet: &IpPacket<'_>, ethernet: &Ethernet, outbox: &mut Outbox, now: Instant) {
        let mut device =
            FlowDevice { rx: Some(packet.bytes), ethernet, mss: DEFAULT_MSS, outbox, urgent: false };
        self.iface.poll_ingress_single(now, &mut device, &mut self.sockets);
    }
}

/// A segment from the guest.
pub(super) fn from_guest(core: &mut Core, packet: &FromGuest<'_>) {
    let ip = &packet.ip;
    let Ok(segment) = TcpPacket::new_checked(ip.payload()) else {
        return core.counters.drop(DropReason::Malformed);
    };
    if !is_plain(ip) || segment.src_port() == 0 || segment.dst_port() == 0 {
        return core.counters.drop(DropReason::Unsupported);
    }
    let guest = SocketAddr::new(ip.source, segment.src_port());
    let remote = SocketAddr::new(ip.destination, segment.dst_port());
    let key = FlowKey::Tcp { port: packet.port, guest, remote };
    match core.table.find(&key) {
        Some(id) => segment_of_flow(core, id, packet),
        None if segment.syn() && !segment.ack() && !segment.rst() => open(core, packet, key, guest, remote),
        None => refuse(core, packet, DropReason::NoFlow),
    }
}

/// Whether smoltcp will see the headers that the parser saw (it does not follow IPv6's extension headers).
fn is_plain(ip: &IpPacket<'_>) -> bool {
    ip.source.is_ipv4() || ip.header_bytes == IPV6_HEADER_BYTES
}

fn segment_of_flow(core: &mut Core, id: FlowId, packet: &FromGuest<'_>) {
    let now = core.now;
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    // While the host socket connects, the guest only repeats its SYN.
    if let Stage::Open(endpoint) = &mut flow.stage {
        endpoint.receive(&packet.ip, &flow.ethernet, &mut core.outbox, now);
        core.queue(id);
    }
}

/// Decides about a new connection from the guest.
fn open(core: &mut Core, packet: &FromGuest<'_>, key: FlowKey, guest: SocketAddr, remote: SocketAddr) {
    let ethernet = core.ethernet(packet.port, packet.mac);
    let (target, dns_attempt) = match policy::route(&core.network, remote) {
        Verdict::Connect(target) => (target, None),
        Verdict::Dns => {
            core.outbox.op(HostOp::RefreshResolvers);
            match dns::server(core, 0) {
                Some(server) => (server, Some(0)),
                None => return refuse(core, packet, DropReason::NoFlow),
            }
        }
        Verdict::Deny(reason) => {
            nat::log_denied(core, "tcp", guest, remote, reason);
            return refuse(core, packet, DropReason::Denied);
        }
    };
    if packet.ip.hop_limit <= 1 && dns_attempt.is_none() {
        return time_exceeded(core, &ethernet, &packet.ip);
    }
    let stage = Stage::Connecting { syn: packet.ip.bytes.into(), dns_attempt };
    match core.table.insert(Some(key), Flow::Tcp(Box::new(TcpFlow::new(ethernet, stage)))) {
        Some(flow) => {
            tracing::debug!(%guest, %remote, %target, "tcp connect");
            core.outbox.op(HostOp::Connect { flow, to: target });
        }
        None => refuse(core, packet, DropReason::Limit),
    }
}

fn time_exceeded(core: &mut Core, ethernet: &Ethernet, ip: &IpPacket<'_>) {
    core.counters.drop(DropReason::HopLimit);
    let from = core.gateway_address(ip.source);
    icmp::error(ethernet, &mut core.outbox, from, ip.bytes, ip.source, Unreachable::HopLimit);
}

/// Answers with a reset.
fn refuse(core: &mut Core, packet: &FromGuest<'_>, reason: DropReason) {
    core.counters.drop(reason);
    let ethernet = core.ethernet(packet.port, packet.mac);
    let (now, outbox) = (core.now, &mut core.outbox);
    core.refusals[usize::from(packet.port.0)].answer(&packet.ip, &ethernet, outbox, now);
}

/// The host socket of `id` has connected: the guest's SYN is replayed.
pub(super) fn connected(core: &mut Core, id: FlowId) {
    let (now, seed) = (core.now, core.next_seed());
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    let Stage::Connecting { syn, .. } = &flow.stage else { return };
    let Some((remote, _)) = ends(syn) else { return };
    let mut endpoint = take_endpoint(&mut core.spare_endpoints, &flow.ethernet, seed, now);
    let syn = syn.clone();
    if let (true, Ok(packet)) = (endpoint.listen(remote), parse(&syn)) {
        endpoint.receive(&packet, &flow.ethernet, &mut core.outbox, now);
    }
    flow.stage = Stage::Open(endpoint);
    core.queue(id);
}

/// The host socket of `id` could not connect: the guest learns why.
pub(super) fn connect_failed(core: &mut Core, id: FlowId, error: HostError) {
    let Some(Flow::Tcp(flow)) = core.table.get(id) else { return };
    let ethernet = flow.ethernet;
    let Stage::Connecting { syn, dns_attempt } = &flow.stage else { return };
    let syn = syn.clone();
    if let Some(attempt) = *dns_attempt
        && let Some(to) = dns::server(core, attempt + 1)
    {
        let stage = Stage::Connecting { syn, dns_attempt: Some(attempt + 1) };
        if let Some(Flow::Tcp(flow)) = core.table.get_mut(id) {
            flow.stage = stage;
        }
        return core.outbox.op(HostOp::Connect { flow: id, to });
    }
    core.table.remove(id);
    let Ok(ip) = parse(&syn) else { return };
    tracing::debug!(guest = %ip.source, remote = %ip.destination, ?error, "tcp connect failed");
    let unreachable = match error {
        // The guest's own timer says so in its own words.
        HostError::TimedOut => return,
        HostError::Refused => {
            return core.refusals[usize::from(ethernet.port.0)].answer(
                &ip,
                &ethernet,
                &mut core.outbox,
                core.now,
            );
        }
        HostError::NetUnreachable => Unreachable::Network,
        HostError::HostUnreachable | HostError::Exhausted => Unreachable::Host,
        HostError::Prohibited => Unreachable::Prohibited,
    };
    let from = core.gateway_address(ip.source);
    icmp::error(&ethernet, &mut core.outbox, from, ip.bytes, ip.source, unreachable);
}

/// A client was accepted on a published port: opens towards the guest. `None`, and the client should be reset, if
/// there is no room for it.
pub(super) fn accepted(core: &mut Core, publish: PublishId, client: SocketAddr) -> Option<FlowId> {
    let published = core.published.get(publish.0 as usize)?;
    let port = published.port;
    let (way, fallback) = policy::inbound(&core.network, client, published.guest_port);
    let ethernet = core.ethernet(port, core.ports[usize::from(port.0)].mac);
    let (key, source) = free_key(core, port, way)?;
    let endpoint = opening_endpoint(core, &ethernet, source, way.guest)?;
    let mut flow = TcpFlow::new(ethernet, Stage::Open(endpoint));
    flow.fallback = fallback;
    let id = core.table.insert(Some(key), Flow::Tcp(Box::new(flow)))?;
    tracing::debug!(%client, guest = %way.guest, "tcp published");
    core.queue(id);
    Some(id)
}

fn opening_endpoint(
    core: &mut Core,
    ethernet: &Ethernet,
    source: SocketAddr,
    guest: SocketAddr,
) -> Option<Box<Endpoint>> {
    let (now, seed) = (core.now, core.next_seed());
    let mut endpoint = take_endpoint(&mut core.spare_endpoints, ethernet, seed, now);
    endpoint.connect(source, guest).then_some(endpoint)
}

/// A key that no other flow has: the source's port moves if two clients came to look alike.
fn free_key(core: &Core, port: PortId, way: Inbound) -> Option<(FlowKey, SocketAddr)> {
    let first = way.source.port();
    let numbers = (first..=u16::MAX).chain(1..first);
    numbers.map(|number| SocketAddr::new(way.source.ip(), number)).find_map(|remote| {
        let key = FlowKey::Tcp { port, guest: way.guest, remote };
        core.table.find(&key).is_none().then_some((key, remote))
    })
}

/// Serves the flow `id` with its host socket.
pub(super) fn service(core: &mut Core, id: FlowId, host: &mut impl HostStream) {
    let now = core.now;
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    flow.queued = false;
    match flow.service(host, &mut core.outbox, now) {
        Outcome::Alive(more) => rearm(core, id, more),
        Outcome::Ended(how) => end(core, id, how),
        Outcome::Refused => refused_by_guest(core, id),
    }
}

/// Sees to it that the flow is served again when it must be.
fn rearm(core: &mut Core, id: FlowId, more: bool) {
    let now = core.now;
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    let Stage::Open(endpoint) = &mut flow.stage else { return };
    let next = endpoint.next_poll(now);
    let due = next.is_some_and(|at| at <= now);
    if more || (due && !core.outbox.has_frame_room()) {
        core.queue(id);
    }
    core.table.set_deadline(id, if due { Some(now + POLL_AGAIN) } else { next });
}

fn refused_by_guest(core: &mut Core, id: FlowId) {
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    let ethernet = flow.ethernet;
    let again = flow.fallback.take().and_then(|way| {
        let (key, source) = free_key(core, ethernet.port, way)?;
        Some((key, opening_endpoint(core, &ethernet, source, way.guest)?))
    });
    let Some((key, endpoint)) = again else { return end(core, id, Release::Reset) };
    core.table.rekey(id, key);
    if let Some(Flow::Tcp(flow)) = core.table.get_mut(id) {
        flow.stage = Stage::Open(endpoint);
    }
    core.queue(id);
}

fn end(core: &mut Core, id: FlowId, how: Release) {
    let Some(Flow::Tcp(flow)) = core.table.remove(id) else { return };
    tracing::debug!(to_host = flow.to_host_bytes, to_guest = flow.to_guest_bytes, ?how, "tcp end");
    core.outbox.op(HostOp::Release { flow: id, how });
    if let Stage::Open(mut endpoint) = flow.stage
        && core.spare_endpoints.len() < SPARE_ENDPOINTS
    {
        endpoint.reset();
        core.spare_endpoints.push(endpoint);
    }
}

/// Notes what the poll said of the flow's host socket.
pub(super) fn host_ready(core: &mut Core, id: FlowId, readable: bool, writable: bool) {
    let Some(Flow::Tcp(flow)) = core.table.get_mut(id) else { return };
    flow.readable |= readable;
    flow.writable |= writable;
    if matches!(flow.stage, Stage::Open(_)) {
        core.queue(id);
    }
}

/// Puts the flow on the ready list unless it is there; `false` if it was.
pub(super) fn mark_queued(flow: &mut TcpFlow) -> bool {
    !std::mem::replace(&mut flow.queued, true)
}

#[expect(clippy::vec_box, reason = "as in `Core`")]
fn take_endpoint(
    spare: &mut Vec<Box<Endpoint>>,
    ethernet: &Ethernet,
    seed: u64,
    now: Instant,
) -> Box<Endpoint> {
    match spare.pop() {
        Some(endpoint) if endpoint.fits(ethernet) => endpoint,
        _ => Endpoint::new(ethernet, seed, now),
    }
}

fn parse(packet: &[u8]) -> Result<IpPacket<'_>, DropReason> {
    match packet.first() {
        Some(first) if first >> 4 == 4 => IpPacket::parse_v4(packet),
        _ => IpPacket::parse_v6(packet),
    }
}

/// Destination and source of a saved segment.
fn ends(packet: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let ip = parse(packet).ok()?;
    let segment = TcpPacket::new_checked(ip.payload()).ok()?;
    let source = SocketAddr::new(ip.source, segment.src_port());
    Some((SocketAddr::new(ip.destination, segment.dst_port()), source))
}
