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
}

/// A range of [`Outbox::payload`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PayloadRange {
    start: usize,
    end: usize,
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

    /// Takes the oldest operation. Payload ranges stay valid until [`Self::clear_payload`].
    pub fn pop_op(&mut self) -> Option<HostOp> {
        self.ops.pop_front()
    }

    /// Copies `bytes` for an operation that sends them.
    pub fn store(&mut self, bytes: &[u8]) -> PayloadRange {
        let start = self.payload.len();
        self.payload.extend_from_slice(bytes);
        PayloadRange { start, end: self.payload.len() }
    }

    /// The bytes of a range.
    pub fn payload(&self, range: PayloadRange) -> &[u8] {
        &self.payload[range.start..range.end]
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
