//! The host's own root, copy-on-write.
//!
//! In a user namespace overlayfs refuses a lower directory with mounts below it, `/` first of all, but takes
//! the directories between them. So the root is a tmpfs: a directory without mounts below becomes an
//! overlay, one with mounts is rebuilt entry by entry ([`SPLIT_DEPTH`] levels at most), symbolic links and
//! small files are copied, and what remains is bound read-only. Nothing here changes the host.
//!
//! An overlay's directories keep their owner, who is nobody inside, unless the upper layer has a directory of
//! that name: so the upper levels ([`SKELETON_DEPTH`]) of every overlay are made there beforehand.

use std::collections::VecDeque;
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, Uid, eaccess};

use super::plan::{Access, Bind, Overlay, Step, of_host};
use crate::error::{Context, Result};

/// Levels of directories that are rebuilt because of mounts below them; deeper ones become read-only.
const SPLIT_DEPTH: usize = 5;
/// A directory with more entries is bound read-only rather than rebuilt.
const SPLIT_ENTRIES: usize = 1024;
/// Levels below an overlay's top that belong to root inside.
const SKELETON_DEPTH: usize = 3;
/// Directories made beforehand in all overlays together: a few tens of milliseconds.
const SKELETON_DIRECTORIES: usize = 4096;
/// A larger file of a rebuilt directory is bound instead of copied.
const COPY_BYTES: u64 = 1 << 20;
/// Directories that the container gets of its own.
const FRESH: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

/// What the copy is made of.
#[derive(Debug)]
pub(super) struct HostCopy {
    /// Parents before children.
    pub(super) nodes: Vec<Node>,
    /// Where the overlays keep their writes: as a step names it.
    pub(super) layers: PathBuf,
}

impl HostCopy {
    /// Where its overlays are.
    pub(super) fn overlays(&self) -> impl Iterator<Item = &Path> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Overlay { path, .. } => Some(path.as_path()),
            _ => None,
        })
    }
}

/// One entry of the copy; paths are the host's, absolute.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// A directory of its own: rebuilt, or empty because the caller cannot read the original.
    Directory { path: PathBuf, mode: u32 },
    /// A symbolic link.
    Symlink { path: PathBuf, target: PathBuf },
    /// A small regular file.
    File { path: PathBuf },
    /// A copy-on-write directory.
    Overlay { path: PathBuf, mode: u32, skeleton: Vec<(PathBuf, u32)> },
    /// Anything else, read-only.
    Bind { path: PathBuf },
}

/// Mount points and the one directory that must not show: why directories are rebuilt.
struct Obstacles {
    mounts: Vec<PathBuf>,
    hidden: Option<PathBuf>,
}

/// What becomes of a directory.
#[derive(Debug, PartialEq, Eq)]
enum Treatment {
    Skip,
    Empty,
    Split,
    Overlay,
    Bind,
}

/// Steps that build the copy in the new root.
pub(super) fn plan(copy: &HostCopy) -> Vec<Step> {
    let mut steps = Vec::with_capacity(copy.nodes.len());
    for (number, node) in copy.nodes.iter().enumerate() {
        steps.push(match node {
            Node::Directory { path, mode } => Step::Directory { path: path.clone(), mode: *mode },
            Node::Symlink { path, target } => Step::Symlink { path: path.clone(), target: target.clone() },
            Node::File { path } => Step::Copy { source: of_host(path), path: path.clone() },
            Node::Bind { path } => Step::Bind(Bind {
                source: of_host(path),
                target: path.clone(),
                access: Access::ReadOnly,
                required: false,
            }),
            Node::Overlay { path, mode, skeleton } => Step::Overlay(Overlay {
                lower: of_host(path),
                upper: copy.layers.join(format!("upper-{number}")),
                work: copy.layers.join(format!("work-{number}")),
                target: path.clone(),
                mode: *mode,
                skeleton: skeleton.clone(),
            }),
        });
    }
    steps
}

/// Looks at the host's root. `hidden` (the overlays' own storage, if on disk) stays out of the copy.
pub(super) fn survey(hidden: Option<&Path>) -> Result<Vec<Node>> {
    let obstacles = Obstacles { mounts: mounts_of_the_host()?, hidden: hidden.map(Path::to_owned) };
    let user = Uid::effective().as_raw();
    let mut walk = Walk { obstacles, user, nodes: Vec::new(), skeleton_left: SKELETON_DIRECTORIES };
    let entries = entries_of(Path::new("/")).context("cannot read directory", "/")?;
    for entry in entries {
        walk.visit(&entry, 1);
    }
    Ok(walk.nodes)
}

/// Mount points below `top`, which is not one of them.
pub(super) fn mounts_below(top: &Path) -> Result<Vec<PathBuf>> {
    let mut mounts = mounts_of_the_host()?;
    mounts.retain(|path| path != top && path.starts_with(top));
    Ok(mounts)
}

/// All mount points in sight, absolute.
fn mounts_of_the_host() -> Result<Vec<PathBuf>> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).context("cannot read", path)?;
    Ok(mount_points(&text))
}

/// Mount points in the text of /proc/PID/mountinfo (proc_pid_mountinfo(5): the fifth field, with octal escapes).
fn mount_points(mountinfo: &str) -> Vec<PathBuf> {
    let fields = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    fields.map(|field| PathBuf::from(unescape(field))).collect()
}

fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(field.to_owned(), |text, (code, character)| text.replace(code, character))
}

fn entries_of(directory: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}

fn can_list(directory: &Path) -> bool {
    eaccess(directory, AccessFlags::R_OK | AccessFlags::X_OK).is_ok()
}

/// Whether everybody can; seldom wrong, and the kernel need not be asked.
fn all_can_list(metadata: &Metadata) -> bool {
    metadata.mode() & 0o005 == 0o005
}

impl Obstacles {
    fn treatment(&self, path: &Path, depth: usize, readable: bool) -> Treatment {
        if FRESH.iter().any(|fresh| path == Path::new(fresh)) || self.hidden.as_deref() == Some(path) {
            return Treatment::Skip;
        }
        let is_below = |other: &PathBuf| other != path && other.starts_with(path);
        let split = self.mounts.iter().chain(&self.hidden).any(is_below);
        match (readable, split) {
            (false, false) => Treatment::Empty,
            (false, true) => Treatment::Bind,
            (true, false) => Treatment::Overlay,
            (true, true) if depth < SPLIT_DEPTH => Treatment::Split,
            (true, true) => Treatment::Bind,
        }
    }
}

struct Walk {
    obstacles: Obstacles,
    /// The caller.
    user: u32,
    nodes: Vec<Node>,
    skeleton_left: usize,
}

impl Walk {
    /// Adds `entry` and, if it is rebuilt, what is in it. What vanishes meanwhile is left out.
    fn visit(&mut self, entry: &DirEntry, depth: usize) {
        let path = entry.path();
        let Ok(metadata) = entry.metadata() else { return };
        let kind = metadata.file_type();
        if kind.is_dir() {
            self.visit_directory(path, metadata.mode() & 0o7777, depth);
        } else if kind.is_symlink() {
            self.nodes.extend(fs::read_link(&path).ok().map(|target| Node::Symlink { path, target }));
        } else if kind.is_file() && metadata.len() <= COPY_BYTES && eaccess(&path, AccessFlags::R_OK).is_ok()
        {
            self.nodes.push(Node::File { path });
        } else if !kind.is_socket() {
            self.nodes.push(Node::Bind { path });
        }
    }

    fn visit_directory(&mut self, path: PathBuf, mode: u32, depth: usize) {
        match self.obstacles.treatment(&path, depth, can_list(&path)) {
            Treatment::Skip => {}
            Treatment::Empty => self.nodes.push(Node::Directory { path, mode: mode | 0o700 }),
            Treatment::Bind => self.nodes.push(Node::Bind { path }),
            Treatment::Overlay => {
                let skeleton = self.skeleton(&path);
                self.nodes.push(Node::Overlay { path, mode: mode | 0o700, skeleton });
            }
            Treatment::Split => match entries_of(&path) {
                Ok(entries) if entries.len() <= SPLIT_ENTRIES => {
                    self.nodes.push(Node::Directory { path, mode: mode | 0o700 });
                    for entry in &entries {
                        self.visit(entry, depth + 1);
                    }
                }
                _ => self.nodes.push(Node::Bind { path }),
            },
        }
    }

    /// Directories of `top` to make beforehand, breadth first: those of other owners, and those on the way.
    fn skeleton(&mut self, top: &Path) -> Vec<(PathBuf, u32)> {
        let mut skeleton = Vec::new();
        let mut queue = VecDeque::from([(PathBuf::new(), 0)]);
        while let Some((directory, depth)) = queue.pop_front() {
            for entry in entries_of(&top.join(&directory)).unwrap_or_default() {
                let Some(mode) = self.foreign_directory(&entry) else {
                    continue;
                };
                if self.skeleton_left == 0 {
                    return skeleton;
                }
                self.skeleton_left -= 1;
                let path = directory.join(entry.file_name());
                skeleton.push((path.clone(), mode));
                if depth + 1 < SKELETON_DEPTH {
                    queue.push_back((path, depth + 1));
                }
            }
        }
        skeleton
    }

    /// The mode of a directory that the caller can list but does not own.
    fn foreign_directory(&self, entry: &DirEntry) -> Option<u32> {
        if !entry.file_type().ok()?.is_dir() {
            return None;
        }
        let metadata = entry.metadata().ok()?;
        let takes_part = metadata.uid() != self.user && (all_can_list(&metadata) || can_list(&entry.path()));
        takes_part.then_some(metadata.mode() & 0o7777 | 0o700)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn obstacles(mounts: &[&str], hidden: Option<&str>) -> Obstacles {
        Obstacles { mounts: mounts.iter().map(PathBuf::from).collect(), hidden: hidden.map(PathBuf::from) }
    }

    #[test]
    fn only_directories_with_mounts_below_are_rebuilt() {
        let host = obstacles(&["/", "/proc", "/home", "/var/lib/docker"], None);
        assert_eq!(host.treatment(Path::new("/usr"), 1, true), Treatment::Overlay);
        assert_eq!(host.treatment(Path::new("/home"), 1, true), Treatment::Overlay);
        assert_eq!(host.treatment(Path::new("/var"), 1, true), Treatment::Split);
        assert_eq!(host.treatment(Path::new("/var/lib"), SPLIT_DEPTH, true), Treatment::Bind);
        assert_eq!(host.treatment(Path::new("/var/library"), 2, true), Treatment::Overlay);
        assert_eq!(host.treatment(Path::new("/proc"), 1, true), Treatment::Skip);
        assert_eq!(host.treatment(Path::new("/root"), 1, false), Treatment::Empty);
    }

    #[test]
    fn storage_of_the_writes_is_kept_out_of_the_lower_layers() {
        let host = obstacles(&["/"], Some("/home/me/.cache/rnet"));
        assert_eq!(host.treatment(Path::new("/home/me"), 2, true), Treatment::Split);
        assert_eq!(host.treatment(Path::new("/home/me/.cache/rnet"), 4, true), Treatment::Skip);
        assert_eq!(host.treatment(Path::new("/home/you"), 2, true), Treatment::Overlay);
    }

    #[test]
    fn mount_points_are_unescaped() {
        let text = "22 27 0:21 / /proc rw - proc proc rw\n28 27 0:25 / /mnt/a\\040b\\134c ro - tmpfs x ro\n";
        assert_eq!(mount_points(text), [Path::new("/proc"), Path::new("/mnt/a b\\c")]);
    }

    #[test]
    fn every_overlay_has_layers_of_its_own() {
        let overlay = |path: &str| Node::Overlay { path: path.into(), mode: 0o755, skeleton: Vec::new() };
        let copy = HostCopy { nodes: vec![overlay("/etc"), overlay("/usr")], layers: "/tmp/l".into() };
        let uppers: Vec<_> = plan(&copy)
            .into_iter()
            .filter_map(|step| match step {
                Step::Overlay(overlay) => Some((overlay.lower, overlay.upper)),
                _ => None,
            })
            .collect();
        let expected = [("etc", "/tmp/l/upper-0"), ("usr", "/tmp/l/upper-1")];
        assert_eq!(uppers, expected.map(|(lower, upper)| (lower.into(), upper.into())));
    }
}
