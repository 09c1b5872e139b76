//! What pasta knows beside the network itself, and what it looks at of the host.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::{Attach, Config, GuestRoute, IfName, Publish, Transport};

/// All that `rnet pasta` needs.
#[derive(Clone, Debug)]
pub struct Pasta {
    /// Whose network it is.
    pub guest: PastaGuest,
    /// Ports of the host that lead to the guest.
    pub inbound: Vec<Forward>,
    /// Where pesto(1) finds it.
    pub control: Option<PathBuf>,
    /// Where log lines go instead of standard error.
    pub log_file: Option<LogFile>,
}

/// Whose network it is.
#[derive(Clone, Debug)]
pub enum PastaGuest {
    /// A command in new namespaces, on the host's file system.
    Command(Box<Config>),
    /// A namespace that exists already.
    Attached(Box<Attach>),
}

/// A port of the host that leads to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Which.
    pub publish: Publish,
    /// The option that asked for it, for messages; `None` if it was one of all that can be had, and may fail.
    pub option: Option<String>,
}

/// A port of the guest's loopback that leads to one of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoopbackForward {
    /// At the guest.
    pub guest_port: u16,
    /// At the host.
    pub host_port: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

/// Where ports of the host are bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BindAt {
    /// `None` is everywhere.
    pub address: Option<IpAddr>,
    /// `None` is every interface.
    pub interface: Option<IfName>,
}

/// In which directions ports are opened that somebody listens on at the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Automatic {
    /// TCP ports of the guest, at the host.
    pub tcp_in: bool,
    /// UDP ports of the guest, at the host.
    pub udp_in: bool,
    /// TCP ports of the host, at the guest's loopback.
    pub tcp_out: bool,
    /// UDP ports of the host, at the guest's loopback.
    pub udp_out: bool,
    /// Where TCP ports of the guest are bound at the host.
    pub tcp_at: BindAt,
    /// Where UDP ports of the guest are bound at the host.
    pub udp_at: BindAt,
    /// Whether TCP servers on the guest's loopback are published too: clients are led there.
    pub loopback_servers: bool,
    /// Ports that the kernel gives to clients: of UDP they are not followed.
    pub ephemeral: Option<(u16, u16)>,
}

impl Automatic {
    /// Whether there is any such direction.
    pub fn any(&self) -> bool {
        self.tcp_in || self.udp_in || self.tcp_out || self.udp_out
    }
}

/// A file for log lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// Where.
    pub path: PathBuf,
    /// Above this size the older half goes.
    pub max_bytes: u64,
}

/// What the host's network looks like, as far as a guest's can be modelled on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNetwork {
    /// All interfaces but loopback that are up, in the kernel's order.
    pub interfaces: Vec<HostInterface>,
    /// Unicast routes of the main table, in the kernel's order.
    pub routes: Vec<HostRoute>,
    /// Ports that the kernel gives to clients.
    pub ephemeral: Option<(u16, u16)>,
    /// Its DNS servers.
    pub nameservers: Vec<IpAddr>,
    /// Domains in which it looks for short names.
    pub search: Vec<String>,
}

/// An interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInterface {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its addresses but for link-local ones.
    pub addresses: Vec<IpNet>,
}

/// A route of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// Number of the interface that it leads through.
    pub interface: u32,
    /// Where it leads.
    pub route: GuestRoute,
    /// The kernel has made it for an address.
    pub of_address: bool,
}
