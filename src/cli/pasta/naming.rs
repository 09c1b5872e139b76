//! What a guest is told about names, and at which address queries are answered for it.

use std::net::IpAddr;

use super::options::Options;
use crate::config::{Advertised, HostNetwork, Network, SearchList};

/// The forwarder's address in the family of `gateway`. A guest that is told the host's servers, and cannot reach one on
/// the host's loopback, finds it at the address that stands for that.
pub(super) fn forwarder(options: &Options, host: &HostNetwork, gateway: IpAddr) -> Option<IpAddr> {
    let ipv4 = gateway.is_ipv4();
    let told = options.dhcp_dns && options.dns.is_none();
    let mut servers = host.nameservers.iter().filter(|server| server.is_ipv4() == ipv4);
    let of_gateway = Some(gateway).filter(|_| !options.no_map_gw);
    let stands_in = options.map_host_loopback.of(ipv4).or(of_gateway);
    let needed = stands_in.filter(|_| told && servers.any(IpAddr::is_loopback));
    options.dns_forward.of(ipv4).or(needed)
}

/// What `network`, whose forwarders are known, tells; and why a domain is not told.
pub(super) fn advertised(
    options: &Options,
    host: &HostNetwork,
    network: &Network,
) -> (Advertised, Vec<String>) {
    let of_host = || host.nameservers.iter().filter_map(|server| reachable(*server, network));
    let mut servers = match &options.dns {
        _ if !options.dhcp_dns => Vec::new(),
        Some(given) => given.clone(),
        None => of_host().collect(),
    };
    servers.dedup();
    let domains = match &options.search {
        _ if !options.dhcp_search => &[][..],
        Some(given) => given,
        None => &host.search,
    };
    let mut search = SearchList::default();
    let add = |domain: &String| {
        let why = search.push(domain).err()?;
        Some(format!("the search domain {domain} is not told: {why}"))
    };
    let left_out = domains.iter().filter_map(add).collect();
    (Advertised { servers: Some(servers), search }, left_out)
}

fn reachable(server: IpAddr, network: &Network) -> Option<IpAddr> {
    if !server.is_loopback() {
        return Some(server);
    }
    network.dns_addresses().find(|address| address.is_ipv4() == server.is_ipv4())
}
