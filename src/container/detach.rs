//! Into the background, but only once everything stands: until then the caller waits, and hears of every error.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use nix::unistd::{chdir, close, dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::channel::{Channel, Report};
use crate::error::{Context, Error, Result};
use crate::sys::process;

/// The foreground process, as seen from the background.
#[derive(Debug)]
pub struct Foreground(Channel);

impl Foreground {
    /// Lets it end well; the standard streams, the terminal and the working directory are let go of.
    pub fn release(self) -> Result<()> {
        let_go()?;
        self.0.ready().context("cannot report to", "the foreground process")
    }
}

/// Lets go of the standard streams and the working directory.
pub fn let_go() -> Result<()> {
    const NULL: &str = "/dev/null";
    let null = File::options().read(true).write(true).open(NULL).context("cannot open", NULL)?;
    chdir(Path::new("/")).context("cannot leave", "the working directory")?;
    dup2_stdin(&null)
        .and_then(|()| dup2_stdout(&null))
        .and_then(|()| dup2_stderr(&null))
        .context("cannot let go of", "the standard streams")
}

/// Does `work` with `stderr`, if there is one, as standard error. No other thread may exist.
pub(super) fn with_stderr<T>(stderr: Option<BorrowedFd<'_>>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    const WHAT: &str = "standard error";
    let Some(stderr) = stderr else { return work() };
    let ours = io::stderr().as_fd().try_clone_to_owned().context("cannot copy", WHAT)?;
    dup2_stderr(stderr).context("cannot lend", WHAT)?;
    let done = work();
    dup2_stderr(&ours).context("cannot take back", WHAT)?;
    done
}

/// Runs `work` in a background process of a new session, and returns when that has released the foreground or failed.
/// No thread may have been started before.
pub fn detach(work: impl FnOnce(Foreground) -> Result<u8>) -> Result<()> {
    let (ours, theirs) = Channel::pair().context("cannot create", "socket pair")?;
    let foregrounds = ours.as_fd().as_raw_fd();
    let child = process::fork(|| {
        // So that a foreground that was killed shows when all stands.
        let _ = close(foregrounds);
        background(theirs, work)
    });
    let child = child.context("cannot start", "a background process")?;
    match ours.receive().context("cannot hear from", "the background process")? {
        Some(Report::Ready) => Ok(()),
        Some(Report::Failed(error)) => {
            // Left to itself it would become the child of a runtime that waits for us, and some are confused by that.
            let _ = child.reap();
            Err(error)
        }
        _ => {
            let end = child.reap().map(|exit| format!("it ended too early ({exit:?})"));
            Err(Error::new("cannot start", "a background process", end.unwrap_or_default()))
        }
    }
}

fn background(channel: Channel, work: impl FnOnce(Foreground) -> Result<u8>) -> u8 {
    let Ok(for_errors) = channel.try_clone() else {
        return crate::error::exit::RNET_FAILED;
    };
    // Fails only for the leader of a process group, which a fresh child is not.
    let _ = setsid();
    work(Foreground(channel)).unwrap_or_else(|error| {
        for_errors.failed(&error);
        error.code()
    })
}
