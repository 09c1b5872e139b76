//! What rnet takes from itself once all is open that it needs: files, capabilities, system calls.
//!
//! A gateway reads what strangers send. Should one of them ever take it over, he finds no files but `/etc` and `/run`,
//! read-only (the resolver's file is followed there). Read-only does not keep from connecting to a socket below `/run`,
//! such as a message bus, nor does a file system from abstract ones: that the filter of system calls does, which makes
//! no unix sockets any more, and starts and reaches no other process.
//!
//! That much is asked for by options ([`confine`]). By itself rnet gives up what it does not need once a guest stands
//! ([`confine_for_good`]), and the threads that read what strangers send more than that ([`confine_thread`]).

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::unistd::{Gid, Uid, chdir, pivot_root};

use crate::config::Confinement;
use crate::error::{Context, Error, Result};
use crate::sys::landlock;
use crate::sys::mount::Tree;
use crate::sys::privilege::{self, CAP_NET_BIND_SERVICE};
use crate::sys::seccomp::{Action, Filter, Rule, Test};

/// Where the new root is built, over whatever is there.
const ROOT: &str = "/tmp";
/// What remains visible.
const VISIBLE: [&str; 2] = ["/etc", "/run"];
/// Where else resolv.conf may be a link to: of systemd, and of WSL.
const RESOLVERS: [&str; 2] = ["/usr/lib/systemd", "/mnt/wsl"];
const RESOLV_CONF: &str = "/etc/resolv.conf";
const NOTHING: Option<&str> = None;

/// System calls that serving a network never makes, and that lead to other programs, processes, mounts or keys, or have
/// often been the way into a kernel.
const FORBIDDEN: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "chroot",
    "delete_module",
    "execve",
    "execveat",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_setup",
    "kcmp",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "reboot",
    "request_key",
    "setns",
    "swapoff",
    "swapon",
    "umount2",
    "unshare",
    "userfaultfd",
];

/// Of these what the rest of rnet needs: signals for the container, and word of the end of processes.
const NEEDED: [&str; 2] = ["pidfd_open", "pidfd_send_signal"];

/// Flags of clone(2) that make namespaces.
const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
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
        let kept = 1 << CAP_NET_BIND_SERVICE;
        privilege::bound_capabilities(kept)
            .and_then(|()| privilege::keep_capabilities(kept))
            .context("cannot give up", "capabilities")?;
        // A change of capabilities hides a process from its own user.
        set_dumpable(true).context("cannot show to its user", "this process")?;
    }
    if how.system_calls {
        forbid_calls().context("cannot install", FILTER).map_err(|error| {
            error.hint("the kernel needs CONFIG_SECCOMP_FILTER; or go without --enable-seccomp")
        })?;
    }
    Ok(())
}

/// Takes from this process, whose guest stands, what it never does again: to execute, to enter or make namespaces, to mount,
/// to look into other processes, and what has often been the way into a kernel. Threads that are started later have no more;
/// processes that are there already keep what they have. Such calls fail from now on.
pub fn confine_for_good() -> Result<()> {
    set_no_new_privs().context("cannot set", "no_new_privs")?;
    let forbidden: Vec<_> = FORBIDDEN.iter().copied().filter(|call| !NEEDED.contains(call)).collect();
    let mut rules = vec![Rule::of(&forbidden, Action::REFUSE)];
    rules.extend(no_namespaces());
    install(rules).context("cannot install", FILTER)
}

/// Takes from this thread, which reads what strangers send, all files but those that name the host's DNS servers and `log`,
/// and the ways to other programs and processes.
///
/// It shares its memory with threads that have more; what it cannot do by itself it might have to make them do.
pub fn confine_thread(log: Option<&Path>) -> Result<()> {
    set_no_new_privs().context("cannot set", "no_new_privs")?;
    let resolv_conf = fs::canonicalize(RESOLV_CONF).ok();
    let mut readable: Vec<&Path> = VISIBLE.into_iter().chain(RESOLVERS).map(Path::new).collect();
    readable.extend(resolv_conf.as_deref().and_then(Path::parent));
    match landlock::keep_files(&readable, log.as_slice()) {
        // Not every kernel can.
        Err(Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
        done => done.context("cannot close", "files")?,
    }
    forbid_calls().context("cannot install", FILTER)
}

const FILTER: &str = "a filter of system calls";

fn install(rules: Vec<Rule>) -> nix::Result<()> {
    Filter::forbidding(rules).compile()?.install()
}

/// Some calls are the end. What a library may try, as it is also a way to what is needed, fails: sockets to other processes,
/// where those that are open already are all that is needed, and namespaces.
fn forbid_calls() -> nix::Result<()> {
    let denied = Action::fail(Errno::EACCES as u16);
    let mut rules = vec![
        Rule::of(FORBIDDEN, Action::KILL_PROCESS),
        Rule::of(&["socket"], denied).when(0, Test::Masked(u64::from(u32::MAX)), libc::AF_UNIX as u64),
        Rule::of(&["socketpair"], denied),
    ];
    rules.extend(no_namespaces());
    install(rules)
}

/// clone(2) makes threads and processes, but no namespaces.
fn no_namespaces() -> Vec<Rule> {
    let namespace = |flag: libc::c_int| {
        let flag = u64::from(flag as u32);
        Rule::of(&["clone"], Action::REFUSE).when(0, Test::Masked(flag), flag)
    };
    let mut rules = NAMESPACES.map(namespace).to_vec();
    // Its flags are in memory, where no filter can look. C libraries take clone then, to start threads.
    rules.push(Rule::of(&["clone3"], Action::MISSING));
    rules
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::net::UdpSocket;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::process::Command;
    use std::thread;

    #[test]
    fn sockets_are_made_but_those_of_other_processes() {
        // The filter is that of one thread, and of those that it starts.
        let confined = thread::spawn(|| {
            confine(Confinement { files: false, system_calls: true }).expect("a kernel with seccomp");
            let refused = [
                UnixStream::pair().map(drop),
                UnixDatagram::unbound().map(drop),
                UnixStream::connect("/run/nobody").map(drop),
            ];
            let further = thread::Builder::new().spawn(|| UdpSocket::bind("127.0.0.1:0").map(drop));
            (refused.map(|tried| tried.expect_err("no socket").kind()), further.map(thread::JoinHandle::join))
        });
        let (refused, further) = confined.join().expect("it lives");
        assert_eq!(refused, [io::ErrorKind::PermissionDenied; 3]);
        further.expect("a thread").expect("it lives").expect("a socket");
    }
    #[test]
    fn threads_that_serve_find_no_files_and_start_nothing() {
        let confined = thread::spawn(|| {
            confine_for_good().expect("a kernel with seccomp");
            let stream = UnixStream::pair().map(drop);
            let shell = Command::new("/bin/true").status().map(drop).map_err(|error| error.kind());
            let resolver = fs::read(RESOLV_CONF).map(drop).map_err(|error| error.kind());
            let served = thread::spawn(|| {
                confine_thread(None).expect("a kernel with seccomp");
                let resolver_now = fs::read(RESOLV_CONF).map(drop).map_err(|error| error.kind());
                (fs::read("/proc/self/environ").is_ok(), resolver_now, UnixStream::pair().is_ok())
            });
            (stream.is_ok(), shell, resolver, served.join().expect("it lives"))
        });
        let (pair, shell, resolver, served) = confined.join().expect("it lives");
        assert_eq!((pair, shell), (true, Err(io::ErrorKind::PermissionDenied)));
        // Where Landlock is missing the files stay.
        let has_landlock =
            fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|text| text.contains("landlock"));
        assert!(!has_landlock || !served.0);
        assert_eq!((served.1, served.2), (resolver, false));
    }
}
