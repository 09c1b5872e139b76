//! Published ports: their listening sockets, and the connections accepted from them.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use super::exchange::Parcel;
use super::{BOTH, LISTENER_TOKENS, Source, Worker, now, publish_id, reset, special, token};
use crate::config::Publish;
use crate::error::{Context, Result};
use crate::io::command::PortNumber;
use crate::io::host::{self, Listener};
use crate::io::sockets::{Cutting, Socket};
use crate::io::splice::Client;
use crate::net::policy::Service;
use crate::net::{HostError, Instant, PortId};

/// Connections accepted from one listener before other sources have their turn.
const ACCEPTS_PER_TURN: usize = 256;
/// How long a listener rests when the host is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

pub(super) struct Published {
    pub(super) number: PortNumber,
    /// `None` once it is closed; the place waits for another.
    pub(super) listener: Option<Listener>,
    pub(super) service: Service,
    /// The guest's.
    pub(super) port: PortId,
    pub(super) readable: bool,
    pub(super) resting_until: Option<Instant>,
    /// Clients wait because the host is out of file descriptors, and the log says so.
    pub(super) exhausted: bool,
    pub(super) cutting: Cutting,
}

impl Worker {
    /// Serves the port `number`, for which `listeners` are bound; all of them or, after an error, none.
    pub fn publish(&mut self, number: PortNumber, publish: &Publish, listeners: Vec<Listener>) -> Result<()> {
        self.publish_for(PortId(0), number, publish, listeners)
    }

    /// The same for the guest on `port`.
    pub(super) fn publish_for(
        &mut self,
        port: PortId,
        number: PortNumber,
        publish: &Publish,
        listeners: Vec<Listener>,
    ) -> Result<()> {
        let added =
            listeners.into_iter().try_for_each(|listener| self.listen(port, number, publish, listener));
        if added.is_err() {
            self.unpublish(number);
        }
        added
    }

    fn listen(
        &mut self,
        port: PortId,
        number: PortNumber,
        publish: &Publish,
        mut listener: Listener,
    ) -> Result<()> {
        let service = Service { addr: publish.guest_addr, port: publish.guest_port };
        let id = self.gateway.publish(publish.transport, service, port);
        let index = id.0 as usize;
        let token = special(LISTENER_TOKENS, index);
        if let Err(error) = register_listener(self.poll.registry(), &mut listener, token) {
            self.gateway.unpublish(id);
            return Err(error).context("cannot poll", publish);
        }
        let published = Published {
            number,
            listener: Some(listener),
            service,
            port,
            readable: true,
            resting_until: None,
            exhausted: false,
            cutting: Cutting::default(),
        };
        match self.listeners.get_mut(index) {
            Some(place) => *place = published,
            None => self.listeners.push(published),
        }
        Ok(())
    }

    /// Closes the port `number`. What was accepted from it stays.
    pub(super) fn unpublish(&mut self, number: PortNumber) {
        self.close_listeners(|published| published.number == number);
    }

    /// Closes every port.
    pub(super) fn unpublish_all(&mut self) {
        self.close_listeners(|_| true);
    }

    pub(super) fn close_listeners(&mut self, which: impl Fn(&Published) -> bool) {
        for (index, published) in self.listeners.iter_mut().enumerate() {
            if !which(published) || published.listener.take().is_none() {
                continue;
            }
            (published.readable, published.resting_until) = (false, None);
            self.gateway.unpublish(publish_id(index));
            if matches!(self.source, Source::Published(source) if source == index) {
                self.batch.clear();
            }
        }
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
                Some(Listener::Tcp { .. }) => self.accept(index),
                Some(Listener::Udp { .. }) => self.read_published(index),
                None => published.readable = false,
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
            let Some(Listener::Tcp { socket, address }) = &published.listener else { return };
            match socket.accept() {
                Ok((stream, client)) => self.accepted(index, stream, client, now),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    published.readable = false;
                    published.exhausted = false;
                    return;
                }
                Err(error) if host::host_error(&error) == HostError::Exhausted => {
                    if !std::mem::replace(&mut published.exhausted, true) {
                        tracing::warn!(port = address.port(), %error, "clients wait to be accepted");
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
        let Published { port, service, .. } = self.listeners[index];
        let client = Client { stream, address, port, service };
        let owner = self.shard.of_tcp(client.service.port, address.port());
        if owner == self.shard.index() {
            self.admit(client, now);
        } else {
            self.exchange.pass(owner, Parcel::Client(client));
        }
    }

    /// Has a client's connection cross the link; one for which there is no room is reset.
    pub(super) fn route(&mut self, client: Client, now: Instant) {
        let Client { mut stream, address, port, service } = client;
        let Some(flow) = self.gateway.accept_for(port, service, address, now) else {
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
