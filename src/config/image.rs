//! What a command line says over what an image says of itself.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// How an image is to be run, if ROOTFS is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUse {
    /// Takes the place of the image's entry point, and of its command; one that is empty leaves none.
    pub entrypoint: Option<OsString>,
    /// What takes the place of the image's command, unless it is empty.
    pub arguments: Vec<OsString>,
    /// Variables that count more than those of the image.
    pub env: Vec<(OsString, OsString)>,
    /// Which ids exist inside was asked for.
    pub ids_given: bool,
    /// What asks the command to end was asked for.
    pub stop_signal_given: bool,
    /// Publish every port that it exposes at a port of the kernel's choice.
    pub publish_all: bool,
    /// Which of its variants; `None` is this machine's.
    pub platform: Option<Platform>,
}

/// What programs are made for (OCI image specification, image-index.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Such as `linux`.
    pub os: String,
    /// As Go calls it, such as `amd64`.
    pub architecture: String,
    /// Such as `v8`; `None` is any.
    pub variant: Option<String>,
}

/// What to do with trees that have been unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheCall {
    /// List them; `json`: as a JSON array.
    List {
        /// Prints JSON.
        json: bool,
    },
    /// Remove these, unless a container uses one.
    Remove(Vec<TreeName>),
    /// Remove all that no container uses, and that none has used for so long.
    Prune(Duration),
}

/// A tree as somebody calls it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeName {
    /// As it was written: perhaps the beginning of its digest.
    pub word: String,
    /// The same as an absolute path: perhaps what it was made of.
    pub path: PathBuf,
}

impl Platform {
    /// Parses `OS/ARCHITECTURE[/VARIANT]`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let mut next = || parts.next().filter(|part| !part.is_empty()).map(str::to_owned);
        let (os, architecture, variant) = (next()?, next()?, next());
        let platform = Self { os, architecture, variant };
        // Nothing more, and no empty variant.
        (platform.to_string() == text).then_some(platform)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_has_two_or_three_parts() {
        for text in ["linux/amd64", "linux/arm/v7"] {
            assert_eq!(Platform::parse(text).map(|platform| platform.to_string()).as_deref(), Some(text));
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/", "linux/arm/v7/x"] {
            assert_eq!(Platform::parse(text), None);
        }
    }
}
