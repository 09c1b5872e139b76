//! `rnet run`, put together: published ports, container, link, worker, command, in an order in which nothing
//! is half done when a step fails.

use std::net::SocketAddr;
use std::process;

use crate::config::{Config, LinkKind, Publish};
use crate::container::{self, Launch, Running};
use crate::control::{Place, Socket};
use crate::error::{Error, Result};
use crate::etc;
use crate::io::ports::Ports;
use crate::serve::{Alarm, FileLimit, Prepared, Serving};
use crate::sys::memory;

/// A container with its network, ready for its command.
pub struct Session {
    running: Running,
    serving: Serving,
}

/// Runs the command of `config`; its exit status by docker's convention.
pub fn run(config: &Config, seed: u64) -> Result<u8> {
    let mut session = Session::prepare(config, seed)?;
    session.serving.announce(config.log.level);
    session.start()?;
    session.wait()
}

impl Session {
    /// Does everything but start the command. No thread may have been started before. `seed` feeds the gateway's
    /// random choices.
    pub fn prepare(config: &Config, seed: u64) -> Result<Self> {
        let files = FileLimit::read()?;
        files.raise()?;
        let place = Place::of(config.name.as_deref(), process::id(), None)?;
        let prepared = Prepared::new(&config.network)?;
        let etc = etc::files(config, prepared.resolv_conf());
        let launch =
            Launch { container: &config.container, link: &config.link, network: &config.network, etc: &etc };
        files.restore()?;
        let mut running = container::launch(&launch)?;
        files.raise()?;
        let link = running
            .take_link()
            .ok_or_else(|| Error::new("cannot take over", "the guest's link", "the container kept it"))?;
        let factory = running.take_factory();
        let mut serving =
            prepared.serve(&config.network, &config.link, link, factory, seed, Alarm::Failure)?;
        place.map_or(Ok(()), |place| serving.answer_at(place))?;
        Ok(Self { running, serving })
    }

    /// The published ports with the addresses that they got.
    pub fn published(&self) -> Vec<(Publish, SocketAddr)> {
        let ports = self.serving.ports().list().into_iter();
        ports
            .flat_map(|port| port.addresses.into_iter().map(move |address| (port.publish, address)))
            .collect()
    }

    /// The published ports; more can be added.
    pub fn ports(&self) -> &Ports {
        self.serving.ports()
    }

    /// Answers requests at `socket` too.
    pub fn answer_at_path(&mut self, socket: Socket) -> Result<()> {
        self.serving.answer_at_path(socket)
    }

    /// The kind of link that was made.
    pub fn link(&self) -> LinkKind {
        self.serving.link()
    }

    /// Starts the command.
    pub fn start(&mut self) -> Result<()> {
        self.running.start()?;
        memory::unmap_used_code();
        Ok(())
    }

    /// Forwards signals until the command ends and what it sent is delivered; its exit status.
    pub fn wait(mut self) -> Result<u8> {
        let status = self.running.wait();
        self.running.wait_unless_told_to_end(self.serving.drain())?;
        self.serving.stop().and(status)
    }
}
