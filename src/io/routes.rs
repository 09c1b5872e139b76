//! Which networks the host already uses, so that a guest's network can keep clear of them.
//!
//! Interface addresses and the routes that /proc/net shows. What cannot be read is left out: a host without
//! IPv6 or without /proc has fewer networks, not an error.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::SockaddrStorage;

/// Most networks that are looked at; a router with a full table has far more than could matter.
const MAX_SUBNETS: usize = 4096;

/// The host's networks; default routes may be among them.
pub fn host_subnets() -> Vec<IpNet> {
    let addresses = getifaddrs()
        .ok()
        .into_iter()
        .flatten()
        .filter_map(|entry| interface_subnet(&entry));
    let v4 = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    let routes = v4
        .lines()
        .filter_map(ipv4_route)
        .map(IpNet::V4)
        .chain(v6.lines().filter_map(ipv6_route).map(IpNet::V6));
    addresses.chain(routes).take(MAX_SUBNETS).collect()
}

fn interface_subnet(entry: &InterfaceAddress) -> Option<IpNet> {
    let addr = ip(entry.address.as_ref()?)?;
    let mask = ip(entry.netmask.as_ref()?)?;
    IpNet::with_netmask(addr, mask).ok().map(|net| net.trunc())
}

fn ip(addr: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = addr.as_sockaddr_in() {
        return Some(v4.ip().into());
    }
    addr.as_sockaddr_in6().map(|v6| v6.ip().into())
}

/// A line of /proc/net/route: destination and mask are the second and the eighth column, in hexadecimal as
/// the machine's own words.
fn ipv4_route(line: &str) -> Option<Ipv4Net> {
    let mut columns = line.split_ascii_whitespace().skip(1);
    let destination = ipv4_word(columns.next()?)?;
    let mask = ipv4_word(columns.nth(5)?)?;
    Ipv4Net::with_netmask(destination, mask).ok()
}

fn ipv4_word(text: &str) -> Option<Ipv4Addr> {
    let word = u32::from_str_radix(text, 16).ok()?;
    Some(Ipv4Addr::from(word.to_ne_bytes()))
}

/// A line of /proc/net/ipv6_route: destination and prefix length are the first two columns, in hexadecimal.
fn ipv6_route(line: &str) -> Option<Ipv6Net> {
    let mut columns = line.split_ascii_whitespace();
    let destination = u128::from_str_radix(columns.next()?, 16).ok()?;
    let prefix = u8::from_str_radix(columns.next()?, 16).ok()?;
    Ipv6Net::new(Ipv6Addr::from(destination), prefix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn an_ipv4_route_is_read() {
        let line = "eth0\t0002000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0";
        assert_eq!(
            ipv4_route(line).map(|net| net.to_string()),
            Some("10.0.2.0/24".into())
        );
        let default = "eth0 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0";
        assert_eq!(ipv4_route(default).map(|net| net.prefix_len()), Some(0));
    }

    #[test]
    fn an_ipv6_route_is_read() {
        let line = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 \
                    00000000000000000000000000000000 00000100 00000001 00000000 00000001 eth0";
        assert_eq!(
            ipv6_route(line).map(|net| net.to_string()),
            Some("fd00::/64".into())
        );
    }

    #[test]
    fn headings_and_broken_lines_are_skipped() {
        let heading = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT";
        assert_eq!(ipv4_route(heading), None);
        for line in ["", "eth0", "eth0 0002000A", "x y", "fd00 zz", "fd00 ff"] {
            assert_eq!((ipv4_route(line), ipv6_route(line)), (None, None), "{line}");
        }
    }

    #[test]
    fn the_hosts_loopback_is_among_its_networks() {
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert!(host_subnets().iter().any(|net| net.contains(&loopback)));
    }
}
