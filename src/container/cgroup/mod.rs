//! A container's cgroup: where its processes are limited together, and counted.
//!
//! [`settings`] says what to write, [`place`] where a cgroup can be made. It is made before the container's first process
//! does anything, and removed when it has ended; the lock on its directory tells the next rnet whether somebody still
//! uses it, so that what a killed one leaves is removed then.
//!
//! A cgroup with processes can't have limits on those below it (the "no internal process" rule of cgroup v2). So the
//! processes of ours move to a leaf beside the containers' cgroups, and back when the last of those is gone.

mod place;
mod settings;

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, poll};
use nix::unistd::Pid;

pub use self::place::IN_SCOPE;
use self::place::{Facts, Place};
use self::settings::Setting;
use crate::config::Allowance;
use crate::error::{Context, Error, Result};

/// Where the processes of a cgroup with containers below it are.
const LEAF: &str = "rnet-callers";
/// A container's cgroup is called so, with the number of its rnet.
const PREFIX: &str = "rnet-container-";
/// Controllers that count what `rnet stats` shows.
const COUNTING: [&str; 2] = ["+memory", "+pids"];
/// How often processes are moved that others may start meanwhile.
const MOVES: usize = 16;
/// Processes of ended containers take a moment to be gone.
const EMPTY_MS: u16 = 2000;
/// Cgroups within a container's, level by level, that are removed with it.
const MAX_DEPTH: usize = 16;

/// A container's cgroup. Dropping it ends all processes in it, and removes it.
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Goes on in a scope of the user's systemd, if that is where a container with this allowance must be. No thread may have
/// been started, and nothing be open that could not be opened again.
///
/// Errors say how a cgroup can be had. A limit on the number of processes alone is none: it can be had without.
pub fn enter_scope(allowance: &Allowance) -> Result<()> {
    let settings = settings::settings(allowance);
    if settings.is_empty() {
        return Ok(());
    }
    match Facts::gather().place(&settings::controllers(&settings)) {
        Ok(Place::Here(_)) => Ok(()),
        Ok(Place::Scope) => Err(place::enter_scope()),
        Err(_) if falls_back(allowance) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether a limit of the user's processes (RLIMIT_NPROC) can stand in for a cgroup: nothing else is asked for.
fn falls_back(allowance: &Allowance) -> bool {
    Allowance { processes: None, ..allowance.clone() }.is_unlimited()
}

/// Removes cgroups below ours that containers have left which were killed.
pub fn sweep_cgroups() {
    // Whoever has the guard sweeps by himself.
    if let Some(base) = place::own_place().filter(|base| containers(base).next().is_some())
        && let Some(_guard) = lock(&base)
    {
        sweep(&base);
        restore(&base);
    }
}

/// Moves the process `pid` to the cgroup at `path`.
pub(super) fn move_to(path: &Path, pid: Pid) -> Result<()> {
    fs::write(path.join("cgroup.procs"), pid.to_string())
        .context("cannot move a process to the cgroup", path.display())
}

/// Goes on in a scope of the user's systemd, if processes of this one's cgroup may not move to that of the container which
/// the process `pid` is in, and those of such a scope may. The same holds as for [`enter_scope`].
pub fn enter_scope_beside(pid: i32) -> Result<()> {
    match of_process(pid) {
        Some(cgroup) if Facts::gather().must_move_for(&cgroup) => Err(place::enter_scope()),
        _ => Ok(()),
    }
}

/// The directory of the cgroup of the container that the process `pid` is in, if that has one.
pub(super) fn of_process(pid: i32) -> Option<PathBuf> {
    let found = place::of_process(pid)?;
    let is_container = |path: &&Path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
    };
    found.ancestors().find(is_container).map(Path::to_owned)
}

impl Cgroup {
    /// Makes one with the limits of `allowance`. `None` if nothing is limited, or only the number of processes and there
    /// is no place for a cgroup.
    pub(super) fn make(allowance: &Allowance) -> Result<Option<Self>> {
        let settings = settings::settings(allowance);
        if settings.is_empty() {
            return Ok(None);
        }
        let place = Facts::gather().place(&settings::controllers(&settings));
        let made = place.and_then(|place| match place {
            Place::Here(base) => Self::make_in(&base, &settings),
            Place::Scope => {
                Err(Error::new("cannot limit", "the container", "rnet is in no scope of systemd"))
            }
        });
        match made {
            Err(error) if falls_back(allowance) => {
                tracing::warn!(
                    "{error}\n  --pids-limit counts all processes of the container's users instead"
                );
                Ok(None)
            }
            done => done.map(Some),
        }
    }

    fn make_in(base: &Path, settings: &[Setting]) -> Result<Self> {
        let path = base.join(format!("{PREFIX}{}", process::id()));
        let guard = guard(base).context("cannot lock", base.display())?;
        sweep(base);
        let made = enable(base, settings).and_then(|()| make_locked(&path)).inspect_err(|_| restore(base));
        // What is made is dropped on the way of an error, for which the guard is taken again.
        drop(guard);
        let cgroup = Self { _lock: made?, path };
        settings.iter().try_for_each(|setting| cgroup.set(setting))?;
        Ok(cgroup)
    }

    fn set(&self, setting: &Setting) -> Result<()> {
        let path = self.path.join(setting.file);
        match fs::write(&path, &setting.value) {
            Err(cause) if cause.kind() == ErrorKind::NotFound && setting.optional => Ok(()),
            Err(cause) if cause.kind() == ErrorKind::NotFound => {
                let error =
                    Error::new("cannot limit", "the container", format!("there is no {}", path.display()));
                Err(error.hint("this kernel was built without it"))
            }
            done => done.context("cannot write", format!("'{}' to {}", setting.value, path.display())),
        }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves the process `pid` in.
    pub(super) fn take(&self, pid: Pid) -> Result<()> {
        move_to(&self.path, pid)
    }

    /// Has its processes stand still, or go on (cgroup-v2, "Core Interface Files"); false if this kernel cannot.
    pub(super) fn freeze(&self, frozen: bool) -> bool {
        fs::write(self.path.join("cgroup.freeze"), if frozen { "1" } else { "0" }).is_ok()
    }

    /// Whether the kernel has killed a process in it for want of memory.
    pub(super) fn is_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0"))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let base = self.path.parent().unwrap_or(Path::new("/"));
        let guarded = guard(base);
        if let Err(cause) = remove(&self.path) {
            tracing::warn!("cannot remove {}: {cause}", self.path.display());
        }
        if guarded.is_ok() {
            restore(base);
        }
    }
}

/// Keeps others from changing what is below `base`.
fn guard(base: &Path) -> io::Result<Flock<File>> {
    Flock::lock(File::open(base)?, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

fn make_locked(path: &Path) -> Result<Flock<File>> {
    let target = || format!("the cgroup {}", path.display());
    DirBuilder::new().create(path).context("cannot make", target())?;
    lock(path).ok_or_else(|| Error::new("cannot lock", target(), "somebody else has"))
}

/// Locks the cgroup at `path`, unless its rnet has.
fn lock(path: &Path) -> Option<Flock<File>> {
    Flock::lock(File::open(path).ok()?, FlockArg::LockExclusiveNonblock).ok()
}

/// Removes cgroups of rnets that are gone.
fn sweep(base: &Path) {
    for path in containers(base) {
        if let Some(_lock) = lock(&path) {
            let _ = remove(&path);
        }
    }
}

fn containers(base: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let is_ours = |entry: &fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes());
    entries.filter(is_ours).map(|entry| entry.path())
}

/// Has `base` give the controllers of `settings` to those below it.
fn enable(base: &Path, settings: &[Setting]) -> Result<()> {
    // Of some controllers the kernel would have processes beside the containers, but then let none into those. The root of
    // all cgroups, which alone has no type, may have them.
    let has_processes = fs::read_to_string(base.join("cgroup.procs")).is_ok_and(|list| !list.is_empty());
    if has_processes && base.join("cgroup.type").exists() {
        make_room(base)?;
    }
    let words: Vec<String> = settings::controllers(settings).iter().map(|name| format!("+{name}")).collect();
    control(base, &words).context("cannot enable", format!("controllers below {}", base.display()))?;
    // What is not limited is counted where it can be.
    COUNTING.iter().for_each(|word| drop(control(base, &[(*word).to_owned()])));
    Ok(())
}

/// Moves the processes of `base` to the leaf.
fn make_room(base: &Path) -> Result<()> {
    let leaf = base.join(LEAF);
    match DirBuilder::new().create(&leaf) {
        Err(cause) if cause.kind() == ErrorKind::AlreadyExists => {}
        made => made.context("cannot make", format!("the cgroup {}", leaf.display()))?,
    }
    move_all(base, &leaf).context("cannot move processes to", leaf.display())
}

fn control(base: &Path, words: &[String]) -> io::Result<()> {
    words.iter().try_for_each(|word| fs::write(base.join("cgroup.subtree_control"), word))
}

/// Moves the processes of the cgroup `from` until there are none.
fn move_all(from: &Path, to: &Path) -> io::Result<()> {
    for _ in 0..MOVES {
        let processes = fs::read_to_string(from.join("cgroup.procs"))?;
        if processes.is_empty() {
            return Ok(());
        }
        for pid in processes.lines() {
            match fs::write(to.join("cgroup.procs"), pid) {
                // It has ended.
                Err(cause) if cause.raw_os_error() == Some(Errno::ESRCH as i32) => {}
                done => done?,
            }
        }
    }
    Err(io::Error::other("others keep coming"))
}

/// Puts the processes back that had to make room, if no container is left. What stays would be in nobody's way.
fn restore(base: &Path) {
    let leaf = base.join(LEAF);
    if containers(base).next().is_some() || !leaf.exists() {
        return;
    }
    let enabled = fs::read_to_string(base.join("cgroup.subtree_control")).unwrap_or_default();
    let words: Vec<String> = enabled.split_whitespace().map(|name| format!("-{name}")).collect();
    let restored =
        control(base, &words).and_then(|()| move_all(&leaf, base)).and_then(|()| fs::remove_dir(&leaf));
    if let Err(cause) = restored {
        tracing::debug!("{} stays: {cause}", leaf.display());
    }
}

/// Ends what is left in the cgroup at `path`, and removes it with those below it.
fn remove(path: &Path) -> io::Result<()> {
    // Linux 5.14; before, what is in a container ends with its first process.
    let _ = fs::write(path.join("cgroup.kill"), "1");
    await_empty(path)?;
    remove_below(path, MAX_DEPTH)
}

fn remove_below(path: &Path, depth: usize) -> io::Result<()> {
    if depth > 0 {
        for entry in fs::read_dir(path)?.flatten() {
            if entry.file_type()?.is_dir() {
                remove_below(&entry.path(), depth - 1)?;
            }
        }
    }
    fs::remove_dir(path)
}

/// Waits until no process is in the cgroup or below it: its cgroup.events then changes, which poll(2) tells by POLLPRI.
fn await_empty(path: &Path) -> io::Result<()> {
    let mut events = File::open(path.join("cgroup.events"))?;
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        match poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], EMPTY_MS) {
            Ok(0) => return Err(io::Error::other("its processes do not end")),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
