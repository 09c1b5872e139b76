//! Where the control sockets are: `$XDG_RUNTIME_DIR/rnet/NAME/control`.
//!
//! Without that variable it is `/run/user/UID`, and without that `/tmp/rnet-UID`, which must be ours alone. What a
//! network that was killed has left is removed by the next one that starts.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;

use crate::error::{Context, Error, Result};

/// Name of the socket in a network's directory.
const SOCKET: &str = "control";
/// Held while directories are made and removed.
const LOCK: &str = ".lock";
/// Left-over directories that one start removes at most.
const MAX_SWEPT: usize = 256;

/// A running network's directory and the socket in it; both go when this is dropped.
#[derive(Debug)]
pub struct Place {
    directory: PathBuf,
    listener: UnixListener,
}

impl Place {
    /// Makes the place of the network `name`, which no other may have.
    pub fn new(name: &str) -> Result<Self> {
        Self::below(&base()?, name)
    }

    fn below(base: &Path, name: &str) -> Result<Self> {
        make_private(base)?;
        let _lock = lock(base, FlockArg::LockExclusive)?;
        sweep(base);
        let directory = base.join(name);
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::new("cannot use the name", name, "a running network has it")
                    .hint("choose another with --name"));
            }
            made => made.context("cannot make", directory.display())?,
        }
        let socket = directory.join(SOCKET);
        let bound = UnixListener::bind(&socket).context("cannot listen on", socket.display());
        let listener = bound.inspect_err(|_| {
            let _ = fs::remove_dir(&directory);
        })?;
        Ok(Self { directory, listener })
    }

    /// The place of the network `given`, or else of one that goes by a `number` and can do without a place.
    pub fn of(given: Option<&str>, number: u32) -> Result<Option<Self>> {
        match given {
            Some(name) => Self::new(name).map(Some),
            None => Ok(Self::new(&number.to_string())
                .inspect_err(|error| tracing::info!(%error, "nobody can speak to this network"))
                .ok()),
        }
    }

    /// The listening socket.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whoever holds the lock may be stopped; to end does not wait for that.
        let _lock = self.directory.parent().map(|base| lock(base, FlockArg::LockExclusiveNonblock));
        remove(&self.directory);
    }
}

/// Connects to the network `name`.
pub(super) fn connect(name: &str) -> Result<UnixStream> {
    let socket = base()?.join(name).join(SOCKET);
    UnixStream::connect(&socket)
        .context("cannot reach the network", name)
        .map_err(|error| error.hint(format!("{} would be its socket; is it running?", socket.display())))
}

/// The directory of all networks of this user.
fn base() -> Result<PathBuf> {
    let own = |path: &PathBuf| {
        path.is_absolute()
            && fs::metadata(path)
                .is_ok_and(|about| about.is_dir() && about.uid() == Uid::effective().as_raw())
    };
    let given = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let usual = PathBuf::from(format!("/run/user/{}", Uid::effective()));
    match given.into_iter().chain([usual]).find(own) {
        Some(runtime) => Ok(runtime.join("rnet")),
        None => {
            let fallback = PathBuf::from(format!("/tmp/rnet-{}", Uid::effective()));
            make_private(&fallback)?;
            Ok(fallback)
        }
    }
}

/// Sees to it that `directory` exists and is ours alone: in /tmp anybody may have made it.
fn make_private(directory: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).context("cannot make", directory.display());
        }
        _ => {}
    }
    let about = fs::symlink_metadata(directory).context("cannot look at", directory.display())?;
    if about.is_dir() && about.uid() == Uid::effective().as_raw() && about.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::new("cannot use", directory.display(), "it is not a directory of this user alone")
        .hint("set XDG_RUNTIME_DIR to one that is"))
}

fn lock(base: &Path, how: FlockArg) -> Result<Flock<File>> {
    let path = base.join(LOCK);
    let file =
        File::options().create(true).append(true).open(&path).context("cannot open", path.display())?;
    Flock::lock(file, how).map_err(|(_, errno)| errno).context("cannot lock", path.display())
}

/// Removes what networks have left that were killed.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    let directories = entries.flatten().filter(|entry| entry.file_name() != OsStr::new(LOCK));
    for directory in directories.map(|entry| entry.path()).filter(|path| is_left_over(path)).take(MAX_SWEPT) {
        remove(&directory);
    }
}

fn is_left_over(directory: &Path) -> bool {
    match UnixStream::connect(directory.join(SOCKET)) {
        Ok(_) => false,
        Err(error) => matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound),
    }
}

fn remove(directory: &Path) {
    let _ = fs::remove_file(directory.join(SOCKET));
    // Not with what somebody else has put there.
    let _ = fs::remove_dir(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_taken_while_its_network_runs_and_free_afterwards() {
        let base = tempfile::tempdir().expect("a directory");
        let base = base.path().join("rnet");
        let place = Place::below(&base, "box").expect("a place");
        let taken = Place::below(&base, "box").expect_err("taken").to_string();
        assert!(taken.contains("a running network has it") && taken.contains("--name"), "{taken}");
        Place::below(&base, "other").expect("another name");
        drop(place);
        assert!(!base.join("box").exists());
        Place::below(&base, "box").expect("free again");
    }

    #[test]
    fn what_a_killed_network_has_left_is_removed() {
        let base = tempfile::tempdir().expect("a directory");
        let base = base.path().join("rnet");
        let killed = Place::below(&base, "killed").expect("a place");
        let lives = Place::below(&base, "lives").expect("a place");
        // Closed, but not removed.
        let Place { directory, listener } = &killed;
        let directory = directory.clone();
        nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(listener),
            nix::sys::socket::Shutdown::Both,
        )
        .expect("a socket");
        Place::below(&base, "next").expect("a place");
        assert!(!directory.exists());
        assert!(lives.directory.exists());
    }

    #[test]
    fn a_directory_that_others_can_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let base = tempfile::tempdir().expect("a directory");
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let error = Place::below(base.path(), "box").expect_err("open to others").to_string();
        assert!(error.contains("XDG_RUNTIME_DIR"), "{error}");
    }
}
