//! The packet link: a veth pair whose far end is read and written through an AF_PACKET socket (packet(7)).
//!
//! It needs no device node, only CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN in the guest's user namespace.
//! The far end lives in a network namespace of its own, which nothing but the socket keeps alive, so that the
//! guest sees one ordinary interface. Far end and namespace say nothing of their own on the link.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockType, SockaddrLike, bind, getsockopt, setsockopt, socket, sockopt,
};

use super::netlink::{LinkChange, Refused, Route, VethPair, is_family_missing};
use crate::config::MacAddr;
use crate::error::{Context, Error, Result};

/// Name of the far end, in its own namespace.
const FAR_END: &str = "link0";
/// The namespace of the calling thread.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
/// Length of the far end's queue, of which a veth makes no use; any but the default of 1000.
const FAR_QUEUE_FRAMES: u32 = 1001;
/// What the kernel is asked to queue towards rnet, in bytes; what overflows is lost and sent again by the guest.
const RECEIVE_QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// Below this a burst of full-sized segments overflows the queue.
const COMFORTABLE_QUEUE_BYTES: usize = 4 * 1024 * 1024;

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

/// Makes interface `ifname` with station `mac` in the calling thread's network namespace, and a nonblocking
/// socket on its far end; the thread visits another namespace meanwhile. A remark on the socket's queue comes
/// along if it is short.
pub fn open(ifname: &str, mac: MacAddr, mtu: u16) -> Result<(OwnedFd, Option<String>)> {
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
    let mut far_end = far_end?;
    far_end.connect(ifname).map_err(|cause| Error::new("cannot bring up", ifname, cause))?;
    let fd = far_end.socket;
    let granted = getsockopt(&fd, sockopt::RcvBuf).context("cannot read the queue length of", ifname)?;
    let remark = (granted < COMFORTABLE_QUEUE_BYTES).then(|| {
        format!(
            "packet: the kernel queues only {granted} bytes from the guest; \
             sysctl net.core.rmem_max={RECEIVE_QUEUE_BYTES} allows more"
        )
    });
    Ok((fd, remark))
}

/// The far end, up, and its namespace's rtnetlink socket.
struct FarEnd {
    socket: OwnedFd,
    route: Route,
    index: u32,
}

impl FarEnd {
    /// Brings the other end up, `ifname` in the calling thread's namespace, so that both carry frames from now on.
    ///
    /// Of the two the end that was up first would swallow what it is given to send until the kernel's link watch has
    /// noted the carrier, whenever that is. A new queue length makes it ready at once.
    fn connect(&mut self, ifname: &str) -> std::result::Result<(), Refused> {
        let up = LinkChange { up: true, ..LinkChange::default() };
        Route::open()?.set_link(Route::index(ifname)?, up)?;
        let ready = LinkChange { tx_queue_len: Some(FAR_QUEUE_FRAMES), ..LinkChange::default() };
        self.route.set_link(self.index, ready)
    }
}

fn open_far_end(pair: &VethPair<'_>) -> Result<FarEnd> {
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
    let socket = open_socket(index).context("cannot open a packet socket for", pair.far)?;
    Ok(FarEnd { socket, route, index })
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
    bind(fd.as_raw_fd(), &address.ok_or(nix::errno::Errno::EINVAL)?)?;
    Ok(fd)
}
