//! UDP ports of the guest's loopback that lead to the host's: datagrams are carried between a socket inside the guest's
//! network namespace and, for each client there, one at the host's loopback.
//!
//! It wants a thread of its own, and is told by [`super::Entrances`] of ports that open and close. A client is forgotten after three idle minutes, or with its port. What nobody listens for is lost, and
//! so is what comes from more clients than there is room for.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mio::net::UdpSocket;
use mio::{Events, Interest, Poll, Token};

use super::entrances::{Change, Doors, Inbox, Line, loopback_of};
use crate::error::{Context, Result};
use crate::io::stop::Stop;
use crate::net::Family;

/// Events taken from one poll.
const EVENTS: usize = 256;
/// Clients at once, each with a socket of the host.
const MAX_CLIENTS: usize = 1024;
/// How long a client is remembered that neither says nor hears anything.
const IDLE: Duration = Duration::from_secs(180);
/// How often idle clients are looked for, while there are any.
const SWEEP: Duration = Duration::from_secs(10);
/// Datagrams taken from one socket before others have their turn.
const DATAGRAMS_PER_TURN: usize = 64;
/// Such turns that a socket has at the end: more than a receive buffer holds.
const DRAIN_TURNS: usize = 64;
/// Room for the largest (RFC 768).
const MAX_DATAGRAM_BYTES: usize = 65_535;
/// Tokens from here on are clients'.
const CLIENT_TOKENS: usize = 1 << 20;
const WAKER_TOKEN: Token = Token(CLIENT_TOKENS - 1);

/// The forwarded ports and their clients.
pub struct Relay {
    poll: Poll,
    inbox: Inbox<UdpSocket>,
    doors: Doors<UdpSocket>,
    clients: HashMap<usize, Client>,
    /// Numbers of clients, by their door and address.
    known: HashMap<(usize, SocketAddr), usize>,
    /// Number of the next client; none is used again.
    next: usize,
    swept: Instant,
    buffer: Vec<u8>,
}

struct Client {
    door: usize,
    address: SocketAddr,
    /// Connected to the port of the host's loopback.
    host: UdpSocket,
    last: Instant,
}

impl Relay {
    /// Without a port yet; and the line on which to open some.
    pub(super) fn new() -> Result<(Self, Line<UdpSocket>)> {
        let poll = Poll::new().context("cannot create", "an epoll instance")?;
        let (line, inbox) = Line::new(poll.registry(), WAKER_TOKEN)?;
        let relay = Self {
            poll,
            inbox,
            doors: Doors::default(),
            clients: HashMap::new(),
            known: HashMap::new(),
            next: 0,
            swept: Instant::now(),
            buffer: vec![0; MAX_DATAGRAM_BYTES],
        };
        Ok((relay, line))
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
            let timeout = match (busy.is_empty(), self.clients.is_empty()) {
                (false, _) => Some(Duration::ZERO),
                (true, false) => Some(SWEEP),
                (true, true) => None,
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    tracing::error!(%error, "UDP ports of the guest's loopback are not served any more");
                    return;
                }
                _ => {}
            }
            let now = Instant::now();
            for event in &events {
                match event.token() {
                    WAKER_TOKEN => self.obey(),
                    Token(token) => busy.push(token),
                }
            }
            busy.sort_unstable();
            busy.dedup();
            busy.retain(|token| match token.checked_sub(CLIENT_TOKENS) {
                Some(client) => self.carry_back(client, now),
                None => self.carry_out(*token, now),
            });
            self.sweep(now);
        }
    }

    fn obey(&mut self) {
        while let Some(change) = self.inbox.next() {
            match change {
                Change::Open(door) => self.doors.open(door, self.poll.registry()),
                Change::Close { guest_port } => {
                    let closed = self.doors.close(guest_port);
                    self.forget(|client| closed.contains(&client.door));
                }
            }
        }
    }

    /// Whether it drains: then what clients, whose programs have ended, have said goes out before.
    fn has_drained(&mut self) -> bool {
        let drains = self.inbox.says_drain();
        if drains {
            let now = Instant::now();
            for door in self.doors.indices() {
                for _ in 0..DRAIN_TURNS {
                    if !self.carry_out(door, now) {
                        break;
                    }
                }
            }
        }
        drains
    }

    /// Carries what clients say; whether there may be more.
    fn carry_out(&mut self, index: usize, now: Instant) -> bool {
        for _ in 0..DATAGRAMS_PER_TURN {
            let Some(door) = self.doors.get(index) else { return false };
            let (len, from) = match door.socket.recv_from(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return false,
            };
            let host_port = door.host_port;
            let number = match self.known.get(&(index, from)).copied() {
                Some(number) => number,
                None => match self.meet(index, from, host_port, now) {
                    Ok(number) => number,
                    Err(error) => {
                        tracing::debug!(%error, %from, host_port, "a datagram of the guest's loopback is lost");
                        continue;
                    }
                },
            };
            if let Some(client) = self.clients.get_mut(&number) {
                client.last = now;
                // That nobody listens, or has room, is UDP's way to lose a datagram.
                let _ = client.host.send(&self.buffer[..len]);
            }
        }
        true
    }

    /// A socket for a new client; its number.
    fn meet(&mut self, door: usize, address: SocketAddr, host_port: u16, now: Instant) -> io::Result<usize> {
        if self.clients.len() >= MAX_CLIENTS {
            return Err(io::Error::other("there are too many clients"));
        }
        let loopback = loopback_of(Family::of(address.ip()));
        let mut host = UdpSocket::bind(SocketAddr::new(loopback, 0))?;
        host.connect(SocketAddr::new(loopback, host_port))?;
        let number = self.next;
        self.poll.registry().register(&mut host, Token(CLIENT_TOKENS + number), Interest::READABLE)?;
        self.next += 1;
        self.clients.insert(number, Client { door, address, host, last: now });
        self.known.insert((door, address), number);
        Ok(number)
    }

    /// Carries what the host says to a client; whether there may be more.
    fn carry_back(&mut self, number: usize, now: Instant) -> bool {
        let Some(client) = self.clients.get_mut(&number) else { return false };
        for _ in 0..DATAGRAMS_PER_TURN {
            let len = match client.host.recv(&mut self.buffer) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                // An ICMP error about what was sent before.
                Err(_) => continue,
            };
            client.last = now;
            if let Some(door) = self.doors.get(client.door) {
                let _ = door.socket.send_to(&self.buffer[..len], client.address);
            }
        }
        true
    }

    fn sweep(&mut self, now: Instant) {
        if now.duration_since(self.swept) >= SWEEP {
            self.swept = now;
            self.forget(|client| now.duration_since(client.last) >= IDLE);
        }
    }

    fn forget(&mut self, which: impl Fn(&Client) -> bool) {
        let known = &mut self.known;
        self.clients.retain(|_, client| {
            let stays = !which(client);
            if !stays {
                known.remove(&(client.door, client.address));
            }
            stays
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::splice::entrances::Door;
    use std::net::UdpSocket as Blocking;
    use std::thread;

    /// Long, as it only passes where the relay is at fault.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn bound() -> (Blocking, u16) {
        let socket = Blocking::bind("127.0.0.1:0").expect("loopback");
        socket.set_read_timeout(Some(PATIENCE)).expect("option");
        let port = socket.local_addr().expect("bound").port();
        (socket, port)
    }

    /// A relay with one port, which leads to `host_port`.
    fn relay(host_port: u16) -> (Line<UdpSocket>, Relay, u16) {
        let (door, guest_port) = bound();
        door.set_nonblocking(true).expect("option");
        let (relay, line) = Relay::new().expect("a poll");
        line.tell(Change::Open(Door { socket: UdpSocket::from_std(door), guest_port, host_port }));
        (line, relay, guest_port)
    }

    #[test]
    fn each_client_hears_its_own_answers() {
        let (server, host_port) = bound();
        let (line, relay, guest_port) = relay(host_port);
        let (stop, serving) = (relay.stopper(), thread::spawn(|| relay.run()));
        // Nobody has to stay to add more.
        drop(line);
        let (clients, mut buffer) = ([bound().0, bound().0], [0; 64]);
        for (client, word) in clients.iter().zip([b"first", b"other"]) {
            client.send_to(word, ("127.0.0.1", guest_port)).expect("sent");
        }
        let mut peers = Vec::new();
        for _ in &clients {
            let (len, from) = server.recv_from(&mut buffer).expect("carried to the host");
            peers.push((buffer[..len].to_vec(), from));
        }
        assert_ne!(peers[0].1, peers[1].1, "each has a socket of its own");
        for (word, from) in peers.iter().rev() {
            server.send_to(word, from).expect("sent");
        }
        for (client, word) in clients.iter().zip([b"first", b"other"]) {
            let (len, from) = client.recv_from(&mut buffer).expect("carried back");
            assert_eq!((&buffer[..len], from.port()), (&word[..], guest_port));
        }
        stop.stop();
        serving.join().expect("it ends");
    }

    #[test]
    fn what_was_sent_before_the_end_is_delivered() {
        let (server, host_port) = bound();
        let (_line, mut relay, guest_port) = relay(host_port);
        relay.obey();
        let client = bound().0;
        for word in [b"first", b"other"] {
            client.send_to(word, ("127.0.0.1", guest_port)).expect("sent");
        }
        relay.stopper().drain();
        relay.run();
        let mut buffer = [0; 64];
        for word in [b"first", b"other"] {
            let len = server.recv(&mut buffer).expect("carried to the host");
            assert_eq!(&buffer[..len], word);
        }
    }

    #[test]
    fn a_closed_port_is_free_again() {
        let (server, host_port) = bound();
        let (line, relay, guest_port) = relay(host_port);
        let (stop, serving) = (relay.stopper(), thread::spawn(|| relay.run()));
        let client = bound().0;
        client.send_to(b"x", ("127.0.0.1", guest_port)).expect("sent");
        server.recv_from(&mut [0; 8]).expect("it is served");
        line.tell(Change::Close { guest_port });
        let began = Instant::now();
        while Blocking::bind(("127.0.0.1", guest_port)).is_err() {
            assert!(began.elapsed() < PATIENCE, "it stays bound");
            thread::yield_now();
        }
        stop.stop();
        serving.join().expect("it ends");
    }
}
