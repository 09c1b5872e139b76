//! Options and surroundings together become a [`Config`]: defaults, and what only shows across options.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::args::{AttachArgs, HelloArgs, LogArgs, NetworkArgs, PortArgs, PortVerb, RunArgs, TrafficArgs};
use super::confinement;
use super::mounts::MountSpec;
use super::options::Options;
use super::values::{EnvSpec, OutboundSpec, PublishSpec, VolumeSpec};
use super::{Note, Question, Request, Surroundings, Topic, allowance, identity, image, layers, life, subnet};
use crate::config::{
    Allowance, Attach, Config, Container, Exit, HostAccess, Identity, ImageUse, Ipv4Plan, Ipv6Plan, Life,
    Lifecycle, LinkSpec, Log, LogLevel, MAX_DNS_SERVERS, MAX_PUBLISHED, MacAddr, Mapping, Network,
    NetworkMode, Outbound, Overlay, Privileges, Publish, RootFs, Setup, Splicing, Target, Terminal, Timeouts,
    Tmpfs, Transport, Volume,
};

/// Below so many cores the guest, its peers and one worker have use for all of them.
const CORES_FOR_TWO_WORKERS: usize = 4;
/// Workers unless more are asked for: beyond, the guest's own network stack is what limits.
const MAX_AUTOMATIC_WORKERS: u16 = 4;
/// Least MTU of a link with IPv6 (RFC 8200 section 5).
const IPV6_MIN_MTU: u16 = 1280;

/// PATH of a command in a directory's root.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_SHELL: &str = "/bin/sh";

/// Settles `rnet run`. The error is a sentence for the user.
pub(super) fn run(args: RunArgs, surroundings: &Surroundings) -> Result<Request, String> {
    let mut notes = Vec::new();
    let mut network = network(&args.network, surroundings, &mut notes)?;
    let mode = super::network::settle(args.mode, &args.network, &args.traffic, &mut notes)?;
    traffic(args.traffic, &mut network)?;
    network.splice = splicing(args.no_splice);
    let mut words = args.words.into_iter();
    let rootfs = rootfs(&words.next().unwrap_or_default(), args.overlay, &args.lower, surroundings)?;
    let (ids_given, stop_signal_given) = (args.identity.names_ids(), args.life.stop_signal.is_some());
    let (name, life) = life::settle(args.life, args.terminal.interactive, surroundings);
    // A network without a name hardly gets further ports, and starts quicker.
    network.publishes_later = name.is_some();
    let hostname = args.hostname.unwrap_or_else(|| match rootfs {
        _ if mode == NetworkMode::Host => surroundings.hostname.clone(),
        RootFs::HostCopy | RootFs::Host => surroundings.hostname.clone(),
        RootFs::Directory(_) | RootFs::Overlay(_) | RootFs::Empty => life.short_id().to_owned(),
    });
    let (volumes, tmpfs) = mounts(args.volume, args.mount, args.tmpfs, surroundings)?;
    let words: Vec<OsString> = words.collect();
    let asked = asked_for(args.env, surroundings);
    let image = image::settle(args.image, &words, asked.clone());
    let image = ImageUse { ids_given, stop_signal_given, ..image };
    let terminal = args.terminal.settle();
    let identity = identity::settle(args.identity)?;
    let container = Container {
        command: command(words, &image, &rootfs, surroundings),
        env: environment(&rootfs, &hostname, &identity, terminal, asked, surroundings),
        rootfs,
        workdir: args.workdir,
        hostname,
        volumes,
        tmpfs,
        read_only: args.read_only,
        init: args.init,
        privileges: confinement::privileges(args.confinement, &identity.mapping, &surroundings.cwd),
        terminal,
        identity,
        allowance: allowance::settle(args.allowance)?,
    };
    let mac_given = args.network.mac_address.is_some();
    let mut request = request(&args.network, network, container, &args.log, surroundings, notes);
    request.config.name = name;
    request.config.life = life;
    if matches!(mode, NetworkMode::Named(_)) && !mac_given {
        // The network chooses.
        request.config.link.mac = None;
    }
    request.config.mode = mode;
    request.config.image = image;
    Ok(request)
}

/// Settles `rnet attach`.
pub(super) fn attach(args: AttachArgs, surroundings: &Surroundings) -> Result<Request<Attach>, String> {
    let mut notes = Vec::new();
    let target = target(&args)?;
    let mut network = network(&args.network, surroundings, &mut notes)?;
    traffic(args.traffic, &mut network)?;
    network.splice = splicing(args.no_splice);
    network.publishes_later = true;
    let absolute = |path: &PathBuf| absolute(path, surroundings);
    let config = Attach {
        network,
        link: LinkSpec {
            loopback: !matches!(target, Target::Bubblewrap { .. }),
            ..link(&args.network, surroundings)
        },
        target,
        lifecycle: Lifecycle {
            ready_fd: args.ready_fd,
            exit_fd: args.exit_fd,
            pid_file: args.pid_file.as_ref().map(absolute),
            detach: args.detach,
            outlives_target: false,
        },
        name: args.name,
        memo: None,
        log: Log { level: log_level(&args.log), format: args.log.log_format },
    };
    Ok(Request { config: Box::new(config), notes })
}

fn splicing(off: bool) -> Splicing {
    if off { Splicing::Off } else { Splicing::ToAddress }
}

/// Settles options that come by name.
pub(super) fn options(
    traffic_args: TrafficArgs,
    args: &NetworkArgs,
    surroundings: &Surroundings,
) -> Result<Options, String> {
    let mut notes = Vec::new();
    let mut network = network(args, surroundings, &mut notes)?;
    traffic(traffic_args, &mut network)?;
    Ok(Options { network, link: link(args, surroundings), notes })
}

fn target(args: &AttachArgs) -> Result<Target, String> {
    let userns = args.userns.clone();
    match (args.pid, &args.netns, args.tap_fd, args.bwrap_info_fd) {
        (Some(pid), ..) => Ok(Target::Process { pid, userns }),
        (_, Some(netns), ..) => Ok(Target::Path { netns: netns.clone(), userns }),
        (.., Some(fd), _) => Ok(Target::Tap { fd }),
        (.., Some(info_fd)) => Ok(Target::Bubblewrap { info_fd }),
        _ => Err("PID, --netns, --tap-fd or --bwrap-info-fd is needed".to_owned()),
    }
}

/// Settles `rnet port`.
pub(super) fn port(verb: PortVerb) -> Result<Question, String> {
    let (args, topic): (PortArgs, fn(Vec<Publish>) -> Topic) = match verb {
        PortVerb::Ls { network, json } => return Ok(Question { network, topic: Topic::Ports, json }),
        PortVerb::Add(args) => (args, Topic::Publish),
        PortVerb::Rm(args) => (args, Topic::Unpublish),
    };
    let PortArgs { network, ports, json } = args;
    Ok(Question { network, topic: topic(published(&ports)?), json })
}

/// Settles `rnet hello`.
pub(super) fn hello(args: HelloArgs, surroundings: &Surroundings) -> Result<Request, String> {
    let mut notes = Vec::new();
    let network = network(&args.network, surroundings, &mut notes)?;
    let hostname = "hello".to_owned();
    let container = Container {
        rootfs: RootFs::Empty,
        command: vec!["/rnet".into()],
        env: environment(
            &RootFs::Empty,
            &hostname,
            &Identity::default(),
            Terminal::Inherited,
            Vec::new(),
            surroundings,
        ),
        workdir: None,
        hostname,
        volumes: Vec::new(),
        tmpfs: Vec::new(),
        read_only: false,
        init: false,
        privileges: Privileges::default(),
        terminal: Terminal::Inherited,
        identity: Identity::default(),
        allowance: Allowance::default(),
    };
    Ok(request(&args.network, network, container, &args.log, surroundings, notes))
}

fn request(
    args: &NetworkArgs,
    network: Network,
    container: Container,
    log: &LogArgs,
    surroundings: &Surroundings,
    notes: Vec<Note>,
) -> Request {
    let config = Config {
        mode: NetworkMode::User,
        network,
        link: link(args, surroundings),
        container,
        image: ImageUse::default(),
        name: None,
        life: Life::default(),
        log: Log { level: log_level(log), format: log.log_format },
    };
    Request { config: Box::new(config), notes }
}

fn link(args: &NetworkArgs, surroundings: &Surroundings) -> LinkSpec {
    LinkSpec {
        kind: args.link,
        ifname: args.ifname.clone(),
        mac: Some(args.mac_address.unwrap_or_else(|| random_mac(surroundings))),
        queues: args.workers.given.unwrap_or_else(|| automatic_workers(surroundings.cores)),
        queues_given: args.workers.given.is_some(),
        take_over: false,
        setup: Setup::Plan,
        loopback: true,
        capture: None,
    }
}

/// What may pass, and from where to where.
fn traffic(args: TrafficArgs, network: &mut Network) -> Result<(), String> {
    network.publish = published(&args.publish)?;
    network.host_access = host_access(&args, network)?;
    network.timeouts = timeouts(&args);
    network.outbound = outbound(&args.outbound)?;
    if args.dns.len() > MAX_DNS_SERVERS {
        return Err(format!("--dns is given more than {MAX_DNS_SERVERS} times"));
    }
    network.dns_servers = args.dns;
    Ok(())
}

fn outbound(specs: &[OutboundSpec]) -> Result<Outbound, String> {
    let mut outbound = Outbound::default();
    for spec in specs {
        let exits: Vec<&mut Exit> = match spec {
            OutboundSpec::Address(IpAddr::V4(_)) => vec![&mut outbound.ipv4],
            OutboundSpec::Address(IpAddr::V6(_)) => vec![&mut outbound.ipv6],
            OutboundSpec::Interface(_) => vec![&mut outbound.ipv4, &mut outbound.ipv6],
        };
        for exit in exits {
            let before = match spec {
                OutboundSpec::Address(addr) => exit.address.replace(*addr).is_some(),
                OutboundSpec::Interface(name) => exit.interface.replace(*name).is_some(),
            };
            if before {
                return Err("--outbound is given twice for one family".to_owned());
            }
        }
    }
    Ok(outbound)
}

/// Half of the cores are the guest's and its peers'.
fn automatic_workers(cores: usize) -> u16 {
    if cores < CORES_FOR_TWO_WORKERS {
        return 1;
    }
    u16::try_from(cores / 2).unwrap_or(u16::MAX).min(MAX_AUTOMATIC_WORKERS)
}

/// Addresses and MTU; the rest at its defaults.
fn network(
    args: &NetworkArgs,
    surroundings: &Surroundings,
    notes: &mut Vec<Note>,
) -> Result<Network, String> {
    if !args.no_ipv6 && args.mtu < IPV6_MIN_MTU {
        return Err(format!(
            "invalid value '{}' for '--mtu <BYTES>': IPv6 needs at least {IPV6_MIN_MTU}; \
             with --no-ipv6 576 is enough",
            args.mtu
        ));
    }
    let host = &surroundings.host_subnets;
    let ipv4 = if args.no_ipv4 { None } else { Some(ipv4_plan(args.cidr, host, notes)?) };
    let ipv6 = if args.no_ipv6 { None } else { Some(ipv6_plan(args.cidr6, host, notes)?) };
    Ok(Network { mtu: args.mtu, ..Network::new(ipv4, ipv6) })
}

fn ipv4_plan(given: Option<Ipv4Plan>, host: &[IpNet], notes: &mut Vec<Note>) -> Result<Ipv4Plan, String> {
    if let Some(plan) = given {
        warn_of_collision(plan.subnet.into(), host, notes);
        return Ok(plan);
    }
    let usual = Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 2, 0), 24);
    let plan = subnet::free_ipv4(host)
        .ok_or("every usual private IPv4 network is in use at the host; choose one with --cidr")?;
    note_move(usual.into(), plan.subnet.into(), host, notes);
    Ok(plan)
}

fn ipv6_plan(given: Option<Ipv6Plan>, host: &[IpNet], notes: &mut Vec<Note>) -> Result<Ipv6Plan, String> {
    if let Some(plan) = given {
        warn_of_collision(plan.subnet.into(), host, notes);
        return Ok(plan);
    }
    let usual = Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 64);
    let plan = subnet::free_ipv6(host)
        .ok_or("every usual private IPv6 network is in use at the host; choose one with --cidr6")?;
    note_move(usual.into(), plan.subnet.into(), host, notes);
    Ok(plan)
}

fn warn_of_collision(subnet: IpNet, host: &[IpNet], notes: &mut Vec<Note>) {
    if let Some(route) = subnet::colliding(subnet, host) {
        notes.push(Note {
            level: LogLevel::Warn,
            text: format!(
                "the guest's network {subnet} overlaps {route} of the host, which the guest cannot reach there"
            ),
        });
    }
}

fn note_move(usual: IpNet, chosen: IpNet, host: &[IpNet], notes: &mut Vec<Note>) {
    if let Some(route) = subnet::colliding(usual, host) {
        notes.push(Note {
            level: LogLevel::Info,
            text: format!("the host uses {route}, so the guest's network is {chosen} instead of {usual}"),
        });
    }
}

/// A listener that an earlier `-p` asks for.
struct Taken<'a> {
    addr: Option<IpAddr>,
    by: &'a str,
}

/// Expands `-p` and refuses what could not be bound together.
fn published(specs: &[PublishSpec]) -> Result<Vec<Publish>, String> {
    if specs.iter().map(PublishSpec::count).sum::<u32>() > MAX_PUBLISHED {
        return Err(format!("--publish names more than {MAX_PUBLISHED} ports"));
    }
    let mut taken: HashMap<(Transport, u16), Vec<Taken<'_>>> = HashMap::new();
    let mut published = Vec::new();
    for spec in specs {
        for port in spec.expand() {
            if let Some(host_port) = port.host_port {
                let others = taken.entry((port.transport, host_port)).or_default();
                if let Some(other) = others.iter().find(|other| overlapping(other.addr, port.host_addr)) {
                    return Err(published_twice(spec, port.transport, host_port, other.by));
                }
                others.push(Taken { addr: port.host_addr, by: &spec.text });
            }
            published.push(port);
        }
    }
    Ok(published)
}

fn published_twice(spec: &PublishSpec, transport: Transport, host_port: u16, by: &str) -> String {
    format!(
        "invalid value '{}' for '--publish <PORTS>': host port {host_port}/{transport} \
         is already published by '{by}'",
        spec.text
    )
}

/// Whether two listeners on one port number would be in each other's way.
fn overlapping(one: Option<IpAddr>, other: Option<IpAddr>) -> bool {
    match (one, other) {
        (None, _) | (_, None) => true,
        (Some(one), Some(other)) => {
            let wildcard = one.is_unspecified() || other.is_unspecified();
            one == other || (wildcard && one.is_ipv4() == other.is_ipv4())
        }
    }
}

fn host_access(args: &TrafficArgs, network: &Network) -> Result<HostAccess, String> {
    for allowed in &args.allow_host {
        if let Some(loopback) = meant_by_gateway(*allowed, network) {
            return Err(format!(
                "invalid value '{allowed}' for '--allow-host <ADDR:PORT>': \
                 that is the guest's name for the host's loopback; allow the final destination {loopback}"
            ));
        }
    }
    Ok(HostAccess { loopback: args.host_loopback, allowed: args.allow_host.clone(), link_local: false })
}

fn meant_by_gateway(allowed: SocketAddr, network: &Network) -> Option<SocketAddr> {
    let alias = network.aliases.iter().find(|alias| alias.guest == allowed.ip())?;
    Some(SocketAddr::new(alias.host, allowed.port()))
}

fn timeouts(args: &TrafficArgs) -> Timeouts {
    let seconds =
        |given: Option<u32>, default| given.map_or(default, |given| Duration::from_secs(given.into()));
    let default = Timeouts::default();
    Timeouts {
        udp: seconds(args.udp_timeout, default.udp),
        udp_dns: seconds(args.udp_dns_timeout, default.udp_dns),
        ..default
    }
}

/// `overlay` is empty for one that forgets.
fn rootfs(
    word: &OsStr,
    overlay: Option<OsString>,
    lower: &[PathBuf],
    surroundings: &Surroundings,
) -> Result<RootFs, String> {
    let (word, marked) = match word.as_bytes().strip_suffix(b":O") {
        Some(word) => (OsStr::from_bytes(word), true),
        None => (word, false),
    };
    if word.is_empty() {
        return Err(
            "ROOTFS is empty; expected a directory, an archive, or / for the host's own root".to_owned()
        );
    }
    let path = absolute(Path::new(word), surroundings);
    let wanted = marked || overlay.is_some() || !lower.is_empty();
    let kept = overlay.filter(|directory| !directory.is_empty());
    if path == Path::new("/") {
        return if kept.is_none() && lower.is_empty() {
            Ok(RootFs::HostCopy)
        } else {
            Err("the root / is always a copy whose writes are forgotten; \
                 --overlay=DIR and --lower are for a directory"
                .to_owned())
        };
    }
    if !wanted {
        return Ok(RootFs::Directory(path));
    }
    let lower = [path].into_iter().chain(lower.iter().map(|path| absolute(path, surroundings))).collect();
    let kept = kept.map(|place| layers::place(&place, surroundings)).transpose()?;
    overlay_root(Overlay { lower, kept, owned: Vec::new() })
}

/// Refuses layers of which one would show in the other.
fn overlay_root(overlay: Overlay) -> Result<RootFs, String> {
    let overlapping = |kept: &PathBuf| {
        overlay.lower.iter().find(|lower| kept.starts_with(lower) || lower.starts_with(kept))
    };
    match overlay.kept.as_ref().and_then(overlapping) {
        Some(lower) => Err(format!(
            "--overlay=DIR must lie beside the root filesystem, and neither be in {} nor hold it",
            lower.display()
        )),
        None => Ok(RootFs::Overlay(overlay)),
    }
}

/// `path` seen from the working directory, without `.` parts. `..` stays: only the file system knows what it
/// means behind a symbolic link.
pub(super) fn absolute(path: &Path, surroundings: &Surroundings) -> PathBuf {
    let path = surroundings.cwd.join(path);
    let path: PathBuf = path.components().collect();
    // The root has no parent, so `/..` is `/` whatever the file system holds.
    let only_root = path.components().all(|part| matches!(part, Component::RootDir | Component::ParentDir));
    if only_root { PathBuf::from("/") } else { path }
}

/// What is mounted besides the root; no two on one place.
fn mounts(
    volumes: Vec<VolumeSpec>,
    mounts: Vec<MountSpec>,
    mut tmpfs: Vec<Tmpfs>,
    surroundings: &Surroundings,
) -> Result<(Vec<Volume>, Vec<Tmpfs>), String> {
    let mut volumes: Vec<Volume> = volumes.into_iter().map(|spec| volume(spec, surroundings)).collect();
    for mount in mounts {
        match mount {
            MountSpec::Bind(spec) => volumes.push(volume(spec, surroundings)),
            MountSpec::Tmpfs(memory) => tmpfs.push(memory),
        }
    }
    let mut taken = HashSet::new();
    let mut targets =
        volumes.iter().map(|volume| &volume.target).chain(tmpfs.iter().map(|tmpfs| &tmpfs.target));
    match targets.find(|target| !taken.insert(*target)) {
        Some(target) => Err(format!("--volume, --mount and --tmpfs name {} twice", target.display())),
        None => Ok((volumes, tmpfs)),
    }
}

fn volume(spec: VolumeSpec, surroundings: &Surroundings) -> Volume {
    Volume { source: absolute(&spec.source, surroundings), target: spec.target, read_only: spec.read_only }
}

/// What runs unless an image has something to say.
fn command(
    mut words: Vec<OsString>,
    image: &ImageUse,
    rootfs: &RootFs,
    surroundings: &Surroundings,
) -> Vec<OsString> {
    if words.first().is_some_and(|word| word == "--") {
        words.remove(0);
    }
    words.splice(0..0, image.entrypoint.clone().filter(|entrypoint| !entrypoint.is_empty()));
    if !words.is_empty() {
        return words;
    }
    let shell = match rootfs {
        RootFs::HostCopy | RootFs::Host => {
            variable(surroundings, "SHELL").filter(|shell| Path::new(shell).is_absolute())
        }
        RootFs::Directory(_) | RootFs::Overlay(_) | RootFs::Empty => None,
    };
    vec![shell.map_or_else(|| DEFAULT_SHELL.into(), OsStr::to_owned)]
}

/// The command's environment: for the host's own root what the caller has, for any other root docker's few
/// variables; then what the user asked for.
fn environment(
    rootfs: &RootFs,
    hostname: &str,
    identity: &Identity,
    terminal: Terminal,
    asked: Vec<(OsString, OsString)>,
    surroundings: &Surroundings,
) -> Vec<(OsString, OsString)> {
    let mut env = match rootfs {
        RootFs::HostCopy | RootFs::Host => surroundings.env.clone(),
        RootFs::Directory(_) | RootFs::Overlay(_) | RootFs::Empty => {
            vec![("PATH".into(), DEFAULT_PATH.into()), ("HOME".into(), "/root".into())]
        }
    };
    if identity.user.is_some() || (identity.mapping == Mapping::KeepId && *rootfs != RootFs::HostCopy) {
        env.retain(|(name, _)| name != "HOME");
    }
    let has_terminal = surroundings.stdin_is_tty || terminal != Terminal::Inherited;
    if *rootfs != RootFs::HostCopy && has_terminal {
        let term = variable(surroundings, "TERM").unwrap_or(OsStr::new("xterm"));
        set(&mut env, "TERM".into(), term.to_owned());
    }
    set(&mut env, "HOSTNAME".into(), hostname.into());
    set(&mut env, "container".into(), "rnet".into());
    for (name, value) in asked {
        set(&mut env, name, value);
    }
    env
}

/// `--env` with the values of the caller's variables; those that the caller does not have are left out.
pub(super) fn asked_for(specs: Vec<EnvSpec>, surroundings: &Surroundings) -> Vec<(OsString, OsString)> {
    let settled = specs.into_iter().filter_map(|spec| match spec {
        EnvSpec::Set(name, value) => Some((name, value)),
        EnvSpec::FromCaller(name) => {
            let value = variable(surroundings, &name)?.to_owned();
            Some((name, value))
        }
    });
    settled.collect()
}

fn set(env: &mut Vec<(OsString, OsString)>, name: OsString, value: OsString) {
    match env.iter_mut().find(|(other, _)| *other == name) {
        Some((_, old)) => *old = value,
        None => env.push((name, value)),
    }
}

pub(super) fn variable(surroundings: &Surroundings, name: impl AsRef<OsStr>) -> Option<&OsStr> {
    let found = surroundings.env.iter().find(|(other, _)| other.as_os_str() == name.as_ref());
    found.map(|(_, value)| value.as_os_str())
}

fn random_mac(surroundings: &Surroundings) -> MacAddr {
    let [a, b, c, d, ..] = surroundings.random;
    // Locally administered; the second octet keeps it apart from the gateway's.
    MacAddr([0x52, 0x56, a, b, c, d])
}

fn log_level(args: &LogArgs) -> LogLevel {
    match (args.quiet, args.verbose) {
        (true, _) => LogLevel::Error,
        (false, 0) => LogLevel::Warn,
        (false, 1) => LogLevel::Info,
        (false, 2) => LogLevel::Debug,
        (false, _) => LogLevel::Trace,
    }
}
