//! What a network is, as its file says: `$XDG_CONFIG_HOME/rnet/networks/NAME.json`, else below `~/.config`.
//!
//! The file outlives the machine's restart, and the user may write it by hand. Of the subnet's addresses the first is the
//! gateway's unless it says otherwise, the last the DNS forwarder's; all others are for containers.

use std::env;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::config::{
    Autoconfiguration, Ipv4Plan, Ipv6Choice, Ipv6Plan, Network, NewNetwork, Splicing, is_network_name,
};
use crate::error::{Context, Error, Result};
use crate::state::Timestamp;

/// Longest file that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;
/// Networks that are read at most.
const MAX_NETWORKS: usize = 4096;
/// Subnets that are tried for a new network.
const CANDIDATES: u8 = 255;
/// Held while a network is made.
const LOCK: &str = ".lock";
const EXTENSION: &str = "json";

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Definition {
    /// Its name, and the domain of its containers' names.
    pub(super) name: String,
    /// When it was made.
    #[serde(default)]
    pub(super) created: Timestamp,
    /// Its IPv4 addresses.
    #[serde(with = "text")]
    pub(super) subnet: Ipv4Net,
    /// The gateway's.
    pub(super) gateway: Ipv4Addr,
    /// Its IPv6 addresses, if it has any.
    #[serde(default, with = "optional_text", skip_serializing_if = "Option::is_none")]
    pub(super) ipv6_subnet: Option<Ipv6Net>,
    /// Nothing leads out of it.
    #[serde(default)]
    pub(super) internal: bool,
    /// Largest IP packet, in bytes.
    pub(super) mtu: u16,
}

/// Values by their text.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

mod optional_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

    pub(super) fn serialize<T: Display, S: Serializer>(value: &Option<T>, to: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(ToString::to_string).serialize(to)
    }

    pub(super) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(de::Error::custom)).transpose()
    }
}

impl Definition {
    /// The network `wanted`, with free subnets where it names none: of neither `host` nor `others`.
    fn new(wanted: &NewNetwork, host: &[IpNet], others: &[Self]) -> Result<Self> {
        let what = || format!("the network {}", wanted.name);
        let taken: Vec<IpNet> = host.iter().copied().chain(others.iter().flat_map(Self::subnets)).collect();
        let none_free = |option| {
            let cause = "every subnet that would be taken is in use";
            Error::new("cannot make", what(), cause).hint(format!("choose one with {option}"))
        };
        let subnet = match wanted.subnet {
            Some(subnet) => subnet,
            None => free(ipv4_candidates(), &taken).ok_or_else(|| none_free("--subnet"))?,
        };
        let ipv6_subnet = match wanted.ipv6 {
            Ipv6Choice::Given(subnet) => Some(subnet),
            Ipv6Choice::Off => None,
            Ipv6Choice::Free => {
                Some(free(ipv6_candidates(), &taken).ok_or_else(|| none_free("--ipv6-subnet"))?)
            }
        };
        let gateway = wanted.gateway.or_else(|| subnet.hosts().next()).unwrap_or(subnet.network());
        let (name, internal, mtu) = (wanted.name.clone(), wanted.internal, wanted.mtu);
        let made = Self { name, created: Timestamp::now(), subnet, gateway, ipv6_subnet, internal, mtu };
        made.check()?;
        let overlap = made.subnets().into_iter().find_map(|subnet| {
            let other =
                others.iter().find(|other| other.subnets().iter().any(|net| overlap(*net, subnet)))?;
            Some((subnet, other))
        });
        match overlap {
            Some((subnet, other)) => {
                let cause = format!("its subnet {subnet} overlaps that of the network {}", other.name);
                Err(Error::new("cannot make", what(), cause))
            }
            None => Ok(made),
        }
    }

    /// Refuses what cannot be: the file may be written by hand.
    fn check(&self) -> Result<()> {
        let what = || format!("the network {}", self.name);
        let cause = if !is_network_name(&self.name) {
            "that is no name of a network"
        } else if !(8..=29).contains(&self.subnet.prefix_len()) || Ipv4Plan::new(self.subnet).is_none() {
            "its subnet has no room for stations, or is not unicast"
        } else if !self.subnet.hosts().any(|host| host == self.gateway) || self.gateway == self.dns() {
            "its gateway is no station of its subnet, or the last one, which is the DNS forwarder"
        } else if self.ipv6_subnet.is_some_and(|subnet| Ipv6Plan::new(subnet).is_none()) {
            "its IPv6 subnet has no room for stations, or is not unicast"
        } else if !(1280..=Network::MAX_MTU).contains(&self.mtu) {
            "its MTU is not 1280 to 65520"
        } else {
            return Ok(());
        };
        Err(Error::new("cannot use", what(), cause))
    }

    /// Its subnets.
    pub(super) fn subnets(&self) -> Vec<IpNet> {
        let v6 = self.ipv6_subnet.map(|subnet| IpNet::V6(subnet.trunc()));
        [IpNet::V4(self.subnet.trunc())].into_iter().chain(v6).collect()
    }

    /// The DNS forwarder's IPv4 address: the last one.
    pub(super) fn dns(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.broadcast()) - 1)
    }

    /// The IPv6 address with the host number of `like`.
    pub(super) fn ipv6_like(&self, like: Ipv4Addr) -> Option<Ipv6Addr> {
        let number = u32::from(like) - u32::from(self.subnet.network());
        let subnet = self.ipv6_subnet?;
        let address = Ipv6Addr::from(u128::from(subnet.network()) + u128::from(number));
        Some(address).filter(|address| subnet.contains(address))
    }

    /// The gateway's IPv6 address.
    pub(super) fn gateway6(&self) -> Option<Ipv6Addr> {
        self.ipv6_subnet.map(|subnet| Ipv6Addr::from(u128::from(subnet.network()) + 1))
    }

    /// The DNS forwarder's IPv6 address: far from the others.
    pub(super) fn dns6(&self) -> Option<Ipv6Addr> {
        self.ipv6_subnet.map(|subnet| Ipv6Addr::from(u128::from(subnet.network()) + 0xffe))
    }

    /// The network as the gateway runs it: its guests' addresses are those that no station has.
    pub(super) fn network(&self) -> Network {
        self.with_guest(self.subnet.network(), self.ipv6_subnet.map(|subnet| subnet.network()))
    }

    /// The network as it is to a container with these addresses.
    pub(super) fn with_guest(&self, ipv4: Ipv4Addr, ipv6: Option<Ipv6Addr>) -> Network {
        let plan = Ipv4Plan {
            subnet: self.subnet.trunc(),
            gateway: self.gateway,
            dns: Some(self.dns()),
            guest: ipv4,
            lease: ipv4,
        };
        let plan6 = self.ipv6_subnet.zip(self.gateway6()).zip(ipv6).map(|((subnet, gateway), guest)| {
            Ipv6Plan { subnet: subnet.trunc(), gateway, dns: self.dns6(), guest }
        });
        Network {
            mtu: self.mtu,
            domain: Some(self.name.to_ascii_lowercase()),
            internal: self.internal,
            splice: Splicing::Off,
            // Each container has the addresses that it is given, and no other.
            autoconfiguration: Autoconfiguration {
                router_advertisements: false,
                ..Autoconfiguration::default()
            },
            ..Network::new(plan, plan6)
        }
    }

    /// Whether no container may have `address`.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.gateway || address == self.dns(),
            IpAddr::V6(address) => [self.gateway6(), self.dns6()].contains(&Some(address)),
        }
    }
}

fn ipv4_candidates() -> impl Iterator<Item = Ipv4Net> {
    (0..=CANDIDATES).map(|third| Ipv4Net::new_assert(Ipv4Addr::new(10, 89, third, 0), 24))
}

fn ipv6_candidates() -> impl Iterator<Item = Ipv6Net> {
    (0..=CANDIDATES)
        .map(|fourth| Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0x10, 0x89, fourth.into(), 0, 0, 0, 0), 64))
}

fn free<N: Copy + Into<IpNet>>(mut candidates: impl Iterator<Item = N>, taken: &[IpNet]) -> Option<N> {
    // Default routes, and the halves of the address space that VPNs install in their place, are no networks.
    let is_network = |net: &&IpNet| net.prefix_len() > 1;
    candidates
        .find(|candidate| !taken.iter().filter(is_network).any(|net| overlap(*net, (*candidate).into())))
}

fn overlap(one: IpNet, other: IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// Makes the network `wanted`, which must not exist, clear of the networks of the `host`.
pub(super) fn create(wanted: &NewNetwork, host: &[IpNet]) -> Result<Definition> {
    let directory = directory()?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .context("cannot make", directory.display())?;
    let lock = directory.join(LOCK);
    let file =
        File::options().create(true).append(true).open(&lock).context("cannot open", lock.display())?;
    let _lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context("cannot lock", lock.display())?;
    let path = path_of(&wanted.name)?;
    if path.exists() {
        return Err(Error::new("cannot make", format!("the network {}", wanted.name), "it exists already"));
    }
    let made = Definition::new(wanted, host, &list()?)?;
    let new = directory.join(format!(".{}.new", made.name));
    write(&new, &made).and_then(|()| fs::rename(&new, &path)).context("cannot write", path.display())?;
    Ok(made)
}

fn write(path: &std::path::Path, definition: &Definition) -> io::Result<()> {
    let text = serde_json::to_string_pretty(definition)?;
    let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(format!("{text}\n").as_bytes())?;
    file.sync_all()
}

/// The network `name`.
pub(super) fn load(name: &str) -> Result<Definition> {
    let path = path_of(name)?;
    let file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::new("no such network", name, format!("{} does not exist", path.display()))
                .hint(format!("rnet network create {name}")));
        }
        file => file.context("cannot open", path.display())?,
    };
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).context("cannot read", path.display())?;
    let definition: Definition = serde_json::from_str(&text)
        .map_err(|error| Error::new("cannot understand", path.display(), error))?;
    if definition.name != name {
        let cause = format!("it names the network {}", definition.name);
        return Err(Error::new("cannot use", path.display(), cause));
    }
    definition.check()?;
    Ok(definition)
}

/// All networks, by name; what cannot be understood is left out with a warning.
pub(super) fn list() -> Result<Vec<Definition>> {
    let directory = directory()?;
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("cannot read", directory.display())?,
    };
    let names = entries.flatten().take(MAX_NETWORKS).filter_map(|entry| {
        let path = entry.path();
        let is_ours = path.extension().is_some_and(|extension| extension == EXTENSION);
        let name = path.file_stem()?.to_str()?.to_owned();
        (is_ours && is_network_name(&name)).then_some(name)
    });
    let loaded = names.filter_map(|name| load(&name).inspect_err(|error| tracing::warn!("{error}")).ok());
    let mut networks: Vec<Definition> = loaded.collect();
    networks.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(networks)
}

/// Removes the file of the network `name`.
pub(super) fn remove(name: &str) -> Result<()> {
    let path = path_of(name)?;
    fs::remove_file(&path).context("cannot remove", path.display())
}

fn path_of(name: &str) -> Result<PathBuf> {
    Ok(directory()?.join(format!("{name}.{EXTENSION}")))
}

fn directory() -> Result<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let config = absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    config.map(|config| config.join("rnet/networks")).ok_or_else(|| {
        Error::new("cannot find", "the directory of networks", "neither XDG_CONFIG_HOME nor HOME is set")
            .hint("set HOME to your home directory")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_subnets_are_taken() {
        let first = made("a", &[], &[]);
        assert_eq!(first.subnets(), nets(&["10.89.0.0/24", "fd00:10:89::/64"]));
        assert_eq!((first.gateway, first.dns()), (v4("10.89.0.1"), v4("10.89.0.254")));
        let second = made("b", &["10.89.1.7/32", "0.0.0.0/0", "128.0.0.0/1"], &[first]);
        assert_eq!(second.subnets(), nets(&["10.89.2.0/24", "fd00:10:89:1::/64"]));
    }

    #[test]
    fn networks_do_not_overlap() {
        let first = made("a", &[], &[]);
        let wanted = NewNetwork { subnet: Some(net4("10.89.0.128/25")), ..wanted("b") };
        let refused = Definition::new(&wanted, &[], &[first]).expect_err("it overlaps").to_string();
        assert!(refused.contains("overlaps that of the network a"), "{refused}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |wanted: NewNetwork| Definition::new(&wanted, &[], &[]).is_err();
        assert!(refused(NewNetwork { gateway: Some(v4("10.90.0.1")), ..wanted("a") }));
        assert!(refused(NewNetwork { gateway: Some(v4("10.89.0.254")), ..wanted("a") }));
        assert!(refused(NewNetwork { gateway: Some(v4("10.89.0.0")), ..wanted("a") }));
        assert!(refused(NewNetwork { subnet: Some(net4("10.0.0.0/30")), ..wanted("a") }));
        assert!(refused(NewNetwork { mtu: 1000, ..wanted("a") }));
        assert!(!refused(NewNetwork { subnet: Some(net4("192.168.7.0/29")), ..wanted("a") }));
    }

    #[test]
    fn its_text_says_all_of_it() {
        let definition = made("a", &[], &[]);
        let text = serde_json::to_string(&definition).expect("a text");
        assert_eq!(serde_json::from_str::<Definition>(&text).expect("understood"), definition);
        let by_hand = r#"{"name": "a", "subnet": "10.1.2.0/24", "gateway": "10.1.2.1", "mtu": 1500}"#;
        let by_hand: Definition = serde_json::from_str(by_hand).expect("understood");
        assert_eq!((by_hand.ipv6_subnet, by_hand.internal), (None, false));
    }

    #[test]
    fn a_containers_two_addresses_have_one_number() {
        let definition = made("a", &[], &[]);
        assert_eq!(definition.ipv6_like(v4("10.89.0.17")), "fd00:10:89::11".parse().ok());
    }

    fn made(name: &str, host: &[&str], others: &[Definition]) -> Definition {
        Definition::new(&wanted(name), &nets(host), others).expect("a network")
    }

    fn wanted(name: &str) -> NewNetwork {
        NewNetwork {
            name: name.to_owned(),
            subnet: None,
            gateway: None,
            ipv6: Ipv6Choice::Free,
            internal: false,
            mtu: 65520,
        }
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }

    fn net4(text: &str) -> Ipv4Net {
        text.parse().expect("a network")
    }

    fn v4(text: &str) -> Ipv4Addr {
        text.parse().expect("an address")
    }
}
