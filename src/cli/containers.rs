//! Commands about containers that are on record, and the words that they share.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::values;
use crate::config::{ContainersCall, ListShape, Logs, Since};

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum ContainersArgs {
    /// List containers.
    #[command(visible_alias = "list")]
    Ps(PsArgs),
    /// Print all that is known of containers, as a JSON array.
    Inspect(Names),
    /// Print what a container in the background has written.
    Logs(LogsArgs),
    /// End containers: by their stop signal, and by force if that is not enough.
    Stop(StopArgs),
    /// Send containers a signal.
    Kill(KillArgs),
    /// Show what containers use: processors, memory, network, processes.
    Stats(StatsArgs),
    /// Stop all processes of containers until `rnet unpause`.
    Pause(Names),
    /// Let the processes of paused containers go on.
    Unpause(Names),
    /// Wait until containers have ended, and print their exit statuses.
    Wait(Names),
    /// Remove what is kept of containers that have ended.
    Rm(RmArgs),
}

/// Containers.
#[derive(Args, Debug)]
pub(super) struct Names {
    /// The container: its name, or the beginning of its id.
    #[arg(value_name = "CONTAINER", required = true, value_parser = container)]
    names: Vec<String>,
}

#[derive(Args, Debug)]
pub(super) struct PsArgs {
    /// Those that have ended, too.
    #[arg(short, long)]
    all: bool,
    /// Print ids alone.
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON.
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

#[derive(Args, Debug)]
pub(super) struct LogsArgs {
    /// The container: its name, or the beginning of its id.
    #[arg(value_name = "CONTAINER", value_parser = container)]
    name: String,
    /// Go on with what comes, until the container ends.
    #[arg(short, long)]
    follow: bool,
    /// What was written since then: 90s, 10m, 1h30m ago, seconds since 1970, or 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Since>,
    /// Only so many lines at the end of what is there; all is the default.
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all", value_parser = tail)]
    tail: Tail,
    /// The time before each line.
    #[arg(short, long)]
    timestamps: bool,
}

#[derive(Args, Debug)]
pub(super) struct StatsArgs {
    /// The containers: names, or the beginnings of ids [default: all that run].
    #[arg(value_name = "CONTAINER", value_parser = container)]
    names: Vec<String>,
    /// Once, not every second.
    #[arg(long)]
    no_stream: bool,
    /// Print JSON: an array in a line for each look.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
pub(super) struct StopArgs {
    #[command(flatten)]
    names: Names,
    /// How long they may take before they are killed [default: 10, or --stop-timeout of `rnet run`].
    #[arg(short, long, value_name = "SECONDS")]
    time: Option<u32>,
}

#[derive(Args, Debug)]
pub(super) struct KillArgs {
    #[command(flatten)]
    names: Names,
    /// The signal, by name or number.
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = signal)]
    signal: i32,
}

#[derive(Args, Debug)]
pub(super) struct RmArgs {
    #[command(flatten)]
    names: Names,
    /// Kill those that run, and do not complain if there is none.
    #[arg(short, long)]
    force: bool,
}

/// How many lines; `None` is all.
#[derive(Clone, Copy, Debug)]
struct Tail(Option<usize>);

/// Settles a command about containers.
pub(super) fn settle(args: ContainersArgs) -> ContainersCall {
    match args {
        ContainersArgs::Ps(PsArgs { all, quiet, json }) => {
            let shape = match (quiet, json) {
                (true, _) => ListShape::Ids,
                (false, true) => ListShape::Json,
                (false, false) => ListShape::Table,
            };
            ContainersCall::List { all, shape }
        }
        ContainersArgs::Inspect(Names { names }) => ContainersCall::Inspect { names },
        ContainersArgs::Logs(LogsArgs { name, follow, since, tail: Tail(tail), timestamps }) => {
            ContainersCall::Logs(Logs { name, follow, since, tail, timestamps })
        }
        ContainersArgs::Stop(StopArgs { names: Names { names }, time }) => {
            ContainersCall::Stop { names, patience: time.map(|time| Duration::from_secs(time.into())) }
        }
        ContainersArgs::Kill(KillArgs { names: Names { names }, signal }) => {
            ContainersCall::Kill { names, signal }
        }
        ContainersArgs::Stats(StatsArgs { names, no_stream, json }) => {
            ContainersCall::Stats { names, once: no_stream, json }
        }
        ContainersArgs::Pause(Names { names }) => ContainersCall::Pause { names, paused: true },
        ContainersArgs::Unpause(Names { names }) => ContainersCall::Pause { names, paused: false },
        ContainersArgs::Wait(Names { names }) => ContainersCall::Wait { names },
        ContainersArgs::Rm(RmArgs { names: Names { names }, force }) => {
            ContainersCall::Remove { names, force }
        }
    }
}

/// Signals by number, from 1 on (signal(7)).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
/// The first and the last real-time signal that the C library leaves to programs.
const REAL_TIME: (i32, i32) = (34, 64);

/// Digits of a whole id.
const ID_DIGITS: usize = 64;

/// Parses a signal: `TERM`, `SIGTERM`, `15`, `RTMIN+3`.
pub(super) fn signal(text: &str) -> Result<i32, String> {
    let mistake =
        || format!("'{text}' is no signal; there are TERM, KILL, HUP, INT, USR1, ..., and numbers to 64");
    if let Ok(number) = text.parse() {
        return if (1..=REAL_TIME.1).contains(&number) { Ok(number) } else { Err(mistake()) };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |text: &str| text.parse::<i32>().ok().filter(|offset| (0..=30).contains(offset));
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => Some(REAL_TIME.0),
        (_, Some("")) => Some(REAL_TIME.1),
        (Some(plus), _) => plus.strip_prefix('+').and_then(offset).map(|offset| REAL_TIME.0 + offset),
        (_, Some(minus)) => minus.strip_prefix('-').and_then(offset).map(|offset| REAL_TIME.1 - offset),
        (None, None) => {
            let found = SIGNALS.iter().position(|known| *known == name);
            found.and_then(|at| i32::try_from(at + 1).ok())
        }
    };
    number.ok_or_else(mistake)
}

/// Parses what a container is called: a name, or the beginning of an id, which may be longer.
fn container(text: &str) -> Result<String, String> {
    let is_id = (1..=ID_DIGITS).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { Ok(text.to_owned()) } else { values::name(text) }
}

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(Tail(None)),
        number => {
            number.parse().map(|lines| Tail(Some(lines))).map_err(|_| "expected a number or all".to_owned())
        }
    }
}

/// Parses `--since`.
fn since(text: &str) -> Result<Since, String> {
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Since::Epoch(Duration::from_secs(seconds)));
    }
    if text.contains('T') {
        return Ok(Since::Moment(text.to_owned()));
    }
    duration(text)
        .map(Since::Ago)
        .ok_or_else(|| "expected such as 10m, 1h30m or 2026-01-31T12:00:00Z".to_owned())
}

/// Numbers with units, the largest first or not: `1h30m`.
fn duration(text: &str) -> Option<Duration> {
    const MAX_DAYS: u64 = 36_500;
    let mut rest = text;
    let mut total = 0u64;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        let unit = match rest.as_bytes().get(digits)? {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            _ => return None,
        };
        total = number.checked_mul(unit).and_then(|seconds| total.checked_add(seconds))?;
        rest = &rest[digits + 1..];
    }
    (!text.is_empty() && total <= MAX_DAYS * 86_400).then_some(Duration::from_secs(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in [
            ("TERM", 15),
            ("sigterm", 15),
            ("9", 9),
            ("SIGSYS", 31),
            ("RTMIN", 34),
            ("RTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(signal(text), Ok(number), "{text}");
        }
        for text in ["", "0", "65", "-9", "SIG", "TERMINATE", "RTMIN+31", "RTMAX+1", "RTMIN3"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_ago_or_moments() {
        let ago = |seconds| Ok(Since::Ago(Duration::from_secs(seconds)));
        assert_eq!(since("90s"), ago(90));
        assert_eq!(since("1h30m"), ago(5400));
        assert_eq!(since("1700000000"), Ok(Since::Epoch(Duration::from_secs(1_700_000_000))));
        assert!(matches!(since("2026-01-31T12:00:00Z"), Ok(Since::Moment(_))));
        for text in ["", "m", "10", "10x", "1h30", "99999999999999999999h", "-5m"] {
            assert!(!matches!(since(text), Ok(Since::Ago(_))), "{text}");
        }
    }
}
