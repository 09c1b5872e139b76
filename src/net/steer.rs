//! Which of several workers a guest's packet belongs to, as a pure function of the packet.
//!
//! Every worker comes to the same answer, so none has to ask another. Flows that must share a host socket share a
//! worker: all UDP of one guest port (RFC 4787 REQ-1), whatever the addresses. A TCP connection goes by its two
//! ports; as addresses do not count, a published connection that turns to the guest's other family stays where it
//! is. The sum of the ports is spread by Fibonacci hashing: ports that a kernel gives out one after another (by ones
//! or by twos) fall on all workers alike. What is rare (fragments, echo requests, neighbour discovery) goes to the
//! first worker. Whoever gets an ARP or another frame without IP answers it: that takes no state.

use smoltcp::wire::{Icmpv4Message, Icmpv6Message, IpProtocol};

use super::packet::{IPV6_HEADER_BYTES, IpPacket};
use crate::config::MAX_WORKERS;

/// 2^32 divided by the golden ratio.
const FIBONACCI: u32 = 0x9e37_79b9;
/// Type, code, checksum and four bytes more in front of what an ICMP error quotes.
const ICMP_HEADER_BYTES: usize = 8;

/// One worker's share of a network's flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    index: u16,
    count: u16,
}

impl Shard {
    /// All of a network: it has one worker.
    pub const WHOLE: Self = Self { index: 0, count: 1 };

    /// The shares of `count` workers, at least one and at most [`MAX_WORKERS`].
    pub fn all(count: usize) -> impl Iterator<Item = Self> {
        let count = u16::try_from(count).unwrap_or(MAX_WORKERS).clamp(1, MAX_WORKERS);
        (0..count).map(move |index| Self { index, count })
    }

    /// Number of its worker, from 0.
    pub fn index(self) -> usize {
        self.index.into()
    }

    /// Whether it is the one that does what is rare.
    pub fn is_first(self) -> bool {
        self.index == 0
    }

    /// This share of a network's `limit`, rounded up.
    pub fn part(self, limit: usize) -> usize {
        limit.div_ceil(self.count.into())
    }

    /// The worker of a TCP connection between these ports.
    pub fn of_tcp(self, guest: u16, remote: u16) -> usize {
        self.spread(u32::from(guest) + u32::from(remote))
    }

    /// The worker of a guest's UDP port.
    pub fn of_udp(self, guest: u16) -> usize {
        self.spread(guest.into())
    }

    /// The worker of a guest's packet.
    pub(super) fn of_packet(self, ip: &IpPacket<'_>) -> usize {
        if self.count == 1 || ip.fragment.is_some() {
            return 0;
        }
        let owner = match ip.protocol {
            IpProtocol::Tcp => ports(ip.payload()).map(|(guest, remote)| self.of_tcp(guest, remote)),
            IpProtocol::Udp => ports(ip.payload()).map(|(guest, _)| self.of_udp(guest)),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => self.of_refused(ip),
            _ => None,
        };
        owner.unwrap_or(0)
    }

    /// The worker of what the guest says it does not want.
    fn of_refused(self, ip: &IpPacket<'_>) -> Option<usize> {
        let kind = *ip.payload().first()?;
        let refuses = match ip.protocol {
            IpProtocol::Icmp => Icmpv4Message::from(kind) == Icmpv4Message::DstUnreachable,
            _ => Icmpv6Message::from(kind) == Icmpv6Message::DstUnreachable,
        };
        let quote = ip.payload().get(ICMP_HEADER_BYTES..).filter(|_| refuses)?;
        let (protocol, segment) = match quote.first()? >> 4 {
            4 => (quote.get(9)?, quote.get(usize::from(quote[0] & 0x0f) * 4..)?),
            _ => (quote.get(6)?, quote.get(IPV6_HEADER_BYTES..)?),
        };
        let (remote, guest) = ports(segment)?;
        Some(match IpProtocol::from(*protocol) {
            IpProtocol::Tcp => self.of_tcp(guest, remote),
            _ => self.of_udp(guest),
        })
    }

    fn spread(self, number: u32) -> usize {
        let hash = u64::from(number.wrapping_mul(FIBONACCI));
        ((hash * u64::from(self.count)) >> 32) as usize
    }
}

/// Source and destination port, which stand in the same place in TCP and UDP.
fn ports(segment: &[u8]) -> Option<(u16, u16)> {
    let &[s0, s1, d0, d1] = segment.first_chunk()?;
    Some((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Outbox;
    use crate::net::fixture::{self, GUEST_V4, GUEST_V6, REMOTE_V4, REMOTE_V6};
    use crate::net::packet::{IpHeader, udp_header};
    use std::net::{IpAddr, SocketAddr};

    const COUNTS: [usize; 4] = [2, 3, 4, 16];
    const ENDS: [(&str, &str); 2] = [(GUEST_V4, REMOTE_V4), (GUEST_V6, REMOTE_V6)];

    #[test]
    fn every_worker_comes_to_the_same_answer() {
        for (source, destination) in ENDS {
            let packet = fixture::udp(source, destination, b"hello");
            let ip = fixture::parse(&packet).expect("a packet");
            for count in COUNTS {
                let answers: Vec<usize> = Shard::all(count).map(|shard| shard.of_packet(&ip)).collect();
                assert_eq!(answers, vec![answers[0]; count]);
                assert!(answers[0] < count);
            }
        }
    }

    #[test]
    fn a_connection_has_one_worker_in_both_families_and_directions() {
        for shard in shards() {
            for (guest, remote) in [(40_000, 80), (80, 51_515), (65_535, 65_535), (1, 1)] {
                let expected = shard.of_tcp(guest, remote);
                for ends in ENDS {
                    let packet = tcp(ends, guest, remote);
                    assert_eq!(shard.of_packet(&fixture::parse(&packet).expect("a packet")), expected);
                }
            }
        }
    }

    #[test]
    fn a_udp_socket_has_one_worker_whatever_it_talks_to() {
        for shard in shards() {
            for destination in [REMOTE_V4, "192.0.2.1", "10.0.2.3"] {
                let packet = fixture::udp(GUEST_V4, destination, b"hello");
                assert_eq!(shard.of_packet(&fixture::parse(&packet).expect("a packet")), shard.of_udp(4000));
            }
        }
    }

    #[test]
    fn a_refusal_goes_where_what_it_quotes_came_from() {
        for shard in shards() {
            for (guest, remote) in ENDS {
                let (from, to) = (fixture::ip(remote), fixture::ip(guest));
                let header = udp_header(SocketAddr::new(from, 5000), SocketAddr::new(to, 4001), b"?");
                let to_guest = whole(from, to, IpProtocol::Udp, &header.expect("short"), b"?");
                let (kind, code, protocol) = match to.is_ipv4() {
                    true => (3, 3, IpProtocol::Icmp),
                    false => (1, 4, IpProtocol::Icmpv6),
                };
                let refusal = whole(to, from, protocol, &[kind, code, 0, 0, 0, 0, 0, 0], &to_guest);
                let ip = fixture::parse(&refusal).expect("a packet");
                assert_eq!(shard.of_packet(&ip), shard.of_udp(4001));

                let ends = [5000_u16.to_be_bytes(), 4001_u16.to_be_bytes()].concat();
                let syn = whole(from, to, IpProtocol::Tcp, &ends, &[0; 16]);
                let refusal = whole(to, from, protocol, &[kind, code, 0, 0, 0, 0, 0, 0], &syn);
                let ip = fixture::parse(&refusal).expect("a packet");
                assert_eq!(shard.of_packet(&ip), shard.of_tcp(4001, 5000));
            }
        }
    }

    #[test]
    fn the_first_worker_has_fragments_and_what_is_rare() {
        for shard in shards() {
            for (source, destination) in ENDS {
                for fragment in fixture::udp_fragments(source, destination, &[7; 4000], 1280) {
                    assert_eq!(shard.of_packet(&fixture::parse(&fragment).expect("a packet")), 0);
                }
                let (from, to) = (fixture::ip(source), fixture::ip(destination));
                for protocol in [IpProtocol::Icmp, IpProtocol::Icmpv6, IpProtocol::Ipv6NoNxt] {
                    let packet = whole(from, to, protocol, &[8, 0, 0, 0, 0, 7, 0, 1], b"");
                    assert_eq!(shard.of_packet(&fixture::parse(&packet).expect("a packet")), 0);
                }
            }
        }
    }

    #[test]
    fn ports_in_a_row_fall_on_all_workers_alike() {
        for count in COUNTS {
            let shard = Shard::all(count).next().expect("at least one");
            for step in [1, 2] {
                let mut met = vec![0usize; count];
                (0..64).for_each(|n| met[shard.of_tcp(32_768 + n * step, 443)] += 1);
                let fair = 64 / count;
                assert!(met.iter().all(|met| met.abs_diff(fair) <= 3), "{met:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn hostile_packets_have_a_worker_too() {
        let shard = Shard::all(3).last().expect("three");
        for (guest, remote) in ENDS {
            let (from, to) = (fixture::ip(remote), fixture::ip(guest));
            let quoted = fixture::udp(remote, guest, b"?");
            let protocol = if to.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
            let kind = if to.is_ipv4() { 3 } else { 1 };
            let refusal = whole(to, from, protocol, &[kind, 3, 0, 0, 0, 0, 0, 0], &quoted);
            for bytes in fixture::mutations(&refusal) {
                if let Some(ip) = fixture::parse(&bytes) {
                    assert!(shard.of_packet(&ip) < 3);
                }
            }
        }
    }

    #[test]
    fn the_parts_of_a_limit_are_all_of_it() {
        let total: usize = Shard::all(4).map(|shard| shard.part(4096)).sum();
        assert_eq!((total, Shard::WHOLE.part(7)), (4096, 7));
        assert!(Shard::all(5).all(|shard| shard.part(1) == 1), "none has nothing");
    }

    /// One of each number of workers.
    fn shards() -> impl Iterator<Item = Shard> {
        COUNTS.into_iter().filter_map(|count| Shard::all(count).last())
    }

    fn tcp((source, destination): (&str, &str), guest: u16, remote: u16) -> Vec<u8> {
        let mut header = [0; 20];
        header[..2].copy_from_slice(&guest.to_be_bytes());
        header[2..4].copy_from_slice(&remote.to_be_bytes());
        whole(fixture::ip(source), fixture::ip(destination), IpProtocol::Tcp, &header, b"")
    }

    fn whole(source: IpAddr, destination: IpAddr, protocol: IpProtocol, head: &[u8], tail: &[u8]) -> Vec<u8> {
        let mut outbox = Outbox::new();
        let ip = IpHeader { source, destination, hop_limit: 64, protocol };
        assert!(fixture::ethernet(65535).ip(&mut outbox, ip, head, tail));
        fixture::packets(&mut outbox).remove(0)
    }
}
