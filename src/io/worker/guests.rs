//! Several guests on one worker: links that come and go while it runs, and frames between them.
//!
//! A frame for another guest is written to that one's link as it was read, its header included. What a link does not
//! take waits in a queue of its own, so that nobody waits for somebody else's link; what is more than the queue
//! holds is lost.

use std::collections::VecDeque;
use std::io;

use super::{BOTH, LINK_TOKENS, LinkPort, Worker, now, special};
use crate::config::Network;
use crate::error::{Context, Error, Result};
use crate::io::link::{Link, Received};
use crate::io::resolver::Resolver;
use crate::net::gateway::{Gateway, MAX_SEATS};
use crate::net::switch::{Seat, Way};
use crate::net::{Instant, PortId, Shard, TxOffload};

/// Bytes that wait for one link: the windows of some streams.
const MAX_WAITING_BYTES: usize = 4 * 1024 * 1024;

/// A guest that is to be served.
#[derive(Debug)]
pub struct Guest {
    /// Its link; of all guests of a worker with the same kind of header.
    pub link: Link,
    /// Its place among the others.
    pub seat: Seat,
    /// What it is called, and whether it shall be alone to be called so.
    pub names: Vec<(String, bool)>,
}

/// Frames that wait for a link, with their headers.
#[derive(Default)]
pub(super) struct Waiting {
    frames: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    fn push(&mut self, whole: &[u8]) {
        if self.bytes + whole.len() > MAX_WAITING_BYTES {
            return tracing::trace!("a guest's queue is full: a frame is lost");
        }
        self.bytes += whole.len();
        self.frames.push_back(whole.into());
    }
}

impl LinkPort {
    /// Sends a frame from the outbox, now or later.
    pub(super) fn deliver(&mut self, frame: &mut [u8], offload: TxOffload, now: Instant) {
        let Some(link) = &self.link else { return };
        match link.with_header(frame, offload) {
            Ok(whole) => self.pass(whole, now),
            Err(error) => tracing::trace!(%error, "the link cannot express a frame"),
        }
    }

    /// Sends a frame that has its header, now or later.
    fn pass(&mut self, whole: &[u8], now: Instant) {
        if self.gone {
            return;
        }
        if !self.waiting.is_empty() || !self.offer(whole, now) {
            self.waiting.push(whole);
        }
    }

    /// Offers a frame to the link; `false` if it is to be offered again.
    fn offer(&mut self, whole: &[u8], now: Instant) -> bool {
        let Some(link) = &mut self.link else { return true };
        match link.pass(whole) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.may_still_take_it(now) => {
                self.blocked = true;
                return false;
            }
            Err(error) => tracing::trace!(%error, "the link takes no such frame"),
            Ok(()) => self.refuses_since = None,
        }
        self.blocked = false;
        true
    }

    /// Sends what waits, as far as the link takes it.
    fn catch_up(&mut self, now: Instant) {
        while let Some(frame) = self.waiting.frames.pop_front() {
            if !self.offer(&frame, now) {
                return self.waiting.frames.push_front(frame);
            }
            self.waiting.bytes -= frame.len();
        }
    }
}

impl Worker {
    /// The worker of a network whose guests come and go; it ends when it is told to.
    pub fn of_guests(network: Network, resolver: &Resolver, seed: u64) -> Result<Self> {
        let mut worker = Self::of_shard(Shard::WHOLE, network.into(), resolver.clone(), seed)?;
        worker.has_seats = true;
        Ok(worker)
    }

    /// Serves a guest from now on: its port, and the names that others keep.
    pub(super) fn attach(&mut self, guest: Guest) -> Result<(PortId, Vec<String>)> {
        const WHAT: &str = "the guest's link";
        let Guest { mut link, seat, names } = guest;
        let has_header = link.has_header();
        let others = self.links.iter().filter_map(|port| port.link.as_ref());
        if others.map(Link::has_header).any(|other| other != has_header) {
            let cause = "the network's other links and this one differ in their offloads";
            return Err(Error::new("cannot use", WHAT, cause)
                .hint("choose one of the others' kind with --link tap, tap-plain or packet"));
        }
        let taken = || {
            let cause = format!("its station is taken, or the network has {MAX_SEATS} guests");
            Error::new("cannot plug in", WHAT, cause)
        };
        let port = self.gateway.add_seat(seat, link.offload()).ok_or_else(taken)?;
        let index = usize::from(port.0);
        let registered = self.poll.registry().register(&mut link, special(LINK_TOKENS, index), BOTH);
        if let Err(error) = registered {
            self.gateway.remove_seat(port);
            self.leaving.push(port);
            return Err(error).context("cannot poll", WHAT);
        }
        self.place(index, LinkPort::new(link, &self.rates, now(self.clock)));
        let kept = names.into_iter().filter(|(name, alone)| !self.gateway.give_name(name, port, *alone));
        Ok((port, kept.map(|(name, _)| name).collect()))
    }

    fn place(&mut self, index: usize, link: LinkPort) {
        match self.links.get_mut(index) {
            Some(free) => *free = link,
            None => self.links.push(link),
        }
    }

    /// The guest on `port` has left, or has to; its published ports are closed. Its link is given back, as to close one
    /// takes the kernel a while.
    pub(super) fn detach(&mut self, port: PortId) -> Option<Link> {
        let mut link = self.links.get_mut(usize::from(port.0))?.leave()?;
        // One that cannot be forgotten is closed anyway.
        let _ = self.poll.registry().deregister(&mut link);
        self.close_listeners(|published| published.port == port);
        self.gateway.remove_seat(port);
        self.leaving.push(port);
        Some(link)
    }

    /// Ends flows of guests that have left, as far as there is room.
    pub(super) fn clear_seats(&mut self) {
        while let Some(port) = self.leaving.last().copied() {
            if !self.has_room() {
                return;
            }
            if self.gateway.clear_seat(port) {
                self.leaving.pop();
            }
        }
    }

    /// Sends what waits for links.
    pub(super) fn catch_up(&mut self) {
        let now = now(self.clock);
        for port in self.links.iter_mut().filter(|port| !port.waiting.is_empty()) {
            port.catch_up(now);
        }
    }
}

/// Passes a frame that came from a guest on to others; whether the gateway is to have it, too.
pub(super) fn switch(
    gateway: &mut Gateway,
    links: &mut [LinkPort],
    from: PortId,
    received: &Received<'_>,
    now: Instant,
) -> bool {
    let Received { whole, header_bytes, .. } = *received;
    match gateway.switch(from, &whole[header_bytes..]) {
        Way::Gateway => true,
        Way::Nowhere => false,
        Way::Port(to) => {
            if let Some(link) = links.get_mut(usize::from(to.0)) {
                link.pass(whole, now);
            }
            false
        }
        Way::All => {
            let others = links.iter_mut().enumerate().filter(|(index, _)| *index != usize::from(from.0));
            others.for_each(|(_, link)| link.pass(whole, now));
            true
        }
    }
}
