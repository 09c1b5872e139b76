//! TAP devices (Documentation/networking/tuntap.rst): with the virtio-net header and offloads, or plain.
//!
//! Opening needs `/dev/net/tun` and CAP_NET_ADMIN in the network namespace that the device appears in.
//! Devices are not persistent: they end with their fd.

#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::error::{Context, Result};

/// The device that makes TAPs.
pub const DEVICE: &str = "/dev/net/tun";
/// Length of `struct virtio_net_hdr` (include/uapi/linux/virtio_net.h), the same on every link that has one.
pub const VNET_HEADER_BYTES: usize = 10;

const OFFLOAD_TCP: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
const OFFLOAD_UDP: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

mod ioctl {
    nix::ioctl_write_ptr_bad!(set_interface, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_header_bytes, libc::TUNSETVNETHDRSZ, libc::c_int);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
}

/// A TAP whose frames carry a virtio-net header.
pub struct OffloadTap {
    /// One fd per queue, the first one's first; nonblocking.
    pub queues: Vec<OwnedFd>,
    /// Why there are fewer queues than were asked for, if so.
    pub remark: Option<String>,
    /// Whether UDP in both directions is segmented by the kernel (Linux 6.2), beside TCP.
    pub udp_segmentation: bool,
}

/// Makes TAP `ifname` with a header of [`VNET_HEADER_BYTES`], checksum and segmentation offloads.
///
/// With several queues the kernel delivers what the guest sends on the queue where the last frame of the same flow
/// was written (or, after three seconds without one, on one that it chooses). A TAP that exists already, with one
/// queue, stays so.
pub fn open_offload(ifname: &str, queues: u16) -> Result<OffloadTap> {
    let (queues, remark) = open_queues(ifname, queues)?;
    let fd = &queues[0];
    let header_bytes = VNET_HEADER_BYTES as libc::c_int;
    // SAFETY: the fd is open, and the kernel reads one int behind the pointer.
    unsafe { ioctl::set_header_bytes(fd.as_raw_fd(), &header_bytes) }
        .context("cannot set the length of the offload header of", ifname)?;
    let udp_segmentation = set_offload(fd, OFFLOAD_TCP | OFFLOAD_UDP).is_ok();
    if !udp_segmentation {
        set_offload(fd, OFFLOAD_TCP).context("cannot switch on the offloads of", ifname)?;
    }
    Ok(OffloadTap { queues, remark, udp_segmentation })
}

/// Opens as many of the queues asked for as there can be, at least one, and says why there are no more.
fn open_queues(ifname: &str, count: u16) -> Result<(Vec<OwnedFd>, Option<String>)> {
    if count == 1 {
        return Ok((vec![open_queue(ifname, 0)?], None));
    }
    let mut queues = Vec::new();
    for _ in 0..count {
        match open_queue(ifname, libc::IFF_MULTI_QUEUE) {
            Ok(queue) => queues.push(queue),
            Err(error) if queues.is_empty() => {
                // Whatever else is wrong is wrong with one queue, too.
                let single = open_queue(ifname, 0)?;
                return Ok((vec![single], Some(format!("one queue instead of {count}: {error}"))));
            }
            Err(error) => {
                let remark = format!("{} queues instead of {count}: {error}", queues.len());
                return Ok((queues, Some(remark)));
            }
        }
    }
    Ok((queues, None))
}

fn open_queue(ifname: &str, flags: libc::c_int) -> Result<OwnedFd> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(DEVICE)
        .context("cannot open", DEVICE)?;
    let fd = OwnedFd::from(file);
    set_interface(&fd, ifname, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags)
        .context("cannot make a TAP with offload header", ifname)?;
    Ok(fd)
}

/// Makes TAP `ifname` without any header; nonblocking.
pub fn open_plain(ifname: &str) -> Result<OwnedFd> {
    let tap = tun_tap::Iface::without_packet_info(ifname, tun_tap::Mode::Tap)
        .context("cannot make a plain TAP", ifname)?;
    // SAFETY: the fd was just released by its only owner.
    let fd = unsafe { OwnedFd::from_raw_fd(tap.into_raw_fd()) };
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("cannot make nonblocking the TAP", ifname)?;
    Ok(fd)
}

fn set_interface(fd: &impl AsFd, ifname: &str, flags: libc::c_int) -> nix::Result<()> {
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = ifname.as_bytes();
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::ENAMETOOLONG);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the fd is open, the request is initialised, and its name ends with a zero byte.
    unsafe { ioctl::set_interface(fd.as_fd().as_raw_fd(), &request) }.map(drop)
}

fn set_offload(fd: &impl AsFd, features: u32) -> nix::Result<()> {
    // SAFETY: the fd is open; the argument is a number, not a pointer.
    unsafe { ioctl::set_offload(fd.as_fd().as_raw_fd(), features as libc::c_int) }.map(drop)
}
