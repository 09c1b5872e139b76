//! `rnet exec`: a further command in a container that is on record.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::Path;

use crate::config::{Exec, User};
use crate::container::{self, Entry, Foreground, Inside};
use crate::error::{Error, Result};
use crate::state::{self, Container, Record};

/// Runs the command of `call`; its exit status by docker's convention, or 0 once one of the background has started. When this
/// process is where it stays, it does `settle_down`.
pub fn exec(call: &Exec, settle_down: impl FnOnce() -> Result<()>) -> Result<u8> {
    let container = state::find(&call.container)?;
    container::enter_scope_beside(container.record.state.pid)?;
    settle_down()?;
    if call.detach {
        return container::detach(|foreground| run(call, &container, Some(foreground))).map(|()| 0);
    }
    run(call, &container, None)
}

fn run(call: &Exec, container: &Container, foreground: Option<Foreground>) -> Result<u8> {
    let process = container.first_process()?;
    let record = &container.record;
    let user = user(call, record)?;
    if foreground.is_some() {
        // The command's streams, too; errors still reach the foreground.
        container::let_go()?;
    }
    let workdir = Path::new(&record.config.working_dir);
    let mut running = container::enter(&Entry {
        inside: Inside { pid: record.state.pid, process: process.as_fd() },
        command: &call.command,
        env: &environment(call, record),
        workdir: call.workdir.as_deref().unwrap_or(if workdir.is_absolute() {
            workdir
        } else {
            Path::new("/")
        }),
        user: user.as_ref(),
        privileges: &record.rnet.privileges.granted(),
        processes: record.host_config.pids_limit,
        terminal: call.terminal,
    })?;
    running.start()?;
    foreground.map_or(Ok(()), Foreground::release)?;
    running.wait()
}

/// Who the command is; `None` is root.
fn user(call: &Exec, record: &Record) -> Result<Option<User>> {
    match (&call.user, record.config.user.as_str()) {
        (Some(user), _) => Ok(Some(user.clone())),
        (None, "") => Ok(None),
        (None, text) => text.parse().map(Some).map_err(|cause| Error::new("cannot become user", text, cause)),
    }
}

/// That of the container's command, and what the user asked for. Another user has another home.
fn environment(call: &Exec, record: &Record) -> Vec<(OsString, OsString)> {
    let pairs = record.config.env.iter().filter_map(|pair| pair.split_once('='));
    let kept = pairs.filter(|(name, _)| call.user.is_none() || *name != "HOME");
    let env = kept.map(|(name, value)| (name.into(), value.into()));
    env.chain(call.env.iter().cloned()).collect()
}
