//! The launcher: a command in namespaces of its own, as an ordinary user.
//!
//! [`launch`] looks at the host, plans the root filesystem as a list of steps (`plan`, pure), forks the
//! container's first process into new namespaces and lets it perform them (`run`); what it reports comes over
//! a socket pair. [`Running`] then starts the command, which has only what `restrict` leaves it, passes signals on and
//! knows its exit status. However rnet ends, the kernel takes the container with it (PR_SET_PDEATHSIG, and the PID
//! namespace).
//!
//! [`Namespaces`] that exist already are entered by a short-lived child instead ([`join`]), and [`detach`] goes on in
//! the background. Where they cannot be entered from outside, a [`Door`] is waited at for whoever is inside.
//! [`confine`] takes from rnet itself what serving a network does not need.
//!
//! One id is mapped: the caller is root inside, and everyone else nobody. Linux 5.12 is needed.

mod calls;
mod channel;
mod child;
mod confine;
mod detach;
mod door;
mod hostcopy;
mod init;
mod join;
mod plan;
mod profile;
mod restrict;
mod run;
mod storage;
mod supervise;
mod userns;

use std::env;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::{Pid, getpgid, getpgrp};

use self::channel::{Channel, Report};
pub use self::confine::confine;
pub use self::detach::{Foreground, detach};
pub use self::door::{Door, Visitor, hand_over};
use self::hostcopy::HostCopy;
pub use self::join::{Namespaces, inspect, join, socket_factory, watch_process};
use self::plan::{Root, RootOverlay, Survey};
use self::storage::Storage;
use self::supervise::{Action, Terminal};
use crate::config;
use crate::error::{Context, Error, Result};
use crate::sys::factory::{self, Factory};
use crate::sys::link::LinkFd;
use crate::sys::process::{self, Child, Exit};
use crate::sys::signal;

/// What to launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The command and its surroundings.
    pub container: &'a config::Container,
    /// The link to make inside.
    pub link: &'a config::LinkSpec,
    /// The network it leads to.
    pub network: &'a config::Network,
    /// Contents of the files in /etc that describe it.
    pub etc: &'a config::EtcFiles,
}

/// A container. Dropping it ends it and gives the terminal back.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Closed once the command has started.
    channel: Option<Channel>,
    signals: SignalFd,
    link: Option<LinkFd>,
    /// The process that makes sockets, until it has ended.
    factory_process: Option<Child>,
    factory: Option<Factory>,
    terminal: Option<Terminal>,
    storage: Option<Storage>,
    /// The signal for which the container was killed.
    killed_for: Option<i32>,
    ended: bool,
}

/// Forks the container's first process and waits until its namespaces, link and root filesystem stand; the
/// command is not started yet.
///
/// From here on the signals that go to the container are blocked in this process, so this must come before
/// any thread is started. Errors name the step that failed, in the child too; a signal that would end rnet
/// ends the set-up with exit code 128 and its number.
pub fn launch(launch: &Launch<'_>) -> Result<Running> {
    let storage = storage(&launch.container.rootfs)?;
    let survey = survey(launch.container, storage.as_ref())?;
    let steps = plan::plan(launch.container, launch.etc, &survey);
    let restriction = restrict::prepare(&launch.container.privileges)?;
    let terminal = Terminal::capture();
    let (signals, mask) = take_signals()?;
    let (ours, theirs) = Channel::pair().context("cannot create", "socket pair")?;
    let child = process::spawn(userns::NAMESPACES, theirs, |channel| {
        child::main(channel, launch, &steps, &restriction, &mask)
    });
    let mut running = Running {
        child: child.map_err(|cause| userns::forbidden(&cause))?,
        channel: Some(ours),
        signals,
        link: None,
        factory_process: None,
        factory: None,
        terminal,
        storage,
        killed_for: None,
        ended: false,
    };
    userns::write_id_maps(running.child.pid)?;
    running.release()?;
    running.await_ready(launch.network.wants_socket_factory())?;
    running.await_factory();
    Ok(running)
}

/// Where writes go, if neither to the root filesystem itself nor to memory.
fn storage(rootfs: &config::RootFs) -> Result<Option<Storage>> {
    match rootfs {
        config::RootFs::Overlay(config::Overlay { kept: Some(directory), .. }) => {
            Storage::keep(directory).map(Some)
        }
        config::RootFs::Overlay(_) | config::RootFs::HostCopy if !storage::memory_suffices() => {
            Storage::create().map(Some)
        }
        _ => Ok(None),
    }
}

/// Looks at what of the host the plan depends on.
fn survey(container: &config::Container, storage: Option<&Storage>) -> Result<Survey> {
    let root = match &container.rootfs {
        config::RootFs::Directory(path) => Root::Directory(existing_directory(path)?),
        config::RootFs::Overlay(overlay) => Root::Overlay(root_overlay(&overlay.lower, storage)?),
        config::RootFs::HostCopy => Root::HostCopy(HostCopy {
            nodes: hostcopy::survey(storage.map(Storage::path))?,
            layers: storage
                .map_or(Path::new(plan::SCRATCH).join("layers"), |disk| plan::of_host(disk.path())),
        }),
        config::RootFs::Empty => Root::Empty,
        config::RootFs::Host => Root::Host,
    };
    let mounts_below = match &root {
        Root::Directory(path) if container.read_only => hostcopy::mounts_below(path)?,
        _ => Vec::new(),
    };
    let sources = container.volumes.iter().map(|volume| existing_source(&volume.source));
    Ok(Survey {
        root,
        console: supervise::terminal_path(),
        cwd: env::current_dir().unwrap_or_else(|_| "/".into()),
        volume_sources: sources.collect::<Result<_>>()?,
        mounts_below,
    })
}

fn root_overlay(lower: &[PathBuf], storage: Option<&Storage>) -> Result<RootOverlay> {
    let lower = lower.iter().map(|path| existing_directory(path)).collect::<Result<Vec<_>>>()?;
    let top = fs::metadata(&lower[0]).context("cannot use root filesystem", lower[0].display())?;
    Ok(RootOverlay {
        layers: storage.map_or_else(|| plan::place_beside(&lower), |disk| disk.path().to_owned()),
        in_memory: storage.is_none(),
        mode: top.mode() & 0o7777 | 0o700,
        lower,
    })
}

fn existing_directory(path: &Path) -> Result<PathBuf> {
    const REMEDY: &str = "ROOTFS is a directory, such as an unpacked image, or / for the host's own root";
    let found = fs::canonicalize(path)
        .context("cannot use root filesystem", path.display())
        .map_err(|error| error.hint(REMEDY))?;
    if found.is_dir() {
        return Ok(found);
    }
    Err(Error::new("cannot use root filesystem", path.display(), "not a directory").hint(REMEDY))
}

fn existing_source(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path)
        .context("cannot mount volume", path.display())
        .map_err(|error| error.hint("the source of a volume must exist, and be reachable for you"))
}

/// Has the signals for the container queued for us; also the mask as it was.
fn take_signals() -> Result<(SignalFd, SigSet)> {
    // With SIGCHLD ignored, as a caller may have left it, the kernel would reap the child by itself.
    signal::set_default(Signal::SIGCHLD).context("cannot reset", "SIGCHLD")?;
    let set = signal::set_of(supervise::forwarded());
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), Some(&mut before))
        .context("cannot block", "signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&set, flags).context("cannot create", "signalfd")?;
    Ok((signals, before))
}

impl Running {
    /// The first process, as the host numbers it; its number is not used again before [`Self::wait`] returns.
    pub fn pid(&self) -> i32 {
        self.child.pid.as_raw()
    }

    /// The guest's link, made inside and passed out. Taken once.
    pub fn take_link(&mut self) -> Option<LinkFd> {
        self.link.take()
    }

    /// What makes sockets inside, if the network wants it and it could be started. Taken once.
    pub fn take_factory(&mut self) -> Option<Factory> {
        self.factory.take()
    }

    /// Starts the socket factory while the container sets itself up. The link works without.
    fn start_factory(&mut self) {
        let pid = self.child.pid;
        match factory::start(|| userns::enter(pid)) {
            Ok((process, factory)) => {
                self.factory_process = Some(process);
                self.factory = Some(factory);
            }
            Err(error) => tracing::warn!("{error}; published ports are not spliced"),
        }
    }

    fn await_factory(&mut self) {
        if let Some(factory) = &self.factory
            && let Err(error) = factory.await_ready()
        {
            tracing::warn!("{error}; published ports are not spliced");
            self.factory = None;
        }
    }

    /// Lets the command start. Errors have exit code 126 or 127 if it cannot be executed or found.
    pub fn start(&mut self) -> Result<()> {
        self.release()?;
        match self.next_report()? {
            None => {
                self.channel = None;
                Ok(())
            }
            Some(Report::Failed(error)) => Err(error),
            Some(other) => Err(Error::new("cannot start", "command", format!("unexpected report {other:?}"))),
        }
    }

    /// Passes signals on until the command ends; its exit status, 128 and the number if by a signal.
    pub fn wait(&mut self) -> Result<u8> {
        loop {
            let [signalled, ended] = wait_for([&self.signals.as_fd(), &self.child.as_fd()])?;
            if signalled {
                self.pass_signals_on()?;
            }
            if ended {
                return self.reap();
            }
        }
    }

    /// Waits until `other` is readable or closed, or a signal comes that would end rnet.
    pub fn wait_unless_told_to_end(&self, other: &impl AsFd) -> Result<()> {
        loop {
            let [signalled, ready] = wait_for([&self.signals.as_fd(), &other.as_fd()])?;
            let told = signalled
                && next_signal(&self.signals)?
                    .is_some_and(|info| supervise::ends_by_default(info.ssi_signo as i32));
            if ready || told {
                return Ok(());
            }
        }
    }

    fn release(&self) -> Result<()> {
        let channel = self.channel.as_ref();
        channel.map_or(Ok(()), Channel::release).context("cannot start", "container")
    }

    fn await_ready(&mut self, with_factory: bool) -> Result<()> {
        loop {
            match self.next_report()? {
                Some(Report::Note(text)) => tracing::warn!("{text}"),
                Some(Report::Link(link)) => {
                    self.link = Some(link);
                    // Not before: making a packet link takes the child to another namespace for a while.
                    if with_factory {
                        self.start_factory();
                    }
                }
                Some(Report::Ready) => return Ok(()),
                Some(Report::Failed(error)) => return Err(error),
                None => {
                    let status = self.reap()?;
                    let cause = format!("its first process ended with status {status}");
                    return Err(Error::new("cannot set up", "container", cause));
                }
            }
        }
    }

    /// The child's next report, `None` after the last; a deadly signal to rnet ends the waiting.
    fn next_report(&mut self) -> Result<Option<Report>> {
        let Some(channel) = &self.channel else {
            return Ok(None);
        };
        loop {
            let [signalled, reported] = wait_for([&self.signals.as_fd(), &channel.as_fd()])?;
            // First, so that a command that runs by now gets the signal.
            if reported {
                return channel.receive().context("cannot hear from", "container");
            }
            if signalled
                && let Some(info) = next_signal(&self.signals)?
                && supervise::ends_by_default(info.ssi_signo as i32)
            {
                let code = supervise::killed_by(info.ssi_signo as i32);
                return Err(Error::new("gave up", "start of the container", "interrupted").exit_code(code));
            }
        }
    }

    fn pass_signals_on(&mut self) -> Result<()> {
        while let Some(info) = next_signal(&self.signals)? {
            let signal = info.ssi_signo as i32;
            let disposition = supervise::disposition(self.child.pid, signal);
            let shares_group = getpgid(Some(self.child.pid)) == Ok(getpgrp());
            let arrived = info.ssi_code == supervise::SI_KERNEL && shares_group;
            match supervise::decide(signal, disposition, arrived) {
                Action::Nothing => {}
                Action::Deliver => self.send(signal),
                Action::StopBoth => {
                    self.send(libc::SIGSTOP);
                    stop_self();
                }
                Action::DeliverAndStop => {
                    if !arrived {
                        self.send(signal);
                    }
                    stop_self();
                }
                Action::Kill => {
                    self.killed_for.get_or_insert(signal);
                    self.send(libc::SIGKILL);
                }
            }
        }
        Ok(())
    }

    /// Signals the container's first process. It may have ended already, which the pidfd tells.
    fn send(&self, signal: i32) {
        let _ = self.child.signal(signal);
    }

    fn reap(&mut self) -> Result<u8> {
        let exit = self.child.reap().context("cannot wait for", "container")?;
        self.ended = true;
        Ok(match (exit, self.killed_for) {
            (Exit::Signal(libc::SIGKILL), Some(signal)) => supervise::killed_by(signal),
            _ => supervise::exit_status(exit),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            self.send(libc::SIGKILL);
            let _ = self.reap();
        }
        if let Some(process) = &self.factory_process {
            let _ = process.signal(libc::SIGKILL);
            let _ = process.reap();
        }
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
        // The storage goes last: nothing may write to it any more.
        self.storage = None;
    }
}

fn stop_self() {
    let _ = signal::kill(Pid::this(), libc::SIGSTOP);
}

fn next_signal(signals: &SignalFd) -> Result<Option<siginfo>> {
    signals.read_signal().context("cannot read", "signals")
}

/// Waits until at least one is readable or closed, and tells which.
fn wait_for(fds: [&dyn AsFd; 2]) -> Result<[bool; 2]> {
    let mut polled = fds.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN));
    loop {
        match poll(&mut polled, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            done => {
                done.context("cannot wait for", "container")?;
                return Ok(polled.map(|fd| fd.any().unwrap_or(false)));
            }
        }
    }
}
