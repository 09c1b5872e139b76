//! Interfaces, addresses and routes of the calling thread's network namespace, over rtnetlink(7).
//!
//! One request at a time, each acknowledged; refusals carry the kernel's own words where it sends some
//! (NETLINK_EXT_ACK). Nothing is undone after a failure: the namespace is thrown away.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;

use crate::config::{GuestRoute, HostInterface, HostNetwork, HostRoute, MacAddr};

/// Room for one datagram of a dump; the kernel fills at most 32 KiB.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Datagrams of one dump, against an endless one.
const MAX_DUMP_DATAGRAMS: usize = 4096;
/// Attribute of an acknowledgement that holds the kernel's words (include/uapi/linux/netlink.h).
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Length of the header of the request that an acknowledgement repeats.
const NLMSG_HEADER_BYTES: usize = 16;
/// How long an address may take to become usable, and after what time that is looked at first; each time it is twice as
/// long. The work is a matter of microseconds, but waits for a lock that whoever makes or ends a namespace on this machine
/// holds too.
const LOCAL_PATIENCE: Duration = Duration::from_secs(1);
const LOCAL_RETRY: Duration = Duration::from_micros(20);
/// Routes shorter than these are default routes in disguise: 0.0.0.0/1 of a VPN, 2000::/3.
const SHORTEST_SUBNET_V4: u8 = 8;
const SHORTEST_SUBNET_V6: u8 = 7;

/// A request that the kernel did not carry out.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub errno: Errno,
    /// The kernel's explanation.
    pub reason: Option<String>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from(self.errno))?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self {
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
            reason: error.raw_os_error().is_none().then(|| error.to_string()),
        }
    }
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        Self { errno, reason: None }
    }
}

/// What to change of an interface; `None` and `false` leave things as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkChange {
    /// Its station address.
    pub mac: Option<MacAddr>,
    /// Its largest packet, in bytes.
    pub mtu: Option<u32>,
    /// Length of its transmit queue, in packets.
    pub tx_queue_len: Option<u32>,
    /// No ARP.
    pub no_arp: bool,
    /// Bring it up.
    pub up: bool,
}

/// A veth pair that reaches from this namespace into another.
#[derive(Clone, Copy, Debug)]
pub struct VethPair<'a> {
    /// The end here.
    pub near: &'a str,
    /// The end there.
    pub far: &'a str,
    /// Station address of the end there; `None` is the kernel's choice.
    pub far_mac: Option<MacAddr>,
    /// The namespace of the end there.
    pub far_namespace: BorrowedFd<'a>,
    /// Largest packet of both, in bytes.
    pub mtu: u32,
}

/// An rtnetlink socket of the network namespace in which it was opened.
pub struct Route {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Route {
    /// Opens it.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        // Explanations are a courtesy of newer kernels; without them there are error numbers.
        let _ = socket.set_ext_ack(true).and_then(|()| socket.set_cap_ack(true));
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BYTES) })
    }

    /// Number of the interface `ifname` in the calling thread's namespace.
    pub fn index(ifname: &str) -> Result<u32, Refused> {
        Ok(if_nametoindex(ifname)?)
    }

    /// Station address of the interface `ifname` in the calling thread's namespace, if it has one of Ethernet's.
    pub fn station(ifname: &str) -> Option<MacAddr> {
        let mut interfaces = getifaddrs().ok()?.filter(|interface| interface.interface_name == ifname);
        interfaces.find_map(|interface| interface.address?.as_link_addr()?.addr()).map(MacAddr)
    }

    /// Makes a veth pair, both ends down.
    pub fn add_veth(&mut self, pair: &VethPair<'_>) -> Result<(), Refused> {
        let mut far = LinkMessage::default();
        far.attributes = vec![
            LinkAttribute::IfName(pair.far.into()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::NetNsFd(pair.far_namespace.as_raw_fd()),
        ];
        far.attributes.extend(pair.far_mac.map(|mac| LinkAttribute::Address(mac.0.into())));
        let mut near = LinkMessage::default();
        near.attributes = vec![
            LinkAttribute::IfName(pair.near.into()),
            LinkAttribute::Mtu(pair.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
            ]),
        ];
        self.change(RouteNetlinkMessage::NewLink(near), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Changes interface `index`.
    pub fn set_link(&mut self, index: u32, change: LinkChange) -> Result<(), Refused> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let attributes = &mut link.attributes;
        attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.into())));
        attributes.extend(change.mtu.map(LinkAttribute::Mtu));
        attributes.extend(change.tx_queue_len.map(LinkAttribute::TxQueueLen));
        if change.no_arp {
            link.header.flags |= LinkFlags::Noarp;
            link.header.change_mask |= LinkFlags::Noarp;
        }
        if change.up {
            link.header.flags |= LinkFlags::Up;
            link.header.change_mask |= LinkFlags::Up;
        }
        self.change(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Keeps interface `index` from giving itself an IPv6 address (and so from speaking up on the link).
    pub fn without_autoconfiguration(&mut self, index: u32) -> Result<(), Refused> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes =
            vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
                In6AddrGenMode::None,
            )])])];
        self.change(RouteNetlinkMessage::SetLink(link), 0)
    }

    /// Gives interface `index` an address; an IPv6 one is usable at once (IFA_F_NODAD, RFC 4862 section 5.4).
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<(), Refused> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.addr());
        message.header.prefix_len = address.prefix_len();
        message.header.index = index;
        message.attributes =
            vec![AddressAttribute::Local(address.addr()), AddressAttribute::Address(address.addr())];
        match address {
            IpNet::V4(address) => message.attributes.push(AddressAttribute::Broadcast(address.broadcast())),
            IpNet::V6(_) => {
                message.header.flags = AddressHeaderFlags::Nodad;
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        self.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Adds a route through interface `index`.
    pub fn add_route(&mut self, index: u32, route: &GuestRoute) -> Result<(), Refused> {
        let GuestRoute { destination, via, metric } = *route;
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination.addr());
        message.header.destination_prefix_length = destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = if via.is_some() { RouteScope::Universe } else { RouteScope::Link };
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Oif(index)];
        if destination.prefix_len() > 0 {
            message.attributes.push(RouteAttribute::Destination(RouteAddress::from(destination.addr())));
        }
        message.attributes.extend(via.map(|via| RouteAttribute::Gateway(RouteAddress::from(via))));
        message.attributes.extend(metric.map(RouteAttribute::Priority));
        self.change(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Waits until packets to `address`, which an interface has got, end here. The kernel acknowledges an IPv6 address
    /// before it has the route for it, which a queue of work adds later (addrconf_dad_work): packets that come earlier
    /// are lost. `false` if they still are after [`LOCAL_PATIENCE`].
    pub fn wait_until_local(&mut self, address: IpAddr) -> Result<bool, Refused> {
        let mut pause = LOCAL_RETRY;
        while !self.is_local(address)? {
            if pause > LOCAL_PATIENCE {
                return Ok(false);
            }
            thread::sleep(pause);
            pause *= 2;
        }
        Ok(true)
    }

    /// Whether packets to `address` end here.
    fn is_local(&mut self, address: IpAddr) -> Result<bool, Refused> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = IpNet::from(address).prefix_len();
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::from(address))];
        let mut local = false;
        let answer = self.ask(RouteNetlinkMessage::GetRoute(message), 0, |answer| {
            local |= matches!(answer, RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Local);
        });
        match answer {
            Err(refused) if matches!(refused.errno, Errno::ENETUNREACH | Errno::EHOSTUNREACH) => Ok(false),
            answer => answer.map(|()| local),
        }
    }

    fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Refused> {
        self.ask(message, flags, |_| {})
    }

    /// Sends a request and looks at what comes before its acknowledgement.
    fn ask(
        &mut self,
        request: RouteNetlinkMessage,
        flags: u16,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), Refused> {
        self.send(request, NLM_F_ACK | flags)?;
        loop {
            self.receive()?;
            for answer in Messages(&self.buffer) {
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Error(error) => return acknowledged(&error),
                    _ => {}
                }
            }
        }
    }

    fn dump(
        &mut self,
        request: RouteNetlinkMessage,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), Refused> {
        self.send(request, NLM_F_DUMP)?;
        for _ in 0..MAX_DUMP_DATAGRAMS {
            self.receive()?;
            for answer in Messages(&self.buffer) {
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => each(message),
                    NetlinkPayload::Error(error) => return acknowledged(&error),
                    NetlinkPayload::Done(_) => return Ok(()),
                    _ => {}
                }
            }
        }
        Err(Errno::EOVERFLOW.into())
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv_from(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                // Anyone on the machine may write to a netlink socket; port 0 is the kernel.
                Ok((_, from)) if from.port_number() == 0 => return Ok(()),
                Ok(_) => {}
            }
        }
    }
}

/// IP addresses of the interface `ifname` in the calling thread's namespace.
pub fn addresses(ifname: &str) -> nix::Result<Vec<IpAddr>> {
    let of_interface = getifaddrs()?.filter(|found| found.interface_name == ifname);
    let addresses = of_interface.filter_map(|found| {
        let address = found.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
    });
    Ok(addresses.collect())
}

/// Every subnet that the calling thread's network namespace has an address in or a route to, default routes
/// left out.
pub fn host_subnets() -> io::Result<Vec<IpNet>> {
    let mut subnets = Vec::new();
    let mut route = Route::open()?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut addresses = AddressMessage::default();
        addresses.header.family = family;
        let mut routes = RouteMessage::default();
        routes.header.address_family = family;
        for request in [RouteNetlinkMessage::GetAddress(addresses), RouteNetlinkMessage::GetRoute(routes)] {
            match route.dump(request, |message| subnets.extend(subnet(&message))) {
                Ok(()) => {}
                Err(refused) if is_family_missing(refused.errno) => {}
                Err(refused) => return Err(refused.errno.into()),
            }
        }
    }
    subnets.sort();
    subnets.dedup();
    Ok(subnets)
}

/// The interfaces, addresses and routes of the calling thread's network namespace, for a guest's to be modelled on.
/// A family that the kernel does not have has none.
pub fn host_network() -> io::Result<HostNetwork> {
    let mut host = HostNetwork { ephemeral: ephemeral_ports(), ..HostNetwork::default() };
    let mut route = Route::open()?;
    let links = RouteNetlinkMessage::GetLink(LinkMessage::default());
    route
        .dump(links, |message| host.interfaces.extend(interface(&message)))
        .map_err(|refused| io::Error::from(refused.errno))?;
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut addresses = AddressMessage::default();
        addresses.header.family = family;
        let mut routes = RouteMessage::default();
        routes.header.address_family = family;
        for request in [RouteNetlinkMessage::GetAddress(addresses), RouteNetlinkMessage::GetRoute(routes)] {
            match route.dump(request, |message| take_in(&mut host, &message)) {
                Ok(()) => {}
                Err(refused) if is_family_missing(refused.errno) => {}
                Err(refused) => return Err(refused.errno.into()),
            }
        }
    }
    Ok(host)
}

fn ephemeral_ports() -> Option<(u16, u16)> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The interface that is up and no loopback; without addresses yet.
fn interface(message: &RouteNetlinkMessage) -> Option<HostInterface> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    let flags = link.header.flags;
    if !flags.contains(LinkFlags::Up) || flags.contains(LinkFlags::Loopback) {
        return None;
    }
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    Some(HostInterface { index: link.header.index, name, addresses: Vec::new() })
}

fn take_in(host: &mut HostNetwork, message: &RouteNetlinkMessage) {
    match message {
        RouteNetlinkMessage::NewAddress(message) => {
            let index = message.header.index;
            let on = host.interfaces.iter_mut().find(|interface| interface.index == index);
            if let (Some(interface), Some(address)) = (on, host_address(message)) {
                interface.addresses.push(address);
            }
        }
        RouteNetlinkMessage::NewRoute(message) => host.routes.extend(host_route(message)),
        _ => {}
    }
}

/// Not a link-local one. On a point-to-point link it is the near end's (IFA_LOCAL).
fn host_address(message: &AddressMessage) -> Option<IpNet> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let address = local.or(address)?;
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if link_local { None } else { IpNet::new(address, message.header.prefix_len).ok() }
}

fn host_route(message: &RouteMessage) -> Option<HostRoute> {
    let header = &message.header;
    if header.kind != RouteType::Unicast || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::from(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::from(*address)),
        _ => None,
    };
    let everywhere: IpAddr = match header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        _ => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let (mut to, mut via, mut metric, mut interface) = (everywhere, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(destination) => to = address(destination)?,
            RouteAttribute::Gateway(gateway) => via = address(gateway),
            RouteAttribute::Priority(priority) => metric = Some(*priority),
            RouteAttribute::Oif(index) => interface = Some(*index),
            // Of several next hops the first is as good as any.
            RouteAttribute::MultiPath(hops) => {
                let hop = hops.first()?;
                interface = Some(hop.interface_index);
                via = hop.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(gateway) => address(gateway),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let destination = IpNet::new(to, header.destination_prefix_length).ok()?;
    let route = GuestRoute { destination, via, metric };
    Some(HostRoute { interface: interface?, route, of_address: header.protocol == RouteProtocol::Kernel })
}

/// Whether the kernel says by this that it has no IPv6, or has it switched off.
pub fn is_family_missing(errno: Errno) -> bool {
    matches!(errno, Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EACCES)
}

fn subnet(message: &RouteNetlinkMessage) -> Option<IpNet> {
    let net = match message {
        RouteNetlinkMessage::NewAddress(message) => {
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })?;
            IpNet::new(local, message.header.prefix_len).ok()?
        }
        RouteNetlinkMessage::NewRoute(message) => {
            if matches!(message.header.kind, RouteType::Broadcast | RouteType::Multicast) {
                return None;
            }
            let destination = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
                _ => None,
            })?;
            IpNet::new(destination, message.header.destination_prefix_length).ok()?
        }
        _ => return None,
    };
    let shortest = match net {
        IpNet::V4(_) => SHORTEST_SUBNET_V4,
        IpNet::V6(_) => SHORTEST_SUBNET_V6,
    };
    (net.prefix_len() >= shortest).then(|| net.trunc())
}

fn acknowledged(error: &ErrorMessage) -> Result<(), Refused> {
    match error.code {
        None => Ok(()),
        Some(code) => Err(Refused {
            errno: Errno::from_raw(code.get().saturating_abs()),
            reason: explanation(&error.header),
        }),
    }
}

/// The kernel's words behind the repeated header of the request.
fn explanation(answer: &[u8]) -> Option<String> {
    let attributes = answer.get(NLMSG_HEADER_BYTES..)?;
    let text = NlasIterator::new(attributes)
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(text.value());
    Some(text.trim_end_matches('\0').to_owned())
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// The messages in a datagram; those of a shape that the decoder does not know are skipped.
struct Messages<'a>(&'a [u8]);

impl Iterator for Messages<'_> {
    type Item = NetlinkMessage<RouteNetlinkMessage>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let len = usize::try_from(u32::from_ne_bytes(*self.0.first_chunk()?)).ok()?;
            if len < NLMSG_HEADER_BYTES || len > self.0.len() {
                return None;
            }
            let (message, _) = self.0.split_at(len);
            self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
            if let Ok(message) = NetlinkMessage::deserialize(message) {
                return Some(message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_the_internet_are_no_subnets() {
        let subnets: Vec<_> = ["0.0.0.0/1", "10.0.0.0/8", "2000::/3", "fc00::/7"]
            .iter()
            .filter_map(|net| subnet(&route(net.parse().expect("a prefix"))))
            .map(|net| net.to_string())
            .collect();
        assert_eq!(subnets, ["10.0.0.0/8", "fc00::/7"]);
    }

    #[test]
    fn the_kernels_words_are_kept() {
        let mut answer = vec![0; NLMSG_HEADER_BYTES];
        answer.extend(8u16.to_ne_bytes());
        answer.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        answer.extend(b"no!\0");
        assert_eq!(explanation(&answer).as_deref(), Some("no!"));
        assert_eq!(explanation(&answer[..NLMSG_HEADER_BYTES]), None);
        let refused = Refused { errno: Errno::EPERM, reason: explanation(&answer) };
        assert_eq!(refused.to_string(), "Operation not permitted (os error 1): no!");
    }

    #[test]
    fn loopback_is_local_and_other_addresses_are_not() {
        let mut route = Route::open().expect("rtnetlink answers everyone");
        let mut is_local = |address: &str| route.is_local(address.parse().expect("an address")).ok();
        assert_eq!(is_local("127.0.0.1"), Some(true));
        assert_eq!(is_local("192.0.2.1"), Some(false));
        assert_ne!(is_local("2001:db8::1"), Some(true));
    }

    #[test]
    fn the_hosts_own_subnets_can_be_listed_without_privilege() {
        let subnets = host_subnets().expect("rtnetlink answers everyone");
        assert!(subnets.iter().all(|net| *net == net.trunc()));
    }

    fn route(net: IpNet) -> RouteNetlinkMessage {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        message.header.destination_prefix_length = net.prefix_len();
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::from(net.addr()))];
        RouteNetlinkMessage::NewRoute(message)
    }
}
