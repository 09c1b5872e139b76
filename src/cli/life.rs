//! Options about how long a container is kept, and what they mean together.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{Surroundings, containers, values};
use crate::config::Life;

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

    /// What `rnet stop` sends, by name or number.
    #[arg(long, value_name = "SIGNAL", default_value = "TERM", value_parser = containers::signal, help_heading = LIFE)]
    stop_signal: i32,

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
    let life = Life {
        id: id(surroundings),
        detach: args.detach,
        keeps_stdin,
        max_log_bytes: args.log_max,
        remove: args.rm || !(args.detach || args.name.is_some()),
        stop_signal: args.stop_signal,
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
    fn log_sizes_have_units_and_a_least() {
        assert_eq!(log_bytes("4m"), Ok(Life::LOG_BYTES));
        assert_eq!(log_bytes("256K"), Ok(256 * 1024));
        assert_eq!(log_bytes("300000"), Ok(300_000));
        for text in ["", "k", "255k", "1", "4mb", "-1m", "99999999999999g"] {
            assert!(log_bytes(text).is_err(), "{text}");
        }
    }
}
