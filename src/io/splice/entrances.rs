//! Ports of the guest's loopback that lead to the same or other ports of the host's: opened and closed here, at any
//! time, served by [`Loopback`] and [`Relay`].
//!
//! A port is bound by the one who asks, with a socket that was made inside the guest's network namespace, so that he hears
//! the cause of a failure. There it is bound to 127.0.0.1 and, in a guest that has IPv6, to `::1`.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::event::Source;
use mio::net::{TcpListener, UdpSocket};
use mio::{Interest, Registry, Token, Waker};
use socket2::SockRef;

use super::loopback::Loopback;
use super::relay::Relay;
use crate::config::{LoopbackForward, Transport};
use crate::error::{Context, Result};
use crate::io::stop::{Orders, Stop};
use crate::net::Family;
use crate::sys::factory::{Factory, Want};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
const FACTORY: &str = "the socket factory";

/// The address of a loopback.
pub(super) fn loopback_of(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// A bound port of the guest, and where it leads.
pub(super) struct Door<S> {
    pub(super) socket: S,
    pub(super) guest_port: u16,
    pub(super) host_port: u16,
}

/// The doors that one thread serves, by the index that is their token.
pub(super) struct Doors<S> {
    /// A place becomes free when its port is closed.
    places: Vec<Option<Door<S>>>,
}

impl<S> Default for Doors<S> {
    fn default() -> Self {
        Self { places: Vec::new() }
    }
}

impl<S: Source> Doors<S> {
    pub(super) fn get(&self, index: usize) -> Option<&Door<S>> {
        self.places.get(index)?.as_ref()
    }

    pub(super) fn indices(&self) -> Range<usize> {
        0..self.places.len()
    }

    /// One that cannot be polled stays closed.
    pub(super) fn open(&mut self, mut door: Door<S>, registry: &Registry) {
        let index = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
        if let Err(error) = registry.register(&mut door.socket, Token(index), Interest::READABLE) {
            tracing::warn!(%error, port = door.guest_port, "cannot poll a port of the guest's loopback");
            return;
        }
        match self.places.get_mut(index) {
            Some(place) => *place = Some(door),
            None => self.places.push(Some(door)),
        }
    }

    /// Closes those of that port, in all families; their indices.
    pub(super) fn close(&mut self, guest_port: u16) -> Vec<usize> {
        let places = self.places.iter_mut().enumerate();
        let closed = places
            .filter_map(|(index, place)| place.take_if(|door| door.guest_port == guest_port).map(|_| index));
        closed.collect()
    }
}

/// What those who serve doors are told.
pub(super) enum Change<S> {
    Open(Door<S>),
    /// All doors of that port are to be closed.
    Close {
        guest_port: u16,
    },
}

/// A line to one who serves doors.
pub(super) struct Line<S> {
    changes: Sender<Change<S>>,
    waker: Arc<Waker>,
}

/// Its other end, where orders to end arrive too.
pub(super) struct Inbox<S> {
    changes: Receiver<Change<S>>,
    orders: Arc<Orders>,
    /// What has been announced is announced even if the line has been dropped since.
    waker: Arc<Waker>,
}

impl<S> Line<S> {
    /// What arrives announces itself as `token`.
    pub(super) fn new(registry: &Registry, token: Token) -> Result<(Self, Inbox<S>)> {
        let waker = Arc::new(Waker::new(registry, token).context("cannot create", "an eventfd")?);
        let (sender, changes) = channel();
        let line = Self { changes: sender, waker: Arc::clone(&waker) };
        Ok((line, Inbox { changes, orders: Arc::default(), waker }))
    }

    /// A thread that has ended has said why.
    pub(super) fn tell(&self, change: Change<S>) {
        if self.changes.send(change).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

impl<S> Inbox<S> {
    /// The next change, if there is one.
    pub(super) fn next(&self) -> Option<Change<S>> {
        self.changes.try_recv().ok()
    }

    /// The handle that ends who reads this.
    pub(super) fn stopper(&self) -> Stop {
        Stop::new(Arc::clone(&self.orders), Arc::clone(&self.waker))
    }

    pub(super) fn says_stop(&self) -> bool {
        self.orders.says_stop()
    }

    pub(super) fn says_drain(&self) -> bool {
        self.orders.says_drain()
    }
}

/// Sockets of one kind that were made in the guest's namespace, ahead of need.
struct Stock {
    want: Want,
    sockets: Vec<OwnedFd>,
}

impl Stock {
    fn new(want: Want) -> Self {
        Self { want, sockets: Vec::new() }
    }

    /// `None` where the guest does not have the family.
    fn take(&mut self, factory: &Factory) -> Result<Option<OwnedFd>> {
        if self.sockets.is_empty() {
            self.sockets = factory.obtain(self.want).context("cannot hear from", FACTORY)?;
        }
        Ok(self.sockets.pop())
    }
}

/// The entrances of one transport.
struct Kind<S> {
    stocks: [(Family, Stock); 2],
    /// To the one who serves them.
    line: Line<S>,
    open: BTreeSet<u16>,
}

impl<S> Kind<S> {
    fn new(want: fn(Family) -> Want, line: Line<S>) -> Self {
        let stock = |family| (family, Stock::new(want(family)));
        Self { stocks: [stock(Family::V4), stock(Family::V6)], line, open: BTreeSet::new() }
    }

    /// Opens `guest_port` with sockets that `prepare` has bound.
    fn open(
        &mut self,
        factory: &Factory,
        (guest_port, host_port): (u16, u16),
        prepare: fn(OwnedFd, SocketAddr) -> io::Result<S>,
    ) -> Result<()> {
        let mut bound = Vec::new();
        for (family, stock) in &mut self.stocks {
            let Some(socket) = stock.take(factory)? else { continue };
            let at = SocketAddr::new(loopback_of(*family), guest_port);
            match prepare(socket, at) {
                // IPv6 is there, but switched off.
                Err(error) if at.is_ipv6() && error.kind() == io::ErrorKind::AddrNotAvailable => {}
                prepared => bound.push(prepared.context("cannot listen on the guest's", at)?),
            }
        }
        for socket in bound {
            self.line.tell(Change::Open(Door { socket, guest_port, host_port }));
        }
        self.open.insert(guest_port);
        Ok(())
    }

    fn close(&mut self, guest_port: u16) {
        if self.open.remove(&guest_port) {
            self.line.tell(Change::Close { guest_port });
        }
    }
}

/// All entrances of one guest.
pub struct Entrances {
    factory: Factory,
    tcp: Kind<TcpListener>,
    udp: Kind<UdpSocket>,
}

impl Entrances {
    /// None yet; and those who serve them. `factory` makes sockets in the guest's namespace; nobody else asks on that
    /// line.
    pub fn new(factory: Factory) -> Result<(Self, Loopback, Relay)> {
        let (loopback, streams) = Loopback::new()?;
        let (relay, datagrams) = Relay::new()?;
        let (tcp, udp) = (Kind::new(Want::Streams, streams), Kind::new(Want::Datagrams, datagrams));
        Ok((Self { factory, tcp, udp }, loopback, relay))
    }

    /// Opens one, in every family that the guest has. An error opens none.
    pub fn open(&mut self, forward: &LoopbackForward) -> Result<()> {
        let ports = (forward.guest_port, forward.host_port);
        match forward.transport {
            Transport::Tcp => self.tcp.open(&self.factory, ports, listen),
            Transport::Udp => self.udp.open(&self.factory, ports, bind),
        }
    }

    /// Closes one, if it is open. TCP connections that stand stay.
    pub fn close(&mut self, transport: Transport, guest_port: u16) {
        match transport {
            Transport::Tcp => self.tcp.close(guest_port),
            Transport::Udp => self.udp.close(guest_port),
        }
    }

    /// Ports of the guest that are open.
    pub fn ports(&self, transport: Transport) -> &BTreeSet<u16> {
        match transport {
            Transport::Tcp => &self.tcp.open,
            Transport::Udp => &self.udp.open,
        }
    }

    /// The line to the guest's namespace.
    pub fn factory(&self) -> &Factory {
        &self.factory
    }
}

pub(super) fn listen(socket: OwnedFd, at: SocketAddr) -> io::Result<TcpListener> {
    let options = SockRef::from(&socket);
    options.set_reuse_address(true)?;
    options.bind(&at.into())?;
    options.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into()))
}

fn bind(socket: OwnedFd, at: SocketAddr) -> io::Result<UdpSocket> {
    SockRef::from(&socket).bind(&at.into())?;
    Ok(UdpSocket::from_std(socket.into()))
}
