//! Between two lives of a container: nothing of it is there, but its signals still mean it.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::SignalFd;

use super::{next_signal, supervise};
use crate::error::{Context, Result};

/// The signals of a container that has ended, as they are still held back from rnet.
#[derive(Debug)]
pub struct Interlude {
    pub(super) signals: SignalFd,
    /// The signal mask that the caller of rnet had.
    pub(super) mask: SigSet,
}

impl Interlude {
    /// Lets `pause` pass; false if a signal came that would end a program.
    pub fn last(&self, pause: Duration) -> Result<bool> {
        let began = Instant::now();
        loop {
            while let Some(info) = next_signal(&self.signals)? {
                if supervise::ends_by_default(info.ssi_signo as i32) {
                    return Ok(false);
                }
            }
            let rest = pause.saturating_sub(began.elapsed());
            if rest.is_zero() {
                return Ok(true);
            }
            // Rounded up, lest the last millisecond be spent in turns.
            let timeout = PollTimeout::try_from(rest.as_millis() + 1).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for", "signals"),
            }
        }
    }

    /// Signals mean rnet again, as its caller had them.
    pub fn over(self) -> Result<()> {
        self.mask.thread_set_mask().context("cannot restore", "signals")
    }
}
