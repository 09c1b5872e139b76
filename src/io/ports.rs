//! The published ports of a running network: which there are, added and removed from any thread.
//!
//! A port is bound here, by the thread that asks, so that it hears the cause of a failure; then every worker is told.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::command::{Commands, PortNumber, Snapshot};
use super::host::{self, Listener};
use crate::config::{MAX_PUBLISHED, Publish};
use crate::error::{Error, Result};
use crate::net::PortId;

/// A published port and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// From 1 upwards in the order of their making; never used again.
    pub number: PortNumber,
    /// What was asked for.
    pub publish: Publish,
    /// Addresses at the host.
    pub addresses: Vec<SocketAddr>,
}

impl Port {
    /// Whether `asked` means this port. One that the kernel has numbered is also meant by that number.
    fn is(&self, asked: &Publish) -> bool {
        let chosen = self.addresses.first().map(SocketAddr::port);
        let same = Publish { host_port: asked.host_port, ..self.publish } == *asked;
        same && (self.publish.host_port == asked.host_port || asked.host_port == chosen)
    }
}

/// The ports of one network. Clones are the same ports.
#[derive(Clone, Debug)]
pub struct Ports {
    workers: Workers,
    /// Whose they are.
    guest: PortId,
    /// They may be bound to addresses that the host does not have.
    freebind: bool,
    table: Arc<Mutex<Table>>,
}

/// All that serve the network, in their order. A port is served by one of them; of a closed one all hear.
#[derive(Clone, Debug)]
struct Workers(Vec<Commands>);

impl Workers {
    fn publish(
        &self,
        guest: PortId,
        number: PortNumber,
        publish: &Publish,
        listeners: Vec<Listener>,
    ) -> Result<()> {
        let owner = self.0.first().and_then(|first| self.0.get(first.owner_of(publish.guest_port)));
        let nobody = || Error::new("cannot publish", publish, "rnet does not carry the container's network");
        owner.ok_or_else(nobody)?.publish(guest, number, *publish, listeners)
    }

    fn unpublish(&self, number: PortNumber) -> Result<()> {
        // All hear of it before the first failure is told.
        let told: Vec<Result<()>> = self.0.iter().map(|worker| worker.unpublish(number)).collect();
        told.into_iter().collect()
    }

    fn look(&self) -> Result<Snapshot> {
        let mut sum = Snapshot::default();
        for worker in &self.0 {
            sum.add(worker.look()?);
        }
        Ok(sum)
    }
}

#[derive(Debug)]
struct Table {
    ports: Vec<Port>,
    /// The last number, of all guests of the same workers.
    last: Arc<AtomicU64>,
}

impl Table {
    fn next_number(&self) -> PortNumber {
        PortNumber(self.last.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl Ports {
    /// The ports of the network that `workers` serve, who have those of `first` already. With `freebind` they may be
    /// bound to addresses that the host does not have.
    pub(crate) fn new(workers: Vec<Commands>, first: Vec<Port>, freebind: bool) -> Self {
        let last = first.iter().map(|port| port.number.0).max().unwrap_or(0);
        let table = Table { ports: first, last: Arc::new(last.into()) };
        Self { workers: Workers(workers), guest: PortId(0), freebind, table: Arc::new(Mutex::new(table)) }
    }

    /// Those of the guest on `guest`, none as yet, of the same workers.
    pub fn of_guest(&self, guest: PortId) -> Self {
        let last = Arc::clone(&self.table().last);
        let table = Table { ports: Vec::new(), last };
        Self {
            workers: self.workers.clone(),
            guest,
            freebind: self.freebind,
            table: Arc::new(Mutex::new(table)),
        }
    }

    /// Publishes what is bound already.
    pub(crate) fn take(&self, publish: &Publish, listeners: Vec<Listener>) -> Result<Port> {
        let mut table = self.table();
        let number = table.next_number();
        let port = Self::describe(number, publish, &listeners);
        self.workers.publish(self.guest, number, publish, listeners)?;
        table.ports.push(port.clone());
        Ok(port)
    }

    /// The port as it is bound for `publish`.
    pub(crate) fn describe(number: PortNumber, publish: &Publish, listeners: &[Listener]) -> Port {
        Port { number, publish: *publish, addresses: listeners.iter().map(Listener::address).collect() }
    }

    /// All of them, oldest first.
    pub fn list(&self) -> Vec<Port> {
        self.table().ports.clone()
    }

    /// Publishes all of `wanted`, or none if one fails. What is published already is left as it is and counts as done,
    /// but for ports whose number the kernel chooses: they are always new.
    pub fn add(&self, wanted: &[Publish]) -> Result<Vec<Port>> {
        let mut table = self.table();
        let mut bound = Vec::new();
        let mut done = Vec::new();
        for publish in wanted {
            let there = |port: &&Port| publish.host_port.is_some() && port.is(publish);
            match table.ports.iter().find(there) {
                Some(port) => done.push(port.clone()),
                None => bound.push((*publish, host::listen(publish, self.freebind)?)),
            }
        }
        if table.ports.len() + bound.len() > MAX_PUBLISHED as usize {
            let cause = format!("a network publishes at most {MAX_PUBLISHED}");
            return Err(Error::new("cannot publish", format!("{} ports more", bound.len()), cause));
        }
        let before = table.ports.len();
        for (publish, listeners) in bound {
            let number = table.next_number();
            let port = Self::describe(number, &publish, &listeners);
            if let Err(error) = self.workers.publish(self.guest, number, &publish, listeners) {
                // One that was only late may serve it yet; one that cannot hear this serves nothing.
                let added = table.ports.drain(before..).map(|port| port.number);
                for number in added.chain([number]) {
                    let _ = self.workers.unpublish(number);
                }
                return Err(error);
            }
            table.ports.push(port.clone());
            done.push(port);
        }
        Ok(done)
    }

    /// Closes the listeners of all that is meant by `unwanted`; what was not published is an error, and nothing is
    /// closed then. Established connections stay.
    pub fn remove(&self, unwanted: &[Publish]) -> Result<()> {
        let numbers: Vec<PortNumber> = {
            let table = self.table();
            let find = |publish: &Publish| {
                let found = table.ports.iter().find(|port| port.is(publish));
                found.map(|port| port.number).ok_or_else(|| not_published(publish))
            };
            unwanted.iter().map(find).collect::<Result<_>>()?
        };
        numbers.into_iter().try_for_each(|number| self.remove_number(number).map(drop))
    }

    /// The same for one port by its number; `false` if there is none.
    pub fn remove_number(&self, number: PortNumber) -> Result<bool> {
        let mut table = self.table();
        let Some(at) = table.ports.iter().position(|port| port.number == number) else {
            return Ok(false);
        };
        self.workers.unpublish(number)?;
        table.ports.remove(at);
        Ok(true)
    }

    /// What goes on in the network.
    pub fn look(&self) -> Result<Snapshot> {
        self.workers.look()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A thread that panicked has left it whole: the table changes last.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_published(publish: &Publish) -> Error {
    Error::new("cannot remove", publish, "it is not published").hint("`rnet port ls` shows what is")
}
