//! Reading datagrams: of flows, their errors, and of published ports; a batch at a time.

use std::io;

use super::{Worker, now, publish_id};
use crate::io::host::Listener;
use crate::io::sockets::Socket;
use crate::net::{FlowId, HostEvent};
use crate::sys::datagram::{self, Batch, Received};

/// How often one socket is read, [`Batch::MESSAGES`] at a time, before others have their turn.
const BATCHES_PER_TURN: usize = 2;
/// Errors taken from one socket's error queue at once.
const ERRORS_PER_TURN: usize = 32;

/// A socket that datagrams are read from.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Flow(FlowId),
    /// Its place in the list of listeners.
    Published(usize),
}

impl Worker {
    pub(super) fn read_datagrams(&mut self) {
        if !self.deliver() {
            return;
        }
        for _ in 0..self.readable.len() {
            let Some(flow) = self.readable.pop_front() else { return };
            if !(self.read_errors(flow) && self.read_socket(flow)) {
                self.readable.push_back(flow);
            } else if let Some(Socket::Datagram(socket)) = self.sockets.get(flow) {
                socket.queued = false;
            }
        }
    }

    /// Reads a flow's datagrams; `false` if there are more.
    fn read_socket(&mut self, flow: FlowId) -> bool {
        for _ in 0..BATCHES_PER_TURN {
            if !self.deliver() {
                return false;
            }
            let Some(Socket::Datagram(socket)) = self.sockets.get(flow) else { return true };
            self.source = Source::Flow(flow);
            match self.batch.receive(&socket.fd) {
                Ok(messages) => {
                    self.moderation.received(messages);
                    if messages < Batch::MESSAGES {
                        return self.deliver();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => {
                    socket.failed = true;
                    return false;
                }
            }
        }
        false
    }

    /// Passes on what the batch holds; `false` if a link has no room for all of it.
    fn deliver(&mut self) -> bool {
        let now = now(self.clock);
        while !self.batch.is_empty() {
            if !self.has_room() || !self.exchange.has_room() {
                return false;
            }
            let Some(Received { from, to, hop_limit, payload }) = self.batch.front() else { break };
            match (self.source, to) {
                (Source::Flow(flow), _) => {
                    self.gateway.handle_host(HostEvent::Datagram { flow, from, hop_limit, payload }, now);
                }
                (Source::Published(index), Some(to)) => {
                    let publish = publish_id(index);
                    self.gateway
                        .handle_host(HostEvent::PublishedDatagram { publish, from, to, payload }, now);
                }
                (Source::Published(_), None) => {}
            }
            self.batch.pop();
        }
        true
    }

    /// Passes on the ICMP errors that the host's kernel has queued for a flow; `false` if there are more.
    fn read_errors(&mut self, flow: FlowId) -> bool {
        let now = now(self.clock);
        for _ in 0..ERRORS_PER_TURN {
            if !self.has_room() {
                return false;
            }
            let Some(Socket::Datagram(socket)) = self.sockets.get(flow) else { return true };
            if !socket.failed {
                return true;
            }
            let Ok(Some((error, len))) = datagram::take_error(&socket.fd, &mut self.quote) else {
                socket.failed = false;
                return true;
            };
            let payload = &self.quote[..len];
            self.gateway.handle_host(HostEvent::SendFailed { flow, error, payload }, now);
        }
        false
    }

    pub(super) fn read_published(&mut self, index: usize) {
        for _ in 0..BATCHES_PER_TURN {
            if !self.deliver() {
                return;
            }
            let published = &mut self.listeners[index];
            let Some(Listener::Udp { socket, .. }) = &published.listener else { return };
            self.source = Source::Published(index);
            match self.batch.receive(socket) {
                Ok(messages) => {
                    self.moderation.received(messages);
                    if messages < Batch::MESSAGES {
                        let delivered = self.deliver();
                        self.listeners[index].readable = !delivered;
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    published.readable = false;
                    return;
                }
                Err(error) => tracing::debug!(%error, "cannot read a published port"),
            }
        }
    }
}
