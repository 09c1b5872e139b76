//! Published ports: their listening sockets, and the connections accepted from them.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::exchange::Parcel;
use super::{BOTH, LISTENER_TOKENS, Worker, now, reset, special, token};
use crate::config::Publish;
use crate::error::{Context, Result};
use crate::io::host::{self, Listener};
use crate::io::sockets::{Cutting, Socket};
use crate::io::splice::Client;
use crate::net::{HostError, Instant, PortId};

/// Connections accepted from one listener before other sources have their turn.
const ACCEPTS_PER_TURN: usize = 256;
/// How long a listener rests when the host is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

pub(super) struct Published {
    pub(super) listener: Listener,
    pub(super) guest_port: u16,
    pub(super) readable: bool,
    pub(super) resting_until: Option<Instant>,
    /// Clients wait because the host is out of file descriptors, and the log says so.
    pub(super) exhausted: bool,
    pub(super) cutting: Cutting,
}

impl Worker {
    pub(super) fn add_listener(&mut self, publish: Publish, mut listener: Listener) -> Result<()> {
        let token = special(LISTENER_TOKENS, self.listeners.len());
        register_listener(self.poll.registry(), &mut listener, token)
            .context("cannot poll", format!("port {}", publish.guest_port))?;
        self.gateway.publish(publish.transport, publish.guest_port, PortId(0));
        self.listeners.push(Published {
            listener,
            guest_port: publish.guest_port,
            readable: true,
            resting_until: None,
            exhausted: false,
            cutting: Cutting::default(),
        });
        Ok(())
    }

    pub(super) fn read_listeners(&mut self) {
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
            if !self.has_room() || !self.exchange.has_room() {
                return;
            }
            let published = &mut self.listeners[index];
            let Listener::Tcp { socket, .. } = &published.listener else { return };
            match socket.accept() {
                Ok((stream, client)) => self.accepted(index, stream, client, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    published.readable = false;
                    published.exhausted = false;
                    return;
                }
                Err(error) if host::host_error(&error) == HostError::Exhausted => {
                    if !std::mem::replace(&mut published.exhausted, true) {
                        tracing::warn!(port = published.listener.address().port(), %error, "clients wait to be accepted");
                    }
                    published.resting_until = Some(now + ACCEPT_RETRY.into());
                    return;
                }
                // The client left before its turn came (accept(2): treat it like no connection).
                Err(_) => {}
            }
        }
    }

    /// Serves a client here, or has it served where its connection belongs.
    fn accepted(&mut self, index: usize, stream: TcpStream, address: SocketAddr, now: Instant) {
        let client =
            Client { stream, address, port: PortId(0), guest_port: self.listeners[index].guest_port };
        let owner = self.shard.of_tcp(client.guest_port, address.port());
        if owner == self.shard.index() {
            self.admit(client, now);
        } else {
            self.exchange.pass(owner, Parcel::Client(client));
        }
    }

    /// Has a client's connection cross the link; one for which there is no room is reset.
    pub(super) fn route(&mut self, client: Client, now: Instant) {
        let Client { mut stream, address, port, guest_port } = client;
        let Some(flow) = self.gateway.accept_for(port, guest_port, address, now) else {
            return reset(stream);
        };
        if let Err(error) = self.poll.registry().register(&mut stream, token(flow), BOTH) {
            tracing::warn!(%error, "cannot poll a client's socket");
            // Nothing will be announced of it: its first read must end it.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.sockets.put(flow, Socket::Stream(stream));
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
