//! Published connections that the kernel carries: a client's socket and one inside the guest's network namespace,
//! joined by splice(2). No byte of them is copied, and none crosses the link.
//!
//! Sockets towards the guest come from a [`Factory`] in batches, ahead of need, so that a connection waits for one
//! only when the stock is used up. What cannot be spliced (no factory, no port left in the guest) is handed back for
//! the link. The kernel's own timers end what nobody answers: see [`crate::sys::stream`].

mod loopback;
mod pair;
mod pipe;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use mio::event::Event;
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use socket2::SockRef;

pub use self::loopback::Loopback;
use self::pair::{Outcome, Pair, Side};
use self::pipe::Pipes;
use crate::error::{Context, Result};
use crate::net::policy::{Service, Splice};
use crate::net::{Family, FlowId, PortId};
use crate::sys::factory::{BATCH_SOCKETS, Factory};

/// A further batch is asked for when fewer sockets than this are left.
const LOW_STOCK: usize = BATCH_SOCKETS / 2;
/// Connections served before other sources have their turn.
const SERVED_PER_TURN: usize = 64;

/// Urgent data too, at which reading stops.
const ALL: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);
/// In the index of a token, which is below it otherwise: this socket is the guest's side.
const GUEST_SIDE: u32 = 1 << 30;

/// All spliced connections of one worker.
pub(super) struct Splices {
    /// Indices of tokens from here on are ours, 2^31 of them.
    first_token: u32,
    factory: Option<Factory>,
    stock_v4: Stock,
    stock_v6: Stock,
    flows: HashMap<FlowId, Flow>,
    /// Flows that have something to do.
    ready: VecDeque<FlowId>,
    ends: VecDeque<End>,
    pipes: Pipes,
}

/// A client that was accepted on a published port.
pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) address: SocketAddr,
    /// The guest's link.
    pub(super) port: PortId,
    pub(super) service: Service,
}

/// How a flow ended.
pub(super) enum End {
    /// It is over.
    Over(FlowId),
    /// It could not begin; its client is there for another way.
    NotSpliced(FlowId, Client),
}

struct Flow {
    pair: Pair,
    address: SocketAddr,
    port: PortId,
    service: Service,
    guest: SocketAddr,
    fallback: Option<SocketAddr>,
    queued: bool,
}

/// Sockets of one family that wait for connections, and connections that wait for them.
#[derive(Default)]
struct Stock {
    sockets: Vec<OwnedFd>,
    waiting: VecDeque<FlowId>,
    requested: bool,
    /// The guest's kernel does not have this family.
    missing: bool,
}

impl Splices {
    /// None yet, and no way to make any. Tokens whose index has the bits of `first_token`, which must be 2^31, are
    /// for these.
    pub(super) fn new(first_token: u32) -> Self {
        Self {
            first_token,
            factory: None,
            stock_v4: Stock::default(),
            stock_v6: Stock::default(),
            flows: HashMap::new(),
            ready: VecDeque::new(),
            ends: VecDeque::new(),
            pipes: Pipes::default(),
        }
    }

    /// Has sockets come from `factory`, whose answers `token` announces.
    pub(super) fn supply(&mut self, factory: Factory, registry: &Registry, token: Token) -> Result<()> {
        registry
            .register(&mut SourceFd(&factory.as_fd().as_raw_fd()), token, Interest::READABLE)
            .context("cannot poll", "the socket factory")?;
        self.factory = Some(factory);
        Ok(())
    }

    /// Whether a connection can be spliced at all.
    pub(super) fn can_splice(&self) -> bool {
        self.factory.is_some()
    }

    /// Begins `flow` for a client.
    pub(super) fn open(&mut self, flow: FlowId, splice: Splice, mut client: Client, registry: &Registry) {
        if let Err(error) = registry.register(&mut client.stream, self.token(flow, Side::Client), ALL) {
            tracing::warn!(%error, "cannot poll a client's socket");
            self.ends.push_back(End::NotSpliced(flow, client));
            return;
        }
        let Client { stream, address, port, service } = client;
        let Splice { guest, fallback } = splice;
        let opened = Flow { pair: Pair::new(stream), address, port, service, guest, fallback, queued: false };
        self.flows.insert(flow, opened);
        self.connect(flow, registry);
    }

    /// Opens a socket towards the guest for `id`, at once or when there is one.
    fn connect(&mut self, id: FlowId, registry: &Registry) {
        let token = self.token(id, Side::Guest);
        while let Some(flow) = self.flows.get_mut(&id) {
            let stock = match Family::of(flow.guest.ip()) {
                Family::V4 => &mut self.stock_v4,
                Family::V6 => &mut self.stock_v6,
            };
            match stock.take(Family::of(flow.guest.ip()), self.factory.as_ref()) {
                Taken::Socket(socket) => match connect(socket, flow.guest, registry, token) {
                    Ok(guest) => {
                        flow.pair.set_guest(guest);
                        return self.queue(id);
                    }
                    Err(error) => tracing::debug!(%error, guest = %flow.guest, "cannot splice"),
                },
                Taken::Later => return stock.waiting.push_back(id),
                Taken::Never => {}
            }
            match flow.fallback.take() {
                Some(other) => flow.guest = other,
                None => return self.give_up(id, registry),
            }
        }
    }

    /// Hands the client back, unless some of what it said is gone.
    fn give_up(&mut self, id: FlowId, registry: &Registry) {
        let Some(Flow { pair, address, port, service, .. }) = self.flows.remove(&id) else { return };
        let end = match pair.into_untouched_client() {
            Ok(mut stream) => {
                // It is registered, or it would not be here.
                let _ = registry.deregister(&mut stream);
                End::NotSpliced(id, Client { stream, address, port, service })
            }
            Err(pair) => {
                pair.reset(&mut self.pipes);
                End::Over(id)
            }
        };
        self.ends.push_back(end);
    }

    /// Remembers what an event of one of our tokens says, given in its two halves.
    pub(super) fn note(&mut self, index: u32, generation: u32, event: &Event) {
        let side = if index & GUEST_SIDE == 0 { Side::Client } else { Side::Guest };
        let id = FlowId::from_parts(index & !(self.first_token | GUEST_SIDE), generation);
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.pair.note(side, event);
            self.queue(id);
        }
    }

    /// Takes what the factory has answered.
    pub(super) fn restock(&mut self, registry: &Registry) {
        while let Some(factory) = &self.factory {
            let waiting = match factory.receive() {
                Ok(batch) => match batch.family {
                    Family::V4 => self.stock_v4.add(batch.sockets),
                    Family::V6 => self.stock_v6.add(batch.sockets),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::warn!(%error, "the socket factory is gone; loopback clients take the link from now on");
                    self.factory = None;
                    let mut waiting = std::mem::take(&mut self.stock_v4.waiting);
                    waiting.append(&mut self.stock_v6.waiting);
                    waiting
                }
            };
            for flow in waiting {
                self.connect(flow, registry);
            }
        }
    }

    /// Whether a connection can be served without waiting.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether [`Self::next_end`] has one.
    pub(super) fn has_ended(&self) -> bool {
        !self.ends.is_empty()
    }

    /// Whether a client has yet to take what the guest has said, or will say.
    pub(super) fn owes_clients(&self) -> bool {
        self.flows.values().any(|flow| flow.pair.owes_client())
    }

    /// Serves connections that have something to do, each once.
    pub(super) fn serve(&mut self, registry: &Registry) {
        for _ in 0..self.ready.len().min(SERVED_PER_TURN) {
            let Some(id) = self.ready.pop_front() else { return };
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            flow.queued = false;
            match flow.pair.service(&mut self.pipes) {
                Outcome::Alive(false) => {}
                Outcome::Alive(true) => self.queue(id),
                Outcome::Closed => self.end(id, false),
                Outcome::Failed => self.end(id, true),
                Outcome::Refused => match flow.fallback.take() {
                    Some(other) => {
                        flow.guest = other;
                        self.connect(id, registry);
                    }
                    None => self.end(id, true),
                },
            }
        }
    }

    /// The next flow that has ended.
    pub(super) fn next_end(&mut self) -> Option<End> {
        self.ends.pop_front()
    }

    fn end(&mut self, id: FlowId, reset: bool) {
        let Some(flow) = self.flows.remove(&id) else { return };
        let (to_guest, to_client) = flow.pair.carried_bytes();
        tracing::debug!(to_guest, to_client, reset, "splice end");
        if reset {
            flow.pair.reset(&mut self.pipes);
        }
        self.ends.push_back(End::Over(id));
    }

    fn queue(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id)
            && !std::mem::replace(&mut flow.queued, true)
        {
            self.ready.push_back(id);
        }
    }

    fn token(&self, flow: FlowId, side: Side) -> Token {
        let side = if side == Side::Guest { GUEST_SIDE as usize } else { 0 };
        Token((flow.generation() as usize) << 32 | self.first_token as usize | side | flow.index())
    }
}

/// What a stock has for a connection.
enum Taken {
    Socket(OwnedFd),
    /// Some are on their way.
    Later,
    Never,
}

impl Stock {
    fn take(&mut self, family: Family, factory: Option<&Factory>) -> Taken {
        let Some(factory) = factory.filter(|_| !self.missing) else { return Taken::Never };
        if self.sockets.len() < LOW_STOCK && !self.requested {
            // The end of a factory that is gone is announced.
            self.requested = factory.request(family).is_ok();
        }
        self.sockets.pop().map_or(Taken::Later, Taken::Socket)
    }

    /// Adds a batch; who has waited for it.
    fn add(&mut self, batch: Vec<OwnedFd>) -> VecDeque<FlowId> {
        self.requested = false;
        self.missing = batch.is_empty();
        self.sockets.extend(batch);
        std::mem::take(&mut self.waiting)
    }
}

/// Starts the connection of `socket`.
fn connect(socket: OwnedFd, to: SocketAddr, registry: &Registry, token: Token) -> io::Result<TcpStream> {
    match SockRef::from(&socket).connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(error),
        _ => {}
    }
    let mut stream = TcpStream::from_std(socket.into());
    registry.register(&mut stream, token, ALL)?;
    Ok(stream)
}
