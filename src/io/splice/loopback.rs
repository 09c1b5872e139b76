//! TCP ports of the guest's loopback that lead to the host's: listened on inside the guest's network namespace, and
//! joined with the host by splice(2) like published connections, in the other direction.
//!
//! It wants a thread of its own, and is told by [`super::Entrances`] of ports that open and close. A connection that
//! the host refuses is reset; one that stands outlives its port.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Poll, Token};

use super::ALL;
use super::entrances::{Change, Door, Doors, Inbox, Line, loopback_of};
use super::pair::{Outcome, Pair, Side};
use super::pipe::Pipes;
use crate::config::Outbound;
use crate::error::{Context, Result};
use crate::io::host;
use crate::io::stop::{DRAIN, Stop};
use crate::net::{Family, HostError};

/// Events taken from one poll.
const EVENTS: usize = 256;
/// Connections accepted at one port before other sources have their turn.
const ACCEPTS_PER_TURN: usize = 256;
/// When a port that could not accept all who wait does so again: the process is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Connections at once.
const MAX_CONNECTIONS: usize = 4096;
/// Tokens from here on are connections', two each.
const CONNECTION_TOKENS: usize = 1 << 20;
const WAKER_TOKEN: Token = Token(CONNECTION_TOKENS - 1);

/// The forwarded ports, listened on.
pub struct Loopback {
    poll: Poll,
    inbox: Inbox<TcpListener>,
    doors: Doors<TcpListener>,
    /// Doors at which clients may wait that the poll does not tell of again.
    resting: BTreeSet<usize>,
    resting_until: Option<Instant>,
    /// Set once it drains.
    drains_until: Option<Instant>,
    pairs: HashMap<usize, Pair>,
    next: usize,
    pipes: Pipes,
}

impl Loopback {
    /// Without a port yet; and the line on which to open some.
    pub(super) fn new() -> Result<(Self, Line<TcpListener>)> {
        let poll = Poll::new().context("cannot create", "an epoll instance")?;
        let (line, inbox) = Line::new(poll.registry(), WAKER_TOKEN)?;
        let loopback = Self {
            poll,
            inbox,
            doors: Doors::default(),
            resting: BTreeSet::new(),
            resting_until: None,
            drains_until: None,
            pairs: HashMap::new(),
            next: 0,
            pipes: Pipes::default(),
        };
        Ok((loopback, line))
    }

    /// The handle that ends it.
    pub fn stopper(&self) -> Stop {
        self.inbox.stopper()
    }

    /// Serves until stopped or drained.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        let mut busy: Vec<usize> = Vec::new();
        while !self.inbox.says_stop() && !self.has_drained() {
            let timeout = if busy.is_empty() { self.wait() } else { Some(Duration::ZERO) };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    tracing::error!(%error, "the guest's loopback is not served any more");
                    return;
                }
                _ => {}
            }
            for event in &events {
                match event.token().0.checked_sub(CONNECTION_TOKENS) {
                    None if event.token() == WAKER_TOKEN => self.obey(),
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
            self.accept_rested();
            busy.sort_unstable();
            busy.dedup();
            busy.retain(|number| self.carry(*number));
        }
    }

    fn obey(&mut self) {
        while let Some(change) = self.inbox.next() {
            match change {
                Change::Open(door) => self.doors.open(door, self.poll.registry()),
                Change::Close { guest_port } => drop(self.doors.close(guest_port)),
            }
        }
    }

    /// How long nothing is due; `None` without end.
    fn wait(&self) -> Option<Duration> {
        let due = [self.resting_until, self.drains_until].into_iter().flatten().min();
        due.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether it drains, and there is nothing more to deliver, or no more time for it. Once told to, it takes all who
    /// wait: the guest's programs have ended, so there will be no more.
    fn has_drained(&mut self) -> bool {
        if !self.inbox.says_drain() {
            return false;
        }
        if self.drains_until.is_none() {
            self.doors.indices().for_each(|door| self.accept(door));
        }
        let now = Instant::now();
        let until = *self.drains_until.get_or_insert(now + DRAIN);
        let owes = !self.resting.is_empty() || self.pairs.values().any(Pair::owes_guest);
        !owes || until <= now
    }

    fn accept_rested(&mut self) {
        if self.resting_until.is_some_and(|until| until <= Instant::now()) {
            self.resting_until = None;
            std::mem::take(&mut self.resting).into_iter().for_each(|door| self.accept(door));
        }
    }

    /// Takes all who wait, now or after a rest. The poll tells only of new ones.
    fn accept(&mut self, door: usize) {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some(Door { socket, host_port, .. }) = self.doors.get(door) else { return };
            match socket.accept() {
                // One too many is closed.
                Ok(_) if self.pairs.len() >= MAX_CONNECTIONS => {}
                Ok((client, from)) => {
                    let to = SocketAddr::new(loopback_of(Family::of(from.ip())), *host_port);
                    if let Err(error) = self.join(client, to) {
                        tracing::debug!(%error, %to, "cannot join the guest's loopback");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if host::host_error(&error) == HostError::Exhausted => break,
                // The client left before its turn came (accept(2): treat it like no connection).
                Err(_) => {}
            }
        }
        self.resting.insert(door);
        self.resting_until = Some(Instant::now() + ACCEPT_RETRY);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::splice::entrances::listen;
    use crate::sys::stream;
    use socket2::SockRef;
    use std::io::{Read, Write};
    use std::net;
    use std::thread;

    /// More than all buffers on the way.
    const BYTES: usize = 64_000_000;
    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn what_was_sent_before_the_end_is_delivered() {
        let (loopback, guest, host) = loopback();
        let (stop, serving) = (loopback.stopper(), thread::spawn(|| loopback.run()));
        let mut first = net::TcpStream::connect(guest).expect("listened on");
        let sending = thread::spawn(move || first.write_all(&vec![7; BYTES]));
        let (mut received, _) = host.accept().expect("the first");
        let mut last = net::TcpStream::connect(guest).expect("listened on");
        last.write_all(b"last").expect("room");
        drop(last);
        stop.drain();
        let mut bytes = Vec::new();
        received.read_to_end(&mut bytes).expect("an end without a reset");
        assert_eq!(bytes.len(), BYTES);
        bytes.clear();
        host.accept().and_then(|(mut last, _)| last.read_to_end(&mut bytes)).expect("the last");
        assert_eq!(bytes, b"last");
        sending.join().expect("no panic").expect("all is taken");
        serving.join().expect("it ends");
    }

    #[test]
    fn who_had_to_wait_is_accepted_after_a_rest() {
        let (mut loopback, guest, host) = loopback();
        let _client = net::TcpStream::connect(guest).expect("listened on");
        let mut events = Events::with_capacity(EVENTS);
        loopback.poll.poll(&mut events, Some(PATIENCE)).expect("told once");
        assert!(events.iter().any(|event| event.token() == Token(0)));
        // As if there had been no descriptor for it.
        (loopback.resting, loopback.resting_until) = (BTreeSet::from([0]), Some(Instant::now()));
        let (stop, serving) = (loopback.stopper(), thread::spawn(|| loopback.run()));
        host.accept().expect("the client's");
        stop.stop();
        serving.join().expect("it ends");
    }

    /// One port of a guest that is this host itself, where it is, and the host's port to which it leads.
    fn loopback() -> (Loopback, SocketAddr, net::TcpListener) {
        let host = net::TcpListener::bind("127.0.0.1:0").expect("a port");
        SockRef::from(&host).set_read_timeout(Some(PATIENCE)).expect("an option");
        let (mut loopback, line) = Loopback::new().expect("a poll");
        let socket = stream::open(Family::V4).expect("a socket");
        let host_port = host.local_addr().expect("bound").port();
        let socket = listen(socket, SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let guest = socket.local_addr().expect("bound");
        line.tell(Change::Open(Door { socket, guest_port: guest.port(), host_port }));
        loopback.obey();
        (loopback, guest, host)
    }
}
