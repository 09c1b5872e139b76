//! A token bucket: how fast a link may be (RFC 2697 section 3 has the idea, with one colour less).
//!
//! A frame may pass while there is credit, and may leave a debt: frames of 64 KiB pass buckets of any depth whole.
//! Nothing is dropped; who asks waits.

use smoltcp::time::{Duration, Instant};

use crate::config::Rate;

const BITS_PER_BYTE: i128 = 8;
const MICROS_PER_SECOND: i128 = 1_000_000;

/// One direction of a link.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: Rate,
    /// Credit at `at`, in millionths of a bit: what is added in a microsecond is a whole number of them.
    credit: i128,
    at: Instant,
}

impl Bucket {
    /// One that is full.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { rate, credit: depth(rate), at: now }
    }

    /// When the next frame may pass; `None` if it may now.
    pub fn opens_at(&self, now: Instant) -> Option<Instant> {
        let missing = 1 - self.credit(now);
        if missing <= 0 {
            return None;
        }
        let rate = i128::from(self.rate.bits_per_second);
        let micros = (missing + rate - 1) / rate;
        Some(now + Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)))
    }

    /// Counts a frame of `bytes` that passes now.
    pub fn pass(&mut self, bytes: usize, now: Instant) {
        self.credit = self.credit(now) - bytes as i128 * BITS_PER_BYTE * MICROS_PER_SECOND;
        self.at = now;
    }

    fn credit(&self, now: Instant) -> i128 {
        let elapsed = (now - self.at).total_micros();
        let earned = i128::from(elapsed) * i128::from(self.rate.bits_per_second);
        (self.credit + earned).min(depth(self.rate))
    }
}

fn depth(rate: Rate) -> i128 {
    i128::from(rate.burst_bits) * MICROS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_counts() {
        let mut bucket = bucket(8_000_000, 80_000);
        assert_eq!(bucket.opens_at(at(0)), None);
        bucket.pass(10_000, at(0));
        assert_eq!(bucket.opens_at(at(0)), Some(at(1)), "empty, not in debt");
        assert_eq!(bucket.opens_at(at(1)), None);
        bucket.pass(1000, at(1));
        assert_eq!(
            bucket.opens_at(at(1)),
            Some(at(1001)),
            "1000 bytes at a byte each microsecond, less the first"
        );
    }

    #[test]
    fn a_frame_deeper_than_the_bucket_passes_whole_and_is_paid_for() {
        let mut bucket = bucket(1_000_000, 8);
        bucket.pass(65_536, at(0));
        let opens = bucket.opens_at(at(0)).expect("in debt");
        assert_eq!(opens, at(65_536 * 8 - 8 + 1));
        assert_eq!(bucket.opens_at(opens), None);
    }

    #[test]
    fn idleness_earns_no_more_than_the_burst() {
        let mut bucket = bucket(1_000_000, 8_000);
        let late = at(3_600_000_000);
        bucket.pass(1000, late);
        assert_eq!(bucket.opens_at(late), Some(late + Duration::from_micros(1)));
    }

    #[test]
    fn over_any_second_no_more_than_rate_and_burst_pass() {
        let (mut bucket, mut now, mut passed) = (bucket(1_000_000, 40_000), at(0), 0);
        loop {
            now = bucket.opens_at(now).unwrap_or(now);
            if now >= at(1_000_000) {
                break;
            }
            bucket.pass(1500, now);
            passed += 1500 * 8;
        }
        assert!((1_000_000..=1_040_000 + 1500 * 8).contains(&passed), "{passed}");
    }

    fn bucket(bits_per_second: u64, burst_bits: u64) -> Bucket {
        Bucket::new(Rate::new(bits_per_second, burst_bits).expect("a rate"), at(0))
    }

    fn at(micros: i64) -> Instant {
        Instant::from_micros(micros)
    }
}
