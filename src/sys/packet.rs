//! The packet link: a veth pair whose far end is read and written through an AF_PACKET socket (packet(7)).
//!
//! It needs no device node, only CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN in the guest's user namespace.
//! The far end lives in a network namespace of its own, which nothing but the socket keeps alive, so that the
//! guest sees one ordinary interface. Far end and namespace say nothing of their own on the link.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockType, SockaddrLike, bind, getsockopt, setsockopt, socket, sockopt,
};
use nix::unistd::write;

use super::netlink::{LinkChange, Refused, Route, VethPair, is_family_missing};
use crate::config::MacAddr;
use crate::error::{Context, Error, Result};

/// Name of the far end, in its own namespace.
const FAR_END: &str = "link0";
/// The namespace of the calling thread.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
/// What the kernel is asked to queue towards rnet, in bytes; what overflows is lost and sent again by the guest.
const RECEIVE_QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// Below this a burst of full-sized segments overflows the queue.
const COMFORTABLE_QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Queue length of the far end, which has no queue; any but the kernel's own 1000 will do.
const FAR_QUEUE_FRAMES: u32 = 10_000;

mod option {
    use nix::{setsockopt_impl, sockopt_impl};

    /// include/uapi/linux/if_packet.h
    const PACKET_VNET_HDR: libc::c_int = 15;
    const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
    sockopt_impl!(
        /// A virtio-net header in front of every frame, both ways.
        VnetHeader,
        SetOnly,
        libc::SOL_PACKET,
        PACKET_VNET_HDR,
        bool
    );
    sockopt_impl!(
        /// Do not hear what was sent.
        IgnoreOutgoing,
        SetOnly,
        libc::SOL_PACKET,
        PACKET_IGNORE_OUTGOING,
        bool
    );
}

/// A packet link that was made.
pub struct PacketLink {
    /// The nonblocking socket on the far end.
    pub fd: OwnedFd,
    /// Whether the kernel segments UDP for it (Linux 6.2), beside TCP.
    pub udp_segmentation: bool,
    /// What there is to say if the socket's queue is short.
    pub remark: Option<String>,
    /// The far end itself.
    pub far_end: FarEnd,
}

/// The far end of a link, reachable from any namespace.
pub struct FarEnd {
    route: Route,
    index: u32,
}

impl FarEnd {
    /// Makes the far end ready to send; the guest's end must be up. Of the two ends the one that was up first swallows
    /// what it is given until the kernel's link watch has noted the carrier, whenever that is. (Its flags do not tell:
    /// an end that was never looked at counts as running.) A new queue length makes it ready at once.
    pub fn activate(&mut self) -> Result<()> {
        let ready = LinkChange { tx_queue_len: Some(FAR_QUEUE_FRAMES), ..LinkChange::default() };
        self.route
            .set_link(self.index, ready)
            .map_err(|cause| Error::new("cannot make ready", "the far end of the packet link", cause))
    }
}

/// Makes interface `ifname` with station `mac` (`None` is a random one) in the calling thread's network namespace, and
/// a socket on its far end; the thread visits another namespace meanwhile.
pub fn open(ifname: &str, mac: Option<MacAddr>, mtu: u16) -> Result<PacketLink> {
    let guest = File::open(OWN_NAMESPACE).context("cannot open", OWN_NAMESPACE)?;
    unshare(CloneFlags::CLONE_NEWNET)
        .context("cannot make a network namespace for the far end of", ifname)?;
    let far_end = open_far_end(&VethPair {
        near: FAR_END,
        far: ifname,
        far_mac: mac,
        far_namespace: guest.as_fd(),
        mtu: mtu.into(),
    });
    setns(&guest, CloneFlags::CLONE_NEWNET).context("cannot return to the network namespace of", ifname)?;
    let (fd, far_end) = far_end?;
    let udp_segmentation = segments_udp(&fd);
    let granted = getsockopt(&fd, sockopt::RcvBuf).context("cannot read the queue length of", ifname)?;
    let remark = (granted < COMFORTABLE_QUEUE_BYTES).then(|| {
        format!(
            "packet: the kernel queues only {granted} bytes from the guest; \
             sysctl net.core.rmem_max={RECEIVE_QUEUE_BYTES} allows more"
        )
    });
    Ok(PacketLink { fd, udp_segmentation, remark, far_end })
}

fn open_far_end(pair: &VethPair<'_>) -> Result<(OwnedFd, FarEnd)> {
    let refused = |cause: Refused| Error::new("cannot make a veth pair for", pair.far, cause);
    let mut route = Route::open().context("cannot open a netlink socket for", pair.far)?;
    route.add_veth(pair).map_err(refused)?;
    let index = Route::index(pair.near).map_err(refused)?;
    match route.without_autoconfiguration(index) {
        Err(cause) if !is_family_missing(cause.errno) => return Err(refused(cause)),
        _ => {}
    }
    let change = LinkChange { no_arp: true, up: true, ..LinkChange::default() };
    route.set_link(index, change).map_err(refused)?;
    // Binding to an interface that is down would leave an error on the socket; the guest's end still is.
    let fd = open_socket(index).context("cannot open a packet socket for", pair.far)?;
    Ok((fd, FarEnd { route, index }))
}

/// Protocol 0 at first: nothing is received before the socket is bound to its interface.
fn open_socket(index: u32) -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    setsockopt(&fd, option::VnetHeader, &true)?;
    setsockopt(&fd, option::IgnoreOutgoing, &true)?;
    setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_QUEUE_BYTES)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index as libc::c_int,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the pointer is to an initialised sockaddr_ll, whose length is `len`.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), Some(len)) };
    bind(fd.as_raw_fd(), &address.ok_or(Errno::EINVAL)?)?;
    Ok(fd)
}

/// Asks the kernel by a frame with two datagrams of one byte. It goes nowhere, as the guest's end is still down, but
/// its header is judged.
fn segments_udp(fd: &OwnedFd) -> bool {
    // include/uapi/linux/virtio_net.h
    const F_NEEDS_CSUM: u8 = 1;
    const GSO_UDP_L4: u8 = 5;
    let mut frame = vec![F_NEEDS_CSUM, GSO_UDP_L4];
    for field in [42u16, 1, 34, 6] {
        frame.extend(field.to_ne_bytes());
    }
    frame.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    frame.extend([0x45, 0, 0, 30, 0, 0, 0x40, 0, 64, 17, 0xb4, 0xc6, 192, 0, 2, 1, 192, 0, 2, 2]);
    frame.extend([0, 9, 0, 9, 0, 10, 0, 0, 0, 0]);
    write(fd, &frame) != Err(Errno::EINVAL)
}
