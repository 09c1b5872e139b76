//! A further command in a container that runs.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Terminal, User};

/// `rnet exec`. What is not said is as for the container's own command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// The container's name, or the beginning of its id.
    pub container: String,
    /// Command and arguments; never empty.
    pub command: Vec<OsString>,
    /// Variables beside those of the container's command, in order; a later name replaces an earlier one.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory inside, absolute.
    pub workdir: Option<PathBuf>,
    /// Who it is.
    pub user: Option<User>,
    /// Its standard streams.
    pub terminal: Terminal,
    /// It runs in the background, without input and output.
    pub detach: bool,
}
