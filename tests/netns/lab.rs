//! The small world of a scenario:
//!
//! ```text
//! guest --- rnet on the host 192.0.2.2 --- router .1 | 198.51.100.1 --- remote 198.51.100.9
//!                      2001:db8:1::2             ::1 | 2001:db8:2::1        2001:db8:2::9
//! ```
//!
//! The host is a private network and mount namespace of this very machine with its own `/mnt`: a copy of rnet,
//! two root filesystems and a home. rnet runs there as a user with no rights at all. The router drops what goes
//! to `SILENT`, and answers with ICMP errors for `UNREACHABLE` and `PROHIBITED`.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Uid, chown, getgid};

use crate::process::{Outcome, Process};
use crate::space::Space;

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
pub(crate) const REMOTE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 9);
pub(crate) const SILENT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const UNREACHABLE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(crate) const PROHIBITED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 3);
pub(crate) const UNREACHABLE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 2);

/// The ordinary user; it needs no entry in /etc/passwd.
const USER: u32 = 65_533;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const BUSYBOX: &str = "/bin/busybox";

/// Runs each named function of the enclosing module as a test, over each kind of link.
macro_rules! over_links {
    ($($scenario:ident),+ $(,)?) => {
        mod tap {
            $(#[test] fn $scenario() { $crate::lab::play($crate::lab::Link::Tap, super::$scenario); })+
        }
        mod tap_plain {
            $(#[test] fn $scenario() { $crate::lab::play($crate::lab::Link::TapPlain, super::$scenario); })+
        }
        mod packet {
            $(#[test] fn $scenario() { $crate::lab::play($crate::lab::Link::Packet, super::$scenario); })+
        }
    };
}

/// Runs each named function of the enclosing module as a test over a TAP whose queues have a worker each.
macro_rules! over_queues {
    ($($scenario:ident),+ $(,)?) => {
        mod two_workers {
            $(#[test] fn $scenario() { $crate::lab::play($crate::lab::Link::Queues("2"), super::$scenario); })+
        }
        mod four_workers {
            $(#[test] fn $scenario() { $crate::lab::play($crate::lab::Link::Queues("4"), super::$scenario); })+
        }
    };
}

/// Runs each named function of the enclosing module as a test over the link that rnet chooses; for what does
/// not depend on the link.
macro_rules! over_any_link {
    ($($scenario:ident),+ $(,)?) => {
        mod auto {
            $(#[test] fn $scenario() { $crate::lab::play($crate::lab::Link::Auto, super::$scenario); })+
        }
    };
}

/// The link that rnet shall use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// What rnet chooses; /dev/net/tun is there if this machine has one.
    Auto,
    /// A TAP with offloads.
    Tap,
    /// The same with so many queues.
    Queues(&'static str),
    /// A TAP without.
    TapPlain,
    /// What rnet chooses when /dev/net/tun is hidden: the packet link.
    Packet,
}

impl Link {
    fn options(self) -> Vec<&'static str> {
        let workers = all_workers().into_iter().flat_map(|workers| ["--workers", workers]);
        match self {
            Self::Packet => Vec::new(),
            Self::Auto => workers.collect(),
            Self::Tap => workers.chain(["--link", "tap"]).collect(),
            Self::Queues(workers) => vec!["--link", "tap", "--workers", workers],
            Self::TapPlain => vec!["--link", "tap-plain"],
        }
    }
}

/// What a guest sees as its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// A busybox with all its commands, and no other file.
    Busybox,
    /// `bin/busybox` alone, without so much as an `sh`.
    Tiny,
    /// The host's own.
    Host,
}

impl Root {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Busybox => "/mnt/rootfs",
            Self::Tiny => "/mnt/tiny",
            Self::Host => "/",
        }
    }
}

/// Plays one scenario, or says why this machine cannot.
pub(crate) fn play(link: Link, scenario: fn(&Host)) {
    match Host::new(link) {
        Ok(host) => scenario(&host),
        Err(why) => skip(&why),
    }
}

/// Ends a test as skipped; a failure if `RNET_NO_SKIP` is set.
pub(crate) fn skip(why: &str) {
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    assert!(std::env::var_os("RNET_NO_SKIP").is_none(), "would skip {name}: {why}");
    // Not println!, which the test harness keeps to itself.
    let _ = writeln!(std::io::stderr(), "skipped: {name}: {}", why.trim().replace('\n', "; "));
}

/// The machine on which rnet runs, and the world around it.
pub(crate) struct Host {
    link: Link,
    space: Space,
    router: Space,
    remote: Space,
}

impl Host {
    /// Builds the world; an error says what this machine lacks for it.
    pub(crate) fn new(link: Link) -> Result<Self, String> {
        for program in [BUSYBOX, "/usr/bin/python3", "/usr/bin/setpriv"] {
            if !Path::new(program).exists() {
                return Err(format!("{program} is missing; tests/run installs it as root"));
            }
        }
        raise_fd_limit();
        let space =
            || Space::new().map_err(|errno| format!("cannot make namespaces ({errno}); start tests/run"));
        let host = Self { link, space: space()?, router: space()?, remote: space()? };
        host.connect()?;
        host.space.within(furnish)?;
        match link {
            Link::Packet => host.space.within(hide_tun)?,
            Link::Tap | Link::Queues(_) | Link::TapPlain => host.space.within(open_tun)?,
            Link::Auto => drop(host.space.within(open_tun)),
        }
        if !host.allow_ping(true) {
            return Err("net.ipv4.ping_group_range cannot be set".to_owned());
        }
        Ok(host)
    }

    /// The namespace of the host itself.
    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// The namespace of the remote machine.
    pub(crate) fn remote(&self) -> &Space {
        &self.remote
    }

    pub(crate) fn link(&self) -> Link {
        self.link
    }

    /// Starts `rnet run OPTIONS ROOT COMMAND` as the ordinary user.
    pub(crate) fn start(&self, options: &[&str], root: Root, command: &[&str]) -> Process {
        self.start_as_user(&self.argv(options, root, command))
    }

    /// The command line of [`Host::start`].
    pub(crate) fn argv<'a>(&self, options: &[&'a str], root: Root, command: &[&'a str]) -> Vec<&'a str> {
        let verbose: &[&str] = if is_verbose() { &["--verbose"; 3] } else { &[] };
        [&["/mnt/rnet", "run"], &self.link.options()[..], verbose, options, &[root.path()], command].concat()
    }

    /// [`Host::start`], and waits for the end.
    pub(crate) fn run(&self, options: &[&str], root: Root, command: &[&str]) -> Outcome {
        self.start(options, root, command).wait()
    }

    /// Runs a shell line in a busybox guest; its standard output if all went well.
    pub(crate) fn sh(&self, options: &[&str], line: &str) -> String {
        self.run(options, Root::Busybox, &["sh", "-c", line]).success()
    }

    /// Starts a Python program (its text) in a guest whose root is the host's.
    pub(crate) fn start_python(&self, options: &[&str], program: &str, args: &[&str]) -> Process {
        let command = [&["/usr/bin/python3", "-c", program], args].concat();
        self.start(options, Root::Host, &command)
    }

    /// [`Host::start_python`] to its end; its standard output if all went well.
    pub(crate) fn python(&self, options: &[&str], program: &str, args: &[&str]) -> String {
        self.start_python(options, program, args).wait().success()
    }

    /// The command line of `rnet attach OPTIONS`.
    pub(crate) fn attach_argv<'a>(&self, options: &[&'a str]) -> Vec<&'a str> {
        let verbose: &[&str] = if is_verbose() { &["--verbose"; 3] } else { &[] };
        [&["/mnt/rnet", "attach"], &self.link.options()[..], verbose, options].concat()
    }

    /// Starts `rnet attach OPTIONS` as the ordinary user.
    pub(crate) fn start_attach(&self, options: &[&str]) -> Process {
        self.start_as_user(&self.attach_argv(options))
    }

    /// Starts `rnet ARGV` as the ordinary user.
    pub(crate) fn start_rnet(&self, argv: &[&str]) -> Process {
        let argv = [&["/mnt/rnet"], argv].concat();
        self.start_as_user(&argv)
    }

    /// Starts any program of the host as the ordinary user.
    pub(crate) fn start_as_user(&self, argv: &[&str]) -> Process {
        Process::start(&self.space, as_user(argv))
    }

    /// Runs any program of the host with the test's own rights.
    pub(crate) fn tool(&self, argv: &[&str]) -> Outcome {
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).env("PATH", PATH);
        Process::start(&self.space, command).wait()
    }

    /// Opens or forbids ping sockets to everybody on the host; whether that could be done.
    pub(crate) fn allow_ping(&self, allow: bool) -> bool {
        // In a user namespace with one id, only that group exists.
        let own = format!("{0} {0}", getgid());
        let ranges = if allow { ["0 2147483647", &own] } else { ["1 0"; 2] };
        let set = |range: &str| {
            let range = range.to_owned();
            self.space.within(move || fs::write("/proc/sys/net/ipv4/ping_group_range", range))
        };
        ranges.iter().any(|range| set(range).is_ok())
    }

    /// Gives the host an `/etc` of its own, in which `resolv.conf` can be changed and replaced.
    pub(crate) fn own_etc(&self, resolv_conf: &str) {
        let script = "cp -a /etc /mnt/etc.copy 2>/dev/null; mount -t tmpfs -o mode=755 etc /etc && \
                      cp -a /mnt/etc.copy/. /etc/ && rm -rf /mnt/etc.copy /etc/resolv.conf";
        self.tool(&["/bin/sh", "-c", script]).success();
        self.write("/etc/resolv.conf", resolv_conf);
    }

    /// Writes a file of the host.
    pub(crate) fn write(&self, path: &str, text: &str) {
        let (path, text) = (path.to_owned(), text.to_owned());
        self.space
            .within(move || fs::write(&path, text).map_err(|error| format!("{path}: {error}")))
            .expect("the host's files can be written");
    }

    /// Reads a file of the host.
    pub(crate) fn read(&self, path: &str) -> String {
        let path = path.to_owned();
        self.space
            .within(move || fs::read_to_string(&path).map_err(|error| format!("{path}: {error}")))
            .expect("the host's files can be read")
    }

    /// Connects from the host itself.
    pub(crate) fn dial(&self, to: impl Into<SocketAddr>) -> std::io::Result<std::net::TcpStream> {
        let to = to.into();
        self.space.within(move || connect(to))
    }

    /// Connects from the remote machine.
    pub(crate) fn dial_from_remote(&self, to: impl Into<SocketAddr>) -> std::io::Result<std::net::TcpStream> {
        let to = to.into();
        self.remote.within(move || connect(to))
    }

    /// Cuts or mends the way from the router to the remote machine; what is sent meanwhile is lost silently.
    pub(crate) fn cut_remote(&self, cut: bool) {
        let change = if cut { "add" } else { "del" };
        let route = format!("route {change} blackhole {REMOTE}\n");
        ip_batch(&self.router, &route).expect("a route");
    }

    fn connect(&self) -> Result<(), String> {
        for space in [&self.space, &self.router, &self.remote] {
            space.within(settle).map_err(|error| format!("sysctl: {error}"))?;
        }
        let forward = || {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        };
        self.router.within(forward).map_err(|error| format!("cannot make a router: {error}"))?;
        let (router, remote) = (self.router.tid(), self.remote.tid());
        ip_batch(
            &self.space,
            &format!(
                "link set lo up\n\
                 link add eth0 mtu 9000 type veth peer name left netns {router} mtu 9000\n\
                 link set eth0 up\n\
                 addr add 192.0.2.2/24 dev eth0\n\
                 addr add 2001:db8:1::2/64 dev eth0 nodad\n"
            ),
        )?;
        ip_batch(
            &self.router,
            &format!(
                "link add right mtu 9000 type veth peer name eth0 netns {remote} mtu 9000\n\
                 link set lo up\nlink set left up\nlink set right up\n\
                 addr add 192.0.2.1/24 dev left\naddr add 2001:db8:1::1/64 dev left nodad\n\
                 addr add 198.51.100.1/24 dev right\naddr add 2001:db8:2::1/64 dev right nodad\n\
                 route add blackhole 203.0.113.1\nroute add unreachable 203.0.113.2\n\
                 route add prohibit 203.0.113.3\nroute add unreachable 2001:db8:3::2\n"
            ),
        )?;
        ip_batch(
            &self.remote,
            "link set lo up\nlink set eth0 up\n\
             addr add 198.51.100.9/24 dev eth0\naddr add 2001:db8:2::9/64 dev eth0 nodad\n\
             route add default via 198.51.100.1\nroute add default via 2001:db8:2::1\n",
        )?;
        ip_batch(&self.space, "route add default via 192.0.2.1\nroute add default via 2001:db8:1::1\n")
    }
}

/// Makes a network namespace answer at once and always: no wait for duplicate addresses, no limit on errors.
fn settle() -> std::io::Result<()> {
    fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")?;
    fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0")?;
    fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0")
}

/// Changes interfaces, addresses and routes of a space.
pub(crate) fn ip_batch(space: &Space, commands: &str) -> Result<(), String> {
    let commands = commands.to_owned();
    space.within(move || {
        let mut child = Command::new("ip")
            .args(["-batch", "-"])
            .env("PATH", PATH)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("ip (iproute2): {error}"))?;
        let mut stdin = child.stdin.take().expect("piped");
        let written = stdin.write_all(commands.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        if output.status.success() && written.is_ok() {
            return Ok(());
        }
        Err(format!("ip: {}", String::from_utf8_lossy(&output.stderr)))
    })
}

/// A command line that runs as the ordinary user, without any right, and dies with the space that started it.
pub(crate) fn as_user(argv: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--pdeathsig", "KILL", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"]);
    if is_real_root() {
        let (uid, gid) = (format!("--reuid={USER}"), format!("--regid={USER}"));
        command.args([&uid, &gid, "--clear-groups"]);
    }
    command.arg("--").args(argv);
    command.current_dir("/mnt/home");
    command.env_clear().env("PATH", PATH).env("HOME", "/mnt/home").env("TERM", "xterm");
    command.env("XDG_RUNTIME_DIR", "/mnt/home");
    command
}

/// How many workers every TAP with offloads shall have (`RNET_TEST_WORKERS`).
fn all_workers() -> Option<&'static str> {
    static WORKERS: OnceLock<Option<String>> = OnceLock::new();
    WORKERS.get_or_init(|| std::env::var("RNET_TEST_WORKERS").ok()).as_deref()
}

/// Whether rnet shall log all it can, and the log be shown (`RNET_TEST_VERBOSE`).
pub(crate) fn is_verbose() -> bool {
    std::env::var_os("RNET_TEST_VERBOSE").is_some()
}

/// Whether this process is root of the whole machine and not just of a user namespace.
pub(crate) fn is_real_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    Uid::effective().is_root() && map.split_whitespace().nth(2) == Some("4294967295")
}

fn connect(to: SocketAddr) -> std::io::Result<std::net::TcpStream> {
    let stream = std::net::TcpStream::connect_timeout(&to, crate::process::PATIENCE)?;
    stream.set_read_timeout(Some(crate::process::PATIENCE))?;
    stream.set_write_timeout(Some(crate::process::PATIENCE))?;
    Ok(stream)
}

/// Thousands of connections end in this process.
fn raise_fd_limit() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
    });
}

/// Puts rnet, the root filesystems and a home into a fresh `/mnt`.
fn furnish() -> Result<(), String> {
    mount(Some("mnt"), "/mnt", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .map_err(|errno| format!("cannot mount /mnt: {errno}"))?;
    let build = || -> std::io::Result<()> {
        install(env!("CARGO_BIN_EXE_rnet"), "/mnt/rnet")?;
        install(BUSYBOX, "/mnt/tiny/bin/busybox")?;
        install(BUSYBOX, "/mnt/rootfs/bin/busybox")?;
        for applet in applets()? {
            symlink("busybox", format!("/mnt/rootfs/bin/{applet}"))?;
        }
        fs::create_dir("/mnt/home")?;
        if is_real_root() {
            for owned in ["/mnt/home", "/mnt/rootfs", "/mnt/rootfs/bin", "/mnt/tiny", "/mnt/tiny/bin"] {
                chown(owned, Some(USER.into()), Some(USER.into()))?;
            }
        }
        Ok(())
    };
    build().map_err(|error| format!("cannot furnish /mnt: {error}"))
}

/// Copies a program. By a process of its own: were the copy open for writing here, a program that starts on another
/// thread would hold it open too, and what is open for writing cannot be executed.
fn install(program: &str, to: &str) -> std::io::Result<()> {
    let status = Command::new("install").args(["-D", "-m", "755", program, to]).env("PATH", PATH).status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other(format!("install {program}: {status}"))) }
}

fn applets() -> std::io::Result<Vec<String>> {
    let output = Command::new(BUSYBOX).arg("--list").output()?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(names.lines().filter(|name| *name != "busybox").map(str::to_owned).collect())
}

/// Puts a /dev/net/tun that everybody may open in the place of the machine's.
fn open_tun() -> Result<(), String> {
    let nothing: Option<&str> = None;
    let everybody = Mode::from_bits_truncate(0o666);
    if mknod("/mnt/tun", SFlag::S_IFCHR, everybody, makedev(10, 200)).is_ok() {
        fs::set_permissions("/mnt/tun", fs::Permissions::from_mode(0o666))
            .map_err(|error| format!("/mnt/tun: {error}"))?;
        mount(Some("/mnt/tun"), "/dev/net/tun", nothing, MsFlags::MS_BIND, nothing)
            .map_err(|errno| format!("no /dev/net/tun on this machine ({errno})"))?;
    }
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map(drop)
        .map_err(|error| format!("/dev/net/tun cannot be opened: {error}"))
}

/// Hides /dev/net/tun.
fn hide_tun() -> Result<(), String> {
    if !Path::new("/dev/net").exists() {
        return Ok(());
    }
    let options = Some("mode=755,ro");
    mount(Some("none"), "/dev/net", Some("tmpfs"), MsFlags::empty(), options)
        .map_err(|errno| format!("cannot hide /dev/net/tun: {errno}"))
}
