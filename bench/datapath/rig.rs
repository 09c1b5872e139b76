//! A gateway between fakes: one guest with many flows on its one side, host sockets on the other.
//!
//! [`Rig`] drives the gateway in the worker's order (frames, outcomes, timers, streams, outbox) in virtual time.
//! The fakes move no payload: what the kernel would copy between a socket and a ring is not part of the figures.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use rnet::config::{Ipv4Plan, Network};
use rnet::net::gateway::Gateway;
use rnet::net::outbox::HEADROOM;
use rnet::net::tcp::HostStream;
use rnet::net::{Duration, FlowId, HostEvent, HostOp, Instant, PortId};
use smoltcp::wire::TcpControl;

use crate::guest::{self, Link, Packet};

/// The guest's port of the first flow; the others follow.
const FIRST_PORT: u16 = 10_000;
/// The most flows that the guest's ports allow.
pub(crate) const MAX_FLOWS: usize = 50_000;
/// A page of the rings.
const PAGE_BYTES: usize = 4096;
/// How much virtual time one visit of a flow takes.
const VISIT: Duration = Duration::from_micros(10);

/// One side of a connection as its end sees it, and its host socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) id: FlowId,
    /// Number of the guest's next byte.
    sequence: u32,
    /// Number of the remote end's next byte.
    acknowledged: u32,
    /// Bytes that the guest has got.
    pub(crate) received: u64,
    pub(crate) host: Host,
}

/// A host socket that has so many bytes to read and takes all that is written.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Host {
    pub(crate) readable_bytes: usize,
    pub(crate) written_bytes: u64,
    /// The remote end has finished.
    finished: bool,
}

impl Read for Host {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        if self.readable_bytes == 0 && !self.finished {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = room.len().min(self.readable_bytes);
        // A page that nobody has written is the kernel's one page of zeros, which is always in the cache.
        room[..count].chunks_mut(PAGE_BYTES).for_each(|page| page[0] = 1);
        self.readable_bytes -= count;
        Ok(count)
    }
}

impl Write for Host {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written_bytes += bytes.len() as u64;
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

/// The gateway and all that is around it.
pub(crate) struct Rig {
    gateway: Gateway,
    port: PortId,
    now: Instant,
    flows: Vec<Flow>,
    /// Which flow has which index in the gateway's table.
    by_index: Vec<usize>,
    syn: Packet,
    data: Packet,
    ack: Packet,
    fin: Packet,
    datagram: Packet,
    payload: Vec<u8>,
    connecting: Vec<FlowId>,
    /// The flow of the guest socket that is being opened.
    opened: Option<FlowId>,
    sent_datagrams: u64,
    received_packets: u64,
    released: u64,
}

impl Rig {
    /// A gateway without flows whose guest sends `payload_bytes` at a time.
    pub(crate) fn new(link: Link, payload_bytes: usize) -> Self {
        let now = Instant::from_secs(1);
        let mut gateway = Gateway::new(Arc::new(network(link.mtu)), 0x5eed, now);
        let port = gateway.add_port(guest::MAC, link.offload);
        let payload = vec![0x5a; payload_bytes];
        Self {
            gateway,
            port,
            now,
            flows: Vec::new(),
            by_index: vec![0; MAX_FLOWS],
            syn: Packet::tcp(link, TcpControl::Syn, &[]),
            data: Packet::tcp(link, TcpControl::Psh, &payload),
            ack: Packet::tcp(link, TcpControl::None, &[]),
            fin: Packet::tcp(link, TcpControl::Fin, &[]),
            datagram: Packet::udp(link, &payload),
            payload,
            connecting: Vec::new(),
            opened: None,
            sent_datagrams: 0,
            received_packets: 0,
            released: 0,
        }
    }

    /// Flows that were opened.
    pub(crate) fn flows(&self) -> &[Flow] {
        &self.flows
    }

    /// Datagrams that went to the host.
    pub(crate) fn sent_datagrams(&self) -> u64 {
        self.sent_datagrams
    }

    /// Frames that the guest got; one of several datagrams counts as those.
    pub(crate) fn received_packets(&self) -> u64 {
        self.received_packets
    }

    /// Host sockets that were released.
    pub(crate) fn released(&self) -> u64 {
        self.released
    }

    /// Opens the next TCP connection from the guest, until it stands.
    pub(crate) fn open_tcp(&mut self) {
        let at = self.flows.len();
        let port = port_of(at);
        self.now += VISIT;
        let (frame, rx) = self.syn.segment(port, 0, 0);
        self.gateway.handle_frame(self.port, frame, rx, self.now);
        self.flush();
        let id = self.connecting.pop().expect("a SYN to an open address leads to a connection");
        self.add(id, 1);
        self.gateway.handle_host(HostEvent::Connected { flow: id }, self.now);
        self.turn();
        self.acknowledge(at);
        self.turn();
    }

    /// Opens the next UDP flow with one datagram from the guest.
    pub(crate) fn open_udp(&mut self) {
        let at = self.flows.len();
        let (frame, rx) = self.datagram.datagram(port_of(at));
        self.gateway.handle_frame(self.port, frame, rx, self.now);
        self.flush();
        let id = self.opened.take().expect("the first datagram opens a socket");
        self.add(id, 0);
    }

    fn add(&mut self, id: FlowId, sequence: u32) {
        self.by_index[id.index()] = self.flows.len();
        self.flows.push(Flow { id, sequence, acknowledged: 0, received: 0, host: Host::default() });
    }

    /// The guest sends one segment of payload on flow `at`.
    pub(crate) fn send(&mut self, at: usize) {
        let flow = &mut self.flows[at];
        let (frame, rx) = self.data.segment(port_of(at), flow.sequence, flow.acknowledged);
        flow.sequence = flow.sequence.wrapping_add(self.payload.len() as u32);
        self.gateway.handle_frame(self.port, frame, rx, self.now);
    }

    /// The guest acknowledges what it has got on flow `at`.
    pub(crate) fn acknowledge(&mut self, at: usize) {
        let flow = &self.flows[at];
        let (frame, rx) = self.ack.segment(port_of(at), flow.sequence, flow.acknowledged);
        self.gateway.handle_frame(self.port, frame, rx, self.now);
    }

    /// The host socket of flow `at` has `bytes` to read.
    pub(crate) fn host_sends(&mut self, at: usize, bytes: usize) {
        let flow = &mut self.flows[at];
        flow.host.readable_bytes += bytes;
        self.gateway.host_ready(flow.id, true, false);
    }

    /// The guest sends a datagram on flow `at`.
    pub(crate) fn send_datagram(&mut self, at: usize) {
        let (frame, rx) = self.datagram.datagram(port_of(at));
        self.gateway.handle_frame(self.port, frame, rx, self.now);
    }

    /// A datagram arrives on the host socket of flow `at`.
    pub(crate) fn host_sends_datagram(&mut self, at: usize) {
        let event = HostEvent::Datagram {
            flow: self.flows[at].id,
            from: SocketAddr::from((guest::REMOTE, guest::REMOTE_PORT)),
            hop_limit: 60,
            payload: &self.payload,
        };
        self.gateway.handle_host(event, self.now);
    }

    /// Closes every connection in good order, the guest first.
    pub(crate) fn close_all(&mut self) {
        for at in 0..self.flows.len() {
            let flow = &mut self.flows[at];
            let (frame, rx) = self.fin.segment(port_of(at), flow.sequence, flow.acknowledged);
            flow.sequence = flow.sequence.wrapping_add(1);
            self.gateway.handle_frame(self.port, frame, rx, self.now);
            self.turn();
            self.flows[at].host.finished = true;
            self.gateway.host_ready(self.flows[at].id, true, false);
            self.turn();
            self.acknowledge(at);
            self.turn();
        }
        self.flows.clear();
    }

    /// One turn of the worker: timers, streams, outbox.
    pub(crate) fn turn(&mut self) {
        self.now += VISIT;
        while self.gateway.poll_timeout().is_some_and(|at| at <= self.now) && self.has_room() {
            self.gateway.handle_timeout(self.now);
        }
        for _ in 0..self.gateway.ready_flows() {
            if !self.has_room() {
                return;
            }
            let Some(id) = self.gateway.next_ready() else { break };
            let host = &mut self.flows[self.by_index[id.index()]].host;
            self.gateway.service(id, host, self.now);
        }
        self.flush();
    }

    fn has_room(&mut self) -> bool {
        if !self.gateway.outbox().has_room() {
            self.flush();
        }
        self.gateway.outbox().has_room()
    }

    /// Takes all operations and frames.
    fn flush(&mut self) {
        while let Some(op) = self.gateway.outbox().pop_op() {
            match op {
                HostOp::Connect { flow, .. } => self.connecting.push(flow),
                HostOp::OpenUdp { flow, .. } => self.opened = Some(flow),
                HostOp::Send { payload, .. } => {
                    self.sent_datagrams += self.gateway.outbox().datagrams(payload).count() as u64;
                }
                HostOp::Release { .. } => self.released += 1,
                HostOp::OpenPing { .. }
                | HostOp::Reply { .. }
                | HostOp::RefreshResolvers
                | HostOp::PassOn { .. } => {}
            }
        }
        self.gateway.outbox().clear_payload();
        while let Some((_, frame, offload)) = self.gateway.outbox().front_frame() {
            if let Some(heard) = guest::hear(&frame[HEADROOM..]) {
                let flow = &mut self.flows[usize::from(heard.port - FIRST_PORT)];
                flow.acknowledged = heard.next;
                flow.received += heard.len as u64;
            }
            self.received_packets += guest::packets(&frame[HEADROOM..], offload);
            self.gateway.outbox().pop_frame();
        }
    }
}

fn port_of(at: usize) -> u16 {
    FIRST_PORT + at as u16
}

fn network(mtu: u16) -> Network {
    let subnet = "10.0.2.0/24".parse().expect("a subnet");
    Network { mtu, ..Network::new(Ipv4Plan::new(subnet).expect("room for a plan"), None) }
}
