//! What a signal to rnet means for its container.
//!
//! The kernel drops a signal to a PID namespace's init unless the init has asked for it, so a command that
//! relies on default actions (`nc`, `sleep`) would survive Ctrl-C. [`decide`] does for it what the default
//! action would have done.

use std::fs;

use libc::c_int;
use nix::unistd::Pid;

use crate::sys::process::Exit;
use crate::sys::signal as raw;

/// `ssi_code` of a signal that the kernel sent: for the terminal, to all of its foreground group.
pub(super) const SI_KERNEL: c_int = 0x80;

/// What a process has arranged for a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Disposition {
    Default,
    Ignored,
    Caught,
    /// Held back, usually to be read with signalfd or sigwait.
    Blocked,
}

/// What to do about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Send it on.
    Deliver,
    /// Stop the container's first process, then rnet itself.
    StopBoth,
    /// Send it on, then stop rnet itself.
    DeliverAndStop,
    /// Kill the container, as the default action would.
    Kill,
}

/// The signals that are passed on: all but those that cannot be caught, that come from children or urgent
/// data, and that tell rnet of faults of its own.
pub(super) fn forwarded() -> impl Iterator<Item = c_int> {
    const KEPT: [c_int; 11] = [
        libc::SIGKILL,
        libc::SIGSTOP,
        libc::SIGCHLD,
        libc::SIGURG,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGSYS,
        libc::SIGPIPE,
    ];
    raw::all().filter(|signal| !KEPT.contains(signal))
}

/// Whether the default action of `signal` ends a process (signal(7)).
pub(super) fn ends_by_default(signal: c_int) -> bool {
    let harmless = [libc::SIGCHLD, libc::SIGURG, libc::SIGWINCH, libc::SIGCONT];
    !stops_by_default(signal) && !harmless.contains(&signal)
}

/// Whether the default action of `signal` stops a process.
pub(super) fn stops_by_default(signal: c_int) -> bool {
    [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal)
}

/// What to do about `signal`, given what the container's first process has arranged for it and whether it
/// `arrived` there already (the terminal signals a whole process group).
pub(super) fn decide(signal: c_int, disposition: Disposition, arrived: bool) -> Action {
    let pass_on = if arrived { Action::Nothing } else { Action::Deliver };
    match disposition {
        Disposition::Ignored if signal != libc::SIGCONT => Action::Nothing,
        Disposition::Default if ends_by_default(signal) => Action::Kill,
        Disposition::Default | Disposition::Caught if stops_by_default(signal) => Action::StopBoth,
        Disposition::Blocked if stops_by_default(signal) => Action::DeliverAndStop,
        _ => pass_on,
    }
}

/// What `pid` has arranged for `signal`; [`Disposition::Caught`] if that cannot be seen.
pub(super) fn disposition(pid: Pid, signal: c_int) -> Disposition {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    disposition_in(&status, signal)
}

fn disposition_in(status: &str, signal: c_int) -> Disposition {
    let bit = 1u64 << (signal - 1);
    let holds = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).map(|mask| mask & bit != 0)
    };
    match (holds("SigBlk:"), holds("SigIgn:"), holds("SigCgt:")) {
        (_, _, Some(true) | None) => Disposition::Caught,
        (Some(true), _, _) => Disposition::Blocked,
        (_, Some(true), _) => Disposition::Ignored,
        _ => Disposition::Default,
    }
}

/// The shell's convention: the exit code, or 128 and the signal's number.
pub(super) fn exit_status(exit: Exit) -> u8 {
    match exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => killed_by(signal),
    }
}

/// 128 and the signal's number.
pub(super) fn killed_by(signal: c_int) -> u8 {
    128u8.saturating_add(u8::try_from(signal).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_action_ends_a_command_that_asked_for_nothing() {
        for arrived in [false, true] {
            assert_eq!(decide(libc::SIGINT, Disposition::Default, arrived), Action::Kill);
            assert_eq!(decide(libc::SIGTSTP, Disposition::Default, arrived), Action::StopBoth);
        }
        assert_eq!(decide(libc::SIGWINCH, Disposition::Default, false), Action::Deliver);
        assert_eq!(decide(libc::SIGHUP, Disposition::Ignored, false), Action::Nothing);
    }

    #[test]
    fn what_the_command_handles_is_delivered_once() {
        assert_eq!(decide(libc::SIGTERM, Disposition::Caught, false), Action::Deliver);
        assert_eq!(decide(libc::SIGINT, Disposition::Caught, true), Action::Nothing);
        assert_eq!(decide(libc::SIGTSTP, Disposition::Blocked, false), Action::DeliverAndStop);
        assert_eq!(decide(libc::SIGCONT, Disposition::Ignored, false), Action::Deliver);
    }

    #[test]
    fn dispositions_are_read_from_proc() {
        let status =
            "Name:\tsh\nSigBlk:\t0000000000010000\nSigIgn:\t0000000000000004\nSigCgt:\t0000000000000002\n";
        assert_eq!(disposition_in(status, libc::SIGINT), Disposition::Caught);
        assert_eq!(disposition_in(status, libc::SIGQUIT), Disposition::Ignored);
        assert_eq!(disposition_in(status, libc::SIGCHLD), Disposition::Blocked);
        assert_eq!(disposition_in(status, libc::SIGTERM), Disposition::Default);
        assert_eq!(disposition_in("", libc::SIGTERM), Disposition::Caught);
    }

    #[test]
    fn every_signal_but_the_kept_is_forwarded() {
        let forwarded: Vec<_> = forwarded().collect();
        assert!(forwarded.contains(&libc::SIGTERM) && forwarded.contains(&libc::SIGRTMAX()));
        assert!(!forwarded.contains(&libc::SIGCHLD) && !forwarded.contains(&libc::SIGKILL));
    }
}
