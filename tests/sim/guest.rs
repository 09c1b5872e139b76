//! The guest: a kernel with real TCP connections (smoltcp's), the applications that own them, and raw packets for
//! everything else.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;

use rnet::config::MacAddr;
use rnet::net::packet::{EthernetFrame, IpPacket};
use rnet::net::{Duration, Instant, Offload, RxOffload};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpCidr, IpProtocol, TcpPacket, TcpSeqNumber};

use crate::end::{End, Ending, Reads, Report};
use crate::offload::{self, ETHERNET_BYTES};
use crate::pattern::Pattern;

pub(crate) const MAC: MacAddr = MacAddr([0x52, 0x55, 0x0a, 0, 2, 0x64]);
const RING_BYTES: usize = 128 * 1024;
/// When a FIN that was not acknowledged is sent again. smoltcp 0.14 forgets one after three duplicate
/// acknowledgments; a Linux guest does not.
const FIN_AGAIN: Duration = Duration::from_secs(70);

/// A frame on its way to the gateway, and what the link says about it.
pub(crate) type Sent = (Vec<u8>, RxOffload);

/// A packet that is no TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) hop_limit: u8,
    pub(crate) protocol: IpProtocol,
    pub(crate) payload: Vec<u8>,
}

impl Got {
    /// Source, destination and payload of a datagram.
    pub(crate) fn udp(&self) -> (SocketAddr, SocketAddr, &[u8]) {
        assert_eq!(self.protocol, IpProtocol::Udp, "{self:?}");
        let port = |at: usize| u16::from_be_bytes([self.payload[at], self.payload[at + 1]]);
        let (from, to) = (SocketAddr::new(self.source, port(0)), SocketAddr::new(self.destination, port(2)));
        (from, to, &self.payload[8..])
    }

    /// Type and code of an ICMP message.
    pub(crate) fn icmp(&self) -> (u8, u8) {
        assert!(matches!(self.protocol, IpProtocol::Icmp | IpProtocol::Icmpv6), "{self:?}");
        (self.payload[0], self.payload[1])
    }

    /// The ends of the TCP segment that an ICMP error quotes: the guest's and the other.
    fn quoted_tcp(&self) -> Option<(SocketAddr, SocketAddr)> {
        let is_error = match self.protocol {
            IpProtocol::Icmp => matches!(self.payload.first(), Some(3 | 11)),
            IpProtocol::Icmpv6 => matches!(self.payload.first(), Some(1 | 3)),
            _ => false,
        };
        let quote = offload::parse(self.payload.get(8..)?)
            .filter(|quote| is_error && quote.protocol == IpProtocol::Tcp)?;
        let ports = quote.payload().first_chunk::<4>()?;
        let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
        Some((SocketAddr::new(quote.source, port(0)), SocketAddr::new(quote.destination, port(2))))
    }
}

/// A socket and the application behind it.
struct Conversation {
    handle: SocketHandle,
    /// Which talk; a listening socket learns it from its client.
    talk: Option<usize>,
    end: End,
    local: SocketAddr,
    remote: Option<SocketAddr>,
    established: Option<Instant>,
    closed: bool,
    /// When its FIN was sent last, and where it stands in the stream.
    fin: Option<(Instant, TcpSeqNumber)>,
    /// The frame that it sent last.
    last: Vec<u8>,
}

pub(crate) struct Guest {
    iface: Interface,
    nic: Nic,
    sockets: SocketSet<'static>,
    conversations: Vec<Conversation>,
    pub(crate) reports: BTreeMap<usize, Report>,
    /// By the port of the client of a published port.
    clients: HashMap<u16, usize>,
    says: Pattern,
    hears: Pattern,
    keep_alive: Option<Duration>,
    /// Neither hears nor says anything any more.
    pub(crate) silent: bool,
    /// Ports whose TCP segments the kernel does not see; they are put into `segments`.
    pub(crate) deaf_ports: HashSet<u16>,
    pub(crate) segments: Vec<Vec<u8>>,
    pub(crate) inbox: Vec<Got>,
    fragments: HashMap<(IpAddr, u32), Fragments>,
    pub(crate) moved: u64,
    alarms: Vec<Instant>,
}

#[derive(Default)]
struct Fragments {
    parts: BTreeMap<usize, Vec<u8>>,
    len: Option<usize>,
}

impl Guest {
    pub(crate) fn new(
        mtu: u16,
        offload: Offload,
        addresses: &[IpCidr],
        seed: u64,
        keep_alive: Option<Duration>,
    ) -> Self {
        let mut nic = Nic { rx: VecDeque::new(), tx: Vec::new(), mtu, offload, meta: PacketMeta::default() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut iface = Interface::new(config, &mut nic, Instant::ZERO);
        iface.update_ip_addrs(|list| list.extend(addresses.iter().copied()));
        let routes = iface.routes_mut();
        routes.add_default_ipv4_route([10, 0, 2, 2].into()).expect("room for a route");
        routes.add_default_ipv6_route("fd00::2".parse().expect("an address")).expect("room for a route");
        Self {
            iface,
            nic,
            sockets: SocketSet::new(Vec::new()),
            conversations: Vec::new(),
            reports: BTreeMap::new(),
            clients: HashMap::new(),
            says: Pattern(seed),
            hears: Pattern(seed + 1),
            keep_alive,
            silent: false,
            deaf_ports: HashSet::new(),
            segments: Vec::new(),
            inbox: Vec::new(),
            fragments: HashMap::new(),
            moved: 0,
            alarms: Vec::new(),
        }
    }

    /// What the guest's applications say, and what those of the others do.
    pub(crate) fn patterns(&self) -> (Pattern, Pattern) {
        (self.says, self.hears)
    }

    fn socket(&self) -> Socket<'static> {
        let ring = || SocketBuffer::new(vec![0; RING_BYTES]);
        let mut socket = Socket::new(ring(), ring());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        socket.set_keep_alive(self.keep_alive);
        socket
    }

    /// Connects.
    pub(crate) fn connect(
        &mut self,
        talk: usize,
        local: SocketAddr,
        remote: SocketAddr,
        end: End,
        now: Instant,
    ) {
        let mut socket = self.socket();
        socket.connect(self.iface.context(), remote, local).expect("a valid address");
        let handle = self.sockets.add(socket);
        self.conversations.push(Conversation {
            handle,
            talk: Some(talk),
            end,
            local,
            remote: Some(remote),
            established: None,
            closed: false,
            fin: None,
            last: Vec::new(),
        });
        self.reports.insert(talk, Report::new(now));
    }

    /// Listens for one client.
    pub(crate) fn listen(&mut self, local: SocketAddr, end: End) {
        let mut socket = self.socket();
        socket.listen(local).expect("a valid address");
        let handle = self.sockets.add(socket);
        self.conversations.push(Conversation {
            handle,
            talk: None,
            end,
            local,
            remote: None,
            established: None,
            closed: false,
            fin: None,
            last: Vec::new(),
        });
    }

    /// The connection from a client's `port` will be `talk`.
    pub(crate) fn expect_client(&mut self, port: u16, talk: usize) {
        self.clients.insert(port, talk);
    }

    /// Forgets all connections without a word: what comes for them is answered with resets.
    pub(crate) fn forget_all(&mut self) {
        for conversation in std::mem::take(&mut self.conversations) {
            self.sockets.remove(conversation.handle);
            if let Some(report) = conversation.talk.and_then(|talk| self.reports.get_mut(&talk)) {
                report.ending = Ending::Forgotten;
            }
        }
    }

    /// No connection that has not ended.
    pub(crate) fn is_idle(&self) -> bool {
        self.silent || self.conversations.iter().all(|conversation| conversation.talk.is_none())
    }

    /// Takes a frame off the wire.
    pub(crate) fn receive(&mut self, frame: &[u8]) {
        if self.silent {
            return;
        }
        let frame = EthernetFrame::parse(frame).expect("an Ethernet header");
        let Some(ip) = offload::parse(frame.payload) else { return };
        if ip.fragment.is_some() {
            if let Some(whole) = self.gather(&ip) {
                self.inbox.push(whole);
            }
        } else if ip.protocol == IpProtocol::Tcp {
            let to = TcpPacket::new_checked(ip.payload()).expect("a well-formed segment").dst_port();
            if self.deaf_ports.contains(&to) {
                self.segments.push(ip.payload().to_vec());
            } else {
                self.nic.rx.push_back(ip.bytes.to_vec());
            }
        } else {
            let got = got(&ip, ip.payload().to_vec());
            self.note_unreachable(&got);
            self.inbox.push(got);
        }
    }

    /// As Linux does for a connection that is being opened.
    fn note_unreachable(&mut self, got: &Got) {
        let Some((guest, remote)) = got.quoted_tcp() else { return };
        let position = self.conversations.iter().position(|conversation| {
            conversation.local == guest
                && conversation.remote == Some(remote)
                && self.sockets.get::<Socket<'_>>(conversation.handle).state() == State::SynSent
        });
        if let Some(position) = position {
            self.end(position, Ending::Unreachable);
        }
    }

    fn gather(&mut self, ip: &IpPacket<'_>) -> Option<Got> {
        let fragment = ip.fragment?;
        let key = (ip.source, fragment.ident);
        let gathered = self.fragments.entry(key).or_default();
        let start = usize::from(fragment.offset_bytes);
        gathered.parts.insert(start, ip.payload().to_vec());
        if !fragment.more {
            gathered.len = Some(start + ip.payload().len());
        }
        let mut whole = Vec::new();
        for (start, part) in &gathered.parts {
            if *start == whole.len() {
                whole.extend_from_slice(part);
            }
        }
        if gathered.len != Some(whole.len()) {
            return None;
        }
        self.fragments.remove(&key);
        Some(got(ip, whole))
    }

    /// Lets kernel and applications act until nothing changes.
    pub(crate) fn poll(&mut self, now: Instant) {
        if self.silent {
            self.nic.rx.clear();
            return;
        }
        self.alarms.retain(|at| *at > now);
        loop {
            let changed = self.iface.poll(now, &mut self.nic, &mut self.sockets);
            let acted = self.act(now);
            if changed == PollResult::None && !acted {
                break;
            }
        }
        self.repeat_fins(now);
    }

    fn repeat_fins(&mut self, now: Instant) {
        let Self { conversations, sockets, nic, alarms, .. } = self;
        let mut again = Vec::new();
        for conversation in conversations.iter_mut().filter(|conversation| conversation.closed) {
            let socket = sockets.get::<Socket<'_>>(conversation.handle);
            let ends = socket.local_endpoint().zip(socket.remote_endpoint());
            let Some((local, remote)) = ends.map(|(local, remote)| (local.port, remote.port)) else {
                continue;
            };
            for (frame, _) in nic.tx.iter().filter(|(frame, _)| ports(frame) == (local, remote)) {
                conversation.last.clone_from(frame);
                if let Some(at) = fin_at(frame) {
                    conversation.fin = Some((now, at));
                    alarms.push(now + FIN_AGAIN);
                }
            }
            let unanswered = matches!(socket.state(), State::FinWait1 | State::Closing | State::LastAck);
            if let Some((sent_at, fin)) = &mut conversation.fin
                && unanswered
                && now >= *sent_at + FIN_AGAIN
            {
                *sent_at = now;
                alarms.push(now + FIN_AGAIN);
                again.push((only_fin(&conversation.last, *fin), RxOffload::default()));
            }
        }
        nic.tx.extend(again);
    }

    /// Frames that it has to send.
    pub(crate) fn take_sent(&mut self) -> Vec<Sent> {
        let sent = std::mem::take(&mut self.nic.tx);
        if self.silent { Vec::new() } else { sent }
    }

    /// When [`Self::poll`] wants to be called.
    pub(crate) fn next(&mut self, now: Instant) -> Option<Instant> {
        if self.silent {
            return None;
        }
        let tcp = self.iface.poll_at(now, &self.sockets);
        tcp.into_iter().chain(self.alarms.iter().copied()).min()
    }

    /// Every application does what it can; whether one did.
    fn act(&mut self, now: Instant) -> bool {
        let mut acted = false;
        for position in (0..self.conversations.len()).rev() {
            acted |= self.act_one(position, now);
        }
        acted
    }

    fn act_one(&mut self, position: usize, now: Instant) -> bool {
        let conversation = &mut self.conversations[position];
        let socket = self.sockets.get_mut::<Socket<'_>>(conversation.handle);
        let state = socket.state();
        if matches!(state, State::Listen | State::SynSent | State::SynReceived) {
            return false;
        }
        if conversation.talk.is_none() {
            let client = socket.remote_endpoint().map(|endpoint| endpoint.port);
            let talk = client.and_then(|port| self.clients.get(&port).copied()).expect("a known client");
            conversation.talk = Some(talk);
            self.reports.insert(talk, Report::new(now));
        }
        let talk = conversation.talk.expect("was set");
        let report = self.reports.get_mut(&talk).expect("every talk has a report");
        let end = &conversation.end;
        let started = match conversation.established {
            Some(started) => started,
            None if state == State::Closed => {
                self.end(position, Ending::Refused);
                return true;
            }
            None => {
                self.alarms.extend(end.alarms().map(|age| now + age));
                *conversation.established.insert(now)
            }
        };
        let age = now - started;
        if end.aborts_now(age, report.sent + report.got) && state != State::Closed {
            socket.abort();
            self.iface.poll_egress(now, &mut self.nic, &mut self.sockets);
            self.end(position, Ending::Aborted);
            return true;
        }
        // A kernel keeps what came before TIME-WAIT for as long as it takes; smoltcp does not.
        let reads = if state == State::TimeWait { Reads::Eagerly } else { end.reads };
        let got = take(socket, reads, report, self.hears, age);
        let sent = give(socket, end, report, self.says);
        self.moved += got + sent;
        if got > 0 || (end.reads.allowance(age, report.got) == 0 && socket.can_recv()) {
            self.alarms.extend(end.reads.next(report.got).map(|age| started + age).filter(|at| *at > now));
        }
        let mut acted = got + sent > 0;
        if !report.heard && socket.recv(|_| (0, ())) == Err(RecvError::Finished) {
            report.heard = true;
            acted = true;
        }
        if !conversation.closed && report.sent == end.sends && end.closes_now(age, report.heard) {
            conversation.closed = true;
            socket.close();
            acted = true;
        }
        let ending = match socket.state() {
            State::Closed | State::TimeWait if conversation.closed && report.heard => Ending::Orderly,
            State::Closed if !socket.can_recv() => Ending::Reset,
            _ => return acted,
        };
        if ending == Ending::Orderly && socket.state() == State::TimeWait {
            // The last acknowledgment still has to leave.
            self.iface.poll_egress(now, &mut self.nic, &mut self.sockets);
        }
        self.end(position, ending);
        true
    }

    fn end(&mut self, position: usize, ending: Ending) {
        let conversation = self.conversations.remove(position);
        self.sockets.remove(conversation.handle);
        if let Some(report) = conversation.talk.and_then(|talk| self.reports.get_mut(&talk)) {
            report.ending = ending;
        }
        self.moved += 1;
    }
}

fn take(socket: &mut Socket<'_>, reads: Reads, report: &mut Report, pattern: Pattern, age: Duration) -> u64 {
    let mut total = 0;
    while socket.can_recv() {
        let allowed = reads.allowance(age, report.got);
        if allowed == 0 {
            break;
        }
        let taken = socket.recv(|bytes| {
            let count = bytes.len().min(usize::try_from(allowed).unwrap_or(usize::MAX));
            pattern.check(report.got, &bytes[..count]);
            (count, count)
        });
        let Ok(taken @ 1..) = taken else { break };
        report.got += taken as u64;
        total += taken as u64;
    }
    total
}

fn give(socket: &mut Socket<'_>, end: &End, report: &mut Report, pattern: Pattern) -> u64 {
    let mut total = 0;
    while socket.can_send() && report.sent < end.sends {
        let given = socket.send(|room| {
            let count = room.len().min(usize::try_from(end.sends - report.sent).unwrap_or(usize::MAX));
            pattern.fill(report.sent, &mut room[..count]);
            (count, count)
        });
        let Ok(given @ 1..) = given else { break };
        report.sent += given as u64;
        total += given as u64;
    }
    total
}

fn got(ip: &IpPacket<'_>, payload: Vec<u8>) -> Got {
    Got {
        source: ip.source,
        destination: ip.destination,
        hop_limit: ip.hop_limit,
        protocol: ip.protocol,
        payload,
    }
}

/// A frame from the guest around an IP packet.
pub(crate) fn frame(packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0x00] };
    [&MacAddr::GATEWAY.0[..], &MAC.0, &ethertype, packet].concat()
}

/// The TCP segment in a frame of the guest's kernel.
fn segment(frame: &[u8]) -> TcpPacket<&[u8]> {
    let header = if frame[ETHERNET_BYTES] >> 4 == 6 { 40 } else { 20 };
    TcpPacket::new_unchecked(&frame[ETHERNET_BYTES + header..])
}

/// Source and destination port.
fn ports(frame: &[u8]) -> (u16, u16) {
    (segment(frame).src_port(), segment(frame).dst_port())
}

/// Where the frame's FIN stands in the stream, if it carries one.
fn fin_at(frame: &[u8]) -> Option<TcpSeqNumber> {
    let segment = segment(frame);
    segment.fin().then(|| segment.seq_number() + segment.payload().len())
}

/// A frame with nothing but a FIN, which otherwise says what `last` does.
fn only_fin(last: &[u8], fin: TcpSeqNumber) -> Vec<u8> {
    let ip = offload::parse(&last[ETHERNET_BYTES..]).expect("a well-formed IP packet");
    let (ip_bytes, source, destination) = (ip.header_bytes, ip.source.into(), ip.destination.into());
    let header_bytes = usize::from(segment(last).header_len());
    let mut packet = ip.bytes[..ip_bytes + header_bytes].to_vec();
    offload::set_length(&mut packet);
    let mut segment = TcpPacket::new_unchecked(&mut packet[ip_bytes..]);
    segment.set_seq_number(fin);
    segment.set_fin(true);
    segment.fill_checksum(&source, &destination);
    frame(&packet)
}

/// The guest kernel's network card.
struct Nic {
    rx: VecDeque<Vec<u8>>,
    tx: Vec<Sent>,
    mtu: u16,
    offload: Offload,
    meta: PacketMeta,
}

impl Device for Nic {
    type RxToken<'a> = Received;
    type TxToken<'a> = Transmission<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Transmission<'_>)> {
        let packet = self.rx.pop_front()?;
        Some((Received(packet), self.transmission()))
    }

    fn transmit(&mut self, _: Instant) -> Option<Transmission<'_>> {
        Some(self.transmission())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = self.mtu.into();
        if self.offload != Offload::None {
            caps.checksum = ChecksumCapabilities::ignored();
            caps.checksum.ipv4 = Checksum::Both;
            caps.checksum.tcp = Checksum::Rx;
            // smoltcp 0.14 drops IPv6 segments above the MTU.
            caps.segmentation.tcpv4 = NonZeroUsize::new(65_535);
        }
        caps
    }
}

impl Nic {
    fn transmission(&mut self) -> Transmission<'_> {
        let partial = self.offload != Offload::None;
        Transmission { tx: &mut self.tx, partial, meta: self.meta }
    }
}

struct Received(Vec<u8>);

impl smoltcp::phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Transmission<'a> {
    tx: &'a mut Vec<Sent>,
    partial: bool,
    meta: PacketMeta,
}

impl smoltcp::phy::TxToken for Transmission<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut packet = vec![0; len];
        let result = fill(&mut packet);
        if self.partial {
            leave_to_link(&mut packet);
        }
        let offload = RxOffload {
            partial_checksum: self.partial,
            segment_bytes: self.meta.segmentation_offload_size.map(Into::into),
        };
        self.tx.push((frame(&packet), offload));
        result
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }
}

/// A checksum that the link has yet to make right.
fn leave_to_link(packet: &mut [u8]) {
    let header = if packet[0] >> 4 == 6 { 40 } else { 20 };
    TcpPacket::new_unchecked(&mut packet[header..]).set_checksum(0x5eed);
}
