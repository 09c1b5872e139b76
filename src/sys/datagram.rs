//! UDP and ping sockets with all that IP says beside the payload: both addresses, the hop limit, ICMP errors.
//!
//! udp(7), ip(7), ipv6(7) and icmp(7) describe the options. A call moves one datagram and allocates nothing.
//! Control messages are laid out here by the kernel's own rules (CMSG_ALIGN is the word size), not the C
//! library's, so that only the two system calls are unsafe.

#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use socket2::SockAddr;

use crate::net::{Family, IcmpError};

/// What the kernel is asked to queue each way, in bytes; it may grant less (net.core.rmem_max, wmem_max).
const QUEUE_BYTES: usize = 1024 * 1024;
/// Room for an address, a hop limit and an extended error with its offender: about 140 bytes.
const CONTROL_BYTES: usize = 256;
/// Length of the largest socket address.
const NAME_BYTES: usize = size_of::<libc::sockaddr_storage>();
/// Length of `struct cmsghdr`: a word and two ints.
const CMSG_HEADER_BYTES: usize = size_of::<usize>() + 8;
/// Length of `struct sock_extended_err` (include/uapi/linux/errqueue.h).
const EXTENDED_ERROR_BYTES: usize = 16;
/// Assumed where the kernel does not say with which one a datagram came.
const USUAL_HOP_LIMIT: u8 = 64;

/// Destination unreachable, fragmentation needed (RFC 1191); packet too big (RFC 4443 section 3.2).
const TOO_BIG_V4: (u8, u8) = (3, 4);
const TOO_BIG_V6: (u8, u8) = (2, 0);
/// Destination unreachable: host (RFC 792); no route (RFC 4443 section 3.1).
const UNREACHABLE_V4: (u8, u8) = (3, 1);
const UNREACHABLE_V6: (u8, u8) = (1, 0);

mod option {
    use nix::{setsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// Who fragments, and whether path MTU discovery runs.
        MtuDiscover,
        SetOnly,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::c_int
    );
    sockopt_impl!(
        /// As [`MtuDiscover`], for IPv6.
        MtuDiscoverV6,
        SetOnly,
        libc::IPPROTO_IPV6,
        libc::IPV6_MTU_DISCOVER,
        libc::c_int
    );
}

/// A datagram that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Who sent it.
    pub from: SocketAddr,
    /// The local address that it was sent to, from which an answer should leave.
    pub to: Option<IpAddr>,
    /// TTL or hop limit with which it arrived.
    pub hop_limit: u8,
    /// Bytes in the buffer.
    pub len: usize,
}

/// Opens a nonblocking UDP socket bound to `address`; port 0 lets the kernel choose. An IPv6 one is for IPv6
/// only. Datagrams up to 65,507 bytes are sent, in fragments where the known path MTU asks for it.
pub fn open_udp(address: SocketAddr) -> io::Result<OwnedFd> {
    let fd = open_published_udp(address)?;
    queue_errors(&fd, Family::of(address.ip()))?;
    Ok(fd)
}

/// The same for a port that many clients share: ICMP errors about those that have gone are ignored. Queued, they
/// would take the room of the datagrams that arrive (both count against SO_RCVBUF).
pub fn open_published_udp(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = Family::of(address.ip());
    let fd = open(family, SockProtocol::Udp)?;
    if family == Family::V6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

/// Opens a nonblocking ping socket: ICMP echo messages as datagrams, their identifier chosen by the kernel.
/// `PermissionDenied` if net.ipv4.ping_group_range leaves the caller's groups out.
pub fn open_ping(family: Family) -> io::Result<OwnedFd> {
    let protocol = match family {
        Family::V4 => SockProtocol::Icmp,
        Family::V6 => SockProtocol::IcmpV6,
    };
    let fd = open(family, protocol)?;
    queue_errors(&fd, family)?;
    Ok(fd)
}

/// Receives the next datagram into `buffer`; 65,535 bytes hold any. `WouldBlock` if none waits. An ICMP error
/// that is pending is left to [`take_error`].
pub fn receive(fd: &impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    // A pending error is reported in place of a datagram, once.
    let mut message = Message::new();
    let len = again_unless_idle(|| message.receive(fd, buffer, 0))?;
    let mut received = Received {
        from: message.name().ok_or(io::ErrorKind::InvalidData)?,
        to: None,
        hop_limit: USUAL_HOP_LIMIT,
        len,
    };
    for (level, kind, data) in message.controls() {
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                let hop_limit = data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
                received.hop_limit =
                    hop_limit.and_then(|hop_limit| u8::try_from(hop_limit).ok()).unwrap_or(USUAL_HOP_LIMIT);
            }
            // in_pktinfo: the interface, the local address, the header's destination (maybe a broadcast).
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => received.to = ipv4_at(data, 4),
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => received.to = ipv6_at(data, 0),
            _ => {}
        }
    }
    Ok(received)
}

/// How a payload is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Destination; the port is 0 for a ping socket.
    pub to: SocketAddr,
    /// The local address to send from, if it matters.
    pub from: Option<IpAddr>,
    /// TTL or hop limit, if it matters.
    pub hop_limit: Option<u8>,
    /// The payload is several datagrams of this size, the last of them maybe shorter (UDP_SEGMENT, Linux 4.18).
    pub segment_bytes: Option<u16>,
}

impl Envelope {
    /// One datagram to `to`, the rest left to the kernel.
    pub fn to(to: SocketAddr) -> Self {
        Self { to, from: None, hop_limit: None, segment_bytes: None }
    }
}

/// Sends `payload`. An ICMP error that is pending from earlier is left to [`take_error`] and does not count.
pub fn send(fd: &impl AsFd, payload: &[u8], envelope: &Envelope) -> io::Result<()> {
    let mut control = Control::new();
    match envelope.from {
        Some(IpAddr::V4(from)) => {
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&from.octets());
            control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
        }
        Some(IpAddr::V6(from)) => {
            let mut info = [0; 20];
            info[..16].copy_from_slice(&from.octets());
            control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        None => {}
    }
    if let Some(hop_limit) = envelope.hop_limit {
        let hop_limit = i32::from(hop_limit.max(1)).to_ne_bytes();
        match envelope.to {
            SocketAddr::V4(_) => control.push(libc::IPPROTO_IP, libc::IP_TTL, &hop_limit),
            SocketAddr::V6(_) => control.push(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, &hop_limit),
        }
    }
    if let Some(segment_bytes) = envelope.segment_bytes {
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment_bytes.to_ne_bytes());
    }
    let to = SockAddr::from(envelope.to);
    again_unless_idle(|| send_message(fd, payload, &to, &control)).map(drop)
}

/// Takes the oldest ICMP error off the socket's error queue, with what it quotes of the payload (for a ping
/// socket: of the ICMP message) in `buffer`; `None` if the queue is empty. Errors of the host's own kernel,
/// such as a datagram too big for its link, come in the same shape.
pub fn take_error(fd: &impl AsFd, buffer: &mut [u8]) -> io::Result<Option<(IcmpError, usize)>> {
    loop {
        let mut message = Message::new();
        let len = match message.receive(fd, buffer, libc::MSG_ERRQUEUE) {
            Ok(len) => len,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let Some(to) = message.name() else { continue };
        let error = message.controls().find_map(|control| match control {
            (libc::IPPROTO_IP, libc::IP_RECVERR, data) => icmp_error(data, to),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, data) => icmp_error(data, to),
            _ => None,
        });
        if let Some(error) = error {
            return Ok(Some((error, len)));
        }
    }
}

fn open(family: Family, protocol: SockProtocol) -> nix::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(domain, SockType::Datagram, flags, protocol)?;
    match family {
        Family::V4 => {
            setsockopt(&fd, sockopt::Ipv4RecvTtl, &true)?;
            setsockopt(&fd, sockopt::Ipv4PacketInfo, &true)?;
            setsockopt(&fd, option::MtuDiscover, &libc::IP_PMTUDISC_WANT)?;
        }
        Family::V6 => {
            setsockopt(&fd, sockopt::Ipv6RecvHopLimit, &true)?;
            setsockopt(&fd, sockopt::Ipv6RecvPacketInfo, &true)?;
            setsockopt(&fd, option::MtuDiscoverV6, &libc::IPV6_PMTUDISC_WANT)?;
        }
    }
    setsockopt(&fd, sockopt::RcvBuf, &QUEUE_BYTES)?;
    setsockopt(&fd, sockopt::SndBuf, &QUEUE_BYTES)?;
    Ok(fd)
}

/// Asks the kernel to queue ICMP errors for [`take_error`].
fn queue_errors(fd: &OwnedFd, family: Family) -> nix::Result<()> {
    match family {
        Family::V4 => setsockopt(fd, sockopt::Ipv4RecvErr, &true),
        Family::V6 => setsockopt(fd, sockopt::Ipv6RecvErr, &true),
    }
}

/// Calls once more after an error that is not about this call: the kernel reports a pending ICMP error to
/// whichever call comes next, and clears it.
fn again_unless_idle(mut call: impl FnMut() -> nix::Result<usize>) -> io::Result<usize> {
    match call() {
        Ok(len) => Ok(len),
        Err(Errno::EAGAIN) => Err(Errno::EAGAIN.into()),
        Err(_) => call().map_err(io::Error::from),
    }
}

/// Bytes aligned as the kernel's structures want them.
#[repr(C, align(8))]
struct Aligned<const LEN: usize>([u8; LEN]);

/// Control messages to send.
struct Control {
    bytes: Aligned<CONTROL_BYTES>,
    used: usize,
}

impl Control {
    fn new() -> Self {
        Self { bytes: Aligned([0; CONTROL_BYTES]), used: 0 }
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let start = self.used;
        let len = CMSG_HEADER_BYTES + data.len();
        let message = &mut self.bytes.0[start..start + len];
        let (word, rest) = message.split_at_mut(size_of::<usize>());
        word.copy_from_slice(&len.to_ne_bytes());
        rest[..4].copy_from_slice(&level.to_ne_bytes());
        rest[4..8].copy_from_slice(&kind.to_ne_bytes());
        rest[8..].copy_from_slice(data);
        self.used = start + len.next_multiple_of(size_of::<usize>());
    }
}

/// What comes with a received datagram.
struct Message {
    name: Aligned<NAME_BYTES>,
    name_len: usize,
    control: Aligned<CONTROL_BYTES>,
    control_len: usize,
}

impl Message {
    fn new() -> Self {
        Self {
            name: Aligned([0; NAME_BYTES]),
            name_len: 0,
            control: Aligned([0; CONTROL_BYTES]),
            control_len: 0,
        }
    }

    fn receive(&mut self, fd: &impl AsFd, buffer: &mut [u8], flags: libc::c_int) -> nix::Result<usize> {
        let mut payload = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut header = empty_header();
        header.msg_name = self.name.0.as_mut_ptr().cast();
        header.msg_namelen = NAME_BYTES as libc::socklen_t;
        header.msg_iov = &raw mut payload;
        header.msg_iovlen = 1;
        header.msg_control = self.control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_BYTES as _;
        // SAFETY: name, payload and control point to memory that is ours to write, of the lengths given, and
        // outlive the call.
        let len = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut header, flags) };
        let len = Errno::result(len)?;
        self.name_len = (header.msg_namelen as usize).min(NAME_BYTES);
        #[allow(clippy::unnecessary_cast, reason = "usize in glibc, u32 in musl")]
        let control_len = header.msg_controllen as usize;
        self.control_len = control_len.min(CONTROL_BYTES);
        Ok(len as usize)
    }

    fn name(&self) -> Option<SocketAddr> {
        socket_address(&self.name.0[..self.name_len])
    }

    /// Level, type and data of each control message.
    fn controls(&self) -> impl Iterator<Item = (i32, i32, &[u8])> {
        let mut rest = &self.control.0[..self.control_len];
        std::iter::from_fn(move || {
            let (word, after) = rest.split_first_chunk()?;
            let len = usize::from_ne_bytes(*word);
            let level = i32::from_ne_bytes(*after.first_chunk()?);
            let kind = i32::from_ne_bytes(*after.get(4..)?.first_chunk()?);
            let data = rest.get(CMSG_HEADER_BYTES..len)?;
            rest = rest.get(len.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
            Some((level, kind, data))
        })
    }
}

fn send_message(fd: &impl AsFd, payload: &[u8], to: &SockAddr, control: &Control) -> nix::Result<usize> {
    let mut payload = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
    let mut header = empty_header();
    header.msg_name = to.as_ptr().cast_mut().cast();
    header.msg_namelen = to.len();
    header.msg_iov = &raw mut payload;
    header.msg_iovlen = 1;
    if control.used > 0 {
        header.msg_control = control.bytes.0.as_ptr().cast_mut().cast();
        header.msg_controllen = control.used as _;
    }
    // SAFETY: the kernel only reads what the header points to, which has the lengths given and outlives the call.
    let sent = unsafe { libc::sendmsg(fd.as_fd().as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    Errno::result(sent).map(|sent| sent as usize)
}

fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr is plain data; all zeroes is a value, with null pointers and no lengths.
    unsafe { std::mem::zeroed() }
}

/// Reads a `struct sock_extended_err` and the offender's address behind it.
fn icmp_error(data: &[u8], to: SocketAddr) -> Option<IcmpError> {
    let (error, offender) = data.split_first_chunk::<EXTENDED_ERROR_BYTES>()?;
    let [e0, e1, e2, e3, origin, kind, code, _, i0, i1, i2, i3, ..] = *error;
    let errno = Errno::from_raw(u32::from_ne_bytes([e0, e1, e2, e3]).cast_signed());
    let (kind, code) = match (origin, errno, to) {
        (libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6, ..) => (kind, code),
        (libc::SO_EE_ORIGIN_LOCAL, Errno::EMSGSIZE, SocketAddr::V4(_)) => TOO_BIG_V4,
        (libc::SO_EE_ORIGIN_LOCAL, Errno::EMSGSIZE, SocketAddr::V6(_)) => TOO_BIG_V6,
        (libc::SO_EE_ORIGIN_LOCAL, _, SocketAddr::V4(_)) => UNREACHABLE_V4,
        (libc::SO_EE_ORIGIN_LOCAL, _, SocketAddr::V6(_)) => UNREACHABLE_V6,
        _ => return None,
    };
    let offender = if origin == libc::SO_EE_ORIGIN_LOCAL { None } else { socket_address(offender) };
    // Other errors have no MTU; some have a pointer there (RFC 792, "parameter problem").
    let info = if errno == Errno::EMSGSIZE { u32::from_ne_bytes([i0, i1, i2, i3]) } else { 0 };
    Some(IcmpError { offender: offender.map(|offender| offender.ip()), kind, code, info, to })
}

/// Reads a `struct sockaddr_in` or `sockaddr_in6`.
fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk()?);
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    match i32::from(family) {
        libc::AF_INET => Some(SocketAddr::new(ipv4_at(bytes, 4)?, port)),
        libc::AF_INET6 => {
            let IpAddr::V6(address) = ipv6_at(bytes, 8)? else {
                return None;
            };
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(address, port, 0, scope).into())
        }
        _ => None,
    }
}

fn ipv4_at(bytes: &[u8], offset: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = *bytes.get(offset..)?.first_chunk()?;
    Some(Ipv4Addr::from(octets).into())
}

fn ipv6_at(bytes: &[u8], offset: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = *bytes.get(offset..)?.first_chunk()?;
    Some(Ipv6Addr::from(octets).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::time::{Duration, Instant};

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn both_addresses_and_the_hop_limit_come_with_a_datagram() {
        for wildcard in ["0.0.0.0:0", "[::]:0"] {
            let Some((socket, port)) = udp(wildcard) else {
                continue;
            };
            let loopback = loopback(wildcard);
            let peer = UdpSocket::bind((loopback, 0)).expect("loopback");
            // Sets the TTL of IPv4 only.
            let _ = peer.set_ttl(9);
            peer.send_to(b"hello", (loopback, port)).expect("sent");
            let mut buffer = [0; 100];
            let received = wait(|| receive(&socket, &mut buffer)).expect("a datagram");
            assert_eq!(received.from, peer.local_addr().expect("bound"));
            assert_eq!(received.to, Some(loopback));
            assert_eq!(received.len, 5);
            if loopback.is_ipv4() {
                assert_eq!(received.hop_limit, 9);
            }
        }
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        let Some((socket, _)) = udp("0.0.0.0:0") else {
            return;
        };
        let (peer, port) = udp("127.0.0.1:0").expect("loopback");
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        let from = IpAddr::from([127, 0, 0, 77]);
        let envelope = Envelope { from: Some(from), hop_limit: Some(5), ..Envelope::to(to) };
        send(&socket, b"answer", &envelope).expect("sent");
        let mut buffer = [0; 100];
        let received = wait(|| receive(&peer, &mut buffer)).expect("a datagram");
        assert_eq!((received.from.ip(), received.hop_limit), (from, 5));
    }

    #[test]
    fn a_closed_port_is_reported_and_costs_no_later_datagram() {
        for wildcard in ["0.0.0.0:0", "[::]:0"] {
            let Some((socket, _)) = udp(wildcard) else {
                continue;
            };
            let loopback = loopback(wildcard);
            let closed = UdpSocket::bind((loopback, 0)).and_then(|socket| socket.local_addr());
            let closed = closed.expect("loopback");
            send(&socket, b"anyone?", &Envelope::to(closed)).expect("sent");
            let mut buffer = [0; 100];
            let (peer, port) = udp(&SocketAddr::new(loopback, 0).to_string()).expect("loopback");
            let open = SocketAddr::new(loopback, port);
            send(&socket, b"next", &Envelope::to(open)).expect("the older error does not stop it");
            assert_eq!(wait(|| receive(&peer, &mut buffer)).expect("a datagram").len, 4);

            let (error, len) = take_error(&socket, &mut buffer).expect("queue").expect("an error");
            assert_eq!(&buffer[..len], b"anyone?");
            assert_eq!((error.to, error.offender), (closed, Some(loopback)));
            let port_unreachable = if loopback.is_ipv4() { (3, 3) } else { (1, 4) };
            assert_eq!((error.kind, error.code), port_unreachable);
            assert_eq!(take_error(&socket, &mut buffer).expect("queue"), None);
            let idle = receive(&socket, &mut buffer).expect_err("nothing waits");
            assert_eq!(idle.kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn clients_that_have_gone_do_not_close_a_published_port() {
        let published = open_published_udp(SocketAddr::from(([127, 0, 0, 1], 0))).map(UdpSocket::from);
        let published = published.expect("loopback");
        let address = published.local_addr().expect("bound");
        let mut buffer = [0; 100];
        for _ in 0..3000 {
            let gone = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
            send(&published, b"answer", &Envelope::to(gone.expect("loopback"))).expect("sent");
            let idle = receive(&published, &mut buffer).expect_err("nothing waits");
            assert_eq!(idle.kind(), io::ErrorKind::WouldBlock);
        }
        let client = UdpSocket::bind("127.0.0.1:0").expect("loopback");
        client.send_to(b"hello", address).expect("sent");
        assert_eq!(wait(|| receive(&published, &mut buffer)).expect("a datagram").len, 5);
    }

    #[test]
    fn the_largest_datagram_passes() {
        let Some((socket, _)) = udp("0.0.0.0:0") else {
            return;
        };
        let (peer, port) = udp("127.0.0.1:0").expect("loopback");
        let to = SocketAddr::from(([127, 0, 0, 1], port));
        let payload: Vec<u8> = (0..65_507u32).map(|n| n as u8).collect();
        send(&socket, &payload, &Envelope::to(to)).expect("sent");
        let mut buffer = vec![0; 65_535];
        let received = wait(|| receive(&peer, &mut buffer)).expect("a datagram");
        assert!(buffer[..received.len] == payload);
    }

    #[test]
    fn a_local_error_about_size_reads_as_packet_too_big() {
        let mut data = [0; EXTENDED_ERROR_BYTES];
        data[..4].copy_from_slice(&(libc::EMSGSIZE as u32).to_ne_bytes());
        data[4] = libc::SO_EE_ORIGIN_LOCAL;
        data[8..12].copy_from_slice(&1400u32.to_ne_bytes());
        let to = SocketAddr::from((Ipv6Addr::LOCALHOST, 53));
        let error = icmp_error(&data, to).expect("well formed");
        assert_eq!((error.kind, error.code, error.info), (2, 0, 1400));
        assert_eq!(error.offender, None);
        assert_eq!(icmp_error(&data[..15], to), None);
    }

    #[test]
    fn a_forbidden_ping_socket_says_so() {
        match open_ping(Family::V4) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
    }

    fn udp(address: &str) -> Option<(OwnedFd, u16)> {
        let fd = match open_udp(address.parse().expect("an address")) {
            Ok(fd) => fd,
            Err(error) => {
                println!("skipped {address}: {error}");
                return None;
            }
        };
        let socket = UdpSocket::from(fd);
        let port = socket.local_addr().expect("bound").port();
        Some((socket.into(), port))
    }

    fn loopback(wildcard: &str) -> IpAddr {
        match wildcard.parse().expect("an address") {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        }
    }

    fn wait<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                done => return done,
            }
        }
    }
}
