//! Datagrams received many at a time (recvmmsg(2)), and as the kernel has joined them (UDP_GRO, udp(7)).

#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

use super::again_unless_idle;
use super::message::{Message, empty_header, ipv4_at, ipv6_at};

/// Bytes between two buffers: what UDP_GRO joins is at most 65,535 long. A page more, as caches put addresses that are
/// a power of two apart into the same few places.
const STRIDE_BYTES: usize = 65_536 + 4096;
/// Assumed where the kernel does not say with which one a datagram came.
const USUAL_HOP_LIMIT: u8 = 64;

/// A datagram that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'b> {
    /// Who sent it.
    pub from: SocketAddr,
    /// The local address that it was sent to, from which an answer should leave.
    pub to: Option<IpAddr>,
    /// TTL or hop limit with which it arrived.
    pub hop_limit: u8,
    /// Its bytes.
    pub payload: &'b [u8],
}

/// Datagrams that were received, in their order. Pages of its buffers that nothing was received into take no memory.
pub struct Batch {
    buffers: Box<[u8]>,
    messages: Box<[Message]>,
    lens: [usize; Self::MESSAGES],
    /// How many messages came with the last call, and which of them is looked at.
    count: usize,
    current: usize,
    envelope: Option<Arrived>,
    /// Where the next datagram in the current message begins.
    offset: usize,
}

/// What is said about a message.
#[derive(Clone, Copy)]
struct Arrived {
    from: SocketAddr,
    to: Option<IpAddr>,
    hop_limit: u8,
    segment_bytes: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// Messages, each of one datagram or several that were joined, that one call receives at most.
    pub const MESSAGES: usize = 32;

    /// An empty one.
    pub fn new() -> Self {
        Self {
            buffers: vec![0; Self::MESSAGES * STRIDE_BYTES].into_boxed_slice(),
            messages: (0..Self::MESSAGES).map(|_| Message::new()).collect(),
            lens: [0; Self::MESSAGES],
            count: 0,
            current: 0,
            envelope: None,
            offset: 0,
        }
    }

    /// Receives what waits on a socket in place of what was received before, and returns the number of messages. If
    /// there are fewer than [`Self::MESSAGES`], no more wait, or an error that the poll announces came between.
    /// `WouldBlock` if nothing waits. An ICMP error that is pending is left to [`super::take_error`].
    pub fn receive(&mut self, fd: &impl AsFd) -> io::Result<usize> {
        (self.count, self.current) = (0, 0);
        // A pending error is reported in place of a datagram, once.
        self.count = again_unless_idle(|| self.receive_messages(fd))?;
        self.open();
        Ok(self.count)
    }

    fn receive_messages(&mut self, fd: &impl AsFd) -> nix::Result<usize> {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let mut payloads = [empty; Self::MESSAGES];
        let mut headers = [libc::mmsghdr { msg_hdr: empty_header(), msg_len: 0 }; Self::MESSAGES];
        let buffers = self.buffers.chunks_exact_mut(STRIDE_BYTES);
        let room = payloads.iter_mut().zip(buffers).zip(&mut headers).zip(&mut self.messages);
        for (((payload, buffer), header), message) in room {
            *payload = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            header.msg_hdr = message.header(payload);
        }
        let (fd, vector, len) = (fd.as_fd().as_raw_fd(), headers.as_mut_ptr(), headers.len());
        // SAFETY: every header points to a name, a payload and control messages that are ours to write, of the lengths
        // given, and that outlive the call; no timeout is given.
        let count = unsafe { libc::recvmmsg(fd, vector, len as _, 0, std::ptr::null_mut()) };
        let count = Errno::result(count)? as usize;
        for ((message, len), header) in self.messages.iter_mut().zip(&mut self.lens).zip(&headers[..count]) {
            message.note(&header.msg_hdr);
            *len = header.msg_len as usize;
        }
        Ok(count)
    }

    /// Whether all that was received has been taken.
    pub fn is_empty(&self) -> bool {
        self.envelope.is_none()
    }

    /// The oldest datagram that was not taken yet.
    pub fn front(&self) -> Option<Received<'_>> {
        let Arrived { from, to, hop_limit, .. } = self.envelope?;
        let start = self.current * STRIDE_BYTES;
        let payload = &self.buffers[start + self.offset..start + self.end()];
        Some(Received { from, to, hop_limit, payload })
    }

    /// Forgets all that was not taken yet.
    pub fn clear(&mut self) {
        self.envelope = None;
    }

    /// Forgets the oldest datagram.
    pub fn pop(&mut self) {
        self.offset = self.end();
        if self.offset == self.lens[self.current] {
            self.current += 1;
            self.open();
        }
    }

    /// Where the oldest datagram ends in its message.
    fn end(&self) -> usize {
        let len = self.lens[self.current];
        self.envelope.map_or(len, |envelope| len.min(self.offset + envelope.segment_bytes))
    }

    /// Reads what is said about the current message, or about the next that is from somebody.
    fn open(&mut self) {
        self.offset = 0;
        self.envelope = None;
        while self.current < self.count && self.envelope.is_none() {
            self.envelope = arrived(&self.messages[self.current]);
            self.current += usize::from(self.envelope.is_none());
        }
    }
}

fn arrived(message: &Message) -> Option<Arrived> {
    let mut arrived = Arrived {
        from: message.name()?,
        to: None,
        hop_limit: USUAL_HOP_LIMIT,
        segment_bytes: usize::MAX >> 1,
    };
    for (level, kind, data) in message.controls() {
        let number = || data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                let hop_limit = number().and_then(|hop_limit| u8::try_from(hop_limit).ok());
                arrived.hop_limit = hop_limit.unwrap_or(USUAL_HOP_LIMIT);
            }
            // in_pktinfo: the interface, the local address, the header's destination (maybe a broadcast).
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => arrived.to = ipv4_at(data, 4),
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => arrived.to = ipv6_at(data, 0),
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let segment_bytes = number().and_then(|bytes| usize::try_from(bytes).ok());
                arrived.segment_bytes =
                    segment_bytes.filter(|bytes| *bytes > 0).unwrap_or(arrived.segment_bytes);
            }
            _ => {}
        }
    }
    Some(arrived)
}
