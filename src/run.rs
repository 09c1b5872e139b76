//! `rnet run`, put together: published ports, container, link, worker, command, in an order in which nothing
//! is half done when a step fails.

use std::net::SocketAddr;
use std::process;

use crate::config::{Config, LinkKind, Publish};
use crate::container::{self, Launch, Running};
use crate::control::{Place, Socket};
use crate::error::{Error, Result};
use crate::io::ports::Ports;
use crate::serve::{Alarm, FileLimit, Prepared, Serving};
use crate::state::{Kept, Record};
use crate::sys::memory;
use crate::{attach, etc, state};

/// A container with its network, ready for its command.
pub struct Session {
    running: Running,
    serving: Serving,
}

/// Runs the command of `config` in a container that is on record; its exit status by docker's convention.
pub fn run(config: &Config, seed: u64) -> Result<u8> {
    state::sweep();
    let place = Place::of(config.name.as_deref(), process::id(), None)?;
    // It goes after the session, on the way of an error too.
    let mut kept = place.as_ref().map(|place| Kept::begin(config, place)).transpose()?;
    let mut session = Session::prepare_at(place, config, seed)?;
    session.serving.announce(config.log.level);
    if let Some(kept) = &mut kept {
        session.describe(kept)?;
    }
    session.start()?;
    if let Some(kept) = &mut kept {
        kept.change(Record::started)?;
    }
    config.life.pid_file.as_deref().map_or(Ok(()), attach::write_pid)?;
    let status = session.wait();
    if let Some(kept) = kept {
        let error = status.as_ref().err().map(ToString::to_string).unwrap_or_default();
        kept.end(status.as_ref().map_or_else(Error::code, |status| *status), &error)?;
    }
    status
}

impl Session {
    /// Does everything but start the command. No thread may have been started before. `seed` feeds the gateway's
    /// random choices.
    pub fn prepare(config: &Config, seed: u64) -> Result<Self> {
        Self::prepare_at(Place::of(config.name.as_deref(), process::id(), None)?, config, seed)
    }

    /// The same with a place that is there already.
    fn prepare_at(place: Option<Place>, config: &Config, seed: u64) -> Result<Self> {
        let files = FileLimit::read()?;
        files.raise()?;
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

    /// Writes down what is known by now.
    fn describe(&self, kept: &mut Kept) -> Result<()> {
        kept.made(self.running.pid())?;
        kept.change(|record| {
            for (publish, address) in self.published() {
                record.network_settings.listens(&publish, address);
            }
        })
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
