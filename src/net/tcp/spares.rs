//! Endpoints between two flows: kept for a while, with the pages of their rings already there.

use super::endpoint::{self, Endpoint};
use crate::config::Rate;
use crate::net::packet::Ethernet;
use crate::net::{Duration, Instant};

/// Endpoints kept at once; each may hold 1 MiB of rings.
const MAX_SPARES: usize = 16;
/// When no flow has ended for so long, the memory is better given back.
const KEPT: Duration = Duration::from_secs(5);

/// The spare endpoints of a gateway.
pub(in crate::net) struct Spares {
    window_bytes: usize,
    #[expect(clippy::vec_box, reason = "an endpoint moves between here and its flow as one pointer")]
    endpoints: Vec<Box<Endpoint>>,
    kept_until: Option<Instant>,
}

impl Spares {
    /// None yet, for guests that may send at `rate`.
    pub(in crate::net) fn new(rate: Option<Rate>) -> Self {
        Self { window_bytes: endpoint::window_bytes(rate), endpoints: Vec::new(), kept_until: None }
    }

    /// An endpoint that fits, a new one if none is spare.
    pub(super) fn take(&mut self, ethernet: &Ethernet, seed: u64, now: Instant) -> Box<Endpoint> {
        match self.endpoints.pop() {
            Some(endpoint) if endpoint.fits(ethernet) => endpoint,
            _ => Endpoint::new(ethernet, self.window_bytes, seed, now),
        }
    }

    /// Takes the endpoint of a flow that has ended.
    pub(super) fn put(&mut self, mut endpoint: Box<Endpoint>, now: Instant) {
        if self.endpoints.len() < MAX_SPARES {
            endpoint.reset();
            self.endpoints.push(endpoint);
        }
        self.kept_until = Some(now + KEPT);
    }

    /// When [`Self::expire`] has something to do.
    pub(in crate::net) fn next_deadline(&self) -> Option<Instant> {
        self.kept_until
    }

    /// Gives back what has not been needed.
    pub(in crate::net) fn expire(&mut self, now: Instant) {
        if self.kept_until.is_some_and(|at| at <= now) {
            self.kept_until = None;
            self.endpoints = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::fixture;

    #[test]
    fn what_is_not_needed_for_a_while_is_given_back() {
        let ethernet = fixture::ethernet(1500);
        let mut spares = Spares::new(None);
        for _ in 0..=MAX_SPARES {
            spares.put(Endpoint::new(&ethernet, 9000, 1, Instant::ZERO), Instant::ZERO);
        }
        assert_eq!(spares.endpoints.len(), MAX_SPARES);
        let due = spares.next_deadline().expect("endpoints to give back");
        spares.expire(due - Duration::from_millis(1));
        assert_eq!(spares.endpoints.len(), MAX_SPARES);
        spares.expire(due);
        assert_eq!((spares.endpoints.len(), spares.next_deadline()), (0, None));
    }

    #[test]
    fn the_time_starts_anew_with_each_flow_that_ends() {
        let ethernet = fixture::ethernet(1500);
        let mut spares = Spares::new(None);
        spares.put(Endpoint::new(&ethernet, 9000, 1, Instant::ZERO), Instant::ZERO);
        let later = Instant::ZERO + Duration::from_secs(3);
        let endpoint = spares.take(&ethernet, 1, later);
        spares.put(endpoint, later);
        assert_eq!(spares.next_deadline(), Some(later + KEPT));
    }

    #[test]
    fn another_links_endpoint_is_not_taken() {
        let mut spares = Spares::new(None);
        spares.put(Endpoint::new(&fixture::ethernet(1500), 9000, 1, Instant::ZERO), Instant::ZERO);
        let ethernet = fixture::ethernet(9000);
        assert!(spares.take(&ethernet, 1, Instant::ZERO).fits(&ethernet));
    }
}
