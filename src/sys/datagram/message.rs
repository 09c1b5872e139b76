//! Messages of recvmsg(2) and sendmsg(2): names and control messages.
//!
//! Control messages are laid out here by the kernel's own rules (CMSG_ALIGN is the word size), not the C library's, so
//! that only the system calls are unsafe.

#![allow(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use socket2::SockAddr;

/// Room for an address, a hop limit and an extended error with its offender: about 140 bytes.
const CONTROL_BYTES: usize = 256;
/// Length of the largest socket address.
const NAME_BYTES: usize = size_of::<libc::sockaddr_storage>();
/// Length of `struct cmsghdr`: a word and two ints.
const CMSG_HEADER_BYTES: usize = size_of::<usize>() + 8;

/// Bytes aligned as the kernel's structures want them.
#[repr(C, align(8))]
struct Aligned<const LEN: usize>([u8; LEN]);

/// Control messages to send.
pub(super) struct Control {
    bytes: Aligned<CONTROL_BYTES>,
    used: usize,
}

impl Control {
    pub(super) fn new() -> Self {
        Self { bytes: Aligned([0; CONTROL_BYTES]), used: 0 }
    }

    pub(super) fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
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
pub(super) struct Message {
    name: Aligned<NAME_BYTES>,
    name_len: usize,
    control: Aligned<CONTROL_BYTES>,
    control_len: usize,
}

impl Message {
    pub(super) fn new() -> Self {
        Self {
            name: Aligned([0; NAME_BYTES]),
            name_len: 0,
            control: Aligned([0; CONTROL_BYTES]),
            control_len: 0,
        }
    }

    pub(super) fn receive(
        &mut self,
        fd: &impl AsFd,
        buffer: &mut [u8],
        flags: libc::c_int,
    ) -> nix::Result<usize> {
        let mut payload = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut header = self.header(&mut payload);
        // SAFETY: name, payload and control point to memory that is ours to write, of the lengths given, and
        // outlive the call.
        let len = unsafe { libc::recvmsg(fd.as_fd().as_raw_fd(), &raw mut header, flags) };
        let len = Errno::result(len)?;
        self.note(&header);
        Ok(len as usize)
    }

    /// What tells the kernel to receive into `payload`, and the rest into this.
    pub(super) fn header(&mut self, payload: &mut libc::iovec) -> libc::msghdr {
        let mut header = empty_header();
        header.msg_name = self.name.0.as_mut_ptr().cast();
        header.msg_namelen = NAME_BYTES as libc::socklen_t;
        header.msg_iov = payload;
        header.msg_iovlen = 1;
        header.msg_control = self.control.0.as_mut_ptr().cast();
        header.msg_controllen = CONTROL_BYTES as _;
        header
    }

    /// Notes what the kernel wrote into the header that [`Self::header`] made.
    pub(super) fn note(&mut self, header: &libc::msghdr) {
        self.name_len = (header.msg_namelen as usize).min(NAME_BYTES);
        #[allow(clippy::unnecessary_cast, reason = "usize in glibc, u32 in musl")]
        let control_len = header.msg_controllen as usize;
        self.control_len = control_len.min(CONTROL_BYTES);
    }

    /// Who sent it.
    pub(super) fn name(&self) -> Option<SocketAddr> {
        socket_address(&self.name.0[..self.name_len])
    }

    /// Level, type and data of each control message.
    pub(super) fn controls(&self) -> impl Iterator<Item = (i32, i32, &[u8])> {
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

pub(super) fn send_message(
    fd: &impl AsFd,
    payload: &[u8],
    to: &SockAddr,
    control: &Control,
) -> nix::Result<usize> {
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

pub(super) fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr is plain data; all zeroes is a value, with null pointers and no lengths.
    unsafe { std::mem::zeroed() }
}

/// Reads a `struct sockaddr_in` or `sockaddr_in6`.
pub(super) fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
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

pub(super) fn ipv4_at(bytes: &[u8], offset: usize) -> Option<IpAddr> {
    let octets: [u8; 4] = *bytes.get(offset..)?.first_chunk()?;
    Some(Ipv4Addr::from(octets).into())
}

pub(super) fn ipv6_at(bytes: &[u8], offset: usize) -> Option<IpAddr> {
    let octets: [u8; 16] = *bytes.get(offset..)?.first_chunk()?;
    Some(Ipv6Addr::from(octets).into())
}
