//! Performs the steps of a plan, in the container's namespaces.
//!
//! Mount points are resolved here as the container will see them: a symbolic link of its root filesystem,
//! dangling or not, leads to somewhere inside.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Component, Path, PathBuf};
use std::slice;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, fchdir, pivot_root};

use super::plan::{Access, Bind, Mount, Overlay, RootOverlay, Step};
use super::userns::is_denied;
use crate::config::Owned;
use crate::error::{Context, Error, Result};
use crate::sys::mount::Tree;

/// Symbolic links followed for one mount point (the kernel's own limit).
const MAX_SYMLINKS: usize = 40;
/// Most that mount(2) takes as options: a page, with the NUL byte.
const MOUNT_OPTION_BYTES: usize = 4095;
const ROOT_FAILED: &str = "cannot mount root filesystem on";
const NO_OVERLAY: &str = "an overlay takes directories without mounts below them, and keeps its writes outside of them \
                          on a disk filesystem or in memory; without --overlay writes go to ROOTFS itself";
const NOTHING: Option<&str> = None;

/// Performs `steps`; `note` hears of what could not be had but is no reason to give up.
pub(super) fn run(steps: &[Step], note: impl FnMut(String)) -> Result<()> {
    let mut interpreter = Interpreter { host: None, to_seal: Vec::new(), note };
    steps.iter().try_for_each(|step| interpreter.perform(step))
}

/// Shows the container's own terminal `path` at /dev/console too.
pub(super) fn bind_console(path: &Path) -> Result<()> {
    let console = mount_point(Path::new("/dev/console"), Kind::File)?;
    attach(path, &console, Access::ReadWrite).context("cannot bind", console.display())
}

struct Interpreter<N> {
    /// The host's root, until it is left.
    host: Option<OwnedFd>,
    /// Mounts that become read-only.
    to_seal: Vec<Tree>,
    note: N,
}

impl<N: FnMut(String)> Interpreter<N> {
    fn perform(&mut self, step: &Step) -> Result<()> {
        match step {
            Step::EnterDirectory(path) => self.enter(path, |root| {
                let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
                mount(Some(root), root, NOTHING, bind, NOTHING).context(ROOT_FAILED, root.display())
            }),
            Step::EnterTmpfs => self.enter(Path::new("/tmp"), |root| {
                mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::MS_NODEV, Some("mode=755"))
                    .context(ROOT_FAILED, root.display())
            }),
            Step::EnterOverlay(overlay) => self.enter(&overlay.lower[0], |root| {
                let done = mount_root_overlay(overlay, root).context(ROOT_FAILED, root.display());
                done.map_err(|error| error.hint(NO_OVERLAY))
            }),
            Step::KeepHost => make_private(),
            Step::Tell { path, value } => {
                if let Err(cause) = fs::write(path, value) {
                    (self.note)(format!("cannot write {}: {cause}", path.display()));
                }
                Ok(())
            }
            Step::Directory { path, mode } => directory(path, *mode).context("cannot create", path.display()),
            Step::File { path, content } => write_file(path, content).context("cannot write", path.display()),
            Step::Symlink { path, target } => {
                std::os::unix::fs::symlink(target, path).context("cannot link", path.display())
            }
            Step::Copy { source, path } => {
                fs::copy(source, path).map(drop).context("cannot copy", path.display())
            }
            Step::Mount(mount) => self.mount(mount),
            Step::Bind(bind) => self.bind(bind),
            Step::Overlay(overlay) => self.overlay(overlay),
            Step::Cgroup => {
                if let Err(cause) = show_cgroup() {
                    (self.note)(format!("the container does not see its own cgroup: {cause}"));
                }
                Ok(())
            }
            Step::Mask(path) => mask(path).context("cannot hide", path.display()),
            Step::Hold(path) => {
                self.to_seal.push(Tree::existing(path).context("cannot open mount", path.display())?);
                Ok(())
            }
            Step::Seal => {
                let mut held = self.to_seal.drain(..);
                held.try_for_each(|tree| tree.read_only(false))
                    .context("cannot make read-only", "root filesystem")
            }
            Step::Unmount(path) => {
                umount2(path, MntFlags::MNT_DETACH).context("cannot unmount", path.display())
            }
            Step::LeaveHost => self.leave_host(),
            Step::GiveAway(owned) => {
                give_away(owned).context("cannot give away", "files of the root filesystem")
            }
            Step::Reach(path) => mount_point(path, Kind::Directory).map(drop),
            Step::WorkDir { path, optional } => match chdir(path) {
                Err(_) if *optional => Ok(()),
                done => done.context("cannot enter working directory", path.display()).map_err(|error| {
                    error.hint("it must be a directory of the root filesystem or of a volume (-v)")
                }),
            },
        }
    }

    /// Makes `root` a mount by `prepare`, then the root directory. "." for the old root's place stacks it
    /// on the new one, out of the way of paths from "/" (pivot_root(2)).
    fn enter(&mut self, root: &Path, prepare: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        make_private()?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let host = open("/", flags, Mode::empty()).context("cannot open", "/")?;
        prepare(root)?;
        chdir(root).context("cannot enter root filesystem", root.display()).map_err(|error| {
            error.hint("you need the permission to search it (chmod +x) and the directories above it")
        })?;
        pivot_root(".", ".").context("cannot make root", root.display())?;
        fchdir(&host).context("cannot enter", "the host's root")?;
        self.host = Some(host);
        Ok(())
    }

    fn leave_host(&mut self) -> Result<()> {
        umount2(".", MntFlags::MNT_DETACH).context("cannot unmount", "the host's root")?;
        self.host = None;
        chdir("/").context("cannot enter", "/")
    }

    fn mount(&mut self, wanted: &Mount) -> Result<()> {
        let Mount { fstype, flags, data, .. } = wanted;
        let target = mount_point(&wanted.target, Kind::Directory)?;
        let done =
            mount(Some(*fstype), &target, Some(*fstype), *flags, Some(&**data)).map_err(io::Error::from);
        let (Err(cause), Some(source)) = (&done, &wanted.instead) else {
            return done.context("cannot mount", format!("{fstype} on {}", target.display()));
        };
        if !is_denied(cause) {
            return done.context("cannot mount", format!("{fstype} on {}", target.display()));
        }
        (self.note)(format!(
            "the kernel refuses a new {fstype} here ({cause}); the host's own is shown instead"
        ));
        let read_only = flags.contains(MsFlags::MS_RDONLY);
        let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
        attach(source, &target, access).context("cannot bind", format!("the host's {}", target.display()))
    }

    fn bind(&mut self, bind: &Bind) -> Result<()> {
        match bind_at_mount_point(bind) {
            Err(error) if !bind.required => {
                if bind.source.exists() {
                    (self.note)(error.to_string());
                }
                Ok(())
            }
            done => done,
        }
    }

    fn overlay(&mut self, overlay: &Overlay) -> Result<()> {
        let target = &overlay.target;
        directory(target, overlay.mode).context("cannot create", target.display())?;
        make_layers(overlay).context("cannot prepare layers of", target.display())?;
        let lower = slice::from_ref(&overlay.lower);
        let Err(cause) = mount_overlay(lower, &overlay.upper, &overlay.work, target) else {
            return Ok(());
        };
        (self.note)(format!("{} is read-only: no overlay of it can be made ({cause})", target.display()));
        attach(&overlay.lower, target, Access::ReadOnly).context("cannot bind", target.display())
    }
}

/// Gives files to their owners, but for those whose owner does not exist, and those that a kept layer has changed.
fn give_away(owned: &[Owned]) -> io::Result<()> {
    let root = fs::metadata("/")?;
    for Owned { path, uid, gid } in owned {
        let found = match fs::symlink_metadata(path) {
            Err(cause) if matches!(cause.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
            found => found?,
        };
        if (found.uid(), found.gid()) != (root.uid(), root.gid()) {
            continue;
        }
        match lchown(path, Some(*uid), Some(*gid)) {
            // Nobody has that id here.
            Err(cause) if cause.raw_os_error() == Some(Errno::EINVAL as i32) => {}
            // The kernel takes set-id bits with the owner.
            Ok(()) if found.is_file() && found.mode() & 0o6000 != 0 => {
                fs::set_permissions(path, found.permissions())?;
            }
            done => done?,
        }
    }
    Ok(())
}

/// Mounts the root's overlay on `root`, the topmost lower directory.
fn mount_root_overlay(overlay: &RootOverlay, root: &Path) -> io::Result<()> {
    let RootOverlay { lower, layers, .. } = overlay;
    if overlay.in_memory {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), layers, Some("tmpfs"), flags, Some("mode=700"))?;
    }
    let (upper, work) = (layers.join("upper"), layers.join("work"));
    directory(&work, 0o700)?;
    directory(&upper, overlay.mode)?;
    mount_overlay(lower, &upper, &work, root)?;
    if overlay.in_memory {
        umount2(layers, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

/// Mounts `lower`, the topmost first, with writes to `upper`.
fn mount_overlay(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let mut data = OsString::from("userxattr");
    for (number, path) in lower.iter().enumerate() {
        data.push(if number == 0 { ",lowerdir=" } else { ":" });
        data.push(escaped(path));
    }
    for (option, path) in [(",upperdir=", upper), (",workdir=", work)] {
        data.push(option);
        data.push(escaped(path));
    }
    if data.len() > MOUNT_OPTION_BYTES {
        return Err(io::Error::other("the names of its layers are too long for mount(2)"));
    }
    Ok(mount(Some("overlay"), target, Some("overlay"), MsFlags::MS_NODEV, Some(&*data))?)
}

fn make_private() -> Result<()> {
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(NOTHING, "/", NOTHING, private, NOTHING).context("cannot make private", "mounts")
}

/// Binds `source` on `target`, both of which exist.
fn attach(source: &Path, target: &Path, access: Access) -> io::Result<()> {
    let tree = Tree::copy(source)?;
    match access {
        Access::ReadWrite => {}
        Access::ReadOnly => tree.read_only(true)?,
        Access::TopReadOnly => tree.read_only(false)?,
    }
    tree.attach(target)
}

fn bind_at_mount_point(bind: &Bind) -> Result<()> {
    let source = name_outside(&bind.source);
    let metadata = fs::metadata(&bind.source).context("cannot find", source.display())?;
    let kind = if metadata.is_dir() { Kind::Directory } else { Kind::File };
    let target = mount_point(&bind.target, kind)?;
    let both = || format!("{} on {}", source.display(), target.display());
    if target.is_dir() != metadata.is_dir() {
        let error = Error::new("cannot bind", both(), "one is a directory, the other a file");
        return Err(error.hint("bind a directory on a directory, or a file on a file"));
    }
    attach(&bind.source, &target, bind.access).context("cannot bind", both())
}

/// The root of what cgroup namespace a process is in is the cgroup that it was in when it entered: so it enters one anew.
fn show_cgroup() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWCGROUP)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), flags, NOTHING)?)
}

/// The name that the user knows for the source of a bind: a relative one is seen from the host's root.
fn name_outside(source: &Path) -> PathBuf {
    Path::new("/").join(source)
}

fn make_layers(overlay: &Overlay) -> io::Result<()> {
    let parent = overlay.upper.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).create(parent)?;
    directory(&overlay.work, 0o700)?;
    directory(&overlay.upper, overlay.mode)?;
    let mut skeleton = overlay.skeleton.iter();
    skeleton.try_for_each(|(path, mode)| directory(&overlay.upper.join(path), *mode))
}

fn directory(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(cause) if cause.kind() == ErrorKind::AlreadyExists => Ok(()),
        // mkdir(2) takes no set-id and only sometimes the sticky bit.
        Ok(()) if mode & 0o7000 != 0 => fs::set_permissions(path, Permissions::from_mode(mode)),
        done => done,
    }
}

fn write_file(path: &Path, content: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(content.as_bytes())
}

fn mask(path: &Path) -> io::Result<()> {
    let closed = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            Ok(mount(Some("tmpfs"), path, Some("tmpfs"), closed, Some("size=0,mode=555"))?)
        }
        Ok(_) => attach(Path::new("dev/null"), path, Access::ReadWrite),
        Err(_) => Ok(()),
    }
}

/// Backslashes before what overlayfs's option parser would take for a separator.
fn escaped(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = path.as_os_str().as_bytes().iter();
    let escaped = bytes.flat_map(|&byte| {
        let backslash = matches!(byte, b'\\' | b',' | b':').then_some(b'\\');
        backslash.into_iter().chain([byte])
    });
    OsString::from_vec(escaped.collect())
}

/// What a mount point is made as.
#[derive(Clone, Copy)]
enum Kind {
    Directory,
    File,
}

/// The place inside that `path` leads to, without symbolic links; made, with its parents, if missing.
fn mount_point(path: &Path, kind: Kind) -> Result<PathBuf> {
    let failed = |place: &Path, cause: io::Error| {
        let error = Error::new("cannot create mount point", place.display(), cause);
        error.hint(format!("create {} in the root filesystem, or make that writable", place.display()))
    };
    let mut place = PathBuf::from("/");
    let mut rest = components(path);
    let mut links_left = MAX_SYMLINKS;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            place.pop();
            continue;
        }
        place.push(&name);
        match fs::symlink_metadata(&place) {
            Ok(metadata) if metadata.is_symlink() && links_left > 0 => {
                links_left -= 1;
                let target = fs::read_link(&place).map_err(|cause| failed(&place, cause))?;
                place.pop();
                if target.is_absolute() {
                    place = PathBuf::from("/");
                }
                let mut names = components(&target);
                names.append(&mut rest);
                rest = names;
            }
            Ok(_) => {}
            Err(cause) if cause.kind() == ErrorKind::NotFound => {
                let made = match (kind, rest.is_empty()) {
                    (Kind::File, true) => empty_file(&place),
                    _ => directory(&place, 0o755),
                };
                made.map_err(|cause| failed(&place, cause))?;
            }
            Err(cause) => return Err(failed(&place, cause)),
        }
    }
    Ok(place)
}

fn empty_file(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map(drop)
}

/// The names in `path`, with `..` but without `/` and `.`.
fn components(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_of_overlay_options_are_escaped() {
        assert_eq!(escaped(Path::new("a,b:c\\d")), "a\\,b\\:c\\\\d");
    }

    #[test]
    fn mount_point_follows_dangling_links_and_makes_what_is_missing() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("etc")).expect("mkdir");
        std::os::unix::fs::symlink("../run/stub/resolv.conf", at("etc/resolv.conf")).expect("symlink");
        let place = mount_point(&at("etc/resolv.conf"), Kind::File).expect("can be made");
        assert_eq!(place, at("run/stub/resolv.conf"));
        assert!(place.is_file());
    }

    #[test]
    fn mount_point_gives_up_on_a_loop_of_links() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let link = root.path().join("loop");
        std::os::unix::fs::symlink("loop", &link).expect("symlink");
        assert!(mount_point(&link.join("x"), Kind::Directory).is_err());
    }
}
