//! TCP ports of the guest's loopback that lead to the host's: listened on inside the guest's network namespace, and
//! joined with the host by splice(2) like published connections, in the other direction.
//!
//! It has a thread of its own, which lasts as long as the process, and is told by [`super::Entrances`] of ports that
//! open and close. A connection that the host refuses is reset; one that stands outlives its port.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::thread;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::ALL;
use super::entrances::{Inbox, Line, Order, loopback_of};
use super::pair::{Outcome, Pair, Side};
use super::pipe::Pipes;
use crate::config::Outbound;
use crate::error::{Context, Result};
use crate::io::host;
use crate::net::Family;

/// Events taken from one poll.
const EVENTS: usize = 256;
/// Connections at once.
const MAX_CONNECTIONS: usize = 4096;
/// Tokens from here on are connections', two each.
const CONNECTION_TOKENS: usize = 1 << 20;
/// That of orders.
const ORDERS: Token = Token(CONNECTION_TOKENS - 1);

/// The forwarded ports, listened on.
pub(super) struct Loopback {
    poll: Poll,
    inbox: Inbox<TcpListener>,
    /// A place becomes free when its port is closed.
    doors: Vec<Option<Door>>,
    pairs: HashMap<usize, Pair>,
    next: usize,
    pipes: Pipes,
}

struct Door {
    listener: TcpListener,
    guest_port: u16,
    host_port: u16,
}

impl Loopback {
    /// Starts the thread, and opens the line to it.
    pub(super) fn start() -> Result<Line<TcpListener>> {
        let poll = Poll::new().context("cannot create", "an epoll instance")?;
        let (line, inbox) = Line::new(poll.registry(), ORDERS)?;
        let loopback =
            Self { poll, inbox, doors: Vec::new(), pairs: HashMap::new(), next: 0, pipes: Pipes::default() };
        let thread = thread::Builder::new().name("rnet-loopback".into());
        thread.spawn(move || loopback.serve()).context("cannot start", "the loopback's thread")?;
        Ok(line)
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
                    None if event.token() == ORDERS => self.obey(),
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

    fn obey(&mut self) {
        while let Some(order) = self.inbox.next() {
            match order {
                Order::Open { socket, guest_port, host_port } => {
                    if let Err(error) = self.open(Door { listener: socket, guest_port, host_port }) {
                        tracing::warn!(%error, guest_port, "cannot poll a port of the guest's loopback");
                    }
                }
                Order::Close { guest_port } => {
                    for door in &mut self.doors {
                        drop(door.take_if(|door| door.guest_port == guest_port));
                    }
                }
            }
        }
    }

    fn open(&mut self, mut door: Door) -> io::Result<()> {
        let index = self.doors.iter().position(Option::is_none).unwrap_or(self.doors.len());
        self.poll.registry().register(&mut door.listener, Token(index), Interest::READABLE)?;
        match self.doors.get_mut(index) {
            Some(place) => *place = Some(door),
            None => self.doors.push(Some(door)),
        }
        Ok(())
    }

    /// Takes all who wait. The poll tells only of new ones.
    fn accept(&mut self, door: usize) {
        while let Some(Some(Door { listener, host_port, .. })) = self.doors.get(door) {
            match listener.accept() {
                // One too many is closed.
                Ok(_) if self.pairs.len() >= MAX_CONNECTIONS => {}
                Ok((client, from)) => {
                    let to = SocketAddr::new(loopback_of(Family::of(from.ip())), *host_port);
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
