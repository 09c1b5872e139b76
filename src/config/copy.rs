//! Files that go into a container that runs, or come out of it.

use std::path::PathBuf;

/// `rnet cp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The container's name, or the beginning of its id.
    pub container: String,
    /// From where; absolute, with a `/` or `/.` at its end as it was given.
    pub source: PathBuf,
    /// To where; the same holds.
    pub destination: PathBuf,
    /// It goes into the container.
    pub inward: bool,
    /// What the source is a link to is copied, instead of the link.
    pub follow: bool,
}
