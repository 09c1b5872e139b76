//! `rnet exec`: a command in a container that runs.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

use super::settle::{self, variable};
use super::terminal::TerminalArgs;
use super::values::{self, EnvSpec};
use super::{Surroundings, args};
use crate::config::{Exec, Terminal, User};

#[derive(Args, Debug)]
pub(super) struct ExecArgs {
    #[command(flatten)]
    terminal: TerminalArgs,

    /// Set a variable for the command, or take it over from here (NAME alone). Repeatable.
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = args::os(values::env))]
    env: Vec<EnvSpec>,

    /// Working directory inside, absolute [default: that of the container's command].
    #[arg(short, long, value_name = "DIR", value_parser = args::os(values::workdir))]
    workdir: Option<PathBuf>,

    /// Be this user of the container: NAME|UID[:GROUP|GID] [default: that of the container's command].
    #[arg(short, long, value_name = "USER", value_parser = User::from_str)]
    user: Option<User>,

    /// Leave the command in the background, without input and output.
    #[arg(short, long)]
    detach: bool,

    /// CONTAINER, the command and its arguments; one list, so that the first ends the options.
    #[arg(value_name = "CONTAINER", required = true, trailing_var_arg = true, hide = true)]
    words: Vec<OsString>,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  rnet exec -it web sh
  rnet exec -u www-data -e LANG=C web ls /srv
  tar c site | rnet exec -i web tar x -C /srv

Exit status: the command's own; 128+N if signal N ended it; 127 if it was not found, 126 if it
cannot be executed, 125 if rnet itself failed. The command ends with its rnet, and with the container.";

/// Settles it. The error is a sentence for the user.
pub(super) fn settle(args: ExecArgs, surroundings: &Surroundings) -> Result<Exec, String> {
    let (container, command) = split(args.words)?;
    let terminal = args.terminal.settle();
    let mut env = Vec::new();
    if terminal != Terminal::Inherited {
        let term = variable(surroundings, "TERM").unwrap_or(OsStr::new("xterm"));
        env.push(("TERM".into(), term.to_owned()));
    }
    env.extend(settle::asked_for(args.env, surroundings));
    Ok(Exec {
        container,
        command,
        env,
        workdir: args.workdir,
        user: args.user,
        terminal,
        detach: args.detach,
    })
}

/// The container's name, and the command. A `--` between them is skipped.
fn split(words: Vec<OsString>) -> Result<(String, Vec<OsString>), String> {
    let mut words = words.into_iter();
    let container = words.next().unwrap_or_default();
    let container = values::name(&container.to_string_lossy())?;
    let command: Vec<_> = words.enumerate().filter(|(at, word)| *at > 0 || word != "--").collect();
    if command.is_empty() {
        return Err(format!("there is no command to execute in {container}; a shell would be sh"));
    }
    Ok((container, command.into_iter().map(|(_, word)| word).collect()))
}
