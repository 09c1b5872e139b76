//! The container's first process, from fork to execve.
//!
//! It prints nothing: what goes wrong is reported to the parent, which has the words and the exit status.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{execve, sethostname, ttyname};

use super::channel::Channel;
use super::identity::{self, Ids};
use super::plan::Step;
use super::restrict::Restriction;
use super::userns::{forbidden, is_denied};
use super::{Connection, Launch, init, run, terminal};
use crate::config::Terminal;
use crate::error::{Context, Error, Result, exit};
use crate::sys::{link, process, signal};

/// Where commands are looked for if the environment has no PATH (docker's default).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is executed in the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program<'a> {
    /// Command and arguments.
    pub(super) command: &'a [OsString],
    /// The whole environment; a later name replaces an earlier one.
    pub(super) env: &'a [(OsString, OsString)],
    /// What it is left with.
    pub(super) restriction: &'a Restriction,
    /// Processes that its user may have, where no cgroup limits them.
    pub(super) processes: Option<u64>,
    /// The signal mask that the caller of rnet had.
    pub(super) mask: &'a SigSet,
}

/// What the parent has worked out for its child.
pub(super) struct Parts<'a> {
    pub(super) ids: &'a Ids,
    pub(super) steps: &'a [Step],
    pub(super) restriction: &'a Restriction,
    /// The signal mask that the caller of rnet had.
    pub(super) mask: &'a SigSet,
    /// Processes that the command's user may have, where no cgroup limits them.
    pub(super) processes: Option<u64>,
}

/// Sets the container up, waits for the parent's word and becomes the command, or its init.
pub(super) fn main(channel: Channel, launch: &Launch<'_>, parts: &Parts<'_>) -> u8 {
    let container = launch.container;
    let env = match prepare(&channel, launch, parts) {
        Ok(Some(home)) => with_home(&container.env, home),
        Ok(None) => return exit::RNET_FAILED,
        Err(error) => return fail(&channel, &error),
    };
    let program = Program {
        command: &container.command,
        env: &env,
        restriction: parts.restriction,
        processes: parts.processes,
        mask: parts.mask,
    };
    if !container.init {
        return become_command(&channel, &program);
    }
    let command = process::spawn(CloneFlags::empty(), channel, |channel| become_command(&channel, &program));
    command.map_or(exit::RNET_FAILED, |command| init::main(&command, parts.restriction))
}

pub(super) fn fail(channel: &Channel, error: &Error) -> u8 {
    channel.failed(error);
    error.code()
}

/// What [`identity::become_user`] says of the home; `None` if the parent died. Its death before PR_SET_PDEATHSIG shows as the
/// closed channel.
fn prepare(channel: &Channel, launch: &Launch<'_>, parts: &Parts<'_>) -> Result<Option<Option<String>>> {
    die_with_parent()?;
    if !channel.await_release() {
        return Ok(None);
    }
    match process::leave_session_keyring() {
        Ok(()) | Err(Errno::ENOSYS | Errno::EPERM) => {}
        Err(errno) => channel.note(&format!("the caller's session keyring stays in sight ({errno})")),
    }
    set_host_name(&launch.container.hostname)?;
    connect(channel, launch.network)?;
    parts.ids.enter()?;
    umask(Mode::empty());
    run::run(parts.steps, |text| channel.note(&text))?;
    umask(Mode::from_bits_truncate(0o022));
    let terminal = match launch.container.terminal {
        Terminal::Inherited => None,
        Terminal::Own { .. } => Some(terminal::make(channel)?),
    };
    terminal.as_ref().map_or(Ok(()), show_at_console)?;
    let home = identity::become_user(&launch.container.identity)?;
    die_with_parent()?;
    channel.ready().context("cannot report to", "parent")?;
    if !channel.await_release() {
        return Ok(None);
    }
    terminal.map_or(Ok(()), |terminal| terminal::take(&terminal))?;
    Ok(Some(home))
}

fn show_at_console(terminal: &OwnedFd) -> Result<()> {
    run::bind_console(&ttyname(terminal).context("cannot find", "the command's terminal")?)
}

/// To be repeated after a change of user, with which the kernel forgets it.
pub(super) fn die_with_parent() -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("cannot tie to its parent", "container")
}

/// The environment `env` with the variable HOME, if it has none and the user has a home.
pub(super) fn with_home(env: &[(OsString, OsString)], home: Option<String>) -> Vec<(OsString, OsString)> {
    let mut env = env.to_vec();
    if let Some(home) = home
        && env.iter().all(|(name, _)| name != "HOME")
    {
        env.push(("HOME".into(), home.into()));
    }
    env
}

fn connect(channel: &Channel, network: Connection<'_>) -> Result<()> {
    match network {
        Connection::Linked { link, network } => {
            let link = link::create(link, network)?;
            channel.link(&link).context("cannot pass on", "link")
        }
        Connection::Alone => link::bring_up_loopback(),
        Connection::Hosts | Connection::Shared(_) => Ok(()),
    }
}

/// The first thing that takes a capability, and so the first to fail where namespaces come without any.
fn set_host_name(name: &str) -> Result<()> {
    match sethostname(name).map_err(io::Error::from) {
        Err(cause) if is_denied(&cause) => Err(forbidden(&cause)),
        done => done.context("cannot set host name", name),
    }
}

/// Returns only if the command cannot be executed.
pub(super) fn become_command(channel: &Channel, program: &Program<'_>) -> u8 {
    // The Rust runtime ignores SIGPIPE, and launch resets SIGCHLD; the rest is as rnet inherited it.
    let prepared = signal::set_default(Signal::SIGPIPE)
        .and_then(|()| program.mask.thread_set_mask())
        .and_then(|()| process::close_on_exec())
        .context("cannot restore signals of", "command")
        .and_then(|()| program.processes.map_or(Ok(()), limit_processes))
        .and_then(|()| program.restriction.apply());
    let error = match prepared {
        Ok(()) => execute(program),
        Err(error) => error,
    };
    fail(channel, &error)
}

/// Limits the processes of this one's user within its user namespace; a lower limit stays.
fn limit_processes(most: u64) -> Result<()> {
    let limit = getrlimit(Resource::RLIMIT_NPROC);
    limit
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NPROC, most.min(hard), most.min(hard)))
        .context("cannot limit", "processes")
}

/// Becomes the command, or says why not.
fn execute(program: &Program<'_>) -> Error {
    let Some(name) = program.command.first() else {
        return Error::new("cannot run", "command", "none is given");
    };
    let arguments: Option<Vec<CString>> = program.command.iter().map(|word| c_string(word)).collect();
    let (Some(arguments), Some(environment)) = (arguments, environment(program.env)) else {
        return Error::new("cannot run", name.display(), "a NUL byte in an argument or variable");
    };
    let mut denied = None;
    for path in candidates(name, program.env) {
        let Some(c_path) = c_string(path.as_os_str()) else {
            continue;
        };
        let Err(errno) = execve(&c_path, &arguments, &environment);
        match errno {
            Errno::ENOENT if Path::new(&path).exists() => return without_interpreter(name),
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => denied = Some(path),
            other => return not_executable(&path, other),
        }
    }
    match denied {
        Some(path) => not_executable(&path, Errno::EACCES),
        None => not_found(name, program.env),
    }
}

/// Files that `name` may stand for, in order (environ(7), PATH).
fn candidates(name: &OsStr, env: &[(OsString, OsString)]) -> Vec<OsString> {
    if name.as_bytes().contains(&b'/') || name.is_empty() {
        return vec![name.to_owned()];
    }
    let directories = search_path(env).as_bytes().split(|&byte| byte == b':');
    directories.map(|directory| Path::new(OsStr::from_bytes(directory)).join(name).into_os_string()).collect()
}

fn search_path(env: &[(OsString, OsString)]) -> &OsStr {
    let path = env.iter().rev().find(|(variable, _)| variable == "PATH");
    path.map_or(OsStr::new(DEFAULT_PATH), |(_, value)| value)
}

/// `NAME=value` strings; of two with one name the later.
fn environment(env: &[(OsString, OsString)]) -> Option<Vec<CString>> {
    let is_last = |at: usize| env[at + 1..].iter().all(|(name, _)| *name != env[at].0);
    let last = env.iter().enumerate().filter(|(at, _)| is_last(*at));
    last.map(|(_, (name, value))| {
        let mut pair = name.clone();
        pair.push("=");
        pair.push(value);
        c_string(&pair)
    })
    .collect()
}

fn c_string(text: &OsStr) -> Option<CString> {
    CString::new(text.to_owned().into_vec()).ok()
}

fn not_found(name: &OsStr, env: &[(OsString, OsString)]) -> Error {
    let error = Error::new("cannot run", quoted_if_empty(name), "not found in the root filesystem")
        .exit_code(exit::NOT_FOUND);
    if name.as_bytes().contains(&b'/') || name.is_empty() {
        return error;
    }
    error.hint(format!("it was looked for in {}", search_path(env).display()))
}

fn quoted_if_empty(name: &OsStr) -> String {
    if name.is_empty() { "''".to_owned() } else { name.display().to_string() }
}

fn without_interpreter(name: &OsStr) -> Error {
    Error::new(
        "cannot run",
        name.display(),
        "its interpreter or dynamic loader is not in the root filesystem",
    )
    .exit_code(exit::NOT_FOUND)
}

fn not_executable(path: &OsStr, errno: Errno) -> Error {
    let cause = match errno {
        Errno::EACCES if Path::new(path).is_dir() => "it is a directory".to_owned(),
        _ => io::Error::from(errno).to_string(),
    };
    let error = Error::new("cannot run", path.display(), cause).exit_code(exit::NOT_EXECUTABLE);
    match errno {
        Errno::EACCES if !Path::new(path).is_dir() => error.hint(format!("chmod +x {}", path.display())),
        Errno::E2BIG => error.hint("arguments and environment together are too long"),
        Errno::ENOEXEC => error.hint("it is made for another architecture, or a script without a #! line"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    #[test]
    fn commands_are_looked_for_in_the_last_path() {
        let env = env(&[("PATH", "/x"), ("PATH", "/a:/b")]);
        assert_eq!(candidates(OsStr::new("sh"), &env), ["/a/sh", "/b/sh"]);
        assert_eq!(candidates(OsStr::new("./sh"), &env), ["./sh"]);
        assert!(candidates(OsStr::new("sh"), &[]).contains(&"/usr/bin/sh".into()));
    }

    #[test]
    fn later_variable_replaces_earlier_one() {
        let strings = environment(&env(&[("A", "1"), ("B", "2"), ("A", "3")])).expect("no NUL bytes");
        assert_eq!(strings, [c"B=2".to_owned(), c"A=3".to_owned()]);
    }
}
