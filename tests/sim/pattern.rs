//! Seeded numbers, and byte streams of which every byte can be told from its neighbours.

use std::sync::LazyLock;

/// Length of the table behind all streams: a prime, so that no power of two hides a slip.
const PERIOD: usize = 65_521;

static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::new(0x7ab1e);
    let period: Vec<u8> = (0..PERIOD).map(|_| random.next() as u8).collect();
    period.repeat(2)
});

/// A splitmix64 generator: the same numbers in every run with the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator of its own that goes on from here.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A number from `range`.
    pub(crate) fn within(&mut self, range: std::ops::RangeInclusive<u64>) -> u64 {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    /// Whether something that happens `per_mille` times in a thousand happens now.
    pub(crate) fn happens(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1000) < per_mille
    }

    pub(crate) fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }
}

/// The bytes that one end of a connection says, from the first on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern(pub(crate) u64);

impl Pattern {
    /// Writes what comes at `offset`.
    pub(crate) fn fill(self, offset: u64, bytes: &mut [u8]) {
        self.each_run(offset, bytes.len(), |at, run| bytes[at..at + run.len()].copy_from_slice(run));
    }

    /// Asserts that `bytes` is what comes at `offset`.
    pub(crate) fn check(self, offset: u64, bytes: &[u8]) {
        self.each_run(offset, bytes.len(), |at, run| {
            assert!(bytes[at..at + run.len()] == *run, "wrong bytes near offset {}", offset + at as u64);
        });
    }

    /// `len` bytes from the start.
    pub(crate) fn bytes(self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(0, &mut bytes);
        bytes
    }

    fn each_run(self, offset: u64, len: usize, mut visit: impl FnMut(usize, &[u8])) {
        let mut at = 0;
        while at < len {
            let start = ((self.0 % PERIOD as u64 + offset + at as u64) % PERIOD as u64) as usize;
            let run = (len - at).min(PERIOD);
            visit(at, &TABLE[start..start + run]);
            at += run;
        }
    }
}
