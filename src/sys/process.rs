//! Processes by pidfd: fork into new namespaces, signal, reap, watch; descriptors that come and go with them.
//!
//! Children are made with clone3(2) directly, or clone(2) where a filter hides that, because fork(3) cannot enter
//! namespaces. The C library's fork hooks do not run, which is sound only while no other thread exists; [`spawn`] refuses
//! otherwise.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use libc::{c_int, c_long, c_uint, id_t, idtype_t};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;
use sendfd::SendWithFd;

use super::rights;

use crate::error::exit;

/// A child process, named by a descriptor so that its number can't be confused with a later process's.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: Pid,
    pidfd: OwnedFd,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// With this status.
    Code(u8),
    /// Killed by this signal.
    Signal(c_int),
}

/// `struct clone_args` of its first version (Linux 5.3), 64 bytes.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// Forks a child into new `namespaces`, which runs `child` on `kept` and exits with what it returns.
///
/// Every descriptor from 3 up but `kept` is closed in the child, so `child` must not have captured others.
/// Here `kept` is closed. Fails with EAGAIN while other threads exist.
pub(crate) fn spawn<K: AsFd>(
    namespaces: CloneFlags,
    kept: K,
    child: impl FnOnce(K) -> u8,
) -> io::Result<Child> {
    match clone(namespaces)? {
        Some(child) => Ok(child),
        None => run_first(kept, child),
    }
}

/// As [`spawn`], but the child is one of this process's parent (CLONE_PARENT), to which its [`Child`] is to be passed.
pub(crate) fn spawn_sibling<K: AsFd>(
    namespaces: CloneFlags,
    kept: K,
    child: impl FnOnce(K) -> u8,
) -> io::Result<Child> {
    match clone(namespaces | CloneFlags::CLONE_PARENT)? {
        Some(child) => Ok(child),
        None => run_first(kept, child),
    }
}

fn run_first<K: AsFd>(kept: K, child: impl FnOnce(K) -> u8) -> ! {
    run_and_exit(|| {
        close_all_but(&[kept.as_fd().as_raw_fd()]);
        child(kept)
    })
}

/// Forks a child that keeps every descriptor, runs `child` and exits with what it returns: one that ends soon, goes on
/// in this process's place, or soon closes what it does not need. Fails with EAGAIN while other threads exist.
pub(crate) fn fork(child: impl FnOnce() -> u8) -> io::Result<Child> {
    match clone(CloneFlags::empty())? {
        Some(child) => Ok(child),
        None => run_and_exit(child),
    }
}

/// The child, or `None` in the child itself.
fn clone(namespaces: CloneFlags) -> io::Result<Option<Child>> {
    if !is_alone()? {
        return Err(Errno::EAGAIN.into());
    }
    let mut pidfd: c_int = -1;
    let args = CloneArgs {
        flags: flag_bits(namespaces) | flag_bits_of(libc::CLONE_PIDFD),
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        // A sibling has this process's own.
        exit_signal: if namespaces.contains(CloneFlags::CLONE_PARENT) { 0 } else { libc::SIGCHLD as u64 },
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a valid clone_args of the size given and `pidfd` outlives the call. Without CLONE_VM
    // the child has its own copy of memory; this is the only thread, so no lock is held by a lost one.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    let pid = match Errno::result(pid) {
        // Filters of system calls cannot look at its arguments, and so say that it does not exist.
        Err(Errno::ENOSYS) if !cfg!(target_arch = "s390x") => older_clone(&args)?,
        done => done?,
    };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: CLONE_PIDFD has stored a new close-on-exec descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Some(Child { pid: Pid::from_raw(pid as c_int), pidfd }))
}

/// Whether this is the only thread. CLONE_THREAD of unshare(2) does nothing but to say so, also where /proc is that of
/// another PID namespace; filters may forbid the call.
fn is_alone() -> io::Result<bool> {
    match unshare(CloneFlags::CLONE_THREAD) {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL) => Ok(false),
        Err(_) => Ok(fs::read_dir("/proc/self/task")?.count() == 1),
    }
}

/// clone(2) with what `args` have that it knows. Its arguments are in another order on s390x.
fn older_clone(args: &CloneArgs) -> nix::Result<c_long> {
    let flags = (args.flags | args.exit_signal) as c_long;
    let none: c_long = 0;
    // SAFETY: as for clone3: `args.pidfd` points to a number that outlives the call, which with CLONE_PIDFD goes where
    // otherwise the parent's copy of the thread id would; no stack given means a copy of this one, without CLONE_VM.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, args.pidfd as c_long, none, none) };
    Errno::result(pid)
}

fn flag_bits(flags: CloneFlags) -> u64 {
    flag_bits_of(flags.bits())
}

fn flag_bits_of(flags: c_int) -> u64 {
    u64::from(flags as c_uint)
}

fn run_and_exit(child: impl FnOnce() -> u8) -> ! {
    let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(exit::RNET_FAILED);
    // SAFETY: has no preconditions; unlike exit(3) it runs none of the parent's exit hooks.
    unsafe { libc::_exit(c_int::from(code)) }
}

/// Overwrites the environment that this process was started with, which /proc/PID/environ shows (proc_pid_environ(5)); its
/// variables lose their names and values. No other thread may exist.
pub(crate) fn erase_environment() {
    unsafe extern "C" {
        static environ: *const *mut libc::c_char;
    }
    // SAFETY: the C library's pointer to a list that ends with a null pointer; no thread changes it.
    let mut next = unsafe { environ };
    while !next.is_null() {
        // SAFETY: it has not passed the end of the list.
        let variable = unsafe { *next };
        if variable.is_null() {
            return;
        }
        // SAFETY: an entry is a string that ends with a NUL byte.
        let len = unsafe { libc::strlen(variable) };
        // SAFETY: those bytes are the string's, which may be written to (environ(7)).
        unsafe { ptr::write_bytes(variable, 0, len) };
        // SAFETY: the entry was not the last one, which is null.
        next = unsafe { next.add(1) };
    }
}

/// Leaves the session keyring that came along from the caller (keyrings(7)) for a new, empty one. ENOSYS or EPERM:
/// keys are not to be had here anyway.
pub(crate) fn leave_session_keyring() -> nix::Result<()> {
    // SAFETY: a null name asks for a keyring without one; nothing else is a pointer.
    let joined = unsafe {
        libc::syscall(libc::SYS_keyctl, c_long::from(libc::KEYCTL_JOIN_SESSION_KEYRING), ptr::null::<u8>())
    };
    Errno::result(joined).map(drop)
}

/// Marks every descriptor from 3 up close-on-exec.
pub(crate) fn close_on_exec() -> nix::Result<()> {
    close_range(3, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: c_uint, last: c_uint, flags: c_uint) -> nix::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: takes no pointers. Closing happens only in a fresh child, which uses none of the descriptors
    // that its copy of the parent's memory still names, or before this process has opened any.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    Errno::result(done).map(drop)
}

impl Child {
    /// Passes it to the process at the other end of `socket`, whose child it is, too.
    pub(crate) fn send(&self, socket: &UnixStream) -> io::Result<()> {
        socket.send_with_fd(&self.pid.as_raw().to_ne_bytes(), &[self.pidfd.as_raw_fd()]).map(drop)
    }

    /// Receives what [`Self::send`] passed. `UnexpectedEof` if the other end closed without sending.
    pub(crate) fn receive(socket: &UnixStream) -> io::Result<Self> {
        let mut pid = [0; size_of::<libc::pid_t>()];
        let (len, mut pidfds) = rights::receive::<1>(socket, &mut pid)?;
        let pidfd = pidfds.pop().filter(|_| len == pid.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(Self { pid: Pid::from_raw(libc::pid_t::from_ne_bytes(pid)), pidfd })
    }

    /// Sends `signal`, a number up to SIGRTMAX. ESRCH once the child has ended.
    pub(crate) fn signal(&self, signal: c_int) -> nix::Result<()> {
        self::signal(self.pidfd.as_fd(), signal)
    }

    /// Waits for the end and reaps.
    pub(crate) fn reap(&self) -> nix::Result<Exit> {
        loop {
            match wait(libc::P_PIDFD, self.pidfd.as_raw_fd() as id_t, libc::WEXITED) {
                Ok(Some((_, exit))) => return Ok(exit),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// Sends `signal` to the process behind a descriptor of [`watch`]. ESRCH once it has ended.
pub(crate) fn signal(process: BorrowedFd<'_>, signal: c_int) -> nix::Result<()> {
    let fd = c_long::from(process.as_raw_fd());
    let no_info = ptr::null::<libc::siginfo_t>();
    // SAFETY: takes any descriptor and refuses those of no process; a null siginfo means that of kill(2).
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, no_info, 0) };
    Errno::result(sent).map(drop)
}

/// A descriptor of any process (pidfd_open(2), Linux 5.3): readable once it has ended. ESRCH if there is none, EINVAL
/// if
/// `pid` is a thread other than a process's first.
pub(crate) fn watch(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor, close-on-exec, and nothing else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// Closes every descriptor from 3 up but `kept`: callers leak theirs.
///
/// To be called before anything is opened, or in a child that uses no other any more.
pub(crate) fn close_all_but(kept: &[c_int]) {
    let mut kept: Vec<c_uint> = kept.iter().filter_map(|fd| c_uint::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept {
        let _ = close_range(first, fd.saturating_sub(1), 0);
        first = first.max(fd.saturating_add(1));
    }
    let _ = close_range(first, c_uint::MAX, 0);
}

/// Takes over the descriptor `fd`, which the caller's command line names and which the process was started with; from
/// now on it closes on exec. EBADF if it is not open.
///
/// To be called once for a number, and before anything else is opened, lest the number be one of our own.
pub(crate) fn inherited(fd: c_int) -> nix::Result<OwnedFd> {
    // SAFETY: takes no pointers; a number that is no descriptor gives EBADF.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and by this function's contract nothing in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the number `fd` is a descriptor that is open.
pub(crate) fn is_open(fd: c_int) -> bool {
    // SAFETY: takes no pointers; a number that is no descriptor gives EBADF.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

/// Reaps any child that has ended, by now.
pub(crate) fn reap_any() -> Option<(Pid, Exit)> {
    wait(libc::P_ALL, 0, libc::WEXITED | libc::WNOHANG).ok().flatten()
}

/// waitid(2). nix's cannot tell of real-time signals.
fn wait(kind: idtype_t, id: id_t, options: c_int) -> nix::Result<Option<(Pid, Exit)>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is writable memory for one siginfo_t.
    let done = unsafe { libc::waitid(kind, id, info.as_mut_ptr(), options) };
    Errno::result(done)?;
    // SAFETY: a siginfo_t of zeroes is valid, and what waitid stores is too.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid fills the fields of SIGCHLD, or leaves the zeroes.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    if pid == 0 {
        return Ok(None);
    }
    let exit = match info.si_code {
        libc::CLD_EXITED => Exit::Code(status as u8),
        _ => Exit::Signal(status),
    };
    Ok(Some((Pid::from_raw(pid), exit)))
}

impl AsFd for Child {
    /// Readable once the child has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
