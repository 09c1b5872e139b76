//! How much of the machine a container may use.

/// What all processes of a container together may use; `None` is no limit of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Memory in bytes, with the page cache.
    pub memory_bytes: Option<u64>,
    /// Swap beyond it.
    pub swap: Option<Swap>,
    /// Time on processors: microseconds in each [`Allowance::CPU_PERIOD_US`].
    pub cpu_quota_us: Option<u64>,
    /// Share of the processors when they do not suffice for all: 1 to 10000, where others have 100.
    pub cpu_weight: Option<u16>,
    /// Processors, as the kernel lists them: `0-3,5`.
    pub cpus: Option<String>,
    /// Processes and threads.
    pub processes: Option<u64>,
    /// Share of the disks, as [`Self::cpu_weight`].
    pub io_weight: Option<u16>,
}

/// How much swap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    /// So many bytes; 0 is none.
    Bytes(u64),
    /// What the host has.
    Unlimited,
}

impl Allowance {
    /// The period of [`Self::cpu_quota_us`].
    pub const CPU_PERIOD_US: u64 = 100_000;

    /// Whether it limits nothing.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}
