//! Signal sets with real-time signals, which nix's enum cannot name.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

use libc::c_int;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;

/// The set of `signals`; numbers that the C library reserves are left out.
pub(crate) fn set_of(signals: impl Iterator<Item = c_int>) -> SigSet {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `set` is writable memory for one sigset_t.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: sigemptyset has initialised `set`; a number out of range only gives EINVAL.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: sigemptyset has initialised it.
    let set = unsafe { set.assume_init() };
    // SAFETY: an initialised sigset_t; only membership is asked of it, never its Signal values.
    unsafe { SigSet::from_sigset_t_unchecked(set) }
}

/// Every signal there is, SIGRTMAX included.
pub(crate) fn all() -> std::ops::RangeInclusive<c_int> {
    1..=libc::SIGRTMAX()
}

/// Gives `signal` its default action.
pub(crate) fn set_default(signal: Signal) -> nix::Result<()> {
    let action = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    unsafe { sigaction(signal, &action) }.map(drop)
}

/// kill(2) with any signal number.
pub(crate) fn kill(pid: Pid, signal: c_int) -> nix::Result<()> {
    // SAFETY: takes no pointers.
    let sent = unsafe { libc::kill(pid.as_raw(), signal) };
    Errno::result(sent).map(drop)
}
