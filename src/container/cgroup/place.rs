//! Where a container's cgroup can be made: in our own cgroup, in one that systemd makes for us, or nowhere.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use nix::unistd::{AccessFlags, access};

use super::LEAF;
use crate::error::{Error, Result};
use crate::sys::mount::user_xattr;

/// The variable that says to an rnet which systemd starts in a scope that it shall not ask for another.
pub const IN_SCOPE: &str = "RNET_IN_SCOPE";
/// Set by systemd, from version 251 on, on cgroups that it leaves to whoever is in them.
const DELEGATED: &std::ffi::CStr = c"user.delegate";
const SYSTEMD_RUN: &str = "systemd-run";

/// What of the host decides about the place.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Our own cgroup, or the one above if ours is the leaf that an rnet made; `None` without cgroup v2.
    own: Option<PathBuf>,
    /// We may make cgroups there, and move processes in.
    writable: bool,
    /// systemd says that it keeps out.
    delegated: bool,
    /// Controllers that it can give to those below.
    controllers: BTreeSet<String>,
    /// Controllers that cgroup v1 has taken.
    legacy: BTreeSet<String>,
    /// A systemd of this user can be asked for a scope.
    manager: bool,
    /// It made ours.
    in_scope: bool,
}

/// Where a container's cgroup can be made.
#[derive(Debug)]
pub(super) enum Place {
    /// Below this one.
    Here(PathBuf),
    /// Below one that systemd is asked for.
    Scope,
}

impl Facts {
    pub(super) fn gather() -> Self {
        let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = place_of(&cgroup);
        let at = own.as_deref().unwrap_or(Path::new("/nonexistent"));
        let can_write = |file: &str| access(&at.join(file), AccessFlags::W_OK).is_ok();
        let controllers = fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default();
        Self {
            writable: ["", "cgroup.procs", "cgroup.subtree_control"].into_iter().all(can_write),
            delegated: File::open(at).is_ok_and(|file| user_xattr(file, DELEGATED).as_deref() == Some(b"1")),
            controllers: controllers.split_whitespace().map(str::to_owned).collect(),
            legacy: legacy(&cgroup),
            manager: manager_answers(),
            in_scope: env::var_os(IN_SCOPE).is_some(),
            own,
        }
    }

    /// Where a cgroup with the controllers `wanted` can be made. A cgroup that systemd has not left to us is not used
    /// if systemd can be asked for one that is.
    pub(super) fn place(&self, wanted: &BTreeSet<&'static str>) -> Result<Place> {
        let missing: Vec<&str> =
            wanted.iter().copied().filter(|name| !self.controllers.contains(*name)).collect();
        match &self.own {
            Some(own) if self.writable && missing.is_empty() && (self.ours_to_use() || !self.manager) => {
                Ok(Place::Here(own.clone()))
            }
            _ if missing.iter().any(|name| self.legacy.contains(*name)) => Err(no_cgroup2()),
            _ if self.manager && !self.in_scope => Ok(Place::Scope),
            Some(_) if self.writable => Err(not_delegated(&missing)),
            Some(_) => Err(nothing_delegated()),
            None => Err(no_cgroup2()),
        }
    }

    /// Whether only a scope lets processes move to the cgroup at `other`: the kernel asks for write access to the cgroup
    /// that both are in.
    pub(super) fn must_move_for(&self, other: &Path) -> bool {
        let common =
            |own: &PathBuf| other.ancestors().find(|above| own.starts_with(above)).map(Path::to_owned);
        let may_write = |above: PathBuf| access(&above.join("cgroup.procs"), AccessFlags::W_OK).is_ok();
        let may_move = self.own.as_ref().and_then(common).is_some_and(may_write);
        !may_move && self.manager && !self.in_scope
    }

    fn ours_to_use(&self) -> bool {
        self.delegated || self.in_scope
    }
}

fn failed(cause: &str) -> Error {
    Error::new("cannot limit", "the container", cause)
}

fn not_delegated(missing: &[&str]) -> Error {
    failed(&format!("the controllers {} are not delegated to you", missing.join(", "))).hint(
        "systemd gives users cpu, memory and pids; for the others write to \
         /etc/systemd/system/user@.service.d/delegate.conf\n    [Service]\n    \
         Delegate=cpu cpuset io memory pids\n  \
         and run `sudo systemctl daemon-reload`, then log in anew",
    )
}

fn nothing_delegated() -> Error {
    failed("no cgroup is delegated to you, and no systemd of yours answers").hint(
        "log in as yourself (not by su or sudo), so that `systemctl --user status` works, or have \
         `sudo loginctl enable-linger USER` keep your systemd running, and set XDG_RUNTIME_DIR=/run/user/UID; \
         without systemd, start rnet in a cgroup v2 that belongs to you, with its cgroup.procs and \
         cgroup.subtree_control",
    )
}

fn no_cgroup2() -> Error {
    failed("this host has no cgroup v2, or leaves the controllers to v1")
        .hint("boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 on /sys/fs/cgroup")
}

/// Replaces this process by the same rnet in a scope of the user's systemd; returns only if that fails.
pub(super) fn enter_scope() -> Error {
    let unit = format!("rnet-{}.scope", process::id());
    let description = "--description=A container of rnet";
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let own = match env::current_exe() {
        Ok(path) => path,
        Err(cause) => return Error::new("cannot find", "rnet's own program", cause),
    };
    let cause = Command::new(SYSTEMD_RUN)
        .args(["--user", "--scope", "--quiet", "--collect", "--property=Delegate=yes", description, "--unit"])
        .arg(unit)
        .arg("--")
        .arg(own)
        .args(arguments)
        .env(IN_SCOPE, "1")
        .exec();
    Error::new("cannot run", SYSTEMD_RUN, cause)
        .hint("it is part of systemd; without it, see `rnet run --help`")
}

/// Whether there are a systemd of this user and the program that asks it.
fn manager_answers() -> bool {
    let Some(directory) = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from) else {
        return false;
    };
    let path = env::var_os("PATH").unwrap_or_default();
    directory.join("systemd").is_dir()
        && UnixStream::connect(directory.join("bus")).is_ok()
        && env::split_paths(&path).any(|directory| directory.join(SYSTEMD_RUN).is_file())
}

/// Controllers of version 1, by the text of a process's cgroup.
fn legacy(cgroup: &str) -> BTreeSet<String> {
    let controllers = cgroup.lines().filter_map(|line| line.split(':').nth(1));
    controllers
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The directory of the cgroup of the process `pid`.
pub(super) fn of_process(pid: i32) -> Option<PathBuf> {
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    directory(&cgroup, &fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// The directory below which this process would make cgroups: its own, or the one above if that is the leaf of an rnet.
pub(super) fn own_place() -> Option<PathBuf> {
    place_of(&fs::read_to_string("/proc/self/cgroup").ok()?)
}

fn place_of(cgroup: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = directory(cgroup, &mounts)?;
    Some(if own.file_name().is_some_and(|name| name == LEAF) { own.parent()?.to_owned() } else { own })
}

/// The directory of a process's cgroup of version 2, by the texts of its cgroup (cgroups(7)) and mountinfo
/// (proc_pid_mountinfo(5)).
fn directory(cgroup: &str, mountinfo: &str) -> Option<PathBuf> {
    let path = Path::new(cgroup.lines().find_map(|line| line.strip_prefix("0::"))?);
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let fields: Vec<&str> = mount.split(' ').collect();
        let (root, point) = (fields.get(3)?, fields.get(4)?);
        if filesystem.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let below = path.strip_prefix(root).ok()?;
        let joined = Path::new(point).join(below);
        Some(joined.components().collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "25 30 0:23 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    fn facts(controllers: &str) -> Facts {
        Facts {
            own: Some("/sys/fs/cgroup/x".into()),
            controllers: controllers.split_whitespace().map(str::to_owned).collect(),
            ..Facts::default()
        }
    }

    fn place(facts: &Facts) -> std::result::Result<String, String> {
        let place = facts.place(&BTreeSet::from(["memory", "io"]));
        place.map(|place| format!("{place:?}")).map_err(|error| error.to_string())
    }

    #[test]
    fn own_cgroup_is_found_through_its_mount() {
        let at = |cgroup, mounts| directory(cgroup, mounts);
        assert_eq!(at("0::/a/b\n", UNIFIED), Some("/sys/fs/cgroup/a/b".into()));
        assert_eq!(at("0::/\n", UNIFIED), Some("/sys/fs/cgroup".into()));
        let hybrid = "30 1 0:25 / /sys/fs/cgroup ro - tmpfs t ro\n31 30 0:26 / /sys/fs/cgroup/unified rw - cgroup2 c rw\n";
        assert_eq!(at("4:memory:/m\n0::/u\n", hybrid), Some("/sys/fs/cgroup/unified/u".into()));
        let bound = "30 1 0:25 /docker/1 /sys/fs/cgroup rw - cgroup2 c rw\n";
        assert_eq!(at("0::/docker/1/x\n", bound), Some("/sys/fs/cgroup/x".into()));
        assert_eq!(at("0::/elsewhere\n", bound), None);
        assert_eq!(at("1:cpu:/\n", UNIFIED), None);
    }

    #[test]
    fn systemd_is_asked_unless_it_has_left_the_own_cgroup_to_us() {
        let all = Facts { writable: true, ..facts("cpu io memory") };
        assert_eq!(place(&all), Ok("Here(\"/sys/fs/cgroup/x\")".to_owned()));
        assert_eq!(place(&Facts { manager: true, ..all.clone() }), Ok("Scope".to_owned()));
        for ours in [Facts { delegated: true, ..all.clone() }, Facts { in_scope: true, ..all }] {
            assert_eq!(place(&Facts { manager: true, ..ours }), Ok("Here(\"/sys/fs/cgroup/x\")".to_owned()));
        }
        assert_eq!(place(&Facts { manager: true, ..facts("") }), Ok("Scope".to_owned()));
    }

    #[test]
    fn each_obstacle_names_its_remedy() {
        let remedy = |facts: &Facts| place(facts).expect_err("nowhere");
        let some = Facts { writable: true, manager: true, in_scope: true, ..facts("cpu memory") };
        assert!(remedy(&some).contains("controllers io are not") && remedy(&some).contains("delegate.conf"));
        assert!(remedy(&facts("cpu io memory")).contains("enable-linger"));
        let hybrid = Facts { legacy: legacy("4:cpu,memory:/m\n1:name=systemd:/\n0::/u\n"), ..some };
        for old in [Facts { controllers: BTreeSet::new(), ..hybrid }, Facts::default()] {
            assert!(remedy(&old).contains("unified_cgroup_hierarchy"));
        }
    }
}
