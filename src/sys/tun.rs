//! TAP devices (Documentation/networking/tuntap.rst): with the virtio-net header and offloads, or plain.
//!
//! Opening needs `/dev/net/tun` and CAP_NET_ADMIN in the network namespace that the device appears in.
//! Devices are not persistent: they end with their fd, unless they are left to the end of their namespace.

#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::config::MacAddr;
use crate::error::{Context, Error, Result};

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
    nix::ioctl_write_int_bad!(set_persistence, libc::TUNSETPERSIST);
    nix::ioctl_read_bad!(get_interface, libc::TUNGETIFF, libc::ifreq);
    nix::ioctl_read_bad!(get_station, libc::SIOCGIFHWADDR, libc::ifreq);
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
    let udp_segmentation = switch_on_offloads(&queues[0], ifname)?;
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

/// What a TAP that somebody else has opened turned out to be.
pub struct AdoptedTap {
    /// Its frames have a virtio-net header of [`VNET_HEADER_BYTES`].
    pub has_header: bool,
    /// As [`OffloadTap::udp_segmentation`].
    pub udp_segmentation: bool,
    /// Station address of its interface.
    pub mac: Option<MacAddr>,
}

/// Looks at the open TAP `fd`, and switches on the offloads of one with a virtio-net header.
pub fn adopt(fd: &impl AsFd) -> Result<AdoptedTap> {
    const TARGET: &str = "the descriptor as a TAP";
    let mut request = empty_request();
    // SAFETY: the fd is open, and the kernel fills the request behind the pointer.
    unsafe { ioctl::get_interface(fd.as_fd().as_raw_fd(), &mut request) }
        .context("cannot use", TARGET)
        .map_err(|error| error.hint("it must come from /dev/net/tun, with its interface set (TUNSETIFF)"))?;
    // SAFETY: TUNGETIFF has filled in the flags.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    if flags & libc::IFF_TAP == 0 || flags & libc::IFF_NO_PI == 0 {
        let cause = "it carries IP packets, or packet information before its frames";
        return Err(Error::new("cannot use", TARGET, cause).hint("open it with IFF_TAP | IFF_NO_PI"));
    }
    let has_header = flags & libc::IFF_VNET_HDR != 0;
    let udp_segmentation = has_header && switch_on_offloads(fd, TARGET)?;
    let mut request = empty_request();
    // SAFETY: the fd is open, and the kernel fills the request behind the pointer.
    let known = unsafe { ioctl::get_station(fd.as_fd().as_raw_fd(), &mut request) }.is_ok();
    // SAFETY: a request of zeroes is valid, and so is what the kernel stores.
    let station = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data.map(|byte| byte as u8);
    let mac = station.first_chunk().filter(|_| known).map(|octets| MacAddr(*octets));
    Ok(AdoptedTap { has_header, udp_segmentation, mac })
}

/// Sets the header's length and as many offloads as the kernel has; whether UDP's are among them.
fn switch_on_offloads(fd: &impl AsFd, ifname: &str) -> Result<bool> {
    let header_bytes = VNET_HEADER_BYTES as libc::c_int;
    // SAFETY: the fd is open, and the kernel reads one int behind the pointer.
    unsafe { ioctl::set_header_bytes(fd.as_fd().as_raw_fd(), &header_bytes) }
        .context("cannot set the length of the offload header of", ifname)?;
    let udp_segmentation = set_offload(fd, OFFLOAD_TCP | OFFLOAD_UDP).is_ok();
    if !udp_segmentation {
        set_offload(fd, OFFLOAD_TCP).context("cannot switch on the offloads of", ifname)?;
    }
    Ok(udp_segmentation)
}

/// Leaves the TAP `fd`, whose last descriptor is about to be closed, to the end of its network namespace, which nobody
/// waits for: to remove a device takes the kernel tens of milliseconds, and close(2) with it. Any other file stays as it
/// is.
pub fn leave_to_namespace(fd: &impl AsFd) {
    // SAFETY: the fd is open; the argument is a number, not a pointer.
    let _ = unsafe { ioctl::set_persistence(fd.as_fd().as_raw_fd(), 1) };
}

fn empty_request() -> libc::ifreq {
    // SAFETY: ifreq is plain data, for which all zeroes is a value.
    unsafe { std::mem::zeroed() }
}

fn set_interface(fd: &impl AsFd, ifname: &str, flags: libc::c_int) -> nix::Result<()> {
    let mut request = empty_request();
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
