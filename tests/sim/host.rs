//! The host: it executes the gateway's operations with sockets that are only pretended, and plays the remote machines
//! behind them.
//!
//! Readiness follows epoll's edge-triggered rule: after `WouldBlock` it is announced once, and sometimes for nothing.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};

use rnet::net::gateway::Gateway;
use rnet::net::tcp::HostStream;
use rnet::net::{
    Duration, Family, FlowId, HostError, HostEvent, HostOp, IcmpError, Instant, PublishId, Release,
};

use crate::end::{End, Ending, Report};
use crate::pattern::{Pattern, Random};

/// Numbers of connections that no talk is behind.
const UNKNOWN_TALKS: usize = 1 << 32;

/// What becomes of an attempt to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Connects,
    Fails(HostError),
    /// No answer, ever.
    Silence,
}

/// How unwilling the host's sockets are; per mille.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mood {
    /// Calls that would block though they need not.
    pub(crate) blocks: u64,
    /// Calls that do only part of what they could.
    pub(crate) halves: u64,
    /// Announcements of readiness for nothing.
    pub(crate) spurious: u64,
}

impl Mood {
    pub(crate) const MOODY: Self = Self { blocks: 200, halves: 500, spurious: 100 };
}

/// What a remote machine does with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remote {
    /// Sends it back (a query as its response, an echo request as its reply).
    Answers,
    /// Answers a query with this code (RFC 1035 section 4.1.1).
    Declines(u8),
    Silence,
    /// An ICMP error of this type and code comes back.
    Rejects(u8, u8),
}

/// A remote end of TCP connections.
#[derive(Clone, Debug)]
struct Server {
    talk: usize,
    end: End,
    outcome: Outcome,
    after: Duration,
}

#[derive(Debug)]
enum Event {
    Connected(FlowId, usize),
    ConnectFailed(FlowId, HostError),
    OpenFailed(FlowId, HostError),
    Ready(FlowId, bool, bool),
    Fails(FlowId),
    Datagram(FlowId, SocketAddr, Vec<u8>),
    SendFailed(FlowId, IcmpError, Vec<u8>),
    Client(PublishId, SocketAddr, usize, End),
    Published(PublishId, SocketAddr, IpAddr, Vec<u8>),
}

enum Socket {
    Connecting(Server),
    Stream(Box<Stream>),
    Udp,
    Ping,
    /// It could not be opened; the gateway has yet to be told.
    Failing,
}

/// A datagram that left through the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) to: SocketAddr,
    pub(crate) hop_limit: u8,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Host {
    random: Random,
    says: Pattern,
    hears: Pattern,
    pub(crate) mood: Mood,
    sockets: HashMap<FlowId, Socket>,
    servers: HashMap<SocketAddr, VecDeque<Server>>,
    events: BTreeMap<(Instant, u64), Event>,
    numbered: u64,
    pub(crate) reports: BTreeMap<usize, Report>,
    pub(crate) releases: BTreeMap<usize, Release>,
    /// What machines do with datagrams, if not answer.
    pub(crate) remotes: HashMap<IpAddr, Remote>,
    pub(crate) refuses_to_open: Option<HostError>,
    pub(crate) sent: Vec<Sent>,
    /// Datagrams to clients of published ports: the client, the host's address, the payload.
    pub(crate) replies: Vec<(SocketAddr, IpAddr, Vec<u8>)>,
    pub(crate) connects: usize,
    /// What becomes of attempts that no talk is behind.
    pub(crate) others: Outcome,
    pub(crate) moved: u64,
}

impl Host {
    pub(crate) fn new(mut random: Random, says: Pattern, hears: Pattern) -> Self {
        Self {
            random: random.fork(),
            says,
            hears,
            mood: Mood::default(),
            sockets: HashMap::new(),
            servers: HashMap::new(),
            events: BTreeMap::new(),
            numbered: 0,
            reports: BTreeMap::new(),
            releases: BTreeMap::new(),
            remotes: HashMap::new(),
            refuses_to_open: None,
            sent: Vec::new(),
            replies: Vec::new(),
            connects: 0,
            others: Outcome::Fails(HostError::Refused),
            moved: 0,
        }
    }

    /// The next connection to `address` is `talk`, and there `end` speaks.
    pub(crate) fn serve(
        &mut self,
        address: SocketAddr,
        talk: usize,
        end: End,
        outcome: Outcome,
        after: Duration,
    ) {
        self.servers.entry(address).or_default().push_back(Server { talk, end, outcome, after });
    }

    /// A client connects to a published port at `at`.
    pub(crate) fn client(
        &mut self,
        at: Instant,
        publish: PublishId,
        client: SocketAddr,
        talk: usize,
        end: End,
    ) {
        self.at(at, Event::Client(publish, client, talk, end));
    }

    /// A client sends a datagram to a published port.
    pub(crate) fn published_datagram(
        &mut self,
        at: Instant,
        publish: PublishId,
        client: SocketAddr,
        to: IpAddr,
        payload: &[u8],
    ) {
        self.at(at, Event::Published(publish, client, to, payload.to_vec()));
    }

    pub(crate) fn has_sockets(&self) -> bool {
        !self.sockets.is_empty()
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.numbered += 1;
        self.events.insert((at, self.numbered), event);
    }

    fn soon(&mut self, now: Instant) -> Instant {
        now + Duration::from_micros(self.random.within(1..=3000))
    }

    /// Tells the gateway the next thing that has happened by `now`; `false` if there is none.
    pub(crate) fn report(&mut self, gateway: &mut Gateway, now: Instant) -> bool {
        if self.next().is_none_or(|at| at > now) {
            return false;
        }
        let Some((_, event)) = self.events.pop_first() else { return false };
        match event {
            Event::Connected(flow, talk) => self.connected(gateway, flow, talk, now),
            Event::ConnectFailed(flow, error) => {
                if self.sockets.remove(&flow).is_some() {
                    gateway.handle_host(HostEvent::ConnectFailed { flow, error }, now);
                }
            }
            Event::OpenFailed(flow, error) => {
                self.sockets.remove(&flow);
                gateway.handle_host(HostEvent::OpenFailed { flow, error }, now);
            }
            Event::Ready(flow, readable, writable) => {
                if let Some(Socket::Stream(_)) = self.sockets.get(&flow) {
                    gateway.host_ready(flow, readable, writable);
                }
            }
            Event::Fails(flow) => {
                if let Some(Socket::Stream(stream)) = self.sockets.get_mut(&flow) {
                    stream.failed = true;
                    gateway.host_ready(flow, true, true);
                }
            }
            Event::Datagram(flow, from, payload) => {
                if self.sockets.contains_key(&flow) {
                    let event = HostEvent::Datagram { flow, from, hop_limit: 60, payload: &payload };
                    gateway.handle_host(event, now);
                }
            }
            Event::SendFailed(flow, error, payload) => {
                if self.sockets.contains_key(&flow) {
                    gateway.handle_host(HostEvent::SendFailed { flow, error, payload: &payload }, now);
                }
            }
            Event::Client(publish, client, talk, end) => {
                self.accept(gateway, publish, client, talk, end, now);
            }
            Event::Published(publish, from, to, payload) => {
                let event = HostEvent::PublishedDatagram { publish, from, to, payload: &payload };
                gateway.handle_host(event, now);
            }
        }
        true
    }

    fn connected(&mut self, gateway: &mut Gateway, flow: FlowId, talk: usize, now: Instant) {
        let Some(Socket::Connecting(server)) = self.sockets.remove(&flow) else { return };
        assert_eq!(talk, server.talk);
        self.open(flow, talk, server.end, now);
        gateway.handle_host(HostEvent::Connected { flow }, now);
    }

    fn accept(
        &mut self,
        gateway: &mut Gateway,
        publish: PublishId,
        client: SocketAddr,
        talk: usize,
        end: End,
        now: Instant,
    ) {
        match gateway.accept(publish, client, now) {
            Some(flow) => self.open(flow, talk, end, now),
            None => {
                self.reports.insert(talk, Report { ending: Ending::Refused, ..Report::new(now) });
            }
        }
    }

    fn open(&mut self, flow: FlowId, talk: usize, end: End, now: Instant) {
        for age in end.alarms() {
            self.at(now + age, Event::Ready(flow, true, true));
        }
        if let Some(crate::end::Aborts::At(age)) = end.aborts {
            self.at(now + age, Event::Fails(flow));
        }
        self.reports.insert(talk, Report::new(now));
        let stream = Box::new(Stream { talk, end, failed: false, finished: false });
        assert!(self.sockets.insert(flow, Socket::Stream(stream)).is_none(), "the flow has a socket");
    }

    /// Lends the flow's stream to the gateway.
    pub(crate) fn service(&mut self, gateway: &mut Gateway, flow: FlowId, now: Instant) {
        let Some(Socket::Stream(stream)) = self.sockets.get_mut(&flow) else { return };
        let report = self.reports.get_mut(&stream.talk).expect("every talk has a report");
        let mut lent = Lent {
            stream,
            report,
            random: &mut self.random,
            mood: self.mood,
            says: self.says,
            hears: self.hears,
            now,
            wakes: Vec::new(),
            moved: 0,
        };
        gateway.service(flow, &mut lent, now);
        let (wakes, moved) = (std::mem::take(&mut lent.wakes), lent.moved);
        self.moved += moved;
        for (at, readable, writable) in wakes {
            self.at(at, Event::Ready(flow, readable, writable));
        }
        if self.random.happens(self.mood.spurious) {
            let (at, readable) = (self.soon(now), self.random.happens(500));
            self.at(at, Event::Ready(flow, readable, !readable));
        }
    }

    /// Executes one operation; `payload` are its bytes.
    pub(crate) fn execute(&mut self, op: HostOp, payload: &[u8], now: Instant) {
        match op {
            HostOp::Connect { flow, to } => self.connect(flow, to, now),
            HostOp::OpenUdp { flow, family: Family::V4 | Family::V6, .. } => {
                self.open_datagram(flow, Socket::Udp, now)
            }
            HostOp::OpenPing { flow, family: Family::V4 | Family::V6 } => {
                self.open_datagram(flow, Socket::Ping, now)
            }
            HostOp::Send { flow, to, hop_limit, .. } => self.send(flow, to, hop_limit, payload, now),
            HostOp::Reply { to, from, .. } => self.replies.push((to, from, payload.to_vec())),
            HostOp::Release { flow, how } => self.release(flow, how),
            HostOp::RefreshResolvers => {}
            HostOp::PassOn { .. } => panic!("there is one worker"),
        }
    }

    fn connect(&mut self, flow: FlowId, to: SocketAddr, now: Instant) {
        self.connects += 1;
        let queue = self.servers.get_mut(&to);
        let server = queue.and_then(|queue| queue.pop_front()).unwrap_or(Server {
            talk: UNKNOWN_TALKS + self.connects,
            end: End::default(),
            outcome: self.others,
            after: Duration::ZERO,
        });
        let at = now + server.after;
        match server.outcome {
            Outcome::Connects => self.at(at, Event::Connected(flow, server.talk)),
            Outcome::Fails(error) => self.at(at, Event::ConnectFailed(flow, error)),
            // As the host's kernel does after all its SYNs.
            Outcome::Silence => {
                let error = Event::ConnectFailed(flow, HostError::TimedOut);
                self.at(now + Duration::from_secs(130), error);
            }
        }
        assert!(self.sockets.insert(flow, Socket::Connecting(server)).is_none(), "the flow has a socket");
    }

    fn open_datagram(&mut self, flow: FlowId, socket: Socket, now: Instant) {
        let socket = match self.refuses_to_open {
            Some(error) => {
                self.at(now, Event::OpenFailed(flow, error));
                Socket::Failing
            }
            None => socket,
        };
        assert!(self.sockets.insert(flow, socket).is_none(), "the flow has a socket");
    }

    fn send(&mut self, flow: FlowId, to: SocketAddr, hop_limit: u8, payload: &[u8], now: Instant) {
        let is_ping = match self.sockets.get(&flow) {
            Some(Socket::Udp) => false,
            Some(Socket::Ping) => true,
            Some(Socket::Failing) => return,
            _ => panic!("a datagram on no datagram socket"),
        };
        self.moved += 1;
        self.sent.push(Sent { to, hop_limit, payload: payload.to_vec() });
        let mut answer = payload.to_vec();
        match self.remotes.get(&to.ip()).copied().unwrap_or(Remote::Answers) {
            Remote::Silence => return,
            Remote::Rejects(kind, code) => {
                let error = IcmpError { offender: Some(to.ip()), kind, code, info: 0, to };
                let at = self.soon(now);
                return self.at(at, Event::SendFailed(flow, error, answer));
            }
            Remote::Declines(rcode) => {
                answer[2] |= 0x80;
                answer[3] = answer[3] & 0xf0 | rcode;
            }
            Remote::Answers if is_ping => answer[0] = if answer[0] == 8 { 0 } else { 129 },
            Remote::Answers if to.port() == 53 && answer.len() > 2 => answer[2] |= 0x80,
            Remote::Answers => {}
        }
        let at = self.soon(now);
        self.at(at, Event::Datagram(flow, to, answer));
    }

    fn release(&mut self, flow: FlowId, how: Release) {
        self.moved += 1;
        let socket = self.sockets.remove(&flow).expect("the flow has a socket");
        let Socket::Stream(stream) = socket else { return };
        assert!(self.releases.insert(stream.talk, how).is_none(), "released twice");
        let report = self.reports.get_mut(&stream.talk).expect("every talk has a report");
        // A close says what a shutdown would have said.
        report.heard |= how == Release::Close;
        report.ending = match how {
            _ if stream.failed => Ending::Aborted,
            Release::Close => Ending::Orderly,
            Release::Reset => Ending::Reset,
        };
    }
}

/// A host socket and the remote end behind it.
struct Stream {
    talk: usize,
    end: End,
    /// The remote end has given up.
    failed: bool,
    /// Its finish was read.
    finished: bool,
}

/// A stream while the gateway has it.
struct Lent<'a> {
    stream: &'a mut Stream,
    report: &'a mut Report,
    random: &'a mut Random,
    mood: Mood,
    says: Pattern,
    hears: Pattern,
    now: Instant,
    /// Readiness to announce: when, readable, writable.
    wakes: Vec<(Instant, bool, bool)>,
    moved: u64,
}

impl Lent<'_> {
    fn age(&self) -> Duration {
        self.now - self.report.started
    }

    /// Whether the remote end gives up, or has.
    fn check_alive(&mut self) -> io::Result<()> {
        let moved = self.report.sent + self.report.got;
        self.stream.failed |= self.stream.end.aborts_now(self.age(), moved);
        if self.stream.failed { Err(ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }

    /// How much of `len` is done; `None` if the call blocks.
    fn part(&mut self, len: usize) -> Option<usize> {
        if self.random.happens(self.mood.blocks) {
            return None;
        }
        let half = len > 1 && self.random.happens(self.mood.halves);
        Some(if half { self.random.within(1..=len as u64) as usize } else { len })
    }

    fn wake(&mut self, readable: bool) {
        let at = self.now + Duration::from_micros(self.random.within(1..=5000));
        self.wakes.push((at, readable, !readable));
    }
}

impl io::Read for Lent<'_> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        self.check_alive()?;
        assert!(!room.is_empty());
        let left = self.stream.end.sends - self.report.sent;
        let len = room.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Some(len) = self.part(len) else {
            self.wake(true);
            return Err(ErrorKind::WouldBlock.into());
        };
        if left > 0 {
            self.says.fill(self.report.sent, &mut room[..len]);
            self.report.sent += len as u64;
            self.moved += len as u64;
            return Ok(len);
        }
        if !self.stream.end.closes_now(self.age(), self.report.heard) {
            // Readiness comes with the time to close, or with the gateway's finish.
            return Err(ErrorKind::WouldBlock.into());
        }
        self.stream.finished = true;
        Ok(0)
    }
}

impl io::Write for Lent<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(!self.report.heard, "written to after the end");
        assert!(!bytes.is_empty());
        self.check_alive()?;
        let allowed = self.stream.end.reads.allowance(self.age(), self.report.got);
        if allowed == 0 {
            let next = self.stream.end.reads.next(self.report.got);
            self.wakes.extend(next.map(|age| (self.report.started + age, false, true)));
            return Err(ErrorKind::WouldBlock.into());
        }
        let len = bytes.len().min(usize::try_from(allowed).unwrap_or(usize::MAX));
        let Some(len) = self.part(len) else {
            self.wake(false);
            return Err(ErrorKind::WouldBlock.into());
        };
        self.hears.check(self.report.got, &bytes[..len]);
        self.report.got += len as u64;
        self.moved += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl HostStream for Lent<'_> {
    fn shutdown_write(&mut self) -> io::Result<()> {
        assert!(!self.report.heard, "shut down twice");
        self.check_alive()?;
        self.report.heard = true;
        self.moved += 1;
        if !self.stream.finished {
            self.wakes.push((self.now, true, false));
        }
        Ok(())
    }
}
