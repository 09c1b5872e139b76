//! Names of guests, as the DNS forwarder answers for them.
//!
//! A guest has names of its own, of which the first holder keeps each, and names that several may have and that lead to
//! all of them. Each is also known below the network's domain, for which nobody else is asked. Names are compared
//! without regard to case (RFC 4343). Answers are not to be kept: their lifetime is 0.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{PortId, policy};
use crate::config::Network;

/// Names that one guest can have.
pub const MAX_NAMES: usize = 64;
/// Longest name (RFC 1035 section 2.3.4), as it is written.
const MAX_NAME_BYTES: usize = 253;
/// Length of a message's header (RFC 1035 section 4.1.1).
const HEADER_BYTES: usize = 12;
/// Longest answer over UDP without EDNS (RFC 1035 section 4.2.1).
const MAX_ANSWER_BYTES: usize = 512;
/// Type and class (RFC 1035 section 3.2; RFC 3596 section 2.1).
const TYPE_A: u16 = 1;
const TYPE_PTR: u16 = 12;
const TYPE_AAAA: u16 = 28;
const TYPE_ANY: u16 = 255;
const CLASS_IN: u16 = 1;
/// "No such name" (RFC 1035 section 4.1.1).
const NAME_ERROR: u8 = 3;
/// What is no question about a name is nobody's business outside of an internal network.
const REFUSED: u8 = 5;
/// Bits of the header's third and fourth octets.
const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const AUTHORITATIVE: u8 = 0x04;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;

/// Who is called what.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Lower case.
    holders: HashMap<String, Vec<Holder>>,
    /// Names given so far.
    given: u64,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    port: PortId,
    /// Nobody else may have the name.
    alone: bool,
    /// How many names were given before.
    order: u64,
}

impl Names {
    /// Gives `name` to the guest on `port`; `alone`: to nobody else. `false` if somebody has it who keeps it.
    pub(super) fn give(&mut self, name: &str, port: PortId, alone: bool) -> bool {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return false;
        }
        let holders = self.holders.entry(name.to_ascii_lowercase()).or_default();
        let is_kept = holders.iter().any(|holder| holder.port != port && (holder.alone || alone));
        if !is_kept && !holders.iter().any(|holder| holder.port == port) {
            holders.push(Holder { port, alone, order: self.given });
            self.given += 1;
        }
        !is_kept
    }

    /// The guest on `port` has left.
    pub(super) fn forget(&mut self, port: PortId) {
        self.holders.retain(|_, holders| {
            holders.retain(|holder| holder.port != port);
            !holders.is_empty()
        });
    }

    /// The first name that the guest on `port` was given, one that it has alone if there is any.
    fn name_of(&self, port: PortId) -> Option<&str> {
        let held = self.holders.iter().filter_map(|(name, holders)| {
            let holder = holders.iter().find(|holder| holder.port == port)?;
            Some((!holder.alone, holder.order, name.as_str()))
        });
        held.min().map(|(.., name)| name)
    }
}

/// What can be said about a name.
enum Known {
    /// Type and data of its records of the type that was asked for.
    Records(Vec<(u16, Vec<u8>)>),
    /// It would stand here if there were one.
    Missing,
    /// Others may know it.
    Elsewhere,
}

impl Names {
    /// The response to `query`, whose one question ends at `question_end`; `None` if others are to be asked. `addresses`
    /// are those of the guest on a port.
    pub(super) fn answer(
        &self,
        query: &[u8],
        question_end: usize,
        network: &Network,
        addresses: impl Fn(PortId) -> Addresses,
    ) -> Option<Vec<u8>> {
        let domain = network.domain.as_deref()?;
        let Some(question) = Question::parse(query, question_end) else {
            return network.internal.then(|| response(query, question_end, REFUSED, &[]));
        };
        let known = match question.reversed() {
            Some(address) if policy::is_local(network, address) => {
                self.name_at(&question, address, domain, &addresses)
            }
            Some(_) => Known::Elsewhere,
            None => self.records(&question, domain, &addresses),
        };
        match known {
            Known::Records(records) => Some(response(query, question_end, 0, &records)),
            Known::Elsewhere if !network.internal => None,
            Known::Missing | Known::Elsewhere => Some(response(query, question_end, NAME_ERROR, &[])),
        }
    }

    fn records(&self, question: &Question, domain: &str, addresses: impl Fn(PortId) -> Addresses) -> Known {
        let below = question.name.strip_suffix(domain).and_then(|rest| rest.strip_suffix('.'));
        match self.holders.get(below.unwrap_or(&question.name)) {
            Some(holders) => {
                let records = holders.iter().map(|holder| addresses(holder.port)).flat_map(|addresses| {
                    let v4 = addresses.0.map(|v4| (TYPE_A, v4.octets().to_vec()));
                    let v6 = addresses.1.map(|v6| (TYPE_AAAA, v6.octets().to_vec()));
                    [v4, v6].into_iter().flatten()
                });
                Known::Records(records.filter(|(kind, _)| question.wants(*kind)).collect())
            }
            None if below.is_some() => Known::Missing,
            None => Known::Elsewhere,
        }
    }

    /// What an address is called.
    fn name_at(
        &self,
        question: &Question,
        address: IpAddr,
        domain: &str,
        addresses: impl Fn(PortId) -> Addresses,
    ) -> Known {
        let has = |port: PortId| {
            let (v4, v6) = addresses(port);
            let own = [v4.map(IpAddr::from), v6.map(IpAddr::from)];
            own.contains(&Some(address))
        };
        let ports = self.holders.values().flatten().map(|holder| holder.port);
        let name = ports.into_iter().find(|port| has(*port)).and_then(|port| self.name_of(port));
        match name.and_then(|name| encode(&format!("{name}.{domain}"))) {
            Some(name) if question.wants(TYPE_PTR) => Known::Records(vec![(TYPE_PTR, name)]),
            Some(_) => Known::Records(Vec::new()),
            None => Known::Missing,
        }
    }
}

/// A guest's.
type Addresses = (Option<Ipv4Addr>, Option<Ipv6Addr>);

/// The question of a query.
struct Question {
    /// Lower case, with dots between its labels and none behind.
    name: String,
    kind: u16,
}

impl Question {
    /// `None` for what is no question about a name of the internet's class.
    fn parse(query: &[u8], end: usize) -> Option<Self> {
        let question = query.get(HEADER_BYTES..end)?;
        let (mut labels, &[k0, k1, c0, c1]) = question.split_last_chunk::<4>()?;
        if u16::from_be_bytes([c0, c1]) != CLASS_IN || query[2] & OPCODE != 0 {
            return None;
        }
        let mut name = String::new();
        while let [len, rest @ ..] = labels
            && *len > 0
        {
            let (label, rest) = rest.split_at_checked(usize::from(*len))?;
            if !name.is_empty() {
                name.push('.');
            }
            name.push_str(str::from_utf8(label).ok().filter(|label| !label.contains('.'))?);
            labels = rest;
        }
        Some(Self { name: name.to_ascii_lowercase(), kind: u16::from_be_bytes([k0, k1]) })
    }

    fn wants(&self, kind: u16) -> bool {
        [kind, TYPE_ANY].contains(&self.kind)
    }

    /// The address whose name is asked for (RFC 1035 section 3.5, RFC 3596 section 2.5).
    fn reversed(&self) -> Option<IpAddr> {
        if let Some(octets) = self.name.strip_suffix(".in-addr.arpa") {
            let octets: Vec<u8> =
                octets.rsplit('.').map(|octet| octet.parse().ok()).collect::<Option<_>>()?;
            return <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
        }
        let digits = self.name.strip_suffix(".ip6.arpa")?.rsplit('.');
        let digit = |text: &str| u8::from_str_radix(text, 16).ok().filter(|_| text.len() == 1);
        let digits: Vec<u8> = digits.map(digit).collect::<Option<_>>()?;
        let octets: Vec<u8> =
            digits.chunks(2).map(|pair| pair.iter().fold(0, |sum, digit| sum << 4 | digit)).collect();
        <[u8; 16]>::try_from(octets).ok().filter(|_| digits.len() == 32).map(IpAddr::from)
    }
}

/// A name as it stands in messages; `None` for one that cannot.
fn encode(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..=63).contains(len))?;
        bytes.push(len);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    Some(bytes)
}

/// An authoritative response about the question's name, with as many records as fit.
fn response(query: &[u8], question_end: usize, code: u8, records: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut response = query[..question_end].to_vec();
    let mut count: u16 = 0;
    for (kind, data) in records {
        // A pointer to the question's name, the type, the class, the lifetime, and the length of the data.
        let [k0, k1] = kind.to_be_bytes();
        let [l0, l1] = (data.len() as u16).to_be_bytes();
        let head = [0xc0, HEADER_BYTES as u8, k0, k1, 0, CLASS_IN as u8, 0, 0, 0, 0, l0, l1];
        if response.len() + head.len() + data.len() > MAX_ANSWER_BYTES {
            break;
        }
        response.extend(head);
        response.extend(data);
        count += 1;
    }
    response[2] = RESPONSE | AUTHORITATIVE | response[2] & RECURSION_DESIRED;
    response[3] = RECURSION_AVAILABLE | code;
    response[6..HEADER_BYTES].fill(0);
    response[6..8].copy_from_slice(&count.to_be_bytes());
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::fixture;

    #[test]
    fn a_name_leads_to_its_guest_in_both_families() {
        let names = names();
        assert_eq!(ask(&names, "web", TYPE_A), Some((0, vec![vec![10, 0, 2, 5]])));
        assert_eq!(ask(&names, "WEB.Net1", TYPE_A), Some((0, vec![vec![10, 0, 2, 5]])));
        let v6 = |last| fixture::ip(&format!("fd00::{last}"));
        let IpAddr::V6(five) = v6(5) else { panic!("an IPv6 address") };
        assert_eq!(ask(&names, "web", TYPE_AAAA), Some((0, vec![five.octets().to_vec()])));
        assert_eq!(ask(&names, "web", 15), Some((0, Vec::new())), "it has no mail exchanger");
    }

    #[test]
    fn others_are_asked_for_what_is_not_the_networks() {
        let names = names();
        for name in ["example.org", "web.example.org", "net1", "webnet1", "5.2.0.192.in-addr.arpa"] {
            assert_eq!(ask(&names, name, TYPE_A), None, "{name}");
        }
        assert_eq!(ask(&names, "nobody.net1", TYPE_A), Some((NAME_ERROR, Vec::new())));
        assert_eq!(ask(&names, "9.2.0.10.in-addr.arpa", TYPE_PTR), Some((NAME_ERROR, Vec::new())));
    }

    #[test]
    fn nobody_is_asked_by_an_internal_network() {
        let mut network = network();
        network.internal = true;
        let asked = ask_in(&network, &names(), "example.org", TYPE_A);
        assert_eq!(asked, Some((NAME_ERROR, Vec::new())));
        let mut update = query("example.org", TYPE_A);
        update[2] |= 5 << 3;
        let refused = names().answer(&update, update.len(), &network, addresses).expect("an answer");
        assert_eq!(refused[3] & 0xf, REFUSED);
        let empty = [0; HEADER_BYTES];
        assert!(names().answer(&empty, HEADER_BYTES, &network, addresses).is_some());
    }

    #[test]
    fn an_address_leads_back_to_the_name() {
        let expected = Some((0, vec![b"\x03web\x04net1\0".to_vec()]));
        assert_eq!(ask(&names(), "5.2.0.10.in-addr.arpa", TYPE_PTR), expected);
        let nibbles = format!("5.{}0.0.d.f.ip6.arpa", "0.".repeat(27));
        assert_eq!(ask(&names(), &nibbles, TYPE_PTR), expected);
    }

    #[test]
    fn the_first_holder_keeps_a_name_and_several_share_an_alias() {
        let mut names = names();
        assert!(!names.give("web", PortId(6), true) && !names.give("Web", PortId(6), false));
        assert!(names.give("web", PortId(5), false), "it is its own");
        assert!(names.give("all", PortId(6), false));
        assert!(!names.give("all", PortId(7), true));
        assert_eq!(ask(&names, "all", TYPE_A).map(|(_, answers)| answers.len()), Some(2));
        names.forget(PortId(5));
        assert!(names.give("web", PortId(6), true));
        assert_eq!(ask(&names, "web", TYPE_A), Some((0, vec![vec![10, 0, 2, 6]])));
    }

    #[test]
    fn an_answer_stays_within_a_datagram() {
        let mut names = Names::default();
        for port in 1..200 {
            assert!(names.give("all", PortId(port), false));
        }
        let (_, answers) = ask(&names, "all", TYPE_A).expect("known");
        assert_eq!(answers.len(), 30);
    }

    #[test]
    fn no_query_makes_it_fall() {
        let (names, network) = (names(), network());
        let whole = query("a.b.net1", TYPE_ANY);
        for mutated in fixture::mutations(&whole) {
            for end in [0, HEADER_BYTES, mutated.len().min(20), mutated.len()] {
                let _ = names.answer(&mutated, end, &network, addresses);
            }
        }
    }

    fn names() -> Names {
        let mut names = Names::default();
        assert!(names.give("web", PortId(5), true) && names.give("all", PortId(5), false));
        names
    }

    fn network() -> Network {
        Network { domain: Some("net1".to_owned()), ..fixture::network() }
    }

    fn addresses(PortId(port): PortId) -> Addresses {
        let v6 = Ipv6Addr::from(0xfd00 << 112 | u128::from(port));
        (Some(Ipv4Addr::from(0x0a00_0200 | u32::from(port))), Some(v6))
    }

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        query.extend(encode(name).expect("a name"));
        query.extend([kind.to_be_bytes(), CLASS_IN.to_be_bytes()].concat());
        query
    }

    /// Code and data of the records of the response.
    fn ask(names: &Names, name: &str, kind: u16) -> Option<(u8, Vec<Vec<u8>>)> {
        ask_in(&network(), names, name, kind)
    }

    fn ask_in(network: &Network, names: &Names, name: &str, kind: u16) -> Option<(u8, Vec<Vec<u8>>)> {
        let query = query(name, kind);
        let response = names.answer(&query, query.len(), network, addresses)?;
        assert_eq!((&response[..2], &response[4..6]), (&query[..2], &query[4..6]));
        let mut rest = &response[query.len()..];
        let mut data = Vec::new();
        while let Some((head, tail)) = rest.split_first_chunk::<12>() {
            let (one, tail) = tail.split_at(usize::from(u16::from_be_bytes([head[10], head[11]])));
            data.push(one.to_vec());
            rest = tail;
        }
        assert_eq!(usize::from(u16::from_be_bytes([response[6], response[7]])), data.len());
        Some((response[3] & 0xf, data))
    }
}
