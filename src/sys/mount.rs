//! Mount trees by descriptor (open_tree, mount_setattr, move_mount; Linux 5.12), and extended attributes.
//!
//! Relative paths start at the working directory, as everywhere.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libc::{c_int, c_uint};
use nix::errno::Errno;

const OPEN_TREE_CLONE: c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 0x4;
const MOUNT_ATTR_RDONLY: u64 = 0x1;

/// `struct mount_attr` of mount_setattr(2), first version.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A mount; or a copy of one and all mounts below it, which is not attached anywhere yet.
pub(crate) struct Tree(OwnedFd);

impl Tree {
    /// Copies what is at `source`, a directory or a file, as a recursive bind mount would.
    pub(crate) fn copy(source: &Path) -> io::Result<Self> {
        Self::open(source, OPEN_TREE_CLONE | libc::AT_RECURSIVE as c_uint)
    }

    /// The mount at `place` itself, whatever may be mounted over it later; `place` is a mount point.
    pub(crate) fn existing(place: &Path) -> io::Result<Self> {
        Self::open(place, 0)
    }

    fn open(path: &Path, flags: c_uint) -> io::Result<Self> {
        let path = c_path(path)?;
        let flags = flags | libc::O_CLOEXEC as c_uint;
        // SAFETY: `path` is a NUL-terminated string that outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
        let fd = Errno::result(fd)?;
        // SAFETY: a descriptor that the kernel has just made and nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as c_int) }))
    }

    /// Makes the topmost mount read-only, and with `recursive` those below it too.
    pub(crate) fn read_only(&self, recursive: bool) -> io::Result<()> {
        let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
        // SAFETY: the descriptor is open, the path an empty C string, `attr` a mount_attr of the size given.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH | recursive,
                &raw const attr,
                size_of::<MountAttr>(),
            )
        };
        Ok(Errno::result(done).map(drop)?)
    }

    /// Mounts the copy on `target`.
    pub(crate) fn attach(self, target: &Path) -> io::Result<()> {
        let target = c_path(target)?;
        // SAFETY: the descriptor is open and both paths are NUL-terminated and outlive the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH,
            )
        };
        Ok(Errno::result(done).map(drop)?)
    }
}

/// Whether files on the filesystem of `file` can carry `user.` attributes, as the upper layer of an
/// unprivileged overlay must. Leaves such an attribute on `file`.
pub(crate) fn takes_user_xattrs(file: impl AsFd) -> bool {
    let (name, value) = (c"user.rnet.probe", b"y");
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, the name NUL-terminated, the value as long as said.
    let done = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    done == 0
}

/// The attribute `name`, with its `user.` in front, of `file`; `None` if it has none, or a longer one than a few bytes.
pub(crate) fn user_xattr(file: impl AsFd, name: &CStr) -> Option<Vec<u8>> {
    let mut value = vec![0; 16];
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, the name NUL-terminated, and the value has the room that is said.
    let length = unsafe { libc::fgetxattr(fd, name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}

/// Gives `file` the extended attribute `name`, such as `user.mime_type`. The filesystem may not take it
/// ([`io::ErrorKind::Unsupported`]).
pub(crate) fn set_attribute(file: impl AsFd, name: &str, value: &[u8]) -> io::Result<()> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, the name NUL-terminated, the value as long as said.
    let done = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Ok(Errno::result(done).map(drop)?)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL.into())
}
