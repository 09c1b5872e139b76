//! The event loop: one thread, one poll, its links, its gateway and all their host sockets.
//!
//! A turn is: note what the poll said, then drain and feed in bounded batches (links, datagram sockets,
//! listeners, timers, streams), writing frames and executing operations whenever the outbox fills. The poll is
//! edge-triggered, so readiness is remembered until a call says `WouldBlock`; whoever ran out of budget stays on a
//! list and the next poll does not wait.
//!
//! A link that takes no more frames stops every input: nothing is dropped, the sources wait, unless it lasts.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant as Clock};

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};

use super::host::{self, Listener};
use super::link::Link;
use super::resolver::Resolver;
use super::splice::{Client, End, Splices};
use super::sockets::{Cutting, Datagrams, Socket, Sockets, connection_result};
use crate::config::{MacAddr, Network, Publish};
use crate::error::{Context, Result};
use crate::net::gateway::Gateway;
use crate::net::{
    Family, FlowId, HostError, HostEvent, HostOp, IcmpError, Instant, PortId, PublishId, Release,
};
use crate::sys::datagram::{self, Batch, Envelope, Received};
use crate::sys::factory::Factory;

/// Events taken from one poll.
const EVENTS: usize = 1024;
/// Frames read from one link before other sources have their turn.
const FRAMES_PER_TURN: usize = 64;
/// How often one socket is read, [`Batch::MESSAGES`] at a time, before others have their turn.
const BATCHES_PER_TURN: usize = 2;
/// Errors taken from one socket's error queue at once.
const ERRORS_PER_TURN: usize = 32;
/// The most that is read of the datagram that an error is about: more than any ICMP error quotes.
const QUOTE_BYTES: usize = 2048;
/// Connections accepted from one listener before other sources have their turn.
const ACCEPTS_PER_TURN: usize = 256;
/// Flows whose deadlines are handled in one turn.
const TIMEOUTS_PER_TURN: usize = 256;
/// A packet link that is full announces nothing when it has room again.
const LINK_RETRY: Duration = Duration::from_millis(1);
/// A link that has taken nothing for so long is not full: it does not take this frame (a veth whose guest has lowered
/// its MTU says ENOBUFS for ever). From then on frames that it does not take at once are lost, until it takes one.
const LINK_PATIENCE: Duration = Duration::from_millis(250);
/// How long a listener rests when the host is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Longest wait, so that a clock that jumps costs little.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Tokens of flows are their generation and index; indices from here on name everything else.
const SPLICE_TOKENS: u32 = 0x8000_0000;
const LINK_TOKENS: u32 = 0xff00_0000;
const LISTENER_TOKENS: u32 = 0xff80_0000;
const FACTORY_TOKEN: Token = Token(u32::MAX as usize - 1);
const WAKER_TOKEN: Token = Token(u32::MAX as usize);

/// A worker that has not started.
pub struct Worker {
    poll: Poll,
    clock: Clock,
    gateway: Gateway,
    links: Vec<LinkPort>,
    listeners: Vec<Published>,
    sockets: Sockets,
    splices: Splices,
    resolver: Option<Resolver>,
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
    /// Datagram sockets that have something to read.
    readable: VecDeque<FlowId>,
    outcomes: VecDeque<Outcome>,
    frame: Box<[u8]>,
    batch: Batch,
    /// Where the datagrams of the batch come from.
    source: Source,
    quote: Box<[u8]>,
}

/// Ends a worker from another thread.
#[derive(Clone)]
pub struct Stop {
    stop: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Stop {
    /// Asks the worker to return.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // The worker that can no longer be woken has ended already.
        let _ = self.waker.wake();
    }
}

struct LinkPort {
    link: Link,
    readable: bool,
    blocked: bool,
    /// When it first refused the frame that it was offered last.
    refuses_since: Option<Instant>,
    gone: bool,
}

impl LinkPort {
    /// Whether the frame that was just refused should be offered again.
    fn may_still_take_it(&mut self, now: Instant) -> bool {
        now < *self.refuses_since.get_or_insert(now) + LINK_PATIENCE.into()
    }
}

struct Published {
    listener: Listener,
    readable: bool,
    resting_until: Option<Instant>,
    cutting: Cutting,
}

/// A socket that datagrams are read from.
#[derive(Clone, Copy)]
enum Source {
    Flow(FlowId),
    /// Its place in the list of listeners.
    Published(usize),
}

/// What an operation led to, told to the gateway when there is room.
#[derive(Clone, Copy)]
enum Outcome {
    Connected(FlowId),
    ConnectFailed(FlowId, HostError),
    OpenFailed(FlowId, HostError),
    SendFailed(FlowId, IcmpError),
}

impl Worker {
    /// A worker for `network` whose published ports `listeners` are already bound. `resolver` knows the host's DNS
    /// servers, which count unless the network names its own. `seed` feeds the gateway's random choices.
    pub fn new(
        network: Network,
        listeners: Vec<(Publish, Listener)>,
        resolver: Resolver,
        seed: u64,
    ) -> Result<Self> {
        let poll = Poll::new().context("cannot create", "an epoll instance")?;
        let waker = Waker::new(poll.registry(), WAKER_TOKEN).context("cannot create", "an eventfd")?;
        let clock = Clock::now();
        let given = network.dns_servers.clone();
        let resolver = given.is_empty().then_some(resolver);
        let mut gateway = Gateway::new(Arc::new(network), seed, now(clock));
        gateway.set_resolvers(resolver.as_ref().map_or(&given, |resolver| &resolver.conf().nameservers));
        let mut worker = Self {
            poll,
            clock,
            gateway,
            links: Vec::new(),
            listeners: Vec::new(),
            sockets: Sockets::default(),
            splices: Splices::new(SPLICE_TOKENS),
            resolver,
            stop: Arc::new(AtomicBool::new(false)),
            waker: Arc::new(waker),
            readable: VecDeque::new(),
            outcomes: VecDeque::new(),
            frame: vec![0; Link::BUFFER_BYTES].into_boxed_slice(),
            batch: Batch::new(),
            source: Source::Published(0),
            quote: vec![0; QUOTE_BYTES].into_boxed_slice(),
        };
        for (publish, listener) in listeners {
            worker.add_listener(publish, listener)?;
        }
        Ok(worker)
    }

    /// Plugs a guest's link in.
    pub fn add_link(&mut self, mut link: Link, mac: MacAddr) -> Result<()> {
        let port = self.gateway.add_port(mac, link.offload());
        let token = special(LINK_TOKENS, self.links.len());
        self.poll.registry().register(&mut link, token, BOTH).context("cannot poll", "the guest's link")?;
        debug_assert_eq!(usize::from(port.0), self.links.len());
        self.links.push(LinkPort { link, readable: true, blocked: false, refuses_since: None, gone: false });
        Ok(())
    }

    /// Has loopback clients of published TCP ports spliced, if the network's policy wants that, with sockets that
    /// `factory` makes.
    pub fn add_factory(&mut self, factory: Factory) -> Result<()> {
        self.splices.supply(factory, self.poll.registry(), FACTORY_TOKEN)
    }

    fn add_listener(&mut self, publish: Publish, mut listener: Listener) -> Result<()> {
        let token = special(LISTENER_TOKENS, self.listeners.len());
        register_listener(self.poll.registry(), &mut listener, token)
            .context("cannot poll", format!("port {}", publish.guest_port))?;
        self.gateway.publish(publish.transport, publish.guest_port, PortId(0));
        self.listeners.push(Published {
            listener,
            readable: true,
            resting_until: None,
            cutting: Cutting::default(),
        });
        Ok(())
    }

    /// The handle that ends this worker.
    pub fn stopper(&self) -> Stop {
        Stop { stop: Arc::clone(&self.stop), waker: Arc::clone(&self.waker) }
    }

    /// Serves until stopped or until every link is gone.
    pub fn run(mut self) -> Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let wait = self.wait();
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(error).context("cannot wait for", "network events");
                }
                _ => {}
            }
            if self.stop.load(Ordering::Acquire) || self.links.iter().all(|port| port.gone) {
                return Ok(());
            }
            for event in &events {
                self.note(event);
            }
            self.turn();
        }
    }

    /// How long nothing is due.
    fn wait(&self) -> Duration {
        if self.splices.is_busy() {
            return Duration::ZERO;
        }
        let blocked = self.links.iter().any(|port| port.blocked);
        let pending = self.links.iter().any(|port| port.readable && !port.gone)
            || self.listeners.iter().any(|port| port.readable && port.resting_until.is_none())
            || !self.readable.is_empty()
            || !self.outcomes.is_empty()
            || self.gateway.ready_flows() > 0;
        if blocked {
            return LINK_RETRY;
        }
        if pending {
            return Duration::ZERO;
        }
        let resting = self.listeners.iter().filter_map(|port| port.resting_until).min();
        let now = now(self.clock);
        match [self.gateway.poll_timeout(), resting].into_iter().flatten().min() {
            Some(at) if at <= now => Duration::ZERO,
            Some(at) => Duration::from_micros((at - now).total_micros()).min(LONGEST_WAIT),
            None => LONGEST_WAIT,
        }
    }

    /// Remembers what an event says.
    fn note(&mut self, event: &mio::event::Event) {
        let token = event.token();
        if token == WAKER_TOKEN {
            return;
        }
        if token == FACTORY_TOKEN {
            return self.splices.restock(self.poll.registry());
        }
        let (generation, index) = ((token.0 >> 32) as u32, token.0 as u32);
        if index >= LISTENER_TOKENS {
            if let Some(published) = self.listeners.get_mut((index - LISTENER_TOKENS) as usize) {
                published.readable = true;
            }
        } else if index >= LINK_TOKENS {
            if let Some(port) = self.links.get_mut((index - LINK_TOKENS) as usize) {
                port.readable |= event.is_readable() || event.is_error() || event.is_read_closed();
                port.blocked &= !event.is_writable();
            }
        } else if index >= SPLICE_TOKENS {
            self.splices.note(index, generation, event);
        } else {
            self.note_socket(FlowId::from_parts(index, generation), event);
        }
    }

    fn note_socket(&mut self, flow: FlowId, event: &mio::event::Event) {
        match self.sockets.get(flow) {
            Some(Socket::Stream(_)) => {
                let closed = event.is_read_closed() || event.is_error();
                self.gateway.host_ready(flow, event.is_readable() || closed, event.is_writable() || closed);
            }
            Some(Socket::Connecting(stream)) => match connection_result(stream) {
                None => {}
                Some(Ok(())) => {
                    self.sockets.connected(flow);
                    self.outcomes.push_back(Outcome::Connected(flow));
                }
                Some(Err(error)) => {
                    self.sockets.take(flow);
                    self.outcomes.push_back(Outcome::ConnectFailed(flow, host::host_error(&error)));
                }
            },
            Some(Socket::Datagram(socket)) => {
                socket.failed |= event.is_error();
                if !std::mem::replace(&mut socket.queued, true) {
                    self.readable.push_back(flow);
                }
            }
            None => {}
        }
    }

    fn turn(&mut self) {
        self.flush();
        self.read_links();
        self.report_outcomes();
        self.read_datagrams();
        self.read_listeners();
        self.serve_splices();
        self.expire();
        self.serve();
        self.flush();
    }

    /// Whether the gateway may take another input.
    fn has_room(&mut self) -> bool {
        if !self.gateway.outbox().has_room() {
            self.flush();
        }
        self.gateway.outbox().has_room()
    }

    fn read_links(&mut self) {
        let now = now(self.clock);
        for index in 0..self.links.len() {
            for _ in 0..FRAMES_PER_TURN {
                if !self.has_room() {
                    return;
                }
                let port = &mut self.links[index];
                if !port.readable || port.gone {
                    break;
                }
                match port.link.read(&mut self.frame) {
                    Ok(Some((frame, offload))) => {
                        self.gateway.handle_frame(PortId(index as u16), frame, offload, now);
                    }
                    Ok(None) => port.readable = false,
                    Err(error) => {
                        tracing::debug!(%error, "the guest's link is gone");
                        port.gone = true;
                    }
                }
            }
        }
    }

    fn report_outcomes(&mut self) {
        let now = now(self.clock);
        while self.has_room() {
            let Some(outcome) = self.outcomes.pop_front() else { return };
            let event = match outcome {
                Outcome::Connected(flow) => HostEvent::Connected { flow },
                Outcome::ConnectFailed(flow, error) => HostEvent::ConnectFailed { flow, error },
                Outcome::OpenFailed(flow, error) => HostEvent::OpenFailed { flow, error },
                Outcome::SendFailed(flow, error) => HostEvent::SendFailed { flow, error, payload: &[] },
            };
            self.gateway.handle_host(event, now);
        }
    }

    fn read_datagrams(&mut self) {
        if !self.deliver() {
            return;
        }
        for _ in 0..self.readable.len() {
            let Some(flow) = self.readable.pop_front() else { return };
            if !(self.read_errors(flow) && self.read_socket(flow)) {
                self.readable.push_back(flow);
            } else if let Some(Socket::Datagram(socket)) = self.sockets.get(flow) {
                socket.queued = false;
            }
        }
    }

    /// Reads a flow's datagrams; `false` if there are more.
    fn read_socket(&mut self, flow: FlowId) -> bool {
        for _ in 0..BATCHES_PER_TURN {
            if !self.deliver() {
                return false;
            }
            let Some(Socket::Datagram(socket)) = self.sockets.get(flow) else { return true };
            self.source = Source::Flow(flow);
            match self.batch.receive(&socket.fd) {
                Ok(Batch::MESSAGES) => {}
                Ok(_) => return self.deliver(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => {
                    socket.failed = true;
                    return false;
                }
            }
        }
        false
    }

    /// Passes on what the batch holds; `false` if a link has no room for all of it.
    fn deliver(&mut self) -> bool {
        let now = now(self.clock);
        while !self.batch.is_empty() {
            if !self.has_room() {
                return false;
            }
            let Some(Received { from, to, hop_limit, payload }) = self.batch.front() else { break };
            match (self.source, to) {
                (Source::Flow(flow), _) => {
                    self.gateway.handle_host(HostEvent::Datagram { flow, from, hop_limit, payload }, now);
                }
                (Source::Published(index), Some(to)) => {
                    let publish = publish_id(index);
                    self.gateway
                        .handle_host(HostEvent::PublishedDatagram { publish, from, to, payload }, now);
                }
                (Source::Published(_), None) => {}
            }
            self.batch.pop();
        }
        true
    }

    /// Passes on the ICMP errors that the host's kernel has queued for a flow; `false` if there are more.
    fn read_errors(&mut self, flow: FlowId) -> bool {
        let now = now(self.clock);
        for _ in 0..ERRORS_PER_TURN {
            if !self.has_room() {
                return false;
            }
            let Some(Socket::Datagram(socket)) = self.sockets.get(flow) else { return true };
            if !socket.failed {
                return true;
            }
            let Ok(Some((error, len))) = datagram::take_error(&socket.fd, &mut self.quote) else {
                socket.failed = false;
                return true;
            };
            let payload = &self.quote[..len];
            self.gateway.handle_host(HostEvent::SendFailed { flow, error, payload }, now);
        }
        false
    }

    fn read_listeners(&mut self) {
        let now = now(self.clock);
        for index in 0..self.listeners.len() {
            let published = &mut self.listeners[index];
            if published.resting_until.is_some_and(|until| until <= now) {
                published.resting_until = None;
            }
            if !published.readable || published.resting_until.is_some() {
                continue;
            }
            match published.listener {
                Listener::Tcp { .. } => self.accept(index),
                Listener::Udp { .. } => self.read_published(index),
            }
        }
    }

    fn accept(&mut self, index: usize) {
        let now = now(self.clock);
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.has_room() {
                return;
            }
            let published = &mut self.listeners[index];
            let Listener::Tcp { socket, .. } = &published.listener else { return };
            match socket.accept() {
                Ok((stream, client)) => self.accepted(index, stream, client, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    published.readable = false;
                    return;
                }
                Err(error) if host::host_error(&error) == HostError::Exhausted => {
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                    published.resting_until = Some(now + ACCEPT_RETRY.into());
                    return;
                }
                // The client left before its turn came (accept(2): treat it like no connection).
                Err(_) => {}
            }
        }
    }

    fn accepted(&mut self, index: usize, stream: TcpStream, address: SocketAddr, now: Instant) {
        let client = Client { stream, address, publish: publish_id(index) };
        let spliced = self.splices.can_splice().then(|| self.gateway.splice(client.publish, address)).flatten();
        match spliced {
            Some((flow, splice)) => self.splices.open(flow, splice, client, self.poll.registry()),
            None => self.route(client, now),
        }
    }

    /// Has a client's connection cross the link.
    fn route(&mut self, client: Client, now: Instant) {
        let Client { mut stream, address, publish } = client;
        let Some(flow) = self.gateway.accept(publish, address, now) else { return reset(stream) };
        if let Err(error) = self.poll.registry().register(&mut stream, token(flow), BOTH) {
            tracing::warn!(%error, "cannot poll a client's socket");
            // Nothing will be announced of it: its first read must end it.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.sockets.put(flow, Socket::Stream(stream));
    }

    fn serve_splices(&mut self) {
        self.splices.serve(self.poll.registry());
        let now = now(self.clock);
        while self.has_room() {
            match self.splices.next_end() {
                Some(End::Over(flow)) => self.gateway.splice_ended(flow),
                Some(End::NotSpliced(flow, client)) => {
                    self.gateway.splice_ended(flow);
                    self.route(client, now);
                }
                None => return,
            }
        }
    }

    fn read_published(&mut self, index: usize) {
        for _ in 0..BATCHES_PER_TURN {
            if !self.deliver() {
                return;
            }
            let published = &mut self.listeners[index];
            let Listener::Udp { socket, .. } = &published.listener else { return };
            self.source = Source::Published(index);
            match self.batch.receive(socket) {
                Ok(Batch::MESSAGES) => {}
                Ok(_) => {
                    let delivered = self.deliver();
                    self.listeners[index].readable = !delivered;
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    published.readable = false;
                    return;
                }
                Err(error) => tracing::debug!(%error, "cannot read a published port"),
            }
        }
    }

    fn expire(&mut self) {
        let now = now(self.clock);
        for _ in 0..TIMEOUTS_PER_TURN {
            if self.gateway.poll_timeout().is_none_or(|at| at > now) || !self.has_room() {
                return;
            }
            self.gateway.handle_timeout(now);
        }
    }

    /// Serves every stream that was ready when the turn came to it.
    fn serve(&mut self) {
        let now = now(self.clock);
        for _ in 0..self.gateway.ready_flows() {
            if !self.has_room() {
                return;
            }
            let Some(flow) = self.gateway.next_ready() else { return };
            if let Some(Socket::Stream(stream)) = self.sockets.get(flow) {
                self.gateway.service(flow, stream, now);
            }
        }
    }

    /// Executes all operations, and writes frames until the link takes no more.
    fn flush(&mut self) {
        while let Some(op) = self.gateway.outbox().pop_op() {
            self.execute(op);
        }
        self.gateway.outbox().clear_payload();
        while let Some((port, frame, offload)) = self.gateway.outbox().front_frame() {
            let port = &mut self.links[usize::from(port.0)];
            match port.link.write(frame, offload) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if port.may_still_take_it(now(self.clock)) {
                        port.blocked = true;
                        return;
                    }
                    tracing::trace!(%error, "the link takes no such frame");
                }
                Err(error) => tracing::trace!(%error, "the link refused a frame"),
                Ok(()) => port.refuses_since = None,
            }
            port.blocked = false;
            self.gateway.outbox().pop_frame();
        }
    }

    fn execute(&mut self, op: HostOp) {
        match op {
            HostOp::Connect { flow, to } => self.connect(flow, to),
            HostOp::OpenUdp { flow, family } => {
                self.open(flow, family, datagram::open_udp(unspecified(family)))
            }
            HostOp::OpenPing { flow, family } => self.open(flow, family, datagram::open_ping(family)),
            HostOp::Send { flow, to, hop_limit, payload } => {
                let Some(Socket::Datagram(socket)) = self.sockets.get(flow) else { return };
                let segment_bytes = payload.segment_bytes();
                let envelope = Envelope { to, from: None, hop_limit: Some(hop_limit), segment_bytes };
                let bytes = self.gateway.outbox().payload(payload);
                let Datagrams { fd, family, cutting, .. } = socket;
                cutting.send(fd, bytes, &envelope, |error| {
                    let error = unroutable(&error, *family, to);
                    self.outcomes.extend(error.map(|error| Outcome::SendFailed(flow, error)));
                });
            }
            HostOp::Reply { publish, to, from, payload } => {
                let Some(published) = self.listeners.get_mut(publish.0 as usize) else { return };
                let Listener::Udp { socket, .. } = &published.listener else { return };
                let segment_bytes = payload.segment_bytes();
                let envelope = Envelope { to, from: Some(from), hop_limit: None, segment_bytes };
                let bytes = self.gateway.outbox().payload(payload);
                published.cutting.send(socket, bytes, &envelope, |error| {
                    tracing::debug!(%to, %error, "cannot answer a client");
                });
            }
            HostOp::Release { flow, how } => match (self.sockets.take(flow), how) {
                (Some(Socket::Stream(stream) | Socket::Connecting(stream)), Release::Reset) => reset(stream),
                (socket, _) => drop(socket),
            },
            HostOp::RefreshResolvers => {
                let changed = self.resolver.as_mut().and_then(|resolver| resolver.refresh(now(self.clock)));
                if let Some(servers) = changed {
                    self.gateway.set_resolvers(servers);
                }
            }
        }
    }

    fn connect(&mut self, flow: FlowId, to: SocketAddr) {
        let connecting = host::connect(to).and_then(|mut stream| {
            self.poll.registry().register(&mut stream, token(flow), BOTH)?;
            Ok(stream)
        });
        match connecting {
            Ok(stream) => self.sockets.put(flow, Socket::Connecting(stream)),
            Err(error) => {
                self.outcomes.push_back(Outcome::ConnectFailed(flow, host::host_error(&error)));
            }
        }
    }

    fn open(&mut self, flow: FlowId, family: Family, opened: io::Result<OwnedFd>) {
        let registered = opened.and_then(|fd| {
            let mut source = SourceFd(&fd.as_raw_fd());
            self.poll.registry().register(&mut source, token(flow), Interest::READABLE)?;
            Ok(fd)
        });
        match registered {
            Ok(fd) => {
                let socket =
                    Datagrams { fd, family, queued: false, failed: false, cutting: Cutting::default() };
                self.sockets.put(flow, Socket::Datagram(socket));
            }
            Err(error) => self.outcomes.push_back(Outcome::OpenFailed(flow, host::host_error(&error))),
        }
    }
}

const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);

fn now(clock: Clock) -> Instant {
    Instant::from_micros(i64::try_from(clock.elapsed().as_micros()).unwrap_or(i64::MAX))
}

fn token(flow: FlowId) -> Token {
    Token((flow.generation() as usize) << 32 | flow.index())
}

fn special(base: u32, index: usize) -> Token {
    Token(base as usize + index)
}

fn publish_id(index: usize) -> PublishId {
    PublishId(u32::try_from(index).unwrap_or(u32::MAX))
}

fn unspecified(family: Family) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        Family::V6 => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    }
}

fn register_listener(registry: &Registry, listener: &mut Listener, token: Token) -> io::Result<()> {
    match listener {
        Listener::Tcp { socket, .. } => registry.register(socket, token, Interest::READABLE),
        Listener::Udp { socket, .. } => {
            registry.register(&mut SourceFd(&socket.as_raw_fd()), token, Interest::READABLE)
        }
    }
}

/// The ICMP error that a router would send for what the host's own routing said at once. `None` for what passes by
/// itself (full buffers), and for what the error queue tells in more detail (a datagram too big).
fn unroutable(error: &io::Error, family: Family, to: SocketAddr) -> Option<IcmpError> {
    // Destination unreachable: RFC 792 and RFC 1812 section 5.2.7.1; RFC 4443 section 3.1.
    let (kind, code) = match (host::host_error(error), family) {
        (HostError::NetUnreachable, Family::V4) => (3, 0),
        (HostError::HostUnreachable, Family::V4) => (3, 1),
        (HostError::Prohibited, Family::V4) => (3, 13),
        (HostError::NetUnreachable, Family::V6) => (1, 0),
        (HostError::HostUnreachable, Family::V6) => (1, 3),
        (HostError::Prohibited, Family::V6) => (1, 1),
        (HostError::Refused | HostError::TimedOut | HostError::Exhausted, _) => return None,
    };
    Some(IcmpError { offender: None, kind, code, info: 0, to })
}

/// Closes with a reset; one that fails has nobody left to tell.
fn reset(stream: TcpStream) {
    let _ = host::reset(stream);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::thread;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use crate::config::{HostAccess, Ipv4Plan, LinkKind, Timeouts};
    use crate::sys::link::LinkFd;

    const ETHERNET_BYTES: usize = 14;
    const MAC: MacAddr = MacAddr([0x52, 0x55, 0x0a, 0, 2, 0x64]);

    #[test]
    fn every_icmp_error_reaches_the_guest() {
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let frames = vec![udp_frame(closed.expect("loopback").port()); FRAMES_PER_TURN];
        let guest = Guest::start(&frames);
        for n in 0..FRAMES_PER_TURN {
            let frame = guest.receive().unwrap_or_else(|error| panic!("error {n}: {error}"));
            let icmp = &frame[ETHERNET_BYTES + 20..];
            assert_eq!(icmp[..2], [3, 3], "port unreachable");
        }
    }

    /// A guest on a link of datagrams instead of frames, whose gateway stands for the host's loopback.
    struct Guest {
        link: UnixDatagram,
        stop: Stop,
        worker: Option<thread::JoinHandle<Result<()>>>,
    }

    impl Guest {
        /// Starts the worker when the guest has sent `frames`.
        fn start(frames: &[Vec<u8>]) -> Self {
            let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
            let (link, far) = pair.expect("a socket pair");
            let (link, far) = (UnixDatagram::from(link), UnixDatagram::from(far));
            for frame in frames {
                link.send(frame).expect("room");
            }
            link.set_read_timeout(Some(Duration::from_secs(5))).expect("not zero");
            far.set_nonblocking(true).expect("a flag");
            let network = Network {
                ipv4: Ipv4Plan::new("10.0.2.0/24".parse().expect("a subnet")).expect("a plan"),
                ipv6: None,
                mtu: 1500,
                dns_servers: Vec::new(),
                publish: Vec::new(),
                splice: false,
                host_access: HostAccess { loopback: true, allowed: Vec::new() },
                timeouts: Timeouts::default(),
            };
            let resolver = Resolver::new("/nonexistent");
            let mut worker = Worker::new(network, Vec::new(), resolver, 1).expect("a worker");
            let far = LinkFd {
                kind: LinkKind::TapPlain,
                udp_segmentation: false,
                fd: far.into(),
                notes: Vec::new(),
            };
            worker.add_link(Link::new(far), MAC).expect("a link");
            let stop = worker.stopper();
            Self { link, stop, worker: Some(thread::spawn(|| worker.run())) }
        }

        fn receive(&self) -> io::Result<Vec<u8>> {
            let mut frame = vec![0; 2000];
            let len = self.link.recv(&mut frame)?;
            frame.truncate(len);
            Ok(frame)
        }
    }

    impl Drop for Guest {
        fn drop(&mut self) {
            self.stop.stop();
            if let Some(Ok(result)) = self.worker.take().map(thread::JoinHandle::join) {
                result.expect("a worker that ends when asked");
            }
        }
    }

    /// An empty datagram to `port` of the gateway.
    fn udp_frame(port: u16) -> Vec<u8> {
        let mut frame = [MacAddr::GATEWAY.0, MAC.0].concat();
        frame.extend([8, 0]);
        frame.extend([0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0x62, 0x6c, 10, 0, 2, 100, 10, 0, 2, 2]);
        frame.extend([0x10, 0x00]);
        frame.extend(port.to_be_bytes());
        frame.extend([0, 8, 0, 0]);
        frame
    }
}
