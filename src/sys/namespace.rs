//! Namespaces by descriptor (namespaces(7), ioctl_ns(2)).

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::stat::fstat;
use nix::unistd::Uid;

mod ioctl {
    /// include/uapi/linux/nsfs.h
    const NSIO: u8 = 0xb7;
    nix::ioctl_none!(get_user_namespace, NSIO, 0x1);
    nix::ioctl_none!(get_kind, NSIO, 0x3);
    nix::ioctl_read_bad!(get_owner_uid, nix::request_code_none!(NSIO, 0x4), libc::uid_t);
}

/// What kind of namespace `namespace` is. ENOTTY if it is none.
pub(crate) fn kind(namespace: &impl AsFd) -> nix::Result<CloneFlags> {
    // SAFETY: takes no argument; the fd is open.
    let kind = unsafe { ioctl::get_kind(namespace.as_fd().as_raw_fd()) }?;
    Ok(CloneFlags::from_bits_retain(kind))
}

/// The user namespace that owns `namespace`. EPERM if that is none of the caller's own or below it.
pub(crate) fn owner(namespace: &impl AsFd) -> nix::Result<OwnedFd> {
    // SAFETY: takes no argument; the fd is open.
    let fd = unsafe { ioctl::get_user_namespace(namespace.as_fd().as_raw_fd()) }?;
    // SAFETY: the kernel has just made this descriptor, close-on-exec, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The user who made the user namespace `user_namespace`, and has all capabilities in it.
pub(crate) fn owner_uid(user_namespace: &impl AsFd) -> nix::Result<Uid> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the fd is open, and the kernel writes one uid_t behind the pointer.
    unsafe { ioctl::get_owner_uid(user_namespace.as_fd().as_raw_fd(), &mut uid) }?;
    Ok(Uid::from_raw(uid))
}

/// Whether both are the same namespace.
pub(crate) fn is_same(one: &impl AsFd, other: &impl AsFd) -> nix::Result<bool> {
    let [one, other] = [fstat(one.as_fd())?, fstat(other.as_fd())?];
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Whether the kernel says by `errno` that a descriptor is no namespace.
pub(crate) fn is_none(errno: Errno) -> bool {
    matches!(errno, Errno::ENOTTY | Errno::EINVAL)
}
