//! The caller's terminal: as it was, as rnet needs it, and given back.
//!
//! A command that has no terminal of its own shares the caller's, and may leave it in any state. One that has
//! ([`Console`]) wants every key, so the caller's is raw for that long. Only SIGKILL keeps rnet from undoing that.

mod console;
mod inside;
mod stream;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::pty::Winsize;
use nix::sys::signal::{self, SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcdrain, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp, tcsetpgrp, ttyname};

pub(super) use self::console::{Console, Key};
pub(super) use self::inside::{make, take};
use crate::sys::pty;

/// The terminal of the standard streams.
#[derive(Debug)]
pub(super) struct Terminal {
    tty: OwnedFd,
    /// As they were while it was rnet's; `None` while that cannot be said.
    modes: Option<Termios>,
}

impl Terminal {
    /// Finds it, and remembers its modes if rnet is in its foreground.
    pub(super) fn capture() -> Option<Self> {
        let tty = terminal()?;
        let modes = tcgetattr(&tty).ok()?;
        let ours = tcgetpgrp(&tty) == Ok(getpgrp());
        Some(Self { tty, modes: ours.then_some(modes) })
    }

    /// Has it hand on every key as it is, and print what it gets. Like any job that wants its terminal, rnet stops here
    /// while it is in the background.
    pub(super) fn make_raw(&mut self) {
        self.await_foreground();
        if self.modes.is_none() {
            self.modes = tcgetattr(&self.tty).ok();
        }
        if let Some(mut modes) = self.modes.clone() {
            cfmakeraw(&mut modes);
            // A terminal that has been hung up has no modes to set, and nobody to type.
            let _ = tcsetattr(&self.tty, SetArg::TCSANOW, &modes);
        }
    }

    /// Makes a harmless request for which the kernel stops a group of the background, unless nobody could bring it
    /// forward.
    fn await_foreground(&self) {
        let stop = SigSet::from(Signal::SIGTTOU);
        let mut before = SigSet::empty();
        if pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&stop), Some(&mut before)).is_ok() {
            let _ = tcdrain(&self.tty);
            let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
        }
    }

    /// Takes it back from a group that is gone and undoes changes of its modes. Leaves it alone if someone else has it
    /// by now. SIGTTOU must be blocked.
    pub(super) fn restore(&self) {
        let Some(modes) = &self.modes else {
            return;
        };
        if let Ok(foreground) = tcgetpgrp(&self.tty)
            && foreground != getpgrp()
        {
            if signal::killpg(foreground, None::<Signal>) != Err(Errno::ESRCH) {
                return;
            }
            let _ = tcsetpgrp(&self.tty, getpgrp());
        }
        let _ = tcsetattr(&self.tty, SetArg::TCSADRAIN, modes);
    }

    fn size(&self) -> Option<Winsize> {
        pty::size(&self.tty).ok()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// The device file of the terminal of the standard streams.
pub(super) fn path() -> Option<PathBuf> {
    ttyname(terminal()?).ok()
}

/// The first standard stream that is a terminal.
fn terminal() -> Option<OwnedFd> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let streams = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let terminal = streams.into_iter().find(|stream| tcgetattr(stream).is_ok())?;
    terminal.try_clone_to_owned().ok()
}
