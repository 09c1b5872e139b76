//! The command line as it is written: which options there are, their help and their value parsers.

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, ArgGroup, Args, Parser, Subcommand};

use super::allowance::AllowanceArgs;
use super::confinement::ConfinementArgs;
use super::containers::ContainersArgs;
use super::copy::{self, CopyArgs};
use super::exec::{self, ExecArgs};
use super::identity::IdentityArgs;
use super::image::{ImageArgs, ImageVerb};
use super::layers::LayerVerb;
use super::life::LifeArgs;
use super::mounts::{self, MountSpec};
use super::network::{ModeArgs, NetworkVerb};
use super::terminal::TerminalArgs;
use super::values::{self, EnvSpec, OutboundSpec, PublishSpec, VolumeSpec, Workers};
use crate::config::{HookStage, Ipv4Plan, Ipv6Plan, LinkKind, LogFormat, MacAddr, Tmpfs};

/// Give a process its own network, without root.
#[derive(Debug, Parser)]
#[command(name = "rnet", version, about, arg_required_else_help = true, after_help = RNET_EXAMPLES)]
pub(super) struct RnetArgs {
    #[command(subcommand)]
    pub(super) command: CommandArgs,
}

#[derive(Debug, Subcommand)]
pub(super) enum CommandArgs {
    /// Run a command in a container with its own network.
    #[command(
        disable_help_flag = true,
        override_usage = "rnet run [OPTIONS] ROOTFS [COMMAND [ARG]...]",
        after_help = RUN_EXAMPLES
    )]
    Run(Box<RunArgs>),
    /// Run a further command in a container.
    #[command(
        override_usage = "rnet exec [OPTIONS] CONTAINER COMMAND [ARG]...",
        after_help = exec::EXAMPLES
    )]
    Exec(Box<ExecArgs>),
    /// Copy files into a container that runs, or out of it.
    #[command(after_help = copy::EXAMPLES)]
    Cp(CopyArgs),
    /// Give an existing network namespace a network.
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach(Box<AttachArgs>),
    /// Add, remove and list the published ports of a running network.
    #[command(after_help = PORT_EXAMPLES)]
    Port {
        #[command(subcommand)]
        verb: PortVerb,
    },
    /// Make, list and remove networks for several containers.
    #[command(after_help = NETWORK_EXAMPLES)]
    Network {
        #[command(subcommand)]
        verb: NetworkVerb,
    },
    /// List what flows through a running network.
    Flows {
        /// The network: its name, or the process id that stands for it.
        #[arg(value_name = "NETWORK", value_parser = values::name)]
        network: String,
        /// Print JSON, with counters.
        #[arg(long)]
        json: bool,
    },
    /// List and remove archives and images that have been unpacked.
    #[command(after_help = IMAGE_EXAMPLES)]
    Image {
        #[command(subcommand)]
        verb: ImageVerb,
    },
    /// Give an OCI runtime's container a network; called by the runtime.
    #[command(after_help = OCI_HOOK_NOTES)]
    OciHook {
        /// When it is called: createRuntime, createContainer or poststop [default: as the state shows].
        #[arg(value_name = "STAGE", value_parser = stage())]
        stage: Option<HookStage>,
        /// What the names of annotations begin with that count.
        #[arg(long, value_name = "PREFIX", default_value = "io.rnet.", value_parser = NonEmptyStringValueParser::new())]
        prefix: String,
    },
    /// Be a CNI plugin: the call is in the environment and on standard input. The same by the name rnet-cni.
    #[command(after_help = CNI_NOTES)]
    Cni,
    /// Print a script that completes rnet's command line in a shell.
    #[command(
        after_help = "Example:\n  rnet completions bash >~/.local/share/bash-completion/completions/rnet"
    )]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print rnet's manual page, or write the pages of all commands into a directory.
    #[command(after_help = "Example:\n  rnet man ~/.local/share/man/man1 && man rnet-run")]
    Man {
        /// The directory; made if it is missing.
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    #[command(flatten)]
    Containers(ContainersArgs),
    /// List and remove layers in which `rnet run --overlay=NAME` keeps writes.
    Layer {
        #[command(subcommand)]
        verb: LayerVerb,
    },
    /// Show that rnet works here: fetch a page from a container and one from within it.
    Hello(HelloArgs),
    /// The part of `hello` that runs inside its container.
    #[command(hide = true)]
    HelloGuest {
        /// Where the page outside is.
        outside: SocketAddr,
    },
}

const RNET_EXAMPLES: &str = "\
Examples:
  rnet hello                                          does it work on this machine?
  rnet run -p 8080:8080 ./rootfs nc -l -p 8080        a server in a directory's root
  rnet run / curl https://example.org                 a host command, its writes discarded

`rnet run --help` lists all options.

Under the names slirp4netns, pasta and pesto, or as `rnet slirp4netns ...`, it takes those programs' options.";

/// What can be done about published ports.
#[derive(Debug, Subcommand)]
pub(super) enum PortVerb {
    /// Publish ports; what is published already stays as it is.
    Add(PortArgs),
    /// Close ports. Established connections stay.
    Rm(PortArgs),
    /// List the ports.
    Ls {
        /// The network: its name, or the process id that stands for it.
        #[arg(value_name = "NETWORK", value_parser = values::name)]
        network: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Ports of a running network.
#[derive(Args, Debug)]
pub(super) struct PortArgs {
    /// The network: its name, or the process id that stands for it.
    #[arg(value_name = "NETWORK", value_parser = values::name)]
    pub(super) network: String,
    /// Ports, written as for --publish.
    #[arg(value_name = "PORTS", required = true, value_parser = values::publish)]
    pub(super) ports: Vec<PublishSpec>,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

const PORT_EXAMPLES: &str = "\
NETWORK is the --name of a run or attach, the PID that was attached to, or the process id of rnet.

Examples:
  rnet run --name box ./rootfs httpd -f &  rnet port add box 8080:80
  rnet port ls box
  rnet port rm box 8080:80";

const NETWORK_EXAMPLES: &str = "\
Examples:
  rnet network create shop
  rnet run --net shop --name db ./rootfs postgres
  rnet run --net shop --name web -p 8080:80 ./rootfs httpd    # finds db by its name
  rnet network inspect shop";

const IMAGE_EXAMPLES: &str = "\
`rnet run` unpacks an archive or image into ~/.cache/rnet/images once. What is removed here is unpacked again when it is
needed; what a container uses stays.

Examples:
  rnet image ls
  rnet image rm ./alpine.tar
  rnet image prune --unused-for 30";

const ATTACH_EXAMPLES: &str = "\
It ends with the process, when the path is removed, when the exit descriptor is closed, or by SIGTERM; its
status is then 0, and 125 if rnet failed.

Examples:
  rnet attach $PID          where that runs `unshare --user --map-root-user --net sh`
  rnet attach -p 8080:80 --netns /run/user/1000/netns/box --detach --pid-file box.pid
  bwrap --unshare-all --info-fd 3 ... 3>fifo &  rnet attach --bwrap-info-fd 3 3<fifo";

const OCI_HOOK_NOTES: &str = "\
The container's state is read from standard input. The network is configured by annotations: io.rnet.OPTION,
with the options of `rnet attach` and commas between values, such as
  io.rnet.publish=8080:80,8443:443  io.rnet.allow=127.0.0.1:5432  io.rnet.mtu=1500  io.rnet.no-ipv6=true";

const CNI_NOTES: &str = "\
Environment: CNI_COMMAND (ADD, DEL, CHECK, GC, STATUS, VERSION), CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME, CNI_ARGS.
Versions of the specification: 0.4.0, 1.0.0, 1.1.0. Capabilities: portMappings, bandwidth, ips, mac.

A configuration:
  {\"cniVersion\": \"1.0.0\", \"name\": \"rnet\", \"plugins\": [{\"type\": \"rnet-cni\", \"mtu\": 65520,
   \"options\": {\"cidr\": \"10.5.0.0/24\"}, \"capabilities\": {\"portMappings\": true, \"ips\": true}}]}";

const RUN_EXAMPLES: &str = "\
ROOTFS is the directory that becomes the root, or / for the host's own root, copy-on-write. DIR:O is
a directory copy-on-write, and so are a tar of one and an image: a directory or archive of OCI's or docker's format;
PATH:NAME if it holds several. Options end there; what follows belongs to the command. Without COMMAND an image's own
starts, else a shell.

Examples:
  rnet run -p 8080:8080 ./rootfs nc -l -p 8080
  rnet run -p 127.0.0.1:5353:53/udp -p 8000-8009:8000-8009 ./rootfs /bin/server
  rnet run -v ./src:/src:ro -w /src / make check
  rnet run --overlay=./layer --tmpfs /cache:size=64m ./rootfs sh
  rnet run -P ./image.tar                   what the image is for, its ports published
  rnet run --allow-host 127.0.0.1:5432 / psql -h 10.0.2.2

Exit status: the command's own; 128+N if signal N ended it; 127 if it was not found, 126 if it
cannot be executed, 125 if rnet itself failed.";

#[derive(Args, Debug)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub(super) mode: ModeArgs,

    #[command(flatten)]
    pub(super) traffic: TrafficArgs,

    /// Bring this host's own clients of published TCP ports to the guest over the link, like all others.
    #[arg(long, help_heading = NETWORK)]
    pub(super) no_splice: bool,

    #[command(flatten)]
    pub(super) network: NetworkArgs,

    /// Bind a file or directory of the host into the container: SRC:DST[:ro|rw]. Repeatable.
    #[arg(short, long, value_name = "SRC:DST", value_parser = os(values::volume), help_heading = CONTAINER)]
    pub(super) volume: Vec<VolumeSpec>,

    /// Keep writes out of ROOTFS: they are forgotten, or kept in a layer and there the next time: one that is called
    /// NAME, or the directory ./DIR. ROOTFS:O is the same without.
    #[arg(
        long,
        value_name = "NAME|./DIR",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        help_heading = CONTAINER
    )]
    pub(super) overlay: Option<OsString>,

    /// Put ROOTFS on top of this directory, copy-on-write. Repeatable, each below those before.
    #[arg(long, value_name = "DIR", help_heading = CONTAINER)]
    pub(super) lower: Vec<PathBuf>,

    /// Mount a file or directory of the host (type=bind,source=SRC,target=DST[,readonly]) or memory
    /// (type=tmpfs,target=DST[,tmpfs-size=BYTES][,tmpfs-mode=MODE]). Repeatable.
    #[arg(long, value_name = "FIELDS", value_parser = mounts::mount, help_heading = CONTAINER)]
    pub(super) mount: Vec<MountSpec>,

    /// Mount an empty directory in memory: DST[:OPTIONS], such as /cache:size=64m,mode=755,exec. Repeatable.
    #[arg(long, value_name = "DST", value_parser = mounts::tmpfs, help_heading = CONTAINER)]
    pub(super) tmpfs: Vec<Tmpfs>,

    /// Refuse writes to the root filesystem; /tmp, /dev, volumes and --tmpfs stay as they are.
    #[arg(long, help_heading = CONTAINER)]
    pub(super) read_only: bool,

    #[command(flatten)]
    pub(super) image: ImageArgs,

    /// Set a variable for the command, or take it over from here (NAME alone). Repeatable.
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = os(values::env), help_heading = CONTAINER)]
    pub(super) env: Vec<EnvSpec>,

    /// Working directory inside, absolute.
    #[arg(short, long, value_name = "DIR", value_parser = os(values::workdir), help_heading = CONTAINER)]
    pub(super) workdir: Option<PathBuf>,

    #[command(flatten)]
    pub(super) identity: IdentityArgs,

    #[command(flatten)]
    pub(super) allowance: AllowanceArgs,

    /// Host name inside [default: a random one; the host's for the root /].
    #[arg(short = 'h', long, value_name = "NAME", value_parser = values::hostname, help_heading = CONTAINER)]
    pub(super) hostname: Option<String>,

    #[command(flatten)]
    pub(super) confinement: ConfinementArgs,

    /// Put a small init before the command, which forwards signals and reaps orphans.
    #[arg(long, help_heading = CONTAINER)]
    pub(super) init: bool,

    #[command(flatten)]
    pub(super) life: LifeArgs,

    #[command(flatten)]
    pub(super) terminal: TerminalArgs,

    #[command(flatten)]
    pub(super) log: LogArgs,

    /// Print help.
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,

    /// ROOTFS, the command and its arguments; one list, so that the first ends the options.
    #[arg(value_name = "ROOTFS", required = true, trailing_var_arg = true, hide = true)]
    pub(super) words: Vec<OsString>,
}

/// `rnet attach`: whose network, when it is ready and when it ends.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("target").required(true)))]
pub(super) struct AttachArgs {
    /// The process whose network namespace gets a network.
    #[arg(value_name = "PID", group = "target", value_parser = clap::value_parser!(i32).range(1..))]
    pub(super) pid: Option<i32>,

    /// The network namespace by path: a bind mount, /proc/PID/ns/net or /proc/self/fd/N.
    #[arg(long, value_name = "PATH", group = "target", help_heading = TARGET)]
    pub(super) netns: Option<PathBuf>,

    /// Enter this user namespace first [default: the one that owns the network namespace].
    #[arg(long, value_name = "PATH", conflicts_with_all = ["tap_fd", "bwrap_info_fd"], help_heading = TARGET)]
    pub(super) userns: Option<PathBuf>,

    /// Serve the TAP that is open on this descriptor; its interface stays as it is.
    #[arg(long, value_name = "FD", group = "target", value_parser = fd(), help_heading = TARGET)]
    pub(super) tap_fd: Option<RawFd>,

    /// Serve the sandbox that bubblewrap describes on this descriptor (bwrap --info-fd).
    #[arg(long, value_name = "FD", group = "target", value_parser = fd(), help_heading = TARGET)]
    pub(super) bwrap_info_fd: Option<RawFd>,

    #[command(flatten)]
    pub(super) traffic: TrafficArgs,

    /// Bring this host's own clients of published TCP ports to the guest over the link, like all others.
    #[arg(long, help_heading = NETWORK)]
    pub(super) no_splice: bool,

    #[command(flatten)]
    pub(super) network: NetworkArgs,

    /// Write `1` to this descriptor when the network is ready.
    #[arg(long, value_name = "FD", value_parser = fd(), help_heading = LIFECYCLE)]
    pub(super) ready_fd: Option<RawFd>,

    /// End when the other end of this descriptor is closed.
    #[arg(long, value_name = "FD", value_parser = fd(), help_heading = LIFECYCLE)]
    pub(super) exit_fd: Option<RawFd>,

    /// Write the process id to this file when the network is ready.
    #[arg(long, value_name = "PATH", help_heading = LIFECYCLE)]
    pub(super) pid_file: Option<PathBuf>,

    /// Go on in the background when the network is ready.
    #[arg(long, help_heading = LIFECYCLE)]
    pub(super) detach: bool,

    /// What `rnet port` calls the network [default: the PID given, or rnet's own].
    #[arg(long, value_name = "NAME", value_parser = values::name, help_heading = LIFECYCLE)]
    pub(super) name: Option<String>,

    #[command(flatten)]
    pub(super) log: LogArgs,
}

/// What `run` and `attach` share about traffic.
#[derive(Args, Debug)]
pub(super) struct TrafficArgs {
    /// Publish a guest port: [HOSTIP:]HOSTPORT[-END]:GUESTPORT[-END][/tcp|/udp]; GUESTPORT alone or
    /// HOSTIP::GUESTPORT takes a random host port. Repeatable.
    #[arg(short, long, value_name = "PORTS", value_parser = values::publish, help_heading = NETWORK)]
    pub(super) publish: Vec<PublishSpec>,

    /// Let the guest reach one closed destination, such as 127.0.0.1:5432 or [::1]:5432. Repeatable.
    #[arg(long, value_name = "ADDR:PORT", value_parser = values::allow_host, help_heading = NETWORK)]
    pub(super) allow_host: Vec<SocketAddr>,

    /// Let the guest reach all of the host's loopback, through the gateway's address.
    #[arg(long, help_heading = NETWORK)]
    pub(super) host_loopback: bool,

    /// Ask this DNS server instead of the host's. Repeatable.
    #[arg(long, value_name = "ADDR", value_parser = values::dns, help_heading = NETWORK)]
    pub(super) dns: Vec<IpAddr>,

    /// Forget a UDP mapping after this idle time [default: 300].
    #[arg(long, value_name = "SECONDS", value_parser = seconds(), help_heading = NETWORK)]
    pub(super) udp_timeout: Option<u32>,

    /// The same for a mapping that has only spoken to port 53 [default: 30].
    #[arg(long, value_name = "SECONDS", value_parser = seconds(), help_heading = NETWORK)]
    pub(super) udp_dns_timeout: Option<u32>,

    /// Send traffic from this address of the host, or through this interface. Once for each family.
    #[arg(long, value_name = "ADDR|IFNAME", value_parser = values::outbound, help_heading = NETWORK)]
    pub(super) outbound: Vec<OutboundSpec>,
}

/// What all share about the network and the link.
#[derive(Args, Debug)]
pub(super) struct NetworkArgs {
    /// Largest IP packet on the link in bytes, 576 to 65520, at least 1280 with IPv6.
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 65520,
        value_parser = clap::value_parser!(u16).range(576..=65520),
        help_heading = NETWORK
    )]
    pub(super) mtu: u16,

    /// The guest's IPv4 network [default: 10.0.2.0/24, or a free one if the host uses that].
    #[arg(
        long,
        value_name = "NETWORK",
        value_parser = values::cidr,
        conflicts_with = "no_ipv4",
        help_heading = NETWORK
    )]
    pub(super) cidr: Option<Ipv4Plan>,

    /// The guest's IPv6 network [default: fd00::/64, or a free one if the host uses that].
    #[arg(
        long,
        value_name = "NETWORK",
        value_parser = values::cidr6,
        conflicts_with = "no_ipv6",
        help_heading = NETWORK
    )]
    pub(super) cidr6: Option<Ipv6Plan>,

    /// IPv6 only.
    #[arg(long, conflicts_with = "no_ipv6", help_heading = NETWORK)]
    pub(super) no_ipv4: bool,

    /// IPv4 only.
    #[arg(long, help_heading = NETWORK)]
    pub(super) no_ipv6: bool,

    /// How frames reach rnet; auto takes the first that works.
    #[arg(long, value_name = "KIND", default_value = "auto", value_parser = link_kind(), help_heading = NETWORK)]
    pub(super) link: LinkKind,

    /// Threads that share the guest's traffic, 1 to 16; auto is 1 below 4 cores, then half of them, up to 4.
    #[arg(long, value_name = "N", default_value = "auto", value_parser = values::workers, help_heading = NETWORK)]
    pub(super) workers: Workers,

    /// Name of the guest's interface.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "tap0",
        value_parser = values::ifname,
        help_heading = NETWORK
    )]
    pub(super) ifname: String,

    /// The guest's Ethernet address [default: a random one].
    #[arg(long, value_name = "MAC", value_parser = values::mac_address, help_heading = NETWORK)]
    pub(super) mac_address: Option<MacAddr>,
}

#[derive(Args, Debug)]
pub(super) struct HelloArgs {
    #[command(flatten)]
    pub(super) network: NetworkArgs,

    #[command(flatten)]
    pub(super) log: LogArgs,
}

#[derive(Args, Debug)]
pub(super) struct LogArgs {
    /// Say more: once for changes of state, twice for flows, three times for packets.
    #[arg(long, action = ArgAction::Count, help_heading = LOGGING)]
    pub(super) verbose: u8,

    /// Say only what ends rnet.
    #[arg(short, long, conflicts_with = "verbose", help_heading = LOGGING)]
    pub(super) quiet: bool,

    /// Shape of the log on standard error.
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "text",
        value_parser = log_format(),
        help_heading = LOGGING
    )]
    pub(super) log_format: LogFormat,
}

const TARGET: &str = "Target";
const NETWORK: &str = "Network";
const LIFECYCLE: &str = "Lifecycle";
pub(super) const CONTAINER: &str = "Container";
const LOGGING: &str = "Logging";

fn seconds() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=86_400)
}

fn fd() -> clap::builder::RangedI64ValueParser<RawFd> {
    clap::value_parser!(i32).range(0..)
}

fn link_kind() -> impl TypedValueParser<Value = LinkKind> {
    PossibleValuesParser::new(["auto", "tap", "tap-plain", "packet"]).map(|word| match word.as_str() {
        "tap" => LinkKind::Tap,
        "tap-plain" => LinkKind::TapPlain,
        "packet" => LinkKind::Packet,
        _ => LinkKind::Auto,
    })
}

fn stage() -> impl TypedValueParser<Value = HookStage> {
    let stages = ["createRuntime", "prestart", "createContainer", "poststop"];
    PossibleValuesParser::new(stages).map(|word| match word.as_str() {
        "createContainer" => HookStage::CreateContainer,
        "poststop" => HookStage::Poststop,
        _ => HookStage::CreateRuntime,
    })
}

fn log_format() -> impl TypedValueParser<Value = LogFormat> {
    PossibleValuesParser::new(["text", "json"]).map(|word| match word.as_str() {
        "json" => LogFormat::Json,
        _ => LogFormat::Text,
    })
}

/// A parser for values that need not be UTF-8.
pub(super) fn os<T>(parse: fn(&OsStr) -> Result<T, String>) -> impl TypedValueParser<Value = T>
where
    T: Clone + Send + Sync + 'static,
{
    OsStringValueParser::new().try_map(move |text| parse(&text))
}
