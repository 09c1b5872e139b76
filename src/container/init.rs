//! The init of `--init`: pid 1 of the container with the command as its child.
//!
//! It forwards signals, reaps orphans and ends with the command, which ends everything else in the namespace.

use nix::errno::Errno;
use nix::sys::prctl::{set_dumpable, set_name};
use nix::sys::signal::{SigmaskHow, pthread_sigmask};
use nix::sys::signalfd::SignalFd;

use super::restrict::Restriction;
use super::supervise::{self, exit_status};
use crate::error::exit;
use crate::sys::process::{self, Child};
use crate::sys::signal;

/// Runs until `command` ends; its exit status. It is a part of rnet still, which the command must not look into, while
/// further commands of the caller have to find its namespaces, whoever its user is.
pub(super) fn main(command: &Child, restriction: &Restriction) -> u8 {
    let _ = set_name(c"rnet-init");
    process::erase_environment();
    if restriction.stand_beside().is_err() || set_dumpable(true).is_err() {
        // The command has met the same, and said so.
        let _ = command.reap();
        return exit::RNET_FAILED;
    }
    let set = signal::set_of(supervise::forwarded().chain([libc::SIGCHLD]));
    let blocked = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None);
    let Ok(signals) = blocked.and_then(|()| SignalFd::new(&set)) else {
        return exit::RNET_FAILED;
    };
    loop {
        // Before the first wait too: the command may have ended before its end could be signalled.
        if let Some(status) = reap(command) {
            return status;
        }
        match signals.read_signal() {
            Ok(Some(info)) if info.ssi_signo == libc::SIGCHLD as u32 => {}
            // One from the terminal has reached the command too, which shares the process group.
            Ok(Some(info)) if info.ssi_code == supervise::SI_KERNEL => {}
            Ok(Some(info)) => {
                let _ = command.signal(info.ssi_signo as i32);
            }
            Ok(None) | Err(Errno::EINTR) => {}
            Err(_) => return exit::RNET_FAILED,
        }
    }
}

/// Reaps what has ended; the command's status if it is among them.
fn reap(command: &Child) -> Option<u8> {
    let mut ended = std::iter::from_fn(process::reap_any);
    let (_, exit) = ended.find(|(pid, _)| *pid == command.pid)?;
    Some(exit_status(exit))
}
