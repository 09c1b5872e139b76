//! What is mounted where: a container becomes a list of steps, without touching the system.
//!
//! The first step makes the new root the process's root, with the host's root as working directory. From
//! then on a relative path names something of the host and an absolute one something inside, until
//! [`Step::LeaveHost`] lets go of the host.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::hostcopy::{self, HostCopy};
use crate::config::{Container, EtcFiles, Owned, RootFs, Tmpfs, Volume};

/// A tmpfs for what must exist but stay out of sight. It lies where the fresh /tmp will be.
pub(super) const SCRATCH: &str = "/tmp";
/// Options of devpts; with `gid` terminals belong to the group `tty`, which programs such as sshd ask for.
const TERMINALS: &str = "newinstance,ptmxmode=0666,mode=0620";
const TERMINALS_OF_TTY: &str = "newinstance,ptmxmode=0666,mode=0620,gid=5";

/// One action on the mount tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Makes this directory of the host (absolute here) the root.
    EnterDirectory(PathBuf),
    /// Makes a copy-on-write view of directories the root.
    EnterOverlay(RootOverlay),
    /// Makes a new tmpfs the root.
    EnterTmpfs,
    /// Keeps the host's root; from here on mounts are the container's alone.
    KeepHost,
    /// Writes a file of the kernel's, if it lets us.
    Tell { path: PathBuf, value: &'static str },
    /// Makes a directory with just these permission bits; one that exists is left alone.
    Directory { path: PathBuf, mode: u32 },
    /// Writes a file of mode 0644.
    File { path: PathBuf, content: String },
    /// Makes a symbolic link.
    Symlink { path: PathBuf, target: PathBuf },
    /// Copies a regular file with its permission bits.
    Copy { source: PathBuf, path: PathBuf },
    /// Mounts a filesystem, making the mount point if it is missing.
    Mount(Mount),
    /// Binds a file or directory with all below it, making the mount point if it is missing.
    Bind(Bind),
    /// Mounts `lower` copy-on-write, or read-only if no overlay can be made of it.
    Overlay(Overlay),
    /// Makes the process's own cgroup the root of those in sight, and mounts them read-only, where the kernel allows it.
    Cgroup,
    /// Hides a file or directory that may not exist.
    Mask(PathBuf),
    /// Keeps hold of the mount at this mount point, for [`Step::Seal`].
    Hold(PathBuf),
    /// Makes the mounts held read-only, but not what has been mounted below them since.
    Seal,
    /// Takes a mount away; what is still in use of it lives on.
    Unmount(PathBuf),
    /// Gives up the host's root; the working directory becomes `/`.
    LeaveHost,
    /// Makes a directory inside with its parents, wherever links lead there, if it is missing.
    Reach(PathBuf),
    /// Gives away what has the root's owner, as far as others exist; what is not there is nobody's.
    GiveAway(Vec<Owned>),
    /// Sets the working directory; `optional`: stays at `/` if there is none of that name.
    WorkDir { path: PathBuf, optional: bool },
}

/// A new filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) fstype: &'static str,
    pub(super) target: PathBuf,
    pub(super) flags: MsFlags,
    pub(super) data: Cow<'static, str>,
    /// Bound instead, read-only if `flags` say so, where the kernel refuses a new one (EPERM).
    pub(super) instead: Option<PathBuf>,
}

/// A bind mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bind {
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
    pub(super) access: Access,
    /// Whether a failure ends the set-up; else it only deserves a note.
    pub(super) required: bool,
}

/// What may be written in a bind mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Whatever the source allows.
    ReadWrite,
    /// Nothing, below it neither.
    ReadOnly,
    /// Nothing but the mounts below it.
    TopReadOnly,
}

/// A copy-on-write view of a directory of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Overlay {
    pub(super) lower: PathBuf,
    /// Holds the writes; made with mode `mode`.
    pub(super) upper: PathBuf,
    pub(super) work: PathBuf,
    pub(super) target: PathBuf,
    pub(super) mode: u32,
    /// Directories made in `upper` beforehand, relative to it, parents first, with their modes: inside they
    /// belong to root and can be written to, whoever owns them in `lower`.
    pub(super) skeleton: Vec<(PathBuf, u32)>,
}

/// A root that is an overlay; its paths are absolute, of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RootOverlay {
    /// The topmost first; at least one.
    pub(super) lower: Vec<PathBuf>,
    /// Holds the directories `upper` and `work`, which are made if missing.
    pub(super) layers: PathBuf,
    /// A tmpfs is mounted at `layers` for as long as it takes to mount the overlay, which holds on to it.
    pub(super) in_memory: bool,
    /// Mode of its top.
    pub(super) mode: u32,
}

/// What is known of the host before planning.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) root: Root,
    /// The terminal of the caller's standard streams.
    pub(super) console: Option<PathBuf>,
    /// The container has a cgroup of its own.
    pub(super) cgroup: bool,
    /// The group `tty` exists inside, and gets the terminals.
    pub(super) tty_group: bool,
    /// The network namespace is the host's, which forbids a new /sys.
    pub(super) hosts_network: bool,
    pub(super) cwd: PathBuf,
    /// The volumes' sources without symbolic links, in the order of the volumes.
    pub(super) volume_sources: Vec<PathBuf>,
    /// Mount points below a root directory; needed only for one that becomes read-only.
    pub(super) mounts_below: Vec<PathBuf>,
}

/// The root filesystem as found.
#[derive(Debug)]
pub(super) enum Root {
    Directory(PathBuf),
    Overlay(RootOverlay),
    HostCopy(HostCopy),
    Empty,
    Host,
}

/// All steps, in order.
pub(super) fn plan(container: &Container, etc: &EtcFiles, survey: &Survey) -> Vec<Step> {
    let mut steps = vec![match &survey.root {
        Root::Directory(path) => Step::EnterDirectory(path.clone()),
        Root::Overlay(overlay) => Step::EnterOverlay(overlay.clone()),
        Root::HostCopy(_) | Root::Empty => Step::EnterTmpfs,
        Root::Host => return on_the_hosts_root(),
    }];
    if let RootFs::Overlay(overlay) = &container.rootfs
        && !overlay.owned.is_empty()
    {
        steps.push(Step::GiveAway(overlay.owned.clone()));
    }
    steps.push(scratch());
    if let Root::HostCopy(copy) = &survey.root {
        steps.extend(hostcopy::plan(copy));
    }
    if container.read_only {
        steps.extend(root_mounts(survey).into_iter().map(Step::Hold));
    }
    steps.extend(kernel_filesystems(survey.hosts_network));
    if survey.cgroup {
        steps.push(Step::Cgroup);
    }
    steps.extend(devices(survey));
    if container.privileges.masks {
        // Files are hidden under the new /dev/null.
        steps.extend(masks());
    }
    if container.rootfs == RootFs::HostCopy {
        steps.push(tmpfs("/run", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755"));
    }
    steps.extend(etc_files(etc, container.read_only));
    steps.push(Step::Unmount(SCRATCH.into()));
    steps.push(tmpfs("/tmp", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777"));
    steps.extend(mounts(container, survey));
    // Images name working directories that they do not have.
    if let (RootFs::Overlay(_), Some(path)) = (&container.rootfs, &container.workdir) {
        steps.push(Step::Reach(Path::new("/").join(path)));
    }
    if container.read_only {
        steps.push(Step::Seal);
    }
    steps.push(Step::LeaveHost);
    steps.extend(working_directory(container, survey));
    steps
}

/// The host's root as it is, with the container's processes in /proc; whoever is in the container may ping.
fn on_the_hosts_root() -> Vec<Step> {
    let proc = Mount {
        fstype: "proc",
        target: "/proc".into(),
        flags: closed(),
        data: "".into(),
        instead: Some("/proc".into()),
    };
    let ping = Step::Tell { path: "/proc/sys/net/ipv4/ping_group_range".into(), value: "0 0" };
    vec![Step::KeepHost, Step::Mount(proc), ping]
}

/// The name by which `path` of the host is reached during set-up.
pub(super) fn of_host(path: &Path) -> PathBuf {
    match path.strip_prefix("/") {
        Ok(rest) if rest.as_os_str().is_empty() => ".".into(),
        Ok(rest) => rest.into(),
        Err(_) => path.into(),
    }
}

/// A directory of the host under which none of `lower` lies, to cover for a moment. Nobody can make one in /sys.
pub(super) fn place_beside(lower: &[PathBuf]) -> PathBuf {
    let is_beside = |place: &&str| !lower.iter().any(|path| path.starts_with(place));
    ["/tmp", "/dev"].into_iter().find(is_beside).unwrap_or("/sys").into()
}

/// The mounts that the root filesystem is made of, as they are called inside.
fn root_mounts(survey: &Survey) -> Vec<PathBuf> {
    let below: Vec<PathBuf> = match &survey.root {
        Root::Directory(root) => {
            let inside = survey.mounts_below.iter().filter_map(|path| path.strip_prefix(root).ok());
            inside.map(|path| Path::new("/").join(path)).collect()
        }
        Root::HostCopy(copy) => copy.overlays().map(Path::to_owned).collect(),
        Root::Overlay(_) | Root::Empty | Root::Host => Vec::new(),
    };
    [PathBuf::from("/")].into_iter().chain(below).collect()
}

fn scratch() -> Step {
    tmpfs(SCRATCH, MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=700")
}

fn tmpfs(target: &str, flags: MsFlags, data: &'static str) -> Step {
    mount("tmpfs", target, flags, data)
}

fn mount(fstype: &'static str, target: &str, flags: MsFlags, data: &'static str) -> Step {
    Step::Mount(Mount { fstype, target: target.into(), flags, data: data.into(), instead: None })
}

fn closed() -> MsFlags {
    MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV
}

/// /proc and /sys. New ones need the host's in sight, fully: an outer container that masks parts of its own
/// forbids them, and has to lend it.
fn kernel_filesystems(hosts_network: bool) -> [Step; 2] {
    let sys = if hosts_network {
        // Read-only, or settings of the host's interfaces would be to hand.
        Step::Bind(Bind {
            source: "sys".into(),
            target: "/sys".into(),
            access: Access::ReadOnly,
            required: true,
        })
    } else {
        Step::Mount(Mount {
            fstype: "sysfs",
            target: "/sys".into(),
            flags: closed() | MsFlags::MS_RDONLY,
            data: "".into(),
            instead: Some("sys".into()),
        })
    };
    [
        Step::Mount(Mount {
            fstype: "proc",
            target: "/proc".into(),
            flags: closed(),
            data: "".into(),
            instead: Some("proc".into()),
        }),
        sys,
    ]
}

/// Covers what concerns the machine, as the defaults of OCI runtimes do; /proc/sys/net is the container's own. For an
/// ordinary user most of it is closed anyway, but the host's root is let in by the kernel even in a user namespace. And
/// a /proc with parts covered keeps namespaces made inside from mounting another one.
fn masks() -> Vec<Step> {
    let bind = |path: &str, access| {
        Step::Bind(Bind { source: path.into(), target: path.into(), access, required: false })
    };
    let mut steps = vec![bind("/proc/sys/net", Access::ReadWrite), bind("/proc/sys", Access::TopReadOnly)];
    let read_only = ["bus", "fs", "irq", "sysrq-trigger"];
    steps.extend(read_only.map(|name| bind(&format!("/proc/{name}"), Access::ReadOnly)));
    let masked = [
        "/proc/acpi",
        "/proc/asound",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/sys/firmware",
    ];
    steps.extend(masked.map(|path| Step::Mask(path.into())));
    steps
}

fn devices(survey: &Survey) -> Vec<Step> {
    let noexec = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let mut steps = vec![tmpfs("/dev", noexec | MsFlags::MS_STRICTATIME, "mode=755")];
    for name in ["null", "zero", "full", "random", "urandom", "tty"] {
        steps.push(device(&PathBuf::from(format!("dev/{name}")), &format!("/dev/{name}")));
    }
    let links = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ];
    for (name, target) in links {
        steps.push(Step::Symlink { path: format!("/dev/{name}").into(), target: target.into() });
    }
    steps.push(mount(
        "devpts",
        "/dev/pts",
        noexec,
        if survey.tty_group { TERMINALS_OF_TTY } else { TERMINALS },
    ));
    steps.push(tmpfs("/dev/shm", closed(), "mode=1777"));
    steps.push(mount("mqueue", "/dev/mqueue", closed(), ""));
    if let Some(terminal) = &survey.console {
        steps.push(device(&of_host(terminal), "/dev/console"));
    }
    steps
}

fn device(source: &Path, target: &str) -> Step {
    Step::Bind(Bind {
        source: source.into(),
        target: target.into(),
        access: Access::ReadWrite,
        required: false,
    })
}

/// The generated files, over whatever the root filesystem has there.
fn etc_files(etc: &EtcFiles, read_only: bool) -> Vec<Step> {
    let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
    let files = [("resolv.conf", &etc.resolv_conf), ("hosts", &etc.hosts), ("hostname", &etc.hostname)];
    let steps = files.into_iter().flat_map(|(name, content)| {
        let path = Path::new(SCRATCH).join(name);
        let file = Step::File { path: path.clone(), content: content.clone() };
        let target = Path::new("/etc").join(name);
        [file, Step::Bind(Bind { source: path, target, access, required: false })]
    });
    steps.collect()
}

/// Volumes and directories in memory, those nearer the root first.
fn mounts(container: &Container, survey: &Survey) -> Vec<Step> {
    let depth = |path: &Path| path.components().count();
    let volumes = container.volumes.iter().zip(&survey.volume_sources);
    let volumes = volumes.map(|(volume, source)| (depth(&volume.target), bound_volume(volume, source)));
    let memory = container.tmpfs.iter().map(|tmpfs| (depth(&tmpfs.target), memory(tmpfs)));
    let mut steps: Vec<(usize, Step)> = volumes.chain(memory).collect();
    steps.sort_by_key(|(depth, _)| *depth);
    steps.into_iter().map(|(_, step)| step).collect()
}

fn bound_volume(volume: &Volume, source: &Path) -> Step {
    Step::Bind(Bind {
        source: of_host(source),
        target: volume.target.clone(),
        access: if volume.read_only { Access::ReadOnly } else { Access::ReadWrite },
        required: true,
    })
}

fn memory(tmpfs: &Tmpfs) -> Step {
    let size = tmpfs.size.iter().map(|size| format!(",size={size}"));
    let inodes = tmpfs.inodes.iter().map(|inodes| format!(",nr_inodes={inodes}"));
    let data = format!("mode={:o}", tmpfs.mode) + &size.chain(inodes).collect::<String>();
    let flags = [
        (tmpfs.read_only, MsFlags::MS_RDONLY),
        (!tmpfs.executable, MsFlags::MS_NOEXEC),
        (!tmpfs.set_id, MsFlags::MS_NOSUID),
        (true, MsFlags::MS_NODEV),
    ];
    Step::Mount(Mount {
        fstype: "tmpfs",
        target: tmpfs.target.clone(),
        flags: flags.into_iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag).collect(),
        data: data.into(),
        instead: None,
    })
}

fn working_directory(container: &Container, survey: &Survey) -> Option<Step> {
    match (&container.workdir, &container.rootfs) {
        (Some(path), _) => Some(Step::WorkDir { path: Path::new("/").join(path), optional: false }),
        (None, RootFs::HostCopy) => Some(Step::WorkDir { path: survey.cwd.clone(), optional: true }),
        (None, RootFs::Directory(_) | RootFs::Overlay(_) | RootFs::Empty | RootFs::Host) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Allowance, Identity, Privileges, Terminal};

    fn container(rootfs: RootFs) -> Container {
        Container {
            rootfs,
            command: vec!["sh".into()],
            env: Vec::new(),
            workdir: None,
            hostname: "h".into(),
            volumes: Vec::new(),
            tmpfs: Vec::new(),
            read_only: false,
            init: false,
            privileges: Privileges::default(),
            terminal: Terminal::Inherited,
            identity: Identity::default(),
            allowance: Allowance::default(),
        }
    }

    fn survey(root: Root) -> Survey {
        Survey {
            root,
            console: None,
            cgroup: false,
            tty_group: false,
            hosts_network: false,
            cwd: "/home/me".into(),
            volume_sources: Vec::new(),
            mounts_below: Vec::new(),
        }
    }

    fn position(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
        steps.iter().position(wanted).expect("the step is planned")
    }

    fn mounts_on(target: &'static str) -> impl Fn(&Step) -> bool {
        move |step| matches!(step, Step::Mount(mount) if mount.target == Path::new(target))
    }

    #[test]
    fn host_is_left_after_the_last_mount() {
        let mut container = container(RootFs::Directory("/r".into()));
        container.volumes.push(Volume { source: "/a".into(), target: "/b".into(), read_only: true });
        container.workdir = Some("/b".into());
        let mut survey = survey(Root::Directory("/r".into()));
        survey.volume_sources.push("/real/a".into());
        let steps = plan(&container, &EtcFiles::default(), &survey);
        assert_eq!(steps[0], Step::EnterDirectory("/r".into()));
        let volume =
            Bind { source: "real/a".into(), target: "/b".into(), access: Access::ReadOnly, required: true };
        let work_dir = Step::WorkDir { path: "/b".into(), optional: false };
        assert_eq!(steps[steps.len() - 3..], [Step::Bind(volume), Step::LeaveHost, work_dir]);
    }

    #[test]
    fn read_only_root_is_sealed_with_its_own_mounts_once_all_mount_points_are_made() {
        let mut container = container(RootFs::Directory("/r".into()));
        container.read_only = true;
        container.tmpfs.push(Tmpfs { size: Some("1m".into()), ..Tmpfs::at("/a/b".into()) });
        container.volumes.push(Volume { source: "/v".into(), target: "/a".into(), read_only: false });
        let mut survey = survey(Root::Directory("/r".into()));
        survey.volume_sources.push("/v".into());
        survey.mounts_below.push("/r/data".into());
        let steps = plan(&container, &EtcFiles::default(), &survey);
        let held = position(&steps, |step| *step == Step::Hold("/data".into()));
        let volume =
            position(&steps, |step| matches!(step, Step::Bind(bind) if bind.source == Path::new("v")));
        let memory = position(&steps, mounts_on("/a/b"));
        assert!(matches!(&steps[memory], Step::Mount(mount) if mount.data == "mode=1777,size=1m"));
        let sealed = position(&steps, |step| *step == Step::Seal);
        assert!(held < position(&steps, mounts_on("/proc")));
        assert!(volume < memory && memory < sealed);
    }

    #[test]
    fn working_directory_of_an_overlay_is_made_before_it_is_sealed() {
        let lower = vec![PathBuf::from("/l")];
        let mut container = container(RootFs::Overlay(config::Overlay {
            lower: lower.clone(),
            kept: None,
            owned: Vec::new(),
        }));
        container.workdir = Some("/work".into());
        container.read_only = true;
        let overlay = RootOverlay { lower, layers: "/tmp".into(), in_memory: true, mode: 0o755 };
        let steps = plan(&container, &EtcFiles::default(), &survey(Root::Overlay(overlay)));
        let made = position(&steps, |step| *step == Step::Reach("/work".into()));
        assert!(made < position(&steps, |step| *step == Step::Seal));
    }

    #[test]
    fn generated_files_are_bound_before_the_scratch_tmpfs_goes() {
        let etc = EtcFiles { hosts: "127.0.0.1 localhost\n".into(), ..EtcFiles::default() };
        let steps = plan(&container(RootFs::Empty), &etc, &survey(Root::Empty));
        let file =
            position(&steps, |step| matches!(step, Step::File { content, .. } if *content == etc.hosts));
        let bound = position(
            &steps,
            |step| matches!(step, Step::Bind(bind) if bind.target == Path::new("/etc/hosts")),
        );
        let gone = position(&steps, |step| *step == Step::Unmount(SCRATCH.into()));
        assert!(file < bound && bound < gone);
        assert!(steps[gone..].iter().any(mounts_on("/tmp")));
    }

    #[test]
    fn parts_of_proc_are_covered_unless_told_otherwise() {
        let mut container = container(RootFs::Empty);
        let survey = survey(Root::Empty);
        let covers = |steps: &[Step]| steps.iter().any(|step| matches!(step, Step::Mask(_)));
        assert!(covers(&plan(&container, &EtcFiles::default(), &survey)));
        container.privileges.masks = false;
        assert!(!covers(&plan(&container, &EtcFiles::default(), &survey)));
    }

    #[test]
    fn in_the_hosts_network_its_sys_is_shown_read_only() {
        let survey = Survey { hosts_network: true, ..survey(Root::Empty) };
        let steps = plan(&container(RootFs::Empty), &EtcFiles::default(), &survey);
        assert!(!steps.iter().any(mounts_on("/sys")));
        let bound = position(
            &steps,
            |step| matches!(step, Step::Bind(bind) if bind.target == Path::new("/sys") && bind.access == Access::ReadOnly),
        );
        assert!(bound < position(&steps, |step| *step == Step::LeaveHost));
    }

    #[test]
    fn terminal_becomes_the_console_and_pts_is_the_containers_own() {
        let mut survey = survey(Root::Empty);
        survey.console = Some("/dev/pts/7".into());
        let steps = plan(&container(RootFs::Empty), &EtcFiles::default(), &survey);
        let pts = position(&steps, mounts_on("/dev/pts"));
        let console = position(
            &steps,
            |step| matches!(step, Step::Bind(bind) if bind.source == Path::new("dev/pts/7")),
        );
        assert!(position(&steps, mounts_on("/dev")) < pts && pts < console);
        let data = |step: &Step| matches!(step, Step::Mount(mount) if mount.data == TERMINALS_OF_TTY);
        assert!(!data(&steps[pts]));
        survey.tty_group = true;
        assert!(data(&plan(&container(RootFs::Empty), &EtcFiles::default(), &survey)[pts]));
    }

    #[test]
    fn writes_to_memory_cover_no_layer() {
        let place = |lower: &[&str]| place_beside(&lower.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(place(&["/home/me/rootfs", "/tmporary"]), Path::new("/tmp"));
        assert_eq!(place(&["/home/me/rootfs", "/tmp/x"]), Path::new("/dev"));
        assert_eq!(place(&["/dev/shm/y", "/tmp"]), Path::new("/sys"));
    }

    #[test]
    fn copy_of_the_host_starts_where_the_caller_is() {
        let copy = HostCopy { nodes: Vec::new(), layers: "/tmp".into() };
        let steps = plan(&container(RootFs::HostCopy), &EtcFiles::default(), &survey(Root::HostCopy(copy)));
        assert_eq!(steps[0], Step::EnterTmpfs);
        let cwd = Step::WorkDir { path: "/home/me".into(), optional: true };
        assert_eq!(steps.last(), Some(&cwd));
        assert!(steps.iter().any(mounts_on("/run")));
    }
}
