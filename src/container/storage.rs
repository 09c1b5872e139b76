//! Where the writes of an overlay go: memory, or a private directory where tmpfs cannot hold them.
//!
//! An overlay's upper layer needs `user.` extended attributes, which tmpfs has since Linux 6.6. The directory
//! is locked as long as its container lives, so that the next start can tell what a killed one left behind.
//!
//! Files of a container that has more ids than its caller's belong to users whom the caller is not. They are removed by a
//! process that is root of a user namespace with all his ids.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;
use nix::sched::CloneFlags;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Pid, Uid};

use super::channel::Channel;
use super::identity;
use super::idmap::IdMaps;
use super::userns;
use crate::disk::{self, lock, own_directory, remove};
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
    let private = format!("rnet-{}", Uid::effective());
    let shared = |path: PathBuf| path.join(&private);
    let candidates = [
        disk::variable("TMPDIR").map(shared),
        Some(shared("/tmp".into())),
        disk::cache(),
        Some(shared("/var/tmp".into())),
    ];
    candidates.into_iter().flatten().collect()
}

/// Removes what containers have left that were killed, wherever it may be. No thread may have been started.
pub fn sweep_layers() {
    let existing = bases().into_iter().filter(|base| base.is_dir());
    existing.filter_map(|base| own_directory(&base).ok()).for_each(|base| sweep(&base));
}

/// Removes directories of processes that are gone: nobody holds their locks.
fn sweep(base: &Path) {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let is_ours = |name: &OsStr| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    for path in entries.filter(|entry| is_ours(&entry.file_name())).map(|entry| entry.path()) {
        if let Some(_lock) = lock(&path) {
            let _ = remove_all(&path);
        }
    }
}

/// Removes a directory in which writes were kept. No thread may have been started.
pub(crate) fn remove_layer(path: &Path) -> Result<()> {
    let failed = |cause: &dyn std::fmt::Display| Error::new("cannot remove", path.display(), cause);
    let Some(_lock) = lock(path) else {
        return Err(failed(&"a container uses it").hint("it can be removed when that has ended"));
    };
    remove_all(path).map_err(|cause| failed(&cause))
}

/// Removes a directory, whichever of the caller's users its files belong to.
fn remove_all(path: &Path) -> io::Result<()> {
    let Err(cause) = remove(path) else { return Ok(()) };
    let Some(maps) = identity::everything() else { return Err(cause) };
    Remover::start(path, &maps).map_err(io::Error::other)?.finish()
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

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
