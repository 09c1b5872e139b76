//! Stand-in for the link: the interface of the real module, and an fd that carries nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use sendfd::{RecvWithFd, SendWithFd};

use crate::config::{LinkKind, LinkSpec, Network};
use crate::error::{Context, Result};

/// The guest's link as it is handed out of its namespace.
#[derive(Debug)]
pub struct LinkFd {
    /// What was made; never [`LinkKind::Auto`].
    pub kind: LinkKind,
    /// The device or socket.
    pub fd: OwnedFd,
    /// Why other kinds were not taken.
    pub notes: Vec<String>,
}

/// Makes the guest's interface.
pub fn create(_spec: &LinkSpec, _network: &Network) -> Result<LinkFd> {
    let fd = File::open("/dev/null")
        .context("cannot open", "/dev/null")?
        .into();
    Ok(LinkFd {
        kind: LinkKind::Tap,
        fd,
        notes: Vec::new(),
    })
}

/// Passes `link` over `socket`.
pub fn send(link: &LinkFd, socket: &UnixStream) -> io::Result<()> {
    socket.send_with_fd(b"l", &[link.fd.as_raw_fd()]).map(|_| ())
}

/// Takes what [`send`] sent.
pub fn receive(socket: &UnixStream) -> io::Result<LinkFd> {
    let (mut byte, mut fds) = ([0; 1], [-1; 1]);
    socket.recv_with_fd(&mut byte, &mut fds)?;
    #[allow(unsafe_code)]
    // SAFETY: the kernel has just installed this descriptor for us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fds[0]) };
    Ok(LinkFd {
        kind: LinkKind::Tap,
        fd,
        notes: Vec::new(),
    })
}
