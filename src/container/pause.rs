//! A signal for all processes of a container at once.
//!
//! kill(2) means all of a PID namespace by -1, but for its first process and the sender. So the sender is a process of its
//! own in there; no process that is made meanwhile escapes, as the kernel makes none for a parent with a signal to come.

use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::channel::Channel;
use super::join;
use crate::error::{Context, Error, Result, exit};
use crate::sys::process::Exit;

/// What has become of a container's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pause {
    /// They stand still, or go on.
    pub paused: bool,
    /// The freezer of the container's cgroup does it. Else only the first process is stopped, and [`signal_others`] is for
    /// the others.
    pub frozen: bool,
}

/// Stops (`paused`) or continues all processes of the container with the first `process`, but for that. No thread may have
/// been started before.
pub fn signal_others(process: &impl AsFd, paused: bool) -> Result<()> {
    const WHAT: &str = "the container's processes";
    let signal = if paused { Signal::SIGSTOP } else { Signal::SIGCONT };
    let (ours, theirs) = Channel::pair().context("cannot create", "socket pair")?;
    let enter = || {
        let kinds = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID;
        setns(process, kinds).context("cannot enter", "the container")?;
        // The sender is seen inside, and has the host's root.
        set_dumpable(false).context("cannot hide", WHAT)?;
        Ok(CloneFlags::empty())
    };
    let send = |_| match kill(Pid::from_raw(-1), signal) {
        // There are no others.
        Ok(()) | Err(Errno::ESRCH) => 0,
        Err(_) => exit::RNET_FAILED,
    };
    let sender = join::spawn_through(enter, theirs, send)?;
    drop(ours);
    match sender.reap().context("cannot signal", WHAT)? {
        Exit::Code(0) => Ok(()),
        ended => Err(Error::new("cannot signal", WHAT, format!("the sender ended so: {ended:?}"))),
    }
}
