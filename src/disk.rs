//! Directories of rnet's own on the disk: private to the user, locked while in use, removed whatever became of their
//! permissions.

use std::env;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;

/// What is ours in the user's cache: `$XDG_CACHE_HOME/rnet`, else `~/.cache/rnet`. `None` where neither is known.
pub(crate) fn cache() -> Option<PathBuf> {
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
    Some(cache.join("rnet"))
}

/// An absolute path from the environment.
pub(crate) fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Makes `path` with its parents, and refuses one that somebody else has made or can write to; without symbolic links.
pub(crate) fn own_directory(path: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() && metadata.uid() == Uid::effective().as_raw() && metadata.mode() & 0o022 == 0 {
        return path.canonicalize();
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "not a private directory of this user"))
}

/// Locks the directory at `path` for this process alone, unless another process has locked or removed it.
pub(crate) fn lock(path: &Path) -> Option<Flock<File>> {
    lock_as(path, FlockArg::LockExclusiveNonblock)
}

/// Locks the directory at `path`; `None` if that would mean to wait and `how` does not, or if it has been removed or
/// replaced meanwhile.
pub(crate) fn lock_as(path: &Path, how: FlockArg) -> Option<Flock<File>> {
    let lock = Flock::lock(File::open(path).ok()?, how).ok()?;
    let same = fs::metadata(path).ok()?.ino() == lock.metadata().ok()?.ino();
    same.then_some(lock)
}

/// Removes a tree in which directories may have lost their permissions (overlayfs leaves one of mode 000).
pub(crate) fn remove(path: &Path) -> io::Result<()> {
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
    fn closed_directories_are_removed() {
        let base = tempfile::tempdir().expect("a temporary directory");
        let path = base.path().join("a");
        fs::create_dir_all(path.join("b/c")).expect("mkdir");
        fs::set_permissions(path.join("b"), Permissions::from_mode(0o000)).expect("chmod");
        assert!(remove(&path).is_ok() && !path.exists());
    }
}
