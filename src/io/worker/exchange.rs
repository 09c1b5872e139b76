//! What workers of one network pass to each other: frames that the kernel delivered on another's queue, clients that
//! one has accepted and another serves, and datagrams that the first is to send in fragments.
//!
//! Each worker has a bounded inbox. When one is full, parcels wait with their sender, which then takes nothing more
//! that could make another one (from its queue, listeners and datagram sockets) until there is room: nothing is
//! dropped, the sources wait. Only the first worker makes parcels out of parcels, when it has put fragments together;
//! the others empty their inboxes whatever happens, so that no two wait for each other.
//!
//! It also knows when a team that drains may end, which no worker can tell alone: what it has finished may start again
//! with a parcel. Every worker that still owes something holds a [`Debt`], and every parcel on its way is one. With the
//! last of them all look at their queues once more: what a worker has told the guest last (an ARP reply, say) may have
//! set free what waited there, on any queue. Who has looked, and found nothing or dealt with it, has paid what it owed
//! of a second kind; when nothing of either is left, all end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    inbox: Receiver<(Parcel, Debt)>,
    /// The inbox may hold something.
    readable: bool,
    /// By number; its own among them.
    workers: Vec<Addressee>,
    /// What found no room, and for whom it is: what came of one input, or of one outbox of operations.
    waiting: VecDeque<(usize, Parcel)>,
    /// What keeps the team from ending.
    debts: Arc<Debts>,
    /// `None` while this worker owes nothing.
    own_debt: Option<Debt>,
    /// Last looks at queues, one for each worker.
    looks: Arc<Debts>,
    /// `None` once this worker has had its last look.
    own_look: Option<Debt>,
    looks_again: bool,
}

/// How far a team that drains has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// This worker has to wait for the others, or to go on itself.
    Not,
    /// It has to look once more at what the guest has sent. Said once.
    LookAgain,
    /// Nobody owes anything any more.
    All,
}

struct Addressee {
    inbox: SyncSender<(Parcel, Debt)>,
    waker: Arc<Waker>,
    /// It has got something, and was not woken since.
    unaware: bool,
}

/// What a team still has to do.
struct Debts {
    count: AtomicUsize,
    /// Of those who wait for the last one.
    wakers: Vec<Arc<Waker>>,
}

/// One of [`Debts`], as long as it is not dropped.
struct Debt(Arc<Debts>);

impl Debts {
    fn new(wakers: &[Arc<Waker>]) -> Arc<Self> {
        Arc::new(Self { count: AtomicUsize::new(0), wakers: wakers.to_vec() })
    }

    fn are_paid(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }
}

impl Debt {
    fn new(debts: &Arc<Debts>) -> Self {
        debts.count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(debts))
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            // One that can no longer be woken has ended.
            self.0.wakers.iter().for_each(|waker| drop(waker.wake()));
        }
    }
}

impl Default for Exchange {
    /// That of a worker without others.
    fn default() -> Self {
        Self::new(mpsc::sync_channel(0).1, Vec::new(), &Debts::new(&[]), &Debts::new(&[]))
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
        let (debts, looks) = (Debts::new(wakers), Debts::new(wakers));
        inboxes.into_iter().map(|inbox| Self::new(inbox, workers(), &debts, &looks)).collect()
    }

    fn new(
        inbox: Receiver<(Parcel, Debt)>,
        workers: Vec<Addressee>,
        debts: &Arc<Debts>,
        looks: &Arc<Debts>,
    ) -> Self {
        Self {
            inbox,
            readable: !workers.is_empty(),
            workers,
            waiting: VecDeque::new(),
            debts: Arc::clone(debts),
            own_debt: Some(Debt::new(debts)),
            looks: Arc::clone(looks),
            own_look: Some(Debt::new(looks)),
            looks_again: false,
        }
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
        match worker.inbox.try_send((parcel, Debt::new(&self.debts))) {
            Err(TrySendError::Full((parcel, _))) => Err(parcel),
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
        let received = self.inbox.try_recv().ok();
        self.readable = received.is_some();
        let (parcel, debt) = received?;
        // Owed without a gap: by the parcel until now, by this worker from now on.
        self.own_debt.get_or_insert(debt);
        Some(parcel)
    }

    /// Notes whether this worker, which drains, owes anything beside parcels that have found no room.
    pub(super) fn settle(&mut self, owes: bool) -> Settled {
        if !owes && self.has_room() {
            self.own_debt = None;
        } else if self.own_debt.is_none() {
            self.own_debt = Some(Debt::new(&self.debts));
        }
        if !self.debts.are_paid() {
            return Settled::Not;
        }
        if !std::mem::replace(&mut self.looks_again, true) {
            return Settled::LookAgain;
        }
        self.own_look = None;
        // In this order: what was handed over in the course of a look is a debt before the look is over.
        if self.looks.are_paid() && self.debts.are_paid() { Settled::All } else { Settled::Not }
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
    fn a_team_ends_when_nobody_owes_anything_and_no_parcel_is_on_its_way() {
        let (mut first, mut second, mut poll) = pair();
        assert_eq!(second.settle(false), Settled::Not, "the first may still hand something over");
        first.pass(1, frame(0));
        assert_eq!(first.settle(false), Settled::Not, "what it has handed over was not taken");
        assert_eq!(number(second.next()), Some(0));
        assert_eq!(first.settle(false), Settled::Not, "what was taken is not done");
        assert!(!is_woken(&mut poll));
        assert_eq!(second.settle(false), Settled::LookAgain);
        assert!(is_woken(&mut poll), "the others learn that they have to look");
        assert_eq!(second.settle(false), Settled::Not, "the first may find something");
        assert_eq!([first.settle(false), first.settle(false)], [Settled::LookAgain, Settled::All]);
        assert!(is_woken(&mut poll), "the end is told");
        assert_eq!(second.settle(false), Settled::All);
    }

    #[test]
    fn what_a_last_look_finds_is_waited_for() {
        let (mut first, mut second, _poll) = pair();
        assert_eq!([first.settle(false), second.settle(false)], [Settled::Not, Settled::LookAgain]);
        assert_eq!([first.settle(false), first.settle(false)], [Settled::LookAgain, Settled::Not]);
        second.pass(0, frame(0));
        assert_eq!(second.settle(false), Settled::Not);
        assert_eq!(number(first.next()), Some(0));
        assert_eq!(second.settle(false), Settled::Not);
        assert_eq!(first.settle(false), Settled::Not);
        assert_eq!([second.settle(false), first.settle(false)], [Settled::All; 2]);
    }

    #[test]
    fn who_has_ended_early_owes_nothing() {
        let (mut first, mut second, _poll) = pair();
        second.pass(0, frame(0));
        drop(first.next());
        second.pass(0, frame(1));
        drop(first);
        assert_eq!([second.settle(false), second.settle(false)], [Settled::LookAgain, Settled::All]);
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
