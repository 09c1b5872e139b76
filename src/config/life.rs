//! How long a container is kept, and what becomes of it when its command ends.

use std::path::PathBuf;

/// The life of a container of `rnet run`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// What tells it from every other: 64 hexadecimal digits, of which the first [`Life::SHORT_ID`] are shown.
    pub id: String,
    /// Nothing of it is kept when its command has ended.
    pub remove: bool,
    /// Gets rnet's process id, in decimal and with a newline, once the command runs.
    pub pid_file: Option<PathBuf>,
}

impl Life {
    /// Digits of the id that are shown to people.
    pub const SHORT_ID: usize = 12;

    /// The first digits of the id.
    pub fn short_id(&self) -> &str {
        self.id.get(..Self::SHORT_ID).unwrap_or(&self.id)
    }
}
