//! Whose network a container is in, and what can be done about networks that have a name.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// The network of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// One of its own, through rnet.
    #[default]
    User,
    /// None: nothing but its own loopback.
    None,
    /// The host's.
    Host,
    /// That of a container, by its name or the beginning of its id, or of a process, by its number.
    Container(String),
    /// One that has a name, and several containers.
    Named(Membership),
}

impl NetworkMode {
    /// Words of `--net` that are no names of networks.
    pub const RESERVED: [&str; 4] = ["user", "none", "host", "container"];

    /// Whether rnet carries what the container sends.
    pub fn is_carried(&self) -> bool {
        match self {
            Self::User | Self::Named(_) => true,
            Self::None | Self::Host | Self::Container(_) => false,
        }
    }
}

impl fmt::Display for NetworkMode {
    /// As `--net` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User => f.write_str("user"),
            Self::None => f.write_str("none"),
            Self::Host => f.write_str("host"),
            Self::Container(whose) => write!(f, "container:{whose}"),
            Self::Named(membership) => f.write_str(&membership.network),
        }
    }
}

/// What a container wants to be in a network that has a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The network's name.
    pub network: String,
    /// Its address; `None` is a free one.
    pub ipv4: Option<Ipv4Addr>,
    /// The same for IPv6; `None` is one with the host number of the IPv4 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Names that it may share with others, besides its own.
    pub aliases: Vec<String>,
}

/// A network to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNetwork {
    /// Its name, which is also the domain of its names.
    pub name: String,
    /// `None` is a free one.
    pub subnet: Option<Ipv4Net>,
    /// The gateway's address; `None` is the first of the subnet.
    pub gateway: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub ipv6: Ipv6Choice,
    /// Nothing leads out of it.
    pub internal: bool,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
}

/// Whether a network has IPv6, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Choice {
    /// A free prefix.
    Free,
    /// This one.
    Given(Ipv6Net),
    /// None.
    Off,
}

/// What `rnet network` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkCommand {
    /// Make a network.
    Create(NewNetwork),
    /// List all.
    List {
        /// As JSON.
        json: bool,
        /// Names only.
        quiet: bool,
    },
    /// Describe these.
    Inspect(Vec<String>),
    /// Remove these.
    Remove(Vec<String>),
    /// Remove those that no container is in.
    Prune,
    /// Bring a running container into a network.
    Connect {
        /// The container.
        container: String,
        /// Where to, and what it is to be there.
        membership: Membership,
    },
    /// Take a container out of a network.
    Disconnect {
        /// The network.
        network: String,
        /// The container.
        container: String,
    },
    /// Be the gateway of this network, in the background.
    Serve(String),
}
