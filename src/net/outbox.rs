//! What the core has to say: frames for guests and operations for the host, in two bounded arenas.
//!
//! Nothing is allocated per packet. The worker drains both between inputs and feeds the core only while
//! [`Outbox::has_room`], so that a slow link stops its sources instead of losing frames.

use std::collections::VecDeque;

use super::{HostOp, PortId};

/// Bytes in front of every frame for the link's own header (virtio-net: 10 or 12).
pub const HEADROOM: usize = 12;
/// Length of an Ethernet header.
pub const ETHERNET_BYTES: usize = 14;
/// The largest frame: an Ethernet header and the largest IP packet.
pub const MAX_FRAME_BYTES: usize = ETHERNET_BYTES + 65_535;

/// Arena for frames: a batch of sixteen large ones stays within the second-level cache.
const FRAME_ARENA_BYTES: usize = 16 * (HEADROOM + MAX_FRAME_BYTES);
/// Arena for datagrams to the host.
const PAYLOAD_ARENA_BYTES: usize = 4 * 65_536;
/// Operations between two drains.
const MAX_OPS: usize = 1024;
/// Frames (of any size) between two drains.
const MAX_FRAMES: usize = 1024;
/// What one input may produce at most; see [`Outbox::has_room`].
const RESERVE_FRAMES: usize = 3;
/// Slots kept for that: the fragments of one datagram of 65,535 bytes at the smallest MTU, 576, and a few more.
const RESERVE_SLOTS: usize = 128;

/// Datagrams that the kernel cuts out of one payload or frame at most (UDP_MAX_SEGMENTS; since Linux 6.9 it is 128).
const MAX_SEGMENTS: usize = 64;
/// The most that they have together: a UDP payload in IPv4, the smaller of both families'.
const MAX_SEND_BYTES: usize = 65_535 - 20 - 8;

/// What the kernel must still do to a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TxOffload {
    /// Nothing.
    #[default]
    None,
    /// Finish the transport checksum; the field holds the pseudo-header's sum.
    Checksum {
        /// Where the transport header starts, from the start of the frame.
        start: u16,
        /// Where the checksum field is, from `start`.
        offset: u16,
    },
    /// Cut into TCP segments of `mss` payload bytes, and finish their checksums.
    Tso {
        /// IPv6 rather than IPv4.
        ipv6: bool,
        /// Bytes of all headers, Ethernet's included.
        header_bytes: u16,
        /// Payload bytes in a segment.
        mss: u16,
        /// As in `Checksum`.
        start: u16,
    },
    /// Cut into UDP datagrams of `datagram_bytes` payload bytes, and finish their checksums.
    Uso {
        /// Bytes of all headers, Ethernet's included.
        header_bytes: u16,
        /// Payload bytes in a datagram; the last may have fewer.
        datagram_bytes: u16,
        /// As in `Checksum`.
        start: u16,
    },
}

/// A range of [`Outbox::payload`]: one datagram, or several of one size, of which the last may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadRange {
    start: usize,
    end: usize,
    /// Length of the first datagram.
    datagram_bytes: usize,
}

impl PayloadRange {
    /// The size of the datagrams if they are several.
    pub fn segment_bytes(self) -> Option<u16> {
        let several = self.len() > self.datagram_bytes;
        several.then(|| u16::try_from(self.datagram_bytes).ok()).flatten()
    }

    fn len(self) -> usize {
        self.end - self.start
    }

    /// The range with a datagram of `len` bytes that was stored behind it; `None` if that may not follow.
    fn followed_by(self, len: usize) -> Option<Self> {
        let follows = may_follow(self.len(), self.datagram_bytes, len);
        follows.then_some(Self { end: self.end + len, ..self })
    }
}

/// Whether a datagram of `len` bytes may stand behind datagrams of `datagram_bytes` that are `whole` bytes together,
/// so that the kernel can cut them apart again.
pub(super) fn may_follow(whole: usize, datagram_bytes: usize, len: usize) -> bool {
    len > 0
        && len <= datagram_bytes
        && whole.is_multiple_of(datagram_bytes)
        && whole / datagram_bytes < MAX_SEGMENTS
        && whole + len <= MAX_SEND_BYTES
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    port: PortId,
    start: usize,
    len: usize,
    offload: TxOffload,
}

/// Frames and operations waiting for the worker.
pub struct Outbox {
    arena: Box<[u8]>,
    used: usize,
    frames: VecDeque<Slot>,
    ops: VecDeque<HostOp>,
    payload: Vec<u8>,
    lost: u64,
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Outbox {
    /// An empty outbox with its arenas.
    pub fn new() -> Self {
        Self {
            arena: vec![0; FRAME_ARENA_BYTES].into_boxed_slice(),
            used: 0,
            frames: VecDeque::with_capacity(MAX_FRAMES),
            ops: VecDeque::with_capacity(MAX_OPS),
            payload: Vec::with_capacity(PAYLOAD_ARENA_BYTES),
            lost: 0,
        }
    }

    /// Whether another input may be handled: whatever it produces will fit.
    pub fn has_room(&self) -> bool {
        self.has_frame_room()
            && self.ops.len() + RESERVE_FRAMES <= MAX_OPS
            && self.payload.len() + MAX_FRAME_BYTES <= PAYLOAD_ARENA_BYTES
    }

    /// Whether a stream may still emit a segment, the reserve of [`Self::has_room`] left alone.
    pub fn has_frame_room(&self) -> bool {
        let reserve = RESERVE_FRAMES * (HEADROOM + MAX_FRAME_BYTES);
        self.used + reserve <= self.arena.len() && self.frames.len() + RESERVE_SLOTS <= MAX_FRAMES
    }

    /// Appends a frame of `len` bytes for `port` and lets `fill` write it; every byte must be written, as the
    /// slice holds an earlier frame's. `fill` returns what is left to the link. A frame that does not fit is
    /// not sent: `false`.
    pub fn frame(&mut self, port: PortId, len: usize, fill: impl FnOnce(&mut [u8]) -> TxOffload) -> bool {
        let start = self.used;
        let end = start + HEADROOM + len;
        if end > self.arena.len() || self.frames.len() >= MAX_FRAMES {
            self.lost += 1;
            return false;
        }
        let offload = fill(&mut self.arena[start + HEADROOM..end]);
        self.used = end;
        self.frames.push_back(Slot { port, start, len: HEADROOM + len, offload });
        true
    }

    /// As [`Self::frame`], for a writer that must run: a frame that does not fit is written aside and lost.
    pub fn frame_with<R>(
        &mut self,
        port: PortId,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> (TxOffload, R),
    ) -> R {
        let mut fill = Some(fill);
        let mut result = None;
        self.frame(port, len, |frame| {
            let (offload, value) = fill.take().map(|fill| fill(frame)).unzip();
            result = value;
            offload.unwrap_or_default()
        });
        match (result, fill) {
            (Some(result), _) => result,
            (None, Some(fill)) => fill(&mut vec![0; len]).1,
            (None, None) => unreachable!("the writer ran and gave a result"),
        }
    }

    /// The newest frame that waits: its port, its bytes, and what the link must do.
    pub fn newest_frame(&self) -> Option<(PortId, &[u8], TxOffload)> {
        let slot = self.frames.back()?;
        Some((slot.port, &self.arena[slot.start + HEADROOM..slot.start + slot.len], slot.offload))
    }

    /// Appends `bytes` to the newest frame and lets `finish` make its headers right. `false`, and nothing done, if
    /// there is no such frame or no room.
    pub fn extend_frame(&mut self, bytes: &[u8], finish: impl FnOnce(&mut [u8]) -> TxOffload) -> bool {
        let Some(slot) = self.frames.back_mut() else { return false };
        let end = self.used + bytes.len();
        if end > self.arena.len() || end - slot.start > HEADROOM + MAX_FRAME_BYTES {
            return false;
        }
        self.arena[self.used..end].copy_from_slice(bytes);
        slot.offload = finish(&mut self.arena[slot.start + HEADROOM..end]);
        slot.len = end - slot.start;
        self.used = end;
        true
    }

    /// The oldest frame: its port, its bytes behind [`HEADROOM`] free ones, and what the link must do.
    pub fn front_frame(&mut self) -> Option<(PortId, &mut [u8], TxOffload)> {
        let slot = *self.frames.front()?;
        let bytes = &mut self.arena[slot.start..slot.start + slot.len];
        Some((slot.port, bytes, slot.offload))
    }

    /// Forgets the oldest frame: the link has taken it.
    pub fn pop_frame(&mut self) {
        self.frames.pop_front();
        if self.frames.is_empty() {
            self.used = 0;
        }
    }

    /// Appends an operation.
    pub fn op(&mut self, op: HostOp) {
        self.ops.push_back(op);
    }

    /// Appends the operation that `op` makes of a stored copy of `datagram`. If the newest operation sends datagrams
    /// of the same size in the same way, it sends this one too.
    pub fn send(&mut self, datagram: &[u8], op: impl Fn(PayloadRange) -> HostOp) {
        let stored = self.store(datagram);
        if let Some(last) = self.ops.back_mut()
            && let Some(range) = last.payload().filter(|range| range.end == stored.start)
            && let Some(longer) = range.followed_by(datagram.len())
            && op(range) == *last
        {
            *last = op(longer);
        } else {
            self.ops.push_back(op(stored));
        }
    }

    /// Takes the oldest operation. Payload ranges stay valid until [`Self::clear_payload`].
    pub fn pop_op(&mut self) -> Option<HostOp> {
        self.ops.pop_front()
    }

    /// Copies `bytes` for an operation that sends them.
    pub fn store(&mut self, bytes: &[u8]) -> PayloadRange {
        let start = self.payload.len();
        self.payload.extend_from_slice(bytes);
        PayloadRange { start, end: self.payload.len(), datagram_bytes: bytes.len() }
    }

    /// The bytes of a range.
    pub fn payload(&self, range: PayloadRange) -> &[u8] {
        &self.payload[range.start..range.end]
    }

    /// The datagrams of a range.
    pub fn datagrams(&self, range: PayloadRange) -> impl Iterator<Item = &[u8]> {
        let whole = self.payload(range);
        let empty = whole.is_empty().then_some(whole);
        whole.chunks(range.datagram_bytes.max(1)).chain(empty)
    }

    /// Forgets all payloads; called when no operation is left.
    pub fn clear_payload(&mut self) {
        self.payload.clear();
    }

    /// Frames that did not fit, since start; none while [`Self::has_room`] is respected.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Whether neither a frame nor an operation waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.ops.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::FlowId;

    const TO: &str = "198.51.100.7:7";
    const ELSEWHERE: &str = "198.51.100.7:8";

    #[test]
    fn datagrams_of_one_size_that_go_the_same_way_are_one_operation() {
        let sent = sent(&[(TO, 5), (TO, 5), (TO, 3)]);
        assert_eq!(sent, [(13, Some(5))]);
    }

    #[test]
    fn other_sizes_and_destinations_start_anew() {
        assert_eq!(sent(&[(TO, 5), (TO, 6), (TO, 6)]), [(5, None), (12, Some(6))]);
        assert_eq!(sent(&[(TO, 5), (ELSEWHERE, 5), (TO, 5)]), [(5, None), (5, None), (5, None)]);
        assert_eq!(
            sent(&[(TO, 5), (TO, 3), (TO, 3)]),
            [(8, Some(5)), (3, None)],
            "a shorter one is the last"
        );
        assert_eq!(sent(&[(TO, 0), (TO, 0), (TO, 5), (TO, 0)]), [(0, None), (0, None), (5, None), (0, None)]);
    }

    #[test]
    fn one_operation_has_what_the_kernel_cuts_at_once() {
        assert_eq!(sent(&[(TO, 9); 65]), [(9 * 64, Some(9)), (9, None)]);
        assert_eq!(sent(&[(TO, 30_000); 3]), [(60_000, Some(30_000)), (30_000, None)]);
    }

    /// Length and segments of each operation that comes of datagrams of these sizes to these destinations.
    fn sent(datagrams: &[(&str, usize)]) -> Vec<(usize, Option<u16>)> {
        let mut outbox = Outbox::new();
        let flow = FlowId::from_parts(0, 0);
        for (to, len) in datagrams {
            let to = to.parse().expect("an address");
            outbox.send(&vec![1; *len], |payload| HostOp::Send { flow, to, hop_limit: 9, payload });
        }
        let ops = std::iter::from_fn(|| outbox.pop_op()).filter_map(|op| op.payload());
        ops.map(|range| (range.len(), range.segment_bytes())).collect()
    }
}
