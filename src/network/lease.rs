//! Who is in a network, and with which addresses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::definition::Definition;
use crate::config::MacAddr;
use crate::error::{Error, Result};

/// A container's place in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// What the container is called.
    pub(super) container: String,
    /// Its IPv4 address.
    pub(super) ipv4: Ipv4Addr,
    /// Its IPv6 address, if the network has any.
    pub(super) ipv6: Option<Ipv6Addr>,
    /// Its station's.
    pub(super) mac: String,
    /// By which it is found, its own first.
    pub(super) names: Vec<String>,
}

/// What a container asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wanted {
    /// Its IPv4 address.
    pub(super) ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub(super) ipv6: Option<Ipv6Addr>,
    /// Its station.
    pub(super) mac: Option<MacAddr>,
}

/// All leases of a network, by their numbers.
#[derive(Debug)]
pub(super) struct Leases {
    definition: Definition,
    leases: BTreeMap<u64, Lease>,
    last: u64,
}

impl Leases {
    /// Those of a network that nobody is in.
    pub(super) fn new(definition: Definition) -> Self {
        Self { definition, leases: BTreeMap::new(), last: 0 }
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// The numbers of those of the container `name`.
    pub(super) fn of(&self, name: &str) -> Vec<u64> {
        let found = self.leases.iter().filter(|(_, lease)| lease.container == name);
        found.map(|(number, _)| *number).collect()
    }

    /// Lets a container in, which is told by its number from now on.
    pub(super) fn add(
        &mut self,
        container: &str,
        names: Vec<String>,
        wanted: Wanted,
    ) -> Result<(u64, Lease)> {
        let what = || format!("the network {}", self.definition.name);
        if !self.of(container).is_empty() {
            return Err(Error::new("cannot join", what(), format!("{container} is in it already")));
        }
        let ipv4 = match wanted.ipv4 {
            Some(address) => self.given(address.into()).map(|()| address)?,
            None => {
                let free = self.definition.subnet.hosts().find(|address| self.is_free((*address).into()));
                free.ok_or_else(|| Error::new("cannot join", what(), "no address is left"))?
            }
        };
        let ipv6 = match wanted.ipv6 {
            Some(address) => self.given(address.into()).map(|()| Some(address))?,
            None => self.definition.ipv6_like(ipv4).filter(|address| self.is_free((*address).into())),
        };
        let mac = wanted.mac.unwrap_or_else(|| station_of(ipv4)).to_string();
        if self.iter().any(|lease| lease.mac == mac) {
            return Err(Error::new("cannot join", what(), format!("somebody has the station {mac}")));
        }
        let lease = Lease { container: container.to_owned(), ipv4, ipv6, mac, names };
        self.last += 1;
        self.leases.insert(self.last, lease.clone());
        Ok((self.last, lease))
    }

    /// A container has left.
    pub(super) fn remove(&mut self, number: u64) {
        self.leases.remove(&number);
    }

    /// Refuses an address that cannot be given.
    fn given(&self, address: IpAddr) -> Result<()> {
        let cause = if !self.is_inside(address) {
            "it is no station's of the network"
        } else if !self.is_free(address) {
            "somebody has it"
        } else {
            return Ok(());
        };
        Err(Error::new("cannot give", address, cause)
            .hint(format!("`rnet network inspect {}` shows what is free", self.definition.name)))
    }

    fn is_inside(&self, address: IpAddr) -> bool {
        let Definition { subnet, ipv6_subnet, .. } = &self.definition;
        match address {
            IpAddr::V4(address) => {
                subnet.contains(&address) && ![subnet.network(), subnet.broadcast()].contains(&address)
            }
            IpAddr::V6(address) => {
                ipv6_subnet.is_some_and(|subnet| subnet.contains(&address) && address != subnet.network())
            }
        }
    }

    fn is_free(&self, address: IpAddr) -> bool {
        let has = |lease: &Lease| {
            address == IpAddr::from(lease.ipv4)
                || lease.ipv6.is_some_and(|ipv6| address == IpAddr::from(ipv6))
        };
        !self.definition.is_own(address) && !self.iter().any(has)
    }
}

/// The station of the container with `address`: one address has the same one always, so that no neighbour is misled
/// when another container gets it.
fn station_of(address: Ipv4Addr) -> MacAddr {
    let [a, b, c, d] = address.octets();
    // Locally administered, and not the gateway's.
    MacAddr([0x52, 0x57, a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gets_the_first_addresses_that_are_free() {
        let mut leases = leases();
        let (first, web) = leases.add("web", Vec::new(), Wanted::default()).expect("room");
        let (_, db) = leases.add("db", Vec::new(), Wanted::default()).expect("room");
        assert_eq!([web.ipv4, db.ipv4], ["10.89.0.2", "10.89.0.3"].map(v4));
        assert_eq!(web.ipv6, "fd00:89::2".parse().ok());
        assert_eq!(web.mac, "52:57:0a:59:00:02");
        leases.remove(first);
        let (_, next) = leases.add("next", Vec::new(), Wanted::default()).expect("room");
        assert_eq!((next.ipv4, next.mac), (web.ipv4, web.mac));
    }

    #[test]
    fn what_is_asked_for_is_given_if_it_can_be() {
        let mut leases = leases();
        let ipv4 = |text: &str| Wanted { ipv4: Some(v4(text)), ..Wanted::default() };
        leases.add("a", Vec::new(), ipv4("10.89.0.5")).expect("free");
        for refused in ["10.89.0.5", "10.89.0.1", "10.89.0.6", "10.89.0.0", "10.89.0.7", "10.90.0.2"] {
            leases.add("b", Vec::new(), ipv4(refused)).expect_err(refused);
        }
        let ipv6 = |text: &str| Wanted { ipv6: text.parse().ok(), ..Wanted::default() };
        for refused in ["fd00:89::5", "fd00:89::1", "fd00:89::", "2001:db8::1"] {
            leases.add("b", Vec::new(), ipv6(refused)).expect_err(refused);
        }
        leases.add("b", Vec::new(), ipv6("fd00:89::77")).expect("free");
    }

    #[test]
    fn a_full_network_and_a_second_of_one_name_are_refused() {
        let mut leases = leases();
        for name in ["a", "b", "c", "d"] {
            leases.add(name, Vec::new(), Wanted::default()).expect("room");
        }
        let full = leases.add("e", Vec::new(), Wanted::default()).expect_err("full").to_string();
        assert!(full.contains("no address is left"), "{full}");
        let twice = leases.add("a", Vec::new(), Wanted::default()).expect_err("twice").to_string();
        assert!(twice.contains("a is in it already"), "{twice}");
    }

    /// Of a network with four addresses beside the gateway's and the forwarder's.
    fn leases() -> Leases {
        let text = r#"{"name": "a", "subnet": "10.89.0.0/29", "gateway": "10.89.0.1", "ipv6_subnet": "fd00:89::/64",
            "mtu": 1500}"#;
        Leases::new(serde_json::from_str(text).expect("a network"))
    }

    fn v4(text: &str) -> Ipv4Addr {
        text.parse().expect("an address")
    }
}
