//! Ports of the guest's loopback that lead to the same or other ports of the host's: opened and closed here, at any time,
//! served by the threads of [`Loopback`] and [`Relay`].
//!
//! A port is bound by the one who asks, with a socket that was made inside the guest's network namespace, so that he hears
//! the cause of a failure. There it is bound to 127.0.0.1 and, in a guest that has IPv6, to `::1`.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use mio::net::{TcpListener, UdpSocket};
use mio::{Registry, Token, Waker};
use socket2::SockRef;

use super::loopback::Loopback;
use super::relay::Relay;
use crate::config::{LoopbackForward, Transport};
use crate::error::{Context, Result};
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

/// What a thread that serves entrances is told.
pub(super) enum Order<S> {
    /// `socket` is bound to `guest_port`, and leads to `host_port`.
    Open { socket: S, guest_port: u16, host_port: u16 },
    /// All sockets of that port are to be closed.
    Close { guest_port: u16 },
}

/// A line to such a thread.
pub(super) struct Line<S> {
    orders: Sender<Order<S>>,
    waker: Arc<Waker>,
}

/// Its other end.
pub(super) struct Inbox<S> {
    orders: Receiver<Order<S>>,
    /// What has been announced is announced even if the line has been dropped since.
    _waker: Arc<Waker>,
}

impl<S> Line<S> {
    /// Orders announce themselves as `token`.
    pub(super) fn new(registry: &Registry, token: Token) -> Result<(Self, Inbox<S>)> {
        let waker = Arc::new(Waker::new(registry, token).context("cannot create", "an event")?);
        let (orders, inbox) = channel();
        Ok((Self { orders, waker: Arc::clone(&waker) }, Inbox { orders: inbox, _waker: waker }))
    }

    /// A thread that has ended has said why.
    pub(super) fn tell(&self, order: Order<S>) {
        if self.orders.send(order).is_ok() {
            let _ = self.waker.wake();
        }
    }
}

impl<S> Inbox<S> {
    /// The next order, if there is one.
    pub(super) fn next(&self) -> Option<Order<S>> {
        self.orders.try_recv().ok()
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

/// The entrances of one transport: those that are open, and the thread that serves them once there has been one.
struct Kind<S> {
    stocks: [(Family, Stock); 2],
    line: Option<Line<S>>,
    open: BTreeSet<u16>,
}

impl<S> Kind<S> {
    fn new(want: fn(Family) -> Want) -> Self {
        let stock = |family| (family, Stock::new(want(family)));
        Self { stocks: [stock(Family::V4), stock(Family::V6)], line: None, open: BTreeSet::new() }
    }

    /// Opens `guest_port` with sockets that `prepare` has bound.
    fn open(
        &mut self,
        factory: &Factory,
        (guest_port, host_port): (u16, u16),
        start: fn() -> Result<Line<S>>,
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
        let line = match self.line.take() {
            Some(line) => line,
            None => start()?,
        };
        for socket in bound {
            line.tell(Order::Open { socket, guest_port, host_port });
        }
        self.line = Some(line);
        self.open.insert(guest_port);
        Ok(())
    }

    fn close(&mut self, guest_port: u16) {
        if let (true, Some(line)) = (self.open.remove(&guest_port), &self.line) {
            line.tell(Order::Close { guest_port });
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
    /// None yet. `factory` makes sockets in the guest's namespace; nobody else asks on that line.
    pub fn new(factory: Factory) -> Self {
        Self { factory, tcp: Kind::new(Want::Streams), udp: Kind::new(Want::Datagrams) }
    }

    /// Opens one, in every family that the guest has. An error opens none.
    pub fn open(&mut self, forward: &LoopbackForward) -> Result<()> {
        let ports = (forward.guest_port, forward.host_port);
        match forward.transport {
            Transport::Tcp => self.tcp.open(&self.factory, ports, Loopback::start, listen),
            Transport::Udp => self.udp.open(&self.factory, ports, Relay::start, bind),
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

fn listen(socket: OwnedFd, at: SocketAddr) -> io::Result<TcpListener> {
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
