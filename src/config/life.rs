//! How long a container is kept, and what becomes of it when its command ends.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

/// The same number on every architecture (signal(7)).
const SIGTERM: i32 = 15;

/// The life of a container of `rnet run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// What tells it from every other: 64 hexadecimal digits, of which the first [`Life::SHORT_ID`] are shown.
    pub id: String,
    /// Its command runs in the background; its output is kept.
    pub detach: bool,
    /// In the background: its input never ends, instead of being empty.
    pub keeps_stdin: bool,
    /// Most of its output that is kept, in bytes.
    pub max_log_bytes: u64,
    /// Nothing of it is kept when its command has ended.
    pub remove: bool,
    /// When its command is started again.
    pub restart: Restart,
    /// It goes on after a restart.
    pub resumed: Option<Resumed>,
    /// What asks its command to end.
    pub stop_signal: i32,
    /// How long that may take before it is killed.
    pub stop_timeout: Duration,
    /// Gets rnet's process id, in decimal and with a newline, once the command runs.
    pub pid_file: Option<PathBuf>,
}

/// When a command that has ended is started again; never once somebody wants it to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// When its status is not 0.
    OnFailure {
        /// So often at most.
        most: Option<u32>,
    },
    /// Always.
    Always,
}

/// What a keeper that has become a new process takes over from itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// The descriptor that has the container's directory locked.
    pub lock: RawFd,
}

impl Life {
    /// Digits of the id that are shown to people.
    pub const SHORT_ID: usize = 12;

    /// Output that is kept unless another amount is asked for. The runtime directory is in memory, and often small.
    pub const LOG_BYTES: u64 = 4 * 1024 * 1024;
    /// Least output that can be asked for: a few of the longest lines.
    pub const MIN_LOG_BYTES: u64 = 256 * 1024;

    /// The first digits of the id.
    pub fn short_id(&self) -> &str {
        self.id.get(..Self::SHORT_ID).unwrap_or(&self.id)
    }
}

impl Default for Life {
    /// One in the foreground that leaves nothing.
    fn default() -> Self {
        Self {
            id: String::new(),
            detach: false,
            keeps_stdin: false,
            max_log_bytes: Self::LOG_BYTES,
            remove: true,
            restart: Restart::No,
            resumed: None,
            stop_signal: SIGTERM,
            stop_timeout: Duration::from_secs(10),
            pid_file: None,
        }
    }
}
