//! Starting a container's command again after its end: when, and how.
//!
//! A process that forks has one thread, and one that has carried a network has several. So the keeper becomes a new rnet
//! (execve(2)) with the same command line, working directory and process id, which takes over the container's directory with
//! its lock; nobody sees it unlocked. What it must know beyond the command line is in the record.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use nix::unistd::{execv, fchdir};

use crate::config::{Config, Restart};
use crate::container::Interlude;
use crate::error::{Context, Error, Result};
use crate::serve::FileLimit;
use crate::state::{Kept, Record};

/// The pause before the first start; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A command that has run for so long begins with the first pause again.
const STABLE: Duration = Duration::from_secs(10);
/// The subcommand behind which the option for the new rnet goes.
const SUBCOMMAND: &str = "run";

/// What a further start needs of this one.
#[derive(Debug)]
pub(super) struct Restarting {
    policy: Restart,
    directory: OwnedFd,
    files: FileLimit,
}

impl Restarting {
    /// To be called before anything is changed; `None` if the policy of `config` is to start once.
    pub(super) fn prepare(config: &Config) -> Result<Option<Self>> {
        if config.life.restart == Restart::No {
            return Ok(None);
        }
        let directory = File::open(".").context("cannot open", "the working directory")?.into();
        Ok(Some(Self { policy: config.life.restart, directory, files: FileLimit::read()? }))
    }

    /// Starts the command again if it is to be, which does not return. Else `Ok`: the end that was put on record stands.
    pub(super) fn start_again(&self, kept: &mut Kept, status: u8, interlude: Interlude) -> Result<()> {
        if !wants(self.policy, status, kept.record().restart_count) {
            return Ok(());
        }
        let pause = next_pause(kept.record());
        kept.change(|record| record.restarts_after(status, pause))?;
        if !interlude.last(pause)? {
            return Ok(());
        }
        let arguments = arguments(kept.lend()?.as_raw_fd(), &kept.record().id)?;
        self.files.restore()?;
        fchdir(&self.directory).context("cannot enter", "the working directory")?;
        // What ends programs ends this one from now on; the next command finds out.
        interlude.over()?;
        match execv(c"/proc/self/exe", &arguments) {
            Ok(never) => match never {},
            Err(errno) => Err(errno).context("cannot start", "rnet again"),
        }
    }
}

fn wants(policy: Restart, status: u8, restarts: u32) -> bool {
    match policy {
        Restart::No => false,
        Restart::OnFailure { most } => status != 0 && most.is_none_or(|most| restarts < most),
        Restart::Always => true,
    }
}

fn next_pause(record: &Record) -> Duration {
    let ran = record.state.started_at.age().unwrap_or_default();
    let last = Duration::from_millis(record.rnet.pause_ms);
    if ran >= STABLE || last.is_zero() { FIRST_PAUSE } else { (last * 2).min(LONGEST_PAUSE) }
}

/// The command line of the rnet that goes on.
fn arguments(lock: i32, id: &str) -> Result<Vec<CString>> {
    let mut words: Vec<OsString> = std::env::args_os().collect();
    if words.get(1).is_none_or(|word| word != SUBCOMMAND) {
        return Err(Error::new(
            "cannot start",
            "the command again",
            "its command line is not that of `rnet run`",
        ));
    }
    let resumed = words.get(2).is_some_and(|word| word.as_encoded_bytes().starts_with(b"--resume="));
    words.splice(2..2 + usize::from(resumed), [format!("--resume={lock},{id}").into()]);
    let words = words.into_iter().map(|word| CString::new(word.into_vec()));
    words
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| Error::new("cannot pass on", "arguments", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Timestamp;

    #[test]
    fn policies_mean_what_they_mean_to_docker() {
        let on_failure = |most| Restart::OnFailure { most };
        for (policy, status, restarts, again) in [
            (Restart::No, 1, 0, false),
            (Restart::Always, 0, 1000, true),
            (on_failure(None), 0, 0, false),
            (on_failure(None), 1, 1000, true),
            (on_failure(Some(2)), 1, 1, true),
            (on_failure(Some(2)), 1, 2, false),
        ] {
            assert_eq!(wants(policy, status, restarts), again, "{policy:?} {status} {restarts}");
        }
    }

    #[test]
    fn pauses_double_up_to_a_minute_unless_the_command_was_stable() {
        let mut record = Record::default();
        record.started();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            record.rnet.pause_ms = next_pause(&record).as_millis() as u64;
            pauses.push(record.rnet.pause_ms);
        }
        assert_eq!(pauses[..4], [100, 200, 400, 800]);
        assert_eq!(pauses[10..], [60_000, 60_000]);
        record.state.started_at = Timestamp::now().earlier(STABLE);
        assert_eq!(next_pause(&record), FIRST_PAUSE);
    }
}
