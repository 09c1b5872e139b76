//! The command's own terminal, as it is made and taken by the process that becomes the command.

use std::os::fd::OwnedFd;

use nix::unistd::{Uid, dup2_stderr, dup2_stdin, dup2_stdout, fchown, setsid};

use super::super::channel::Channel;
use crate::error::{Context, Result};
use crate::sys::pty;

/// Makes a terminal in the container's own devpts and passes its master on; the other end.
pub(in super::super) fn make(channel: &Channel) -> Result<OwnedFd> {
    const WHAT: &str = "the command's terminal";
    let master = pty::open().context("cannot make", WHAT)?;
    let terminal = pty::slave(&master).context("cannot open", WHAT)?;
    channel.terminal(&master).context("cannot pass on", WHAT)?;
    Ok(terminal)
}

/// Makes `terminal` that of a new session, the standard streams, and the user's own.
pub(in super::super) fn take(terminal: &OwnedFd) -> Result<()> {
    setsid()
        .and_then(|_| pty::set_controlling(terminal))
        .and_then(|()| fchown(terminal, Some(Uid::current()), None))
        .and_then(|()| dup2_stdin(terminal))
        .and_then(|()| dup2_stdout(terminal))
        .and_then(|()| dup2_stderr(terminal))
        .context("cannot use", "the command's terminal")
}
