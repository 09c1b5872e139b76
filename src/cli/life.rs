//! Options about how long a container is kept, and what they mean together.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Surroundings, containers, values};
use crate::config::{Life, Restart, Resumed};

/// `rnet run`: what a container is called, where it runs, how it is ended and what stays of it.
#[derive(Args, Debug)]
pub(super) struct LifeArgs {
    /// What the container and its network are called [default: rnet's process id, with --detach the beginning of the
    /// container's id]. One with a name is kept when it has ended, until `rnet rm`.
    #[arg(long, value_name = "NAME", value_parser = values::name, help_heading = LIFE)]
    name: Option<String>,

    /// Run in the background, and print the container's id. Its output is kept for `rnet logs`, and it is kept when it
    /// has ended, until `rnet rm`.
    #[arg(short, long, help_heading = LIFE)]
    detach: bool,

    /// Keep nothing of the container when it has ended.
    #[arg(long, help_heading = LIFE)]
    rm: bool,

    /// Start the command again when it has ended: no, on-failure[:N] (but N times at most), always or unless-stopped,
    /// which is the same here. A signal or `rnet stop` ends it for good.
    #[arg(
        long,
        value_name = "POLICY",
        default_value = "no",
        value_parser = restart,
        conflicts_with = "rm",
        help_heading = LIFE
    )]
    restart: Restart,

    /// Goes on with a container whose command is started again.
    #[arg(long, value_name = "FD,ID", value_parser = resumed, hide = true)]
    resume: Option<(Resumed, String)>,

    /// What `rnet stop` sends, by name or number [default: the image's, or TERM].
    #[arg(long, value_name = "SIGNAL", value_parser = containers::signal, help_heading = LIFE)]
    pub(super) stop_signal: Option<i32>,

    /// How long the container may take to end then before it is killed.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = LIFE)]
    stop_timeout: u32,

    /// Write rnet's process id to this file once the command runs.
    #[arg(long, value_name = "PATH", help_heading = LIFE)]
    pid_file: Option<PathBuf>,

    /// Most output that is kept of a container in the background, at least 256k; units are k, m and g.
    #[arg(long, value_name = "BYTES", default_value = "4m", value_parser = log_bytes, help_heading = LIFE)]
    log_max: u64,
}

const LIFE: &str = "Life";

/// Settles them: what the container is called, if it is, and its life.
pub(super) fn settle(
    args: LifeArgs,
    keeps_stdin: bool,
    surroundings: &Surroundings,
) -> (Option<String>, Life) {
    let (resumed, known) = args.resume.unzip();
    let life = Life {
        id: known.unwrap_or_else(|| id(surroundings)),
        restart: args.restart,
        resumed,
        detach: args.detach,
        keeps_stdin,
        max_log_bytes: args.log_max,
        remove: args.rm || !(args.detach || args.name.is_some()),
        stop_signal: args.stop_signal.unwrap_or(Life::default().stop_signal),
        stop_timeout: Duration::from_secs(args.stop_timeout.into()),
        pid_file: args.pid_file.map(|path| surroundings.cwd.join(path)),
    };
    let generated = args.detach.then(|| life.short_id().to_owned());
    (args.name.or(generated), life)
}

/// A drawn id, as hexadecimal digits.
fn id(surroundings: &Surroundings) -> String {
    // What comes before is secret.
    surroundings.random[16..].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn restart(text: &str) -> Result<Restart, String> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("no", "") => Ok(Restart::No),
        ("always" | "unless-stopped", "") => Ok(Restart::Always),
        ("on-failure", "") if !text.ends_with(':') => Ok(Restart::OnFailure { most: None }),
        ("on-failure", most) => {
            let most = most.parse().map_err(|_| format!("'{most}' is no number of times"))?;
            Ok(Restart::OnFailure { most: Some(most) })
        }
        _ => Err("expected no, on-failure[:N], always or unless-stopped".to_owned()),
    }
}

fn resumed(text: &str) -> Result<(Resumed, String), String> {
    let (lock, id) = text.split_once(',').ok_or("expected FD,ID")?;
    let lock = lock.parse().map_err(|_| "expected a descriptor")?;
    Ok((Resumed { lock }, id.to_owned()))
}

fn log_bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['k', 'm', 'g', 'K', 'M', 'G']) {
        Some(digits) if text.ends_with(['k', 'K']) => (digits, 1 << 10),
        Some(digits) if text.ends_with(['m', 'M']) => (digits, 1 << 20),
        Some(digits) => (digits, 1 << 30),
        None => (text, 1),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.filter(|bytes| *bytes >= Life::MIN_LOG_BYTES).ok_or_else(|| "expected 256k or more".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies_are_dockers() {
        let on_failure = |most| Ok(Restart::OnFailure { most });
        assert_eq!(restart("no"), Ok(Restart::No));
        assert_eq!(
            (restart("always"), restart("unless-stopped")),
            (Ok(Restart::Always), Ok(Restart::Always))
        );
        assert_eq!((restart("on-failure"), restart("on-failure:3")), (on_failure(None), on_failure(Some(3))));
        for text in ["", "yes", "no:1", "always:3", "on-failure:", "on-failure:x", "on-failure:-1"] {
            assert!(restart(text).is_err(), "{text}");
        }
    }

    #[test]
    fn log_sizes_have_units_and_a_least() {
        assert_eq!(log_bytes("4m"), Ok(Life::LOG_BYTES));
        assert_eq!(log_bytes("256K"), Ok(256 * 1024));
        assert_eq!(log_bytes("300000"), Ok(300_000));
        for text in ["", "k", "255k", "1", "4mb", "-1m", "99999999999999g"] {
            assert!(log_bytes(text).is_err(), "{text}");
        }
    }
}
