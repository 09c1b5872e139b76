//! Host sockets by flow, parallel to the gateway's flow table.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};

use mio::event::Event;
use mio::net::TcpStream;
use nix::errno::Errno;

use crate::net::tcp::HostStream;
use crate::net::{Family, FlowId};
use crate::sys::datagram::{self, Envelope};

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
    pub(super) cutting: Cutting,
}

/// What is known of how the kernel cuts payloads into datagrams on a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cutting {
    /// Datagrams of this size and larger it refused to cut: a path has a smaller MTU, or no checksum offload.
    refused_bytes: u16,
}

impl Default for Cutting {
    fn default() -> Self {
        Self { refused_bytes: u16::MAX }
    }
}

impl Cutting {
    /// Sends `payload` in one call if the kernel takes it, else datagram by datagram; `failed` is told of each that
    /// could not be sent.
    pub(super) fn send(
        &mut self,
        fd: &impl AsFd,
        payload: &[u8],
        envelope: &Envelope,
        mut failed: impl FnMut(io::Error),
    ) {
        let single = Envelope { segment_bytes: None, ..*envelope };
        let Some(bytes) = envelope.segment_bytes else {
            return datagram::send(fd, payload, &single).unwrap_or_else(failed);
        };
        if bytes < self.refused_bytes && self.send_whole(fd, payload, envelope, bytes) {
            return;
        }
        for datagram in payload.chunks(bytes.into()) {
            datagram::send(fd, datagram, &single).unwrap_or_else(&mut failed);
        }
    }

    /// `false` if the datagrams should be tried one by one.
    fn send_whole(&mut self, fd: &impl AsFd, payload: &[u8], envelope: &Envelope, bytes: u16) -> bool {
        let Err(error) = datagram::send(fd, payload, envelope) else { return true };
        match error.raw_os_error().map(Errno::from_raw) {
            // What finds no room now would not find it in pieces.
            Some(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return true,
            Some(Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE | Errno::ENOPROTOOPT) => {
                self.refused_bytes = bytes;
            }
            _ => {}
        }
        false
    }
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

/// How a connection attempt ended, of which `event` tells; `None` while it goes on.
pub(super) fn connection_result(stream: &TcpStream, event: &Event) -> Option<io::Result<()>> {
    // A failed socket is writable too, but also closed, and has an error.
    if event.is_writable() && !event.is_error() && !event.is_write_closed() && !event.is_read_closed() {
        return Some(Ok(()));
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::Duration;

    #[test]
    fn one_payload_arrives_as_its_datagrams() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(peer) = UdpSocket::bind(address) else { continue };
            let mut cutting = Cutting::default();
            assert_eq!(send(&mut cutting, &peer, 1000, 300), []);
            assert_eq!(received(&peer), [300, 300, 300, 100]);
            assert_eq!(cutting.refused_bytes, u16::MAX, "the kernel has cut it");
        }
    }

    #[test]
    fn what_the_kernel_does_not_cut_is_sent_one_by_one_from_then_on() {
        let peer = UdpSocket::bind("127.0.0.1:0").expect("loopback");
        let mut cutting = Cutting::default();
        // More datagrams than any kernel cuts at once.
        assert_eq!(send(&mut cutting, &peer, 600, 3), []);
        assert_eq!(received(&peer), [3; 200]);
        assert_eq!(cutting.refused_bytes, 3);
        assert_eq!(send(&mut cutting, &peer, 25, 10), []);
        assert_eq!(received(&peer), [10, 10, 5]);
        assert_eq!(send(&mut cutting, &peer, 5, 2), []);
        assert_eq!((received(&peer), cutting.refused_bytes), (vec![2, 2, 1], 3));
    }

    #[test]
    fn every_datagram_that_fails_is_told() {
        let socket = datagram::open_udp("127.0.0.1:0".parse().expect("an address"), None).expect("loopback");
        let to = "198.51.100.1:9".parse().expect("an address");
        let mut failures = 0;
        let envelope = Envelope { segment_bytes: Some(4), ..Envelope::to(to) };
        Cutting::default().send(&socket, &[1; 12], &envelope, |_| failures += 1);
        assert_eq!(failures, 3, "loopback's address does not leave the machine");
    }

    /// Sends `len` bytes in datagrams of `segment_bytes` and returns what failed.
    fn send(cutting: &mut Cutting, peer: &UdpSocket, len: usize, segment_bytes: u16) -> Vec<io::ErrorKind> {
        let to = peer.local_addr().expect("bound");
        let socket = datagram::open_udp(std::net::SocketAddr::new(to.ip(), 0), None).expect("loopback");
        let mut failures = Vec::new();
        let envelope = Envelope { segment_bytes: Some(segment_bytes), ..Envelope::to(to) };
        cutting.send(&socket, &vec![7; len], &envelope, |error| failures.push(error.kind()));
        failures
    }

    fn received(peer: &UdpSocket) -> Vec<usize> {
        peer.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
        let mut buffer = [0; 2000];
        std::iter::from_fn(|| peer.recv(&mut buffer).ok()).collect()
    }
}
