//! UDP and ping sockets with all that IP says beside the payload: both addresses, the hop limit, ICMP errors.
//!
//! udp(7), ip(7), ipv6(7) and icmp(7) describe the options. [`send`] hands over one datagram, or several of one size
//! for the kernel to cut; a [`Batch`] receives many at a time. No call allocates.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use socket2::SockAddr;

mod batch;
mod message;

pub use batch::{Batch, Received};
use message::{Control, Message, send_message, socket_address};

use crate::config::IfName;
use crate::net::{Family, IcmpError};

/// What the kernel is asked to queue each way, in bytes; it may grant less (net.core.rmem_max, wmem_max).
const QUEUE_BYTES: usize = 1024 * 1024;
/// Length of `struct sock_extended_err` (include/uapi/linux/errqueue.h).
const EXTENDED_ERROR_BYTES: usize = 16;

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

/// Opens a nonblocking UDP socket bound to `address`, and to `interface` if one is given; port 0 lets the kernel
/// choose. An IPv6 one is for IPv6 only. Datagrams up to 65,507 bytes are sent, in fragments where the known path MTU
/// asks for it.
pub fn open_udp(address: SocketAddr, interface: Option<IfName>) -> io::Result<OwnedFd> {
    let fd = open_published_udp(address, interface, false)?;
    queue_errors(&fd, Family::of(address.ip()))?;
    Ok(fd)
}

/// The same for a port that many clients share: ICMP errors about those that have gone are ignored. Queued, they
/// would take the room of the datagrams that arrive (both count against SO_RCVBUF). With `freebind` the address need
/// not be the host's (ip(7), IP_FREEBIND).
pub fn open_published_udp(
    address: SocketAddr,
    interface: Option<IfName>,
    freebind: bool,
) -> io::Result<OwnedFd> {
    let fd = open_unbound_udp(Family::of(address.ip()))?;
    // Before Linux 5.0 there is none: every datagram comes alone.
    let _ = setsockopt(&fd, sockopt::UdpGroSegment, &true);
    if let Some(interface) = interface {
        setsockopt(&fd, sockopt::BindToDevice, &interface.as_str().into())?;
    }
    if freebind {
        // For IPv6 too.
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

/// Opens a nonblocking UDP socket of the thread's network namespace, not bound yet. An IPv6 one is for IPv6 only.
pub(crate) fn open_unbound_udp(family: Family) -> io::Result<OwnedFd> {
    let fd = open(family, SockProtocol::Udp)?;
    if family == Family::V6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
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
            let batch = wait(&socket);
            let received = batch.front().expect("a datagram");
            assert_eq!(received.from, peer.local_addr().expect("bound"));
            assert_eq!(received.to, Some(loopback));
            assert_eq!(received.payload, b"hello");
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
        let batch = wait(&peer);
        let received = batch.front().expect("a datagram");
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
            let (peer, port) = udp(&SocketAddr::new(loopback, 0).to_string()).expect("loopback");
            let open = SocketAddr::new(loopback, port);
            send(&socket, b"next", &Envelope::to(open)).expect("the older error does not stop it");
            assert_eq!(taken(&mut wait(&peer)), [b"next"]);

            let mut buffer = [0; 100];
            let (error, len) = take_error(&socket, &mut buffer).expect("queue").expect("an error");
            assert_eq!(&buffer[..len], b"anyone?");
            assert_eq!((error.to, error.offender), (closed, Some(loopback)));
            let port_unreachable = if loopback.is_ipv4() { (3, 3) } else { (1, 4) };
            assert_eq!((error.kind, error.code), port_unreachable);
            assert_eq!(take_error(&socket, &mut buffer).expect("queue"), None);
            assert_idle(&socket);
        }
    }

    #[test]
    fn clients_that_have_gone_do_not_close_a_published_port() {
        let published =
            open_published_udp(SocketAddr::from(([127, 0, 0, 1], 0)), None, false).map(UdpSocket::from);
        let published = published.expect("loopback");
        let address = published.local_addr().expect("bound");
        for _ in 0..3000 {
            let gone = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
            send(&published, b"answer", &Envelope::to(gone.expect("loopback"))).expect("sent");
            assert_idle(&published);
        }
        let client = UdpSocket::bind("127.0.0.1:0").expect("loopback");
        client.send_to(b"hello", address).expect("sent");
        assert_eq!(taken(&mut wait(&published)), [b"hello"]);
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
        assert!(taken(&mut wait(&peer)) == [payload]);
    }

    #[test]
    fn a_batch_holds_datagrams_in_their_order_joined_or_not() {
        let (socket, _) = udp("127.0.0.1:0").expect("loopback");
        let (peer, port) = udp("127.0.0.1:0").expect("loopback");
        let to = Envelope::to(SocketAddr::from(([127, 0, 0, 1], port)));
        let joined = Envelope { segment_bytes: Some(4), ..to };
        send(&socket, b"first", &to).expect("sent");
        send(&socket, b"one.two.six", &joined).expect("sent");
        send(&socket, b"", &to).expect("sent");
        send(&socket, b"last", &to).expect("sent");
        let expected = ["first", "one.", "two.", "six", "", "last"].map(|text| text.as_bytes().to_vec());
        assert_eq!(taken(&mut wait(&peer)), expected);
    }

    #[test]
    fn more_than_a_batch_comes_in_two() {
        let (socket, _) = udp("127.0.0.1:0").expect("loopback");
        let (peer, port) = udp("127.0.0.1:0").expect("loopback");
        let to = Envelope::to(SocketAddr::from(([127, 0, 0, 1], port)));
        for n in 0..=Batch::MESSAGES {
            send(&socket, &[n as u8], &to).expect("sent");
        }
        let mut batch = wait(&peer);
        assert_eq!(taken(&mut batch).len(), Batch::MESSAGES);
        assert_eq!(batch.receive(&peer).expect("one more"), 1);
        assert_eq!(taken(&mut batch), [[Batch::MESSAGES as u8]]);
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
        let fd = match open_udp(address.parse().expect("an address"), None) {
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

    /// What arrives next.
    fn wait(socket: &impl AsFd) -> Batch {
        let (mut batch, deadline) = (Batch::new(), Instant::now() + PATIENCE);
        loop {
            match batch.receive(socket) {
                Ok(_) => return batch,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn taken(batch: &mut Batch) -> Vec<Vec<u8>> {
        let mut taken = Vec::new();
        while let Some(received) = batch.front() {
            taken.push(received.payload.to_vec());
            batch.pop();
        }
        taken
    }

    fn assert_idle(socket: &impl AsFd) {
        let idle = Batch::new().receive(socket).expect_err("nothing waits");
        assert_eq!(idle.kind(), io::ErrorKind::WouldBlock);
    }
}
