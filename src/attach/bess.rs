//! A link over a unix socket of sequenced packets (unix(7), SOCK_SEQPACKET), as BESS and user-mode Linux
//! (`vec0:transport=bess`) have it: one packet is one Ethernet frame.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::LinkKind;
use crate::error::{Context, Result};
use crate::sys::link::LinkFd;

/// Waits at `path` for the one guest there will be; what was there is removed. Signals end the wait, and rnet.
pub(super) fn accept(path: &Path) -> Result<LinkFd> {
    let about = path.display();
    // If it cannot be removed, binding tells why.
    let _ = fs::remove_file(path);
    let address = SockAddr::unix(path).context("cannot listen on", &about)?;
    let listener =
        Socket::new(Domain::UNIX, Type::SEQPACKET, None).context("cannot create", "a unix socket")?;
    listener.bind(&address).and_then(|()| listener.listen(1)).context("cannot listen on", &about)?;
    let mut polled = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    // Those that end rnet are blocked, until somebody can wait for them.
    ppoll(&mut polled, None, Some(SigSet::empty())).context("cannot wait for a guest on", &about)?;
    let (guest, _) = listener.accept().context("cannot accept a guest on", &about)?;
    guest.set_nonblocking(true).context("cannot make nonblocking", &about)?;
    Ok(LinkFd {
        kind: LinkKind::Socket,
        udp_segmentation: false,
        mac: None,
        queues: vec![guest.into()],
        notes: Vec::new(),
    })
}
