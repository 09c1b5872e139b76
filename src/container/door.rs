//! The way out of namespaces that are closed to everybody outside: some runtimes hide their containers' processes
//! (prctl(2), PR_SET_DUMPABLE), and let hooks into the namespaces instead.
//!
//! Outside a [`Door`] is waited at, a socket in a directory of ours. The one inside comes to it ([`hand_over`]), passes on
//! the descriptor of its network namespace, and is told how it went.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::channel::{Channel, Report};
use super::join::Namespaces;
use crate::error::{Context, Error, Result};
use crate::sys::namespace;

const OWN_NET: &str = "/proc/self/ns/net";
/// How long both sides wait for what the other one does at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the one inside comes to. Nobody but our own user can.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    listener: UnixListener,
}

/// The one who came, and waits for an answer.
#[derive(Debug)]
pub struct Visitor(Channel);

impl Door {
    /// Opens it at `path`, in a directory that only this user can enter.
    pub fn open(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path).context("cannot listen on", path.display())?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// Waits for who comes, for as long as `process` lives (a descriptor of [`super::watch_process`]).
    pub fn wait(self, process: &OwnedFd) -> Result<(Namespaces, Visitor)> {
        const WHOM: &str = "a hook inside of the container";
        if !self.is_called(process).context("cannot wait for", WHOM)? {
            return Err(Error::new("cannot wait for", WHOM, "the container has ended"));
        }
        let (visitor, _) = self.listener.accept().context("cannot hear from", WHOM)?;
        visitor.set_read_timeout(Some(PATIENCE)).context("cannot hear from", WHOM)?;
        let net = namespace::receive(&visitor).context("cannot hear from", WHOM)?;
        let visitor = Visitor(Channel::new(visitor));
        match Namespaces::of_descriptor(net, WHOM.into()) {
            Ok(namespaces) => Ok((namespaces, visitor)),
            Err(error) => {
                visitor.failed(&error);
                Err(error)
            }
        }
    }

    /// Whether somebody came before `process` ended.
    fn is_called(&self, process: &OwnedFd) -> nix::Result<bool> {
        loop {
            let mut fds = [
                PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
                PollFd::new(process.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
                Ok(_) => return Ok(fds[0].any() == Some(true)),
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Visitor {
    /// All went well.
    pub fn ready(self) -> Result<()> {
        self.0.ready().context("cannot report to", "the hook inside of the container")
    }

    /// It did not.
    pub fn failed(&self, error: &Error) {
        self.0.failed(error);
    }
}

/// Hands this process's network namespace over at the door `path`, and waits until the network stands. `false` if there
/// is no door.
pub fn hand_over(path: &Path) -> Result<bool> {
    const WHAT: &str = "this network namespace";
    let door = match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        door => door.context("cannot reach the network at", path.display())?,
    };
    let net = File::open(OWN_NET).context("cannot open", OWN_NET)?;
    door.set_read_timeout(Some(PATIENCE)).context("cannot hand over", WHAT)?;
    namespace::send(&net, &door).context("cannot hand over", WHAT)?;
    match Channel::new(door).receive().context("cannot hear from", "the network")? {
        Some(Report::Ready) => Ok(true),
        Some(Report::Failed(error)) => Err(error),
        Some(Report::Note(_) | Report::Link(_)) | None => {
            Err(Error::new("cannot start", "the network", "its process ended too early"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;
    use nix::unistd::Pid;
    use std::thread;

    #[test]
    fn where_there_is_no_door_nothing_is_handed_over() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(!hand_over(&directory.path().join("door")).expect("no failure"));
    }

    #[test]
    fn who_hands_over_the_namespace_of_the_network_itself_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("door");
        let door = Door::open(&path).expect("a fresh directory");
        let inside = thread::spawn(move || hand_over(&path));
        let this = process::watch(Pid::this()).expect("it lives");
        let error = door.wait(&this).expect_err("not another namespace").to_string();
        assert!(error.contains("rnet's own network namespace"), "{error}");
        assert_eq!(inside.join().expect("no panic").expect_err("refused").to_string(), error);
        assert!(!directory.path().join("door").exists());
    }

    #[test]
    fn nobody_is_waited_for_when_the_process_has_ended() {
        let directory = tempfile::tempdir().expect("a directory");
        let door = Door::open(&directory.path().join("door")).expect("a fresh directory");
        let mut ended = std::process::Command::new("true").spawn().expect("there is one");
        let watch = process::watch(Pid::from_raw(ended.id() as i32)).expect("not reaped yet");
        ended.wait().expect("it ends");
        assert!(door.wait(&watch).expect_err("nobody").to_string().contains("the container has ended"));
    }
}
