//! Frames in and out of a guest's link, one per system call.
//!
//! Owns the virtio-net header (Virtual I/O Device 1.2, section 5.1.6, in its legacy form: ten bytes, the
//! machine's byte order), which nobody else sees. A VLAN tag that a guest puts on reaches a packet link in the
//! kernel's side data, not in the frame; such frames count as untagged.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use nix::errno::Errno;
use nix::unistd::{read, write};

use super::capture::Capture;
use crate::config::LinkKind;
use crate::net::outbox::{ETHERNET_BYTES, HEADROOM, MAX_FRAME_BYTES};
use crate::net::{Offload, RxOffload, TxOffload};
use crate::sys::link::LinkFd;
use crate::sys::tun::{self, VNET_HEADER_BYTES};

/// Space for an 802.1Q tag in a frame that a guest sends.
const VLAN_TAG_BYTES: usize = 4;

/// include/uapi/linux/virtio_net.h
const F_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Where the checksum is in a TCP header (RFC 9293 section 3.1).
const TCP_CHECKSUM_OFFSET: u16 = 16;
/// Where it is in a UDP header (RFC 768).
const UDP_CHECKSUM_OFFSET: u16 = 6;

/// A frame with the link's own header.
#[derive(Clone, Copy, Debug)]
pub struct Received<'b> {
    /// The header and the frame.
    pub whole: &'b [u8],
    /// How long the header is.
    pub header_bytes: usize,
    /// What it says.
    pub offload: RxOffload,
}

/// A guest's link, or one queue of it; nonblocking.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
    offload: Offload,
    capture: Option<Capture>,
}

impl Link {
    /// What a buffer for [`Self::read`] must hold, in bytes. The last byte stays free: a frame that reaches
    /// it was cut off.
    pub const BUFFER_BYTES: usize = HEADROOM + MAX_FRAME_BYTES + VLAN_TAG_BYTES + 1;

    /// Takes over a link: each of its queues.
    pub fn queues(link: LinkFd) -> Vec<Self> {
        let offload = match link.kind {
            LinkKind::TapPlain | LinkKind::Socket => Offload::None,
            _ if link.udp_segmentation => Offload::ChecksumTsoAndUso,
            _ => Offload::ChecksumAndTso,
        };
        link.queues.into_iter().map(|fd| Self { fd, offload, capture: None }).collect()
    }

    /// Records its frames from now on.
    pub fn record(&mut self, capture: Capture) {
        self.capture = Some(capture);
    }

    /// What the kernel does for frames on this link.
    pub fn offload(&self) -> Offload {
        self.offload
    }

    /// The next frame from the guest, read into `buffer` ([`Self::BUFFER_BYTES`] long); `None` if none waits. A
    /// frame that the link cannot express (BIG TCP, segmentation unknown to the kernel's header) and a call that was
    /// interrupted come as an empty one. An error means that the link is gone.
    pub fn read<'b>(&mut self, buffer: &'b mut [u8]) -> io::Result<Option<(&'b [u8], RxOffload)>> {
        let received = self.receive(buffer)?;
        Ok(received.map(|Received { whole, header_bytes, offload }| (&whole[header_bytes..], offload)))
    }

    /// As [`Self::read`], with the link's own header, so that the frame can be passed to another link as it is.
    pub fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> io::Result<Option<Received<'b>>> {
        let lost = Ok(Some(Received { whole: &[], header_bytes: 0, offload: RxOffload::default() }));
        let len = match read(&self.fd, buffer) {
            // Only a socket has an end of its own.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) if len < buffer.len() => len,
            Ok(_) => return lost,
            // The kernel has thrown away a frame that the header cannot describe.
            Err(Errno::EINVAL) if self.header_bytes() > 0 => return lost,
            Err(Errno::EINTR) => return lost,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let header_bytes = self.header_bytes();
        let whole = &buffer[..len];
        let Some((header, frame)) = whole.split_at_checked(header_bytes) else {
            return lost;
        };
        let offload = header.first_chunk().map(decode).unwrap_or_default();
        if let Some(capture) = &mut self.capture {
            capture.frame(frame);
        }
        Ok(Some(Received { whole, header_bytes, offload }))
    }

    /// Sends `frame`, which stands behind [`HEADROOM`] bytes that this link may overwrite.
    ///
    /// `WouldBlock`: the frame was not sent and may be offered again. On a packet link no readiness event need
    /// follow (a congested veth says ENOBUFS), so a caller should also try again after a millisecond. Any other
    /// error concerns this frame only, which is lost; EIO means that the guest's interface is down.
    pub fn write(&mut self, frame: &mut [u8], offload: TxOffload) -> io::Result<()> {
        let whole = self.with_header(frame, offload)?;
        self.pass(whole)
    }

    /// `frame` behind the link's own header, which is put into its [`HEADROOM`].
    pub fn with_header<'f>(&self, frame: &'f mut [u8], offload: TxOffload) -> io::Result<&'f [u8]> {
        let header_bytes = self.header_bytes();
        if frame.len() < HEADROOM + ETHERNET_BYTES || (header_bytes == 0 && offload != TxOffload::None) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let whole = &mut frame[HEADROOM - header_bytes..];
        if header_bytes > 0 {
            whole[..VNET_HEADER_BYTES].copy_from_slice(&encode(offload));
        }
        Ok(whole)
    }

    /// Sends a frame with its header, as [`Self::receive`] of a link with the same [`Self::has_header`] or
    /// [`Self::with_header`] gave it. Errors are those of [`Self::write`].
    pub fn pass(&mut self, whole: &[u8]) -> io::Result<()> {
        match write(&self.fd, whole) {
            Ok(_) => {
                let header_bytes = self.header_bytes();
                if let Some(capture) = &mut self.capture {
                    capture.frame(&whole[header_bytes..]);
                }
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::ENOBUFS) => Err(io::ErrorKind::WouldBlock.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Is over at once, as everything in the guest's namespace is, which takes the link's interface with it.
    pub fn abandon(self) {
        tun::leave_to_namespace(&self.fd);
    }

    /// Whether its frames have the virtio-net header in front.
    pub fn has_header(&self) -> bool {
        self.header_bytes() > 0
    }

    fn header_bytes(&self) -> usize {
        if self.offload == Offload::None { 0 } else { VNET_HEADER_BYTES }
    }
}

impl Source for Link {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).register(registry, token, interests)
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).reregister(registry, token, interests)
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).deregister(registry)
    }
}

fn decode(header: &[u8; VNET_HEADER_BYTES]) -> RxOffload {
    let [flags, gso_type, _, _, size_0, size_1, ..] = *header;
    let gso_size = u16::from_ne_bytes([size_0, size_1]);
    RxOffload {
        partial_checksum: flags & F_NEEDS_CSUM != 0,
        segment_bytes: (gso_type != GSO_NONE && gso_size != 0).then_some(gso_size),
    }
}

fn encode(offload: TxOffload) -> [u8; VNET_HEADER_BYTES] {
    let (gso_type, header_bytes, gso_size, start, offset) = match offload {
        TxOffload::None => return [0; VNET_HEADER_BYTES],
        TxOffload::Checksum { start, offset } => (GSO_NONE, 0, 0, start, offset),
        TxOffload::Tso { ipv6, header_bytes, mss, start } => {
            let gso_type = if ipv6 { GSO_TCPV6 } else { GSO_TCPV4 };
            (gso_type, header_bytes, mss, start, TCP_CHECKSUM_OFFSET)
        }
        TxOffload::Uso { header_bytes, datagram_bytes, start } => {
            (GSO_UDP_L4, header_bytes, datagram_bytes, start, UDP_CHECKSUM_OFFSET)
        }
    };
    let [h0, h1] = header_bytes.to_ne_bytes();
    let [g0, g1] = gso_size.to_ne_bytes();
    let [s0, s1] = start.to_ne_bytes();
    let [o0, o1] = offset.to_ne_bytes();
    [F_NEEDS_CSUM, gso_type, h0, h1, g0, g1, s0, s1, o0, o1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segmented_frame_says_its_segment_and_where_its_checksum_goes() {
        let header = encode(TxOffload::Tso { ipv6: true, header_bytes: 74, mss: 1440, start: 54 });
        let mut expected = vec![F_NEEDS_CSUM, GSO_TCPV6];
        for field in [74u16, 1440, 54, 16] {
            expected.extend(field.to_ne_bytes());
        }
        assert_eq!(header.as_slice(), expected);
        let seen = decode(&header);
        assert_eq!(seen.segment_bytes, Some(1440));
        assert!(seen.partial_checksum);
    }

    #[test]
    fn joined_datagrams_say_their_size() {
        let header = encode(TxOffload::Uso { header_bytes: 42, datagram_bytes: 1400, start: 34 });
        let mut expected = vec![F_NEEDS_CSUM, GSO_UDP_L4];
        for field in [42u16, 1400, 34, 6] {
            expected.extend(field.to_ne_bytes());
        }
        assert_eq!(header.as_slice(), expected);
    }

    #[test]
    fn a_finished_frame_has_an_empty_header() {
        assert_eq!(encode(TxOffload::None), [0; VNET_HEADER_BYTES]);
        assert_eq!(decode(&[0; VNET_HEADER_BYTES]), RxOffload::default());
    }
}
