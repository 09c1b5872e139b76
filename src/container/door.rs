//! The way out of namespaces that are closed to everybody outside: some runtimes hide their containers' processes
//! (prctl(2), PR_SET_DUMPABLE), and let hooks into the namespaces instead.
//!
//! Outside a [`Door`] is waited at, a socket in a directory of ours. The one inside comes to it ([`hand_over`]), passes
//! on the descriptor of its network namespace, and is told how it went.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::channel::{Channel, Report};
use super::join::Namespaces;
use crate::error::{Context, Error, Result};
use crate::sys::rights;

const OWN_NET: &str = "/proc/self/ns/net";
const WHOM: &str = "a hook inside of the container";
/// Callers that may take their time at once; a further one takes the place of the first.
const MAX_CALLERS: usize = 16;
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

    /// What `enter` makes of the namespaces of the first for whom it succeeds. The others are told why not, and have no
    /// other consequence. Waits for as long as `process` lives (a descriptor of [`super::watch_process`]) and nothing
    /// can be read from `signals`.
    pub fn admit<T>(
        self,
        process: &OwnedFd,
        signals: BorrowedFd<'_>,
        enter: impl Fn(&Namespaces) -> Result<T>,
    ) -> Result<(T, Visitor)> {
        let mut callers = VecDeque::new();
        loop {
            let caller = self.await_words(&mut callers, process, signals)?;
            let visitor = Visitor(Channel::new(caller.try_clone().context("cannot hear from", WHOM)?));
            match Self::namespaces(&caller).and_then(|namespaces| enter(&namespaces)) {
                Ok(made) => return Ok((made, visitor)),
                Err(error) => {
                    tracing::info!(%error, "somebody at the door is turned away");
                    visitor.failed(&error);
                }
            }
        }
    }

    fn namespaces(caller: &UnixStream) -> Result<Namespaces> {
        let net = rights::receive_one(caller).context("cannot hear from", WHOM)?;
        Namespaces::of_descriptor(net, WHOM.into())
    }

    /// Lets callers in until one of them, who is none of `callers` any more, says something or leaves; an error if there
    /// is no reason to wait any more. Who is silent holds up nobody.
    fn await_words(
        &self,
        callers: &mut VecDeque<UnixStream>,
        process: &OwnedFd,
        signals: BorrowedFd<'_>,
    ) -> Result<UnixStream> {
        loop {
            let fds = [signals, process.as_fd(), self.listener.as_fd()];
            let fds = fds.into_iter().chain(callers.iter().map(AsFd::as_fd));
            let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                polled => polled.context("cannot wait for", WHOM)?,
            };
            let over = |cause| Err(Error::new("cannot wait for", WHOM, cause));
            match fds.iter().position(|fd| fd.any() == Some(true)) {
                None => {}
                Some(0) => return over("a signal came first"),
                Some(1) => return over("the container has ended"),
                Some(2) => {
                    let (caller, _) = self.listener.accept().context("cannot hear from", WHOM)?;
                    callers.truncate(MAX_CALLERS - 1);
                    callers.push_front(caller);
                }
                Some(index) => {
                    return callers
                        .remove(index - 3)
                        .ok_or_else(|| Error::new("cannot hear from", WHOM, "it left"));
                }
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
    rights::send_one(&net, &door).context("cannot hand over", WHAT)?;
    match Channel::new(door).receive().context("cannot hear from", "the network")? {
        Some(Report::Ready) => Ok(true),
        Some(Report::Failed(error)) => Err(error),
        _ => Err(Error::new("cannot start", "the network", "its process ended too early")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;
    use nix::unistd::Pid;
    use std::io::{Write, pipe};
    use std::thread;
    use std::time::Instant;
    use tempfile::TempDir;

    #[test]
    fn where_there_is_no_door_nothing_is_handed_over() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(!hand_over(&directory.path().join("door")).expect("no failure"));
    }

    #[test]
    fn who_cannot_be_served_is_told_and_the_next_one_is_waited_for() {
        let (directory, door) = door();
        let path = directory.path().join("door");
        let inside = thread::spawn(move || {
            let silent = UnixStream::connect(&path).map(drop);
            (silent, hand_over(&path), hand_over(&path))
        });
        let (signals, mut signal) = pipe().expect("a pipe");
        let this = process::watch(Pid::this()).expect("it lives");
        let waits = thread::spawn(move || door.admit(&this, signals.as_fd(), |_| Ok(())).map(drop));
        let (silent, first, second) = inside.join().expect("no panic");
        silent.expect("the door is open");
        for told in [first, second] {
            let error = told.expect_err("not another namespace").to_string();
            assert!(error.contains("rnet's own network namespace"), "{error}");
        }
        signal.write_all(b"!").expect("room");
        let error = waits.join().expect("no panic").expect_err("ended").to_string();
        assert!(error.contains("a signal came first"), "{error}");
        assert!(!directory.path().join("door").exists());
    }

    #[test]
    fn who_says_nothing_holds_up_nobody() {
        let (directory, door) = door();
        let path = directory.path().join("door");
        let (signals, mut signal) = pipe().expect("a pipe");
        let this = process::watch(Pid::this()).expect("it lives");
        let silent: Vec<_> =
            (0..2 * MAX_CALLERS).map(|_| UnixStream::connect(&path).expect("the door is open")).collect();
        let waits = thread::spawn(move || door.admit(&this, signals.as_fd(), |_| Ok(())).map(drop));
        let began = Instant::now();
        hand_over(&path).expect_err("not another namespace");
        assert!(began.elapsed() < PATIENCE);
        drop(silent);
        signal.write_all(b"!").expect("room");
        waits.join().expect("no panic").expect_err("ended");
    }

    #[test]
    fn nobody_is_waited_for_when_the_process_has_ended() {
        let (_directory, door) = door();
        let mut ended = std::process::Command::new("true").spawn().expect("there is one");
        let watch = process::watch(Pid::from_raw(ended.id() as i32)).expect("not reaped yet");
        ended.wait().expect("it ends");
        let (signals, _writer) = pipe().expect("a pipe");
        let error = door.admit(&watch, signals.as_fd(), |_| Ok(())).expect_err("nobody").to_string();
        assert!(error.contains("the container has ended"), "{error}");
    }

    fn door() -> (TempDir, Door) {
        let directory = tempfile::tempdir().expect("a directory");
        let door = Door::open(&directory.path().join("door")).expect("a fresh directory");
        (directory, door)
    }
}
