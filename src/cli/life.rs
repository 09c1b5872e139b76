//! Options about how long a container is kept, and what they mean together.

use std::path::PathBuf;

use clap::Args;

use super::{Surroundings, values};
use crate::config::Life;

/// `rnet run`: what a container is called, and what stays of it.
#[derive(Args, Debug)]
pub(super) struct LifeArgs {
    /// What the container and its network are called [default: rnet's process id].
    #[arg(long, value_name = "NAME", value_parser = values::name, help_heading = LIFE)]
    pub(super) name: Option<String>,

    /// No effect: nothing of a container is kept.
    #[arg(long, help_heading = LIFE)]
    rm: bool,

    /// Write rnet's process id to this file once the command runs.
    #[arg(long, value_name = "PATH", help_heading = LIFE)]
    pid_file: Option<PathBuf>,
}

const LIFE: &str = "Life";

/// Settles them.
pub(super) fn settle(args: &LifeArgs, surroundings: &Surroundings) -> Life {
    Life {
        id: id(surroundings),
        remove: true,
        pid_file: args.pid_file.as_ref().map(|path| surroundings.cwd.join(path)),
    }
}

/// A drawn id, as hexadecimal digits.
fn id(surroundings: &Surroundings) -> String {
    // What comes before is secret.
    surroundings.random[16..].iter().map(|byte| format!("{byte:02x}")).collect()
}
