//! A guest, a link, the gateway and a host in virtual time: a single thread that jumps from event to event.
//!
//! The gateway is driven as the worker drives it. Every run checks what holds always: frames are valid, streams
//! arrive as they were sent, nothing stalls, and once all has ended nothing is left.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rnet::config::{Ipv4Plan, Ipv6Plan, MacAddr, Network, Transport};
use rnet::net::bucket::Bucket;
use rnet::net::gateway::Gateway;
use rnet::net::outbox::HEADROOM;
use rnet::net::packet::Ethernet;
use rnet::net::policy::Service;
use rnet::net::{Duration, Instant, Offload, Outbox, PortId, PublishId, Release, RxOffload};

use crate::end::{End, Ending, Report};
use crate::guest::{self, Guest};
use crate::host::{Host, Outcome};
use crate::offload;
use crate::pattern::Random;
use crate::wire::{Quality, Wire};

/// A run in which nothing moves for so long has stalled: more than the longest timeout, of a half-closed guest.
const STALL: Duration = Duration::from_secs(1500);
/// Turns at one instant after which it will never pass.
const TURNS_AT_ONCE: usize = 100_000;
/// What the worker takes from each source in a turn.
const FRAMES_PER_TURN: usize = 64;
const TIMEOUTS_PER_TURN: usize = 256;

/// The link of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub ipv6: bool,
    pub(crate) mtu: u16,
    pub(crate) offload: Offload,
}

impl Setting {
    pub(crate) const ALL: [Self; 13] = [
        Self::new(false, 576, Offload::None),
        Self::new(false, 576, Offload::ChecksumAndTso),
        Self::new(false, 1500, Offload::None),
        Self::new(false, 1500, Offload::ChecksumAndTso),
        Self::new(true, 1500, Offload::None),
        Self::new(true, 1500, Offload::ChecksumAndTso),
        Self::new(false, 65520, Offload::None),
        Self::new(false, 65520, Offload::ChecksumAndTso),
        Self::new(true, 65520, Offload::None),
        Self::new(true, 65520, Offload::ChecksumAndTso),
        Self::new(false, 1500, Offload::ChecksumTsoAndUso),
        Self::new(true, 1500, Offload::ChecksumTsoAndUso),
        Self::new(false, 65520, Offload::ChecksumTsoAndUso),
    ];

    const fn new(ipv6: bool, mtu: u16, offload: Offload) -> Self {
        Self { ipv6, mtu, offload }
    }

    pub(crate) fn any(random: &mut Random) -> Self {
        random.pick(&Self::ALL)
    }

    /// The network of this link; IPv6 needs an MTU of 1280.
    pub(crate) fn network(&self) -> Network {
        let ipv6 = Ipv6Plan::new("fd00::/64".parse().expect("a prefix"));
        let ipv4 = Ipv4Plan::new("10.0.2.0/24".parse().expect("a subnet")).expect("a plan");
        Network { mtu: self.mtu, ..Network::new(ipv4, ipv6.filter(|_| self.mtu >= 1280)) }
    }
}

/// A connection between the guest and a remote end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Talk(pub(crate) usize);

/// What a talk was meant to be.
#[derive(Debug)]
struct Intent {
    guest: End,
    host: End,
    /// It is meant to stand.
    stands: bool,
}

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) random: Random,
    pub(crate) setting: Setting,
    pub(crate) gateway: Gateway,
    pub(crate) guest: Guest,
    pub(crate) host: Host,
    port: PortId,
    to_gateway: Wire<guest::Sent>,
    /// How fast frames are taken from it, if that is limited.
    from_guest: Option<Bucket>,
    to_guest: Wire<Vec<u8>>,
    lossless: bool,
    intents: Vec<Intent>,
    next_port: u16,
    /// Something was moved, last.
    moved: u64,
    moved_at: Instant,
    /// Where the guest's datagrams are put together.
    scratch: Outbox,
    traces: bool,
    /// Turns of the driver.
    pub(crate) turns: u64,
    /// Frames that the guest sent and got.
    pub(crate) frames: (u64, u64),
}

impl World {
    pub(crate) fn new(seed: u64, setting: Setting, quality: Quality) -> Self {
        Self::with(seed, setting, quality, |_| {})
    }

    /// A world whose network `change` has changed.
    pub(crate) fn with(
        seed: u64,
        setting: Setting,
        quality: Quality,
        change: impl FnOnce(&mut Network),
    ) -> Self {
        let mut random = Random::new(seed);
        let mut network = setting.network();
        change(&mut network);
        let from_guest = network.rates.from_guest.map(|rate| Bucket::new(rate, Instant::ZERO));
        let mut gateway = Gateway::new(Arc::new(network), random.next(), Instant::ZERO);
        let port = gateway.add_port(guest::MAC, setting.offload);
        let addresses =
            ["10.0.2.100/24".parse(), "fd00::100/64".parse()].map(|cidr| cidr.expect("an address"));
        // On a bad link a reset may be lost: only questions find out that the other end has gone.
        let keep_alive = (!quality.is_lossless()).then_some(Duration::from_secs(20));
        let guest_seed = random.next() >> 1;
        let guest = Guest::new(setting.mtu, setting.offload, &addresses, guest_seed, keep_alive);
        let (says, hears) = guest.patterns();
        Self {
            now: Instant::ZERO,
            setting,
            gateway,
            guest,
            host: Host::new(random.fork(), hears, says),
            port,
            to_gateway: Wire::new(quality, random.fork()),
            from_guest,
            to_guest: Wire::new(quality, random.fork()),
            lossless: quality.is_lossless(),
            intents: Vec::new(),
            next_port: 40_000,
            moved: 0,
            moved_at: Instant::ZERO,
            scratch: Outbox::new(),
            traces: std::env::var_os("RNET_SIM_TRACE").is_some(),
            turns: 0,
            frames: (0, 0),
            random,
        }
    }

    /// The guest's address in the setting's family.
    pub(crate) fn guest_ip(&self) -> IpAddr {
        ip(if self.setting.ipv6 { "fd00::100" } else { "10.0.2.100" })
    }

    /// A remote machine's address in the setting's family.
    pub(crate) fn remote(&self, port: u16) -> SocketAddr {
        SocketAddr::new(ip(if self.setting.ipv6 { "2001:db8::7" } else { "198.51.100.7" }), port)
    }

    /// A port of the guest that was not used yet.
    pub(crate) fn fresh_port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    /// The guest connects to a remote end that accepts.
    pub(crate) fn connect(&mut self, guest: End, host: End) -> Talk {
        let port = self.fresh_port();
        let after = Duration::from_micros(self.random.below(20_000));
        self.connect_from(port, guest, host, Outcome::Connects, after)
    }

    /// The guest connects, from `port` to the same port of the remote machine.
    pub(crate) fn connect_from(
        &mut self,
        port: u16,
        guest: End,
        host: End,
        outcome: Outcome,
        after: Duration,
    ) -> Talk {
        let talk = self.intend(&guest, &host, outcome == Outcome::Connects);
        let (local, remote) = (SocketAddr::new(self.guest_ip(), port), self.remote(port));
        self.host.serve(remote, talk.0, host, outcome, after);
        self.guest.connect(talk.0, local, remote, guest, self.now);
        talk
    }

    /// The guest connects to `seen`, behind which stands `remote`; it accepts at once.
    pub(crate) fn connect_translated(
        &mut self,
        seen: SocketAddr,
        remote: SocketAddr,
        guest: End,
        host: End,
    ) -> Talk {
        let talk = self.intend(&guest, &host, true);
        let local = SocketAddr::new(self.guest_ip(), self.fresh_port());
        self.host.serve(remote, talk.0, host, Outcome::Connects, Duration::ZERO);
        self.guest.connect(talk.0, local, seen, guest, self.now);
        talk
    }

    /// The remote end of a connection that the guest will open by hand, from `port` to the same port.
    pub(crate) fn connect_later(&mut self, port: u16, host: End) -> Talk {
        let talk = self.intend(&End::default(), &host, false);
        self.host.serve(self.remote(port), talk.0, host, Outcome::Connects, Duration::ZERO);
        talk
    }

    /// Publishes `guest_port`.
    pub(crate) fn publish(&mut self, transport: Transport, guest_port: u16) -> PublishId {
        self.gateway.publish(transport, Service { addr: None, port: guest_port }, self.port)
    }

    /// A client connects to a published port now; `stands` if the guest is meant to accept.
    pub(crate) fn client(
        &mut self,
        publish: PublishId,
        client: SocketAddr,
        guest: End,
        host: End,
        stands: bool,
    ) -> Talk {
        let talk = self.intend(&guest, &host, stands);
        self.guest.expect_client(client.port(), talk.0);
        self.host.client(self.now, publish, client, talk.0, host);
        talk
    }

    fn intend(&mut self, guest: &End, host: &End, stands: bool) -> Talk {
        self.intents.push(Intent { guest: guest.clone(), host: host.clone(), stands });
        Talk(self.intents.len() - 1)
    }

    /// The guest sends a packet as it is.
    pub(crate) fn send_packet(&mut self, packet: &[u8]) {
        self.send_frame(guest::frame(packet), RxOffload::default());
    }

    /// The guest sends a datagram, in fragments where the link asks for it.
    pub(crate) fn guest_udp(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
        self.guest_udp_in_pieces(from, to, payload, self.setting.mtu);
    }

    /// The guest sends a datagram in packets of at most `mtu` bytes.
    pub(crate) fn guest_udp_in_pieces(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8], mtu: u16) {
        let (from_mac, to_mac) = (guest::MAC, MacAddr::GATEWAY);
        let link = Ethernet { port: self.port, from: from_mac, to: to_mac, offload: Offload::None, mtu };
        assert!(link.udp(&mut self.scratch, from, to, 64, payload));
        while let Some((_, frame, _)) = self.scratch.front_frame() {
            let packet = frame[HEADROOM + offload::ETHERNET_BYTES..].to_vec();
            self.scratch.pop_frame();
            self.send_packet(&packet);
        }
    }

    /// The guest's link carries a frame as it is.
    pub(crate) fn send_frame(&mut self, frame: Vec<u8>, offload: RxOffload) {
        self.trace("->", &frame);
        self.frames.0 += 1;
        self.to_gateway.send(self.now, (frame, offload));
    }

    /// How it went for the guest's end.
    pub(crate) fn guest_report(&self, talk: Talk) -> Report {
        self.guest.reports[&talk.0]
    }

    /// How it went for the remote end.
    pub(crate) fn host_report(&self, talk: Talk) -> Report {
        self.host.reports[&talk.0]
    }

    /// How the remote end's socket was released.
    pub(crate) fn release(&self, talk: Talk) -> Option<Release> {
        self.host.releases.get(&talk.0).copied()
    }

    /// Lets everything happen until nothing is left to happen, and asserts that all is well.
    pub(crate) fn finish(&mut self) {
        while !self.is_over() {
            self.step(None);
        }
        self.assert_intents();
        self.assert_empty();
    }

    /// Lets time pass.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.step(Some(until));
        }
        self.settle();
    }

    /// Lets happen what happens now.
    fn settle(&mut self) {
        for _ in 0..TURNS_AT_ONCE {
            self.turn();
            if self.next().is_none_or(|at| at > self.now) {
                return;
            }
        }
        panic!("time stands still at {}", self.now);
    }

    /// Goes to the next event, but not beyond `until`.
    fn step(&mut self, until: Option<Instant>) {
        self.settle();
        let moved = self.guest.moved + self.host.moved;
        if moved != self.moved {
            (self.moved, self.moved_at) = (moved, self.now);
        }
        let next = [self.next(), until].into_iter().flatten().min();
        let Some(next) = next else {
            assert!(self.is_over(), "nothing will ever happen again: {}", self.describe());
            return;
        };
        self.now = next;
        let idle = self.now - self.moved_at;
        assert!(until.is_some() || idle < STALL, "stalled: {}", self.describe());
        if until.is_some() {
            self.moved_at = self.now;
        }
    }

    fn next(&mut self) -> Option<Instant> {
        let ready = self.gateway.ready_flows() > 0 && self.gateway.outbox().has_room();
        let opens = self.from_guest.as_ref().and_then(|bucket| bucket.opens_at(self.now));
        let link = self
            .to_gateway
            .next()
            .map(|at| opens.map_or(at, |opens| at.max(opens)))
            .filter(|_| self.gateway.outbox().has_room());
        [
            self.guest.next(self.now),
            link,
            self.to_guest.next(),
            self.host.next().filter(|_| self.gateway.outbox().has_room()),
            self.gateway.poll_timeout().filter(|_| self.gateway.outbox().has_room()),
            ready.then_some(self.now),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// A turn of everyone.
    fn turn(&mut self) {
        self.turns += 1;
        while let Some(frame) = self.to_guest.receive(self.now) {
            self.guest.receive(&frame);
        }
        self.guest.poll(self.now);
        for (frame, offload) in self.guest.take_sent() {
            self.send_frame(frame, offload);
        }
        self.flush();
        self.read_link();
        while self.has_room() && self.host.report(&mut self.gateway, self.now) {}
        for _ in 0..TIMEOUTS_PER_TURN {
            if self.gateway.poll_timeout().is_none_or(|at| at > self.now) || !self.has_room() {
                break;
            }
            self.gateway.handle_timeout(self.now);
        }
        self.serve();
        self.flush();
    }

    fn has_room(&mut self) -> bool {
        if !self.gateway.outbox().has_room() {
            self.flush();
        }
        self.gateway.outbox().has_room()
    }

    fn read_link(&mut self) {
        for _ in 0..FRAMES_PER_TURN {
            let held = self.from_guest.as_ref().is_some_and(|bucket| bucket.opens_at(self.now).is_some());
            if held || !self.has_room() {
                return;
            }
            let Some((frame, offload)) = self.to_gateway.receive(self.now) else { return };
            if let Some(bucket) = &mut self.from_guest {
                bucket.pass(frame.len(), self.now);
            }
            self.gateway.handle_frame(self.port, &frame, offload, self.now);
        }
    }

    fn serve(&mut self) {
        for _ in 0..self.gateway.ready_flows() {
            if !self.has_room() {
                return;
            }
            let Some(flow) = self.gateway.next_ready() else { return };
            self.host.service(&mut self.gateway, flow, self.now);
        }
    }

    fn flush(&mut self) {
        while let Some(op) = self.gateway.outbox().pop_op() {
            match op.payload() {
                Some(range) => {
                    for datagram in self.gateway.outbox().datagrams(range) {
                        self.host.execute(op.clone(), datagram, self.now);
                    }
                }
                None => self.host.execute(op, &[], self.now),
            }
        }
        self.gateway.outbox().clear_payload();
        assert_eq!(self.gateway.outbox().lost(), 0, "a frame did not fit");
        while self.to_guest.has_room() {
            let Some((port, frame, offload)) = self.gateway.outbox().front_frame() else { return };
            assert_eq!(port, self.port);
            let frames = offload::finish(&frame[HEADROOM..], offload, self.setting.mtu);
            self.gateway.outbox().pop_frame();
            for frame in frames {
                self.trace("<-", &frame);
                self.frames.1 += 1;
                self.to_guest.send(self.now, frame);
            }
        }
    }

    fn trace(&self, way: &str, frame: &[u8]) {
        if self.traces {
            eprintln!("{} {way} {}", self.now, offload::describe(frame));
        }
    }

    fn is_over(&mut self) -> bool {
        self.guest.is_idle()
            && self.to_gateway.is_empty()
            && self.to_guest.is_empty()
            && self.host.next().is_none()
            && self.gateway.flows() == 0
            && self.gateway.ready_flows() == 0
            && self.gateway.poll_timeout().is_none()
            && self.gateway.outbox().is_empty()
    }

    /// Where orderly ends have met, both have all, and know it.
    fn assert_intents(&self) {
        for (talk, intent) in self.intents.iter().enumerate() {
            if !intent.stands || !intent.guest.is_orderly() || !intent.host.is_orderly() {
                continue;
            }
            let guest = self.guest.reports.get(&talk).expect("the guest knows of it");
            if self.guest.silent || guest.ending == Ending::Forgotten {
                continue;
            }
            let host = self.host.reports.get(&talk).expect("the host knows of it");
            assert_eq!(host.got, intent.guest.sends, "what the remote end got of talk {talk}");
            assert_eq!(
                guest.got, intent.host.sends,
                "what the guest got of talk {talk}: {guest:?} {host:?} {intent:?}"
            );
            assert!(host.heard && guest.heard, "talk {talk} has no end: {guest:?} {host:?}");
            if self.lossless {
                assert_eq!(guest.ending, Ending::Orderly, "talk {talk}");
                assert_eq!(self.host.releases.get(&talk), Some(&Release::Close), "talk {talk}");
            }
        }
    }

    fn assert_empty(&mut self) {
        assert!(self.is_over());
        assert!(!self.host.has_sockets(), "a host socket was never released");
        for (talk, report) in &self.host.reports {
            assert_ne!(report.ending, Ending::Open, "talk {talk} was never released");
        }
    }

    fn describe(&mut self) -> String {
        format!(
            "{:?} at {}: {} flows, {} ready, timeout {:?}, guest {:#?}, host {:#?}",
            self.setting,
            self.now,
            self.gateway.flows(),
            self.gateway.ready_flows(),
            self.gateway.poll_timeout(),
            self.guest.reports.values().filter(|report| report.ending == Ending::Open).collect::<Vec<_>>(),
            self.host.reports.values().filter(|report| report.ending == Ending::Open).collect::<Vec<_>>(),
        )
    }
}

/// An address out of its text.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An address and port out of their text.
pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// Runs `scenario` with `runs` seeds, or with as many as RNET_SIM_RUNS says, or with the one in RNET_SIM_SEED. A
/// failure names its seed.
pub(crate) fn for_seeds(runs: u64, scenario: impl Fn(u64)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("RNET_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RNET_SIM_RUNS").unwrap_or(runs),
    };
    for seed in seeds {
        let named = Named(seed);
        scenario(seed);
        drop(named);
    }
}

/// Names its seed when a scenario fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was RNET_SIM_SEED={}", self.0);
        }
    }
}
