//! Fragments from guests become whole packets again.
//!
//! Overlapping or contradicting fragments condemn their datagram until its time is up (RFC 5722, applied to IPv4
//! too); exact duplicates are harmless (RFC 8200 section 4.5). Options and extension headers in front of the
//! fragment header are not kept. The whole must fit the length field of its IP header.
//!
//! At most [`MAX_DATAGRAMS`] are gathered at a time, in one buffer of 64 KiB each (4 MiB in all); one more pushes
//! the oldest out, as a guest that loses fragments on its side must not stop those that follow.

use std::net::IpAddr;

use etherparse::defrag::{IpDefragBuf, IpFragRange};
use etherparse::{IpFragOffset, IpNumber};
use smoltcp::wire::{IpProtocol, Ipv4Packet};

use super::packet::{Fragment, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, IpHeader, IpPacket};
use super::{DropReason, Duration, Instant, PortId};

/// Datagrams being gathered at a time.
pub const MAX_DATAGRAMS: usize = 64;
/// Time from a datagram's first fragment to its last. RFC 8200 section 4.5 gives 60 s and RFC 1122 section 3.3.2 60
/// to 120 s, for networks that delay fragments; these come from the guest's link, at once or never.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Fragments of one datagram that wait for a neighbour. The kernel sends them in order, so this many holes
/// are no accident.
const MAX_HOLES: usize = 64;
/// What the length field of an IP header can say: of the packet in IPv4, of its payload in IPv6.
const MAX_LENGTH_BYTES: usize = 65_535;
/// Buffers kept for later datagrams.
const MAX_SPARE_BUFFERS: usize = 8;

/// Which fragments belong together (RFC 791 section 3.2, RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    port: PortId,
    source: IpAddr,
    destination: IpAddr,
    ident: u32,
    /// Only IPv4 tells datagrams of different protocols apart.
    protocol: Option<IpProtocol>,
}

struct Gathering {
    key: Key,
    deadline: Instant,
    /// `None` once condemned.
    parts: Option<Parts>,
}

struct Parts {
    buffer: IpDefragBuf,
    /// Of the first fragment, once that has come.
    hop_limit: u8,
}

/// Datagrams of which some fragments have come, oldest first.
#[derive(Default)]
pub struct Reassembly {
    gathering: Vec<Gathering>,
    spare: Vec<(Vec<u8>, Vec<IpFragRange>)>,
    given_up: u64,
}

/// A packet made of its fragments, under a plain IP header.
#[derive(Debug)]
pub struct Whole {
    bytes: Vec<u8>,
    sections: Vec<IpFragRange>,
    /// All but `bytes`.
    parsed: IpPacket<'static>,
}

impl Whole {
    /// The packet: one header whose lengths, flags and checksum are right, and the joined payload.
    pub fn packet(&self) -> IpPacket<'_> {
        IpPacket { bytes: &self.bytes, ..self.parsed }
    }
}

impl Reassembly {
    /// Gathers nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fragment; the whole, if it was the last one missing. Give it back with [`Self::recycle`].
    ///
    /// Errors: `Malformed` if `ip` is no fragment, or its whole no packet; `Fragment` if it contradicts earlier
    /// ones, has an impossible length or belongs to a condemned datagram.
    pub fn add(
        &mut self,
        now: Instant,
        port: PortId,
        ip: &IpPacket<'_>,
    ) -> Result<Option<Whole>, DropReason> {
        let fragment = ip.fragment.ok_or(DropReason::Malformed)?;
        self.expire(now);
        let key = Key {
            port,
            source: ip.source,
            destination: ip.destination,
            ident: fragment.ident,
            protocol: ip.source.is_ipv4().then_some(ip.protocol),
        };
        let index = match self.gathering.iter().position(|gathering| gathering.key == key) {
            Some(index) => index,
            None => self.begin(now, key, ip.protocol),
        };
        let mut parts = self.gathering[index].parts.take().ok_or(DropReason::Fragment)?;
        match parts.add(fragment, ip) {
            Err(reason) => {
                self.keep(parts.buffer.take_bufs());
                Err(reason)
            }
            Ok(()) if parts.buffer.is_complete() => {
                self.gathering.remove(index);
                self.join(key, parts).map(Some)
            }
            Ok(()) => {
                self.gathering[index].parts = Some(parts);
                Ok(None)
            }
        }
    }

    /// Gives up datagrams whose time is over.
    pub fn expire(&mut self, now: Instant) {
        let over = self.gathering.partition_point(|gathering| gathering.deadline <= now);
        for _ in 0..over {
            self.give_up_oldest();
        }
    }

    /// When [`Self::expire`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.gathering.first().map(|gathering| gathering.deadline)
    }

    /// Datagrams given up so far: out of time (the condemned among them) or pushed out by later ones.
    pub fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Takes a buffer back for later datagrams.
    pub fn recycle(&mut self, whole: Whole) {
        self.keep((whole.bytes, whole.sections));
    }

    fn begin(&mut self, now: Instant, key: Key, protocol: IpProtocol) -> usize {
        if self.gathering.len() >= MAX_DATAGRAMS {
            self.give_up_oldest();
        }
        // All of a fresh buffer is written once: IpDefragBuf extends into capacity without doing so.
        let (bytes, sections) =
            self.spare.pop().unwrap_or_else(|| (vec![0; IPV6_HEADER_BYTES + MAX_LENGTH_BYTES], Vec::new()));
        self.gathering.push(Gathering {
            key,
            deadline: now + TIMEOUT,
            parts: Some(Parts {
                buffer: IpDefragBuf::new(IpNumber(protocol.into()), bytes, sections),
                hop_limit: 0,
            }),
        });
        self.gathering.len() - 1
    }

    fn give_up_oldest(&mut self) {
        self.given_up += 1;
        if let Some(parts) = self.gathering.remove(0).parts {
            self.keep(parts.buffer.take_bufs());
        }
    }

    fn keep(&mut self, buffers: (Vec<u8>, Vec<IpFragRange>)) {
        if self.spare.len() < MAX_SPARE_BUFFERS {
            self.spare.push(buffers);
        }
    }

    fn join(&mut self, key: Key, parts: Parts) -> Result<Whole, DropReason> {
        let protocol = IpProtocol::from(parts.buffer.ip_number().0);
        let (mut bytes, sections) = parts.buffer.take_bufs();
        let header = IpHeader {
            source: key.source,
            destination: key.destination,
            hop_limit: parts.hop_limit,
            protocol,
        };
        let payload = bytes.len();
        bytes.resize(header.bytes() + payload, 0);
        bytes.copy_within(..payload, header.bytes());
        header.emit(&mut bytes, None);
        if key.source.is_ipv4() {
            allow_fragmentation(&mut bytes, key.ident);
        }
        match parse(&bytes) {
            Ok(parsed) => Ok(Whole { bytes, sections, parsed }),
            Err(reason) => {
                self.keep((bytes, sections));
                Err(reason)
            }
        }
    }
}

impl Parts {
    fn add(&mut self, fragment: Fragment, ip: &IpPacket<'_>) -> Result<(), DropReason> {
        let payload = ip.payload();
        let start = usize::from(fragment.offset_bytes);
        let end = start + payload.len();
        let counted_header = if ip.source.is_ipv4() { IPV4_HEADER_BYTES } else { 0 };
        if payload.is_empty() || counted_header + end > MAX_LENGTH_BYTES {
            return Err(DropReason::Fragment);
        }
        if self.is_duplicate(start, payload) {
            return Ok(());
        }
        let sections = self.buffer.sections();
        let overlaps = |part: &IpFragRange| start < usize::from(part.end) && usize::from(part.start) < end;
        let is_behind_the_end = !fragment.more && sections.iter().any(|part| usize::from(part.end) > end);
        if sections.iter().any(overlaps) || is_behind_the_end || sections.len() >= MAX_HOLES {
            return Err(DropReason::Fragment);
        }
        let offset = IpFragOffset::try_new(fragment.offset_bytes / 8).map_err(|_| DropReason::Fragment)?;
        self.buffer.add(offset, fragment.more, payload).map_err(|_| DropReason::Fragment)?;
        if start == 0 {
            self.hop_limit = ip.hop_limit;
        }
        Ok(())
    }

    /// Whether all of `payload` has come before, with the same bytes.
    fn is_duplicate(&self, start: usize, payload: &[u8]) -> bool {
        let end = start + payload.len();
        let within = |part: &IpFragRange| usize::from(part.start) <= start && end <= usize::from(part.end);
        self.buffer.sections().iter().any(within) && self.buffer.data()[start..end] == *payload
    }
}

/// A fragmented packet was one that may be: Don't Fragment off, the identification kept.
fn allow_fragmentation(bytes: &mut [u8], ident: u32) {
    let mut header = Ipv4Packet::new_unchecked(bytes);
    header.set_dont_frag(false);
    header.set_ident(ident as u16);
    header.fill_checksum();
}

/// The packet without its bytes.
fn parse(bytes: &[u8]) -> Result<IpPacket<'static>, DropReason> {
    let ip = match bytes[0] >> 4 {
        4 => IpPacket::parse_v4(bytes)?,
        _ => IpPacket::parse_v6(bytes)?,
    };
    // A fragment header inside the whole would make it a fragment again.
    if ip.fragment.is_some() {
        return Err(DropReason::Fragment);
    }
    Ok(IpPacket {
        source: ip.source,
        destination: ip.destination,
        hop_limit: ip.hop_limit,
        dont_fragment: ip.dont_fragment,
        protocol: ip.protocol,
        fragment: None,
        bytes: &[],
        header_bytes: ip.header_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::fixture::{self, Datagram, GUEST_V4, GUEST_V6, REMOTE_V4, REMOTE_V6, Random};

    const ENDS: [(&str, &str); 2] = [(GUEST_V4, REMOTE_V4), (GUEST_V6, REMOTE_V6)];

    #[test]
    fn fragments_in_any_order_become_the_packet() {
        let mut random = Random(1);
        for (source, destination) in ENDS {
            for round in 0..50 {
                let payload = pattern(random.below(20_000) + 2000);
                let mut fragments = fixture::udp_fragments(source, destination, &payload, 1280);
                shuffle(&mut fragments, &mut random);
                let mut reassembly = Reassembly::new();
                let whole = feed(&mut reassembly, &fragments).expect("a whole");
                assert_whole(&whole, source, destination, &payload);
                assert_eq!(reassembly.next_deadline(), None, "round {round}");
                reassembly.recycle(whole);
            }
        }
    }

    #[test]
    fn the_whole_looks_as_if_it_had_never_been_cut() {
        let fragments = fixture::udp_fragments(GUEST_V4, REMOTE_V4, &pattern(3000), 1500);
        let whole = feed(&mut Reassembly::new(), &fragments).expect("a whole");
        let ip = fixture::parse(whole.packet().bytes).expect("a valid header");
        assert_eq!((ip.fragment, ip.dont_fragment, ip.hop_limit), (None, false, 64));
        assert_eq!(ip.protocol, IpProtocol::Udp);
        assert_eq!(ip.bytes.len(), 20 + 8 + 3000);
        assert_eq!(whole.packet().header_bytes, 20);
    }

    #[test]
    fn extension_headers_behind_the_fragment_header_are_walked() {
        let plain = fixture::udp(GUEST_V6, REMOTE_V6, &pattern(100));
        let mut options = vec![17, 0, 1, 4, 0, 0, 0, 0];
        options.extend(&plain[40..]);
        let fragments =
            [v6_fragment(60, 0, true, &options[..64]), v6_fragment(60, 64, false, &options[64..])];
        let whole = feed(&mut Reassembly::new(), &fragments).expect("a whole");
        assert_eq!(whole.packet().protocol, IpProtocol::Udp);
        assert_eq!(whole.packet().payload(), &plain[40..]);
        assert!(whole.packet().transport_checksum_is_valid());
    }

    #[test]
    fn interleaved_datagrams_keep_apart() {
        let mut reassembly = Reassembly::new();
        let one = fixture::udp_fragments(GUEST_V4, REMOTE_V4, &pattern(4000), 1500);
        let two = fixture::udp_fragments(GUEST_V4, REMOTE_V4, &pattern(4001), 1500);
        let six = fixture::udp_fragments(GUEST_V6, REMOTE_V6, &pattern(4000), 1500);
        let mixed = [&one[0], &six[1], &two[0], &one[1], &two[2], &six[0], &one[2], &two[1], &six[2]];
        let wholes: Vec<Whole> = mixed.iter().filter_map(|bytes| add(&mut reassembly, bytes).ok()?).collect();
        assert_eq!(wholes.len(), 3);
        assert_whole(&wholes[1], GUEST_V4, REMOTE_V4, &pattern(4001));
    }

    #[test]
    fn the_same_fragment_on_another_port_is_another_datagram() {
        let fragments = fixture::udp_fragments(GUEST_V4, REMOTE_V4, &pattern(2000), 1500);
        let mut reassembly = Reassembly::new();
        for port in [PortId(0), PortId(1)] {
            let ip = fixture::parse(&fragments[0]).expect("a packet");
            assert!(matches!(reassembly.add(Instant::ZERO, port, &ip), Ok(None)));
        }
        assert!(matches!(add(&mut reassembly, &fragments[1]), Ok(Some(_))));
        assert!(reassembly.next_deadline().is_some());
    }

    #[test]
    fn an_exact_duplicate_does_no_harm() {
        for (source, destination) in ENDS {
            let fragments = fixture::udp_fragments(source, destination, &pattern(4000), 1500);
            let twice = [&fragments[0], &fragments[0], &fragments[2], &fragments[2], &fragments[1]];
            let mut reassembly = Reassembly::new();
            let last = twice.map(|bytes| add(&mut reassembly, bytes)).into_iter().last();
            let whole = last.expect("a result").expect("no drop").expect("a whole");
            assert_whole(&whole, source, destination, &pattern(4000));
        }
    }

    #[test]
    fn an_overlap_condemns_the_datagram() {
        let bytes = pattern(64);
        let mut reassembly = Reassembly::new();
        assert!(matches!(add(&mut reassembly, &v6_fragment(17, 0, true, &bytes[..32])), Ok(None)));
        let overlap = v6_fragment(17, 24, true, &bytes[..16]);
        assert_eq!(add(&mut reassembly, &overlap).err(), Some(DropReason::Fragment));
        let rest = v6_fragment(17, 32, false, &bytes[32..]);
        assert_eq!(add(&mut reassembly, &rest).err(), Some(DropReason::Fragment));
        reassembly.expire(Instant::ZERO + TIMEOUT);
        assert_eq!((reassembly.given_up(), reassembly.next_deadline()), (1, None));
    }

    #[test]
    fn contradicting_ends_and_odd_lengths_are_refused() {
        let bytes = pattern(64);
        let refused = [
            [v6_fragment(17, 0, true, &bytes[..40]), v6_fragment(17, 16, false, &bytes[..8])],
            [v6_fragment(17, 40, true, &bytes[..8]), v6_fragment(17, 8, false, &bytes[..8])],
            [v6_fragment(17, 8, false, &bytes[..8]), v6_fragment(17, 16, true, &bytes[..8])],
            [v6_fragment(17, 8, false, &bytes[..8]), v6_fragment(17, 24, false, &bytes[..8])],
            [v6_fragment(17, 8, true, &bytes[..8]), v6_fragment(17, 24, true, &bytes[..7])],
            [v6_fragment(17, 8, true, &bytes[..8]), v6_fragment(17, 24, false, &[])],
        ];
        for [first, second] in refused {
            let mut reassembly = Reassembly::new();
            assert!(matches!(add(&mut reassembly, &first), Ok(None)));
            assert_eq!(add(&mut reassembly, &second).err(), Some(DropReason::Fragment));
        }
    }

    #[test]
    fn nothing_grows_beyond_the_length_field() {
        let mut reassembly = Reassembly::new();
        let at_the_end = v6_fragment(17, 65_528, false, &pattern(7));
        assert!(matches!(add(&mut reassembly, &at_the_end), Ok(None)));
        let beyond = v6_fragment(17, 65_528, false, &pattern(8));
        assert_eq!(add(&mut Reassembly::new(), &beyond).err(), Some(DropReason::Fragment));
        let mut v4 = fixture::udp_fragments(GUEST_V4, REMOTE_V4, &pattern(65_507), 1500).remove(44);
        let header_counts = add(&mut reassembly, &v4);
        assert!(matches!(header_counts, Ok(None)));
        set_v4_offset(&mut v4, 65_520 / 8);
        assert_eq!(add(&mut reassembly, &v4).err(), Some(DropReason::Fragment));
    }

    #[test]
    fn time_ends_the_wait() {
        let fragments = fixture::udp_fragments(GUEST_V4, REMOTE_V4, &pattern(2000), 1500);
        let mut reassembly = Reassembly::new();
        assert!(matches!(add(&mut reassembly, &fragments[0]), Ok(None)));
        let deadline = reassembly.next_deadline().expect("a deadline");
        assert_eq!(deadline, Instant::ZERO + TIMEOUT);
        reassembly.expire(deadline - Duration::from_millis(1));
        assert_eq!(reassembly.given_up(), 0);
        let ip = fixture::parse(&fragments[1]).expect("a packet");
        assert!(matches!(reassembly.add(deadline, PortId(0), &ip), Ok(None)));
        assert_eq!(reassembly.given_up(), 1);
    }

    #[test]
    fn a_flood_of_first_fragments_stays_bounded_and_stops_nobody() {
        let mut reassembly = Reassembly::new();
        for ident in 0..10_000u32 {
            let mut first = v6_fragment(17, 0, true, &pattern(8));
            first[44..48].copy_from_slice(&ident.to_be_bytes());
            assert!(matches!(add(&mut reassembly, &first), Ok(None)));
            assert!(reassembly.gathering.len() <= MAX_DATAGRAMS);
            assert!(reassembly.spare.len() <= MAX_SPARE_BUFFERS);
        }
        assert_eq!(reassembly.given_up(), 10_000 - MAX_DATAGRAMS as u64);
        let fragments = fixture::udp_fragments(GUEST_V4, REMOTE_V4, &pattern(2000), 1500);
        assert!(feed(&mut reassembly, &fragments).is_some());
    }

    #[test]
    fn many_holes_are_refused() {
        let mut reassembly = Reassembly::new();
        let results =
            (0..200).map(|n| add(&mut reassembly, &v6_fragment(17, 16 * n, true, &pattern(8))).is_ok());
        assert_eq!(results.filter(|is_ok| *is_ok).count(), MAX_HOLES);
    }

    #[test]
    fn a_packet_that_is_whole_is_refused() {
        let whole = fixture::udp(GUEST_V4, REMOTE_V4, b"hello");
        assert_eq!(add(&mut Reassembly::new(), &whole).err(), Some(DropReason::Malformed));
    }

    #[test]
    fn a_fragment_within_fragments_is_refused() {
        let inner = v6_fragment(17, 8, true, &pattern(64));
        let outer = [v6_fragment(44, 0, true, &inner[40..80]), v6_fragment(44, 40, false, &inner[80..])];
        let mut reassembly = Reassembly::new();
        assert!(matches!(add(&mut reassembly, &outer[0]), Ok(None)));
        assert_eq!(add(&mut reassembly, &outer[1]).err(), Some(DropReason::Fragment));
    }

    #[test]
    fn buffers_are_used_again() {
        let mut reassembly = Reassembly::new();
        let fragments = fixture::udp_fragments(GUEST_V6, REMOTE_V6, &pattern(60_000), 1500);
        let whole = feed(&mut reassembly, &fragments).expect("a whole");
        let (address, capacity) = (whole.bytes.as_ptr(), whole.bytes.capacity());
        reassembly.recycle(whole);
        let whole = feed(&mut reassembly, &fragments).expect("a whole");
        assert_eq!((whole.bytes.as_ptr(), whole.bytes.capacity()), (address, capacity));
    }

    #[test]
    fn random_fragments_never_panic_and_never_join_wrongly() {
        let bytes = pattern(512);
        let mut random = Random(7);
        let mut reassembly = Reassembly::new();
        for step in 0..100_000 {
            let (start, len) = (random.below(32) * 8, random.below(64));
            let mut fragment = v6_fragment(17, start, random.below(3) > 0, &bytes[start..start + len]);
            fragment[47] = random.below(90) as u8;
            let ip = fixture::parse(&fragment).expect("a packet");
            let now = Instant::from_millis(step * 50);
            if let Ok(Some(whole)) = reassembly.add(now, PortId(0), &ip) {
                assert!(bytes.starts_with(whole.packet().payload()));
                reassembly.recycle(whole);
            }
        }
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
    }

    fn shuffle(fragments: &mut [Datagram], random: &mut Random) {
        for at in (1..fragments.len()).rev() {
            fragments.swap(at, random.below(at + 1));
        }
    }

    fn add(reassembly: &mut Reassembly, bytes: &[u8]) -> Result<Option<Whole>, DropReason> {
        let ip = fixture::parse(bytes).expect("a packet");
        reassembly.add(Instant::ZERO, PortId(0), &ip)
    }

    /// Feeds all; only the last may complete.
    fn feed(reassembly: &mut Reassembly, fragments: &[Datagram]) -> Option<Whole> {
        let (last, before) = fragments.split_last()?;
        for bytes in before {
            assert!(matches!(add(reassembly, bytes), Ok(None)));
        }
        add(reassembly, last).expect("no drop")
    }

    fn assert_whole(whole: &Whole, source: &str, destination: &str, payload: &[u8]) {
        let ip = whole.packet();
        assert_eq!((ip.source, ip.destination), (fixture::ip(source), fixture::ip(destination)));
        assert!(ip.transport_checksum_is_valid());
        assert!(ip.payload()[8..] == *payload);
    }

    /// An IPv6 fragment of guest and remote with identification 0.
    fn v6_fragment(next: u8, offset: usize, more: bool, part: &[u8]) -> Datagram {
        let header = IpHeader {
            source: fixture::ip(GUEST_V6),
            destination: fixture::ip(REMOTE_V6),
            hop_limit: 64,
            protocol: IpProtocol::from(next),
        };
        let fragment = Fragment { ident: 0, offset_bytes: u16::try_from(offset).expect("an offset"), more };
        let mut bytes = vec![0; 48];
        bytes.extend(part);
        header.emit(&mut bytes, Some(fragment));
        bytes
    }

    fn set_v4_offset(bytes: &mut [u8], units: u16) {
        bytes[6..8].copy_from_slice(&units.to_be_bytes());
        Ipv4Packet::new_unchecked(bytes).fill_checksum();
    }
}
