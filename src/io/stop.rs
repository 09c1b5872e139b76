//! How the threads of a network are told to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::Waker;

/// What a guest that has ended has left to be delivered is given up after this time.
pub(super) const DRAIN: Duration = Duration::from_secs(10);

/// Ends a thread of the network from another one.
#[derive(Clone, Debug)]
pub struct Stop {
    orders: Arc<Orders>,
    waker: Arc<Waker>,
}

/// What the thread was told.
#[derive(Debug, Default)]
pub(super) struct Orders {
    stop: AtomicBool,
    drain: AtomicBool,
}

impl Stop {
    /// Ends whoever obeys `orders`, and waits in the poll of `waker`.
    pub(super) fn new(orders: Arc<Orders>, waker: Arc<Waker>) -> Self {
        Self { orders, waker }
    }

    /// Asks the thread to return.
    pub fn stop(&self) {
        self.order(&self.orders.stop);
    }

    /// Asks the thread to return once what its guest has sent is delivered, or was not for ten seconds. The guest's
    /// programs have ended; nobody is let in any more.
    pub fn drain(&self) {
        self.order(&self.orders.drain);
    }

    fn order(&self, order: &AtomicBool) {
        order.store(true, Ordering::Release);
        // The thread that can no longer be woken has ended already.
        let _ = self.waker.wake();
    }
}

impl Orders {
    /// Whether it is to return.
    pub(super) fn says_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Whether it is to return as soon as all is delivered.
    pub(super) fn says_drain(&self) -> bool {
        self.drain.load(Ordering::Acquire)
    }
}
