//! What a running worker can be told, and by whom: [`Commands`] is a handle for any thread, the worker obeys once a
//! turn.
//!
//! Whatever takes time (binding, looking up who holds a port) is done by the one who asks; the worker only takes over
//! or gives away.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use mio::Waker;

use super::host::Listener;
use super::link::Link;
use super::worker::Guest;
use crate::config::Publish;
use crate::error::{Error, Result};
use crate::net::gateway::FlowReport;
use crate::net::{Counters, PortId, Shard};

/// Commands obeyed in one turn.
pub(super) const COMMANDS_PER_TURN: usize = 64;
/// Flows that are described at most.
pub const MAX_FLOWS_TOLD: usize = 4096;
/// How long an answer is waited for; a worker that takes longer is stuck.
const PATIENCE: Duration = Duration::from_secs(5);

/// Number of a published port, the same in every worker of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortNumber(pub u64);

/// Something to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Serve a published port.
    Publish {
        number: PortNumber,
        port: PortId,
        publish: Publish,
        listeners: Vec<Listener>,
        done: SyncSender<Result<()>>,
    },
    /// Close a published port. Established connections stay.
    Unpublish { number: PortNumber, done: SyncSender<()> },
    /// Serve a guest.
    Attach { guest: Box<Guest>, done: SyncSender<Result<(PortId, Vec<String>)>> },
    /// Leave a guest.
    Detach { port: PortId, done: SyncSender<Option<Link>> },
    /// Tell what goes on.
    Look { told: SyncSender<Snapshot> },
}

/// What goes on in a worker.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Totals since start.
    pub counters: Counters,
    /// Flows that live, those of the DNS forwarder and those that the kernel carries included.
    pub flows: usize,
    /// The first [`MAX_FLOWS_TOLD`] of the others.
    pub described: Vec<FlowReport>,
}

impl Snapshot {
    /// Adds what goes on in another worker of the same network.
    pub(super) fn add(&mut self, other: Self) {
        self.counters.add(&other.counters);
        self.flows += other.flows;
        let room = MAX_FLOWS_TOLD - self.described.len();
        self.described.extend(other.described.into_iter().take(room));
    }
}

/// Commands a worker from another thread.
#[derive(Clone, Debug)]
pub struct Commands {
    queue: Sender<Command>,
    waker: Arc<Waker>,
    shard: Shard,
}

impl Commands {
    /// A handle, and the worker's end.
    pub(super) fn new(waker: Arc<Waker>, shard: Shard) -> (Self, Receiver<Command>) {
        let (queue, inbox) = channel();
        (Self { queue, waker, shard }, inbox)
    }

    /// The member of its team that serves a published port of the guest's.
    pub(super) fn owner_of(&self, guest_port: u16) -> usize {
        self.shard.of_udp(guest_port)
    }

    /// Has the worker serve `listeners`, which are bound for `publish`.
    pub(super) fn publish(
        &self,
        port: PortId,
        number: PortNumber,
        publish: Publish,
        listeners: Vec<Listener>,
    ) -> Result<()> {
        self.ask(|done| Command::Publish { number, port, publish, listeners, done })?
    }

    /// Has the worker serve `guest`, if it is one [of guests](super::worker::Worker::of_guests); its port, and those of
    /// its names that others keep.
    pub fn attach(&self, guest: Guest) -> Result<(PortId, Vec<String>)> {
        self.ask(|done| Command::Attach { guest: Box::new(guest), done })?
    }

    /// Has the worker leave the guest on `port`; its link is closed on return.
    pub fn detach(&self, port: PortId) -> Result<()> {
        self.ask(|done| Command::Detach { port, done }).map(drop)
    }

    /// Has the worker close the port `number`; it is free on return.
    pub fn unpublish(&self, number: PortNumber) -> Result<()> {
        self.ask(|done| Command::Unpublish { number, done })
    }

    /// What goes on in the worker.
    pub fn look(&self) -> Result<Snapshot> {
        self.ask(|told| Command::Look { told })
    }

    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T> {
        let gone = |cause: &str| Error::new("cannot ask", "the network's worker", cause);
        let (answer, answered) = sync_channel(1);
        self.queue.send(command(answer)).map_err(|_| gone("it has ended"))?;
        self.waker.wake().map_err(|error| gone(&error.to_string()))?;
        answered.recv_timeout(PATIENCE).map_err(|_| gone("it does not answer"))
    }
}
