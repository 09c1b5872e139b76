//! The DNS forwarder that guests find at the network's DNS addresses: UDP queries and the choice of servers.
//!
//! A query goes to one of the host's servers from a socket of its own, and on to the next when that does not
//! answer, fails or declines; the server that answered last is asked first from then on. Messages pass as they
//! are (EDNS included): nothing is cached. An answer counts only from a server that
//! was asked, with the query's identifier and question (RFC 5452 section 9).
//! Only what guests are called is answered here (`names`).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::gateway::{Core, Flow, FromGuest};
use super::{
    DropReason, Duration, Family, FlowId, HostError, HostOp, IcmpError, PortId, Release, icmp, nat, udp,
};
use crate::config::{MAX_DNS_SERVERS, MacAddr};

/// Where servers listen.
const PORT: u16 = 53;
/// How long one server is waited for.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a query waits for the host's list of servers to be read when none is known.
const LIST_TIMEOUT: Duration = Duration::from_millis(50);
/// How often the whole list is gone through.
const ROUNDS: usize = 2;
/// Queries being answered; they are kept whole.
const MAX_IN_FLIGHT: usize = 1024;
/// Largest query; even a signed update stays far below it.
const MAX_QUERY_BYTES: usize = 4096;
/// Length of a message's header (RFC 1035 section 4.1.1).
const HEADER_BYTES: usize = 12;
/// Longest name (RFC 1035 section 3.1).
const MAX_NAME_BYTES: usize = 255;

/// The host's servers and the queries on their way to them.
#[derive(Debug, Default)]
pub(super) struct Forwarder {
    servers: Vec<SocketAddr>,
    /// Which of them answered last.
    preferred: usize,
    in_flight: HashMap<QueryKey, FlowId>,
}

/// Which query of which guest socket: a repetition is answered by the answer to the first.
type QueryKey = (PortId, SocketAddr, [u8; 2]);

/// A query being answered.
#[derive(Debug)]
pub(super) struct DnsFlow {
    pub(super) port: PortId,
    mac: MacAddr,
    guest: SocketAddr,
    /// The forwarder as the guest addressed it.
    forwarder: SocketAddr,
    query: Query,
    /// The server that the first attempt was for.
    first: usize,
    /// Number of the attempt to make next.
    attempt: usize,
    /// Family of the host socket, if there is one.
    socket: Option<Family>,
    /// Servers that were asked through it.
    asked: Vec<SocketAddr>,
}

impl DnsFlow {
    fn key(&self) -> QueryKey {
        (self.port, self.guest, self.query.id())
    }

    fn was_asked(&self, server: SocketAddr) -> bool {
        self.asked.iter().any(|asked| is_same(*asked, server))
    }

    fn is_waiting_for(&self, server: SocketAddr) -> bool {
        self.asked.last().is_some_and(|asked| is_same(*asked, server))
    }
}

/// Equality without IPv6's scope and flow label, which the host may fill in.
fn is_same(a: SocketAddr, b: SocketAddr) -> bool {
    (a.ip(), a.port()) == (b.ip(), b.port())
}

/// A message that asks.
#[derive(Debug)]
struct Query {
    bytes: Box<[u8]>,
    /// Where the question section ends.
    question_end: usize,
}

impl Query {
    /// `None` unless it is a query with at most one well-formed question (RFC 9619).
    fn parse(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let is_response = header[2] & 0x80 != 0;
        let question_end = match u16::from_be_bytes([header[4], header[5]]) {
            _ if is_response => return None,
            0 => HEADER_BYTES,
            1 => question_end(bytes)?,
            _ => return None,
        };
        Some(Self { bytes: bytes.into(), question_end })
    }

    fn id(&self) -> [u8; 2] {
        [self.bytes[0], self.bytes[1]]
    }

    /// Number of questions and the questions.
    fn question(&self) -> (&[u8], &[u8]) {
        (&self.bytes[4..6], &self.bytes[HEADER_BYTES..self.question_end])
    }

    /// Whether `message` is a response to it.
    fn is_answered_by(&self, message: &[u8]) -> bool {
        let (count, question) = self.question();
        message.len() >= self.question_end
            && message[..2] == self.id()
            && message[2] & 0x80 != 0
            && message[4..6] == *count
            && message[HEADER_BYTES..self.question_end] == *question
    }

    /// The response that says that no server could be reached.
    fn server_failure(&self) -> Box<[u8]> {
        let mut response: Box<[u8]> = self.bytes[..self.question_end].into();
        // QR; the opcode and "recursion desired" stay. Then "recursion available" and the code.
        response[2] = 0x80 | response[2] & 0x79;
        response[3] = 0x80 | Rcode::SERVER_FAILURE;
        response[6..HEADER_BYTES].fill(0);
        response
    }
}

/// Where the one question ends: a name without compression, type and class.
fn question_end(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        let label = usize::from(*bytes.get(at)?);
        at += 1 + label;
        if label > 63 || at - HEADER_BYTES > MAX_NAME_BYTES {
            return None;
        }
        if label == 0 {
            let end = at + 4;
            return (end <= bytes.len()).then_some(end);
        }
    }
}

/// Response codes (RFC 1035 section 4.1.1).
struct Rcode;

impl Rcode {
    const SERVER_FAILURE: u8 = 2;
    const NOT_IMPLEMENTED: u8 = 4;
    const REFUSED: u8 = 5;

    /// Whether a resolver would rather ask another server than take this response.
    fn is_declined(message: &[u8]) -> bool {
        matches!(message[3] & 0x0f, Self::SERVER_FAILURE | Self::NOT_IMPLEMENTED | Self::REFUSED)
    }
}

impl Forwarder {
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    fn server(&self, first: usize, attempt: usize) -> Option<SocketAddr> {
        if attempt >= ROUNDS * self.servers.len() {
            return None;
        }
        Some(self.servers[(first + attempt) % self.servers.len()])
    }
}

/// The server for the `attempt`th attempt (from 0) of a new exchange; `None` when it is time to give up.
pub(super) fn server(core: &Core, attempt: usize) -> Option<SocketAddr> {
    core.dns.server(core.dns.preferred, attempt)
}

/// Another port of the server that is asked first. The list is read again meanwhile, if it has changed.
pub(super) fn server_at(core: &mut Core, port: u16) -> Option<SocketAddr> {
    core.outbox.op(HostOp::RefreshResolvers);
    server(core, 0).map(|server| SocketAddr::new(server.ip(), port))
}

/// `server` has answered: it is asked first from now on.
pub(super) fn answered(core: &mut Core, server: SocketAddr) {
    let known = core.dns.servers.iter().position(|known| is_same(*known, server));
    core.dns.preferred = known.unwrap_or(core.dns.preferred);
}

/// Replaces the list of servers, most preferred first. Queries in flight start anew with it.
pub(super) fn set_resolvers(core: &mut Core, servers: &[IpAddr]) {
    let port_53 = |ip: &IpAddr| SocketAddr::new(*ip, PORT);
    let servers: Vec<SocketAddr> = servers.iter().take(MAX_DNS_SERVERS).map(port_53).collect();
    if servers == core.dns.servers {
        return;
    }
    if core.shard.is_first() {
        tracing::info!(?servers, "DNS servers");
    }
    core.dns.servers = servers;
    core.dns.preferred = 0;
    for id in core.dns.in_flight.values() {
        if let Some(Flow::Dns(flow)) = core.table.get_mut(*id) {
            (flow.first, flow.attempt) = (0, 0);
            core.table.set_deadline(*id, Some(core.now));
        }
    }
}

/// A datagram that `guest` sent to port 53 of the forwarder.
pub(super) fn from_guest(core: &mut Core, packet: &FromGuest<'_>, guest: SocketAddr, payload: &[u8]) {
    if payload.len() > MAX_QUERY_BYTES {
        return core.counters.drop(DropReason::Limit);
    }
    let Some(query) = Query::parse(payload) else {
        return core.counters.drop(DropReason::Malformed);
    };
    let forwarder = SocketAddr::new(packet.ip.destination, PORT);
    if let Some(answer) = core.answer_name(&query.bytes, query.question_end) {
        return udp::deliver(core, (packet.port, packet.mac, guest), forwarder, icmp::HOP_LIMIT, &answer);
    }
    let flow = DnsFlow {
        port: packet.port,
        mac: packet.mac,
        guest,
        forwarder,
        query,
        first: core.dns.preferred,
        attempt: 0,
        socket: None,
        asked: Vec::new(),
    };
    if core.dns.in_flight.contains_key(&flow.key()) {
        return;
    }
    if core.dns.in_flight.len() >= core.shard.part(MAX_IN_FLIGHT) {
        return core.counters.drop(DropReason::Limit);
    }
    core.outbox.op(HostOp::RefreshResolvers);
    if core.dns.servers.is_empty() {
        keep(core, flow, LIST_TIMEOUT);
    } else {
        ask_anew(core, flow);
    }
}

/// Puts a query into the table, where it wants attention after `timeout`. `None` if the table is full.
fn keep(core: &mut Core, flow: DnsFlow, timeout: Duration) -> Option<FlowId> {
    let key = flow.key();
    let Some(id) = core.table.insert(None, Flow::Dns(Box::new(flow))) else {
        core.counters.drop(DropReason::Limit);
        return None;
    };
    core.dns.in_flight.insert(key, id);
    core.table.set_deadline(id, Some(core.now + timeout));
    Some(id)
}

/// Asks the next server through a new socket.
fn ask_anew(core: &mut Core, mut flow: DnsFlow) {
    let Some(server) = core.dns.server(flow.first, flow.attempt) else {
        return answer_failure(core, &flow);
    };
    let family = Family::of(server.ip());
    flow.socket = Some(family);
    flow.asked.clear();
    if let Some(id) = keep(core, flow, ATTEMPT_TIMEOUT) {
        core.outbox.op(HostOp::OpenUdp { flow: id, family, to_loopback: server.ip().is_loopback() });
        send(core, id, server);
    }
}

fn send(core: &mut Core, id: FlowId, server: SocketAddr) {
    let Some(Flow::Dns(flow)) = core.table.get_mut(id) else {
        return;
    };
    flow.attempt += 1;
    flow.asked.push(server);
    let payload = core.outbox.store(&flow.query.bytes);
    core.outbox.op(HostOp::Send { flow: id, to: server, hop_limit: icmp::HOP_LIMIT, payload });
    core.table.set_deadline(id, Some(core.now + ATTEMPT_TIMEOUT));
}

/// Asks the next server; through the same socket where the family allows it, so that a late answer still counts.
fn ask_next(core: &mut Core, id: FlowId) {
    let Some(Flow::Dns(flow)) = core.table.get(id) else {
        return;
    };
    let next = core.dns.server(flow.first, flow.attempt);
    match next {
        Some(server) if flow.socket == Some(Family::of(server.ip())) => send(core, id, server),
        _ => {
            if let Some(flow) = finish(core, id) {
                ask_anew(core, flow);
            }
        }
    }
}

/// Takes a query out and releases its socket.
fn finish(core: &mut Core, id: FlowId) -> Option<DnsFlow> {
    let Some(Flow::Dns(flow)) = core.table.remove(id) else {
        return None;
    };
    core.dns.in_flight.remove(&flow.key());
    if flow.socket.is_some() {
        core.outbox.op(HostOp::Release { flow: id, how: Release::Close });
    }
    Some(*flow)
}

fn answer(core: &mut Core, flow: &DnsFlow, message: &[u8]) {
    let guest = (flow.port, flow.mac, flow.guest);
    udp::deliver(core, guest, flow.forwarder, icmp::HOP_LIMIT, message);
}

fn answer_failure(core: &mut Core, flow: &DnsFlow) {
    tracing::debug!(guest = %flow.guest, servers = core.dns.servers.len(), "no DNS server answers");
    answer(core, flow, &flow.query.server_failure());
}

/// A datagram on a query's socket.
pub(super) fn from_host(core: &mut Core, id: FlowId, from: SocketAddr, payload: &[u8]) {
    let Some(Flow::Dns(flow)) = core.table.get(id) else {
        return core.counters.drop(DropReason::NoFlow);
    };
    if !flow.was_asked(from) || !flow.query.is_answered_by(payload) {
        return core.counters.drop(DropReason::NoFlow);
    }
    let others_remain = flow.attempt < core.dns.servers.len();
    if Rcode::is_declined(payload) && others_remain {
        if flow.is_waiting_for(from) {
            ask_next(core, id);
        }
        return;
    }
    if !Rcode::is_declined(payload) {
        answered(core, from);
    }
    if let Some(flow) = finish(core, id) {
        answer(core, &flow, payload);
    }
}

/// The socket for a query could not be opened.
pub(super) fn open_failed(core: &mut Core, id: FlowId, error: HostError) {
    let Some(Flow::Dns(flow)) = core.table.get_mut(id) else {
        return;
    };
    let family = flow.socket.take();
    if let Some(family) = family {
        nat::log_open_failed(core, family, error);
    }
    ask_next(core, id);
}

/// A query met an ICMP error.
pub(super) fn failed(core: &mut Core, id: FlowId, error: IcmpError) {
    match core.table.get(id) {
        Some(Flow::Dns(flow)) if flow.is_waiting_for(error.to) => ask_next(core, id),
        _ => core.counters.drop(DropReason::NoFlow),
    }
}

/// The link of a query is gone.
pub(super) fn cut(core: &mut Core, id: FlowId) {
    finish(core, id);
}

/// The server that was asked last has not answered in time, or the list of servers has changed.
pub(super) fn expire(core: &mut Core, id: FlowId) {
    ask_next(core, id);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::fixture;
    use crate::net::testing::{Bench, Sent, at};

    const GUEST: &str = "10.0.2.100:4000";
    const FORWARDER: &str = "10.0.2.3:53";
    const FIRST: &str = "192.0.2.1";
    const SECOND: &str = "127.0.0.53";
    const SIXTH: &str = "2001:db8::53";

    #[test]
    fn an_answer_comes_from_the_forwarder_unchanged() {
        for (guest, forwarder, server) in [
            (GUEST, FORWARDER, FIRST),
            (GUEST, FORWARDER, SIXTH),
            ("[fd00::100]:4000", "[fd00::3]:53", SECOND),
        ] {
            let mut bench = resolving(&[server]);
            bench.guest_udp(guest, forwarder, &query(1));
            let sent = bench.sent_one();
            assert_eq!((sent.to.ip(), sent.payload.clone()), (fixture::ip(server), query(1)));
            let answer = response(&sent, 0, 3000);
            from_host(&mut bench.core, sent.flow, sent.to, &answer);
            assert_eq!(bench.got_one().udp(), (at(forwarder), at(guest), &answer[..]));
            assert!(matches!(bench.ops()[..], [HostOp::Release { .. }]));
            bench.assert_empty();
        }
    }

    #[test]
    fn the_list_is_refreshed_before_the_query_is_sent() {
        let mut bench = resolving(&[FIRST]);
        bench.guest_udp(GUEST, FORWARDER, &query(1));
        let ops = bench.ops();
        assert_eq!(ops[0], HostOp::RefreshResolvers);
        assert!(matches!(ops[1..], [HostOp::OpenUdp { .. }, HostOp::Send { .. }]));
    }

    #[test]
    fn spoofed_answers_are_ignored() {
        let mut bench = resolving(&[FIRST]);
        bench.guest_udp(GUEST, FORWARDER, &query(1));
        let sent = bench.sent_one();
        let right = response(&sent, 0, 100);
        let changed = |at: usize| {
            let mut wrong = right.clone();
            wrong[at] ^= 0x80;
            wrong
        };
        from_host(&mut bench.core, sent.flow, at("192.0.2.9:53"), &right);
        from_host(&mut bench.core, sent.flow, at("192.0.2.1:54"), &right);
        for wrong in [changed(0), changed(1), changed(2), changed(5), changed(14), right[..20].to_vec()] {
            from_host(&mut bench.core, sent.flow, sent.to, &wrong);
        }
        assert!(bench.got().is_empty());
        from_host(&mut bench.core, sent.flow, sent.to, &right);
        assert_eq!(bench.got_one().udp().2, right);
    }

    #[test]
    fn silent_servers_are_passed_over_and_the_one_that_answers_is_kept() {
        let mut bench = resolving(&[FIRST, SECOND]);
        bench.guest_udp(GUEST, FORWARDER, &query(1));
        assert_eq!(bench.sent_one().to.ip(), fixture::ip(FIRST));
        bench.wait(2);
        let sent = bench.sent_one();
        assert_eq!(sent.to.ip(), fixture::ip(SECOND));
        from_host(&mut bench.core, sent.flow, sent.to, &response(&sent, 0, 100));
        bench.got_one();
        bench.ops();
        bench.guest_udp(GUEST, FORWARDER, &query(2));
        assert_eq!(bench.sent_one().to.ip(), fixture::ip(SECOND));
        assert_eq!(server(&bench.core, 0), Some(sent.to));
        assert_eq!(server(&bench.core, 1).map(|server| server.ip()), Some(fixture::ip(FIRST)));
        assert_eq!(server(&bench.core, 4), None);
    }

    #[test]
    fn a_late_answer_still_counts() {
        let mut bench = resolving(&[FIRST, SECOND]);
        bench.guest_udp(GUEST, FORWARDER, &query(1));
        let first = bench.sent_one();
        bench.wait(2);
        bench.sent_one();
        from_host(&mut bench.core, first.flow, first.to, &response(&first, 0, 100));
        assert_eq!(bench.got_one().udp().0, at(FORWARDER));
    }

    #[test]
    fn two_rounds_without_an_answer_end_in_server_failure() {
        let mut bench = resolving(&[FIRST, SIXTH]);
        bench.guest_udp(GUEST, FORWARDER, &query(1));
        let mut asked = vec![bench.sent_one().to.ip()];
        for _ in 0..3 {
            bench.wait(2);
            asked.push(bench.sent_one().to.ip());
            assert!(bench.got().is_empty());
        }
        assert_eq!(asked, [FIRST, SIXTH, FIRST, SIXTH].map(fixture::ip));
        bench.wait(2);
        bench.ops();
        assert_server_failure(&mut bench, 1);
        bench.assert_empty();
    }

    #[test]
    fn a_change_of_family_opens_another_socket_and_releases_the_old_one() {
        let mut bench = resolving(&[FIRST, SIXTH]);
        bench.guest_udp(GUEST, FORWARDER, &query(1));
        let old = bench.sent_one().flow;
        bench.wait(2);
        let ops = bench.ops();
        assert!(matches!(ops[0], HostOp::Release { flow, .. } if flow == old));
        assert!(matches!(ops[1], HostOp::OpenUdp { family: Family::V6, flow, .. } if flow != old));
        assert!(matches!(ops[2], HostOp::Send { .. }));
    }

    #[test]
    fn refusing_servers_are_passed_over_at_once() {
        let mut bench = resolving(&[FIRST, SECOND]);
        bench.guest_udp(GUEST, FORWARDER, &query(1));
        for _ in 0..3 {
            let sent = bench.sent_one();
            let error = IcmpError { offender: None, kind: 3, code: 3, info: 0, to: sent.to };
            failed(&mut bench.core, sent.flow, error);
        }
        let last = bench.sent_one();
        open_failed(&mut bench.core, last.flow, HostError::Exhausted);
        assert_server_failure(&mut bench, 1);
        assert!(bench.ops().is_empty());
        bench.assert_empty();
    }

    #[test]
    fn a_server_that_declines_is_asked_last() {
        let mut bench = resolving(&[FIRST, SECOND]);
        bench.guest_udp(GUEST, FORWARDER, &query(1));
        let sent = bench.sent_one();
        from_host(&mut bench.core, sent.flow, sent.to, &response(&sent, Rcode::REFUSED, 0));
        let sent = bench.sent_one();
        assert_eq!(sent.to.ip(), fixture::ip(SECOND));
        let refusal = response(&sent, Rcode::REFUSED, 0);
        from_host(&mut bench.core, sent.flow, sent.to, &refusal);
        assert_eq!(bench.got_one().udp().2, refusal);
        assert_eq!(server(&bench.core, 0).map(|server| server.ip()), Some(fixture::ip(FIRST)));
    }

    #[test]
    fn without_servers_the_guest_soon_learns_it() {
        let mut bench = resolving(&[]);
        bench.guest_udp(GUEST, FORWARDER, &query(1));
        assert_eq!(bench.ops(), [HostOp::RefreshResolvers]);
        bench.wait(1);
        assert_server_failure(&mut bench, 1);
        bench.assert_empty();
    }

    #[test]
    fn a_new_list_serves_the_queries_that_wait() {
        for old in [&[][..], &[FIRST]] {
            let mut bench = resolving(old);
            bench.guest_udp(GUEST, FORWARDER, &query(1));
            bench.ops();
            set_resolvers(&mut bench.core, &[fixture::ip(SECOND)]);
            bench.wait(0);
            assert_eq!(bench.sent_one().to.ip(), fixture::ip(SECOND));
        }
    }

    #[test]
    fn a_repeated_query_is_sent_once() {
        let mut bench = resolving(&[FIRST]);
        for _ in 0..3 {
            bench.guest_udp(GUEST, FORWARDER, &query(1));
        }
        bench.guest_udp(GUEST, FORWARDER, &query(2));
        assert_eq!(bench.sent().len(), 2);
    }

    #[test]
    fn what_is_no_query_goes_nowhere() {
        let mut bench = resolving(&[FIRST]);
        let mut response = query(1);
        response[2] |= 0x80;
        let mut many = query(1);
        many[5] = 2;
        let mut endless = query(1);
        endless[12] = 63;
        let mut compressed = query(1);
        compressed[12] = 0xc0;
        for bytes in [&query(1)[..11], &query(1)[..20], &response, &many, &endless, &compressed] {
            bench.guest_udp(GUEST, FORWARDER, bytes);
        }
        assert_eq!(bench.core.counters.dropped(DropReason::Malformed), 6);
        bench.guest_udp(GUEST, FORWARDER, &[0; MAX_QUERY_BYTES + 1]);
        assert_eq!(bench.core.counters.dropped(DropReason::Limit), 1);
        bench.assert_empty();
    }

    #[test]
    fn hostile_messages_do_no_harm() {
        for bytes in fixture::mutations(&query(1)) {
            if let Some(query) = Query::parse(&bytes) {
                query.server_failure();
                assert!(!query.is_answered_by(&bytes));
            }
        }
    }

    fn resolving(servers: &[&str]) -> Bench {
        let mut bench = Bench::new();
        let servers: Vec<IpAddr> = servers.iter().map(|server| fixture::ip(server)).collect();
        set_resolvers(&mut bench.core, &servers);
        bench
    }

    /// A question for the address of `a.example`, recursion desired, with an EDNS option record.
    fn query(id: u8) -> Vec<u8> {
        let mut query = vec![0x55, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        query.extend_from_slice(b"\x01a\x07example\0\0\x01\0\x01");
        query.extend_from_slice(&[0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]);
        query
    }

    /// The server's response with `code` and `bytes` bytes of records.
    fn response(sent: &Sent, code: u8, bytes: usize) -> Vec<u8> {
        let mut response = sent.payload.clone();
        response[2] |= 0x80;
        response[3] = 0x80 | code;
        response.resize(response.len() + bytes, 0xaa);
        response
    }

    fn assert_server_failure(bench: &mut Bench, id: u8) {
        let got = bench.got_one();
        let (from, to, message) = got.udp();
        assert_eq!((from, to), (at(FORWARDER), at(GUEST)));
        assert_eq!(message[..12], [0x55, id, 0x81, 0x82, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(message[12..], *b"\x01a\x07example\0\0\x01\0\x01");
    }
}
