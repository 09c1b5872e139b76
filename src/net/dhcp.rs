//! The gateway's DHCP servers: the one IPv4 address, the one IPv6 address, and where DNS is.
//!
//! Nothing is remembered: every guest that asks is told the same addresses, for ever. So RELEASE and DECLINE
//! change nothing, and a request for anything else is refused. Relay agents' own options, prefix delegation,
//! temporary addresses and reconfiguration are not served.
//!
//! Messages are written with dhcproto, but of what a guest sent it reads only the fixed header: its option
//! decoders panic on some lengths and recurse without limit. The few that matter are taken out here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use dhcproto::{Decodable, Encodable, v4, v6};
use ipnet::Ipv4Net;

use crate::config::{Ipv4Plan, Ipv6Plan, MacAddr, Network};

/// No end of a lease (RFC 2131 section 3.3, RFC 8415 section 7.7).
const INFINITE_S: u32 = u32::MAX;
/// Length of a DHCPv4 message up to its options, the magic cookie included.
const V4_HEADER_BYTES: usize = 240;
/// Length of an Ethernet address, the one `hlen` served.
const HARDWARE_ADDRESS_BYTES: u8 = 6;
/// The longest client identifier that is echoed: that of a single option.
const MAX_CLIENT_ID_BYTES: usize = 255;
/// Length of a DHCPv6 message up to its options.
const V6_HEADER_BYTES: usize = 4;
/// The longest DUID (RFC 8415 section 11.1).
const MAX_DUID_BYTES: usize = 130;
/// Identity associations looked at in one message.
const MAX_ASSOCIATIONS: usize = 4;
/// Addresses looked at in one identity association.
const MAX_ADDRESSES: usize = 4;

/// A DHCPv4 answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyV4 {
    /// The UDP payload.
    pub payload: Vec<u8>,
    /// Where it goes: the limited broadcast address, or the guest's (RFC 2131 section 4.1). The station is the
    /// one that asked in either case, as it may not answer ARP yet.
    pub destination: SocketAddrV4,
}

/// The answer to a guest's DHCPv4 message (RFC 2131 section 4.3), from the gateway's address and port 67.
///
/// DISCOVER, REQUEST and INFORM are answered; `None` for all others, for messages to other servers, malformed
/// ones and hardware other than Ethernet.
pub fn reply_v4(network: &Network, payload: &[u8]) -> Option<ReplyV4> {
    let plan = network.ipv4.as_ref().filter(|_| network.autoconfiguration.dhcp)?;
    let header = v4::Message::from_bytes(payload.get(..V4_HEADER_BYTES)?).ok()?;
    let is_ethernet = header.htype() == v4::HType::Eth && header.hlen() == HARDWARE_ADDRESS_BYTES;
    if header.opcode() != v4::Opcode::BootRequest || !is_ethernet {
        return None;
    }
    let request = RequestV4::read(payload)?;
    let kind = request.answer(plan, header.ciaddr())?;
    let mut reply = header;
    let leases = request.kind != v4::MessageType::Inform && kind != v4::MessageType::Nak;
    reply
        .set_opcode(v4::Opcode::BootReply)
        .set_hops(0)
        .set_secs(0)
        .set_siaddr(Ipv4Addr::UNSPECIFIED)
        .set_yiaddr(if leases { plan.lease } else { Ipv4Addr::UNSPECIFIED })
        .set_opts(request.options(network, plan, kind, leases));
    reply.clear_sname();
    reply.clear_fname();
    let destination = destination_v4(&reply, kind);
    if kind != v4::MessageType::Ack {
        reply.set_ciaddr(Ipv4Addr::UNSPECIFIED);
    }
    let mut payload = reply.to_vec().ok()?;
    // BOOTP's size, below which some clients and relays drop a message (RFC 1542 section 2.1).
    payload.resize(payload.len().max(v4::MIN_PACKET_SIZE), 0);
    Some(ReplyV4 { payload, destination })
}

/// The options of a DHCPv4 message that matter.
struct RequestV4 {
    kind: v4::MessageType,
    address: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    client_id: Option<Vec<u8>>,
    rapid_commit: bool,
}

impl RequestV4 {
    fn read(payload: &[u8]) -> Option<Self> {
        let mut kind = None;
        let (mut address, mut server, mut client_id) = (None, None, None);
        let mut rapid_commit = false;
        for option in v4::borrowed::Message::new(payload).ok()?.opts() {
            let data = option.data();
            let ip = || <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
            match option.code() {
                v4::OptionCode::MessageType => kind = data.first().map(|kind| (*kind).into()),
                v4::OptionCode::RequestedIpAddress => address = ip(),
                v4::OptionCode::ServerIdentifier => server = ip(),
                v4::OptionCode::RapidCommit => rapid_commit = true,
                v4::OptionCode::ClientIdentifier if data.len() <= MAX_CLIENT_ID_BYTES => {
                    client_id = Some(data.to_vec());
                }
                _ => {}
            }
        }
        Some(Self { kind: kind?, address, server, client_id, rapid_commit })
    }

    /// RFC 2131 section 4.3, RFC 4039 section 3.
    fn answer(&self, plan: &Ipv4Plan, ciaddr: Ipv4Addr) -> Option<v4::MessageType> {
        if self.server.is_some_and(|server| server != plan.gateway) {
            return None;
        }
        match self.kind {
            v4::MessageType::Discover if self.rapid_commit => Some(v4::MessageType::Ack),
            v4::MessageType::Discover => Some(v4::MessageType::Offer),
            v4::MessageType::Request if self.address.unwrap_or(ciaddr) == plan.lease => {
                Some(v4::MessageType::Ack)
            }
            v4::MessageType::Request => Some(v4::MessageType::Nak),
            v4::MessageType::Inform => Some(v4::MessageType::Ack),
            _ => None,
        }
    }

    /// RFC 2131 table 3; the client identifier is returned (RFC 6842).
    fn options(
        self,
        network: &Network,
        plan: &Ipv4Plan,
        kind: v4::MessageType,
        leases: bool,
    ) -> v4::DhcpOptions {
        let mut options = v4::DhcpOptions::new();
        options.insert(v4::DhcpOption::MessageType(kind));
        options.insert(v4::DhcpOption::ServerIdentifier(plan.gateway));
        if self.rapid_commit && self.kind == v4::MessageType::Discover {
            options.insert(v4::DhcpOption::RapidCommit);
        }
        if let Some(client_id) = self.client_id {
            options.insert(v4::DhcpOption::ClientIdentifier(client_id));
        }
        if kind == v4::MessageType::Nak {
            return options;
        }
        options.insert(v4::DhcpOption::SubnetMask(plan.subnet.netmask()));
        options.insert(v4::DhcpOption::BroadcastAddr(plan.subnet.broadcast()));
        options.insert(v4::DhcpOption::Router(vec![plan.gateway]));
        if !plan.subnet.contains(&plan.gateway) {
            options.insert(v4::DhcpOption::ClasslessStaticRoute(routes_beyond(plan.gateway)));
        }
        let servers: Vec<Ipv4Addr> = network.advertised_servers().filter_map(of_v4).collect();
        if !servers.is_empty() {
            options.insert(v4::DhcpOption::DomainNameServer(servers));
        }
        let search = &network.advertised.search;
        if !search.is_empty() {
            // RFC 3397; compression is the sender's choice.
            let option = v4::UnknownOption::new(v4::OptionCode::DomainSearch, search.wire().to_vec());
            options.insert(v4::DhcpOption::Unknown(option));
        }
        options.insert(v4::DhcpOption::InterfaceMtu(network.mtu));
        if leases {
            options.insert(v4::DhcpOption::AddressLeaseTime(INFINITE_S));
        }
        options
    }
}

/// To a router outside the subnet, and from there to everywhere (RFC 3442).
fn routes_beyond(router: Ipv4Addr) -> Vec<(Ipv4Net, Ipv4Addr)> {
    vec![(router.into(), Ipv4Addr::UNSPECIFIED), (Ipv4Net::default(), router)]
}

fn of_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn of_v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(address),
    }
}

/// RFC 2131 section 4.1; `reply` still has the `ciaddr` of the request.
fn destination_v4(reply: &v4::Message, kind: v4::MessageType) -> SocketAddrV4 {
    if !reply.giaddr().is_unspecified() {
        return SocketAddrV4::new(reply.giaddr(), v4::SERVER_PORT);
    }
    let to = if kind == v4::MessageType::Nak {
        Ipv4Addr::BROADCAST
    } else if !reply.ciaddr().is_unspecified() {
        reply.ciaddr()
    } else if reply.flags().broadcast() || reply.yiaddr().is_unspecified() {
        Ipv4Addr::BROADCAST
    } else {
        reply.yiaddr()
    };
    SocketAddrV4::new(to, v4::CLIENT_PORT)
}

/// The UDP payload of the answer to a guest's DHCPv6 message (RFC 8415 section 18.3), to go from
/// [`super::neighbor::LINK_LOCAL`] and port 547 to the sender's port 546.
///
/// Information-Requests are told the DNS forwarder; of the identity associations for addresses in other
/// messages the first gets the guest's address. `None` without IPv6, and for messages of other kinds, to other
/// servers or against the rules of section 16.
pub fn reply_v6(network: &Network, payload: &[u8]) -> Option<Vec<u8>> {
    let plan = network.ipv6.as_ref().filter(|_| network.autoconfiguration.dhcpv6)?;
    let (header, options) = payload.split_at_checked(V6_HEADER_BYTES)?;
    let mut reply = v6::Message::from_bytes(header).ok()?;
    let request = RequestV6::read(reply.msg_type(), options)?;
    let duid = server_duid(network.gateway_mac);
    if !request.is_valid(&duid) {
        return None;
    }
    let (kind, options) = request.answer(network, plan, &duid)?;
    reply.set_msg_type(kind).set_opts(options.into_iter().collect());
    reply.to_vec().ok()
}

/// The options of a DHCPv6 message that matter.
struct RequestV6<'a> {
    kind: v6::MessageType,
    client: Option<&'a [u8]>,
    server: Option<&'a [u8]>,
    rapid_commit: bool,
    associations: Vec<Association>,
}

/// An IA_NA option.
struct Association {
    id: u32,
    addresses: Vec<Ipv6Addr>,
}

impl<'a> RequestV6<'a> {
    fn read(kind: v6::MessageType, options: &'a [u8]) -> Option<Self> {
        let mut request =
            Self { kind, client: None, server: None, rapid_commit: false, associations: Vec::new() };
        for (code, data) in OptionsV6(options) {
            match code {
                v6::OptionCode::ClientId => request.client = Some(data),
                v6::OptionCode::ServerId => request.server = Some(data),
                v6::OptionCode::RapidCommit => request.rapid_commit = true,
                v6::OptionCode::IANA if request.associations.len() < MAX_ASSOCIATIONS => {
                    request.associations.push(Association::read(data)?);
                }
                _ => {}
            }
        }
        Some(request)
    }

    /// Who must be named in which message (RFC 8415 section 16).
    fn is_valid(&self, duid: &[u8]) -> bool {
        use v6::MessageType::*;
        let is_known = self.client.is_some_and(|id| id.len() <= MAX_DUID_BYTES);
        let is_ours = self.server == Some(duid);
        match self.kind {
            Solicit | Confirm | Rebind => is_known && self.server.is_none(),
            Request | Renew | Release | Decline => is_known && is_ours,
            InformationRequest => {
                (is_known || self.client.is_none())
                    && (is_ours || self.server.is_none())
                    && self.associations.is_empty()
            }
            _ => false,
        }
    }

    fn answer(
        &self,
        network: &Network,
        plan: &Ipv6Plan,
        duid: &[u8],
    ) -> Option<(v6::MessageType, Vec<v6::DhcpOption>)> {
        use v6::MessageType::*;
        let mut options = vec![v6::DhcpOption::ServerId(duid.to_vec())];
        options.extend(self.client.map(|id| v6::DhcpOption::ClientId(id.to_vec())));
        let kind = match self.kind {
            Solicit if self.rapid_commit => {
                options.push(v6::DhcpOption::RapidCommit);
                Reply
            }
            Solicit => Advertise,
            _ => Reply,
        };
        match self.kind {
            Confirm => {
                options.push(self.on_link(plan)?);
                return Some((kind, options));
            }
            Release | Decline => {
                options.push(status(v6::Status::Success));
                return Some((kind, options));
            }
            _ => {}
        }
        options.extend(naming_v6(network));
        let answered = self.associations.iter().enumerate();
        options.extend(answered.map(|(index, association)| association.answer(plan, self.kind, index == 0)));
        Some((kind, options))
    }

    /// RFC 8415 section 18.3.3: `None` if no address was asked about.
    fn on_link(&self, plan: &Ipv6Plan) -> Option<v6::DhcpOption> {
        let mut addresses =
            self.associations.iter().flat_map(|association| &association.addresses).peekable();
        addresses.peek()?;
        let all = addresses.all(|address| plan.subnet.contains(address));
        Some(status(if all { v6::Status::Success } else { v6::Status::NotOnLink }))
    }
}

impl Association {
    /// RFC 8415 section 21.4: identifier, two times, options.
    fn read(data: &[u8]) -> Option<Self> {
        let (&[i0, i1, i2, i3, ..], options) = data.split_first_chunk::<12>()?;
        let addresses = OptionsV6(options)
            .filter(|(code, _)| *code == v6::OptionCode::IAAddr)
            .filter_map(|(_, data)| data.first_chunk::<16>().copied())
            .map(Ipv6Addr::from)
            .take(MAX_ADDRESSES)
            .collect();
        Some(Self { id: u32::from_be_bytes([i0, i1, i2, i3]), addresses })
    }

    /// The guest's address if `has_address`; addresses that the guest believes to have and has not end at once
    /// (RFC 8415 sections 18.3.4 and 18.3.5).
    fn answer(&self, plan: &Ipv6Plan, kind: v6::MessageType, has_address: bool) -> v6::DhcpOption {
        let mut options = Vec::new();
        if has_address {
            options.push(address_option(plan.guest, INFINITE_S));
        } else {
            options.push(status(v6::Status::NoAddrsAvail));
        }
        if matches!(kind, v6::MessageType::Renew | v6::MessageType::Rebind) {
            let given = has_address.then_some(plan.guest);
            let foreign = self.addresses.iter().filter(|address| Some(**address) != given);
            options.extend(foreign.map(|address| address_option(*address, 0)));
        }
        v6::DhcpOption::IANA(v6::IANA {
            id: self.id,
            t1: INFINITE_S,
            t2: INFINITE_S,
            opts: options.into_iter().collect(),
        })
    }
}

/// Options one after the other: code, length, value (RFC 8415 section 21.1). Ends at one that is cut off.
struct OptionsV6<'a>(&'a [u8]);

impl<'a> Iterator for OptionsV6<'a> {
    type Item = (v6::OptionCode, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[c0, c1, l0, l1], rest) = self.0.split_first_chunk()?;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let (data, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((u16::from_be_bytes([c0, c1]).into(), data))
    }
}

fn address_option(address: Ipv6Addr, lifetime_s: u32) -> v6::DhcpOption {
    v6::DhcpOption::IAAddr(v6::IAAddr {
        addr: address,
        preferred_life: lifetime_s,
        valid_life: lifetime_s,
        opts: v6::DhcpOptions::new(),
    })
}

fn status(status: v6::Status) -> v6::DhcpOption {
    v6::DhcpOption::StatusCode(v6::StatusCode { status, msg: String::new() })
}

/// RFC 3646.
fn naming_v6(network: &Network) -> Vec<v6::DhcpOption> {
    let servers: Vec<Ipv6Addr> = network.advertised_servers().filter_map(of_v6).collect();
    let servers = (!servers.is_empty()).then_some(v6::DhcpOption::DomainNameServers(servers));
    let search = &network.advertised.search;
    let search = (!search.is_empty()).then(|| {
        let option = v6::UnknownOption::new(v6::OptionCode::DomainSearchList, search.wire().to_vec());
        v6::DhcpOption::Unknown(option)
    });
    servers.into_iter().chain(search).collect()
}

/// DUID-LL of the gateway's Ethernet address (RFC 8415 section 11.4).
fn server_duid(MacAddr([a, b, c, d, e, f]): MacAddr) -> [u8; 10] {
    [0, 3, 0, 1, a, b, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::fixture;
    use crate::net::testing::{Bench, at};
    use crate::net::{Offload, TxOffload};
    use v4::MessageType::{Ack, Decline, Discover, Inform, Nak, Offer, Release, Request};

    const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
    const MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0, 2, 0x64];
    const DUID: [u8; 10] = [0, 3, 0, 1, 0x52, 0x55, 0x0a, 0, 2, 0x64];

    #[test]
    fn discover_and_request_bring_the_one_lease() {
        for (asks, gets) in [(message(Discover), Offer), (asking(GUEST), Ack)] {
            let (reply, to) = answer(&asks).expect("an answer");
            assert_eq!(reply.opcode(), v4::Opcode::BootReply);
            assert_eq!((reply.xid(), reply.chaddr()), (0x1234_5678, &MAC[..]));
            assert_eq!((reply.yiaddr(), reply.ciaddr()), (GUEST, Ipv4Addr::UNSPECIFIED));
            assert_eq!(to, "10.0.2.100:68");
            let expected = [
                v4::DhcpOption::MessageType(gets),
                v4::DhcpOption::ServerIdentifier(GATEWAY),
                v4::DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)),
                v4::DhcpOption::BroadcastAddr(Ipv4Addr::new(10, 0, 2, 255)),
                v4::DhcpOption::Router(vec![GATEWAY]),
                v4::DhcpOption::DomainNameServer(vec![Ipv4Addr::new(10, 0, 2, 3)]),
                v4::DhcpOption::InterfaceMtu(65520),
                v4::DhcpOption::AddressLeaseTime(u32::MAX),
            ];
            assert_eq!(*reply.opts(), expected.into_iter().collect());
        }
    }

    #[test]
    fn a_lease_may_differ_from_the_plan_and_a_server_may_be_absent() {
        let mut network = fixture::network();
        let lease = Ipv4Addr::new(10, 0, 2, 15);
        network.ipv4 = network.ipv4.map(|plan| Ipv4Plan { lease, dns: None, ..plan });
        let reply = reply_v4(&network, &encode(&asking(lease))).expect("an answer");
        let message = v4::Message::from_bytes(&reply.payload).expect("a message");
        assert_eq!(message.yiaddr(), lease);
        assert!(!message.opts().contains(v4::OptionCode::DomainNameServer));
        let without = Network { ipv4: None, ..network.clone() };
        assert!(reply_v4(&without, &encode(&asking(lease))).is_none());
        network.autoconfiguration.dhcp = false;
        assert!(reply_v4(&network, &encode(&message)).is_none());
        network.autoconfiguration.dhcpv6 = false;
        assert!(reply_v6(&network, &message_v6(11, &[])).is_none(), "an Information-Request");
    }

    #[test]
    fn a_reply_is_complete_even_where_the_link_finishes_checksums() {
        let mut bench = Bench::new();
        bench.core.ports[0].offload = Offload::ChecksumAndTso;
        bench.guest_udp("0.0.0.0:68", "255.255.255.255:67", &encode(&message(Discover)));
        assert_eq!(bench.core.outbox.front_frame().map(|(_, _, offload)| offload), Some(TxOffload::None));
        // Which verifies the checksum.
        assert_eq!(bench.got_one().udp().1, at("10.0.2.100:68"));
    }

    #[test]
    fn the_broadcast_flag_is_honoured() {
        let mut asks = message(Discover);
        asks.set_flags(v4::Flags::default().set_broadcast());
        let (reply, to) = answer(&asks).expect("an answer");
        assert!(reply.flags().broadcast());
        assert_eq!(to, "255.255.255.255:68");
    }

    #[test]
    fn another_address_is_refused_to_all_stations() {
        let other = Ipv4Addr::new(192, 168, 1, 7);
        let mut renewing = message(Request);
        renewing.set_ciaddr(other);
        for asks in [asking(other), renewing, message(Request)] {
            let (reply, to) = answer(&asks).expect("an answer");
            assert_eq!(reply.opts().msg_type(), Some(Nak));
            assert_eq!((reply.yiaddr(), reply.ciaddr()), (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
            assert!(!reply.opts().contains(v4::OptionCode::AddressLeaseTime));
            assert_eq!(to, "255.255.255.255:68");
        }
    }

    #[test]
    fn a_renewal_is_confirmed_to_the_address_itself() {
        let mut asks = message(Request);
        asks.set_ciaddr(GUEST).set_flags(v4::Flags::default().set_broadcast());
        let (reply, to) = answer(&asks).expect("an answer");
        assert_eq!(reply.opts().msg_type(), Some(Ack));
        assert_eq!((reply.yiaddr(), reply.ciaddr()), (GUEST, GUEST));
        assert_eq!(to, "10.0.2.100:68");
    }

    #[test]
    fn inform_is_told_everything_but_a_lease() {
        let own = Ipv4Addr::new(10, 0, 2, 77);
        let mut asks = message(Inform);
        asks.set_ciaddr(own);
        let (reply, to) = answer(&asks).expect("an answer");
        assert_eq!(reply.opts().msg_type(), Some(Ack));
        assert_eq!((reply.yiaddr(), reply.ciaddr()), (Ipv4Addr::UNSPECIFIED, own));
        assert!(reply.opts().contains(v4::OptionCode::DomainNameServer));
        assert!(!reply.opts().contains(v4::OptionCode::AddressLeaseTime));
        assert_eq!(to, "10.0.2.77:68");
    }

    #[test]
    fn a_relay_gets_the_answer_on_its_server_port() {
        let mut asks = message(Discover);
        asks.set_giaddr(Ipv4Addr::new(10, 0, 2, 9)).set_hops(1);
        let (reply, to) = answer(&asks).expect("an answer");
        assert_eq!((reply.giaddr(), reply.hops()), (Ipv4Addr::new(10, 0, 2, 9), 0));
        assert_eq!(to, "10.0.2.9:67");
    }

    #[test]
    fn the_client_identifier_is_returned_and_bounded() {
        for (len, returned) in [(7, true), (255, true), (256, false), (3000, false)] {
            let mut asks = message(Discover);
            asks.opts_mut().insert(v4::DhcpOption::ClientIdentifier(vec![1; len]));
            let (reply, _) = answer(&asks).expect("an answer");
            assert_eq!(reply.opts().contains(v4::OptionCode::ClientIdentifier), returned);
            let bytes = reply_v4(&fixture::network(), &encode(&asks)).expect("an answer").payload;
            assert!((300..=548).contains(&bytes.len()), "{}", bytes.len());
        }
    }

    #[test]
    fn what_is_not_for_us_stays_unanswered() {
        let mut elsewhere = asking(GUEST);
        elsewhere.opts_mut().insert(v4::DhcpOption::ServerIdentifier(Ipv4Addr::new(10, 0, 2, 9)));
        let mut reply = message(Discover);
        reply.set_opcode(v4::Opcode::BootReply);
        let mut token_ring = message(Discover);
        token_ring.set_htype(v4::HType::IEEE802);
        let mut bootp = message(Discover);
        bootp.set_opts(v4::DhcpOptions::new());
        for asks in [message(Release), message(Decline), message(Offer), elsewhere, reply, token_ring, bootp]
        {
            assert_eq!(answer(&asks), None);
        }
        let mut no_cookie = encode(&message(Discover));
        no_cookie[236] = 0;
        assert_eq!(reply_v4(&fixture::network(), &no_cookie), None);
    }

    #[test]
    fn inputs_that_break_the_librarys_decoder_are_harmless() {
        let mut long_hardware_address = encode(&message(Discover));
        long_hardware_address[2] = 255;
        assert_eq!(reply_v4(&fixture::network(), &long_hardware_address), None);
        for empty_option in [80, 81, 94, 151, 152] {
            let mut bytes = encode(&message(Discover));
            bytes.pop();
            bytes.extend([empty_option, 0, empty_option, 1, 9, 255]);
            assert!(reply_v4(&fixture::network(), &bytes).is_some());
        }
        let mut deep = Vec::new();
        for _ in 0..5000 {
            let mut outer = vec![0, 4, 0, 0, 0, 0, 0, 0];
            let len = u16::try_from(4 + deep.len()).expect("a length");
            outer[2..4].copy_from_slice(&len.to_be_bytes());
            outer.extend(&deep);
            deep = outer;
        }
        assert!(reply_v6(&fixture::network(), &message_v6(11, &[(4, &deep)])).is_some());
        assert!(
            reply_v6(&fixture::network(), &message_v6(11, &[(13, &[]), (16, &[]), (17, &[0; 3])])).is_some()
        );
    }

    #[test]
    fn information_request_is_told_the_forwarder() {
        let (kind, options) = answer_v6(&message_v6(11, &[])).expect("an answer");
        assert_eq!(kind, v6::MessageType::Reply);
        assert_eq!(options.get(v6::OptionCode::DomainNameServers), Some(&forwarder()));
        assert_eq!(
            options.get(v6::OptionCode::ServerId),
            Some(&v6::DhcpOption::ServerId(server_duid(MacAddr::GATEWAY).to_vec()))
        );
        assert_eq!(options.get(v6::OptionCode::ClientId), None);
    }

    #[test]
    fn solicit_and_request_bring_the_one_address() {
        use v6::MessageType::{Advertise, Reply};
        let solicit = message_v6(1, &[(1, &DUID), (3, &association(7, &[]))]);
        let rapid = message_v6(1, &[(1, &DUID), (3, &association(7, &[])), (14, &[])]);
        let request =
            message_v6(3, &[(1, &DUID), (2, &server_duid(MacAddr::GATEWAY)), (3, &association(7, &[]))]);
        let rebind = message_v6(6, &[(1, &DUID), (3, &association(7, &["fd00::100"]))]);
        for (bytes, expected) in [(solicit, Advertise), (rapid, Reply), (request, Reply), (rebind, Reply)] {
            let (kind, options) = answer_v6(&bytes).expect("an answer");
            assert_eq!(kind, expected);
            assert_eq!(options.get(v6::OptionCode::ClientId), Some(&v6::DhcpOption::ClientId(DUID.to_vec())));
            assert_eq!(options.get(v6::OptionCode::DomainNameServers), Some(&forwarder()));
            assert_eq!(options.get(v6::OptionCode::IANA), Some(&leased(7, &[("fd00::100", u32::MAX)])));
        }
    }

    #[test]
    fn foreign_addresses_end_at_renewal() {
        let asked = association(7, &["fd00::100", "2001:db8::1"]);
        let renew = message_v6(5, &[(1, &DUID), (2, &server_duid(MacAddr::GATEWAY)), (3, &asked)]);
        let (_, options) = answer_v6(&renew).expect("an answer");
        let expected = leased(7, &[("fd00::100", u32::MAX), ("2001:db8::1", 0)]);
        assert_eq!(options.get(v6::OptionCode::IANA), Some(&expected));
    }

    #[test]
    fn only_one_association_has_the_address() {
        let many = association(7, &[]);
        let solicit =
            message_v6(1, &[(1, &DUID), (3, &many), (3, &many), (3, &many), (3, &many), (3, &many)]);
        let (_, options) = answer_v6(&solicit).expect("an answer");
        let answers = options.get_all(v6::OptionCode::IANA).expect("associations");
        assert_eq!(answers.len(), MAX_ASSOCIATIONS);
        let with_address = answers.iter().filter(|answer| **answer == leased(7, &[("fd00::100", u32::MAX)]));
        assert_eq!(with_address.count(), 1);
    }

    #[test]
    fn a_discovery_that_allows_it_brings_the_lease_at_once() {
        let mut asks = message(Discover);
        asks.opts_mut().insert(v4::DhcpOption::RapidCommit);
        let (reply, _) = answer(&asks).expect("an answer");
        assert_eq!((reply.opts().msg_type(), reply.yiaddr()), (Some(Ack), GUEST));
        assert!(reply.opts().contains(v4::OptionCode::RapidCommit));
        asks.opts_mut().insert(v4::DhcpOption::MessageType(Inform));
        let (reply, _) = answer(&asks).expect("an answer");
        assert!(!reply.opts().contains(v4::OptionCode::RapidCommit));
    }

    #[test]
    fn the_way_to_a_gateway_outside_the_subnet_is_told() {
        let mut network = fixture::network();
        let told = |network: &Network| {
            let reply = reply_v4(network, &encode(&message(Discover))).expect("an answer");
            let message = v4::Message::from_bytes(&reply.payload).expect("a message");
            message.opts().get(v4::OptionCode::ClasslessStaticRoute).cloned()
        };
        assert_eq!(told(&network), None);
        let router = Ipv4Addr::new(192, 0, 2, 1);
        network.ipv4.as_mut().expect("IPv4").gateway = router;
        let routes = vec![
            ("192.0.2.1/32".parse().expect("a network"), Ipv4Addr::UNSPECIFIED),
            ("0.0.0.0/0".parse().expect("a network"), router),
        ];
        assert_eq!(told(&network), Some(v4::DhcpOption::ClasslessStaticRoute(routes)));
    }

    #[test]
    fn servers_and_domains_are_told_as_they_are_given() {
        let mut network = fixture::network();
        network.advertised.servers = Some(["192.0.2.53", "2001:db8::53"].map(fixture::ip).to_vec());
        network.advertised.search.push("example.org").expect("a domain");
        let wire = b"\x07example\x03org\0";
        let reply = reply_v4(&network, &encode(&message(Discover))).expect("an answer");
        let with_search = [&[119, 13][..], wire].concat();
        assert!(reply.payload.windows(15).any(|bytes| bytes == with_search), "{:?}", reply.payload);
        let reply = v4::Message::from_bytes(&reply.payload).expect("a message");
        let servers = v4::DhcpOption::DomainNameServer(vec![[192, 0, 2, 53].into()]);
        assert_eq!(reply.opts().get(v4::OptionCode::DomainNameServer), Some(&servers));
        let reply = reply_v6(&network, &message_v6(11, &[])).expect("an answer");
        let with_search = [&[0, 24, 0, 13][..], wire].concat();
        assert!(reply.windows(17).any(|bytes| bytes == with_search), "{reply:?}");
        let reply = v6::Message::from_bytes(&reply).expect("a message");
        let servers = v6::DhcpOption::DomainNameServers(vec![v6_address("2001:db8::53")]);
        assert_eq!(reply.opts().get(v6::OptionCode::DomainNameServers), Some(&servers));
    }

    #[test]
    fn confirm_says_whether_addresses_fit_the_link() {
        let table = [
            (&["fd00::100"][..], Some(v6::Status::Success)),
            (&["fd00::100", "2001:db8::1"], Some(v6::Status::NotOnLink)),
            (&[], None),
        ];
        for (addresses, expected) in table {
            let confirm = message_v6(4, &[(1, &DUID), (3, &association(7, addresses))]);
            let said =
                answer_v6(&confirm).map(|(_, options)| options.get(v6::OptionCode::StatusCode).cloned());
            assert_eq!(said, expected.map(|expected| Some(status(expected))));
        }
    }

    #[test]
    fn messages_against_the_rules_are_discarded() {
        let (ours, theirs) = (server_duid(MacAddr::GATEWAY), [0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
        let long = [0; MAX_DUID_BYTES + 1];
        let discarded: [&[u8]; 10] = [
            &message_v6(1, &[]),
            &message_v6(1, &[(1, &long)]),
            &message_v6(1, &[(1, &DUID), (2, &ours)]),
            &message_v6(3, &[(1, &DUID)]),
            &message_v6(3, &[(1, &DUID), (2, &theirs)]),
            &message_v6(3, &[(2, &ours)]),
            &message_v6(11, &[(2, &theirs)]),
            &message_v6(11, &[(3, &association(7, &[]))]),
            &message_v6(12, &[(1, &DUID)]),
            &message_v6(7, &[(1, &DUID), (2, &ours)]),
        ];
        for bytes in discarded {
            assert_eq!(answer_v6(bytes), None, "{bytes:?}");
        }
        let mut network = fixture::network();
        network.ipv6 = None;
        assert_eq!(reply_v6(&network, &message_v6(11, &[])), None);
    }

    #[test]
    fn hostile_messages_do_no_harm() {
        let network = fixture::network();
        let mut v4 = asking(GUEST);
        v4.opts_mut().insert(v4::DhcpOption::ClientIdentifier(MAC.to_vec()));
        for bytes in fixture::mutations(&encode(&v4)) {
            reply_v4(&network, &bytes);
        }
        let v6 = message_v6(
            5,
            &[(1, &DUID), (2, &server_duid(MacAddr::GATEWAY)), (3, &association(7, &["fd00::9"]))],
        );
        for bytes in fixture::mutations(&v6) {
            reply_v6(&network, &bytes);
        }
    }

    fn message(kind: v4::MessageType) -> v4::Message {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = v4::Message::new_with_id(0x1234_5678, none, none, none, none, &MAC);
        message.opts_mut().insert(v4::DhcpOption::MessageType(kind));
        message
    }

    fn asking(address: Ipv4Addr) -> v4::Message {
        let mut message = message(Request);
        message.opts_mut().insert(v4::DhcpOption::RequestedIpAddress(address));
        message.opts_mut().insert(v4::DhcpOption::ServerIdentifier(GATEWAY));
        message
    }

    fn encode(message: &v4::Message) -> Vec<u8> {
        message.to_vec().expect("a message")
    }

    fn answer(asks: &v4::Message) -> Option<(v4::Message, String)> {
        let reply = reply_v4(&fixture::network(), &encode(asks))?;
        let message = v4::Message::from_bytes(&reply.payload).expect("a message");
        Some((message, reply.destination.to_string()))
    }

    fn message_v6(kind: u8, options: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![kind, 1, 2, 3];
        for (code, data) in options {
            bytes.extend(code.to_be_bytes());
            bytes.extend(u16::try_from(data.len()).expect("a length").to_be_bytes());
            bytes.extend(*data);
        }
        bytes
    }

    fn association(id: u32, addresses: &[&str]) -> Vec<u8> {
        let opts = addresses.iter().map(|address| address_option(v6_address(address), 60)).collect();
        let ia = v6::DhcpOption::IANA(v6::IANA { id, t1: 0, t2: 0, opts });
        ia.to_vec().expect("an option").split_off(4)
    }

    fn leased(id: u32, addresses: &[(&str, u32)]) -> v6::DhcpOption {
        let opts = addresses.iter().map(|(address, lifetime)| address_option(v6_address(address), *lifetime));
        v6::DhcpOption::IANA(v6::IANA { id, t1: u32::MAX, t2: u32::MAX, opts: opts.collect() })
    }

    fn forwarder() -> v6::DhcpOption {
        v6::DhcpOption::DomainNameServers(vec![v6_address("fd00::3")])
    }

    fn v6_address(text: &str) -> Ipv6Addr {
        text.parse().expect("an address")
    }

    fn answer_v6(bytes: &[u8]) -> Option<(v6::MessageType, v6::DhcpOptions)> {
        let reply = reply_v6(&fixture::network(), bytes)?;
        let message = v6::Message::from_bytes(&reply).expect("a message");
        assert_eq!(message.xid(), [1, 2, 3]);
        Some((message.msg_type(), message.opts().clone()))
    }
}
