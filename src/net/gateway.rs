//! The virtual router: what guests see as 10.0.2.2.
//!
//! [`Gateway`] is the core's only entrance: `handle_*` and [`Gateway::service`] take inputs,
//! [`Gateway::outbox`], [`Gateway::next_ready`] and [`Gateway::poll_timeout`] say what follows. It takes a frame
//! apart once and hands the packet to the module of its protocol; these share the [`Core`].

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use smoltcp::wire::{Icmpv4Message, Icmpv6Message, IpProtocol, UdpPacket};

use super::counters::Counters;
use super::dns::{DnsFlow, Forwarder};
use super::names::Names;
use super::nat::{Notices, Refused};
use super::outbox::{ETHERNET_BYTES, Outbox};
use super::packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, EthernetFrame, IpPacket};
use super::ping::PingFlow;
use super::policy::{self, Service, Splice};
use super::reassembly::Reassembly;
use super::steer::Shard;
use super::switch::{Seat, Stations, Way};
use super::table::{FlowId, FlowKey, Table};
use super::tcp::{self, HostStream, Refusal, Spares, TcpFlow};
use super::udp::{Clients, PublishedFlow, UdpFlow};
use super::{
    DropReason, HostError, HostEvent, IcmpError, Instant, LargeDatagram, Offload, PortId, PublishId,
    RxOffload,
};
use super::{dhcp, dns, icmp, neighbor, ping, udp};
use crate::config::{MacAddr, Network, Transport};

/// Flows of all protocols at once; each costs at least one file descriptor of the host.
const MAX_FLOWS: usize = 65_536;
/// Guests of one network; each costs a link, and every frame to all goes to each.
pub const MAX_SEATS: usize = 1024;
/// Flows of an unplugged link that are ended in one go: fewer operations than the outbox keeps room for.
const CLEARED_AT_ONCE: usize = 2;
/// Where DHCP servers listen (RFC 2131 section 4.1, RFC 8415 section 7.2).
const DHCP_V4_SERVER: u16 = 67;
const DHCP_V6_SERVER: u16 = 547;

/// The router of one network, with one port per guest link.
pub struct Gateway {
    core: Core,
    reassembly: Reassembly,
}

/// What every protocol module works on.
pub(super) struct Core {
    pub(super) network: Arc<Network>,
    pub(super) shard: Shard,
    pub(super) now: Instant,
    pub(super) outbox: Outbox,
    pub(super) counters: Counters,
    pub(super) table: Table<Flow>,
    pub(super) ports: Vec<Port>,
    /// TCP flows whose host socket is being connected.
    pub(super) connecting: usize,
    /// TCP flows that want their host socket served.
    pub(super) ready: VecDeque<FlowId>,
    pub(super) spares: Spares,
    /// One per port.
    pub(super) refusals: Vec<Refusal>,
    seed: u64,
    /// By [`PublishId`]; `None` is free.
    pub(super) published: Vec<Option<Published>>,
    pub(super) udp_clients: Clients,
    pub(super) dns: Forwarder,
    names: Names,
    stations: Stations,
    pub(super) notices: Notices,
}

/// A listening socket of the host, and whom it stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    pub(super) transport: Transport,
    pub(super) service: Service,
    pub(super) port: PortId,
}

/// A guest link as the gateway knows it.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) station: Station,
    pub(super) offload: Offload,
    pub(super) place: Place,
}

/// Whose port it is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// The only guest's.
    Only,
    /// One guest's among others.
    Seat(Box<Seat>),
    /// Nobody's, once these flows have ended.
    Left(Vec<FlowId>),
    /// Nobody's.
    Free,
}

/// The guest's station on a link. Its address may change, and then does so for all gateways that share the link,
/// whichever of them hears of it.
#[derive(Clone, Debug)]
pub struct Station(Arc<AtomicU64>);

impl From<MacAddr> for Station {
    fn from(MacAddr([a, b, c, d, e, f]): MacAddr) -> Self {
        Self(Arc::new(u64::from_be_bytes([0, 0, a, b, c, d, e, f]).into()))
    }
}

impl Station {
    /// Its address.
    pub fn mac(&self) -> MacAddr {
        let [_, _, a, b, c, d, e, f] = self.0.load(Ordering::Relaxed).to_be_bytes();
        MacAddr([a, b, c, d, e, f])
    }

    fn learn(&self, MacAddr([a, b, c, d, e, f]): MacAddr) {
        let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        // A write takes the cache line from the others.
        if self.0.load(Ordering::Relaxed) != mac {
            self.0.store(mac, Ordering::Relaxed);
        }
    }
}

/// A frame from a guest that another worker's gateway is to handle.
#[derive(Debug)]
pub struct Handover<'f> {
    /// Number of that worker.
    pub to: usize,
    /// The frame that came, or a whole one in the place of its fragments.
    pub frame: Cow<'f, [u8]>,
}

/// A flow of any protocol.
pub(super) enum Flow {
    Tcp(Box<TcpFlow>),
    Udp(UdpFlow),
    UdpPublished(PublishedFlow),
    Ping(PingFlow),
    Dns(Box<DnsFlow>),
    /// A TCP connection whose bytes the host's kernel carries, past this gateway.
    Spliced,
}

/// A flow, for people to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowReport {
    /// Its protocol and ends.
    pub key: FlowKey,
    /// Bytes carried to the host and to the guest; only TCP counts them.
    pub bytes: Option<(u64, u64)>,
}

impl Flow {
    /// The guest's link; `None` if the kernel carries it.
    fn port(&self) -> Option<PortId> {
        match self {
            Self::Tcp(flow) => Some(flow.ethernet.port),
            Self::Udp(flow) => Some(flow.port),
            Self::UdpPublished(flow) => Some(flow.port),
            Self::Ping(flow) => Some(flow.port),
            Self::Dns(flow) => Some(flow.port),
            Self::Spliced => None,
        }
    }

    fn bytes(&self) -> Option<(u64, u64)> {
        match self {
            Self::Tcp(flow) => Some((flow.to_host_bytes, flow.to_guest_bytes)),
            Self::Udp(_) | Self::UdpPublished(_) | Self::Ping(_) | Self::Dns(_) | Self::Spliced => None,
        }
    }
}

/// A packet that a guest sent through the gateway.
#[derive(Clone, Copy, Debug)]
pub(super) struct FromGuest<'a> {
    pub(super) port: PortId,
    /// The station that sent it.
    pub(super) mac: MacAddr,
    pub(super) ip: IpPacket<'a>,
    pub(super) offload: RxOffload,
}

impl Gateway {
    /// A router without ports. `seed` makes its random choices (initial sequence numbers) repeatable.
    pub fn new(network: Arc<Network>, seed: u64, now: Instant) -> Self {
        Self::of_shard(network, Shard::WHOLE, seed, now)
    }

    /// The part of a router that has the flows of `shard`, and its part of every limit.
    pub fn of_shard(network: Arc<Network>, shard: Shard, seed: u64, now: Instant) -> Self {
        Self { core: Core::new(network, shard, seed, now), reassembly: Reassembly::new() }
    }

    /// Plugs a guest link in. The parts of one router share its `station`, which is [`MacAddr::BROADCAST`] until it is
    /// learned.
    pub fn add_port(&mut self, station: impl Into<Station>, offload: Offload) -> PortId {
        let station = station.into();
        let mac = station.mac();
        let core = &mut self.core;
        // Links are few: a network's containers.
        let port = PortId(u16::try_from(core.ports.len()).unwrap_or(u16::MAX));
        core.ports.push(Port { station, offload, place: Place::Only });
        let ethernet = core.ethernet(port, mac);
        core.refusals.push(Refusal::new(&ethernet, core.now));
        port
    }

    /// Plugs in the link of a guest among others, which are to be told apart by [`Self::switch`]. `None` if there are
    /// too many, or somebody has the station.
    pub fn add_seat(&mut self, seat: Seat, offload: Offload) -> Option<PortId> {
        let core = &mut self.core;
        let is_free = |port: &Port| matches!(port.place, Place::Free);
        let index = core.ports.iter().position(is_free).unwrap_or(core.ports.len());
        let port = PortId(u16::try_from(index).ok().filter(|_| index < MAX_SEATS)?);
        let mac = seat.mac;
        if mac == core.network.gateway_mac || !core.stations.add(mac, port) {
            return None;
        }
        let added = Port { station: mac.into(), offload, place: Place::Seat(Box::new(seat)) };
        match core.ports.get_mut(index) {
            Some(free) => *free = added,
            None => core.ports.push(added),
        }
        let refusal = Refusal::new(&core.ethernet(port, mac), core.now);
        match core.refusals.get_mut(index) {
            Some(free) => *free = refusal,
            None => core.refusals.push(refusal),
        }
        Some(port)
    }

    /// Unplugs such a link: from now on nothing goes there, and it has no name. Its published ports must have been
    /// closed. [`Self::clear_seat`] is to be called until it is done.
    pub fn remove_seat(&mut self, port: PortId) {
        let core = &mut self.core;
        core.stations.remove(port);
        core.names.forget(port);
        let flows = core.table.iter().filter(|(_, flow)| flow.port() == Some(port)).map(|(id, _)| id);
        core.ports[usize::from(port.0)].place = Place::Left(flows.collect());
    }

    /// Ends some of the flows of a link that was unplugged; whether that were all. May be called while
    /// [`Outbox::has_room`].
    pub fn clear_seat(&mut self, port: PortId) -> bool {
        let place = &mut self.core.ports[usize::from(port.0)].place;
        let Place::Left(flows) = place else { return true };
        let some = flows.split_off(flows.len().saturating_sub(CLEARED_AT_ONCE));
        let is_clear = flows.is_empty();
        if is_clear {
            *place = Place::Free;
        }
        for id in some {
            self.core.cut(id);
        }
        is_clear
    }

    /// Gives the guest on `port` a name, `alone` one that nobody else may have. `false` if somebody keeps it.
    pub fn give_name(&mut self, name: &str, port: PortId, alone: bool) -> bool {
        self.core.names.give(name, port, alone)
    }

    /// Where a frame goes that came from one guest among others; what is for the gateway is to be given to
    /// [`Self::handle_frame`].
    pub fn switch(&mut self, port: PortId, frame: &[u8]) -> Way {
        let core = &mut self.core;
        let Place::Seat(seat) = &core.ports[usize::from(port.0)].place else { return Way::Nowhere };
        let way = core.stations.way(port, seat, frame);
        if matches!(way, Ok(Way::Port(_) | Way::Nowhere) | Err(_)) {
            core.counters.frames_in += 1;
            core.counters.bytes_in += frame.len() as u64;
        }
        way.unwrap_or_else(|reason| {
            core.counters.drop(reason);
            Way::Nowhere
        })
    }

    /// Takes one frame from a guest. May be called while [`Outbox::has_room`]. What it gives back belongs to
    /// another shard's gateway, to be handled there with the same `port` and `offload`.
    pub fn handle_frame<'f>(
        &mut self,
        port: PortId,
        frame: &'f [u8],
        offload: RxOffload,
        now: Instant,
    ) -> Option<Handover<'f>> {
        self.core.now = now;
        let handled = self.frame(port, frame, offload);
        if let Ok(Some(handover)) = handled {
            return Some(handover);
        }
        self.core.counters.frames_in += 1;
        self.core.counters.bytes_in += frame.len() as u64;
        if let Err(reason) = handled {
            self.core.counters.drop(reason);
        }
        None
    }

    fn frame<'f>(
        &mut self,
        port: PortId,
        bytes: &'f [u8],
        offload: RxOffload,
    ) -> Result<Option<Handover<'f>>, DropReason> {
        let frame = EthernetFrame::parse(bytes)?;
        let own = self.core.network.gateway_mac;
        if frame.source.is_group() || (frame.destination != own && !frame.destination.is_group()) {
            return Err(DropReason::ForeignDestination);
        }
        let ip = match frame.ethertype {
            ETHERTYPE_ARP if self.core.network.ipv4.is_some() => {
                let ethernet = self.core.ethernet(port, frame.source);
                neighbor::arp(&ethernet, &self.core.network, &mut self.core.outbox, frame.payload)?;
                return Ok(None);
            }
            ETHERTYPE_IPV4 if self.core.network.ipv4.is_some() => IpPacket::parse_v4(frame.payload)?,
            ETHERTYPE_IPV6 if self.core.network.ipv6.is_some() => IpPacket::parse_v6(frame.payload)?,
            _ => return Err(DropReason::Unsupported),
        };
        self.core.check_source(&ip)?;
        self.core.learn_station(port, frame.source, ip.source);
        if let Some(to) = self.core.foreign(&ip) {
            return Ok(Some(Handover { to, frame: bytes.into() }));
        }
        let packet = FromGuest { port, mac: frame.source, ip, offload };
        if ip.fragment.is_none() {
            return self.core.packet(&packet).map(|()| None);
        }
        let Some(whole) = self.reassembly.add(self.core.now, port, &ip)? else {
            return Ok(None);
        };
        let ip = whole.packet();
        let handed = match self.core.foreign(&ip) {
            Some(to) => {
                Ok(Some(Handover { to, frame: [&bytes[..ETHERNET_BYTES], ip.bytes].concat().into() }))
            }
            None => self.core.packet(&FromGuest { ip, ..packet }).map(|()| None),
        };
        self.reassembly.recycle(whole);
        handed
    }

    /// Takes what happened at the host. May be called while [`Outbox::has_room`].
    pub fn handle_host(&mut self, event: HostEvent<'_>, now: Instant) {
        let core = &mut self.core;
        core.now = now;
        match event {
            HostEvent::Connected { flow } => tcp::connected(core, flow),
            HostEvent::ConnectFailed { flow, error } => tcp::connect_failed(core, flow, error),
            HostEvent::OpenFailed { flow, error } => core.open_failed(flow, error),
            HostEvent::Datagram { flow, from, hop_limit, payload } => {
                core.datagram(flow, from, hop_limit, payload)
            }
            HostEvent::PublishedDatagram { publish, from, to, payload } => {
                udp::published(core, publish, from, to, payload)
            }
            HostEvent::SendFailed { flow, error, payload } => core.send_failed(flow, error, payload),
        }
    }

    /// A listening socket of the host stands for `service` of the guest on `port`, from now on.
    /// Its number is the lowest that is free.
    pub fn publish(&mut self, transport: Transport, service: Service, port: PortId) -> PublishId {
        let published = &mut self.core.published;
        let index = published.iter().position(Option::is_none).unwrap_or(published.len());
        let entry = Some(Published { transport, service, port });
        match published.get_mut(index) {
            Some(free) => *free = entry,
            None => published.push(entry),
        }
        // The host has 65,535 ports for each of two transports.
        PublishId(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// The listening socket `publish` is closed. Connections that came through it stay; clients of a UDP port are
    /// forgotten, as there is nothing left to answer them with.
    pub fn unpublish(&mut self, publish: PublishId) {
        if let Some(published) = self.core.published.get_mut(publish.0 as usize) {
            *published = None;
        }
        udp::unpublished(&mut self.core, publish);
    }

    /// Replaces the DNS servers that the forwarder asks, most preferred first.
    pub fn set_resolvers(&mut self, servers: &[IpAddr]) {
        dns::set_resolvers(&mut self.core, servers);
    }

    /// Notes that a TCP flow's host socket may be read or written, as the poll said.
    pub fn host_ready(&mut self, flow: FlowId, readable: bool, writable: bool) {
        tcp::host_ready(&mut self.core, flow, readable, writable);
    }

    /// A client was accepted on a published port. Its flow; `None` if the client should be reset.
    pub fn accept(&mut self, publish: PublishId, client: SocketAddr, now: Instant) -> Option<FlowId> {
        let Published { port, service, .. } =
            self.core.published.get(publish.0 as usize).copied().flatten()?;
        self.accept_for(port, service, client, now)
    }

    /// The same for a client that another shard's gateway has the published port of.
    pub fn accept_for(
        &mut self,
        port: PortId,
        service: Service,
        client: SocketAddr,
        now: Instant,
    ) -> Option<FlowId> {
        self.core.now = now;
        tcp::accepted(&mut self.core, port, service, client)
    }

    /// Sends a datagram of another worker's flow. May be called while [`Outbox::has_room`].
    pub fn send_large(&mut self, datagram: &LargeDatagram, payload: &[u8], now: Instant) {
        self.core.now = now;
        let LargeDatagram { port, station, remote, guest, hop_limit } = *datagram;
        udp::deliver(&mut self.core, (port, station, guest), remote, hop_limit, payload);
    }

    /// Whether the kernel shall join a client that was accepted on a published port with the guest, and its flow, which
    /// lives until [`Self::splice_ended`]. `None`: it is for [`Self::accept`].
    pub fn splice(&mut self, service: Service, client: SocketAddr) -> Option<(FlowId, Splice)> {
        let splice = policy::splice(&self.core.network, client, service)?;
        let flow = self.core.table.insert(None, Flow::Spliced)?;
        tracing::debug!(%client, guest = %splice.guest, "tcp spliced");
        Some((flow, splice))
    }

    /// A spliced flow is over.
    pub fn splice_ended(&mut self, flow: FlowId) {
        if let Some(Flow::Spliced) = self.core.table.get(flow) {
            self.core.table.remove(flow);
        }
    }

    /// The next TCP flow that wants [`Self::service`].
    pub fn next_ready(&mut self) -> Option<FlowId> {
        self.core.ready.pop_front()
    }

    /// How many TCP flows want [`Self::service`].
    pub fn ready_flows(&self) -> usize {
        self.core.ready.len()
    }

    /// Moves bytes between a TCP flow and its host socket. May be called while [`Outbox::has_room`].
    pub fn service(&mut self, flow: FlowId, host: &mut impl HostStream, now: Instant) {
        self.core.now = now;
        tcp::service(&mut self.core, flow, host);
    }

    /// Does what is due. May be called while [`Outbox::has_room`]; one call handles one flow, so call it until
    /// [`Self::poll_timeout`] is in the future.
    pub fn handle_timeout(&mut self, now: Instant) {
        let core = &mut self.core;
        core.now = now;
        self.reassembly.expire(now);
        core.spares.expire(now);
        let Some(id) = core.table.pop_due(now) else { return };
        match core.table.get(id) {
            Some(Flow::Tcp(_)) => tcp::expire(core, id),
            Some(Flow::Udp(_) | Flow::UdpPublished(_)) => udp::expire(core, id),
            Some(Flow::Ping(_)) => ping::expire(core, id),
            Some(Flow::Dns(_)) => dns::expire(core, id),
            // The kernel's own timers end these.
            Some(Flow::Spliced) | None => {}
        }
    }

    /// When [`Self::handle_timeout`] wants to be called; never too late, possibly too early.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let core = &self.core;
        [core.table.next_deadline(), self.reassembly.next_deadline(), core.spares.next_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// What is to be sent and done.
    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.core.outbox
    }

    /// Totals since start.
    pub fn counters(&self) -> &Counters {
        &self.core.counters
    }

    /// Flows that live now.
    pub fn flows(&self) -> usize {
        self.core.table.len()
    }

    /// Whether the guest has sent over TCP what the host's sockets have yet to take; if it `may_say_more`, also whether
    /// connections stand on which it has not said all.
    pub fn owes_host(&self, may_say_more: bool) -> bool {
        self.core.table.iter().any(|(_, flow)| match flow {
            Flow::Tcp(flow) => flow.owes_host(may_say_more),
            Flow::Udp(_) | Flow::UdpPublished(_) | Flow::Ping(_) | Flow::Dns(_) | Flow::Spliced => false,
        })
    }

    /// What there is to tell about the first `limit` of them; those of the DNS forwarder and those that the kernel
    /// carries are left out.
    pub fn describe_flows(&self, limit: usize) -> Vec<FlowReport> {
        let described = self.core.table.iter().filter_map(|(id, flow)| {
            let key = self.core.table.key(id)?;
            Some(FlowReport { key, bytes: flow.bytes() })
        });
        described.take(limit).collect()
    }
}

impl Core {
    pub(super) fn new(network: Arc<Network>, shard: Shard, seed: u64, now: Instant) -> Self {
        let spares = Spares::new(network.rates.from_guest);
        Self {
            network,
            shard,
            now,
            outbox: Outbox::new(),
            counters: Counters::default(),
            table: Table::new(shard.part(MAX_FLOWS)),
            ports: Vec::new(),
            connecting: 0,
            ready: VecDeque::new(),
            spares,
            refusals: Vec::new(),
            seed,
            published: Vec::new(),
            udp_clients: Clients::new(),
            dns: Forwarder::default(),
            names: Names::default(),
            stations: Stations::default(),
            notices: Notices::new(shard),
        }
    }

    /// The way to station `to` on `port`.
    pub(super) fn ethernet(&self, port: PortId, to: MacAddr) -> Ethernet {
        let offload = self.ports[usize::from(port.0)].offload;
        Ethernet { port, from: self.network.gateway_mac, to, offload, mtu: self.network.mtu }
    }

    /// The network as it is to the guest on `port`.
    pub(super) fn network_of(&self, port: PortId) -> &Network {
        match &self.ports[usize::from(port.0)].place {
            Place::Seat(seat) => &seat.network,
            Place::Only | Place::Left(_) | Place::Free => &self.network,
        }
    }

    /// What the forwarder itself says to a query, if that is about what a guest is called.
    pub(super) fn answer_name(&self, query: &[u8], question_end: usize) -> Option<Vec<u8>> {
        self.names.answer(query, question_end, &self.network, |port| {
            let network = self.network_of(port);
            (network.ipv4.map(|plan| plan.guest), network.ipv6.map(|plan| plan.guest))
        })
    }

    /// Ends a flow whose link is gone.
    fn cut(&mut self, id: FlowId) {
        match self.table.get(id) {
            Some(Flow::Tcp(_)) => tcp::cut(self, id),
            Some(Flow::Udp(_) | Flow::UdpPublished(_)) => udp::expire(self, id),
            Some(Flow::Ping(_)) => ping::expire(self, id),
            Some(Flow::Dns(_)) => dns::cut(self, id),
            Some(Flow::Spliced) | None => {}
        }
    }

    /// The gateway's address in the family of `like`.
    pub(super) fn gateway_address(&self, like: IpAddr) -> IpAddr {
        // What comes in is of a family that the network has.
        policy::gateway_like(&self.network, like).unwrap_or(like)
    }

    /// Puts a TCP flow on the ready list.
    pub(super) fn queue(&mut self, id: FlowId) {
        if let Some(Flow::Tcp(flow)) = self.table.get_mut(id)
            && tcp::mark_queued(flow)
        {
            self.ready.push_back(id);
        }
    }

    /// The next number of a repeatable sequence (a Weyl sequence, mixed by smoltcp's generator).
    pub(super) fn next_seed(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.seed
    }

    /// A datagram on the socket of a flow.
    fn datagram(&mut self, id: FlowId, from: SocketAddr, hop_limit: u8, payload: &[u8]) {
        match self.table.get(id) {
            Some(Flow::Ping(_)) => ping::from_host(self, id, from, hop_limit, payload),
            Some(Flow::Dns(_)) => dns::from_host(self, id, from, payload),
            _ => udp::from_host(self, id, from, hop_limit, payload),
        }
    }

    fn open_failed(&mut self, id: FlowId, error: HostError) {
        match self.table.get(id) {
            Some(Flow::Ping(_)) => ping::open_failed(self, id, error),
            Some(Flow::Dns(_)) => dns::open_failed(self, id, error),
            _ => udp::open_failed(self, id, error),
        }
    }

    fn send_failed(&mut self, id: FlowId, error: IcmpError, payload: &[u8]) {
        match self.table.get(id) {
            Some(Flow::Ping(_)) => ping::failed(self, id, error, payload),
            Some(Flow::Dns(_)) => dns::failed(self, id, error),
            _ => udp::failed(self, id, error, payload),
        }
    }

    /// Published connections go where the guest's addresses were last heard from: its station may change.
    fn learn_station(&mut self, port: PortId, mac: MacAddr, source: IpAddr) {
        let Port { station, place, .. } = &self.ports[usize::from(port.0)];
        if !matches!(place, Place::Only) {
            return;
        }
        if policy::is_guest(&self.network, source) || station.mac().is_group() {
            station.learn(mac);
        }
    }

    /// The worker that a packet belongs to, if that is another.
    fn foreign(&self, ip: &IpPacket<'_>) -> Option<usize> {
        let owner = self.shard.of_packet(ip);
        (owner != self.shard.index()).then_some(owner)
    }

    /// The guest's station on `port`.
    pub(super) fn station(&self, port: PortId) -> MacAddr {
        self.ports[usize::from(port.0)].station.mac()
    }

    /// Refuses source addresses that no guest may have.
    fn check_source(&self, ip: &IpPacket<'_>) -> Result<(), DropReason> {
        let own =
            policy::is_gateway(&self.network, ip.source) || policy::is_forwarder(&self.network, ip.source);
        let special = ip.source.is_loopback()
            || ip.source.is_multicast()
            || ip.source == IpAddr::V4(Ipv4Addr::BROADCAST)
            || (ip.source.is_unspecified() && matches!(ip.protocol, IpProtocol::Tcp));
        if own || special { Err(DropReason::BadSource) } else { Ok(()) }
    }

    /// Verifies the checksum of a whole packet and hands it to its protocol.
    pub(super) fn packet(&mut self, packet: &FromGuest<'_>) -> Result<(), DropReason> {
        let ip = &packet.ip;
        if !packet.offload.partial_checksum && !self.checksum_is_valid(ip) {
            return Err(DropReason::Checksum);
        }
        if !self.is_carried(ip) {
            return Err(DropReason::Unsupported);
        }
        match (ip.protocol, ip.source) {
            (IpProtocol::Tcp, _) => tcp::from_guest(self, packet),
            (IpProtocol::Udp, _) => return self.udp(packet),
            (IpProtocol::Icmp, IpAddr::V4(_)) => return self.icmp_v4(packet),
            (IpProtocol::Icmpv6, IpAddr::V6(_)) => return self.icmp_v6(packet),
            _ => return Err(DropReason::Unsupported),
        }
        Ok(())
    }

    /// Whether this network carries such packets. Only echo requests are meant of ICMP, and DHCP is not of UDP.
    fn is_carried(&self, ip: &IpPacket<'_>) -> bool {
        let carried = self.network.protocols;
        let kind = ip.payload().first().copied().unwrap_or_default();
        match ip.protocol {
            IpProtocol::Tcp => carried.tcp,
            IpProtocol::Udp => carried.udp || self.is_for_dhcp(ip.destination),
            IpProtocol::Icmp => carried.icmp || Icmpv4Message::from(kind) != Icmpv4Message::EchoRequest,
            IpProtocol::Icmpv6 => carried.icmp || Icmpv6Message::from(kind) != Icmpv6Message::EchoRequest,
            _ => true,
        }
    }

    fn checksum_is_valid(&self, ip: &IpPacket<'_>) -> bool {
        let none_sent = ip.protocol == IpProtocol::Udp
            && ip.source.is_ipv4()
            && UdpPacket::new_checked(ip.payload()).is_ok_and(|datagram| datagram.checksum() == 0);
        none_sent || ip.transport_checksum_is_valid()
    }

    fn icmp_v4(&mut self, packet: &FromGuest<'_>) -> Result<(), DropReason> {
        let kind = *packet.ip.payload().first().ok_or(DropReason::Malformed)?;
        match Icmpv4Message::from(kind) {
            Icmpv4Message::EchoRequest => self.echo(packet),
            Icmpv4Message::DstUnreachable => return self.guest_refused(packet),
            _ => return Err(DropReason::NoFlow),
        }
        Ok(())
    }

    fn icmp_v6(&mut self, packet: &FromGuest<'_>) -> Result<(), DropReason> {
        let kind = *packet.ip.payload().first().ok_or(DropReason::Malformed)?;
        match Icmpv6Message::from(kind) {
            Icmpv6Message::EchoRequest => self.echo(packet),
            Icmpv6Message::DstUnreachable => return self.guest_refused(packet),
            Icmpv6Message::RouterSolicit | Icmpv6Message::NeighborSolicit => {
                let ethernet = self.ethernet(packet.port, packet.mac);
                return neighbor::ndp(&ethernet, &self.network, &mut self.outbox, &packet.ip);
            }
            _ => return Err(DropReason::NoFlow),
        }
        Ok(())
    }

    /// A packet from here did not reach anybody in the guest.
    fn guest_refused(&mut self, packet: &FromGuest<'_>) -> Result<(), DropReason> {
        let refused = Refused::parse(packet.ip.payload()).ok_or(DropReason::Malformed)?;
        match refused.protocol {
            IpProtocol::Tcp => tcp::guest_refused(self, packet.port, &refused),
            IpProtocol::Udp => udp::guest_refused(self, packet.port, &refused),
            _ => return Err(DropReason::NoFlow),
        }
        Ok(())
    }

    /// The gateway answers for its own addresses; other echo requests go out.
    fn echo(&mut self, packet: &FromGuest<'_>) {
        let to = packet.ip.destination;
        let own = policy::is_gateway(&self.network, to)
            || policy::is_forwarder(&self.network, to)
            || to == IpAddr::V6(neighbor::LINK_LOCAL);
        if own {
            let ethernet = self.ethernet(packet.port, packet.mac);
            icmp::echo_reply(&ethernet, &mut self.outbox, &packet.ip);
        } else {
            ping::from_guest(self, packet);
        }
    }

    fn udp(&mut self, packet: &FromGuest<'_>) -> Result<(), DropReason> {
        let datagram = UdpPacket::new_checked(packet.ip.payload()).map_err(|_| DropReason::Malformed)?;
        match (datagram.dst_port(), packet.ip.source) {
            (DHCP_V4_SERVER, IpAddr::V4(_)) if self.is_for_dhcp(packet.ip.destination) => {
                self.dhcp_v4(packet, datagram.payload())
            }
            (DHCP_V6_SERVER, IpAddr::V6(_)) if self.is_for_dhcp(packet.ip.destination) => {
                self.dhcp_v6(packet, datagram.payload(), datagram.src_port())
            }
            (_, source) if source.is_unspecified() => Err(DropReason::BadSource),
            _ => {
                udp::from_guest(self, packet);
                Ok(())
            }
        }
    }

    fn is_for_dhcp(&self, to: IpAddr) -> bool {
        to == IpAddr::V4(Ipv4Addr::BROADCAST)
            || self.network.ipv4.is_some_and(|plan| to == IpAddr::V4(plan.subnet.broadcast()))
            || to.is_multicast()
            || policy::is_gateway(&self.network, to)
    }

    fn dhcp_v4(&mut self, packet: &FromGuest<'_>, message: &[u8]) -> Result<(), DropReason> {
        let plan = self.network.ipv4.ok_or(DropReason::Unsupported)?;
        let reply = dhcp::reply_v4(self.network_of(packet.port), message).ok_or(DropReason::Unsupported)?;
        let mac = if reply.destination.ip().is_broadcast() { MacAddr::BROADCAST } else { packet.mac };
        let from = SocketAddr::from((plan.gateway, DHCP_V4_SERVER));
        let to = SocketAddr::from(reply.destination);
        // Clients without an address read packet sockets, and see a checksum that nobody has finished.
        let ethernet = Ethernet { offload: Offload::None, ..self.ethernet(packet.port, mac) };
        ethernet.udp(&mut self.outbox, from, to, icmp::HOP_LIMIT, &reply.payload);
        Ok(())
    }

    fn dhcp_v6(&mut self, packet: &FromGuest<'_>, message: &[u8], port: u16) -> Result<(), DropReason> {
        let reply = dhcp::reply_v6(self.network_of(packet.port), message).ok_or(DropReason::Unsupported)?;
        let from = SocketAddr::from((neighbor::LINK_LOCAL, DHCP_V6_SERVER));
        let to = SocketAddr::new(packet.ip.source, port);
        self.ethernet(packet.port, packet.mac).udp(&mut self.outbox, from, to, icmp::HOP_LIMIT, &reply);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::fixture::{self, GUEST_MAC, GUEST_V4, REMOTE_V4};
    use crate::net::{FlowKey, HostOp};

    #[test]
    fn a_frame_is_handled_by_its_worker_whoever_gets_it() {
        let mut shards = Shards::new();
        let owner = shards.owner();
        for first in 0..shards.gateways.len() {
            shards.guest_sends(first, &fixture::udp(GUEST_V4, REMOTE_V4, b"hello"));
            for (index, gateway) in shards.gateways.iter_mut().enumerate() {
                assert_eq!(sends(gateway), usize::from(index == owner), "got by {first}");
            }
        }
    }

    #[test]
    fn fragments_join_at_the_first_worker_and_the_whole_goes_to_its_own() {
        let mut shards = Shards::new();
        let owner = shards.owner();
        assert_ne!(owner, 0, "or this proves nothing");
        for (number, fragment) in
            fixture::udp_fragments(GUEST_V4, REMOTE_V4, &[7; 4000], 1280).iter().enumerate()
        {
            shards.guest_sends(number % shards.gateways.len(), fragment);
        }
        let sent: Vec<usize> = shards.gateways.iter_mut().map(sends).collect();
        assert_eq!((sent[owner], sent.iter().sum()), (1, 1));
    }

    #[test]
    fn frames_are_for_the_station_that_was_chosen() {
        let chosen = MacAddr([2, 0, 0, 0, 0, 9]);
        let network = Network { gateway_mac: chosen, ..fixture::network() };
        let mut gateway = Gateway::new(Arc::new(network), 7, Instant::ZERO);
        let port = gateway.add_port(GUEST_MAC, Offload::None);
        let mut frame = frame(GUEST_MAC, &fixture::udp(GUEST_V4, REMOTE_V4, b"hello"));
        for (station, sent) in [(MacAddr::GATEWAY, 0), (chosen, 1)] {
            frame[..6].copy_from_slice(&station.0);
            assert!(gateway.handle_frame(port, &frame, RxOffload::default(), Instant::ZERO).is_none());
            assert_eq!(sends(&mut gateway), sent);
        }
    }

    #[test]
    fn the_first_worker_sends_fragments_for_all() {
        let mut shards = Shards::new();
        let owner = shards.owner();
        assert_ne!(owner, 0, "or this proves nothing");
        shards.guest_sends(owner, &fixture::udp(GUEST_V4, REMOTE_V4, b"hello"));
        let ops: Vec<HostOp> = std::iter::from_fn(|| shards.gateways[owner].outbox().pop_op()).collect();
        let Some(HostOp::Send { flow, to, .. }) = ops.last() else { panic!("{ops:?}") };
        let event = HostEvent::Datagram { flow: *flow, from: *to, hop_limit: 64, payload: &[7; 65_507] };
        shards.gateways[owner].handle_host(event, Instant::ZERO);
        let outbox = shards.gateways[owner].outbox();
        assert!(outbox.front_frame().is_none());
        let Some(HostOp::PassOn { datagram, payload }) = outbox.pop_op() else { panic!("it keeps it") };
        let payload = outbox.payload(payload).to_vec();
        shards.gateways[0].send_large(&datagram, &payload, Instant::ZERO);
        assert_eq!(fixture::packets(shards.gateways[0].outbox()).len(), 2, "at MTU 65520");
    }

    #[test]
    fn all_workers_know_of_a_station_that_has_moved() {
        let mut shards = Shards::new();
        let moved = MacAddr([0x52, 0x55, 0, 0, 0, 1]);
        let packet = fixture::udp(GUEST_V4, REMOTE_V4, b"hello");
        shards.gateways[0].handle_frame(
            PortId(0),
            &frame(moved, &packet),
            RxOffload::default(),
            Instant::ZERO,
        );
        assert!(shards.gateways.iter().all(|gateway| gateway.core.station(PortId(0)) == moved));
    }

    #[test]
    fn a_client_whose_port_moves_stays_with_its_worker() {
        let mut shards = Shards::new();
        let client = SocketAddr::new(fixture::ip(REMOTE_V4), 5000);
        let owner = Shard::all(Shards::COUNT).next().expect("some").of_tcp(80, 5000);
        let gateway = &mut shards.gateways[owner];
        for _ in 0..20 {
            gateway
                .accept_for(PortId(0), Service { addr: None, port: 80 }, client, Instant::ZERO)
                .expect("room");
        }
        let shard = gateway.core.shard;
        let guest = SocketAddr::new(fixture::ip(GUEST_V4), 80);
        let own = (1..=u16::MAX).filter(|&number| {
            let remote = SocketAddr::new(client.ip(), number);
            gateway.core.table.find(&FlowKey::Tcp { port: PortId(0), guest, remote }).is_some()
        });
        let owners: Vec<usize> = own.map(|number| shard.of_tcp(80, number)).collect();
        assert_eq!(owners, [owner; 20]);
    }

    #[test]
    fn a_family_that_is_missing_is_not_spoken() {
        let (mut v4, mut v6) = (fixture::network(), fixture::network());
        (v4.ipv6, v6.ipv4) = (None, None);
        let arp = (ETHERTYPE_ARP, fixture::arp_request("10.0.2.100", "10.0.2.2"));
        let udp4 = (ETHERTYPE_IPV4, fixture::udp(GUEST_V4, REMOTE_V4, b"hello"));
        let udp6 = (ETHERTYPE_IPV6, fixture::udp(fixture::GUEST_V6, fixture::REMOTE_V6, b"hello"));
        for ((ethertype, packet), by_v4) in [(arp, true), (udp4, true), (udp6, false)] {
            let frame = frame_of(ethertype, GUEST_MAC, &packet);
            for (network, speaks) in [(&v4, by_v4), (&v6, !by_v4)] {
                let mut gateway = Gateway::new(Arc::new(network.clone()), 7, Instant::ZERO);
                gateway.add_port(Station::from(GUEST_MAC), Offload::None);
                gateway.handle_frame(PortId(0), &frame, RxOffload::default(), Instant::ZERO);
                let acts = gateway.outbox().front_frame().is_some() || gateway.outbox().pop_op().is_some();
                assert_eq!(acts, speaks, "{frame:?}");
                assert_eq!(gateway.counters().dropped(DropReason::Unsupported) > 0, !speaks);
            }
        }
    }

    /// The gateways of one network's workers.
    struct Shards {
        gateways: Vec<Gateway>,
    }

    impl Shards {
        /// So many that the fixture's datagrams are not the first one's.
        const COUNT: usize = 8;

        fn new() -> Self {
            let network = Arc::new(fixture::network());
            let station = Station::from(GUEST_MAC);
            let gateways = Shard::all(Self::COUNT)
                .map(|shard| {
                    let mut gateway = Gateway::of_shard(Arc::clone(&network), shard, 7, Instant::ZERO);
                    gateway.add_port(station.clone(), Offload::None);
                    gateway
                })
                .collect();
            Self { gateways }
        }

        /// The worker of the fixture's datagrams.
        fn owner(&self) -> usize {
            self.gateways[0].core.shard.of_udp(4000)
        }

        /// The worker `at` gets a packet; what it does not take goes where it says.
        fn guest_sends(&mut self, at: usize, packet: &[u8]) {
            let mut next = Some((at, frame(GUEST_MAC, packet)));
            for _ in 0..3 {
                let Some((at, frame)) = next.take() else { return };
                let handed =
                    self.gateways[at].handle_frame(PortId(0), &frame, RxOffload::default(), Instant::ZERO);
                next = handed.map(|handed| (handed.to, handed.frame.into_owned()));
            }
            assert!(next.is_none(), "it goes round");
        }
    }

    fn frame(from: MacAddr, packet: &[u8]) -> Vec<u8> {
        frame_of(ETHERTYPE_IPV4, from, packet)
    }

    fn frame_of(ethertype: u16, from: MacAddr, packet: &[u8]) -> Vec<u8> {
        [&MacAddr::GATEWAY.0[..], &from.0, &ethertype.to_be_bytes(), packet].concat()
    }

    /// Datagrams that the host is to send; takes all operations.
    fn sends(gateway: &mut Gateway) -> usize {
        let ops = std::iter::from_fn(|| gateway.outbox().pop_op());
        ops.filter(|op| matches!(op, HostOp::Send { .. })).count()
    }
}
