//! What UDP and ping have in common when they cross between the guest's network and the host's: hop limits,
//! refusals, the host's addresses that hide behind the gateway's, errors that come back, and how often all this
//! is worth a log line.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::IpProtocol;

use super::gateway::{Core, FromGuest};
use super::icmp::{self, Unreachable};
use super::packet::{Ethernet, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, Quote};
use super::policy::{self, DenyReason};
use super::steer::Shard;
use super::{DropReason, Duration, Family, HostError, IcmpError, Instant};
use crate::config::{Denial, Network};

/// Destinations behind the policy that one flow remembers; the one unused for longest is forgotten.
const MAX_PERMITS: usize = 32;
/// Length of an ICMP error's header, in front of the quote (RFC 792, RFC 4443 section 3).
const ICMP_HEADER_BYTES: usize = 8;
/// Lines about guest traffic in one [`NOTICE_WINDOW`]: a guest that scans must not fill the host's log.
const MAX_NOTICES: usize = 64;
/// After this time a line may be written again.
const NOTICE_WINDOW: Duration = Duration::from_secs(600);

/// A packet to the guest that it could not deliver, as its ICMP "destination unreachable" quotes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused<'a> {
    /// Why (RFC 792, RFC 4443 section 3.1).
    pub(super) code: u8,
    pub(super) protocol: IpProtocol,
    pub(super) remote: SocketAddr,
    pub(super) guest: SocketAddr,
    /// How the transport header begins: all that must be quoted (RFC 792).
    pub(super) head: &'a [u8; 8],
    /// What else is quoted.
    pub(super) rest: &'a [u8],
}

impl<'a> Refused<'a> {
    /// Reads the ICMP message. `None` if it is cut off, or quotes a packet with extension headers, which none from here
    /// to a published port has.
    pub(super) fn parse(message: &'a [u8]) -> Option<Self> {
        let (&[_, code, ..], quote) = message.split_first_chunk::<ICMP_HEADER_BYTES>()?;
        let (protocol, source, destination, segment) = match *quote.first()? >> 4 {
            4 => {
                let header: &[u8; IPV4_HEADER_BYTES] = quote.first_chunk()?;
                let address = |at: usize| <[u8; 4]>::try_from(&header[at..at + 4]).ok().map(IpAddr::from);
                let segment = quote.get(usize::from(header[0] & 0x0f) * 4..)?;
                (header[9], address(12)?, address(16)?, segment)
            }
            _ => {
                let header: &[u8; IPV6_HEADER_BYTES] = quote.first_chunk()?;
                let address = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).ok().map(IpAddr::from);
                (header[6], address(8)?, address(24)?, &quote[IPV6_HEADER_BYTES..])
            }
        };
        let (head, rest) = segment.split_first_chunk::<8>()?;
        let [s0, s1, d0, d1, ..] = *head;
        Some(Self {
            code,
            protocol: protocol.into(),
            remote: SocketAddr::new(source, u16::from_be_bytes([s0, s1])),
            guest: SocketAddr::new(destination, u16::from_be_bytes([d0, d1])),
            head,
            rest,
        })
    }
}

/// Destinations that only the policy's permission opened (the host's loopback, link-local neighbours) or that have an
/// alias, and under which address the guest knows each. What comes from such an address reaches the guest only if it is
/// here.
#[derive(Debug, Default)]
pub(super) struct Permits(Vec<Permit>);

#[derive(Clone, Copy, Debug)]
struct Permit {
    target: SocketAddr,
    known_as: SocketAddr,
}

impl Permits {
    /// Notes that the guest, permitted, sends to `target`, which it calls `known_as`.
    pub(super) fn grant(&mut self, network: &Network, target: SocketAddr, known_as: SocketAddr) {
        if target == known_as && policy::denied(network, target.ip()).is_none() {
            return;
        }
        match self.0.iter().position(|permit| permit.target == target) {
            Some(at) => drop(self.0.remove(at)),
            None if self.0.len() == MAX_PERMITS => drop(self.0.remove(0)),
            None => {}
        }
        self.0.push(Permit { target, known_as });
    }

    /// The address under which the guest sees `remote`; `None` if it must not see it. Everything that no
    /// permission was needed for is let in (RFC 4787 REQ-8, endpoint-independent filtering).
    pub(super) fn known_as(&self, network: &Network, remote: SocketAddr) -> Option<SocketAddr> {
        // Without IPv6's scope and flow label, which no guest has ever written.
        let remote = SocketAddr::new(remote.ip(), remote.port());
        match self.0.iter().find(|permit| permit.target == remote) {
            Some(permit) => Some(permit.known_as),
            None => policy::denied(network, remote.ip()).is_none().then_some(remote),
        }
    }
}

/// The hop limit with which a guest's packet leaves. `None` if it ended here, and the guest was told: the gateway
/// is a hop of its own, except before the addresses that are its own (`to_gateway`).
pub(super) fn hop_limit_outward(core: &mut Core, packet: &FromGuest<'_>, to_gateway: bool) -> Option<u8> {
    match packet.ip.hop_limit {
        0 | 1 if to_gateway => Some(1),
        0 | 1 => {
            core.counters.drop(DropReason::HopLimit);
            tell(core, packet, Unreachable::HopLimit);
            None
        }
        hop_limit => Some(hop_limit - 1),
    }
}

/// The hop limit with which a datagram from the host reaches the guest, which is the last hop.
pub(super) fn hop_limit_inward(hop_limit: u8) -> u8 {
    hop_limit.saturating_sub(1).max(1)
}

/// Refuses a packet: an ICMP error to the guest, unless it was for many stations, and a bounded number of log
/// lines, one for each destination.
pub(super) fn deny(
    core: &mut Core,
    packet: &FromGuest<'_>,
    protocol: &'static str,
    guest: SocketAddr,
    to: SocketAddr,
    reason: DenyReason,
) {
    core.counters.drop(DropReason::Denied);
    if reason == DenyReason::NotUnicast || is_subnet_broadcast(&core.network, to.ip()) {
        return;
    }
    log_denied(core, protocol, guest, to, reason);
    let answer = match core.network.denial {
        Denial::Refused => Unreachable::Prohibited,
        Denial::Unreachable => Unreachable::Network,
    };
    tell(core, packet, answer);
}

/// Writes the log line about a refused destination, once in a while.
pub(super) fn log_denied(
    core: &mut Core,
    protocol: &'static str,
    guest: SocketAddr,
    to: SocketAddr,
    reason: DenyReason,
) {
    if !core.notices.admit(core.now, Notice::Denied(protocol, to)) {
        return;
    }
    match reason {
        DenyReason::HostLoopback | DenyReason::LinkLocal => tracing::warn!(
            protocol,
            %guest,
            destination = %to,
            ?reason,
            "refused; --allow-host would open it"
        ),
        DenyReason::NotUnicast | DenyReason::NoSuchService | DenyReason::NoWayOut => {
            tracing::info!(protocol, %guest, destination = %to, ?reason, "refused")
        }
    }
}

/// Answers a guest's packet with an ICMP error from the gateway.
pub(super) fn tell(core: &mut Core, packet: &FromGuest<'_>, what: Unreachable) {
    let (to, original) = (packet.ip.source, packet.ip.bytes);
    let gateway = core.gateway_address(to);
    let ethernet = core.ethernet(packet.port, packet.mac);
    icmp::error(&ethernet, &mut core.outbox, gateway, original, to, what);
}

/// Passes an error on that the host met with a datagram of the guest, which `quote` rebuilds. An offender that
/// the guest could not reach by its address is shown as the gateway.
pub(super) fn relay_error(
    core: &mut Core,
    ethernet: &Ethernet,
    to: IpAddr,
    error: &IcmpError,
    quote: &Quote,
) {
    let visible = |offender: &IpAddr| policy::denied(&core.network, *offender).is_none();
    let from = error
        .offender
        .filter(visible)
        .unwrap_or_else(|| core.gateway_address(error.offender.unwrap_or(error.to.ip())));
    icmp::relay(ethernet, &mut core.outbox, from, error.kind, error.code, error.info, to, quote.bytes());
}

/// Tells the guest that the host could not open a socket for the datagram that `quote` rebuilds.
pub(super) fn tell_open_failed(
    core: &mut Core,
    ethernet: &Ethernet,
    to: IpAddr,
    error: HostError,
    quote: &Quote,
) {
    if let Some(what) = unreachable(error) {
        let gateway = core.gateway_address(to);
        icmp::error(ethernet, &mut core.outbox, gateway, quote.bytes(), to, what);
    }
}

/// Writes the log line about a socket that could not be opened, once in a while.
pub(super) fn log_open_failed(core: &mut Core, family: Family, error: HostError) {
    if core.notices.admit(core.now, Notice::OpenFailed(family, error)) {
        tracing::warn!(?family, ?error, "cannot open a datagram socket for the guest");
    }
}

/// How a guest learns of `error`; `None` for what passes by itself and is better met by silence.
pub(super) fn unreachable(error: HostError) -> Option<Unreachable> {
    match error {
        HostError::Refused => Some(Unreachable::Port),
        HostError::TimedOut | HostError::HostUnreachable => Some(Unreachable::Host),
        HostError::NetUnreachable => Some(Unreachable::Network),
        HostError::Prohibited => Some(Unreachable::Prohibited),
        HostError::Exhausted => None,
    }
}

fn is_subnet_broadcast(network: &Network, ip: IpAddr) -> bool {
    network.ipv4.is_some_and(|plan| ip == IpAddr::from(plan.subnet.broadcast()))
}

/// Something about guest traffic that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Notice {
    /// A refused destination of a protocol.
    Denied(&'static str, SocketAddr),
    /// No socket of this family.
    OpenFailed(Family, HostError),
    /// The host forbids ping sockets.
    PingForbidden,
}

/// Which log lines about guest traffic were written lately.
#[derive(Debug)]
pub(super) struct Notices {
    limit: usize,
    written: HashSet<Notice>,
    until: Option<Instant>,
    ping_forbidden: bool,
}

impl Notices {
    /// None was written. The budget is that of `shard`.
    pub(super) fn new(shard: Shard) -> Self {
        Self { limit: shard.part(MAX_NOTICES), written: HashSet::new(), until: None, ping_forbidden: false }
    }

    /// Whether `notice` may be written: it was not within the window, and the window's budget is not used up. The
    /// one about ping is written once for the process, beside the budget.
    pub(super) fn admit(&mut self, now: Instant, notice: Notice) -> bool {
        if notice == Notice::PingForbidden {
            return !std::mem::replace(&mut self.ping_forbidden, true);
        }
        if self.until.is_none_or(|until| now >= until) {
            self.written.clear();
            self.until = Some(now + NOTICE_WINDOW);
        }
        if self.written.len() == self.limit || !self.written.insert(notice) {
            return false;
        }
        if self.written.len() == self.limit {
            tracing::info!(minutes = NOTICE_WINDOW.secs() / 60, "refusals are not logged for a while");
        }
        true
    }
}
