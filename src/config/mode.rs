//! Which network a container is in.

use std::fmt;

/// The network of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// One of its own, through rnet.
    #[default]
    User,
    /// None: nothing but its own loopback.
    None,
    /// The host's.
    Host,
    /// That of a container, by its name or the beginning of its id, or of a process, by its number.
    Container(String),
}

impl NetworkMode {
    /// Whether rnet itself carries what the container sends.
    pub fn is_carried(&self) -> bool {
        match self {
            Self::User => true,
            Self::None | Self::Host | Self::Container(_) => false,
        }
    }
}

impl fmt::Display for NetworkMode {
    /// As `--net` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::None => f.write_str("none"),
            Self::Host => f.write_str("host"),
            Self::Container(whose) => write!(f, "container:{whose}"),
        }
    }
}
