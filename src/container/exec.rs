//! A further command in a container that runs.
//!
//! A child of rnet enters all of the container's namespaces at once (setns(2) with a pidfd), and forks there what becomes
//! the command; that is rnet's own child, too, and dies with it as with the container. Until it executes the command the
//! container sees it in /proc, but cannot look into it: it is not dumpable (prctl(2)).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_dumpable;
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};
use nix::unistd::chdir;

use super::cgroup;
use super::channel::Channel;
use super::child::{self, Program};
use super::restrict::{self, Restriction};
use super::terminal::{self, Terminal};
use super::{Running, identity, join, take_signals};
use crate::config::{self, Identity, Mapping, Privileges, User};
use crate::error::{Context, Error, Result, exit};
use crate::sys::process::Child;
use crate::sys::{namespace, process};

/// Kinds of namespaces by their names in /proc/PID/ns. A child of who enters has them all.
const KINDS: [(&str, CloneFlags); 7] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("mnt", CloneFlags::CLONE_NEWNS),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("net", CloneFlags::CLONE_NEWNET),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
];

/// A container that runs, by its first process.
#[derive(Clone, Copy, Debug)]
pub struct Inside<'a> {
    /// As the host numbers it.
    pub pid: i32,
    /// A descriptor of it.
    pub process: BorrowedFd<'a>,
}

/// A command, and the container that it belongs in.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The container.
    pub inside: Inside<'a>,
    /// The command and its arguments.
    pub command: &'a [OsString],
    /// Its whole environment; HOME is added if it is missing.
    pub env: &'a [(OsString, OsString)],
    /// Its working directory.
    pub workdir: &'a Path,
    /// Who it is; `None` is root.
    pub user: Option<&'a User>,
    /// What it is left with.
    pub privileges: &'a Privileges,
    /// Processes that its user may have, where no cgroup limits them.
    pub processes: Option<u64>,
    /// Its standard streams.
    pub terminal: config::Terminal,
}

/// Prepares the command in the container; it is not started yet. As for [`super::launch`], no thread may have been started
/// before.
pub fn enter(entry: &Entry<'_>) -> Result<Running> {
    let restriction = restrict::prepare(entry.privileges)?;
    let cgroup = cgroup::of_process(entry.inside.pid);
    let entry = &Entry { processes: entry.processes.filter(|_| cgroup.is_none()), ..*entry };
    let caller = Terminal::capture();
    let (signals, mask) = take_signals()?;
    let (ours, theirs) = Channel::pair().context("cannot create", "socket pair")?;
    let child = spawn(entry.inside, theirs, |channel| main(channel, entry, &restriction, &mask))?;
    if let Some(cgroup) = cgroup
        && let Err(error) = cgroup::move_to(&cgroup, child.pid)
    {
        tracing::warn!("the command is not limited with its container: {error}");
    }
    let mut running = Running::new(child, ours, (signals, mask), caller)?;
    running.release()?;
    running.await_ready(false, entry.terminal)?;
    Ok(running)
}

/// Forks a child into all namespaces of a container.
pub(super) fn spawn(inside: Inside<'_>, kept: Channel, child: impl FnOnce(Channel) -> u8) -> Result<Child> {
    let kinds = kinds(inside.pid)?;
    let enter = || {
        setns(inside.process, kinds).map_err(|errno| refused(inside.pid, errno))?;
        set_dumpable(false).context("cannot hide", "what enters the container")?;
        Ok(CloneFlags::empty())
    };
    let child = join::spawn_through(enter, kept, child);
    child.map_err(|error| if join::has_ended(&inside.process) { gone() } else { error })
}

/// The kinds of namespaces that the process `pid` does not share with this one.
fn kinds(pid: i32) -> Result<CloneFlags> {
    let open = |path: String| File::open(&path).context("cannot open", path);
    let mut kinds = CloneFlags::empty();
    for (name, kind) in KINDS {
        let theirs = open(format!("/proc/{pid}/ns/{name}"))?;
        let same = namespace::is_same(&theirs, &open(format!("/proc/self/ns/{name}"))?);
        kinds.set(kind, !same.context("cannot look at namespaces of process", pid)?);
    }
    Ok(kinds)
}

fn refused(pid: i32, errno: Errno) -> Error {
    let error = Error::new("cannot enter the namespaces of process", pid, io::Error::from(errno));
    match errno {
        Errno::ESRCH => gone(),
        Errno::EPERM => {
            error.hint("run rnet as the user, and in the user namespace, that made the container")
        }
        _ => error,
    }
}

fn gone() -> Error {
    Error::new("cannot enter", "the container", "it has ended")
}

/// Becomes the command, in the container.
fn main(channel: Channel, entry: &Entry<'_>, restriction: &Restriction, mask: &SigSet) -> u8 {
    match prepare(&channel, entry) {
        Ok(Some(home)) => {
            let env = child::with_home(entry.env, home);
            let program =
                Program { command: entry.command, env: &env, restriction, processes: entry.processes, mask };
            child::become_command(&channel, &program)
        }
        Ok(None) => exit::RNET_FAILED,
        Err(error) => child::fail(&channel, &error),
    }
}

/// The user's home; `None` if the parent died.
fn prepare(channel: &Channel, entry: &Entry<'_>) -> Result<Option<Option<String>>> {
    child::die_with_parent()?;
    if !channel.await_release() {
        return Ok(None);
    }
    let _ = process::leave_session_keyring();
    umask(Mode::from_bits_truncate(0o022));
    let identity = Identity { mapping: Mapping::Auto, user: entry.user.cloned() };
    let home = identity::become_user(&identity)?;
    child::die_with_parent()?;
    chdir(entry.workdir).context("cannot enter working directory", entry.workdir.display())?;
    let terminal: Option<OwnedFd> = match entry.terminal {
        config::Terminal::Inherited => None,
        config::Terminal::Own { .. } => Some(terminal::make(channel)?),
    };
    channel.ready().context("cannot report to", "parent")?;
    if !channel.await_release() {
        return Ok(None);
    }
    terminal.map_or(Ok(()), |terminal| terminal::take(&terminal))?;
    Ok(Some(home))
}
