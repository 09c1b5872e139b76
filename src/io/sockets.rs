//! Host sockets by flow, parallel to the gateway's flow table.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;

use mio::net::TcpStream;

use crate::net::tcp::HostStream;
use crate::net::{Family, FlowId};

/// A flow's host socket.
pub(super) enum Socket {
    Connecting(TcpStream),
    Stream(TcpStream),
    Datagram(Datagrams),
}

/// A UDP or ping socket.
pub(super) struct Datagrams {
    pub(super) fd: OwnedFd,
    pub(super) family: Family,
    /// Waits to be read.
    pub(super) queued: bool,
    /// Its error queue may hold something.
    pub(super) failed: bool,
}

/// The table.
#[derive(Default)]
pub(super) struct Sockets {
    slots: Vec<Option<(u32, Socket)>>,
}

impl Sockets {
    /// The socket of `flow`.
    pub(super) fn get(&mut self, flow: FlowId) -> Option<&mut Socket> {
        match self.slots.get_mut(flow.index()) {
            Some(Some((generation, socket))) if *generation == flow.generation() => Some(socket),
            _ => None,
        }
    }

    /// Gives `flow` its socket.
    pub(super) fn put(&mut self, flow: FlowId, socket: Socket) {
        if self.slots.len() <= flow.index() {
            self.slots.resize_with(flow.index() + 1, || None);
        }
        self.slots[flow.index()] = Some((flow.generation(), socket));
    }

    /// Takes the socket of `flow` away from it.
    pub(super) fn take(&mut self, flow: FlowId) -> Option<Socket> {
        self.get(flow)?;
        self.slots[flow.index()].take().map(|(_, socket)| socket)
    }

    /// Notes that the connecting socket of `flow` stands.
    pub(super) fn connected(&mut self, flow: FlowId) {
        if let Some(Socket::Connecting(stream)) = self.take(flow) {
            self.put(flow, Socket::Stream(stream));
        }
    }
}

impl HostStream for TcpStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// How a connection attempt ended; `None` while it goes on.
pub(super) fn connection_result(stream: &TcpStream) -> Option<io::Result<()>> {
    match stream.take_error() {
        Ok(None) => {}
        Ok(Some(error)) | Err(error) => return Some(Err(error)),
    }
    match stream.peer_addr() {
        Ok(_) => Some(Ok(())),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => None,
        Err(error) => Some(Err(error)),
    }
}
