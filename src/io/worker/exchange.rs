//! What workers of one network pass to each other: frames that the kernel delivered on another's queue, clients that
//! one has accepted and another serves, and datagrams that the first is to send in fragments.
//!
//! Each worker has a bounded inbox. When one is full, parcels wait with their sender, which then takes nothing more
//! that could make another one (from its queue, listeners and datagram sockets) until there is room: nothing is
//! dropped, the sources wait. Only the first worker makes parcels out of parcels, when it has put fragments together;
//! the others empty their inboxes whatever happens, so that no two wait for each other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};

use mio::Waker;

use crate::io::splice::Client;
use crate::net::{LargeDatagram, PortId, RxOffload};

/// Parcels that wait for one worker; of the largest frames they are 16 MiB.
const INBOX_PARCELS: usize = 256;

/// Something that belongs to another worker.
pub(super) enum Parcel {
    Frame {
        port: PortId,
        frame: Box<[u8]>,
        offload: RxOffload,
    },
    /// To be sent in fragments.
    Datagram {
        datagram: LargeDatagram,
        payload: Box<[u8]>,
    },
    /// Accepted, and not yet polled by anyone.
    Client(Client),
}

/// One worker's inbox, and the way to those of the others.
pub(super) struct Exchange {
    inbox: Receiver<Parcel>,
    /// The inbox may hold something.
    readable: bool,
    /// By number; its own among them.
    workers: Vec<Addressee>,
    /// What found no room, and for whom it is: what came of one input, or of one outbox of operations.
    waiting: VecDeque<(usize, Parcel)>,
}

struct Addressee {
    inbox: SyncSender<Parcel>,
    waker: Arc<Waker>,
    /// It has got something, and was not woken since.
    unaware: bool,
}

impl Default for Exchange {
    /// That of a worker without others.
    fn default() -> Self {
        Self {
            inbox: mpsc::sync_channel(0).1,
            readable: false,
            workers: Vec::new(),
            waiting: VecDeque::new(),
        }
    }
}

impl Exchange {
    /// Those of a team, in the order of what wakes its workers.
    pub(super) fn between(wakers: &[Arc<Waker>]) -> Vec<Self> {
        if wakers.len() == 1 {
            return vec![Self::default()];
        }
        let (senders, inboxes): (Vec<_>, Vec<_>) =
            wakers.iter().map(|_| mpsc::sync_channel(INBOX_PARCELS)).unzip();
        let workers = || {
            let others = senders.iter().cloned().zip(wakers.iter().cloned());
            others.map(|(inbox, waker)| Addressee { inbox, waker, unaware: false }).collect()
        };
        let exchange = |inbox| Self { inbox, readable: true, workers: workers(), waiting: VecDeque::new() };
        inboxes.into_iter().map(exchange).collect()
    }

    /// Notes that this worker was woken.
    pub(super) fn note(&mut self) {
        self.readable = !self.workers.is_empty();
    }

    /// Whether the inbox may hold something.
    pub(super) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether a parcel may be passed.
    pub(super) fn has_room(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Passes a parcel to worker `to`, which learns of it by [`Self::tell`]. What has to wait stays in order.
    pub(super) fn pass(&mut self, to: usize, parcel: Parcel) {
        let posted = if self.has_room() { self.post(to, parcel) } else { Err(parcel) };
        if let Err(parcel) = posted {
            self.waiting.push_back((to, parcel));
        }
    }

    /// Gives back what finds no room.
    fn post(&mut self, to: usize, parcel: Parcel) -> Result<(), Parcel> {
        let Some(worker) = self.workers.get_mut(to) else { return Ok(()) };
        // A full inbox is no reason to let its owner sleep: it may hold what the owner was not yet told of.
        worker.unaware = true;
        match worker.inbox.try_send(parcel) {
            Err(TrySendError::Full(parcel)) => Err(parcel),
            // One that has ended has lost its queue, as all are about to.
            Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(()),
        }
    }

    /// Wakes those who have got something, and tries once more what found no room.
    pub(super) fn tell(&mut self) {
        while let Some((to, parcel)) = self.waiting.pop_front() {
            if let Err(parcel) = self.post(to, parcel) {
                self.waiting.push_front((to, parcel));
                break;
            }
        }
        for worker in self.workers.iter_mut().filter(|worker| worker.unaware) {
            worker.unaware = false;
            // One that can no longer be woken has ended.
            let _ = worker.waker.wake();
        }
    }

    /// The next parcel for this worker.
    pub(super) fn next(&mut self) -> Option<Parcel> {
        let parcel = self.inbox.try_recv().ok();
        self.readable = parcel.is_some();
        parcel
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll, Token};
    use std::time::Duration;

    #[test]
    fn a_full_inbox_keeps_its_sender_waiting_and_loses_nothing() {
        let (mut from, mut to, mut poll) = pair();
        let mut sent = 0;
        while from.has_room() {
            from.pass(1, frame(sent));
            sent += 1;
        }
        assert_eq!(sent, INBOX_PARCELS + 1);
        from.pass(1, frame(sent));
        sent += 1;
        from.tell();
        assert!(!from.has_room(), "nobody has made room");
        assert!(is_woken(&mut poll), "and yet it is woken");
        assert_eq!([(); 2].map(|()| number(to.next())), [Some(0), Some(1)]);
        from.tell();
        assert!(from.has_room());
        let rest: Vec<usize> = std::iter::from_fn(|| number(to.next())).collect();
        assert_eq!(rest, (2..sent).collect::<Vec<_>>());
        assert!(!to.is_readable());
    }

    #[test]
    fn what_is_for_a_worker_that_has_ended_is_let_go() {
        let (mut from, to, _poll) = pair();
        drop(to);
        from.pass(1, frame(0));
        from.tell();
        assert!(from.has_room());
    }

    #[test]
    fn a_worker_alone_has_nothing_to_read() {
        let mut alone = Exchange::default();
        alone.note();
        assert!(!alone.is_readable() && alone.next().is_none() && alone.has_room());
    }

    /// The first of two workers, the second, and the second's poll.
    fn pair() -> (Exchange, Exchange, Poll) {
        let polls = [(); 2].map(|()| Poll::new().expect("an epoll instance"));
        let waker = |poll: &Poll| Arc::new(Waker::new(poll.registry(), Token(0)).expect("an eventfd"));
        let mut exchanges = Exchange::between(&polls.each_ref().map(waker));
        let (second, first) = (exchanges.remove(1), exchanges.remove(0));
        let [_, poll] = polls;
        (first, second, poll)
    }

    fn is_woken(poll: &mut Poll) -> bool {
        let mut events = Events::with_capacity(1);
        poll.poll(&mut events, Some(Duration::ZERO)).expect("a poll");
        !events.is_empty()
    }

    fn frame(number: usize) -> Parcel {
        Parcel::Frame { port: PortId(0), frame: number.to_be_bytes().into(), offload: RxOffload::default() }
    }

    fn number(parcel: Option<Parcel>) -> Option<usize> {
        match parcel? {
            Parcel::Frame { frame, .. } => frame.first_chunk().map(|bytes| usize::from_be_bytes(*bytes)),
            Parcel::Datagram { .. } | Parcel::Client(_) => None,
        }
    }
}
