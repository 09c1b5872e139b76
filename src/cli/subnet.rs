//! Which subnets a guest gets when the user names none: the usual ones, unless the host already uses them.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{Ipv4Plan, Ipv6Plan};

/// How many IPv6 prefixes below fd00::/48 are tried.
const IPV6_CANDIDATES: u16 = 256;

/// The first network of 10.0.2.0/24 to 10.0.255.0/24, 172.31.0.0/16 and 192.168.0.0/16 that is free at the
/// host; `None` if none is.
pub(super) fn free_ipv4(host: &[IpNet]) -> Option<Ipv4Plan> {
    let ten = (2..=255).map(|third| Ipv4Addr::new(10, 0, third, 0));
    let others = [(172, 31), (192, 168)]
        .into_iter()
        .flat_map(|(first, second)| (0..=255).map(move |third| Ipv4Addr::new(first, second, third, 0)));
    ten.chain(others)
        .map(|network| Ipv4Net::new_assert(network, 24))
        .find(|&subnet| colliding(IpNet::V4(subnet), host).is_none())
        .and_then(Ipv4Plan::new)
}

/// The first of fd00::/64, fd00:0:0:1::/64, ... that is free at the host; `None` if none of 256 is.
pub(super) fn free_ipv6(host: &[IpNet]) -> Option<Ipv6Plan> {
    (0..IPV6_CANDIDATES)
        .map(|fourth| Ipv6Net::new_assert(Ipv6Addr::new(0xfd00, 0, 0, fourth, 0, 0, 0, 0), 64))
        .find(|&subnet| colliding(IpNet::V6(subnet), host).is_none())
        .and_then(Ipv6Plan::new)
}

/// A network of the host that shares addresses with `subnet`. A default route does not count, nor do the two
/// halves of the address space that VPNs install in its place.
pub(super) fn colliding(subnet: IpNet, host: &[IpNet]) -> Option<IpNet> {
    host.iter()
        .copied()
        .filter(|route| route.prefix_len() > 1)
        .find(|route| route.contains(&subnet.network()) || subnet.contains(&route.network()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_networks_are_taken_when_free() {
        assert_eq!(ipv4(&["192.168.1.0/24", "127.0.0.0/8"]), "10.0.2.0/24");
        assert_eq!(ipv6(&["fe80::/64", "fd00:1::/32"]), "fd00::/64");
    }

    #[test]
    fn default_routes_and_vpn_halves_do_not_collide() {
        assert_eq!(ipv4(&["0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"]), "10.0.2.0/24");
        assert_eq!(ipv6(&["::/0", "8000::/1"]), "fd00::/64");
    }

    #[test]
    fn a_collision_moves_on_whichever_is_larger() {
        assert_eq!(ipv4(&["10.0.2.15/24"]), "10.0.3.0/24");
        assert_eq!(ipv4(&["10.0.2.77/32", "10.0.3.128/25"]), "10.0.4.0/24");
        assert_eq!(ipv4(&["10.0.0.0/8"]), "172.31.0.0/24");
        assert_eq!(ipv4(&["10.0.0.0/8", "172.16.0.0/12"]), "192.168.0.0/24");
        assert_eq!(ipv6(&["fd00::/64", "fd00:0:0:1::5/128"]), "fd00:0:0:2::/64");
    }

    #[test]
    fn none_is_left_when_the_host_uses_all() {
        assert_eq!(free_ipv4(&nets(&["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"])), None);
        assert_eq!(free_ipv6(&nets(&["fd00::/8"])), None);
    }

    fn ipv4(host: &[&str]) -> String {
        free_ipv4(&nets(host)).expect("a free network").subnet.to_string()
    }

    fn ipv6(host: &[&str]) -> String {
        free_ipv6(&nets(host)).expect("a free network").subnet.to_string()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a network")).collect()
    }
}
