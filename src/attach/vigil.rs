//! What ends an attached network: a signal, the hang-up of a descriptor, the end of its process or of its path.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::container;
use crate::error::{Context, Error, Result};

/// How often a path is looked at that the kernel does not report on.
const LOOK_INTERVAL_MS: u16 = 500;

/// The signals that end the network, taken out of their ordinary course.
#[derive(Debug)]
pub(super) struct Signals(SignalFd);

impl Signals {
    /// Must come before any thread is started.
    pub(super) fn take() -> Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().context("cannot block", "signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        SignalFd::with_flags(&set, flags).map(Self).context("cannot create", "signalfd")
    }

    /// Waits until something can be read from `awaited`, which messages call `what`. That a signal came first is an
    /// error.
    pub(super) fn wait_beside(&self, awaited: &impl AsFd, what: &str) -> Result<()> {
        loop {
            let polled = [awaited.as_fd(), self.as_fd()];
            let mut polled = polled.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut polled, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for", what),
                Ok(_) if polled[1].any() == Some(true) => {
                    return Err(Error::new("cannot wait for", what, "a signal came first"));
                }
                Ok(_) => return Ok(()),
            }
        }
    }
}

impl AsFd for Signals {
    /// Readable once a signal has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What shows that a guest has ended.
#[derive(Debug)]
pub(super) enum Watch {
    /// A descriptor of its process.
    Process(OwnedFd),
    /// The path of its namespace.
    Path(PathWatch),
}

impl Watch {
    /// Watches the network namespace at `path`, which must exist. For one below /proc that is its process; `None` if
    /// there is none to watch, as for one of our own descriptors.
    pub(super) fn path(path: &Path) -> Result<Option<Self>> {
        let Ok(below) = path.strip_prefix("/proc") else {
            return PathWatch::new(path).map(|watch| Some(Self::Path(watch)));
        };
        let pid = below.iter().next().and_then(|part| part.to_str()?.parse().ok());
        Ok(pid.and_then(|pid| container::watch_process(pid).ok()).map(Self::Process))
    }
}

/// A name in the file system, and what it stood for at first.
#[derive(Debug)]
pub(super) struct PathWatch {
    path: PathBuf,
    stands_for: (u64, u64),
    /// Reports on the directory; `None` where the kernel has none to give.
    changes: Option<Inotify>,
}

impl PathWatch {
    fn new(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).context("cannot find", path.display())?;
        let changes = changes_beside(&path);
        if let Err(error) = &changes {
            tracing::info!(path = %path.display(), %error, "looked at twice a second");
        }
        let stands_for = identity(&path).context("cannot open network namespace", path.display())?;
        Ok(Self { path, stands_for, changes: changes.ok() })
    }

    fn is_gone(&self) -> bool {
        if let Some(changes) = &self.changes {
            // What changed does not matter, only that it is read.
            while changes.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
        identity(&self.path).ok() != Some(self.stands_for)
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::metadata(path).map(|found| (found.dev(), found.ino()))
}

fn changes_beside(path: &Path) -> nix::Result<Inotify> {
    let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let of_interest = AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF;
    changes.add_watch(path.parent().unwrap_or(Path::new("/")), of_interest)?;
    Ok(changes)
}

/// Why the network ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// A signal; the worker sends one too when the link is gone.
    Signal,
    /// The exit descriptor has hung up.
    ExitDescriptor,
    /// The guest's process has ended.
    Process,
    /// The path of the namespace is gone.
    Path,
}

/// All that is waited for.
#[derive(Debug)]
pub(super) struct Vigil {
    pub(super) signals: Signals,
    pub(super) exit: Option<OwnedFd>,
    pub(super) watch: Option<Watch>,
}

impl Vigil {
    /// Waits for the first end.
    pub(super) fn keep(&self) -> Result<End> {
        loop {
            match self.look().context("cannot wait for", "the end of the network") {
                Ok(None) => {}
                Ok(Some(end)) => return Ok(end),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for an event; `None` if it was no end.
    fn look(&self) -> nix::Result<Option<End>> {
        // A hang-up is always reported; what is written to the exit descriptor does not count.
        let mut polled = vec![(End::Signal, PollFd::new(self.signals.as_fd(), PollFlags::POLLIN))];
        polled.extend(
            self.exit.as_ref().map(|fd| (End::ExitDescriptor, PollFd::new(fd.as_fd(), PollFlags::empty()))),
        );
        let mut timeout = PollTimeout::NONE;
        match &self.watch {
            Some(Watch::Process(process)) => {
                polled.push((End::Process, PollFd::new(process.as_fd(), PollFlags::POLLIN)));
            }
            Some(Watch::Path(PathWatch { changes: Some(changes), .. })) => {
                polled.push((End::Path, PollFd::new(changes.as_fd(), PollFlags::POLLIN)));
            }
            Some(Watch::Path(_)) => timeout = LOOK_INTERVAL_MS.into(),
            None => {}
        }
        let (ends, mut fds): (Vec<End>, Vec<PollFd<'_>>) = polled.into_iter().unzip();
        match poll(&mut fds, timeout) {
            Err(Errno::EINTR) => return Ok(None),
            done => done?,
        };
        let seen = |fd: &PollFd<'_>| fd.revents().is_none_or(|events| !events.is_empty());
        let end =
            ends.into_iter().zip(&fds).find(|(end, fd)| *end != End::Path && seen(fd)).map(|(end, _)| end);
        let path_is_gone = || matches!(&self.watch, Some(Watch::Path(path)) if path.is_gone());
        Ok(end.or_else(|| path_is_gone().then_some(End::Path)))
    }
}
