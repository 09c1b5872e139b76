//! Spliced connections in the worker's turn: what they need of poll and gateway.

use super::{FACTORY_TOKEN, Worker, now};
use crate::error::Result;
use crate::io::splice::{Client, End};
use crate::net::Instant;
use crate::sys::factory::Factory;

impl Worker {
    /// Has loopback clients of published TCP ports spliced, if the network wants that, with sockets that `factory`
    /// makes.
    pub fn add_factory(&mut self, factory: Factory) -> Result<()> {
        self.splices.supply(factory, self.poll.registry(), FACTORY_TOKEN)
    }

    /// Sends a client its way: through the kernel, or over the link.
    pub(super) fn admit(&mut self, client: Client, now: Instant) {
        let splice = self.splices.can_splice().then(|| self.gateway.splice(client.service, client.address));
        match splice.flatten() {
            Some((flow, splice)) => self.splices.open(flow, splice, client, self.poll.registry()),
            None => self.route(client, now),
        }
    }

    /// Serves spliced connections, and takes note of those that are over.
    pub(super) fn serve_splices(&mut self) {
        self.splices.serve(self.poll.registry());
        let now = now(self.clock);
        while self.has_room() {
            match self.splices.next_end() {
                Some(End::Over(flow)) => self.gateway.splice_ended(flow),
                Some(End::NotSpliced(flow, client)) => {
                    self.gateway.splice_ended(flow);
                    self.route(client, now);
                }
                None => return,
            }
        }
    }
}
