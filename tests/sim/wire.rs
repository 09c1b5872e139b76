//! One direction of the link between guest and gateway, as good or as bad as its quality says.

use std::collections::BTreeMap;

use rnet::net::{Duration, Instant};

use crate::pattern::Random;

/// What happens to frames on the way; probabilities are per mille.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quality {
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    /// Frames that overtake or are overtaken.
    pub(crate) reordering: u64,
    /// The shortest and the longest way, in microseconds.
    pub(crate) delay_us: (u64, u64),
    /// Frames on the way after which the link takes no more.
    pub(crate) capacity: usize,
}

impl Quality {
    pub(crate) const PERFECT: Self =
        Self { loss: 0, duplication: 0, reordering: 0, delay_us: (10, 10), capacity: 1000 };

    pub(crate) const LOSSY: Self = Self { loss: 20, delay_us: (50, 2000), ..Self::PERFECT };

    pub(crate) const UNORDERED: Self =
        Self { duplication: 50, reordering: 100, delay_us: (10, 3000), ..Self::PERFECT };

    pub(crate) const NARROW: Self = Self { delay_us: (200, 1500), capacity: 4, ..Self::PERFECT };

    pub(crate) fn is_lossless(&self) -> bool {
        self.loss == 0
    }
}

/// Frames on their way, by arrival.
pub(crate) struct Wire<F> {
    quality: Quality,
    random: Random,
    queue: BTreeMap<(Instant, u64), F>,
    sent: u64,
    latest: Instant,
}

impl<F: Clone> Wire<F> {
    pub(crate) fn new(quality: Quality, random: Random) -> Self {
        Self { quality, random, queue: BTreeMap::new(), sent: 0, latest: Instant::ZERO }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() < self.quality.capacity
    }

    pub(crate) fn send(&mut self, now: Instant, frame: F) {
        if self.random.happens(self.quality.loss) {
            return;
        }
        if self.random.happens(self.quality.duplication) {
            self.enqueue(now, frame.clone());
        }
        self.enqueue(now, frame);
    }

    fn enqueue(&mut self, now: Instant, frame: F) {
        let (shortest, longest) = self.quality.delay_us;
        let mut due = now + Duration::from_micros(self.random.within(shortest..=longest));
        if self.random.happens(self.quality.reordering) {
            due += Duration::from_micros(self.random.below(3 * longest));
        } else {
            due = due.max(self.latest);
            self.latest = due;
        }
        self.sent += 1;
        self.queue.insert((due, self.sent), frame);
    }

    /// A frame that has arrived.
    pub(crate) fn receive(&mut self, now: Instant) -> Option<F> {
        self.next().filter(|at| *at <= now)?;
        self.queue.pop_first().map(|(_, frame)| frame)
    }

    /// When the next frame arrives.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}
