//! Counts of what passed and of what was dropped, by reason.

/// Why a frame or datagram went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DropReason {
    /// Shorter than its headers say, or a length field out of range.
    Malformed,
    /// A wrong checksum.
    Checksum,
    /// An EtherType, IP protocol or option that the gateway does not speak.
    Unsupported,
    /// Not addressed to the gateway's MAC address.
    ForeignDestination,
    /// A source address that no guest may have (loopback, multicast, the gateway's own).
    BadSource,
    /// The policy forbids the destination.
    Denied,
    /// No flow and no rule that would make one.
    NoFlow,
    /// A table, pool or queue is full.
    Limit,
    /// The time to live ended here.
    HopLimit,
    /// Fragments that never became whole, overlapped or exceeded the limits.
    Fragment,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; REASONS] = [
        Self::Malformed,
        Self::Checksum,
        Self::Unsupported,
        Self::ForeignDestination,
        Self::BadSource,
        Self::Denied,
        Self::NoFlow,
        Self::Limit,
        Self::HopLimit,
        Self::Fragment,
    ];

    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Checksum => "checksum",
            Self::Unsupported => "unsupported",
            Self::ForeignDestination => "foreign-destination",
            Self::BadSource => "bad-source",
            Self::Denied => "denied",
            Self::NoFlow => "no-flow",
            Self::Limit => "limit",
            Self::HopLimit => "hop-limit",
            Self::Fragment => "fragment",
        }
    }
}

const REASONS: usize = DropReason::Fragment as usize + 1;

/// Totals since start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    drops: [u64; REASONS],
    /// Frames from guests.
    pub frames_in: u64,
    /// Bytes in them.
    pub bytes_in: u64,
}

impl Counters {
    /// Counts one drop.
    pub fn drop(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
        tracing::trace!(?reason, "drop");
    }

    /// Adds what another worker of the same network has counted.
    pub fn add(&mut self, other: &Self) {
        for (total, drops) in self.drops.iter_mut().zip(other.drops) {
            *total += drops;
        }
        self.frames_in += other.frames_in;
        self.bytes_in += other.bytes_in;
    }

    /// Drops so far for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }
}
