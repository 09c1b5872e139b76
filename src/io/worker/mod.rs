//! The event loop: one thread, one poll, its links, its gateway and all their host sockets.
//!
//! A turn is: note what the poll said, then drain and feed in bounded batches (links, datagram sockets,
//! listeners, timers, streams), writing frames and executing operations whenever the outbox fills. The poll is
//! edge-triggered, so readiness is remembered until a call says `WouldBlock`; whoever ran out of budget stays on a
//! list and the next poll does not wait.
//!
//! A link that takes no more frames stops every input: nothing is dropped, the sources wait, unless it lasts. A link
//! whose rate is limited is left alone until it may be used again, in either direction.
//!
//! A link with several queues has a worker for each: a [`Worker::team`], whose members share nothing. A flow belongs
//! to one of them, which every worker can tell from a packet; what another one gets of it is handed over. As the owner
//! writes to its own queue, the kernel soon delivers the flow there.

mod datagrams;
mod exchange;
mod guests;
mod listen;
mod moderation;
mod splices;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::{Duration, Instant as Clock};

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use nix::sys::prctl::set_timerslack;

use self::datagrams::Source;
use self::exchange::{Exchange, Parcel, Settled};
pub use self::guests::Guest;
use self::guests::Waiting;
use self::listen::Published;
use self::moderation::Moderation;
use super::command::{COMMANDS_PER_TURN, Command, Commands, MAX_FLOWS_TOLD, Snapshot};
use super::host::{self, Listener};
use super::link::Link;
use super::resolver::Resolver;
use super::sockets::{Cutting, Datagrams, Socket, Sockets, connection_result};
use super::splice::Splices;
use super::stop::{DRAIN, Orders, Stop};
use crate::config::{MacAddr, Network, Outbound, Rate, Rates};
use crate::error::{Context, Result};
use crate::net::bucket::Bucket;
use crate::net::gateway::{Gateway, Station};
use crate::net::outbox::HEADROOM;
use crate::net::{
    Family, FlowId, HostError, HostEvent, HostOp, IcmpError, Instant, PortId, PublishId, Release, RxOffload,
    Shard,
};
use crate::sys::datagram::{Batch, Envelope};

/// Events taken from one poll.
const EVENTS: usize = 1024;
/// Frames read from one link before other sources have their turn.
const FRAMES_PER_TURN: usize = 64;
/// Frames and clients taken from other workers before other sources have their turn.
const PARCELS_PER_TURN: usize = 64;
/// The most that is read of the datagram that an error is about: more than any ICMP error quotes.
const QUOTE_BYTES: usize = 2048;
/// Flows whose deadlines are handled in one turn.
const TIMEOUTS_PER_TURN: usize = 256;
/// A packet link that is full announces nothing when it has room again; nor does another worker's inbox.
const LINK_RETRY: Duration = Duration::from_millis(1);
/// A link that has taken nothing for so long is not full: it does not take this frame (a veth whose guest has lowered
/// its MTU says ENOBUFS for ever). From then on frames that it does not take at once are lost, until it takes one.
const LINK_PATIENCE: Duration = Duration::from_millis(250);
/// How much later than asked the worker may be woken.
const TIMER_SLACK_NS: u64 = 1000;
/// Longest wait, so that a clock that jumps costs little.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The worker that sends and gathers fragments.
const FIRST: usize = 0;
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
    shard: Shard,
    gateway: Gateway,
    exchange: Exchange,
    /// By port.
    links: Vec<LinkPort>,
    /// Its guests are several, and come and go.
    has_seats: bool,
    /// Ports of guests that have left some flows behind.
    leaving: Vec<PortId>,
    listeners: Vec<Published>,
    sockets: Sockets,
    splices: Splices,
    resolver: Option<Resolver>,
    orders: Arc<Orders>,
    /// Set once it drains.
    drains_until: Option<Instant>,
    waker: Arc<Waker>,
    commands: Commands,
    inbox: Receiver<Command>,
    /// Datagram sockets that have something to read.
    readable: VecDeque<FlowId>,
    outcomes: VecDeque<Outcome>,
    frame: Box<[u8]>,
    batch: Batch,
    /// Where the datagrams of the batch come from.
    source: Source,
    quote: Box<[u8]>,
    outbound: Outbound,
    rates: Rates,
    moderation: Moderation,
}

struct LinkPort {
    /// `None` once its guest has left.
    link: Option<Link>,
    /// What it has yet to take; that of an only guest stays in the outbox.
    waiting: Waiting,
    readable: bool,
    blocked: bool,
    /// When it first refused the frame that it was offered last.
    refuses_since: Option<Instant>,
    gone: bool,
    /// What may be sent, if that is limited.
    to_guest: Option<Bucket>,
    /// What may be read, if that is limited.
    from_guest: Option<Bucket>,
    /// When the frame that waits first may be sent.
    held_until: Option<Instant>,
}

impl LinkPort {
    fn new(link: Link, rates: &Rates, now: Instant) -> Self {
        let bucket = |rate: Option<Rate>| rate.map(|rate| Bucket::new(rate, now));
        Self {
            link: Some(link),
            waiting: Waiting::default(),
            readable: true,
            blocked: false,
            refuses_since: None,
            gone: false,
            to_guest: bucket(rates.to_guest),
            from_guest: bucket(rates.from_guest),
            held_until: None,
        }
    }

    /// The guest has left.
    fn leave(&mut self) -> Option<Link> {
        (self.gone, self.blocked, self.waiting) = (true, false, Waiting::default());
        self.link.take()
    }

    /// When the next frame may be read, if one waits; `None` if there is none, or nobody to ask any more.
    fn reads_at(&self, now: Instant) -> Option<Instant> {
        let held = self.from_guest.as_ref().and_then(|bucket| bucket.opens_at(now));
        (self.readable && !self.gone).then_some(held.unwrap_or(now))
    }

    /// Whether the frame that was just refused should be offered again.
    fn may_still_take_it(&mut self, now: Instant) -> bool {
        now < *self.refuses_since.get_or_insert(now) + LINK_PATIENCE.into()
    }
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
    /// The workers of `network`, one for each of `queues`, the queues of one link to the guest's station `mac`, if that
    /// is known. Each wants a thread. `resolver` knows the host's DNS servers, which count unless the network names its
    /// own.
    /// `seed` feeds the gateways' random choices.
    pub fn team(
        network: Network,
        queues: Vec<Link>,
        mac: Option<MacAddr>,
        resolver: &Resolver,
        seed: u64,
    ) -> Result<Vec<Self>> {
        let network = Arc::new(network);
        let shards = Shard::all(queues.len()).zip(0..);
        let mut team = shards
            .map(|(shard, index)| {
                // Half a byte apart, so that no worker's seed is another's.
                let seed = seed.rotate_left(4 * index);
                Self::of_shard(shard, Arc::clone(&network), resolver.clone(), seed)
            })
            .collect::<Result<Vec<_>>>()?;
        let station = Station::from(mac.unwrap_or(MacAddr::BROADCAST));
        for (worker, queue) in team.iter_mut().zip(queues) {
            worker.add_link(queue, station.clone())?;
        }
        let wakers: Vec<_> = team.iter().map(|worker| Arc::clone(&worker.waker)).collect();
        for (worker, exchange) in team.iter_mut().zip(Exchange::between(&wakers)) {
            worker.exchange = exchange;
        }
        Ok(team)
    }

    fn of_shard(shard: Shard, network: Arc<Network>, resolver: Resolver, seed: u64) -> Result<Self> {
        let poll = Poll::new().context("cannot create", "an epoll instance")?;
        let waker = Waker::new(poll.registry(), WAKER_TOKEN).context("cannot create", "an eventfd")?;
        let waker = Arc::new(waker);
        let (commands, inbox) = Commands::new(Arc::clone(&waker), shard);
        let clock = Clock::now();
        let (given, outbound, rates) = (network.dns_servers.clone(), network.outbound, network.rates);
        let resolver = given.is_empty().then_some(resolver);
        let mut gateway = Gateway::of_shard(network, shard, seed, now(clock));
        gateway.set_resolvers(resolver.as_ref().map_or(&given, |resolver| &resolver.conf().nameservers));
        Ok(Self {
            poll,
            clock,
            shard,
            gateway,
            exchange: Exchange::default(),
            links: Vec::new(),
            has_seats: false,
            leaving: Vec::new(),
            listeners: Vec::new(),
            sockets: Sockets::default(),
            splices: Splices::new(SPLICE_TOKENS),
            resolver,
            orders: Arc::default(),
            drains_until: None,
            waker,
            commands,
            inbox,
            readable: VecDeque::new(),
            outcomes: VecDeque::new(),
            frame: vec![0; Link::BUFFER_BYTES].into_boxed_slice(),
            batch: Batch::new(),
            source: Source::Published(0),
            quote: vec![0; QUOTE_BYTES].into_boxed_slice(),
            outbound,
            rates,
            moderation: Moderation::default(),
        })
    }

    /// Plugs a guest's link in, or a queue of it.
    fn add_link(&mut self, mut link: Link, station: impl Into<Station>) -> Result<()> {
        let port = self.gateway.add_port(station, link.offload());
        let token = special(LINK_TOKENS, self.links.len());
        self.poll.registry().register(&mut link, token, BOTH).context("cannot poll", "the guest's link")?;
        debug_assert_eq!(usize::from(port.0), self.links.len());
        self.links.push(LinkPort::new(link, &self.rates, now(self.clock)));
        Ok(())
    }

    /// The member of a team that serves a published port of the guest's.
    pub fn owner_of(&self, guest_port: u16) -> usize {
        self.shard.of_udp(guest_port)
    }

    /// The handle by which other threads command this worker.
    pub fn commands(&self) -> Commands {
        self.commands.clone()
    }

    fn obey(&mut self) {
        for _ in 0..COMMANDS_PER_TURN {
            let Ok(command) = self.inbox.try_recv() else { return };
            // Whoever has lost patience hears nothing.
            let _ = match command {
                Command::Publish { number, port, publish, listeners, done } => {
                    done.send(self.publish_for(port, number, &publish, listeners)).ok()
                }
                Command::Attach { guest, done } => {
                    let attached = self.attach(*guest);
                    let port = attached.as_ref().ok().map(|(port, _)| *port);
                    let heard = done.send(attached).ok();
                    // Nobody would take out one whom nobody has heard of.
                    if let (None, Some(port)) = (heard, port) {
                        self.detach(port);
                    }
                    heard
                }
                Command::Detach { port, done } => done.send(self.detach(port)).ok(),
                Command::Unpublish { number, done } => {
                    self.unpublish(number);
                    done.send(()).ok()
                }
                Command::Look { told } => told.send(self.snapshot()).ok(),
            };
        }
        // The poll shall not wait while there may be more.
        let _ = self.waker.wake();
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            counters: self.gateway.counters().clone(),
            flows: self.gateway.flows(),
            described: self.gateway.describe_flows(MAX_FLOWS_TOLD),
        }
    }

    /// The handle that ends this worker.
    pub fn stopper(&self) -> Stop {
        Stop::new(Arc::clone(&self.orders), Arc::clone(&self.waker))
    }

    /// Serves until stopped, drained, or until every link is gone.
    pub fn run(mut self) -> Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        // A courtesy: without it a pause lasts as long again as the kernel's usual slack, 50 microseconds.
        let _ = set_timerslack(TIMER_SLACK_NS);
        loop {
            let wait = self.wait();
            if let Some(pause) = self.moderation.end_turn().filter(|_| !wait.is_zero()) {
                thread::sleep(pause);
            }
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(error).context("cannot wait for", "network events");
                }
                _ => {}
            }
            if self.is_cut_off() || self.orders.says_stop() {
                return Ok(());
            }
            self.obey();
            for event in &events {
                self.note(event);
            }
            self.turn();
            if self.orders.says_drain() && self.has_drained() {
                self.links.into_iter().filter_map(|port| port.link).for_each(Link::abandon);
                return Ok(());
            }
        }
    }

    /// Whether nothing is left to do because the guest's end of every link is gone.
    fn is_cut_off(&self) -> bool {
        self.drains_until.is_none() && self.is_alone()
    }

    /// Whether there is no guest, and none will come.
    fn is_alone(&self) -> bool {
        !self.has_seats && self.links.iter().all(|port| port.gone)
    }

    /// Whether the team has nothing more to deliver, or no more time for it. Asked first, it begins to drain.
    fn has_drained(&mut self) -> bool {
        let now = now(self.clock);
        let Some(until) = self.drains_until else {
            self.drains_until = Some(now + DRAIN.into());
            self.unpublish_all();
            // What the guest sent last may not have been announced yet.
            self.look_again();
            return false;
        };
        let has_frames = self.links.iter().any(|port| port.readable && !port.gone);
        let may_say_more = self.links.iter().any(|port| !port.gone);
        let owes = has_frames
            || !self.outcomes.is_empty()
            || self.exchange.is_readable()
            || self.gateway.owes_host(may_say_more)
            || self.splices.owes_clients();
        let settled = self.exchange.settle(owes);
        if settled == Settled::LookAgain {
            self.look_again();
        }
        settled == Settled::All || until <= now
    }

    /// Has the next turn try all links, whatever the poll says.
    fn look_again(&mut self) {
        self.links.iter_mut().for_each(|port| port.readable = true);
    }

    /// How long nothing is due.
    fn wait(&mut self) -> Duration {
        if self.splices.has_ready() || self.is_cut_off() {
            return Duration::ZERO;
        }
        let now = now(self.clock);
        let held = self.links.iter().filter_map(|port| port.held_until).min();
        let until = |at: Instant| match at <= now {
            true => Duration::ZERO,
            false => Duration::from_micros((at - now).total_micros()).min(LONGEST_WAIT),
        };
        let blocked = self.links.iter().any(|port| port.blocked);
        // Until a frame may go, nothing else can be done.
        if let Some(at) = held.filter(|_| !blocked && !self.gateway.outbox().has_room()) {
            return until(at);
        }
        let reads = self.links.iter().filter_map(|port| port.reads_at(now)).min();
        let passes = self.exchange.has_room();
        let sources = !self.readable.is_empty()
            || reads.is_some_and(|at| at <= now)
            || self.listeners.iter().any(|port| port.readable && port.resting_until.is_none());
        let pending = self.is_alone()
            || !self.leaving.is_empty()
            || (sources && passes)
            || (self.exchange.is_readable() && self.empties_inbox())
            || !self.outcomes.is_empty()
            || self.splices.has_ended()
            || self.gateway.ready_flows() > 0;
        if blocked {
            return LINK_RETRY;
        }
        if pending {
            return Duration::ZERO;
        }
        if !passes {
            return LINK_RETRY;
        }
        let resting = self.listeners.iter().filter_map(|port| port.resting_until).min();
        let due = [self.gateway.poll_timeout(), resting, reads, held, self.drains_until];
        due.into_iter().flatten().min().map_or(LONGEST_WAIT, until)
    }

    /// Remembers what an event says.
    fn note(&mut self, event: &mio::event::Event) {
        let token = event.token();
        if token == WAKER_TOKEN {
            return self.exchange.note();
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
            Some(Socket::Connecting(stream)) => match connection_result(stream, event) {
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
        if self.has_seats {
            self.catch_up();
            self.clear_seats();
        }
        self.read_links();
        self.read_inbox();
        self.exchange.tell();
        self.report_outcomes();
        self.read_datagrams();
        self.read_listeners();
        self.serve_splices();
        self.expire();
        self.serve();
        self.flush();
        self.exchange.tell();
    }

    /// Whether the gateway may take another input.
    fn has_room(&mut self) -> bool {
        if !self.gateway.outbox().has_room() {
            self.flush();
        }
        self.gateway.outbox().has_room()
    }

    /// Whether another parcel may be taken from the inbox. The first worker may have to pass on what comes of it.
    fn empties_inbox(&self) -> bool {
        self.exchange.has_room() || !self.shard.is_first()
    }

    fn read_links(&mut self) {
        let now = now(self.clock);
        for index in 0..self.links.len() {
            for _ in 0..FRAMES_PER_TURN {
                if !self.has_room() || !self.exchange.has_room() {
                    return;
                }
                let port = &mut self.links[index];
                if port.reads_at(now).is_none_or(|at| at > now) {
                    break;
                }
                let Some(link) = &mut port.link else { break };
                match link.receive(&mut self.frame) {
                    Ok(Some(received)) => {
                        let frame = &received.whole[received.header_bytes..];
                        if let Some(bucket) = &mut port.from_guest {
                            bucket.pass(frame.len(), now);
                        }
                        self.moderation.other_work();
                        let port = PortId(index as u16);
                        let (gateway, links) = (&mut self.gateway, &mut self.links);
                        if !self.has_seats || guests::switch(gateway, links, port, &received, now) {
                            feed(gateway, &mut self.exchange, port, frame, received.offload, now);
                        }
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

    fn read_inbox(&mut self) {
        let now = now(self.clock);
        for _ in 0..PARCELS_PER_TURN {
            if !self.exchange.is_readable() || !self.empties_inbox() || !self.has_room() {
                return;
            }
            match self.exchange.next() {
                None => return,
                Some(Parcel::Frame { port, frame, offload }) => {
                    feed(&mut self.gateway, &mut self.exchange, port, &frame, offload, now);
                }
                Some(Parcel::Datagram { datagram, payload }) => {
                    self.gateway.send_large(&datagram, &payload, now);
                }
                Some(Parcel::Client(client)) => self.admit(client, now),
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
            self.moderation.other_work();
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
            if self.has_seats {
                port.deliver(frame, offload, now(self.clock));
                self.gateway.outbox().pop_frame();
                continue;
            }
            let bytes = frame.len() - HEADROOM;
            if let Some(bucket) = &port.to_guest {
                port.held_until = bucket.opens_at(now(self.clock));
                if port.held_until.is_some() {
                    return;
                }
            }
            let Some(link) = &mut port.link else { return };
            match link.write(frame, offload) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if port.may_still_take_it(now(self.clock)) {
                        port.blocked = true;
                        return;
                    }
                    tracing::trace!(%error, "the link takes no such frame");
                }
                Err(error) => tracing::trace!(%error, "the link refused a frame"),
                Ok(()) => {
                    port.refuses_since = None;
                    if let Some(bucket) = &mut port.to_guest {
                        bucket.pass(bytes, now(self.clock));
                    }
                }
            }
            port.blocked = false;
            self.gateway.outbox().pop_frame();
        }
    }

    fn execute(&mut self, op: HostOp) {
        match op {
            HostOp::Connect { flow, to } => self.connect(flow, to),
            HostOp::OpenUdp { flow, family, to_loopback } => {
                let exit = Some(&self.outbound).filter(|_| !to_loopback);
                self.open(flow, family, host::open_udp(exit, family));
            }
            HostOp::OpenPing { flow, family } => {
                self.open(flow, family, host::open_ping(&self.outbound, family));
            }
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
                let Some(Listener::Udp { socket, .. }) = &published.listener else { return };
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
            HostOp::PassOn { datagram, payload } => {
                let payload = self.gateway.outbox().payload(payload).into();
                self.exchange.pass(FIRST, Parcel::Datagram { datagram, payload });
            }
            HostOp::RefreshResolvers => {
                let changed = self.resolver.as_mut().and_then(|resolver| resolver.refresh(now(self.clock)));
                if let Some(servers) = changed {
                    self.gateway.set_resolvers(servers);
                }
            }
        }
    }

    fn connect(&mut self, flow: FlowId, to: SocketAddr) {
        let connecting = host::connect(to, &self.outbound).and_then(|mut stream| {
            self.poll.registry().register(&mut stream, token(flow), BOTH)?;
            Ok(stream)
        });
        match connecting {
            Ok(stream) => self.sockets.put(flow, Socket::Connecting(stream)),
            Err(error) => {
                self.outcomes.push_back(Outcome::ConnectFailed(flow, host::connect_error(&error, to)));
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

/// Gives a frame to the gateway, and what the gateway does not take to the worker whose it is.
fn feed(
    gateway: &mut Gateway,
    exchange: &mut Exchange,
    port: PortId,
    frame: &[u8],
    offload: RxOffload,
    now: Instant,
) {
    if let Some(handed) = gateway.handle_frame(port, frame, offload, now) {
        exchange.pass(handed.to, Parcel::Frame { port, frame: handed.frame.into(), offload });
    }
}

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
