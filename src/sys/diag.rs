//! Bound sockets of a network namespace, asked of the kernel (sock_diag(7)).
//!
//! Only those that wait for anybody are asked for, so that it does not walk the table of connections, which takes it
//! milliseconds however few there are.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::config::Transport;
use crate::net::Family;

/// Read at once: more than the kernel puts into one answer.
const ANSWER_BYTES: usize = 64 * 1024;
/// Answers to one request: some 400 sockets each.
const MAX_ANSWERS: usize = 1024;

/// struct nlmsghdr, struct inet_diag_req_v2 and the beginning of struct inet_diag_msg, in bytes.
const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = HEADER_BYTES + 56;
const SOCKET_BYTES: usize = 24;
/// Message types (linux/netlink.h, linux/sock_diag.h).
const ERROR: u16 = 2;
const DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// NLM_F_REQUEST and NLM_F_DUMP.
const DUMP: u16 = 0x301;
/// States as bits of a set (net/tcp_states.h): TCP that listens, UDP that is not connected.
const LISTEN: u32 = 1 << 10;
const CLOSE: u32 = 1 << 7;

/// Opens a socket that can be asked about the namespace of this thread, whoever asks later.
pub fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)?)
}

/// Where sockets of `transport` and `family` wait for anybody: TCP ones that listen, UDP ones that are not connected. An
/// error if the kernel cannot tell.
pub fn bound(diag: impl AsFd, transport: Transport, family: Family) -> io::Result<Vec<SocketAddr>> {
    let diag = diag.as_fd().as_raw_fd();
    send(diag, &request(transport, family), MsgFlags::empty())?;
    let mut found = Vec::new();
    let mut answer = vec![0; ANSWER_BYTES];
    for _ in 0..MAX_ANSWERS {
        let len = recv(diag, &mut answer, MsgFlags::empty())?;
        if read(&answer[..len], &mut found)? {
            return Ok(found);
        }
    }
    Err(io::Error::other("there are too many sockets"))
}

fn request(transport: Transport, family: Family) -> [u8; REQUEST_BYTES] {
    let (protocol, states) = match transport {
        Transport::Tcp => (libc::IPPROTO_TCP, LISTEN),
        Transport::Udp => (libc::IPPROTO_UDP, CLOSE),
    };
    let family = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let mut request = [0; REQUEST_BYTES];
    request[..4].copy_from_slice(&(REQUEST_BYTES as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    request[HEADER_BYTES] = family as u8;
    request[HEADER_BYTES + 1] = protocol as u8;
    request[HEADER_BYTES + 4..HEADER_BYTES + 8].copy_from_slice(&states.to_ne_bytes());
    request
}

/// Adds the sockets in `answer`, which consists of messages; whether it is the last one.
fn read(mut answer: &[u8], found: &mut Vec<SocketAddr>) -> io::Result<bool> {
    while let Some((header, _)) = answer.split_first_chunk::<HEADER_BYTES>() {
        let [l0, l1, l2, l3, t0, t1, ..] = *header;
        let len = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let message = answer.get(HEADER_BYTES..len).ok_or_else(malformed)?;
        match u16::from_ne_bytes([t0, t1]) {
            DONE => return Ok(true),
            ERROR => {
                let errno = message.first_chunk().map_or(0, |errno| i32::from_ne_bytes(*errno));
                return Err(Errno::from_raw(errno.saturating_neg()).into());
            }
            SOCK_DIAG_BY_FAMILY => found.push(local(message).ok_or_else(malformed)?),
            _ => {}
        }
        answer = answer.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// Family, three bytes, then both ports and the local address, in network order.
fn local(message: &[u8]) -> Option<SocketAddr> {
    let &[family, _, _, _, p0, p1, _, _, ref address @ ..] = message.first_chunk::<SOCKET_BYTES>()?;
    let ip: IpAddr = match i32::from(family) {
        libc::AF_INET => Ipv4Addr::from(*address.first_chunk::<4>()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(*address.first_chunk::<16>()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([p0, p1])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn who_waits_is_found_and_nobody_else() {
        let diag = open().expect("a socket");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("bound");
        let client = std::net::TcpStream::connect(at).expect("listened on");
        let found = match bound(&diag, Transport::Tcp, Family::V4) {
            Ok(found) => found,
            // The kernel has no tcp_diag.
            Err(error) => return assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}"),
        };
        assert!(found.contains(&at));
        assert!(!found.contains(&client.local_addr().expect("bound")));
        drop(listener);
        assert!(!bound(&diag, Transport::Tcp, Family::V4).expect("again").contains(&at));
        let (free, busy) = (UdpSocket::bind("127.0.0.1:0"), UdpSocket::bind("127.0.0.1:0"));
        let (free, busy) = (free.expect("a port"), busy.expect("a port"));
        busy.connect("127.0.0.1:9").expect("a peer");
        let found = bound(&diag, Transport::Udp, Family::V4).expect("like TCP");
        assert!(found.contains(&free.local_addr().expect("bound")));
        assert!(!found.contains(&busy.local_addr().expect("bound")));
    }

    #[test]
    fn answers_are_read_message_by_message() {
        let message = |kind: u16, content: &[u8]| {
            let len = HEADER_BYTES + content.len();
            let mut bytes = (len as u32).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.resize(HEADER_BYTES, 0);
            bytes.extend(content);
            bytes.resize(len.next_multiple_of(4), 0);
            bytes
        };
        let mapped =
            [&[10, 10, 0, 0, 0x1f, 0x90, 0, 0][..], &Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets()].concat();
        let mut found = Vec::new();
        let socket = message(SOCK_DIAG_BY_FAMILY, &mapped);
        assert!(!read(&socket, &mut found).expect("whole"));
        assert!(read(&[socket.clone(), message(DONE, &[0; 5])].concat(), &mut found).expect("whole"));
        assert_eq!(found, ["127.0.0.1:8080".parse().expect("an address"); 2]);
        let missing = message(ERROR, &(-libc::ENOENT).to_ne_bytes());
        let error = read(&missing, &mut found).expect_err("not there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        for len in HEADER_BYTES..socket.len() {
            read(&socket[..len], &mut found).expect_err("cut off");
        }
        for len in 0..8 {
            let mut short = socket.clone();
            short[..4].copy_from_slice(&(len as u32).to_ne_bytes());
            read(&short, &mut found).expect_err("it would not end");
        }
    }
}
