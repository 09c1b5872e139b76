//! The core: a virtual router as a pure state machine.
//!
//! Frames, host events and the time go in; frames and [`HostOp`]s come out through the [`Outbox`]. Nothing
//! here holds an fd, starts a thread, reads a clock or touches a file, so that every test runs in virtual
//! time. [`Gateway`](gateway::Gateway) is the entrance; one module per protocol stands behind it.

use std::net::{IpAddr, SocketAddr};

use crate::config::MacAddr;
pub use smoltcp::time::{Duration, Instant};

pub mod bucket;
pub mod counters;
pub mod dhcp;
mod dns;
#[cfg(test)]
mod fixture;
pub mod gateway;
pub mod icmp;
mod names;
mod nat;
pub mod neighbor;
pub mod outbox;
pub mod packet;
mod ping;
pub mod policy;
pub mod reassembly;
pub mod steer;
pub mod switch;
pub mod table;
pub mod tcp;
#[cfg(test)]
mod testing;
mod udp;

pub use counters::{Counters, DropReason};
pub use names::MAX_NAMES;
pub use outbox::{Outbox, TxOffload};
pub use steer::Shard;
pub use table::{FlowId, FlowKey};

/// Number of a gateway's port; one port is one guest link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

/// Number of a published port in the worker's list of listening sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PublishId(pub u32);

/// What a link does for the frames that it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Nothing: checksums are complete and no frame exceeds the MTU.
    None,
    /// Checksums are finished and TCP is segmented by the kernel, as the virtio-net header says.
    ChecksumAndTso,
    /// The same, and UDP is segmented too (Linux 6.2).
    ChecksumTsoAndUso,
}

/// What the link said about a frame from the guest (its virtio-net header, decoded).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxOffload {
    /// The transport checksum is only the pseudo-header's sum: the frame never crossed a wire.
    pub partial_checksum: bool,
    /// The frame stands for several packets of this transport payload size, in bytes.
    pub segment_bytes: Option<u16>,
}

/// How a flow's host socket is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The ordinary close: what was written is still delivered.
    Close,
    /// With a reset to the remote end (TCP).
    Reset,
}

/// Address family of a host socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `addr`.
    pub fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What the core asks of the host. Results come back as [`HostEvent`]s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostOp {
    /// Start a TCP connection; answered by `Connected` or `ConnectFailed`. A flow may be asked to connect
    /// again after a failure (the next DNS server).
    Connect {
        /// The flow.
        flow: FlowId,
        /// The final address.
        to: SocketAddr,
    },
    /// Open an unconnected UDP socket on an ephemeral port; only a failure is answered (`OpenFailed`).
    OpenUdp {
        /// The flow.
        flow: FlowId,
        /// Its family.
        family: Family,
        /// What it sends first goes to the host's loopback, where no exit leads.
        to_loopback: bool,
    },
    /// Open a ping socket (ICMP echo as datagrams); only a failure is answered (`OpenFailed`).
    OpenPing {
        /// The flow.
        flow: FlowId,
        /// Its family.
        family: Family,
    },
    /// Send datagrams on the flow's socket. For a ping socket the payload is the whole ICMP message.
    Send {
        /// The flow.
        flow: FlowId,
        /// Destination; the port is 0 for a ping socket.
        to: SocketAddr,
        /// TTL or hop limit on the wire.
        hop_limit: u8,
        /// Bytes in [`Outbox::payload`].
        payload: outbox::PayloadRange,
    },
    /// Send datagrams from a published UDP port.
    Reply {
        /// The published port's socket.
        publish: PublishId,
        /// The client.
        to: SocketAddr,
        /// The host address that the client had sent to; the answer leaves from it.
        from: IpAddr,
        /// Bytes in [`Outbox::payload`].
        payload: outbox::PayloadRange,
    },
    /// Release the flow's host socket; the flow is gone, unless a `Connect` for it follows.
    Release {
        /// The flow.
        flow: FlowId,
        /// How.
        how: Release,
    },
    /// Make the host's resolver list current: re-read it if it changed.
    RefreshResolvers,
    /// Have the first worker's gateway send a datagram to the guest.
    PassOn {
        /// Which.
        datagram: LargeDatagram,
        /// Bytes in [`Outbox::payload`].
        payload: outbox::PayloadRange,
    },
}

/// A datagram that reaches the guest in fragments. Of several workers the first alone sends such, so that the guest
/// gets the fragments of one datagram after those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LargeDatagram {
    /// The guest's link.
    pub port: PortId,
    /// The guest's station.
    pub station: MacAddr,
    /// The remote end as the guest sees it.
    pub remote: SocketAddr,
    /// The guest's end.
    pub guest: SocketAddr,
    /// TTL or hop limit that the guest sees.
    pub hop_limit: u8,
}

impl HostOp {
    /// What it sends, if it does.
    pub fn payload(&self) -> Option<outbox::PayloadRange> {
        match self {
            Self::Send { payload, .. } | Self::Reply { payload, .. } => Some(*payload),
            _ => None,
        }
    }
}

/// Why a connection attempt or a datagram failed, as far as it matters to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostError {
    /// The remote end refused (ECONNREFUSED, ECONNRESET, port unreachable).
    Refused,
    /// No answer in time (ETIMEDOUT).
    TimedOut,
    /// No route, or the network is down (ENETUNREACH, EADDRNOTAVAIL, EAFNOSUPPORT, ...).
    NetUnreachable,
    /// The host does not answer on its link (EHOSTUNREACH).
    HostUnreachable,
    /// A local rule forbids it (EACCES, EPERM).
    Prohibited,
    /// Out of file descriptors, ports or memory (EMFILE, ENFILE, EAGAIN, ENOBUFS, ENOMEM).
    Exhausted,
}

/// An ICMP or ICMPv6 error that the host's kernel attributed to a datagram socket (IP_RECVERR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Who sent it; `None` if the host's own kernel raised it.
    pub offender: Option<IpAddr>,
    /// ICMP type in the offender's family.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// Next-hop MTU for "too big", else 0.
    pub info: u32,
    /// Where the datagram was going.
    pub to: SocketAddr,
}

/// What happened at the host.
#[derive(Clone, Copy, Debug)]
pub enum HostEvent<'a> {
    /// The flow's TCP connection stands.
    Connected {
        /// The flow.
        flow: FlowId,
    },
    /// The flow's TCP connection failed; its socket is gone.
    ConnectFailed {
        /// The flow.
        flow: FlowId,
        /// Why.
        error: HostError,
    },
    /// The flow's UDP or ping socket could not be opened.
    OpenFailed {
        /// The flow.
        flow: FlowId,
        /// Why.
        error: HostError,
    },
    /// A datagram on the flow's socket. On a ping socket it is an ICMP message whose identifier is the socket's.
    Datagram {
        /// The flow.
        flow: FlowId,
        /// Who sent it.
        from: SocketAddr,
        /// TTL or hop limit with which it arrived.
        hop_limit: u8,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// A datagram from a client on a published UDP port.
    PublishedDatagram {
        /// The published port.
        publish: PublishId,
        /// The client.
        from: SocketAddr,
        /// The host address that it was sent to.
        to: IpAddr,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// A datagram that the flow had sent met an error.
    SendFailed {
        /// The flow.
        flow: FlowId,
        /// Which.
        error: IcmpError,
        /// The first bytes of the payload of the datagram that met it; may be empty.
        payload: &'a [u8],
    },
}
