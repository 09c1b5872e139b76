//! Pseudo-terminals (pty(7), ioctl_tty(2)).

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::pty::{Winsize, posix_openpt, unlockpt};

mod ioctl {
    nix::ioctl_read_bad!(get_size, libc::TIOCGWINSZ, libc::winsize);
    nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, libc::winsize);
    nix::ioctl_write_int_bad!(set_controlling, libc::TIOCSCTTY);
}

/// A new terminal of the devpts at /dev/ptmx: its master, whose reads and writes do not wait.
pub(crate) fn open() -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let master = posix_openpt(flags)?;
    unlockpt(&master)?;
    Ok(master.into())
}

/// The other end of `master`, whatever is mounted where its name would lead (Linux 4.13).
pub(crate) fn slave(master: &impl AsFd) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    // SAFETY: takes no pointers; the fd is open.
    let fd = unsafe { libc::ioctl(master.as_fd().as_raw_fd(), libc::TIOCGPTPEER, flags.bits()) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `terminal` the controlling one of the caller's session, of which the caller is the leader.
pub(crate) fn set_controlling(terminal: &impl AsFd) -> nix::Result<()> {
    // SAFETY: the argument is a number; 0 does not steal another session's terminal.
    unsafe { ioctl::set_controlling(terminal.as_fd().as_raw_fd(), 0) }.map(drop)
}

/// How many lines and columns a terminal has.
pub(crate) fn size(terminal: &impl AsFd) -> nix::Result<Winsize> {
    let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the fd is open, and the kernel writes one winsize behind the pointer.
    unsafe { ioctl::get_size(terminal.as_fd().as_raw_fd(), &mut size) }?;
    Ok(size)
}

/// Gives a terminal that many; a change is told to its foreground group by SIGWINCH.
pub(crate) fn set_size(terminal: &impl AsFd, size: &Winsize) -> nix::Result<()> {
    // SAFETY: the fd is open, and the kernel reads one winsize behind the pointer.
    unsafe { ioctl::set_size(terminal.as_fd().as_raw_fd(), size) }.map(drop)
}
