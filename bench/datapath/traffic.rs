//! The paths of a packet that are measured, and how their cost is measured.
//!
//! A *visit* sends one burst over one flow and lets the gateway do all that follows; visits go round the active
//! flows. Gateways of all sizes stand side by side and are visited in turns, so that what else happens on the
//! machine hits them alike; the median of the rounds counts.

use std::time::{Duration, Instant};

use rnet::net::Offload;
use rnet::net::outbox::{ETHERNET_BYTES, MAX_FRAME_BYTES};

use crate::allocation;
use crate::guest::{Link, TCP_HEADER_BYTES};
use crate::rig::Rig;

/// Payload of a small packet: a request, say, or its response.
pub(crate) const SMALL_BYTES: usize = 100;
/// Segments and datagrams of a bulk transfer that arrive together, as far as they fit into [`BURST_BYTES`].
const BURST_PACKETS: usize = 16;
const BURST_BYTES: usize = 65_536;
/// Visits of every flow before anything counts: tables and queues have their size.
const WARM_UP_VISITS: usize = 3;
/// What every flow carries out before anything counts, if its packets are large: the ring from the guest goes round
/// once, and has all its pages.
const WARM_UP_BYTES: usize = 256 * 1024;

/// What travels, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// Segments from the guest, written to a host socket and acknowledged.
    TcpOut,
    /// Bytes from a host socket in segments to the guest, which acknowledges each burst once.
    TcpIn,
    /// Datagrams from the guest to host sockets.
    UdpOut,
    /// Datagrams from host sockets to the guest.
    UdpIn,
    /// A small request from the guest, acknowledged, then answered. Counts as one packet.
    Exchange,
}

impl Path {
    pub(crate) const ALL: [Self; 5] = [Self::TcpOut, Self::TcpIn, Self::UdpOut, Self::UdpIn, Self::Exchange];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TcpOut => "TCP out",
            Self::TcpIn => "TCP in",
            Self::UdpOut => "UDP out",
            Self::UdpIn => "UDP in",
            Self::Exchange => "TCP request/response",
        }
    }

    fn is_tcp(self) -> bool {
        !matches!(self, Self::UdpOut | Self::UdpIn)
    }

    /// The payload of one packet when it is as large as the link allows: with offloads as many whole segments as
    /// one frame holds.
    pub(crate) fn largest_payload(self, link: Link) -> usize {
        let mss = usize::from(link.mss());
        match self {
            Self::Exchange => SMALL_BYTES,
            Self::UdpOut | Self::UdpIn => usize::from(link.mtu) - 28,
            Self::TcpOut | Self::TcpIn if link.offload == Offload::None => mss,
            Self::TcpOut | Self::TcpIn => {
                let room = MAX_FRAME_BYTES - ETHERNET_BYTES - 20 - TCP_HEADER_BYTES;
                room / mss * mss
            }
        }
    }
}

/// One gateway under one kind of traffic.
pub(crate) struct Traffic {
    rig: Rig,
    path: Path,
    payload_bytes: usize,
    burst: usize,
    active: usize,
    next: usize,
    sent_packets: u64,
}

impl Traffic {
    /// A gateway with `flows` flows, the first `active` of which carry packets of `payload_bytes`; warmed up.
    pub(crate) fn new(path: Path, link: Link, payload_bytes: usize, flows: usize, active: usize) -> Self {
        let mut rig = Rig::new(link, payload_bytes);
        for _ in 0..flows {
            if path.is_tcp() { rig.open_tcp() } else { rig.open_udp() }
        }
        let burst = match path {
            Path::Exchange => 1,
            _ => (BURST_BYTES / payload_bytes).clamp(1, BURST_PACKETS),
        };
        let mut traffic = Self { rig, path, payload_bytes, burst, active, next: 0, sent_packets: 0 };
        (0..traffic.warm_up_visits() * active).for_each(|_| traffic.visit());
        traffic
    }

    fn warm_up_visits(&self) -> usize {
        let bulk = self.path == Path::TcpOut && self.payload_bytes > SMALL_BYTES;
        let ring = if bulk { WARM_UP_BYTES.div_ceil(self.burst * self.payload_bytes) } else { 0 };
        ring + WARM_UP_VISITS
    }

    /// One burst over the next flow.
    fn visit(&mut self) {
        let (rig, at) = (&mut self.rig, self.next);
        match self.path {
            Path::TcpOut => {
                (0..self.burst).for_each(|_| rig.send(at));
                rig.turn();
            }
            Path::TcpIn => {
                rig.host_sends(at, self.burst * self.payload_bytes);
                rig.turn();
                rig.acknowledge(at);
                rig.turn();
            }
            Path::UdpOut => {
                (0..self.burst).for_each(|_| rig.send_datagram(at));
                rig.turn();
            }
            Path::UdpIn => {
                (0..self.burst).for_each(|_| rig.host_sends_datagram(at));
                rig.turn();
            }
            Path::Exchange => {
                rig.send(at);
                rig.turn();
                rig.host_sends(at, self.payload_bytes);
                rig.turn();
            }
        }
        self.sent_packets += self.burst as u64;
        self.next = (at + 1) % self.active;
    }

    /// Time and allocations of `packets` packets or a few more, and how many there were.
    fn round(&mut self, packets: usize) -> Round {
        let visits = packets.div_ceil(self.burst);
        let (allocations, start) = (allocation::calls(), Instant::now());
        (0..visits).for_each(|_| self.visit());
        let time = start.elapsed();
        Round { time, packets: visits * self.burst, allocations: allocation::calls() - allocations }
    }

    /// Whether all that was sent has arrived; figures of traffic that was dropped would mean nothing.
    pub(crate) fn is_complete(&self) -> bool {
        let bytes = self.sent_packets * self.payload_bytes as u64;
        let written = || self.rig.flows().iter().map(|flow| flow.host.written_bytes).sum::<u64>();
        let received = || self.rig.flows().iter().map(|flow| flow.received).sum::<u64>();
        match self.path {
            Path::TcpOut => written() == bytes,
            Path::TcpIn => received() == bytes,
            Path::Exchange => written() == bytes && received() == bytes,
            Path::UdpOut => self.rig.sent_datagrams() == self.sent_packets + self.rig.flows().len() as u64,
            Path::UdpIn => self.rig.received_packets() == self.sent_packets,
        }
    }
}

struct Round {
    time: Duration,
    packets: usize,
    allocations: u64,
}

/// What a packet costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Median of the rounds.
    pub(crate) ns_per_packet: f64,
    /// Over all rounds.
    pub(crate) allocations_per_packet: f64,
}

/// Measures every traffic in `rounds` rounds of `packets`, in turns.
pub(crate) fn measure(traffic: &mut [Traffic], rounds: usize, packets: usize) -> Vec<Cost> {
    let mut done: Vec<Vec<Round>> = traffic.iter().map(|_| Vec::with_capacity(rounds)).collect();
    for _ in 0..rounds {
        for (traffic, done) in traffic.iter_mut().zip(&mut done) {
            done.push(traffic.round(packets));
        }
    }
    done.iter().map(|rounds| cost(rounds)).collect()
}

fn cost(rounds: &[Round]) -> Cost {
    let mut times: Vec<f64> =
        rounds.iter().map(|round| round.time.as_nanos() as f64 / round.packets as f64).collect();
    times.sort_by(f64::total_cmp);
    let allocations: u64 = rounds.iter().map(|round| round.allocations).sum();
    let packets: usize = rounds.iter().map(|round| round.packets).sum();
    Cost {
        ns_per_packet: times[times.len() / 2],
        allocations_per_packet: allocations as f64 / packets as f64,
    }
}
