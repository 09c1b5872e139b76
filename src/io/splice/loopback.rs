//! Ports of the guest's loopback that lead to the host's: listened on inside the guest's network namespace, and joined
//! with the host by splice(2) like published connections, in the other direction.
//!
//! It has a thread of its own, which lasts as long as the process. A connection that the host refuses is reset.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::SockRef;

use super::pair::{Outcome, Pair, Side};
use super::pipe::Pipes;
use super::{ALL, Factory};
use crate::config::{LoopbackForward, Outbound, Transport};
use crate::error::{Context, Error, Result};
use crate::io::host;
use crate::net::Family;

/// Events taken from one poll.
const EVENTS: usize = 256;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Connections at once.
const MAX_CONNECTIONS: usize = 4096;
/// How long the factory may take for a batch, in milliseconds.
const PATIENCE_MS: u16 = 5000;
/// Tokens from here on are connections', two each.
const CONNECTION_TOKENS: usize = 1 << 20;

/// The forwarded ports, listened on.
pub struct Loopback {
    poll: Poll,
    listeners: Vec<(TcpListener, u16)>,
    pairs: HashMap<usize, Pair>,
    next: usize,
    pipes: Pipes,
}

impl Loopback {
    /// Listens on the TCP ports of `forwards`, with sockets from `factory`. A guest without IPv6 listens without it.
    pub fn listen(factory: &Factory, forwards: &[LoopbackForward]) -> Result<Self> {
        let poll = Poll::new().context("cannot create", "an epoll instance")?;
        let mut loopback =
            Self { poll, listeners: Vec::new(), pairs: HashMap::new(), next: 0, pipes: Pipes::default() };
        let tcp: Vec<_> = forwards.iter().filter(|forward| forward.transport == Transport::Tcp).collect();
        for (family, address) in
            [(Family::V4, IpAddr::from(Ipv4Addr::LOCALHOST)), (Family::V6, IpAddr::from(Ipv6Addr::LOCALHOST))]
        {
            let mut sockets = Vec::new();
            for forward in &tcp {
                if sockets.is_empty() {
                    sockets = batch(factory, family)?;
                }
                let Some(socket) = sockets.pop() else { break };
                loopback.bind(socket, SocketAddr::new(address, forward.guest_port), forward.host_port)?;
            }
        }
        Ok(loopback)
    }

    fn bind(&mut self, socket: OwnedFd, at: SocketAddr, host_port: u16) -> Result<()> {
        let listening = |socket: &OwnedFd| {
            let socket = SockRef::from(socket);
            socket.set_reuse_address(true)?;
            socket.bind(&at.into())?;
            socket.listen(BACKLOG)
        };
        listening(&socket).context("cannot listen on the guest's", at)?;
        let mut listener = TcpListener::from_std(socket.into());
        let token = Token(self.listeners.len());
        self.poll
            .registry()
            .register(&mut listener, token, Interest::READABLE)
            .context("cannot poll the guest's", at)?;
        self.listeners.push((listener, host_port));
        Ok(())
    }

    /// Serves from now on.
    pub fn start(self) -> Result<()> {
        let thread = thread::Builder::new().name("rnet-loopback".into());
        thread.spawn(move || self.serve()).map(drop).context("cannot start", "the loopback's thread")
    }

    fn serve(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        let mut busy: Vec<usize> = Vec::new();
        loop {
            let timeout = if busy.is_empty() { None } else { Some(std::time::Duration::ZERO) };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    tracing::error!(%error, "the guest's loopback is not served any more");
                    return;
                }
                _ => {}
            }
            for event in &events {
                match event.token().0.checked_sub(CONNECTION_TOKENS) {
                    None => self.accept(event.token().0),
                    Some(token) => {
                        let side = if token % 2 == 0 { Side::Client } else { Side::Guest };
                        if let Some(pair) = self.pairs.get_mut(&(token / 2)) {
                            pair.note(side, event);
                            busy.push(token / 2);
                        }
                    }
                }
            }
            busy.sort_unstable();
            busy.dedup();
            busy.retain(|number| self.carry(*number));
        }
    }

    /// Takes all who wait. The poll tells only of new ones.
    fn accept(&mut self, listener: usize) {
        while let Some((socket, host_port)) = self.listeners.get(listener) {
            match socket.accept() {
                // One too many is closed.
                Ok(_) if self.pairs.len() >= MAX_CONNECTIONS => {}
                Ok((client, from)) => {
                    let to = SocketAddr::new(loopback_like(from.ip()), *host_port);
                    if let Err(error) = self.join(client, to) {
                        tracing::debug!(%error, %to, "cannot join the guest's loopback");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn join(&mut self, mut client: TcpStream, to: SocketAddr) -> io::Result<()> {
        let mut host = host::connect(to, &Outbound::default())?;
        let token = CONNECTION_TOKENS + 2 * self.next;
        self.poll.registry().register(&mut client, Token(token), ALL)?;
        self.poll.registry().register(&mut host, Token(token + 1), ALL)?;
        let mut pair = Pair::new(client);
        pair.set_guest(host);
        self.pairs.insert(self.next, pair);
        self.next += 1;
        Ok(())
    }

    /// Serves one connection; whether it has more to do at once.
    fn carry(&mut self, number: usize) -> bool {
        let Some(pair) = self.pairs.get_mut(&number) else { return false };
        match pair.service(&mut self.pipes) {
            Outcome::Alive(more) => return more,
            Outcome::Closed => drop(self.pairs.remove(&number)),
            Outcome::Refused | Outcome::Failed => {
                if let Some(pair) = self.pairs.remove(&number) {
                    pair.reset(&mut self.pipes);
                }
            }
        }
        false
    }
}

fn loopback_like(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Waits for a batch; it is empty where the guest does not have the family.
fn batch(factory: &Factory, family: Family) -> Result<Vec<OwnedFd>> {
    const TARGET: &str = "the socket factory";
    factory.request(family).context("cannot ask", TARGET)?;
    loop {
        let mut polled = [PollFd::new(factory.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut polled, PollTimeout::from(PATIENCE_MS)).context("cannot wait for", TARGET)?;
        match factory.receive() {
            Ok(batch) => return Ok(batch.sockets),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && ready > 0 => {}
            Err(error) => return Err(Error::new("cannot hear from", TARGET, error)),
        }
    }
}
