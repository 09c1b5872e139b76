//! How containers are ended, from kindly to certainly.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{each, not_running, say};
use crate::container::{Command, signal_others};
use crate::control;
use crate::control::protocol::Request;
use crate::error::{Error, Result};
use crate::state::{self, Container, Status};
use crate::sys::process;

/// How long the rnet that keeps a container may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long a container that is killed may take to be gone: its keeper still delivers what it has sent (`io::stop`).
const GONE: Duration = Duration::from_secs(12);

/// Ends the containers `names` by their stop signals, all at once, and by force those that have not ended after
/// `patience`.
pub(super) fn stop(names: &[String], patience: Option<Duration>) -> Result<u8> {
    let began = Instant::now();
    let mut told = Vec::new();
    let asked = each(names, |name| {
        let container = state::find(name)?;
        let signal = container.record.config.stop_signal;
        if container.record.state.status != Status::Exited {
            tell(&container, Command::Signal { number: signal, last: true });
            if container.record.state.status == Status::Paused {
                // To hear of it, it must go on; if it does not, it is killed in time.
                let _ = pause(&container, false);
            }
        }
        told.push((name.to_owned(), container));
        Ok(())
    });
    let mut ended = Ok(0);
    for (name, container) in told {
        let patience = patience.unwrap_or_else(|| Duration::from_secs(container.record.config.stop_timeout));
        let rest = patience.saturating_sub(began.elapsed());
        let one = match container.wait(Some(rest)) {
            Ok(None) => kill_for_good(&container),
            Ok(Some(_)) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = one.and_then(|()| say(&name)) {
            ended = Err(error);
        }
    }
    asked.and(ended)
}

/// Tells it to end. Where nobody listens it waits to be started again: then its keeper is to end. If neither is heard, it
/// is killed in time.
fn tell(container: &Container, command: Command) {
    if ask(container, command).is_err()
        && !control::listens(&container.record.name)
        && let Some(keeper) = container.keeper()
    {
        let _ = process::signal(keeper.as_fd(), Signal::SIGTERM as i32);
    }
}

/// Sends `container` a signal. One that kills is for good: it is not started again.
pub(super) fn kill(container: &Container, signal: i32) -> Result<()> {
    match container.record.state.status {
        Status::Running | Status::Paused => {}
        Status::Created | Status::Restarting | Status::Exited => return Err(not_running(container)),
    }
    let asked = ask(container, Command::Signal { number: signal, last: signal == Signal::SIGKILL as i32 });
    match asked {
        // Its keeper may end before it has answered.
        Err(_) if container.wait(Some(ANSWER))?.is_some() => Ok(()),
        asked => asked,
    }
}

/// Has all processes of `container` stand still, or go on.
pub(super) fn pause(container: &Container, paused: bool) -> Result<()> {
    let name = &container.record.name;
    match (container.record.state.status, paused) {
        (Status::Running, true) | (Status::Paused, false) => {}
        (Status::Paused, true) => return Err(Error::new("cannot pause", name, "it is paused already")),
        (Status::Running, false) => return Err(Error::new("cannot unpause", name, "it is not paused")),
        _ => return Err(not_running(container)),
    }
    ask(container, Command::Pause(paused))?;
    let frozen = container.record.rnet.frozen || state::find(&container.record.id)?.record.rnet.frozen;
    if frozen { Ok(()) } else { signal_others(&container.first_process()?, paused) }
}

/// Waits for the end of `container`; its exit status.
pub(super) fn wait(container: &Container) -> Result<u8> {
    Ok(container.wait(None)?.unwrap_or_default())
}

/// Removes what is kept of the container `name`; with `force` also one that runs, and that there is none is no failure.
/// Whether there was one.
pub(super) fn remove(name: &str, force: bool) -> Result<bool> {
    let container = match state::find(name) {
        Err(_) if force => return Ok(false),
        found => found?,
    };
    if !force || container.record.state.status == Status::Exited {
        return container.remove().map(|()| true);
    }
    kill_for_good(&container)?;
    // It may have been one of which nothing is kept.
    state::find(&container.record.id).map_or(Ok(()), Container::remove).map(|()| true)
}

/// Kills it, with its keeper if that does not do it, and returns when it is gone.
fn kill_for_good(container: &Container) -> Result<()> {
    let killed = ask(container, Command::Signal { number: Signal::SIGKILL as i32, last: true });
    if killed.is_ok() && container.wait(Some(GONE))?.is_some() {
        return Ok(());
    }
    if let Some(keeper) = container.keeper() {
        // It may have ended by itself in this moment.
        let _ = process::signal(keeper.as_fd(), Signal::SIGKILL as i32);
    }
    match container.wait(Some(GONE))? {
        Some(_) => Ok(()),
        None => {
            Err(Error::new("cannot end the container", &container.record.name, "the kernel does not end it"))
        }
    }
}

fn ask(container: &Container, command: Command) -> Result<()> {
    control::ask_within(&container.record.name, &Request::Container(command), ANSWER).map(drop)
}
