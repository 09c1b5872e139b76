//! A link over a unix socket of sequenced packets (unix(7), SOCK_SEQPACKET), as BESS and user-mode Linux
//! (`vec0:transport=bess`) have it: one packet is one Ethernet frame.

use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

use super::make_way;
use super::vigil::Signals;
use crate::config::LinkKind;
use crate::error::{Context, Result};
use crate::sys::link::LinkFd;

/// Waits at `path` for the one guest there will be; a socket that was there is removed. A signal ends the wait.
pub(super) fn accept(path: &Path, signals: &Signals) -> Result<LinkFd> {
    let about = path.display();
    make_way(path)?;
    let address = SockAddr::unix(path).context("cannot listen on", &about)?;
    let listener =
        Socket::new(Domain::UNIX, Type::SEQPACKET, None).context("cannot create", "a unix socket")?;
    listener.bind(&address).and_then(|()| listener.listen(1)).context("cannot listen on", &about)?;
    signals.wait_beside(&listener, &format!("a guest on {about}"))?;
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
