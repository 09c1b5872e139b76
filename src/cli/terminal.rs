//! Options about the terminal of a command.

use clap::Args;

use super::args::CONTAINER;
use crate::config::Terminal;

/// What `run` and `exec` share.
#[derive(Args, Debug)]
pub(super) struct TerminalArgs {
    /// With --tty: type what comes from standard input. Without, standard input reaches the command in any case; of a
    /// container in the background (--detach) it never ends then, instead of being empty.
    #[arg(short, long, help_heading = CONTAINER)]
    pub(super) interactive: bool,

    /// Give the command a terminal of its own; without, it has the one that rnet has.
    #[arg(short, long, help_heading = CONTAINER)]
    tty: bool,
}

impl TerminalArgs {
    /// What the command's standard streams are.
    pub(super) fn settle(&self) -> Terminal {
        if self.tty { Terminal::Own { interactive: self.interactive } } else { Terminal::Inherited }
    }
}
