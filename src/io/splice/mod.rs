//! Published connections that the kernel carries: a client's socket and one inside the guest's network namespace,
//! joined by splice(2). No byte of them is copied, and none crosses the link.
//!
//! Sockets towards the guest come from a [`Factory`] in batches, ahead of need, so that a connection waits for one
//! only when the stock is used up. What cannot be spliced (no factory, no port left in the guest) is handed back for
//! the link. The kernel's own timers end what nobody answers: see [`crate::sys::stream`].

mod entrances;
mod loopback;
mod pair;
mod pipe;
mod relay;

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

pub use self::entrances::Entrances;
pub use self::loopback::Loopback;
use self::pair::{Outcome, Pair, Side};
use self::pipe::Pipes;
pub use self::relay::Relay;
use crate::error::{Context, Result};
use crate::net::policy::{Service, Splice};
use crate::net::{Family, FlowId, PortId};
use crate::sys::factory::{BATCH_SOCKETS, Batch, Factory};

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
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let family = Family::of(flow.guest.ip());
        let stock = match family {
            Family::V4 => &mut self.stock_v4,
            Family::V6 => &mut self.stock_v6,
        };
        match stock.take(family, self.factory.as_ref()) {
            Taken::Socket(socket) => match connect(socket, flow.guest, registry, token) {
                Ok(guest) => {
                    flow.pair.set_guest(guest);
                    self.queue(id);
                }
                Err(error) => {
                    tracing::debug!(%error, guest = %flow.guest, "cannot splice");
                    self.connect_otherwise(id, registry);
                }
            },
            Taken::Later => stock.waiting.push_back(id),
            Taken::Never => self.connect_otherwise(id, registry),
        }
    }

    /// Tries the other family; hands the client back if that was the other.
    fn connect_otherwise(&mut self, id: FlowId, registry: &Registry) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        match flow.fallback.take() {
            Some(other) => {
                flow.guest = other;
                self.connect(id, registry);
            }
            None => self.give_up(id, registry),
        }
    }

    /// Hands the client back, of whom nothing was read yet.
    fn give_up(&mut self, id: FlowId, registry: &Registry) {
        let Some(Flow { pair, address, port, service, .. }) = self.flows.remove(&id) else { return };
        let mut stream = pair.into_client();
        // It is registered, or it would not be here.
        let _ = registry.deregister(&mut stream);
        self.ends.push_back(End::NotSpliced(id, Client { stream, address, port, service }));
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
            match factory.receive() {
                Ok(batch) => self.add(batch, registry),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "the socket factory is gone; loopback clients take the link from now on");
                    self.factory = None;
                    let mut waiting = std::mem::take(&mut self.stock_v4.waiting);
                    waiting.append(&mut self.stock_v6.waiting);
                    waiting.into_iter().for_each(|flow| self.connect_otherwise(flow, registry));
                }
            }
        }
    }

    /// Serves those who wait from `batch`. If it is empty they do not wait for another one, which might be, too.
    fn add(&mut self, batch: Batch, registry: &Registry) {
        let is_empty = batch.sockets.is_empty();
        let stock = match batch.family {
            Family::V4 => &mut self.stock_v4,
            Family::V6 => &mut self.stock_v6,
        };
        for flow in stock.add(batch) {
            match is_empty {
                true => self.connect_otherwise(flow, registry),
                false => self.connect(flow, registry),
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
                Outcome::Refused if flow.fallback.is_some() => self.connect_otherwise(id, registry),
                Outcome::Refused => self.end(id, true),
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
    fn add(&mut self, batch: Batch) -> VecDeque<FlowId> {
        self.requested = false;
        self.missing = batch.missing;
        self.sockets.extend(batch.sockets);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::factory::testing::answer_with;
    use crate::sys::stream;
    use mio::{Events, Poll};
    use std::io::{Read, Write};
    use std::net::{self, Ipv4Addr, Ipv6Addr};
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(5);
    const FACTORY: Token = Token(1);
    const TURNS: usize = 100;

    #[test]
    fn a_factory_that_has_none_by_now_is_asked_again() {
        let mut bench = Bench::new();
        for (index, errno) in [(1, Errno::EMFILE), (2, Errno::EAFNOSUPPORT)] {
            bench.open(index, (Ipv4Addr::LOCALHOST, 9), None);
            answer_with(&bench.factory, Family::V4, || Err(errno.into()));
            bench.await_unspliced(index);
        }
        bench.open(3, (Ipv4Addr::LOCALHOST, 9), None);
        assert!(bench.splices.has_ended(), "a family that is missing is not asked for");
    }

    #[test]
    fn a_client_that_cannot_be_spliced_loses_nothing_that_it_said() {
        let closed = net::TcpListener::bind("127.0.0.1:0").and_then(|closed| closed.local_addr());
        let mut bench = Bench::new();
        let fallback = SocketAddr::from((Ipv6Addr::LOCALHOST, 9));
        let mut client = bench.open(1, closed.expect("loopback"), Some(fallback));
        client.write_all(b"hello").expect("room");
        // What it says is known before there is a socket towards the guest.
        bench.turn();
        let factory = bench.factory.try_clone().expect("a copy");
        let answers = thread::spawn(move || {
            answer_with(&factory, Family::V4, || stream::open(Family::V4));
            answer_with(&factory, Family::V6, || Err(Errno::EAFNOSUPPORT.into()));
        });
        let mut unspliced = bench.await_unspliced(1);
        answers.join().expect("both families were tried");
        let mut said = [0; 5];
        unspliced.stream.read_exact(&mut said).expect("it waits");
        assert_eq!(&said, b"hello");
    }

    /// Spliced connections whose factory is the test.
    struct Bench {
        poll: Poll,
        splices: Splices,
        factory: UnixStream,
    }

    impl Bench {
        fn new() -> Self {
            let poll = Poll::new().expect("a poll");
            let (factory, end) = Factory::with_end();
            end.set_read_timeout(Some(PATIENCE)).expect("not zero");
            let mut splices = Splices::new(1 << 31);
            splices.supply(factory, poll.registry(), FACTORY).expect("polled");
            Self { poll, splices, factory: end }
        }

        /// Opens a flow to `guest`; its client's own end.
        fn open(
            &mut self,
            index: u32,
            guest: impl Into<SocketAddr>,
            fallback: Option<SocketAddr>,
        ) -> net::TcpStream {
            let listener = net::TcpListener::bind("127.0.0.1:0").expect("loopback");
            let client = net::TcpStream::connect(listener.local_addr().expect("bound")).expect("room");
            let (stream, address) = listener.accept().expect("the client");
            stream.set_nonblocking(true).expect("a flag");
            let service = Service { addr: None, port: 80 };
            let accepted = Client { stream: TcpStream::from_std(stream), address, port: PortId(0), service };
            let splice = Splice { guest: guest.into(), fallback };
            self.splices.open(FlowId::from_parts(index, 0), splice, accepted, self.poll.registry());
            client
        }

        fn turn(&mut self) {
            let mut events = Events::with_capacity(16);
            self.poll.poll(&mut events, Some(PATIENCE)).expect("events");
            for event in &events {
                match event.token() {
                    FACTORY => self.splices.restock(self.poll.registry()),
                    Token(token) => self.splices.note(token as u32, (token >> 32) as u32, event),
                }
            }
            self.splices.serve(self.poll.registry());
        }

        fn await_unspliced(&mut self, index: u32) -> Client {
            for _ in 0..TURNS {
                match self.splices.next_end() {
                    None => self.turn(),
                    Some(End::NotSpliced(flow, client)) if flow == FlowId::from_parts(index, 0) => {
                        return client;
                    }
                    Some(_) => panic!("{index} is over"),
                }
            }
            panic!("{index} has no end");
        }
    }
}
