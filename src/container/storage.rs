//! Where the writes of an overlay go: memory, or a private directory where tmpfs cannot hold them.
//!
//! An overlay's upper layer needs `user.` extended attributes, which tmpfs has since Linux 6.6. The directory
//! is locked as long as its container lives, so that the next start can tell what a killed one left behind.
//!
//! Files of a container that has more ids than its caller's belong to users whom the caller is not. They are removed by a
//! process that is root of a user namespace with all his ids.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sched::CloneFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Pid, Uid};

use super::channel::Channel;
use super::identity;
use super::idmap::IdMaps;
use super::userns;
use crate::error::{Context, Error, Result, exit};
use crate::sys::mount::takes_user_xattrs;
use crate::sys::process::{self, Child, Exit};

const PREFIX: &str = "layers-";
/// Names tried for one directory, against others that start at the same moment.
const ATTEMPTS: usize = 16;

/// A directory of our own, which no other container uses meanwhile.
#[derive(Debug)]
pub(super) struct Storage {
    path: PathBuf,
    /// It is removed with this value.
    temporary: bool,
    /// Removes it then, where this process may not.
    remover: Option<Remover>,
    _lock: Flock<File>,
}

/// A process that removes a directory once the other end of its line is dropped, by the end of this process too.
#[derive(Debug)]
struct Remover {
    process: Child,
    line: Channel,
}

/// Whether a tmpfs can hold an upper layer. A memfd is a file of one.
pub(super) fn memory_suffices() -> bool {
    memfd_create("rnet-probe", MFdFlags::MFD_CLOEXEC).is_ok_and(takes_user_xattrs)
}

impl Storage {
    /// Makes one in the first directory that can hold it, having removed what dead processes left there.
    pub(super) fn create() -> Result<Self> {
        let mut causes = Vec::new();
        for base in bases() {
            match own_directory(&base).and_then(|base| Self::create_in(&base)) {
                Ok(storage) => return Ok(storage),
                Err(cause) => causes.push(format!("{}: {cause}", base.display())),
            }
        }
        let error = Error::new("cannot store", "writes of the container", causes.join("; "));
        Err(error.hint("set TMPDIR to a directory on a disk filesystem with user extended attributes"))
    }

    /// Takes the directory at `path`, made if missing, which outlives this value.
    pub(super) fn keep(path: &Path) -> Result<Self> {
        let failed = |cause: io::Error| Error::new("cannot keep writes in", path.display(), cause);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let Some(lock) = lock(&path) else {
            let error = Error::new("cannot keep writes in", path.display(), "another container uses it");
            return Err(error.hint("wait for that one to end, or give each a directory of its own"));
        };
        if !takes_user_xattrs(&*lock) {
            let error = Error::new("cannot keep writes in", path.display(), "no user extended attributes");
            return Err(
                error.hint("choose a directory of yours on a disk filesystem such as ext4, xfs or btrfs")
            );
        }
        Ok(Self { path, temporary: false, remover: None, _lock: lock })
    }

    /// Its absolute path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Prepares for files of all users whom the caller can map. No thread may have been started, and signals that would
    /// end this process must be blocked.
    pub(super) fn expect_foreign_files(&mut self) -> Result<()> {
        if self.temporary
            && let Some(maps) = identity::everything()
        {
            self.remover = Some(Remover::start(&self.path, &maps)?);
        }
        Ok(())
    }

    fn create_in(base: &Path) -> io::Result<Self> {
        sweep(base);
        for attempt in 0..ATTEMPTS {
            let path = base.join(format!("{PREFIX}{}-{attempt}", Pid::this()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            let Some(lock) = lock(&path) else { continue };
            if !takes_user_xattrs(&*lock) {
                fs::remove_dir(&path)?;
                return Err(io::Error::other("no user extended attributes"));
            }
            return Ok(Self { path, temporary: true, remover: None, _lock: lock });
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if !self.temporary {
            return;
        }
        let removed = match self.remover.take() {
            Some(remover) => remover.finish(),
            None => remove(&self.path),
        };
        if let Err(cause) = removed {
            tracing::warn!("cannot remove {}: {cause}", self.path.display());
        }
    }
}

impl Remover {
    fn start(path: &Path, maps: &IdMaps) -> Result<Self> {
        let (line, theirs) = Channel::pair().context("cannot create", "socket pair")?;
        let process = process::spawn(CloneFlags::CLONE_NEWUSER, theirs, |line| {
            let mapped = line.await_release();
            // The next word, or the end.
            line.await_release();
            if mapped && remove(path).is_ok() { 0 } else { exit::RNET_FAILED }
        });
        let remover = Self { process: process.map_err(|cause| userns::forbidden(&cause))?, line };
        userns::write_id_maps(remover.process.pid, maps)?;
        remover.line.release().context("cannot start", "removal of layers")?;
        Ok(remover)
    }

    fn finish(self) -> io::Result<()> {
        drop(self.line);
        match self.process.reap()? {
            Exit::Code(0) => Ok(()),
            _ => Err(io::Error::other("files of the container's users are left")),
        }
    }
}

/// Directories to try. What lies in /tmp is out of the container's sight anyway; anything else takes its
/// parents apart into read-only pieces.
fn bases() -> Vec<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let private = format!("rnet-{}", Uid::effective());
    let shared = |path: PathBuf| path.join(&private);
    let candidates = [
        variable("TMPDIR").map(shared),
        Some(shared("/tmp".into())),
        cache.map(|path| path.join("rnet")),
        Some(shared("/var/tmp".into())),
    ];
    candidates.into_iter().flatten().collect()
}

/// Makes `path`, and refuses one that somebody else has made or can write to.
fn own_directory(path: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() && metadata.uid() == Uid::effective().as_raw() && metadata.mode() & 0o022 == 0 {
        return path.canonicalize();
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a private directory of this user"))
}

/// Locks the directory at `path`, unless another process has locked or removed it.
fn lock(path: &Path) -> Option<Flock<File>> {
    let lock = Flock::lock(File::open(path).ok()?, FlockArg::LockExclusiveNonblock).ok()?;
    let same = fs::metadata(path).ok()?.ino() == lock.metadata().ok()?.ino();
    same.then_some(lock)
}

/// Removes directories of processes that are gone: nobody holds their locks.
fn sweep(base: &Path) {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let is_ours = |name: &OsStr| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    for path in entries.filter(|entry| is_ours(&entry.file_name())).map(|entry| entry.path()) {
        if let Some(_lock) = lock(&path)
            && remove(&path).is_err()
            && let Some(maps) = identity::everything()
        {
            let _ = Remover::start(&path, &maps).map(Remover::finish);
        }
    }
}

/// Removes a tree in which directories may have lost their permissions (overlayfs leaves one of mode 000).
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        done => done,
    }
}

fn open_up(path: &Path) -> io::Result<()> {
    let mut directories = vec![path.to_owned()];
    while let Some(directory) = directories.pop() {
        fs::set_permissions(&directory, Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_that_others_can_write_to_is_refused() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let path = base.path().join("rnet");
        assert!(own_directory(&path).is_ok());
        fs::set_permissions(&path, Permissions::from_mode(0o777)).expect("chmod");
        assert!(own_directory(&path).is_err());
    }

    #[test]
    fn sweeping_spares_the_living_and_removes_closed_directories() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let Ok(living) = Storage::create_in(base.path()) else {
            println!("skipped: no user extended attributes in {}", base.path().display());
            return;
        };
        let stale = base.path().join("layers-0-0");
        fs::create_dir_all(stale.join("work/work")).expect("mkdir");
        fs::set_permissions(stale.join("work/work"), Permissions::from_mode(0o000)).expect("chmod");
        sweep(base.path());
        assert!(living.path().exists() && !stale.exists());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
    }
}
