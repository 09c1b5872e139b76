//! The user namespace: its id maps, and what to tell a user whose host forbids it.

use std::fs::{self, File};
use std::io;
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Pid, Uid};

use super::idmap::IdMaps;
use crate::config::IdRange;
use crate::error::{Context, Error, Result};

/// The namespaces of a container.
pub(super) const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWUSER
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// Of the reader's own network namespace.
const TIME_WAIT_REUSE: &str = "/proc/sys/net/ipv4/tcp_tw_reuse";

/// Sysctls under `user.` that bound the namespaces of [`NAMESPACES`].
const LIMITS: [&str; 7] = [
    "max_user_namespaces",
    "max_net_namespaces",
    "max_mnt_namespaces",
    "max_pid_namespaces",
    "max_uts_namespaces",
    "max_ipc_namespaces",
    "max_cgroup_namespaces",
];

const APPARMOR_REMEDY: &str = "AppArmor strips new user namespaces of their capabilities here; either run\n    \
    sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0\n  \
    or write this to /etc/apparmor.d/rnet (with rnet's own path) and run \
    `sudo apparmor_parser -r /etc/apparmor.d/rnet`:\n    \
    abi <abi/4.0>,\n    include <tunables/global>\n    \
    profile rnet /usr/{,local/}bin/rnet flags=(unconfined) { userns, }\n  \
    or, without root, start rnet through a program that has such a profile: podman unshare rnet ...";

const SECCOMP_REMEDY: &str = "a seccomp filter forbids it (docker's default one does); start the outer container \
    with --security-opt seccomp=unconfined";

/// What of the host decides about unprivileged user namespaces.
#[derive(Debug, Default)]
struct Facts {
    /// kernel.apparmor_restrict_unprivileged_userns is 1.
    apparmor_restricts: bool,
    /// kernel.unprivileged_userns_clone (a Debian patch) is 0.
    clone_disabled: bool,
    /// The first of [`LIMITS`] that is 0.
    zero_limit: Option<&'static str>,
    /// A seccomp filter is installed on this process.
    seccomp: bool,
}

/// Programs that write maps on an ordinary user's behalf (newuidmap(1), newgidmap(1)).
pub(super) const MAPPERS: [&str; 2] = ["newuidmap", "newgidmap"];
const MAPPERS_REMEDY: &str = "newuidmap and newgidmap need their set-user-ID bit or file capabilities (reinstall \
    uidmap), and a caller whose no_new_privs is not set; or go without: --userns=single";

/// Writes the id maps of the user namespace of `pid`, a child.
pub(super) fn write_id_maps(pid: Pid, maps: &IdMaps) -> Result<()> {
    let (uid, gid) = (Uid::effective(), Gid::effective());
    if maps.is_only(uid.as_raw(), gid.as_raw()) {
        // The kernel takes a group map from who may not set groups only where nobody inside may either.
        write(pid, "setgroups", "deny")?;
    } else if !uid.is_root() {
        let [uids, gids] = MAPPERS;
        return call(uids, pid, &maps.uids).and_then(|()| call(gids, pid, &maps.gids));
    }
    write(pid, "gid_map", &lines(&maps.gids))?;
    write(pid, "uid_map", &lines(&maps.uids))
}

fn write(pid: Pid, name: &str, text: &str) -> Result<()> {
    let path = format!("/proc/{pid}/{name}");
    match fs::write(&path, text) {
        Err(cause) if is_denied(&cause) => Err(forbidden(&cause)),
        other => other.context("cannot write", path),
    }
}

fn lines(ranges: &[IdRange]) -> String {
    let lines = ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count));
    lines.collect()
}

fn call(program: &'static str, pid: Pid, ranges: &[IdRange]) -> Result<()> {
    let numbers = ranges.iter().flat_map(|range| [range.inside, range.outside, range.count]);
    let words = numbers.map(|number| number.to_string());
    let output = Command::new(program).arg(pid.to_string()).args(words).output();
    let output = output.context("cannot run", program)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new("cannot map ids with", program, said.trim()).hint(MAPPERS_REMEDY))
}

/// Changes to the user and network namespaces of `pid`, a child that has not been reaped, and lets ports of connections
/// that are over be used again.
///
/// Connections of the guest with itself leave their port in TIME_WAIT for a minute when the side that opened them ends
/// first, and a published port that is spliced has all its clients come from one address: after 28,000 of them within
/// that minute there would be no port left. Linux reuses such a port after a second, by default for 127.0.0.1 only
/// (Documentation/networking/ip-sysctl.rst, tcp_tw_reuse; RFC 6191).
pub(super) fn enter(pid: Pid) -> Result<()> {
    let (user, net) = (format!("/proc/{pid}/ns/user"), format!("/proc/{pid}/ns/net"));
    let user_namespace = File::open(&user).context("cannot open", &user)?;
    let net_namespace = File::open(&net).context("cannot open", &net)?;
    setns(user_namespace, CloneFlags::CLONE_NEWUSER).context("cannot enter", &user)?;
    setns(net_namespace, CloneFlags::CLONE_NEWNET).context("cannot enter", &net)?;
    // Where it cannot be written, a connection without a port takes the link.
    let _ = fs::write(TIME_WAIT_REUSE, "1");
    Ok(())
}

/// Whether `cause` is how a kernel or LSM says no.
pub(super) fn is_denied(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error().map(Errno::from_raw), Some(Errno::EPERM | Errno::EACCES))
}

/// A child that was to be made in new namespaces; why there is none.
pub(super) fn explained<C>(child: io::Result<C>) -> Result<C> {
    child.map_err(|cause| forbidden(&cause))
}

/// Explains why user namespaces, or capabilities in them, are refused with `cause`.
pub(super) fn forbidden(cause: &io::Error) -> Error {
    diagnose(cause, &Facts::gather())
}

impl Facts {
    fn gather() -> Self {
        let sysctl = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).ok();
        let is = |name: &str, value: &str| sysctl(name).is_some_and(|text| text.trim() == value);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            apparmor_restricts: is("kernel/apparmor_restrict_unprivileged_userns", "1"),
            clone_disabled: is("kernel/unprivileged_userns_clone", "0"),
            zero_limit: LIMITS.into_iter().find(|name| is(&format!("user/{name}"), "0")),
            seccomp: status.lines().any(|line| line == "Seccomp:\t2"),
        }
    }
}

fn diagnose(cause: &io::Error, facts: &Facts) -> Error {
    let error = Error::new("cannot create", "user namespace", cause);
    match cause.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSPC | Errno::EUSERS) => match facts.zero_limit {
            Some(name) => error.hint(format!("sudo sysctl -w user.{name}=15000")),
            None => error.hint("the limits of user.max_*_namespaces are reached: see `sysctl user`"),
        },
        Some(Errno::EAGAIN) => error.hint("you have as many processes as you may: see `ulimit -u`"),
        Some(Errno::ENOSYS) if facts.seccomp => error.hint(SECCOMP_REMEDY),
        Some(Errno::ENOSYS) => error.hint("Linux 5.12 or newer is needed"),
        Some(Errno::EINVAL) => error.hint("this kernel was built without user, network or PID namespaces"),
        Some(Errno::EPERM | Errno::EACCES) if facts.clone_disabled => {
            error.hint("sudo sysctl -w kernel.unprivileged_userns_clone=1")
        }
        Some(Errno::EPERM | Errno::EACCES) if facts.apparmor_restricts => error.hint(APPARMOR_REMEDY),
        Some(Errno::EPERM | Errno::EACCES) if facts.seccomp => error.hint(SECCOMP_REMEDY),
        Some(Errno::EPERM | Errno::EACCES) => {
            error.hint("a security module or a chroot forbids it; rnet cannot run from within a chroot")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(errno: Errno, facts: Facts) -> String {
        diagnose(&errno.into(), &facts).to_string()
    }

    #[test]
    fn each_prohibition_names_its_remedy() {
        let zero = Facts { zero_limit: Some("max_user_namespaces"), ..Facts::default() };
        assert!(hint(Errno::ENOSPC, zero).contains("sysctl -w user.max_user_namespaces=15000"));
        let apparmor = || Facts { apparmor_restricts: true, seccomp: true, ..Facts::default() };
        assert!(hint(Errno::EPERM, apparmor()).contains("kernel.apparmor_restrict_unprivileged_userns=0"));
        assert!(hint(Errno::EACCES, apparmor()).contains("profile rnet"));
        let debian = Facts { clone_disabled: true, ..apparmor() };
        assert!(hint(Errno::EPERM, debian).contains("kernel.unprivileged_userns_clone=1"));
        let seccomp = || Facts { seccomp: true, ..Facts::default() };
        assert!(hint(Errno::EPERM, seccomp()).contains("seccomp=unconfined"));
        assert!(hint(Errno::ENOSYS, seccomp()).contains("seccomp=unconfined"));
        assert!(hint(Errno::EPERM, Facts::default()).contains("chroot"));
        assert!(hint(Errno::EAGAIN, Facts::default()).contains("ulimit -u"));
    }
}
