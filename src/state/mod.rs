//! What is known of containers: a record in each one's directory, kept by the rnet that keeps the container.
//!
//! There is no daemon. `rnet run` makes the container's directory ([`control::Place`]), locks it for as long as it lives,
//! and writes down what goes on ([`Kept`]). The lock is the truth: however a keeper ends, the kernel releases it at that
//! moment. Everybody else reads records as [`Container`]s; one that speaks of a living container although nobody holds
//! the lock is put right on that occasion. A process is known by its number and start together, never by the number
//! alone.
//!
//! A record is replaced as a whole (rename(2)), so that no reader sees half of one. It belongs to the user alone: it may
//! hold secrets, as the environment does.

mod log;
mod privileges;
mod record;
mod time;

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, Flock, FlockArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

pub use self::log::{Entry, LogReader, LogWriter, MAX_PIECE_BYTES, Stream, Wanted};
pub use self::privileges::Privileges;
pub use self::record::{
    Config, HostConfig, Mount, NetworkSettings, PortBinding, Process, Record, RestartPolicy, Rnet, State,
    Status,
};
pub use self::time::Timestamp;
use crate::control::{self, Place, RECORD};
use crate::error::{Context, Error, Result};
use crate::{config, sys};

/// Longest record that is read, in bytes: execve(2) takes at most 6 MiB of arguments and variables.
const MAX_RECORD_BYTES: u64 = 16 * 1024 * 1024;
/// Gets the exit status at the end. Who waits has it open by then, as it may be removed at once.
const EXIT: &str = "exit";
/// A record on its way to its place.
const NEW_RECORD: &str = ".container.json.new";
/// How long the kernel may take to end the processes of a container whose keeper was killed.
const ENDING: Duration = Duration::from_secs(3);
/// What is told of such a container: killed with its keeper.
const KILLED: u8 = 137;

/// A container that this process keeps. Dropping it before [`Kept::end`] leaves nothing of it.
#[derive(Debug)]
pub struct Kept {
    record: Record,
    directory: PathBuf,
    lock: Flock<File>,
    /// From then on a failure is a part of its life.
    lives: bool,
    ended: bool,
}

impl Kept {
    /// Begins the record of the container of `config` in its `place`. No process that outlives this one may inherit
    /// descriptors from it afterwards.
    pub fn begin(config: &config::Config, place: &Place) -> Result<Self> {
        let directory = place.directory().to_owned();
        let failed = || format!("the directory {}", directory.display());
        let lock = File::open(&directory).context("cannot open", failed())?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
        let mut kept = Self {
            record: Record::new(config, &place.name()),
            lock: lock.context("cannot lock", failed())?,
            directory,
            lives: false,
            ended: false,
        };
        if config.life.detach {
            kept.record.log_path = kept.directory.join(log::NEWER).display().to_string();
        }
        let exit = kept.directory.join(EXIT);
        fs::write(&exit, "").context("cannot write", exit.display())?;
        kept.change(|record| record.rnet.keeper = Process::own())?;
        Ok(kept)
    }

    /// Goes on with the record of a container whose command is started again, by a keeper that has become this process
    /// and has locked the container's directory with the descriptor `lock`. To be called before anything else is opened.
    pub fn resume(config: &config::Config, lock: RawFd, place: &Place) -> Result<Self> {
        let directory = place.directory().to_owned();
        let lock = sys::process::inherited(lock).context("cannot take over", "the container's lock")?;
        // The same description: it is locked already.
        let lock = Flock::lock(File::from(lock), FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, errno)| errno).context("cannot lock", directory.display())?;
        let record = read(&directory).ok_or_else(|| {
            Error::new("cannot go on with the container", place.name(), "its record is gone")
        })?;
        let mut kept = Self { record, directory, lock, lives: true, ended: false };
        kept.change(|record| {
            record.resume(Record::new(config, &place.name()));
            record.rnet.keeper = Process::own();
        })?;
        Ok(kept)
    }

    /// The descriptor that has the directory locked, which a process that this one becomes inherits.
    pub fn lend(&self) -> Result<BorrowedFd<'_>> {
        fcntl(&*self.lock, FcntlArg::F_SETFD(FdFlag::empty()))
            .context("cannot pass on", "the container's lock")?;
        Ok(self.lock.as_fd())
    }

    /// What is on record.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Changes the record.
    pub fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<()> {
        change(&mut self.record);
        write(&self.directory, &self.record)
    }

    /// Keeps its output, up to `max_bytes` of it.
    pub fn log(&self, max_bytes: u64) -> Result<LogWriter> {
        LogWriter::open(&self.directory, max_bytes)
            .context("cannot keep the output in", self.directory.display())
    }

    /// Says that the set-up stands, with `pid` as the container's first process.
    pub fn made(&mut self, pid: i32) -> Result<()> {
        self.change(|record| {
            record.state.pid = pid;
            record.rnet.first = Process::of(pid);
        })
    }

    /// Whether its start has succeeded.
    pub fn lives(&self) -> bool {
        self.lives
    }

    /// Says that its start has succeeded in all respects.
    pub fn begin_to_live(&mut self) {
        self.lives = true;
    }

    /// Says that the command has ended with `code`, and of what else went wrong; removes all if nothing is to be kept.
    /// The place must be gone.
    pub fn end(mut self, code: u8, error: &str) -> Result<()> {
        let exit = self.directory.join(EXIT);
        fs::write(&exit, code.to_string()).context("cannot write", exit.display())?;
        self.ended = !self.record.host_config.auto_remove;
        if self.ended { self.change(|record| record.ended(code, error)) } else { Ok(()) }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if !self.ended && (self.record.host_config.auto_remove || !self.lives) {
            remove(&self.directory);
        }
    }
}

/// A container of this user, alive or not.
#[derive(Clone, Debug)]
pub struct Container {
    /// What is known of it; true at the moment when it was read.
    pub record: Record,
    directory: PathBuf,
}

/// All containers of this user, the latest first.
pub fn list() -> Result<Vec<Container>> {
    let mut found: Vec<Container> =
        control::directories()?.into_iter().filter_map(|directory| Container::open(&directory)).collect();
    found.sort_by_key(|container| std::cmp::Reverse(container.record.created));
    Ok(found)
}

/// Puts right what is on record of containers whose keeper was killed, and removes what nobody wants of them.
pub fn sweep() {
    if let Err(error) = list() {
        tracing::debug!(%error, "what killed containers have left stays");
    }
}

/// The container that is called `word`, or whose id begins with it.
pub fn find(word: &str) -> Result<Container> {
    if let Some(named) = control::directory(word)?.as_deref().and_then(Container::open) {
        return Ok(named);
    }
    let mut found = list()?;
    found.retain(|container| !word.is_empty() && container.record.id.starts_with(word));
    match (found.pop(), found.len()) {
        (Some(only), 0) => Ok(only),
        (Some(_), _) => Err(Error::new("cannot tell which container is", word, "several ids begin so")),
        (None, _) => Err(Error::new("no such container", word, "it has neither a record nor a process")
            .hint("`rnet ps -a` lists all")),
    }
}

impl Container {
    /// The container whose directory this is; `None` if there is none. A record that lies is put right.
    fn open(directory: &Path) -> Option<Self> {
        let container = Self { record: read(directory)?, directory: directory.to_owned() };
        if container.record.state.status == Status::Exited || is_kept(directory) {
            return Some(container);
        }
        container.put_right()
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A descriptor of its first process, which is that of its PID namespace; certainly not of a later process with
    /// the same number.
    pub fn first_process(&self) -> Result<OwnedFd> {
        let gone = || Error::new("cannot enter the container", &self.record.name, "it is not running");
        match self.record.state.status {
            // One that has been made has its namespaces, and its command may have started by now.
            Status::Created | Status::Running | Status::Paused => {
                self.record.rnet.first.open().ok_or_else(gone)
            }
            Status::Restarting | Status::Exited => Err(gone()),
        }
    }

    /// A descriptor of the rnet that keeps it: readable once that has ended. `None` if it has.
    pub fn keeper(&self) -> Option<OwnedFd> {
        self.record.rnet.keeper.open()
    }

    /// Waits until it has ended for good, but not longer than `patience`; its exit status, `None` if it goes on.
    pub fn wait(&self, patience: Option<Duration>) -> Result<Option<u8>> {
        let recorded = u8::try_from(self.record.state.exit_code).unwrap_or(KILLED);
        if self.record.state.status == Status::Exited {
            return Ok(Some(recorded));
        }
        let mut status = String::new();
        let told = File::open(self.directory.join(EXIT));
        if let Some(keeper) = self.keeper()
            && !has_ended(&keeper, patience).context("cannot wait for", &self.record.name)?
        {
            return Ok(None);
        }
        // A keeper that was killed has told nothing.
        let told = told.and_then(|mut told| told.read_to_string(&mut status)).ok();
        Ok(Some(told.and_then(|_| status.parse().ok()).unwrap_or(KILLED)))
    }

    /// Its output as far as it is kept.
    pub fn log(&self) -> LogReader {
        LogReader::new(&self.directory)
    }

    /// Removes what is left of it; an error if it is kept by now.
    pub fn remove(self) -> Result<()> {
        let _lock = lock(&self.directory, FlockArg::LockExclusiveNonblock).ok_or_else(|| {
            Error::new("cannot remove the container", &self.record.name, "it is running")
                .hint(format!("`rnet stop {}` ends it", self.record.name))
        })?;
        remove(&self.directory);
        Ok(())
    }

    /// Its keeper was killed: what it would have done at the end.
    fn put_right(mut self) -> Option<Self> {
        // Whoever has the lock is about to do the same.
        let Some(_lock) = lock(&self.directory, FlockArg::LockExclusiveNonblock) else {
            return read(&self.directory).map(|record| Self { record, ..self });
        };
        self.record = read(&self.directory)?;
        if !self.record.is_alive() && self.record.state.status != Status::Created {
            return Some(self);
        }
        if let Some(first) = self.record.rnet.first.open() {
            end_process(&first);
        }
        if self.record.host_config.auto_remove || self.record.state.status == Status::Created {
            remove(&self.directory);
            return None;
        }
        self.record.ended(KILLED, "its rnet process was killed");
        if let Err(error) = write(&self.directory, &self.record) {
            tracing::warn!("{error}");
        }
        Some(self)
    }
}

impl Process {
    /// The process with the number `pid`, which must not have been reaped.
    fn of(pid: i32) -> Self {
        Self { pid, start_time: start_time(pid).unwrap_or_default() }
    }

    fn own() -> Self {
        Self::of(Pid::this().as_raw())
    }

    /// A descriptor of it; `None` if it has ended.
    fn open(self) -> Option<OwnedFd> {
        let Self { pid, start_time: wanted } = self;
        // The descriptor first: what is read afterwards is then of the process that it stands for, or of none.
        let process = (pid > 0).then(|| sys::process::watch(Pid::from_raw(pid)).ok())??;
        (start_time(pid) == Some(wanted)).then_some(process)
    }
}

/// When the process `pid` was started (proc_pid_stat(5), field 22).
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses, which may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// The kernel kills it as its parent has died; this is for one that has made itself immune.
fn end_process(process: &OwnedFd) {
    let _ = sys::process::signal(process.as_fd(), Signal::SIGKILL as i32);
    let _ = has_ended(process, Some(ENDING));
}

/// Waits until `process` has ended, but not longer than `patience`; whether it has.
fn has_ended(process: &OwnedFd, patience: Option<Duration>) -> nix::Result<bool> {
    let began = Instant::now();
    let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    loop {
        let rest = patience.map(|patience| patience.saturating_sub(began.elapsed()));
        // Rounded up, lest it be looked at over and over in the last millisecond; and in turns, as poll(2) does not wait
        // for weeks.
        let rest_ms = rest.map(|rest| i32::try_from(rest.as_millis() + 1).unwrap_or(i32::MAX));
        let timeout =
            rest_ms.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from).unwrap_or(PollTimeout::MAX);
        match poll(&mut ended, timeout) {
            Err(Errno::EINTR) => {}
            Ok(0) if rest.is_some_and(|rest| rest.as_millis() < i32::MAX as u128) => return Ok(false),
            Ok(0) => {}
            done => return done.map(|_| true),
        }
    }
}

fn is_kept(directory: &Path) -> bool {
    lock(directory, FlockArg::LockSharedNonblock).is_none()
}

fn lock(directory: &Path, how: FlockArg) -> Option<Flock<File>> {
    Flock::lock(File::open(directory).ok()?, how).ok()
}

fn read(directory: &Path) -> Option<Record> {
    let mut text = Vec::new();
    File::open(directory.join(RECORD)).ok()?.take(MAX_RECORD_BYTES).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text)
        .inspect_err(|error| tracing::warn!("{}: {error}", directory.join(RECORD).display()))
        .ok()
}

fn write(directory: &Path, record: &Record) -> Result<()> {
    let path = directory.join(RECORD);
    let text = serde_json::to_string_pretty(record).map_err(io::Error::from);
    text.and_then(|text| replace(&path, &directory.join(NEW_RECORD), &text))
        .context("cannot write", path.display())
}

fn replace(path: &Path, new: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(new)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    fs::rename(new, path)
}

/// Removes the container's files; the record last, as nobody could tell what the others are for.
fn remove(directory: &Path) {
    for file in [log::OLDER, log::NEWER, EXIT, NEW_RECORD, RECORD] {
        let _ = fs::remove_file(directory.join(file));
    }
    control::clear(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_with_its_number() {
        let own = Process::own();
        assert!(own.start_time > 0 && own.open().is_some());
        assert!(Process { start_time: own.start_time + 1, ..own }.open().is_none());
        assert!(Process::default().open().is_none());
    }

    #[test]
    fn a_record_is_true_while_it_is_kept_and_put_right_afterwards() {
        let (directory, lock) = running(|_| {});
        let seen = Container::open(directory.path()).expect("a record");
        assert_eq!(seen.record.state.status, Status::Running);
        assert!(seen.remove().expect_err("it is kept").to_string().contains("rnet stop box"));
        drop(lock);
        for _ in 0..2 {
            let seen = Container::open(directory.path()).expect("a record");
            assert_eq!((seen.record.state.status, seen.record.state.exit_code), (Status::Exited, 137));
            assert!(seen.record.state.error.contains("killed") && seen.first_process().is_err());
        }
    }

    #[test]
    fn nothing_stays_of_what_is_not_to_be_kept() {
        for change in [(|record| record.host_config.auto_remove = true) as fn(&mut Record), |record| {
            record.state.status = Status::Created
        }] {
            let (directory, lock) = running(change);
            assert!(Container::open(directory.path()).is_some());
            drop(lock);
            assert!(Container::open(directory.path()).is_none());
            assert!(!directory.path().exists());
        }
    }

    /// A directory with the record of a running container, changed by `change`, and its keeper's lock.
    fn running(change: impl FnOnce(&mut Record)) -> (tempfile::TempDir, Flock<File>) {
        let directory = tempfile::tempdir().expect("a directory");
        let mut record = Record { name: "box".to_owned(), ..Record::default() };
        record.started();
        change(&mut record);
        write(directory.path(), &record).expect("written");
        let lock = lock(directory.path(), FlockArg::LockExclusive).expect("free");
        (directory, lock)
    }
}
