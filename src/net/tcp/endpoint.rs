//! The guest's peer: a smoltcp interface with one TCP socket, made once and used for one flow after another.

use std::net::SocketAddr;

use smoltcp::iface::{self, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, TcpOption, TcpPacket};

use super::device::{Description, FlowDevice};
use crate::config::Rate;
use crate::net::packet::{Ethernet, IpPacket};
use crate::net::{Duration, Instant, Offload, Outbox};

/// Bytes of each of an endpoint's two rings, and so its largest window. Half of it costs up to a seventh of the
/// throughput over a real link, and twice as much gains nothing: it falls out of the cache.
const RING_BYTES: usize = 512 * 1024;
/// The window of a link whose guest may send only so fast is what it sends in this time. All of it may wait in the link,
/// and what waits for longer than the least timeout of a sender (200 ms in Linux) is sent twice.
const SLOW_LINK_WINDOW: Duration = Duration::from_millis(100);
/// The least window: two segments of an Ethernet's, rounded up.
const LEAST_WINDOW_BYTES: usize = 4096;
/// A guest that has not answered by then never will: a published connection's SYN, or the answer to its own.
const GUEST_CONNECT: Duration = Duration::from_secs(30);
/// How often a half-closed guest is asked whether it still knows the connection. An orphaned FIN_WAIT2 socket
/// answers with a reset, so that no flow stays half-closed for ever.
const HALF_CLOSED_PROBE: Duration = Duration::from_secs(60);
/// The same where a published connection has another way to the guest, through the other family.
const FIRST_WAY: Duration = Duration::from_secs(2);
/// SYNs that are sent anew without waiting; a guest that ignores resets (RFC 1337) would be asked for ever.
const MAX_REOPENED: u8 = 3;
/// A guest that acknowledges nothing for so long, or answers no probe, is gone (RFC 9293 section 3.8.3 asks for 100 s
/// at least).
const GUEST_SILENCE: Duration = Duration::from_secs(600);
/// Segment size of a guest that names none (RFC 9293 section 3.7.1).
const DEFAULT_MSS: u16 = 536;
/// The least that smoltcp accepts; a smaller one would make the two disagree.
const LEAST_MSS: u16 = 48;

/// A smoltcp interface with one TCP socket; reused from flow to flow.
pub(in crate::net) struct Endpoint {
    iface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    offload: Offload,
    mtu: u16,
    /// Payload bytes of the largest segment that the guest takes.
    mss: u16,
    /// Opens towards the guest, which has not answered yet.
    pub(super) opening: bool,
    /// SYNs sent anew because the guest answered with what it remembered of an earlier connection.
    reopened: u8,
    /// The guest's FIN has arrived.
    fin_received: bool,
    /// When a half-closed guest is first asked whether it still knows the connection.
    probe_at: Option<Instant>,
    /// The FIN that led into TIME-WAIT has been acknowledged.
    lingers: bool,
    /// Since when the guest owes an acknowledgement or a probe's answer. (smoltcp's own timeout counts from the
    /// last segment, and so ends an idle connection at the first word after a long silence.)
    waiting_since: Option<Instant>,
}

impl Endpoint {
    /// One whose window is `window_bytes`.
    pub(super) fn new(ethernet: &Ethernet, window_bytes: usize, seed: u64, now: Instant) -> Box<Self> {
        let mut socket = tcp::Socket::new(ring(window_bytes), ring(RING_BYTES));
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let iface = interface(ethernet, seed, now);
        let (offload, mtu) = (ethernet.offload, ethernet.mtu);
        Box::new(Self {
            iface,
            sockets,
            handle,
            offload,
            mtu,
            mss: DEFAULT_MSS,
            opening: false,
            reopened: 0,
            fin_received: false,
            probe_at: None,
            lingers: false,
            waiting_since: None,
        })
    }

    pub(super) fn fits(&self, ethernet: &Ethernet) -> bool {
        self.offload == ethernet.offload && self.mtu == ethernet.mtu
    }

    pub(super) fn socket(&self) -> &tcp::Socket<'static> {
        self.sockets.get(self.handle)
    }

    pub(super) fn socket_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Gets it ready for another flow.
    pub(super) fn reset(&mut self) {
        let socket = self.socket_mut();
        socket.abort();
        socket.set_keep_alive(None);
        socket.set_timeout(None);
        self.mss = DEFAULT_MSS;
        self.opening = false;
        self.reopened = 0;
        self.fin_received = false;
        self.probe_at = None;
        self.lingers = false;
        self.waiting_since = None;
    }

    /// Waits as `local` for the SYN that is replayed next.
    pub(super) fn listen(&mut self, local: SocketAddr) -> bool {
        let socket = self.socket_mut();
        socket.set_timeout(Some(GUEST_CONNECT));
        socket.listen(local).is_ok()
    }

    /// Opens from `local` (the client's address) to `guest`, which has less time to answer if there is another way.
    pub(super) fn connect(&mut self, local: SocketAddr, guest: SocketAddr, has_other_way: bool) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        socket.set_timeout(Some(if has_other_way { FIRST_WAY } else { GUEST_CONNECT }));
        self.opening = socket.connect(self.iface.context(), guest, local).is_ok();
        self.opening
    }

    /// Takes one packet from the guest.
    pub(super) fn receive(
        &mut self,
        packet: &IpPacket<'_>,
        ethernet: &Ethernet,
        outbox: &mut Outbox,
        now: Instant,
    ) {
        if let Some(mss) = segment_size(packet) {
            let link_mss = self.mtu.saturating_sub(if packet.source.is_ipv4() { 40 } else { 60 });
            self.mss = mss.clamp(LEAST_MSS, link_mss.max(LEAST_MSS));
        }
        let was_synchronized = self.is_synchronized();
        let owed = self.socket().send_queue();
        let mut device =
            FlowDevice { rx: Some(packet.bytes), ethernet, mss: self.mss, outbox, urgent: false };
        self.iface.poll_ingress_single(now, &mut device, &mut self.sockets);
        // With room for it, a guest that leaves bytes unacknowledged has not got them: smoltcp 0.14 can lose the timer
        // that would send them again when a lossy link meets a closed window.
        let is_stuck = owed > 0 && self.socket().send_queue() >= owed && has_window(packet);
        if !is_stuck {
            self.waiting_since = None;
        }
        let state = self.socket().state();
        self.fin_received |=
            matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if !was_synchronized && self.is_synchronized() {
            self.opening = false;
            self.socket_mut().set_timeout(None);
        }
        if self.opening && is_acknowledgement(packet) {
            self.reopen();
        }
    }

    /// A guest that remembers an earlier connection with the same four numbers in TIME-WAIT answers a SYN with its last
    /// acknowledgement (RFC 9293 section 3.10.7.4). The reset which that has met makes it forget, and another SYN
    /// need not wait for smoltcp's timer.
    fn reopen(&mut self) {
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        let (Some(local), Some(guest)) = (socket.local_endpoint(), socket.remote_endpoint()) else { return };
        if socket.state() == State::SynSent && self.reopened < MAX_REOPENED {
            self.reopened += 1;
            socket.abort();
            self.opening = socket.connect(self.iface.context(), guest, local).is_ok();
        }
    }

    /// Says what there is to say while the outbox has room; an urgent word goes into its reserve.
    pub(super) fn transmit(&mut self, ethernet: &Ethernet, outbox: &mut Outbox, now: Instant, urgent: bool) {
        if self.lingers {
            // The end of TIME-WAIT would throw away what the host socket has yet to take.
            return;
        }
        self.lingers = self.socket().state() == State::TimeWait && (urgent || outbox.has_frame_room());
        if self.probe_at.is_some_and(|at| at <= now) {
            self.probe_at = None;
            self.socket_mut().set_keep_alive(Some(HALF_CLOSED_PROBE));
        }
        self.note_waiting(now);
        let mut device = FlowDevice { rx: None, ethernet, mss: self.mss, outbox, urgent };
        while let PollResult::SocketStateChanged = self.iface.poll_egress(now, &mut device, &mut self.sockets)
        {
            // Nothing is left to send but an acknowledgement. A probe of a closed window that smoltcp 0.14 still
            // believes due would be repeated without end.
            if matches!(self.sockets.get::<tcp::Socket<'_>>(self.handle).state(), State::FinWait2) {
                break;
            }
        }
    }

    pub(super) fn abort(&mut self, ethernet: &Ethernet, outbox: &mut Outbox, now: Instant) {
        self.socket_mut().abort();
        self.transmit(ethernet, outbox, now, true);
    }

    /// When it wants to speak by itself; never while it only waits for the host to take the last bytes.
    pub(super) fn next_poll(&mut self, now: Instant) -> Option<Instant> {
        if self.lingers {
            return None;
        }
        let patience = self.waiting_since.map(|since| since + GUEST_SILENCE);
        [self.iface.poll_at(now, &self.sockets), patience, self.probe_at].into_iter().flatten().min()
    }

    /// Gives a guest up that has been silent for too long while it owed an answer.
    fn note_waiting(&mut self, now: Instant) {
        let socket = self.socket();
        if socket.send_queue() == 0 && socket.keep_alive().is_none() {
            self.waiting_since = None;
        } else if now >= *self.waiting_since.get_or_insert(now) + GUEST_SILENCE {
            self.socket_mut().abort();
        }
    }

    /// The guest has sent FIN and everything before it has been taken out.
    pub(super) fn guest_has_finished(&self) -> bool {
        self.fin_received && self.socket().recv_queue() == 0
    }

    /// Closed, and nothing that came in good order is left to take out. A reset sends an endpoint that has not been
    /// open yet back to listening; nobody else will come.
    pub(super) fn is_over(&self) -> bool {
        let socket = self.socket();
        let closed = matches!(socket.state(), State::Closed | State::Listen);
        closed && !(self.fin_received && socket.can_recv())
    }

    /// Whether both ends have answered each other (RFC 9293 section 3.3.2).
    fn is_synchronized(&self) -> bool {
        !matches!(self.socket().state(), State::Closed | State::Listen | State::SynSent | State::SynReceived)
    }

    /// One side has finished: from a while later on, the guest is asked now and then whether it is still there.
    pub(super) fn probe_half_closed(&mut self, now: Instant) {
        // smoltcp's keep-alive begins with a probe at once, which most connections are too short to need.
        if self.socket().keep_alive().is_none() {
            self.probe_at.get_or_insert(now + HALF_CLOSED_PROBE);
        }
    }
}

fn ring(bytes: usize) -> SocketBuffer<'static> {
    SocketBuffer::new(vec![0; bytes])
}

/// The window for guests that may send at `rate`.
pub(super) fn window_bytes(rate: Option<Rate>) -> usize {
    let Some(rate) = rate else { return RING_BYTES };
    let bits = u128::from(rate.bits_per_second) * u128::from(SLOW_LINK_WINDOW.total_millis()) / 1000;
    usize::try_from(bits / 8).unwrap_or(RING_BYTES).clamp(LEAST_WINDOW_BYTES, RING_BYTES)
}

fn interface(ethernet: &Ethernet, seed: u64, now: Instant) -> Interface {
    let mut config = iface::Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut iface = Interface::new(config, &mut Description(ethernet), now);
    iface.set_any_ip(true);
    iface
}

/// The segment size that a SYN announces, if `packet` is one.
fn segment_size(packet: &IpPacket<'_>) -> Option<u16> {
    let segment = TcpPacket::new_checked(packet.payload()).ok()?;
    if !segment.syn() {
        return None;
    }
    let mut options = segment.options();
    while !options.is_empty() {
        let (rest, option) = TcpOption::parse(options).ok()?;
        if let TcpOption::MaxSegmentSize(size) = option {
            return Some(size);
        }
        options = rest;
    }
    Some(DEFAULT_MSS)
}

fn has_window(packet: &IpPacket<'_>) -> bool {
    TcpPacket::new_checked(packet.payload()).is_ok_and(|segment| segment.window_len() > 0)
}

/// Whether a segment only acknowledges.
fn is_acknowledgement(packet: &IpPacket<'_>) -> bool {
    let segment = TcpPacket::new_checked(packet.payload());
    segment.is_ok_and(|segment| segment.ack() && !segment.syn() && !segment.rst())
}

/// An interface without a socket: it answers every segment with the reset that RFC 9293 section 3.10.7.1 asks.
pub(in crate::net) struct Refusal {
    iface: Interface,
    sockets: SocketSet<'static>,
}

impl Refusal {
    pub(in crate::net) fn new(ethernet: &Ethernet, now: Instant) -> Self {
        Self { iface: interface(ethernet, 0, now), sockets: SocketSet::new(Vec::new()) }
    }

    pub(super) fn answer(
        &mut self,
        packet: &IpPacket<'_>,
        ethernet: &Ethernet,
        outbox: &mut Outbox,
        now: Instant,
    ) {
        let mut device =
            FlowDevice { rx: Some(packet.bytes), ethernet, mss: DEFAULT_MSS, outbox, urgent: false };
        self.iface.poll_ingress_single(now, &mut device, &mut self.sockets);
    }
}
