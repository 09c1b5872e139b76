//! Pseudo-terminals (pty(7), ioctl_tty(2)).

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::pty::{Winsize, posix_openpt, unlockpt};
use nix::sys::stat::{SFlag, fstat, makedev};

/// Numbers of the device from which masters come (Documentation/admin-guide/devices.txt).
const PTMX: (u64, u64) = (5, 2);

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

/// The other end of `master`, whatever is mounted where its name would lead (Linux 4.13). ENOTTY if it is no master: it
/// may have been opened where others decide what /dev/ptmx is.
pub(crate) fn slave(master: &impl AsFd) -> nix::Result<OwnedFd> {
    let found = fstat(master)?;
    let is_device = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    if !is_device || found.st_rdev != makedev(PTMX.0, PTMX.1) {
        return Err(Errno::ENOTTY);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_master_leads_to_its_slave_and_nothing_else_does() {
        let master = open().expect("a terminal to spare");
        let size = Winsize { ws_row: 7, ws_col: 9, ws_xpixel: 0, ws_ypixel: 0 };
        set_size(&master, &size).expect("a terminal");
        let other = slave(&master).expect("its other end");
        assert_eq!(super::size(&other).map(|size| (size.ws_row, size.ws_col)), Ok((7, 9)));
        for path in ["/dev/null", "/proc/self/status"] {
            assert_eq!(slave(&File::open(path).expect("readable")).err(), Some(Errno::ENOTTY), "{path}");
        }
        assert_eq!(slave(&other).err(), Some(Errno::ENOTTY));
    }
}
