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
//! [`confine`], [`confine_for_good`] and [`confine_thread`] take from rnet itself what serving a network does not need.
//!
//! Unless more is asked for ([`config::Identity`]) one id is mapped: the caller is root inside, and everyone else nobody.
//! Linux 5.12 is needed.

mod calls;
mod cgroup;
mod channel;
mod child;
mod command;
mod confine;
mod copy;
mod detach;
mod door;
mod exec;
mod hostcopy;
mod identity;
mod idmap;
mod init;
mod interlude;
mod join;
mod label;
mod pause;
mod plan;
mod profile;
mod restrict;
mod run;
mod storage;
mod supervise;
mod terminal;
mod usage;
mod userns;

use std::env;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::{Pid, getpgid, getpgrp};

use self::cgroup::Cgroup;
pub use self::cgroup::{IN_SCOPE, enter_scope, enter_scope_beside, sweep_cgroups};
use self::channel::{Channel, Report};
use self::child::Parts;
use self::command::Inbox;
pub use self::command::{Command, Commands};
pub use self::confine::{confine, confine_for_good, confine_thread};
pub use self::copy::{copy_in, copy_out};
pub use self::detach::{Foreground, detach, let_go};
pub use self::door::{Door, Visitor, hand_over};
pub use self::exec::{Entry, Inside, enter};
use self::hostcopy::HostCopy;
use self::identity::Ids;
pub use self::identity::maps_others;
pub use self::interlude::Interlude;
pub use self::join::{Namespaces, inspect, join, join_with_factory, watch_process};
pub use self::pause::{Pause, signal_others};
use self::plan::{Root, RootOverlay, Survey};
use self::storage::Storage;
pub(crate) use self::storage::remove_layer;
pub use self::storage::sweep_layers;
use self::supervise::Action;
use self::terminal::{Console, Key, Terminal};
pub use self::usage::{Usage, usage};
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
    /// Its network.
    pub network: Connection<'a>,
    /// Contents of the files in /etc that describe it.
    pub etc: &'a config::EtcFiles,
    /// Where its standard error goes, if not to rnet's: it runs in the background, then, and has no part in the
    /// caller's terminal.
    pub stderr: Option<BorrowedFd<'a>>,
}

/// The network namespace of a container, and what is made in it.
#[derive(Clone, Copy, Debug)]
pub enum Connection<'a> {
    /// A new one, with a link out of it.
    Linked {
        /// The link to make.
        link: &'a config::LinkSpec,
        /// The network that it leads to.
        network: &'a config::Network,
    },
    /// A new one, in which nothing but `lo` is up.
    Alone,
    /// rnet's own.
    Hosts,
    /// That of others, in whose user namespace the container is made: only its root may be root there, too.
    Shared(&'a Namespaces),
}

impl Connection<'_> {
    /// Whether a link is made whose network wants sockets from inside.
    fn wants_socket_factory(&self) -> bool {
        matches!(self, Self::Linked { network, .. } if network.wants_socket_factory())
    }
}

/// A container. Dropping it ends it and gives the terminal back.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Closed once the command has started.
    channel: Option<Channel>,
    signals: SignalFd,
    /// As it was before they were taken.
    mask: SigSet,
    /// Closed when it has ended.
    inbox: Option<Inbox>,
    commands: Commands,
    link: Option<LinkFd>,
    /// The process that makes sockets, until it has ended.
    factory_process: Option<Child>,
    factory: Option<Factory>,
    /// The caller's, until the command has one of its own.
    terminal: Option<Terminal>,
    /// The command's own.
    console: Option<Console>,
    storage: Option<Storage>,
    cgroup: Option<Cgroup>,
    /// The kernel has killed one of its processes for want of memory.
    out_of_memory: bool,
    /// The signal for which the container was killed.
    killed_for: Option<i32>,
    /// Somebody wants it to end for good.
    told_to_end: bool,
    ended: bool,
}

/// Forks the container's first process and waits until its namespaces, link and root filesystem stand; the
/// command is not started yet.
///
/// From here on the signals that go to the container are blocked in this process, so this must come before
/// any thread is started. Errors name the step that failed, in the child too; a signal that would end rnet
/// ends the set-up with exit code 128 and its number.
pub fn launch(launch: &Launch<'_>) -> Result<Running> {
    let mut storage = storage(&launch.container.rootfs)?;
    let ids = ids(launch)?;
    let cgroup = Cgroup::make(&launch.container.allowance)?;
    let mut survey = survey(launch, &ids, storage.as_ref())?;
    survey.cgroup = cgroup.is_some();
    let mut terminal = Terminal::capture();
    if launch.stderr.is_some() {
        (survey.console, terminal) = (None, None);
    }
    let steps = plan::plan(launch.container, launch.etc, &survey);
    let restriction = restrict::prepare(&launch.container.privileges)?;
    let (signals, mask) = take_signals()?;
    if let Some(storage) = storage.as_mut().filter(|_| ids.has_others()) {
        storage.expect_foreign_files()?;
    }
    let (ours, theirs) = Channel::pair().context("cannot create", "socket pair")?;
    let processes = launch.container.allowance.processes.filter(|_| cgroup.is_none());
    let parts = Parts { ids: &ids, steps: &steps, restriction: &restriction, mask: &mask, processes };
    let first = |channel| child::main(channel, launch, &parts);
    let spawn = || match launch.network {
        Connection::Linked { .. } | Connection::Alone => {
            userns::explained(process::spawn(userns::NAMESPACES, theirs, first))
        }
        Connection::Hosts => {
            userns::explained(process::spawn(userns::NAMESPACES - CloneFlags::CLONE_NEWNET, theirs, first))
        }
        Connection::Shared(namespaces) => namespaces.spawn_inside(theirs, first),
    };
    let child = detach::with_stderr(launch.stderr, spawn)?;
    let mut running = Running::new(child, ours, (signals, mask), terminal)?;
    (running.storage, running.cgroup) = (storage, cgroup);
    if !matches!(launch.network, Connection::Shared(_)) {
        userns::write_id_maps(running.child.pid, &ids.maps)?;
    }
    if let Some(cgroup) = &running.cgroup {
        cgroup.take(running.child.pid)?;
    }
    running.release()?;
    running.await_ready(launch.network.wants_socket_factory(), launch.container.terminal)?;
    running.await_factory();
    Ok(running)
}

/// The ids of the container: with another's namespaces that one's.
fn ids(launch: &Launch<'_>) -> Result<Ids> {
    let identity = &launch.container.identity;
    if !matches!(launch.network, Connection::Shared(_)) {
        return Ids::settle(&identity.mapping);
    }
    if identity.user.is_none() && identity.mapping != config::Mapping::Single {
        let error = Error::new("cannot map", "ids", "the network's user namespace has its own already");
        return Err(error.hint("give --userns, --uidmap and --gidmap to the container whose network it is"));
    }
    Ids::settle(&config::Mapping::Single)
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
fn survey(launch: &Launch<'_>, ids: &Ids, storage: Option<&Storage>) -> Result<Survey> {
    let container = launch.container;
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
        console: match container.terminal {
            config::Terminal::Inherited => terminal::path(),
            config::Terminal::Own { .. } => None,
        },
        cgroup: false,
        tty_group: ids.has_tty_group(),
        hosts_network: matches!(launch.network, Connection::Hosts),
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
    Ok((signals()?, before))
}

/// Reads the signals for the container, which are blocked.
fn signals() -> Result<SignalFd> {
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&signal::set_of(supervise::forwarded()), flags).context("cannot create", "signalfd")
}

impl Running {
    /// The container, or the command in one, whose first process is `child`; `terminal` is the caller's.
    fn new(
        child: Child,
        channel: Channel,
        (signals, mask): (SignalFd, SigSet),
        terminal: Option<Terminal>,
    ) -> Result<Self> {
        let (commands, inbox) = command::line()?;
        Ok(Self {
            child,
            channel: Some(channel),
            signals,
            mask,
            inbox: Some(inbox),
            commands,
            link: None,
            factory_process: None,
            factory: None,
            terminal,
            console: None,
            storage: None,
            cgroup: None,
            out_of_memory: false,
            killed_for: None,
            told_to_end: false,
            ended: false,
        })
    }

    /// The first process, as the host numbers it; its number is not used again before [`Self::wait`] returns.
    pub fn pid(&self) -> i32 {
        self.child.pid.as_raw()
    }

    /// Where its processes are counted and limited, if anything is.
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_ref().map(Cgroup::path)
    }

    /// Whether the kernel has killed one of its processes for want of memory, as it was when it ended.
    pub fn out_of_memory(&self) -> bool {
        self.out_of_memory
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
        if let Some(console) = &mut self.console {
            console.take_over();
        }
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
        self.wait_telling(&mut |_| Ok(()))
    }

    /// The same; `tell` hears of pauses.
    pub fn wait_telling(&mut self, tell: &mut dyn FnMut(Pause) -> Result<()>) -> Result<u8> {
        loop {
            let inbox: &dyn AsFd = self.inbox.as_ref().map_or(&self.child, |inbox| inbox);
            let sources: [&dyn AsFd; 3] = [&self.signals, inbox, &self.child];
            let ([signalled, asked, ended], key) = match &mut self.console {
                Some(console) => console.pump_until(sources)?,
                None => (wait_for(sources)?, None),
            };
            if let Some(key) = key {
                self.obey(key);
            }
            if signalled {
                self.pass_signals_on()?;
            }
            if asked {
                self.obey_commands(tell);
            }
            if ended {
                // Whoever asks from now on hears that it has ended.
                self.inbox = None;
                let status = self.reap();
                return self.leave_console().and(status);
            }
        }
    }

    /// Prints what the command has left behind, and gives the caller's terminal back.
    fn leave_console(&mut self) -> Result<()> {
        let Some(mut console) = self.console.take() else {
            return Ok(());
        };
        let signals = &self.signals;
        console.finish(signals, || {
            Ok(next_signal(signals)?.is_some_and(|info| supervise::ends_by_default(info.ssi_signo as i32)))
        })
    }

    /// Does for the container's first process what the kernel leaves undone: signals of a terminal inside do not reach
    /// it unless it has asked for them.
    fn obey(&mut self, key: Key) {
        match key {
            Key::Signal(signal) => {
                let foreground = self.console.as_ref().and_then(Console::foreground);
                if foreground == Some(self.child.pid) {
                    self.pass_on(signal, true);
                }
            }
            Key::HungUp => {
                self.told_to_end = true;
                self.pass_on(libc::SIGHUP, false);
            }
        }
    }

    /// For other threads, which want something of the container while [`Self::wait`] waits for its end.
    pub fn commands(&self) -> Commands {
        self.commands.clone()
    }

    /// Whether somebody wants the container to end for good: by a signal that ends programs, or by a command.
    pub fn is_told_to_end(&self) -> bool {
        self.told_to_end
    }

    /// What goes on for the container's signals when this has been dropped.
    pub fn interlude(&self) -> Result<Interlude> {
        Ok(Interlude { signals: signals()?, mask: self.mask })
    }

    fn obey_commands(&mut self, tell: &mut dyn FnMut(Pause) -> Result<()>) {
        let asked: Vec<_> = self.inbox.iter_mut().flat_map(Inbox::take).collect();
        for (command, answer) in asked {
            let done = match command {
                Command::Signal { number, last } => {
                    self.told_to_end |= last;
                    // One that stops is for the command alone, as nobody could tell a stopped rnet to go on.
                    if supervise::stops_by_default(number) {
                        self.send(number);
                    } else {
                        self.pass_on(number, false);
                    }
                    Ok(())
                }
                Command::Pause(paused) => tell(self.pause(paused)),
            };
            // Whoever does not wait any more does not care.
            let _ = answer.send(done);
        }
    }

    fn pause(&self, paused: bool) -> Pause {
        let frozen = self.cgroup.as_ref().is_some_and(|cgroup| cgroup.freeze(paused));
        if !frozen {
            self.send(if paused { libc::SIGSTOP } else { libc::SIGCONT });
        }
        Pause { paused, frozen }
    }

    /// Waits until `other` is readable or closed, or a signal comes that would end rnet.
    pub fn wait_unless_told_to_end(&mut self, other: &impl AsFd) -> Result<()> {
        loop {
            let [signalled, ready] = wait_for([&self.signals, other])?;
            let told = signalled
                && next_signal(&self.signals)?
                    .is_some_and(|info| supervise::ends_by_default(info.ssi_signo as i32));
            self.told_to_end |= told;
            if ready || told {
                return Ok(());
            }
        }
    }

    fn release(&self) -> Result<()> {
        let channel = self.channel.as_ref();
        channel.map_or(Ok(()), Channel::release).context("cannot start", "container")
    }

    fn await_ready(&mut self, with_factory: bool, terminal: config::Terminal) -> Result<()> {
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
                Some(Report::Terminal(master)) => {
                    let console = Console::new(master, terminal.is_interactive(), self.terminal.take());
                    self.console = Some(console.context("cannot use", "the command's terminal")?);
                }
                Some(Report::Ready) => return Ok(()),
                Some(Report::Failed(error)) => return Err(error),
                Some(Report::Child(_)) => {}
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
            let [signalled, reported] = wait_for([&self.signals, channel])?;
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
            self.told_to_end |= supervise::ends_by_default(signal);
            let shares_group = getpgid(Some(self.child.pid)) == Ok(getpgrp());
            let arrived = info.ssi_code == supervise::SI_KERNEL && shares_group;
            if !self.is_for_console(signal) {
                self.pass_on(signal, arrived);
            }
        }
        Ok(())
    }

    /// Does what `signal` means for the caller's terminal, if the command has one of its own; whether that is all that
    /// it means.
    fn is_for_console(&mut self, signal: i32) -> bool {
        let Some(console) = &mut self.console else {
            return false;
        };
        match signal {
            libc::SIGWINCH => console.resize(),
            libc::SIGCONT => console.take_over(),
            _ if supervise::stops_by_default(signal) => {
                console.give_back();
                stop_self();
            }
            _ => return false,
        }
        signal != libc::SIGCONT
    }

    fn pass_on(&mut self, signal: i32, arrived: bool) {
        let disposition = supervise::disposition(self.child.pid, signal);
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

    /// Signals the container's first process. It may have ended already, which the pidfd tells.
    fn send(&self, signal: i32) {
        let _ = self.child.signal(signal);
    }

    fn reap(&mut self) -> Result<u8> {
        let exit = self.child.reap().context("cannot wait for", "container")?;
        self.ended = true;
        self.out_of_memory = self.cgroup.as_ref().is_some_and(Cgroup::is_out_of_memory);
        if self.out_of_memory {
            tracing::warn!(
                "the kernel killed a process of the container, which had used the memory that --memory allows"
            );
        }
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
        self.console = None;
        self.terminal = None;
        // The factory and the first process are gone, so it is empty or about to be.
        self.cgroup = None;
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
fn wait_for<const N: usize>(fds: [&dyn AsFd; N]) -> Result<[bool; N]> {
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
