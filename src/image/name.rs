//! Names in archives, taken apart: whatever they say, they stay below the root.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// What the names of a layer that delete others begin with (OCI image specification, layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// Deletes what lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What a union filesystem of old has left behind.
const AUFS: &[u8] = b".wh..wh.";

/// Where an entry belongs, relative to the root: no part is `..`, `.` or empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// The root itself.
    Root,
    /// `last` in the directory `parent`, which is empty for the root.
    Below { parent: PathBuf, last: OsString },
}

/// What the name of a layer's entry means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// To be there.
    Present(Name),
    /// Not to be there, if a lower layer has it.
    Absent(Name),
    /// Nothing of lower layers is to be in this directory.
    Alone(Name),
    /// Nothing.
    Nothing,
}

impl Name {
    /// Of `path` as an archive has it: a leading `/` counts for nothing. `None` if it would leave the root.
    pub(super) fn of(path: &[u8]) -> Option<Self> {
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return None,
                // No system call would see what follows.
                _ if part.contains(&0) => return None,
                _ => parts.push(part),
            }
        }
        let Some(last) = parts.pop() else {
            return Some(Self::Root);
        };
        let parent = OsString::from_vec(parts.join(&b'/'));
        Some(Self::Below { parent: parent.into(), last: OsStr::from_bytes(last).to_owned() })
    }

    /// Of `path` in a layer. `None` if it would leave the root.
    pub(super) fn in_layer(path: &[u8]) -> Option<Meaning> {
        let name = Self::of(path)?;
        let Self::Below { parent, last } = &name else {
            return Some(Meaning::Present(name));
        };
        match last.as_bytes() {
            OPAQUE => Self::of(parent.as_os_str().as_bytes()).map(Meaning::Alone),
            last if last.starts_with(AUFS) => Some(Meaning::Nothing),
            last => match last.strip_prefix(WHITEOUT) {
                None => Some(Meaning::Present(name)),
                Some(b"" | b"." | b"..") => None,
                Some(hidden) => Some(Meaning::Absent(Self::Below {
                    parent: parent.clone(),
                    last: OsStr::from_bytes(hidden).to_owned(),
                })),
            },
        }
    }

    /// The whole path, empty for the root.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Root => PathBuf::new(),
            Self::Below { parent, last } => Path::new(parent).join(last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below(parent: &str, last: &str) -> Name {
        Name::Below { parent: parent.into(), last: last.into() }
    }

    #[test]
    fn names_stay_below_the_root() {
        assert_eq!(Name::of(b"./a//b/./c/"), Some(below("a/b", "c")));
        assert_eq!(Name::of(b"/etc/passwd"), Some(below("etc", "passwd")));
        assert_eq!(Name::of(b"a"), Some(below("", "a")));
        for root in [b"".as_slice(), b".", b"./", b"///"] {
            assert_eq!(Name::of(root), Some(Name::Root));
        }
        for outside in [b"..".as_slice(), b"../a", b"a/../../b", b"a/..", b"/..", b"a\0b"] {
            assert_eq!(Name::of(outside), None);
        }
        assert_eq!(Name::of(b"..a/b..").map(|name| name.path()), Some("..a/b..".into()));
    }

    #[test]
    fn layers_delete_by_name() {
        assert_eq!(Name::in_layer(b"a/.wh.b"), Some(Meaning::Absent(below("a", "b"))));
        assert_eq!(Name::in_layer(b"a/b/.wh..wh..opq"), Some(Meaning::Alone(below("a", "b"))));
        assert_eq!(Name::in_layer(b".wh..wh..opq"), Some(Meaning::Alone(Name::Root)));
        assert_eq!(Name::in_layer(b".wh..wh.plnk"), Some(Meaning::Nothing));
        assert_eq!(Name::in_layer(b"a/wh.b"), Some(Meaning::Present(below("a", "wh.b"))));
        for outside in [b"a/.wh...".as_slice(), b"a/.wh..", b"a/.wh.", b"../.wh.a"] {
            assert_eq!(Name::in_layer(outside), None);
        }
    }
}
