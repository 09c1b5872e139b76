//! Plain data that every front-end produces and every part reads; the only meaning of every option.
//!
//! Values are valid by construction as far as one value can tell: an address plan holds addresses of its
//! subnet, a publish has one host port and one guest port (ranges are expanded by the front-end).

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};

mod advertised;
mod allowance;
mod attach;
mod containers;
mod copy;
mod exec;
mod identity;
mod image;
mod layers;
mod life;
mod limits;
mod mode;
mod pasta;
mod privileges;
mod slirp4netns;

pub use advertised::{Advertised, SearchList};
pub use allowance::{Allowance, Swap};
pub use attach::{
    Attach, GuestRoute, HookCall, HookStage, Lifecycle, MAX_NAME_BYTES, Setup, Target, container_name,
    is_network_name, name_like,
};
pub use containers::{ContainersCall, ListShape, Logs, Since};
pub use copy::Copy;
pub use exec::Exec;
pub(crate) use identity::id;
pub use identity::{GroupName, IdRange, Identity, Mapping, User, UserName};
pub use image::{CacheCall, ImageUse, Platform, TreeName};
pub use layers::{LayersCall, LayersVerb};
pub use life::{Life, Restart, Resumed};
pub use limits::{Limit, Resource};
pub use mode::{Ipv6Choice, Membership, NetworkCommand, NetworkMode, NewNetwork};
pub use pasta::{
    Automatic, BindAt, Forward, HostInterface, HostNetwork, HostRoute, LogFile, LoopbackForward, Pasta,
    PastaGuest,
};
pub use privileges::{Capabilities, Privileges, Seccomp, SelinuxLabel};
pub use slirp4netns::{Confinement, OutboundInterfaces, Slirp4netns};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff.
    pub const BROADCAST: Self = Self([0xff; 6]);
    /// The gateway's if no other is asked for, locally administered.
    pub const GATEWAY: Self = Self([0x52, 0x55, 0x0a, 0x00, 0x02, 0x02]);

    /// Whether the group bit is set (multicast or broadcast).
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl std::fmt::Display for MacAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for MacAddr {
    type Err = String;

    /// Six hexadecimal octets with colons between them; a group address is refused.
    fn from_str(text: &str) -> Result<Self, String> {
        let octets: Vec<u8> = text
            .split(':')
            .map(|part| if part.len() <= 2 { u8::from_str_radix(part, 16).ok() } else { None })
            .collect::<Option<_>>()
            .ok_or_else(|| format!("'{text}' is not a MAC address such as 52:55:0a:00:02:64"))?;
        let octets: [u8; 6] = octets.try_into().map_err(|_| format!("'{text}' does not have six octets"))?;
        let mac = Self(octets);
        if mac.is_group() || mac.0 == [0; 6] {
            return Err(format!("'{text}' is not the address of one station"));
        }
        Ok(mac)
    }
}

/// Name of an interface: 1 to 15 bytes, as the kernel has it (IFNAMSIZ).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IfName {
    bytes: [u8; Self::MAX_BYTES],
    len: u8,
}

impl IfName {
    /// Longest name.
    pub const MAX_BYTES: usize = 15;

    /// The name `name`; `None` if it is empty or too long.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; Self::MAX_BYTES];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        (!name.is_empty()).then_some(Self { bytes, len: u8::try_from(name.len()).ok()? })
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl std::fmt::Display for IfName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::fmt::Debug for IfName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The IPv4 addresses of a network. [`Ipv4Plan::new`] gives the usual ones; each may be any other, outside the subnet
/// too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Plan {
    /// The subnet, 10.0.2.0/24 by default.
    pub subnet: Ipv4Net,
    /// Host number 2: the router.
    pub gateway: Ipv4Addr,
    /// Host number 3: the DNS forwarder; `None` is no forwarder.
    pub dns: Option<Ipv4Addr>,
    /// Host number 100 (or the last one that fits): the guest.
    pub guest: Ipv4Addr,
    /// What DHCP gives; the guest's address unless a front-end's tradition differs.
    pub lease: Ipv4Addr,
}

/// The IPv6 addresses of a network; same host numbers as [`Ipv4Plan`], in hexadecimal notation
/// (`::2`, `::3`, `::100`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv6Plan {
    /// The prefix, fd00::/64 by default.
    pub subnet: Ipv6Net,
    /// The router.
    pub gateway: Ipv6Addr,
    /// The DNS forwarder; `None` is no forwarder.
    pub dns: Option<Ipv6Addr>,
    /// The guest.
    pub guest: Ipv6Addr,
}

impl Ipv4Plan {
    /// Places gateway, DNS and guest in `subnet`. `None` if it has fewer than eight addresses or is not
    /// unicast space.
    pub fn new(subnet: Ipv4Net) -> Option<Self> {
        let subnet = subnet.trunc();
        let base = u32::from(subnet.network());
        let size = 1u64 << (32 - subnet.prefix_len());
        if size < 8 || subnet.network().is_multicast() || subnet.network().is_loopback() {
            return None;
        }
        let guest = u32::try_from(100.min(size - 2)).ok()?;
        Some(Self {
            subnet,
            gateway: Ipv4Addr::from(base + 2),
            dns: Some(Ipv4Addr::from(base + 3)),
            guest: Ipv4Addr::from(base + guest),
            lease: Ipv4Addr::from(base + guest),
        })
    }

    /// The same with the guest at `address`; who has it in this plan goes to where the guest was. `None` if that is not
    /// the address of a station of the subnet.
    pub fn with_guest(self, address: Ipv4Addr) -> Option<Self> {
        let Self { subnet, guest, .. } = self;
        let elsewhere = |own: Ipv4Addr| if own == address { guest } else { own };
        let station =
            subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast();
        station.then_some(Self {
            gateway: elsewhere(self.gateway),
            dns: self.dns.map(elsewhere),
            guest: address,
            lease: address,
            subnet,
        })
    }
}

impl Ipv6Plan {
    /// Places gateway, DNS and guest in `subnet`. `None` if the prefix is longer than /116 or not unicast.
    pub fn new(subnet: Ipv6Net) -> Option<Self> {
        let subnet = subnet.trunc();
        if subnet.prefix_len() > 116 || subnet.network().is_multicast() {
            return None;
        }
        let base = u128::from(subnet.network());
        Some(Self {
            subnet,
            gateway: Ipv6Addr::from(base + 0x2),
            dns: Some(Ipv6Addr::from(base + 0x3)),
            guest: Ipv6Addr::from(base + 0x100),
        })
    }

    /// As [`Ipv4Plan::with_guest`].
    pub fn with_guest(self, address: Ipv6Addr) -> Option<Self> {
        let Self { subnet, guest, .. } = self;
        let elsewhere = |own: Ipv6Addr| if own == address { guest } else { own };
        let station = subnet.contains(&address) && address != subnet.network();
        station.then_some(Self {
            gateway: elsewhere(self.gateway),
            dns: self.dns.map(elsewhere),
            guest: address,
            subnet,
        })
    }
}

/// A transport that can be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Address to listen on at the host; `None` is both wildcards, 0.0.0.0 and `[::]`.
    pub host_addr: Option<IpAddr>,
    /// Port at the host; `None` lets the kernel choose, and rnet prints which.
    pub host_port: Option<u16>,
    /// The host's interface to listen on; `None` is all of them.
    pub host_interface: Option<IfName>,
    /// Address at the guest; `None` is the guest's own, in the client's family if it has one there.
    pub guest_addr: Option<IpAddr>,
    /// Port at the guest.
    pub guest_port: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

impl std::fmt::Display for Publish {
    /// As `--publish` writes it: `127.0.0.1:8080:80/tcp`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host_addr {
            Some(IpAddr::V4(addr)) => write!(f, "{addr}:")?,
            Some(IpAddr::V6(addr)) => write!(f, "[{addr}]:")?,
            None => {}
        }
        match (self.host_port, self.host_addr) {
            (Some(port), _) => write!(f, "{port}:")?,
            (None, Some(_)) => write!(f, ":")?,
            (None, None) => {}
        }
        write!(f, "{}/{}", self.guest_port, self.transport)
    }
}

/// Most ports that one network publishes: each takes up to two sockets.
pub const MAX_PUBLISHED: u32 = 16_384;

/// What of the host itself (its loopback and link-local neighbours) a guest may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAccess {
    /// All of the host's loopback, through the [`Alias`] that stands for it.
    pub loopback: bool,
    /// 169.254.0.0/16. Its counterpart fe80::/10 means nothing without an interface of the host, and stays closed.
    pub link_local: bool,
    /// Single final destinations that are allowed though they are loopback or link-local.
    pub allowed: Vec<SocketAddr>,
}

/// Idle times after which state is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// UDP mapping without traffic (RFC 4787 REQ-5 asks for at least two minutes).
    pub udp: Duration,
    /// UDP mapping that has only spoken to port 53.
    pub udp_dns: Duration,
    /// Echo (ping) mapping without traffic.
    pub ping: Duration,
    /// Connecting to a host address: how long the guest's SYN is held.
    pub connect: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            udp: Duration::from_secs(300),
            udp_dns: Duration::from_secs(30),
            ping: Duration::from_secs(60),
            connect: Duration::from_secs(130),
        }
    }
}

/// DNS servers that are used at most, the list's first: a query that asked more in turn would outlive the patience of
/// its sender. (The C libraries stop at 3.)
pub const MAX_DNS_SERVERS: usize = 8;

/// An address by which the guest reaches one of the host's. Both are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alias {
    /// What the guest calls it.
    pub guest: IpAddr,
    /// What it stands for. Loopback is open by [`HostAccess`] only; any other address is open.
    pub host: IpAddr,
}

/// How a guest learns that a destination is closed to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Denial {
    /// A TCP connection is reset; all else is answered with ICMP "administratively prohibited".
    #[default]
    Refused,
    /// ICMP "network unreachable".
    Unreachable,
}

/// From where the guest's traffic leaves the host, in one family. What goes to the host's loopback is not bound to
/// anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// Source address; `None` is the kernel's choice.
    pub address: Option<IpAddr>,
    /// Interface (SO_BINDTODEVICE); `None` is the kernel's choice.
    pub interface: Option<IfName>,
}

/// From where the guest's traffic leaves the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outbound {
    /// IPv4 traffic.
    pub ipv4: Exit,
    /// IPv6 traffic.
    pub ipv6: Exit,
}

/// What of the guest's traffic is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// TCP.
    pub tcp: bool,
    /// UDP. DHCP is not concerned.
    pub udp: bool,
    /// Echo requests.
    pub icmp: bool,
}

impl Default for Protocols {
    fn default() -> Self {
        Self { tcp: true, udp: true, icmp: true }
    }
}

/// By which protocols the gateway tells a guest its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Autoconfiguration {
    /// DHCPv4.
    pub dhcp: bool,
    /// DHCPv6.
    pub dhcpv6: bool,
    /// Router advertisements.
    pub router_advertisements: bool,
    /// Whether these send guests to DHCPv6 for their addresses.
    pub managed: bool,
}

impl Default for Autoconfiguration {
    fn default() -> Self {
        Self { dhcp: true, dhcpv6: true, router_advertisements: true, managed: false }
    }
}

/// How much may pass in one direction: an average, and what may pass at once after idleness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bits of whole frames in a second; not 0.
    pub bits_per_second: u64,
    /// Bits beyond the average; not 0.
    pub burst_bits: u64,
}

impl Rate {
    /// `None` for numbers out of range: both are 1 to `u32::MAX` times 1024.
    pub fn new(bits_per_second: u64, burst_bits: u64) -> Option<Self> {
        const LARGEST: u64 = (u32::MAX as u64) * 1024;
        let fits = |number| (1..=LARGEST).contains(&number);
        (fits(bits_per_second) && fits(burst_bits)).then_some(Self { bits_per_second, burst_bits })
    }
}

/// How fast a guest's link may be at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Towards the guest; `None` is no limit.
    pub to_guest: Option<Rate>,
    /// From the guest; `None` is no limit.
    pub from_guest: Option<Rate>,
}

/// Where the kernel takes this host's own clients of published TCP ports, past the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Splicing {
    /// Nowhere: they take the link.
    #[default]
    Off,
    /// To the guest's own address, which is what they come from, too.
    ToAddress,
    /// To the guest's loopback, where its private servers are, too. A port that names its guest's address leads there.
    ToLoopback,
}

/// Everything the gateway needs to know of its network.
#[derive(Clone, Debug)]
pub struct Network {
    /// IPv4 addresses; `None` is a network without that family, in which nobody speaks ARP or DHCP.
    pub ipv4: Option<Ipv4Plan>,
    /// IPv6 addresses; `None` is a network without that family. One of the two at least is there.
    pub ipv6: Option<Ipv6Plan>,
    /// Largest IP packet on the link, in bytes (576 to 65520; 1280 at least with IPv6).
    pub mtu: u16,
    /// DNS servers given by the user; empty means those of the host.
    pub dns_servers: Vec<IpAddr>,
    /// Published ports.
    pub publish: Vec<Publish>,
    /// Addresses that stand for addresses of the host.
    pub aliases: Vec<Alias>,
    /// Where loopback clients of published TCP ports are joined with the guest by the kernel.
    pub splice: Splicing,
    /// TCP ports may be published beside [`Network::publish`].
    pub publishes_later: bool,
    /// Whether ports may be bound to addresses that the host does not have yet.
    pub freebind: bool,
    /// Ports of the guest's loopback that lead to the host's.
    pub loopback_forwards: Vec<LoopbackForward>,
    /// Ports that are open because somebody listens on them at the other side.
    pub automatic: Automatic,
    /// Opened parts of the host.
    pub host_access: HostAccess,
    /// The guest's subnet is one that the host is in: its other stations are reached like the rest of the world, and
    /// on the link the gateway answers for everything but the guest. Otherwise nobody else is there.
    pub shares_subnet: bool,
    /// Addresses of the guest beside those of the plans.
    pub further_guest_addresses: Vec<IpAddr>,
    /// What of the guest's traffic is carried.
    pub protocols: Protocols,
    /// How closed destinations are answered.
    pub denial: Denial,
    /// From where traffic leaves the host.
    pub outbound: Outbound,
    /// What the gateway tells guests about their addresses.
    pub autoconfiguration: Autoconfiguration,
    /// What it tells them about names.
    pub advertised: Advertised,
    /// Whether port 853 of the forwarder's address leads to a server's (RFC 7858, RFC 9250).
    pub encrypted_dns: bool,
    /// The gateway's station on the link.
    pub gateway_mac: MacAddr,
    /// Idle times.
    pub timeouts: Timeouts,
    /// Below which its guests' names stand, if they have any; lower case.
    pub domain: Option<String>,
    /// Nothing leads out of it but what [`Network::host_access`] opens.
    pub internal: bool,
    /// Limits of its link, which then has one queue: each worker keeps to them by itself.
    pub rates: Rates,
}

impl Network {
    /// Largest [`Network::mtu`].
    pub const MAX_MTU: u16 = 65520;

    /// A network in which nothing of the host is open, nothing is published, and the gateways' addresses stand for the
    /// host's loopback.
    pub fn new(ipv4: impl Into<Option<Ipv4Plan>>, ipv6: impl Into<Option<Ipv6Plan>>) -> Self {
        let (ipv4, ipv6) = (ipv4.into(), ipv6.into());
        let loopback =
            ipv4.map(|plan| Alias { guest: plan.gateway.into(), host: Ipv4Addr::LOCALHOST.into() });
        let loopback6 =
            ipv6.map(|plan| Alias { guest: plan.gateway.into(), host: Ipv6Addr::LOCALHOST.into() });
        Self {
            ipv4,
            ipv6,
            mtu: Self::MAX_MTU,
            dns_servers: Vec::new(),
            publish: Vec::new(),
            splice: Splicing::default(),
            publishes_later: false,
            freebind: false,
            aliases: [loopback, loopback6].into_iter().flatten().collect(),
            loopback_forwards: Vec::new(),
            automatic: Automatic::default(),
            host_access: HostAccess::default(),
            shares_subnet: false,
            further_guest_addresses: Vec::new(),
            protocols: Protocols::default(),
            denial: Denial::default(),
            outbound: Outbound::default(),
            autoconfiguration: Autoconfiguration::default(),
            advertised: Advertised::default(),
            encrypted_dns: false,
            gateway_mac: MacAddr::GATEWAY,
            timeouts: Timeouts::default(),
            domain: None,
            internal: false,
            rates: Rates::default(),
        }
    }

    /// The DNS forwarder's addresses.
    pub fn dns_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.ipv4.and_then(|plan| plan.dns);
        let v6 = self.ipv6.and_then(|plan| plan.dns);
        v4.map(IpAddr::from).into_iter().chain(v6.map(IpAddr::from))
    }

    /// The gateway's address, that of IPv4 if there is one.
    pub fn gateway(&self) -> IpAddr {
        self.of_first_family(|plan| plan.gateway, |plan| plan.gateway)
    }

    /// The guest's address, that of IPv4 if there is one.
    pub fn guest(&self) -> IpAddr {
        self.of_first_family(|plan| plan.guest, |plan| plan.guest)
    }

    fn of_first_family(
        &self,
        v4: impl Fn(&Ipv4Plan) -> Ipv4Addr,
        v6: impl Fn(&Ipv6Plan) -> Ipv6Addr,
    ) -> IpAddr {
        let v6 = || self.ipv6.as_ref().map_or(Ipv6Addr::UNSPECIFIED, v6).into();
        self.ipv4.as_ref().map_or_else(v6, |plan| v4(plan).into())
    }

    /// The servers that guests are told to ask.
    pub fn advertised_servers(&self) -> impl Iterator<Item = IpAddr> {
        let own = self.advertised.servers.is_none().then(|| self.dns_addresses());
        let given = self.advertised.servers.iter().flatten().copied();
        own.into_iter().flatten().chain(given)
    }

    /// Whether sockets are needed that are made inside the guest's network namespace.
    pub fn wants_socket_factory(&self) -> bool {
        let is_tcp = |publish: &Publish| publish.transport == Transport::Tcp;
        let published = self.publishes_later || self.publish.iter().any(is_tcp);
        (self.splice != Splicing::Off && published) || self.wants_entrances()
    }

    /// Whether something of the guest's loopback leads to the host, or is to follow the host's ports, or the guest's.
    pub fn wants_entrances(&self) -> bool {
        self.automatic.any() || !self.loopback_forwards.is_empty()
    }
}

/// Workers that one network can have, and queues that its link can have.
pub const MAX_WORKERS: u16 = 16;

/// A guest's link and what its interface looks like inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    /// Which kind to make.
    pub kind: LinkKind,
    /// Interface name inside the guest (`tap0`).
    pub ifname: String,
    /// The guest's MAC address; `None` is the kernel's choice.
    pub mac: Option<MacAddr>,
    /// Queues that a TAP shall have, one for each worker; at least 1. Other links have one.
    pub queues: u16,
    /// Whether their number was asked for; if not, fewer are no surprise.
    pub queues_given: bool,
    /// Take a persistent TAP of that name over if there is one, instead of refusing.
    pub take_over: bool,
    /// What of it is configured inside.
    pub setup: Setup,
    /// Bring `lo` up too. Not where the namespace's maker does: bubblewrap fails if it is not the first.
    pub loopback: bool,
    /// Record its frames in this file.
    pub capture: Option<PathBuf>,
}

/// How frames travel between the guest and rnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The best that works here: tap, else tap-plain, else packet.
    Auto,
    /// A TAP with the virtio-net header and offloads.
    Tap,
    /// A TAP without them.
    TapPlain,
    /// A veth pair with an AF_PACKET socket on its far end; needs no /dev/net/tun.
    Packet,
    /// A connected unix socket of sequenced packets, one for each frame (BESS, user-mode Linux); somebody else's guest.
    Socket,
}

impl std::fmt::Display for LinkKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tap => "tap",
            Self::TapPlain => "tap-plain",
            Self::Packet => "packet",
            Self::Socket => "socket",
        })
    }
}

/// The root filesystem of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootFs {
    /// A directory; the command's writes go there. An archive is used as [`RootFs::Overlay`] of what it holds.
    Directory(PathBuf),
    /// Directories on top of each other; writes go elsewhere.
    Overlay(Overlay),
    /// The host's own root, copy-on-write: writes vanish with the container.
    HostCopy,
    /// An empty tmpfs that holds only the volumes.
    Empty,
    /// The host's own root as it is, but for a /proc of the container's processes.
    Host,
}

/// A copy-on-write view of directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Absolute; what an earlier one has hides what later ones have of the same name. At least one. Each is a
    /// directory or an archive.
    pub lower: Vec<PathBuf>,
    /// Where writes are kept, absolute; made if missing. `None` forgets them.
    pub kept: Option<PathBuf>,
    /// What in the topmost one is not root's, and is given away where those owners exist.
    pub owned: Vec<Owned>,
}

/// Something in a root filesystem that belongs to others than root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Absolute path inside, in which no part is a symbolic link.
    pub path: PathBuf,
    /// Its user inside.
    pub uid: u32,
    /// Its group inside.
    pub gid: u32,
}

/// A bind mount from the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Existing file or directory of the host, absolute.
    pub source: PathBuf,
    /// Absolute path inside.
    pub target: PathBuf,
    /// Refuse writes, below it too.
    pub read_only: bool,
}

/// A directory in memory, empty at first; devices do not work there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tmpfs {
    /// Absolute path inside.
    pub target: PathBuf,
    /// Most that it holds, as the kernel takes it (tmpfs(5)): bytes, also with `k`, `m` or `g`, or `%` of the memory;
    /// `None` is half of the memory.
    pub size: Option<String>,
    /// Most files and directories; `None` is the kernel's choice.
    pub inodes: Option<u64>,
    /// Permission bits of its top.
    pub mode: u32,
    /// Refuse writes.
    pub read_only: bool,
    /// Programs can be executed from there.
    pub executable: bool,
    /// Set-user-ID and set-group-ID bits count there.
    pub set_id: bool,
}

impl Tmpfs {
    /// One as docker makes it: for everybody to write to, nothing executable.
    pub fn at(target: PathBuf) -> Self {
        Self {
            target,
            size: None,
            inodes: None,
            mode: 0o1777,
            read_only: false,
            executable: false,
            set_id: false,
        }
    }
}

/// What runs, and in what surroundings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its root.
    pub rootfs: RootFs,
    /// Command and arguments; never empty.
    pub command: Vec<OsString>,
    /// The environment of the command, in order; a later name replaces an earlier one. Without a HOME it gets that of
    /// the user who it becomes.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory inside; `None` is `/` (for [`RootFs::HostCopy`] the caller's own, if it exists inside).
    pub workdir: Option<PathBuf>,
    /// Host name inside.
    pub hostname: String,
    /// Bind mounts. What lies below another mount's target is mounted after that.
    pub volumes: Vec<Volume>,
    /// Directories in memory; the same holds for them.
    pub tmpfs: Vec<Tmpfs>,
    /// Refuse writes to the root filesystem, but for `/tmp`, `/dev`, volumes and directories in memory.
    pub read_only: bool,
    /// Puts a small reaping init before the command.
    pub init: bool,
    /// What it may do.
    pub privileges: Privileges,
    /// Its ids, and who the command is.
    pub identity: Identity,
    /// How much of the machine it may use.
    pub allowance: Allowance,
    /// Its standard streams.
    pub terminal: Terminal,
}

/// What the standard streams of a command are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Terminal {
    /// Those of rnet, a terminal or not.
    #[default]
    Inherited,
    /// A terminal of the command's own, whose output becomes that of rnet.
    Own {
        /// Whether rnet's input is typed into it.
        interactive: bool,
    },
}

impl Terminal {
    /// Whether it is the command's own, and what rnet reads is typed into it.
    pub fn is_interactive(self) -> bool {
        self == Self::Own { interactive: true }
    }
}

/// Contents of the generated files of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcFiles {
    /// `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// `/etc/hosts`.
    pub hosts: String,
    /// `/etc/hostname`.
    pub hostname: String,
}

/// How much to log, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Most detailed level that is written.
    pub level: LogLevel,
    /// Text or one JSON object per line.
    pub format: LogFormat,
}

/// Levels of detail, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what ends rnet (`--quiet`).
    Error,
    /// Also what works but deserves a look (the default).
    Warn,
    /// Also changes of state (`--verbose`).
    Info,
    /// Also flows (`--verbose` twice).
    Debug,
    /// Also packets (three times).
    Trace,
}

/// Shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// All that `rnet run` needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose network it is.
    pub mode: NetworkMode,
    /// The network, if rnet carries it.
    pub network: Network,
    /// The link.
    pub link: LinkSpec,
    /// The container.
    pub container: Container,
    /// How to run it if its root filesystem is an image.
    pub image: ImageUse,
    /// What others call it; `None` is rnet's process id.
    pub name: Option<String>,
    /// How long it is kept.
    pub life: Life,
    /// Logging.
    pub log: Log,
}
