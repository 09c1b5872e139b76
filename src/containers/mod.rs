//! Commands about containers that are on record: `rnet ps`, `inspect`, `logs`, `stop`, `kill`, `pause`, `unpause`, `wait`,
//! `rm` and `stats`.
//!
//! What is to be done to one that lives is asked of the rnet that keeps it. One that does not answer is ended with its
//! keeper, which the kernel does at once.

mod end;
mod list;
mod logs;
mod stats;

use std::io::{self, Write};

use crate::config::ContainersCall;
use crate::container;
use crate::error::{Context, Error, Result};
use crate::state::{self, Container};

/// Carries `call` out; the exit status.
pub fn carry_out(call: &ContainersCall) -> Result<u8> {
    container::sweep_layers();
    container::sweep_cgroups();
    match call {
        ContainersCall::List { all, shape } => list::list(*all, *shape),
        ContainersCall::Inspect { names } => list::inspect(names),
        ContainersCall::Logs(wanted) => logs::print(wanted),
        ContainersCall::Stop { names, patience } => end::stop(names, *patience),
        ContainersCall::Kill { names, signal } => {
            each(names, |name| end::kill(&state::find(name)?, *signal).and_then(|()| say(name)))
        }
        ContainersCall::Stats { names, once, json } => stats::stats(names, *once, *json),
        ContainersCall::Pause { names, paused } => {
            each(names, |name| end::pause(&state::find(name)?, *paused).and_then(|()| say(name)))
        }
        ContainersCall::Wait { names } => {
            each(names, |name| say(&end::wait(&state::find(name)?)?.to_string()))
        }
        ContainersCall::Remove { names, force } => {
            each(names, |name| if end::remove(name, *force)? { say(name) } else { Ok(()) })
        }
    }
}

/// Does `work` for every one of `names`; the last failure is that of all, and the others are told at once.
fn each(names: &[String], mut work: impl FnMut(&str) -> Result<()>) -> Result<u8> {
    let mut failed: Option<Error> = None;
    for name in names {
        if let Err(error) = work(name)
            && let Some(before) = failed.replace(error)
        {
            tracing::error!("{before}");
        }
    }
    failed.map_or(Ok(0), Err)
}

fn say(line: &str) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot write to", "standard output")
}

fn not_running(container: &Container) -> Error {
    Error::new("cannot reach the container", &container.record.name, "it is not running")
}
