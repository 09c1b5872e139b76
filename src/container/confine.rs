//! What rnet takes from itself once all is open that it needs: files, capabilities, system calls.
//!
//! A gateway reads what strangers send. Should one of them ever take it over, he finds no files but `/etc` and `/run`,
//! read-only (the resolver's file is followed there), and no way to other processes.

use std::fs;
use std::path::{Path, PathBuf};

use libc::c_long;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::unistd::{Gid, Uid, chdir, pivot_root};

use crate::config::Confinement;
use crate::error::{Context, Error, Result};
use crate::sys::mount::Tree;
use crate::sys::{privilege, seccomp};

/// Where the new root is built, over whatever is there.
const ROOT: &str = "/tmp";
/// What remains visible.
const VISIBLE: [&str; 2] = ["/etc", "/run"];
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The one capability that remains: binding to ports below 1024 (capabilities(7)).
const CAP_NET_BIND_SERVICE: u32 = 10;
const NOTHING: Option<&str> = None;

/// System calls that serving a network never makes, and that lead to other programs, processes, mounts or keys, or have
/// often been the way into a kernel.
const FORBIDDEN: &[c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// Confines this process as `how` says. No thread may have been started before.
pub fn confine(how: Confinement) -> Result<()> {
    if how.files {
        hide_files().map_err(|error| error.hint("without --enable-sandbox rnet keeps what it has"))?;
    }
    if how.files || how.system_calls {
        set_no_new_privs().context("cannot set", "no_new_privs")?;
    }
    if how.files {
        privilege::keep_capabilities(1 << CAP_NET_BIND_SERVICE).context("cannot give up", "capabilities")?;
        // A change of capabilities hides a process from its own user.
        set_dumpable(true).context("cannot show to its user", "this process")?;
    }
    if how.system_calls {
        seccomp::forbid_calls(FORBIDDEN).context("cannot install", "a seccomp filter").map_err(|error| {
            error.hint("the kernel needs CONFIG_SECCOMP_FILTER; or go without --enable-seccomp")
        })?;
    }
    Ok(())
}

/// Gives this process a root of its own with [`VISIBLE`] in it, read-only. What is mounted there on the host later
/// shows here too; nothing that happens here shows there.
fn hide_files() -> Result<()> {
    let resolv_conf = fs::canonicalize(RESOLV_CONF).ok();
    own_mounts()?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_SLAVE, NOTHING)
        .context("cannot separate", "/")?;
    let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("rnet"), ROOT, Some("tmpfs"), harmless, Some("size=64k,mode=755"))
        .context("cannot mount a tmpfs on", ROOT)?;
    for path in VISIBLE {
        let target = inside(Path::new(path));
        fs::create_dir(&target).context("cannot make", target.display())?;
        show(Path::new(path), &target)?;
    }
    if let Some(file) = resolv_conf.filter(|file| !VISIBLE.iter().any(|path| file.starts_with(path))) {
        let target = inside(&file);
        let parent = target.parent().unwrap_or(Path::new(ROOT));
        fs::create_dir_all(parent).context("cannot make", parent.display())?;
        fs::write(&target, "").context("cannot make", target.display())?;
        show(&file, &target)?;
    }
    chdir(ROOT).context("cannot enter", ROOT)?;
    pivot_root(".", ".").context("cannot make root", ROOT)?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot detach", "the old root")?;
    chdir("/").context("cannot enter", "/")?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | harmless;
    mount(NOTHING, "/", NOTHING, read_only, NOTHING).context("cannot make read-only", "/")
}

fn inside(path: &Path) -> PathBuf {
    Path::new(ROOT).join(path.strip_prefix("/").unwrap_or(path))
}

fn show(path: &Path, target: &Path) -> Result<()> {
    let tree = Tree::copy(path).and_then(|tree| tree.read_only(true).map(|()| tree));
    tree.and_then(|tree| tree.attach(target)).context("cannot show", path.display())
}

/// Enters a mount namespace of its own. Who has no capabilities gets them in a user namespace, where he remains who he
/// is.
fn own_mounts() -> Result<()> {
    match unshare(CloneFlags::CLONE_NEWNS) {
        Err(Errno::EPERM) => {}
        done => return done.context("cannot create", "a mount namespace"),
    }
    let (uid, gid) = (Uid::effective(), Gid::effective());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(|errno| super::userns::forbidden(&errno.into()))?;
    for (file, text) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/gid_map", format!("{gid} {gid} 1")),
        ("/proc/self/uid_map", format!("{uid} {uid} 1")),
    ] {
        fs::write(file, text).map_err(|cause| Error::new("cannot write", file, cause))?;
    }
    Ok(())
}
